"""A proxy in front of a real cloud, which spoils answers as it is told: for tests of what a driver makes of that.

It speaks plain HTTP to the driver and TLS to the cloud, and rewrites the addresses of the catalogue, so that every
service is reached through it. Faults are ordered by method and path, and used up one by one.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["slow", "status", "cut", "lost", "drop", "hang", "edit", "trickle"]
"""`slow`: answered late; `status`: this status, not forwarded; `cut`: half of the answer; `lost`: forwarded, never
answered; `drop`: neither; `hang`: not answered until the test is over; `edit`: the body changed; `trickle`: a byte now
and then."""


@dataclass
class Fault:
    """One thing that goes wrong."""

    kind: Kind
    method: str = "*"
    path: str = ""
    """Regular expression that is looked for in `/SERVICE/PATH?QUERY`."""
    times: int = 1
    """-1: for ever."""
    seconds: float = 0.0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    edit: Callable[[Any], Any] | None = None

    def meets(self, method: str, path: str) -> bool:
        return self.times != 0 and self.method in ("*", method) and re.search(self.path, path) is not None


class FaultProxy:
    """Reached at `endpoint`. `requests` are (method, path) of everything that came, faulty or not."""

    def __init__(self, keystone: str, authority: str) -> None:
        self.keystone = keystone.rstrip("/")
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.context = ssl.create_default_context(cafile=authority)
        self.behind: dict[str, str] = {"identity": self.keystone}
        """Name of a service in our paths to where it really is."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.endpoint = f"{self.address}/identity/v3"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def order(self, kind: Kind, method: str = "*", path: str = "", **more: Any) -> Fault:
        """Let something go wrong from now on."""
        fault = Fault(kind, method, path, **more)
        with self.lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        with self.lock:
            self.faults.clear()

    def count(self, method: str, path: str) -> int:
        """How many such requests came."""
        return sum(m == method and re.search(path, p) is not None for m, p in list(self.requests))

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            fault = next((f for f in self.faults if f.meets(method, path)), None)
            if fault is not None and fault.times > 0:
                fault.times -= 1
            return fault

    def real(self, path: str) -> str:
        """Where a path of ours leads."""
        _, service, rest = path.split("/", 2) if path.count("/") > 1 else ("", path[1:], "")
        base = self.behind[service]
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(base))
        return f"{origin}/{rest}"

    def rewritten(self, body: dict[str, Any]) -> dict[str, Any]:
        """A token's body, whose catalogue leads through us."""
        for entry in body.get("token", {}).get("catalog", ()):
            for endpoint in (e for e in entry["endpoints"] if e["interface"] == "public"):
                self.behind[entry["type"]] = endpoint["url"]
                endpoint["url"] = f"{self.address}/{entry['type']}{urlsplit(endpoint['url']).path}"
        return body


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, owner = self.path, self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = owner.take(self.command, path)
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            return self._answer(fault.status, fault.headers, b'{"message": "ordered fault"}')
        if kind == "drop":
            return self._hang_up()
        if kind == "hang":
            owner.ended.wait(600)
            return self._hang_up()
        status, headers, answer = self._forward(path, body)
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if kind == "lost":
            return self._hang_up()
        if fault and fault.edit is not None:
            answer = json.dumps(fault.edit(json.loads(answer))).encode()
        if kind == "cut":
            self._head(status, headers, len(answer))
            self.wfile.write(answer[: len(answer) // 2])
            return self._hang_up()
        if fault and kind == "trickle":
            self._head(status, headers, len(answer))
            for at in range(len(answer)):
                self.wfile.write(answer[at : at + 1])
                self.wfile.flush()
                if owner.ended.wait(fault.seconds):
                    break
            return self._hang_up()
        return self._answer(status, headers, answer)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

    def _forward(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        where = urlsplit(self.owner.real(path))
        connection = http.client.HTTPSConnection(where.netloc, timeout=120, context=self.owner.context)
        passed = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
        with contextlib.closing(connection):
            connection.request(self.command, f"{where.path}?{where.query}".rstrip("?"), body or None, passed)
            response = connection.getresponse()
            answer = response.read()
        hop = ("connection", "transfer-encoding", "content-length", "keep-alive")
        headers = {k: v for k, v in response.getheaders() if k.lower() not in hop}
        if path.endswith("/auth/tokens") and response.status == 201:
            answer = json.dumps(self.owner.rewritten(json.loads(answer))).encode()
        return response.status, headers, answer

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Tests say nothing."""


@contextlib.contextmanager
def in_front_of(keystone: str, authority: str) -> Iterator[FaultProxy]:
    """A proxy for as long as the block."""
    proxy = FaultProxy(keystone, authority)
    try:
        yield proxy
    finally:
        proxy.close()
