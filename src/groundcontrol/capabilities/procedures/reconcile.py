"""Admits Runs, bounds how many are under way, takes each on, and does what people ask of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from groundcontrol.capabilities.procedures import logic
from groundcontrol.capabilities.procedures.kinds import Procedure, ProcedureStatus, Run
from groundcontrol.kernel.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from groundcontrol.kernel.plan import Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, Report, Watch, conditions, owner_of
from groundcontrol.kernel.resource import Doc, Key, did_you_mean
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.run import Engine
from groundcontrol.kernel.run_acts import Case, judge, let_go, starter, subject_of
from groundcontrol.kernel.run_admission import Sequence, Wrong, check_against, check_kind
from groundcontrol.kernel.run_journal import DOUBT, Line, Progress, StepProgress, append, forget, progress_of, read
from groundcontrol.kernel.run_slots import Group, Known, Slots
from groundcontrol.kernel.run_waves import ENDED, Waves, find, settled, unfit
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.turn import Outcome, Turns
from groundcontrol.kernel.tx import Tx
from groundcontrol.kernel.waves import Over, Target, planned

MOST_PARENTS = 10
"""Runs over many targets that are under way at once for one procedure in a namespace. They have places of their own:
the Runs of their targets would wait for them otherwise, and they for these."""
AT_ONCE = 100
"""Runs of targets whose deletion is asked for in one transaction."""


def _actions(runtime: Any) -> dict[tuple[str, str], Callable[..., Any]]:
    return {what: act for capability in runtime.capabilities for what, act in capability.actions.items()}


def _repeatable(runtime: Any) -> frozenset[tuple[str, str]]:
    return frozenset(what for capability in runtime.capabilities for what in capability.repeatable)


class ProcedureReconciler(Reconciler[Procedure]):
    """A procedure only has to be fit to be run here."""

    name = "procedures"
    kind = Procedure

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def plan(self, resource: Procedure, look: Look) -> Plan:
        return Plan()

    def report(self, resource: Procedure, plan: Plan, look: Look) -> Report:
        spec = resource.spec.model_dump(mode="json", by_alias=True)
        runtime = self._runtime
        wrong = list(check_against(resource.spec, runtime.kinds, _actions(runtime), _repeatable(runtime)))
        status = ProcedureStatus(digest=logic.digest_of(logic.sequence_of(spec)))
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            status.conditions = conditions(
                Ready=("False", "Invalid", f"spec.{wrong[0].path}: {wrong[0].message}{more}")
            )
        else:
            status.conditions = conditions(Ready=("True", "Valid", "it can be run"))
        return Report(status)


def group_of(doc: Doc) -> Group:
    """The bound that a Run counts against."""
    procedure = doc["spec"].get("procedure") or ""
    return doc["metadata"]["namespace"], f"over/{procedure}" if doc["spec"].get("over") else procedure


def bound_of(case: Case) -> int:
    """How many of its group may be under way at once."""
    return MOST_PARENTS if case.progress.tally or case.doc["spec"].get("over") else case.sequence.concurrency


class RunReconciler(Reconciler[Run]):
    """Takes Runs through their steps. It takes its own turns: nothing here is kept as it is wanted."""

    name = "runs"
    kind = Run
    tears_down = True

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._slots = Slots()
        self.engine = Engine(
            runtime.store,
            runtime.access,
            {what: _bound(act, runtime) for what, act in _actions(runtime).items()},
            _repeatable(runtime),
            lambda case: logic.status_of(case, logic.expected_of(self._slots.durations(group_of(case.doc)))),
            lambda uids: runtime.controller.wake_uids(uids),
        )
        self.waves = Waves(self.engine, self._may_still)
        self._parents: dict[str, Progress] = {}
        """What the journals of Runs over many targets came to so far; they are too long to be read at every turn."""
        # Any kind may be waited for; who waits for what is looked up, and nearly always nobody does.
        self.watches = tuple(Watch(k.__name__, self._awaited) for k in runtime.kinds)  # type: ignore[misc]

    def shard(self, resource: Run) -> str:
        """Actions that hang must not take every worker: a namespace has a share of its own. What goes over many has
        another: a single Run does not stand in line behind a wave."""
        many = resource.spec.over or resource.metadata.owner_references
        return f"run/{resource.metadata.namespace}" + "/over" * bool(many)

    def _awaited(self, doc: Doc, store: Store) -> Iterable[Key]:
        meta = doc["metadata"]
        heard = self.engine.awaited.of(Key(doc["kind"], meta["namespace"], meta["name"]))
        # The Run of a target is over: the one that goes over all of them counts it.
        counts = doc["kind"] == "Run" and (doc["status"].get("phase") in ENDED or meta["deletionTimestamp"])
        return (*heard, *owner_of("Run")(doc, store)) if counts else heard

    def _known(self) -> Iterable[Known]:
        """What the statuses of all Runs say, oldest first."""
        docs = [e.doc for e in self._runtime.store.entries("Run")]
        for doc in sorted(docs, key=lambda d: str(d["metadata"]["creationTimestamp"])):
            meta, status = doc["metadata"], doc["status"]
            phase = status.get("phase", "Pending")
            waits = phase == "Pending" and bool(status.get("admitted"))
            key = Key("Run", meta["namespace"], meta["name"])
            under_way = phase not in (*ENDED, "Pending")
            yield Known(group_of(doc), meta["uid"], key, waits, under_way, logic.duration_of(status))

    # ── a turn ──────────────────────────────────────────────────────────────────────────────────────────────────

    def take_turn(self, key: Key, turns: Turns) -> Outcome:
        """One turn of one Run."""
        doc = self._runtime.store.get(key)
        self._slots.learn(self._known)
        if doc is None:
            return Outcome()
        self.engine.crash_point = turns.crash_point
        if doc["metadata"]["deletionTimestamp"]:
            return self._take_down(key, doc)
        status = doc["status"]
        over = bool(status.get("phase") in ENDED and status.get("observedGeneration"))
        if over and not self._slots.has(group_of(doc), doc["metadata"]["uid"]):
            return Outcome()
        progress = self._progress(doc["metadata"]["uid"])
        if over:
            self._freed(key, case_of(key, doc, progress))
            return Outcome()
        if not progress.last:
            return self._admit(key, doc)
        case = case_of(key, doc, progress)
        if not progress.begun and not progress.ended:
            group = group_of(doc)
            if not self._slots.take(group, case.uid, key, bound_of(case)):
                return Outcome()
            self._begin(case)
            return Outcome(0.0)
        again = self.waves.advance(case) if progress.tally else self.engine.advance(case)
        if again is None:
            self._freed(key, case)
        return Outcome(again)

    def _progress(self, uid: str) -> Progress:
        known = self._parents.get(uid)
        with self._runtime.store.reading() as conn:
            progress = progress_of(read(conn, uid, known.last if known else 0), known)
        if progress.tally and not progress.ended:
            self._parents[uid] = progress
        else:
            self._parents.pop(uid, None)
        return progress

    def progress_in(self, tx: Tx, uid: str) -> Progress:
        """How far a Run is as of this moment of a commit."""
        known = self._parents.get(uid)
        return progress_of(read(tx.conn, uid, known.last if known else 0), known)

    def _begin(self, case: Case) -> None:
        self.engine.write(case, lambda tx, now: [Line("", "begun")], "begin")

    def _freed(self, key: Key, case: Case) -> None:
        """Let others go on when this one is over."""
        doc = self._runtime.store.get(key)
        if doc is not None and doc["status"].get("phase") not in ENDED:
            return
        group = group_of(case.doc)
        self._slots.took(group, logic.duration_of(doc["status"]) if doc else None)
        for other in self._slots.free(group, case.uid, bound_of(case)):
            self._runtime.controller.wake_key(other)

    def _admit(self, key: Key, doc: Doc) -> Outcome:
        """Freeze what it goes through, or refuse it; judged with the rights of whoever started it."""
        runtime, uid = self._runtime, doc["metadata"]["uid"]
        case = Case(key, uid, doc, Sequence.model_construct(), Progress())
        group = group_of(doc)
        begin = False
        over: Over | None = None
        targets: list[Target] = []

        def make(tx: Tx, case: Case) -> Case:
            nonlocal begin
            name = case.doc["spec"].get("procedure") or ""
            frozen = {**self._frozen(tx, case, over, targets), "subject": starter(case.doc), "procedure": name}
            case = replace(case, sequence=logic.parsed(frozen))
            lines = [Line("", "admitted", frozen)]
            begin = self._slots.take(group, uid, key, bound_of(case))
            return self.engine.record(tx, case, [*lines, Line("", "begun")] if begin else lines)

        def act(tx: Tx) -> Case:
            current = tx.get(key)
            if current is None or current["metadata"]["uid"] != uid:
                raise Conflict(f"{key} is gone")
            return make(tx, replace(case, doc=current))

        self.engine.crash_point("before admit")
        try:
            if doc["spec"].get("over"):
                over = Over.model_validate(doc["spec"]["over"], extra="ignore")
                subject = subject_of(runtime.store.get, starter(doc))
                targets = targets_of(runtime, subject, over, key.namespace)
            runtime.store.write(act)
        except (Invalid, Forbidden, NotFound) as error:
            message = error.message
            runtime.store.write(lambda tx: self._turn_down(tx, case, message))
            self._slots.free(group, uid, 0)
            return Outcome()
        except BaseException:
            self._slots.free(group, uid, 0)
            raise
        self.engine.crash_point("after admit")
        return Outcome(0.0 if begin else None)

    def _frozen(self, tx: Tx, case: Case, over: Over | None, targets: list[Target]) -> Doc:
        runtime, spec, namespace = self._runtime, case.doc["spec"], case.key.namespace
        name = spec.get("procedure")
        procedure = None
        if name:
            place = Key("Procedure", namespace, name)
            procedure = judge(tx, runtime.access, subject_of(tx.get, starter(case.doc)), "run", place)
        return frozen_of(runtime, spec, namespace, procedure, tx.get, over, targets)

    def _may_still(self, tx: Tx, case: Case, subject: Subject) -> None:
        """Whoever started it may still run the procedure, be it there or not."""
        key = Key("Procedure", case.key.namespace, case.progress.frozen["procedure"])
        procedure = tx.get(key)
        labels = procedure["metadata"].get("labels") if procedure else case.progress.frozen["labels"]
        self._runtime.access.require_in(
            tx, subject, "run", key.kind, namespace=key.namespace, name=key.name, labels=labels or {}
        )

    def _turn_down(self, tx: Tx, case: Case, message: str) -> None:
        doc = tx.get(case.key)
        if doc is None or doc["metadata"]["uid"] != case.uid:
            return
        # The generation is what says that it was looked at: there is no journal.
        nothing = Progress(ended="Failed", ended_at=tx.time, message=message)
        tx.set_status(case.key, case.uid, logic.status_of(replace(case, doc=doc, progress=nothing), 0.0))
        tx.event(case.key, case.uid, "Refused", message, warning=True)

    def _take_down(self, key: Key, doc: Doc) -> Outcome:
        """A deleted Run lets go of everything; what it did is not undone."""
        store, uid = self._runtime.store, doc["metadata"]["uid"]
        if children := store.children(uid):
            asked = [e for e in children if not e.doc["metadata"]["deletionTimestamp"]][:AT_ONCE]
            for entry in asked:
                store.submit(lambda tx, entry=entry: tx.delete(entry.key, entry.uid))
            return Outcome(0.1 if asked else 1.0)
        with store.reading() as conn:
            progress = progress_of(read(conn, uid))
        held: list[str] = []

        def act(tx: Tx) -> None:
            if progress.last:
                case = case_of(key, doc, progress)
                held.extend(let_go(tx, case)[1])
                append(tx, key, uid, progress, [Line("", "deleted")], case.subject)
                doubtful = [n for n, s in progress.steps.items() if s.state in ("running", "unknown") or s.doubt]
                if doubtful and not progress.ended:
                    message = f"deleted while nobody knows whether {', '.join(doubtful)} happened"
                    tx.event(key, uid, "OutcomeUnknown", message, warning=True)
            forget(tx, uid)
            tx.audit("kernel", "finalize", key)
            tx.finalize(key, uid)

        self.engine.crash_point("before finish")
        store.write(act)
        self.engine.crash_point("after finish")
        self.engine.awaited.forget(key)
        bound = bound_of(case_of(key, doc, progress)) if progress.last else 0
        for other in self._slots.free(group_of(doc), uid, bound):
            self._runtime.controller.wake_key(other)
        self._runtime.controller.wake_uids(tuple(held))
        return Outcome()


def targets_of(runtime: Any, subject: Subject, over: Over, namespace: str) -> list[Target]:
    """The targets there are for whoever starts it; Invalid for a kind there is not."""
    if wrong := list(check_kind(("spec", "over", "kind"), over.kind, runtime.kinds)):
        raise Invalid(problems=(Problem(wrong[0].message, wrong[0].path),))
    return find(runtime.store, runtime.access, subject, over, namespace)


def frozen_of(
    runtime: Any,
    spec: Doc,
    namespace: str,
    procedure: Doc | None,
    get: Callable[[Key], Doc | None],
    over: Over | None,
    targets: list[Target],
) -> Doc:
    """What a Run goes through, and its waves; Invalid with all that is wrong."""

    def exists(kind: str, name: str) -> bool:
        if kind not in runtime.kinds:
            return False
        return get(Key(kind, namespace if runtime.kinds.get(kind).info.namespaced else "", name)) is not None

    wrong: list[Wrong] = []
    if over and procedure:
        over, wrong = settled(over, Sequence.model_validate(logic.sequence_of(procedure["spec"])), runtime.kinds,
                              namespace)  # fmt: skip
    frozen, more = logic.freeze(spec, procedure, runtime.kinds, _actions(runtime), _repeatable(runtime), exists, over)
    wrong += more
    if over and procedure and not wrong:
        wrong = unfit(over, logic.parsed(frozen), targets)
    if wrong:
        raise Invalid(problems=tuple(Problem(w.message, f"spec.{w.path}") for w in wrong))
    if over and procedure:
        waves = planned(targets, over.waves, over.spread.most if over.spread else 0)
        frozen |= {
            "over": over.model_dump(mode="json", by_alias=True),
            "waves": [[target[:3] for target in wave] for wave in waves],
            "labels": procedure["metadata"].get("labels") or {},
        }
    return frozen


def case_of(key: Key, doc: Doc, progress: Progress) -> Case:
    """An admitted Run as it stands."""
    return Case(key, doc["metadata"]["uid"], doc, logic.parsed(progress.frozen), progress)


def _bound(act: Callable[..., Any], runtime: Any) -> Callable[[Subject, Key, Doc], Any]:
    return lambda subject, key, body: act(runtime, subject, key, body)


# ── what people ask for ─────────────────────────────────────────────────────────────────────────────────────────────


def _asked(runtime: Any, subject: Subject, key: Key, verb: str, judged: str, change: Callable[..., list[Line]]) -> Doc:
    """Judge, change the journal, record who did it, and wake the Run; all but the last in one transaction."""
    reconciler: RunReconciler = runtime.reconciler("runs")

    def act(tx: Tx) -> Doc:
        doc = judge(tx, runtime.access, subject, judged, key)
        if doc["metadata"]["deletionTimestamp"]:
            raise Conflict(f"{key} is being deleted")
        progress = reconciler.progress_in(tx, doc["metadata"]["uid"])
        if not progress.last:
            raise Conflict(f"{key} was not admitted{' (yet)' if doc['status'].get('phase') != 'Failed' else ''}")
        case = case_of(key, doc, progress)
        lines = change(case)
        after = reconciler.engine.record(tx, case, lines)
        tx.audit(subject.name, verb, key, step=lines[0].step, reason=str(lines[0].doc.get("reason", "")))
        return {"run": str(key), "phase": after.progress.phase}

    answer: Doc = runtime.store.write(act)
    runtime.controller.wake_key(key)
    return answer


def _text(body: Doc, name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > 1000:
        raise Invalid(problems=(Problem("is a text of at most 1000 characters", name),))
    return value


def _step(case: Case, name: str) -> tuple[str, StepProgress]:
    """The step that is meant and waits for a person; the only one when none is named."""
    waiting = {n: s for n, s in case.progress.steps.items() if s.question}
    if name and name not in case.progress.steps:
        raise NotFound(f"{case.key} has no step {name!r}{did_you_mean(name, case.progress.steps)}")
    if name and name not in waiting:
        raise Conflict(f"step {name} of {case.key} waits for nobody")
    if not waiting:
        raise Conflict(f"{case.key} waits for nobody")
    if not name and len(waiting) > 1:
        raise Invalid(problems=(Problem(f"name one of {', '.join(waiting)}", "step"),))
    found = name or next(iter(waiting))
    return found, waiting[found]


def _answered(runtime: Any, subject: Subject, key: Key, body: Doc, verb: str, given: str) -> Doc:
    reason, wanted = _text(body, "reason"), _text(body, "step")

    def change(case: Case) -> list[Line]:
        name, at = _step(case, wanted)
        step = next((s for s in case.sequence.steps if s.name == name), None)
        if step and step.ask and step.ask.four_eyes and subject.name == case.subject:
            raise Forbidden(f"whoever started {case.key} may not answer step {name}; somebody else has to")
        refused = verb == "refuse" and not at.doubt
        if given not in at.choices and not refused:
            raise Invalid(problems=(Problem(f"answer one of {', '.join(at.choices)}", "answer"),))
        said = {"answer": given, "by": subject.name, "reason": reason}
        if case.progress.tally and not refused and given != "refuse":
            return [Line(name, "answered", said), Line(name, "again")]
        return [Line(name, "answered", said), _consequence(name, at, given, subject.name, reason, refused)]

    # Answering decides for the Run, so it takes the right to approve, whatever the verb.
    return _asked(runtime, subject, key, verb, "approve", change)


def _consequence(name: str, at: StepProgress, given: str, by: str, reason: str, refused: bool) -> Line:
    why = f"{by}: {reason}" if reason else f"by {by}"
    if at.doubt:
        happened, again, message = given == DOUBT[0], given == DOUBT[1], f"{given}, says {why}"
        if at.undo == "asked":
            state = "undone" if happened else "undo-again" if again else "undo-failed"
            return Line(name, state, {"message": message})
        if happened or again:
            return Line(name, "done" if happened else "again", {"message": message})
        return Line(name, "failed", {"message": f"given up, {message}", "happened": True})
    if refused or given == "refuse":
        return Line(name, "failed", {"message": f"refused {why}"})
    return Line(name, "done", {"output": {"answer": given, "by": by}, "message": reason})


def approve(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """Let the step that asks go on."""
    return _answered(runtime, subject, key, body, "approve", "approve")


def refuse(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """Do not let the step that asks go on: it fails."""
    return _answered(runtime, subject, key, body, "refuse", "refuse")


def answer(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """Answer what a step asks, with one of its choices."""
    return _answered(runtime, subject, key, body, "answer", _text(body, "answer"))


def cancel(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """End a Run after the step it is at; one over many targets when those under way are over."""
    reason = _text(body, "reason")

    def change(case: Case) -> list[Line]:
        if case.progress.ended or case.progress.cancelled:
            raise Conflict(f"{key} is over" if case.progress.ended else f"{key} is being cancelled already")
        cancelled = Line("", "cancel", {"by": subject.name, "reason": reason})
        if case.progress.begun:
            return [cancelled]
        return [cancelled, Line("", "ended", {"phase": "Cancelled", "message": f"cancelled by {subject.name}"})]

    return _asked(runtime, subject, key, "cancel", "cancel", change)


def resume(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """Go on with a Run that failed or was cancelled, at the step that failed."""
    reason, wanted = _text(body, "reason"), _text(body, "step")

    def change(case: Case) -> list[Line]:
        progress = case.progress
        if progress.ended not in ("Failed", "Cancelled") or progress.undoing:
            raise Conflict(f"{key} is {progress.phase}; only one that failed or was cancelled can be resumed")
        if any(s.undo == "done" for s in progress.steps.values()):
            raise Conflict(f"{key} was undone; start another one")
        failed = [n for n, s in progress.steps.items() if s.state == "failed"]
        if wanted and wanted not in failed:
            raise Conflict(f"step {wanted} of {key} did not fail")
        again = [wanted] if wanted else failed
        return [Line("", "resumed", {"by": subject.name, "reason": reason}), *(Line(n, "reset") for n in again)]

    return _asked(runtime, subject, key, "resume", "resume", change)


def undo(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """Take back what a failed or cancelled Run did, the last step first, as far as its steps say how."""
    reason = _text(body, "reason")

    def change(case: Case) -> list[Line]:
        if case.progress.ended not in ("Failed", "Cancelled") or case.progress.undoing:
            raise Conflict(f"{key} is {case.progress.phase}; only one that failed or was cancelled can be undone")
        if case.progress.tally:
            raise Conflict(f"{key} goes over many targets; undo the Run of each (label ground/parent={key.name})")
        if not any(s.undo for s in case.sequence.steps):
            raise Conflict(f"no step of {key} says how it is undone")
        return [Line("", "undo", {"by": subject.name, "reason": reason})]

    return _asked(runtime, subject, key, "undo", "undo", change)


def start(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """Start a Run of a procedure: `inputs`, and a `name` when it should not be made up."""
    if body.get("over"):
        # Else one step of one Run could start Runs over thousands, each of which does the same.
        raise Invalid(problems=(Problem("create a Run with spec.over instead", "over"),))
    given = _text(body, "name") or f"{key.name[:40]}-{secrets.token_hex(4)}"
    doc = runtime.kinds.parse(
        {
            "apiVersion": "ground/v1",
            "kind": "Run",
            "metadata": {"name": given, "namespace": key.namespace},
            "spec": {"procedure": key.name, "inputs": body.get("inputs") or {}},
        }
    )
    place = Key("Run", key.namespace, given)

    def act(tx: Tx) -> None:
        judge(tx, runtime.access, subject, "run", key)
        runtime.access.admit(tx, subject, "create", place, None, doc)
        new = tx.create(doc, subject.name, frozenset({"spec.procedure", "spec.inputs"}))
        tx.audit(subject.name, "create", place)
        tx.event(place, new["metadata"]["uid"], "Created", f"by {subject.name}")

    runtime.store.write(act)
    return {"run": place.path}
