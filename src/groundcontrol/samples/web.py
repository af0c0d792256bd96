"""An HTTP server to deploy, probe, update in place and put behind others; also the body of `slow` and `flaky`.

    GET /healthz   200 `ok`
    GET /          the text of $GROUND_DIR/message.txt, read anew each time; else $MESSAGE; else `hello`
    GET /info      JSON: pid, started, version ($VERSION), address, port, requests
    GET /backend   asks the first service of $GROUND_DIR/endpoints.json ({"service": ["ip:port", …]}), its endpoints
                   in turn; `/backend/NAME` a certain one. 502 when none answers

Written on plain sockets: `http.server` alone takes longer to import than this takes to start.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

Answer = tuple[int, str, str]
"""Status, content type, text."""

STARTED = time.time()
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error", 502: "Bad Gateway"}
_count = 0


def message() -> str:
    """What `/` answers."""
    try:
        with open(os.path.join(os.environ.get("GROUND_DIR", "."), "message.txt"), encoding="utf-8") as source:
            return source.read()
    except OSError:
        return os.environ.get("MESSAGE", "hello")


def info(address: str, port: int) -> dict[str, object]:
    """What `/info` answers."""
    return {
        "pid": os.getpid(),
        "started": STARTED,
        "version": os.environ.get("VERSION", ""),
        "address": address,
        "port": port,
        "requests": _count,
    }


def endpoints(service: str) -> list[str]:
    """Endpoints of the service, or of the first one in the file; empty when the file says nothing."""
    try:
        with open(os.path.join(os.environ.get("GROUND_DIR", "."), "endpoints.json"), encoding="utf-8") as source:
            known = json.load(source)
        listed = known.get(service, []) if service else next(iter(known.values()), [])
        return [str(endpoint) for endpoint in listed]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def fetch(endpoint: str, timeout: float = 2.0) -> str:
    """Body of `GET /` at ip:port. Raises OSError when it does not answer 200."""
    host, _, port = endpoint.rpartition(":")
    try:
        number = int(port)
    except ValueError:
        raise OSError("not ip:port") from None
    with socket.create_connection((host, number), timeout) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(None, 2)[1:2] != [b"200"]:
        raise OSError(f"answered {head[:40]!r}")
    return body.decode(errors="replace")


def backend(service: str) -> Answer:
    """Ask the endpoints in turn, beginning with another one each time."""
    listed = endpoints(service)
    tried = []
    for index in range(len(listed)):
        endpoint = listed[(_count + index) % len(listed)]
        try:
            return 200, "text/plain", f"{endpoint}: {fetch(endpoint)}"
        except OSError as problem:
            tried.append(f"{endpoint}: {problem}")
    return 502, "text/plain", "no backend answers: " + ("; ".join(tried) or "endpoints.json names none") + "\n"


def answer(path: str, address: str, port: int, healthy: Callable[[], bool]) -> Answer:
    """The page for a path."""
    path = path.partition("?")[0]
    if path == "/":
        return 200, "text/plain", message()
    if path == "/healthz":
        return (200, "text/plain", "ok\n") if healthy() else (500, "text/plain", "unhealthy\n")
    if path == "/info":
        return 200, "application/json", json.dumps(info(address, port)) + "\n"
    if path == "/backend" or path.startswith("/backend/"):
        return backend(path[len("/backend/") :])
    return 404, "text/plain", "not found\n"


def _serve_one(connection: socket.socket, address: str, port: int, healthy: Callable[[], bool]) -> None:
    """One connection: requests one after the other until either side has enough."""
    global _count
    with connection:
        connection.settimeout(30)
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                piece = connection.recv(65536)
                if not piece or len(buffer) > 65536:
                    return
                buffer += piece
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            if len(words) != 3:
                return
            _count += 1
            good = words[0] in ("GET", "HEAD")
            status, kind, text = answer(words[1], address, port, healthy) if good else (405, "text/plain", "only GET\n")
            body = text.encode()
            # A request may have a body we do not read; after anything but GET and HEAD the connection ends.
            last = not good or b"connection: close" in head.lower() or words[2] == "HTTP/1.0"
            lines = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: {'close' if last else 'keep-alive'}\r\n\r\n"
            )
            connection.sendall(lines.encode() + (b"" if words[0] == "HEAD" else body))
            if last:
                return


def _guarded(connection: socket.socket, address: str, port: int, healthy: Callable[[], bool]) -> None:
    try:
        _serve_one(connection, address, port, healthy)
    except OSError:
        return  # The other side went away; there is nobody to tell.


def serve(healthy: Callable[[], bool] = lambda: True) -> None:
    """Listen on $GROUND_ADDRESS:$GROUND_PORT_HTTP and answer until SIGTERM."""
    address, port = os.environ.get("GROUND_ADDRESS", "127.0.0.1"), int(os.environ.get("GROUND_PORT_HTTP", "8080"))
    listener = socket.create_server((address, port), backlog=128)
    print(f"web {os.environ.get('VERSION', '')} listens on {address}:{port}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_guarded, args=(connection, address, port, healthy), daemon=True).start()


def end_on_sigterm() -> None:
    """SIGTERM ends the process at once with code 0, whatever its threads do."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


if __name__ == "__main__":
    end_on_sigterm()
    serve()
