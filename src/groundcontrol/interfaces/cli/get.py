"""`ground get` and `ground watch`: resources as tables, YAML, JSON or names, once or as they change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import click

from groundcontrol.interfaces.cli.client import Client, Doc, path_of
from groundcontrol.interfaces.cli.failure import NOT_FOUND, OK, USAGE, Failure, Refused
from groundcontrol.interfaces.cli.kinds import Column, Kind, Target, fetch, name_of
from groundcontrol.interfaces.cli.options import (
    completed_by,
    everywhere_option,
    namespace_option,
    output_option,
    selector_option,
)
from groundcontrol.interfaces.cli.output import (
    as_json,
    as_yaml,
    fields_lines,
    note,
    paint,
    safe,
    say,
    table,
    value_at,
)
from groundcontrol.interfaces.cli.session import Session, session
from groundcontrol.interfaces.cli.stream import Change, Watch


class Query(NamedTuple):
    """Which of a kind are wanted, and how to print them."""

    namespace: str
    labels: str
    fields: str
    limit: int
    output: str
    headers: bool

    @property
    def params(self) -> dict[str, Any]:
        return {"labelSelector": self.labels, "fieldSelector": self.fields}


@click.command()
@click.argument(
    "what", nargs=-1, required=True, metavar="KIND[,KIND] [NAME]…", shell_complete=completed_by("kind_or_name")
)
@namespace_option
@everywhere_option
@selector_option
@click.option(
    "--field-selector", "fields", metavar="FIELDS", help="Only those with these values: conditions.Ready=False."
)
@output_option("table", "wide", "json", "yaml", "name")
@click.option("-w", "--watch", "following", is_flag=True, help="Go on and print what changes.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most this many of a kind.")
@click.option("--no-headers", is_flag=True, help="Leave the titles out.")
def get(
    what: tuple[str, ...],
    namespace: str | None,
    everywhere: bool,
    selector: str | None,
    fields: str | None,
    output: str,
    following: bool,
    limit: int | None,
    no_headers: bool,
) -> int:
    """List resources of a kind (or several, or `all`), or print the named ones.

    \b
    ground get sites
    ground get services web -n alpha -o yaml
    ground get services -A -l tier=front --field-selector conditions.Ready=False
    ground get site/bari service/alpha/web
    """
    here = session()
    query = Query(
        here.namespace(namespace, everywhere=everywhere),
        selector or "",
        fields or "",
        limit or 0,
        output,
        not no_headers,
    )
    kinds, targets = here.kinds.targets(what, query.namespace)
    if what[0] == "all" and query.namespace:
        kinds = [kind for kind in kinds if kind.namespaced]
    if targets and (selector or fields):
        raise Failure("names and selectors exclude each other", code=USAGE)
    if following:
        return _follow(here, kinds or [t.kind for t in targets], targets, query)
    if targets:
        return _print_named(here.client, targets, query)
    return _print_lists(here.client, kinds, query, everything=what[0] == "all")


def list_kind(client: Client, kind: Kind, query: Query) -> tuple[list[Doc], int]:
    """Every resource of a kind that is asked for, over all pages, with the event number they are as of."""
    place = query.namespace if kind.namespaced else ""
    return client.list_all(path_of(kind.plural, place), query.params, limit=query.limit)


def _print_named(client: Client, targets: list[Target], query: Query) -> int:
    """What is there is printed even when something named is not."""
    found, missing = list[tuple[Kind, Doc]](), list[Failure]()
    for target in targets:
        try:
            found.append((target.kind, fetch(client, target)))
        except Failure as failure:
            if failure.code != NOT_FOUND:
                raise
            missing.append(failure)
    if found:
        if query.output in ("json", "yaml"):
            docs = [doc for _, doc in found]
            _print_documents(docs[0] if len(targets) == 1 else _as_list(docs), query.output)
        else:
            _print_tables(
                [(k, [d for kind, d in found if kind == k]) for k in dict.fromkeys(k for k, _ in found)], query
            )
    if missing:
        raise Failure(missing[0].message, *(m.message for m in missing[1:]), *missing[0].details, code=NOT_FOUND)
    return OK


def _print_lists(client: Client, kinds: list[Kind], query: Query, *, everything: bool) -> int:
    lists = list[tuple[Kind, list[Doc]]]()
    for kind in kinds:
        try:
            lists.append((kind, list_kind(client, kind, query)[0]))
        except Refused as refused:
            if not everything or refused.status != 403:
                raise
    if query.output in ("json", "yaml"):
        _print_documents(_as_list([doc for _, docs in lists for doc in docs]), query.output)
        return OK
    if not any(docs for _, docs in lists):
        where = f" in namespace {query.namespace}" if query.namespace and any(k.namespaced for k in kinds) else ""
        matching = " that match" if query.labels or query.fields else ""
        note(f"no {'resources' if everything else ', '.join(k.plural for k in kinds)}{matching}{where}")
        return OK
    _print_tables([(kind, docs) for kind, docs in lists if docs], query)
    return OK


def _as_list(docs: list[Doc]) -> Doc:
    return {"apiVersion": "ground/v1", "kind": "List", "items": docs}


def _print_documents(value: Any, output: str) -> None:
    say(as_json(value) if output == "json" else as_yaml(value))


def _print_tables(lists: list[tuple[Kind, list[Doc]]], query: Query) -> None:
    prefixed = len(lists) > 1
    for number, (kind, docs) in enumerate(lists):
        rows = Rows(kind, query, prefixed=prefixed)
        if query.output == "name":
            for doc in docs:
                say(safe(name_of(kind, doc, placed=not query.namespace)))
            continue
        if number:
            say()
        say(rows.render(docs))


class Rows:
    """The table of one kind, which keeps its column widths while rows are added (`-w`)."""

    def __init__(self, kind: Kind, query: Query, *, prefixed: bool) -> None:
        self.kind = kind
        self._prefixed = prefixed
        self._headers = query.headers
        self._placed = kind.namespaced and not query.namespace
        self._columns = columns_of(kind, wide=query.output == "wide")
        self._widths: list[int] = []

    def render(self, docs: list[Doc]) -> str:
        titles = [*(["Namespace"] if self._placed else []), "Name", *(c.title for c in self._columns)]
        rows = [
            [
                *([doc["metadata"].get("namespace")] if self._placed else []),
                (f"{self.kind.name.lower()}/" if self._prefixed else "") + doc["metadata"]["name"],
                *(_cell(doc, column) for column in self._columns),
            ]
            for doc in docs
        ]
        text = table(titles, rows, headers=self._headers, widths=self._widths)
        self._headers = False
        return text


def _cell(doc: Doc, column: Column) -> Any:
    found = value_at(doc, column.path)
    if column.path == "conditions.Ready" and doc["metadata"].get("deletionTimestamp"):
        return "Deleting"
    return found


def columns_of(kind: Kind, *, wide: bool) -> list[Column]:
    """The kind's own columns without name and namespace, which every table starts with; an age where it names none."""
    own = [c for c in kind.columns if c.path not in ("metadata.name", "metadata.namespace") and (wide or not c.wide)]
    if not own:
        own = [Column("Ready", "conditions.Ready", False)]
    if not any(c.path.startswith("age:") for c in own):
        own.append(Column("Age", "age:metadata.creationTimestamp", False))
    return own


