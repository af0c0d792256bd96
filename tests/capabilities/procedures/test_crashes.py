"""kill -9 before and after every durable write and every act of a Run: nothing is lost, nothing is done twice."""

from __future__ import annotations

import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.capabilities.procedures.crashing import ORDER, STEPS, left_behind, live
from tests.capabilities.procedures.workshop import Recorder

MOST_POINTS = 400


@pytest.fixture(scope="module")
def lives() -> Any:
    """Processes that begin with everything imported and nothing running."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.capabilities.procedures.crashing"])
    return context


def one_life(context: Any, directory: Path, kill_at: int, undo: bool = False) -> bool:
    """Whether it ended by itself, not by the kill."""
    process = context.Process(target=live, args=(str(directory), kill_at, undo))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), f"a life ended with {process.exitcode}"
    return bool(process.exitcode == 0)


def judge(directory: Path, undo: bool = False) -> None:
    """Every act exactly once, in order; the journal without a gap; no hold left."""
    done = Recorder(directory / "recorded").steps()
    left = left_behind(directory)
    if undo:
        assert done == ["poke", "prod", "nudge", "nudge:undo", "poke:undo"]
        assert left["sets"] == 2
        undone = [step for step, state in left["states"] if state == "undone"]
        assert undone == ["nudge", "grow", "poke"]
    else:
        assert done == ORDER
        assert left["sets"] == 1
        ended = [step for step, state in left["states"] if state == "done"]
        assert ended == [s["name"] for s in STEPS]
    assert left["numbers"] == list(range(1, len(left["numbers"]) + 1))
    assert left["holds"] == 0


def test_a_life_without_kill(tmp_path: Path, lives: Any) -> None:
    for undo in (False, True):
        directory = tmp_path / str(undo)
        directory.mkdir()
        assert one_life(lives, directory, 0, undo)
        judge(directory, undo)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("undo", [False, True])
def test_killed_once_at_every_point(tmp_path: Path, lives: Any, undo: bool) -> None:
    points: list[str] = []
    for kill_at in range(1, MOST_POINTS):
        directory = tmp_path / str(kill_at)
        directory.mkdir()
        if one_life(lives, directory, kill_at, undo):
            break
        assert one_life(lives, directory, 0, undo), points
        points += (directory / "kills").read_text().splitlines()
        judge(directory, undo)
    for where in ("admit", "started", "poke", "prod", "nudge", "set", "done", "asked", "end"):
        assert {f"before {where}", f"after {where}"} <= set(points), (where, points)
    assert "before call" in points
    assert "after call" in points
    if undo:
        assert {"before undone", "after undone"} <= set(points)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_again_and_again(tmp_path: Path, lives: Any, seed: int) -> None:
    chance = random.Random(seed)
    undo = bool(seed % 2)
    kills = 0
    while not one_life(lives, tmp_path, chance.randrange(1, 25), undo):
        kills += 1
        assert kills < 60
    judge(tmp_path, undo)
