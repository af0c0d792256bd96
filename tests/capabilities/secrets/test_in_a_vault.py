"""Secrets kept in a vault: what their status says, what services are given, and what a vault that is down stops."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundcontrol.capabilities.secrets.logic import MOST_KEYS, nameable
from groundcontrol.capabilities.secrets.reconcile import set_key, unset_key
from groundcontrol.kernel.accounts import ensure_admin
from groundcontrol.kernel.errors import Forbidden, Invalid, NotFound, SecretUnavailable
from groundcontrol.kernel.resource import Key, condition
from groundcontrol.kernel.rights import Subject
from groundcontrol.ports.twins.secretstore import MemorySecretStore
from tests.federation import Federation, federation

ROOT = Subject.user("root")
DB = Key("Secret", "alpha", "db")
DOWN = SecretUnavailable("the vault at https://vault does not answer: Connection refused")


@pytest.fixture
def vault() -> MemorySecretStore:
    return MemorySecretStore()


@pytest.fixture
def fed(tmp_path: Path, vault: MemorySecretStore) -> Iterator[Federation]:
    settings = {"vault": {"look_seconds": 1}}
    with federation(tmp_path, secret_store=vault, secrets=settings) as found:
        found.sites("cnaf")
        ensure_admin(found.runtime.store, "root", "long enough", work=4)
        found.apply("Secret", "db", {"store": "vault"}, "alpha")
        yield found


def status_of(fed: Federation, name: str = "db") -> dict[str, object]:
    doc = fed.get("Secret", name, "alpha")
    assert doc is not None
    return dict(doc["status"])


def test_what_is_there_is_shown_without_values(fed: Federation, vault: MemorySecretStore) -> None:
    fed.until(lambda: fed.ready("Secret", "db", "alpha") == ("False", "NotFound"))
    doc = fed.get("Secret", "db", "alpha")
    assert doc is not None
    assert "memory/alpha/db" in condition(doc, "Ready")["message"]
    vault.put("alpha", "db", {"password": "tops3cret", "user": "u"})
    fed.until(lambda: fed.ready("Secret", "db", "alpha") == ("True", "InVault"))
    found = status_of(fed)
    assert found["keys"] == [{"name": n, "setAt": "", "setBy": ""} for n in ("password", "user")]
    assert (found["version"], found["place"]) == (1, "memory/alpha/db")
    vault.put("alpha", "db", {"password": "newer"})
    fed.until(lambda: status_of(fed)["version"] == 2)
    assert [e["message"] for e in fed.events("NewVersion")] == [
        "version 2 is there, 1 was; services get it when they are next started"
    ]
    vault.delete("alpha", "db")
    fed.until(lambda: fed.ready("Secret", "db", "alpha") == ("False", "NotFound"))
    assert (status_of(fed)["keys"], status_of(fed)["version"]) == ([], 0)


def test_a_vault_that_is_down_is_unknown_and_what_was_seen_stays(fed: Federation, vault: MemorySecretStore) -> None:
    vault.put("alpha", "db", {"password": "p"})
    fed.until(lambda: fed.ready("Secret", "db", "alpha")[0] == "True")
    vault.down = SecretUnavailable("sealed", why="Sealed")
    fed.until(lambda: fed.ready("Secret", "db", "alpha") == ("Unknown", "Sealed"))
    assert status_of(fed)["version"] == 1
    vault.down = None
    fed.until(lambda: fed.ready("Secret", "db", "alpha")[0] == "True")


def test_a_service_gets_the_value_and_nobody_else_sees_it(
    fed: Federation, vault: MemorySecretStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vault.put("alpha", "db", {"password": "tops3cret"})
    fed.service("web", secretEnv={"PGPASSWORD": "secret:db/password"})
    fed.until_ready("Service", "web", "alpha")
    (unit,) = fed.hosts["cnaf"].look().units
    assert fed.hosts["cnaf"]._wanted[unit.id].secret_env == {"PGPASSWORD": "tops3cret"}
    seen = [e.raw for kind in fed.runtime.kinds for e in fed.runtime.store.entries(kind.__name__)]
    assert not any(b"tops3cret" in raw for raw in seen)
    assert "tops3cret" not in repr(fed.runtime._pull(0, 10_000))
    files = [p for p in fed.runtime.data.rglob("*") if p.is_file()]
    assert any(p.name == "ground.db" for p in files)
    assert [p for p in files if b"tops3cret" in p.read_bytes()] == []
    assert "tops3cret" not in caplog.text


def test_a_vault_that_is_down_stops_nobody_who_needs_nothing_from_it(fed: Federation, vault: MemorySecretStore) -> None:
    vault.down = DOWN
    count = 2 * fed.settings.loop.breaker_failures
    for number in range(count):
        fed.service(f"waits-{number}", secretEnv={"PASSWORD": "secret:db/password"})
    for number in range(count):
        fed.until(lambda n=number: [d for d in fed.instances(f"waits-{n}") if why(d) == "SecretUnavailable"])
    fed.service("plain")
    fed.until_ready("Service", "plain", "alpha")
    shards = fed.runtime.controller.state()["shards"]
    assert shards["site/cnaf"]["breaker"] == "closed"
    (stuck,) = fed.instances("waits-0")
    assert condition(stuck, "Ready")["status"] == "Unknown"
    assert "https://vault" in condition(stuck, "Ready")["message"]
    vault.put("alpha", "db", {"password": "p"})
    vault.down = None
    for number in range(count):
        fed.until_ready("Service", f"waits-{number}", "alpha")


def why(doc: dict[str, object]) -> str:
    return str(condition(doc, "Ready")["reason"])


def test_what_runs_goes_on(fed: Federation, vault: MemorySecretStore) -> None:
    vault.put("alpha", "db", {"password": "p"})
    fed.service("web", secretEnv={"PGPASSWORD": "secret:db/password"})
    fed.until_ready("Service", "web", "alpha")
    before = [(u.id, u.pid) for u in fed.units("cnaf")]
    vault.down = DOWN
    fed.until(lambda: fed.ready("Secret", "db", "alpha")[0] == "Unknown")
    assert fed.ready("Service", "web", "alpha")[0] == "True"
    assert [(u.id, u.pid) for u in fed.units("cnaf")] == before


def test_only_a_secret_that_is_declared_reaches_the_vault(fed: Federation, vault: MemorySecretStore) -> None:
    """A path below the own prefix that nobody declared is not read, and one of another namespace even less."""
    vault.put("alpha", "undeclared", {"password": "p"})
    vault.put("beta", "db", {"password": "of beta"})
    with pytest.raises(NotFound):
        fed.runtime.reveal("alpha", "secret:undeclared/password")
    with pytest.raises(NotFound):
        fed.runtime.reveal("beta", "secret:db/password")
    vault.put("alpha", "db", {"password": "of alpha"})
    fed.apply("Namespace", "beta", {"group": "experiments/beta"})
    fed.apply("Secret", "db", {"store": "vault"}, "beta")
    assert fed.runtime.reveal("beta", "secret:db/password") == "of beta"
    assert fed.runtime.reveal("alpha", "secret:db/password") == "of alpha"


@pytest.mark.parametrize("name", ["../beta/db", "..", "a%2fb", "a/../b", "{{x}}", "db?version=1"])
def test_a_reference_cannot_carry_a_path(fed: Federation, name: str) -> None:
    with pytest.raises((Invalid, Forbidden)):
        fed.runtime.reveal("alpha", f"secret:{name}/password")
    with pytest.raises(Invalid):
        fed.apply("Secret", name, {"store": "vault"}, "alpha")


def test_it_is_not_set_here_and_does_not_move(fed: Federation, vault: MemorySecretStore) -> None:
    fed.until(lambda: status_of(fed).get("place"))
    for act in (set_key, unset_key):
        with pytest.raises(Invalid, match="kept in the vault, at memory/alpha/db"):
            act(fed.runtime, ROOT, DB, {"key": "password", "value": "x"})
    with pytest.raises(Invalid, match=r"spec\.store"):
        fed.apply("Secret", "db", {"store": "sealed"}, "alpha")
    fed.apply("Secret", "here", {}, "alpha")
    set_key(fed.runtime, ROOT, Key("Secret", "alpha", "here"), {"key": "password", "value": "sealed one"})
    vault.put("alpha", "here", {"password": "from the vault"})
    assert fed.runtime.reveal("alpha", "secret:here/password") == "sealed one"
    with pytest.raises(Invalid, match=r"spec\.store"):
        fed.apply("Secret", "here", {"store": "vault"}, "alpha")


def test_without_a_vault_in_the_settings_it_says_so(tmp_path: Path) -> None:
    with federation(tmp_path) as fed:
        fed.sites("cnaf")
        fed.apply("Secret", "db", {"store": "vault"}, "alpha")
        fed.until(lambda: fed.ready("Secret", "db", "alpha") == ("False", "NoVault"))
        with pytest.raises(NotFound, match=r"secrets\.vault"):
            fed.runtime.reveal("alpha", "secret:db/password")


def test_the_name_of_a_key_is_one_that_can_be_written() -> None:
    assert nameable(("a.b", "c")) == (["a.b", "c"], "")
    good, words = nameable(("a", "not so good", "x/y", "e\n"))
    assert good == ["a"]
    assert "no resource can give" in words
    many, words = nameable(tuple(f"k{n:03}" for n in range(MOST_KEYS + 1)))
    assert len(many) == MOST_KEYS
    assert "only the first" in words
