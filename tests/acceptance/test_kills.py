"""kill -9 of agents and of the server, at any moment: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.installation import Installation, installation, until

pytestmark = pytest.mark.acceptance
KILLS = 20


@pytest.fixture(scope="module")
def ground() -> Iterator[Installation]:
    """Without limits on deletions: here they are made by the dozen, and nobody is there to approve."""
    with installation("cnaf", "bari", limits=[{"scope": "all", "count": 100_000}]) as found:
        found.apply(found.document("Namespace", "alpha", {"group": "experiments/alpha"}))
        yield found


def test_an_agent_killed_and_started_again_doubles_nothing(alpha: Installation) -> None:
    alpha.service("web", replicas=4)
    alpha.until_ready("services", "web", "alpha")
    before = sorted(alpha.running())
    for _ in range(3):
        for site in ("cnaf", "bari"):
            alpha.kill_agent(site)
            alpha.start_agent(site)
    alpha.service("more", replicas=4)
    alpha.kill_agent("cnaf")
    alpha.start_agent("cnaf")
    alpha.until_ready("services", "more", "alpha")
    alpha.until_ready("services", "web", "alpha")
    running = alpha.running()
    assert [u for u in running if u in before] == before, "what ran goes on"
    assert len(running) == len({u.unit for u in running}) == 8


def test_a_site_that_does_not_answer_is_unknown_and_not_failed(alpha: Installation) -> None:
    alpha.service("web", replicas=2, placement={"spread": "site"})
    alpha.service("only", placement={"sites": ["cnaf"]})
    alpha.until_ready("services", "web", "alpha")
    alpha.until_ready("services", "only", "alpha")
    before = sorted(alpha.running())
    alpha.kill_agent("cnaf")
    said = alpha.until_ready("sites", "cnaf", status="Unknown", reason="Unreachable")
    assert "last seen" in said["message"]
    alpha.until_ready("services", "only", "alpha", status="Unknown", reason="Unreachable")
    assert alpha.condition("services", "only", "alpha", "Available")["status"] == "Unknown"
    assert alpha.condition("services", "web", "alpha", "Available")["status"] == "True"
    alpha.service("late", placement={"sites": ["cnaf"]})
    said = alpha.until_ready("services", "late", "alpha", status="False", reason="Unplaceable")
    assert "does not answer" in said["message"]
    alpha.patch("services", "only", "alpha", files={"message.txt": "meanwhile"})
    time.sleep(4)
    assert sorted(alpha.running()) == before, "nothing is made elsewhere, nothing ends"
    alpha.start_agent("cnaf")
    for name in ("web", "only", "late"):
        alpha.until_ready("services", name, "alpha")
    running = alpha.running()
    assert [u for u in running if u in before] == before
    assert len(running) == 4
    told = [d for d in alpha.list("incidents", "platform") if d["spec"]["subject"]["name"] == "cnaf"]
    until(lambda: all(d["status"]["phase"] == "Closed" for d in alpha.list("incidents", "platform")), "it is over")
    assert told


def told(ground: Installation) -> str:
    """What runs, and what is known of every instance."""
    lines = [f"{u.unit} {u.env['VERSION']}" for u in ground.running()]
    for doc in ground.list("services", "alpha") + ground.list("instances", "alpha"):
        meta, ready = doc["metadata"], next(iter(doc["status"].get("conditions", ())), {})
        lines.append(f"{doc['kind']} {meta['name']} {meta['deletionTimestamp']} {ready} {doc['status'].get('unit')}")
    return "\n".join([*lines, json.dumps(ground.ok("GET", "/api/v1/plans")), ground.log("server")])


class Changes:
    """What somebody does while the server dies again and again, and what they were told."""

    def __init__(self, ground: Installation) -> None:
        self.ground, self.number = ground, 0
        self.wanted: dict[str, tuple[int, str] | None] = {}
        """Service to (replicas, version); None when its deletion was acknowledged."""
        self.unsure: set[str] = set()
        """Services whose last change got no answer."""
        self.done: Counter[tuple[str, str]] = Counter()
        self.tried: Counter[tuple[str, str]] = Counter()

    def one(self) -> None:
        """One random change; what it came to is remembered when the server says so."""
        name, self.number = f"s{random.randrange(8)}", self.number + 1
        there = self.wanted.get(name) is not None and name not in self.unsure
        if there and random.random() < 0.3:
            self._tell(name, "delete", "DELETE", self.ground.path("services", name, "alpha"), None, None)
            return
        spec = (random.randrange(1, 4), str(self.number))
        given: dict[str, Any] = {"replicas": spec[0], "env": {"VERSION": spec[1]}, "stopGrace": 1}
        given |= {"command": ["/bin/sleep", "10000"], "resources": {"cores": 0.05}}
        document = self.ground.document("Service", name, given, "alpha")
        self._tell(name, "write", "POST", "/api/v1/apply", {"documents": [document]}, spec)

    def _tell(self, name: str, what: str, method: str, path: str, body: Any, after: tuple[int, str] | None) -> None:
        self.tried[name, what] += 1
        try:
            answer = self.ground.call(method, path, body)
        except OSError:
            self.unsure.add(name)
            raise
        if answer.status < 300:
            self.wanted[name] = after
            self.unsure.discard(name)
            self.done[name, what] += 1
        else:
            # It is still being taken down, or is not there: nothing was changed.
            assert answer.status in (404, 409), answer.message


def test_a_server_killed_twenty_times_loses_nothing_and_doubles_nothing(alpha: Installation) -> None:
    changes = Changes(alpha)
    for _ in range(KILLS):
        until_ = time.monotonic() + random.uniform(0.05, 1.5)
        while time.monotonic() < until_:
            changes.one()
            time.sleep(random.uniform(0, 0.15))
        alpha.kill_server()
        try:
            changes.one()
        except OSError:
            pass
        else:
            raise AssertionError("a dead server answered")
        alpha.serve()
    for name in sorted(changes.unsure):
        doc = alpha.get("services", name, "alpha")
        there = doc is not None and not doc["metadata"]["deletionTimestamp"]
        changes.wanted[name] = (doc["spec"]["replicas"], doc["spec"]["env"]["VERSION"]) if doc and there else None
    wanted = {name: spec for name, spec in changes.wanted.items() if spec}
    expected = sorted(version for replicas, version in wanted.values() for _ in range(replicas))
    until(
        lambda: sorted(u.env["VERSION"] for u in alpha.running()) == expected,
        f"what was acknowledged runs, and nothing else: {wanted}",
        told=lambda: told(alpha),
    )
    for name in wanted:
        alpha.until_ready("services", name, "alpha")
    until(lambda: {d["metadata"]["name"] for d in alpha.list("services", "alpha")} == set(wanted), "the rest is gone")

    def owned_exactly() -> bool:
        owned = sorted(d["status"].get("unit", "") for d in alpha.list("instances", "alpha"))
        on_disk = sorted(path.name for path in alpha.root.glob("sites/*/units/*"))
        return owned == on_disk == sorted(u.unit for u in alpha.running())

    until(owned_exactly, "a unit for every owner, an owner for every unit", told=lambda: told(alpha))
    assert {d["status"]["starts"] for d in alpha.list("instances", "alpha")} == {1}
    assert not [s for d in alpha.list("sites") for s in d["status"]["strays"]]
    heard = Counter[tuple[str, str]]()
    for entry in alpha.ok("GET", "/api/v1/audit?kind=Service&namespace=alpha&subject=user:admin&limit=1000")["items"]:
        if entry["outcome"] == "done":
            heard[entry["name"], "delete" if entry["verb"] == "delete" else "write"] += 1
    for key in changes.tried:
        assert changes.done[key] <= heard[key] <= changes.tried[key], f"the audit of {key}: {heard[key]}"
