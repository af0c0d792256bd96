"""Starts, watches and stops the processes of a cloud, each in a session of its own and remembered in a file."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from testbed.openstack.layout import LOCAL, BedError, patience, write

MARK = "GROUND_TESTBED_CLOUD"
"""In the environment of every process we start, and inherited by what it starts: the directory of its cloud."""
STOPPING = 30.0
"""Seconds a process has to end by itself before it is killed."""

Ready = Callable[[], str | None]
"""What is still missing, in words; None once nothing is."""


@dataclass(frozen=True)
class Part:
    """One long-running process of a cloud."""

    name: str
    root: Path
    """Of its cloud."""
    command: tuple[str, ...]
    ready: Ready = lambda: None
    environ: dict[str, str] = field(default_factory=dict)
    reads: tuple[Path, ...] = ()
    """Files it reads when it starts. A change of one means that it has to be started again."""
    fork: tuple[str, ...] = ()
    """Not empty: `command` is the fork server, and this is what it is told to make of one fork."""

    @property
    def log(self) -> Path:
        return self.root / "log" / f"{self.name}.log"

    @property
    def record(self) -> Path:
        return self.root / "run" / f"{self.name}.json"

    @property
    def key(self) -> str:
        """Changes when what would be started changes."""
        said = repr((self.command, sorted(self.environ.items()), self.fork)).encode()
        return hashlib.sha256(said + b"".join(path.read_bytes() for path in self.reads)).hexdigest()[:16]

    def pid(self) -> int | None:
        """Of the process while it lives."""
        return _living(self.record)

    def stale(self) -> bool:
        """Whether it runs, and would be started differently today."""
        return self.pid() is not None and json.loads(self.record.read_text())["key"] != self.key

    def remember(self, pid: int) -> None:
        born = _born(pid)
        write(self.record, json.dumps({"pid": pid, "born": born, "key": self.key}) + "\n")


# ------------------------------------------------------------------------------------------------ processes


def _born(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None when it has ended. A pid may be given again."""
    try:
        behind_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if behind_the_name[0] in "ZX" else int(behind_the_name[19])


def _living(record: Path) -> int | None:
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        return None
    alive = known["born"] is not None and _born(known["pid"]) == known["born"]
    return int(known["pid"]) if alive else None


def _environ(part: Part) -> dict[str, str]:
    """Nothing of the caller's: no proxy, no OS_…, no PYTHON…"""
    binaries = f"{Path(part.command[0]).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ours = {"HOME": str(part.root / "state"), "XDG_CACHE_HOME": str(part.root / "state" / "cache")}
    return {"PATH": binaries, "LANG": "C.UTF-8", MARK: str(part.root), **ours, **part.environ}


def start(parts: Sequence[Part]) -> None:
    """Start these, which must not be running. Does not wait until they are ready."""
    for part in parts:
        for folder in (part.log.parent, part.record.parent, part.root / "state"):
            folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if not part.fork:
            with part.log.open("ab") as out:
                process = subprocess.Popen(
                    part.command,
                    env=_environ(part),
                    cwd=part.root,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            part.remember(process.pid)
            # It outlives us: nobody here waits for it, and Python need not warn of that.
            process.returncode = 0
    if forked := [part for part in parts if part.fork]:
        _fork(forked)


def _fork(parts: list[Part]) -> None:
    """One process imports the program, and each part is a fork of it: less CPU to start, half the memory."""
    server = parts[0]
    log = server.root / "log" / "fork.log"
    wanted = [{"name": p.name, "log": str(p.log), "words": p.fork} for p in parts]
    with log.open("ab") as errors:
        try:
            done = subprocess.run(
                server.command,
                env=_environ(server),
                cwd=server.root,
                input=json.dumps(wanted).encode(),
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=patience(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BedError(
                f"the fork server of {server.root.name} took longer than {patience():.0f} s; {log}"
            ) from None
    if done.returncode:
        raise BedError(f"the fork server of {server.root.name} failed; see {log}\n{tail(log)}")
    pids = json.loads(done.stdout)
    for part in parts:
        part.remember(pids[part.name])


def wait(parts: Iterable[Part]) -> None:
    """Until every part is ready. Raises BedError when one ends, or takes longer than `patience`."""
    for part in parts:
        deadline = time.monotonic() + patience()
        while (lacks := part.ready()) is not None:
            where = f"{part.name} of {part.root.name}"
            if part.pid() is None:
                raise BedError(f"{where} ended instead of becoming ready; see {part.log}\n{tail(part.log)}")
            if time.monotonic() > deadline:
                said = f"{where} is not ready after {patience():.0f} s ({lacks})"
                raise BedError(f"{said}; see {part.log}, or give GROUND_TESTBED_PATIENCE\n{tail(part.log)}")
            time.sleep(0.2)


def stop(parts: Iterable[Part], hard: bool = False) -> None:
    """End these and whatever they started, all at once; kill what does not end in time."""
    ending: dict[int, Part] = {}
    for part in parts:
        if (pid := part.pid()) is not None:
            _signal(pid, signal.SIGKILL if hard else signal.SIGTERM)
            ending[pid] = part
        else:
            part.record.unlink(missing_ok=True)
    deadline = time.monotonic() + STOPPING
    while ending:
        for pid, part in list(ending.items()):
            if not _group(pid):
                part.record.unlink(missing_ok=True)
                del ending[pid]
            elif time.monotonic() > deadline:
                _signal(pid, signal.SIGKILL)
        if time.monotonic() > deadline + STOPPING:
            names = ", ".join(f"{part.name} ({pid})" for pid, part in ending.items())
            raise BedError(f"still there {STOPPING:.0f} s after SIGKILL: {names}")
        time.sleep(0.05)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _group(pid: int) -> bool:
    """Whether anybody of a process group still lives; the dead that nobody has buried do not count."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return any(group == pid and _born(other) is not None for other, group in _groups())


def _groups() -> Iterable[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[2])
        except OSError:
            continue


def left_over(root: Path) -> list[int]:
    """Processes of this directory that no record speaks of, by their environment or their command."""
    found = []
    mark, below = f"{MARK}={root}".encode(), f"{root}/".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == os.getpid() or _born(pid) is None:
            continue
        try:
            marked = mark in (folder / "environ").read_bytes().split(b"\0")
            # Some programs write their title over their environment. Somebody who reads our logs names the directory
            # too, so that alone is not enough.
            here = Path(os.readlink(folder / "cwd")) == root and below in (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if marked or here:
            found.append(pid)
    return found


def sweep(root: Path) -> list[int]:
    """Kill what is left over; their pids."""
    pids = left_over(root)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + STOPPING
    while any(_born(pid) is not None for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return pids


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "(there is no such log)"
    return "\n".join(f"  | {line[:300]}" for line in text.splitlines()[-lines:])


# ------------------------------------------------------------------------------------------------ readiness


def listens(address: int | Path) -> bool:
    """Whether somebody accepts connections at a local port or socket."""
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family) as probe:
        probe.settimeout(2)
        try:
            probe.connect((LOCAL, address) if isinstance(address, int) else str(address))
        except OSError:
            return False
        return True


def listening(address: int | Path) -> Ready:
    return lambda: None if listens(address) else f"nobody listens at {address}"


def answering(port: int) -> Ready:
    """An API that answers: a port that is open is not yet a program that has loaded."""

    def look() -> str | None:
        connection = http.client.HTTPConnection(LOCAL, port, timeout=10)
        try:
            connection.request("GET", "/")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return f"port {port}: {error}"
        finally:
            connection.close()
        return f"port {port} answers {status}" if status in (502, 503, 504) else None

    return look
