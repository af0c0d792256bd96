"""The application: operations on routes, who is asking, and every failure in the one shape."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from groundcontrol import __version__
from groundcontrol.interfaces.api.answers import failure
from groundcontrol.interfaces.api.backend import Backend
from groundcontrol.interfaces.api.openapi import openapi
from groundcontrol.interfaces.api.operation import Call, Operation, Pool, Server
from groundcontrol.interfaces.api.refusals import WINDOW, Refusals
from groundcontrol.interfaces.api.table import operations
from groundcontrol.interfaces.api.watch import Hub
from groundcontrol.kernel.access import Hidden
from groundcontrol.kernel.errors import Forbidden, GroundError, NotFound, Unauthenticated
from groundcontrol.kernel.resource import NAME, Key, did_you_mean
from groundcontrol.kernel.rights import Subject

log = logging.getLogger(__name__)

NAMES = frozenset({"name", "namespace", "source"})
THREADS = 8
WAITING = 1000
"""Blocking calls under way or waiting for a thread."""


def create_app(services: Backend) -> FastAPI:
    """The API over these services. Its lifespan follows the store's events; it does not close what it was given."""
    store, accounts = services.store, services.accounts

    def still_valid(subject: Subject) -> GroundError | None:
        try:
            found = accounts.again(subject)
        except Unauthenticated as error:
            return error
        return None if found.groups == subject.groups else Unauthenticated("your groups have changed; connect again")

    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
    hashing = ThreadPoolExecutor(2, thread_name_prefix="api-password")
    server = Server(
        services,
        Pool(threads, WAITING),
        Pool(hashing, 50),
        Hub(store, services.access, still_valid),
        Refusals(store, store.clock),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.hub.start()
        counting = asyncio.create_task(_flush(server.refusals))
        try:
            yield
        finally:
            counting.cancel()
            server.refusals.flush(everything=True)
            await server.hub.stop()
            threads.shutdown(wait=False, cancel_futures=True)
            hashing.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Ground Control", version=__version__, lifespan=lifespan,
        openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    description = openapi(services.kinds)
    server.description = msgspec.json.encode(description)
    app.openapi = lambda: description  # type: ignore[method-assign]
    app.state.server = server
    paths: dict[str, dict[str, Operation]] = {}
    for operation in operations(services.kinds):
        paths.setdefault(operation.path, {})[operation.method] = operation
    # A plan's id may have slashes in it, so it takes what is left: longer paths come first.
    for path in sorted(paths, key=lambda p: (p.startswith("/api/v1/plans/"), "{" in p, -p.count("/"), p)):
        app.router.routes.append(Route(path.replace("/plans/{id}", "/plans/{id:path}"), OnePath(server, paths[path])))
    app.router.default = Nowhere(paths)
    return app


async def _flush(refusals: Refusals) -> None:
    while True:
        await asyncio.sleep(WINDOW / 2)
        refusals.flush()


class OnePath:
    """All methods of one path."""

    def __init__(self, server: Server, methods: dict[str, Operation]) -> None:
        self._server = server
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        operation = self._methods.get("GET" if request.method == "HEAD" else request.method)
        if request.method == "HEAD" and operation is not None and operation.answer_media != "application/json":
            operation = None  # what streams has no end to wait for
        if operation is None:
            response = _not_allowed(request.method, self._methods)
        else:
            response = await self._answered(request, operation)
        await response(scope, receive, send)

    async def _answered(self, request: Request, operation: Operation) -> Response:
        subject: Subject | None = None
        try:
            if not operation.public:
                subject = self._authenticated(request)
            _check_names(request)
            call = Call(request, operation, self._server)
            if subject is not None:
                call.signed_in(subject)
            return await operation.handle(call)
        except GroundError as error:
            if isinstance(error, (Forbidden, Hidden)) and subject is not None:
                self._refused(request, operation, subject, error)
            return failure(error)
        except Exception:
            trace = uuid.uuid4().hex[:12]
            log.exception("a call failed", extra={"trace": trace, "operation": operation.id})
            return failure(GroundError(f"a defect of the server; its log has the details under {trace}"))

    def _authenticated(self, request: Request) -> Subject:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthenticated("sign in first: send Authorization: Bearer TOKEN")
        return self._server.backend.accounts.authenticate(token.strip())

    def _refused(self, request: Request, operation: Operation, subject: Subject, error: GroundError) -> None:
        path = request.path_params
        key = Key(operation.kind, str(path.get("namespace", "")), str(path.get("name") or path.get("id") or ""))
        peer = request.client.host if request.client else ""
        self._server.refusals.note(subject.name, operation.verb or operation.id, key, error, peer)


def _check_names(request: Request) -> None:
    """NotFound for what cannot be the name of anything."""
    for name, value in request.path_params.items():
        wrong = not (NAME.fullmatch(value) and len(value) <= 63) if name in NAMES else "\0" in value or len(value) > 255
        if wrong:
            raise NotFound(
                f"there is nothing of the {name} {value[:80]!r}; names are lower-case letters, digits, - and ."
            )


def _not_allowed(method: str, known: Mapping[str, Operation]) -> Response:
    get = known.get("GET")
    allowed = ", ".join(sorted({*known, *(("HEAD",) if get and get.answer_media == "application/json" else ())}))
    response = failure(GroundError(f"{method[:20]} is not possible here; {allowed} is"), 405, "MethodNotAllowed")
    response.headers["allow"] = allowed
    return response


class Nowhere:
    """What is asked for under no known path."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = [path for path in paths if "{" not in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        path = scope["path"]
        hint = did_you_mean(path, self._paths) if len(path) < 200 else ""
        response = failure(
            NotFound(f"there is no {path[:200]!r} here{hint or '; GET /api/v1/openapi.json says what there is'}")
        )
        await response(scope, receive, send)
