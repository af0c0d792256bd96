"""What a Run goes through when nobody kills anybody: steps, rights, bounds, edits, ends."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel import run as run_module
from groundcontrol.kernel.errors import Invalid, Unavailable
from groundcontrol.kernel.resource import Key
from tests.capabilities.procedures.workshop import MACHINE, Workshop, call, setting, workshop

ASK = {"name": "ask", "ask": {"question": "go on?"}}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as found:
        yield found


def test_every_kind_of_step(shop: Workshop) -> None:
    shop.procedure(
        "all",
        {"name": "poke", "act": call("poke", word="${inputs.word}"), "onUnknown": "ask", "outputs": {"said": "string"}},
        {"name": "grow", "act": setting(slots="${inputs.slots}")},
        {"name": "see", "wait": {"kind": "Machine", "name": "m1", "until": "resource.spec.slots == inputs.slots"}},
        {"name": "tell", "notify": {"message": "${steps.poke.output.said}"}},
        {"name": "never", "when": "inputs.slots > 50", "act": call("nudge"), "onUnknown": "ask"},
        inputs={"slots": {"type": "int", "default": 5}, "word": {}},
    )
    shop.run("r", "all", inputs={"word": "hello"})
    status = shop.until_phase("r", "Succeeded")
    assert [s["state"] for s in status["steps"]] == ["done", "done", "done", "done", "skipped"]
    assert (status["progress"], status["startedBy"]) == ("5 of 5", "user:ada")
    assert shop.get("Machine", "m1")["spec"]["slots"] == 5
    (line,) = shop.recorder.lines()
    assert (line["subject"], line["body"]["word"]) == ("user:ada", "hello")
    assert [e["message"] for e in shop.events("Notified")] == ["ouch"]
    acts = [(f["subject"], f["verb"], f["outcome"]) for f in shop.facts("audit") if f["kind"] == "Machine"]
    assert acts == [("user:ada", "poke", "asked"), ("user:ada", "update", "done")]
    states = [(f["step"], f["state"]) for f in shop.facts("journal")]
    assert states[:4] == [("", "admitted"), ("", "begun"), ("poke", "started"), ("poke", "done")]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"act": call("fail"), "onUnknown": "ask"}, "it cannot be"),
        ({"act": setting(slots=101)}, "less than or equal to 100"),
        ({"act": setting(colour="red")}, "unknown field"),
        ({"act": {**call("prod"), "name": "m2"}}, "there is no Machine ops/m2"),
        ({"when": "steps.first.output.n > 'a'", "notify": {"message": "x"}}, "has no answer"),
        ({"when": "inputs.a", "notify": {"message": "x"}}, "does not answer yes or no"),
        ({"wait": {"until": "inputs.a == 'b'", "timeout": 0.1, "every": 0.5}}, "did not hold for 0.1 s"),
        ({"act": call("count", n="text"), "outputs": {"n": "int"}}, "not of type int"),
    ],
)
def test_a_step_that_cannot_be_fails_and_says_why(shop: Workshop, step: Any, message: str) -> None:
    first = {"name": "first", "act": call("count"), "outputs": {"n": "int"}}
    last = {"name": "last", "act": call("nudge"), "onUnknown": "ask"}
    shop.procedure("p", first, {"name": "bad", **step}, last, inputs={"a": {"default": "a"}})
    shop.run("r", "p")
    status = shop.until_phase("r", "Failed")
    assert message in shop.step("r", "bad")["message"]
    assert message in status["message"]
    assert shop.step("r", "last")["state"] == "pending"
    assert shop.recorder.steps() == []


def test_a_failure_that_may_be_is_passed_over(shop: Workshop) -> None:
    shop.procedure(
        "p", {"name": "a", "act": call("fail"), "onUnknown": "ask", "onFailure": "continue"},
        {"name": "b", "when": "steps.a.state == 'failed'", "act": call("prod")},
    )  # fmt: skip
    shop.run("r", "p")
    status = shop.until_phase("r", "Succeeded")
    assert status["message"] == "without a, which failed"
    assert shop.recorder.steps() == ["b"]


def test_what_cannot_be_reached_is_tried_again(shop: Workshop) -> None:
    shop.procedure("p", {"name": "a", "act": call("flaky")})
    shop.run("r", "p")
    shop.until_phase("r", "Succeeded")
    assert shop.step("r", "a")["attempts"] == 3


def test_and_not_for_ever(shop: Workshop) -> None:
    shop.procedure("p", {"name": "a", "act": call("flaky"), "timeout": 0})
    shop.run("r", "p")
    shop.until_phase("r", "Failed")
    assert shop.step("r", "a")["attempts"] == 1


def test_waiting_hears_of_changes_at_once(shop: Workshop) -> None:
    wait = {"kind": "Machine", "name": "later", "until": "resource != null && resource.spec.slots > 1", "every": 3600}
    shop.procedure("p", {"name": "w", "wait": wait})
    shop.run("r", "p")
    shop.until(lambda: shop.step("r", "w").get("state") == "running")
    shop.apply("Machine", "later", {"slots": 1}, "ops")
    shop.apply("Machine", "later", {"slots": 2}, "ops")
    shop.until_phase("r", "Succeeded")


def test_the_version_that_was_admitted_is_gone_through(shop: Workshop) -> None:
    tail = {"name": "tail", "act": call("nudge"), "onUnknown": "ask"}
    shop.procedure("p", ASK, tail)
    shop.run("r", "p")
    digest = shop.until_phase("r", "Waiting")["procedureDigest"]
    shop.procedure("p", ASK, {"name": "other", "act": call("prod")})
    shop.run("r2", "p")
    assert shop.until_phase("r2", "Waiting")["procedureDigest"] != digest
    shop.runtime.store.write(lambda tx: tx.delete(Key("Procedure", "ops", "p")))
    shop.restart()
    for run in ("r", "r2"):
        shop.ask("approve", run)
        shop.until_phase(run, "Succeeded")
    assert sorted(shop.recorder.steps()) == ["other", "tail"]
    assert shop.status("r")["procedureDigest"] == digest


def test_a_set_and_its_line_are_one(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the line cannot be written the fields are not set, and the hold is not taken."""
    write_line, failed = run_module.append, []

    def append(tx: Any, key: Key, uid: str, progress: Any, lines: Any, subject: str) -> Any:
        if any(line.doc.get("sets") for line in lines) and len(failed) < 3:
            failed.append((tx.get(MACHINE)["spec"]["slots"], shop.get("Machine", "m1")["spec"]["slots"]))
            raise Unavailable("the disk is full")
        return write_line(tx, key, uid, progress, lines, subject)

    monkeypatch.setattr(run_module, "append", append)
    shop.run("r", steps=[{"name": "a", "act": setting(slots=4)}])
    shop.until_phase("r", "Succeeded")
    assert failed == [(4, 1)] * 3
    assert shop.get("Machine", "m1")["metadata"]["generation"] == 2
    assert len(shop.events("ChangedByRun")) == 1


