"""Units that mean harm, or behave as if: what they may not reach, and that they can always be ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundcontrol.kernel.errors import Conflict, Invalid
from groundcontrol.ports.processes import Limits, UnitSpec

SLEEP = UnitSpec(command=("/bin/sleep", "1000"), stop_grace=1.0)
Until = Callable[..., Any]


def shell(script: str, **fields: Any) -> UnitSpec:
    return UnitSpec(command=("/bin/sh", "-c", script), **{"stop_grace": 0.3, **fields})


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "a/", "a\0b", "x" * 2000])
def test_paths_that_leave_are_refused(root: Any, path: str) -> None:
    host = root.host()
    with pytest.raises(Invalid):
        host.create("a", msgspec.structs.replace(SLEEP, files={path: "x"}), {}, epoch=1)


def test_a_planted_link_is_not_followed(root: Any, until: Until) -> None:
    outside = Path(os.path.dirname(root.path), "outside")
    outside.mkdir()
    (outside / "f").write_text("untouched")
    script = f"rm -r f d; ln -s {outside}/f f; ln -s {outside} d; echo planted; sleep 1000"
    spec = shell(script, files={"f": "1", "d/f": "2"})
    host = root.host()
    made = host.create("a", spec, {}, epoch=1)
    until(host, "a", lambda _: "planted" in host.log("a").text)
    # Not read through the links ...
    assert host.get("a").spec.files == {}
    # ... nor written through them: they are replaced.
    wanted = msgspec.structs.replace(spec, files={"f": "new", "d/f": "new"})
    assert host.update("a", wanted, if_revision=made.revision, epoch=1).spec.files == wanted.files
    assert (outside / "f").read_text() == "untouched"
    assert not Path(root.path, "units/a/dir/d").is_symlink()
    # Nor does a deletion follow.
    Path(root.path, "units/a/dir/link").symlink_to(outside)
    host.delete("a", epoch=1)
    assert (outside / "f").read_text() == "untouched"


def test_pipes_and_giants_do_not_hold_the_host(root: Any, until: Until) -> None:
    script = "rm p g; mkfifo p; truncate -s 10G g; mkdir x; rm f; mkdir f; echo planted; sleep 1000"
    spec = shell(script, files={"p": "1", "g": "2", "f": "3"})
    host = root.host()
    made = host.create("a", spec, {}, epoch=1)
    until(host, "a", lambda _: "planted" in host.log("a").text)
    began = time.monotonic()
    files = host.get("a").spec.files
    assert time.monotonic() - began < 0.5
    assert set(files) == {"g"}
    assert "10737418240 bytes" in files["g"]
    with pytest.raises(Conflict, match="cannot write 'f'"):
        host.update("a", spec, if_revision=made.revision, epoch=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_link_to_a_foreign_file_is_not_read(root: Any, until: Until) -> None:
    host = root.host()
    host.create("a", msgspec.structs.replace(SLEEP, user="alice", files={"f": "1"}), {}, epoch=1)
    folder = Path(root.path, "units/a/dir")
    secret = Path(root.path, "units/secret-of-root")
    secret.write_text("secret")
    try:
        (folder / "f").unlink()
        os.link(secret, folder / "f")
        assert host.get("a").spec.files == {}
    finally:
        secret.unlink()


def test_sigterm_is_ignored(root: Any) -> None:
    host = root.host()
    made = host.create("a", shell("trap '' TERM; echo deaf; while :; do sleep 1; done"), {}, epoch=1)
    time.sleep(0.2)
    began = time.monotonic()
    stopped = host.stop("a", if_revision=made.revision, epoch=1)
    assert 0.3 <= time.monotonic() - began < 2
    assert (stopped.state, stopped.exit_code) == ("stopped", -9)
    assert not root.carrying("a")


def test_children_get_their_grace(root: Any, until: Until) -> None:
    """The shell dies at once of SIGTERM; what it started may still finish its work."""
    child = "trap 'sleep 0.3; echo finished; exit' TERM; echo up; while :; do sleep 0.05; done"
    host = root.host()
    made = host.create("a", UnitSpec(command=("/bin/sh", "-c", f'sh -c "{child}" & wait'), stop_grace=3.0), {}, epoch=1)
    until(host, "a", lambda _: "up" in host.log("a").text)
    host.stop("a", if_revision=made.revision, epoch=1)
    assert "finished" in host.log("a").text


ESCAPE = """
import os, sys, time
for _ in range(2):
    if os.fork(): os._exit(0) if _ else None; break
    os.setsid()
