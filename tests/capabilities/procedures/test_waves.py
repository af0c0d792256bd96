"""Runs over many targets: in waves, a Run for each, with the rights of whoever started it, and with people between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel import run as run_module
from groundcontrol.kernel.errors import Conflict, Forbidden, Invalid, NotFound
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.run_waves import child_of
from groundcontrol.kernel.waves import Target
from tests.capabilities.procedures.workshop import ADA, BOB, EVE, Workshop, workshop

ACT = {"kind": "Machine", "name": "${inputs.machine}", "verb": "prod", "body": {"on": "${inputs.machine}"}}
PROD: Doc = {"name": "prod", "act": ACT}
ASK: Doc = {"name": "ask", "ask": {"question": "go on?"}}
INPUTS: Doc = {"machine": {"type": "resource", "kind": "Machine"}}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    """Twelve machines over three sites; m1 is of none."""
    with workshop(tmp_path) as found:
        machines(found)
        yield found


def machines(shop: Workshop, count: int = 12) -> None:
    for n in range(count):
        labelled(shop, f"w{n:02}", {"site": ("bari", "cnaf", "recas")[n % 3], "tier": "web"})


def labelled(shop: Workshop, name: str, labels: dict[str, str], namespace: str = "ops") -> None:
    meta = {"name": name, "namespace": namespace, "labels": labels}
    doc = shop.runtime.kinds.parse({"apiVersion": "ground/v1", "kind": "Machine", "metadata": meta, "spec": {}})
    key = Key("Machine", namespace, name)
    shop.runtime.store.write(
        lambda tx: tx.create(doc, "user:bob") if tx.get(key) is None else tx.replace(doc, "user:bob").doc
    )


def over(
    shop: Workshop, *steps: Doc, name: str = "r", by: str = "user:ada", inputs: Doc | None = None, **rules: Any
) -> Doc:
    """Run r of a procedure of these steps, over the twelve."""
    shop.procedure("p", *(steps or (PROD,)), inputs={**INPUTS, **rules.pop("more_inputs", {})})
    given = {"kind": "Machine", "labelSelector": "tier=web"} | rules
    return shop.run(name, "p", by=by, over=given, **({"inputs": inputs} if inputs else {}))


def children(shop: Workshop, parent: str = "r") -> dict[str, Doc]:
    """Target to its Run."""
    found = [e.doc for e in shop.runtime.store.entries("Run") if e.labels.get("ground/parent") == parent]
    return {d["spec"]["inputs"]["machine"]: d for d in found}


def done(shop: Workshop) -> list[str]:
    """What was done to which machine, in order."""
    return [line["body"]["on"] for line in shop.recorder.lines()]


def counts(shop: Workshop, *names: str) -> list[tuple[int, ...]]:
    return [tuple(wave[n] for n in names) for wave in shop.status("r")["waves"]]


def test_every_target_once_wave_by_wave(shop: Workshop) -> None:
    over(shop, waves=["1", "25%", "100%"], spread={"by": "metadata.labels.site", "most": 2})
    status = shop.until_phase("r", "Succeeded")
    assert sorted(done(shop)) == [f"w{n:02}" for n in range(12)]
    assert counts(shop, "size", "done", "failed", "left") == [(1, 1, 0, 0), (3, 3, 0, 0), (6, 6, 0, 0), (2, 2, 0, 0)]
    assert (status["progress"], status["total"], status["wave"]) == ("12 of 12", 12, 4)
    order = done(shop)
    assert order[0] == "w00"
    assert set(order[1:4]) == {"w01", "w02", "w03"}, "no target of a later wave before one of an earlier"
    for wave in (order[:1], order[1:4], order[4:10], order[10:]):
        sites = [int(name[1:]) % 3 for name in wave]
        assert max(sites.count(site) for site in sites) <= 2


def test_a_run_for_each(shop: Workshop) -> None:
    meta = {"name": "r", "namespace": "ops", "labels": {"team": "a"}}
    shop.procedure("p", PROD, inputs=INPUTS)
    spec = {"procedure": "p", "over": {"kind": "Machine", "labelSelector": "tier=web"}}
    doc = shop.runtime.kinds.parse({"apiVersion": "ground/v1", "kind": "Run", "metadata": meta, "spec": spec})
    given = frozenset({"spec.procedure", "spec.over"})
    parent = shop.runtime.store.write(lambda tx: tx.create(doc, "user:ada", given))
    status = shop.until_phase("r", "Succeeded")
    for name, child in children(shop).items():
        assert child["metadata"]["ownerReferences"] == [{"kind": "Run", "name": "r", "uid": parent["metadata"]["uid"]}]
        assert child["metadata"]["labels"] == {"team": "a", "ground/parent": "r"}
        assert child["spec"]["over"] is None
        assert child["status"]["startedBy"] == "user:ada"
        assert child["status"]["procedureDigest"] == status["procedureDigest"]
        uid = shop.get("Machine", name)["metadata"]["uid"]
        key = child_of(Key("Run", "ops", "r"), parent["metadata"]["uid"], Target("ops", name, uid))
        assert child["metadata"]["name"] == key.name
    assert {line["subject"] for line in shop.recorder.lines()} == {"user:ada"}
    made = [f for f in shop.facts("audit") if (f["verb"], f["kind"]) == ("create", "Run")]
    assert len(made) == 12
    assert {f["subject"] for f in made} == {"user:ada"}


class TestFrozen:
    """The plan and the version are those of the beginning."""

    def test_targets_and_labels_that_change_later_are_another_matter(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        labelled(shop, "w99", {"tier": "web"})
        labelled(shop, "w05", {"tier": "db", "site": "cnaf"})
        shop.ask("approve", "r")
        shop.until_phase("r", "Succeeded")
        assert sorted(done(shop)) == [f"w{n:02}" for n in range(12)]

    @pytest.mark.parametrize("change", ["edited", "deleted"])
    def test_the_procedure_may_change_or_go(self, shop: Workshop, change: str) -> None:
        over(shop, waves=["2", "100%"], between="ask")
        digest = shop.until_phase("r", "Waiting")["procedureDigest"]
        if change == "edited":
            shop.procedure("p", {"name": "worse", "act": {**ACT, "verb": "nudge"}, "onUnknown": "ask"}, inputs=INPUTS)
        else:
            shop.runtime.store.write(lambda tx: tx.delete(Key("Procedure", "ops", "p")))
        shop.restart()
        shop.ask("approve", "r")
        shop.until_phase("r", "Succeeded")
        assert len(shop.recorder.done("prod")) == 12
        assert {c["status"]["procedureDigest"] for c in children(shop).values()} == {digest}

    def test_one_that_is_gone_meanwhile_is_skipped_and_said_so(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        for name in ("w03", "w04"):
            shop.runtime.store.write(lambda tx, name=name: tx.delete(Key("Machine", "ops", name)))  # type: ignore[misc]
        labelled(shop, "w04", {"tier": "web"})  # of the same name, and not the same
        shop.ask("approve", "r")
        status = shop.until_phase("r", "Succeeded")
        assert status["message"] == "10 of 12 done, 2 gone meanwhile"
        assert counts(shop, "done", "skipped") == [(1, 0), (9, 2)]
        assert not {"w03", "w04"} & {*done(shop), *children(shop)}
        assert [e for e in shop.events("Landed") if "ops/w03 is gone, and skipped" in e["message"]]


class TestPeople:
    """Who looks between the waves, and what they say."""

    def test_asked_before_each_wave_but_the_first(self, shop: Workshop) -> None:
        over(shop, waves=["1", "3", "100%"], between="ask")
        status = shop.until_phase("r", "Waiting")
        assert status["message"] == "wave 1 of 3: 1 done. Go on with wave 2 (3 targets)?"
        assert [(s["name"], s["state"]) for s in status["steps"]] == [("wave_2", "waiting")]
        assert len(done(shop)) == 1
        with pytest.raises(Forbidden):
            shop.ask("approve", "r", EVE)
        shop.ask("approve", "r", reason="looks well")
        shop.until(lambda: shop.status("r")["wave"] == 3 and shop.status("r")["phase"] == "Waiting")
        assert len(done(shop)) == 4
        shop.ask("approve", "r", step="wave_3")
        shop.until_phase("r", "Succeeded")

    def test_refused(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        shop.ask("refuse", "r", reason="no")
        assert "refused user:bob: no" in shop.until_phase("r", "Failed")["message"]
        assert done(shop) == ["w00"]

    def test_nobody_answers(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask", timeout=1)
        assert "nobody answered in time" in shop.until_phase("r", "Failed")["message"]
        assert done(shop) == ["w00"]

    def test_a_pause(self, shop: Workshop) -> None:
        over(shop, waves=["6"], pause=1)
        shop.until_phase("r", "Succeeded")
        ended = [f["time"] for f in shop.facts("journal") if f["step"].startswith("wave_") and f["state"] == "done"]
        began = [f["time"] for f in shop.facts("journal") if f["step"] == "wave_2" and f["state"] == "launched"]
        assert began[0] >= ended[0] + 1


def failing(*bad: str) -> tuple[Doc, Doc]:
    """Steps that fail for these machines."""
    names = ", ".join(f"'{name}'" for name in bad)
    fail = {"name": "fail", "when": f"inputs.machine in [{names}]", "act": {**ACT, "verb": "fail"}, "onUnknown": "ask"}
    return fail, PROD


class TestFailures:
    """More than may fail."""

    def test_no_further_target_begins(self, shop: Workshop) -> None:
        over(shop, *failing("w02"), waves=["2", "100%"], concurrency=1)
        status = shop.until_phase("r", "Failed")
        assert status["message"] == "wave 2 of 2: 1 failed: 1 of 12 failed, more than 0"
        assert done(shop) == ["w00", "w01"]
        assert counts(shop, "done", "failed", "left") == [(2, 0, 0), (0, 1, 9)]
        assert status["failures"] == ["ops/w02: step fail failed: it cannot be"]
        assert set(children(shop)) == {"w00", "w01", "w02"}

    @pytest.mark.parametrize(("allowed", "phase"), [("2", "Succeeded"), ("16%", "Failed"), ("17%", "Succeeded")])
    def test_as_many_as_may(self, shop: Workshop, allowed: str, phase: str) -> None:
        over(shop, *failing("w02", "w07"), waves=["100%"], maxFailures=allowed, concurrency=1)
        status = shop.until_phase("r", phase)
        if phase == "Succeeded":
            assert status["message"] == "10 of 12 done, 2 failed"
        else:
            assert len(done(shop)) == 6

    def test_a_person_says_whether_it_goes_on(self, shop: Workshop) -> None:
        over(shop, *failing("w02", "w05"), waves=["100%"], concurrency=1, onFailure="ask")
        status = shop.until_phase("r", "Waiting")
        assert status["message"] == (
            "1 of 12 failed, more than 0; ops/w02: step fail failed: it cannot be. Go on with the other 9?"
        )
        shop.restart()
        shop.ask("approve", "r")
        shop.until(lambda: "2 of 12 failed, more than 1" in shop.status("r")["message"])
        shop.ask("refuse", "r", reason="enough")
        assert "refused user:bob: enough" in shop.until_phase("r", "Failed")["message"]
        assert len(done(shop)) == 4

    def test_there_is_nothing_to_go_on_with_after_the_last(self, shop: Workshop) -> None:
        over(shop, *failing("w11"), onFailure="ask")
        assert "1 of 12 failed" in shop.until_phase("r", "Failed")["message"]
        assert len(done(shop)) == 11

    def test_resumed_it_goes_on_with_what_has_not_begun(self, shop: Workshop) -> None:
        over(shop, *failing("w02"), waves=["2", "100%"], concurrency=1)
        shop.until_phase("r", "Failed")
        shop.ask("resume", "r", reason="w02 is known")
        assert shop.until_phase("r", "Succeeded")["message"] == "11 of 12 done, 1 failed"
        assert sorted(done(shop)) == [f"w{n:02}" for n in range(12) if n != 2]

    def test_a_run_that_somebody_deletes_or_cancels_has_failed(self, shop: Workshop) -> None:
        over(shop, ASK, PROD, waves=["2"], maxFailures="1")
        shop.until(lambda: len([c for c in children(shop).values() if c["status"]["phase"] == "Waiting"]) == 2)
        first, second = (children(shop)[name]["metadata"]["name"] for name in ("w00", "w01"))
        shop.runtime.store.write(lambda tx: tx.delete(Key("Run", "ops", first)))
        shop.ask("cancel", second)
        status = shop.until_phase("r", "Failed")
        assert status["failures"] == ["ops/w00: its Run was deleted", "ops/w01: cancelled by user:bob"]


class TestCancel:
    """Those that have not begun do not begin; those under way finish."""

    def under_way(self, shop: Workshop) -> None:
        """Three targets wait for a person."""
        over(shop, PROD, ASK, waves=["3", "100%"])
        shop.until(lambda: [c["status"]["phase"] for c in children(shop).values()] == ["Waiting"] * 3)

    def test_the_running_ones_finish(self, shop: Workshop) -> None:
        self.under_way(shop)
        shop.ask("cancel", "r", reason="stop")
        shop.until(lambda: "it ends when the 3 under way are over" in shop.status("r")["message"])
        assert shop.status("r")["phase"] == "Running"
        for child in children(shop).values():
            shop.ask("approve", child["metadata"]["name"])
        status = shop.until_phase("r", "Cancelled")
        assert status["message"] == "cancelled by user:bob; 3 done, 9 not begun"
        assert {c["status"]["phase"] for c in children(shop).values()} == {"Succeeded"}
        shop.ask("resume", "r")
        shop.until(lambda: len(children(shop)) == 12)
        for child in list(children(shop).values()):
            if child["status"]["phase"] != "Succeeded":
                shop.until_phase(child["metadata"]["name"], "Waiting")
                shop.ask("approve", child["metadata"]["name"])
        shop.until_phase("r", "Succeeded")
        assert sorted(done(shop)) == [f"w{n:02}" for n in range(12)]

    def test_those_that_wait_for_a_place_are_taken_back_and_can_begin_later(self, shop: Workshop) -> None:
        shop.procedure("p", ASK, PROD, inputs=INPUTS, concurrency=2)
        shop.run("before", "p", inputs={"machine": "m1"})
        shop.until_phase("before", "Waiting")
        shop.run("r", "p", over={"kind": "Machine", "labelSelector": "tier=web", "waves": ["1", "100%"]})
        shop.until(lambda: children(shop).get("w00", {}).get("status", {}).get("phase") == "Waiting")
        name = children(shop)["w00"]["metadata"]["name"]
        shop.ask("approve", name)
        phases = ["Pending", "Succeeded", "Waiting"]
        shop.until(lambda: sorted(c["status"]["phase"] for c in children(shop).values()) == phases)
        shop.ask("cancel", "r")
        shop.until(lambda: "it ends when the 1 under way" in shop.status("r")["message"])
        pending = [m for m, c in children(shop).items() if c["status"]["phase"] == "Cancelled"]
        assert len(pending) == 1
        (waiting,) = [c["metadata"]["name"] for c in children(shop).values() if c["status"]["phase"] == "Waiting"]
        shop.ask("approve", waiting)
        assert "2 done, 10 not begun" in shop.until_phase("r", "Cancelled")["message"]
        shop.ask("approve", "before")
        shop.until_phase("before", "Succeeded")
        shop.ask("resume", "r")
        while shop.status("r")["phase"] != "Succeeded":
            for child in list(children(shop).values()):
                if child["status"]["phase"] == "Waiting":
                    shop.ask("approve", child["metadata"]["name"])
            shop.until(
                lambda: (
                    shop.status("r")["phase"] == "Succeeded"
                    or any(c["status"]["phase"] == "Waiting" for c in children(shop).values())
                )
            )
        assert sorted(done(shop)) == ["m1", *(f"w{n:02}" for n in range(12))], "each of them once"

    def test_before_anything_began(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        shop.ask("cancel", "r")
        assert "1 done, 11 not begun" in shop.until_phase("r", "Cancelled")["message"]

    def test_undoing_is_of_each_by_itself(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        shop.ask("cancel", "r")
        shop.until_phase("r", "Cancelled")
        with pytest.raises(Conflict, match="undo the Run of each"):
            shop.ask("undo", "r")

    def test_deleted(self, shop: Workshop) -> None:
        self.under_way(shop)
        shop.runtime.store.write(lambda tx: tx.delete(Key("Run", "ops", "r")))
        shop.until(lambda: not shop.runtime.store.entries("Run"))
        assert len(done(shop)) == 3


class TestRights:
    """Nothing can be done by many that could not be done by one."""

    def test_judged_for_each_target(self, shop: Workshop) -> None:
        rules = [{"kinds": ["Machine"], "verbs": ["get", "list"]}, {"kinds": ["Run", "Procedure"], "verbs": ["*"]}]
        shop.apply("Role", "looker", {"rules": rules})
        shop.apply("Role", "prodder", {"rules": [{"kinds": ["Machine"], "verbs": ["prod"]}]})
        shop.apply("Account", "dan", {"groups": []})
        place = {"subjects": ["user:dan"], "selector": {"namespaces": ["ops"]}}
        shop.apply("RoleBinding", "dan", {"role": "looker", **place})
        place["selector"] = {"namespaces": ["ops"], "labels": "site=bari"}  # type: ignore[assignment]
        shop.apply("RoleBinding", "dan-bari", {"role": "prodder", **place})
        over(shop, by="user:dan", maxFailures="100%")
        assert shop.until_phase("r", "Succeeded")["message"] == "4 of 12 done, 8 failed"
        assert sorted(done(shop)) == ["w00", "w03", "w06", "w09"]
        assert "may not prod" in shop.status("r")["failures"][0]

    def test_what_cannot_be_seen_is_no_target(self, shop: Workshop) -> None:
        rules = [{"kinds": ["Machine"], "verbs": ["get", "list", "prod"]}]
        shop.apply("Role", "partly", {"rules": rules})
        shop.apply("Role", "runner", {"rules": [{"kinds": ["Run", "Procedure"], "verbs": ["*"]}]})
        shop.apply("Account", "dan", {"groups": []})
        for role, labels in (("partly", "site=bari"), ("runner", "")):
            where = {"namespaces": ["ops"], "labels": labels}
            shop.apply("RoleBinding", role, {"role": role, "subjects": ["user:dan"], "selector": where})
        over(shop, by="user:dan")
        shop.until_phase("r", "Succeeded")
        assert sorted(done(shop)) == ["w00", "w03", "w06", "w09"]

    def test_not_in_a_namespace_of_others(self, shop: Workshop) -> None:
        shop.apply("Namespace", "other", {"group": "others"})
        labelled(shop, "secret", {"tier": "web"}, "other")
        act = {**ACT, "namespace": "${inputs.place}"}
        more = {"more_inputs": {"place": {}}, "namespaceInput": "place"}
        over(shop, {"name": "prod", "act": act}, by="user:eve", namespace="other", **more)
        assert "there is no Namespace other" in shop.until_phase("r", "Failed")["message"]
        over(shop, {"name": "prod", "act": act}, name="r2", by="user:eve", namespace="*", **more)
        shop.until_phase("r2", "Succeeded")
        assert "secret" not in done(shop)

    def test_a_right_that_is_taken_away_ends_it(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        shop.runtime.store.write(lambda tx: tx.delete(Key("RoleBinding", "", "ada")))
        shop.ask("approve", "r")
        assert "there is no Namespace ops" in shop.until_phase("r", "Failed")["message"]
        assert done(shop) == ["w00"]

    def test_so_does_an_account_that_is_closed(self, shop: Workshop) -> None:
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        shop.apply("Account", "ada", {"groups": [], "disabled": True})
        shop.ask("approve", "r")
        assert "disabled or gone" in shop.until_phase("r", "Failed")["message"]
        assert done(shop) == ["w00"]

    def test_nobody_can_take_its_place(self, shop: Workshop) -> None:
        """Somebody who knows the uid knows the names, and may make a Run of such a name first."""
        over(shop, waves=["1", "100%"], between="ask")
        shop.until_phase("r", "Waiting")
        uid = shop.get("Machine", "w04")["metadata"]["uid"]
        parent = shop.get("Run", "r")["metadata"]["uid"]
        name = child_of(Key("Run", "ops", "r"), parent, Target("ops", "w04", uid)).name
        shop.run(name, by="user:eve", steps=[{"name": "tell", "notify": {"message": "mine"}}])
        shop.until_phase(name, "Succeeded")
        shop.ask("approve", "r")
        status = shop.until_phase("r", "Failed")
        assert status["failures"] == [f"ops/w04: another Run is called {name}"]
        assert "w04" not in done(shop)


def test_targets_of_other_namespaces(shop: Workshop) -> None:
    for name in ("alpha", "beta"):
        shop.apply("Namespace", name, {"group": name})
        labelled(shop, "far", {"tier": "far"}, name)
    where = {"role": "operator", "subjects": ["user:ada"], "selector": {"namespaces": ["alpha", "beta", "ops"]}}
    shop.apply("RoleBinding", "ada-too", where)
    act = {"kind": "Machine", "namespace": "${inputs.place}", "name": "${inputs.machine}"}
    step = {"name": "prod", "act": {**act, "verb": "prod", "body": {"on": "${inputs.place}"}}}
    more = {"more_inputs": {"place": {}}, "namespaceInput": "place"}
    over(shop, step, namespace="*", labelSelector="tier=far", **more)
    shop.until_phase("r", "Succeeded")
    assert sorted(done(shop)) == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"labelSelector": "tier=none"}, "spec.over: there are no such targets that you may see"),
        ({"kind": "Machin"}, "spec.over.kind: no kind 'Machin'"),
        ({"kind": "machines"}, "spec.over.kind: write Machine"),
        ({"kind": "Run"}, "spec.over.kind: a Run cannot go over Runs"),
        ({"input": "machin"}, "spec.over.input: there is no input 'machin'; did you mean \"machine\"?"),
        ({"input": "size"}, "spec.over.input: input size is not a text: int"),
        ({"input": "place", "namespaceInput": "place", "inputs": {"machine": "m1"}}, "one input cannot take both"),
        ({"inputs": {"machine": "m1"}}, "spec.inputs.machine: is taken from each target; leave it out"),
        ({"namespace": "*"}, "spec.over.namespaceInput: the targets are in other namespaces"),
        ({"kind": "Account"}, "spec.over.input: say which input takes the name of the Account"),
        ({"input": "word", "inputs": {"machine": "m1"}}, "spec.inputs.word: 'w00' is not one of a, b"),
        ({"waves": ["1"], "spread": {"by": "spec.none"}, "labelSelector": ""}, ""),
    ],
)
def test_what_cannot_be_gone_over(shop: Workshop, rules: Doc, message: str) -> None:
    more = {"size": {"type": "int", "default": 1}, "place": {"default": "ops"}, "word": {"enum": ["a", "b"],
            "default": "a"}}  # fmt: skip
    over(shop, more_inputs=more, **rules)
    status = shop.until_phase("r", "Failed", "Succeeded")
    assert message in status["message"]
    assert (status["phase"] == "Succeeded") == (not message)
    if message:
        assert not shop.facts("journal")
        assert not done(shop)


def test_steps_of_its_own_have_no_targets(shop: Workshop) -> None:
    with pytest.raises(Invalid, match="only a procedure can go over targets"):
        shop.run("r", steps=[ASK], over={"kind": "Machine"})


class TestPlaces:
    """They take turns with everybody else's Runs."""

    def test_never_more_at_once_than_the_procedure_allows(self, shop: Workshop) -> None:
        shop.procedure("p", ASK, inputs=INPUTS, concurrency=3)
        shop.run("r", "p", over={"kind": "Machine", "labelSelector": "tier=web", "waves": ["100%"]})
        shop.until(lambda: len(children(shop)) == 3)
        shop.until(shop.runtime.controller.idle)
        assert len(children(shop)) == 3
        shop.ask("cancel", "r")
        for child in children(shop).values():
            shop.ask("cancel", child["metadata"]["name"])
        shop.until_phase("r", "Cancelled")

    def test_one_place_is_enough_for_it_and_its_targets(self, shop: Workshop) -> None:
        shop.procedure("p", PROD, inputs=INPUTS, concurrency=1)
        shop.run("r", "p", over={"kind": "Machine", "labelSelector": "tier=web"})
        shop.until_phase("r", "Succeeded")
        assert len(done(shop)) == 12

    def test_at_most_so_many_under_way(self, shop: Workshop) -> None:
        over(shop, ASK, waves=["100%"], concurrency=2)
        shop.until(lambda: len(children(shop)) == 2)
        (first, *_) = children(shop).values()
        shop.until_phase(first["metadata"]["name"], "Waiting")
        shop.ask("approve", first["metadata"]["name"])
        shop.until(lambda: len(children(shop)) == 3)