def test_a_run_cannot_be_changed(shop: Workshop) -> None:
    shop.procedure("p", ASK)
    shop.run("r", "p")
    with pytest.raises(Invalid, match="a Run cannot be changed"):
        shop.run("r", "q")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"procedure": "none"}, "there is no Procedure ops/none"),
        ({"procedure": "p", "inputs": {"slots": "many", "machine": "m1"}}, "spec.inputs.slots: 'many' is not of type"),
        ({"procedure": "p", "inputs": {"slots": 99, "machine": "m1"}}, "spec.inputs.slots: 99 is more than 9"),
        ({"procedure": "p", "inputs": {"machine": "m7"}}, "spec.inputs.machine: there is no Machine m7"),
        ({"procedure": "p"}, "spec.inputs.machine: is missing"),
        ({"procedure": "p", "inputs": {"machine": "m1", "slot": 1}}, 'did you mean "slots"'),
        ({"steps": [{"name": "a", "act": call("nudge")}]}, "spec.steps.0.onUnknown: nudge of a Machine is not repeat"),
        ({"steps": [{"name": "a", "act": call("nugde"), "onUnknown": "ask"}]}, 'did you mean "nudge"'),
        ({"steps": [{"name": "a", "wait": {"until": "resource == 1", "kind": "Machin", "name": "x"}}]}, "no kind 'Mac"),
        (
            {"steps": [{"name": "a", "act": {"set": {"kind": "Run", "name": "${run.name}", "fields": {"spec.a": 1}}}}]},
            "",
        ),
    ],
)
def test_what_cannot_be_run_is_turned_down_with_the_field(shop: Workshop, spec: Any, message: str) -> None:
    inputs = {"slots": {"type": "int", "max": 9, "default": 1}, "machine": {"type": "resource", "kind": "Machine"}}
    shop.procedure("p", {"name": "a", "act": setting(slots="${inputs.slots}")}, inputs=inputs)
    shop.run("r", **spec)
    status = shop.until_phase("r", "Failed")
    assert message in status["message"]
    assert not shop.facts("journal") or message == ""
    time.sleep(0.05)
    assert shop.get("Machine", "m1")["metadata"]["generation"] == 1