# ------------------------------------------------------------------------------------------------ following


def _follow(here: Session, kinds: list[Kind], targets: list[Target], query: Query) -> int:
    """List, then print every change to what was asked for."""
    wanted = {(t.kind.name, t.name) for t in targets}
    docs, since = list[Doc](), None
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds:
        items, version = list_kind(here.client, kind, query._replace(limit=0))
        docs += items
        since = version if since is None else min(since, version)
    matches = _matcher(query.fields)

    def is_wanted(doc: Doc) -> bool:
        return (not wanted or (doc["kind"], doc["metadata"]["name"]) in wanted) and matches(doc)

    tables = {kind.name: Rows(kind, query, prefixed=len(kinds) > 1) for kind in kinds}
    for kind in kinds:
        if mine := [doc for doc in docs if doc["kind"] == kind.name and is_wanted(doc)]:
            _print_now(mine, tables[kind.name], query)
    watch = Watch(
        here.client,
        [kind.plural for kind in kinds],
        namespace=query.namespace,
        labels=query.labels,
        since=since,
        known=docs,
        tell=note,
    )
    for change in watch:
        if is_wanted(change.doc) and change.doc["kind"] in tables:
            _print_now([change.doc], tables[change.doc["kind"]], query, change.event)
    return OK


def _matcher(fields: str) -> Any:
    """The watch knows no field selector, so it is applied here, by the same function as on the server."""
    if not fields:
        return lambda doc: True
    from groundcontrol.kernel.errors import Invalid
    from groundcontrol.kernel.resource import selector

    try:
        return selector(fields, fields=True)
    except Invalid as error:
        raise Failure(error.message, code=USAGE) from error


