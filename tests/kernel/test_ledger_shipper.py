"""Facts get from the outbox into the ledger once, whoever is killed on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.errors import Unavailable
from groundcontrol.kernel.ledger import Dataset, Ledger, Query
from groundcontrol.kernel.ledger_shipper import Shipper

DATASETS = (Dataset("audit", {"n": "int"}), Dataset("events", {"n": "int"}))


class Outbox:
    """Facts of two datasets with one row of numbers, as the store has them."""

    def __init__(self, count: int = 0) -> None:
        self.facts: list[dict[str, Any]] = []
        self.acknowledged = 0
        self.pulls = 0
        self.fail = 0
        self.add(count)

    def add(self, count: int, **more: Any) -> None:
        for n in range(self.newest() + 1, self.newest() + 1 + count):
            name = ("audit", "events")[n % 2]
            self.facts.append({"dataset": name, "source": "i/1", "seq": n, "time": 1.7e9 + n, "n": n, **more})

    def newest(self) -> int:
        return self.facts[-1]["seq"] if self.facts else self.acknowledged

    def pull(self, after: int, limit: int) -> Sequence[dict[str, Any]]:
        self.pulls += 1
        return [f for f in self.facts if f["seq"] > after][:limit]

    def acknowledge(self, seq: int) -> None:
        if self.fail:
            self.fail -= 1
            raise Unavailable("the store is busy")
        self.acknowledged = seq
        self.facts = [f for f in self.facts if f["seq"] > seq]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "l.duckdb", DATASETS, memory_mb=64, call_seconds=1.0, hang_seconds=1.0, longest_wait=0.3)
    assert made.start(20)
    yield made
    made.stop()


def shipper(ledger: Ledger, outbox: Outbox, **options: Any) -> Shipper:
    options = {"source": "i/1", "newest": outbox.newest, "idle_seconds": 0.02, "longest_wait": 0.3, **options}
    return Shipper(ledger, outbox.pull, outbox.acknowledge, **options)


def until_shipped(outbox: Outbox, last: int, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while outbox.acknowledged < last:
        assert time.monotonic() < end, f"{outbox.acknowledged} of {last} shipped"
        time.sleep(0.01)


def stored(ledger: Ledger) -> list[int]:
    end = time.monotonic() + 20
    while True:
        try:
            parts = [ledger.query(Query(dataset=d.name, limit=100_000))[1] for d in DATASETS]
            return sorted(row[1] for rows in parts for row in rows)
        except Unavailable:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_facts_are_shipped_in_batches_and_acknowledged(ledger: Ledger) -> None:
    outbox = Outbox(1000)
    ship = shipper(ledger, outbox, batch=300)
    ship.start()
    until_shipped(outbox, 1000)
    outbox.add(10)
    ship.wake()
    until_shipped(outbox, 1010)
    ship.stop()
    assert stored(ledger) == list(range(1, 1011))
    assert ship.backlog() == (0, 0.0, "")
    assert (ledger.watermark("i/1", "outbox"), ledger.watermark("i/1", "audit")) == (1010, 1010)


def test_after_a_restart_it_goes_on_where_the_ledger_is(ledger: Ledger) -> None:
    outbox = Outbox(100)
    outbox.fail = 1
    with pytest.raises(Unavailable):
        shipper(ledger, outbox).step()
    assert (outbox.acknowledged, len(outbox.facts)) == (0, 100)
    again = shipper(ledger, outbox)
    assert again.step() == 0, "what was stored already was pulled again"
    assert (outbox.acknowledged, outbox.facts) == (100, [])
    outbox.add(5)
    assert again.step() == 5
    assert stored(ledger) == list(range(1, 106))


def test_a_batch_of_several_datasets_is_stored_whole_or_not_at_all(ledger: Ledger) -> None:
    child = ledger._child
    assert child is not None
    good = {"source": "i/1", "seq": 1, "time": 1.7e9}
    rows = [("audit", b'[{"source":"i/1","seq":1,"time":"2026-01-01"}]'), ("events", b'[{"seq":1}]')]
    with pytest.raises(Unavailable, match="NOT NULL"):
        child.call("append", [rows, [("i/1", "outbox", 1)]], 5.0)
    assert stored(ledger) == []
    assert ledger.watermark("i/1", "outbox") == 0
    assert ledger.append("audit", [good]) == 1


def test_while_the_ledger_is_down_the_backlog_grows_and_is_told(ledger: Ledger) -> None:
    outbox = Outbox(10)
    ship = shipper(ledger, outbox)
    ship.start()
    until_shipped(outbox, 10)
    ledger.stop()
    outbox.add(500)
    end = time.monotonic() + 10
    while not ship.backlog().error:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)
    backlog = ship.backlog()
    assert "stopped" in backlog.error
    assert backlog.seconds > 0.1
    assert len(outbox.facts) == 500
    assert ledger.start(20)
    until_shipped(outbox, 510)
    ship.stop()
    assert ship.backlog() == (0, 0.0, "")
    assert stored(ledger) == list(range(1, 511))


def test_kills_and_stops_of_the_ledger_lose_and_double_nothing(ledger: Ledger) -> None:
    outbox = Outbox()
    ship = shipper(ledger, outbox, batch=200)
    ship.start()
    for round_ in range(10):
        outbox.add(700)
        time.sleep(0.05 + 0.03 * round_)
        pid = ledger.status()["pid"]
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if round_ == 5 else signal.SIGKILL)
        outbox.fail = round_ % 3
    until_shipped(outbox, 7000)
    ship.stop()
    assert stored(ledger) == list(range(1, 7001))


PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
from groundcontrol.kernel.ledger import Dataset, Ledger
from groundcontrol.kernel.ledger_shipper import Shipper

directory, seed = Path(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
state = directory / "acknowledged"

def acknowledged():
    return int(state.read_text()) if state.exists() else 0

def pull(after, limit):
    assert after >= acknowledged(), "pulled what was acknowledged"
    return [{"dataset": ("audit", "events")[n % 2], "seq": n, "time": 1.7e9, "n": n}
            for n in range(after + 1, min(after + limit, 3000) + 1)]

def acknowledge(seq):
    if seed and random.random() < 0.3:
        os.kill(os.getpid(), signal.SIGKILL)  # between storing and acknowledging
    state.with_suffix(".new").write_text(str(seq))
    os.replace(state.with_suffix(".new"), state)

ledger = Ledger(directory / "l.duckdb", [Dataset("audit", {"n": "int"}), Dataset("events", {"n": "int"})], memory_mb=64)
assert ledger.start(20), ledger.status()
ship = Shipper(ledger, pull, acknowledge, source="i/1", batch=300)
ship.start()
while acknowledged() < 3000:
    time.sleep(0.01)
ship.stop()
ledger.stop()
"""


