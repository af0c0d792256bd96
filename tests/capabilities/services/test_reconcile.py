"""Services on hosts in memory: through the real store, loop and world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from groundcontrol.kernel.resource import Key
from groundcontrol.ports.processes import UnitObserved
from tests.federation import Federation, federation


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as found:
        found.sites("cnaf", "bari")
        yield found


def only(fed: Federation) -> UnitObserved:
    (unit,) = fed.units()
    return unit


def test_a_service_runs_and_goes(fed: Federation) -> None:
    fed.service("web", replicas=2)
    fed.until_ready("Service", "web", "alpha")
    assert len(fed.units()) == 2
    assert {u.tags["owner"] for u in fed.units()} == {d["metadata"]["uid"] for d in fed.instances("web")}
    fed.delete("Service", "web", "alpha")
    fed.until(lambda: fed.get("Service", "web", "alpha") is None)
    assert fed.units() == []


def test_a_killed_process_is_restarted_and_told(fed: Federation) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    unit = only(fed)
    host = next(h for h in fed.hosts.values() if h.look().units)
    host.kill(unit.id)
    fed.until(lambda: only(fed).starts == 2)
    fed.until_ready("Service", "web", "alpha")
    fed.until(lambda: [i["status"]["phase"] for i in fed.all("Incident")] == ["Closed"])
    assert (
        fed.get("Service", "web", "alpha")["status"]["lastFailure"]["message"] == "its process was killed by signal 9"
    )
    assert len(fed.events("Restarted")) == 1


def test_a_file_changed_by_hand_is_put_back_and_told_by_name(fed: Federation) -> None:
    fed.service("web", files={"message.txt": "hello"})
    fed.until_ready("Service", "web", "alpha")
    unit = only(fed)
    host = next(h for h in fed.hosts.values() if h.look().units)
    host.edit_file(unit.id, "message.txt", "hacked")
    (event,) = fed.until(lambda: fed.events("DriftCorrected"))
    assert event["fields"] == {"spec.files[message.txt]": ["hacked", "hello"]}
    fed.until(lambda: only(fed).spec.files["message.txt"] == "hello")
    assert only(fed).starts == 1


def test_drift_that_is_only_reported_is_left(fed: Federation) -> None:
    fed.service("web", files={"message.txt": "hello"}, drift="report")
    fed.until_ready("Service", "web", "alpha")
    host = next(h for h in fed.hosts.values() if h.look().units)
    host.edit_file(only(fed).id, "message.txt", "hacked")
    name = fed.instances("web")[0]["metadata"]["name"]
    fed.until(lambda: fed.ready("Instance", name, "alpha", "Drift")[0] == "True")
    fed.settled()
    assert only(fed).spec.files["message.txt"] == "hacked"


def test_drift_can_be_proposed_as_a_change_of_the_file(fed: Federation) -> None:
    annotations = {"ground/source": "platform", "ground/file": "groups/alpha/web.yaml"}
    fed.service("web", files={"message.txt": "hello"}, drift="propose")
    fed.until_ready("Service", "web", "alpha")
    fed.runtime.store.write(lambda tx: tx.touch(Key("Service", "alpha", "web"), annotations))
    host = next(h for h in fed.hosts.values() if h.look().units)
    host.edit_file(only(fed).id, "message.txt", "better")
    name = fed.instances("web")[0]["metadata"]["name"]
    fed.until(lambda: fed.ready("Instance", name, "alpha", "Drift") == ("True", "Proposed"))
    (event,) = fed.events("DriftProposed")
    assert 'write into groups/alpha/web.yaml: spec.files[message.txt]: "better"' in event["message"]
    fed.settled()
    assert only(fed).spec.files["message.txt"] == "better"
    # The file says so now: nothing is done at the site, and the drift is over.
    fed.service("web", files={"message.txt": "better"}, drift="propose")
    fed.until(lambda: fed.ready("Instance", name, "alpha", "Drift")[1] == "NotLooked")
    assert len(fed.events("DriftProposed")) == 1
    assert only(fed).starts == 1


def test_a_silent_site_makes_its_services_unknown_and_moves_nothing(fed: Federation) -> None:
    fed.service("web", replicas=2, placement={"spread": "site"})
    fed.service("lone", placement={"sites": ["cnaf"]})
    fed.until_ready("Service", "web", "alpha")
    fed.until_ready("Service", "lone", "alpha")
    before = {u.id: u.pid for u in fed.units()}
    released = [fed.hosts["cnaf"].hang(call) for call in ("look", "wait")]
    fed.until(lambda: fed.ready("Service", "lone", "alpha") == ("Unknown", "Unreachable"))
    fed.until(lambda: fed.ready("Service", "web", "alpha")[0] == "Unknown")
    assert fed.ready("Service", "web", "alpha", "Available")[0] == "True"
    # What is not known is not taken from those who use it.
    assert len(fed.get("Service", "web", "alpha")["status"]["endpoints"]["http"]) == 2
    assert len(fed.get("Service", "lone", "alpha")["status"]["endpoints"]["http"]) == 1
    for event in released:
        event.set()
    fed.until_ready("Service", "lone", "alpha")
    fed.until_ready("Service", "web", "alpha")
    assert {u.id: u.pid for u in fed.units()} == before


def test_an_update_replaces_one_after_the_other(fed: Federation) -> None:
    fed.service("web", replicas=3, env={"V": "1"})
    fed.until_ready("Service", "web", "alpha")
    fed.service("web", replicas=3, env={"V": "2"})
    fed.until(lambda: len(fed.units()) == 3 and all(u.spec.env["V"] == "2" for u in fed.units()))
    fed.until_ready("Service", "web", "alpha")


def test_a_bad_update_is_rolled_back(fed: Federation) -> None:
    fed.service("web", env={"V": "1"}, update={"deadline": 1})
    fed.until_ready("Service", "web", "alpha")
    good = only(fed).id
    for host in fed.hosts.values():
        host.ails = lambda spec: "it says 500" if spec.env.get("V") == "2" else ""
    fed.service("web", env={"V": "2"}, update={"deadline": 1})
    fed.until(lambda: len(fed.units()) == 2)
    fed.until(lambda: fed.ready("Service", "web", "alpha") == ("False", "RolledBack"))
    fed.until(lambda: [u.id for u in fed.units()] == [good])
    fed.service("web", env={"V": "1"}, update={"deadline": 1})
    fed.until_ready("Service", "web", "alpha")


def test_a_create_without_an_answer_is_found_and_not_repeated(fed: Federation) -> None:
    for host in fed.hosts.values():
        host.fail("create", moment="after")
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    assert [u.starts for u in fed.units()] == [1]
    assert sum(call == "create" for h in fed.hosts.values() for call, _ in h.calls) == 1


def test_two_services_do_not_overbook_a_site(fed: Federation) -> None:
    for name in ("a", "b", "c", "d", "e"):
        fed.service(name, resources={"cores": 3}, placement={"sites": ["bari"]})
    ready = ("a", "b", "c", "d", "e")
    fed.until(lambda: sum(fed.ready("Service", n, "alpha")[0] == "True" for n in ready) == 2)
    fed.settled()
    assert sum(u.spec.limits.cores for u in fed.units("bari")) == 6
    reasons = [fed.ready("Service", n, "alpha") for n in ready]
    assert reasons.count(("False", "Unplaceable")) == 3


def test_what_vanished_at_once_is_not_made_again_until_somebody_confirms(fed: Federation) -> None:
    fed.service("web", replicas=4, placement={"sites": ["cnaf"]})
    fed.until_ready("Service", "web", "alpha")
    host = fed.hosts["cnaf"]
    host.lose(*[u.id for u in host.look().units])
    fed.until(lambda: fed.ready("Site", "cnaf") == ("Unknown", "Held"))
    fed.settled()
    assert fed.units("cnaf") == []
    fed.runtime.world.confirm_loss("site/cnaf")
    fed.until(lambda: len(fed.units("cnaf")) == 4)
    fed.until_ready("Service", "web", "alpha")


def test_a_partial_listing_changes_nothing(fed: Federation) -> None:
    fed.service("web", replicas=2, placement={"sites": ["cnaf"]})
    fed.until_ready("Service", "web", "alpha")
    host = fed.hosts["cnaf"]
    before = [u.id for u in host.look().units]
    calls = len([c for c in host.calls if c[0] == "create"])
    host.hide(*before)
    fed.settled()
    assert len([c for c in host.calls if c[0] == "create"]) == calls


def test_a_restart_of_the_server_touches_nothing(fed: Federation) -> None:
    fed.service("web", replicas=2)
    fed.until_ready("Service", "web", "alpha")
    before = {u.id: (u.pid, u.revision) for u in fed.units()}
    fed.restart()
    fed.until_ready("Service", "web", "alpha")
    fed.settled()
    assert {u.id: (u.pid, u.revision) for u in fed.units()} == before


def test_a_site_slow_to_answer_after_a_restart_is_no_incident(tmp_path: Path) -> None:
    with federation(tmp_path, observe={"wait_seconds": 0.5, "stale_after_seconds": 30.0}) as fed:
        fed.sites("cnaf")
        fed.service("web")
        fed.until_ready("Service", "web", "alpha")
        released = fed.hosts["cnaf"].hang("look")
        fed.restart()
        fed.settled()
        assert fed.ready("Service", "web", "alpha")[0] == "True"
        released.set()
        fed.settled()
        assert fed.ready("Service", "web", "alpha")[0] == "True"
        assert fed.all("Incident") == []


def test_a_dependency_is_waited_for_and_its_address_told(fed: Federation) -> None:
    fed.service("portal", dependsOn=["db"])
    fed.until(lambda: fed.ready("Service", "portal", "alpha")[1] == "Progressing")
    fed.settled()
    assert fed.units() == []
    fed.service("db")
    fed.until_ready("Service", "portal", "alpha")
    db = fed.get("Service", "db", "alpha")["status"]["endpoints"]["http"]
    portal = next(u for u in fed.units() if u.tags["owner_key"].startswith("alpha/portal"))
    fed.until(lambda: db[0] in fed.hosts_unit(portal.id).spec.files["endpoints.json"])


def test_a_second_look_writes_nothing(fed: Federation) -> None:
    fed.service("web")
    fed.until_ready("Service", "web", "alpha")
    fed.settled()
    before = {e.key: e.seq for kind in ("Service", "Instance") for e in fed.runtime.store.entries(kind)}
    for key in before:
        fed.runtime.controller.wake_key(key)
    fed.settled()
    assert {e.key: e.seq for kind in ("Service", "Instance") for e in fed.runtime.store.entries(kind)} == before
