"""What the kernel says about processes: identity that survives pid reuse, trees, death, and killing all of a tree.

A process is known by pid *and* start time *and* boot id. A tree is known by its control group where there is one, and
by the token `GROUND_RUN=<unit>:<host>.<nonce>` in the environment, which children inherit even when they leave the
session. A process that rewrites its environment and has no control group is found by session and parentage only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple


@functools.cache
def boot_id() -> str:
    """Names this boot of the machine; process ids of another boot mean nothing."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
        return source.read().strip()


class Seen(NamedTuple):
    """One line of /proc/<pid>/stat, as much as is used here."""

    pid: int
    state: str
    """`R`, `S`, `D`, `T` stopped by a signal, `t` by a tracer, `Z` ended and not yet waited for."""
    parent: int
    session: int
    ticks: int
    """Field 22: start time in clock ticks since boot."""


def look_at(pid: int) -> Seen | None:
    """The process now, or None when there is none of that id."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        fields = os.read(descriptor, 4096).rpartition(b")")[2].split()
        return Seen(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None
    finally:
        os.close(descriptor)


def is_alive(pid: int, ticks: int) -> bool:
    """True while exactly this process runs; a zombie does not run."""
    seen = look_at(pid)
    return seen is not None and seen.ticks == ticks and seen.state not in "ZX"


def open_pidfd(pid: int, ticks: int) -> int:
    """A descriptor that becomes readable when the process ends; -1 when it is gone already."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    # The pid may have been used again before the descriptor was opened; after it, it cannot.
    if is_alive(pid, ticks):
        return descriptor
    os.close(descriptor)
    return -1


def wait_end(pidfd: int, timeout: float) -> bool:
    """True when the process ended within `timeout` seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def token_of(pid: int) -> str:
    """The value of GROUND_RUN in a process's environment; empty when there is none or it may not be read."""
    try:
        descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY)
    except OSError:
        return ""
    try:
        environ = b"\0"
        while (piece := os.read(descriptor, 1 << 17)) and len(environ) < 1 << 22:
            environ += piece
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    at = environ.find(b"\0GROUND_RUN=")
    return environ[at + 12 :].partition(b"\0")[0].decode(errors="replace") if at >= 0 else ""


def with_token(prefix: str) -> dict[int, str]:
    """Every live process whose token begins with `prefix`, by pid."""
    found = {}
    for pid in all_pids():
        token = token_of(pid)
        if token.startswith(prefix):
            found[pid] = token
    return found


def tree_of(session: int, known: Iterable[int], seen: Iterable[Seen]) -> set[int]:
    """Members of the session and descendants of `known`, out of a listing of all processes."""
    members = set(known)
    rows = [row for row in seen if row.state not in "ZX"]
    members.update(row.pid for row in rows if session and row.session == session)
    grown = True
    while grown:
        more = {row.pid for row in rows if row.parent in members} - members
        members |= more
        grown = bool(more)
    return members & {row.pid for row in rows}


class Tree(NamedTuple):
    """How the processes of one unit are recognised."""

    prefix: str
    """`<unit>:<host>.`: the beginning of the token of every run of this unit."""
    session: int
    """Session (and process group) id of the run, which is its first pid; 0 when that is long gone."""
    ticks: int
    """Start time of that first process: another process of that id proves that the session is over."""
    members: Callable[[], set[int]]
    """Pids in the unit's control group; empty where there is none."""


def find_tree(tree: Tree) -> set[int]:
    """Every live process of the unit. One pass over /proc."""
    rows, carrying = [], set(tree.members())
    for pid in all_pids():
        row = look_at(pid)
        if row is not None:
            rows.append(row)
            if pid not in carrying and token_of(pid).startswith(tree.prefix):
                carrying.add(pid)
    over = any(row.pid == tree.session and row.ticks != tree.ticks for row in rows)
    return tree_of(0 if over else tree.session, carrying, rows)


def kill_tree(tree: Tree, patience: float = 10.0) -> set[int]:
    """SIGKILL every process of the unit until none is found; return those that would not die (state D, usually)."""
    deadline = time.monotonic() + patience
    while True:
        pids = find_tree(tree)
        if not pids or time.monotonic() > deadline:
            return pids
        # Stopped first: what forks faster than one pass kills would never be caught otherwise.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                if number == signal.SIGKILL or len(pids) > 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
        time.sleep(0.002)


def started_at(ticks: int) -> float:
    """Seconds since the epoch, from ticks since boot."""
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - since_boot + ticks / os.sysconf("SC_CLK_TCK")
