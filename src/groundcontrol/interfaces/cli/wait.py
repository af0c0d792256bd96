"""`ground wait`: block until a condition, a field or an absence is so, for scripts that go on afterwards."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import click

from groundcontrol.interfaces.cli.client import Client, Doc
from groundcontrol.interfaces.cli.delete import wait_until_gone
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure, Refused, Unreachable
from groundcontrol.interfaces.cli.get import Query, list_kind
from groundcontrol.interfaces.cli.kinds import Target, fetch
from groundcontrol.interfaces.cli.options import DURATION, completed_by, namespace_option, selector_option
from groundcontrol.interfaces.cli.output import age, cell, condition, note, safe, say, value_at
from groundcontrol.interfaces.cli.session import session


class Wish(NamedTuple):
    """What is waited for: a condition with a status, or a field with a value (any, when None)."""

    path: str
    value: str | None

    def granted(self, doc: Doc) -> bool:
        if not self.path.startswith("conditions."):
            found = value_at(doc, self.path)
            return found is not None if self.value is None else cell(found) == self.value
        entry = condition(doc, self.path.removeprefix("conditions."))
        seen = entry.get("observedGeneration") or (doc.get("status") or {}).get("observedGeneration") or 0
        current = not seen or seen >= (doc["metadata"].get("generation") or 0)
        return current and str(entry["status"]).lower() == str(self.value).lower()

    def now(self, doc: Doc) -> str:
        """How it is instead, for the message of a time-out."""
        if not self.path.startswith("conditions."):
            return f"{self.path} is {cell(value_at(doc, self.path))}"
        entry = condition(doc, self.path.removeprefix("conditions."))
        since = f" since {age(entry['lastTransitionTime'])}" if entry.get("lastTransitionTime") else ""
        why = ": ".join(str(entry[part]) for part in ("reason", "message") if entry.get(part))
        return f"{entry.get('type')} is {entry['status']}{since}{f', {why}' if why else ''}"


def wish(text: str) -> Wish | None:
    """`condition=Ready[=False]`, `status.phase=Running`, `jsonpath={.status.phase}=Running`; None for `delete`."""
    if text == "delete":
        return None
    if match := re.fullmatch(r"condition=([^=]+)(?:=(True|False|Unknown))?", text, re.IGNORECASE):
        return Wish(f"conditions.{match[1]}", match[2] or "True")
    if match := re.fullmatch(
        r"(?:jsonpath=)?['\"]?\{?\.?((?:metadata|spec|status)\.[^=}]+)\}?['\"]?(?:==?(.*))?", text
    ):
        return Wish(match[1], match[2])
    raise Failure(f"cannot wait for {text!r}", "write condition=Ready, delete, or status.field=value", code=USAGE)


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="KIND/NAME…", shell_complete=completed_by("kind_or_name"))
@click.option("--for", "wanted", default="condition=Ready", show_default=True, metavar="WHAT",
              help="condition=NAME[=False|Unknown], delete, or status.field=value.")  # fmt: skip
@namespace_option
@selector_option
@click.option("--timeout", type=DURATION, default=60.0, metavar="TIME", help="Give up after this long (60s).")
def wait(what: tuple[str, ...], wanted: str, namespace: str | None, selector: str | None, timeout: float) -> int:
    """Wait until something is so; exit code 1 when it is not so in time.

    \b
    ground wait service/web -n alpha --for=condition=Ready --timeout 5m
    ground wait services -l tier=test -n alpha --for=delete
    ground wait run/drill-7 -n ops --for=status.phase=Succeeded
    """
    here = session()
    wanted_state = wish(wanted)
    kinds, targets = here.kinds.targets(what, here.namespace(namespace))
    if not targets:
        query = Query(here.namespace(namespace), selector or "", "", 0, "", True)
        targets = [here.kinds.target_of(doc) for kind in kinds for doc in list_kind(here.client, kind, query)[0]]
    if not targets:
        if wanted_state is None:
            return OK
        raise Failure(f"no {what[0]} to wait for")
    if wanted_state is None:
        wait_until_gone(here.client, targets, timeout)
        return OK
    _wait(here.client, targets, wanted_state, timeout)
    return OK


def _wait(client: Client, targets: list[Target], wanted: Wish, timeout: float) -> None:
    """Look again and again; a server that is away for a moment is waited for as well."""
    deadline, pause = time.monotonic() + timeout, 0.2
    left, state = list(targets), dict[Target, str]()
    while True:
        for target in list(left):
            try:
                doc = fetch(client, target)
            except (Refused, Unreachable) as failure:
                if isinstance(failure, Refused) and failure.status not in (429, 502, 503, 504):
                    raise
                if target not in state:
                    note(f"{failure.message}; waiting for that as well")
                state[target] = failure.message
                continue
            if wanted.granted(doc):
                say(f"{safe(target)}: {safe(wanted.now(doc))}")
                left.remove(target)
            else:
                state[target] = wanted.now(doc)
        if not left:
            return
        if time.monotonic() + pause > deadline:
            lines = [f"{target}: {state.get(target, 'not looked at')}" for target in left]
            raise Failure(f"not so after {timeout:g} s:", *lines)
        time.sleep(pause)
        pause = min(pause * 1.5, 2.0)
