"""The command around the story: what it prints, how it ends, what its JSON looks like."""

import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.demo import __main__ as run
from groundcontrol.demo.story import Failed, Result, Story
from groundcontrol.demo.telling import Teller

NAMES = ["converge", "change", "heal", "drift", "guard", "cut", "return", "crash"]


class FakeWorld:
    """Stands for the federation; notes what was asked of it."""

    def __init__(self, place: Any) -> None:
        self.place, self.stopped = place, 0
        WORLDS.append(self)

    def stop(self) -> None:
        self.stopped += 1


class FakeStory:
    """Eight steps of which some fail."""

    def __init__(self, failing: dict[str, Exception], restored: bool = True) -> None:
        self.failing, self.restored = failing, restored
        self.steps = {name: (f"about {name}", self._act(name)) for name in NAMES}
        self.played: list[str] = []

    def _act(self, name: str) -> Callable[[], Result]:
        def act() -> Result:
            self.played.append(name)
            if name in self.failing:
                raise self.failing[name]
            return Result(0.5, f"{name} it was")

        return act

    def restore(self) -> None:
        if not self.restored:
            raise Failed("the services stay away")


WORLDS: list[FakeWorld] = []


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Run `main` over a fake world with this story; (exit code, directory)."""
    WORLDS.clear()
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def start(story: Any, *options: str) -> tuple[int, Path]:
        monkeypatch.setattr(run, "Federation", FakeWorld)
        monkeypatch.setattr(run, "_set_up", lambda world, teller: story)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        try:
            code = run.main(["--once", *options])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return code, WORLDS[0].place.root

    return start


def last_line(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


def test_all_held(play: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    code, root = play(FakeStory({}), "--json")
    out, err = capsys.readouterr()
    said = last_line(out)
    assert (code, said["ok"]) == (0, True)
    assert [step["name"] for step in said["steps"]] == NAMES
    assert said["steps"][0] == {"name": "converge", "ok": True, "seconds": 0.5, "detail": "converge it was"}
    assert len(out.splitlines()) == 1
    assert "8 of 8 steps held" in err
    assert WORLDS[0].stopped == 1
    assert not root.exists()


def test_one_failed_and_the_others_were_played(
    play: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    story = FakeStory({"heal": Failed("it stayed down")})
    code, _ = play(story, "--json")
    said = last_line(capsys.readouterr().out)
    assert (code, said["ok"], story.played) == (1, False, NAMES)
    assert [step["name"] for step in said["steps"] if not step["ok"]] == ["heal"]
    assert said["steps"][2]["detail"] == "it stayed down"


def test_after_a_failure_that_cannot_be_mended_nothing_more_is_played(
    play: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    story = FakeStory({"change": OSError("no route")}, restored=False)
    code, _ = play(story, "--json")
    said = last_line(capsys.readouterr().out)
    assert (code, story.played) == (1, ["converge", "change"])
    assert [step["ok"] for step in said["steps"]] == [True] + [False] * 7
    assert "not played" in said["steps"][2]["detail"]


def test_what_did_not_come_up_has_the_same_shape(
    play: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = play(None, "--json")
    said = last_line(capsys.readouterr().out)
    assert (code, said["ok"]) == (1, False)
    assert [(step["name"], step["ok"]) for step in said["steps"]] == [(name, False) for name in NAMES]


def test_somebody_stops_it(play: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    story = FakeStory({})

    def interrupted() -> Result:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        raise AssertionError("not stopped")

    story.steps["heal"] = ("about heal", interrupted)
    code, root = play(story, "--json")
    said = last_line(capsys.readouterr().out)
    assert (code, said["ok"]) == (1, False)
    assert [step["ok"] for step in said["steps"]] == [True, True] + [False] * 6
    assert WORLDS[0].stopped == 1
    assert not root.exists()


def test_without_json_standard_output_is_the_story(
    play: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    play(FakeStory({"cut": Failed("it was called failed")}))
    out, err = capsys.readouterr()
    assert "✗ failed" in out
    assert "it was called failed" in out
    assert err == ""


def test_the_directory_is_kept_when_asked(play: Callable[..., tuple[int, Path]]) -> None:
    assert play(FakeStory({}), "--keep")[1].exists()


def test_a_named_directory_is_kept(play: Callable[..., tuple[int, Path]], tmp_path: Path) -> None:
    assert play(FakeStory({}), "--directory", str(tmp_path / "mine"))[1] == tmp_path / "mine"
    assert (tmp_path / "mine" / "demo.json").exists()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert run.main(["--once", "--directory", str(tmp_path)]) == 2
    assert "something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_story_has_exactly_these_steps() -> None:
    nothing: Any = None
    assert list(Story(nothing, nothing, nothing).steps) == NAMES == list(run.STEPS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_overwritten() -> None:
    stream = Terminal()
    teller = Teller(stream)
    teller.waits("2 of 6 ready")
    teller.waits("3 of 6 ready")
    teller.judged(True, 1.0, "all ready")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r\x1b[K") == 3


def test_elsewhere_there_are_plain_lines_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    teller = Teller(stream)
    for number in range(50):
        teller.waits(f"{number} of 50 ready")
    teller.judged(False, 1.0, "not all")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_reader_that_went_away_does_not_stop_the_cleaning_up() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Teller(Gone()).say("nobody hears this")
