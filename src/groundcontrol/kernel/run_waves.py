"""Takes a Run on that goes over many targets: a Run of its own for each, wave by wave, and never two for one.

What was admitted holds the plan; it is not made again. The Run of a target is written in the transaction that says so
in the parent's journal, under a name that follows from both, so that a kill leaves either both or neither. It goes
through the version the parent was admitted with, as whoever started the parent, and its acts are judged one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from groundcontrol.kernel.access import Access
from groundcontrol.kernel.errors import Forbidden, Invalid, NotFound
from groundcontrol.kernel.resource import Doc, Key, Kinds, did_you_mean, selector
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.run import CHOICES, Engine
from groundcontrol.kernel.run_acts import SUBJECT, Case, judge, subject_of
from groundcontrol.kernel.run_admission import Sequence, Wrong, check_kind, fits
from groundcontrol.kernel.run_journal import Line, Progress, StepProgress, progress_of, read
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import SERVER, Tx
from groundcontrol.kernel.waves import LEFT, MOST_TARGETS, UNDER_WAY, Over, Tally, Target, domains_of, step_of

PARENT = "ground/parent"
"""Label of the Run of a target: the name of the Run that goes over many."""
AT_ONCE = 20
"""Targets begun, or taken back, in one transaction: others write too."""
ENDED = ("Succeeded", "Failed", "Cancelled")


def find(store: Store, access: Access, subject: Subject, over: Over, namespace: str) -> list[Target]:
    """The targets there are now and the subject may see, with their failure domains; one more than may be at most."""
    info = store.kinds.get(over.kind).info
    place = None if over.namespace == "*" or not info.namespaced else over.namespace or namespace
    if place:
        access.require_list(subject, "list", over.kind, place)
    sees = access.visible(subject, over.kind, "list")
    labelled, fitting = selector(over.label_selector), selector(over.field_selector, fields=True)
    found: list[Target] = []
    for entry in store.entries(over.kind, place):
        if len(found) > MOST_TARGETS:
            break
        if not sees(entry) or not labelled({"metadata": {"labels": entry.labels}}):
            continue
        doc = entry.doc
        if not doc["metadata"]["deletionTimestamp"] and fitting(doc):
            domains = domains_of(doc, over.spread.by) if over.spread else ()
            found.append(Target(entry.key.namespace, entry.key.name, entry.uid, domains))
    return found


def child_of(run: Key, uid: str, target: Target) -> Key:
    """The Run of a target: its name says which for people, and is told from all others by both uids."""
    mark = hashlib.sha256(f"{uid}:{target.namespace}/{target.name}:{target.uid}".encode()).hexdigest()[:12]
    stem = f"{run.name[:24].rstrip('.-')}-{target.name[:24].strip('.-')}"
    return Key(run.kind, run.namespace, f"{stem}-{mark}")


@dataclass
class Waves:
    """Takes Runs over many targets on."""

    engine: Engine
    may_still: Callable[[Tx, Case, Subject], None]
    """Raises when whoever started it may not start such a Run any more."""

    def advance(self, case: Case) -> float | None:
        """One step on. Seconds until the next look: 0 at once, None when something is heard."""
        tally = _tally(case)
        if case.progress.ended:
            return None
        wave, at = self._present(case, tally)
        if landed := self._landed(case, tally):
            self.engine.write(case, lambda tx, now: [Line(step_of(wave), "landed", landed)], "land")
            return 0.0
        if case.progress.cancelled:
            return self._cancelled(case, tally, wave)
        if at.state == "failed":
            if not tally.count().under_way:
                self.engine.end(case, "Failed", f"{_in_words(tally, wave)}: {at.message}")
            return None
        if at.state == "waiting":
            return self._asked(case, wave, at)
        if tally.too_many:
            return self._too_many(case, tally, wave)
        return self._on(case, tally, wave)

    @staticmethod
    def _present(case: Case, tally: Tally) -> tuple[int, StepProgress]:
        """The first wave that is not over; the last one when all are."""
        steps = case.progress.steps
        wave = next((w for w in range(len(tally.waves)) if steps[step_of(w)].state != "done"), len(tally.waves) - 1)
        return wave, steps[step_of(wave)]

    def _landed(self, case: Case, tally: Tally) -> Doc:
        """Which of those under way are over; empty when none is."""
        done: list[int] = []
        failed: list[tuple[int, str]] = []
        for number in tally.of_state(UNDER_WAY):
            entry = self.engine.store.entry(child_of(case.key, case.uid, tally.target(number)))
            doc = entry.doc if entry else None
            owners = [o["uid"] for o in doc["metadata"]["ownerReferences"]] if doc else []
            if doc is None or case.uid not in owners:
                failed.append((number, "its Run was deleted"))
            elif doc["status"].get("phase") == "Succeeded":
                done.append(number)
            elif doc["status"].get("phase") in ENDED:
                failed.append((number, str(doc["status"].get("message", ""))[:200]))
        if not done and not failed:
            return {}
        told = "; ".join(f"{tally.target(n).path} failed: {why}" for n, why in failed[:3])
        more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
        return {"done": done, "failed": failed, "message": told + more, "doubt": bool(failed)}

    # ── between the waves ───────────────────────────────────────────────────────────────────────────────────────

    def _on(self, case: Case, tally: Tally, wave: int) -> float | None:
        """Nothing stands against it: begin what may begin, or end the wave, or the Run."""
        count, over, now = tally.count(wave), case.progress.frozen["over"], self.engine.store.clock()
        if not count.left and not count.under_way:
            if case.progress.steps[step_of(wave)].state != "done":
                self.engine.write(case, lambda tx, _: [Line(step_of(wave), "done", {"message": count.words})], "wave")
                return 0.0
            total = tally.count()
            bad = {"failed": total.failed, "gone meanwhile": total.skipped}
            told = ", ".join(f"{n} {word}" for word, n in bad.items() if n)
            self.engine.end(case, "Succeeded", f"{total.done} of {total.size} done, {told}" if told else "")
            return None
        if count.left == count.size and wave:
            at, before = case.progress.steps[step_of(wave)], case.progress.steps[step_of(wave - 1)]
            if over["between"] == "ask" and not at.answer:
                many = f"{count.size} target" + "s" * (count.size != 1)
                question = f"{_in_words(tally, wave - 1)}. Go on with wave {wave + 1} ({many})?"
                return self._ask(case, wave, question)
            if now < before.ended + over["pause"]:
                return float(before.ended + over["pause"] - now)
        room = min(over["concurrency"], case.sequence.concurrency) - count.under_way
        if not count.left or room < 1:
            return None
        numbers = list(islice(tally.of_state(LEFT, wave), min(room, AT_ONCE)))
        again: list[str] = []
        try:
            self.engine.write(case, lambda tx, now: self._launch(tx, now, wave, numbers, again), "launch")
        except (Forbidden, NotFound, Invalid) as error:
            # Nobody may begin anything any more; what is under way is judged by itself.
            return self._fail(case, wave, error.message)
        self.engine.wake(tuple(again))
        return 0.0

    def _ask(self, case: Case, wave: int, question: str) -> float:
        timeout = float(case.progress.frozen["over"]["timeout"])
        until = self.engine.store.clock() + timeout
        doc = {"question": question, "choices": list(CHOICES), "until": until}
        self.engine.write(case, lambda tx, now: [Line(step_of(wave), "asked", doc)], "asked")
        return timeout

    def _asked(self, case: Case, wave: int, at: StepProgress) -> float:
        left = at.until - self.engine.store.clock()
        return left if left > 0 else self._fail(case, wave, "nobody answered in time")

    def _fail(self, case: Case, wave: int, message: str) -> float:
        self.engine.write(case, lambda tx, now: [Line(step_of(wave), "failed", {"message": message})], "failed")
        return 0.0

    def _too_many(self, case: Case, tally: Tally, wave: int) -> float:
        total = tally.count()
        message = f"{total.failed} of {total.size} failed, more than {tally.allowed + tally.forgiven}"
        if not total.left or case.progress.frozen["over"]["onFailure"] == "stop":
            return self._fail(case, wave, message)
        return self._ask(case, wave, f"{message}; {tally.failures[-1]}. Go on with the other {total.left}?")

    def _cancelled(self, case: Case, tally: Tally, wave: int) -> float | None:
        """Those that have not begun are taken back, those under way are let finish."""
        runs = {n: child_of(case.key, case.uid, tally.target(n)) for n in tally.of_state(UNDER_WAY)}
        pending = [n for n, run in runs.items() if _phase(self.engine.store.get(run)) == "Pending"][:AT_ONCE]
        woken: list[str] = []

        def back(tx: Tx, case: Case) -> list[Line]:
            taken = []
            for number in pending:
                child = self._child(tx, case, runs[number])
                if child is not None and not child.progress.begun and not child.progress.ended:
                    by = case.progress.cancelled
                    end = {"phase": "Cancelled", "message": f"cancelled by {by} before it began"}
                    self.engine.record(tx, child, [Line("", "cancel", {"by": by}), Line("", "ended", end)])
                    taken.append(number)
                    woken.append(child.uid)
            return [Line(step_of(wave), "landed", {"back": taken})] if taken else []

        if pending:
            self.engine.write(case, back, "back")
            self.engine.wake(tuple(woken))
            return 0.0 if woken else 0.1
        if runs:
            return None
        total = tally.count()
        message = f"cancelled by {case.progress.cancelled}; {total.words}, {total.left} not begun"
        self.engine.end(case, "Cancelled", message)
        return None

    # ── the Runs of the targets ─────────────────────────────────────────────────────────────────────────────────

    def _launch(self, tx: Tx, case: Case, wave: int, numbers: list[int], again: list[str]) -> list[Line]:
        """Write the Runs of these targets, and that they are under way; `again` gets the uids of those there were."""
        tally, frozen = _tally(case), case.progress.frozen
        subject = subject_of(tx.get, case.subject)
        self.may_still(tx, case, subject)
        begun: list[int] = []
        skipped: list[int] = []
        failed: list[tuple[int, str]] = []
        for number in numbers:
            target = tally.target(number)
            key = Key(frozen["over"]["kind"], target.namespace, target.name)
            doc = tx.get(key)
            if doc is None or doc["metadata"]["uid"] != target.uid or doc["metadata"]["deletionTimestamp"]:
                skipped.append(number)
                continue
            try:
                judge(tx, self.engine.access, subject, "get", key)
                again += self._begin(tx, case, target)
            except (Forbidden, NotFound) as error:
                failed.append((number, error.message[:200]))
            else:
                begun.append(number)
        lines = [Line(step_of(wave), "launched", {"targets": begun})] if begun else []
        if skipped or failed:
            told = [f"{tally.target(n).path} is gone, and skipped" for n in skipped]
            told += [f"{tally.target(n).path} failed: {why}" for n, why in failed]
            more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
            doc = {"skipped": skipped, "failed": failed, "message": "; ".join(told[:3]) + more, "doubt": bool(failed)}
            lines.append(Line(step_of(wave), "landed", doc))
        return lines

    def _begin(self, tx: Tx, case: Case, target: Target) -> tuple[str, ...]:
        """The Run of one target: admitted as it is made, or, when it was taken back, to go on; then its uid."""
        key = child_of(case.key, case.uid, target)
        there = tx.get(key)
        if there is not None:
            child = self._child(tx, case, key)
            if child is None or not child.progress.ended or child.progress.begun:
                raise Forbidden(f"another Run is called {key.name}")
            self.engine.record(tx, child, [Line("", "resumed", {"by": case.subject})])
            return (child.uid,)
        frozen = case.progress.frozen
        over: Mapping[str, Any] = frozen["over"]
        inputs = {**frozen["inputs"], over["input"]: target.name}
        if over["namespaceInput"]:
            inputs[over["namespaceInput"]] = target.namespace
        old = case.doc["metadata"]
        labels = dict(sorted((old.get("labels") or {}).items())[:63])
        meta = {
            "name": key.name,
            "namespace": key.namespace,
            "labels": {**labels, PARENT: case.key.name},
            "annotations": {SUBJECT: case.subject},
            "ownerReferences": [{"kind": case.key.kind, "name": case.key.name, "uid": case.uid}],
        }
        given = case.doc["spec"].get("inputs") or {}
        mine = {name: inputs[name] for name in (over["input"], over["namespaceInput"]) if name}
        spec = {**case.doc["spec"], "inputs": {**given, **mine}, "over": None}
        doc = {"apiVersion": case.doc["apiVersion"], "kind": key.kind, "metadata": meta, "spec": spec, "status": {}}
        new = tx.create(doc, SERVER)
        tx.audit(case.subject, "create", key, run=case.key.path)
        child = Case(key, new["metadata"]["uid"], new, case.sequence, Progress())
        version = {name: frozen[name] for name in ("sequence", "digest", "subject", "procedure")}
        self.engine.record(tx, child, [Line("", "admitted", {**version, "inputs": inputs})])
        return ()

    def _child(self, tx: Tx, case: Case, key: Key) -> Case | None:
        """The Run of a target as it stands; None when there is none of ours."""
        doc = tx.get(key)
        if doc is None or case.uid not in [o["uid"] for o in doc["metadata"]["ownerReferences"]]:
            return None
        if doc["metadata"]["deletionTimestamp"]:
            return None
        uid = doc["metadata"]["uid"]
        return replace(case, key=key, uid=uid, doc=doc, progress=progress_of(read(tx.conn, uid)))


def _tally(case: Case) -> Tally:
    assert case.progress.tally is not None, "only Runs over many targets come here"
    return case.progress.tally


def _phase(doc: Doc | None) -> str:
    return str(doc["status"].get("phase", "")) if doc else ""


def _in_words(tally: Tally, wave: int) -> str:
    """`wave 2 of 4: 18 done, 2 failed`."""
    return f"wave {wave + 1} of {len(tally.waves)}: {tally.count(wave).words}"


def settled(over: Over, sequence: Sequence, kinds: Kinds, namespace: str) -> tuple[Over, list[Wrong]]:
    """Over with the input that takes the name found, and what is wrong with it for these steps and kinds."""
    if over.kind == "Run":
        return over, [Wrong(("over", "kind"), "a Run cannot go over Runs; name the kind of what they act on")]
    if wrong := list(check_kind(("over", "kind"), over.kind, kinds)):
        return over, wrong
    inputs, namespaced = sequence.inputs, kinds.get(over.kind).info.namespaced
    fitting = [name for name, input in inputs.items() if input.kind == over.kind]
    if not over.input and len(fitting) != 1:
        return over, [Wrong(("over", "input"), f"say which input takes the name of the {over.kind}")]
    over = over.model_copy(update={"input": over.input or fitting[0]})
    if not namespaced and (over.namespace or over.namespace_input):
        wrong.append(Wrong(("over", "namespace"), f"{over.kind} is platform-wide; leave it out"))
    elif over.namespace not in ("", namespace) and not over.namespace_input:
        message = "the targets are in other namespaces: say which input takes that"
        wrong.append(Wrong(("over", "namespaceInput"), message))
    if over.input == over.namespace_input:
        wrong.append(Wrong(("over", "namespaceInput"), "one input cannot take both name and namespace"))
    for field, name in (("input", over.input), ("namespaceInput", over.namespace_input)):
        input = inputs.get(name)
        if name and input is None:
            wrong.append(Wrong(("over", field), f"there is no input {name!r}{did_you_mean(name, inputs)}"))
        elif input is not None and input.type != "string" and (input.kind != over.kind or field != "input"):
            wrong.append(Wrong(("over", field), f"input {name} is not a text{'' if input.kind else ': ' + input.type}"))
    return over, wrong


def unfit(over: Over, sequence: Sequence, targets: list[Target]) -> list[Wrong]:
    """Targets whose name or namespace is no value of the input that takes it."""
    wrong = []
    for target in targets:
        for name, value in ((over.input, target.name), (over.namespace_input, target.namespace)):
            if name and (why := fits(sequence.inputs[name], value)):
                wrong.append(Wrong(("inputs", name), why))
    return wrong[:10]
