"""The one place that talks to a server: addresses, tokens, errors in words, pages and streams.

Written on `http.client`: importing httpx costs ten times as much as a whole call here, and a completion waits for it.
Redirects are not followed, so that a token never goes where it was not meant for.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from groundcontrol import __version__
from groundcontrol.interfaces.cli.failure import Failure, Refused, Unreachable

API = "/api/v1"
PAGE = 500
"""Items asked for at once."""
IDLE = 2.0
"""Seconds after which a kept connection is not trusted: a changing call on one that just closed is a lost answer."""

Params = Mapping[str, Any]
Doc = dict[str, Any]


class Client:
    """Calls to one server. Every failure comes out as Refused or Unreachable."""

    def __init__(self, url: str, token: str = "", *, ca: str = "", timeout: float = 30.0) -> None:
        self.url = url
        self._token = token
        self._ca = ca
        self._timeout = timeout
        parts = urlsplit(url)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise Failure(f"{url!r} is not an address: {error}", "write https://host or http://host:port") from error
        self._tls = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._kept: http.client.HTTPConnection | None = None
        self._used = 0.0

    # ------------------------------------------------------------------------------------------ calls

    def get(self, path: str, params: Params | None = None) -> Any:
        """Read; a server that asks to wait a moment is asked again, twice."""
        for attempt in range(3):
            try:
                return self.send("GET", path, params=params)
            except Refused as refused:
                pause = refused.retry_after
                if refused.status not in (429, 503) or pause is None or pause > 5 or attempt == 2:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    def send(self, method: str, path: str, body: Any = None, *, params: Params | None = None) -> Any:
        """One call; the answer's JSON, or None when it has none."""
        response = self._request(method, path, body, params, self._timeout)
        try:
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error, method, sent=True) from error
        self._used = time.monotonic()
        if response.status >= 300:
            raise self._refusal(response, raw)
        if not raw:
            return None
        try:
            return json.loads(raw)
        except ValueError as error:
            raise self._not_us(path) from error

    def list_all(self, path: str, params: Params | None = None, *, limit: int = 0) -> tuple[list[Doc], int]:
        """Every item over all pages (or the first `limit`), and the event number the first page speaks of."""
        for again in (True, False):
            items: list[Doc] = []
            version, token = 0, ""
            try:
                while True:
                    size = min(PAGE, limit - len(items)) if limit else PAGE
                    page = self.get(path, {**(params or {}), "limit": size, "continue": token})
                    items += page.get("items") or []
                    version = version or int(page.get("resourceVersion") or 0)
                    token = page.get("continue") or ""
                    if not token or (limit and len(items) >= limit):
                        return items, version
            except Refused as refused:
                # The place to continue from is no longer known: from the start, once.
                if refused.status != 410 or not token or not again:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def stream(
        self, path: str, params: Params | None = None, *, idle: float = 90.0
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer that comes bit by bit, on a connection of its own; `idle` seconds of silence end it."""
        self.close()
        response = self._request("GET", path, None, params, idle, accept="text/event-stream, text/plain")
        try:
            if response.status >= 300:
                raise self._refusal(response, response.read())
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error, "GET", sent=True) from error
        finally:
            response.close()
            self.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    # ------------------------------------------------------------------------------------------ the wire

    def _request(
        self, method: str, path: str, body: Any, params: Params | None, timeout: float, accept: str = "application/json"
    ) -> http.client.HTTPResponse:
        query = urlencode({k: _text(v) for k, v in (params or {}).items() if v not in (None, "", False, [])})
        target = self._prefix + path + (f"?{query}" if query else "")
        headers = {"Accept": accept, "User-Agent": f"ground/{__version__}"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        if self._kept is not None and time.monotonic() - self._used > IDLE:
            self.close()
        for fresh in (self._kept is None, True):
            sent = False
            try:
                connection = self._kept or self._connect(timeout)
                self._kept = connection
                if connection.sock is not None:
                    connection.sock.settimeout(timeout)
                sent = True
                connection.request(method, target, data, headers)
                return connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if fresh or method != "GET":
                    raise self._unreachable(error, method, sent=sent) from error
            except ValueError as error:  # a header or a target that HTTP cannot carry
                raise Failure(f"cannot ask for {path!r}: {error}") from error
        raise AssertionError("unreachable")

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        proxy = self._proxy()
        host, port = (proxy[0], proxy[1]) if proxy else (self._host, self._port)
        connection: http.client.HTTPConnection
        if self._tls:
            import ssl

            try:
                trust = ssl.create_default_context(cafile=self._ca or None)
            except OSError as error:
                raise Failure(f"cannot read the certificate authorities in {self._ca}: {error.strerror}") from error
            connection = http.client.HTTPSConnection(host, port, timeout=min(timeout, 10.0), context=trust)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=min(timeout, 10.0))
        if proxy:
            connection.set_tunnel(self._host, self._port or (443 if self._tls else 80))
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _proxy(self) -> tuple[str, int] | None:
        """The proxy the environment names for this address; loopback never goes through one."""
        name = "https_proxy" if self._tls else "http_proxy"
        address = os.environ.get(name) or (os.environ.get("HTTPS_PROXY") if self._tls else None)
        if not address or self._host in ("localhost", "127.0.0.1", "::1"):
            return None
        exempt = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").replace(" ", "").split(",")
        if any(
            e == "*" or self._host == e.lstrip(".") or (e and self._host.endswith(f".{e.lstrip('.')}")) for e in exempt
        ):
            return None
        parts = urlsplit(address if "://" in address else f"http://{address}")
        return (parts.hostname or "", parts.port or 3128)

    # ------------------------------------------------------------------------------------------ failures in words

    def _unreachable(self, error: Exception, method: str, *, sent: bool) -> Unreachable:
        what = _cause(error, self._timeout)
        if sent and method != "GET":
            return Unreachable(
                f"the {method} was sent to {self.url} and no answer came ({what}): it may have happened or not",
                "look with `ground get` or `ground events` before you try again",
                sent=True,
            )
        if "certificate" in what:
            remedy = "when the server has its own authority: `ground config set --ca FILE`, or GROUND_CA=FILE"
        else:
            remedy = "is the server running there? another address: --url, GROUND_URL or `ground config use CONTEXT`"
        return Unreachable(f"cannot reach {self.url}: {what}", remedy, sent=sent)

    def _not_us(self, path: str) -> Failure:
        return Failure(
            f"{self.url}{path} answered something that is not Ground Control's API",
            "check the address: --url, GROUND_URL or `ground config list`",
        )

    def _refusal(self, response: http.client.HTTPResponse, raw: bytes) -> Failure:
        status = response.status
        self._used = time.monotonic()
        if 300 <= status < 400:
            where = response.headers.get("Location", "another address")
            return Failure(f"{self.url} sends us on to {where}", "use that address: `ground config set --url …`")
        try:
            answer = json.loads(raw)
            error = answer["error"]
            problems = [p if isinstance(p, dict) else {"message": str(p)} for p in error.get("problems") or ()]
            reason, message = str(error.get("reason", "")), str(error.get("message", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            what = response.reason or http.client.responses.get(status, "")
            if status < 500 and status not in (401, 403, 404, 429):
                return self._not_us("")
            error, problems, reason, message = {}, [], "", f"{self.url} answered {status} {what}"
        wait = error.get("retryAfter") or response.headers.get("Retry-After")
        try:
            retry_after = float(wait) if wait is not None else None
        except ValueError:
            retry_after = None
        remedies = list(_remedies(status, reason, self.url, bool(self._token), retry_after))
        if status == 422 and problems:
            # The message of Invalid repeats its problems in one line.
            message = "the server refused the input:" if len(problems) > 1 else _first_line(problems, message)
            problems = problems if len(problems) > 1 else problems[:1]
        return Refused(
            status, reason, message or f"the server answered {status}", problems, *remedies, retry_after=retry_after
        )


def _first_line(problems: list[Doc], message: str) -> str:
    from groundcontrol.interfaces.cli.failure import problem_line

    return problem_line(problems[0]) or message


def _remedies(status: int, reason: str, url: str, signed_in: bool, retry_after: float | None) -> Iterator[str]:
    if status == 401 and os.environ.get("GROUND_TOKEN"):
        yield f"{url} does not accept the token in GROUND_TOKEN: it may have expired; set another or unset it"
    elif status == 401:
        yield "your token is no longer valid: run `ground login`" if signed_in else "sign in first: run `ground login`"
    elif status == 403:
        yield "`ground whoami` shows who you are and what your token may do"
    elif reason == "PlanChanged":
        yield "look at what stands now: `ground plan show ID`, then approve that digest"
    elif reason == "AlreadyExists":
        yield "change it with `ground apply` or `ground edit`"
    elif status == 429 and retry_after:
        yield f"try again in {retry_after:g} s"


def _cause(error: Exception, timeout: float) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off"
    if verdict := getattr(error, "verify_message", ""):
        return f"its certificate is not trusted: {verdict}"
    if "WRONG_VERSION_NUMBER" in str(error):
        return "it does not speak TLS there; is it http://?"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _text(value: Any) -> str:
    return "true" if value is True else str(value)


def path_of(plural: str, namespace: str = "", name: str = "") -> str:
    """`/api/v1/namespaces/{ns}/{plural}/{name}`, whatever characters somebody typed."""
    place = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    tail = f"/{quote(name, safe='')}" if name else ""
    return f"{API}{place}/{quote(plural, safe='')}{tail}"
