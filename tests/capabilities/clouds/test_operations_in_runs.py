"""Runs call the actions of servers as steps: each once, undone where there is a way back, and asked about when nobody
knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundcontrol.capabilities.procedures import CAPABILITY
from groundcontrol.kernel.errors import OutcomeUnknown
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from tests.capabilities.clouds.sky import Sky, sky


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        found.lan()
        found.server()
        found.ready("Server", "web")
        yield found


def step(name: str, verb: str, body: Doc | None = None, **more: Any) -> Doc:
    act = {"kind": "Server", "name": "web", "verb": verb} | ({"body": body} if body else {})
    return {"name": name, "act": act, **more}


def ended(name: str, verb: str) -> Doc:
    asked = f"resource.status.operation.verb == '{verb}' && resource.status.operation.key.startsWith(run.uid)"
    until = f"{asked} && resource.status.operation.state == 'Done'"
    return {"name": name, "wait": {"kind": "Server", "name": "web", "until": until, "timeout": 60}}


def run(here: Sky, *steps: Doc, name: str = "r") -> None:
    here.fed.apply("Run", name, {"steps": list(steps)}, "alpha")


def phase(here: Sky, name: str = "r") -> str:
    found: str = here.status("Run", name).get("phase", "")
    return found


def until_phase(here: Sky, *wanted: str, name: str = "r") -> None:
    here.fed.until(lambda: phase(here, name) in wanted, f"run {name} is {wanted}, {here.status('Run', name)}", 40)


def test_a_run_stops_snapshots_and_starts_again(here: Sky) -> None:
    run(
        here,
        step("stop", "stop"),
        ended("stopped", "stop"),
        step("keep", "snapshot", {"name": "evening"}, onUnknown="repeat", outputs={"image": "string"}),
        ended("kept", "snapshot"),
        step("start", "start"),
        ended("started", "start"),
        {"name": "tell", "notify": {"message": "${steps.keep.output.image}"}},
    )
    until_phase(here, "Succeeded", "Failed")
    assert phase(here) == "Succeeded"
    assert [t.name for t in here.cloud.things("image") if t.mark] == ["evening"]
    assert here.only("server").state == "ready"
    assert len(here.calls("act snapshot")) == 1


def test_the_procedure_of_the_guide_works(here: Sky) -> None:
    guide = Path(__file__).parents[3] / "docs" / "guides" / "server-operations.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    procedure = yaml.safe_load(block)
    here.fed.apply("Procedure", procedure["metadata"]["name"], procedure["spec"], "alpha")
    here.fed.until_ready("Procedure", procedure["metadata"]["name"], "alpha")
    given = {"procedure": procedure["metadata"]["name"], "inputs": {"server": "web"}}
    here.fed.apply("Run", "r", given, "alpha")
    until_phase(here, "Succeeded", "Failed")
    assert phase(here) == "Succeeded"
    assert [t.name for t in here.cloud.things("image") if t.mark] == ["quiet"]


def test_what_is_not_repeatable_must_say_what_to_do_when_nobody_knows(here: Sky) -> None:
    run(here, step("reboot", "reboot"))
    here.fed.until(lambda: "not repeatable" in str(here.status("Run", "r")))
    assert here.calls("act reboot") == []
    run(here, step("stop", "stop"), ended("stopped", "stop"), name="other")
    until_phase(here, "Succeeded", name="other")


def test_a_lost_reboot_is_not_repeated_but_asked_about(here: Sky) -> None:
    here.cloud.fail("act reboot", error=OutcomeUnknown("the line is dead"))
    run(here, step("reboot", "reboot", onUnknown="ask"))
    until_phase(here, "Unknown")
    assert len(here.calls("act reboot")) == 1


def test_a_stop_is_undone_by_a_start(here: Sky) -> None:
    run(
        here,
        step("stop", "stop", undo={"kind": "Server", "name": "web", "verb": "start"}),
        ended("stopped", "stop"),
        step("wrong", "unshelve", onUnknown="ask"),
    )
    until_phase(here, "Failed")
    assert here.only("server").state == "off"
    undo = CAPABILITY.actions["Run", "undo"]
    undo(here.fed.runtime, Subject.user("ada"), Key("Run", "alpha", "r"), {})
    here.fed.until(lambda: here.only("server").state == "ready", "started again", 30)
