"""Plans that wait for a person, previews of a tree, and pushes from git servers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response

from groundcontrol.interfaces.api import body
from groundcontrol.interfaces.api.answers import encoded
from groundcontrol.interfaces.api.backend import PlanBoard
from groundcontrol.interfaces.api.derive import API, ref
from groundcontrol.interfaces.api.operation import Call, Operation, Param
from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound, Problem, Unauthenticated, Unavailable
from groundcontrol.kernel.incarnation import SCOPE as RESTORE
from groundcontrol.kernel.resource import Doc, Key, seconds

T = TypeVar("T")
STATES = ("held", "approved", "refused")
SERVERS = ("gitlab", "github", "gitea")
_SCOPE = re.compile(r"(source|kind|site|namespace|group|subject):[^\s]{1,200}|all:")
"""Ids of Plans are the scopes they are held in."""


def operations() -> Iterator[Operation]:
    """Everything about plans, and the hooks."""
    state = Param(
        "state",
        "string",
        "held, approved or refused; all when empty.",
        longest=16,
        pattern="^(held|approved|refused)?$",
    )
    yield Operation("GET", f"{API}/plans", "listPlans", "plans", "Plans that wait, or were answered.", _list, (state,),
                    answers={200: ref("PlanList")}, verb="list Plan")  # fmt: skip
    yield Operation("GET", f"{API}/plans/{{id}}", "getPlan", "plans", "One Plan.", _get, answers={200: ref("Plan")},
                    verb="get Plan")  # fmt: skip
    yield Operation("POST", f"{API}/plans/{{id}}/approve", "approvePlan", "plans",
                    "Approve exactly these changes by their digest, or up to so many of a verb.", _approve,
                    body=ref("Approval"), answers={200: ref("Plan")}, verb="approve Plan")  # fmt: skip
    yield Operation("POST", f"{API}/plans/{{id}}/refuse", "refusePlan", "plans", "Refuse a Plan.", _refuse,
                    body=ref("Refusal"), answers={200: ref("Plan")}, verb="approve Plan")  # fmt: skip
    yield Operation("POST", f"{API}/sources/plan", "planTree", "plans", "What a tree would change.",
                    _preview, body=ref("Tree"), answers={200: ref("Plan")},
                    verb="get Source, or list Plan")  # fmt: skip
    for server in SERVERS:
        yield Operation("POST", f"/hooks/{server}/{{source}}", f"{server}Hook", "hooks",
                        "A push, verified with the Source's webhook secret.", partial(_hook, server), body={},
                        answers={202: ref("Accepted")}, public=True)  # fmt: skip


def _board(call: Call) -> PlanBoard:
    if call.backend.plans is None:
        raise Unavailable("this server holds no plans; it was assembled without a plan board")
    return call.backend.plans


def _namespaces_of(plan: Doc) -> set[str]:
    """Where a Plan's changes belong; the empty one for what belongs to the whole platform."""
    found = set()
    for entry in plan.get("changes") or ():
        _, _, path = str(entry.get("owner") or "").partition(" ")
        namespace, slash, _ = path.partition("/")
        found.add(namespace if slash else "")
    if str(plan.get("id") or "").startswith(f"{RESTORE}:"):
        found.add("")  # what it lets go is everybody's
    return found or {""}


def _may(call: Call, verb: str, plan: Doc) -> bool:
    """Whether the subject may do this to every change of the Plan."""
    return all(call.backend.access.allowed(call.subject, verb, "Plan", namespace=n) for n in _namespaces_of(plan))


async def _list(call: Call) -> Response:
    call.backend.access.require_list(call.subject, "list", "Plan")
    state = call.query["state"] or ""
    if state and state not in STATES:
        raise Invalid(problems=(Problem(f"no state {state!r}", "state", remedy=f"known: {', '.join(STATES)}"),))
    board = _board(call)
    plans = await call.blocking(lambda: board.list(state))
    return encoded({"items": [plan for plan in plans if _may(call, "list", plan)]})


async def _found(call: Call) -> Doc:
    """The Plan the path names, when the subject may know of it."""
    call.backend.access.require_list(call.subject, "get", "Plan")
    board, identity = _board(call), call.path["id"]
    try:
        plan = await call.blocking(lambda: board.get(identity))
    except NotFound:
        plan = None
    if plan is None or not _may(call, "get", plan):
        raise NotFound(f"there is no plan {identity}")
    return plan


async def _get(call: Call) -> Response:
    return encoded(await _found(call))