def test_a_procedure_says_that_it_cannot_be_run_here(shop: Workshop) -> None:
    shop.procedure("p", {"name": "a", "act": {**call("poke"), "kind": "Machines"}, "onUnknown": "ask"})
    ready = shop.until(lambda: shop.get("Procedure", "p")["status"]["conditions"])[0]
    assert (ready["status"], ready["reason"]) == ("False", "Invalid")
    assert ready["message"].startswith("spec.steps.0.act.kind:")


class TestRights:
    """A Run does what whoever started it may do, at the moment of each act."""

    def test_as_its_starter(self, shop: Workshop) -> None:
        shop.procedure("p", {"name": "a", "act": call("prod")})
        shop.run("r", "p", by="user:eve")
        shop.until_phase("r", "Succeeded")
        assert shop.recorder.lines()[0]["subject"] == "user:eve"

    @pytest.mark.parametrize("by", ["user:nobody", "ci", "server", "source:gone", "group:operators"])
    def test_not_as_somebody_without_rights(self, shop: Workshop, by: str) -> None:
        shop.run("r", by=by, steps=[{"name": "a", "act": call("prod")}])
        message = shop.until_phase("r", "Failed")["message"]
        assert shop.recorder.steps() == []
        if by in ("ci", "server", "group:operators"):
            assert "start it as yourself" in message
            assert not shop.facts("journal")

    def test_running_a_procedure_takes_a_right_of_its_own(self, shop: Workshop) -> None:
        shop.procedure("p", {"name": "a", "act": call("prod")})
        rules = [{"kinds": ["Run", "Machine"], "verbs": ["*"]}, {"kinds": ["Procedure"], "verbs": ["get"]}]
        shop.apply("Role", "narrow", {"rules": rules})
        for account in ("dan", "fay"):
            shop.apply("Account", account, {"groups": []})
        spec = {"role": "narrow", "subjects": ["user:dan"], "selector": {"namespaces": ["ops"]}}
        shop.apply("RoleBinding", "dan", spec)
        shop.run("r", "p", by="user:dan")
        assert "may not run Procedure ops/p" in shop.until_phase("r", "Failed")["message"]
        rules[1]["verbs"] = ["get", "run"]
        shop.apply("Role", "narrow", {"rules": rules})
        shop.run("r2", "p", by="user:dan")
        shop.until_phase("r2", "Succeeded")

    def test_judged_when_it_acts(self, shop: Workshop) -> None:
        shop.procedure("p", ASK, {"name": "a", "act": call("prod")}, {"name": "b", "act": setting(slots=2)})
        shop.run("r", "p")
        shop.until_phase("r", "Waiting")
        shop.runtime.store.write(lambda tx: tx.delete(Key("RoleBinding", "", "ada")))
        shop.ask("approve", "r")
        shop.until_phase("r", "Failed")
        assert shop.recorder.steps() == []

    def test_setting_too(self, shop: Workshop) -> None:
        shop.procedure("p", ASK, {"name": "b", "act": setting(slots=2)})
        shop.run("r", "p")
        shop.until_phase("r", "Waiting")
        shop.runtime.store.write(lambda tx: tx.delete(Key("RoleBinding", "", "ada")))
        shop.ask("approve", "r")
        shop.until_phase("r", "Failed")
        assert shop.get("Machine", "m1")["metadata"]["generation"] == 1

    def test_nor_once_the_account_is_closed(self, shop: Workshop) -> None:
        shop.procedure("p", ASK, {"name": "a", "act": setting(slots=2)})
        shop.run("r", "p")
        shop.until_phase("r", "Waiting")
        shop.apply("Account", "ada", {"groups": [], "disabled": True})
        shop.ask("approve", "r")
        assert "disabled or gone" in shop.until_phase("r", "Failed")["message"]
        assert shop.get("Machine", "m1")["spec"]["slots"] == 1

    def test_it_cannot_approve(self, shop: Workshop) -> None:
        shop.procedure("p", ASK)
        shop.run("r", "p")
        shop.until_phase("r", "Waiting")
        for verb in ("approve", "answer"):
            act = {"kind": "Run", "name": "r", "verb": verb, "body": {"answer": "approve"}}
            shop.run(f"by-{verb}", steps=[{"name": "a", "act": act, "onUnknown": "ask"}])
            assert "scope lacks 'approve'" in shop.until_phase(f"by-{verb}", "Failed")["message"]
        assert shop.status("r")["phase"] == "Waiting"

    def test_it_cannot_give_rights(self, shop: Workshop) -> None:
        spec = {"role": "admin", "subjects": ["user:root"]}
        shop.apply("RoleBinding", "root", spec)
        shop.apply("Account", "root", {"groups": []})
        act = {"set": {"kind": "RoleBinding", "name": "eve", "fields": {"spec.role": "admin"}}}
        shop.run("r", by="user:root", steps=[{"name": "a", "act": act}])
        assert "may not update RoleBinding" in shop.until_phase("r", "Failed")["message"]

    def test_it_cannot_look_where_its_starter_may_not(self, shop: Workshop) -> None:
        shop.apply("Namespace", "other", {"group": "others"})
        shop.apply("Machine", "secret", {}, "other")
        for name in ("secret", "none"):
            wait = {"kind": "Machine", "namespace": "other", "name": name, "until": "resource != null", "timeout": 1}
            shop.run(f"look-{name}", by="user:eve", steps=[{"name": "w", "wait": wait}])
            status = shop.until_phase(f"look-{name}", "Failed")
            assert "there is no Namespace other" in status["message"]

    def test_a_spec_that_two_people_wrote_is_nobodys(self, shop: Workshop) -> None:
        """Else bob would act with ada's rights."""
        runs = shop.runtime.reconciler("runs")
        shop.runtime.controller.stop()
        shop.run("r", "p", inputs={})
        key = Key("Run", "ops", "r")

        def taken_over(tx: Any) -> None:
            doc = tx.get(key)
            doc["metadata"]["managers"]["spec.inputs"] = "user:bob"
            tx._write(doc, "MODIFIED")

        shop.runtime.store.write(taken_over)
        runs.take_turn(key, shop.runtime.turns)
        assert "was changed by somebody" in shop.status("r")["message"]


