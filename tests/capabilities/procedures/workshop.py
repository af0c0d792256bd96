"""A small installation for Runs: machines that have fields and actions, and a recorder in a file that outlives it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from groundcontrol.capabilities.procedures import CAPABILITY
from groundcontrol.kernel.access import Subject
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.errors import Invalid, OutcomeUnknown, Unavailable
from groundcontrol.kernel.reconcile import Reconciler
from groundcontrol.kernel.resource import Doc, Key, KindInfo, Model, Resource, Status
from groundcontrol.kernel.runtime import Runtime
from groundcontrol.kernel.settings import Settings

PATIENCE = 20.0
MACHINE = Key("Machine", "ops", "m1")
ACTIONS = ("poke", "prod", "nudge", "block", "fail", "break", "lose", "flaky", "count")
ADA, BOB, EVE = (Subject.user(name) for name in ("ada", "bob", "eve"))


class MachineSpec(Model):
    """What is wanted."""

    power: str = "on"
    """Anything."""
    slots: int = Field(default=1, ge=0, le=100)
    """A number with bounds."""
    notes: dict[str, str] = Field(default_factory=dict)
    """A structure."""


class Machine(Resource):
    """Something with fields and actions."""

    info: ClassVar[KindInfo] = KindInfo(plural="machines", actions=ACTIONS)
    kind: Literal["Machine"] = "Machine"
    spec: MachineSpec
    status: Status = Field(default_factory=Status)


class Recorder:
    """What was done, one line each, on disk before it counts as done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, **what: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(what) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def done(self, verb: str = "") -> list[str]:
        return [line["change"] for line in self.lines() if verb in ("", line["verb"])]

    def steps(self) -> list[str]:
        """The steps that did something, in order."""
        return [change.partition(":")[2] for change in self.done()]


