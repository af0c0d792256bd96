"""The demonstration as a new user meets it: every step of its story holds, and nothing of it stays behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.markdown import blocks

pytestmark = pytest.mark.acceptance

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "demo.md"
GROUND = Path(sys.executable).with_name("ground")
STEPS = ["converge", "change", "heal", "drift", "guard", "cut", "return", "crash"]
INVITED = "Ctrl-C stops the demonstration"
LONG = 600
"""Seconds after which a demonstration that has not ended is hung, however loaded the machine."""

Demo = subprocess.Popen[str]
Start = Callable[..., Demo]


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory to work in. Not pytest's own: as root nobody else may pass through that."""
    made = Path(tempfile.mkdtemp(prefix="ground-acceptance-", dir="/var/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """`start("--once")` runs `ground demo --once` in `home`; at the end of the test it is stopped."""
    running: list[Demo] = []

    def run(*options: str) -> Demo:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GROUND_")} | {"TMPDIR": str(home)}
        pipe = subprocess.PIPE
        command = [str(GROUND), "demo", *options]
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            interrupt(process)
        process.communicate(timeout=60)


def interrupt(process: Demo) -> None:
    """Ctrl-C, as a terminal sends it: to every process of the foreground group."""
    os.killpg(process.pid, signal.SIGINT)


def heard(words: str, process: Demo) -> str:
    """Read what it says up to the line with these words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
        assert "✗ failed" not in line, said
    raise AssertionError(f"it ended without saying {words!r}:\n{said}")


def left_behind(home: Path) -> list[str]:
    """Command lines of processes that work in this directory, and of units that have their own below it."""
    inside = f"{home}/".encode()
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


def still_answering(said: str) -> list[str]:
    """Addresses named in the story that somebody still listens on."""
    found = []
    for address, port in sorted(set(re.findall(r"(127\.\d+\.\d+\.\d+):(\d+)", said))):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, int(port))) == 0:
                found.append(f"{address}:{port}")
    return found


def soon_nothing_is_left(home: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while (left := left_behind(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def test_every_step_holds_and_nothing_stays_behind(start: Start, home: Path) -> None:
    process = start("--once", "--json")
    out, err = process.communicate(timeout=LONG)
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert set(said) == {"ok", "steps"}
    assert [step["name"] for step in said["steps"]] == STEPS
    assert all(set(step) == {"name", "ok", "seconds", "detail"} for step in said["steps"])
    assert [f"{step['name']}: {step['detail']}" for step in said["steps"] if not step["ok"]] == [], err
    assert (said["ok"], process.returncode) == (True, 0)
    assert left_behind(home) == []
    assert still_answering(err) == []
    assert list(home.iterdir()) == []


def test_ctrl_c_leaves_nothing_and_a_second_start_is_quick(start: Start, home: Path) -> None:
    first = start()
    said = heard(INVITED, first)
    assert left_behind(home) != []
    interrupt(first)
    rest, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (0, "")
    assert "nothing is left running" in rest
    assert left_behind(home) == []
    assert still_answering(said + rest) == []
    began = time.monotonic()
    again = start()
    heard("✓ held", again)
    assert time.monotonic() - began < 60
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert left_behind(home) == []


def test_a_second_one_in_the_same_directory_is_refused(start: Start) -> None:
    heard(INVITED, start())
    other = start()
    _, err = other.communicate(timeout=30)
    assert other.returncode == 2
    assert "already runs" in err


def test_killed_with_9_it_leaves_nothing_either(start: Start, home: Path) -> None:
    demo = start()
    heard(INVITED, demo)
    demo.kill()
    soon_nothing_is_left(home)


def test_what_even_that_left_is_ended_by_the_next_start(start: Start, home: Path) -> None:
    """Server and agents are killed as well, so that nobody stops the units."""
    demo = start()
    heard(INVITED, demo)
    recorded = json.loads((home / "ground-demo" / "running.json").read_text())["processes"]
    demo.send_signal(signal.SIGSTOP)
    for pid, _ in recorded.values():
        os.kill(pid, signal.SIGKILL)
    demo.wait()
    assert any("groundcontrol.samples" in command for command in left_behind(home))
    again = start()
    assert "which was killed has left here" in heard("✓ held", again)
    interrupt(again)
    again.communicate(timeout=60)
    assert left_behind(home) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's services have user ids of their own")
def test_where_nobody_else_may_pass(start: Start, home: Path) -> None:
    home.chmod(0o700)
    demo = start()
    heard("✓ held", demo)
    elsewhere = (home / "ground-demo" / "sites").resolve()
    assert elsewhere.parent == Path("/var/tmp")
    assert left_behind(elsewhere) != []
    interrupt(demo)
    demo.communicate(timeout=60)
    assert left_behind(elsewhere) == []
    assert not elsewhere.exists()


def test_the_guide_can_be_played_along(start: Start, home: Path) -> None:
    """Every command of docs/guides/demo.md, in its order, once the story is over."""
    demo = start()
    heard("8 of 8 steps held", demo)
    url = re.search(r"ground login (http://\S+)", heard(INVITED, demo))
    assert url
    mine = {"PATH": f"{GROUND.parent}:{os.environ['PATH']}", "GROUND_CONFIG": str(home / "config.json")}
    for block in blocks(GUIDE):
        if block.language != "console" or block.mark == "start":
            continue
        for command in block.commands:
            line = ["bash", "-c", command.replace("http://127.0.0.1:8440", url[1])]
            done = subprocess.run(
                line, cwd=home, env=os.environ | mine, capture_output=True, text=True, timeout=120, check=False
            )
            refused = block.mark == "refused"
            assert (done.returncode != 0) == refused, f"{block}: {command}\n{done.stdout}{done.stderr}"
            assert not refused or "groups/alpha/web.yaml" in done.stderr, done.stderr
