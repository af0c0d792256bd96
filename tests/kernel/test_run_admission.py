"""What is wrong with a sequence is known before it runs, with the path of the field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.resource import Kinds
from groundcontrol.kernel.run_admission import Sequence, bind, check_against, resolve
from tests.kernel.things import Thing

ACT = {"kind": "Thing", "name": "t", "verb": "poke"}
SET = {"set": {"kind": "Thing", "name": "t", "fields": {"spec.colour": "red"}}}
INPUTS = {"n": {"type": "int", "default": 3}, "t": {"type": "resource", "kind": "Thing"}, "b": {"type": "bool"}}


def problems(steps: Any, inputs: Any = None) -> list[tuple[str, str]]:
    try:
        Sequence.model_validate({"steps": steps, "inputs": INPUTS if inputs is None else inputs})
    except ValidationError as error:
        return [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
    return []


def step(name: str = "a", **parts: Any) -> dict[str, Any]:
    return {"name": name, **parts}


GOOD: tuple[Any, ...] = (
    [step(act=ACT, onUnknown="check", check="resource.spec.colour != before.resourceVersion && steps.a.started != ''")],
    [step(act={**ACT, "name": "${inputs.t}", "body": {"n": "${inputs.n}", "l": [1, {"a": "b"}]}}, onUnknown="ask")],
    [step(act=SET, undo={"restore": True}), step("b", when="steps.a.state == 'done'", notify={"message": "x"})],
    [step(ask={"question": "?"}), step("b", act={**ACT, "name": "${steps.a.output.answer}"}, onUnknown="repeat")],
    [step(act=ACT, onUnknown="ask", outputs={"x": "string"}, undo={**ACT, "name": "${steps.a.output.x}"})],
    [step(wait={"until": "inputs.n > 1 && run.name != ''"}), step("b", notify={"message": "${run.name}"})],
    [step(wait={"kind": "Thing", "name": "t", "until": "resource == null || has(resource.status.inputs)"})],
    [step(notify={"message": "costs 5 $"})],
)


@pytest.mark.parametrize("steps", GOOD, ids=range(len(GOOD)))
def test_good(steps: Any) -> None:
    assert problems(steps) == []


NEXT = step("b", notify={"message": "x"})
BAD: tuple[tuple[Any, str, str], ...] = (
    ([], "steps", "there are no steps"),
    ([step()], "steps.0", "exactly one of act, wait, ask and notify"),
    ([step(act=SET, notify={"message": "x"})], "steps.0", "exactly one of"),
    ([step(notify={"message": "x"}), step(notify={"message": "y"})], "steps.1.name", "another step is called 'a'"),
    ([step("A", notify={"message": "x"})], "steps.0.name", "pattern"),
    ([step("a-b", notify={"message": "x"})], "steps.0.name", "pattern"),
    ([step(act={**ACT, **SET})], "steps.0.act", "exactly one of"),
    ([step(act={"kind": "Thing", "name": "t"})], "steps.0.act.verb", "verb is missing"),
    ([step(act={"restore": True})], "steps.0.act.restore", "belongs in undo"),
    ([step(act=ACT, onUnknown="ask", undo={"restore": True})], "steps.0.undo.restore", "sets no fields"),
    ([step(act={"set": {**SET["set"], "fields": {"status.x": 1}}})], "steps.0.act.set.fields.status.x", "spec.NAME"),
    (
        [step(act={"set": {**SET["set"], "fields": {"metadata.labels": 1}}})],
        "steps.0.act.set.fields.metadata.labels",
        "spec.NAME",
    ),
    (
        [step(act={"set": {**SET["set"], "fields": {"spec.a": "${inputs.x}"}}})],
        "steps.0.act.set.fields.spec.a",
        "there is no input 'x'",
    ),
    ([step(notify={"message": "${inputs.nn}"})], "steps.0.notify.message", 'did you mean "n"'),
    ([step(notify={"message": "all ${inputs.n}"})], "steps.0.notify.message", "a literal or exactly one"),
    ([step(notify={"message": "${inputs.n + 1}"})], "steps.0.notify.message", "nothing is computed"),
    ([step(notify={"message": "${{inputs.n}}"})], "steps.0.notify.message", "a literal or exactly one"),
    ([step(notify={"message": "${env.HOME}"})], "steps.0.notify.message", "begins with inputs, steps or run"),
    ([step(notify={"message": "${run.secret}"})], "steps.0.notify.message", "run.name, run.namespace and run.uid"),
    ([step(notify={"message": "${inputs.n.x}"})], "steps.0.notify.message", "is not known"),
    ([step(act={**ACT, "body": {"l": ["${inputs.n}"]}}, onUnknown="ask")], "steps.0.act.body.l", "a whole value"),
    ([step(act={**ACT, "name": "${inputs.n}"}, onUnknown="ask")], "steps.0.act.name", "of type int"),
    ([step(act={**ACT, "name": "${inputs.b}"}, onUnknown="ask")], "steps.0.act.name", "of type bool"),
    (
        [step(act={**ACT, "kind": "Other", "name": "${inputs.t}"}, onUnknown="ask")],
        "steps.0.act.name",
        "names a Thing, here a Other is meant",
    ),
    (
        [step(act={**ACT, "name": "${steps.a.output.x}"}, outputs={"x": "string"}, onUnknown="ask")],
        "steps.0.act.name",
        "only earlier steps can be, else it is circular",
    ),
    ([step(notify={"message": "${steps.b.output.x}"}), NEXT], "steps.0.notify.message", "else it is circular"),
    ([step(notify={"message": "${steps.c.output.x}"}), NEXT], "steps.0.notify.message", "there is no step 'c'"),
    ([NEXT, step(notify={"message": "${steps.b.output.x}"})], "steps.1.notify.message", "it gives nothing"),
    ([NEXT, step(notify={"message": "${steps.b.x}"})], "steps.1.notify.message", "does not give"),
    (
        [step(ask={"question": "?"}), step("b", notify={"message": "${steps.a.output.anser}"})],
        "steps.1.notify.message",
        "it gives steps.a.output.answer, steps.a.output.by",
    ),
    ([step(when="inputs.x > 1", notify={"message": "x"})], "steps.0.when", "there is no input 'x'"),
    ([step(when="inputs == 1", notify={"message": "x"})], "steps.0.when", "write inputs.NAME"),
    ([step(when="size(steps) > 1", notify={"message": "x"})], "steps.0.when", "write steps.NAME"),
    ([step(when="steps.b.state == 'done'", notify={"message": "x"}), NEXT], "steps.0.when", "circular"),
    ([NEXT, step(when="steps.b.stat == 'done'", notify={"message": "x"})], "steps.1.when", "a step has no 'stat'"),
    ([NEXT, step(when="steps.b.output.x == 1", notify={"message": "x"})], "steps.1.when", "it gives nothing"),
    ([step(when="resource.x", notify={"message": "x"})], "steps.0.when", "there is no value 'resource' here"),
    ([step(when="1 +", notify={"message": "x"})], "steps.0.when", "it is not CEL"),
    ([step(wait={"until": "resource.x"})], "steps.0.wait.until", "there is no value 'resource' here"),
    ([step(wait={"kind": "Thing", "until": "resource.x"})], "steps.0.wait.name", "kind and name go together"),
    ([step(act=ACT, onUnknown="check")], "steps.0.check", "check goes with onUnknown: check"),
    ([step(act=ACT, onUnknown="ask", check="true")], "steps.0.check", "check goes with onUnknown: check"),
    ([step(act=SET, onUnknown="ask")], "steps.0.onUnknown", "an act that calls an action"),
    ([step(act=SET, outputs={"x": "int"})], "steps.0.outputs", "an act that calls an action"),
    ([step(ask={"question": "?"}, undo=ACT)], "steps.0.undo", "goes with act"),
    ([step(notify={"message": "x"}, colour="red")], "steps.0.colour", "Extra inputs"),
)


@pytest.mark.parametrize(("steps", "path", "message"), BAD, ids=range(len(BAD)))
def test_bad(steps: Any, path: str, message: str) -> None:
    found = problems(steps)
    assert any(p == path and message in m for p, m in found), found


@pytest.mark.parametrize(
    ("input", "path", "message"),
    [
        ({"n": {"type": "int", "default": "3"}}, "inputs.n.default", "not of type int"),
        ({"n": {"type": "int", "default": 1, "min": 2}}, "inputs.n.default", "less than 2"),
        ({"n": {"type": "int", "enum": ["a"]}}, "inputs.n.enum.0", "not of type int"),
        ({"n": {"type": "string", "min": 2}}, "inputs.n.type", "go with type int"),
        ({"n": {"type": "resource"}}, "inputs.n.kind", "goes with type resource"),
        ({"n": {"kind": "Thing"}}, "inputs.n.kind", "goes with type resource"),
        ({"a-b": {}}, "inputs.a-b", "letters, digits and _"),
    ],
)
def test_bad_inputs(input: Any, path: str, message: str) -> None:
    found = problems([NEXT], input)
    assert any(p == path and message in m for p, m in found), found


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"t": "x", "b": True, "n": True}, "inputs.n", "not of type int"),
        ({"t": "x", "b": 1}, "inputs.b", "not of type bool"),
        ({"t": "x"}, "inputs.b", "is missing"),
        ({"t": "none", "b": False}, "inputs.t", "there is no Thing none"),
        ({"t": "x", "b": False, "N": 1}, "inputs.N", "there is no input 'N'"),
        ({"t": "x", "b": False, "n": 1 << 60}, "inputs.n", "not of type int"),
    ],
)
def test_what_is_given_must_fit(given: Any, path: str, message: str) -> None:
    sequence = Sequence.model_validate({"steps": [NEXT], "inputs": INPUTS})
    _, wrong = bind(sequence, given, lambda kind, name: name == "x")
    assert any(w.path == path and message in w.message for w in wrong), wrong
    values, wrong = bind(sequence, {"t": "x", "b": False}, lambda kind, name: name == "x")
    assert (values, wrong) == ({"n": 3, "t": "x", "b": False}, [])


def test_against_an_installation() -> None:
    sequence = Sequence.model_validate(
        {
            "inputs": {"t": {"type": "resource", "kind": "Thingy"}},
            "steps": [step(act=ACT), step("b", act={**ACT, "verb": "prod"}), step("c", act={**ACT, "verb": "pokes"})],
        }
    )
    actions = {("Thing", "poke"), ("Thing", "prod")}
    found = {w.path: w.message for w in check_against(sequence, Kinds([Thing]), actions, {("Thing", "prod")})}
    assert set(found) == {"inputs.t.kind", "steps.0.onUnknown", "steps.2.act.verb", "steps.2.onUnknown"}
    assert 'did you mean "poke"' in found["steps.2.act.verb"]


def test_values() -> None:
    scope = {"inputs": {"n": 0, "none": None}, "steps": {"a": {"output": {}}}}
    assert resolve("${inputs.n}", scope) == 0
    assert resolve("${inputs.none}", scope) is None
    assert resolve("plain", scope) == "plain"
    assert resolve(["${inputs.n}"], scope) == ["${inputs.n}"]
    with pytest.raises(Invalid, match=r"steps\.a\.output\.x has no value"):
        resolve("${steps.a.output.x}", scope)
