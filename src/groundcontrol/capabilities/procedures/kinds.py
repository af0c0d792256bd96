"""Procedures, and the Runs that go through them once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import NAME, Column, KindInfo, Model, Resource, Status
from groundcontrol.kernel.run_admission import Sequence, Wrong, refuse
from groundcontrol.kernel.run_steps import Step
from groundcontrol.kernel.waves import Over


class ProcedureSpec(Sequence):
    """What is done, in which order, with what."""

    description: str = Field(default="", max_length=2000)
    """When to use it, and what it does."""


class ProcedureStatus(Status):
    """Whether it can be run."""

    digest: str = ""
    """Digest of the version that stands; a Run says which one it goes through."""


class Procedure(Resource):
    """A sequence of steps that people start with inputs. Whoever may `run` it may start it."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="procedures",
        short=("proc",),
        columns=(
            Column("Ready", "conditions.Ready"),
            Column("Reason", "reason.Ready"),
            Column("Age", "age:metadata.creationTimestamp"),
            Column("Description", "spec.description", wide=True),
        ),
        actions=("run", "preview"),
    )

    kind: Literal["Procedure"] = "Procedure"
    """Name of the kind."""
    spec: ProcedureSpec
    """What is done."""
    status: ProcedureStatus = Field(default_factory=ProcedureStatus)
    """Whether it can be run."""


class RunSpec(Model):
    """What is to be gone through: a procedure with inputs, or steps of its own. It cannot be changed afterwards."""

    procedure: str = Field(default="", max_length=63, pattern=f"^({NAME.pattern})?$")
    """Name of the Procedure, in the same namespace."""
    inputs: dict[str, str | int | bool | None] = Field(default_factory=dict, max_length=50)
    """Name to value of its inputs."""
    steps: list[Step] = Field(default_factory=list, max_length=200)
    """Steps of its own, instead of a procedure."""
    over: Over | None = None
    """Go through the procedure once for each of many targets, in waves."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if bool(self.procedure) == bool(self.steps):
            refuse([Wrong(("procedure",), "give either a procedure or steps")], "RunSpec")
        if self.steps and self.inputs:
            refuse([Wrong(("inputs",), "steps of its own have no inputs: write the values into them")], "RunSpec")
        if self.steps and self.over:
            message = "only a procedure can go over targets: steps of its own have no input that takes the name"
            refuse([Wrong(("over",), message)], "RunSpec")
        if self.steps:
            Sequence(steps=self.steps)
        return self


class StepStatus(Model):
    """How far one step is."""

    name: str
    """Name of the step."""
    state: Literal["pending", "running", "waiting", "done", "failed", "skipped", "unknown", "undone"] = "pending"
    """`waiting`: for a person; `unknown`: it may have happened or not."""
    does: str = ""
    """What it does, in a few words."""
    started: str = ""
    """When it began, RFC 3339."""
    ended: str = ""
    """When it was over, RFC 3339."""
    attempts: int = 0
    """How often an act was tried."""
    question: str = ""
    """What is asked; empty when nothing is."""
    choices: list[str] = Field(default_factory=list)
    """The answers there are."""
    answer: str = ""
    """What was answered."""
    answered_by: str = ""
    """Who answered."""
    output: dict[str, Any] = Field(default_factory=dict)
    """What it gave."""
    message: str = ""
    """One sentence."""


class WaveStatus(Model):
    """How far one wave is."""

    wave: int
    """Its number; the first is 1."""
    size: int
    """Targets in it."""
    done: int = 0
    """Targets whose Runs succeeded."""
    failed: int = 0
    """Targets whose Runs failed, were cancelled or were deleted."""
    skipped: int = 0
    """Targets that were gone before their turn came."""
    under_way: int = 0
    """Targets whose Runs are not over."""
    left: int = 0
    """Targets that have not begun."""


class RunStatus(Status):
    """How far a Run is."""

    phase: Literal["Pending", "Running", "Waiting", "Succeeded", "Failed", "Cancelled", "Unknown"] = "Pending"
    """`Waiting`: for a person; `Unknown`: for a person to say whether an act happened."""
    procedure_digest: str = ""
    """Digest of the version that was admitted; later edits of the Procedure do not touch the Run."""
    started_by: str = ""
    """Whose rights it acts with."""
    admitted: str = ""
    """When it was admitted, RFC 3339."""
    started: str = ""
    """When its first step could begin, RFC 3339."""
    ended: str = ""
    """When it was over, RFC 3339."""
    done: int = 0
    """Steps, or targets, that are over."""
    total: int = 0
    """Steps, or targets, there are."""
    progress: str = ""
    """The same in words, `2 of 5`."""
    expected_seconds: float = 0
    """How long such Runs took lately; 0 without any to go by."""
    message: str = ""
    """One sentence."""
    steps: list[StepStatus] = Field(default_factory=list)
    """How far each step is; of a Run over many targets only the present wave, as the step `wave_N`."""
    wave: int = 0
    """Number of the present wave; 0 for a Run that goes over no targets."""
    waves: list[WaveStatus] = Field(default_factory=list)
    """How far each wave is. Its targets' Runs have the label `ground/parent` with the name of this one."""
    failures: list[str] = Field(default_factory=list)
    """The first targets that failed, and why."""


class Run(Resource):
    """One going through a procedure: journalled, resumed by any worker, and answered by people where it asks."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="runs",
        columns=(
            Column("Phase", "status.phase"),
            Column("Procedure", "spec.procedure"),
            Column("Progress", "status.progress"),
            Column("Started by", "status.startedBy"),
            Column("Age", "age:metadata.creationTimestamp"),
            Column("Ended", "age:status.ended"),
            Column("Message", "status.message", wide=True),
        ),
        actions=("approve", "refuse", "answer", "cancel", "resume", "undo"),
    )

    kind: Literal["Run"] = "Run"
    """Name of the kind."""
    spec: RunSpec
    """What is gone through."""
    status: RunStatus = Field(default_factory=RunStatus)
    """How far it is."""

    @classmethod
    def admit(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """A Run is what was started: another one is another Run."""
        if old["spec"] != new["spec"]:
            problem = Problem("a Run cannot be changed", "spec", remedy="cancel it, and start another one")
            raise Invalid(problems=(problem,))
