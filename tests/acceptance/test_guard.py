"""Too many deletions wait for a person, who approves exactly what they saw; and a plan can be seen before the merge."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.installation import Installation, installation, until
from tests.acceptance.repository import Repository, service

pytestmark = pytest.mark.acceptance
NAMES = tuple(f"n{i}" for i in range(6))


@pytest.fixture(scope="module")
def ground() -> Iterator[Installation]:
    """Small limits for kinds and sites; that of Sources is the usual one."""
    limits: list[dict[str, Any]] = [{"scope": "source", "count": 25, "share": 0.3, "floor": 1}]
    limits += [{"scope": "site", "count": 3, "window": 5}, {"scope": "kind", "count": 40, "window": 5}]
    with installation("cnaf", limits=limits) as found:
        found.apply(found.document("Namespace", "alpha", {"group": "experiments/alpha"}))
        yield found


def declared(ground: Installation, source: str) -> Repository:
    """A Source with six services."""
    repository = ground.source(source)
    files = {f"{source}-{n}.yaml": service(f"{source}-{n}") for n in NAMES}
    ground.applied(source, repository.push(files))
    return repository


def held(ground: Installation, scope: str, count: int) -> dict[str, Any]:
    """The held plan of a scope, once it has so many changes."""

    def found() -> Any:
        plans = [p for p in ground.ok("GET", "/api/v1/plans?state=held")["items"] if p["scope"] == scope]
        return plans[0] if plans and len(plans[0]["changes"]) == count else None

    return dict(until(found, f"{count} changes are held in {scope}", told=lambda: ground.ground("plan").stdout))


def left(ground: Installation, source: str) -> set[str]:
    names = {d["metadata"]["name"] for d in ground.list("services", "alpha") if not d["metadata"]["deletionTimestamp"]}
    return {n.removeprefix(f"{source}-") for n in names if n.startswith(f"{source}-")}


def files(source: str, *names: str) -> list[str]:
    return [f"{source}-{n}.yaml" for n in names]


def test_a_commit_that_deletes_five_of_six_waits_for_its_digest(ground: Installation) -> None:
    repository = declared(ground, "five")
    repository.push({"five-n0.yaml": service("five-n0", note="new")}, remove=files("five", *NAMES[1:]))
    plan = held(ground, "source:five", 5)
    until(lambda: ground.need("services", "five-n0", "alpha")["spec"]["env"], "what destroys nothing goes on")
    assert left(ground, "five") == set(NAMES)
    said = ground.until_ready("sources", "five", status="False")
    assert said["reason"] in ("Held", "Applying"), said
    assert ground.condition("sources", "five", type_="Held")["status"] == "True"
    shown = ground.ground("plan", "show", plan["id"])
    assert all(f"five-{n}" in shown.stdout for n in NAMES[1:]), shown.stdout + shown.stderr
    refused = ground.ground("approve", plan["id"], "--digest", "sha256:" + "0" * 64, "--reason", "no look")
    assert refused.returncode == 5, refused.stderr
    approved = ground.ground("approve", plan["id"], "--digest", plan["digest"], "--reason", "rack 4 goes")
    assert approved.returncode == 0, approved.stderr
    until(lambda: left(ground, "five") == {"n0"}, "it is done")
    ground.until_ready("sources", "five")
    (entry,) = ground.ok("GET", "/api/v1/audit?verb=approved")["items"]
    assert (entry["subject"], entry["detail"]["reason"]) == ("user:admin", "rack 4 goes")


def test_a_plan_that_grew_is_not_the_one_that_was_approved(ground: Installation) -> None:
    repository = declared(ground, "grown")
    repository.push(remove=files("grown", "n1", "n2", "n3"))
    before = held(ground, "source:grown", 3)
    repository.push(remove=files("grown", "n4"))
    after = held(ground, "source:grown", 4)
    answer = ground.call("POST", f"/api/v1/plans/{before['id']}/approve", {"digest": before["digest"], "reason": "old"})
    assert answer.status == 409, answer.message
    assert "PlanChanged" in answer.message
    assert left(ground, "grown") == set(NAMES)
    ground.ok("POST", f"/api/v1/plans/{after['id']}/approve", {"digest": after["digest"], "reason": "looked again"})
    until(lambda: left(ground, "grown") == {"n0", "n5"}, "it is done")
    repository.push(remove=files("grown", "n5"))
    assert held(ground, "source:grown", 1)["changes"][0]["target"]["id"] == "alpha/grown-n5", "anything added waits"


def test_what_was_held_is_dropped_when_the_commit_is_taken_back(ground: Installation) -> None:
    repository = declared(ground, "back")
    repository.push(remove=files("back", "n1", "n2", "n3"))
    held(ground, "source:back", 3)
    repository.git("revert", "--no-edit", "HEAD")
    ground.applied("back", repository.push())
    assert not [p for p in ground.ok("GET", "/api/v1/plans")["items"] if p["scope"] == "source:back"]
    ground.until_ready("sources", "back")
    assert ground.condition("sources", "back", type_="Held")["status"] == ""


def test_a_bound_lets_so_many_pass_and_no_more(ground: Installation) -> None:
    repository = declared(ground, "bound")
    repository.push(remove=files("bound", "n1", "n2"))
    plan = held(ground, "source:bound", 2)
    until_ = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 600))
    said = ground.ground("approve", plan["id"], "--up-to", "3", "--until", until_, "--reason", "moving out")
    assert said.returncode == 0, said.stderr
    until(lambda: left(ground, "bound") == {"n0", "n3", "n4", "n5"}, "two pass")
    repository.push(remove=files("bound", "n3", "n4"))
    held(ground, "source:bound", 1)
    assert len(left(ground, "bound")) == 3


def test_what_is_refused_stays_until_somebody_approves_it_after_all(ground: Installation) -> None:
    repository = declared(ground, "no")
    repository.push(remove=files("no", "n1", "n2", "n3"))
    plan = held(ground, "source:no", 3)
    assert ground.ground("refuse", plan["id"], "--reason", "wrong selector").returncode == 0
    ground.ok("POST", ground.path("sources", "no") + "/actions/sync", {})
    until(lambda: "wrong selector" in held(ground, "source:no", 3)["reason"], "why is told")
    assert "wrong selector" in ground.condition("sources", "no", type_="Held")["message"]
    assert left(ground, "no") == set(NAMES)
    plan = held(ground, "source:no", 3)
    ground.ok("POST", f"/api/v1/plans/{plan['id']}/approve", {"digest": plan["digest"], "reason": "right after all"})
    until(lambda: left(ground, "no") == {"n0", "n4", "n5"}, "it is done")


def test_scaling_down_too_far_at_once_waits_too(ground: Installation) -> None:
    ground.service("wide", replicas=6, command=["/bin/sleep", "1000"], ports={}, health={}, stopGrace=0)
    ground.until_ready("services", "wide", "alpha")
    ground.patch("services", "wide", "alpha", replicas=1)
    try:
        plan = held(ground, "site:cnaf", 5)
    except AssertionError:
        print(ground.ground("describe", "service", "wide", "-n", "alpha").stdout, len(ground.running()))
        print(ground.log("server"))
        raise
    assert "site cnaf" in plan["reason"]
    time.sleep(1.0)
    assert len(ground.units("wide")) == 6
    ground.ok("POST", f"/api/v1/plans/{plan['id']}/approve", {"digest": plan["digest"], "reason": "quiet season"})
    until(lambda: len(ground.running()) == 1, "it is done")
    ground.delete("services", "wide", "alpha")
    until(lambda: not ground.running(), "it is gone")


def test_a_plan_is_seen_before_the_merge(ground: Installation) -> None:
    repository = declared(ground, "merge")
    tree: Path = repository.clone

    def plan(*options: str, source: str = "merge") -> Any:
        return ground.ground("plan", "--source", ".", "--as", source, "--against", "main", *options, cwd=tree)

    same = plan()
    assert same.returncode == 0, same.stdout + same.stderr
    repository.write({"merge-n0.yaml": service("merge-n0", note="new"), "merge-new.yaml": service("merge-new")})
    for option, words in (("text", "merge-new"), ("markdown", "merge-new"), ("json", "merge-new")):
        said = plan("-o", option)
        assert said.returncode == 2, said.stdout + said.stderr
        assert words in said.stdout
        assert "NOTE" in said.stdout
    found = json.loads(plan("-o", "json").stdout)
    assert {(c["verb"], c["target"]["id"]) for c in found["changes"]} == {
        ("update", "alpha/merge-n0"),
        ("create", "alpha/merge-new"),
    }
    assert plan("-o", "markdown").stdout.startswith("### ")
    repository.write({}, remove=files("merge", "n1", "n2", "n3"))
    said = plan()
    assert said.returncode == 3, said.stdout + said.stderr
    repository.write({"bad.yaml": service("bad", replicaz="1")})
    said = plan("-o", "markdown")
    assert said.returncode == 1, said.stdout + said.stderr
    assert "bad.yaml" in said.stdout + said.stderr
    assert "replicaz" in said.stdout + said.stderr
    assert left(ground, "merge") == set(NAMES), "nothing was changed by looking"
    assert ground.ground("plan", "--source", ".", "--as", "nobody", "--against", "main", cwd=tree).returncode == 4
