"""One table row per operation: what routes it, what describes it in OpenAPI, and what a handler gets to work with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from groundcontrol.interfaces.api import body
from groundcontrol.kernel.errors import Invalid, NotFound, OutcomeUnknown, Problem, TooOld, Unavailable
from groundcontrol.kernel.resource import Key, did_you_mean
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.tx import Tx

if TYPE_CHECKING:
    from groundcontrol.interfaces.api.backend import Backend
    from groundcontrol.interfaces.api.refusals import Refusals
    from groundcontrol.interfaces.api.watch import Hub

T = TypeVar("T")
Schema = Mapping[str, Any]
WRITE_TIMEOUT = 30.0
"""Seconds to wait for a commit before saying that its outcome is not known."""


@dataclass(frozen=True)
class Param:
    """One query parameter."""

    name: str
    type: Literal["string", "integer", "boolean"]
    about: str
    default: Any = None
    least: int = 0
    most: int = (1 << 53) - 1
    longest: int = 1024
    pattern: str = ""

    @property
    def schema(self) -> dict[str, Any]:
        """As OpenAPI says it."""
        found: dict[str, Any] = {"type": self.type}
        if self.type == "integer":
            found |= {"minimum": self.least, "maximum": self.most}
        elif self.type == "string":
            found |= {"maxLength": self.longest}
        if self.pattern:
            found["pattern"] = self.pattern
        if self.default is not None:
            found["default"] = self.default
        return found

    def read(self, text: str) -> Any:
        """The value; raises Invalid."""
        wrong = ""
        if self.type == "boolean":
            if text in ("true", "false", "1", "0"):
                return text in ("true", "1")
            wrong = "write true or false"
        elif self.type == "integer":
            if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20:
                number = int(text)
                if self.least <= number <= self.most:
                    return number
            wrong = f"write a whole number from {self.least} to {self.most}"
        elif len(text) > self.longest:
            wrong = f"at most {self.longest} characters"
        elif "\0" in text:
            wrong = "it may not contain a NUL"
        if not wrong:
            return text
        raise Invalid(
            problems=(Problem(f"query parameter {self.name} is wrong: {text[:40]!r}", self.name, remedy=wrong),)
        )


Handler = Callable[["Call"], Awaitable[Response]]


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    id: str
    tag: str
    about: str
    handle: Handler
    query: tuple[Param, ...] = ()
    body: Schema | None = None
    body_optional: bool = False
    media: str = "application/json"
    """Media type of the request's body."""
    answers: Mapping[int, Schema | None] = field(default_factory=dict)
    """Status to JSON schema of the answer; None for an answer that is not JSON."""
    answer_media: str = "application/json"
    public: bool = False
    """Needs no token."""
    kind: str = ""
    verb: str = ""
    """The verb access rules know it by, for people who read the description."""


class Call:
    """One request, as handlers see it. `subject` is set unless the operation is public."""

    def __init__(self, request: Request, operation: Operation, server: Server) -> None:
        self.request = request
        self.operation = operation
        self.server = server
        self.backend = server.backend
        self.path: dict[str, str] = {k: str(v) for k, v in request.path_params.items()}
        self.query = _query(request, operation)
        self._subject: Subject | None = None

    @property
    def subject(self) -> Subject:
        assert self._subject is not None, "a public operation has no subject"
        return self._subject

    def signed_in(self, subject: Subject) -> None:
        self._subject = subject

    @property
    def peer(self) -> str:
        """Address of the caller."""
        return self.request.client.host if self.request.client else ""

    async def json(self) -> Any:
        """The body, bounded and without what JSON can say and we cannot keep."""
        body.check_media(self.request, self.operation.media)
        return body.parse(await body.read(self.request))

    async def json_object(self, *known: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
        """A body that is an object with known members; an empty body is an empty object when nothing is required."""
        raw = await body.read(self.request)
        if raw or required:
            body.check_media(self.request, self.operation.media)
        return body.members(body.parse(raw) if raw or required else {}, known, required)

    async def json_if_any(self) -> dict[str, Any]:
        """A body that may be missing and otherwise is an object with any members."""
        raw = await body.read(self.request)
        if raw:
            body.check_media(self.request, self.operation.media)
        value = body.parse(raw) if raw else {}
        if not isinstance(value, dict):
            raise Invalid("the body is not a JSON object")
        return value

    def key(self, kind: str) -> Key:
        """The resource the path names."""
        return Key(kind, self.path.get("namespace", ""), self.path.get("name", ""))

    def namespace_there(self, namespace: str) -> None:
        """NotFound, with the nearest name, for a namespace that does not exist: a list of nothing would hide a typo."""
        store = self.backend.store
        if namespace and "Namespace" in store.kinds and store.entry(Key("Namespace", "", namespace)) is None:
            sees = self.backend.access.visible(self.subject, "Namespace")
            near = [e.key.name for e in store.entries("Namespace")[:2000] if sees(e)]
            raise NotFound(f"there is no Namespace {namespace}{did_you_mean(namespace, near)}")

    def not_older_than(self, number: int | None) -> None:
        """TooOld unless the cache has that event. One server writes this store, and what it told is in its cache."""
        here = self.backend.store.sequence
        if number is not None and number > here:
            raise TooOld(f"event {number} is not of this history (we are at {here}); list again")

    async def write(self, act: Callable[[Tx], T]) -> T:
        """Run an act in the next group commit, without holding up the event loop."""
        future = asyncio.wrap_future(self.backend.store.submit(act))
        try:
            return await asyncio.wait_for(asyncio.shield(future), WRITE_TIMEOUT)
        except TimeoutError:
            raise OutcomeUnknown(
                f"the store did not answer within {WRITE_TIMEOUT:g} s: it may have happened or not; look first"
            ) from None

    async def blocking(self, work: Callable[[], T]) -> T:
        """Run what blocks on a thread of a bounded pool."""
        return await self.server.pool.run(work)


class Pool:
    """Threads for what blocks, with a bounded queue before them."""

    def __init__(self, executor: Executor, most: int) -> None:
        self._executor = executor
        self._most = most
        self._under_way = 0

    async def run(self, work: Callable[[], T]) -> T:
        if self._under_way >= self._most:
            raise Unavailable("too much is being asked for at once; try again in a moment", retry_after=1.0)
        self._under_way += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(self._done)
        return await future

    def _done(self, _: Any) -> None:
        self._under_way -= 1


@dataclass
class Server:
    """What all calls of one app share."""

    backend: Backend
    pool: Pool
    passwords: Pool
    """Hashing takes a core for a tenth of a second: two at a time."""
    hub: Hub
    refusals: Refusals
    description: bytes = b""
    """The OpenAPI document."""


def _query(request: Request, operation: Operation) -> dict[str, Any]:
    """The query parameters, checked; Invalid for unknown, repeated and wrong ones."""
    known = {p.name: p for p in operation.query}
    found: dict[str, Any] = {name: p.default for name, p in known.items()}
    problems: list[Problem] = []
    seen: set[str] = set()
    for name, text in request.query_params.multi_items():
        if name not in known:
            remedy = did_you_mean(name, known).strip(" ;") or (
                f"known: {', '.join(known)}" if known else "it takes none"
            )
            problems.append(Problem(f"unknown query parameter {name[:60]!r}", name[:60], remedy=remedy))
        elif name in seen:
            problems.append(Problem(f"query parameter {name} is given twice", name, remedy="give it once"))
        else:
            try:
                found[name] = known[name].read(text)
            except Invalid as error:
                problems += error.problems
        seen.add(name)
    if problems:
        raise Invalid(problems=tuple(problems[:20]))
    return found
