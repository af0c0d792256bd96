"""Builds the server of `main.go` once, from the versions and hashes of `go.mod` and `go.sum`; later calls find it.

Needs Go 1.20 or newer, the sources (its own client brings them, 1 GB) and 2 GB below the cache for a while; four to six
minutes on two cores. `GROUND_TESTBED_DIR` names the cache; without it, `~/.cache/groundcontrol-testbed`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("main.go", "go.mod", "go.sum")
OLDEST = 20
"""The oldest Go 1.x that the sources are for."""
LONGEST = 1500.0
"""Seconds after which a step of the build is given up."""


class BuildError(Exception):
    """The server could not be built. The text says why."""


class CannotBuild(BuildError):
    """There is no Go here, or no way to the sources: nothing is wrong with them."""


def server() -> Path:
    """The program. BuildError when it cannot be built, CannotBuild when there is nothing to build it with."""
    content = b"\0".join((HERE / name).read_bytes() for name in SOURCES)
    cache = Path(os.environ.get("GROUND_TESTBED_DIR") or "~/.cache/groundcontrol-testbed").expanduser().resolve()
    program = cache / "vault" / hashlib.sha256(content).hexdigest()[:16]
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs that start together build once
        if not program.exists():
            _build(program)
    return program


def _build(program: Path) -> None:
    go = shutil.which("go", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/go/bin")))
    if go is None:
        raise CannotBuild("Go is not installed; 1.20 or newer is needed to build a real Vault")
    with tempfile.TemporaryDirectory(dir=program.parent, prefix=".build-") as place:
        for name in SOURCES:
            shutil.copy(HERE / name, place)
        # What the compiler leaves behind is as large as it is useless: the program is kept, the rest goes.
        flags = {"GOFLAGS": "-mod=readonly -buildvcs=false", "GOCACHE": f"{place}/cache", "CGO_ENABLED": "0"}
        env = {**os.environ, **flags}
        found = subprocess.run([go, "env", "GOVERSION"], env=env, capture_output=True, text=True, check=False)
        version = re.match(r"go1\.(\d+)", found.stdout)
        if version is None or int(version[1]) < OLDEST:
            raise CannotBuild(f"Go 1.{OLDEST} or newer is needed to build a real Vault, here is {found.stdout.strip()}")
        got = _run([go, "list", "-deps", "."], place, env)
        if got.returncode:
            raise CannotBuild(f"the sources of Vault cannot be had here: {got.stderr.strip()[-500:]}")
        done = _run([go, "build", "-trimpath", "-ldflags=-s -w", "-o", f"{place}/vault", "."], place, env)
        if done.returncode:
            raise BuildError(f"go build failed:\n{done.stderr[-2000:]}")
        Path(place, "vault").rename(program)


def _run(command: list[str], place: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{' '.join(command[:4])} did not end within {LONGEST:g} s") from None


if __name__ == "__main__":
    print(server())
