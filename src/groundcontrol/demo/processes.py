"""The processes of the demonstration: starting them so that none can stay behind, and stopping every one of them.

Three nets, each enough by itself: the kernel ends agents and server when the demonstration dies (`leash.py`), orphans
of theirs become our children (PR_SET_CHILD_SUBREAPER), and everything is recognised again by its environment or
command line, which is how the next start cleans up after one that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from groundcontrol.demo import leash

PR_SET_CHILD_SUBREAPER = 36
MARK = "GROUND_DEMO_DIRECTORY"
"""Environment variable that every process started here carries; its value is the directory."""


class Known(NamedTuple):
    """A process that cannot be mistaken for a later one with the same id."""

    pid: int
    ticks: int
    """Start time in clock ticks since boot, field 22 of /proc/<pid>/stat."""


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def stat_of(pid: int) -> tuple[str, int, int] | None:
    """(state, parent, start time) of a process; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[1]), int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def known(pid: int) -> Known | None:
    """The process now; None when there is none or it has ended."""
    found = stat_of(pid)
    return Known(pid, found[2]) if found and found[0] not in "ZX" else None


def become_subreaper() -> None:
    """Orphans below us become our children instead of those of init."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Children:
    """What the demonstration started, by name, and the list of it on disk."""

    def __init__(self, directory: Path, record: Path) -> None:
        self._directory, self._record = directory, record
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program on the leash; what it says goes to `log`."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GROUND_")}
        environment |= {MARK: str(self._directory), "PYTHONUNBUFFERED": "1"}
        leashed = [sys.executable, "-I", "-S", str(Path(leash.__file__)), str(os.getpid()), *command]
        with log.open("ab") as output:
            process = subprocess.Popen(
                leashed,
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we stop the rest in order.
            )
        self._running[name] = process
        self._write()
        return process

    def ended(self) -> dict[str, int]:
        """Exit codes of what ended by itself since it was asked last, by name."""
        gone = {name: code for name, p in self._running.items() if (code := p.poll()) is not None}
        for name in gone:
            del self._running[name]
        return gone

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def stop(self, names: Iterable[str], patience: float) -> None:
        """SIGTERM and wait; SIGKILL for what does not end in time."""
        stopping = [self._running.pop(name) for name in names if name in self._running]
        for process in stopping:
            process.terminate()
        deadline = time.monotonic() + patience
        for process in stopping:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def names(self) -> list[str]:
        return list(self._running)

    def _write(self) -> None:
        listed = {name: known(p.pid) for name, p in self._running.items()} | {"demo": known(os.getpid())}
        content = {"boot": boot_id(), "processes": {name: who for name, who in listed.items() if who}}
        beside = self._record.with_suffix(".new")
        beside.write_text(json.dumps(content), encoding="utf-8")
        beside.replace(self._record)


def left_by_last(directory: Path, sites: Path, record: Path) -> set[Known]:
    """What a demonstration in this directory that was killed has left running."""
    found = belonging(directory, sites)
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["boot"] == boot_id():
            listed = {Known(int(pid), int(ticks)) for pid, ticks in content["processes"].values()}
            found |= {k for k in listed if known(k.pid) == k}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return found


def belonging(directory: Path, sites: Path) -> set[Known]:
    """Every live process, ourselves excepted, that was started by a demonstration in this directory or by its sites.

    Recognised by our mark, by a unit's GROUND_DIR, or, for the helpers of an agent, by a command line that runs a
    file of this package on a folder in there; an editor open on a file there is somebody else's.
    """
    inside = f"{sites}/".encode()
    package = f"{Path(__file__).parents[1]}/".encode()
    marks = (b"\0%b=%b\0" % (MARK.encode(), str(directory).encode()), b"\0GROUND_DIR=%b" % inside)
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid() or (who := known(int(name))) is None:
            continue
        try:
            environment = b"\0" + Path(f"/proc/{name}/environ").read_bytes()
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        words = command.split(b"\0")
        ours = any(w.startswith(package) for w in words) and any(w.startswith(inside) for w in words)
        if ours or any(mark in environment for mark in marks):
            found.add(who)
    return found


def descendants(of: int) -> set[Known]:
    """Every live process below this one."""
    parents: dict[int, list[Known]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := stat_of(int(name))) and found[0] not in "ZX":
            parents.setdefault(found[1], []).append(Known(int(name), found[2]))
    below: set[Known] = set()
    ask = [of]
    while ask:
        children = parents.get(ask.pop(), [])
        below.update(children)
        ask += [child.pid for child in children]
    return below


def end(processes: Iterable[Known], patience: float = 8.0) -> None:
    """SIGTERM, then SIGKILL for what is still there after `patience` seconds."""
    waiting = set(processes)
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        for one in waiting:
            if known(one.pid) == one:
                with contextlib.suppress(OSError):
                    os.kill(one.pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (waiting := {one for one in waiting if known(one.pid) == one}):
            reap()
            time.sleep(0.02)
        if not waiting:
            return


def reap() -> None:
    """Let the zombies of orphans that became our children go."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
