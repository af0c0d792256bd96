"""A change goes through the federation in waves: a canary, then one service of each site, and a site that goes dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from groundcontrol.kernel.errors import Unavailable
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from tests.federation import Federation

SITES = ("bari", "cnaf", "recas")
CALLS = ("look", "wait", "get", "create", "update", "start", "stop", "delete", "find")
TARGET = {"kind": "Service", "name": "${inputs.service}"}
ROLL_OUT: Doc = {
    "inputs": {"service": {"type": "resource", "kind": "Service"}, "version": {}},
    "steps": [
        {"name": "change", "act": {"set": {**TARGET, "fields": {"spec.env.VERSION": "${inputs.version}"}}}},
        {
            "name": "well",
            "wait": {
                **TARGET,
                "until": "timestamp(resource.status.progressSince) >= timestamp(steps.change.started) && "
                "resource.status.goodRevision == resource.status.revision",
                "timeout": 600,
            },
        },
    ],
}
OVER = {
    "kind": "Service", "labelSelector": "tier=front", "waves": ["1", "100%"], "between": "ask", "onFailure": "ask",
    "spread": {"by": "spec.placement.sites"},
}  # fmt: skip


def said(fed: Federation, verb: str, run: str, **body: Any) -> None:
    """The person on duty says something about a Run."""
    act = next(c.actions["Run", verb] for c in fed.runtime.capabilities if ("Run", verb) in c.actions)
    act(fed.runtime, Subject.user("ada"), Key("Run", "alpha", run), body)


def versions(fed: Federation) -> dict[str, str]:
    """Service to the version that runs, looked up at the hosts."""
    running = {unit.id: unit.spec.env.get("VERSION", "") for unit in fed.units()}
    found = {}
    for name in [d["metadata"]["name"] for d in fed.all("Service")]:
        units = [d["status"].get("unit", "") for d in fed.instances(name)]
        found[name] = "/".join(sorted(running[u] for u in units if u in running))
    return found


def status(fed: Federation, run: str = "front-2") -> Doc:
    found: Doc = (fed.get("Run", run, "alpha") or {"status": {}})["status"]
    return found


def waits(fed: Federation, words: str) -> Callable[[], bool]:
    return lambda: status(fed).get("phase") == "Waiting" and words in status(fed)["message"]


def test_a_change_in_waves_meets_a_site_that_goes_dark(fed: Federation) -> None:
    # Afternoon: six services, two at each site, are to get version 2: one canary, then at most one of a site.
    labels = {"labels": {"tier": "front"}}
    for number in range(6):
        spec = {"sample": "web", "ports": {"http": 80}, "health": {"kind": "http"}, "env": {"VERSION": "1"}}
        spec |= {"placement": {"sites": [SITES[number % 3]]}}
        fed.apply("Service", f"f{number}", spec, "alpha", **labels)
    fed.until(lambda: set(versions(fed).values()) == {"1"} and len(versions(fed)) == 6, "all run version 1")
    fed.apply("Procedure", "roll-out", ROLL_OUT, "alpha")
    fed.apply("Run", "front-2", {"procedure": "roll-out", "inputs": {"version": "2"}, "over": OVER}, "alpha")

    # The canary is well, and somebody says go on.
    fed.until(waits(fed, "wave 1 of 3: 1 done"), "it asks")
    assert versions(fed) == {"f0": "2", **{f"f{n}": "1" for n in range(1, 6)}}
    said(fed, "approve", "front-2", reason="f0 answers")

    # f0 is at bari, so the second wave is f1, f2 and f3, one at each site.
    fed.until(waits(fed, "wave 2 of 3: 3 done"), "it asks again")
    assert {name for name, version in versions(fed).items() if version == "2"} == {"f0", "f1", "f2", "f3"}

    # Before the last wave a line dies: cnaf does not answer. f5 becomes well, f4 is there and does not.
    def silent(*_: object, **__: object) -> None:
        raise Unavailable("cnaf does not answer")

    for call in CALLS:
        setattr(fed.hosts["cnaf"], call, silent)
    fed.until(lambda: fed.ready("Site", "cnaf") == ("Unknown", "Unreachable"), "it is noticed")
    said(fed, "approve", "front-2")
    fed.until(lambda: status(fed)["waves"][2]["done"] == 1, "f5 is well")
    assert status(fed)["phase"] == "Running", "what cannot be seen is not taken for broken"
    (stuck,) = [d["metadata"]["name"] for d in fed.all("Run") if d["status"]["phase"] == "Running"
                and d["metadata"]["labels"].get("ground/parent") == "front-2"]  # fmt: skip

    # Evening: the person on duty does not wait for the provider, and ends the Run of f4.
    said(fed, "cancel", stuck, reason="the line to cnaf is cut")
    fed.until(lambda: status(fed)["phase"] == "Failed", "it is over, and not well")
    assert "1 of 6 failed, more than 0" in status(fed)["message"]
    assert [failure.partition(":")[0] for failure in status(fed)["failures"]] == ["alpha/f4"]
    assert [(w["done"], w["failed"]) for w in status(fed)["waves"]] == [(1, 0), (3, 0), (1, 1)]

    # Night: the line is mended. The Run of f4 is resumed where it was, and nothing else is touched.
    starts = {unit.id: unit.starts for unit in fed.units("bari", "recas")}
    for call in CALLS:
        delattr(fed.hosts["cnaf"], call)
    fed.until_ready("Site", "cnaf")
    said(fed, "resume", stuck, reason="cnaf is back")
    fed.until(lambda: status(fed, stuck)["phase"] == "Succeeded", "the last one is well")
    assert set(versions(fed).values()) == {"2"}
    assert {unit.id: unit.starts for unit in fed.units("bari", "recas")} == starts
