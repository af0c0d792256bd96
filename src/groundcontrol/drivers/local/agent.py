"""Serves a LocalHost over HTTP, so that Ground Control elsewhere runs units on this machine.

    GET    /healthz                        no token needed
    GET    /v1/look                        HostObserved
    GET    /v1/wait?since=N&timeout=S      {"sequence": N}; answers when the counter is not N any more
    GET    /v1/find?tag=T&value=V          ids
    GET    /v1/units/{id}                  UnitObserved
    PUT    /v1/units/{id}                  wire.Create → UnitObserved
    PATCH  /v1/units/{id}                  wire.Update → UnitObserved
    POST   /v1/units/{id}/start, /stop     wire.Turn → UnitObserved
    DELETE /v1/units/{id}?epoch=N          204
    GET    /v1/units/{id}/log?offset&limit [text, offset]; with follow=1 one such line after the other

Everything is JSON; what fails answers `wire.Failure`. Stopping the agent leaves the units running: they belong to what
is wanted, not to the agent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hmac
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from groundcontrol.drivers.local import wire
from groundcontrol.drivers.local.host import LocalHost
from groundcontrol.kernel.errors import GroundError, Invalid, Problem, TooLarge, Unauthenticated

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent serves; the same names as its options."""

    root: str
    token_file: str
    name: str = ""
    listen: str = "127.0.0.1:7070"
    addresses: str = ""
    cores: float = 0.0
    memory_mb: int = 0
    uid_range: tuple[int, int] = (200_000, 209_999)
    tls_cert: str = ""
    tls_key: str = ""
    stop_units_on_exit: bool = False


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _number(request: Request, name: str, default: float | None = None) -> float:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise Invalid(problems=(Problem(f"{text!r} is not a number", name),)) from None