async def _answering(call: Call) -> tuple[PlanBoard, str]:
    plan = await _found(call)
    for namespace in sorted(_namespaces_of(plan)):
        call.backend.access.require(call.subject, "approve", "Plan", namespace=namespace, name=str(plan["id"]))
    return _board(call), call.path["id"]


async def _bounding(call: Call) -> tuple[PlanBoard, str]:
    """As `_answering`; a bound may also be given ahead of any held Plan, by who may approve on the whole platform."""
    identity = call.path["id"]
    try:
        return await _answering(call)
    except NotFound:
        if not _SCOPE.fullmatch(identity):
            raise
        call.backend.access.require(call.subject, "approve", "Plan", name=identity)
        return _board(call), identity


async def _approve(call: Call) -> Response:
    given = await call.json_object("digest", "bound", "reason")
    digest, reason, bound = body.text(given, "digest", 200), body.text(given, "reason", 1000), given.get("bound")
    if bool(digest) == (bound is not None):
        raise Invalid(problems=(Problem("give either digest or bound", "digest"),))
    limits = _bound(bound, reason) if bound is not None else None
    board, identity = await (_answering(call) if limits is None else _bounding(call))
    if limits is None:
        return await _answer(call, "approve", lambda: board.approve(identity, digest, call.subject, reason))
    verb, count, until = limits
    return await _answer(
        call, "approve", lambda: board.approve_bound(identity, verb, count, until, call.subject, reason)
    )


def _bound(given: Any, reason: str) -> tuple[str, int, float]:
    bound = body.members(given, ("verb", "count", "until"), ("verb", "count", "until"))
    problems = []
    if not reason:
        problems.append(Problem("a bound needs a reason", "reason", remedy="say why"))
    count = bound["count"]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1_000_000:
        problems.append(Problem("count is a number from 1 to 1000000", "bound.count"))
    verb = body.text(bound, "verb", 32)
    if not verb:
        problems.append(Problem("verb is missing", "bound.verb"))
    try:
        until = seconds(body.text(bound, "until", 40))
    except (ValueError, OverflowError):
        until = 0.0
    if not until:
        problems.append(Problem("until is not a time", "bound.until", remedy="write 2030-01-31T18:00:00Z"))
    if problems:
        raise Invalid(problems=tuple(problems))
    return verb, count, until


async def _refuse(call: Call) -> Response:
    given = await call.json_object("reason", required=("reason",))
    reason = body.text(given, "reason", 1000)
    board, identity = await _answering(call)
    return await _answer(call, "refuse", lambda: board.refuse(identity, call.subject, reason))


async def _answer(call: Call, verb: str, work: Callable[[], Doc]) -> Response:
    """Carry an answer to the board; a refusal of the board is audited too."""
    key, subject = Key("Plan", "", call.path["id"][:255]), call.subject
    await call.write(lambda tx: tx.audit(subject.name, verb, key, "asked"))
    try:
        return encoded(await call.blocking(work), event=call.backend.store.sequence)
    except GroundError as error:
        reason = error.reason
        await call.write(lambda tx: tx.audit(subject.name, verb, key, "failed", reason=reason))
        raise


async def _preview(call: Call) -> Response:
    given = await call.json_object("source", "files", "against", required=("files",))
    source = body.text(given, "source", 63)
    for name in ("files", "against"):
        files = given.get(name)
        if files is not None and not (isinstance(files, dict) and all(isinstance(t, str) for t in files.values())):
            raise Invalid(problems=(Problem(f"{name} is an object of path to text", name),))
    access = call.backend.access
    if source:
        access.require(call.subject, "get", "Source", name=source)
    else:
        access.require_list(call.subject, "list", "Plan")
    planner = call.backend.source_plan
    if planner is None:
        raise Unavailable("this server plans no trees; it was assembled without Sources")
    return encoded(await call.blocking(lambda: planner(call.subject, given)))


async def _hook(server: str, call: Call) -> Response:
    raw = await body.read(call.request)
    hook, source = call.backend.hooks, call.path["source"]
    if hook is None:
        raise Unavailable("this server takes no hooks; it was assembled without Sources")
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in call.request.headers.raw}
    try:
        await call.blocking(lambda: hook(server, source, headers, raw))
    except (Forbidden, NotFound) as error:
        # Which Sources there are is nobody's business without the secret.
        call.server.refusals.note(f"hook:{server}", "push", Key("Source", "", source), error, call.peer)

        raise Unauthenticated("the webhook's secret is wrong, or there is no such Source") from None
    return encoded({"accepted": True}, 202)