def _print_now(docs: list[Doc], rows: Rows, query: Query, event: str = "") -> None:
    if query.output == "json":
        for doc in docs:
            say(as_json({"event": event, "object": doc} if event else doc, indent=None))
    elif query.output == "yaml":
        for doc in docs:
            say("---\n" + as_yaml(doc))
    elif query.output == "name":
        for doc in docs:
            say(safe(name_of(rows.kind, doc, placed=not query.namespace)) + (" deleted" if event == "DELETED" else ""))
    else:
        text = rows.render(docs)
        say(f"{text}   {paint('(deleted)', 'dim')}" if event == "DELETED" else text)
    sys.stdout.flush()


@click.command()
@click.argument("what", metavar="[KIND[,KIND]]", default="all", shell_complete=completed_by("kind_words"))
@namespace_option
@everywhere_option
@selector_option
@click.option(
    "--since", type=click.IntRange(min=0), default=None, help="From this event number on; without it, from now."
)
@output_option("text", "json", default="text")
def watch(
    what: str, namespace: str | None, everywhere: bool, selector: str | None, since: int | None, output: str
) -> int:
    """Print every change as it happens, with the fields that changed.

    \b
    ground watch
    ground watch services,instances -n alpha
    ground watch all -o json --since 41
    """
    here = session()
    kinds = list(here.kinds) if what == "all" else here.kinds.several(what)
    place = here.namespace(namespace, everywhere=everywhere)
    starting = since is None
    for change in _changes(here, kinds, place, selector or "", since):
        if starting and change is None:
            starting = False
        elif change is not None and not starting:
            _print_change(change, output)
    return OK


def _changes(here: Session, kinds: list[Kind], place: str, labels: str, since: int | None) -> Iterator[Change | None]:
    """Changes; None marks the end of the state there was at the start, which is known and not news."""
    known, version = list[Doc](), since
    query = Query(place, labels, "", 0, "", True)
    if since is None:
        for kind in kinds:
            try:
                items, at = list_kind(here.client, kind, query)
            except Refused as refused:
                if refused.status != 403 or len(kinds) == 1:
                    raise
                continue
            known += items
            version = at if version is None else min(version, at)
    yield None
    plurals = [kind.plural for kind in kinds]
    yield from Watch(here.client, plurals, namespace=place, labels=labels, since=version, known=known, tell=note)


def _print_change(change: Change, output: str) -> None:
    meta = change.doc["metadata"]
    if output == "json":
        say(as_json({"event": change.event, "object": change.doc}, indent=None))
    else:
        place = f"{meta['namespace']}/" if meta.get("namespace") else ""
        colour = {"ADDED": "green", "DELETED": "red"}.get(change.event, "yellow")
        now = datetime.now().strftime("%H:%M:%S")
        head = f"{now}  {paint(change.event.ljust(8), colour)}  {safe(change.doc['kind'])} {safe(place + meta['name'])}"
        say("\n".join([head, *_changed(change)]))
    sys.stdout.flush()


def _changed(change: Change) -> list[str]:
    if change.event != "MODIFIED" or change.before is None:
        return []
    from groundcontrol.kernel.resource import field_changes

    fields = field_changes(change.before, change.doc)
    return fields_lines({p: pair for p, pair in fields.items() if p != "metadata.resourceVersion"}, by=10)
