"""A second worker takes over while the first still thinks that the Run is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundcontrol.kernel.errors import Fenced
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.run_journal import progress_of, read
from tests.capabilities.procedures.workshop import Workshop, call, setting

RUN = Key("Run", "ops", "r")


def unlocked(directory: Path) -> Workshop:
    """A workshop that does not ask whether it is the only one: the lock is what a second machine would not see."""
    shop = Workshop(directory)
    shop.runtime.data.mkdir(exist_ok=True)
    (directory / "lock").unlink(missing_ok=True)
    return shop.open()


@pytest.mark.parametrize("step", [{"act": call("block"), "onUnknown": "ask"}, {"act": call("block"), "onUnknown": "check", "check": "true"}])  # fmt: skip  # noqa: E501
def test_the_first_one_is_refused(tmp_path: Path, step: dict[str, object]) -> None:
    old = unlocked(tmp_path).furnish()
    old.acts.gate.clear()
    old.run("r", steps=[{"name": "a", **step}, {"name": "b", "act": setting(slots=3)}])
    assert old.acts.blocked.wait(10)
    new = unlocked(tmp_path)
    try:
        if step["onUnknown"] == "ask":
            new.until_phase("r", "Unknown")
        else:
            new.until_phase("r", "Succeeded")
        before = read_all(new)
        old.acts.gate.set()
        old.runtime.controller.stop()
        with pytest.raises(Fenced):
            old.runtime.store.write(lambda tx: None)
        # What the first one did is on record where it was done; the journal is the second one's.
        assert old.recorder.steps() == ["a"]
        assert read_all(new) == before
        states = [f["state"] for f in new.facts("journal")]
        assert states.count("done") == (0 if step["onUnknown"] == "ask" else 2)
        if step["onUnknown"] == "ask":
            new.ask("answer", "r", answer="happened")
            new.until_phase("r", "Succeeded")
        assert new.get("Machine", "m1")["spec"]["slots"] == 3
    finally:
        new.runtime.close()
        old.runtime.close()


def read_all(shop: Workshop) -> list[tuple[int, str, str, int]]:
    with shop.runtime.store.reading() as conn:
        entries = read(conn, shop.get("Run", "r")["metadata"]["uid"])
    assert progress_of(entries).last == len(entries)
    return [(e.number, e.step, e.state, e.epoch) for e in entries]


def test_ends_of_one_act_by_two_turns(tmp_path: Path) -> None:
    """The same worker, two turns at once (which the loop does not do): the journal lets only one go on."""
    shop = Workshop(tmp_path).open().furnish()
    try:
        shop.acts.gate.clear()
        shop.run("r", steps=[{"name": "a", "act": call("block"), "onUnknown": "ask"}])
        assert shop.acts.blocked.wait(10)
        shop.runtime.turns.turn(shop.runtime.reconciler("runs"), RUN)
        assert shop.step("r", "a")["state"] == "unknown"
        shop.acts.gate.set()
        shop.until_phase("r", "Unknown")
        shop.ask("answer", "r", answer="happened")
        shop.until_phase("r", "Succeeded")
        assert shop.recorder.steps() == ["a"]
    finally:
        shop.runtime.close()