class TestPreview:
    """What it would do, before it is started."""

    def ask(self, shop: Workshop, by: Any = ADA, **body: Any) -> Doc:
        act = next(c.actions["Procedure", "preview"] for c in shop.runtime.capabilities if c.name == "procedures")
        found: Doc = act(shop.runtime, by, Key("Procedure", "ops", "p"), body)
        return found

    def test_it_is_what_then_happens(self, shop: Workshop) -> None:
        shop.procedure("p", PROD, inputs=INPUTS)
        rules = {"kind": "Machine", "labelSelector": "tier=web", "waves": ["1", "100%"]}
        rules |= {"spread": {"by": "metadata.labels.site", "most": 2}}
        said = self.ask(shop, over=rules)
        assert [(w["wave"], w["size"]) for w in said["waves"]] == [(1, 1), (2, 6), (3, 5)]
        assert said["waves"][0] == {"wave": 1, "size": 1, "targets": ["w00"], "domains": {"bari": 1}}
        assert not shop.runtime.store.entries("Run")
        shop.run("r", "p", over=rules)
        shop.until_phase("r", "Succeeded")
        order, first = done(shop), 0
        for wave in said["waves"]:
            assert sorted(order[first : first + wave["size"]]) == wave["targets"]
            first += wave["size"]

    def test_the_same_errors(self, shop: Workshop) -> None:
        shop.procedure("p", PROD, inputs=INPUTS)
        with pytest.raises(Invalid, match="there are no such targets"):
            self.ask(shop, over={"kind": "Machine", "labelSelector": "tier=none"})
        with pytest.raises(Invalid, match="no kind"):
            self.ask(shop, over={"kind": "Nothing"})
        for body in ({}, {"over": "x"}, {"over": {"kind": "Machine"}, "inputs": "x"}):
            with pytest.raises(Invalid):
                self.ask(shop, **body)

    def test_for_those_who_may_run_it(self, shop: Workshop) -> None:
        shop.procedure("p", PROD, inputs=INPUTS)
        with pytest.raises((Forbidden, NotFound)):
            self.ask(shop, BOB.__class__.user("nobody"), over={"kind": "Machine"})


