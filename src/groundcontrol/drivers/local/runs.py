"""Starts, adopts and ends the runs of units. Every function here expects the unit's lock to be held.

The order of writing is what makes a kill harmless: first the intent with a new nonce (`unit.json`), then the keeper
writes who runs under that nonce (`run`), then the program is executed. See `recovery` for the way back.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from groundcontrol.drivers.local import process, wanted
from groundcontrol.drivers.local.checks import Patient, Prober
from groundcontrol.drivers.local.keeping import Keeping
from groundcontrol.drivers.local.limits import Groups
from groundcontrol.drivers.local.state import Exit, Place, Record, Run, read_as
from groundcontrol.drivers.local.unit import Life, Unit
from groundcontrol.drivers.local.watch import Watcher
from groundcontrol.kernel.errors import OutcomeUnknown, Unavailable


class Runs:
    """The living part of a host."""

    def __init__(
        self, place: Place, groups: Groups, find: Callable[[str], Unit | None], changed: Callable[[], None],
        tick: Callable[[], None],
    ) -> None:  # fmt: skip
        self._place, self._groups, self._find, self._changed = place, groups, find, changed
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[tuple[Patient, int, Unit] | None] = queue.SimpleQueue()
        self._probes: dict[int, tuple[Patient, int]] = {}
        self._probe_pids: dict[int, tuple[int, int]] = {}
        self.prober = Prober(changed)
        self.watcher = Watcher(self._noticed, tick)
        self.keeping = Keeping(place.root, self._probe_ended)
        self._threads = [
            threading.Thread(target=self._sweeps, name="ground-sweep", daemon=True),
            threading.Thread(target=self._run_commands, name="ground-commands", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self.watcher.close()
        self._jobs.put(None)
        self._commands.put(None)
        for thread in self._threads:
            thread.join(15)
        self.prober.close()
        self.keeping.close()

    def nonce(self) -> str:
        return f"{self._place.host.key}.{secrets.token_hex(8)}"

    def tree(self, record: Record, life: Life | None = None) -> process.Tree:
        running = life is not None and life.state == "running"
        prefix = f"{record.id}:{self._place.host.key}."
        session, ticks = (life.pid, life.ticks) if life is not None and running else (0, 0)
        return process.Tree(prefix, session, ticks, lambda: self._groups.members(record.id))

    def begin(self, unit: Unit) -> None:
        """Start the run whose nonce stands in the record, which is saved already."""
        for _ in range(4):
            record = unit.record
            try:
                answer = self.keeping.ask("spawn", run=record.run, **self._order(record, record.spec.command))
            except Unavailable:
                if self.settle(unit):
                    return
                continue
            if "pid" in answer:
                run = self.run_of(record)
                self.take(unit, run or Run(record.run, answer["pid"], answer["ticks"], process.boot_id(), time.time()))
                return
            self._renew(unit)
        raise Unavailable(f"unit {unit.record.id} could not be started: the keeper gives up each run it is asked for")

    def settle(self, unit: Unit) -> bool:
        """Was the run in the record started? False: it was not and never will be, and the record has a new nonce."""
        deadline = time.monotonic() + 10
        while True:
            try:
                self.keeping.ask("void", run=unit.record.run)
                break
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        # Read after the keeper answered: from then on nothing will write it.
        run = self.run_of(unit.record)
        if run is not None:
            self.take(unit, run)
            return True
        self._renew(unit)
        return False

    def run_of(self, record: Record) -> Run | None:
        """What the keeper wrote about the run in the record."""
        run = read_as(f"{self._place.unit(record.id)}/run", Run)
        return run if run is not None and run.run == record.run else None

    def _renew(self, unit: Unit) -> None:
        record = msgspec.structs.replace(unit.record, run=self.nonce())
        self._place.save(record)
        unit.now = (record, unit.life)

    def _order(self, record: Record, command: tuple[str, ...]) -> dict[str, Any]:
        folder, spec = self._place.unit(record.id), record.spec
        directory, address = f"{folder}/dir", record.address
        token = f"{record.id}:{record.run}"
        return {
            "unit": folder,
            "cwd": directory,
            "argv": [wanted.fill(word, spec, address, directory) for word in command],
            "env": wanted.environment(spec, self._place.secret_env(record.id), address, directory, token),
            "uid": record.uid if record.uid != os.geteuid() else None,
            "rlimits": self._groups.rlimits(spec.limits),
            "cgroups": self._groups.prepare(record.id, spec.limits),
        }

    def take(self, unit: Unit, run: Run) -> None:
        """Make this process the unit's: watch it, probe it."""
        pidfd = process.open_pidfd(run.pid, run.ticks) if run.boot == process.boot_id() else -1
        record = msgspec.structs.replace(unit.record, started=run.started)
        unit.now = (record, Life("running", run.pid, run.ticks, pidfd))
        if pidfd < 0:
            self.conclude(unit, lost=run.boot != process.boot_id())
            return
        self.watcher.add(pidfd, record.id)
        unit.edited()  # From here on a difference is somebody's hand.
        self.examine(unit)
        self._changed()

    def examine(self, unit: Unit) -> None:
        """Probe the unit by its check from now on, forgetting what was known."""
        if unit.patient is not None:
            self.prober.cancel(unit.patient)
        record = unit.record
        unit.patient = Patient(record.spec.check, record.address, started=record.started)
        unit.patient.run_command = lambda patient: self._commands.put((patient, patient.probe, unit))
        unit.patient.stop_command = self._stop_command
        self.prober.add(unit.patient)

    def conclude(self, unit: Unit, lost: bool = False) -> None:
        """The unit's process ended: write how, once."""
        record, life = unit.now
        ended = self._exit_of(record, life)
        known = {"exit_code": ended.code if ended else None, "exited": ended.time if ended else time.time()}
        ours = record.goal != "run"
        if record.ended != record.run:
            exits = record.exits + (0 if ours else 1)
            record = msgspec.structs.replace(
                record, ended=record.run, exits=exits, revision=record.revision + 1, **known
            )
            # A full disk must not hide a death: what is in memory is shown, and counted again after a restart.
            with contextlib.suppress(OSError):
                self._place.save(record)
        if unit.patient is not None:
            self.prober.cancel(unit.patient)
        # A session id read from disk may be another's by now; one that we watched is ours.
        tree = self.tree(record, life if life.pidfd >= 0 else None)
        unit.now = (record, Life("stopped" if ours else "lost" if lost and ended is None else "exited"))
        if life.pidfd >= 0:
            self.watcher.drop(life.pidfd)
        unit.unswept = tree
        self._jobs.put(lambda: self._sweep(unit))
        self._changed()

    def _exit_of(self, record: Record, life: Life) -> Exit | None:
        """What the keeper wrote of the end; it does so before the zombie goes, so wait for either."""
        deadline = time.monotonic() + 0.3
        while True:
            seen = process.look_at(life.pid)
            gone = seen is None or seen.ticks != life.ticks or time.monotonic() > deadline
            ended = read_as(f"{self._place.unit(record.id)}/exit", Exit)
            if ended is not None and ended.run == record.run:
                return ended
            if gone:
                return None
            time.sleep(0.001)

    def halt(self, unit: Unit) -> None:
        """End the unit's whole tree: SIGTERM to its group, grace, SIGKILL to everything that is found."""
        record, life = unit.now
        tree = self.tree(record, life) if life.state == "running" else unit.unswept or self.tree(record)
        if life.state == "running":
            for number in (signal.SIGTERM, signal.SIGCONT):
                # Not by number alone: the pidfd proves that the group still is the unit's.
                if not process.wait_end(life.pidfd, 0):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(life.pid, number)
            deadline = time.monotonic() + record.spec.stop_grace
            process.wait_end(life.pidfd, record.spec.stop_grace)
            while time.monotonic() < deadline and _group_lives(life.pid):
                time.sleep(0.005)
        left = process.kill_tree(tree)
        if left:
            raise OutcomeUnknown(f"processes {sorted(left)} of unit {record.id} do not die: see what they wait for")
        if life.state == "running":
            self.conclude(unit)
        unit.unswept = None

    def _noticed(self, unit_id: str) -> bool:
        """From the watcher: the unit's process ended. False while somebody else works on the unit."""
        unit = self._find(unit_id)
        if unit is None:
            return True
        if not unit.lock.acquire(blocking=False):
            return False
        try:
            self.refresh(unit)
            return True
        finally:
            unit.lock.release()

    def refresh(self, unit: Unit) -> None:
        """Conclude the run if its process is gone."""
        life = unit.life
        if life.state == "running" and not process.is_alive(life.pid, life.ticks):
            self.conclude(unit)

    def _sweeps(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _sweep(self, unit: Unit) -> None:
        """Kill what a run left behind: it may hold the port the next run needs."""
        # When somebody works on the unit, they sweep: `start`, `stop` and `delete` do so first.
        if unit.lock.acquire(blocking=False):
            try:
                tree, unit.unswept = unit.unswept, None
                if tree is not None and unit.life.state != "running" and process.kill_tree(tree):
                    unit.unswept = tree
            finally:
                unit.lock.release()

    def _run_commands(self) -> None:
        """Start health commands; a keeper that is slow here delays command checks only."""
        while (job := self._commands.get()) is not None:
            patient, probe, unit = job
            if patient.probe != probe:
                continue
            number = self.keeping.number()
            self._probes[number] = (patient, probe)
            try:
                answer = self.keeping.ask("probe", number, **self._order(unit.record, patient.check.command))
            except (Unavailable, OSError) as problem:
                answer = {"error": str(problem)}
            if "pid" in answer and number in self._probes:
                self._probe_pids[id(patient)] = (answer["pid"], answer["ticks"])
            if "error" in answer:
                self._probes.pop(number, None)
                self.prober.finish(patient, probe, False, answer["error"])
            elif patient.probe != probe:
                self._stop_command(patient)

    def _probe_ended(self, number: int, code: int) -> None:
        patient, probe = self._probes.pop(number, (None, 0))
        if patient is not None:
            self._probe_pids.pop(id(patient), None)
            how = f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
            self.prober.finish(patient, probe, code == 0, "" if code == 0 else f"{patient.check.command[0]} {how}")

    def _stop_command(self, patient: Patient) -> None:
        pid, ticks = self._probe_pids.pop(id(patient), (0, 0))
        if pid and process.is_alive(pid, ticks):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True
