"""The guard: what would destroy too much waits as one plan, and only what a person answered passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel import guard, tables
from groundcontrol.kernel.errors import Invalid, NotFound, PlanChanged
from groundcontrol.kernel.plan import Change, Limit, Target, digest_of
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx
from tests.kernel.outside import Outside, Rig, until
from tests.kernel.things import key, store_at, thing

LIMITS = (Limit(scope="kind", count=10, window=600.0), Limit(scope="site", count=10, window=600.0))
TOTAL = 100


class Desk:
    """A store with a clock of its own, owners that each plan changes, and a person who answers."""

    def __init__(self, store: Store, clock: list[float]) -> None:
        self.store, self.clock = store, clock
        self.limits: tuple[Limit, ...] = LIMITS
        self.total = TOTAL
        self.gather = 0.0

    def plan(self, owner: str, *names: str, **how: Any) -> guard.Verdict:
        """What becomes of this owner's plan to destroy these things."""
        return self.store.write(self.act(owner, *names, **how))

    def act(
        self, owner: str, *names: str, verb: str = "delete", site: str = "a", **fields: Any
    ) -> Callable[[Tx], guard.Verdict]:
        changes = [self.change(n, verb, site, **fields) for n in names]
        scopes = [guard.Scope("kind", "Thing", self.total), guard.Scope("site", site, self.total)]
        return lambda tx: guard.decide(tx, key(owner), f"uid-{owner}", changes, scopes, self.limits, self.gather)

    @staticmethod
    def change(name: str, verb: str = "delete", site: str = "a", **fields: Any) -> Change:
        pairs = {"thing": (name, None)} | {k: (None, v) for k, v in fields.items()}
        return Change(Target(f"site/{site}", "thing", name), verb, pairs, destructive=True)

    def held(self) -> list[dict[str, Any]]:
        with self.store.reading() as conn:
            return guard.held_plans(conn)

    def approve(self, plan: dict[str, Any]) -> guard.Answer:
        return self.store.write(lambda tx: guard.approve(tx, plan["id"], plan["digest"], "ann", "I saw it"))

    def refuse(self, plan: dict[str, Any]) -> guard.Answer:
        return self.store.write(lambda tx: guard.refuse(tx, plan["id"], plan["digest"], "ann", "never"))

    def bound(self, scope: str, count: int, seconds: float = 3600, verb: str = "delete") -> guard.Answer:
        until = self.clock[0] + seconds
        return self.store.write(lambda tx: guard.approve_bound(tx, scope, verb, count, until, "ann", "spring"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    clock = [1_000_000.0]
    store = store_at(tmp_path, clock=lambda: clock[0])
    yield Desk(store, clock)
    store.close()


def each(desk: Desk, count: int, first: int = 0) -> tuple[int, int]:
    """`count` owners each plan one deletion: how many pass, how many are held."""
    futures = [desk.store.submit(desk.act(f"o{n}", f"t{n}")) for n in range(first, first + count)]
    verdicts = [f.result(20) for f in futures]
    return sum(len(v.allowed) for v in verdicts), sum(len(v.held) for v in verdicts)


def test_a_wrong_selector_is_held_as_one_plan(desk: Desk) -> None:
    desk.gather = 1.0
    assert each(desk, 1000) == (0, 0)
    assert desk.plan("o1", "t1").gathering == 1.0
    assert desk.held() == []
    desk.clock[0] += 1.0
    assert each(desk, 1000) == (0, 1000)
    (plan,) = desk.held()
    assert (plan["scope"], len(plan["changes"])) == ("kind:Thing", 1000)
    assert "10 allowed" in plan["reason"]
    assert plan["digest"] == digest_of({c["digest"] for c in plan["changes"]})
    assert plan["changes"][0]["owner"].startswith("Thing alpha/o")
    desk.approve(plan)
    assert each(desk, 1000) == (1000, 0), "what was approved is not gathered again"


def test_few_deletions_pass_once_they_were_counted_together(desk: Desk) -> None:
    desk.gather = 1.0
    assert each(desk, 6) == (0, 0)
    desk.clock[0] += 0.6
    assert each(desk, 8) == (0, 0)
    desk.clock[0] += 0.4
    assert each(desk, 6) == (6, 0)
    assert each(desk, 6) == (6, 0), "what passed does not wait again"
    assert each(desk, 2, first=6) == (0, 0)
    desk.clock[0] += 0.6
    assert each(desk, 2, first=6) == (2, 0)


def test_what_is_not_planned_any_more_or_was_never_judged_is_not_counted(desk: Desk) -> None:
    desk.gather = 1.0
    each(desk, 20)
    for n in range(15):
        desk.plan(f"o{n}")
    desk.clock[0] += 1.0
    assert each(desk, 5, first=15) == (5, 0)
    desk.limits = (Limit(scope="site", count=3),)
    each(desk, 5, first=30)  # their owners are never heard of again
    desk.clock[0] += 601
    each(desk, 2, first=50)
    desk.clock[0] += 1.0
    assert each(desk, 2, first=50) == (2, 0)


def test_without_a_moment_to_gather_the_budget_passes_and_the_rest_is_held(desk: Desk) -> None:
    assert each(desk, 1000) == (10, 990)
    (plan,) = desk.held()
    assert (plan["scope"], len(plan["changes"])) == ("kind:Thing", 990)


def test_what_is_held_does_not_trickle_through_window_by_window(desk: Desk) -> None:
    each(desk, 40)
    for _ in range(3):
        desk.clock[0] += 601
        assert each(desk, 30, first=10) == (0, 30)


def test_a_straggler_passes_when_the_window_has_rolled_on(desk: Desk) -> None:
    assert each(desk, 12) == (10, 2)
    desk.clock[0] += 300
    assert each(desk, 2, first=10) == (0, 2)
    desk.clock[0] += 301
    assert each(desk, 2, first=10) == (2, 0)
    assert desk.held() == []


def test_an_approved_digest_lets_exactly_those_pass(desk: Desk) -> None:
    each(desk, 60)
    (plan,) = desk.held()
    answer = desk.approve(plan)
    assert len(answer.owner_uids) == 50
    assert each(desk, 20, first=10) == (20, 0)
    # What is left of it goes on later; what was added waits.
    desk.clock[0] += 3600
    assert each(desk, 30, first=30) == (30, 0)
    assert each(desk, 1, first=60) == (0, 1)
    (plan,) = desk.held()
    assert [c["target"]["id"] for c in plan["changes"]] == ["t60"]


def test_another_change_of_the_same_thing_is_not_what_was_approved(desk: Desk) -> None:
    each(desk, 12)
    desk.approve(desk.held()[0])
    assert desk.plan("o10", "t10", size=7).held
    assert desk.plan("o10", "t10", verb="wipe").held
    assert not desk.plan("o10", "t10").held


def test_an_answer_to_a_plan_that_has_changed_is_refused(desk: Desk) -> None:
    each(desk, 12)
    (seen,) = desk.held()
    each(desk, 1, first=12)
    with pytest.raises(PlanChanged, match="now has 3 changes"):
        desk.approve(seen)
    with pytest.raises(PlanChanged):
        desk.refuse(seen)
    assert each(desk, 3, first=10) == (0, 3)
    with pytest.raises(NotFound, match="no plan kind:Other"):
        desk.approve({"id": "kind:Other", "digest": "x"})


def test_an_approval_expires(desk: Desk) -> None:
    each(desk, 40)
    desk.approve(desk.held()[0])
    desk.clock[0] += guard.APPROVAL_LASTS + 1
    assert each(desk, 30, first=10)[1] >= 20


def test_a_bound_lets_so_many_pass_once_each_until_its_time(desk: Desk) -> None:
    each(desk, 60)
    desk.bound("kind:Thing", 5)
    for _ in range(2):
        assert each(desk, 3, first=10) == (3, 0)
        desk.clock[0] += 200
    assert each(desk, 20, first=10) == (5, 15)
    assert each(desk, 20, first=10) == (5, 15), "trying again costs nothing"
    desk.clock[0] += 3601
    assert each(desk, 20, first=10) == (0, 20)
    with pytest.raises(Invalid):
        desk.bound("kind:Thing", 0)
    with pytest.raises(Invalid):
        desk.bound("kind:Thing", 5, seconds=8 * 86_400)


def test_what_a_bound_let_pass_is_not_taken_from_it_again_in_a_later_window(desk: Desk) -> None:
    each(desk, 60)
    desk.bound("kind:Thing", 8)
    assert each(desk, 5, first=10) == (5, 0)
    desk.clock[0] += 700
    assert each(desk, 5, first=10) == (5, 0)
    assert each(desk, 5, first=15) == (3, 2)


def test_a_bound_is_for_one_verb(desk: Desk) -> None:
    each(desk, 20)
    desk.bound("kind:Thing", 5, verb="wipe")
    assert each(desk, 10, first=10) == (0, 10)


def test_what_asks_waits_below_every_limit_until_its_digest_is_approved(desk: Desk) -> None:
    asks = replace(desk.change("x"), ask="somebody has to look")
    scopes = [guard.Scope("orphans", "a", 0), guard.Scope("kind", "Thing", TOTAL)]

    def plan() -> guard.Verdict:
        return desk.store.write(lambda tx: guard.decide(tx, key("o"), "uid-o", [asks], scopes, desk.limits))

    verdict = plan()
    assert (verdict.allowed, verdict.plan, verdict.reason) == ((), "orphans:a", "somebody has to look")
    desk.bound("orphans:a", 5)
    assert plan().allowed == ()
    assert len(desk.plan("other", *(f"t{n}" for n in range(10))).allowed) == 10, "it takes nothing from a budget"
    desk.approve(next(p for p in desk.held() if p["id"] == "orphans:a"))
    assert plan().allowed == (asks,)


def test_a_refusal_stands_until_somebody_approves_after_all(desk: Desk) -> None:
    each(desk, 14)
    desk.refuse(desk.held()[0])
    desk.clock[0] += 30 * 86_400
    assert each(desk, 4, first=10) == (0, 4)
    (plan,) = desk.held()
    assert plan["reason"] == "refused by ann: never"
    assert each(desk, 2, first=50) == (2, 0), "what was refused does not stand in the way of others"
    desk.approve(plan)
    assert each(desk, 4, first=10) == (4, 0)


def test_a_change_that_is_tried_again_is_counted_once(desk: Desk) -> None:
    for _ in range(30):
        assert not desk.plan("o", "t").held
    assert each(desk, 9) == (9, 0)
    assert each(desk, 1, first=9) == (0, 1)


def test_what_came_back_and_goes_again_is_counted_again(desk: Desk) -> None:
    assert each(desk, 10) == (10, 0)
    desk.clock[0] += 700
    assert each(desk, 11) == (10, 1)


def test_one_plan_with_too_much_waits_as_a_whole_and_the_rest_goes_on(desk: Desk) -> None:
    gentle = Change(Target("site/a", "thing", "new"), "create", {"thing": (None, "new")})
    changes = [gentle, *(desk.change(f"t{n}") for n in range(11)), desk.change("t0")]
    scopes = [guard.Scope("kind", "Thing", TOTAL)]
    verdict = desk.store.write(lambda tx: guard.decide(tx, key("o"), "uid", changes, scopes, LIMITS))
    assert verdict.allowed == (gentle,)
    assert len(verdict.held) == 11


def test_a_share_is_taken_of_what_there_was_when_the_window_opened(desk: Desk) -> None:
    desk.limits = (Limit(scope="kind", count=1000, share=0.2, floor=2),)
    passed = 0
    for n in range(25):
        if desk.plan(f"o{n}", f"t{n}").allowed:
            passed, desk.total = passed + 1, desk.total - 1
    assert passed == 20


def test_budgets_are_per_scope_across_owners(desk: Desk) -> None:
    desk.limits = (Limit(scope="site", count=3),)
    for site in "ab":
        held = [bool(desk.plan(f"{site}{n}", f"{site}{n}", site=site).held) for n in range(4)]
        assert held == [False, False, False, True]
    assert sorted(p["scope"] for p in desk.held()) == ["site:a", "site:b"]


def test_what_is_not_planned_any_more_is_not_held(desk: Desk) -> None:
    each(desk, 12)
    desk.plan("o10")
    assert [c["target"]["id"] for c in desk.held()[0]["changes"]] == ["t11"]


def test_what_is_gone_has_nothing_held(desk: Desk) -> None:
    uid = desk.store.write(lambda tx: tx.create(thing("a")))["metadata"]["uid"]
    changes = [desk.change(f"t{n}") for n in range(11)]
    scopes = [guard.Scope("kind", "Thing", TOTAL)]
    desk.store.write(lambda tx: guard.decide(tx, key("a"), uid, changes, scopes, LIMITS))
    assert desk.held()
    desk.store.write(lambda tx: tx.delete(key("a")))
    assert desk.held() == []


# ── with turns ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, {"site/a": Outside()}, limits=(Limit(scope="kind", count=3),))
    yield rig.start()
    rig.close()


def wait_held(rig: Rig, count: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def holds() -> bool:
        with rig.store.reading() as conn:
            found[:] = guard.held_plans(conn)
        return sum(len(p["changes"]) for p in found) == count

    until(holds, f"{count} held")
    until(rig.controller.idle)
    return found[0]


def answer(rig: Rig, act: Callable[[guard.PlanBoard], Any]) -> None:
    act(guard.PlanBoard(rig.store, rig.controller.wake_uids))


def test_many_owners_with_one_cause_lose_nothing_before_they_are_seen_together(rig: Rig) -> None:
    names = [f"t{n}" for n in range(12)]
    for name in names:
        rig.make(name)
    until(lambda: rig.ready(*names))
    rig.turns.gather = 1.0
    for name in names:
        rig.delete(name)
    plan = wait_held(rig, 12)
    assert {c["target"]["id"] for c in plan["changes"]} == set(names)
    assert set(rig.outside.things()) == set(names), "not one went"
    answer(rig, lambda board: board.refuse("kind:Thing", type("S", (), {"name": "ann"})(), "a wrong selector"))
    until(rig.controller.idle)
    assert set(rig.outside.things()) == set(names)


def test_deletions_beyond_the_limit_touch_nothing_until_approved(rig: Rig) -> None:
    names = [f"t{n}" for n in range(8)]
    for name in names:
        rig.make(name)
    until(lambda: rig.ready(*names))
    for name in names[:7]:
        rig.delete(name)
    plan = wait_held(rig, 4)
    until(lambda: len(rig.outside.things()) == 5)
    waiting = [c["target"]["id"] for c in plan["changes"]]
    assert rig.condition(waiting[0], "Held") == ("True", "OverLimit")
    assert "Held" in rig.timeline(waiting[0])
    # A restart changes nothing about it.
    rig.restart()
    rig.start()
    assert wait_held(rig, 4)["digest"] == plan["digest"]
    subject = type("S", (), {"name": "ann"})()
    rig.delete("t7")
    assert wait_held(rig, 5)["digest"] != plan["digest"]
    with pytest.raises(PlanChanged):
        answer(rig, lambda board: board.approve("kind:Thing", plan["digest"], subject, "all of them"))
    plan = wait_held(rig, 5)
    answer(rig, lambda board: board.approve("kind:Thing", plan["digest"], subject, "all of them"))
    until(lambda: rig.store.count("Thing") == 0)
    assert rig.outside.things() == {}
    assert rig.rows(tables.held) == []
