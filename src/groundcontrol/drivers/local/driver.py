"""Reaches the hosts that run units: the one in this process, or others through their agents.

What a failed call means is decided here: nothing was sent → `Unavailable`; a change was sent and no answer of the agent
came → `OutcomeUnknown`; anything else is the error the agent raised.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from groundcontrol.drivers.local import wanted, wire
from groundcontrol.kernel.errors import GroundError, Invalid, NotFound, OutcomeUnknown, Unavailable
from groundcontrol.ports.processes import Fencing, HostObserved, LogChunk, Processes, UnitObserved, UnitSpec

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds after which a call is given up."""

    connect: float = 3.0
    read: float = 15.0
    """`look`, `get`, `find`, `log`."""
    change: float = 20.0
    """`create`, `update`, `start`."""
    end: float = 60.0
    """`stop` and `delete`, which wait for the unit's grace."""


class RemoteHost(Processes):
    """A host behind an agent. Safe for threads; connections are kept.

    `verify`: a file of certificates to trust; empty: the system's.
    """

    fencing: Fencing = "fences"

    def __init__(self, endpoint: str, token: str, *, deadlines: Deadlines | None = None, verify: str = "") -> None:
        import httpx  # 0.25 s of CPU: only who uses an agent pays.

        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Invalid(f"endpoint {endpoint!r}: give http://HOST:PORT or https://HOST:PORT")
        self._endpoint = endpoint.rstrip("/")
        self._deadlines = deadlines or Deadlines()
        context = ssl.create_default_context(cafile=verify or None) if parts.scheme == "https" else False
        self._client = httpx.Client(
            base_url=self._endpoint,
            headers={"Authorization": f"Bearer {token}"},
            verify=context,
            # No proxy of the environment gets to see the token, and no redirect takes it elsewhere.
            trust_env=False,
            follow_redirects=False,
            # Shorter than the agent keeps them: a connection that is just being closed would lose a change.
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=30.0),
        )

    def close(self) -> None:
        self._client.close()

    def _call(
        self,
        method: str,
        path: str,
        kind: type[T] | None,
        timeout: float,
        *,
        body: object = None,
        query: Mapping[str, str | int | float] | None = None,
    ) -> T:
        """One request. GET changes nothing; everything else may have."""
        import httpx

        what = f"{method} {self._endpoint}{path}"
        content = msgspec.json.encode(body) if body is not None else None
        limits = httpx.Timeout(timeout, connect=self._deadlines.connect, pool=self._deadlines.connect)
        try:
            answer = self._client.request(method, path, content=content, params=query, timeout=limits)
            answered = answer.content
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as problem:
            raise Unavailable(f"{what}: nothing was sent: {_reason(problem)}") from problem
        except httpx.HTTPError as problem:
            if method == "GET":
                raise Unavailable(f"{what}: no answer: {_reason(problem)}") from problem
            raise OutcomeUnknown(f"{what}: sent, but no answer came: {_reason(problem)}") from problem
        if answer.is_success:
            return self._decode(what, method, answered, kind)
        raise self._error(what, method, answer.status_code, answered)

    def _decode(self, what: str, method: str, body: bytes, kind: type[T] | None) -> T:
        try:
            if kind is None and not body:
                return None  # type: ignore[return-value]
            return msgspec.json.decode(body, type=kind or UnitObserved)  # type: ignore[return-value]
        except msgspec.MsgspecError as problem:
            text = f"{what}: the answer is not of an agent: {problem}"
            raise (Unavailable(text) if method == "GET" else OutcomeUnknown(text)) from None

    def _error(self, what: str, method: str, status: int, body: bytes) -> GroundError:
        """What the agent raised; for an answer that is not the agent's, what that means."""
        known = wire.error_of(body)
        if known is not None and (known.reason != "GroundError" or method == "GET"):
            return known
        text = f"{what}: status {status}: {known.message if known else body[:200].decode(errors='replace')}"
        # A proxy or a defect answered: only a refusal (4xx) says that nothing was done.
        return Unavailable(text) if method == "GET" or 400 <= status < 500 else OutcomeUnknown(text)

    def look(self) -> HostObserved:
        return self._call("GET", "/v1/look", HostObserved, self._deadlines.read)

    def wait(self, since: int, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while True:
            held = max(0.0, min(wire.LONGEST_WAIT, deadline - time.monotonic()))
            query = {"since": since, "timeout": held}
            answer = self._call("GET", "/v1/wait", dict[str, int], held + self._deadlines.read, query=query)
            if answer["sequence"] != since or time.monotonic() >= deadline:
                return answer["sequence"]

    def find(self, tag: str, value: str) -> tuple[str, ...]:
        query = {"tag": tag, "value": value}
        return self._call("GET", "/v1/find", tuple[str, ...], self._deadlines.read, query=query)

    def get(self, unit_id: str) -> UnitObserved:
        return self._call("GET", _path(unit_id), UnitObserved, self._deadlines.read)

    def create(self, unit_id: str, spec: UnitSpec, tags: dict[str, str], *, epoch: int) -> UnitObserved:
        wanted.check_id(unit_id)
        body = wire.Create(spec, tags, epoch)
        return self._call("PUT", _path(unit_id), UnitObserved, self._deadlines.change, body=body)

    def update(self, unit_id: str, spec: UnitSpec, *, if_revision: int, epoch: int) -> UnitObserved:
        body = wire.Update(spec, if_revision, epoch)
        return self._call("PATCH", _path(unit_id), UnitObserved, self._deadlines.change, body=body)

    def start(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        body = wire.Turn(if_revision, epoch)
        return self._call("POST", _path(unit_id) + "/start", UnitObserved, self._deadlines.change, body=body)

    def stop(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        body = wire.Turn(if_revision, epoch)
        return self._call("POST", _path(unit_id) + "/stop", UnitObserved, self._deadlines.end, body=body)

    def delete(self, unit_id: str, *, epoch: int) -> None:
        self._call("DELETE", _path(unit_id), None, self._deadlines.end, query={"epoch": epoch})

    def log(self, unit_id: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        query = {"offset": offset, "limit": limit}
        return self._call("GET", _path(unit_id) + "/log", LogChunk, self._deadlines.read, query=query)

    def follow(self, unit_id: str, offset: int = 0) -> Iterator[LogChunk]:
        import httpx

        path, query = _path(unit_id) + "/log", {"offset": str(offset), "follow": "1"}
        timeout = httpx.Timeout(self._deadlines.read, connect=self._deadlines.connect)
        try:
            with self._client.stream("GET", path, params=query, timeout=timeout) as answer:
                if not answer.is_success:
                    raise self._error(f"GET {path}", "GET", answer.status_code, answer.read())
                for line in answer.iter_lines():
                    text, at = json.loads(line)
                    yield LogChunk(text, at)
        except httpx.HTTPError as problem:
            raise Unavailable(f"the log of {unit_id} broke off: {_reason(problem)}") from problem


def _path(unit_id: str) -> str:
    # A slash would become another address of the agent, dots a step up; no host has units of such names.
    if not unit_id.strip(".") or "/" in unit_id:
        raise NotFound(f"there is no unit {unit_id!r} on this host: it cannot be the id of one")
    return f"/v1/units/{quote(unit_id, safe='')}"


def _reason(problem: Exception) -> str:
    return str(problem) or type(problem).__name__


def connect(instance: str, endpoint: str, token: str, *, options: dict[str, object]) -> Processes:
    """The host of one driver instance.

    `endpoint`: `local:` or `local:///path/of/root` for units of this process, `http(s)://host:port` for an agent.
    `options`: for `local:` those of LocalHost (addresses, cores, memory_mb, uid_range, cgroups, and root); for an agent
    `verify` and the fields of Deadlines (connect, read, change, end).
    """
    given: dict[str, Any] = dict(options)
    try:
        if endpoint.startswith("local:"):
            from groundcontrol.drivers.local.host import LocalHost

            root = endpoint.removeprefix("local:").removeprefix("//") or given.pop("root", "")
            if not root:
                raise Invalid(f"driver {instance}: endpoint `local:` needs a root: local:///var/lib/ground")
            if "uid_range" in given:
                given["uid_range"] = msgspec.convert(given["uid_range"], tuple[int, int])
            return LocalHost(root, **given)
        verify = str(given.pop("verify", ""))
        return RemoteHost(endpoint, token, deadlines=Deadlines(**given), verify=verify)
    except (TypeError, msgspec.ValidationError) as problem:
        raise Invalid(f"driver {instance}: options: {problem}") from problem
