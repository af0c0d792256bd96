"""SIGKILL before and after every durable write and every outside call: restarted, the server finishes, once."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.store import Store
from tests.kernel.faults.test_disk import ROOT, whole
from tests.kernel.outside import Outside
from tests.kernel.things import key, store_at, thing

FENCING = ("fences", "idempotent", "neither")


class Workers:
    """Runs workers, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.kernel.faults.worker"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, directory: Path, fencing: str, point: int = 0) -> str:
        """`killed`, or `converged` with the number of crash points that were passed."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{directory} {fencing} {point}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def wish(directory: Path, *acts: Any) -> int:
    """What a person asks for while no server runs; the number of the last event acknowledged."""
    store = store_at(directory, finalizers=frozenset({"Thing"}))
    for act in acts:
        store.write(act)
    sequence = store.sequence
    store.close()
    return sequence


PHASES: dict[str, Any] = {
    "create": [lambda tx: tx.create(thing("a", names=["x", "y"]))],
    "change": [lambda tx: tx.replace(thing("a", names=["y", "z"], colour="blue"))],
    "delete": [lambda tx: tx.delete(key("a")), lambda tx: tx.create(thing("b", names=["w"]))],
}


def prepared(workers: Workers, directory: Path, fencing: str, phase: str) -> int:
    """A directory in which everything before this phase is done, and what the phase wants is wished."""
    directory.mkdir()
    for name, acts in PHASES.items():
        sequence = wish(directory, *acts)
        if name == phase:
            return sequence
        assert workers.run(directory, fencing).startswith("converged")
    raise AssertionError(phase)


def done_once(directory: Path, before: list[list[str]], fencing: str, phase: str, sequence: int) -> None:
    """Nothing lost, nothing done twice, nothing left over."""
    outside = Outside(fencing, directory / "outside.json")  # type: ignore[arg-type]
    effects = Counter(map(tuple, outside._state["effects"][len(before) :]))
    assert (
        effects
        == {
            "create": Counter([("create", "x"), ("create", "y")]),
            "change": Counter([("create", "z"), ("update", "y"), ("delete", "x")]),
            "delete": Counter([("create", "w"), ("delete", "y"), ("delete", "z")]),
        }[phase]
    )
    store = store_at(directory)
    whole(store)
    assert store.sequence >= sequence
    with store.reading() as conn:
        assert conn.execute(sa.select(tables.intents)).all() == []
        claims = {r.id for r in conn.execute(sa.select(tables.claims))}
        facts = conn.execute(sa.select(tables.facts).order_by(tables.facts.c.seq)).all()
    assert claims == outside.things().keys()
    recorded = {
        (msgspec.json.decode(r.doc)["verb"], msgspec.json.decode(r.doc)["detail"].get("target", {}).get("id"))
        for r in facts
        if r.dataset == "audit"
    }
    assert effects.keys() <= recorded
    for doc in documents(store):
        assert doc["status"]["seen"] == sorted(doc["spec"]["names"])
    store.close()


def documents(store: Store) -> list[Any]:
    return [e.doc for e in store.entries("Thing")]


def effects_in(directory: Path) -> list[list[str]]:
    file = directory / "outside.json"
    return Outside(file=file)._state["effects"] if file.exists() else []


CASES = [
    pytest.param(f, p, marks=[] if p == "change" or (f, p) == ("fences", "delete") else pytest.mark.slow)
    for f in FENCING
    for p in PHASES
]


@pytest.mark.parametrize(("fencing", "phase"), CASES)
def test_killed_anywhere_it_finishes_once(workers: Workers, tmp_path: Path, fencing: str, phase: str) -> None:
    start = tmp_path / "start"
    sequence = prepared(workers, start, fencing, phase)
    before = effects_in(start)
    for point in range(1, 100):
        directory = tmp_path / str(point)
        shutil.copytree(start, directory)
        first = workers.run(directory, fencing, point)
        if first.startswith("converged"):
            assert point > 8, "there are fewer crash points than this plan has writes and calls"
            break
        assert first == "killed 9"
        assert workers.run(directory, fencing).startswith("converged")
        done_once(directory, before, fencing, phase, sequence)
    else:
        raise AssertionError("the crash points never ended")


@pytest.mark.slow
def test_killed_again_and_again_it_finishes_once(workers: Workers, tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    print("seed", seed)
    chance = random.Random(seed)
    for number in range(20):
        fencing, phase = chance.choice(FENCING), chance.choice(list(PHASES))
        directory = tmp_path / str(number)
        sequence = prepared(workers, directory, fencing, phase)
        before = effects_in(directory)
        for _ in range(8):
            if workers.run(directory, fencing, chance.randrange(1, 15)).startswith("converged"):
                break
        assert workers.run(directory, fencing).startswith("converged")
        done_once(directory, before, fencing, phase, sequence)
