"""What the local driver does beyond the contract: health, limits, logs, tenants, and the quickness it promises."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundcontrol.drivers.local.host import LocalHost
from groundcontrol.kernel.errors import Conflict, Invalid
from groundcontrol.ports.processes import Check, Limits, UnitSpec

SLEEP = UnitSpec(command=("/bin/sleep", "1000"), stop_grace=1.0)
SYSTEM_PYTHON = "/usr/bin/python3"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: user ids are real here")
needs_python = pytest.mark.skipif(not os.path.exists(SYSTEM_PYTHON), reason="needs a Python every user id may run")
Until = Callable[..., Any]


def shell(script: str, **fields: Any) -> UnitSpec:
    return UnitSpec(command=("/bin/sh", "-c", script), **{"stop_grace": 1.0, **fields})


def web(module: str = "web", **fields: Any) -> UnitSpec:
    check = Check(kind="http", port=8080, path="/healthz", interval=0.1, timeout=0.5, failures=2)
    command = (sys.executable, "-m", f"groundcontrol.samples.{module}")
    return UnitSpec(command=command, **{"ports": {"http": 8080}, "check": check, "stop_grace": 1.0, **fields})


def test_placeholders_and_environment(root: Any, until: Until) -> None:
    script = 'echo "$0 $1 $A $S"; env | sort; pwd; umask; ls -l /proc/self/fd | wc -l'
    spec = UnitSpec(
        command=("/bin/sh", "-c", script, "{address}:{port.http-x}", "{dir} {other}"),
        env={"A": "{port.http-x}"},
        secret_env={"S": "{address}"},
        ports={"http-x": 81},
    )
    os.environ["LEAK"] = "1"
    try:
        host = root.host()
        made = host.create("a", spec, {}, epoch=1)
    finally:
        del os.environ["LEAK"]
    until(host, "a", lambda unit: unit.state == "exited")
    lines = host.log("a").text.splitlines()
    folder = f"{root.path}/units/a/dir"
    assert lines[0] == f"{made.address}:81 {folder} {{other}} 81 {made.address}"
    names = {line.partition("=")[0] for line in lines[1:-3]}
    assert names == {
        "A", "S", "PATH", "HOME", "LANG", "PWD", "GROUND_ADDRESS", "GROUND_DIR", "GROUND_RUN", "GROUND_PORT_HTTP_X",
    }  # fmt: skip
    assert lines[-3:-1] == [folder, "0077"]
    # ls itself holds 0, 1, 2 and the folder; with the heading that is five lines.
    assert lines[-1] == "5"


def test_a_program_that_cannot_start_says_so(root: Any, until: Until) -> None:
    host = root.host()
    host.create("a", UnitSpec(command=("/nowhere/at/all",)), {}, epoch=1)
    ended = until(host, "a", lambda unit: unit.state == "exited")
    assert ended.exit_code == 127
    assert "cannot start /nowhere/at/all: No such file" in host.log("a").text


def test_quick(root: Any) -> None:
    host = root.host()
    spent = []
    for number in range(10):
        began = time.monotonic()
        assert host.create(f"u{number}", SLEEP, {}, epoch=1).state == "running"
        spent.append(time.monotonic() - began)
    assert sorted(spent)[5] < 0.1, spent
    noticed = []
    for number in range(10):
        pid, sequence = host.get(f"u{number}").pid, host.sequence
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        host.wait(sequence, 2)
        noticed.append(time.monotonic() - began)
        time.sleep(0.05)
    assert sorted(noticed)[5] < 0.05, noticed


def test_http_health_thresholds(root: Any, until: Until) -> None:
    host = root.host()
    host.create("a", web("flaky", env={"SECONDS": "1"}), {}, epoch=1)
    up = until(host, "a", lambda unit: unit.healthy is True)
    down = until(host, "a", lambda unit: unit.healthy is False)
    assert "status 500" in down.health_message
    assert down.health_since > up.health_since
    assert down.state == "running"


def test_start_period(root: Any, until: Until) -> None:
    host = root.host()
    check = Check(kind="http", port=8080, interval=0.05, failures=1, start_period=10)
    host.create("a", web("slow", env={"DELAY": "0.7"}, check=check), {}, epoch=1)
    seen = set()
    until(host, "a", lambda unit: seen.add(unit.healthy) or unit.healthy)
    assert seen == {None, True}


def test_tcp_and_command_checks(root: Any, until: Until) -> None:
    host = root.host()
    check = Check(kind="tcp", port=7000, interval=0.1)
    command = (sys.executable, "-m", "groundcontrol.samples.tcp")
    made = host.create("tcp", UnitSpec(command=command, ports={"tcp": 7000}, check=check), {}, epoch=1)
    check = Check(kind="command", command=("/bin/sh", "-c", "test -e {dir}/good"), interval=0.1, failures=2)
    host.create("command", msgspec.structs.replace(SLEEP, check=check), {}, epoch=1)
    until(host, "tcp", lambda unit: unit.healthy is True)
    with socket.create_connection((made.address, 7000), 2) as echo:
        echo.sendall(b"hello\n")
        assert echo.recv(100) == b"hello\n"
    bad = until(host, "command", lambda unit: unit.healthy is False)
    assert bad.health_message == "/bin/sh ended with code 1"
    Path(root.path, "units/command/dir/good").touch()
    until(host, "command", lambda unit: unit.healthy is True)


def test_a_hanging_check_delays_nobody(root: Any, until: Until) -> None:
    host = root.host()
    hanging = Check(kind="command", command=("/bin/sleep", "500"), timeout=0.3, interval=0.1, failures=1)
    for number in range(20):
        host.create(f"hang-{number}", msgspec.structs.replace(SLEEP, check=hanging), {}, epoch=1)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        port = silent.getsockname()[1]
        for number in range(20):
            check = Check(kind="http", port=port, timeout=0.5, interval=0.1, failures=1)
            spec = msgspec.structs.replace(SLEEP, check=check, ports={"http": port})
            host.create(f"silent-{number}", spec, {}, epoch=1)
        host.create("good", web(), {}, epoch=1)
        until(host, "good", lambda unit: unit.healthy is True, 3)
        before = host.get("good").probed
        time.sleep(1)
        assert host.get("good").probed > before + 0.5
        assert until(host, "hang-0", lambda unit: unit.healthy is False).health_message == "no answer within 0.3 s"
    for number in range(20):
        host.delete(f"hang-{number}", epoch=1)
    # The commands that hung are gone as well.
    assert not [pid for pid, token in root.carrying().items() if token.startswith("hang-")]


def test_a_stopped_process_is_unhealthy(root: Any, until: Until) -> None:
    host = root.host()
    made = host.create("a", web(), {}, epoch=1)
    until(host, "a", lambda unit: unit.healthy is True)
    sequence = host.sequence
    os.kill(made.pid, signal.SIGSTOP)
    assert host.wait(sequence, 1.5) > sequence
    frozen = host.get("a")
    assert (frozen.state, frozen.healthy) == ("running", False)
    assert "SIGCONT" in frozen.health_message
    os.kill(made.pid, signal.SIGCONT)
    until(host, "a", lambda unit: unit.healthy is True)
    os.kill(made.pid, signal.SIGSTOP)
    time.sleep(0.1)
    assert host.stop("a", if_revision=made.revision, epoch=1).state == "stopped"


def test_limits_changed_by_hand_are_seen(root: Any, until: Until) -> None:
    host = root.host()
    spec = msgspec.structs.replace(SLEEP, limits=Limits(open_files=400, memory_mb=256, processes=50, cores=0.5))
    made = host.create("a", spec, {}, epoch=1)
    assert made.spec == spec
    assert resource.prlimit(made.pid, resource.RLIMIT_NOFILE) == (400, 400)
    time.sleep(0.7)
    sequence = host.sequence
    resource.prlimit(made.pid, resource.RLIMIT_NOFILE, (100, 400))
    assert host.wait(sequence, 1.5) > sequence
    assert host.get("a").spec.limits == msgspec.structs.replace(spec.limits, open_files=100)
    assert host.update("a", spec, if_revision=made.revision, epoch=1).spec == spec


@pytest.mark.parametrize("cgroups", [True, False])
def test_limits_are_read_back(root: Any, cgroups: bool) -> None:
    host = root.host(cgroups=cgroups)
    limits = Limits(open_files=400, memory_mb=256, processes=50, cores=0.5)
    made = host.create("a", msgspec.structs.replace(SLEEP, limits=limits), {}, epoch=1)
    assert made.spec.limits == limits
    if cgroups and host._groups.tops:
        assert made.pid in host._groups.members("a")
    else:
        assert resource.prlimit(made.pid, resource.RLIMIT_AS)[0] == 256 << 20
        assert resource.prlimit(made.pid, resource.RLIMIT_NPROC)[0] == 50
    lower = msgspec.structs.replace(limits, memory_mb=128, processes=40)
    changed = host.update("a", msgspec.structs.replace(SLEEP, limits=lower), if_revision=made.revision, epoch=1)
    assert changed.spec.limits == lower
    assert changed.pid == made.pid


def test_memory_beyond_the_limit_is_refused(root: Any, until: Until) -> None:
    host = root.host()
    eat = (sys.executable, "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))")
    host.create("a", UnitSpec(command=eat, limits=Limits(memory_mb=64)), {}, epoch=1)
    ended = until(host, "a", lambda unit: unit.state == "exited", 20)
    assert ended.exit_code in (-9, 1)


def test_a_log_without_end_is_bounded(root: Any, until: Until) -> None:
    host = root.host()
    host.create("a", shell("head -c 150000000 /dev/zero | tr '\\0' 'x'; echo; echo last line"), {}, epoch=1)
    until(host, "a", lambda unit: unit.state == "exited", 60)
    path = Path(root.path, "units/a/log")
    deadline = time.monotonic() + 5
    while path.stat().st_blocks * 512 > 33 << 20:
        assert time.monotonic() < deadline, path.stat()
        time.sleep(0.1)
    assert host.log("a", -10).text == "last line\n"
    first = host.log("a", 0, 100)
    assert first.offset > 100_000_000
    assert first.text == "x" * 100


def test_characters_are_not_cut(root: Any, until: Until) -> None:
    host = root.host()
    host.create("a", shell("printf 'ååå€€€𝄞𝄞'"), {}, epoch=1)
    until(host, "a", lambda unit: unit.state == "exited")
    for limit in range(1, 12):
        text, offset = "", 0
        while (chunk := host.log("a", offset, max(4, limit))).text:
            text, offset = text + chunk.text, chunk.offset
        assert text == "ååå€€€𝄞𝄞"
    assert host.log("a", -5).text == "𝄞"


def test_addresses_are_not_soon_used_again(root: Any) -> None:
    host = root.host(addresses="127.77.0.0/29")
    seen = [host.create(f"u{number}", SLEEP, {}, epoch=1).address for number in range(6)]
    assert seen == [f"127.77.0.{number}" for number in range(1, 7)]
    with pytest.raises(Conflict, match="no address is left"):
        host.create("more", SLEEP, {}, epoch=1)
    host.delete("u2", epoch=1)
    host.close()
    host = root.host(addresses="127.77.0.0/29")
    assert host.create("more", SLEEP, {}, epoch=1).address == "127.77.0.3"


def test_crowd_of_changes(root: Any) -> None:
    """Many threads on the same few ids: every answer is a refusal or true, and nothing is left behind."""
    host = root.host()
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        for number in range(12):
            unit_id = f"u{(seed + number) % 3}"
            try:
                made = host.create(unit_id, SLEEP, {}, epoch=1)
                host.stop(unit_id, if_revision=made.revision, epoch=1)
                host.look()
                host.delete(unit_id, epoch=1)
            except Conflict:
                continue
            except BaseException as problem:
                if type(problem).__name__ != "NotFound":
                    errors.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for unit in host.look().units:
        host.delete(unit.id, epoch=1)
    assert not root.carrying()
    assert os.listdir(f"{root.path}/units") == []


@as_root
@needs_python
def test_tenants_are_apart(root: Any, until: Until) -> None:
    host = root.host()
    assert host.look().isolates_users
    keep = shell("echo mine > own; sleep 1000", user="alice", files={"secret.txt": "s"}, secret_env={"K": "v"})
    made = host.create("alice", keep, {}, epoch=1)
    status = Path(f"/proc/{made.pid}/status").read_text()
    uid = int(status.split("Uid:\t")[1].split("\t")[0])
    assert 200_000 <= uid <= 209_999
    assert "NoNewPrivs:\t1" in status
    assert "Groups:\t \n" in status
    folder = Path(root.path, "units/alice/dir")
    until(host, "alice", lambda _: (folder / "own").exists())
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (uid, 0o700)
    assert (folder / "secret.txt").stat().st_uid == uid
    attempts = "; ".join(
        f"cat {path} && echo BROKEN" for path in (
            folder / "secret.txt", folder / "own", folder.parent / "secret", folder.parent / "unit.json",
            folder.parent / "log", f"/proc/{made.pid}/environ", f"{root.path}/host.json",
        )
    )  # fmt: skip
    script = f"id -u; {attempts}; kill {made.pid} && echo BROKEN; ls {root.path}/units && echo BROKEN; exit 0"
    host.create("bob", shell(script, user="bob"), {}, epoch=1)
    until(host, "bob", lambda unit: unit.state == "exited")
    text = host.log("bob").text
    assert "BROKEN" not in text
    assert text.count("denied") + text.count("permitted") >= 8, text
    # Another unit of the same tenant: the same user id; after a restart too.
    host.close()
    host = root.host()
    host.create("alice-2", shell("id -u", user="alice"), {}, epoch=1)
    until(host, "alice-2", lambda unit: unit.state == "exited")
    assert host.log("alice-2").text == f"{uid}\n"


@as_root
def test_a_closed_folder_above_is_named(root: Any) -> None:
    host = root.host()
    os.chmod(os.path.dirname(root.path), 0o700)
    with pytest.raises(Invalid, match="cannot pass through"):
        host.create("a", msgspec.structs.replace(SLEEP, user="alice"), {}, epoch=1)
    os.chmod(os.path.dirname(root.path), 0o711)


def test_without_root_one_tenant(root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 0)
    host = root.host()
    host._tenants.isolates = False
    assert not host.look().isolates_users
    host.create("a", msgspec.structs.replace(SLEEP, user="alice"), {}, epoch=1)
    host.create("b", SLEEP, {}, epoch=1)
    with pytest.raises(Invalid, match="cannot keep 'bob' apart"):
        host.create("c", msgspec.structs.replace(SLEEP, user="bob"), {}, epoch=1)


@pytest.mark.slow
def test_two_hundred_units_cost_little(root: Any) -> None:
    _, client = root.agent()
    agent = root.agents[-1]
    check = Check(kind="tcp", port=7000, interval=1.0)
    for number in range(200):
        spec = msgspec.structs.replace(SLEEP, files={"a": "1"}, check=check, limits=Limits(open_files=100))
        client.create(f"u{number}", spec, {}, epoch=1)
    time.sleep(3)
    before = cpu(agent.pid)
    time.sleep(5)
    assert (cpu(agent.pid) - before) / 5 < 0.05 * 1.6  # 200 probes a second are work, not idleness.
    began = time.monotonic()
    assert len(client.look().units) == 200
    assert time.monotonic() - began < 0.5


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_close_is_final_and_harmless(root: Any) -> None:
    host: LocalHost = root.host()
    made = host.create("a", SLEEP, {}, epoch=1)
    host.close()
    host.close()
    with pytest.raises(Exception, match="being closed"):
        host.delete("a", epoch=1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(made.pid, 0)
