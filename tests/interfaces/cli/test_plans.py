"""plan, approve, refuse and run: what waits for a person, and the answers."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from groundcontrol.interfaces.cli.failure import Failure
from groundcontrol.interfaces.cli.over import plan_in_words
from groundcontrol.interfaces.cli.plans import until_time
from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import FakeApi

CHANGE = {
    "target": {"driver": "store", "type": "Site", "id": "bari"},
    "verb": "delete",
    "fields": {},
    "destructive": True,
}


@pytest.fixture(autouse=True)
def _plan(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """One held plan, and a rendering of one line."""
    api.plans.append(
        {"id": "p-7", "scope": "source:x", "state": "held", "digest": "sha256:aa", "reason": "too many",
         "since": "2020-01-01T00:00:00Z", "changes": [CHANGE, CHANGE], "problems": []}
    )  # fmt: skip

    def render(plan: dict[str, Any], style: str, colour: bool) -> str:
        return f"{style} plan {plan['id']} of {len(plan['changes'])}{' in colour' if colour else ''}"

    view = SimpleNamespace(render=render)
    monkeypatch.setitem(sys.modules, "groundcontrol.interfaces.cli.plan_view", view)


def test_held_plans_are_listed_and_shown(ground: Ground) -> None:
    rows = [line.split() for line in ground("plan").out.splitlines()]
    assert rows[0] == ["ID", "SCOPE", "STATE", "CHANGES", "DESTRUCTIVE", "AGE", "REASON"]
    assert rows[1][:5] == ["p-7", "source:x", "held", "2", "2"]
    assert ground("plan", "list").out == ground("plan").out
    assert ground("plan", "p-7").out == "text plan p-7 of 2\n"
    assert ground("plan", "show", "p-7", "-o", "markdown").out == "markdown plan p-7 of 2\n"
    assert ground("plan", "show", "p-7", "-o", "json").json["digest"] == "sha256:aa"
    assert ground("plan", "p-8").code == 4
    assert ground("plan", "show", "a", "b").code == 2


def test_the_real_rendering_is_what_is_called(ground: Ground, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "groundcontrol.interfaces.cli.plan_view")
    api.plans[0]["changes"][0] = {**CHANGE, "target": {**CHANGE["target"], "id": "evil\x1b[2J"}}  # type: ignore[dict-item]
    for style in ("text", "markdown"):
        found = ground("plan", "show", "p-7", "-o", style).out
        assert "bari" in found
        assert "\x1b" not in found


def git(folder: Path, *words: str) -> None:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder), *words]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "sites").mkdir(parents=True)
    (folder / "sites" / "bari.yaml").write_text("old: é\n")
    (folder / "gone.yml").write_text("x: 1\n")
    (folder / "README.md").write_text("no")
    (folder / ".gitignore").write_text("ignored.yaml\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "sites" / "bari.yaml").write_text("new: é\n")
    (folder / "gone.yml").unlink()
    (folder / "untracked.yaml").write_text("y: 1\n")
    (folder / "ignored.yaml").write_text("z: 1\n")
    (tmp_path / "secret.yaml").write_text("password: 1\n")
    (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    (folder / "linked").symlink_to(tmp_path)
    return folder


def test_a_tree_is_sent_as_it_is_on_disk_and_as_it_was(ground: Ground, api: FakeApi, tree: Path) -> None:
    found = ground("plan", "--source", str(tree), "--against", "main", "--as", "platform")
    assert (found.code, found.out) == (0, "text plan  of 0\n")
    assert api.sent("POST", "/sources/plan")[0].body == {
        "source": "platform",
        "files": {"sites/bari.yaml": "new: é\n", "untracked.yaml": "y: 1\n"},
        "against": {"gone.yml": "x: 1\n", "sites/bari.yaml": "old: é\n"},
    }
    ground("plan", "--source", str(tree / "sites"), "--against", "main")
    assert api.requests[-1].body == {"files": {"bari.yaml": "new: é\n"}, "against": {"bari.yaml": "old: é\n"}}
    assert ground("plan", "--source", str(tree), "--against", "nothing").code == 2
    assert ground("plan", "--source", str(tree), "--against", "--output=x").code == 2


def test_the_exit_code_is_for_ci(ground: Ground, api: FakeApi, tree: Path) -> None:
    api.preview["changes"] = [CHANGE]
    assert ground("plan", "--source", str(tree), "-o", "json").code == 2
    api.preview["limit"] = "3 deletions, 2 allowed"
    assert ground("plan", "--source", str(tree), "-o", "json").code == 3
    api.preview["problems"] = [{"file": "sites/bari.yaml", "line": 1, "path": "old", "message": "unknown field"}]
    found = ground("plan", "--source", str(tree), "-o", "json")
    assert (found.code, "sites/bari.yaml:1: old: unknown field" in found.err) == (1, True)
    assert found.json["changes"] == [CHANGE]


def test_approving_takes_the_digest(ground: Ground, api: FakeApi) -> None:
    assert ground("approve", "p-7", "--digest", "sha256:aa", "--reason", "seen").out == "plan p-7 approved\n"
    assert api.requests[-1].body == {"digest": "sha256:aa", "reason": "seen"}
    stale = ground("approve", "p-7", "--digest", "sha256:bb")
    assert stale.code == 5
    assert "plan p-7 is now sha256:aa" in stale.err
    assert "ground plan show" in stale.err


def test_without_a_digest_nobody_is_guessed_for(ground: Ground, api: FakeApi) -> None:
    found = ground("approve", "p-7")
    assert found.code == 2
    assert "--digest" in found.err
    assert api.sent("POST") == []


def test_on_a_terminal_the_digest_shown_is_the_digest_sent(
    ground: Ground, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, True]
    monkeypatch.setattr("groundcontrol.interfaces.cli.plans.on_terminal", lambda: True)
    monkeypatch.setattr(
        "groundcontrol.interfaces.cli.plans.confirm", lambda text: "sha256:aa" in text and answers.pop(0)
    )
    assert ground("approve", "p-7").code == 1
    assert api.sent("POST") == []
    found = ground("approve", "p-7")
    assert (found.code, found.out) == (0, "text plan p-7 of 2\nplan p-7 approved\n")
    assert api.requests[-1].body == {"digest": "sha256:aa"}


def test_a_bound_instead_of_a_digest(ground: Ground, api: FakeApi) -> None:
    assert ground("approve", "p-7", "--up-to", "20").code == 2
    ground("approve", "p-7", "--up-to", "20", "--until", "2030-01-01T18:00:00+01:00", "--reason", "rack 4")
    assert api.requests[-1].body == {
        "bound": {"verb": "delete", "count": 20, "until": "2030-01-01T17:00:00Z"},
        "reason": "rack 4",
    }


def test_until_is_the_next_such_time() -> None:
    now = datetime(2026, 1, 1, 17, 30, tzinfo=UTC)
    assert until_time("18:00", now) == "2026-01-01T18:00:00Z"
    assert until_time("17:00", now) == "2026-01-02T17:00:00Z"
    assert until_time("2h", now) == "2026-01-01T19:30:00Z"
    with pytest.raises(Failure, match="not a time"):
        until_time("25:00", now)


def test_refusing_needs_a_reason(ground: Ground, api: FakeApi) -> None:
    assert ground("refuse", "p-7").code == 2
    assert ground("refuse", "p-7", "--reason", "no").out == "plan p-7 refused\n"


def test_a_run_is_started_shown_and_answered(ground: Ground, api: FakeApi) -> None:
    found = ground("run", "start", "drain", "-n", "ops", "-i", "host=wn-17", "-i", "grace=30", "--name", "d-1")
    assert found.out == "Run d-1 started\n"
    doc = api.docs[("Run", "ops", "d-1")]
    assert doc["spec"] == {"procedure": "drain", "inputs": {"host": "wn-17", "grace": 30}}
    assert ground("run", "approve", "d-1", "-n", "ops").code == 2
    doc["status"] = {
        "phase": "Waiting",
        "steps": {"ask": {"state": "Waiting", "question": "reboot \x1b[2J?"}, "end": {}},
    }
    shown = ground("run", "show", "d-1").out
    assert "Run ops/d-1: Waiting" in shown
    assert "ask: reboot \\x1b[2J?" in shown
    assert ground("run", "answer", "d-1", "yes", "-n", "ops").out == "Run ops/d-1: step ask answered\n"
    assert api.requests[-1].path == "/api/v1/namespaces/ops/runs/d-1/actions/answer"
    assert api.requests[-1].body == {"answer": "yes", "step": "ask"}
    assert ground("run", "approve", "d-1", "--step", "end").out == "Run ops/d-1: step end approved\n"
    assert ground("run", "cancel", "d-1", "--reason", "enough").out == "Run ops/d-1: being cancelled\n"
    assert ground("run", "list", "-o", "name").out == "run/ops/d-1\n"
    made_up = ground("run", "start", "drain", "-n", "ops", "-o", "name").out.strip()
    assert made_up.startswith("drain-")
    assert ground("run", "strat", "drain").err.count('did you mean "start"?') == 1


def test_a_run_over_many_targets_is_sent_as_the_options_say(ground: Ground, api: FakeApi) -> None:
    words = "run start restart -n ops --over Service -l tier=web --field-selector spec.a=b --waves 1,10%,100%"
    more = "--spread metadata.labels.rack=2 --max-failures 5% --ask between --ask failures --pause 1m --concurrency 4"
    elsewhere = "--targets-in * --input-for-name service --input-for-namespace place"
    assert ground(*words.split(), *more.split(), *elsewhere.split()).code == 0
    assert api.sent("POST", "/namespaces/ops/runs")[-1].body["spec"] == {
        "procedure": "restart",
        "over": {
            "kind": "Service", "labelSelector": "tier=web", "fieldSelector": "spec.a=b", "waves": ["1", "10%", "100%"],
            "spread": {"by": "metadata.labels.rack", "most": 2}, "maxFailures": "5%", "between": "ask",
            "onFailure": "ask", "pause": 60, "concurrency": 4, "namespace": "*", "input": "service",
            "namespaceInput": "place",
        },
    }  # fmt: skip
    assert ground("run", "start", "restart", "-n", "ops", "--over", "Service", "--spread", "spec.site").code == 0
    assert api.sent("POST", "/namespaces/ops/runs")[-1].body["spec"]["over"] == {
        "kind": "Service",
        "spread": {"by": "spec.site"},
    }
    assert "say over which kind" in ground("run", "start", "restart", "-n", "ops", "--waves", "1").err
    assert "PATH=N" in ground("run", "start", "p", "-n", "ops", "--over", "Service", "--spread", "spec.site=x").err


def test_waves_are_shown(ground: Ground, api: FakeApi) -> None:
    wave = {"wave": 1, "size": 2, "done": 1, "failed": 1, "skipped": 0, "underWay": 0, "left": 0}
    status = {"phase": "Failed", "waves": [wave], "failures": ["ops/w1: it broke\x1b[2J"], "steps": []}
    api.put("Run", "r", "ops", status=status)
    shown = ground("run", "show", "r", "-n", "ops").out
    assert [line.split() for line in shown.splitlines() if line.startswith("1 ")] == [
        ["1", "2", "1", "1", "0", "0", "0"]
    ]
    assert "failed: ops/w1: it broke" in shown
    assert "\x1b" not in shown
    answer = {"wave": 1, "size": 10, "targets": [f"w{n}" for n in range(10)], "domains": {"cnaf": 2, "bari": 8}}
    (_, line) = plan_in_words({"waves": [answer]}).splitlines()
    assert " ".join(line.split()) == "1 10 cnaf 2, bari 8 w0, w1, w2, w3, w4, w5, w6, w7 and 2 more"
