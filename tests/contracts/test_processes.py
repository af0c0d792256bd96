"""What every host of units promises: the same tests on the twin, on the local driver and through an agent."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from groundcontrol.drivers.local.driver import RemoteHost
from groundcontrol.drivers.local.host import LocalHost
from groundcontrol.kernel.errors import Conflict, Fenced, Invalid, NotFound
from groundcontrol.ports.processes import Check, Limits, Processes, UnitObserved, UnitSpec
from groundcontrol.ports.twins.processes import MemoryHost

SLEEP = UnitSpec(command=("/bin/sleep", "1000"), stop_grace=2.0)
KINDS = ("memory", "local", "remote")


class World:
    """A host and the hands that reach behind it."""

    def __init__(self, host: Processes, root: str = "") -> None:
        self.host, self.root = host, root

    def kill(self, unit_id: str) -> None:
        if isinstance(self.host, MemoryHost):
            self.host.kill(unit_id, -9)
        else:
            os.kill(self.host.get(unit_id).pid, signal.SIGKILL)

    def edit_file(self, unit_id: str, path: str, text: str | None) -> None:
        target = Path(self.root, "units", unit_id, "dir", path)
        if isinstance(self.host, MemoryHost):
            self.host.edit_file(unit_id, path, text)
        elif text is None:
            target.unlink()
        else:
            target.write_text(text)

    def print(self, unit_id: str, text: str) -> None:
        if isinstance(self.host, MemoryHost):
            self.host.print(unit_id, text)


def agent(root: str, *options: str) -> tuple[subprocess.Popen[str], str, str]:
    """A running agent: process, endpoint, token."""
    token = secrets.token_hex(16)
    path = Path(root + ".token")
    path.write_text(token)
    path.chmod(0o600)
    command = [sys.executable, "-m", "groundcontrol.drivers.local.agent", "--root", root, "--listen", "127.0.0.1:0"]
    command += ["--token-file", str(path), "--cores", "4", "--memory-mb", "4096", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert " listens on " in line, line
    return process, line.rsplit(" ", 1)[1].strip(), token


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "memory":
        yield World(MemoryHost(cores=4, memory_mb=4096))
        return
    # Not pytest's folder: that is closed to the user ids of tenants.
    with tempfile.TemporaryDirectory(prefix="ground-test-") as top:
        os.chmod(top, 0o711)
        root = f"{top}/root"
        if request.param == "local":
            host = LocalHost(root, cores=4, memory_mb=4096)
            try:
                yield World(host, root)
            finally:
                host.close(stop_units=True)
        else:
            process, endpoint, token = agent(root, "--stop-units-on-exit")
            remote = RemoteHost(endpoint, token)
            try:
                yield World(remote, root)
            finally:
                remote.close()
                process.terminate()
                assert process.wait(30) == 0
                assert process.stderr is not None
                process.stderr.close()


def until(world: World, unit_id: str, holds: Callable[[UnitObserved], bool], seconds: float = 5.0) -> UnitObserved:
    """The unit once `holds`, waiting as a caller would: by the change counter."""
    deadline = time.monotonic() + seconds
    while True:
        listing = world.host.look()
        unit = next(unit for unit in listing.units if unit.id == unit_id)
        if holds(unit):
            return unit
        left = deadline - time.monotonic()
        assert left > 0, unit
        world.host.wait(listing.sequence, left)


def test_create_starts_it_and_look_shows_it(world: World) -> None:
    spec = msgspec.structs.replace(SLEEP, env={"A": "1"}, files={"etc/a.txt": "one"}, ports={"http": 8080})
    made = world.host.create("web-1", spec, {"owner": "u1", "change": "c1"}, epoch=1)
    assert made.state == "running"
    assert made.pid > 0
    assert made.starts == 1
    assert made.exits == 0
    assert made.healthy is None
    listing = world.host.look()
    assert listing.complete
    assert [unit.id for unit in listing.units] == ["web-1"]
    assert listing.units[0] == world.host.get("web-1")
    assert listing.units[0].spec == spec
    assert listing.units[0].tags == {"owner": "u1", "change": "c1"}
    assert listing.cores == 4
    assert world.host.find("change", "c1") == ("web-1",)
    assert world.host.find("change", "c2") == ()


def test_a_repeated_create_returns_the_first(world: World) -> None:
    first = world.host.create("a", SLEEP, {"change": "c1"}, epoch=1)
    again = world.host.create("a", SLEEP, {"change": "c2"}, epoch=1)
    assert again == first
    other = msgspec.structs.replace(SLEEP, env={"A": "2"})
    with pytest.raises(Conflict):
        world.host.create("a", other, {}, epoch=1)
    secret = msgspec.structs.replace(SLEEP, secret_env={"A": "2"})
    with pytest.raises(Conflict):
        world.host.create("a", secret, {}, epoch=1)


def test_secrets_are_not_shown(world: World) -> None:
    spec = msgspec.structs.replace(SLEEP, secret_env={"PASSWORD": "hunter2"})
    made = world.host.create("a", spec, {}, epoch=1)
    assert made.spec.secret_env == {}
    assert made.secret_hash
    assert b"hunter2" not in msgspec.json.encode(world.host.look())
    assert world.host.create("a", spec, {}, epoch=1).secret_hash == made.secret_hash
    other = msgspec.structs.replace(SLEEP, secret_env={"PASSWORD": "hunter3"})
    assert world.host.create("b", other, {}, epoch=1).secret_hash != made.secret_hash


def test_addresses_are_its_own(world: World) -> None:
    addresses = {world.host.create(f"u{index}", SLEEP, {}, epoch=1).address for index in range(5)}
    assert len(addresses) == 5
    world.host.delete("u2", epoch=1)
    assert world.host.create("u9", SLEEP, {}, epoch=1).address not in {
        unit.address for unit in world.host.look().units if unit.id != "u9"
    }


def test_stop_start_and_revisions(world: World) -> None:
    made = world.host.create("a", SLEEP, {}, epoch=1)
    stopped = world.host.stop("a", if_revision=made.revision, epoch=1)
    assert stopped.state == "stopped"
    assert stopped.pid == 0
    assert stopped.exits == 0
    assert stopped.revision > made.revision
    with pytest.raises(Conflict):
        world.host.start("a", if_revision=made.revision, epoch=1)
    started = world.host.start("a", if_revision=stopped.revision, epoch=1)
    assert started.state == "running"
    assert started.starts == 2
    assert started.address == made.address
    assert started.revision > stopped.revision


def test_update_in_place(world: World) -> None:
    spec = msgspec.structs.replace(SLEEP, files={"a": "1", "b": "2"}, limits=Limits(open_files=512))
    made = world.host.create("a", spec, {}, epoch=1)
    wanted = msgspec.structs.replace(spec, files={"a": "1!", "d/c": "3"}, limits=Limits(open_files=256))
    changed = world.host.update("a", wanted, if_revision=made.revision, epoch=1)
    assert changed.spec == wanted
    assert changed.pid == made.pid
    assert changed.revision > made.revision
    assert world.host.get("a").spec == wanted
    with pytest.raises(Conflict):
        world.host.update("a", wanted, if_revision=made.revision, epoch=1)
    for other in (
        msgspec.structs.replace(wanted, command=("/bin/sleep", "999")),
        msgspec.structs.replace(wanted, env={"A": "1"}),
        msgspec.structs.replace(wanted, secret_env={"A": "1"}),
        msgspec.structs.replace(wanted, ports={"x": 1}),
        msgspec.structs.replace(wanted, user="t"),
    ):
        with pytest.raises(Invalid):
            world.host.update("a", other, if_revision=changed.revision, epoch=1)
    assert world.host.get("a").spec == wanted


def test_a_hand_edit_is_seen_and_mended(world: World) -> None:
    spec = msgspec.structs.replace(SLEEP, files={"a.txt": "ours", "b.txt": "ours"})
    made = world.host.create("a", spec, {}, epoch=1)
    before = world.host.look().sequence
    world.edit_file("a", "a.txt", "theirs")
    world.edit_file("a", "b.txt", None)
    assert world.host.wait(before, 2.0) > before
    seen = until(world, "a", lambda unit: unit.spec.files == {"a.txt": "theirs"}, 2.0)
    assert seen.revision == made.revision
    mended = world.host.update("a", spec, if_revision=seen.revision, epoch=1)
    assert mended.spec == spec


def test_a_death_is_noticed(world: World) -> None:
    made = world.host.create("a", SLEEP, {}, epoch=1)
    before = world.host.look().sequence
    began = time.monotonic()
    world.kill("a")
    assert world.host.wait(before, 5.0) > before
    assert time.monotonic() - began < 0.5
    ended = until(world, "a", lambda unit: unit.state == "exited")
    assert (ended.exit_code, ended.exits, ended.pid) == (-9, 1, 0)
    assert ended.revision > made.revision
    assert ended.exited > 0
    with pytest.raises(Conflict):
        world.host.stop("a", if_revision=made.revision, epoch=1)
    again = world.host.start("a", if_revision=ended.revision, epoch=1)
    assert (again.state, again.starts, again.exits) == ("running", 2, 1)


def test_delete_is_idempotent_and_absence_is_proven(world: World) -> None:
    world.host.create("a", SLEEP, {}, epoch=1)
    before = world.host.look().sequence
    world.host.delete("a", epoch=1)
    world.host.delete("a", epoch=1)
    assert world.host.wait(before, 1.0) > before
    assert world.host.look().units == ()
    for call in (
        lambda: world.host.get("a"),
        lambda: world.host.log("a"),
        lambda: world.host.start("a", if_revision=1, epoch=1),
        lambda: world.host.stop("a", if_revision=1, epoch=1),
        lambda: world.host.update("a", SLEEP, if_revision=1, epoch=1),
    ):
        with pytest.raises(NotFound):
            call()
    assert world.host.create("a", SLEEP, {}, epoch=1).starts == 1


def test_an_older_epoch_is_fenced(world: World) -> None:
    made = world.host.create("a", SLEEP, {}, epoch=5)
    for call in (
        lambda: world.host.create("b", SLEEP, {}, epoch=4),
        lambda: world.host.update("a", SLEEP, if_revision=made.revision, epoch=4),
        lambda: world.host.stop("a", if_revision=made.revision, epoch=4),
        lambda: world.host.start("a", if_revision=made.revision, epoch=4),
        lambda: world.host.delete("a", epoch=4),
    ):
        with pytest.raises(Fenced):
            call()
    assert [unit.id for unit in world.host.look().units] == ["a"]
    world.host.delete("a", epoch=6)


def test_capacity_is_kept(world: World) -> None:
    half = msgspec.structs.replace(SLEEP, limits=Limits(cores=1.9, memory_mb=1000))
    world.host.create("a", half, {}, epoch=1)
    made = world.host.create("b", half, {}, epoch=1)
    with pytest.raises(Conflict, match=r"0\.2"):
        world.host.create("c", half, {}, epoch=1)
    with pytest.raises(NotFound):
        world.host.get("c")
    more = msgspec.structs.replace(SLEEP, limits=Limits(cores=2.2, memory_mb=1000))
    with pytest.raises(Conflict):
        world.host.update("b", more, if_revision=made.revision, epoch=1)
    world.host.delete("a", epoch=1)
    world.host.create("c", half, {}, epoch=1)


def test_capacity_holds_against_a_crowd(world: World) -> None:
    spec = msgspec.structs.replace(SLEEP, limits=Limits(cores=1))
    refused: list[Exception] = []

    def create(number: int) -> None:
        try:
            world.host.create(f"u{number}", spec, {}, epoch=1)
        except Conflict as problem:
            refused.append(problem)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.host.look().units) == 4
    assert len(refused) == 8


@pytest.mark.parametrize(
    ("unit_id", "spec"),
    [
        ("../a", SLEEP),
        ("a/b", SLEEP),
        (".hidden", SLEEP),
        ("a", UnitSpec(command=())),
        ("a", msgspec.structs.replace(SLEEP, files={"../../x": ""})),
        ("a", msgspec.structs.replace(SLEEP, files={"/etc/x": ""})),
        ("a", msgspec.structs.replace(SLEEP, files={"a/./b": ""})),
    ],
)
def test_nonsense_is_refused(world: World, unit_id: str, spec: UnitSpec) -> None:
    with pytest.raises(Invalid):
        world.host.create(unit_id, spec, {}, epoch=1)
    assert world.host.look().units == ()


def test_wait_times_out(world: World) -> None:
    sequence = world.host.look().sequence
    began = time.monotonic()
    assert world.host.wait(sequence, 0.3) == sequence
    assert 0.25 < time.monotonic() - began < 2


def test_the_log_is_read_from_anywhere_and_followed(world: World) -> None:
    shell = 'printf "one\\n"; sleep 0.5; printf "två\\n"; sleep 1000'
    world.host.create("a", UnitSpec(command=("/bin/sh", "-c", shell), stop_grace=0.1), {}, epoch=1)
    world.print("a", "one\n")
    text, chunks = "", world.host.follow("a")
    for chunk in chunks:
        text += chunk.text
        if "två\n" in text:
            break
        if text == "one\n":
            world.print("a", "två\n")
    getattr(chunks, "close", lambda: None)()
    assert text == "one\ntvå\n"
    assert chunk.offset == len(text.encode())
    assert world.host.log("a", 4).text == "två\n"
    assert world.host.log("a", -5).text == "två\n"
    assert world.host.log("a", 0, 3) == ("one", 3)
    assert world.host.log("a", 9) == ("", 9)


def test_health_is_probed(world: World) -> None:
    web = UnitSpec(
        command=(sys.executable, "-m", "groundcontrol.samples.web"),
        ports={"http": 8080},
        check=Check(kind="http", port=8080, path="/healthz", interval=0.1),
    )
    world.host.create("a", web, {}, epoch=1)
    healthy = until(world, "a", lambda unit: unit.healthy is True)
    assert healthy.health_since > 0
    assert healthy.probed > 0


def test_a_run_that_completes(world: World) -> None:
    world.host.create("a", UnitSpec(command=("/bin/true",), run_once=True), {}, epoch=1)
    if isinstance(world.host, MemoryHost):
        world.host.kill("a", 0)
    ended = until(world, "a", lambda unit: unit.state == "exited")
    assert ended.exit_code == 0