class TestBound:
    """Not more of one procedure at once than it says; the others wait in the order in which they came."""

    def test_oldest_first(self, shop: Workshop) -> None:
        shop.procedure("p", ASK, concurrency=2)
        for n in range(5):
            shop.run(f"r{n}", "p")
            shop.until(lambda n=n: shop.status(f"r{n}").get("admitted"))  # type: ignore[misc]
        phases = [shop.status(f"r{n}")["phase"] for n in range(5)]
        assert sorted(phases[:2] + phases[2:]) == ["Pending"] * 3 + ["Waiting"] * 2
        assert phases[2:] == ["Pending"] * 3
        shop.ask("approve", "r1")
        shop.until_phase("r2", "Waiting")
        shop.restart()
        shop.ask("cancel", "r3")
        shop.until_phase("r3", "Cancelled")
        shop.runtime.store.write(lambda tx: tx.delete(Key("Run", "ops", "r0")))
        shop.until_phase("r4", "Waiting")
        assert shop.status("r2")["phase"] == "Waiting"

    def test_other_procedures_do_not_wait(self, shop: Workshop) -> None:
        shop.procedure("p", ASK, concurrency=1)
        shop.procedure("q", {"name": "a", "act": call("prod")}, concurrency=1)
        for n in range(3):
            shop.run(f"r{n}", "p")
        shop.run("quick", "q")
        shop.until_phase("quick", "Succeeded")

    def test_those_turned_down_hold_no_place(self, shop: Workshop) -> None:
        shop.procedure("p", {"name": "a", "act": call("prod")}, concurrency=1, inputs={"x": {}})
        for n in range(3):
            shop.run(f"bad{n}", "p")
            shop.until_phase(f"bad{n}", "Failed")
        shop.run("good", "p", inputs={"x": "y"})
        shop.until_phase("good", "Succeeded")


