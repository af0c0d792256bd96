"""Joining in turns: what a site's status says, when it may become active, and that asking holds up nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundcontrol.capabilities.inventory.kinds import closed_to_new
from groundcontrol.kernel.errors import Conflict, Invalid
from groundcontrol.kernel.plan import Change, Target
from groundcontrol.kernel.reconcile import StoreWrite
from groundcontrol.kernel.resource import now
from groundcontrol.kernel.secrets import REVEALED
from groundcontrol.ports.cloud import CloudInstance, Probe
from groundcontrol.ports.twins.cloud import MemoryCloud
from groundcontrol.ports.web import Answered
from tests.capabilities.inventory.clouds import SayingCloud, endpoint, facts
from tests.federation import Federation, federation

URL = "https://accounting.example.org/health"
WELL = Answered(status=200, expires=4_000_000_000.0)
ROLES = {"exactly": ["member"], "allowed": "own-servers", "refused": "all-users"}
POLICY = {
    "selector": "tier=production",
    "endpoints": {"services": ["compute"]},
    "roles": ROLES,
    "flavors": [{"cores": 4}],
    "urls": [{"name": "accounting", "url": URL}],
}
HOUR = 3600.0


@pytest.fixture
def clouds() -> dict[str, SayingCloud]:
    return {"bari": SayingCloud(), "cnaf": SayingCloud()}


@pytest.fixture
def fed(tmp_path: Path, clouds: dict[str, SayingCloud]) -> Iterator[Federation]:
    joining = {"origins": ["https://accounting.example.org"], "every_seconds": 1}
    with federation(tmp_path, joining=joining) as found:
        found.drivers["saying"] = lambda name, *_: CloudInstance(clouds[name])  # type: ignore[arg-type]
        found.web.answers[URL] = WELL
        found.apply("Namespace", "alpha", {"group": "experiments/alpha"})
        yield found


def site(fed: Federation, name: str = "bari", state: str = "candidate", tier: str = "production", **spec: Any) -> None:
    fed.apply("Site", name, {"driver": "saying", "state": state, **spec}, labels={"tier": tier})


def policy(fed: Federation, name: str = "federation", **rules: Any) -> None:
    fed.apply("JoinPolicy", name, rules or POLICY)


def joined(fed: Federation, truth: str, name: str = "bari") -> None:
    fed.until(lambda: fed.ready("Site", name, type_="Joined")[0] == truth, f"{name} Joined={truth}")


def rules(fed: Federation, name: str = "bari") -> dict[str, dict[str, Any]]:
    return {r["rule"]: r for r in (fed.get("Site", name) or {})["status"].get("joining", ())}


def refused(fed: Federation, **spec: Any) -> str:
    with pytest.raises(Invalid) as error:
        site(fed, state="active", **spec)
    (problem,) = error.value.problems
    assert problem.path in ("spec.state", "spec.joinException.until")
    return str(problem)


def test_a_candidate_becomes_active_when_the_rules_hold(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    clouds["bari"].facts = facts(time.time(), roles=("admin", "member"))
    policy(fed)
    site(fed)
    joined(fed, "False")
    fed.until(lambda: {r["result"] for n, r in rules(fed).items() if n != "roles"} == {"True"}, "all is asked")
    told = rules(fed)
    assert told["roles"]["evidence"] == "it has admin besides"
    assert "exactly the roles" in told["roles"]["remedy"]
    assert told["roles"]["since"].startswith("20")
    assert "roles: it has admin besides" in refused(fed)
    assert fed.get("Site", "bari")["spec"]["state"] == "candidate"  # type: ignore[index]
    clouds["bari"].facts = facts(time.time())
    clouds["bari"].changed()
    joined(fed, "True")
    site(fed, state="active")
    fed.until(lambda: fed.ready("Site", "bari", type_="Placeable") == ("True", "Joined"))
    assert [e["reason"] for kind in ("NotJoined", "Joined") for e in fed.events(kind)] == ["NotJoined", "Joined"]


def test_a_site_that_no_policy_selects_is_as_before(fed: Federation) -> None:
    policy(fed)
    site(fed, tier="test")
    fed.until_ready("Site", "bari")
    site(fed, state="active", tier="test")
    fed.until_ready("Site", "bari")
    status = fed.get("Site", "bari")["status"]  # type: ignore[index]
    assert [c["type"] for c in status["conditions"]] == ["Ready"]
    assert (status["joining"], status["judged"]) == ([], {})


def test_another_policy_than_was_judged_lets_nobody_in(fed: Federation) -> None:
    """In the very transaction: a policy that was changed a moment ago counts as it is now."""
    policy(fed)
    site(fed)
    joined(fed, "True")
    doc = fed.runtime.kinds.parse(
        {
            "apiVersion": "ground/v1",
            "kind": "Site",
            "metadata": {"name": "bari", "labels": {"tier": "production"}},
            "spec": {"driver": "saying", "state": "active"},
        }
    )
    other = fed.runtime.kinds.parse(
        {"apiVersion": "ground/v1", "kind": "JoinPolicy", "metadata": {"name": "second"}, "spec": {"zones": ["moon"]}}
    )

    def both(tx: Any) -> None:
        tx.create(other)
        tx.replace(doc, "user:ada")

    with pytest.raises(Invalid, match="JoinPolicy second have not been judged"):
        fed.runtime.store.write(both)


def test_another_connection_than_was_judged_is_not_let_in(fed: Federation) -> None:
    policy(fed)
    site(fed)
    joined(fed, "True")
    assert "have not been judged" in refused(fed, endpoint="https://elsewhere.example.org:5000/v3")
    site(fed, state="active")


def test_a_site_comes_back_from_maintenance_only_when_the_rules_hold(
    fed: Federation, clouds: dict[str, SayingCloud]
) -> None:
    policy(fed)
    site(fed)
    joined(fed, "True")
    site(fed, state="active")
    site(fed, state="maintenance")
    clouds["bari"].facts = facts(time.time(), endpoints=(endpoint("compute", time.time(), problem="503"),))
    clouds["bari"].changed()
    joined(fed, "False")
    assert "503" in refused(fed)


def test_somebody_answers_for_a_site_for_a_while(fed: Federation) -> None:
    fed.web.answers[URL] = Answered(problem="no answer in time")
    policy(fed)
    site(fed)
    joined(fed, "False")
    for until, word in ((now(time.time() - HOUR), "before it begins"), (now(time.time() + 400 * 86_400), "a year")):
        assert word in refused(fed, joinException={"reason": "it is mended on Monday", "until": until})
    ends = time.time() + 4
    site(fed, state="active", joinException={"reason": "it is mended on Monday", "until": now(ends)})
    fed.until(lambda: fed.ready("Site", "bari", type_="Placeable") == ("True", "Exception"))
    assert fed.ready("Site", "bari", type_="Joined")[0] == "False", "the rules say what is so all the same"
    shown = next(c for c in fed.get("Site", "bari")["status"]["conditions"] if c["type"] == "Placeable")  # type: ignore[index]
    assert "mended on Monday" in shown["message"]
    fed.until(lambda: fed.ready("Site", "bari", type_="Placeable") == ("False", "NotJoined"), "it is over")


def test_the_remedies_lead_out(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    """What is not allowed to be asked, and a driver without such calls, are Unknown and close the site."""
    del fed.web.answers[URL]
    clouds["bari"].answers = {"own-servers": Probe("allowed", "200")}
    policy(fed)
    site(fed)
    fed.until(lambda: "was not asked" in rules(fed).get("url accounting", {}).get("evidence", ""))
    told = rules(fed)
    assert told["call all-users is refused"]["evidence"] == "the site's driver does not offer this call"
    assert [told[n]["result"] for n in ("url accounting", "call all-users is refused")] == ["Unknown", "Unknown"]
    assert "joining.origins" in told["url accounting"]["remedy"]
    assert fed.ready("Site", "bari", type_="Joined") == ("Unknown", "RulesUnknown")
    assert "not known to hold" in refused(fed)


def test_a_site_that_does_not_answer_has_not_failed(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    policy(fed)
    site(fed)
    joined(fed, "True")
    clouds["bari"].down = True
    joined(fed, "Unknown")
    assert {r["result"] for n, r in rules(fed).items() if n != "url accounting"} == {"Unknown"}
    clouds["bari"].down = False
    joined(fed, "True")


def test_asking_holds_up_neither_a_turn_nor_another_site(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    clouds["bari"].stuck = True
    fed.web.stuck.add("https://accounting.example.org/bari")
    fed.web.answers |= {f"https://accounting.example.org/{n}": WELL for n in clouds}
    policy(fed, roles=ROLES, urls=[{"name": "accounting", "url": "https://accounting.example.org/{site}"}])
    policy(fed, "addresses", urls=[{"name": "accounting", "url": "https://accounting.example.org/{site}"}])
    for name in clouds:
        site(fed, name)
    joined(fed, "True", "cnaf")
    fed.until_ready("Site", "bari")
    site(fed, "bari", tier="test")  # turns go on: a change is taken up
    fed.until(lambda: fed.get("Site", "bari")["status"]["observedGeneration"] >= 1)  # type: ignore[index]
    site(fed, "bari")
    joined(fed, "Unknown")
    asked = len(clouds["bari"].probed) + fed.web.asked.count("https://accounting.example.org/bari")
    assert asked == 1, "one at a time, and nothing behind what hangs"
    clouds["bari"].release()
    fed.web.release()
    joined(fed, "True")


def test_what_was_asked_counts_for_a_while(tmp_path: Path, clouds: dict[str, SayingCloud]) -> None:
    with federation(tmp_path) as fed:
        fed.drivers["saying"] = lambda name, *_: CloudInstance(clouds[name])  # type: ignore[arg-type]
        fed.web.answers[URL] = WELL
        policy(fed)
        site(fed)
        joined(fed, "True")
        for _ in range(5):
            clouds["bari"].changed()
            fed.settled(0.1)
        assert (len(fed.web.asked), sorted(clouds["bari"].probed)) == (1, ["all-users", "own-servers"])


def test_a_status_is_not_written_when_nothing_is_another(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    policy(fed)
    site(fed)
    joined(fed, "True")
    fed.settled()
    before = fed.get("Site", "bari")["metadata"]["resourceVersion"]  # type: ignore[index]
    for step in range(1, 6):
        clouds["bari"].facts = (
            facts(time.time(), endpoints=tuple(endpoint(s, time.time(), skew=step / 10) for s in ("compute",)))
            if step > 1
            else clouds["bari"].facts
        )
        clouds["bari"].facts = msgspec.structs.replace(clouds["bari"].facts, calls=step)
        clouds["bari"].changed()
        fed.settled(0.2)
    after = fed.get("Site", "bari")["metadata"]["resourceVersion"]  # type: ignore[index]
    assert after - before <= 2, "the catalogue became another once"


def test_no_secret_of_ours_comes_back_in_evidence(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    REVEALED.add("correct-horse-battery")
    clouds["bari"].answers["all-users"] = Probe("allowed", "sent correct-horse-battery and got 200")
    policy(fed)
    site(fed)
    joined(fed, "False")
    assert "got 200" in rules(fed)["call all-users is refused"]["evidence"]
    assert "correct-horse" not in str(fed.get("Site", "bari"))


def test_a_restart_keeps_what_was_found_until_it_is_looked_at_again(
    tmp_path: Path, clouds: dict[str, SayingCloud]
) -> None:
    observe = {"wait_seconds": 0.5, "stale_after_seconds": 30.0, "vanished_share": 0.5}
    with federation(tmp_path, observe=observe) as fed:
        fed.drivers["saying"] = lambda name, *_: CloudInstance(clouds[name])  # type: ignore[arg-type]
        fed.web.answers[URL] = WELL
        policy(fed)
        site(fed)
        joined(fed, "True")
        fed.settled()
        since, asked = {r["since"] for r in rules(fed).values()}, len(clouds["bari"].probed)
        fed.restart()
        fed.until(lambda: len(clouds["bari"].probed) >= asked + 2, "the new program has looked, and asked")
        fed.settled()
        joined(fed, "True")
        assert {r["since"] for r in rules(fed).values()} == since
        assert fed.events("NotJoined") == [], "a restart is no news of a site"


def test_a_policy_sums_up(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    clouds["cnaf"].facts = facts(time.time(), roles=("admin",))
    policy(fed)
    for name in clouds:
        site(fed, name)

    def status() -> Any:
        found = (fed.get("JoinPolicy", "federation") or {"status": {}})["status"]
        return {n: found.get(n) for n in ("sites", "joined", "failing", "unknown")}

    fed.until(lambda: status() == {"sites": 2, "joined": 1, "failing": ["cnaf"], "unknown": []})
    clouds["cnaf"].down = True
    fed.until(lambda: status() == {"sites": 2, "joined": 1, "failing": [], "unknown": ["cnaf"]})
    fed.delete("JoinPolicy", "federation")
    fed.until(lambda: fed.get("Site", "cnaf")["status"]["judged"] == {})  # type: ignore[index]


def test_what_was_discovered_is_told_with_its_age(fed: Federation, clouds: dict[str, SayingCloud]) -> None:
    at = time.time()
    secret = endpoint("compute", at, url="https://svc:pass@compute.example.org/v2?token=abc", problem="")
    clouds["bari"].facts = facts(at, endpoints=(secret, endpoint("image", at, problem="503")))
    site(fed, tier="none")
    status = fed.until(lambda: (s := fed.get("Site", "bari")["status"])["found"] and s)  # type: ignore[index]
    assert status["hosts"] == {"up": 1, "down": 1, "unknown": 1, "disabled": 1}
    assert (status["regions"], status["zones"], status["found"]) == (["one"], ["nova"], {"flavor": 2, "image": 1})
    assert status["looked"]["flavor"].startswith("20")
    assert [(s["service"], s["url"], s["problem"]) for s in status["services"]] == [
        ("compute", "https://compute.example.org/v2", ""),
        ("image", "https://image.example.org:5000/v3", "503"),
    ]
    assert (status["cores"], status["memoryMb"]) == (8, 16_384)


def test_services_are_not_placed_on_clouds(fed: Federation) -> None:
    site(fed, state="active", tier="none")
    fed.until_ready("Site", "bari")
    fed.service("web")
    fed.until(lambda: fed.ready("Service", "web", "alpha") == ("False", "Unplaceable"))
    message = fed.get("Service", "web", "alpha")["status"]["conditions"][0]["message"]  # type: ignore[index]
    assert "runs no services" in message


def test_nothing_is_placed_in_the_moment_a_policy_comes(fed: Federation) -> None:
    """What was planned a moment before is refused in the transaction that would write it."""
    fed.sites("host")
    services = fed.runtime.reconciler("services")
    spec = {"site": "host", "template": {}}
    change = Change(Target("store", "Instance", "alpha/x"), "create", {}, payload=StoreWrite({"spec": spec}))
    meta = {"apiVersion": "ground/v1", "kind": "JoinPolicy", "metadata": {"name": "p"}}
    rule = fed.runtime.kinds.parse({**meta, "spec": {"zones": ["moon"]}})

    def act(tx: Any) -> None:
        services.authorise(tx, None, change)
        tx.create(rule)
        services.authorise(tx, None, change)

    with pytest.raises(Conflict, match="host takes nothing new: the rules of JoinPolicy p have not been judged"):
        fed.runtime.store.write(act)
    assert fed.get("JoinPolicy", "p") is None, "the first one was let through, and all of it undone"
    fed.runtime.store.write(lambda tx: services.authorise(tx, None, change))


def test_the_twin_of_clouds_joins(fed: Federation) -> None:
    cloud = MemoryCloud()
    cloud.edit("quota", "p-own", cores=100)
    cloud.add("flavor", "f-1", name="large", cores=8, memory_mb=16_384, disk_gb=40)
    fed.drivers["twin"] = lambda *_: CloudInstance(cloud)
    rule = {"roles": ROLES, "flavors": [{"cores": 8}], "maxSkew": 1, "quotas": [{"resource": "cores", "free": 100}]}
    fed.apply("JoinPolicy", "federation", {**rule, "zones": ["nova"], "regions": ["memory"]})
    fed.apply("Site", "bari", {"driver": "twin", "state": "candidate"})
    joined(fed, "True")
    fed.apply("Site", "bari", {"driver": "twin", "state": "active"})
    cloud.lose("flavor", "f-1")
    joined(fed, "False")
    assert fed.ready("Site", "bari", type_="Placeable") == ("False", "NotJoined")


def test_a_site_made_active_is_closed_until_it_was_judged() -> None:
    """Nothing is placed in the moment between a site and the first look at it."""
    found = {"metadata": {"name": "bari", "labels": {}}, "spec": {"driver": "memory", "options": {}}}
    rule = {"metadata": {"name": "all"}, "spec": {"selector": "", "drivers": [], "zones": ["nova"]}}
    assert "have not been judged" in closed_to_new(found, [rule], 0.0)
    assert closed_to_new(found, [], 0.0) == ""
    other = {**rule, "spec": {**rule["spec"], "drivers": ["openstack"]}}  # type: ignore[dict-item]
    assert closed_to_new(found, [other], 0.0) == ""
