"""Changes reach running services while somebody uses them, and bad ones are taken back."""

from __future__ import annotations

import pytest

from tests.acceptance.client import asking
from tests.acceptance.installation import Installation, until

pytestmark = pytest.mark.acceptance


def versions(ground: Installation) -> list[str]:
    """VERSION of every process that runs."""
    return sorted(u.env.get("VERSION", "") for u in ground.running())


def web(ground: Installation, version: str, strategy: str, replicas: int = 2, sample: str = "web", **env: str) -> None:
    update = {"strategy": strategy, "deadline": 2}
    ground.service("web", sample=sample, replicas=replicas, env={"VERSION": version, **env}, update=update)


@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
def test_nobody_is_turned_away_while_a_change_goes_in(alpha: Installation, strategy: str) -> None:
    web(alpha, "1", strategy)
    alpha.until_ready("services", "web", "alpha")
    with asking(alpha, "web") as client:
        for version in ("2", "3"):
            web(alpha, version, strategy)
            until(lambda version=version: versions(alpha) == [version] * 2, f"only {version} runs")
            alpha.until_ready("services", "web", "alpha")
        until(lambda: client.versions[-1:] == ["3"] and client.answers > 20, "the client meets the last version")
    until(lambda: [i["status"]["starts"] for i in alpha.instances("web")] == [1, 1], "two instances, started once")


def test_a_rolling_change_goes_one_by_one_and_blue_green_all_at_once(alpha: Installation) -> None:
    web(alpha, "1", "rolling", 3)
    alpha.until_ready("services", "web", "alpha")
    most = 0
    web(alpha, "2", "rolling", 3)
    while versions(alpha) != ["2"] * 3:
        most = max(most, len(alpha.running()))
    assert most <= 4, "one more than wanted at most"
    alpha.until_ready("services", "web", "alpha")
    seen = []
    web(alpha, "3", "blue-green", 3)
    while (now := versions(alpha)) != ["3"] * 3:
        seen.append(now)
    assert not [s for s in seen if "2" in s and s.count("2") < 3 and s.count("3") < 3], (
        "old ones stay until all are new"
    )


@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
def test_a_bad_change_is_rolled_back_by_itself_and_nobody_notices(alpha: Installation, strategy: str) -> None:
    web(alpha, "1", strategy)
    alpha.until_ready("services", "web", "alpha")
    good = {u.pid for u in alpha.running()}
    with asking(alpha, "web") as client:
        web(alpha, "2", strategy, sample="flaky", SECONDS="0")
        until(lambda: "2" in versions(alpha), "the bad one is tried")
        alpha.until_ready("services", "web", "alpha", status="False", reason="RolledBack")
        until(lambda: {u.pid for u in alpha.running()} == good, "what was good is all that runs")
        assert alpha.condition("services", "web", "alpha", "Available")["status"] == "True"
        assert alpha.events("Service", "web", "alpha", "RolledBack")
        web(alpha, "3", strategy)
        alpha.until_ready("services", "web", "alpha")
        until(lambda: versions(alpha) == ["3"] * 2, "the next change goes in")
        until(lambda: client.answers > 20)
    assert "2" not in client.versions, "an unhealthy instance is nobody's endpoint"
    assert not alpha.condition("services", "web", "alpha", "RolledBack")["status"]


def test_a_change_that_ends_at_once_is_rolled_back_without_a_health_check(alpha: Installation) -> None:
    given = {"ports": {}, "health": {"kind": "none"}, "update": {"deadline": 2}, "stopGrace": 0}
    alpha.service("job", command=["/bin/sleep", "1000"], **given)
    alpha.until_ready("services", "job", "alpha")
    (good,) = alpha.running()
    alpha.service("job", command=["/bin/sleep", "0.4"], **given)
    alpha.until_ready("services", "job", "alpha", status="False", reason="RolledBack")
    until(lambda: [u.pid for u in alpha.running()] == [good.pid], "what was good is all that runs")
    assert not alpha.events("Instance", good.unit, "alpha", "Stopped")


def test_files_and_limits_change_in_place(alpha: Installation) -> None:
    alpha.service("web", files={"message.txt": "one"}, resources={"cores": 0.1, "openFiles": 256})
    alpha.until_ready("services", "web", "alpha")
    (unit,) = alpha.running()
    alpha.service("web", files={"message.txt": "two"}, resources={"cores": 0.1, "openFiles": 200})
    until(lambda: (unit.directory / "message.txt").read_text() == "two", "the file is new")
    alpha.until_ready("services", "web", "alpha")
    assert [u.pid for u in alpha.running()] == [unit.pid]
    (instance,) = alpha.instances("web")
    assert not alpha.events("Instance", instance["metadata"]["name"], "alpha", "DriftCorrected"), "no hand was at work"
