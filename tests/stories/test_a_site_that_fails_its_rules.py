"""The accounting of a site goes silent: nothing new goes there and it says why; it is mended, and used again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from groundcontrol.kernel.rights import Subject
from groundcontrol.ports.web import Answered
from groundcontrol.programs.wiring import status
from tests.federation import Federation, federation

WELL = Answered(status=200, expires=4_000_000_000.0)
URLS = {n: f"https://accounting.example.org/{n}" for n in ("cnaf", "bari")}


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path, joining={"every_seconds": 1}) as found:
        found.web.answers |= dict.fromkeys(URLS.values(), WELL)
        found.sites("cnaf", "bari", state="candidate")
        yield found


def placeable(fed: Federation, name: str) -> tuple[str, str]:
    return fed.ready("Site", name, type_="Placeable")


def why(fed: Federation) -> str:
    service = fed.get("Service", "late", "alpha") or {"status": {"conditions": []}}
    return str(next((c["message"] for c in service["status"]["conditions"] if c["type"] == "Ready"), ""))


def test_a_site_fails_its_rule_is_not_used_and_says_why_is_mended_and_used_again(fed: Federation) -> None:
    rule = {"name": "accounting", "url": "https://accounting.example.org/{site}"}
    fed.apply("JoinPolicy", "federation", {"urls": [rule]})
    for name in URLS:
        fed.until(lambda name=name: fed.ready("Site", name, type_="Joined")[0] == "True")  # type: ignore[misc]
        fed.apply("Site", name, {"driver": "memory", "state": "active"})
    fed.until(lambda: all(placeable(fed, n) == ("True", "Joined") for n in URLS))

    fed.service("web", placement={"sites": ["bari"]})
    fed.until_ready("Service", "web", "alpha")

    # The accounting of bari is gone. What runs there goes on; what is new does not go there, and says why.
    fed.web.answers[URLS["bari"]] = Answered(problem="no answer in time")
    fed.until(lambda: placeable(fed, "bari") == ("False", "NotJoined"))
    fed.service("late", placement={"sites": ["bari"]})
    fed.until(lambda: fed.ready("Service", "late", "alpha") == ("False", "Unplaceable"))
    assert "rules of JoinPolicy federation do not hold: url accounting" in why(fed)
    assert "no answer in time" not in why(fed), "what was seen is for those who may read the site"
    told = next(c for c in fed.get("Site", "bari")["status"]["conditions"] if c["type"] == "Placeable")  # type: ignore[index]
    assert "no answer in time" in told["message"]
    (wrong,) = [w for w in status(fed.runtime, Subject.user("ada"))["wrong"] if w["kind"] == "Site"]
    assert (wrong["name"], wrong["reason"]) == ("bari", "NotJoined")
    fed.service("anywhere")
    fed.until_ready("Service", "anywhere", "alpha")
    assert {d["spec"]["site"] for d in fed.instances("anywhere")} == {"cnaf"}
    (unit,) = fed.units("bari")
    fed.hosts["bari"].kill(unit.id)
    fed.until(lambda: [u.starts for u in fed.units("bari")] == [2], "what is there is still looked after")
    assert fed.ready("Service", "web", "alpha")[0] != "Unknown"

    # Mended: nobody has to do anything but mend it.
    fed.web.answers[URLS["bari"]] = WELL
    fed.until(lambda: placeable(fed, "bari") == ("True", "Joined"))
    fed.until_ready("Service", "late", "alpha")
    assert {d["spec"]["site"] for d in fed.instances("late")} == {"bari"}
