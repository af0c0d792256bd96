"""What people say to a Run: answers, the end of it, going on, taking back; and who may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, Invalid, NotFound
from groundcontrol.kernel.resource import Key
from tests.capabilities.procedures.workshop import ADA, BOB, EVE, Workshop, call, setting, workshop

ASK = {"name": "ask", "ask": {"question": "go on?"}}
COLOUR = {"name": "colour", "ask": {"question": "which?", "choices": ["red", "blue"]}}
DONE = {"name": "done", "act": call("prod")}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as found:
        yield found


def waiting(shop: Workshop, *steps: Any, **more: Any) -> None:
    """Run r of these steps, as far as its question."""
    shop.procedure("p", *steps, **more)
    shop.run("r", "p")
    shop.until_phase("r", "Waiting")


def test_what_is_asked_can_be_read(shop: Workshop) -> None:
    waiting(shop, COLOUR, DONE)
    step = shop.step("r", "colour")
    assert (step["state"], step["question"], step["choices"]) == ("waiting", "which?", ["red", "blue"])
    assert shop.status("r")["message"] == "which?"
    shop.restart()
    shop.ask("answer", "r", step="colour", answer="blue", reason="it suits")
    shop.until_phase("r", "Succeeded")
    step = shop.step("r", "colour")
    assert (step["answer"], step["answeredBy"], step["question"]) == ("blue", "user:bob", "")
    assert step["output"] == {"answer": "blue", "by": "user:bob"}
    (fact,) = [f for f in shop.facts("audit") if f["verb"] == "answer"]
    assert (fact["subject"], fact["detail"]) == ("user:bob", {"step": "colour", "reason": "it suits"})


@pytest.mark.parametrize("verb", ["approve", "refuse", "answer"])
def test_answering_takes_the_right_to_approve(shop: Workshop, verb: str) -> None:
    waiting(shop, ASK)
    with pytest.raises(Forbidden, match="eve may not approve Run ops/r"):
        shop.ask(verb, "r", EVE, answer="approve")
    with pytest.raises(GroundError):
        shop.ask(verb, "r", ADA.__class__.user("ada", scope=["write"]), answer="approve")
    assert shop.status("r")["phase"] == "Waiting"


@pytest.mark.parametrize(
    ("verb", "body", "error"),
    [
        ("answer", {"answer": "green"}, Invalid),
        ("answer", {}, Invalid),
        ("answer", {"answer": 1}, Invalid),
        ("approve", {}, Invalid),
        ("answer", {"step": "done", "answer": "red"}, Conflict),
        ("answer", {"step": "colours", "answer": "red"}, NotFound),
        ("resume", {}, Conflict),
        ("undo", {}, Conflict),
    ],
)
def test_what_is_no_answer(shop: Workshop, verb: str, body: Any, error: type[Exception]) -> None:
    waiting(shop, COLOUR, DONE)
    with pytest.raises(error):
        shop.ask(verb, "r", **body)
    assert shop.status("r")["phase"] == "Waiting"
    assert shop.recorder.steps() == []


def test_refused(shop: Workshop) -> None:
    waiting(shop, ASK, DONE)
    shop.ask("refuse", "r", reason="not today")
    assert "refused user:bob: not today" in shop.until_phase("r", "Failed")["message"]
    assert shop.recorder.steps() == []
    with pytest.raises(Conflict, match="waits for nobody"):
        shop.ask("approve", "r")


def test_nobody_answers(shop: Workshop) -> None:
    waiting(shop, {"name": "ask", "ask": {"question": "go on?", "timeout": 1}}, DONE)
    assert "nobody answered" in shop.until_phase("r", "Failed")["message"]


def test_four_eyes(shop: Workshop) -> None:
    waiting(shop, {"name": "ask", "ask": {"question": "go on?", "fourEyes": True}}, DONE)
    with pytest.raises(Forbidden, match="somebody else has to"):
        shop.ask("approve", "r", ADA)
    shop.ask("approve", "r", BOB)
    shop.until_phase("r", "Succeeded")


class TestCancel:
    """It ends after the step it is at."""

    @pytest.mark.parametrize("step", [ASK, {"name": "w", "wait": {"until": "run.name == ''"}}])
    def test_while_it_waits(self, shop: Workshop, step: Any) -> None:
        shop.procedure("p", {"name": "grow", "act": setting(slots=3)}, step, DONE)
        shop.run("r", "p")
        shop.until(lambda: shop.step("r", step["name"]).get("state") in ("waiting", "running"))
        with pytest.raises(GroundError):
            shop.ask("cancel", "r", BOB.__class__.user("nobody"))
        shop.ask("cancel", "r", EVE, reason="wrong one")
        assert shop.until_phase("r", "Cancelled")["message"] == "cancelled by user:eve"
        assert shop.get("Machine", "m1")["metadata"]["managers"] == {}
        assert shop.recorder.steps() == []
        with pytest.raises(Conflict):
            shop.ask("cancel", "r")

    def test_during_an_act(self, shop: Workshop) -> None:
        shop.acts.gate.clear()
        shop.run("r", steps=[{"name": "a", "act": call("block"), "onUnknown": "ask"}, DONE])
        assert shop.acts.blocked.wait(10)
        # The act's end finds that the journal went on, and is written all the same.
        shop.ask("cancel", "r")
        assert "after the step it is at" in shop.status("r")["message"]
        shop.acts.gate.set()
        shop.until_phase("r", "Cancelled")
        assert shop.step("r", "a")["state"] == "done"
        assert shop.recorder.steps() == ["a"]

    def test_while_nobody_knows(self, shop: Workshop) -> None:
        shop.run("r", steps=[{"name": "a", "act": call("lose"), "onUnknown": "ask"}, DONE])
        shop.until_phase("r", "Unknown")
        shop.ask("cancel", "r")
        shop.until_phase("r", "Cancelled")
        assert shop.step("r", "a")["state"] == "unknown"


class TestDoubt:
    """An act whose outcome is not known."""

    @pytest.mark.parametrize("verb", ["lose", "break"])
    @pytest.mark.parametrize(
        ("said", "phase", "state"),
        [("happened", "Succeeded", "done"), ("abort", "Failed", "failed"), ("not-happened", "Unknown", "waiting")],
    )
    def test_a_person_says(self, shop: Workshop, verb: str, said: str, phase: str, state: str) -> None:
        shop.run("r", steps=[{"name": "a", "act": call(verb), "onUnknown": "ask"}, DONE])
        shop.until_phase("r", "Unknown")
        step = shop.step("r", "a")
        assert (step["state"], step["choices"]) == ("waiting", ["happened", "not-happened", "abort"])
        assert "did it happen?" in step["question"]
        shop.ask("answer", "r", answer=said)
        if said == "not-happened":
            shop.until(lambda: shop.step("r", "a")["attempts"] == 2)
        shop.until_phase("r", phase)
        assert shop.step("r", "a")["state"] == state

    def test_what_is_lost_for_ever_is_not_repeated_for_ever(self, shop: Workshop) -> None:
        check = "'test/x' in resource.metadata.annotations"
        shop.run("r", steps=[{"name": "a", "act": call("lose"), "onUnknown": "check", "check": check}])
        shop.until_phase("r", "Unknown")
        assert shop.step("r", "a")["attempts"] == 5

    def test_a_check_without_answer_asks(self, shop: Workshop) -> None:
        check = "resource.metadata.annotations['nothing'] == 'x'"
        shop.run("r", steps=[{"name": "a", "act": call("lose"), "onUnknown": "check", "check": check}])
        shop.until_phase("r", "Unknown")
        assert shop.step("r", "a")["attempts"] == 1
        assert "the check cannot tell" in shop.step("r", "a")["question"]


class TestResume:
    """A Run that failed goes on where it failed."""

    def test_at_the_step_that_failed(self, shop: Workshop) -> None:
        shop.procedure("p", {"name": "first", "act": call("nudge"), "onUnknown": "ask"}, ASK, DONE)
        shop.run("r", "p")
        shop.until_phase("r", "Waiting")
        shop.ask("refuse", "r", reason="no")
        shop.until_phase("r", "Failed")
        with pytest.raises(Conflict, match="did not fail"):
            shop.ask("resume", "r", step="first")
        shop.ask("resume", "r", EVE, reason="yes")
        shop.until_phase("r", "Waiting")
        shop.ask("approve", "r")
        shop.until_phase("r", "Succeeded")
        assert shop.recorder.steps() == ["first", "done"]

    def test_after_a_cancel(self, shop: Workshop) -> None:
        waiting(shop, ASK, DONE)
        shop.ask("cancel", "r")
        shop.until_phase("r", "Cancelled")
        shop.ask("resume", "r")
        shop.until_phase("r", "Waiting")
        shop.ask("approve", "r")
        shop.until_phase("r", "Succeeded")


class TestUndo:
    """Taking back, the last first."""

    STEPS = (
        {"name": "one", "act": call("prod"), "undo": call("prod", back=True)},
        {"name": "two", "act": setting(slots=7, power="off"), "undo": {"restore": True}},
        {"name": "three", "act": call("nudge"), "onUnknown": "ask", "undo": call("nudge")},
        {"name": "four", "act": call("count")},
        ASK,
        {"name": "never", "act": call("prod"), "undo": call("prod")},
    )

    def cancelled(self, shop: Workshop) -> None:
        shop.apply("Machine", "m1", {"slots": 2}, "ops", "user:bob")
        waiting(shop, *self.STEPS)
        shop.ask("cancel", "r")
        shop.until_phase("r", "Cancelled")

    def test_in_reverse_order(self, shop: Workshop) -> None:
        self.cancelled(shop)
        before = len(shop.recorder.lines())
        shop.ask("undo", "r", reason="sorry")
        shop.until(lambda: "undone by user:bob" in shop.status("r")["message"])
        assert shop.status("r")["phase"] == "Cancelled"
        states = {s["name"]: s["state"] for s in shop.status("r")["steps"]}
        assert states == {"one": "undone", "two": "undone", "three": "undone", "four": "done", "ask": "waiting",
                          "never": "pending"} | {"ask": states["ask"]}  # fmt: skip
        machine = shop.get("Machine", "m1")
        assert (machine["spec"]["slots"], machine["spec"]["power"]) == (2, "on")
        assert machine["metadata"]["managers"] == {"spec.slots": "user:bob"}
        assert shop.recorder.steps()[before:] == ["three:undo", "one:undo"]
        with pytest.raises(Conflict, match="was undone"):
            shop.ask("resume", "r")

    def test_what_somebody_changed_since_is_left(self, shop: Workshop) -> None:
        self.cancelled(shop)
        shop.apply("Machine", "m1", {"slots": 50}, "ops", "user:bob")
        shop.ask("undo", "r")
        shop.until(lambda: "undone by" in shop.status("r")["message"])
        assert shop.get("Machine", "m1")["spec"]["slots"] == 50
        assert "spec.slots of Machine ops/m1 was changed since" in shop.step("r", "two")["message"]

    def test_what_cannot_be_undone_is_said(self, shop: Workshop) -> None:
        steps = ({"name": "a", "act": call("prod"), "undo": call("fail")}, {**ASK, "name": "q"})
        waiting(shop, *steps)
        shop.ask("refuse", "r", reason="no")
        shop.until_phase("r", "Failed")
        shop.ask("undo", "r")
        shop.until(lambda: "could not undo a" in shop.status("r")["message"])
        assert shop.status("r")["phase"] == "Failed"

    def test_an_undoing_that_got_no_answer_asks(self, shop: Workshop) -> None:
        waiting(shop, {"name": "a", "act": call("prod"), "undo": call("lose")}, ASK)
        shop.ask("cancel", "r")
        shop.until_phase("r", "Cancelled")
        shop.ask("undo", "r")
        shop.until_phase("r", "Unknown")
        shop.ask("answer", "r", step="a", answer="happened")
        shop.until_phase("r", "Cancelled")
        assert shop.step("r", "a")["state"] == "undone"

    def test_nothing_to_undo(self, shop: Workshop) -> None:
        waiting(shop, ASK)
        shop.ask("cancel", "r")
        shop.until_phase("r", "Cancelled")
        with pytest.raises(Conflict, match="no step"):
            shop.ask("undo", "r")


def test_starting_by_the_action_of_a_procedure(shop: Workshop) -> None:
    shop.procedure("p", {"name": "a", "act": call("prod", x="${inputs.x}")}, inputs={"x": {}})
    start = next(c.actions["Procedure", "run"] for c in shop.runtime.capabilities if c.name == "procedures")
    answer = start(shop.runtime, EVE, Key("Procedure", "ops", "p"), {"inputs": {"x": "y"}, "name": "mine"})
    assert answer == {"run": "ops/mine"}
    shop.until_phase("mine", "Succeeded")
    assert shop.recorder.lines()[0]["subject"] == "user:eve"
    with pytest.raises(GroundError):
        start(shop.runtime, EVE.__class__.user("nobody"), Key("Procedure", "ops", "p"), {})


def test_two_answers_at_once_are_one(shop: Workshop) -> None:
    waiting(shop, COLOUR, DONE)
    shop.ask("answer", "r", answer="red")
    with pytest.raises(Conflict, match="waits for nobody"):
        shop.ask("answer", "r", answer="blue")
    shop.until_phase("r", "Succeeded")
    time.sleep(0.05)
    assert shop.step("r", "colour")["answer"] == "red"
