"""Freezing what is admitted, and putting into words how far a Run is: pure."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from statistics import median
from typing import Any

from groundcontrol.capabilities.procedures.kinds import RunStatus, StepStatus, WaveStatus
from groundcontrol.kernel.reconcile import conditions
from groundcontrol.kernel.resource import Doc, Kinds, seconds
from groundcontrol.kernel.run_acts import Case
from groundcontrol.kernel.run_admission import Sequence, Wrong, bind, check_against
from groundcontrol.kernel.run_journal import Progress, stamp
from groundcontrol.kernel.waves import Count, Over, Tally, step_of

LONGEST_MESSAGE = 500
OVER = ("done", "failed", "skipped", "undone")


def sequence_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen form of a procedure's spec, or of a Run's own steps."""
    return Sequence.model_validate({n: spec[n] for n in ("inputs", "steps", "offline", "concurrency") if n in spec}) \
        .model_dump(mode="json", by_alias=True)  # fmt: skip


def digest_of(sequence: Mapping[str, Any]) -> str:
    """What makes a version another one."""
    return "sha256:" + hashlib.sha256(json.dumps(sequence, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=512)
def _parsed(digest: str, text: str) -> Sequence:
    return Sequence.model_validate_json(text, extra="ignore", context={"frozen": True})


def parsed(frozen: Mapping[str, Any]) -> Sequence:
    """The sequence of a journal's first entry; read once per version, whatever is stricter by now."""
    return _parsed(str(frozen["digest"]), json.dumps(frozen["sequence"], sort_keys=True))


def freeze(
    spec: Mapping[str, Any],
    procedure: Doc | None,
    kinds: Kinds,
    actions: Collection[tuple[str, str]],
    repeatable: Collection[tuple[str, str]],
    exists: Callable[[str, str], bool],
    over: Over | None = None,
) -> tuple[dict[str, Any], list[Wrong]]:
    """What a Run goes through, with its inputs bound, and what is wrong with that. The inputs that `over`, as it is
    settled, takes from each target stay open."""
    own = not spec.get("procedure")
    sequence = sequence_of({"steps": spec["steps"]} if own else procedure["spec"] if procedure else {})
    typed = Sequence.model_validate(sequence)
    wrong = list(check_against(typed, kinds, actions, repeatable))
    given, taken = spec.get("inputs") or {}, {over.input, over.namespace_input} if over else set()
    twice = sorted(taken & given.keys())
    wrong += [Wrong(("inputs", name), "is taken from each target; leave it out") for name in twice]
    open_ = {name: input for name, input in typed.inputs.items() if name not in taken}
    bound = typed.model_copy(update={"inputs": open_})
    values, unbound = bind(bound, {n: v for n, v in given.items() if n not in taken}, exists)
    frozen = {"sequence": sequence, "digest": digest_of(sequence), "inputs": values}
    return frozen, [*wrong, *unbound]


def status_of(case: Case, expected: float) -> dict[str, Any]:
    """The status of a Run, from its journal alone."""
    progress, tally = case.progress, case.progress.tally
    over = sum(s.state in OVER for s in progress.steps.values())
    total = len(progress.steps)
    if tally:
        over, total = tally.count().over, tally.count().size
    status = RunStatus(
        observed_generation=case.doc["metadata"]["generation"],
        phase=progress.phase,  # type: ignore[arg-type]
        procedure_digest=str(progress.frozen.get("digest", "")),
        started_by=str(progress.frozen.get("subject", "")),
        admitted=stamp(progress.admitted),
        started=stamp(progress.begun),
        ended=stamp(progress.ended_at) if progress.ended else "",
        done=over,
        total=total,
        progress=f"{over} of {total}",
        expected_seconds=round(expected, 1),
        message=_message(progress)[:LONGEST_MESSAGE],
        steps=[] if tally else [_step(case, step.name, step.does) for step in case.sequence.steps],
    )
    if tally:
        wave = present(progress, tally)
        status.wave, status.failures = wave + 1, [f[:LONGEST_MESSAGE] for f in tally.failures]
        status.waves = [_wave(number, tally.count(number)) for number in range(len(tally.waves))]
        does = f"wave {wave + 1} of {len(tally.waves)}, {len(tally.waves[wave])} of {total} targets"
        status.steps = [_step(case, step_of(wave), does)]
    answer = _ready(progress)
    old = next((c for c in (case.doc["status"].get("conditions") or ()) if c["type"] == "Ready"), None)
    (ready,) = conditions(Ready=answer)
    same = old is not None and old["status"] == ready.status
    ready.last_transition_time = old["lastTransitionTime"] if same and old else _latest(progress)
    ready.observed_generation = status.observed_generation
    status.conditions = [ready]
    return status.model_dump(mode="json", by_alias=True)


def present(progress: Progress, tally: Tally) -> int:
    """The first wave that is not over; the last one when all are."""
    waves = range(len(tally.waves))
    return next((wave for wave in waves if progress.steps[step_of(wave)].state != "done"), waves[-1])


def _wave(number: int, count: Count) -> WaveStatus:
    return WaveStatus(wave=number + 1, **count._asdict())


def _step(case: Case, name: str, does: str) -> StepStatus:
    at = case.progress.steps[name]
    return StepStatus(
        name=name,
        state="waiting" if at.undo == "asked" else at.state,  # type: ignore[arg-type]
        does=does[:200],
        started=stamp(at.started),
        ended=stamp(at.ended),
        attempts=at.attempts,
        question=at.question,
        choices=list(at.choices),
        answer=at.answer,
        answered_by=at.answered_by,
        output=at.output,
        message=at.message[:LONGEST_MESSAGE],
    )


def _latest(progress: Progress) -> str:
    times = [progress.admitted, progress.begun, progress.ended_at, *(s.since for s in progress.steps.values())]
    return stamp(max(times))


def _message(progress: Progress) -> str:
    if progress.undoing:
        return f"it is being undone, asked for by {progress.undoing}"
    if progress.ended:
        return progress.message
    if progress.phase == "Pending":
        return "it waits until others of its procedure are over"
    if progress.tally:
        return _of_waves(progress, progress.tally)
    if progress.cancelled:
        return f"it ends after the step it is at, cancelled by {progress.cancelled}"
    asked = next((s.question for s in progress.steps.values() if s.question), "")
    return asked or next((s.message for s in progress.steps.values() if s.state == "running"), "")


def _of_waves(progress: Progress, tally: Tally) -> str:
    wave = present(progress, tally)
    at, count = progress.steps[step_of(wave)], tally.count(wave)
    if progress.cancelled:
        return f"it ends when the {count.under_way} under way are over, cancelled by {progress.cancelled}"
    if at.state == "failed":
        return f"{at.message}; it ends when the {count.under_way} under way are over"
    if at.question:
        return at.question
    return f"wave {wave + 1} of {len(tally.waves)}: {count.over} of {count.size} targets are over"


def _ready(progress: Progress) -> Any:
    phase, message = progress.phase, _message(progress)[:LONGEST_MESSAGE]
    if phase == "Succeeded":
        return ("True", phase, message or "every step is over")
    if phase == "Unknown":
        return ("Unknown", "OutcomeUnknown", message)
    return ("False", phase, message)


def expected_of(durations: Collection[float]) -> float:
    """How long the next one may take."""
    return float(median(durations)) if durations else 0.0


def duration_of(status: Mapping[str, Any]) -> float | None:
    """Seconds a Run took that ended well; None otherwise."""
    if status.get("phase") != "Succeeded" or not status.get("started") or not status.get("ended"):
        return None
    return seconds(status["ended"]) - seconds(status["started"])
