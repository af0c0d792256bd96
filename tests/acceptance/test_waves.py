"""Twelve services over three sites are restarted in waves, and the server dies in the middle: each exactly once."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.acceptance.installation import Installation, installation, until

pytestmark = pytest.mark.acceptance
SITES = ("bari", "cnaf", "recas")
NAMES = [f"s{n:02}" for n in range(12)]
RESTARTED = "ground/restarted-at"
CHECK = (
    f"'{RESTARTED}' in resource.metadata.annotations && !('{RESTARTED}' in before.annotations && "
    f"before.annotations['{RESTARTED}'] == resource.metadata.annotations['{RESTARTED}'])"
)
WELL = (
    "timestamp(resource.status.progressSince) >= timestamp(steps.restart.started) && "
    "resource.status.goodRevision == resource.status.revision"
)
TARGET = {"kind": "Service", "name": "${inputs.service}"}
RESTART = {
    "inputs": {"service": {"type": "resource", "kind": "Service"}},
    "steps": [
        {"name": "restart", "act": {**TARGET, "verb": "restart"}, "onUnknown": "check", "check": CHECK},
        {"name": "well", "wait": {**TARGET, "until": WELL, "timeout": 120}},
    ],
}
OVER = {
    "kind": "Service", "labelSelector": "tier=web", "waves": ["1", "4", "100%"], "concurrency": 2,
    "spread": {"by": "spec.placement.sites", "most": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def ground() -> Iterator[Installation]:
    """Twelve services, four at each of three sites, all of them well."""
    with installation(*SITES, limits=[{"scope": "all", "count": 100_000}]) as found:
        found.apply(found.document("Namespace", "alpha", {"group": "experiments/alpha"}))
        check = {"kind": "http", "path": "/healthz", "interval": 0.2, "timeout": 1, "failures": 2}
        for number, name in enumerate(NAMES):
            spec = {"sample": "web", "ports": {"http": 8080}, "health": check, "resources": {"cores": 0.05}}
            spec["placement"] = {"sites": [SITES[number % 3]]}
            found.apply(found.document("Service", name, spec, "alpha", labels={"tier": "web"}))
        for name in NAMES:
            found.until_ready("services", name, "alpha")
        found.apply(found.document("Procedure", "restart", RESTART, "alpha"))
        found.until_ready("procedures", "restart", "alpha")
        yield found


@contextmanager
def witness(ground: Installation) -> Iterator[dict[str, set[int]]]:
    """Whoever looks into /proc all the time: unit to the pids it was ever seen with."""
    seen: dict[str, set[int]] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for unit in ground.running():
                seen.setdefault(unit.unit, set()).add(unit.pid)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def status(ground: Installation, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ground.need("runs", name, "alpha")["status"]
    return found


def restarts(ground: Installation) -> list[str]:
    """The services that were restarted, in order, as the audit has it."""
    items = ground.ok("GET", "/api/v1/audit?kind=Service&namespace=alpha&verb=restart&limit=1000")["items"]
    done = sorted((e for e in items if (e["verb"], e["outcome"]) == ("restart", "done")), key=lambda e: e["seq"])
    return [e["name"] for e in done]


def test_killed_in_the_middle_of_the_second_wave(ground: Installation) -> None:
    said = ground.ok("POST", ground.path("procedures", "restart", "alpha") + "/actions/preview", {"over": OVER})
    planned = [wave["targets"] for wave in said["waves"]]
    assert [len(wave) for wave in planned] == [1, 4, 6, 1]
    assert all(max(wave["domains"].values()) <= 2 for wave in said["waves"])
    before = {unit.unit for unit in ground.running()}
    assert len(before) == 12
    with witness(ground) as seen:
        ground.apply(ground.document("Run", "all", {"procedure": "restart", "over": OVER}, "alpha"))

        def in_the_middle() -> bool:
            now = status(ground, "all")
            second = now["waves"][1] if now.get("waves") else {}
            return now.get("wave") == 2 and second["done"] >= 1 and second["left"] + second["underWay"] >= 1

        until(in_the_middle, "some of the second wave are done", told=lambda: json.dumps(status(ground, "all")))
        ground.kill_server()
        ground.serve()
        until(
            lambda: status(ground, "all")["phase"] == "Succeeded",
            "all are restarted",
            120,
            told=lambda: json.dumps([d["status"] for d in ground.list("runs", "alpha")]),
        )
        for name in NAMES:
            ground.until_ready("services", name, "alpha")
    assert [(w["size"], w["done"], w["failed"], w["left"]) for w in status(ground, "all")["waves"]] == [
        (len(wave), len(wave), 0, 0) for wave in planned
    ]
    order = restarts(ground)
    assert Counter(order) == Counter(NAMES), "each exactly once"
    for wave in planned:
        assert sorted(order[: len(wave)]) == sorted(wave), "and no wave before the one before it"
        del order[: len(wave)]
    after = {unit.unit for unit in ground.running()}
    assert len(after) == 12
    assert not before & after, "every one of them is new"
    assert set(seen) == before | after, "one old and one new process for each, and never another"
    assert {unit: len(pids) for unit, pids in seen.items()} == dict.fromkeys(seen, 1)
    runs = [d for d in ground.list("runs", "alpha") if d["metadata"]["labels"].get("ground/parent") == "all"]
    assert Counter(d["spec"]["inputs"]["service"] for d in runs) == Counter(NAMES), "one Run for each"


def test_the_command_line_tells_it(ground: Installation) -> None:
    words = ("run", "start", "restart", "-n", "alpha", "--over", "Service", "-l", "tier=web", "--waves", "2,100%")
    said = ground.ground(*words, "--dry-run")
    assert said.returncode == 0, said.stderr
    assert "restart would go over 12 targets in 2 waves" in said.stdout
    done = len(restarts(ground))
    said = ground.ground(*words, "--name", "asked", "--ask", "between")
    assert said.returncode == 0, said.stderr
    until(lambda: status(ground, "asked").get("phase") == "Waiting", "it asks")
    described = ground.ground("describe", "run", "asked", "-n", "alpha").stdout
    assert "wave 1 of 2: 2 done. Go on with wave 2 (10 targets)?" in described
    assert ground.ground("run", "refuse", "asked", "-n", "alpha", "--reason", "enough").returncode == 0
    until(lambda: status(ground, "asked")["phase"] == "Failed", "it is over")
    assert len(restarts(ground)) == done + 2
    assert "Left" in ground.ground("run", "show", "asked", "-n", "alpha").stdout.title()


def test_for_those_who_may(ground: Installation) -> None:
    preview = ground.path("procedures", "restart", "alpha") + "/actions/preview"
    create = ground.path("runs", "", "alpha")
    viewer = ground.person("vic", "experiments/alpha", "alpha", "viewer")
    member = ground.person("mia", "experiments/alpha", "alpha", "member")
    stranger = ground.person("sam", "experiments/beta", "beta", "member")
    run = ground.document("Run", "theirs", {"procedure": "restart", "over": {**OVER, "between": "ask"}}, "alpha")
    for token, status_ in ((viewer, 403), (stranger, 404)):
        assert ground.call("POST", preview, {"over": OVER}, token=token).status == status_
        assert ground.call("POST", create, run, token=token).status == status_
    assert ground.ok("POST", preview, {"over": OVER}, token=member)["targets"] == 12
    before = len(restarts(ground))
    ground.ok("POST", create, run, token=member)
    until(lambda: status(ground, "theirs").get("phase") == "Waiting", "it asks")
    answer = ground.call("POST", f"{create}/theirs/actions/approve", token=member)
    assert answer.status == 403, "whoever starts it does not thereby answer it"
    ground.ok("POST", f"{create}/theirs/actions/cancel", token=member)
    until(lambda: status(ground, "theirs")["phase"] == "Cancelled", "it ends")
    assert len(restarts(ground)) == before + 1
    assert {e["subject"] for e in ground.ok("GET", "/api/v1/audit?kind=Service&verb=restart&limit=1000")["items"]
            if e["outcome"] == "done"} == {"user:admin", "user:mia"}  # fmt: skip


@pytest.mark.parametrize(
    "over",
    [
        {}, [], "Service", {"kind": ""}, {"kind": "Service", "waves": []}, {"kind": "Service", "waves": ["0%"]},
        {"kind": "Service", "waves": [1]}, {"kind": "Service", "waves": ["9" * 5000]}, {"kind": "Nothing"},
        {"kind": "Service", "labelSelector": "(((" * 200}, {"kind": "Service", "spread": {"by": "../../etc"}},
        {"kind": "Service", "spread": {"by": "spec.a", "most": -1}}, {"kind": "Service", "maxFailures": "-1"},
        {"kind": "Service", "input": "${inputs.service}"}, {"kind": "Service", "namespace": "*"},
        {"kind": "Run"}, {"kind": "Service", "extra": 1}, {"kind": "Secret", "input": "service"},
        {"kind": "Service", "labelSelector": "tier=none"}, {"kind": "Service", "pause": "soon"},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_field(ground: Installation, over: Any) -> None:
    preview = ground.path("procedures", "restart", "alpha") + "/actions/preview"
    answer = ground.call("POST", preview, {"over": over})
    assert answer.status == 422, answer.message
    assert "over" in answer.message
