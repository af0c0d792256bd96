"""`ground delete`: ask for resources to be deleted, after saying which when they are several."""

from __future__ import annotations

import time

import click

from groundcontrol.interfaces.cli.client import Client, Doc
from groundcontrol.interfaces.cli.failure import ERROR, NOT_FOUND, OK, USAGE, Failure, Refused
from groundcontrol.interfaces.cli.get import Query, list_kind
from groundcontrol.interfaces.cli.kinds import Target, must_have_namespace
from groundcontrol.interfaces.cli.manifests import put_namespace, read
from groundcontrol.interfaces.cli.options import (
    DURATION,
    completed_by,
    dry_run_option,
    everywhere_option,
    files_option,
    namespace_option,
    selector_option,
    yes_option,
)
from groundcontrol.interfaces.cli.output import confirm, note, on_terminal, safe, say
from groundcontrol.interfaces.cli.session import Session, session


@click.command()
@click.argument("what", nargs=-1, metavar="[KIND NAME…]", shell_complete=completed_by("kind_or_name"))
@files_option(required=False)
@namespace_option
@everywhere_option
@selector_option
@click.option("--all", "whole", is_flag=True, help="Every resource of the kind (in the namespace).")
@dry_run_option
@yes_option
@click.option("--ignore-not-found", is_flag=True, help="What is not there is fine.")
@click.option("--wait", "waiting", is_flag=True, help="Wait until they are gone.")
@click.option("--timeout", type=DURATION, default=300.0, metavar="TIME", help="With --wait, at most this long (5m).")
def delete(
    what: tuple[str, ...],
    files: tuple[str, ...],
    namespace: str | None,
    everywhere: bool,
    selector: str | None,
    whole: bool,
    dry_run: bool,
    yes: bool,
    ignore_not_found: bool,
    waiting: bool,
    timeout: float,
) -> int:
    """Ask for resources to be deleted; what they made outside is taken down first.

    \b
    ground delete service web -n alpha
    ground delete services -l tier=test -n alpha
    ground delete -f old.yaml --wait
    """
    here = session()
    place = here.namespace(namespace, everywhere=everywhere)
    if bool(what) == bool(files):
        raise Failure(
            "name resources, or files with -f", "ground delete KIND NAME | KIND -l LABELS | -f FILE", code=USAGE
        )
    if files:
        manifests = read(files)
        put_namespace(manifests, here.kinds, place)
        targets = [must_have_namespace(here.kinds.target_of(m.value)) for m in reversed(manifests)]
    else:
        targets = _named(here, what, place, selector or "", whole=whole)
    if not targets:
        note("nothing to delete")
        return OK
    if len(targets) > 1 and not (yes or dry_run) and on_terminal():
        for target in targets[:20]:
            note(f"  {target}")
        if len(targets) > 20:
            note(f"  and {len(targets) - 20} more")
        if not confirm(f"Delete these {len(targets)}?"):
            return ERROR
    gone = _delete(here.client, targets, dry_run=dry_run, ignore_not_found=ignore_not_found)
    if waiting and not dry_run:
        wait_until_gone(here.client, gone, timeout)
    return OK


def _named(here: Session, what: tuple[str, ...], place: str, labels: str, *, whole: bool) -> list[Target]:
    kinds, targets = here.kinds.targets(what, place)
    if targets and (labels or whole):
        raise Failure("names, -l and --all exclude each other", code=USAGE)
    if targets:
        return [must_have_namespace(target) for target in targets]
    if not (labels or whole):
        raise Failure(f"which {what[0]}?", "give names, -l LABELS, or --all", code=USAGE)
    if what[0] == "all":
        raise Failure("`delete all` is not a thing", "name the kinds", code=USAGE)
    query = Query(place, labels, "", 0, "", True)
    return [here.kinds.target_of(doc) for kind in kinds for doc in list_kind(here.client, kind, query)[0]]


def _delete(client: Client, targets: list[Target], *, dry_run: bool, ignore_not_found: bool) -> list[Target]:
    """Every one is tried; what was refused is told together at the end."""
    asked, refusals = list[Target](), list[Refused]()
    for target in targets:
        try:
            answer: Doc = client.send("DELETE", target.path, params={"dryRun": dry_run}) or {}
        except Refused as refused:
            if refused.status == 404 and ignore_not_found:
                continue
            if refused.status not in (403, 404, 409, 422):
                raise
            refusals.append(refused)
            continue
        going = bool((answer.get("metadata") or {}).get("deletionTimestamp"))
        word = "would be deleted" if dry_run else "is being deleted" if going else "deleted"
        say(f"{safe(target)} {word}")
        asked.append(target)
    if refusals:
        first, *more = refusals
        lines = [line for refused in more for line in (refused.message, *refused.details)]
        code = (
            NOT_FOUND if all(r.status == 404 for r in refusals) else next(r.code for r in refusals if r.status != 404)
        )
        raise Failure(first.message, *first.details, *dict.fromkeys(lines), code=code)
    return asked


def wait_until_gone(client: Client, targets: list[Target], timeout: float) -> None:
    deadline, pause = time.monotonic() + timeout, 0.2
    left = list(targets)
    while left:
        left = [target for target in left if not _gone(client, target)]
        if left and time.monotonic() + pause > deadline:
            shown = ", ".join(map(str, left[:5])) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise Failure(
                f"still there after {timeout:g} s: {shown}",
                f"`ground describe {left[0].kind.name.lower()} {left[0].name}` shows what it waits for",
            )
        if left:
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)


def _gone(client: Client, target: Target) -> bool:
    try:
        client.get(target.path)
    except Refused as refused:
        if refused.status != 404:
            raise
        say(f"{safe(target)} gone")
        return True
    return False
