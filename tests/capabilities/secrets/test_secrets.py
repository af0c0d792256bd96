"""Secrets: set, used by a service of the namespace, refused to others, gone with their Secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from groundcontrol.capabilities.secrets.logic import checked_key, with_key, without_key
from groundcontrol.capabilities.secrets.reconcile import set_key, unset_key
from groundcontrol.kernel.accounts import ensure_admin
from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.rights import Subject
from tests.federation import Federation, federation

ROOT = Subject.user("root")
DB = Key("Secret", "alpha", "db")


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as found:
        found.sites("cnaf")
        ensure_admin(found.runtime.store, "root", "long enough", work=4)
        found.apply("Secret", "db", {}, "alpha")
        yield found


def test_a_service_gets_the_value_and_nobody_else_sees_it(fed: Federation) -> None:
    set_key(fed.runtime, ROOT, DB, {"key": "password", "value": "tops3cret"})
    fed.service("web", secretEnv={"PGPASSWORD": "secret:db/password"})
    fed.until_ready("Service", "web", "alpha")
    host = fed.hosts["cnaf"]
    (unit,) = host.look().units
    assert host._wanted[unit.id].secret_env == {"PGPASSWORD": "tops3cret"}
    seen = [e.raw for kind in fed.runtime.kinds for e in fed.runtime.store.entries(kind.__name__)]
    facts = repr(fed.runtime._pull(0, 10_000))
    assert not any(b"tops3cret" in raw for raw in seen)
    assert "tops3cret" not in facts
    assert b"tops3cret" not in (fed.runtime.data / "ground.db").read_bytes()
    keys = fed.get("Secret", "db", "alpha")["status"]["keys"]
    assert [(k["name"], k["setBy"]) for k in keys] == [("password", "user:root")]


def test_a_secret_that_is_not_there_keeps_the_service_waiting_and_says_so(fed: Federation) -> None:
    fed.service("web", secretEnv={"PGPASSWORD": "secret:db/password"})
    fed.until(lambda: fed.ready("Service", "web", "alpha") == ("False", "NotFound"))
    set_key(fed.runtime, ROOT, DB, {"key": "password", "value": "x"})
    fed.until_ready("Service", "web", "alpha")


def test_another_namespace_cannot_name_it(fed: Federation) -> None:
    set_key(fed.runtime, ROOT, DB, {"key": "password", "value": "x"})
    fed.apply("Namespace", "beta", {"group": "experiments/beta"})
    with pytest.raises(NotFound):
        fed.runtime.reveal("beta", "secret:db/password")


@pytest.mark.parametrize("reference", ["env:HOME", "file:/etc/passwd"])
def test_a_tenant_cannot_read_the_server(fed: Federation, reference: str) -> None:
    with pytest.raises(Forbidden):
        fed.runtime.reveal("alpha", reference)
    with pytest.raises(Invalid) as refused:
        fed.service("web", secretEnv={"X": reference})
    assert refused.value.problems[0].path == "spec.secretEnv.X"


def test_a_secret_made_anew_has_none_of_the_old_values(fed: Federation) -> None:
    set_key(fed.runtime, ROOT, DB, {"key": "password", "value": "old"})
    fed.delete("Secret", "db", "alpha")
    fed.apply("Secret", "db", {}, "alpha")
    with pytest.raises(NotFound):
        fed.runtime.reveal("alpha", "secret:db/password")
    fed.runtime.store.write(fed.runtime.vault.sweep)
    with fed.runtime.store.reading() as conn:
        assert conn.exec_driver_sql("select count(*) from sealed").scalar() == 0


def test_it_can_be_dropped(fed: Federation) -> None:
    set_key(fed.runtime, ROOT, DB, {"key": "password", "value": "x"})
    unset_key(fed.runtime, ROOT, DB, {"key": "password"})
    with pytest.raises(NotFound):
        fed.runtime.reveal("alpha", "secret:db/password")
    with pytest.raises(NotFound):
        unset_key(fed.runtime, ROOT, DB, {"key": "password"})


@pytest.mark.parametrize(
    "body",
    [{}, {"key": ""}, {"key": "a/b", "value": "x"}, {"key": "k"}, {"key": "k", "value": ""}, {"key": "k", "value": 3}],
)
def test_bad_input_is_refused(fed: Federation, body: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        set_key(fed.runtime, ROOT, DB, body)


def test_who_lost_the_right_is_refused_at_the_write(fed: Federation) -> None:
    with pytest.raises(GroundError) as refused:
        set_key(fed.runtime, Subject.user("mallory"), DB, {"key": "k", "value": "x"})
    assert refused.value.status in (401, 403, 404)


def test_keys_are_bounded_and_sorted() -> None:
    keys = with_key(with_key([], "b", "t", "u"), "a", "t", "u")
    assert [k["name"] for k in keys] == ["a", "b"]
    assert [k["name"] for k in without_key(keys, "a")] == ["b"]
    assert checked_key({"key": "a.b"}) == "a.b"
    for number in range(62):
        keys = with_key(keys, f"k{number}", "t", "u")
    with pytest.raises(Invalid):
        with_key(keys, "one more", "t", "u")
    assert len(with_key(keys, "a", "later", "u")) == 64
