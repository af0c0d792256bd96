"""A host of units in memory: the same promises as a real one, and faults to order.

`fencing` decides how it treats what is repeated. `fences`: as the local driver. `idempotent`: no epoch is known, a
repeated create finds the first unit. `neither`: the host chooses the id itself (`<id>-2`, …), so that a repeated create
makes a second unit with the same tags; only `find` by the tag `change` tells.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from groundcontrol.kernel.errors import (
    Conflict,
    Fenced,
    GroundError,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Problem,
    Unavailable,
)
from groundcontrol.ports.processes import Fencing, HostObserved, LogChunk, Processes, UnitObserved, UnitSpec

IN_PLACE = frozenset({"files", "limits", "check", "stop_grace", "run_once"})
Moment = Literal["before", "after"]


class Fault:
    """One failure to come: raised before the call does anything, or after it did all of it."""

    def __init__(self, call: str, moment: Moment, error: GroundError | None, hang: threading.Event | None) -> None:
        self.call, self.moment, self.error, self.hang = call, moment, error, hang


class MemoryHost(Processes):
    """Units that are only entries. Health is what `set_health` says; a unit with a check is healthy once it runs."""

    def __init__(
        self,
        *,
        fencing: Fencing = "fences",
        cores: float = 8.0,
        memory_mb: int = 16384,
        clock: Callable[[], float] = time.time,
        isolates_users: bool = True,
    ) -> None:
        self.fencing = fencing
        self.clock = clock
        self.calls: list[tuple[str, str]] = []
        """(call, unit id) of everything that was asked, faulty or not."""
        self.ails: Callable[[UnitSpec], str] = lambda spec: ""
        """What is wrong with such a unit as soon as it runs; empty when it is healthy."""
        self._cores, self._memory_mb, self._isolates = cores, memory_mb, isolates_users
        self._units: dict[str, UnitObserved] = {}
        self._wanted: dict[str, UnitSpec] = {}
        self._logs: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._partial = False
        self._hidden: frozenset[str] = frozenset()
        self._epoch, self._next_pid, self._next_address = 0, 1000, 1
        self._condition = threading.Condition(threading.RLock())
        self._sequence = 1

    # ------------------------------------------------------------------------------------------------ faults to order

    def fail(self, call: str = "*", *, moment: Moment = "before", error: GroundError | None = None) -> None:
        """Let the next such call fail. Default error: Unavailable before, OutcomeUnknown after the effect."""
        text = f"ordered fault: {call} {moment}"
        self._faults.append(
            Fault(call, moment, error or (Unavailable(text) if moment == "before" else OutcomeUnknown(text)), None)
        )

    def hang(self, call: str = "*", *, moment: Moment = "before") -> threading.Event:
        """Let the next such call hang until the event that is returned is set."""
        event = threading.Event()
        self._faults.append(Fault(call, moment, None, event))
        return event

    def hide(self, *unit_ids: str, complete: bool = False) -> None:
        """Leave units out of listings. `complete`: lie that nothing is missing (a dead cell). No ids: show all."""
        with self._condition:
            self._partial = bool(unit_ids) and not complete
            self._hidden = frozenset(unit_ids)
            self._bump()

    def lose(self, *unit_ids: str) -> None:
        """Units vanish, as if somebody had deleted them by hand."""
        with self._condition:
            for unit_id in unit_ids:
                del self._units[unit_id]
            self._bump()

    def kill(self, unit_id: str, code: int | None = -9) -> None:
        """The unit's process ends by itself; code 0 to 255, negative: a signal, None: unknown."""
        with self._condition:
            unit = self._need(unit_id)
            if unit.state == "running":
                self._end(unit, "exited", code, exits=unit.exits + 1)

    def reboot(self) -> None:
        """The machine goes down and comes back: what ran is `lost`."""
        with self._condition:
            for unit in list(self._units.values()):
                if unit.state == "running":
                    self._end(unit, "lost", None, exits=unit.exits + 1)

    def edit_file(self, unit_id: str, path: str, text: str | None) -> None:
        """Change a file by hand; None removes it."""
        with self._condition:
            unit = self._need(unit_id)
            files = {**unit.spec.files, path: text or ""}
            if text is None or path not in self._wanted[unit_id].files:
                files.pop(path)
            self._put(unit, spec=msgspec.structs.replace(unit.spec, files=files))

    def edit(self, unit_id: str, **fields: Any) -> None:
        """Change any field of what is observed of the unit, behind everybody's back."""
        with self._condition:
            self._put(self._need(unit_id), **fields)

    def set_health(self, unit_id: str, healthy: bool | None, message: str = "") -> None:
        with self._condition:
            now = self.clock()
            self._put(self._need(unit_id), healthy=healthy, health_message=message, health_since=now, probed=now)

    def print(self, unit_id: str, text: str) -> None:
        """The unit writes to its log."""
        with self._condition:
            self._logs[unit_id] = self._logs.get(unit_id, b"") + text.encode()
            self._condition.notify_all()

    # ------------------------------------------------------------------------------------------------ look

    def look(self) -> HostObserved:
        with self._around("look", ""), self._condition:
            return HostObserved(
                units=tuple(unit for key, unit in sorted(self._units.items()) if key not in self._hidden),
                complete=not self._partial,
                sequence=self._sequence,
                time=self.clock(),
                cores=self._cores,
                memory_mb=self._memory_mb,
                isolates_users=self._isolates,
            )

    def wait(self, since: int, timeout: float) -> int:
        with self._around("wait", ""), self._condition:
            self._condition.wait_for(lambda: self._sequence != since, timeout)
            return self._sequence

    def find(self, tag: str, value: str) -> tuple[str, ...]:
        with self._around("find", ""), self._condition:
            return tuple(sorted(key for key, unit in self._units.items() if unit.tags.get(tag) == value))

    def get(self, unit_id: str) -> UnitObserved:
        with self._around("get", unit_id), self._condition:
            return self._need(unit_id)

    def log(self, unit_id: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        with self._around("log", unit_id), self._condition:
            self._need(unit_id)
            data = self._logs.get(unit_id, b"")
            offset = max(0, len(data) + offset) if offset < 0 else min(offset, len(data))
            piece = data[offset : offset + limit]
            return LogChunk(piece.decode(errors="replace"), offset + len(piece))

    def follow(self, unit_id: str, offset: int = 0) -> Iterator[LogChunk]:
        chunk = self.log(unit_id, offset)
        yield chunk
        while unit_id in self._units:
            with self._condition:
                self._condition.wait(0.1)
                if unit_id not in self._units:
                    return
                chunk = self.log(unit_id, chunk.offset)
            if chunk.text:
                yield chunk

    # ------------------------------------------------------------------------------------------------ change

    def create(self, unit_id: str, spec: UnitSpec, tags: dict[str, str], *, epoch: int) -> UnitObserved:
        with self._around("create", unit_id), self._condition:
            self._check(unit_id, spec)
            self._admit(epoch)
            known = self._units.get(unit_id)
            if known is not None and self.fencing != "neither":
                if self._wanted[unit_id] != spec:
                    raise Conflict(f"unit {unit_id} has another spec (revision {known.revision}): update or delete it")
                return known
            chosen, number = unit_id, 1
            while chosen in self._units:
                number += 1
                chosen = f"{unit_id}-{number}"
            self._check_room(chosen, spec)
            unit = UnitObserved(
                id=chosen,
                tags=dict(tags),
                revision=0,
                spec=msgspec.structs.replace(spec, secret_env={}),
                secret_hash=self._hash(chosen, spec.secret_env),
                state="stopped",
                address=f"127.99.{self._next_address // 254}.{self._next_address % 254 + 1}",
            )
            self._next_address += 1
            self._wanted[chosen], self._logs[chosen] = spec, b""
            return self._run(unit)

    def update(self, unit_id: str, spec: UnitSpec, *, if_revision: int, epoch: int) -> UnitObserved:
        with self._around("update", unit_id), self._condition:
            self._check(unit_id, spec)
            unit, old = self._held(unit_id, if_revision, epoch), self._wanted[unit_id]
            if not spec.secret_env:
                spec = msgspec.structs.replace(spec, secret_env=old.secret_env)
            names = [name for name in UnitSpec.__struct_fields__ if name not in IN_PLACE]
            fields = [name for name in names if getattr(old, name) != getattr(spec, name)]
            if fields:
                raise Invalid(problems=tuple(Problem("cannot change in place", name) for name in fields))
            self._check_room(unit_id, spec)
            self._wanted[unit_id] = spec
            shown = msgspec.structs.replace(spec, secret_env={})
            return self._put(unit, spec=shown, revision=unit.revision + 1)

    def start(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        with self._around("start", unit_id), self._condition:
            unit = self._held(unit_id, if_revision, epoch)
            return unit if unit.state == "running" else self._run(unit)

    def stop(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        with self._around("stop", unit_id), self._condition:
            unit = self._held(unit_id, if_revision, epoch)
            return self._end(unit, "stopped", 0) if unit.state == "running" else unit

    def delete(self, unit_id: str, *, epoch: int) -> None:
        with self._around("delete", unit_id), self._condition:
            self._admit(epoch)
            if self._units.pop(unit_id, None) is not None:
                self._wanted.pop(unit_id, None)
                self._logs.pop(unit_id, None)
                self._bump()

    # ------------------------------------------------------------------------------------------------ parts

    def _around(self, call: str, unit_id: str) -> _Around:
        return _Around(self, call, unit_id)

    def _fault(self, call: str, moment: Moment) -> None:
        for fault in self._faults:
            if fault.call in ("*", call) and fault.moment == moment:
                self._faults.remove(fault)
                if fault.hang is not None:
                    fault.hang.wait()
                if fault.error is not None:
                    raise fault.error
                return

    def _bump(self) -> None:
        self._sequence += 1
        self._condition.notify_all()

    def _put(self, unit: UnitObserved, **fields: Any) -> UnitObserved:
        changed = msgspec.structs.replace(unit, **fields)
        self._units[unit.id] = changed
        self._bump()
        return changed

    def _need(self, unit_id: str) -> UnitObserved:
        if unit_id not in self._units:
            raise NotFound(f"there is no unit {unit_id!r} on this host")
        return self._units[unit_id]

    def _admit(self, epoch: int) -> None:
        if self.fencing == "fences":
            if epoch < self._epoch:
                raise Fenced(f"epoch {epoch} is over: this host has seen epoch {self._epoch}")
            self._epoch = epoch

    def _held(self, unit_id: str, if_revision: int, epoch: int) -> UnitObserved:
        self._admit(epoch)
        unit = self._need(unit_id)
        if unit.revision != if_revision:
            raise Conflict(f"unit {unit_id} is at revision {unit.revision}, not {if_revision}: look again")
        return unit

    def _check(self, unit_id: str, spec: UnitSpec) -> None:
        problems = [] if spec.command and spec.command[0] else [Problem("names no program", "command")]
        if not unit_id or "/" in unit_id or unit_id.startswith("."):
            problems.append(Problem(f"{unit_id!r} cannot be the id of a unit", "id"))
        outside = [path for path in spec.files if any(part in ("", ".", "..") for part in path.split("/"))]
        problems += [Problem(f"{path!r} does not stay inside the unit's directory", "files") for path in outside]
        if problems:
            raise Invalid(problems=tuple(problems))

    def _check_room(self, unit_id: str, spec: UnitSpec) -> None:
        others = [other.limits for key, other in self._wanted.items() if key != unit_id and key in self._units]
        free_cores = round(self._cores - sum(other.cores for other in others), 6)
        free_memory = self._memory_mb - sum(other.memory_mb for other in others)
        if spec.limits.cores > free_cores or spec.limits.memory_mb > free_memory:
            raise Conflict(f"no room for unit {unit_id}: free are {free_cores:g} cores and {free_memory} MB")

    def _hash(self, unit_id: str, secret_env: dict[str, str]) -> str:
        text = json.dumps([unit_id, sorted(secret_env.items())]).encode()
        return hashlib.sha256(text).hexdigest() if secret_env else ""

    def _run(self, unit: UnitObserved) -> UnitObserved:
        self._next_pid += 1
        now, probed, ails = self.clock(), unit.spec.check.kind != "none", self.ails(unit.spec)
        return self._put(
            unit,
            state="running",
            pid=self._next_pid,
            started=now,
            starts=unit.starts + 1,
            revision=unit.revision + 1,
            healthy=not ails if probed else None,
            health_message=ails,
            health_since=now if probed else 0.0,
            probed=now if probed else 0.0,
        )

    def _end(self, unit: UnitObserved, state: Any, code: int | None, **fields: Any) -> UnitObserved:
        return self._put(
            unit,
            state=state,
            pid=0,
            exit_code=code,
            exited=self.clock(),
            revision=unit.revision + 1,
            healthy=None,
            health_message="",
            **fields,
        )


class _Around:
    """Counts a call, and raises what was ordered for before and after it. After: only when it did its work."""

    def __init__(self, host: MemoryHost, call: str, unit_id: str) -> None:
        self._host, self._call = host, call
        host.calls.append((call, unit_id))

    def __enter__(self) -> None:
        self._host._fault(self._call, "before")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._host._fault(self._call, "after")
