"""What a Run did, turn by turn, and how far it is: the journal is the truth, progress is what folding it gives.

An entry is written in the transaction that does what it speaks of, or, for a call outside, before it (`started`) and
after it. A worker that dies in between leaves `started` behind; whoever takes over sees it and decides. Entries are
numbered: two workers at one Run cannot both write the next one, and one of an older epoch writes none at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Conflict, Fenced
from groundcontrol.kernel.resource import Key, now
from groundcontrol.kernel.tx import Tx
from groundcontrol.kernel.waves import UNDER_WAY, Tally, step_of

_j = tables.journal
DOUBT = ("happened", "not-happened", "abort")
"""The answers to "did it happen?"."""


def stamp(at: float) -> str:
    """RFC 3339; empty for 0, which is never."""
    return now(at) if at else ""


class Entry(NamedTuple):
    """One line of a Run's journal."""

    number: int
    step: str
    """Empty when it is about the Run as a whole."""
    state: str
    at: float
    epoch: int
    doc: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """What is to be written."""

    step: str
    state: str
    doc: dict[str, Any] = field(default_factory=dict)


@dataclass
class StepProgress:
    """How far one step is."""

    state: str = "pending"
    """pending, running, waiting, done, failed, skipped, unknown or undone."""
    started: float = 0.0
    ended: float = 0.0
    since: float = 0.0
    """When the present state began."""
    attempts: int = 0
    until: float = 0.0
    """When it has waited long enough; 0 when it never has."""
    not_before: float = 0.0
    """When it may be tried again."""
    question: str = ""
    choices: tuple[str, ...] = ()
    doubt: bool = False
    """The question is whether it happened."""
    answer: str = ""
    answered_by: str = ""
    output: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    before: Any = None
    """Metadata of the act's target when it began."""
    happened: bool = False
    """Whether it did something, or may have, that can be undone."""
    trying: float = 0.0
    """Since when an act is tried; 0 when that is not what it waits for."""
    act: str = ""
    """`started` while an action is under way, or was when a worker died."""
    undo: str = ""
    """How far its undoing is: empty, started, unknown, asked, done or failed."""
    undo_attempts: int = 0


@dataclass
class Progress:
    """How far a Run is."""

    last: int = 0
    """Number of the last entry."""
    frozen: Mapping[str, Any] = field(default_factory=dict)
    """What was admitted: sequence, inputs, digest, procedure, subject."""
    admitted: float = 0.0
    begun: float = 0.0
    ended: str = ""
    """The phase it ended in; empty while it goes on."""
    ended_at: float = 0.0
    message: str = ""
    cancelled: str = ""
    """Who asked for its end."""
    undoing: str = ""
    """Who asked for its undoing; empty again when that is over."""
    steps: dict[str, StepProgress] = field(default_factory=dict)
    sets: list[dict[str, Any]] = field(default_factory=list)
    """Fields it set: target, fields, who managed them, until when they are held, and whether they are let go."""
    tally: Tally | None = None
    """How far its targets are, when it goes over many; its steps are then the waves."""

    @property
    def phase(self) -> str:
        if self.ended and not self.undoing:
            return self.ended
        if not self.begun:
            return "Pending"
        asking = [s for s in self.steps.values() if s.state == "waiting" or s.undo == "asked"]
        if any(s.doubt for s in asking):
            return "Unknown"
        return "Waiting" if asking else "Running"

    def copy(self) -> Progress:
        return dataclasses.replace(
            self,
            steps={name: dataclasses.replace(step) for name, step in self.steps.items()},
            sets=[dict(s) for s in self.sets],
            tally=self.tally and self.tally.copy(),
        )

    def apply(self, entry: Entry) -> None:
        """Go on by one entry."""
        self.last = entry.number
        doc = entry.doc
        if entry.step:
            _apply_step(self, self.steps[entry.step], entry)
            fresh = {"number": entry.number, "step": entry.step, "released": False}
            self.sets += [{**done, **fresh} for done in doc.get("sets", ())]
            return
        match entry.state:
            case "admitted":
                self.frozen, self.admitted, self.tally = doc, entry.at, Tally.of(doc)
                waves = [step_of(wave) for wave in range(len(self.tally.waves))] if self.tally else None
                names = [step["name"] for step in doc["sequence"]["steps"]] if waves is None else waves
                self.steps = {name: StepProgress() for name in names}
            case "begun":
                self.begun = entry.at
            case "cancel":
                self.cancelled = doc["by"]
            case "released":
                for done in self.sets:
                    done["released"] = done["released"] or done["number"] in doc["numbers"]
            case "ended":
                for done in self.sets:
                    done["released"] = True
                self.ended, self.ended_at = doc["phase"], entry.at
                self.message, self.undoing = doc.get("message", ""), ""
            case "undo":
                self.undoing = doc["by"]
                for step in self.steps.values():
                    step.undo = "" if step.undo == "failed" else step.undo
            case "resumed":
                self.ended, self.message, self.cancelled, self.begun = "", "", "", 0.0
                if self.tally:
                    self.tally.forgive()
            case _:
                pass


