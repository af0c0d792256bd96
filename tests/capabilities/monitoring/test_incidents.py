"""Incidents open when something that was well is in trouble, tell what goes on, and close by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.capabilities.monitoring.reconcile import acknowledge
from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.guard import held_plans
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from tests.federation import Federation, federation


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    limits = [{"scope": "kind", "count": 1}]
    with federation(tmp_path, limits=limits) as found:
        found.sites("cnaf")
        yield found


def incidents(fed: Federation, phase: str = "") -> list[Doc]:
    return [d for d in fed.all("Incident") if not phase or d["status"]["phase"] == phase]


def one(fed: Federation, phase: str) -> Doc:
    found: list[Doc] = fed.until(lambda: incidents(fed, phase), f"an incident is {phase}")
    assert len(found) == 1
    return found[0]


def unhealthy(fed: Federation, message: str = "it says 500") -> None:
    for unit in fed.units():
        fed.hosts["cnaf"].set_health(unit.id, False, message)


def healthy(fed: Federation) -> None:
    for unit in fed.units():
        fed.hosts["cnaf"].set_health(unit.id, True)


def test_an_incident_opens_tells_and_closes(fed: Federation) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    unhealthy(fed)
    opened = one(fed, "Open")
    assert opened["spec"]["subject"] == {"kind": "Service", "namespace": "alpha", "name": "web"}
    assert (opened["spec"]["title"], opened["spec"]["severity"]) == ("web is down", "critical")
    assert opened["metadata"]["namespace"] == "alpha"
    unhealthy(fed, "it says 503")

    def lines() -> list[str]:
        return [e["text"] for e in incidents(fed)[0]["status"]["timeline"]]

    fed.until(lambda: len(lines()) == 2)
    assert ["it says 500" in lines()[0], "it says 503" in lines()[1]] == [True, True]
    healthy(fed)
    closed = one(fed, "Closed")
    assert closed["status"]["timeline"][-1]["text"] == "it is well again"
    assert closed["status"]["openedAt"] < closed["status"]["closedAt"]
    assert [len(fed.events(f"Incident{w}")) for w in ("Opened", "Closed")] == [1, 1]


def test_a_failure_too_short_to_see_still_gets_its_incident(fed: Federation) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    for count in (1, 2):
        fed.hosts["cnaf"].kill(fed.units()[0].id)
        fed.until(lambda count=count: [u.starts for u in fed.units()] == [count + 1])
        fed.until_ready("Service", "web", "alpha")
        fed.until(lambda count=count: len(incidents(fed, "Closed")) == count, f"incident {count} is over")
        fed.settled()
    assert len(incidents(fed)) == 2
    assert all("signal 9" in str(d["status"]["timeline"]) for d in incidents(fed))


def test_part_of_a_service_is_a_warning(fed: Federation) -> None:
    fed.service("web", replicas=2)
    fed.until_ready("Service", "web", "alpha")
    fed.hosts["cnaf"].set_health(fed.units()[0].id, False, "it says 500")
    opened = one(fed, "Open")
    assert (opened["spec"]["title"], opened["spec"]["severity"]) == ("web is impaired", "warning")


def test_what_somebody_wanted_is_no_incident(fed: Federation) -> None:
    fed.service("web", replicas=2)
    fed.until_ready("Service", "web", "alpha")
    fed.service("web", replicas=3, env={"V": "2"})
    fed.until(lambda: {u.spec.env.get("V") for u in fed.units()} == {"2"})
    fed.until_ready("Service", "web", "alpha")
    fed.service("waits", dependsOn=["nothing"])
    fed.until(lambda: fed.ready("Service", "waits", "alpha")[1] == "Progressing")
    fed.delete("Service", "web", "alpha")
    fed.until(lambda: fed.get("Service", "web", "alpha") is None)
    assert incidents(fed) == []


def test_a_held_change_is_no_incident_and_an_incident_does_not_let_go_of_it(fed: Federation) -> None:
    fed.service("web", replicas=4)
    fed.until_ready("Service", "web", "alpha")
    fed.service("web", replicas=1)
    fed.until(lambda: fed.ready("Service", "web", "alpha") == ("False", "Held"))
    fed.settled()
    assert incidents(fed) == []
    unhealthy(fed)
    one(fed, "Open")
    healthy(fed)
    one(fed, "Closed")
    fed.settled()
    with fed.runtime.store.reading() as conn:
        (plan,) = held_plans(conn)
    assert len(plan["changes"]) == 3
    fed.runtime.plans.approve(plan["id"], plan["digest"], Subject.user("ada"), "quiet season")
    fed.until(lambda: len(fed.units()) == 1)


def test_what_is_held_of_a_service_is_not_let_go_by_opening_an_incident(fed: Federation) -> None:
    fed.service("web", replicas=4)
    fed.until_ready("Service", "web", "alpha")
    fed.hosts["cnaf"].kill(fed.units()[0].id)
    key = Key("Incident", "alpha", one(fed, "Closed")["metadata"]["name"])
    fed.service("web", replicas=1)
    fed.until(lambda: fed.ready("Service", "web", "alpha") == ("False", "Held"))
    fed.settled()
    fed.runtime.store.write(lambda tx: tx.delete(key))
    fed.runtime.turns.turn(fed.runtime.reconciler("service-incidents"), Key("Service", "alpha", "web"))
    assert len(incidents(fed)) == 1, "it opened one anew, and nobody else had a turn"
    with fed.runtime.store.reading() as conn:
        assert [len(p["changes"]) for p in held_plans(conn)] == [3]


def test_an_incident_goes_with_its_service(fed: Federation) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    unhealthy(fed)
    one(fed, "Open")
    fed.delete("Service", "web", "alpha")
    assert one(fed, "Closed")["status"]["timeline"][-1]["text"] == "it was deleted"


def test_a_dark_site_is_an_incident_of_the_platform(fed: Federation) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    host: Any = fed.hosts["cnaf"]
    lights = [host.hang("look"), host.hang("wait")]
    try:
        fed.until(lambda: fed.ready("Site", "cnaf")[0] == "Unknown")
        found = fed.until(lambda: [d for d in incidents(fed, "Open") if d["spec"]["subject"]["kind"] == "Site"])
        assert found[0]["metadata"]["namespace"] == "platform"
        assert "1 instances are placed there" in found[0]["status"]["timeline"][0]["text"]
    finally:
        for light in lights:
            light.set()
    fed.until_ready("Site", "cnaf")
    fed.until(lambda: not incidents(fed, "Open"), "all is well")


def test_somebody_says_that_they_look_after_it(fed: Federation) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    unhealthy(fed)
    key = Key("Incident", "alpha", one(fed, "Open")["metadata"]["name"])
    acknowledge(fed.runtime, Subject.user("ada"), key, {"reason": "on it"})
    status = (fed.get("Incident", key.name, "alpha") or {})["status"]
    assert status["acknowledgedBy"] == "user:ada"
    assert status["timeline"][-1]["text"] == "user:ada: on it"
    healthy(fed)
    closed = one(fed, "Closed")
    assert closed["status"]["acknowledgedBy"] == "user:ada", "what was said stays"
    with pytest.raises(Invalid, match="is closed"):
        acknowledge(fed.runtime, Subject.user("ada"), key, {})
