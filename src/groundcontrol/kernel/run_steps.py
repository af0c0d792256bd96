"""The shapes of which a sequence is made: inputs, and steps that act, wait, ask or tell.

A value is a literal or exactly one `${path}` (`inputs.x`, `steps.y.output.z`, `run.name`); predicates (`when`, `until`,
`check`) are CEL. `kernel/run_admission.py` says what may be wrong with them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from groundcontrol.kernel.resource import Model

WORD = r"[a-z][A-Za-z0-9_]{0,39}"
"""Names of inputs, steps and outputs: they stand in paths and predicates."""
Type = Literal["string", "int", "bool", "resource"]


class Input(Model):
    """One value a Run is started with."""

    type: Type = "string"
    """`string`, `int`, `bool`, or `resource`: the name of a resource that is there."""
    kind: str = ""
    """Kind of the resource, for `resource`."""
    description: str = Field(default="", max_length=500)
    """What it means."""
    required: bool = True
    """Must be given; one with a default need not be."""
    default: str | int | bool | None = None
    """Value when none is given."""
    enum: list[str | int] = Field(default_factory=list, max_length=100)
    """The only values there are; any when empty."""
    min: int | None = None
    """Least value, `int` only."""
    max: int | None = None
    """Greatest value, `int` only."""


class FieldSet(Model):
    """Fields of one resource that are given values."""

    kind: str
    """Kind of the resource."""
    namespace: str = ""
    """Its namespace, or one `${path}`; the Run's own when empty."""
    name: str
    """Its name, or one `${path}`."""
    fields: dict[str, Any] = Field(min_length=1, max_length=50)
    """Path in the spec to value, `spec.replicas: 3`; a value is a literal or one `${path}`."""


class Act(Model):
    """Something that is done: an action of a resource (`kind`, `name`, `verb`), or fields that are `set`."""

    kind: str = ""
    """Kind of the resource that has the action."""
    namespace: str = ""
    """Its namespace, or one `${path}`; the Run's own when empty."""
    name: str = ""
    """Its name, or one `${path}`."""
    verb: str = ""
    """The action, for example `restart`."""
    body: dict[str, Any] = Field(default_factory=dict, max_length=50)
    """What the action is given; each value is a literal or one `${path}`."""
    set: FieldSet | None = None
    """Fields to set instead; the Run holds them until it ends, or until `holdFor` is over."""
    hold_for: float = Field(default=3600, ge=1, le=7 * 86_400)
    """Seconds for which set fields are held at most."""
    restore: bool = False
    """In `undo` of a step that set fields: give them back the values they had."""

    @property
    def forms(self) -> int:
        """How many of its three forms are used: exactly one is right."""
        called = bool(self.kind or self.name or self.verb or self.namespace or self.body)
        return called + (self.set is not None) + self.restore


class Wait(Model):
    """Goes on once a predicate holds."""

    until: str
    """CEL predicate over `resource`, `inputs`, `steps` and `run`; `resource` is null when it is not there."""
    kind: str = ""
    """Kind of the resource to look at; without one there is no `resource`."""
    namespace: str = ""
    """Its namespace, or one `${path}`; the Run's own when empty."""
    name: str = ""
    """Its name, or one `${path}`."""
    timeout: float = Field(default=600, ge=0.1, le=30 * 86_400)
    """Seconds after which the step fails."""
    every: float = Field(default=30, ge=0.5, le=86_400)
    """Seconds after which to look again even when nothing was heard."""


class Ask(Model):
    """Goes on once a person who may approve has answered."""

    question: str = Field(min_length=1, max_length=2000)
    """What is asked: text, or one `${path}`."""
    choices: list[str] = Field(default_factory=list, max_length=20)
    """The answers there are; `approve` and `refuse` when empty."""
    timeout: float = Field(default=86_400, ge=1, le=90 * 86_400)
    """Seconds after which the step fails for want of an answer."""
    four_eyes: bool = False
    """Whoever started the Run may not answer."""


class Notify(Model):
    """Puts a line on the timeline of the Run."""

    message: str = Field(min_length=1, max_length=2000)
    """Text, or one `${path}`."""
    warning: bool = False
    """Whether it is a warning."""


class Step(Model):
    """One step: exactly one of `act`, `wait`, `ask` and `notify`."""

    name: str = Field(pattern=f"^{WORD}$")
    """Unique in the sequence; a letter, then letters, digits and `_`."""
    when: str = ""
    """CEL predicate over `inputs`, `steps` and `run`; the step is skipped when it does not hold."""
    act: Act | None = None
    """Do something."""
    wait: Wait | None = None
    """Wait until something is so."""
    ask: Ask | None = None
    """Ask a person."""
    notify: Notify | None = None
    """Tell."""
    on_unknown: Literal["", "check", "repeat", "ask"] = ""
    """What to do when it cannot be known whether an act happened: `check` looks, `repeat` does it again, `ask` asks a
    person. Must be said for an action that is not declared repeatable; `repeat` otherwise."""
    check: str = ""
    """For `check`: CEL predicate that holds when the act happened, over `resource` (as it is), `before` (its metadata
    when the act began), `inputs`, `steps` and `run`."""
    on_failure: Literal["stop", "continue"] = "stop"
    """Whether the Run fails with the step, or goes on."""
    timeout: float = Field(default=300, ge=0, le=86_400)
    """Seconds for which an act is tried again while what it needs cannot be reached."""
    undo: Act | None = None
    """What takes the act back, when somebody asks for the Run to be undone."""
    outputs: dict[str, Literal["string", "int", "bool"]] = Field(default_factory=dict, max_length=20)
    """What the action answers that later steps may use: name to type."""

    @property
    def does(self) -> str:
        """One phrase for people."""
        if self.act and self.act.set:
            return f"set {', '.join(sorted(self.act.set.fields))} of {self.act.set.kind} {self.act.set.name}"
        if self.act:
            return f"{self.act.verb} {self.act.kind} {self.act.name}"
        return f"wait until {self.wait.until}" if self.wait else "ask" if self.ask else "notify"

    @property
    def gives(self) -> Mapping[str, str]:
        """Outputs and their types."""
        return {"answer": "string", "by": "string"} if self.ask else self.outputs
