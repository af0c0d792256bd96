"""describe, explain, kinds, status, logs, events and audit: what people read when something is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import Answer, FakeApi


def ago(**parts: int) -> str:
    return (datetime.now(UTC) - timedelta(**parts)).isoformat()


@pytest.fixture
def web(api: FakeApi) -> None:
    api.put(
        "Service",
        "web",
        "alpha",
        spec={"image": "nginx"},
        metadata={
            "generation": 3,
            "creationTimestamp": ago(minutes=3, seconds=12),
            "managers": {"spec.image": "source:platform", "spec.replicas": "user:ada"},
            "labels": {"tier": "front"},
        },
        status={
            "observedGeneration": 2,
            "lastLooked": ago(seconds=8),
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "NoSite", "message": "bari is \x1b[31mdark",
                 "lastTransitionTime": ago(hours=5, minutes=2)},
                {"type": "Placed", "status": "Unknown"},
            ],
        },
    )  # fmt: skip
    api.plans.append(
        {
            "id": "p-7",
            "scope": "source:platform",
            "state": "held",
            "digest": "sha256:aa",
            "reason": "3 deletions, 2 allowed",
            "since": ago(minutes=9),
            "changes": [
                {"target": {"driver": "store", "type": "Instance", "id": "alpha/web-0"}, "verb": "delete", "fields": {},
                 "owner": "Service alpha/web", "destructive": True},
                {"target": {"driver": "store", "type": "Instance", "id": "beta/db-0"}, "verb": "delete", "fields": {},
                 "owner": "Service beta/db", "destructive": True},
            ],
        }
    )  # fmt: skip
    about = {"kind": "Service", "namespace": "alpha", "name": "web", "uid": "u"}
    api.events = [
        {"seq": 5, "time": ago(hours=3), "type": "Normal", "reason": "Started", "message": "hello", **about},
        {"seq": 9, "time": ago(minutes=2), "type": "Warning", "reason": "Lost", "message": "no answer", **about},
    ]


@pytest.mark.usefixtures("web")
def test_describe_says_it_in_words(ground: Ground) -> None:
    found = ground("describe", "service", "web", "-n", "alpha").out
    for line in (
        "Created:     3m12s ago",
        "Labels:      tier=front",
        "  image: nginx",
        "  Ready: no since 5h2m, NoSite: bari is \\x1b[31mdark",
        "  Placed: not known",
        "  last looked 8s ago",
        "  all this is about generation 2; generation 3 has not been looked at",
        "  source:platform: spec.image",
        "  user:ada: spec.replicas",
        "Held plan: p-7 since 9m: 3 deletions, 2 allowed",
        "  delete Instance alpha/web-0",
        "  2m    Warning   Lost      no answer",
    ):
        assert line in found
    assert "beta/db-0" not in found
    assert "\x1b" not in found


@pytest.mark.usefixtures("web")
def test_describe_shows_the_rest_when_plans_are_not_ours_to_see(ground: Ground, api: FakeApi) -> None:
    api.fail("GET", "/plans", Answer(403, "Forbidden", "plans are for operators"))
    found = ground("describe", "service/alpha/web")
    assert found.code == 0
    assert "Held plans: cannot be shown: plans are for operators" in found.out


def test_explain_reads_the_schema(ground: Ground) -> None:
    assert ground("explain", "svc.spec").out.splitlines() == [
        "KIND:     Service (ground/v1)",
        "FIELD:    spec <object>  (required)",
        "",
        "  What is wanted.",
        "",
        "FIELDS:",
        "  image <string> required",
        "      What to run.",
        "  replicas <integer>",
        "      How many.",
        "  policy <object>",
        "      Where.",
        "  ports <list of object>",
    ]
    one = ground("explain", "service.spec.replicas").out
    assert "default: 1" in one
    assert "at least 0" in one
    assert "site | rack" in ground("explain", "service.spec.policy.spread").out
    assert "number <integer>" in ground("explain", "service", "--recursive").out
    wrong = ground("explain", "service.spec.replica")
    assert wrong.code == 4
    assert 'did you mean "replicas"?' in wrong.err


def test_kinds_are_listed(ground: Ground) -> None:
    assert ground("kinds", "-o", "name").out.split() == ["instances", "namespaces", "runs", "services", "sites"]
    assert "svc" in ground("kinds").out


def test_status_says_what_is_wrong_since_when_and_what_waits(ground: Ground, api: FakeApi) -> None:
    assert "All is well." in ground("status").out
    site = api.put("Site", "bari", spec={})
    site["status"] = {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NoAnswer",
                                      "message": "timed out",
                                      "lastTransitionTime": ago(minutes=3, seconds=12)}]}  # fmt: skip
    api.status["kinds"] = {"Site": {"True": 2, "False": 0, "Unknown": 1}}
    api.status["sites"] = {"reachable": 2, "unreachable": 1}
    api.status["plans"] = [{"id": "p-7", "scope": "source:x", "since": ago(hours=1), "reason": "too many"}]
    api.status["incidents"] = [{"name": "inc-1", "title": "Bari is dark", "since": ago(minutes=4)}]
    found = ground("status", "--exit-code")
    assert found.code == 1
    text = " ".join(found.out.split())
    assert "site/bari Unknown 3m12s NoAnswer: timed out" in text
    assert "p-7 source:x 1h too many" in text
    assert "inc-1 Bari is dark 4m" in text
    assert "Site 2 0 1" in text
    assert "sites: reachable 2, unreachable 1" in found.out


def test_logs_cannot_drive_the_terminal(ground: Ground, api: FakeApi) -> None:
    api.put("Service", "web", "alpha")
    api.logs = [b"one\r\ntwo \x1b[2J\xc2\x9b \xe2\x82\xac\ttab \xff\n"]
    found = ground("logs", "web")
    assert found.out == "one\ntwo \\x1b[2J\\x9b €\ttab \ufffd\n"
    assert api.sent("GET", "/namespaces/alpha/services/web/log")[0].query["index"] == "0"
    api.logs = [b"a\x1b\n"]
    assert ground("logs", "service/alpha/web", "--raw").out == "a\x1b\n"


def test_a_log_is_taken_up_where_it_broke_off(ground: Ground, api: FakeApi) -> None:
    api.logs = [b"1\n2\n3\n4\n", b"5\n<cut>", Answer(503, "Unavailable", "moving"), b"6\n"]
    found = ground("logs", "web", "-n", "alpha", "-f", "--tail", "2", "--index", "1")
    assert (found.code, found.out) == (0, "3\n4\n5\n6\n")
    asked = [(r.query.get("offset"), r.query.get("follow")) for r in api.requests if r.path.endswith("/log")]
    assert asked == [(None, None), ("8", "true"), ("10", "true"), ("10", "true")]


@pytest.mark.usefixtures("web")
def test_the_timeline(ground: Ground, api: FakeApi) -> None:
    assert [line.split()[:3] for line in ground("events").out.splitlines()] == [
        ["AGE", "TYPE", "OBJECT"],
        ["3h", "Normal", "Service"],
        ["2m", "Warning", "Service"],
    ]
    assert [e["seq"] for e in ground("events", "--warnings", "-o", "json").json] == [9]
    assert [e["seq"] for e in ground("events", "--since", "1h", "-o", "json").json] == [9]
    ground("events", "service/web", "-n", "alpha", "--since", "7", "--limit", "5")
    assert api.requests[-1].query == {
        "kind": "Service",
        "namespace": "alpha",
        "name": "web",
        "since": "7",
        "limit": "5",
    }
    assert ground("events", "--since", "soon").code == 2


@pytest.mark.usefixtures("web")
def test_the_timeline_goes_on(ground: Ground, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            api.events.append({**api.events[-1], "seq": 12, "reason": "Back"})
        if len(naps) == 3:
            api.fail("GET", "/events", Answer(503, "Unavailable", "a moment"))
        if len(naps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("groundcontrol.interfaces.cli.happened.time", SimpleNamespace(sleep=nap))
    found = ground("events", "-w")
    assert found.code == 130
    assert len(found.out.splitlines()) == 4
    assert "Back" in found.out.splitlines()[-1]
    assert "a moment" in found.err


def test_the_audit(ground: Ground, api: FakeApi) -> None:
    api.audit = [{"seq": 1, "time": "2026-01-01T00:00:00Z", "subject": "user:ada", "verb": "delete", "kind": "Site",
                  "namespace": "", "name": "bari", "outcome": "allowed", "detail": "x\ny"}]  # fmt: skip
    found = ground("audit", "--subject", "user:ada", "--verb", "delete").out
    assert "user:ada   delete   Site bari   allowed   x\\ny" in found
    assert api.requests[-1].query["verb"] == "delete"