class Agent:
    """The application: every request checked for the token, every host call on a thread."""

    def __init__(self, host: LocalHost, token: str) -> None:
        self.host = host
        self._token = f"Bearer {token}".encode()
        # Changes may take their units' grace; they must not keep anybody from looking.
        self._lookers = ThreadPoolExecutor(8, "look")
        self._changers = ThreadPoolExecutor(64, "change")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._closing = False
        unit = "/v1/units/{unit_id}"
        routes = [
            Route("/healthz", self._healthz),
            Route("/v1/look", self._guard(self._look)),
            Route("/v1/wait", self._guard(self._wait)),
            Route("/v1/find", self._guard(self._find)),
            Route(unit, self._guard(self._get), methods=["GET"]),
            Route(unit, self._guard(self._create), methods=["PUT"]),
            Route(unit, self._guard(self._update), methods=["PATCH"]),
            Route(unit, self._guard(self._delete), methods=["DELETE"]),
            Route(unit + "/start", self._guard(self._start), methods=["POST"]),
            Route(unit + "/stop", self._guard(self._stop), methods=["POST"]),
            Route(unit + "/log", self._guard(self._log)),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self.host.on_change(self._announce)
        yield
        self._lookers.shutdown(wait=False)
        # An order that was taken is carried out before the agent ends.
        self._changers.shutdown(wait=True)

    def _announce(self) -> None:
        """From any thread: wake everybody who waits."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Let go of everybody who waits or follows; from the signal handler."""
        self._closing = True
        self._announce()

    def _guard(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                given = request.headers.get("authorization", "").encode("latin-1", "replace")
                if not hmac.compare_digest(given, self._token):
                    raise Unauthenticated("the token is missing or wrong: give the one in the agent's --token-file")
                return await handler(request)
            except GroundError as problem:
                return Response(wire.failure_of(problem), problem.status, media_type="application/json")
            except Exception as problem:  # The caller is owed an answer of our shape, whatever went wrong.
                LOG.exception("%s %s failed", request.method, request.url.path)
                failure = GroundError(f"{type(problem).__name__}: {problem}")
                return Response(wire.failure_of(failure), 500, media_type="application/json")

        return guarded

    async def _body(self, request: Request, kind: type[T]) -> T:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > wire.LARGEST_BODY:
                raise TooLarge(f"the request is larger than {wire.LARGEST_BODY} bytes")
        try:
            return msgspec.json.decode(bytes(body), type=kind)
        except msgspec.MsgspecError as problem:
            raise Invalid(f"the request's body is not what is expected here: {problem}") from None

    async def _do(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    async def _healthz(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _look(self, request: Request) -> Response:
        return _json(await self._do(self._lookers, self.host.look))

    async def _wait(self, request: Request) -> Response:
        since, loop = int(_number(request, "since")), asyncio.get_running_loop()
        deadline = loop.time() + max(0.0, min(wire.LONGEST_WAIT, _number(request, "timeout", 0.0)))
        while True:
            changed = self._changed  # Taken before the counter is read: a change in between sets this one.
            left = deadline - loop.time()
            if self.host.sequence != since or left <= 0 or self._closing:
                return _json({"sequence": self.host.sequence})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)

    async def _find(self, request: Request) -> Response:
        tag, value = request.query_params.get("tag", ""), request.query_params.get("value", "")
        return _json(await self._do(self._lookers, lambda: self.host.find(tag, value)))

    async def _get(self, request: Request) -> Response:
        return _json(await self._do(self._lookers, lambda: self.host.get(request.path_params["unit_id"])))

    async def _create(self, request: Request) -> Response:
        body, key = await self._body(request, wire.Create), request.path_params["unit_id"]
        return _json(
            await self._do(self._changers, lambda: self.host.create(key, body.spec, body.tags, epoch=body.epoch))
        )

    async def _update(self, request: Request) -> Response:
        body, key = await self._body(request, wire.Update), request.path_params["unit_id"]

        def update() -> Any:
            return self.host.update(key, body.spec, if_revision=body.if_revision, epoch=body.epoch)

        return _json(await self._do(self._changers, update))

    async def _start(self, request: Request) -> Response:
        return await self._turn(request, self.host.start)

    async def _stop(self, request: Request) -> Response:
        return await self._turn(request, self.host.stop)

    async def _turn(self, request: Request, call: Callable[..., Any]) -> Response:
        body, key = await self._body(request, wire.Turn), request.path_params["unit_id"]
        turn = lambda: call(key, if_revision=body.if_revision, epoch=body.epoch)  # noqa: E731
        return _json(await self._do(self._changers, turn))

    async def _delete(self, request: Request) -> Response:
        key, epoch = request.path_params["unit_id"], int(_number(request, "epoch"))
        await self._do(self._changers, lambda: self.host.delete(key, epoch=epoch))
        return Response(status_code=204)

    async def _log(self, request: Request) -> Response:
        key = request.path_params["unit_id"]
        offset, limit = int(_number(request, "offset", 0)), int(_number(request, "limit", 65536))
        # Also when following: an unknown unit is an error now, not an empty stream.
        chunk = await self._do(self._lookers, lambda: self.host.log(key, offset, limit))
        if request.query_params.get("follow") != "1":
            return _json(chunk)
        return StreamingResponse(self._follow(key, offset), media_type="application/x-ndjson")

    async def _follow(self, key: str, offset: int) -> AsyncIterator[bytes]:
        silent = 0
        while not self._closing:
            try:
                chunk = await self._do(self._lookers, functools.partial(self.host.log, key, offset, 262_144))
            except GroundError:
                return
            moved, offset = chunk.offset != offset, chunk.offset
            silent = 0 if chunk.text else silent + 1
            # An empty chunk now and then: so that both sides notice when the other is gone.
            if chunk.text or silent % 10 == 0:
                yield msgspec.json.encode(chunk) + b"\n"
            if not moved:
                await asyncio.sleep(0.1)


class _Server(uvicorn.Server):
    """Lets go of long polls at the first signal, instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, agent: Agent) -> None:
        super().__init__(config)
        self._agent = agent

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._agent.close()
        super().handle_exit(sig, frame)


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as source:
            token = source.read().strip()
            mode = os.fstat(source.fileno()).st_mode
    except OSError as problem:
        raise Invalid(f"--token-file {path}: {problem.strerror}") from None
    if len(token) < 16:
        raise Invalid(f"--token-file {path}: the token has {len(token)} characters; give at least 16")
    if mode & 0o077:
        LOG.warning("others may read %s: chmod 600 %s", path, path)
    return token


def _bind(settings: Settings) -> socket.socket:
    host, _, port = settings.listen.rpartition(":")
    host = host.strip("[]")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise Invalid("--tls-cert and --tls-key go together")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        number = int(port)
    except ValueError:
        raise Invalid(f"--listen {settings.listen}: give an IP address and a port, such as 127.0.0.1:7070") from None
    if not loopback and not settings.tls_cert:
        raise Invalid(
            f"--listen {settings.listen} is open to other machines, and the token and the secrets of units would cross"
            " the network in the clear: give --tls-cert and --tls-key, or listen on 127.0.0.1"
        )
    try:
        return socket.create_server(
            (host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as problem:
        raise Invalid(f"cannot listen on {settings.listen}: {problem.strerror}") from None


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises GroundError when it cannot begin."""
    token = _read_token(settings.token_file)
    listener = _bind(settings)
    host = LocalHost(
        settings.root,
        addresses=settings.addresses,
        cores=settings.cores,
        memory_mb=settings.memory_mb,
        uid_range=settings.uid_range,
    )
    try:
        # uvicorn raises the signal again once it has ended; what follows it here must still happen.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        agent = Agent(host, token)
        config = uvicorn.Config(
            agent.app,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=30,
            ssl_certfile=settings.tls_cert or None,
            ssl_keyfile=settings.tls_key or None,
        )
        scheme, address = "https" if settings.tls_cert else "http", listener.getsockname()
        place = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        LOG.info("%s listens on %s://%s", settings.name or socket.gethostname(), scheme, place)
        _Server(config, agent).run(sockets=[listener])
    finally:
        host.close(stop_units=settings.stop_units_on_exit)
        listener.close()


def _options(argv: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="ground agent", description="Run units on this machine for Ground Control.")
    parser.add_argument("--root", required=True, help="folder in which everything is kept")
    parser.add_argument("--name", default="", help="shown in messages; default: the machine's name")
    parser.add_argument("--listen", default="127.0.0.1:7070", metavar="HOST:PORT", help="port 0: any free one")
    parser.add_argument("--token-file", required=True, help="file with the bearer token callers must give")
    parser.add_argument("--addresses", default="", metavar="CIDR", help="part of 127.0.0.0/8 for the units' addresses")
    parser.add_argument("--cores", type=float, default=0.0, help="cores offered; default: all")
    parser.add_argument("--memory-mb", type=int, default=0, help="memory offered; default: all")
    parser.add_argument("--uid-range", default="200000-209999", metavar="A-B", help="user ids for tenants, as root")
    parser.add_argument("--tls-cert", default="", help="certificate chain, PEM; needed beyond the loopback")
    parser.add_argument("--tls-key", default="", help="its private key, PEM")
    parser.add_argument("--stop-units-on-exit", action="store_true", help="delete all units at the end (demos)")
    given = vars(parser.parse_args(argv))
    first, dash, last = given.pop("uid_range").partition("-")
    if not (dash and first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 1 << 32):
        parser.error("--uid-range: give two numbers, such as 200000-209999")
    return Settings(**given, uid_range=(int(first), int(last)))


def main(argv: list[str] | None = None) -> int:
    """`ground agent`; 0 after a signal, 2 when it could not begin."""
    settings = _options(argv)
    # To standard error, one line each: what starts the agent reads there when and where it listens.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="ground agent: %(message)s")
    try:
        serve(settings)
    except GroundError as problem:
        LOG.error("%s", problem.message)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
