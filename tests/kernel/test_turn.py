"""Turns: what is wanted comes to be, once, whatever fails between; what is not known is said and not acted on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundcontrol.kernel import guard, tables
from groundcontrol.kernel.claims import open_intent
from groundcontrol.kernel.errors import GroundError, Invalid, OutcomeUnknown, Unavailable
from groundcontrol.kernel.plan import Change, Plan, Target
from groundcontrol.kernel.reconcile import Look, Report
from groundcontrol.kernel.resource import condition
from tests.kernel.outside import FAST, Outside, Rig, ThingReconciler, until
from tests.kernel.things import Thing, key

Make = Callable[..., Rig]


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Make]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Rig(directory, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def once(call: str, moment: str, error: GroundError) -> Callable[[str, str, str], None]:
    """A hook that raises at the first such call."""
    left = [error]

    def hook(found: str, at: str, id_: str) -> None:
        if (found, at) == (call, moment) and left:
            raise left.pop()

    return hook


# ── a life ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thing_is_made_kept_and_taken_down(rigs: Make) -> None:
    rig = rigs().start()
    rig.make("a", names=["x", "y"])
    until(lambda: rig.ready("a"))
    assert rig.outside.things() == {"x": "red", "y": "red"}
    assert rig.claimed() == {"x", "y"}
    rig.outside.by_hand(x="green")
    until(lambda: rig.outside.things()["x"] == "red")
    rig.change("a", names=["y"], colour="blue")
    until(lambda: rig.outside.things() == {"y": "blue"} and rig.ready("a"))
    until(lambda: rig.claimed() == {"y"}, "the claim on what is gone is let go while its owner lives")
    rig.delete("a")
    until(lambda: rig.store.get(key("a")) is None)
    assert rig.outside.things() == {}
    assert rig.rows(tables.claims) == rig.rows(tables.intents) == []
    assert rig.timeline("a")[-1] == "Gone"


def test_every_change_is_in_the_audit_and_on_the_timeline(rigs: Make) -> None:
    rig = rigs()
    rig.make("a")
    rig.turns_until_quiet("a")
    audit = [r for r in rig.rows(tables.facts) if r.dataset == "audit"]
    assert [(r.subject, r.name) for r in audit] == [("reconciler:things", "a")]
    assert rig.timeline("a") == ["Changing", "Create", "Seen"] or set(rig.timeline("a")) >= {"Create", "Seen"}


def test_a_second_look_writes_nothing(rigs: Make) -> None:
    rig = rigs()
    rig.make("a")
    rig.turns_until_quiet("a")
    before = (rig.store.sequence, rig.store.fact_sequence)
    assert rig.turn("a").again is None
    assert (rig.store.sequence, rig.store.fact_sequence) == before


def test_a_plan_for_what_has_changed_meanwhile_is_made_again(rigs: Make) -> None:
    rig = rigs()
    rig.make("a", names=["x"])
    left = ["y"]
    rig.reconciler.before_plan = lambda resource: rig.change("a", names=[left.pop()]) if left else None
    assert rig.turn("a").again
    assert rig.outside.effects() == []
    assert rig.claimed() == set()
    rig.turns_until_quiet("a")
    assert rig.outside.things() == {"y": "red"}


# ── outcomes that are not known ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fencing", ["fences", "idempotent", "neither"])
def test_a_create_without_an_answer_is_found_again_and_not_repeated(rigs: Make, fencing: Any) -> None:
    rig = rigs(outsides={"site/a": Outside(fencing)})
    rig.outside.hook = once("create", "after", OutcomeUnknown("no answer"))
    rig.make("a")
    outcome = rig.turn("a")
    assert (outcome.failed, outcome.unreachable) == (True, True)
    assert rig.condition("a") == ("Unknown", "OutcomeUnknown")
    assert [r.state for r in rig.rows(tables.intents)] == ["unknown"]
    rig.turns_until_quiet("a")
    until(lambda: rig.turns_until_quiet("a") and rig.ready("a"))
    assert rig.outside.effects("create") == ["a"]
    assert "FoundAgain" in rig.timeline("a")
    assert rig.claimed() == {"a"}


def test_a_thing_whose_id_the_other_side_chose_is_found_again_and_claimed(
    rigs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs(outsides={"site/a": Outside("neither")})
    change = Change(Target("site/a", "thing", ""), "create", {"thing": (None, "some")})

    def plan(resource: Thing, look: Look) -> Plan:
        return Plan() if look.claims else Plan((change,))

    def apply(resource: Thing, change: Change, act: Any) -> str:
        return str(act.instance.create("chosen", "red", act.change_key, act.epoch))

    monkeypatch.setattr(rig.reconciler, "plan", plan)
    monkeypatch.setattr(rig.reconciler, "apply", apply)
    rig.outside.hook = once("create", "after", OutcomeUnknown("no answer"))
    rig.make("a")
    rig.start()
    until(lambda: rig.claimed() == {"chosen"})
    until(lambda: rig.ready("a"))
    assert rig.outside.effects("create") == ["chosen"]


def test_an_unknown_create_blocks_another_one_for_the_settle_time(rigs: Make) -> None:
    rig = rigs(outsides={"site/a": Outside("neither")}, settle=1.0)
    calls: list[float] = []

    def lost(call: str, moment: str, id_: str) -> None:
        if (call, moment) == ("create", "before"):
            calls.append(time.monotonic())
            if len(calls) == 1:
                raise OutcomeUnknown("it may come yet")

    rig.outside.hook = lost
    rig.make("a")
    rig.start()
    until(lambda: rig.ready("a"))
    assert calls[1] - calls[0] >= 1.0
    assert rig.outside.effects("create") == ["a"]


def test_the_call_of_a_dead_worker_may_have_been_sent_until_we_started(rigs: Make) -> None:
    rig = rigs(outsides={"site/a": Outside("neither")}, settle=1.0)
    uid = rig.make("a")["metadata"]["uid"]
    change = Change(Target("site/a", "thing", "a"), "create", {"thing": (None, "a")})

    def left_behind(tx: Any) -> None:
        open_intent(tx, change, key("a"), uid)
        tx.conn.execute(sa.update(tables.intents).values(opened=tx.time - 3600))

    rig.store.write(left_behind)
    rig.close()
    rig.outside.closed = False
    began = time.monotonic()
    rig.open()
    calls: list[float] = []
    rig.outside.hook = lambda call, moment, id_: calls.append(time.monotonic()) if call == "create" else None
    rig.start()
    until(lambda: calls)
    assert calls[0] - began >= 1.0


def test_what_was_made_twice_is_found_by_its_key_and_waits_for_a_person(
    rigs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs(outsides={"site/a": Outside("neither")})
    late: list[Callable[[], str]] = []

    def delayed(call: str, moment: str, id_: str) -> None:
        if (call, moment) == ("create", "before") and not late:
            (intent,) = rig.rows(tables.intents)
            late.append(lambda: rig.outside.create(id_, "red", intent.key, rig.store.epoch))
            raise OutcomeUnknown("sent, no answer")

    rig.outside.hook = delayed
    rig.make("a")
    rig.start()
    until(lambda: rig.outside.things() == {"a": "red"})
    late[0]()
    until(lambda: rig.condition("a", "Duplicate")[0] == "True")
    assert rig.outside.things().keys() == {"a", "a~2"}
    assert "Duplicate" in rig.timeline("a")
    # Neither a look, nor a restart, nor the end of its owner removes it.
    rig.controller.wake_key(key("a"))
    rig.restart()
    rig.start()
    rig.delete("a")
    until(lambda: rig.outside.things().keys() == {"a~2"})
    until(lambda: rig.controller.idle())
    rig.turn("a")
    assert rig.store.get(key("a"))
    assert rig.condition("a", "Duplicate")[0] == "True"
    # A reconciler that plans to remove it is refused.
    change = Change(Target("site/a", "thing", "a~2"), "delete", {"thing": ("a~2", None)})
    monkeypatch.setattr(rig.reconciler, "plan", lambda resource, look: Plan((change,)))
    assert rig.turn("a").failed
    assert rig.condition("a") == ("False", "Claimed")
    monkeypatch.undo()
    rig.outside.by_hand(**{"a~2": None})
    rig.controller.wake_key(key("a"))
    until(lambda: rig.store.get(key("a")) is None)
    assert rig.outside.effects("delete") == ["a"]
    assert rig.rows(tables.claims) == []


def test_an_outcome_that_could_not_be_recorded_is_looked_for(rigs: Make) -> None:
    rig = rigs()
    write = rig.store.write

    def full(where: str) -> None:
        if where == "before end":
            rig.turns.crash_point = lambda where: None
            raise Unavailable("the store is full")

    rig.turns.crash_point = full
    rig.make("a")
    assert rig.turn("a").failed
    assert [r.state for r in rig.rows(tables.intents)] == ["open"]
    rig.turns_until_quiet("a")
    assert rig.ready("a")
    assert rig.outside.effects("create") == ["a"]
    assert rig.store.write == write


def test_a_report_that_breaks_does_not_lose_what_was_done(rigs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs()

    def broken(self: Any, resource: Thing, plan: Plan, look: Look) -> Report:
        raise ZeroDivisionError

    rig.make("a")
    with monkeypatch.context() as patch:
        patch.setattr(ThingReconciler, "report", broken)
        assert rig.turn("a").failed
    assert rig.condition("a") == ("False", "Bug")
    assert "trace" in condition(rig.get("a"), "Ready")["message"]
    assert rig.rows(tables.intents) == []
    assert "Create" in rig.timeline("a")
    rig.turns_until_quiet("a")
    assert rig.ready("a")


# ── claims ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_belongs_to_another_resource_is_refused_by_name(rigs: Make) -> None:
    rig = rigs()
    rig.make("a", names=["x"])
    rig.turns_until_quiet("a")
    rig.make("b", names=["x", "y"], colour="blue")
    assert rig.turn("b").failed
    assert rig.condition("b") == ("False", "Claimed")
    assert "Thing alpha/a" in condition(rig.get("b"), "Ready")["message"]
    assert rig.outside.things() == {"x": "red", "y": "blue"}
    rig.delete("b")
    rig.turns_until_quiet("b")
    assert rig.outside.things() == {"x": "red"}


def test_nothing_is_taken_away_behind_a_change_that_failed(rigs: Make) -> None:
    rig = rigs()
    rig.make("a", names=["old"])
    rig.turns_until_quiet("a")
    rig.outside.hook = once("create", "before", Invalid("not like this"))
    rig.change("a", names=["new"])
    rig.turn("a")
    assert rig.outside.things() == {"old": "red"}
    rig.turns_until_quiet("a")
    assert rig.outside.things() == {"new": "red"}


def test_a_claim_on_what_never_came_to_be_is_let_go(rigs: Make) -> None:
    rig = rigs()
    rig.outside.hook = once("create", "before", Invalid("not like this"))
    rig.make("a", names=["x"])
    assert rig.turn("a").failed
    assert rig.controller.expected_things("site/a") == frozenset()
    rig.store.write(lambda tx: tx.delete(key("a")))
    rig.turns_until_quiet("a")
    assert rig.store.get(key("a")) is None
    assert rig.rows(tables.claims) == []


@pytest.mark.parametrize("how", ["error", "detached", "partial", "hidden"])
def test_a_deletion_never_completes_while_nobody_can_look(rigs: Make, how: str) -> None:
    rig = rigs().start()
    rig.make("a", names=["x", "y", "z", "w"])
    until(lambda: rig.ready("a"))

    def dead(call: str, moment: str, id_: str) -> None:
        raise Unavailable("no route to host")

    match how:
        case "error":
            rig.outside.hook = dead
            until(lambda: not rig.world.trusted("site/a"))
        case "detached":
            rig.world.detach("site/a")
        case "partial":
            rig.outside.show(complete=False, hidden=["x", "y", "z", "w"])
            until(lambda: rig.world.snapshot("site/a").unseen)
        case "hidden":
            rig.outside.show(hidden=["x", "y", "z", "w"])
            until(lambda: rig.world.snapshot("site/a").held)
    rig.delete("a")
    rig.controller.wake_key(key("a"))
    for _ in range(3):
        rig.turns.turn(rig.reconciler, key("a"))
        rig.world._observers.get("site/a") and rig.world._observers["site/a"].poke()
        time.sleep(0.05)
    assert rig.store.get(key("a"))
    assert rig.claimed() == {"x", "y", "z", "w"}
    assert rig.outside.effects("delete") == []
    if how == "detached":
        rig.outside.closed = False
        rig.world.attach("site/a", rig.outside)
    rig.outside.hook = lambda call, moment, id_: None
    rig.outside.show()
    until(lambda: rig.store.get(key("a")) is None)
    assert rig.outside.things() == {}


def test_an_end_that_could_not_be_seen_is_looked_at_again(rigs: Make) -> None:
    rig = rigs()
    rig.make("a", names=["x"])
    rig.turns_until_quiet("a")
    rig.delete("a")
    until(lambda: rig.turns.turn(rig.reconciler, key("a")) and not rig.outside.things())
    until(lambda: rig.world.seen(Target("site/a", "thing", "x")).truth == "absent")
    looks: list[str] = []

    def every_second_is_lost(call: str, moment: str, id_: str) -> None:
        if call == "direct":
            looks.append(id_)
            if len(looks) == 2:
                raise Unavailable("no answer")

    rig.outside.hook = every_second_is_lost
    outcomes = []
    while rig.store.get(key("a")) and len(outcomes) < 5:
        outcomes.append(rig.turns.turn(rig.reconciler, key("a")).again)
    assert len(looks) >= 2, "the second look is the one before it goes"
    assert outcomes[0] is not None, "nothing is heard of what is gone: it must look again by itself"
    assert outcomes[0] <= 1.0
    assert rig.store.get(key("a")) is None


def test_a_reconciler_that_is_too_sure_does_not_end_a_resource(rigs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs()
    rig.make("a", names=["x"])
    rig.turns_until_quiet("a")
    monkeypatch.setattr(rig.reconciler, "plan", lambda resource, look: Plan())
    rig.delete("a")
    rig.turn("a")
    assert rig.store.get(key("a"))
    assert rig.claimed() == {"x"}
    rig.outside.by_hand(x=None)
    until(lambda: rig.world.snapshot("site/a").items == {})
    rig.turn("a")
    assert rig.store.get(key("a")) is None


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_keeps_the_reconcilers_hands_off_until_it_lets_go_or_its_time_is_over(rigs: Make) -> None:
    rig = rigs()
    uid = rig.make("a")["metadata"]["uid"]
    rig.turns_until_quiet("a")

    def hold(path: str, seconds: float) -> None:
        rig.store.write(lambda tx: guard.hold(tx, key("a"), uid, path, "drill", tx.time + seconds))

    hold("colour", 600)
    with pytest.raises(Invalid, match="held by run drill"):
        rig.store.write(lambda tx: guard.hold(tx, key("a"), uid, "colour", "other", tx.time + 5))
    rig.change("a", colour="blue")
    outcome = rig.turn("a")
    assert rig.outside.things() == {"a": "red"}
    assert rig.condition("a", "HeldByRun") == ("True", "RunHolds")
    assert outcome.again
    assert outcome.again > 500
    assert rig.store.write(lambda tx: guard.unhold(tx, "drill")) == (uid,)
    rig.turns_until_quiet("a")
    assert rig.outside.things() == {"a": "blue"}
    assert rig.condition("a", "HeldByRun")[0] == "Unknown"
    hold("col", 600)  # not this field, though its name begins so
    hold("*", 0.3)
    rig.change("a", colour="green")
    assert (rig.turn("a").again or 9) < 1
    assert rig.outside.things() == {"a": "blue"}
    until(lambda: rig.turns_until_quiet("a") and rig.outside.things() == {"a": "green"})


def test_what_removes_the_whole_thing_waits_for_a_hold_on_any_field(rigs: Make) -> None:
    rig = rigs()
    uid = rig.make("a")["metadata"]["uid"]
    rig.turns_until_quiet("a")
    rig.store.write(lambda tx: guard.hold(tx, key("a"), uid, "colour", "drill", tx.time + 600))
    rig.delete("a")
    rig.turn("a")
    assert rig.outside.things() == {"a": "red"}
    rig.store.write(lambda tx: guard.unhold(tx, "drill"))
    rig.turns_until_quiet("a")
    assert rig.outside.things() == {}
    assert rig.rows(tables.holds) == []


# ── any plan, cut anywhere ──────────────────────────────────────────────────────────────────────────────────────

WISH = st.fixed_dictionaries(
    {"names": st.lists(st.sampled_from("wxyz"), min_size=1, max_size=4, unique=True), "colour": st.sampled_from("rgb")}
)
CUT = st.tuples(st.integers(0, 6), st.sampled_from(["before", "after"]), st.sampled_from(["unknown", "lost", "bug"]))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    wishes=st.lists(st.tuples(WISH, st.lists(CUT, max_size=3)), min_size=1, max_size=3),
    fencing=st.sampled_from(["fences", "idempotent", "neither"]),
)
def test_any_plan_cut_between_any_two_changes_converges(
    tmp_path_factory: pytest.TempPathFactory, wishes: list[Any], fencing: Any
) -> None:
    rig = Rig(tmp_path_factory.mktemp("cut"), {"site/a": Outside(fencing)}, settle=0.03, watching=FAST)
    cuts: list[Any] = []
    count = [0]

    def hook(call: str, moment: str, id_: str) -> None:
        if call not in ("create", "update", "delete") or not cuts:
            return
        number, when, how = cuts[0]
        count[0] += when == moment
        if when == moment and count[0] > number:
            cuts.pop(0)
            count[0] = 0
            if how == "bug":
                raise RuntimeError("cut")
            raise OutcomeUnknown("cut") if how == "unknown" or moment == "after" else Unavailable("cut")

    rig.outside.hook = hook
    try:
        for number, (wish, planned) in enumerate(wishes):
            cuts[:], count[0] = planned, 0
            (rig.make if number == 0 else rig.change)("a", **wish)
            deadline = time.monotonic() + 15
            wanted = dict.fromkeys(wish["names"], wish["colour"])
            while rig.outside.things() != wanted or not rig.ready("a"):
                assert time.monotonic() < deadline, (rig.get("a")["status"], rig.outside.things(), wanted)
                rig.turn("a")
                time.sleep(0.005)
            # Nothing was made that was there already, and each look from now on changes nothing.
            before = rig.outside.effects()
            assert rig.turn("a").again is None
            assert rig.outside.effects() == before
            assert rig.claimed() == set(wish["names"])
    finally:
        rig.close()
