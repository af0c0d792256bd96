"""Sites: their life cycle, what is known of them, and how they go."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.capabilities.inventory.kinds import TRANSITIONS, Site
from groundcontrol.capabilities.inventory.logic import identity
from groundcontrol.kernel.errors import Invalid
from tests.federation import Federation, federation


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as found:
        found.sites("cnaf", "bari")
        yield found


def state(fed: Federation, value: str, **spec: Any) -> None:
    fed.apply("Site", "cnaf", {"driver": "memory", "state": value, **spec})


@pytest.mark.parametrize(("before", "after"), list(product(TRANSITIONS, TRANSITIONS)))
def test_which_state_may_follow_which(before: str, after: str) -> None:
    old, new = ({"metadata": {"name": "cnaf"}, "spec": {"state": s}} for s in (before, after))
    if before == after or after in TRANSITIONS[before]:
        Site.admit(old, new)
        return
    with pytest.raises(Invalid) as refused:
        Site.admit(old, new)
    (problem,) = refused.value.problems
    assert problem.path == "spec.state"
    assert f"is {before} and cannot become {after}" in problem.message
    assert all(allowed in problem.remedy for allowed in TRANSITIONS[before])


def test_a_step_that_is_left_out_is_refused_and_changes_nothing(fed: Federation) -> None:
    state(fed, "retired")
    before = fed.get("Site", "cnaf")
    with pytest.raises(Invalid, match="cnaf is retired and cannot become active"):
        state(fed, "active")
    assert (fed.get("Site", "cnaf") or {})["spec"] == (before or {})["spec"]
    state(fed, "candidate")
    state(fed, "active")


def test_only_an_active_site_gets_new_instances(fed: Federation) -> None:
    fed.service("web", placement={"sites": ["cnaf"]})
    fed.until_ready("Service", "web", "alpha")
    state(fed, "maintenance")
    fed.service("web", placement={"sites": ["cnaf"]}, replicas=2)
    fed.until(lambda: fed.ready("Service", "web", "alpha") == ("False", "Unplaceable"))
    assert len(fed.units("cnaf")) == 1
    (unit,) = fed.units("cnaf")
    fed.hosts["cnaf"].kill(unit.id)
    fed.until(lambda: [u.starts for u in fed.units("cnaf")] == [2], "what is there is still looked after")
    state(fed, "active")
    fed.until_ready("Service", "web", "alpha")
    assert len(fed.units("cnaf")) == 2


def test_from_a_retired_site_everything_moves_away(fed: Federation) -> None:
    fed.service("web", placement={"siteSelector": ""})
    fed.until_ready("Service", "web", "alpha")
    (at,) = {d["spec"]["site"] for d in fed.instances("web")}
    fed.apply("Site", at, {"driver": "memory", "state": "retired"})
    fed.until(lambda: fed.units(at) == [] and len(fed.units()) == 1)
    fed.until_ready("Service", "web", "alpha")


def test_a_site_stays_until_nothing_of_ours_is_there(fed: Federation) -> None:
    fed.service("web", placement={"sites": ["cnaf"]})
    fed.until_ready("Service", "web", "alpha")
    fed.delete("Site", "cnaf")
    fed.settled()
    assert fed.get("Site", "cnaf") is not None or fed.units("cnaf") == []
    fed.delete("Service", "web", "alpha")
    fed.until(lambda: fed.get("Site", "cnaf") is None)
    assert fed.units("cnaf") == []
    assert "site/cnaf" not in fed.runtime.world.names()


def test_counts_capacity_and_strangers_are_told(fed: Federation) -> None:
    state(fed, "active", capacity={"cores": 2})
    fed.service("web", replicas=2, resources={"cores": 0.5, "memoryMb": 100}, placement={"sites": ["cnaf"]})
    fed.until_ready("Service", "web", "alpha")
    (unit, _) = fed.units("cnaf")
    fed.hosts["cnaf"].create("stranger", unit.spec, {"installation": "another"}, epoch=99)

    def told() -> Any:
        status = (fed.get("Site", "cnaf") or {})["status"]
        return status if status["strays"] and status["instances"] == 2 else None

    status = fed.until(told)
    assert (status["cores"], status["coresUsed"], status["memoryUsedMb"]) == (2, 1.0, 200)
    assert status["strays"] == ["stranger: not of this installation (of another)"]


def test_another_driver_than_there_is_is_said(fed: Federation) -> None:
    fed.apply("Site", "odd", {"driver": "memori"})
    fed.until(lambda: fed.ready("Site", "odd") == ("False", "CannotConnect"))
    conditions = (fed.get("Site", "odd") or {})["status"]["conditions"]
    assert 'did you mean "memory"' in conditions[0]["message"]


def test_what_makes_a_connection_another_one() -> None:
    spec = Site.model_validate({"metadata": {"name": "a"}, "spec": {"driver": "local"}, "kind": "Site"}).spec
    assert identity(spec) == identity(spec.model_copy(update={"region": "south"}))
    for name, value in (("endpoint", "https://x"), ("credentials", "secret:a/b"), ("options", {"a": "b"})):
        assert identity(spec) != identity(spec.model_copy(update={name: value}))