def test_how_long_it_may_take_is_learnt(shop: Workshop) -> None:
    shop.procedure("p", {"name": "w", "wait": {"until": "run.name == 'no'", "timeout": 1}, "onFailure": "continue"})
    shop.run("r1", "p")
    shop.until_phase("r1", "Succeeded")
    shop.restart()
    shop.run("r2", "p")
    shop.until(lambda: shop.status("r2").get("expectedSeconds"))
    assert 0.9 <= shop.status("r2")["expectedSeconds"] <= 5


def test_a_deleted_run_lets_go(shop: Workshop) -> None:
    shop.procedure("p", {"name": "grow", "act": setting(slots=4)}, ASK)
    shop.apply("Machine", "m1", {"slots": 1}, "ops", "user:bob")
    shop.run("r", "p")
    shop.until_phase("r", "Waiting")
    assert shop.get("Machine", "m1")["metadata"]["managers"] == {"spec.slots": "run:ops/r"}
    shop.runtime.store.write(lambda tx: tx.delete(Key("Run", "ops", "r")))
    shop.until(lambda: shop.runtime.store.get(Key("Run", "ops", "r")) is None)
    machine = shop.get("Machine", "m1")
    assert machine["metadata"]["managers"] == {"spec.slots": "user:bob"}
    assert machine["spec"]["slots"] == 4
    with sqlite3.connect(shop.data / "ground.db") as conn:
        assert conn.execute("select count(*) from holds").fetchone() == (0,)
        assert conn.execute("select count(*) from journal").fetchone() == (0,)
    assert MACHINE.path == "ops/m1"


def test_deleted_in_the_middle_of_an_act(shop: Workshop) -> None:
    shop.acts.gate.clear()
    shop.run("r", steps=[{"name": "a", "act": call("block"), "onUnknown": "ask"}])
    assert shop.acts.blocked.wait(10)
    shop.runtime.store.write(lambda tx: tx.delete(Key("Run", "ops", "r")))
    time.sleep(0.1)
    assert shop.runtime.store.get(Key("Run", "ops", "r")) is not None
    shop.acts.gate.set()
    shop.until(lambda: shop.runtime.store.get(Key("Run", "ops", "r")) is None)
    assert [f["state"] for f in shop.facts("journal")][-2:] == ["done", "deleted"]