def test_killed_between_storing_and_acknowledging_nothing_is_doubled(tmp_path: Path) -> None:
    for seed in (1, 2, 3, 4, 5, 0):
        done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path, str(seed)], capture_output=True, timeout=60)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        assert b"pulled what was acknowledged" not in done.stderr
    assert done.returncode == 0
    ledger = Ledger(tmp_path / "l.duckdb", DATASETS, memory_mb=64)
    assert ledger.start(20)
    try:
        assert stored(ledger) == list(range(1, 3001))
    finally:
        ledger.stop()


def test_a_fact_that_fits_nowhere_does_not_stop_the_others(ledger: Ledger) -> None:
    outbox = Outbox(20)
    outbox.facts[3]["n"] = "many"
    outbox.facts[5]["dataset"] = "gone"
    outbox.facts[7]["time"] = "never"
    outbox.facts[9]["n"] = object()
    outbox.facts[11]["text"] = "\ud800"
    outbox.facts[13]["text"] = "x" * ledger.largest
    ship = shipper(ledger, outbox)
    ship.start()
    until_shipped(outbox, 20)
    ship.stop()
    assert stored(ledger) == [n for n in range(1, 21) if n not in (4, 6, 8, 10, 12, 14)]
    columns, rows = ledger.query(Query(dataset="rejected"))
    rejected = {row[columns.index("seq")]: dict(zip(columns, row, strict=True)) for row in rows}
    assert sorted(rejected) == [4, 6, 8, 10, 12, 14]
    assert "expected int, found str" in rejected[4]["reason"]
    assert "'n': 'many'" in rejected[4]["data"]["fact"]
    assert (rejected[6]["dataset"], rejected[14]["dataset"]) == ("gone", "audit")


def test_the_size_of_a_batch_gives_way_and_comes_back(ledger: Ledger) -> None:
    outbox = Outbox()
    outbox.add(2000, text="x" * 6000)
    ship = shipper(ledger, outbox, batch=1000)
    ship.start()
    until_shipped(outbox, 2000)
    ship.stop()
    assert len(stored(ledger)) == 2000
