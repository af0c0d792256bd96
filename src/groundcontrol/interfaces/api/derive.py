"""The operations of resources, derived from the kinds: adding a kind touches nothing here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from starlette.responses import Response

from groundcontrol.interfaces.api import change, listing
from groundcontrol.interfaces.api.answers import document, encoded, raw_json
from groundcontrol.interfaces.api.logs import log_operation
from groundcontrol.interfaces.api.operation import Call, Operation, Param
from groundcontrol.kernel.errors import Invalid, NotFound, OutcomeUnknown, Problem, Unavailable
from groundcontrol.kernel.resource import Kinds, Resource, did_you_mean, selector
from groundcontrol.kernel.tx import Tx

API = "/api/v1"
LIMIT = Param("limit", "integer", "At most so many.", default=500, least=1, most=5000)
DRY_RUN = Param("dryRun", "boolean", "Do everything but keep it.", default=False)
NOT_OLDER = Param("notOlderThan", "integer", "Answer with a state that is not older than this event number.")
LISTING = (
    Param("labelSelector", "string", "`a=b,c!=d,e in (f,g),h,!i` over labels."),
    Param("fieldSelector", "string", "The same over dotted paths of the document; `conditions.Ready=True`."),
    LIMIT,
    Param("continue", "string", "The `continue` of the page before."),
    NOT_OLDER,
)
OBJECT = {"type": "object", "additionalProperties": True}
MOST_DOCUMENTS = 1000


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def operations(kinds: Kinds) -> Iterator[Operation]:
    """Everything that can be asked about resources."""
    for kind in kinds:
        yield from _of_kind(kind)
    yield Operation(
        "POST", f"{API}/apply", "apply", "resources",
        "Create or change several resources, all or nothing.",
        _apply, (DRY_RUN,), ref("ApplyInput"), answers={200: ref("ApplyResult")}, verb="create, update",
    )  # fmt: skip


def _of_kind(kind: type[Resource]) -> Iterator[Operation]:
    info, name = kind.info, kind.__name__
    everywhere = f"{API}/{info.plural}"
    place = f"{API}/namespaces/{{namespace}}/{info.plural}" if info.namespaced else everywhere
    one = f"{place}/{{name}}"
    row = partial(Operation, tag=info.plural, kind=name)
    listed = {200: ref(f"{name}List")}
    if info.namespaced:
        yield row(
            "GET", everywhere, f"list{name}Everywhere", about=f"List {info.plural} in all namespaces.",
            handle=partial(_list, name), query=LISTING, answers=listed, verb="list",
        )  # fmt: skip
    yield row("GET", place, f"list{name}", about=f"List {info.plural}.", handle=partial(_list, name), query=LISTING,
              answers=listed, verb="list")  # fmt: skip
    yield row("GET", one, f"get{name}", about=f"One of the {info.plural}.", handle=partial(_get, name),
              query=(NOT_OLDER,), answers={200: ref(name)}, verb="get")  # fmt: skip
    if not info.internal:
        yield row("POST", place, f"create{name}", about=f"Create one of the {info.plural}.",
                  handle=partial(_create, name), query=(DRY_RUN,), body=ref(f"{name}Input"),
                  answers={201: ref(name), 200: ref(name)}, verb="create")  # fmt: skip
        yield row("PUT", one, f"replace{name}", about="Replace spec, labels and annotations.",
                  handle=partial(_replace, name), query=(DRY_RUN,), body=ref(f"{name}Input"),
                  answers={200: ref(name)}, verb="update")  # fmt: skip
        yield row("PATCH", one, f"patch{name}", about="Change it by a JSON merge patch (RFC 7396).",
                  handle=partial(_patch, name), query=(DRY_RUN,), body=ref("MergePatch"),
                  media="application/merge-patch+json", answers={200: ref(name)}, verb="update")  # fmt: skip
        yield row("DELETE", one, f"delete{name}", about="Ask for its deletion.", handle=partial(_delete, name),
                  query=(DRY_RUN,), answers={200: ref(name), 202: ref(name)}, verb="delete")  # fmt: skip
    for verb in info.actions:
        if verb == "log":
            yield log_operation(name, one, info.plural)
        else:
            yield row("POST", f"{one}/actions/{verb}", f"{_camel(verb)}{name}", about=f"{verb}, one of its actions.",
                      handle=partial(_act, name, verb), body=ref("ActionInput"), body_optional=True,
                      answers={200: OBJECT}, verb=verb)  # fmt: skip


def _camel(verb: str) -> str:
    first, *rest = verb.split("-")
    return first + "".join(part.capitalize() for part in rest)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _list(kind: str, call: Call) -> Response:
    backend, subject, query = call.backend, call.subject, call.query
    namespace = call.path.get("namespace", "")
    backend.access.require_list(subject, "list", kind, namespace)
    call.namespace_there(namespace)
    question = listing.Question(
        kind,
        namespace,
        query["labelSelector"] or "",
        query["fieldSelector"] or "",
        query["limit"],
        query["continue"] or "",
    )
    for text, fields in ((question.labels, False), (question.fields, True)):
        selector(text, fields=fields)
    call.not_older_than(query["notOlderThan"])

    def work() -> bytes:
        return listing.listed(backend.store, backend.access, subject, question)

    long = listing.is_long(backend.store, backend.access, subject, question)
    return raw_json(await call.blocking(work) if long else work())


async def _get(kind: str, call: Call) -> Response:
    key = call.key(kind)
    call.not_older_than(call.query["notOlderThan"])
    entry = call.backend.store.entry(key)
    call.backend.access.require(
        call.subject, "get", kind, namespace=key.namespace, name=key.name, labels=entry.labels if entry else {}
    )
    if entry is None:
        sees = call.backend.access.visible(call.subject, kind)
        near = [e.key.name for e in call.backend.store.entries(kind, key.namespace)[:2000] if sees(e)]
        raise NotFound(f"there is no {key}{did_you_mean(key.name, near)}")
    return raw_json(entry.raw)


# ── changing ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _changed(call: Call, act: Any, *, created: bool = False) -> Response:
    """Run one change, for real or not, and answer with the document."""
    found: change.Changed = await commit(call, lambda tx: act(_changer(tx, call)))
    status = 201 if created and not call.query["dryRun"] else 202 if found.result == "deleting" else 200
    return document(found.doc, status, dry_run=call.query["dryRun"])


async def commit(call: Call, act: Any) -> Any:
    """The act in a transaction; rolled back at its end when the call is a dry run."""
    if not call.query["dryRun"]:
        return await call.write(act)
    try:
        return await call.write(change.dry(act))
    except OutcomeUnknown:
        raise Unavailable("the store did not answer in time; nothing was written, since it was a dry run") from None
    except Exception as error:
        return change.undone(error)


async def _create(kind: str, call: Call) -> Response:
    wanted = change.wish(call.backend.kinds, _whole(await call.json()), kind, call.path.get("namespace", ""))
    return await _changed(call, lambda changer: changer.create(wanted), created=True)


async def _replace(kind: str, call: Call) -> Response:
    key = call.key(kind)
    wanted = change.wish(call.backend.kinds, _whole(await call.json()), kind, key.namespace, key.name)
    return await _changed(call, lambda changer: changer.replace(wanted))


def _whole(raw: Any) -> Any:
    """A document to create or replace with: leaving out the metadata would take away the labels unsaid."""
    if isinstance(raw, dict) and "metadata" not in raw:
        raise Invalid(problems=(Problem("metadata is missing", "metadata", remedy="add it, {} at least"),))
    return raw


async def _patch(kind: str, call: Call) -> Response:
    key = call.key(kind)
    patch = await call.json()
    wanted = change.wish(call.backend.kinds, patch, kind, key.namespace, key.name)
    known = ("apiVersion", "kind", "metadata", "spec")
    problems = [Problem(f"{name[:60]!r} cannot be patched", name[:60], remedy=f"known: {', '.join(known)}")
                for name in patch if name not in known]  # fmt: skip
    version = call.backend.kinds.get(kind).version
    if patch.get("apiVersion", version) != version:
        problems.append(Problem(f"a patch is of {version}", "apiVersion", remedy="leave it out"))
    fixed = ("labels", "annotations", "name", "namespace", "resourceVersion", "uid")
    problems += [Problem(f"metadata.{name[:60]} cannot be patched", f"metadata.{name[:60]}")
                 for name in wanted.raw["metadata"] if name not in fixed]  # fmt: skip
    if problems:
        raise Invalid(problems=tuple(problems[:20]))
    return await _changed(call, lambda changer: changer.patch(key, wanted.raw))


def _changer(tx: Tx, call: Call, manager: str = "") -> change.Changer:
    return change.Changer(tx, call.backend.access, call.subject, manager, call.backend.limits)


async def _delete(kind: str, call: Call) -> Response:
    key = call.key(kind)
    return await _changed(call, lambda changer: changer.delete(key))


async def _apply(call: Call) -> Response:
    body = await call.json_object("documents", "manager", required=("documents",))
    documents = body["documents"]
    if not isinstance(documents, list) or not 0 < len(documents) <= MOST_DOCUMENTS:
        problem = Problem(f"documents is a list of 1 to {MOST_DOCUMENTS} documents", "documents")
        raise Invalid(problems=(problem,))
    manager = change.manager_of(call.subject, body.get("manager"))
    wishes: list[change.Wish] = []
    problems: list[Problem] = []
    for number, raw in enumerate(documents):
        try:
            wishes.append(change.wish(call.backend.kinds, raw))
        except Invalid as error:
            problems += change.in_document(number, error).problems
    if problems:
        raise Invalid(problems=tuple(problems[:100]))

    def act(tx: Tx) -> list[change.Changed]:
        return _changer(tx, call, manager).apply_all(wishes)

    return encoded(
        change.as_results(await commit(call, act)), dry_run=call.query["dryRun"], event=call.backend.store.sequence
    )


async def _act(kind: str, verb: str, call: Call) -> Response:
    backend, subject, key = call.backend, call.subject, call.key(kind)
    body = await call.json_if_any()

    def asked(tx: Tx) -> None:
        found = tx.get(key)
        labels = found["metadata"].get("labels") or {} if found else {}
        backend.access.require_in(tx, subject, verb, kind, namespace=key.namespace, name=key.name, labels=labels)
        if found is None:
            raise NotFound(f"there is no {key}")
        if action is None:
            raise Unavailable(f"this server has nothing that does {verb!r} on {kind}; it was assembled without it")
        tx.audit(subject.name, verb, key, "asked", reason=str(body.get("reason", ""))[:500])

    action = backend.actions.get((kind, verb))
    await call.write(asked)
    assert action is not None, "asked refuses without one"
    act = action
    try:
        answer = await call.blocking(lambda: act(subject, key, body))
    except Exception as error:
        reason = type(error).__name__
        await call.write(lambda tx: tx.audit(subject.name, verb, key, "failed", reason=reason))
        raise
    return encoded(answer or {}, event=backend.store.sequence)
