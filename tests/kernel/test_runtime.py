"""One installation as a whole: the ledger behind it may die, and housekeeping drops what is old."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from groundcontrol.kernel import runtime as runtime_module
from groundcontrol.kernel import tables
from groundcontrol.kernel.accounts import ensure_admin
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.ledger_sql import Query
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.rights import Subject
from tests.federation import Federation, federation


def until(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := holds():
                return found
        except GroundError:
            pass
        time.sleep(0.05)
    raise AssertionError("never")


def audited(fed: Federation) -> list[int]:
    """The numbers of the audit facts in the ledger, twice if they are there twice."""
    assert fed.runtime.ledger is not None
    columns, rows = fed.runtime.ledger.query(Query(dataset="audit", limit=10_000))
    return [row[columns.index("seq")] for row in rows]


def written(fed: Federation) -> list[int]:
    return [f["seq"] for f in fed.runtime._pull(0, 100_000) if f["dataset"] == "audit"]


def test_acts_go_on_while_the_ledger_is_dead_and_are_shipped_once(tmp_path: Path) -> None:
    with federation(tmp_path, ledger={"enabled": True}) as fed:
        ledger = fed.runtime.ledger
        assert ledger is not None
        pid = until(lambda: ledger.status().get("pid"))
        for round_ in range(3):
            os.kill(pid, signal.SIGKILL)
            for number in range(20):
                key = Key("Namespace", "", f"n{round_}-{number}")
                fed.apply("Namespace", key.name, {"group": "g"})
                fed.runtime.store.write(lambda tx, key=key: tx.audit("user:ada", "create", key))  # type: ignore[misc]
            until(lambda before=pid: (found := ledger.status().get("pid")) and found != before)  # type: ignore[misc]
            pid = ledger.status()["pid"]
        until(lambda: sorted(audited(fed)) == sorted(written(fed)))
        assert len(audited(fed)) == len(set(audited(fed)))
        until(lambda: fed.runtime.backlog().facts == 0)


def test_a_stopped_ledger_does_not_slow_an_act(tmp_path: Path) -> None:
    with federation(tmp_path, ledger={"enabled": True}) as fed:
        ledger = fed.runtime.ledger
        assert ledger is not None
        pid = until(lambda: ledger.status().get("pid"))
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(50):
                fed.apply("Namespace", f"n{number}", {"group": "g"})
            assert fed.runtime.store.count("Namespace") >= 50
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_restart_ships_what_was_left_and_nothing_twice(tmp_path: Path) -> None:
    with federation(tmp_path, ledger={"enabled": True}) as fed:
        ledger = fed.runtime.ledger
        assert ledger is not None
        until(lambda: ledger.status().get("pid"))
        for number in range(30):
            key = Key("Namespace", "", f"n{number}")
            fed.runtime.store.write(lambda tx, key=key: tx.audit("user:ada", "look", key))  # type: ignore[misc]
            if number == 15:
                fed.restart()
        until(lambda: sorted(audited(fed)) == sorted(written(fed)))


def test_housekeeping_keeps_the_newest_facts_without_a_ledger(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(runtime_module, "KEEP_FACTS", 10)
    with federation(tmp_path) as fed:
        for number in range(40):
            key = Key("Namespace", "", f"n{number}")
            fed.runtime.store.write(lambda tx, key=key: tx.audit("user:ada", "look", key))  # type: ignore[misc]
        fed.runtime._housekeeping.round()
        kept = written(fed)
        assert len(kept) <= 10
        assert max(kept) == fed.runtime.store.fact_sequence


def test_housekeeping_drops_expired_answers_but_not_those_that_stand(tmp_path: Path) -> None:
    with federation(tmp_path) as fed:
        store, at = fed.runtime.store, time.time()
        for name, until_ in (("old", at - 31 * 86_400), ("stands", at + 60)):
            row = {
                "id": name,
                "scope": "s",
                "digests": b"[]",
                "verb": "",
                "remaining": 0,
                "until": until_,
                "state": "approved",
                "subject": "user:ada",
                "reason": "",
                "at": at,
            }
            store.write(lambda tx, row=row: tx.conn.execute(sa.insert(tables.approvals).values(**row)))  # type: ignore[misc]
        fed.runtime._housekeeping.round()
        with store.reading() as conn:
            assert [r.id for r in conn.execute(sa.select(tables.approvals.c.id))] == ["stands"]


def test_the_platform_namespace_is_there_from_the_start(tmp_path: Path) -> None:
    with federation(tmp_path) as fed:
        assert fed.get("Namespace", "platform") is not None


def test_who_lost_the_right_to_answer_is_refused_in_the_transaction(tmp_path: Path) -> None:
    with federation(tmp_path) as fed:
        ensure_admin(fed.runtime.store, "root", "long enough", work=4)
        until_ = time.time() + 60
        with pytest.raises(GroundError) as refused:
            fed.runtime.plans.approve_bound("kind:Service", "delete", 2, until_, Subject.user("mallory"), "why not")
        assert refused.value.status in (401, 403, 404)
        answer = fed.runtime.plans.approve_bound("kind:Service", "delete", 2, until_, Subject.user("root"), "moving")
        assert answer["state"] == "approved"
