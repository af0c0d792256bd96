"""Runs units as processes of this machine, and remembers them across its own death: the port `Processes`, in process.

What survives whom: units survive this process (their parent is the keeper), orders survive it too (written before they
are carried out), and nothing is started twice (see `runs`). One process serves a root at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from groundcontrol.drivers.local import folder, logs, process, recovery, wanted
from groundcontrol.drivers.local.grants import Addresses, Tenants, check_room
from groundcontrol.drivers.local.limits import Groups
from groundcontrol.drivers.local.runs import Runs
from groundcontrol.drivers.local.state import Place, Record, write_whole
from groundcontrol.drivers.local.turns import Turns
from groundcontrol.drivers.local.unit import Unit
from groundcontrol.kernel.errors import Conflict, GroundError, Invalid, NotFound, OutcomeUnknown, Problem, Unavailable
from groundcontrol.ports.processes import Fencing, HostObserved, LogChunk, Processes, UnitObserved, UnitSpec

LOG = logging.getLogger(__name__)


class LocalHost(Processes):
    """Units on this machine.

    `root`: where everything is kept. `addresses`: a part of 127.0.0.0/8, one address per unit; empty: chosen by the
    root's name. `cores`, `memory_mb`: capacity offered; 0: what the machine has. `uid_range`: user ids for tenants,
    used when this process is root. `cgroups`: use control groups where they can be written.
    """

    fencing: Fencing = "fences"

    def __init__(
        self,
        root: str,
        *,
        addresses: str = "",
        cores: float = 0.0,
        memory_mb: int = 0,
        uid_range: tuple[int, int] = (200_000, 209_999),
        cgroups: bool = True,
    ) -> None:
        self._place = Place(root)
        try:
            self.cores = cores or float(os.cpu_count() or 1)
            self.memory_mb = memory_mb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)
            self._addresses = Addresses(addresses, self._place.root)
            self._tenants = Tenants(self._place, uid_range)
            self._groups = Groups(self._place.root, cgroups)
            self._lock = threading.Lock()
            """Over who exists: ids, capacity, addresses, epoch."""
            self._turns = Turns()
            self._condition = threading.Condition()
            # Grows from the clock, so that a number given out before a restart is passed at once after it.
            self._sequence = int(time.time() * 1000)
            self._listeners: list[Callable[[], None]] = []
            self._closed = False
            self._place.sweep()
            self._units, self._damaged = recovery.load(self._place)
            self._reserved: dict[str, UnitSpec] = {}
            self._runs = Runs(self._place, self._groups, self._units.get, self._bump, self._tick)
        except BaseException:
            self._place.close()
            raise
        self._problems: list[str] = []
        self._resume()
        self._runs.watcher.start()

    def _resume(self) -> None:
        key = f":{self._place.host.key}."
        carrying = {pid: token for pid, token in process.with_token("").items() if key in token}
        self._problems = recovery.strays(self._units, self._damaged, carrying)
        for unit in self._units.values():
            self._addresses.keep(unit.record.address)
        for unit in list(self._units.values()):
            try:
                recovery.resume(unit, self._place, self._runs, carrying, self._remove)
            except (GroundError, OSError) as problem:
                self._problems.append(f"unit {unit.record.id} could not be taken up: {problem}")

    def close(self, *, stop_units: bool = False) -> None:
        """Stop serving. Units stay as they are, unless `stop_units`: then they are stopped and deleted."""
        if self._closed:
            return
        if stop_units:
            self._delete_all()
        self._closed = True
        self._bump()
        self._runs.close()
        self._groups.close()
        self._place.close()

    def _delete_all(self) -> None:
        """Side by side: the graces of many units must not add up."""
        epoch = self._place.host.epoch

        def delete(unit_id: str) -> None:
            with contextlib.suppress(GroundError):
                self.delete(unit_id, epoch=epoch)

        threads = [threading.Thread(target=delete, args=(unit_id,)) for unit_id in [*self._units, *self._damaged]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # ------------------------------------------------------------------------------------------------ change counter

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` from some thread after each change; it must not block."""
        self._listeners.append(listener)

    @property
    def sequence(self) -> int:
        """The change counter."""
        return self._sequence

    def _bump(self) -> None:
        with self._condition:
            self._sequence += 1
            self._condition.notify_all()
        for listener in self._listeners:
            listener()

    def _tick(self) -> None:
        """Twice a second: has anybody edited a unit by hand?"""
        for unit in list(self._units.values()):
            try:
                if unit.edited():
                    self._bump()
            except OSError as problem:
                LOG.warning("unit %s cannot be looked at: %s", unit.record.id, problem)

    def wait(self, since: int, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        with self._condition:
            # A number above ours is from before the clock was set back: the caller must look again.
            while self._sequence == since and not self._closed and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)
            return self._sequence

    # ------------------------------------------------------------------------------------------------ look

    def look(self) -> HostObserved:
        sequence, now, problems = self._sequence, time.time(), [*self._problems, *self._damaged.values()]
        observed, complete = [], not self._damaged
        for unit in sorted(self._units.values(), key=lambda unit: unit.record.id):
            try:
                observed.append(self._observe(unit))
            except (OSError, msgspec.MsgspecError) as problem:
                complete = False
                problems.append(f"unit {unit.record.id} cannot be read: {problem}")
        return HostObserved(
            units=tuple(observed),
            complete=complete,
            sequence=sequence,
            time=now,
            cores=self.cores,
            memory_mb=self.memory_mb,
            isolates_users=self._tenants.isolates,
            problems=tuple(problems),
        )

    def _observe(self, unit: Unit) -> UnitObserved:
        life = unit.life
        # The watcher is quick, but a look is the truth at the time of asking. Somebody at work on it knows anyway.
        if life.state == "running" and not process.is_alive(life.pid, life.ticks) and unit.lock.acquire(timeout=0.5):
            try:
                self._runs.refresh(unit)
            finally:
                unit.lock.release()
        return unit.observe(self._groups)

    def find(self, tag: str, value: str) -> tuple[str, ...]:
        return tuple(sorted(key for key, unit in list(self._units.items()) if unit.record.tags.get(tag) == value))

    def get(self, unit_id: str) -> UnitObserved:
        return self._observe(self._need(unit_id))

    def _need(self, unit_id: str) -> Unit:
        unit = self._units.get(unit_id)
        if unit is None:
            if unit_id in self._damaged:
                raise OutcomeUnknown(f"{self._damaged[unit_id]}: mend the file or delete the unit")
            raise NotFound(f"there is no unit {unit_id!r} on this host")
        return unit

    # ------------------------------------------------------------------------------------------------ change

    @contextlib.contextmanager
    def _turn(self, unit_id: str, epoch: int) -> Iterator[None]:
        """One change of an id at a time, and none under an epoch that is over by the time its turn comes."""
        with self._turns.take(unit_id):
            with self._lock:
                if self._closed:
                    raise Unavailable("this host is being closed: ask again when it is back")
                self._place.admit(epoch)
            yield

    def create(self, unit_id: str, spec: UnitSpec, tags: dict[str, str], *, epoch: int) -> UnitObserved:
        wanted.check_id(unit_id)
        wanted.check_spec(spec)
        if (
            any(not isinstance(text, str) for pair in tags.items() for text in pair)
            or len(msgspec.json.encode(tags)) > 65536
        ):
            raise Invalid(problems=(Problem("more than 64 KiB of tags", "tags"),))
        with self._turn(unit_id, epoch):
            if unit_id in self._damaged:
                raise Conflict(f"{self._damaged[unit_id]}: delete unit {unit_id} before it is created again")
            known = self._units.get(unit_id)
            if known is not None:
                return self._same_or_conflict(known, spec)
            uid = self._tenants.uid(spec.user)
            with self._lock:
                address = self._addresses.take()
                try:
                    self._reserve(unit_id, spec)
                except Conflict:
                    self._addresses.release(address)
                    raise
            try:
                unit = self._make(unit_id, spec, tags, address, uid)
            except BaseException:
                with self._lock:
                    self._addresses.release(address)
                raise
            finally:
                self._reserved.pop(unit_id, None)
            with unit.lock:
                self._runs.begin(unit)
            return self._observe(unit)

    def _same_or_conflict(self, unit: Unit, spec: UnitSpec) -> UnitObserved:
        record = unit.record
        hashed = self._place.hash_secret(record.id, spec.secret_env)
        if record.goal == "delete":
            raise Conflict(f"unit {record.id} is being deleted: wait until it is gone")
        if record.spec != msgspec.structs.replace(spec, secret_env={}) or record.secret_hash != hashed:
            raise Conflict(f"unit {record.id} has another spec (revision {record.revision}): update or delete it")
        return self._observe(unit)

    def _reserve(self, unit_id: str, spec: UnitSpec) -> None:
        """Hold room for the unit until it is in the list, or give its Conflict. Under the lock."""
        others = {key: unit.record.spec for key, unit in self._units.items()} | self._reserved
        others.pop(unit_id, None)
        check_room(unit_id, spec, others.values(), self.cores, self.memory_mb)
        self._reserved[unit_id] = spec

    def _make(self, unit_id: str, spec: UnitSpec, tags: dict[str, str], address: str, uid: int | None) -> Unit:
        """Put the unit together out of sight and publish it with the intent to run."""
        draft = self._place.begin()
        directory, owner = f"{draft}/dir", os.geteuid() if uid is None else uid
        os.mkdir(directory, 0o700)
        if owner != os.geteuid():
            os.chown(directory, owner, owner)
        for path, text in spec.files.items():
            folder.write(directory, path, text, owner)
        if spec.secret_env:
            write_whole(f"{draft}/secret", msgspec.json.encode(spec.secret_env))
        record = Record(
            id=unit_id,
            tags=dict(tags),
            spec=msgspec.structs.replace(spec, secret_env={}),
            secret_hash=self._place.hash_secret(unit_id, spec.secret_env),
            address=address,
            uid=uid,
            run=self._runs.nonce(),
            starts=1,
        )
        write_whole(f"{draft}/unit.json", msgspec.json.encode(record))
        self._place.publish(draft, unit_id)
        unit = Unit(self._place, record)
        with self._lock:
            self._units[unit_id] = unit
        return unit

    @contextlib.contextmanager
    def _changing(self, unit_id: str, if_revision: int, epoch: int) -> Iterator[Unit]:
        with self._turn(unit_id, epoch):
            unit = self._need(unit_id)
            with unit.lock:
                self._runs.refresh(unit)
                record = unit.record
                if record.goal == "delete":
                    raise Conflict(f"unit {unit_id} is being deleted")
                if record.revision != if_revision:
                    raise Conflict(f"unit {unit_id} is at revision {record.revision}, not {if_revision}: look again")
                yield unit

    def update(self, unit_id: str, spec: UnitSpec, *, if_revision: int, epoch: int) -> UnitObserved:
        wanted.check_spec(spec)
        with self._changing(unit_id, if_revision, epoch) as unit:
            old, life = unit.record, unit.life
            fields = wanted.new_unit_fields(old.spec, spec)
            # The secrets may be left out, since they are never shown; given, they must be the same.
            if spec.secret_env and self._place.hash_secret(unit_id, spec.secret_env) != old.secret_hash:
                fields.append("secret_env")
            if fields:
                remedy = "create a new unit beside it and delete this one"
                text = "cannot change in place"
                raise Invalid(problems=tuple(Problem(text, field, remedy=remedy) for field in fields))
            spec = msgspec.structs.replace(spec, secret_env={})
            with self._lock:
                self._reserve(unit_id, spec)
            try:
                if life.state == "running":
                    pids = process.find_tree(self._runs.tree(old, life))
                    self._groups.apply_rlimits(pids, old.spec.limits, spec.limits)
                    self._groups.apply(unit_id, spec.limits)
                record = msgspec.structs.replace(old, spec=spec, revision=old.revision + 1, unapplied=True)
                self._place.save(record)
                unit.now = (record, life)
            finally:
                self._reserved.pop(unit_id, None)
            for path in old.spec.files.keys() - spec.files.keys():
                folder.remove(unit.directory, path)
            in_world = unit.files_in_world(spec)
            for path, text in spec.files.items():
                if in_world.get(path) != text:
                    folder.write(unit.directory, path, text, unit.owner())
            unit.now = (msgspec.structs.replace(record, unapplied=False), life)
            self._place.save(unit.record)
            unit.edited()
            if life.state == "running" and spec.check != old.spec.check:
                self._runs.examine(unit)
            self._bump()
            return self._observe(unit)

    def start(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        with self._changing(unit_id, if_revision, epoch) as unit:
            old, life = unit.record, unit.life
            if life.state != "running":
                self._runs.halt(unit)
                changes = {"goal": "run", "run": self._runs.nonce()}
                record = msgspec.structs.replace(old, revision=old.revision + 1, starts=old.starts + 1, **changes)
                self._place.save(record)
                unit.now = (record, life)
                self._runs.begin(unit)
            return self._observe(unit)

    def stop(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        with self._changing(unit_id, if_revision, epoch) as unit:
            if unit.life.state == "running":
                record = msgspec.structs.replace(unit.record, goal="stop", revision=unit.record.revision + 1)
                self._place.save(record)
                unit.now = (record, unit.life)
                self._runs.halt(unit)
            return self._observe(unit)

    def delete(self, unit_id: str, *, epoch: int) -> None:
        with self._turn(unit_id, epoch):
            unit = self._units.get(unit_id)
            if unit is not None:
                with unit.lock:
                    record = msgspec.structs.replace(unit.record, goal="delete")
                    self._place.save(record)
                    unit.now = (record, unit.life)
                self._remove(unit)
            elif unit_id in self._damaged:
                prefix = f"{unit_id}:{self._place.host.key}."
                left = process.kill_tree(process.Tree(prefix, 0, 0, lambda: self._groups.members(unit_id)))
                if left:
                    raise OutcomeUnknown(f"processes {sorted(left)} of unit {unit_id} do not die")
                self._groups.remove(unit_id)
                self._place.discard(unit_id)
                self._damaged.pop(unit_id, None)
                self._bump()

    def _remove(self, unit: Unit) -> None:
        """The rest of a deletion, wherever it was interrupted."""
        with unit.lock:
            record = unit.record
            if self._units.get(record.id) is not unit:
                return
            self._runs.halt(unit)
            self._groups.remove(record.id)
            self._place.discard(record.id)
            with self._lock:
                self._units.pop(record.id, None)
                self._addresses.release(record.address)
        self._bump()

    # ------------------------------------------------------------------------------------------------ log

    def log(self, unit_id: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        return logs.read(self._need(unit_id).log, offset, limit)

    def follow(self, unit_id: str, offset: int = 0) -> Iterator[LogChunk]:
        unit = self._need(unit_id)
        return logs.follow(unit.log, offset, lambda: not self._closed and self._units.get(unit_id) is unit)
