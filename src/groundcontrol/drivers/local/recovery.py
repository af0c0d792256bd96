"""Brings a host back to what it was when its process ended: adopts what runs, finishes what was begun.

For each unit the record says what was ordered (`goal`, `run`); `run`, `exit` and /proc say what became of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from groundcontrol.drivers.local import folder, process
from groundcontrol.drivers.local.runs import Runs
from groundcontrol.drivers.local.state import Place, Run
from groundcontrol.drivers.local.unit import Life, Unit
from groundcontrol.kernel.errors import GroundError


def load(place: Place) -> tuple[dict[str, Unit], dict[str, str]]:
    """Units that can be read, and for the others what is wrong."""
    units: dict[str, Unit] = {}
    damaged: dict[str, str] = {}
    for unit_id in place.unit_ids():
        try:
            record = place.load(unit_id)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
            damaged[unit_id] = f"unit {unit_id}: unit.json cannot be read: {problem}"
            continue
        if record is None or record.id != unit_id:
            damaged[unit_id] = f"unit {unit_id}: unit.json is missing or belongs to another unit"
        else:
            units[unit_id] = Unit(place, record)
    return units, damaged


def resume(unit: Unit, place: Place, runs: Runs, carrying: dict[int, str], delete: Callable[[Unit], None]) -> None:
    """Take up one unit. `carrying`: the run tokens of all processes of this host, by pid. `delete`: finish that."""
    with unit.lock:
        record = unit.record
        try:
            run = runs.run_of(record)
        except (OSError, msgspec.MsgspecError):
            run = None  # Damaged: the token in the process's environment is as good.
        run = run or _by_token(record.run, f"{record.id}:{record.run}", carrying)
        if run is not None and record.ended != record.run:
            runs.take(unit, run)
        elif run is not None or record.ended == record.run:
            lost = run is not None and run.boot != process.boot_id() and record.exit_code is None
            unit.now = (record, Life("stopped" if record.goal != "run" else "lost" if lost else "exited"))
            unit.unswept = runs.tree(record)
        elif record.goal == "run" and not runs.settle(unit):
            runs.begin(unit)
        if record.unapplied:
            for path, text in record.spec.files.items():
                folder.write(unit.directory, path, text, unit.owner())
            unit.now = (msgspec.structs.replace(unit.record, unapplied=False), unit.life)
            place.save(unit.record)
    # Stops wait for the unit's grace: beside the start, not in its way.
    if record.goal == "delete":
        threading.Thread(target=_quietly, args=(delete, unit), name="ground-resume", daemon=True).start()
    elif record.goal == "stop" and unit.life.state == "running":
        threading.Thread(target=_quietly, args=(_halt(runs), unit), name="ground-resume", daemon=True).start()


def _halt(runs: Runs) -> Callable[[Unit], None]:
    def halt(unit: Unit) -> None:
        with unit.lock:
            if unit.record.goal == "stop":
                runs.halt(unit)

    return halt


def _quietly(call: Callable[[Unit], None], unit: Unit) -> None:
    try:
        call(unit)
    except (GroundError, OSError):
        return  # It stays as it is and is shown so; whoever ordered it orders again.


def _by_token(nonce: str, token: str, carrying: dict[int, str]) -> Run | None:
    """The process started under this nonce, when the file that says so is lost: the session leader with the token."""
    rows = [process.look_at(pid) for pid, carried in carrying.items() if carried == token]
    leaders = sorted((row.ticks, row.pid) for row in rows if row is not None and row.session == row.pid)
    if not leaders or not nonce:
        return None
    ticks, pid = leaders[0]
    return Run(nonce, pid, ticks, process.boot_id(), process.started_at(ticks))


def strays(units: dict[str, Unit], damaged: dict[str, str], carrying: dict[int, str]) -> list[str]:
    """Processes that carry a token of this host which belongs to no current run."""
    problems = []
    for pid, token in sorted(carrying.items()):
        unit_id, _, nonce = token.partition(":")
        if unit_id in damaged:
            continue
        unit = units.get(unit_id)
        if unit is None:
            problems.append(f"process {pid} was started for unit {unit_id}, which is not here: kill it if in doubt")
        elif nonce != unit.record.run:
            problems.append(f"process {pid} claims unit {unit_id} beside its run: it ends with the next stop or start")
    return problems
