"""The database is lost and put back from last night's copy: nothing is touched until somebody saw what would be."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.errors import Forbidden, Invalid, PlanChanged
from groundcontrol.kernel.plan import digest_of
from groundcontrol.kernel.rights import Subject
from tests.federation import Federation, federation

OPERATOR = Subject("user:ada", frozenset(), frozenset({"read", "write", "approve"}))


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as found:
        found.sites("cnaf", "bari")
        yield found


def restored(fed: Federation, copy: Path) -> None:
    fed.runtime.close()
    for name in ("ground.db", "ground.db-wal", "ground.db-shm"):
        (fed.runtime.data / name).unlink(missing_ok=True)
    (fed.runtime.data / "ground.db").write_bytes(copy.read_bytes())
    fed.restart()


def copied(fed: Federation, to: Path) -> Path:
    with closing(sqlite3.connect(fed.runtime.data / "ground.db")) as live, closing(sqlite3.connect(to)) as copy:
        live.backup(copy)
    return to


def plan(fed: Federation) -> dict[str, Any]:
    return fed.runtime.plans.list()[0]


def changes(fed: Federation) -> set[tuple[str, str, str]]:
    return {(c["verb"], c["target"]["type"], c["target"]["id"].partition("/")[2]) for c in plan(fed)["changes"]}


def test_nothing_is_changed_until_the_plan_of_it_all_is_approved(fed: Federation, tmp_path: Path) -> None:
    for name in ("kept", "grows", "goes"):
        fed.service(name)
    for name in ("kept", "grows", "goes"):
        fed.until_ready("Service", name, "alpha")
    copy = copied(fed, tmp_path / "copy.db")
    fed.service("grows", replicas=2)
    fed.service("newer")
    fed.until(lambda: len(fed.units()) == 5)
    fed.delete("Service", "goes", "alpha")
    fed.until(lambda: len(fed.units()) == 4)
    before = sorted(u.id for u in fed.units())

    restored(fed, copy)
    assert plan(fed)["id"] == f"restore:{fed.runtime.store.incarnation}"
    assert "only observes" in plan(fed)["reason"]
    # What `goes` had is gone, and would be made anew: that is a plan now, and no act.
    fed.until(lambda: any(verb == "create" for verb, *_ in changes(fed)), "what it would do is seen")
    fed.apply("Run", "careful", {"steps": [{"name": "go", "act": {"set": {
        "kind": "Service", "name": "kept", "fields": {"spec.replicas": 2}}, "holdFor": 60}}]}, "alpha")  # fmt: skip
    fed.service("asked", replicas=1)
    fed.until(lambda: ("create", "Instance", "asked-1") in changes(fed) or len(plan(fed)["changes"]) > 1)
    fed.settled()
    assert sorted(u.id for u in fed.units()) == before
    assert (fed.get("Run", "careful", "alpha") or {})["status"].get("phase", "Pending") == "Pending"
    assert fed.ready("Service", "goes", "alpha")[0] != "True"

    board, seen = fed.runtime.plans, plan(fed)
    with pytest.raises(PlanChanged):
        board.approve(seen["id"], digest_of(()), OPERATOR, "not what stands")
    fed.apply("Account", "mallory", {})
    fed.apply("RoleBinding", "approvers", {"role": "operator", "subjects": ["user:mallory"],
                                           "selector": {"namespaces": ["alpha"]}})  # fmt: skip
    tenant = Subject("user:mallory", frozenset(), frozenset({"read", "write", "approve"}))
    with pytest.raises(Forbidden):
        board.approve(seen["id"], seen["digest"], tenant, "all of these changes are mine")
    with pytest.raises(Invalid, match="by the digest"):
        board.approve_bound(seen["id"], "create", 5, fed.runtime.store.clock() + 60, OPERATOR, "no")
    board.approve(seen["id"], seen["digest"], OPERATOR, "looked at it with the sites")
    fed.until_ready("Service", "goes", "alpha")
    fed.until_ready("Service", "asked", "alpha")
    fed.until(lambda: (fed.get("Run", "careful", "alpha") or {})["status"].get("phase") == "Succeeded")
    fed.until(lambda: not fed.runtime.plans.list())
    assert set(before) <= {u.id for u in fed.units()}, "what is newer than the copy is nobody's, and is left alone"


def test_with_nothing_to_change_it_still_asks(fed: Federation, tmp_path: Path) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    fed.settled()
    copy = copied(fed, tmp_path / "copy.db")
    fed.service("newer")
    fed.until_ready("Service", "newer", "alpha")
    restored(fed, copy)
    fed.settled()
    assert plan(fed)["changes"] == []
    fed.restart()
    seen = plan(fed)
    fed.runtime.plans.approve(seen["id"], digest_of(()), OPERATOR, "nothing to do")
    assert fed.runtime.plans.list() == []
    fed.service("web", replicas=2)
    fed.until(lambda: len(fed.units()) == 3)
