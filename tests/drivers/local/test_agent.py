"""The agent's door, and what its client makes of every way a call can fail."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.drivers.local.driver import Deadlines, RemoteHost, connect
from groundcontrol.drivers.local.host import LocalHost
from groundcontrol.kernel.errors import Invalid, NotFound, OutcomeUnknown, Unauthenticated, Unavailable
from groundcontrol.ports.processes import UnitSpec

SLEEP = UnitSpec(command=("/bin/sleep", "1000"), stop_grace=1.0)


class Liar(threading.Thread):
    """Takes connections and answers what it was told, or nothing."""

    def __init__(self, answer: bytes | None, hold: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.answer, self.hold = answer, hold
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                time.sleep(self.hold)
                if self.answer:
                    connection.sendall(self.answer)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join(5)


def answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("reply", "hold", "changing", "reading"),
    [
        (None, 0.0, OutcomeUnknown, Unavailable),
        (None, 2.0, OutcomeUnknown, Unavailable),
        (answer("200 OK", b"<html>"), 0.0, OutcomeUnknown, Unavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", 0.0, OutcomeUnknown, Unavailable),
        (answer("502 Bad Gateway", b"proxy"), 0.0, OutcomeUnknown, Unavailable),
        (answer("404 Not Found", b"no such page"), 0.0, Unavailable, Unavailable),
        (answer("404 Not Found", b'{"reason":"NotFound","message":"m"}'), 0.0, NotFound, NotFound),
        (answer("500 X", b'{"reason":"GroundError","message":"m"}'), 0.0, OutcomeUnknown, Exception),
        (answer("302 Found", b""), 0.0, OutcomeUnknown, Unavailable),
    ],
)
def test_what_a_failure_means(
    reply: bytes | None, hold: float, changing: type[Exception], reading: type[Exception]
) -> None:
    liar = Liar(reply, hold)
    host = RemoteHost(liar.endpoint, "token", deadlines=Deadlines(connect=1, read=0.5, change=0.5, end=0.5))
    try:
        for call in (
            lambda: host.create("a", SLEEP, {}, epoch=1),
            lambda: host.delete("a", epoch=1),
            lambda: host.stop("a", if_revision=1, epoch=1),
        ):
            with pytest.raises(changing) as caught:
                call()
            assert type(caught.value) is changing
        with pytest.raises(reading) as caught:
            host.get("a")
        assert reading is Exception or type(caught.value) is reading
    finally:
        host.close()
        liar.close()


def test_nothing_sent_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    host = RemoteHost(f"http://127.0.0.1:{port}", "token")
    with pytest.raises(Unavailable) as caught:
        host.create("a", SLEEP, {}, epoch=1)
    assert type(caught.value) is Unavailable
    host.close()


def test_the_door(root: Any) -> None:
    _, client = root.agent()
    address = client._endpoint.removeprefix("http://")
    stranger = RemoteHost(client._endpoint, "wrong-token-wrong-token")
    with pytest.raises(Unauthenticated):
        stranger.look()
    with pytest.raises(Unauthenticated):
        stranger.create("a", SLEEP, {}, epoch=1)
    stranger.close()
    token = Path(f"{root.path}.token").read_text()
    connection = http.client.HTTPConnection(address, timeout=5)

    def ask(method: str, path: str, body: bytes = b"", token: str = token) -> tuple[int, Any]:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        got = connection.getresponse()
        text = got.read()
        return got.status, json.loads(text) if text[:1] in b"{[" else text

    assert ask("GET", "/healthz", token="")[0] == 200
    assert ask("PUT", "/v1/units/a", b"{}")[0] == 422
    assert ask("PUT", "/v1/units/a", b"not json")[1]["reason"] == "Invalid"
    assert ask("PUT", "/v1/units/a", b'{"spec":{"command":"x"},"tags":{},"epoch":1}')[0] == 422
    assert ask("DELETE", "/v1/units/a")[1]["problems"][0]["path"] == "epoch"
    assert ask("GET", "/v1/wait?since=x")[0] == 422
    # A waiting caller holds no thread: three hundred of them, and a look is as quick as ever.
    sequence = client.look().sequence
    waiting = [socket.create_connection(address.split(":")) for _ in range(300)]
    for one in waiting:
        path = f"/v1/wait?since={sequence}&timeout=20"
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    time.sleep(0.5)
    began = time.monotonic()
    client.look()
    assert time.monotonic() - began < 0.5
    client.create("a", SLEEP, {}, epoch=1)
    for one in waiting:
        one.settimeout(5)
        assert one.recv(20).startswith(b"HTTP/1.1 200")
        one.close()
    connection.close()
    huge = http.client.HTTPConnection(address, timeout=10)
    try:
        huge.request("PUT", "/v1/units/a", b"x" * (17 << 20), {"Authorization": f"Bearer {token}"})
        status = huge.getresponse().status
    except ConnectionError:
        status = 413  # It answered and closed before all was sent.
    assert status == 413
    huge.close()


def run_agent(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundcontrol.drivers.local.agent", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_what_it_refuses_at_the_start(root: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    given = ("--root", root.path, "--token-file", str(token))
    refused = run_agent(*given, "--listen", "0.0.0.0:0")
    assert refused.returncode == 2
    assert "--tls-cert" in refused.stderr
    assert run_agent("--root", root.path, "--token-file", str(tmp_path / "none")).returncode == 2
    assert run_agent(*given, "--addresses", "10.0.0.0/8").returncode == 2
    token.write_text("short")
    assert "at least 16" in run_agent(*given).stderr
    root.agent()
    token.write_text("0123456789abcdef")
    second = run_agent(*given, "--listen", "127.0.0.1:0")
    assert second.returncode == 2
    assert "already served by process" in second.stderr


def test_it_starts_quickly(root: Any) -> None:
    began = time.monotonic()
    agent, _ = root.agent()
    assert time.monotonic() - began < 3
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    assert (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < 1.0


def test_connect(root: Any) -> None:
    host = connect("here", f"local://{root.path}", "", options={"cores": 2.0, "uid_range": [300000, 300010]})
    assert isinstance(host, LocalHost)
    assert host.look().cores == 2
    host.close()
    remote = connect("there", "http://127.0.0.1:1", "t", options={"read": 1.0})
    assert isinstance(remote, RemoteHost)
    remote.close()
    for endpoint, options in (("local:", {}), ("ftp://x", {}), (f"local://{root.path}", {"coers": 1})):
        with pytest.raises(Invalid):
            connect("x", endpoint, "", options=options)


def test_importing_the_driver_is_cheap() -> None:
    code = "import sys, groundcontrol.drivers.local.driver; print({'httpx', 'starlette', 'uvicorn'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
