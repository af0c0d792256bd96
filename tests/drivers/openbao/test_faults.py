"""A vault that is down, slow, sealed, a liar, or somebody else: told in words, in time, and with no secret in them."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from groundcontrol.drivers.openbao import driver
from groundcontrol.drivers.openbao.driver import OpenBao
from groundcontrol.drivers.openbao.http import AT_ONCE, LARGEST
from groundcontrol.kernel.errors import GroundError, Invalid, SecretUnavailable
from tests.drivers.openbao.certificates import Authority
from tests.drivers.openbao.twin import Handler, VaultTwin


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[VaultTwin]:
    found = VaultTwin(tmp_path)
    found.put("alpha", "db", {"password": "tops3cret"})
    yield found
    found.close()


@pytest.fixture
def store(twin: VaultTwin) -> Iterator[OpenBao]:
    found = OpenBao(twin.settings(timeoutSeconds=2))
    found.check()
    yield found
    twin.fault = None
    found.close()


def unavailable(ask: Callable[[], object]) -> SecretUnavailable:
    with pytest.raises(SecretUnavailable) as caught:
        ask()
    return caught.value


def says(status: int, body: Any, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.say(status, body, **headers)


def test_of_many_shapes_each_has_its_word(store: OpenBao, twin: VaultTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LONGEST_WAIT", 0.0)
    for why, fault in {
        "Sealed": says(503, {"errors": ["Vault is sealed"]}),
        "ServerError": says(500, {"errors": ["internal error: tops3cret"]}),
        "Standby": says(472, {}),
        "Busy": says(429, {"errors": ["request path quota exceeded"]}),
        "NotAVault": says(200, b"<html>welcome tops3cret</html>"),
    }.items():
        twin.fault = fault
        for ask in (lambda: store.look("alpha", "db"), lambda: store.read("alpha", "db", "password")):
            error = unavailable(ask)
            assert error.why == why
            assert "tops3cret" not in error.message
    for body in (b"", b"[]", b"null", b"\xff", b"[" * 200_000, {"data": []}, {"data": {"data": ["x"]}}):
        twin.fault = says(200, body)
        assert unavailable(lambda: store.read("alpha", "db", "password")).why == "NotAVault"
        assert unavailable(lambda: store.look("alpha", "db")).why == "NotAVault"
    twin.fault = says(200, b"x" * (LARGEST + 1))
    assert "more than" in unavailable(lambda: store.read("alpha", "db", "password")).message
    twin.fault = None
    assert store.read("alpha", "db", "password").reveal() == "tops3cret"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_token_is_not_taken_to_another_address(twin: VaultTwin, tmp_path: Path, status: int) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    other = VaultTwin(elsewhere)
    store = OpenBao(twin.settings())
    store.check()
    twin.fault = says(status, None, Location=f"{other.address}/v1/secret/data/ground/alpha/db")
    error = unavailable(lambda: store.read("alpha", "db", "password"))
    assert error.why == "Redirected"
    fresh = OpenBao(twin.settings())
    assert unavailable(fresh.check).why == "Redirected"
    assert other.seen == []
    twin.fault = None
    store.close()
    other.close()


def test_a_certificate_of_another_authority_is_not_believed(twin: VaultTwin, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    stranger = Authority(elsewhere, "stranger")
    error = unavailable(OpenBao(twin.settings(caCert=str(stranger.file))).check)
    assert error.why == "NotTrusted"
    assert "caCert" in error.message
    assert unavailable(OpenBao(twin.settings(caCert=None)).check).why == "NotTrusted"
    assert twin.seen == []


def test_a_certificate_for_another_name_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [x509.DNSName("vault.example.org")]
    monkeypatch.setattr(Authority, "sign", lambda self, sign=Authority.sign: sign(self, names))
    twin = VaultTwin(tmp_path)
    assert unavailable(OpenBao(twin.settings()).check).why == "NotTrusted"
    assert twin.seen == []
    twin.close()


def test_a_file_that_is_no_authority_is_refused_at_the_start(twin: VaultTwin, tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("hello")
    for path in ("ca", "none"):
        with pytest.raises(Invalid, match=r"secrets\.vault\.caCert"):
            OpenBao(twin.settings(caCert=str(tmp_path / path)))


def drip(handler: Handler) -> None:
    """A header that never ends, a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(600):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def drip_body(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
    for _ in range(600):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def never(handler: Handler) -> None:
    handler.rfile.read(1)


@pytest.mark.parametrize("fault", [drip, drip_body, never])
def test_a_vault_that_hangs_holds_nobody_longer_than_the_time_out(twin: VaultTwin, fault: Any) -> None:
    store = OpenBao(twin.settings(timeoutSeconds=0.5))
    store.check()
    twin.fault = fault
    began = time.monotonic()
    assert unavailable(lambda: store.read("alpha", "db", "password")).why == "Slow"
    # Thirty seconds is how long the server would go on; a machine that is busy is allowed ten.
    assert time.monotonic() - began < 10
    twin.fault = None
    deadline = time.monotonic() + 20
    while any(t.name == "vault" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is left behind"
        time.sleep(0.02)


def test_a_listener_that_never_speaks_holds_nobody(twin: VaultTwin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        store = OpenBao(twin.settings(address=address, timeoutSeconds=0.3))
        began = time.monotonic()
        assert unavailable(store.check).why == "Slow"
        assert time.monotonic() - began < 10


def test_nobody_there_and_no_such_name(twin: VaultTwin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    error = unavailable(OpenBao(twin.settings(address=f"https://127.0.0.1:{port}")).check)
    assert error.why == "Unreachable"
    assert "refused" in error.message
    error = unavailable(OpenBao(twin.settings(address="https://no-such-host.invalid:8200")).check)
    assert error.why in ("Unreachable", "Slow")


def test_what_is_not_http_is_told(twin: VaultTwin) -> None:
    def gibberish(handler: Handler) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        handler.close_connection = True

    store = OpenBao(twin.settings())
    twin.fault = gibberish
    assert unavailable(store.check).why == "NotAVault"


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """A time that passes only when told; threads and time-outs keep the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, real = 0.0, time.monotonic
        monkeypatch.setattr(driver.time, "monotonic", lambda: real() + self.ahead)

    def pass_(self, seconds: float) -> None:
        self.ahead += seconds


def test_a_vault_that_is_down_is_asked_less_and_less(
    twin: VaultTwin, store: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    twin.fault = says(500, {})
    asked: list[int] = []
    for second in range(300):
        before = len(twin.seen)
        assert unavailable(lambda: store.look("alpha", "db")).why == "ServerError"
        if len(twin.seen) > before:
            asked.append(second)
        clock.pass_(1)
    waits = [b - a for a, b in itertools.pairwise(asked)]
    assert 6 <= len(asked) <= 14
    assert max(waits) <= 1.2 * driver.LONGEST_WAIT + 1
    assert waits[0] <= 2 < waits[-1]
    twin.fault = None
    clock.pass_(80)
    assert store.look("alpha", "db").version == 1
    assert store.look("alpha", "db").version == 1, "and at once again"


def test_while_one_tries_the_others_are_told_at_once(twin: VaultTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    store = OpenBao(twin.settings(timeoutSeconds=10))
    twin.fault = says(500, {})
    unavailable(store.check)
    clock.pass_(5)
    arrived, go = threading.Event(), threading.Event()

    def slow(handler: Handler) -> None:
        arrived.set()
        go.wait(20)
        handler.say(500, {})

    twin.fault = slow
    first = threading.Thread(target=lambda: unavailable(store.check))
    first.start()
    assert arrived.wait(20)
    before = len(twin.seen)
    for _ in range(50):
        assert unavailable(lambda: store.look("alpha", "db")).why == "ServerError"
    assert len(twin.seen) == before
    go.set()
    first.join(20)


def test_a_quota_says_when_to_come_back(twin: VaultTwin, store: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    twin.fault = says(429, {}, Retry_After="40")
    unavailable(lambda: store.look("alpha", "db"))
    twin.fault = None
    clock.pass_(30)
    assert unavailable(lambda: store.look("alpha", "db")).why == "Busy"
    clock.pass_(15)
    assert store.look("alpha", "db").version == 1


def test_requests_at_once_are_bounded(twin: VaultTwin) -> None:
    store = OpenBao(twin.settings(timeoutSeconds=20))
    store.check()
    here, most, lock, go = 0, 0, threading.Lock(), threading.Event()

    def count(handler: Handler) -> None:
        nonlocal here, most
        with lock:
            here, most = here + 1, max(most, here + 1)
            if here >= AT_ONCE:
                go.set()
        go.wait(20)
        with lock:
            here -= 1
        handler.say(404, {"errors": []})

    def ask(number: int) -> None:
        with pytest.raises(GroundError):
            store.read("alpha", f"s{number}", "k")

    twin.fault = count
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3 * AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == AT_ONCE


# ── the token ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_renewed_in_time_and_not_before(
    twin: VaultTwin, store: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    def renewals() -> int:
        return sum(path.endswith("renew-self") for _, path, _ in twin.seen)

    clock.pass_(3600 * 0.6)
    store.look("alpha", "db")
    assert renewals() == 0
    clock.pass_(3600 * 0.1)
    store.look("alpha", "db")
    store.look("alpha", "db")
    assert (renewals(), twin.logins()) == (1, 1)


@pytest.mark.parametrize("renewable", [True, False])
def test_a_token_near_its_last_day_is_replaced(
    twin: VaultTwin, monkeypatch: pytest.MonkeyPatch, renewable: bool
) -> None:
    clock = Clock(monkeypatch)
    twin.renewable, twin.longest = renewable, 60.0
    store = OpenBao(twin.settings())
    store.check()
    clock.pass_(3600 * 0.95)
    store.look("alpha", "db")
    assert twin.logins() == 2


def test_many_who_find_their_token_dead_log_in_once(twin: VaultTwin) -> None:
    store = OpenBao(twin.settings())
    store.check()
    twin.end_tokens()
    threads = [threading.Thread(target=store.look, args=("alpha", "db")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert twin.logins() == 2


def test_a_login_that_leads_to_a_dead_token_is_not_repeated_for_ever(twin: VaultTwin, store: OpenBao) -> None:
    real = twin.tokens

    class Forgetful(dict[str, float]):
        def get(self, key: str, default: Any = None) -> Any:
            return default

    twin.tokens = Forgetful(real)
    before = len(twin.seen)
    assert unavailable(lambda: store.look("alpha", "db")).why == "PermissionDenied"
    assert len(twin.seen) - before <= 6


def test_a_token_that_could_break_a_header_is_refused_unshown(twin: VaultTwin) -> None:
    for token in ("hvs.abc\r\nX-Evil: 1", "hvs.abc def", "hvs.ä"):
        twin.token_file.write_text(token, encoding="utf-8")
        error = unavailable(OpenBao(twin.settings("token_file")).check)
        assert error.why == "LoginRefused"
        assert "hvs" not in error.message
    assert twin.seen == []


def test_what_we_logged_in_for_is_given_back_and_an_operators_token_is_not(twin: VaultTwin) -> None:
    for method, left in (("approle", 0), ("token_file", 1)):
        twin.end_tokens()
        twin.give_token()
        if method == "approle":
            twin.end_tokens()
        store = OpenBao(twin.settings(method))
        store.check()
        assert len(twin.tokens) == 1
        store.close()
        assert len(twin.tokens) == left


def test_a_secret_id_that_was_replaced_is_used_at_the_next_login(twin: VaultTwin, store: OpenBao) -> None:
    twin.secret_id = "f" * 32
    (twin.folder / "secret_id").write_text(twin.secret_id)
    twin.end_tokens()
    assert store.look("alpha", "db").version == 1
    (twin.folder / "secret_id").unlink()
    twin.end_tokens()
    error = unavailable(lambda: store.look("alpha", "db"))
    assert error.why == "LoginRefused"
    assert "secret_id" in error.message


# ── held in memory ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_ten_keys_are_read_once_and_held_for_seconds(twin: VaultTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    twin.put("alpha", "many", {f"k{n}": str(n) for n in range(10)})
    store = OpenBao(twin.settings())
    assert [store.read("alpha", "many", f"k{n}").reveal() for n in range(10)] == [str(n) for n in range(10)]
    assert sum("data/ground/alpha/many" in path for _, path, _ in twin.seen) == 1
    twin.put("alpha", "many", {"k0": "newer"})
    clock.pass_(driver.HELD + 0.1)
    assert store.read("alpha", "many", "k0").reveal() == "newer"
    clock.pass_(driver.HELD + 0.1)
    store.look("alpha", "db")
    assert store._recent("alpha", "many") is None


def test_what_a_failure_holds_is_not_kept(twin: VaultTwin, store: OpenBao) -> None:
    twin.grant("subkeys")
    unavailable(lambda: store.read("alpha", "db", "password"))
    twin.grant("data", "subkeys")
    assert store.read("alpha", "db", "password").reveal() == "tops3cret"


# ── nothing is said that is secret ──────────────────────────────────────────────────────────────────────────────────


def test_no_error_and_no_log_line_carries_a_secret(
    twin: VaultTwin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a server repeats of what we sent it: tokens, ids, values."""
    monkeypatch.setattr(driver, "LONGEST_WAIT", 0.0)
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    def echo(status: int) -> Callable[[Handler], None]:
        return lambda handler: handler.say(
            status, {"errors": [f"{handler.token} {handler.body} tops3cret"], "data": {"x": "tops3cret"}}
        )

    for method in ("approle", "jwt", "token_file"):
        token = twin.give_token()
        for status in (200, 400, 403, 404, 405, 500, 503):
            store = OpenBao(twin.settings(method))
            for healthy_login in (True, False):
                if healthy_login:
                    twin.fault = None
                    store.check()
                twin.fault = echo(status)
                for ask in (
                    lambda store=store: store.look("alpha", "db"),
                    lambda store=store: store.read("alpha", "db", "x"),
                ):
                    with pytest.raises(GroundError) as caught:
                        ask()
                    said += [str(caught.value), repr(caught.value), repr(caught.value.__context__)]
                store = OpenBao(twin.settings(method))
        twin.fault = None
        store = OpenBao(twin.settings(method))
        assert store.look("alpha", "db").keys == ("password",)
        assert store.read("alpha", "db", "password").reveal() == "tops3cret"
        words = {token, twin.secret_id, twin.role_id, twin.jwt, "tops3cret", *(t for _, _, t in twin.seen if t)}
        everything = "\n".join([*said, caplog.text, *map(repr, caplog.records)])
        assert [word for word in words if word in everything] == []
    twin.fault = None
