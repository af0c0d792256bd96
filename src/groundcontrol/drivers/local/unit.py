"""One unit as its host holds it in memory, and how it is shown: what was ordered, set against files and kernel."""

from __future__ import annotations

import os
import resource
import threading
import time
from typing import Any, NamedTuple

import msgspec

from groundcontrol.drivers.local import folder, process
from groundcontrol.drivers.local.checks import Health, Patient
from groundcontrol.drivers.local.limits import Groups, get_rlimit
from groundcontrol.drivers.local.state import Place, Record
from groundcontrol.ports.processes import UnitObserved, UnitSpec, UnitState

FROZEN = "the process is stopped by a signal (state T): send it SIGCONT, or stop and start the unit"


class Life(NamedTuple):
    """The run a unit has, or had last."""

    state: UnitState = "stopped"
    pid: int = 0
    ticks: int = 0
    pidfd: int = -1


class Unit:
    """Record and life change together, in one assignment, so that a listing never shows half of a change."""

    def __init__(self, place: Place, record: Record, life: Life | None = None) -> None:
        self.lock = threading.RLock()
        """Held for a whole change of this unit; never to look."""
        self.now = (record, life or Life())
        self.directory = f"{place.unit(record.id)}/dir"
        self.log = f"{place.unit(record.id)}/log"
        self.patient: Patient | None = None
        self.unswept: process.Tree | None = None
        """The tree of a run that ended, until it is certain that nothing of it is left."""
        self.frozen = 0.0
        """When the process was first seen stopped by a signal; 0 while it is not."""
        self._texts: dict[str, tuple[folder.Stamp | None, str | None]] = {}
        self._signature: Any = None

    @property
    def record(self) -> Record:
        return self.now[0]

    @property
    def life(self) -> Life:
        return self.now[1]

    def owner(self) -> int:
        uid = self.record.uid
        return os.geteuid() if uid is None else uid

    def edited(self) -> bool:
        """True when files, limits or the process's state changed since the last call; cheap."""
        record, life = self.now
        stamps = tuple(folder.stamp(self.directory, path) for path in record.spec.files)
        limits, state = None, ""
        if life.state == "running":
            seen = process.look_at(life.pid)
            state = "T" if seen is not None and seen.state in "Tt" else ""
            limits = tuple(
                get_rlimit(life.pid, which)
                for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC)
            )
        self.frozen = 0.0 if not state else self.frozen or time.time()
        signature = (record.revision, life.pid, stamps, limits, state)
        before, self._signature = self._signature, signature
        # A change of revision was announced by whoever made it.
        return before is not None and before != signature and before[:2] == signature[:2]

    def files_in_world(self, spec: UnitSpec) -> dict[str, str]:
        """The files of the spec as they are on disk; absent ones are left out."""
        found: dict[str, str] = {}
        for path in spec.files:
            stamp = folder.stamp(self.directory, path)
            cached = self._texts.get(path)
            # A file changed within the clock's grain may keep its stamp: only an old stamp is believed.
            if cached is None or cached[0] != stamp or stamp is None or time.time_ns() - stamp[3] < 20_000_000:
                cached = (stamp, folder.read(self.directory, path, self.owner()))
                self._texts[path] = cached
            if cached[1] is not None:
                found[path] = cached[1]
        return found

    def observe(self, groups: Groups) -> UnitObserved:
        """The unit as it is in the world now."""
        record, life = self.now
        running = life.state == "running"
        health, spec = self.patient.health if self.patient is not None and running else Health(), record.spec
        changes: dict[str, Any] = {}
        if spec.files and (files := self.files_in_world(spec)) != spec.files:
            changes["files"] = files
        if running:
            limits = groups.observe_rlimits(life.pid, groups.observe(record.id, spec.limits))
            if limits != spec.limits:
                changes["limits"] = limits
            seen = process.look_at(life.pid)
            if seen is not None and seen.ticks == life.ticks and seen.state in "Tt":
                self.frozen = self.frozen or time.time()
                health = Health(False, FROZEN, self.frozen, time.time())
        return UnitObserved(
            id=record.id,
            tags=record.tags,
            revision=record.revision,
            spec=msgspec.structs.replace(spec, **changes) if changes else spec,
            secret_hash=record.secret_hash,
            state=life.state,
            address=record.address,
            pid=life.pid if running else 0,
            started=record.started,
            starts=record.starts,
            exits=record.exits,
            exit_code=record.exit_code,
            exited=record.exited,
            healthy=health.healthy,
            health_message=health.message,
            health_since=health.since,
            probed=health.probed,
        )
