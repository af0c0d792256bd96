"""kill -9 before and after every durable write and every act of a Run over many targets: each of them exactly once."""

from __future__ import annotations

import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.capabilities.procedures.crashing_waves import TARGETS, left_behind, live
from tests.capabilities.procedures.workshop import Recorder

MOST_POINTS = 400


@pytest.fixture(scope="module")
def lives() -> Any:
    """Processes that begin with everything imported and nothing running."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.capabilities.procedures.crashing_waves"])
    return context


def one_life(context: Any, directory: Path, kill_at: int, cancel: bool) -> bool:
    """Whether it ended by itself, not by the kill."""
    process = context.Process(target=live, args=(str(directory), kill_at, cancel))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), f"a life ended with {process.exitcode}"
    return bool(process.exitcode == 0)


def judge(directory: Path) -> None:
    """Every target once, one Run for each, no journal with a gap, no hold left."""
    done = [line["body"]["on"] for line in Recorder(directory / "recorded").lines()]
    assert sorted(done) == TARGETS
    assert done[0] == TARGETS[0], "the first wave is over before the second begins"
    assert set(done[1:3]) == set(TARGETS[1:3])
    assert left_behind(directory) == {"runs": 1 + len(TARGETS), "gaps": 0, "holds": 0, "sets": TARGETS}


def test_a_life_without_kill(tmp_path: Path, lives: Any) -> None:
    for cancel in (False, True):
        directory = tmp_path / str(cancel)
        directory.mkdir()
        assert one_life(lives, directory, 0, cancel)
        judge(directory)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cancel", [False, True])
def test_killed_once_at_every_point(tmp_path: Path, lives: Any, cancel: bool) -> None:
    points: list[str] = []
    for kill_at in range(1, MOST_POINTS):
        directory = tmp_path / str(kill_at)
        directory.mkdir()
        if one_life(lives, directory, kill_at, cancel):
            break
        assert one_life(lives, directory, 0, cancel), points
        points += (directory / "kills").read_text().splitlines()
        judge(directory)
    for where in ("admit", "launch", "land", "wave", "begin", "prod", "set", "asked", "end"):
        assert {f"before {where}", f"after {where}"} <= set(points), (where, points)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_again_and_again(tmp_path: Path, lives: Any, seed: int) -> None:
    chance = random.Random(seed)
    cancel = bool(seed % 2)
    kills = 0
    while not one_life(lives, tmp_path, chance.randrange(1, 30), cancel):
        kills += 1
        assert kills < 80
    judge(tmp_path)
