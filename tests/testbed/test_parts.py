"""Processes of the test bed are known by more than their number, end with all they started, and say why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.openstack import parts
from testbed.openstack.layout import BedError
from testbed.openstack.parts import Part, start, stop, sweep, wait

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write("deaf")
time.sleep(600)
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    sweep(tmp_path)


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def python(root: Path, code: str, name: str = "part") -> Part:
    return Part(name, root, (sys.executable, "-c", code, str(root / "said")))


def lives(pid: int) -> bool:
    return parts._born(pid) is not None


def test_a_part_ends_with_what_it_started(root: Path) -> None:
    part = python(root, PARENT)
    start([part])
    pid = part.pid()
    until(lambda: (root / "said").exists() and (root / "said").read_text())
    child = int((root / "said").read_text())
    assert pid is not None
    assert lives(pid)
    assert lives(child)
    stop([part])
    assert not lives(pid)
    assert not lives(child)
    assert part.pid() is None
    assert not part.record.exists()


def test_who_does_not_listen_is_killed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "STOPPING", 0.3)
    part = python(root, STUBBORN)
    start([part])
    until((root / "said").exists)
    pid = part.pid()
    stop([part])
    assert pid is not None
    assert not lives(pid)


def test_somebody_else_with_the_same_number_is_left_alone(root: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        part = python(root, "pass")
        part.record.parent.mkdir(parents=True)
        part.remember(other.pid)
        known = json.loads(part.record.read_text())
        assert part.pid() == other.pid
        part.record.write_text(json.dumps(known | {"born": known["born"] - 1}))
        assert part.pid() is None
        stop([part])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_part_that_ends_is_told_with_the_end_of_its_log(root: Path) -> None:
    part = Part("weak", root, (sys.executable, "-c", "print('no database here')"), ready=lambda: "nothing yet")
    start([part])
    with pytest.raises(BedError, match=r"(?s)weak of .* ended .*weak\.log.*no database here"):
        wait([part])


def test_a_part_that_never_gets_ready_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUND_TESTBED_PATIENCE", "1")
    part = Part("slow", root, (sys.executable, "-c", "import time; time.sleep(600)"), ready=lambda: "port 1 is shut")
    start([part])
    with pytest.raises(BedError, match=r"slow of .* not ready after 1 s \(port 1 is shut\).*GROUND_TESTBED_PATIENCE"):
        wait([part])


def test_a_changed_file_makes_a_part_stale(root: Path) -> None:
    file = root / "its.conf"
    file.write_text("a = 1")
    part = Part("part", root, (sys.executable, "-c", "import time; time.sleep(600)"), reads=(file,))
    start([part])
    assert not part.stale()
    file.write_text("a = 2")
    assert part.stale()
    stop([part])
    assert not part.stale()


def test_what_lost_its_record_is_swept_up_and_nobody_else(root: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(root / "log")])
    try:
        part = python(root, "import time; time.sleep(600)")
        start([part])
        pid = part.pid()
        part.record.unlink()
        assert pid is not None
        until(lambda: parts.MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes())
        assert sweep(root) == [pid]
        assert not lives(pid)
        assert other.poll() is None, "somebody only reads a log of ours"
    finally:
        other.kill()
        other.wait()


def test_nothing_of_the_caller_reaches_a_part(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLOUD", "production")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org")
    part = python(root, "import os, sys, time; open(sys.argv[1], 'w').write(repr(dict(os.environ))); time.sleep(600)")
    start([part])
    until(lambda: (root / "said").exists() and (root / "said").read_text().endswith("}"))
    said = (root / "said").read_text()
    assert "production" not in said
    assert "proxy" not in said
    assert str(root) in said


def test_forks_have_sessions_of_their_own(root: Path) -> None:
    server = (
        "import json, os, sys, time\n"
        "pids = {}\n"
        "for item in json.load(sys.stdin):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        os.setsid(); os.close(1); time.sleep(600)\n"
        "    pids[item['name']] = pid\n"
        "print(json.dumps(pids))\n"
    )
    made = [Part(name, root, (sys.executable, "-c", server), fork=("compute",)) for name in ("one", "two")]
    start(made)
    pids = [part.pid() for part in made]
    assert None not in pids
    assert len(set(pids)) == 2
    until(lambda: all(os.getsid(pid) == pid for pid in pids if pid))
    stop(made[:1], hard=True)
    assert made[0].pid() is None
    assert made[1].pid() == pids[1]
    os.kill(pids[1] or 0, signal.SIGKILL)
