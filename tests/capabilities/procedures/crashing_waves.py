"""One life of an installation with a Run over many targets, killed with a real SIGKILL at a numbered point."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from groundcontrol.kernel.resource import Doc, Key
from tests.capabilities.procedures.crashing import Killer
from tests.capabilities.procedures.workshop import PATIENCE, Workshop

TARGETS = [f"w{n}" for n in range(5)]
TARGET = {"kind": "Machine", "name": "${inputs.machine}"}
STEPS: tuple[Doc, ...] = (
    {"name": "prod", "act": {**TARGET, "verb": "prod", "body": {"on": "${inputs.machine}"}}},
    {"name": "grow", "act": {"set": {**TARGET, "fields": {"spec.slots": 6}}}},
)
INPUTS = {"machine": {"type": "resource", "kind": "Machine"}}
OVER = {"kind": "Machine", "fieldSelector": "spec.power=web", "waves": ["1", "2"], "between": "ask", "concurrency": 2}


def live(data: str, kill_at: int, cancel: bool) -> None:
    """Go on with Run r until it is over, or until the kill. A person is at hand who lets it go on; or, with
    `cancel`, ends it once in the second wave and then resumes it."""
    directory = Path(data)
    killer = Killer(kill_at, directory / "kills")
    shop = Workshop(directory, workers=2).open(killer)
    if shop.runtime.store.get(Key("RoleBinding", "", "eve")) is None:
        shop.furnish()
    for name in TARGETS:
        if shop.runtime.store.get(Key("Machine", "ops", name)) is None:
            shop.apply("Machine", name, {"power": "web"}, "ops")
    if shop.runtime.store.get(Key("Procedure", "ops", "p")) is None:
        shop.procedure("p", *STEPS, inputs=INPUTS)
    shop.until(lambda: shop.get("Procedure", "p")["status"]["conditions"])
    shop.until(shop.runtime.controller.idle)
    killer.arm()
    if shop.runtime.store.get(Key("Run", "ops", "r")) is None:
        shop.run("r", "p", over=OVER)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = shop.status("r")
        if status.get("phase") in ("Succeeded", "Failed"):
            shop.runtime.close()
            os._exit(0)
        try:
            _person(shop, status, cancel, directory / "cancelled")
        except Exception:
            time.sleep(0.02)  # somebody else was first
        time.sleep(0.003)
    print(shop.status("r"), flush=True)
    os._exit(1)


def _person(shop: Workshop, status: Doc, cancel: bool, once: Path) -> None:
    if cancel and status.get("wave", 0) >= 2 and not once.exists():
        once.touch()
        shop.ask("cancel", "r")
    elif status.get("phase") == "Cancelled":
        shop.ask("resume", "r")
    elif status.get("phase") == "Waiting":
        shop.ask("approve", "r")


def left_behind(directory: Path) -> dict[str, Any]:
    """What an installation that is closed left in its store."""
    with sqlite3.connect(directory / "ground.db") as conn:
        facts = conn.execute("select name, doc from facts where dataset = 'events'").fetchall()
        runs = conn.execute("select count(*) from resources where kind = 'Run'").fetchone()[0]
        gaps = conn.execute("select run_uid from journal group by run_uid having count(*) != max(number)").fetchall()
        return {
            "runs": runs,
            "gaps": len(gaps),
            "holds": conn.execute("select count(*) from holds").fetchone()[0],
            "sets": sorted(name for name, doc in facts if b'"ChangedByRun"' in doc),
        }
