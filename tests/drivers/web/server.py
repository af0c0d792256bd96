"""A server on this machine that answers as a test wants, over TLS or in clear."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.drivers.openbao.certificates import Authority


class Quiet(ThreadingHTTPServer):
    """Says nothing of callers who hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        return None


class Side:
    """What it answers and what it was asked."""

    def __init__(self) -> None:
        self.status, self.headers = 200, dict[str, str]()
        self.fault: Callable[[Any], None] | None = None
        """Takes over the socket after the request."""
        self.seen: list[tuple[str, dict[str, str]]] = []
        """Path and headers (in lower case) of every request."""
        self.port, self.ca = 0, ""


class Handler(BaseHTTPRequestHandler):
    """HTTP around a Side."""

    side: Side

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        self.side.seen.append((self.path, {n.lower(): v for n, v in self.headers.items()}))
        if self.side.fault:
            self.side.fault(self.connection)
            return
        self.send_response(self.side.status)
        for name, value in self.side.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


@contextmanager
def serving(folder: Path, *, tls: bool = True) -> Iterator[Side]:
    """A server for the length of a test; `ca` is who vouches for it, PEM."""
    side = Side()
    server = Quiet(("127.0.0.1", 0), type("Here", (Handler,), {"side": side}))
    server.daemon_threads = True
    if tls:
        authority = Authority(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.sign())
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        side.ca = authority.file.read_text()
    side.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield side
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
