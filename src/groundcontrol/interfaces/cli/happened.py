"""`ground events` and `ground audit`: what happened to what, and who did what."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Any

import click

from groundcontrol.interfaces.cli.client import API, Client, Doc
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure, Refused, Unreachable
from groundcontrol.interfaces.cli.options import completed_by, everywhere_option, namespace_option, output_option
from groundcontrol.interfaces.cli.output import age, as_json, as_yaml, moment, note, say, seconds_of, table
from groundcontrol.interfaces.cli.session import Session, session

EVERY = 2.0
"""Seconds between looks of `events -w`."""


@click.command()
@click.argument("what", nargs=-1, metavar="[KIND [NAME]]", shell_complete=completed_by("kind_or_name"))
@namespace_option
@everywhere_option
@click.option("--warnings", is_flag=True, help="Only what went wrong.")
@click.option("--since", metavar="TIME|N", help="Not older than this (30m, 2d), or after this event number.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The last so many.")
@click.option("-w", "--watch", "following", is_flag=True, help="Go on with what happens from now on.")
@output_option("table", "wide", "json", "yaml")
def events(
    what: tuple[str, ...],
    namespace: str | None,
    everywhere: bool,
    warnings: bool,
    since: str | None,
    limit: int,
    following: bool,
    output: str,
) -> int:
    """The timeline, newest last.

    \b
    ground events -n alpha --warnings --since 2h
    ground events service/web -n alpha -w
    """
    here = session()
    params = {**_about(here, what, here.namespace(namespace, everywhere=everywhere)), "limit": limit}
    number, seconds = _since(since)
    items = _read(here.client, "events", {**params, "since": number}, seconds)
    _print_events(_only(items, warnings=warnings), output, following=following, first=True)
    if not items and not following and output in ("table", "wide"):
        note("no events")
    last = max([int(number or 0), *(int(item.get("seq") or 0) for item in items)])
    while following:
        time.sleep(EVERY)
        try:
            items = here.client.get(f"{API}/events", {**params, "since": str(last), "limit": 500}).get("items") or []
        except (Refused, Unreachable) as failure:
            if isinstance(failure, Refused) and failure.status not in (410, 429, 502, 503, 504):
                raise
            note(failure.message)
            continue
        items = [item for item in items if int(item.get("seq") or 0) > last]
        last = max([last, *(int(item.get("seq") or 0) for item in items)])
        _print_events(_only(items, warnings=warnings), output, following=True, first=False)
    return OK


def _about(here: Session, what: tuple[str, ...], namespace: str) -> dict[str, Any]:
    """The query for a kind or one resource."""
    if not what:
        return {"namespace": namespace}
    kinds, targets = here.kinds.targets(what, namespace)
    if len(targets) > 1 or len(kinds) > 1:
        raise Failure("name one kind, or one resource", code=USAGE)
    if targets:
        return {"kind": targets[0].kind.name, "namespace": targets[0].namespace, "name": targets[0].name}
    return {"kind": kinds[0].name, "namespace": namespace if kinds[0].namespaced else ""}


def _since(text: str | None) -> tuple[str, float]:
    """An event number for the server, or a length of time for us."""
    if not text or text.isdigit():
        return text or "", 0.0
    seconds = seconds_of(text)
    if seconds is None:
        raise Failure(f"--since {text!r} is neither a length of time (30m) nor a number", code=USAGE)
    return "", seconds


def _read(client: Client, what: str, params: dict[str, Any], seconds: float) -> list[Doc]:
    items: list[Doc] = client.get(f"{API}/{what}", params).get("items") or []
    if not seconds:
        return items
    now = datetime.now(UTC)

    def recent(item: Doc) -> bool:
        when = moment(str(item.get("time", "")))
        return when is None or (now - when).total_seconds() <= seconds

    return [item for item in items if recent(item)]


def _only(items: list[Doc], *, warnings: bool) -> list[Doc]:
    return [item for item in items if item.get("type") == "Warning"] if warnings else items


_WIDTHS: list[int] = []


def _print_events(items: list[Doc], output: str, *, following: bool, first: bool) -> None:
    if output == "json" and following:
        for item in items:
            say(as_json(item, indent=None))
    elif output in ("json", "yaml"):
        if items or first:
            say(as_json(items) if output == "json" else as_yaml(items))
    elif items:
        wide = output == "wide"
        titles = [*(["Seq", "Time"] if wide else ["Age"]), "Type", "Object", "Reason", "Message"]
        rows = [
            [
                *([item.get("seq"), item.get("time")] if wide else [age(str(item.get("time", "")))]),
                item.get("type"),
                about(item),
                item.get("reason"),
                item.get("message"),
            ]
            for item in items
        ]
        if first:
            _WIDTHS.clear()
        say(table(titles, rows, headers=first, widths=_WIDTHS))
    sys.stdout.flush()


def about(item: Doc) -> str:
    """`Service alpha/web`, of an event or an audit entry."""
    place = "/".join(str(part) for part in (item.get("namespace"), item.get("name")) if part)
    return f"{item.get('kind') or ''} {place}".strip()


@click.command()
@click.argument("what", nargs=-1, metavar="[KIND [NAME]]", shell_complete=completed_by("kind_or_name"))
@namespace_option
@everywhere_option
@click.option("--subject", metavar="WHO", help="Only what they did: user:ada, source:platform.")
@click.option("--verb", metavar="VERB", help="Only this: create, delete, approve, …")
@click.option("--since", metavar="TIME|N", help="Not older than this (30m, 2d), or after this event number.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The last so many.")
@output_option("table", "wide", "json", "yaml")
def audit(
    what: tuple[str, ...],
    namespace: str | None,
    everywhere: bool,
    subject: str | None,
    verb: str | None,
    since: str | None,
    limit: int,
    output: str,
) -> int:
    """Who did what, newest last: `ground audit --subject user:ada --verb delete --since 7d`."""
    here = session()
    number, seconds = _since(since)
    params = {
        **_about(here, what, here.namespace(namespace, everywhere=everywhere)),
        "subject": subject,
        "verb": verb,
        "since": number,
        "limit": limit,
    }
    items = _read(here.client, "audit", params, seconds)
    if output in ("json", "yaml"):
        say(as_json(items) if output == "json" else as_yaml(items))
        return OK
    if not items:
        note("nothing in the audit")
        return OK
    wide = output == "wide"
    rows = [
        [
            *([item.get("seq")] if wide else []),
            item.get("time"),
            item.get("subject"),
            item.get("verb"),
            about(item),
            item.get("outcome"),
            item.get("detail"),
        ]
        for item in items
    ]
    say(table([*(["Seq"] if wide else []), "Time", "Who", "Verb", "Object", "Outcome", "Detail"], rows))
    return OK
