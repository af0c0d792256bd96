"""What really runs, read from /proc and nowhere else: the units of an installation and whatever it left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Unit(NamedTuple):
    """One process that a site started."""

    pid: int
    run: str
    """GROUND_RUN, `unit:host.nonce`."""
    site: str
    directory: Path
    env: dict[str, str]
    uid: int

    @property
    def unit(self) -> str:
        return self.run.partition(":")[0]


def _environment(pid: str) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
        if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in b"ZX":
            return {}
    except OSError:
        return {}
    pairs = (word.partition(b"=") for word in raw.split(b"\0") if b"=" in word)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def units(root: Path) -> list[Unit]:
    """Every live process of a unit below `root`, `root/sites/<site>/…`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        env = _environment(pid)
        directory = Path(env.get("GROUND_DIR", "/"))
        if "GROUND_RUN" not in env or root not in directory.parents:
            continue
        try:
            uid = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            continue
        found.append(Unit(int(pid), env["GROUND_RUN"], directory.relative_to(root).parts[1], directory, env, uid))
    return sorted(found)


def belonging(root: Path) -> set[int]:
    """Pids of everything that mentions `root` in its environment or command line, ourselves excepted."""
    mark, found = os.fsencode(str(root)), set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in (os.getpid(), os.getppid()) or not _environment(pid):
            continue
        try:
            said = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if mark in said:
            found.add(int(pid))
    return found


def end(pids: Iterable[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def gone(root: Path, seconds: float) -> set[int]:
    """Wait until nothing that belongs to `root` is left; what still is."""
    deadline = time.monotonic() + seconds
    while (left := belonging(root)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def command(pid: int) -> str:
    """What it was started as."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "ended"


def environment(**given: str) -> dict[str, str]:
    """What a process is given: nothing of the person who runs the tests but how to find programs."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")}
    return {**kept, "HOME": "/nonexistent", "PYTHONUNBUFFERED": "1", **given}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
