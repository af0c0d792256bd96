"""Whatever is cut, lost, refused or slow: in the end there is one thing for each resource, and none without."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.claims import owners_at
from groundcontrol.kernel.errors import Conflict, OutcomeUnknown, Refused, Unavailable
from groundcontrol.ports.twins.cloud import MemoryCloud, Moment
from tests.capabilities.clouds.sky import Sky, sky

RUNS = 200
LONG = 400.0
"""Seconds in which all runs end; a bound against hanging."""


class Cut(Exception):
    """A turn ends here, as if its worker had died."""


class RoughCloud(MemoryCloud):
    """Calls are lost before and after they did their work, refused, or not answered, as the dice say."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(delay=0.02)
        self.dice = dice
        self.rough = 0.0
        """Share of calls that go wrong."""
        self.lost = 0

    def fault(self, call: str, type: str, moment: Moment) -> None:
        super().fault(call, type, moment)
        share = self.rough / (10 if call in ("look", "wait") else 2)
        if self.dice.random() >= share:
            return
        if call in ("create", "change", "delete"):
            self.lost += 1
            if moment == "after":
                raise OutcomeUnknown("no answer, and it was done")
            refusals = [Refused("slow down", cause="Throttled"), Refused("500", cause="RemoteBug"), Conflict("409")]
            raise self.dice.choice([OutcomeUnknown("no answer, and it was not done"), Unavailable("503"), *refusals])
        if moment == "before":
            raise Unavailable("503")


def cutting(dice: random.Random, cloud: RoughCloud) -> Callable[[str], None]:
    def cut(where: str) -> None:
        if dice.random() < cloud.rough / 6:
            raise Cut(where)

    return cut


def wanted(dice: random.Random, runs: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Things to be made, and what they are to become half way."""
    made: list[tuple[str, str, dict[str, Any]]] = []
    for number in range(runs):
        kind = dice.choice(["Volume", "Network", "SecurityGroup", "Server", "Router"])
        spec: dict[str, Any] = {
            "Volume": {"size": dice.randint(1, 5)},
            "Server": {"flavor": "cloud:small", "image": "cloud:debian", "networks": ["lan"], "replace": "allowed",
                       "retry": {"attempts": 10, "delay": 0}},
            "SecurityGroup": {"rules": [{"protocol": "tcp", "ports": str(dice.randint(1, 9))}, {"group": "self"}]},
            "Router": {"externalNetwork": "cloud:public"},
        }.get(kind, {})  # fmt: skip
        made.append((kind, f"r{number}", spec))
    return made


def changed(kind: str, spec: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """Another spec: some are changed in place, some servers are replaced."""
    match kind:
        case "Volume":
            return {**spec, "size": spec["size"] + 1}
        case "Server":
            other = dice.choice([{"image": "cloud:new"}, {"metadata": {"a": "b"}}, {"flavor": "cloud:big"}])
            return {**spec, **other}
        case "SecurityGroup":
            return {**spec, "rules": spec["rules"][1:]}
    return {**spec, "description": "changed"}


def settled(here: Sky, things: list[tuple[str, str, dict[str, Any]]]) -> None:
    """All are Ready at their newest generation, and what they want is so."""
    for kind, name, _ in things:
        here.fed.until(lambda: here.fed.ready(kind, name, "alpha")[0] == "True", f"{kind} {name}", LONG)  # noqa: B023
    owners = Counter(t.mark.owner for t in here.cloud.things() if t.mark is not None)
    assert {uid: n for uid, n in owners.items() if n > 1} == {}, "something was made twice"
    with here.fed.runtime.store.reading() as conn:
        claimed = owners_at(conn, "site/bari")
    there = {(t.type, t.id) for t in here.cloud.things() if t.mark is not None}
    assert there == set(claimed), "what is there is owned, and what is owned is there"


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 6))])
@pytest.mark.timeout(600)
def test_a_rough_life_ends_with_one_thing_for_each_resource(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    cloud = RoughCloud(random.Random(seed))
    loop = {"backoff_first_seconds": 0.02, "backoff_max_seconds": 0.1, "workers": 8, "breaker_failures": 1000}
    with sky(tmp_path, cloud=cloud, loop=loop) as here:
        cloud.add("image", "i-new", name="new", visibility="public", project="p-admin")
        here.lan()
        things = wanted(dice, RUNS)
        here.fed.runtime.turns.crash_point = cutting(dice, cloud)
        cloud.rough = 0.5
        cloud.build(*(dice.choice([None, "out of disk"]) for _ in range(RUNS // 5)))
        for kind, name, spec in things:
            here.apply(kind, name, **spec)
        here.fed.until(lambda: cloud.lost > RUNS // 4, "many calls were lost", LONG)
        cloud.rough = 0.0
        settled(here, things)
        cloud.rough, before = 0.5, cloud.lost
        things = [(kind, name, changed(kind, spec, dice)) for kind, name, spec in things]
        for kind, name, spec in things:
            here.apply(kind, name, **spec)
        here.fed.until(lambda: cloud.lost > before + RUNS // 10, "many changes were lost", LONG)
        cloud.rough = 0.0
        settled(here, things)
        assert {t.fields["flavor"] for t in here.made("server")} <= {"f-small", "f-big"}
        cloud.rough = 0.5
        for kind, name, _ in things:
            here.fed.delete(kind, name, "alpha")
        here.fed.until(lambda: len(here.cloud.things()) < RUNS // 2, "many are gone", LONG)
        cloud.rough = 0.0
        here.fed.until(lambda: not any(here.fed.get(k, n, "alpha") for k, n, _ in things), "all are gone", LONG)
        left = [t for t in here.cloud.things() if t.mark and t.type not in ("project", "network", "subnet")]
        assert left == []
        assert len(here.made("network")) == 1
