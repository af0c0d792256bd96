"""Limits of units: set before the program starts, changed while it runs, and read back from the kernel.

Memory and processes are bounded per unit by control groups (v1 or v2) where the host may write them. Elsewhere
RLIMIT_AS and RLIMIT_NPROC stand in, which bound address space per process and processes per *user id*: that is why they
are not set as well where a control group does the work. Cores are enforced by control groups only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import resource
import subprocess
import time

import msgspec

from groundcontrol.drivers.local.wanted import python
from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.ports.processes import Limits

MIB = 1 << 20
PERIOD = 100_000
V1 = "/sys/fs/cgroup"
_CONTROLLERS = ("memory", "pids", "cpu")
_libc = ctypes.CDLL(None, use_errno=True)


class _Limit(ctypes.Structure):
    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


_libc.prlimit.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Limit), ctypes.POINTER(_Limit)]
_INFINITY = (1 << 64) - 1


def get_rlimit(pid: int, which: int) -> int | None:
    """Soft limit of a running process, 0 for none; None when it is gone. (`resource.prlimit` may not be called for
    a process of another user id without privilege, and raises too late to tell; this asks the kernel directly.)"""
    old = _Limit()
    if _libc.prlimit(pid, which, None, ctypes.byref(old)) != 0:
        return _shown_rlimit(pid, which) if ctypes.get_errno() == errno.EPERM else None
    return 0 if old.soft == _INFINITY else int(old.soft)


_SHOWN = {
    resource.RLIMIT_NOFILE: "Max open files",
    resource.RLIMIT_AS: "Max address space",
    resource.RLIMIT_NPROC: "Max processes",
}


def _shown_rlimit(pid: int, which: int) -> int | None:
    """As `get_rlimit`, for a root that lacks CAP_SYS_RESOURCE (in many containers): everybody may read this file."""
    for line in _read(f"/proc/{pid}/limits").splitlines():
        if line.startswith(_SHOWN[which]):
            soft = line.removeprefix(_SHOWN[which]).split()[0]
            return 0 if soft == "unlimited" else int(soft)
    return None


def set_rlimit(pid: int, which: int, value: int) -> None:
    bound = value or _INFINITY
    if _libc.prlimit(pid, which, ctypes.byref(_Limit(bound, bound)), None) != 0:
        number = ctypes.get_errno()
        if number != errno.EPERM or os.geteuid() != 0 or not _set_as_owner(pid, which, value or -1):
            raise OSError(number, os.strerror(number))


def _set_as_owner(pid: int, which: int, value: int) -> bool:
    """Let the process's own user do what a root without CAP_SYS_RESOURCE may not: within the hard limit, that is."""
    code = f"import resource; resource.prlimit({pid}, {which}, ({value}, {value}))"
    try:
        owner = os.stat(f"/proc/{pid}")
        done = subprocess.run(
            [python(), "-I", "-S", "-c", code],
            user=owner.st_uid,
            group=owner.st_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as source:
            return source.read().strip()
    except OSError:
        return ""


def _write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as out:
            out.write(text)
        return True
    except OSError:
        return False


class Groups:
    """Control groups of one host: `ground-<hash of root>/<unit>` below each controller that may be written."""

    def __init__(self, root: str, wanted: bool = True) -> None:
        self.name = "ground-" + hashlib.sha256(root.encode()).hexdigest()[:12]
        self.tops: dict[str, str] = {}
        """Controller to the folder that holds the units' groups."""
        self.unified = os.path.exists(f"{V1}/cgroup.controllers")
        if wanted:
            self._find_unified() if self.unified else self._find_v1()

    def _find_v1(self) -> None:
        for controller in _CONTROLLERS:
            top = f"{V1}/{controller}/{self.name}"
            with contextlib.suppress(OSError):
                os.makedirs(top, exist_ok=True)
                if os.access(f"{top}/cgroup.procs", os.W_OK):
                    self.tops[controller] = top

    def _find_unified(self) -> None:
        top = f"{V1}/{self.name}"
        try:
            os.makedirs(top, exist_ok=True)
        except OSError:
            return
        for controller in _CONTROLLERS:
            _write(f"{V1}/cgroup.subtree_control", f"+{controller}")
            if _write(f"{top}/cgroup.subtree_control", f"+{controller}"):
                self.tops[controller] = top

    def close(self) -> None:
        """Remove the top folders when no unit is left in them."""
        for top in self.tops.values():
            with contextlib.suppress(OSError):
                os.rmdir(top)

    def paths(self, unit_id: str) -> set[str]:
        return {f"{top}/{unit_id}" for top in self.tops.values()}

    def prepare(self, unit_id: str, limits: Limits) -> list[str]:
        """Make the unit's groups with its limits; return the files a new process writes itself into."""
        for path in self.paths(unit_id):
            with contextlib.suppress(OSError):
                os.makedirs(path, exist_ok=True)
        self.apply(unit_id, limits)
        return [f"{path}/cgroup.procs" for path in sorted(self.paths(unit_id))]

    def apply(self, unit_id: str, limits: Limits) -> None:
        if "memory" in self.tops:
            path = f"{self.tops['memory']}/{unit_id}"
            if self.unified:
                _write(f"{path}/memory.max", str(limits.memory_mb * MIB) if limits.memory_mb else "max")
            else:
                _write(f"{path}/memory.limit_in_bytes", str(limits.memory_mb * MIB if limits.memory_mb else -1))
        if "pids" in self.tops:
            _write(f"{self.tops['pids']}/{unit_id}/pids.max", str(limits.processes) if limits.processes else "max")
        if "cpu" in self.tops:
            path, quota = f"{self.tops['cpu']}/{unit_id}", round(limits.cores * PERIOD)
            if self.unified:
                _write(f"{path}/cpu.max", f"{max(1000, quota)} {PERIOD}" if quota else f"max {PERIOD}")
            else:
                _write(f"{path}/cpu.cfs_quota_us", str(max(1000, quota)) if quota else "-1")

    def members(self, unit_id: str) -> set[int]:
        """Every process in the unit's groups."""
        found: set[int] = set()
        for path in self.paths(unit_id):
            found.update(int(pid) for pid in _read(f"{path}/cgroup.procs").split())
        return found

    def remove(self, unit_id: str) -> None:
        """Remove the unit's groups, which must be empty; the kernel may need a moment after the last death."""
        for path in self.paths(unit_id):
            for _ in range(50):
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.002)
                else:
                    break

    def observe(self, unit_id: str, wanted: Limits) -> Limits:
        """The limits the kernel holds, where a group holds them; `wanted` for the rest."""
        changes: dict[str, int | float] = {}
        if "memory" in self.tops:
            name = "memory.max" if self.unified else "memory.limit_in_bytes"
            text = _read(f"{self.tops['memory']}/{unit_id}/{name}")
            # v1 says "no limit" with a number near 2^63.
            held = 0 if not text.isdigit() or int(text) > 1 << 60 else int(text) // MIB
            changes["memory_mb"] = held
        if "pids" in self.tops:
            text = _read(f"{self.tops['pids']}/{unit_id}/pids.max")
            changes["processes"] = int(text) if text.isdigit() else 0
        if "cpu" in self.tops:
            name = "cpu.max" if self.unified else "cpu.cfs_quota_us"
            text = (_read(f"{self.tops['cpu']}/{unit_id}/{name}").split() or [""])[0]
            quota = int(text) if text.isdigit() else 0
            if quota != (max(1000, round(wanted.cores * PERIOD)) if wanted.cores else 0):
                changes["cores"] = quota / PERIOD
        return msgspec.structs.replace(wanted, **changes) if changes else wanted

    def _by_rlimit(self, limits: Limits) -> list[tuple[str, str, int]]:
        """(field, resource, value) of what has no group."""
        rows = [("open_files", "RLIMIT_NOFILE", limits.open_files)]
        if "memory" not in self.tops:
            rows.append(("memory_mb", "RLIMIT_AS", limits.memory_mb * MIB))
        if "pids" not in self.tops:
            rows.append(("processes", "RLIMIT_NPROC", limits.processes))
        return rows

    def rlimits(self, limits: Limits) -> list[tuple[str, int, int]]:
        """What the new process sets on itself: (resource, soft, hard)."""
        return [(name, value, value) for _, name, value in self._by_rlimit(limits) if value]

    def apply_rlimits(self, pids: set[int], old: Limits, new: Limits) -> None:
        """Change the limits of running processes; Invalid when the kernel does not allow it in place."""
        before = {field: value for field, _, value in self._by_rlimit(old)}
        for field, name, value in self._by_rlimit(new):
            if not value and not before[field]:
                continue
            for pid in pids:
                try:
                    set_rlimit(pid, getattr(resource, name), value)
                except ProcessLookupError:
                    continue
                except OSError as problem:
                    remedy = "only root raises a limit of a running process: replace the unit"
                    text = f"cannot be set to {value or 'none'}: {problem.strerror}"
                    raise Invalid(problems=(Problem(text, f"limits.{field}", remedy=remedy),)) from None

    def observe_rlimits(self, pid: int, wanted: Limits) -> Limits:
        """The limits the running process has, where they differ from what was wanted."""
        changes = {}
        for field, name, value in self._by_rlimit(wanted):
            # Unlimited is wanted by 0, and what the host itself runs under is then inherited: nothing to compare.
            held = get_rlimit(pid, getattr(resource, name)) if value else None
            if held is not None and held != value:
                changes[field] = held // MIB if field == "memory_mb" else held
        return msgspec.structs.replace(wanted, **changes) if changes else wanted