else:
    open("escaped", "w").write(str(os.getpid()))
    if len(sys.argv) > 1: os.execve("/bin/sleep", ["sleep", "1000"], {})
    time.sleep(1000)
time.sleep(1000)
"""


@pytest.mark.parametrize("cgroups", [True, False])
def test_grandchildren_that_left_the_session_are_found(root: Any, until: Until, cgroups: bool) -> None:
    host = root.host(cgroups=cgroups)
    made = host.create("a", UnitSpec(command=(sys.executable, "-c", ESCAPE), stop_grace=0.2), {}, epoch=1)
    escaped = Path(root.path, "units/a/dir/escaped")
    until(host, "a", lambda _: escaped.exists() and escaped.read_text())
    pid = int(escaped.read_text())
    assert os.getsid(pid) != made.pid
    host.delete("a", epoch=1)
    assert not os.path.exists(f"/proc/{pid}") or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_grandchildren_without_environment_are_found_by_the_group(root: Any, until: Until) -> None:
    host = root.host()
    if not host._groups.tops:
        pytest.skip("needs writable control groups")
    host.create("a", UnitSpec(command=(sys.executable, "-c", ESCAPE, "clean"), stop_grace=0.2), {}, epoch=1)
    escaped = Path(root.path, "units/a/dir/escaped")
    until(host, "a", lambda _: escaped.exists() and escaped.read_text())
    pid = int(escaped.read_text())
    until(host, "a", lambda _: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    host.delete("a", epoch=1)
    assert not os.path.exists(f"/proc/{pid}") or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_what_a_crash_leaves_behind_is_swept(root: Any, until: Until) -> None:
    host = root.host()
    host.create("a", shell("sleep 1000 & sleep 1000 & echo $!; exit 4"), {}, epoch=1)
    until(host, "a", lambda unit: unit.state == "exited")
    deadline = time.monotonic() + 2
    while root.carrying("a"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fork_bomb_stays_within_its_limit_and_dies(root: Any, until: Until) -> None:
    host = root.host()
    if not host._groups.tops and os.geteuid() == 0:
        pytest.skip("root is bound by control groups only")
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    spec = UnitSpec(command=(sys.executable, "-c", bomb), limits=Limits(processes=30, cores=0.5), stop_grace=0.1)
    host.create("bomb", spec, {}, epoch=1)
    time.sleep(1.0)
    assert 1 < len(root.carrying("bomb")) <= 30
    host.create("other", SLEEP, {}, epoch=1)
    began = time.monotonic()
    host.delete("bomb", epoch=1)
    assert time.monotonic() - began < 8
    assert not root.carrying("bomb")


def test_deep_folders_are_removed(root: Any, until: Until) -> None:
    deep = "import os\nfor _ in range(3000):\n os.mkdir('d'); os.chdir('d')\nprint('deep', flush=True)"
    host = root.host()
    host.create("a", UnitSpec(command=(sys.executable, "-c", deep)), {}, epoch=1)
    until(host, "a", lambda _: "deep" in host.log("a").text, 10)
    host.delete("a", epoch=1)
    assert os.listdir(f"{root.path}/trash") == []


def test_a_forged_token_is_not_adopted(root: Any, until: Until) -> None:
    host = root.host()
    made = host.create("a", SLEEP, {}, epoch=1)
    forged = shell(f"exec env GROUND_RUN=a:{root.key()}.0123 sleep 1000")
    host.create("b", forged, {}, epoch=1)
    host.close()
    host = root.host()
    assert host.get("a").pid == made.pid
    assert host.get("b").state == "running"
