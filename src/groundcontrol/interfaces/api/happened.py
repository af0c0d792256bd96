"""What happened and how it is: timeline, audit, ledger, status, health."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from groundcontrol import __version__
from groundcontrol.interfaces.api.answers import Stream, encoded, raw_json
from groundcontrol.interfaces.api.derive import API, OBJECT, ref
from groundcontrol.interfaces.api.operation import Call, Operation, Param
from groundcontrol.interfaces.api.watch import STALLED, Ask, Client
from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Invalid, NotFound, Problem, Unavailable
from groundcontrol.kernel.resource import Doc, Key, Kinds, Versions, now, seconds, selector

_f = tables.facts
LOOKED_AT = 50_000
"""Facts looked at for one answer, when most of them may not be seen."""
STEP = 1000

ABOUT = (
    Param("kind", "string", "Only of this kind.", longest=255),
    Param("namespace", "string", "Only in this namespace.", longest=255),
    Param("name", "string", "Only of this name.", longest=255),
    Param("since", "string", "After this number, or from this time on (RFC 3339).", longest=40),
    Param("limit", "integer", "The last so many; after a `since` that is a number, the first so many.",
          default=100, least=1, most=5000),
)  # fmt: skip
WHO = (
    Param("subject", "string", "Only what they did, `user:ada`.", longest=255),
    Param("verb", "string", "Only this verb.", longest=64),
)
WATCH = (
    Param("kinds", "string", "Names of kinds, with commas; all when empty."),
    Param("namespace", "string", "Only in this namespace.", longest=63),
    Param("labelSelector", "string", "Only with such labels."),
    Param("since", "integer", "Go on behind this event number; without it the current state comes first."),
)


def operations() -> Iterator[Operation]:
    """Everything that only looks, besides resources."""
    row = partial(Operation, "GET")
    yield row(f"{API}/kinds", "listKinds", "kinds", "Every kind there is.", _kinds, answers={200: ref("KindList")})
    yield row(
        f"{API}/openapi.json", "openapi", "kinds", "This description.", _description, answers={200: OBJECT}, public=True
    )
    yield row(f"{API}/watch", "watch", "resources", "Changes as they happen, as server-sent events.", _watch, WATCH,
              answers={200: None}, answer_media="text/event-stream", verb="watch")  # fmt: skip
    yield row(f"{API}/events", "listEvents", "history", "The timeline, newest last.", _events, ABOUT,
              answers={200: ref("EventList")}, verb="get")  # fmt: skip
    yield row(f"{API}/audit", "listAudit", "history", "Who did what, newest last.", _audit, (*ABOUT, *WHO),
              answers={200: ref("AuditList")}, verb="list Audit")  # fmt: skip
    yield Operation("POST", f"{API}/ledger/query", "queryLedger", "history", "A question to the ledger.", _ledger,
                    body=ref("LedgerQuery"), answers={200: OBJECT}, verb="list Ledger")  # fmt: skip
    yield row(f"{API}/status", "status", "health", "What is wrong, and since when.", _status, answers={200: OBJECT})
    yield row(f"{API}/healthz", "healthz", "health", "That it runs.", _health, answers={200: OBJECT}, public=True)
    yield row(
        f"{API}/readyz", "readyz", "health", "That it is ready to serve.", _ready, answers={200: OBJECT}, public=True
    )


# ── kinds and health ────────────────────────────────────────────────────────────────────────────────────────────────


def described(kinds: Kinds) -> Doc:
    """The answer of `GET /kinds`."""
    items = []
    for kind in kinds:
        info, versions = kind.info, kinds.versions(kind.__name__)
        items.append(
            {
                "name": kind.__name__,
                "plural": info.plural,
                "short": list(info.short),
                "namespaced": info.namespaced,
                "internal": info.internal,
                "columns": [{"title": c.title, "path": c.path, "wide": c.wide} for c in info.columns],
                "actions": list(info.actions),
                "versions": _versions(versions),
                "schema": kind.model_json_schema(by_alias=True),
            }
        )
    return {"items": sorted(items, key=lambda item: str(item["name"]))}


def _versions(versions: Versions) -> list[str]:
    return [versions.current.version, *versions.upgrade]


async def _kinds(call: Call) -> Response:
    return encoded(described(call.backend.kinds))


async def _description(call: Call) -> Response:
    return raw_json(call.server.description)


async def _health(call: Call) -> Response:
    return encoded({"status": "ok", "version": __version__})


async def _ready(call: Call) -> Response:
    why = call.backend.ready()
    if why:
        raise Unavailable(f"not ready: {why}", retry_after=1.0)
    store = call.backend.store
    return encoded({"status": "ready", "resourceVersion": store.sequence})


async def _status(call: Call) -> Response:
    reader = call.backend.status
    if reader is None:
        raise Unavailable("this server has no status; it was assembled without one")
    return encoded(await call.blocking(lambda: reader(call.subject)))


# ── watching ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _watch(call: Call) -> Response:
    backend, subject, query = call.backend, call.subject, call.query
    namespace, labels, since = query["namespace"] or "", query["labelSelector"] or "", query["since"]
    selector(labels)
    if since is None and (last := call.request.headers.get("last-event-id", "")):
        if not (last.isascii() and last.isdigit() and len(last) < 20):
            raise Invalid(problems=(Problem("Last-Event-ID is not a number", "Last-Event-ID"),))
        since = int(last)
    words = [word.strip() for word in (query["kinds"] or "").split(",") if word.strip()]
    named = {_kind(backend.kinds, word) for word in words}
    for kind in sorted(named):
        backend.access.require_list(subject, "watch", kind, namespace)
    call.namespace_there(namespace if named else "")
    every = {
        k.__name__ for k in backend.kinds if backend.access.somewhere(subject, "watch", k.__name__, namespace or None)
    }
    if not (named or every):
        raise NotFound(f"there is no Namespace {namespace}" if namespace else "there is nothing you may watch")
    ask = Ask(tuple(sorted(named or every)), namespace, labels)
    hub = call.server.hub
    client = await hub.join(subject, ask, since, call.server.pool)
    return Stream(_frames(call, client), "text/event-stream", stalled=STALLED)


def _kind(kinds: Kinds, word: str) -> str:
    try:
        return kinds.resolve(word)
    except NotFound as error:
        raise Invalid(problems=(Problem(error.message, "kinds"),)) from None


async def _frames(call: Call, client: Client) -> Any:
    try:
        async for piece in client.pieces():
            yield piece
    finally:
        call.server.hub.leave(client)


# ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _facts(call: Call, dataset: str, may: Callable[[Any], bool], shaped: Callable[[Any, Doc], Doc | None]) -> list[Doc]:
    """Facts that may be seen, oldest first. Blocks."""
    query = call.query
    number, moment = _since(query["since"])
    wanted = sa.select(_f).where(_f.c.dataset == dataset)
    for name in ("kind", "namespace", "name", "subject"):
        if query.get(name):
            wanted = wanted.where(_f.c[name] == query[name])
    if moment:
        wanted = wanted.where(_f.c.time >= moment)
    forward = number is not None
    found: list[Doc] = []
    edge = number
    for _ in range(LOOKED_AT // STEP):
        page = wanted.order_by(_f.c.seq if forward else _f.c.seq.desc()).limit(STEP)
        if edge is not None:
            page = page.where(_f.c.seq > edge if forward else _f.c.seq < edge)
        with call.backend.store.reading() as conn:
            rows = conn.execute(page).all()
        for row in rows:
            if may(row) and (item := shaped(row, msgspec.json.decode(row.doc))) is not None:
                found.append(item)
                if len(found) == query["limit"]:
                    break
        if len(rows) < STEP or len(found) >= query["limit"]:
            break
        edge = rows[-1].seq
    return found if forward else found[::-1]


def _since(text: str | None) -> tuple[int | None, float]:
    """(number, 0) or (None, time)."""
    if not text:
        return None, 0.0
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text), 0.0
    try:
        moment = seconds(text) if "T" in text else 0.0
    except (ValueError, OverflowError):
        moment = 0.0
    if not moment:
        problem = Problem(
            f"since {text!r} is neither a number nor a time", "since", remedy="write 2030-01-31T18:00:00Z"
        )
        raise Invalid(problems=(problem,))
    return None, moment


async def _events(call: Call) -> Response:
    may = _reader_of_resources(call)

    def shaped(row: Any, doc: Doc) -> Doc:
        return {**_place(row), **doc}

    _since(call.query["since"])
    items = await call.blocking(lambda: _facts(call, "events", may, shaped))
    return encoded({"items": items})


def _reader_of_resources(call: Call) -> Callable[[Any], bool]:
    """Whether the subject may read the resource a fact speaks of; by what it is now, while it is there."""
    access, store, subject = call.backend.access, call.backend.store, call.subject
    sees: dict[str, Callable[[str, str, Mapping[str, str]], bool]] = {}

    def may(row: Any) -> bool:
        test = sees.get(row.kind)
        if test is None:
            test = sees[row.kind] = access.sees(subject, row.kind, "get")
        entry = store.entry(Key(row.kind, row.namespace, row.name))
        return test(row.namespace, row.name, entry.labels if entry else {})

    return may


def _place(row: Any) -> Doc:
    return {"seq": row.seq, "time": now(row.time), "kind": row.kind, "namespace": row.namespace, "name": row.name}


async def _audit(call: Call) -> Response:
    access, who = call.backend.access, call.subject
    _since(call.query["since"])
    everywhere = access.namespaces(who, "list", "Audit")

    def may(row: Any) -> bool:
        return row.subject == who.name or everywhere is None or (row.namespace != "" and row.namespace in everywhere)

    def shaped(row: Any, doc: Doc) -> Doc | None:
        if call.query["verb"] and doc.get("verb") != call.query["verb"]:
            return None
        return {**_place(row), "subject": row.subject, **doc}

    items = await call.blocking(lambda: _facts(call, "audit", may, shaped))
    return encoded({"items": items})


async def _ledger(call: Call) -> Response:
    known = ("dataset", "from", "to", "where", "group", "measure", "limit")
    question = await call.json_object(*known, required=("dataset",))
    _check_question(question)
    call.backend.access.require_list(call.subject, "list", "Ledger")
    ledger = call.backend.ledger
    if ledger is None:
        raise Unavailable("this server keeps no ledger; it was assembled without one")
    namespaces = call.backend.access.namespaces(call.subject, "list", "Ledger")
    return encoded(await call.blocking(lambda: ledger.query(question, namespaces)))


def _check_question(question: Doc) -> None:
    """Its shape; what it means is the ledger's to judge."""
    texts = [n for n in ("dataset", "from", "to") if not isinstance(question.get(n, ""), str)]
    lists = [
        n
        for n in ("group", "measure")
        if not (isinstance(found := question.get(n, []), list) and all(isinstance(m, str) for m in found))
    ]
    limit = question.get("limit", 1)
    problems = [Problem(f"{n} is text", n) for n in texts]
    problems += [Problem(f"{n} is a list of texts", n) for n in lists]
    if not 0 < len(str(question["dataset"])) <= 64:
        problems.append(Problem("dataset is a name of at most 64 characters", "dataset"))
    if not isinstance(question.get("where", {}), dict):
        problems.append(Problem("where is an object of field to value", "where"))
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        problems.append(Problem("limit is a number from 1 on", "limit"))
    if problems:
        raise Invalid(problems=tuple(problems))