class Acts:
    """What machines do when they are asked. Everything is noted in the file before it counts as done."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.crash_point: Callable[[str], None] = lambda where: None
        self.gate = threading.Event()
        """`block` waits for it."""
        self.gate.set()
        self.blocked = threading.Event()

    def _note(self, verb: str, subject: Any, body: Doc) -> None:
        self.crash_point(f"before {verb}")
        self.recorder.note(verb=verb, change=body["changeKey"], subject=subject.name, body=body)
        self.crash_point(f"after {verb}")

    def poke(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        """Can be seen afterwards: it leaves a mark on the machine."""
        self._note("poke", subject, body)
        self.mark(runtime)
        return {"said": "ouch", "times": 1}

    def mark(self, runtime: Any) -> None:
        """What an observer of the machines would see: a mark for every poke."""
        marks = {f"test/{c.partition(':')[2]}": c for c in self.recorder.done("poke")}
        if marks and runtime.store.entry(MACHINE):
            runtime.store.write(lambda tx: tx.touch(MACHINE, marks))

    def prod(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        """A machine that knows a repeated request by its key."""
        if body["changeKey"] not in self.recorder.done("prod"):
            self._note("prod", subject, body)
        return {}

    def nudge(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        """Neither can it be seen, nor may it be repeated."""
        self._note("nudge", subject, body)
        return {}

    def block(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        self.blocked.set()
        assert self.gate.wait(PATIENCE)
        self._note("block", subject, body)
        return {}

    def fail(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        raise Invalid("it cannot be")

    def break_(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        raise RuntimeError("a defect")

    def lose(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        self._note("lose", subject, body)
        raise OutcomeUnknown("no answer")

    def flaky(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        self._note("flaky", subject, body)
        if len(self.recorder.lines()) < 3:
            raise Unavailable("not yet")
        return {}

    def count(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        return {"n": body.get("n", 7)}

    def capability(self, reconcilers: tuple[Reconciler[Any], ...]) -> Capability:
        verbs = {verb: getattr(self, "break_" if verb == "break" else verb) for verb in Machine.info.actions}
        return Capability(
            name="machines",
            kinds=(Machine,),
            reconcilers=lambda runtime: reconcilers,
            actions={("Machine", verb): act for verb, act in verbs.items()},
            repeatable=frozenset({("Machine", "prod"), ("Machine", "flaky"), ("Machine", "count")}),
        )


class Workshop:
    """An open installation with three people: ada and bob operate, eve is a member and may not approve."""

    def __init__(self, data: Path, reconcilers: tuple[Reconciler[Any], ...] = (), workers: int = 4) -> None:
        self.data, self.reconcilers, self.workers = data, reconcilers, workers
        self.recorder = Recorder(data / "recorded")
        self.acts = Acts(self.recorder)
        self.runtime = self._build()

    def _build(self) -> Runtime:
        loop = {"backoff_first_seconds": 0.05, "backoff_max_seconds": 0.2, "workers": self.workers}
        loop["in_flight"] = max(1, self.workers // 2)
        settings = Settings.model_validate({"data": str(self.data), "ledger": {"enabled": False}, "loop": loop})
        return Runtime(settings, (CAPABILITY, self.acts.capability(self.reconcilers)), {}, lambda _: None)

    def open(self, crash_point: Callable[[str], None] | None = None) -> Workshop:
        runtime = self.runtime

        def first_start() -> None:
            """Before the loop begins to work."""
            runtime.reconciler("runs").engine.settle = 0.0
            if crash_point:
                runtime.turns.crash_point = self.acts.crash_point = crash_point
            self.acts.mark(runtime)

        runtime._first_start = first_start  # type: ignore[method-assign]
        runtime.open()
        return self

    def furnish(self) -> Workshop:
        """Namespace, people and a machine."""
        self.apply("Namespace", "ops", {"group": "operators"})
        for name in ("ada", "bob", "eve"):
            self.apply("Account", name, {"groups": []})
        everyone = {"ada": "operator", "bob": "operator", "eve": "member"}
        for name, role in everyone.items():
            spec = {"role": role, "subjects": [f"user:{name}"], "selector": {"namespaces": ["ops"]}}
            self.apply("RoleBinding", name, spec)
        self.apply("Machine", "m1", {}, "ops")
        return self

    def restart(self) -> None:
        self.runtime.close()
        self.runtime = self._build()
        self.open()

    # ── resources ───────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, kind: str, name: str, spec: Doc, namespace: str = "", manager: str = "user:ada") -> Doc:
        meta = {"name": name, **({"namespace": namespace} if namespace else {})}
        doc = self.runtime.kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": spec})
        key = Key(kind, namespace, name)
        given = frozenset(f"spec.{n}" for n in spec)

        def act(tx: Any) -> Doc:
            found: Doc = (
                tx.create(doc, manager, given) if tx.get(key) is None else tx.replace(doc, manager, given=given).doc
            )
            return found

        return self.runtime.store.write(act)

    def patch(self, name: str, manager: str = "user:bob", **fields: Any) -> None:
        """Change some fields of a machine and leave the others."""

        def act(tx: Any) -> None:
            doc = tx.need(Key("Machine", "ops", name))
            doc["spec"] |= fields
            tx.replace(doc, manager, given=frozenset(f"spec.{n}" for n in fields))

        self.runtime.store.write(act)

    def procedure(self, name: str, *steps: Doc, **more: Any) -> Doc:
        return self.apply("Procedure", name, {"steps": list(steps), **more}, "ops")

    def run(self, name: str, procedure: str = "", *, by: str = "user:ada", **spec: Any) -> Doc:
        return self.apply("Run", name, ({"procedure": procedure} if procedure else {}) | spec, "ops", by)

    def get(self, kind: str, name: str) -> Doc:
        found = self.runtime.store.get(Key(kind, "ops", name))
        assert found is not None, f"there is no {kind} {name}"
        return found

    def status(self, name: str) -> Doc:
        return self.get("Run", name)["status"]  # type: ignore[no-any-return]

    def step(self, run: str, name: str) -> Doc:
        return next((s for s in self.status(run).get("steps", ()) if s["name"] == name), {})

    def ask(self, verb: str, run: str, by: Subject = BOB, **body: Any) -> Doc:
        """What the API does for `…/actions/{verb}`, but for its own judging of the verb."""
        act = next(c.actions["Run", verb] for c in self.runtime.capabilities if ("Run", verb) in c.actions)
        found: Doc = act(self.runtime, by, Key("Run", "ops", run), body)
        return found

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def until(self, holds: Callable[[], Any], what: str = "") -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := holds():
                return found
            time.sleep(0.01)
        runs = {e.key.name: e.doc["status"] for e in self.runtime.store.entries("Run")}
        raise AssertionError(f"never: {what}\n{json.dumps(runs, indent=1)}")

    def until_phase(self, run: str, *phases: str) -> Doc:
        self.until(lambda: self.status(run).get("phase") in phases, f"Run {run} {phases}")
        return self.status(run)

    def events(self, reason: str = "") -> list[Doc]:
        facts = [f for f in self.runtime._pull(0, 100_000) if f["dataset"] == "events"]
        return [f for f in facts if reason in ("", f["reason"])]

    def facts(self, dataset: str) -> list[Doc]:
        return [f for f in self.runtime._pull(0, 100_000) if f["dataset"] == dataset]


@contextmanager
def workshop(data: Path, reconcilers: tuple[Reconciler[Any], ...] = ()) -> Iterator[Workshop]:
    """A furnished installation for the length of a test."""
    found = Workshop(data, reconcilers).open()
    try:
        yield found.furnish()
    finally:
        found.runtime.close()


def call(verb: str, **body: Any) -> Doc:
    """An act that calls an action of the machine."""
    return {"kind": "Machine", "name": "m1", "verb": verb, **({"body": body} if body else {})}


def setting(hold_for: float = 3600, **fields: Any) -> Doc:
    """An act that sets fields of the machine: `setting(slots=3)`."""
    fields = {f"spec.{name}": value for name, value in fields.items()}
    return {"set": {"kind": "Machine", "name": "m1", "fields": fields}, "holdFor": hold_for}
