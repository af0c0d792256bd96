"""`ground plan`, `approve` and `refuse`: what waits for a person, what a tree would change, and the answer to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from groundcontrol.interfaces.cli.client import API, Doc
from groundcontrol.interfaces.cli.failure import CHANGES, ERROR, HELD, OK, USAGE, Failure, problem_line
from groundcontrol.interfaces.cli.options import completed_by, output_option
from groundcontrol.interfaces.cli.output import (
    age,
    as_json,
    as_yaml,
    coloured,
    confirm,
    moment,
    note,
    on_terminal,
    safe,
    say,
    seconds_of,
    table,
)
from groundcontrol.interfaces.cli.session import Session, session


@click.command()
@click.argument("words", nargs=-1, metavar="[list | show ID | ID]", shell_complete=completed_by("plan_ids"))
@click.option("--source", "tree", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="What would this working tree change?")  # fmt: skip
@click.option("--against", metavar="BRANCH", help="With --source: only what differs from this branch or commit.")
@click.option("--as", "source_name", metavar="NAME", help="With --source: as this Source, with its rights and limits.")
@click.option("--state", default="held", show_default=True, metavar="STATE", help="Which plans to list; `any` for all.")
@output_option("text", "json", "yaml", "markdown", default="text")
def plan(
    words: tuple[str, ...], tree: str | None, against: str | None, source_name: str | None, state: str, output: str
) -> int:
    """Plans that wait for a person, and what a tree of files would change.

    \b
    ground plan                                   held plans
    ground plan show p-7                          one of them
    ground plan --source . --against main -o markdown

    With --source the exit code is 0 when nothing would change, 2 when something would, 3 when it would be held for a
    person, and 1 when the tree has problems.
    """
    here = session()
    if tree is not None:
        if words:
            raise Failure("--source and a plan's id exclude each other", code=USAGE)
        return _preview(here, tree, against or "", source_name or "", output)
    if against or source_name:
        raise Failure("--against and --as go with --source DIR", code=USAGE)
    if words in ((), ("list",)):
        return _list(here, state, output)
    identity = words[-1]
    if len(words) != (2 if words[0] == "show" else 1):
        raise Failure("one plan at a time", "ground plan show ID", code=USAGE)
    say(_rendered(read_plan(here, identity), output))
    return OK


def read_plan(here: Session, identity: str) -> Doc:
    from urllib.parse import quote

    found: Doc = here.client.get(f"{API}/plans/{quote(identity, safe='')}")
    return found


def _rendered(found: Doc, output: str) -> str:
    if output == "yaml":
        return as_yaml(found)
    if output == "json":
        return as_json(found)
    from groundcontrol.interfaces.cli.plan_view import render

    style: Any = output
    return render(found, style, coloured() and output == "text")


def _list(here: Session, state: str, output: str) -> int:
    params = {"state": "" if state == "any" else state}
    items: list[Doc] = here.client.get(f"{API}/plans", params).get("items") or []
    if output in ("json", "yaml"):
        say(as_json(items) if output == "json" else as_yaml(items))
        return OK
    if not items:
        note("no plans" if state == "any" else f"no {state} plans")
        return OK
    rows = []
    for item in items:
        changes = item.get("changes") or []
        losses = sum(1 for change in changes if change.get("destructive"))
        rows.append(
            [item["id"], item.get("scope"), item.get("state"), len(changes), losses, age(item.get("since") or ""),
             item.get("reason")]
        )  # fmt: skip
    say(table(["Id", "Scope", "State", "Changes", "Destructive", "Age", "Reason"], rows))
    return OK


def _preview(here: Session, tree: str, against: str, source_name: str, output: str) -> int:
    from groundcontrol.interfaces.cli import trees

    body: dict[str, Any] = {"files": trees.working_tree(tree)}
    if against:
        body["against"] = trees.committed(tree, against)
    if source_name:
        body["source"] = source_name
    found: Doc = here.client.send("POST", f"{API}/sources/plan", body)
    say(_rendered(found, output))
    problems = found.get("problems") or []
    if problems:
        lines = [problem_line(p) if isinstance(p, dict) else str(p) for p in problems]
        raise Failure("the tree has problems:" if len(lines) > 1 else lines[0], *lines[len(lines) == 1 :], code=ERROR)
    if not found.get("changes"):
        return OK
    return HELD if found.get("state") == "held" or found.get("limit") else CHANGES


@click.command()
@click.argument("identity", metavar="PLAN", shell_complete=completed_by("plan_ids"))
@click.option("--digest", metavar="SHA256", help="The digest of what you have looked at.")
@click.option("--reason", metavar="TEXT", help="Why, for the audit.")
@click.option("--up-to", type=click.IntRange(min=1), metavar="COUNT", help="Instead: approve up to so many …")
@click.option("--verb", default="delete", show_default=True, metavar="VERB", help="… of this verb …")
@click.option("--until", metavar="TIME", help="… until then: 18:00, 2h, or an RFC 3339 time.")
def approve(
    identity: str, digest: str | None, reason: str | None, up_to: int | None, verb: str, until: str | None
) -> int:
    """Approve exactly the changes of a plan, by their digest, or a bound.

    \b
    ground approve p-7                          shows it and asks
    ground approve p-7 --digest sha256:…        for scripts: what you looked at, and nothing else
    ground approve p-7 --up-to 20 --until 18:00 --reason "rack 4 goes"
    """
    here = session()
    body: dict[str, Any] = {"reason": reason} if reason else {}
    if up_to is not None:
        if digest or not until or not reason:
            raise Failure("--up-to needs --until and --reason, and no --digest", code=USAGE)
        body["bound"] = {"verb": verb, "count": up_to, "until": until_time(until, datetime.now().astimezone())}
    elif digest:
        body["digest"] = digest
    else:
        found = read_plan(here, identity)
        stands = str(found.get("digest") or "")
        if not on_terminal():
            raise Failure(
                f"which changes of plan {identity} do you approve? Nobody is here to be asked",
                "look at `ground plan show`, then give its digest: --digest sha256:…",
                code=USAGE,
            )
        say(_rendered(found, "text"))
        if not confirm(f"Approve these {len(found.get('changes') or [])} changes ({stands})?"):
            return ERROR
        body["digest"] = stands
    here.client.send("POST", f"{_plan_path(identity)}/approve", body)
    say(f"plan {safe(identity)} approved")
    return OK


@click.command()
@click.argument("identity", metavar="PLAN", shell_complete=completed_by("plan_ids"))
@click.option("--reason", metavar="TEXT", required=True, help="Why, for whoever made it.")
def refuse(identity: str, reason: str) -> int:
    """Refuse a plan; what it would have changed stays as it is."""
    session().client.send("POST", f"{_plan_path(identity)}/refuse", {"reason": reason})
    say(f"plan {safe(identity)} refused")
    return OK


def _plan_path(identity: str) -> str:
    from urllib.parse import quote

    return f"{API}/plans/{quote(identity, safe='')}"


def until_time(text: str, now: datetime) -> str:
    """`18:00` (the next one, in the time of this machine), `2h` or an RFC 3339 time, in UTC."""
    when: datetime | None
    hour, colon, minute = text.partition(":")
    seconds = seconds_of(text)
    if seconds is not None:
        when = now + timedelta(seconds=seconds)
    elif colon and hour.isdigit() and minute.isdigit() and int(hour) < 24 and int(minute) < 60:
        when = now.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
        when = when if when > now else when + timedelta(days=1)
    else:
        when = moment(text)
    if when is None:
        raise Failure(f"--until {text!r} is not a time", "write 18:00, 2h or 2030-01-31T18:00:00Z", code=USAGE)
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