def test_a_step_cannot_start_what_multiplies(shop: Workshop) -> None:
    """A Run over thousands, of which each starts a Run over thousands."""
    again = {"kind": "Procedure", "name": "p", "verb": "run", "body": {"over": {"kind": "Machine"}}}
    shop.procedure("p", {"name": "again", "act": again, "onUnknown": "ask"}, inputs=INPUTS)
    shop.run("r", "p", inputs={"machine": "m1"})
    assert "over: create a Run with spec.over instead" in shop.until_phase("r", "Failed")["message"]
    assert len(shop.runtime.store.entries("Run")) == 1


def test_doubts_do_not_last_for_ever(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Run that asks whether something happened gives its place back when nobody says."""
    monkeypatch.setattr(run_module, "DOUBT_TIMEOUT", 1.0)
    lose = {"kind": "Machine", "name": "m1", "verb": "lose"}
    shop.run("r", steps=[{"name": "a", "act": lose, "onUnknown": "ask"}])
    assert "nobody answered in time" in shop.until_phase("r", "Failed")["message"]


def test_a_single_run_does_not_stand_in_line_behind_a_wave(shop: Workshop) -> None:
    """Turns are shared out by shard: what goes over many has one, all other Runs of the namespace another."""
    over(shop, waves=["1", "100%"], between="ask")
    shop.until_phase("r", "Waiting")
    shop.run("single", steps=[ASK])
    shop.until_phase("single", "Waiting")
    runs = shop.runtime.reconciler("runs")
    shards = {e.key.name: runs.shard(shop.runtime.kinds.view(e.doc)) for e in shop.runtime.store.entries("Run")}
    assert shards.pop("single") == "run/ops"
    assert set(shards.values()) == {"run/ops/over"}
