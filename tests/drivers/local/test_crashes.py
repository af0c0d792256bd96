"""kill -9 of everything that may die, at moments nobody chose: nothing is lost, nothing runs twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundcontrol.drivers.local import process
from groundcontrol.drivers.local.driver import RemoteHost
from groundcontrol.kernel.errors import Conflict, Fenced, NotFound, Unavailable
from groundcontrol.ports.processes import UnitSpec

SLEEP = UnitSpec(command=("/bin/sleep", "1000"), files={"n": "0"}, stop_grace=1.0)


class Worker(threading.Thread):
    """Changes its own units one after the other, and notes what must be true of each."""

    def __init__(self, client: RemoteHost, name: str, seed: int, known: dict[str, set[str]]) -> None:
        super().__init__()
        self.client, self.prefix, self.random, self.known = client, name, random.Random(seed), known
        """Unit to the states it may be in: `running`, `stopped`, `gone`."""

    def run(self) -> None:
        for _ in range(1000):
            unit_id = f"{self.prefix}-{self.random.randrange(4)}"
            before = self.known.get(unit_id, {"gone"})
            verb = self.random.choice(["create", "create", "update", "stop", "start", "delete"])
            after = {"create": "running", "start": "running", "stop": "stopped", "delete": "gone"}.get(verb)
            try:
                self.change(verb, unit_id)
            except (NotFound, Conflict):
                continue
            except Unavailable:
                self.known[unit_id] = before | ({after} if after else set())
                return
            # A create of what exists starts nothing.
            if after and not (verb == "create" and "gone" not in before):
                self.known[unit_id] = {after} if verb != "create" or before == {"gone"} else before | {after}

    def change(self, verb: str, unit_id: str) -> None:
        if verb == "create":
            self.client.create(unit_id, SLEEP, {}, epoch=1)
        elif verb == "delete":
            self.client.delete(unit_id, epoch=1)
        else:
            revision = self.client.get(unit_id).revision
            if verb == "update":
                spec = msgspec.structs.replace(SLEEP, stop_grace=1.0 + revision / 1000)
                self.client.update(unit_id, spec, if_revision=revision, epoch=1)
            elif verb == "stop":
                self.client.stop(unit_id, if_revision=revision, epoch=1)
            else:
                self.client.start(unit_id, if_revision=revision, epoch=1)


def leaders(root: Any) -> dict[str, list[int]]:
    """Unit to the processes that lead a session under its token."""
    found: dict[str, list[int]] = {}
    for pid, token in root.carrying().items():
        row = process.look_at(pid)
        if row is not None and row.session == pid and row.state not in "ZX":
            found.setdefault(token.partition(":")[0], []).append(pid)
    return found


def rounds(root: Any, count: int, seed: int, kill_keeper: bool) -> None:
    chance = random.Random(seed)
    known: dict[str, set[str]] = {}
    for number in range(count):
        agent, client = root.agent()
        settle(root, client, known)
        workers = [Worker(client, f"w{name}", chance.randrange(1 << 30), known) for name in range(4)]
        for worker in workers:
            worker.start()
        time.sleep(chance.uniform(0, 0.25))
        victims = [agent.pid]
        if kill_keeper and number % 2:
            victims.append(keeper_of(root))
            chance.shuffle(victims)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
            time.sleep(chance.choice([0, 0, 0.002]))
        for worker in workers:
            worker.join()
        agent.wait()
    _, client = root.agent()
    settle(root, client, known)
    assert known


def keeper_of(root: Any) -> int:
    """The keeper, not a child it has forked and that has not yet executed its program."""
    named = [pid for pid in process.all_pids() if f"keeper.py\0{root.path}\0".encode() in command_line(pid)]
    rows = [row for pid in named if (row := process.look_at(pid)) is not None]
    first = [row.pid for row in rows if row.parent not in named]
    assert len(first) == 1, rows
    return first[0]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def unfinished(root: Any, states: dict[str, str]) -> set[str]:
    """Units whose interrupted stop or deletion the host is still finishing."""
    goals = {}
    for unit_id in states:
        with contextlib.suppress(FileNotFoundError):
            goals[unit_id] = json.loads(Path(root.path, "units", unit_id, "unit.json").read_text()).get("goal", "run")
    return {
        unit_id
        for unit_id, state in states.items()
        if goals.get(unit_id, "delete") == "delete" or (goals[unit_id] == "stop" and state == "running")
    }


def settle(root: Any, client: RemoteHost, known: dict[str, set[str]]) -> None:
    """Once what was begun is finished: compare host, processes and what callers were told."""
    deadline = time.monotonic() + 10
    while True:
        listing = client.look()
        assert listing.complete, listing.problems
        states = {unit.id: unit.state for unit in listing.units}
        wrong = {
            unit_id: (states.get(unit_id, "gone"), may)
            for unit_id, may in known.items()
            if states.get(unit_id, "gone") not in may
        }
        running = {unit.id: [unit.pid] for unit in listing.units if unit.state == "running"}
        if not wrong and running == leaders(root) and not set(states) - set(known) and not unfinished(root, states):
            break
        assert time.monotonic() < deadline, (wrong, running, leaders(root), listing.problems)
        time.sleep(0.05)
    # From here on it is known exactly.
    for unit_id in known:
        known[unit_id] = {states.get(unit_id, "gone")}


def test_the_agent_is_killed_at_any_moment(root: Any) -> None:
    rounds(root, 8, seed=1, kill_keeper=False)


def test_agent_and_keeper_are_killed_at_any_moment(root: Any) -> None:
    rounds(root, 8, seed=2, kill_keeper=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill_keeper", [False, True])
def test_many_kills(root: Any, kill_keeper: bool) -> None:
    rounds(root, 60, seed=int(time.time()), kill_keeper=kill_keeper)


def test_units_outlive_the_agent_and_are_adopted(root: Any) -> None:
    agent, client = root.agent()
    made = client.create("a", SLEEP, {}, epoch=1)
    code = UnitSpec(command=("/bin/sh", "-c", "sleep 0.6; exit 7"))
    client.create("b", code, {}, epoch=1)
    agent.kill()
    agent.wait()
    time.sleep(1.0)
    _, client = root.agent()
    assert client.get("a").pid == made.pid
    assert client.get("a").starts == 1
    ended = client.get("b")
    # It ended while no agent was there: the keeper wrote how.
    assert (ended.state, ended.exit_code, ended.exits) == ("exited", 7, 1)
    os.kill(made.pid, signal.SIGKILL)
    sequence = client.look().sequence
    client.wait(sequence, 1.0)
    assert client.get("a").exit_code == -9


def test_sigterm_leaves_units_running(root: Any) -> None:
    agent, client = root.agent()
    made = client.create("a", SLEEP, {}, epoch=1)

    def wait() -> None:
        with contextlib.suppress(Unavailable):
            client.wait(client.look().sequence, 20)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.2)
    began = time.monotonic()
    agent.terminate()
    assert agent.wait(10) == 0
    assert time.monotonic() - began < 3
    waiting.join(5)
    assert not waiting.is_alive()
    assert process.look_at(made.pid) is not None


def test_without_keeper_death_is_noticed_but_not_its_code(root: Any, until: Callable[..., Any]) -> None:
    host = root.host()
    made = host.create("a", SLEEP, {}, epoch=1)
    os.kill(host._runs.keeping.pid, signal.SIGKILL)
    host.create("b", SLEEP, {}, epoch=1)
    sequence = host.sequence
    os.kill(made.pid, signal.SIGKILL)
    host.wait(sequence, 1)
    ended = until(host, "a", lambda unit: unit.state == "exited", 1)
    assert ended.exit_code is None
    assert host.start("a", if_revision=ended.revision, epoch=1).state == "running"


def test_a_used_pid_is_not_adopted(root: Any) -> None:
    host = root.host()
    made = host.create("a", SLEEP, {}, epoch=1)
    host.close()
    # The unit's process is gone, and its pid, so the record says, belongs to this very test now.
    os.kill(made.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while process.look_at(made.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    path = Path(root.path, "units/a/run")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "pid": os.getpid()}))
    host = root.host()
    assert host.get("a").state == "exited"
    host.delete("a", epoch=1)


def test_another_boot_means_lost(root: Any) -> None:
    host = root.host()
    host.create("a", SLEEP, {}, epoch=1)
    host.close()
    path = Path(root.path, "units/a/run")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "boot": "another"}))
    host = root.host()
    lost = host.get("a")
    assert (lost.state, lost.exit_code, lost.exits) == ("lost", None, 1)
    host.close()
    assert root.host().get("a").state == "lost"


def test_a_lost_run_file_is_found_by_the_token(root: Any) -> None:
    host = root.host()
    made = host.create("a", SLEEP, {}, epoch=1)
    host.close()
    Path(root.path, "units/a/run").unlink()
    again = root.host().get("a")
    assert (again.pid, again.state, again.starts) == (made.pid, "running", 1)
    assert abs(again.started - made.started) < 1


def test_a_half_made_and_a_half_removed_unit_go(root: Any) -> None:
    host = root.host()
    host.create("a", SLEEP, {}, epoch=1)
    host.close()
    for name in ("new/x/dir", "trash/y/dir"):
        Path(root.path, name).mkdir(parents=True)
    record = json.loads(Path(root.path, "units/a/unit.json").read_text())
    Path(root.path, "units/a/unit.json").write_text(json.dumps({**record, "goal": "delete"}))
    host = root.host()
    deadline = time.monotonic() + 5
    while host.look().units and time.monotonic() < deadline:
        time.sleep(0.01)
    assert host.look().units == ()
    assert not os.listdir(f"{root.path}/new")
    assert not os.listdir(f"{root.path}/trash")
    assert not root.carrying()


def test_an_interrupted_update_is_finished(root: Any) -> None:
    host = root.host()
    host.create("a", SLEEP, {}, epoch=1)
    host.close()
    path = Path(root.path, "units/a/unit.json")
    record = json.loads(path.read_text())
    record["spec"]["files"] = {"n": "1"}
    path.write_text(json.dumps({**record, "unapplied": True, "revision": 2}))
    assert root.host().get("a").spec.files == {"n": "1"}
    assert Path(root.path, "units/a/dir/n").read_text() == "1"


def test_a_damaged_record_makes_the_listing_partial(root: Any) -> None:
    host = root.host()
    host.create("a", SLEEP, {}, epoch=1)
    host.create("b", SLEEP, {}, epoch=1)
    host.close()
    Path(root.path, "units/a/unit.json").write_text("{")
    host = root.host()
    listing = host.look()
    assert not listing.complete
    assert [unit.id for unit in listing.units] == ["b"]
    assert "unit a" in listing.problems[0]
    with pytest.raises(Unavailable):
        host.get("a")
    with pytest.raises(Conflict):
        host.create("a", SLEEP, {}, epoch=1)
    host.delete("a", epoch=1)
    assert host.look().complete
    assert not root.carrying("a")


def test_one_host_for_one_root(root: Any) -> None:
    root.host()
    with pytest.raises(Conflict, match=f"already served by process {os.getpid()}"):
        root.host()


def test_the_epoch_survives(root: Any) -> None:
    host = root.host()
    host.create("a", SLEEP, {}, epoch=7)
    host.close()
    with pytest.raises(Fenced, match="epoch 6 is over"):
        root.host().delete("a", epoch=6)
