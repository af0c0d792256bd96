"""The demonstration as a new user meets it: every step of its story holds, and nothing of it stays behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance

GROUND = Path(sys.executable).with_name("ground")
STEPS = ["converge", "change", "heal", "drift", "guard", "cut", "return", "crash"]
LONG = 600
"""Seconds after which a demonstration that has not ended is hung, however loaded the machine."""


def started(*options: str, where: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GROUND_")} | {"TMPDIR": str(where)}
    return subprocess.Popen(
        [str(GROUND), "demo", *options],
        cwd=where,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_behind(where: Path) -> list[str]:
    """Command lines of processes that work in this directory, and of units that have their own below it."""
    inside = f"{where}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        unit = any(part.startswith(b"GROUND_DIR=" + inside) for part in environ.split(b"\0"))
        if unit or any(part.startswith(inside) for part in command.split(b"\0")):
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def soon_nothing_is_left(where: Path, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while (left := left_behind(where)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def still_answering(said: str) -> list[str]:
    """Addresses named in the story that somebody still listens on."""
    found = []
    for address, port in sorted(set(re.findall(r"(127\.\d+\.\d+\.\d+):(\d+)", said))):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, int(port))) == 0:
                found.append(f"{address}:{port}")
    return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The lasting demonstration in `tmp_path`/ground-demo, up to where it invites."""
    process = started(where=tmp_path)
    wait_for("Ctrl-C stops the demonstration", process)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)


def wait_for(words: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it ended without saying {words!r}:\n{said}")


def test_every_step_holds_and_nothing_stays_behind(tmp_path: Path) -> None:
    process = started("--once", "--json", where=tmp_path)
    out, err = process.communicate(timeout=LONG)
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert set(said) == {"ok", "steps"}
    assert [step["name"] for step in said["steps"]] == STEPS
    assert all(set(step) == {"name", "ok", "seconds", "detail"} for step in said["steps"])
    assert [f"{step['name']}: {step['detail']}" for step in said["steps"] if not step["ok"]] == [], err
    assert (said["ok"], process.returncode) == (True, 0)
    assert left_behind(tmp_path) == []
    assert still_answering(err) == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_and_a_second_start_is_quick(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    assert left_behind(tmp_path) != []
    # As a terminal sends it: to every process of the foreground group.
    os.killpg(demo.pid, signal.SIGINT)
    rest, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (0, "")
    assert "nothing is left running" in rest
    assert left_behind(tmp_path) == []
    began = time.monotonic()
    again = started(where=tmp_path)
    wait_for("✓ held", again)
    assert time.monotonic() - began < 60
    os.killpg(again.pid, signal.SIGTERM)
    again.communicate(timeout=60)
    assert left_behind(tmp_path) == []


def test_a_second_one_in_the_same_directory_is_refused(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    other = started(where=tmp_path)
    _, err = other.communicate(timeout=30)
    assert other.returncode == 2
    assert "already runs" in err


def test_killed_with_9_it_leaves_nothing_either(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(demo.pid, signal.SIGKILL)
    soon_nothing_is_left(tmp_path)


def test_what_even_that_left_is_ended_by_the_next_start(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    """The agents are killed as well, so that nobody stops their units."""
    recorded = json.loads((tmp_path / "ground-demo" / "running.json").read_text())
    os.kill(demo.pid, signal.SIGSTOP)
    for pid, _ in recorded["processes"]:
        os.kill(pid, signal.SIGKILL)
    os.kill(demo.pid, signal.SIGKILL)
    demo.wait()
    assert any("groundcontrol.samples" in command for command in left_behind(tmp_path))
    again = started(where=tmp_path)
    said = wait_for("✓ held", again)
    assert "which was killed has left here" in said
    os.killpg(again.pid, signal.SIGTERM)
    again.communicate(timeout=60)
    assert left_behind(tmp_path) == []