def _apply_step(run: Progress, step: StepProgress, entry: Entry) -> None:
    doc = entry.doc
    if entry.state.startswith("undo"):
        _apply_undo(step, entry)
        return
    if run.tally:
        _apply_wave(run.tally, step, entry)
    before, step.since = step.state, entry.at
    step.act = "started" if entry.state == "started" else ""
    match entry.state:
        case "started":
            step.state, step.attempts, step.message = "running", step.attempts + 1, ""
            step.started, step.trying = step.started or entry.at, step.trying or entry.at
            step.before = doc.get("before") if step.before is None else step.before
        case "waiting":
            step.state, step.started, step.until = "running", step.started or entry.at, doc["until"]
            step.message = doc.get("message", "")
        case "asked":
            step.state, step.started, step.doubt = "waiting", step.started or entry.at, bool(doc.get("doubt"))
            step.question, step.choices = doc["question"], tuple(doc["choices"])
            step.until, step.message = doc.get("until", 0.0), doc.get("message", step.message)
        case "answered":
            step.answer, step.answered_by, step.question, step.choices = doc["answer"], doc["by"], "", ()
            step.doubt, step.trying = False, 0.0
        case "done" | "failed" | "skipped":
            step.state, step.ended, step.started = entry.state, entry.at, step.started or entry.at
            step.output, step.message = doc.get("output", {}), doc.get("message", "")
            step.question, step.choices, step.doubt, step.until = "", (), False, 0.0
            step.attempts += bool(doc.get("once"))
            step.happened = (entry.state == "done" and step.attempts > 0) or bool(doc.get("happened"))
        case "unknown":
            step.state, step.message, step.question, step.choices, step.doubt = "unknown", doc["message"], "", (), False
            step.happened, step.trying = True, 0.0
        case "again":
            step.state, step.not_before = "pending", doc.get("at", 0.0)
            step.message, step.happened = doc.get("message", ""), False
            step.started, step.trying = step.started or entry.at, step.trying or entry.at
        case "reset":
            run.steps[entry.step] = StepProgress(attempts=step.attempts)
        case _:
            step.state = before


def _apply_wave(tally: Tally, step: StepProgress, entry: Entry) -> None:
    match entry.state:
        case "launched":
            tally.mark(entry.doc["targets"], UNDER_WAY)
            step.state, step.started = "running", step.started or entry.at
        case "landed":
            tally.land(entry.doc)
        case "answered":
            tally.forgive()
        case _:
            pass


def _apply_undo(step: StepProgress, entry: Entry) -> None:
    match entry.state:
        case "undo":
            step.undo, step.undo_attempts = "started", step.undo_attempts + 1
        case "undone":
            step.undo, step.state, step.ended = "done", "undone", entry.at
            step.message, step.question, step.choices, step.doubt = entry.doc.get("message", ""), "", (), False
        case "undo-again":
            step.undo, step.question, step.choices, step.doubt = "", "", (), False
        case "undo-asked":
            step.undo, step.doubt, step.until = "asked", True, entry.doc.get("until", 0.0)
            step.question, step.choices = entry.doc["question"], tuple(entry.doc["choices"])
        case "undo-unknown":
            step.undo, step.message = "unknown", entry.doc["message"]
        case "undo-failed":
            step.undo, step.message = "failed", entry.doc["message"]
            step.question, step.choices, step.doubt = "", (), False
        case _:
            pass


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────


def read(conn: sa.Connection, run_uid: str, after: int = 0) -> list[Entry]:
    """The journal of a Run behind entry `after`, oldest first."""
    rows = conn.execute(sa.select(_j).where(_j.c.run_uid == run_uid, _j.c.number > after).order_by(_j.c.number))
    return [Entry(r.number, r.step, r.state, r.at, r.epoch, msgspec.json.decode(r.doc)) for r in rows]


def progress_of(entries: Iterable[Entry], known: Progress | None = None) -> Progress:
    """What the journal comes to; `known` is what all entries before came to."""
    progress = known.copy() if known else Progress()
    for entry in entries:
        progress.apply(entry)
    return progress


def append(tx: Tx, run: Key, run_uid: str, progress: Progress, lines: Iterable[Line], subject: str) -> Progress:
    """Write the next lines; progress as it is then. Conflict when another worker wrote meanwhile, Fenced when that
    one is of a later epoch than ours."""
    # Of the last entry alone: epochs only grow, and a Run over many targets has thousands of entries.
    newest = sa.select(_j.c.number, _j.c.epoch).where(_j.c.run_uid == run_uid).order_by(_j.c.number.desc()).limit(1)
    last = tx.conn.execute(newest).first() or (0, 0)
    if last[1] > tx.store.epoch:
        raise Fenced(f"{run} is another worker's by now (its epoch is {last[1]}, ours {tx.store.epoch})")
    if last[0] != progress.last:
        raise Conflict(f"{run} went on meanwhile (we knew {progress.last} of its {last[0]} journal entries)")
    after, rows = progress.copy(), []
    for number, line in enumerate(lines, progress.last + 1):
        entry = Entry(number, line.step, line.state, tx.time, tx.store.epoch, line.doc)
        after.apply(entry)
        rows.append({**entry._asdict(), "doc": msgspec.json.encode(line.doc), "run_uid": run_uid})
        tx.fact("journal", run, subject, step=line.step, state=line.state)
    if rows:
        tx.conn.execute(sa.insert(_j), rows)
    return after


def forget(tx: Tx, run_uid: str) -> None:
    """The Run is gone; what it did stays in the ledger."""
    tx.conn.execute(sa.delete(_j).where(_j.c.run_uid == run_uid))
