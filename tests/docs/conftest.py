"""One real server for the examples of the guides, set up by the commands that getting-started.md shows."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.markdown import GUIDES, blocks

SHOWN = "127.0.0.1:8440"
"""The address in the guides."""


class Place:
    """A directory where somebody follows the guides, and the server they started there."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.address = root, f"127.0.0.1:{port}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GROUND_", "GIT_"))}
        self.environ = kept | {"PATH": path, "GROUND_CONFIG": str(root / "client.json"), "NO_COLOR": "1"}
        self.environ |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}

    def typed(self, text: str) -> str:
        """What is typed here for what a guide shows: this server, and a repository beside us for a git server."""
        here = text.replace(SHOWN, self.address)
        return (
            here.replace("https://git.example.org/cloud/", f"file://{self.root}/")
            .replace(".git\n", "\n")
            .replace('.git"', '"')
        )

    def run(self, command: str, timeout: float = 90.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", self.typed(command)],
            cwd=self.root,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def save(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.typed(text), encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/api/v1/readyz", timeout=2).close()
            return
        except OSError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, log.read_text(errors="replace")
            time.sleep(0.1)


@pytest.fixture(scope="package")
def place() -> Iterator[Place]:
    """Tenants of a local site pass through every folder above it: so not below pytest's own, which is closed."""
    root = Path(tempfile.mkdtemp(prefix="ground-docs-", dir="/var/tmp"))
    root.chmod(0o711)
    here = Place(root, free_port())
    start = next(b for b in blocks(GUIDES / "getting-started.md") if b.mark == "start")
    *before, serve = start.commands
    assert serve.startswith("ground serve ")
    process = None
    try:
        for command in before:
            done = here.run(command)
            assert done.returncode == 0, done.stdout + done.stderr
            config = root / "control" / "ground.yaml"
            # Another port, and repositories of this machine, as the guide says.
            text = here.typed(config.read_text()).replace("allowFile: false", "allowFile: true")
            config.write_text(text)
        log = root / "server.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "groundcontrol.interfaces.cli.main", *serve.split()[1:]]
            process = subprocess.Popen(command, cwd=root, env=here.environ, stdout=out, stderr=out)
        wait_until_ready(here.address, process, log)
        yield here
    finally:
        stop(here, process)
        shutil.rmtree(root, ignore_errors=True)


def stop(place: Place, process: subprocess.Popen[bytes] | None) -> None:
    """Take away every service, then the server, then whatever of a site is still below its directory."""
    if process is not None and process.poll() is None:
        place.run("ground get sources -o name | xargs -r ground delete")
        place.run("ground get services -A -o name | xargs -r ground delete")
        place.run('for n in $(seq 60); do [ -z "$(ground get instances -A -o name)" ] && break; sleep 0.3; done')
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            below = os.readlink(folder / "cwd").startswith(str(place.root))
            names = str(place.root).encode() in (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if (below or names) and int(folder.name) != os.getpid():
            os.kill(int(folder.name), signal.SIGKILL)
