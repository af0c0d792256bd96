"""What the store called durable is durable: the power fails, the disk is full, and nothing acknowledged is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.store import Store
from tests.kernel.faults.disk import replay
from tests.kernel.things import key, store_at, thing

ROOT = Path(__file__).parents[3]


def start(directory: Path, mode: str, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.kernel.faults.writer", str(directory), mode, str(seed)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def power_failure(tmp_path: Path, mode: str, seed: int) -> tuple[dict[str, tuple[str, int]], int]:
    """Write until the power fails after some acknowledgements; the last acknowledged colour and number per name."""
    chance = random.Random(seed)
    before = tmp_path / "before"
    (tmp_path / "disk").mkdir()
    store_at(tmp_path / "disk").close()
    subprocess.run(["cp", "-r", str(tmp_path / "disk"), str(before)], check=True)
    process = start(tmp_path / "disk", mode, seed)
    assert process.stdout
    wanted = chance.randrange(40, 400)
    acknowledged: dict[str, tuple[str, int]] = {}
    for count, line in enumerate(process.stdout):
        word, *rest = line.split()
        if word == "ack":
            acknowledged[rest[0]] = (rest[1], int(rest[2]))
        if count == wanted:
            time.sleep(chance.random() * 0.01)
            process.kill()
    process.wait()
    process.stdout.close()
    lost = replay(tmp_path / "journal", before, tmp_path / "after", chance if seed % 2 else None)
    return acknowledged, lost


def missing(store: Store, acknowledged: dict[str, tuple[str, int]]) -> list[str]:
    """Acknowledged acts that are not there (or overwritten by a later one of the same worker)."""
    lost = []
    for name, (_, number) in acknowledged.items():
        doc = store.get(key(name))
        if doc is None or doc["metadata"]["resourceVersion"] < number:
            lost.append(name)
    return lost


def whole(store: Store) -> None:
    with store.reading() as conn:
        assert conn.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
        events = [r.seq for r in conn.execute(sa.select(tables.events.c.seq).order_by(tables.events.c.seq))]
        facts = [r.seq for r in conn.execute(sa.select(tables.facts.c.seq).order_by(tables.facts.c.seq))]
        rows = conn.execute(sa.select(tables.resources.c.seq)).all()
    assert events == list(range(1, store.sequence + 1))
    assert facts == list(range(1, store.fact_sequence + 1))
    assert len(rows) == store.count("Thing")


def survives(tmp_path: Path, seed: int) -> None:
    acknowledged, _ = power_failure(tmp_path, "safe", seed)
    assert len(acknowledged) > 5
    store = store_at(tmp_path / "after")
    assert missing(store, acknowledged) == []
    whole(store)
    store.write(lambda tx: tx.create(thing("goes-on")))
    store.close()


@pytest.mark.parametrize("seed", range(4))
def test_what_was_acknowledged_survives_a_power_failure(tmp_path: Path, seed: int) -> None:
    survives(tmp_path, seed)


@pytest.mark.slow
def test_many_power_failures(tmp_path: Path) -> None:
    first = random.randrange(1_000_000)
    for seed in range(first, first + 25):
        print("seed", seed)
        directory = tmp_path / str(seed)
        directory.mkdir()
        survives(directory, seed)


@pytest.mark.parametrize("mode", ["OFF", "NORMAL"])
def test_the_forgetful_disk_catches_a_store_that_does_not_sync(tmp_path: Path, mode: str) -> None:
    acknowledged, lost = power_failure(tmp_path, mode, 2)
    assert lost
    store = store_at(tmp_path / "after")
    assert missing(store, acknowledged)
    store.close()


@pytest.mark.parametrize("mode", ["full", "limit"])
def test_a_full_disk_loses_nothing_and_the_store_goes_on(tmp_path: Path, mode: str) -> None:
    (tmp_path / "disk").mkdir()
    process = start(tmp_path / "disk", mode, 7)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    lines = [line.split() for line in output.splitlines()]
    acknowledged = {line[1] for line in lines if line[0] == "ack"}
    refused = {line[1] for line in lines if line[0] == "refused"}
    assert {line[2] for line in lines if line[0] == "refused"} == {"Unavailable"}
    assert len(refused) > 5
    store = store_at(tmp_path / "disk")
    assert {e.key.name for e in store.entries("Thing")} == acknowledged
    whole(store)
    assert lines[-1][0] == "done"
    assert [int(n) for n in lines[-1][1:]] == [store.sequence, len(acknowledged)]
    store.close()
