"""`ground admin`: what it changes in the data directory of a stopped server, and what it refuses while one runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from groundcontrol.assembly import kinds
from groundcontrol.kernel import tables
from groundcontrol.kernel.accounts import Accounts, ensure_admin
from groundcontrol.kernel.claims import claim
from groundcontrol.kernel.errors import Conflict, NotFound, Unauthenticated, Unavailable
from groundcontrol.kernel.incarnation import observing
from groundcontrol.kernel.ledger import Ledger
from groundcontrol.kernel.plan import Target
from groundcontrol.kernel.resource import API_VERSION, Key
from groundcontrol.kernel.runtime import DATASETS, WITNESS
from groundcontrol.kernel.settings import load
from groundcontrol.kernel.store import Store
from groundcontrol.programs import admin


def opened(place: Path) -> Store:
    data = place / "data"
    return Store(f"sqlite:///{data / 'ground.db'}", kinds(), lock=data / "lock", witness=data / WITNESS).open()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with an administrator `root` and a namespace, its server stopped."""
    (tmp_path / "data").mkdir()
    (tmp_path / "ground.yaml").write_text("data: data\n")
    store = opened(tmp_path)
    ensure_admin(store, "root", "first password", work=4)
    doc = {"apiVersion": API_VERSION, "kind": "Namespace", "metadata": {"name": "alpha"}, "spec": {"group": "a"}}
    store.write(lambda tx: tx.create(kinds().parse(doc)))
    store.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_password_is_set_and_audited(place: Path, given: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given("another password\n")
    assert admin.main(["password", "root"]) == 0
    assert "another" not in capsys.readouterr().out
    store = opened(place)
    accounts = Accounts(store, work=4)
    assert accounts.login("root", "another password", "test").token
    with pytest.raises(Unauthenticated):
        accounts.login("root", "first password", "test")
    with store.reading() as conn:
        verbs = [tuple(r) for r in conn.execute(sa.select(tables.facts.c.subject, tables.facts.c.name))]
    store.close()
    assert (admin.SUBJECT, "root") in verbs


def test_an_unknown_account_gets_a_suggestion(place: Path, given: Any) -> None:
    given("another password\n")
    with pytest.raises(NotFound, match='did you mean "root"'):
        admin.main(["password", "roor"])


def test_a_lost_administrator_is_made_anew(place: Path, given: Any) -> None:
    given("another password\n")
    assert admin.main(["password", "ada", "--make-admin"]) == 0
    store = opened(place)
    assert Accounts(store, work=4).login("ada", "another password", "test").token
    assert any("user:ada" in e.doc["spec"]["subjects"] for e in store.entries("RoleBinding"))
    store.close()


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["password", "root"], "PUT http://127.0.0.1:8440/api/v1/accounts/root/password"),
        (["ledger", "export", "audit", "--directory", "out"], "POST /api/v1/ledger/query"),
    ],
)
def test_a_running_server_is_not_gone_behind(place: Path, given: Any, words: list[str], way: str) -> None:
    given("another password\n")
    (place / "data" / "ledger.duckdb").touch()
    store = opened(place)
    try:
        with pytest.raises(Unavailable, match=way):
            admin.main(words)
    finally:
        store.close()


def test_a_directory_put_back_whole_is_said_to_be_restored(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = opened(place)
    with store.reading() as conn:
        assert observing(conn) is None
    before = store.incarnation
    store.close()
    assert admin.main(["restored", "--reason", "rolled back to 02:00"]) == 0
    store = opened(place)
    with store.reading() as conn:
        found = observing(conn)
        told = [r.doc for r in conn.execute(sa.select(tables.facts.c.doc).where(tables.facts.c.kind == "Plan"))]
    plan = f"restore:{store.incarnation}"
    store.close()
    assert found is not None
    assert found.why == "rolled back to 02:00"
    assert store.incarnation != before
    assert plan in capsys.readouterr().out
    assert any(b"rolled back" in doc for doc in told)


def test_a_new_database_is_given_the_id_of_a_lost_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["installation"]) == 0
    own = capsys.readouterr().out.strip()
    assert admin.main(["installation", "0123456789ab"]) == 0
    plan = capsys.readouterr().out
    assert "will only observe" in plan
    store = opened(place)
    try:
        assert (store.installation, own != store.installation) == ("0123456789ab", True)
        with store.reading() as conn:
            found = observing(conn)
        assert found is not None
        assert "0123456789ab" in found.why
        store.write(lambda tx: claim(tx, Target("site/a", "server", "s"), Key("Server", "a", "s"), "uid"))
    finally:
        store.close()
    with pytest.raises(Conflict, match="owns 1 things"):
        admin.main(["installation", own])
    store = opened(place)
    assert store.incarnation in plan, "a refusal changes nothing"
    store.close()
    assert admin.main(["installation", own, "--even-so"]) == 0


def test_the_ledger_is_exported_by_month(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(load("ground.yaml").ledger_path, DATASETS)
    assert ledger.start(wait=60)
    who = {"kind": "Account", "namespace": "", "name": "root", "subject": "user:root"}
    fact = {"source": "s", "seq": 1, "time": 1_700_000_000.0, **who, "verb": "login", "outcome": "done"}
    ledger.append("audit", [fact])
    ledger.stop()
    assert admin.main(["ledger", "export", "audit", "--directory", "out"]) == 0
    assert capsys.readouterr().out == "out/audit-2023-11.parquet\n"
    assert (place / "out" / "audit-2023-11.parquet").read_bytes()[:4] == b"PAR1"


def test_no_installation_is_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ground.yaml").write_text("data: data\n")
    with pytest.raises(NotFound, match="no installation"):
        admin.main(["password", "root"])
    assert not (tmp_path / "data").exists()


def test_the_description_of_the_api_needs_no_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert admin.main(["openapi", "--write", "o.json"]) == 0
    assert admin.main(["openapi"]) == 0
    text = (tmp_path / "o.json").read_text()
    assert capsys.readouterr().out == text
    assert json.loads(text)["openapi"] == "3.1.0"
