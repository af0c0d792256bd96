"""The server's database is lost and put back from a copy, on a real installation: it looks, and touches nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.installation import Installation, installation, until

pytestmark = pytest.mark.acceptance


def _copy(ground: Installation) -> Path:
    to = ground.root / "backup.db"
    with closing(sqlite3.connect(ground.data / "ground.db")) as live, closing(sqlite3.connect(to)) as copy:
        live.backup(copy)
    return to


def _put_back(ground: Installation, copy: Path) -> None:
    for name in ("ground.db", "ground.db-wal", "ground.db-shm"):
        (ground.data / name).unlink(missing_ok=True)
    (ground.data / "ground.db").write_bytes(copy.read_bytes())


def test_a_restored_server_only_observes_until_its_plan_is_approved() -> None:
    with installation("cnaf") as found:
        found.apply(found.document("Namespace", "alpha", {"group": "experiments/alpha"}))
        _lost_and_put_back(found)


def _lost_and_put_back(alpha: Installation) -> None:
    for name in ("kept", "goes"):
        alpha.service(name)
    for name in ("kept", "goes"):
        alpha.until_ready("services", name, "alpha")
    copy = _copy(alpha)
    alpha.service("newer")
    alpha.until_ready("services", "newer", "alpha")
    alpha.delete("services", "goes", "alpha")
    alpha.until_gone("services", "goes", "alpha")
    newest = alpha.ok("GET", "/api/v1/services")["resourceVersion"]
    before = sorted(alpha.running())
    kept = [u for u in before if u.unit in {d["status"]["unit"] for d in alpha.instances("kept")}]
    assert len(before) == 2
    assert len(kept) == 1

    alpha.kill_server()
    _put_back(alpha, copy)
    alpha.serve()
    (plan,) = alpha.ok("GET", "/api/v1/plans?state=held")["items"]
    assert plan["id"].startswith("restore:")

    def held() -> list[str]:
        found = alpha.ok("GET", f"/api/v1/plans/{plan['id']}")["changes"]
        return [f"{c['verb']} {c['target']['type']}" for c in found]

    until(lambda: any("create" in line for line in held()), "it says that it would make `goes` again")
    assert sorted(alpha.running()) == before, "the same processes, and no other"
    assert alpha.call("GET", f"/api/v1/watch?kinds=Service&since={newest}").status in (404, 410), (
        "of a history that is lost"
    )
    listed = alpha.ground("plan", "list")
    assert plan["id"] in listed.stdout
    alpha.kill_server()
    alpha.serve()
    until(lambda: any("create" in line for line in held()), "it still only observes")
    assert sorted(alpha.running()) == before

    # Things go on changing until the plan is stable enough to be answered by its digest.
    def approved() -> bool:
        digest = alpha.ok("GET", f"/api/v1/plans/{plan['id']}")["digest"]
        return alpha.ground("approve", plan["id"], "--digest", digest, "--reason", "looked at it").returncode == 0

    until(approved, "approved on the command line")
    alpha.until_ready("services", "goes", "alpha")
    alpha.until_ready("services", "kept", "alpha")
    running = alpha.running()
    assert [u for u in before if u in running] == before
    assert len(running) == 3
    assert alpha.ok("GET", "/api/v1/plans?state=held")["items"] == []
    told = json.dumps(alpha.ok("GET", "/api/v1/audit?kind=Plan"))
    assert "observe" in told
    assert "approved" in told
    # `newer` belongs to the lost history: it goes on, and the site says that nobody here wants it.
    (newer,) = [u for u in before if u not in kept]
    until(lambda: any(newer.unit in s for s in alpha.need("sites", "cnaf")["status"]["strays"]), "it is named")
