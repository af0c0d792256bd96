"""A day with people in it: one edits by hand what git declares, one gets a selector wrong."""

from __future__ import annotations

import pytest

from groundcontrol.kernel.guard import held_plans
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from tests.federation import Federation
from tests.stories.conftest import pushed, service, source


def plans(fed: Federation) -> list[Doc]:
    with fed.runtime.store.reading() as conn:
        return held_plans(conn)


def test_a_hand_edit_war_is_won_by_git_and_every_battle_is_told(fed: Federation) -> None:
    # Somebody at the site is sure that the banner must say something else, and does not know where it comes from.
    source(fed)
    pushed(fed, {"web.yaml": service("web", files='{banner.txt: "as agreed"}')})
    fed.until_ready("Service", "web", "alpha")
    (unit,) = fed.units()
    host = next(h for h in fed.hosts.values() if h.look().units)
    for round_ in range(5):
        host.edit_file(unit.id, "banner.txt", f"my banner, attempt {round_}")
        fed.until(lambda: fed.hosts_unit(unit.id).spec.files["banner.txt"] == "as agreed", "it is put back")
    told = fed.until(lambda: found if len(found := fed.events("DriftCorrected")) == 5 else None, "every time is told")
    assert [e["fields"]["spec.files[banner.txt]"][0] for e in told] == [f"my banner, attempt {n}" for n in range(5)]
    assert fed.hosts_unit(unit.id).starts == 1, "users noticed nothing of the war"
    assert not fed.all("Incident"), "and nobody was woken by it"

    # They give up, and change the file.
    pushed(fed, {"web.yaml": service("web", files='{banner.txt: "as agreed anew"}')})
    fed.until(lambda: fed.hosts_unit(unit.id).spec.files["banner.txt"] == "as agreed anew", "that stays")
    fed.settled()
    assert len(fed.events("DriftCorrected")) == 5


@pytest.mark.slow
def test_a_wrong_selector_over_two_hundred_services(fed: Federation) -> None:
    # Two hundred services with three instances to be each, all of them as somebody wants them.
    source(fed)
    names = [f"s{n:03}" for n in range(200)]
    pushed(fed, {f"{n}.yaml": service(n, replicas=2, resources="{cores: 0.01}") for n in names})
    fed.until(lambda: len(fed.units()) == 400, "they run", seconds=90)
    before = {u.id for u in fed.units()}

    # A tool changes them all, by a selector that means more than was meant: each plans one deletion, and no more.
    pushed(fed, {f"{n}.yaml": service(n, replicas=1, resources="{cores: 0.01}") for n in names})
    fed.until(lambda: plans(fed), "it is held", seconds=60)
    fed.settled(2.0, seconds=60)
    gone = before - {u.id for u in fed.units()}
    assert len(gone) <= 100, f"{len(gone)} of 400 went before the limit held the rest"
    assert len({p["scope"] for p in plans(fed)}) <= 4, "it is held as a few plans, not as two hundred"
    waiting = {c["target"]["id"] for p in plans(fed) for c in p["changes"]}
    assert len(waiting) == 200 - len(gone)
    assert not fed.all("Incident"), "what is held is not broken"

    # The person on duty looks, shakes their head, and the commit is taken back: nothing is held any more.
    pushed(fed, {f"{n}.yaml": service(n, replicas=2, resources="{cores: 0.01}") for n in names})
    fed.until(lambda: not plans(fed) and len(fed.units()) == 400, "all is as it was", seconds=90)

    # Or it was meant: then the digest that was seen is approved, and exactly that goes.
    pushed(fed, {f"{n}.yaml": service(n, replicas=1, resources="{cores: 0.01}") for n in names})
    fed.until(lambda: sum(len(p["changes"]) for p in plans(fed)) >= 1, "it is held again", seconds=60)
    fed.settled(2.0, seconds=60)
    for _ in range(20):
        for plan in plans(fed):
            fed.runtime.plans.approve(plan["id"], plan["digest"], Subject.user("ada"), "it was meant")
        fed.settled(1.0, seconds=60)
        if not plans(fed):
            break
    fed.until(lambda: len(fed.units()) == 200, "one each is left", seconds=60)
    assert fed.get("Service", "s000", "alpha") is not None
    assert fed.runtime.store.entry(Key("Service", "alpha", "s199"))
