"""Takes a Run on by one step at a time: what comes next is decided from its journal, by any worker that comes along.

Steps are taken in order, one per turn, and each turn is at most two commits. An act outside is preceded by `started`:
found without an end it means that a worker died, or got no answer, while it was under way. What then happens is
what the step says: look (`check`), do it again (`repeat`), or ask a person.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from groundcontrol.kernel.access import Access
from groundcontrol.kernel.errors import Conflict, GroundError, Invalid, OutcomeUnknown, TooMany, Unavailable
from groundcontrol.kernel.expression import Unanswered, compile_predicate
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.run_acts import (
    Case,
    bodied,
    judge,
    let_go,
    may_see,
    restore_fields,
    set_fields,
    subject_of,
)
from groundcontrol.kernel.run_admission import resolve
from groundcontrol.kernel.run_awaited import Awaited
from groundcontrol.kernel.run_journal import DOUBT, Line, StepProgress, append, progress_of, read
from groundcontrol.kernel.run_steps import Act, Step
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.turn import SETTLE
from groundcontrol.kernel.tx import Tx

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 5
"""An act whose outcome was unknown so often is not tried again without a person: it may be what kills us."""
MOST_OUTPUT = 16_384
"""Bytes of what an action answers that are kept."""
DOUBT_TIMEOUT = 7 * 86_400.0
"""Seconds after which a Run no longer waits for somebody to say whether an act happened: it fails, and its place and
its holds are free."""
CHOICES = ("approve", "refuse")
Action = Callable[[Subject, Key, Doc], Any]


@dataclass
class Engine:
    """Takes Runs on. One for all of them; it keeps nothing between turns but who waits for what."""

    store: Store
    access: Access
    actions: Mapping[tuple[str, str], Action]
    """(kind, verb) to what does it."""
    repeatable: Collection[tuple[str, str]]
    """The actions that may be done twice without harm."""
    tell: Callable[[Case], Mapping[str, Any]]
    """The status of a Run."""
    wake: Callable[[tuple[str, ...]], None] = lambda uids: None
    """Told the uids of resources that were let go."""
    settle: float = SETTLE
    """Seconds an unknown call may still be on its way before its effect is looked for."""
    awaited: Awaited = field(default_factory=Awaited)
    crash_point: Callable[[str], None] = lambda where: None

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, case: Case, make: Callable[[Tx, Case], list[Line]], where: str, called: str = "") -> Case:
        """One durable write: what `make` does, the journal lines it returns, and the status they come to.

        `called` is the step of an action that was called meanwhile: somebody may have asked for the end of the Run
        since, and how the call ended is written all the same."""

        def act(tx: Tx) -> Case:
            current = tx.get(case.key)
            if current is None or current["metadata"]["uid"] != case.uid:
                raise Conflict(f"{case.key} is gone")
            progress = progress_of(read(tx.conn, case.uid)) if called else case.progress
            if called and "started" not in (progress.steps[called].undo, progress.steps[called].act):
                raise Conflict(f"step {called} of {case.key} is another worker's by now")
            now = replace(case, doc=current, progress=progress)
            return self.record(tx, now, make(tx, now))

        self.crash_point(f"before {where}")
        after = self.store.write(act)
        self.crash_point(f"after {where}")
        return after

    def record(self, tx: Tx, case: Case, lines: list[Line]) -> Case:
        """Put lines into the journal and their sum into the status, inside a transaction."""
        subject = case.progress.frozen.get("subject", "")
        after = replace(case, progress=append(tx, case.key, case.uid, case.progress, lines, subject))
        for line in lines:
            self._to_timeline(tx, case, line)
        tx.set_status(case.key, case.uid, self.tell(after))
        return after

    @staticmethod
    def _to_timeline(tx: Tx, case: Case, line: Line) -> None:
        if line.state in _QUIET or (line.state == "landed" and not line.doc.get("message")):
            return
        words = line.doc.get("message") or line.doc.get("question") or line.doc.get("reason") or ""
        by = f"by {line.doc['by']}" if line.doc.get("by") else ""
        what = ": ".join(part for part in (line.step, " ".join(p for p in (line.doc.get("answer", ""), by, words) if p))
                         if part)  # fmt: skip
        bad = line.state in ("failed", "unknown", "undo-failed", "undo-unknown") or line.doc.get("phase") == "Failed"
        warning = bad or bool(line.doc.get("doubt"))
        tx.event(case.key, case.uid, _event(line), what, warning=warning)

    def _one(self, case: Case, step: Step, state: str, *, called: bool = False, **doc: Any) -> float:
        self.write(case, lambda tx, now: [Line(step.name, state, doc)], state, step.name if called else "")
        return 0.0

    def end(self, case: Case, phase: str, message: str = "") -> None:
        """It is over: every hold goes, in the same transaction."""
        held: list[str] = []

        def make(tx: Tx, case: Case) -> list[Line]:
            held.extend(let_go(tx, case)[1])
            return [Line("", "ended", {"phase": phase, "message": message})]

        self.write(case, make, "end")
        self.awaited.forget(case.key)
        self.wake(tuple(held))

    # ── what comes next ─────────────────────────────────────────────────────────────────────────────────────────

    def advance(self, case: Case) -> float | None:
        """One step on. Seconds until the next look: 0 at once, None when something is heard."""
        progress, now = case.progress, self.store.clock()
        due = [d["until"] for d in progress.sets if not d["released"]]
        if due and min(due) <= now:
            return self._release(case, now)
        wait = self._undo(case) if progress.undoing else self._next(case, now)
        return wait if not due else min(due) - now if wait is None else min(wait, min(due) - now)

    def _release(self, case: Case, now: float) -> float:
        held: list[str] = []

        def make(tx: Tx, case: Case) -> list[Line]:
            numbers, uids = let_go(tx, case, now)
            held.extend(uids)
            return [Line("", "released", {"numbers": numbers})]

        self.write(case, make, "release")
        self.wake(tuple(held))
        return 0.0

    def _next(self, case: Case, now: float) -> float | None:
        if case.progress.ended:
            return None
        for step in case.sequence.steps:
            at = case.progress.steps[step.name]
            match at.state:
                case "running" if step.wait:
                    return self._end_cancelled(case) if case.progress.cancelled else self._wait(case, step, at, now)
                case "running":
                    return self._one(case, step, "unknown", message="a worker stopped while it was under way")
                case "unknown":
                    return self._unknown(case, step, at, now)
                case "waiting":
                    return self._asked(case, step, at, now)
                case "pending":
                    return self._end_cancelled(case) if case.progress.cancelled else self._begin(case, step, at, now)
                case "failed" if step.on_failure == "stop":
                    self.end(case, "Failed", f"step {step.name} failed: {at.message}")
                    return None
                case _:
                    pass
        failed = [name for name, at in case.progress.steps.items() if at.state == "failed"]
        self.end(case, "Succeeded", f"without {', '.join(failed)}, which failed" if failed else "")
        return None

    def _end_cancelled(self, case: Case) -> float:
        self.end(case, "Cancelled", f"cancelled by {case.progress.cancelled}")
        return 0.0

    def _begin(self, case: Case, step: Step, at: StepProgress, now: float) -> float | None:
        if at.not_before > now:
            return at.not_before - now
        try:
            if step.when and not at.attempts and not self._holds(step.when, case.scope):
                return self._one(case, step, "skipped", message="its condition does not hold")
            if step.act:
                return self._act(case, step, step.act)
            if step.wait:
                return self._wait(case, step, at, now)
            if step.ask:
                question = str(resolve(step.ask.question, case.scope))
                choices = step.ask.choices or list(CHOICES)
                self._one(case, step, "asked", question=question, choices=choices, until=now + step.ask.timeout)
                return step.ask.timeout
            assert step.notify is not None
            text, warning = str(resolve(step.notify.message, case.scope)), step.notify.warning
        except (Invalid, Unanswered) as error:
            return self._one(case, step, "failed", message=error.message)

        def notify(tx: Tx, case: Case) -> list[Line]:
            tx.event(case.key, case.uid, "Notified", text, warning=warning)
            return [Line(step.name, "done", {"message": text})]

        self.write(case, notify, "done")
        return 0.0

    @staticmethod
    def _holds(text: str, values: Mapping[str, Any]) -> bool:
        return compile_predicate(text, frozenset(values)).holds(values)

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _wait(self, case: Case, step: Step, at: StepProgress, now: float) -> float:
        wait = step.wait
        assert wait is not None
        values, why = dict(case.scope), ""
        try:
            if wait.kind:
                target = case.target(self.store.kinds, wait.kind, wait.namespace, wait.name)
                # Asked to be told first, then looked: nothing falls between.
                self.awaited.add(case.key, target)
                subject = subject_of(self.store.get, case.subject)
                values["resource"] = may_see(self.store, self.access, subject, target)
        except GroundError as error:
            return self._one(case, step, "failed", message=error.message)
        try:
            if self._holds(wait.until, values):
                return self._one(case, step, "done")
        except Unanswered as error:
            why = error.message
        if not at.started:
            until = now + wait.timeout
            self._one(case, step, "waiting", until=until, message=f"waits until {wait.until}")
        elif at.until <= now:
            seen = f" ({why})" if why else ""
            return self._one(case, step, "failed", message=f"{wait.until} did not hold for {wait.timeout:g} s{seen}")
        else:
            until = at.until
        return max(0.05, min(wait.every, until - now))

    def _asked(self, case: Case, step: Step, at: StepProgress, now: float) -> float | None:
        if case.progress.cancelled:
            return self._one(case, step, "unknown", message=at.message) if at.doubt else self._end_cancelled(case)
        if at.until and at.until <= now:
            return self._one(case, step, "failed", message="nobody answered in time", happened=at.doubt)
        return at.until - now if at.until else None

    # ── acting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _act(self, case: Case, step: Step, act: Act, undo: bool = False) -> float:
        if act.verb:
            return self._call(case, step, act, undo)

        def make(tx: Tx, case: Case) -> list[Line]:
            if not act.restore:
                doc: dict[str, Any] = {"sets": [set_fields(tx, self.access, case, step, act)], "once": True}
            else:
                made, left = restore_fields(tx, self.access, case, step)
                doc = {"sets": made, "message": left}
            return [Line(step.name, "undone" if undo else "done", doc)]

        try:
            self.write(case, make, "set")
        except GroundError as error:
            return self._refused(case, step, error, undo)
        return 0.0

    def _call(self, case: Case, step: Step, act: Act, undo: bool) -> float:
        """An action: `started` is on disk before it is called, and how it ended after."""
        called: list[tuple[Subject, Key, Doc]] = []

        def start(tx: Tx, case: Case) -> list[Line]:
            key = case.target(tx.store.kinds, act.kind, act.namespace, act.name)
            subject = subject_of(tx.get, case.subject)
            doc = judge(tx, self.access, subject, act.verb, key)
            called.append((subject, key, bodied(case, act, step, undo)))
            tx.audit(subject.name, act.verb, key, "asked", run=case.key.path, step=step.name)
            if undo:
                return [Line(step.name, "undo", {"epoch": tx.store.epoch})]
            meta = {n: doc["metadata"].get(n) for n in ("annotations", "labels", "generation", "resourceVersion")}
            return [Line(step.name, "started", {"before": meta})]

        try:
            case = self.write(case, start, "started")
        except GroundError as error:
            return self._refused(case, step, error, undo)
        subject, key, body = called[-1]
        self.crash_point("before call")
        end = partial(self._one, case, step, called=True)
        unknown = "undo-unknown" if undo else "unknown"
        try:
            answer = self.actions[act.kind, act.verb](subject, key, body)
        except OutcomeUnknown as error:
            return end(unknown, message=error.message)
        except GroundError as error:
            return self._refused(case, step, error, undo, called=True)
        except Exception as error:
            log.error("an act broke", exc_info=error, extra={"key": str(case.key), "step": step.name})
            return end(unknown, message=f"unexpected {type(error).__name__}: {error}")
        self.crash_point("after call")
        if undo:
            return end("undone")
        try:
            output = _output(step, answer)
        except Invalid as error:
            return end("failed", message=error.message, happened=True)
        return end("done", output=output)

    def _refused(self, case: Case, step: Step, error: GroundError, undo: bool, *, called: bool = False) -> float:
        """It did not happen: try again while that may help, else the step has failed."""
        at, now = case.progress.steps[step.name], self.store.clock()
        end = partial(self._one, case, step, called=called)
        if undo:
            return end("undo-failed", message=error.message)
        passing = isinstance(error, Unavailable | TooMany) or error.retry == "again"
        if passing and now < (at.trying or now) + step.timeout:
            wait = error.retry_after or min(0.5 * 2.0 ** min(at.attempts, 7), 60.0)
            end("again", at=now + wait, message=error.message)
            return wait
        return end("failed", message=error.message)

    def _unknown(self, case: Case, step: Step, at: StepProgress, now: float) -> float | None:
        """Nobody knows whether an act happened: what the step says for that."""
        act = step.act
        assert act is not None
        policy = step.on_unknown or ("repeat" if (act.kind, act.verb) in self.repeatable else "ask")
        if policy != "ask" and now < at.since + self.settle:
            return at.since + self.settle - now
        if policy == "check":
            try:
                target = case.target(self.store.kinds, act.kind, act.namespace, act.name)
                resource = may_see(self.store, self.access, subject_of(self.store.get, case.subject), target)
                if self._holds(step.check, {**case.scope, "before": at.before, "resource": resource}):
                    return self._one(case, step, "done", message="it had happened")
                if at.attempts < MOST_ATTEMPTS:
                    return self._one(case, step, "again", message="it had not happened")
            except GroundError as error:
                at = replace(at, message=f"{at.message}; the check cannot tell: {error.message}")
        if case.progress.cancelled:
            return self._end_cancelled(case)
        if policy == "repeat" and at.attempts < MOST_ATTEMPTS:
            return self._one(case, step, "again", message="done again, since nobody knows whether it happened")
        question = f"{step.does}: did it happen? ({at.message})"
        until = now + DOUBT_TIMEOUT
        return self._one(case, step, "asked", question=question, choices=list(DOUBT), doubt=True, until=until)

    # ── undoing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _undo(self, case: Case) -> float | None:
        """What was done is taken back, the last first."""
        for step in reversed(case.sequence.steps):
            at, undo = case.progress.steps[step.name], step.undo
            if undo is None or not at.happened or at.undo in ("done", "failed"):
                continue
            if at.undo == "asked":
                wait = at.until - self.store.clock() if at.until else None
                if wait is None or wait > 0:
                    return wait
                return self._one(case, step, "undo-failed", message="nobody answered in time")
            if at.undo == "":
                return self._act(case, step, undo, undo=True)
            if (undo.kind, undo.verb) in self.repeatable and at.undo_attempts < MOST_ATTEMPTS:
                return self._one(case, step, "undo-again")
            question = f"undo of {step.name}: {undo.verb} {undo.kind} {undo.name}: did it happen?"
            until = self.store.clock() + DOUBT_TIMEOUT
            return self._one(case, step, "undo-asked", question=question, choices=list(DOUBT), until=until)
        failed = [name for name, at in case.progress.steps.items() if at.undo == "failed"]
        left = f"; could not undo {', '.join(failed)}" if failed else ""
        phase = case.progress.ended
        self.end(case, phase, f"{case.progress.message}; undone by {case.progress.undoing}{left}".removeprefix("; "))
        return None


def _output(step: Step, answer: Any) -> dict[str, Any]:
    """What an action answered, as far as later steps may use it."""
    if not step.outputs:
        return {}
    given = answer if isinstance(answer, Mapping) else {}
    types = {"string": str, "int": int, "bool": bool}
    kept = {}
    for name, type_ in step.outputs.items():
        value = given.get(name)
        if not isinstance(value, types[type_]) or (type_ == "int" and isinstance(value, bool)):
            raise Invalid(f"it answered {name} = {str(value)[:60]!r}, which is not of type {type_}")
        kept[name] = value
    if len(msgspec.json.encode(kept)) > MOST_OUTPUT:
        raise Invalid(f"it answered more than {MOST_OUTPUT} bytes")
    return kept


_QUIET = ("done", "started", "waiting", "begun", "admitted", "released", "again", "skipped", "launched")
_EVENTS = {"asked": "Asked", "failed": "StepFailed", "unknown": "OutcomeUnknown", "answered": "Answered"}


def _event(line: Line) -> str:
    """Word for the timeline."""
    if line.state == "ended":
        return str(line.doc["phase"])
    found = _EVENTS.get(line.state) or "".join(word.title() for word in line.state.split("-"))
    return found
