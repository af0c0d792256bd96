"""`ground describe`: one resource in words: what is wanted, what was seen, who decides, what happened, what waits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

from groundcontrol.interfaces.cli.client import API, Client, Doc
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure, Refused, Unreachable
from groundcontrol.interfaces.cli.kinds import Target, fetch
from groundcontrol.interfaces.cli.options import completed_by, namespace_option
from groundcontrol.interfaces.cli.output import age, as_yaml, indented, paint, safe, say, table
from groundcontrol.interfaces.cli.session import session

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="KIND NAME…", shell_complete=completed_by("kind_or_name"))
@namespace_option
@click.option(
    "--events", "event_count", type=click.IntRange(min=0), default=10, show_default=True, help="So many events."
)
def describe(what: tuple[str, ...], namespace: str | None, event_count: int) -> int:
    """Everything about a resource: spec, status, conditions, who sets which field, events, held plans."""
    here = session()
    kinds, targets = here.kinds.targets(what, here.namespace(namespace))
    if kinds and not targets:
        raise Failure("name what to describe", f"`ground get {what[0]}` lists them", code=USAGE)
    for number, target in enumerate(targets):
        if number:
            say("\n" + "─" * 40 + "\n")
        doc = fetch(here.client, target)
        target = here.kinds.target_of(doc)
        say("\n".join([*_head(doc), *_spec(doc), *_status(doc), *_managers(doc)]))
        say("\n".join([*_held(here.client, target), *_events(here.client, target, event_count)]))
    return OK


def _title(text: str) -> str:
    return paint(f"{text}:", "bold")


def _head(doc: Doc) -> Iterator[str]:
    meta = doc["metadata"]
    pairs: list[tuple[str, str]] = [("Kind", doc["kind"]), ("Name", meta["name"])]
    if meta.get("namespace"):
        pairs.append(("Namespace", meta["namespace"]))
    if meta.get("deletionTimestamp"):
        waiting = ", ".join(meta.get("finalizers") or []) or "nothing any more"
        pairs.append(("Deletion", f"asked for {age(meta['deletionTimestamp'])} ago; waits for: {waiting}"))
    if meta.get("creationTimestamp"):
        pairs.append(("Created", f"{age(meta['creationTimestamp'])} ago ({meta['creationTimestamp']})"))
    pairs += [("Made for", f"{owner.get('kind')} {owner.get('name')}") for owner in meta.get("ownerReferences") or ()]
    for title, entries in (("Labels", meta.get("labels")), ("Annotations", meta.get("annotations"))):
        pairs += [(title if i == 0 else "", f"{k}={v}") for i, (k, v) in enumerate(sorted((entries or {}).items()))]
    pairs.append(("Generation", f"{meta.get('generation', 0)} (event {meta.get('resourceVersion', 0)})"))
    widest = max(len(title) for title, _ in pairs) + 1
    for title, text in pairs:
        label = (f"{title}:" if title else "").ljust(widest)
        yield f"{paint(label, 'bold')}  {safe(text)}"


def _spec(doc: Doc) -> Iterator[str]:
    yield _title("Spec")
    yield indented(as_yaml(doc["spec"])) if doc.get("spec") else "  (empty)"


def _status(doc: Doc) -> Iterator[str]:
    status: Mapping[str, Any] = doc.get("status") or {}
    rest = {k: v for k, v in status.items() if k not in ("conditions", "lastLooked", "observedGeneration")}
    rest = {k: v for k, v in rest.items() if v not in (None, "", [], {})}
    if rest:
        yield _title("Status")
        yield indented(as_yaml(_aged(rest)))
    yield _title("Conditions")
    conditions = status.get("conditions") or []
    for entry in conditions:
        yield f"  {condition_in_words(entry, doc)}"
    if not conditions:
        yield "  nobody has looked yet, so nothing is known"
    looked = status.get("lastLooked")
    if looked:
        yield f"  last looked {age(looked)} ago"
    seen, wanted = status.get("observedGeneration") or 0, doc["metadata"].get("generation") or 0
    if conditions and seen < wanted:
        yield paint(f"  all this is about generation {seen}; generation {wanted} has not been looked at", "yellow")


def _aged(value: Any) -> Any:
    """The same with how long ago behind every time."""
    if isinstance(value, dict):
        return {name: _aged(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_aged(inner) for inner in value]
    if isinstance(value, str) and _TIME.fullmatch(value):
        told = age(value)
        return f"{value} ({told})" if told.startswith("in ") else f"{value} ({told} ago)"
    return value


def condition_in_words(entry: Mapping[str, Any], doc: Doc) -> str:
    """`Ready: no since 3m12s, NoAnswer: the site did not answer`."""
    word, colour = {"True": ("yes", "green"), "False": ("no", "red")}.get(
        str(entry.get("status")), ("not known", "yellow")
    )
    since = f" since {age(entry['lastTransitionTime'])}" if entry.get("lastTransitionTime") else ""
    why = ": ".join(safe(entry[part]) for part in ("reason", "message") if entry.get(part))
    about = entry.get("observedGeneration") or 0
    old = f" (about generation {about})" if about and about < (doc["metadata"].get("generation") or 0) else ""
    return f"{safe(entry.get('type'))}: {paint(word, colour)}{since}{f', {why}' if why else ''}{old}"


def _managers(doc: Doc) -> Iterator[str]:
    """Who sets which fields; a field is changed where its manager is, or not for long."""
    managers: Mapping[str, str] = doc["metadata"].get("managers") or {}
    if not managers:
        return
    yield _title("Fields are set by")
    by_manager: dict[str, list[str]] = {}
    for path, manager in sorted(managers.items()):
        by_manager.setdefault(str(manager), []).append(path)
    for manager, paths in by_manager.items():
        shown = ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
        yield f"  {safe(manager)}: {safe(shown)}"


def _held(client: Client, target: Target) -> Iterator[str]:
    """The held plans that contain a change of this resource."""
    try:
        plans = client.get(f"{API}/plans", {"state": "held"}).get("items") or []
    except (Refused, Unreachable) as failure:
        yield f"{_title('Held plans')} cannot be shown: {safe(failure.message)}"
        return
    for plan in plans:
        mine = [c for c in plan.get("changes") or () if c.get("owner") == str(target)]
        if not mine and plan.get("scope") != str(target):
            continue
        since, why = age(plan.get("since") or ""), safe(plan.get("reason") or "")
        yield f"{_title('Held plan')} {safe(plan['id'])} since {since}: {why}"
        for change in mine[:10]:
            what = change.get("target") or {}
            yield f"  {safe(change.get('verb'))} {safe(what.get('type'))} {safe(what.get('id'))}"
        if len(mine) > 10:
            yield f"  and {len(mine) - 10} more"
        yield f"  look at it: ground plan show {safe(plan['id'])}"


def _events(client: Client, target: Target, count: int) -> Iterator[str]:
    if not count:
        return
    params = {"kind": target.kind.name, "namespace": target.namespace, "name": target.name, "limit": count}
    try:
        items = client.get(f"{API}/events", params).get("items") or []
    except (Refused, Unreachable) as failure:
        yield f"{_title('Events')} cannot be shown: {safe(failure.message)}"
        return
    yield _title("Events") + ("" if items else " none are kept")
    if items:
        rows = [[age(e.get("time", "")), e.get("type"), e.get("reason"), e.get("message")] for e in items[-count:]]
        yield indented(table(["Age", "Type", "Reason", "Message"], rows))
