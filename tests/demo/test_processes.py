"""Nothing stays behind: what the demonstration starts ends with it, and what a killed one left is found and ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundcontrol.demo import leash, processes
from groundcontrol.demo.processes import MARK, Children, Known, known

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def gone(pid: int, seconds: float = 5) -> bool:
    return soon(lambda: known(pid) is None, seconds)


def soon(so: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if so():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_on_the_leash_a_child_ends_with_its_killed_parent(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    parent = f"""if True:
        import os, subprocess, time
        command = {[sys.executable, "-I", "-S", leash.__file__]!r} + [str(os.getpid())] + {SLEEPER!r}
        print(subprocess.Popen(command, start_new_session=True).pid, flush=True)
        time.sleep(60)"""
    process = started([sys.executable, "-c", parent])
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert soon(lambda: b"time.sleep(60)" in Path(f"/proc/{child}/cmdline").read_bytes())
    process.send_signal(signal.SIGKILL)
    assert gone(child)


def test_the_leash_does_not_start_what_has_lost_its_parent() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", leash.__file__, "1", *SLEEPER], check=False, timeout=5)
    assert done.returncode == 1


def test_children_are_started_stopped_and_listed(tmp_path: Path) -> None:
    children = Children(tmp_path, tmp_path / "running.json")
    children.start("one", SLEEPER, tmp_path / "one.log")
    children.start("two", [sys.executable, "-c", "print('said')"], tmp_path / "two.log")
    one = children.pid("one")
    assert soon(lambda: "two" in children.ended())
    assert (tmp_path / "two.log").read_text() == "said\n"
    recorded = json.loads((tmp_path / "running.json").read_text())
    assert recorded["boot"] == processes.boot_id()
    assert recorded["processes"]["one"] == list(known(one) or ())
    assert recorded["processes"]["demo"] == list(known(os.getpid()) or ())
    children.stop(["one"], 5)
    assert gone(one)
    assert children.names() == []


def test_what_does_not_want_to_end_is_killed(tmp_path: Path) -> None:
    children = Children(tmp_path, tmp_path / "running.json")
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    pid = children.start("one", [sys.executable, "-c", stubborn], tmp_path / "log").pid
    assert soon(lambda: (tmp_path / "log").read_text() == "deaf\n")
    children.stop(["one"], 0.2)
    assert gone(pid)


def test_what_a_killed_demonstration_left_is_found(
    tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    marked = started(SLEEPER, **{MARK: str(tmp_path)})
    unit = started(SLEEPER, GROUND_DIR=f"{tmp_path}/sites/bari/units/u1/dir")
    recorded = started(SLEEPER)
    keeper = started([*SLEEPER, f"{Path(leash.__file__).parents[1]}/drivers/local/keeper.py", f"{tmp_path}/sites/bari"])
    # None of these is ours: another directory, an editor on a file of ours, a later process with a known id.
    started(SLEEPER, **{MARK: f"{tmp_path}-other"})
    started(SLEEPER, GROUND_DIR=f"{tmp_path}-other/sites/bari")
    started([*SLEEPER, f"{tmp_path}/sites/bari/units/u1/log"])
    later = started(SLEEPER)
    record = tmp_path / "running.json"
    right, wrong = known(recorded.pid), known(later.pid)
    assert right
    assert wrong
    listed = {"server": right, "bari": [wrong.pid, wrong.ticks - 1]}
    record.write_text(json.dumps({"boot": processes.boot_id(), "processes": listed}))
    left = processes.left_by_last(tmp_path, tmp_path / "sites", record)
    assert {one.pid for one in left} == {marked.pid, unit.pid, recorded.pid, keeper.pid}


def test_a_record_of_another_boot_means_nothing(
    tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    record = tmp_path / "running.json"
    one = known(started(SLEEPER).pid)
    assert one
    record.write_text(json.dumps({"boot": "another", "processes": {"server": one}}))
    assert processes.left_by_last(tmp_path, tmp_path / "sites", record) == set()
    record.write_text("half writ")
    assert processes.left_by_last(tmp_path, tmp_path / "sites", record) == set()


def test_end_ends_also_what_ignores_being_asked(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    deaf = started([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
    time.sleep(0.3)
    one = known(deaf.pid)
    assert one
    processes.end([one, Known(1, -1)], patience=0.2)
    assert known(deaf.pid) is None


def test_descendants(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = started(["sh", "-c", "sleep 60 & echo $!; wait"])
    assert process.stdout is not None
    child = int(process.stdout.readline())
    found = {one.pid for one in processes.descendants(os.getpid())}
    assert {process.pid, child} <= found
    os.kill(child, signal.SIGKILL)
