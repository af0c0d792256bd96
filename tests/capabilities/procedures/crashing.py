"""One life of an installation in a process of its own, killed with a real SIGKILL at a numbered point of its work."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from groundcontrol.kernel.resource import Doc, Key
from tests.capabilities.procedures.workshop import MACHINE, PATIENCE, Workshop, call, setting

SEEN = "'test/poke' in resource.metadata.annotations"
STEPS: tuple[Doc, ...] = (
    {"name": "poke", "act": call("poke"), "onUnknown": "check", "check": SEEN, "undo": call("prod")},
    {"name": "prod", "act": call("prod"), "onUnknown": "repeat"},
    {"name": "grow", "act": setting(slots=6), "undo": {"restore": True}},
    {"name": "nudge", "act": call("nudge"), "onUnknown": "ask", "undo": call("nudge")},
    {"name": "wait", "wait": {"kind": "Machine", "name": "m1", "until": "resource.spec.slots == 6"}},
    {"name": "ask", "ask": {"question": "all well?"}},
    {"name": "again", "act": call("prod")},
)
ORDER = ["poke", "prod", "nudge", "again"]
ENDED = ("Succeeded", "Failed", "Cancelled")


class Killer:
    """Counts the points a life passes, and ends it at one of them."""

    def __init__(self, at: int, log: Path) -> None:
        self.at, self.log, self.count, self._lock = at, log, 0, threading.Lock()
        self.armed = (log.parent / "armed").exists()
        """Once there is nothing but the Run to work on, so that the points come in the same order in every life."""

    def arm(self) -> None:
        (self.log.parent / "armed").touch()
        self.armed = True

    def __call__(self, where: str) -> None:
        with self._lock:
            if not self.armed:
                return
            self.count += 1
            if self.count == self.at:
                with self.log.open("a") as file:
                    file.write(f"{where}\n")
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)


def live(data: str, kill_at: int, undo: bool) -> None:
    """Go on with Run r until it is over (and undone), or until the kill. A person is at hand who answers truly."""
    directory = Path(data)
    killer = Killer(kill_at, directory / "kills")
    shop = Workshop(directory, workers=2).open(killer)
    if shop.runtime.store.get(Key("RoleBinding", "", "eve")) is None:
        shop.furnish()
    if shop.runtime.store.get(Key("Procedure", "ops", "p")) is None:
        shop.procedure("p", *STEPS)
    shop.until(lambda: shop.get("Procedure", "p")["status"]["conditions"])
    shop.until(shop.runtime.controller.idle)
    killer.arm()
    if shop.runtime.store.get(Key("Run", "ops", "r")) is None:
        shop.run("r", "p")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = shop.status("r")
        if status.get("phase") in ENDED and (not undo or "undone by" in status["message"]):
            shop.runtime.close()
            os._exit(0)
        try:
            _person(shop, status, undo)
        except Exception:
            time.sleep(0.02)  # somebody else was first
        time.sleep(0.005)
    print(shop.status("r"), flush=True)
    os._exit(1)


def _person(shop: Workshop, status: Doc, undo: bool) -> None:
    """Somebody who answers truly: they look into the record of what was done."""
    if undo and status.get("phase") in ENDED:
        shop.ask("undo", "r")
        return
    for step in status.get("steps", ()):
        if not step["question"]:
            continue
        if "not-happened" not in step["choices"]:
            shop.ask("cancel" if undo else "approve", "r", **({} if undo else {"step": step["name"]}))
            return
        meant = step["name"] + ":undo" * step["question"].startswith("undo")
        happened = meant in shop.recorder.steps()
        shop.ask("answer", "r", step=step["name"], answer="happened" if happened else "not-happened")


def left_behind(directory: Path) -> dict[str, Any]:
    """What an installation that is closed left in its store."""
    with sqlite3.connect(directory / "ground.db") as conn:
        facts = conn.execute("select name, doc from facts where dataset = 'events'").fetchall()
        return {
            "holds": conn.execute("select count(*) from holds").fetchone()[0],
            "numbers": [n for (n,) in conn.execute("select number from journal order by number")],
            "states": conn.execute("select step, state from journal order by number").fetchall(),
            "sets": sum(name == MACHINE.name and b'"ChangedByRun"' in doc for name, doc in facts),
        }
