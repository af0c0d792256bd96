"""`ground status`: what is wrong, since when, who is affected and what is being done, on one page.

The server's summary (`GET /api/v1/status`) says how many of which kind are not ready; the single ones are then listed
by their own conditions, so that the page never knows less than `ground get` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from groundcontrol.interfaces.cli.client import API, Client, Doc, path_of
from groundcontrol.interfaces.cli.failure import ERROR, OK, Refused
from groundcontrol.interfaces.cli.kinds import Catalogue, Kind, name_of
from groundcontrol.interfaces.cli.options import output_option
from groundcontrol.interfaces.cli.output import (
    age,
    as_json,
    as_yaml,
    cell,
    condition,
    indented,
    moment,
    paint,
    safe,
    say,
    span,
    table,
)
from groundcontrol.interfaces.cli.session import session

_KNOWN = {
    "kinds",
    "sites",
    "plans",
    "heldPlans",
    "incidents",
    "openIncidents",
    "ledger",
    "ledgerBacklog",
    "resourceVersion",
    "wrong",
}


@click.command()
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="At most this many of a kind.")
@click.option("--exit-code", is_flag=True, help="End with 1 when something is wrong.")
@output_option("text", "json", "yaml", default="text")
def status(limit: int, exit_code: bool, output: str) -> int:
    """What is wrong, since when, who is affected, what is being done."""
    here = session()
    found: Doc = here.client.get(f"{API}/status")
    if output != "text":
        say(as_json(found) if output == "json" else as_yaml(found))
        return ERROR if exit_code and not_ready(found) else OK
    lines = [*_wrong(here.client, here.kinds, found, limit), *_doing(here.client, found), *_rest(found)]
    troubled = bool(not_ready(found)) or bool(_number(_either(found, "incidents", "openIncidents")))
    head = paint("Something needs a look.", "yellow") if lines else paint("All is well.", "green")
    say(f"{head}  {safe(here.access.url)}")
    say("\n".join([*lines, "", *_counts(found)]))
    return ERROR if exit_code and troubled else OK


def not_ready(found: Mapping[str, Any]) -> dict[str, int]:
    """Kind to how many are not known to be ready."""
    counts = {kind: _tally(entry) for kind, entry in _by_kind(found)}
    return {kind: sum(n for state, n in tally.items() if state != "True") for kind, tally in counts.items() if any(
        n for state, n in tally.items() if state != "True")}  # fmt: skip


def _by_kind(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kinds = found.get("kinds") or {}
    if isinstance(kinds, Mapping):
        yield from ((str(kind), entry) for kind, entry in kinds.items() if isinstance(entry, Mapping))
    else:
        yield from ((str(entry.get("kind") or entry.get("name")), entry) for entry in kinds)


def _tally(entry: Mapping[str, Any]) -> dict[str, int]:
    """`{"True": 3, "False": 1}`, also out of `{"ready": 3, "notReady": 1, "unknown": 0}`."""
    words = {"true": "True", "ready": "True", "false": "False", "notready": "False", "unknown": "Unknown"}
    counted: dict[str, int] = {}
    for key, value in entry.get("ready", entry).items() if isinstance(entry.get("ready"), Mapping) else entry.items():
        word = words.get(str(key).lower())
        if word and isinstance(value, int) and not isinstance(value, bool):
            counted[word] = counted.get(word, 0) + value
    return counted


def _wrong(client: Client, kinds: Catalogue, found: Doc, limit: int) -> Iterator[str]:
    """One row for each resource that is not ready: since when, what, why; the oldest trouble of a kind first."""
    rows, more = list[list[Any]](), list[str]()
    for name, count in not_ready(found).items():
        kind = next((k for k in kinds if name in (k.name, k.plural)), None)
        if kind is None:
            continue
        try:
            docs, _ = client.list_all(path_of(kind.plural), {"fieldSelector": "conditions.Ready!=True"}, limit=limit)
        except Refused as refused:
            if refused.status != 403:
                raise
            more.append(f"{count} {kind.plural} are not ready and not yours to see")
            continue
        rows += [_row(kind, doc) for doc in sorted(docs, key=_since)]
        if count > len(docs):
            more.append(
                f"and {count - len(docs)} more: ground get {kind.plural} -A --field-selector conditions.Ready!=True"
            )
    if rows:
        yield ""
        yield paint("WRONG", "bold")
        yield indented(table(["Resource", "Ready", "Since", "Why"], rows))
    yield from (f"  {safe(line)}" for line in more)
    affected = found.get("affected")
    if affected:
        yield ""
        yield f"{paint('AFFECTED', 'bold')}  {cell(affected)}"


def _since(doc: Doc) -> str:
    return str(condition(doc, "Ready").get("lastTransitionTime") or "")


def _row(kind: Kind, doc: Doc) -> list[Any]:
    entry = condition(doc, "Ready")
    why = ": ".join(str(entry[part]) for part in ("reason", "message") if entry.get(part))
    return [name_of(kind, doc, placed=True), entry["status"], age(_since(doc)) if _since(doc) else "", why]


def _doing(client: Client, found: Doc) -> Iterator[str]:
    """What waits for a person, and the incidents somebody works on."""
    held = _either(found, "plans", "heldPlans")
    if isinstance(held, Mapping):
        held = held.get("held")
    if held and not isinstance(held, list):
        try:
            held = client.get(f"{API}/plans", {"state": "held"}).get("items") or []
        except Refused as refused:
            yield f"\n{paint('HELD PLANS', 'bold')}  {held}; {safe(refused.message)}"
            held = []
    if held:
        yield ""
        yield paint("WAITS FOR A PERSON", "bold")
        rows = [[p.get("id"), p.get("scope"), age(p.get("since") or ""), p.get("reason")] for p in held]
        yield indented(table(["Plan", "Scope", "Since", "Reason"], rows))
        yield "  look: ground plan show ID    answer: ground approve ID, ground refuse ID"
    incidents = _either(found, "incidents", "openIncidents")
    if isinstance(incidents, list) and incidents:
        yield ""
        yield paint("OPEN INCIDENTS", "bold")
        keys = [
            k
            for k in ("name", "title", "severity", "since", "affected", "owner", "state")
            if any(k in i for i in incidents)
        ]
        yield indented(
            table(keys, [[age(i[k]) if k == "since" and i.get(k) else i.get(k) for k in keys] for i in incidents])
        )
    elif _number(incidents):
        yield f"\n{paint('OPEN INCIDENTS', 'bold')}  {cell(incidents)}: ground get incidents"


def _rest(found: Doc) -> Iterator[str]:
    """A ledger that falls behind, and whatever a newer server says besides."""
    ledger = _either(found, "ledger", "ledgerBacklog")
    backlog = ledger.get("backlog") if isinstance(ledger, Mapping) else ledger
    oldest = ledger.get("oldest") if isinstance(ledger, Mapping) else None
    behind = f", the oldest from {age(str(oldest))} ago" if oldest and moment(str(oldest)) else ""
    if isinstance(ledger, Mapping) and isinstance(ledger.get("seconds"), int | float):
        behind = f", {span(float(ledger['seconds']))} behind"
    if _number(backlog) > 1000:
        yield f"\n{paint('LEDGER', 'bold')}  {backlog} facts not yet in the ledger{behind}"


def _counts(found: Doc) -> Iterator[str]:
    rows = []
    for kind, entry in _by_kind(found):
        tally = _tally(entry)
        rows.append([kind, *(tally.get(word, 0) for word in ("True", "False", "Unknown"))])
    if rows:
        yield table(["Kind", "Ready", "Not ready", "Not known"], rows)
    sites = found.get("sites")
    if isinstance(sites, Mapping):
        yield "sites: " + ", ".join(f"{safe(k)} {len(v) if isinstance(v, list) else cell(v)}" for k, v in sites.items())
    for key in sorted(set(found) - _KNOWN - {"affected"}):
        yield f"{safe(key)}: {cell(found[key])}"


def _either(found: Mapping[str, Any], *names: str) -> Any:
    return next((found[name] for name in names if name in found), None)


def _number(value: Any) -> int:
    if isinstance(value, Mapping):
        value = value.get("open", value.get("count"))
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) else 0
