"""Asking addresses: only those that were named, with nothing of ours, and back in time whatever the other side does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.drivers.web.driver import WebClient
from tests.drivers.web.server import Side, serving


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    with serving(tmp_path) as found:
        yield found


def client(side: Side, *more: str, longest: float = 10.0) -> WebClient:
    return WebClient([f"https://localhost:{side.port}", *more], longest)


def url(side: Side, path: str = "/health") -> str:
    return f"https://localhost:{side.port}{path}"


def leads_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[Any]:
    """Every name leads to these addresses; what is connected to is noted and not reached."""
    tried: list[Any] = []

    def found(host: str, port: int, **_: Any) -> list[Any]:
        family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    def connect(address: Any, **_: Any) -> Any:
        tried.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(socket, "create_connection", connect)
    return tried


def test_it_answers_and_says_until_when(side: Side) -> None:
    answer = client(side).ask(url(side), side.ca)
    assert (answer.asked, answer.status, answer.problem) == (True, 200, "")
    assert time.time() < answer.expires < time.time() + 2 * 86_400


def test_nothing_of_ours_goes_with_it(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    client(side).ask(url(side), side.ca)
    ((path, headers),) = side.seen
    assert path == "/health"
    assert set(headers) == {"host", "accept", "accept-encoding", "user-agent", "connection"}
    assert headers["host"] == f"localhost:{side.port}"


def test_no_redirection_is_followed(side: Side) -> None:
    side.status, side.headers = 302, {"Location": url(side, "/secret")}
    assert client(side).ask(url(side), side.ca).status == 302
    assert [path for path, _ in side.seen] == ["/health"]


@pytest.mark.parametrize(
    "other",
    [
        "http://localhost:{port}/", "https://localhost/", "https://127.0.0.1:{port}/", "https://localhost:{port}@evil/",
        "file:///etc/passwd", "gopher://localhost:{port}/", "https://localhost:{port}.evil.example.org/", "", "https://",
    ],
)  # fmt: skip
def test_what_was_not_named_is_not_asked(side: Side, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    tried = leads_to(monkeypatch, "192.0.2.1")
    answer = client(side).ask(other.format(port=side.port), side.ca)
    assert not answer.asked
    assert answer.problem
    assert (tried, side.seen) == ([], [])


@pytest.mark.parametrize(
    "inward",
    [
        "127.0.0.1",
        "127.8.8.8",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.1.1",
    ],
)
def test_a_name_that_leads_inward_is_not_asked(monkeypatch: pytest.MonkeyPatch, inward: str) -> None:
    """A name server of somebody else must not make us ask what only this machine may."""
    tried = leads_to(monkeypatch, inward)
    answer = WebClient(["https://accounting.example.org"]).ask("https://accounting.example.org/health")
    assert (answer.asked, tried) == (False, [])
    assert "joining.origins" in answer.problem


def test_an_ordinary_address_is_asked_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = leads_to(monkeypatch, "::ffff:192.0.2.1")
    assert WebClient(["https://accounting.example.org"]).ask("https://accounting.example.org/").asked
    assert tried == [("::ffff:192.0.2.1", 443)]


def test_an_address_of_this_machine_is_asked_when_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = leads_to(monkeypatch, "127.0.0.1")
    assert WebClient(["https://127.0.0.1:9"]).ask("https://127.0.0.1:9/").asked
    assert tried == [("127.0.0.1", 9)]


def test_what_is_connected_to_is_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere at its second look-up gains nothing: there is no second one."""
    tried = leads_to(monkeypatch, "192.0.2.1", "127.0.0.1")
    answer = WebClient(["https://accounting.example.org"]).ask("https://accounting.example.org/")
    assert tried == [("192.0.2.1", 443)]
    assert (answer.asked, answer.problem) == (True, "connection refused")


def test_a_certificate_that_nobody_vouches_for(side: Side) -> None:
    answer = client(side).ask(url(side))
    assert (answer.asked, answer.status) == (True, 0)
    assert "not trusted" in answer.problem
    assert side.seen == [], "nothing was sent"


def test_a_rule_with_no_certificate_in_it(side: Side) -> None:
    assert "no certificate in PEM" in client(side).ask(url(side), "-----BEGIN NONSENSE-----").problem


def test_in_clear_where_the_operator_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, tls=False) as side:
        origin = f"http://localhost:{side.port}"
        answer = WebClient([origin]).ask(f"{origin}/x")
        assert (answer.status, answer.expires) == (200, 0.0)
        assert "TLS" in client(side).ask(url(side)).problem


FAULTS = {
    "says nothing": lambda sock: time.sleep(3),
    "hangs up": lambda sock: sock.close(),
    "no HTTP": lambda sock: sock.sendall(b"220 token=hunter2 ESMTP\r\n"),
    "a byte at a time": lambda sock: [(sock.sendall(b"H"), time.sleep(0.2)) for _ in range(1000)],
    "headers without end": lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 200_000 + b"\r\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_it_does_there_is_an_answer(side: Side, fault: str) -> None:
    side.fault = FAULTS[fault]
    answer = client(side, longest=1.0).ask(url(side), side.ca)
    assert (answer.asked, answer.status) == (True, 0)
    assert answer.problem
    assert "hunter2" not in answer.problem, "nothing the other side said is repeated"


def test_a_server_that_takes_connections_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        answer = WebClient([f"https://127.0.0.1:{port}"], 0.5).ask(f"https://127.0.0.1:{port}/")
        assert (answer.asked, answer.status) == (True, 0)
        assert "no answer" in answer.problem or "TLS" in answer.problem
