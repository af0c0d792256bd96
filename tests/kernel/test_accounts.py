"""Passwords and tokens: what signs in, what does not, and what guessing costs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel import accounts as module
from groundcontrol.kernel.access import KINDS, Access
from groundcontrol.kernel.accounts import DAY, PER_ACCOUNT, PER_PEER, Accounts, ensure_admin
from groundcontrol.kernel.errors import Invalid, NotFound, TooMany, Unauthenticated
from groundcontrol.kernel.resource import Key, Kinds
from groundcontrol.kernel.store import Store

GOOD = "correct horse"
HERE = "192.0.2.1"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/ground.db", Kinds(KINDS), clock=clock).open()
    ensure_admin(store, "ada", GOOD, work=4)
    yield store
    store.close()


@pytest.fixture
def accounts(store: Store) -> Accounts:
    return Accounts(store, work=4)


def disable(store: Store, name: str) -> None:
    def act(tx: Any) -> None:
        account = tx.need(Key("Account", "", name))
        account["spec"]["disabled"] = True
        tx.replace(account)

    store.write(act)


def test_a_password_becomes_a_token_and_the_token_a_subject(accounts: Accounts, store: Store) -> None:
    issued = accounts.login("ada", GOOD, HERE, scope=["read"])
    assert issued.token.startswith("gct_")
    assert len(issued.token) >= 4 + 43
    subject = accounts.authenticate(issued.token)
    assert (subject.name, subject.scope, subject.token) == ("user:ada", {"read"}, issued.id)
    (listed,) = accounts.tokens("user:ada")
    assert listed.as_dict()["lastFour"] == issued.token[-4:]
    assert issued.token not in str(listed)
    again = Accounts(store, work=4)
    assert again.authenticate(issued.token).name == "user:ada", "a restart keeps tokens"


def test_nothing_in_the_store_signs_in(accounts: Accounts, store: Store, tmp_path: Path) -> None:
    issued = accounts.login("ada", GOOD, HERE)
    with sqlite3.connect(tmp_path / "ground.db") as connection:
        kept = "\n".join(connection.iterdump())
    connection.close()
    assert issued.token not in kept
    assert GOOD not in kept
    (row,) = accounts._tokens.values()
    with pytest.raises(Unauthenticated):
        accounts.authenticate(row.hash)


@pytest.mark.parametrize("token", ["", "gct_", "gct_x", "x" * 10_000, "gct_\ud800", "gct_é"])
def test_what_is_no_token_is_refused(accounts: Accounts, token: str) -> None:
    with pytest.raises(Unauthenticated):
        accounts.authenticate(token)


def test_a_token_ends(accounts: Accounts, clock: Clock) -> None:
    issued = accounts.login("ada", GOOD, HERE, expires=100)
    clock.now += 99
    accounts.authenticate(issued.token)
    clock.now += 1
    with pytest.raises(Unauthenticated, match="expired"):
        accounts.authenticate(issued.token)
    assert accounts.tokens("user:ada") == []


def test_no_token_lasts_longer_than_the_most(accounts: Accounts, clock: Clock) -> None:
    assert accounts.issue("user:ada", expires=1e9).expires == clock.now + module.MOST


def test_a_revoked_token_is_refused_at_once(accounts: Accounts) -> None:
    kept, gone = accounts.issue("user:ada"), accounts.issue("user:ada")
    accounts.revoke(gone.id)
    accounts.authenticate(kept.token)
    with pytest.raises(Unauthenticated):
        accounts.authenticate(gone.token)
    with pytest.raises(NotFound):
        accounts.revoke(gone.id)


def test_a_new_password_revokes_what_the_old_one_gave(accounts: Accounts) -> None:
    issued = accounts.login("ada", GOOD, HERE)
    accounts.set_password("ada", "another horse")
    with pytest.raises(Unauthenticated):
        accounts.authenticate(issued.token)
    with pytest.raises(Unauthenticated):
        accounts.login("ada", GOOD, HERE)
    accounts.login("ada", "another horse", HERE)


def test_a_token_issued_while_the_password_changes_does_not_survive(accounts: Accounts, store: Store) -> None:
    token, issued = store.write(lambda tx: accounts.issue_in(tx, "user:ada", ["read"], 100, ""))
    accounts.set_password("ada", "another horse")
    accounts.keep(token)
    with pytest.raises(Unauthenticated):
        accounts.authenticate(issued.token)


def test_a_disabled_account_is_out_at_once(accounts: Accounts, store: Store) -> None:
    issued = accounts.login("ada", GOOD, HERE)
    subject = accounts.authenticate(issued.token)
    disable(store, "ada")
    for attempt in (
        lambda: accounts.authenticate(issued.token),
        lambda: accounts.again(subject),
        lambda: accounts.login("ada", GOOD, HERE),
    ):
        with pytest.raises(Unauthenticated):
            attempt()


def test_guessing_gets_slower_for_known_and_unknown_names_alike(accounts: Accounts, clock: Clock) -> None:
    waits: dict[str, list[float]] = {"ada": [], "nobody": []}
    for name, found in waits.items():
        for number in range(PER_ACCOUNT.free + 6):
            peer = f"198.51.100.{number}"
            with pytest.raises(Unauthenticated) as wrong:
                accounts.login(name, "wrong horse", peer)
            assert "wrong" in wrong.value.message
            try:
                accounts.login(name, GOOD + "x", "203.0.113.9" + str(number))
            except TooMany as error:
                found.append(error.retry_after or -1.0)
                clock.now += found[-1] + 1
            except Unauthenticated:
                found.append(0.0)
    assert waits["ada"] == waits["nobody"]
    assert waits["ada"][-1] > waits["ada"][-3] > 1


def test_the_right_password_waits_too_and_then_forgets(accounts: Accounts, clock: Clock) -> None:
    for _ in range(PER_ACCOUNT.free + 1):
        with pytest.raises(Unauthenticated):
            accounts.login("ada", "wrong horse", HERE)
    with pytest.raises(TooMany) as waiting:
        accounts.login("ada", GOOD, HERE)
    clock.now += (waiting.value.retry_after or 0) + 0.1
    accounts.login("ada", GOOD, HERE)
    for _ in range(PER_ACCOUNT.free):
        with pytest.raises(Unauthenticated):
            accounts.login("ada", "wrong horse", HERE)


def test_an_address_that_tries_many_names_is_slowed_down(accounts: Accounts) -> None:
    for number in range(PER_PEER.free + 1):
        with pytest.raises(Unauthenticated):
            accounts.login(f"name{number}", "wrong horse", "2001:db8:1:2::" + format(number, "x"))
    with pytest.raises(TooMany):
        accounts.login("ada", GOOD, "2001:db8:1:2:3:4:5:6")
    accounts.login("ada", GOOD, HERE)


def test_attempts_at_once_are_counted_before_they_are_answered(accounts: Accounts) -> None:
    def attempt(number: int) -> str:
        try:
            accounts.login("ada", "wrong horse", f"198.51.100.{number}")
        except (TooMany, Unauthenticated) as error:
            return error.reason
        return "in"

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(attempt, range(40)))
    assert answers.count("Unauthenticated") <= PER_ACCOUNT.free + 2
    assert "in" not in answers


def test_delays_survive_a_restart_and_a_quiet_day_ends_them(accounts: Accounts, store: Store, clock: Clock) -> None:
    for _ in range(PER_ACCOUNT.free + 1):
        with pytest.raises(Unauthenticated):
            accounts.login("ada", "wrong horse", HERE)
    with pytest.raises(TooMany):
        Accounts(store, work=4).login("ada", GOOD, "198.51.100.7")
    clock.now += 2 * DAY
    for _ in range(PER_ACCOUNT.free):
        with pytest.raises(Unauthenticated):
            accounts.login("ada", "wrong horse", HERE)
    accounts.login("ada", GOOD, HERE)


def test_made_up_names_do_not_fill_the_store(accounts: Accounts, store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "ROWS", 20)
    for number in range(60):
        with pytest.raises((Unauthenticated, TooMany)):
            accounts.login(f"name{number}", "wrong horse", f"198.51.{number}.1")
    with store.reading() as conn:
        rows = conn.exec_driver_sql("SELECT count(*) FROM credentials").scalar()
    assert rows <= 23
    accounts.login("ada", GOOD, HERE)


def test_an_unknown_user_takes_the_time_of_a_known_one(store: Store, monkeypatch: Any) -> None:
    calls: list[int] = []
    real = module._scrypt
    accounts = Accounts(store, work=4)
    monkeypatch.setattr(module, "_scrypt", lambda p, s, w: calls.append(w) or real(p, s, w))
    for name in ("ada", "nobody"):
        with pytest.raises(Unauthenticated):
            accounts.login(name, "wrong horse", HERE)
    assert calls == [4, 4]


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
def test_passwords_have_a_length(accounts: Accounts, password: str) -> None:
    with pytest.raises(Invalid):
        accounts.set_password("ada", password)


def test_live_tokens_are_bounded(accounts: Accounts, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "TOKENS_EACH", 3)
    for _ in range(3):
        accounts.issue("user:ada")
    with pytest.raises(Invalid, match="revoke"):
        accounts.issue("user:ada")


def test_ensure_admin_makes_an_administrator_and_may_be_repeated(store: Store) -> None:
    ensure_admin(store, "ada", "another horse", work=4)
    accounts, access = Accounts(store, work=4), Access(store)
    subject = accounts.authenticate(accounts.login("ada", "another horse", HERE).token)
    assert access.allowed(subject, "create", "RoleBinding", name="x")
    access.close()
