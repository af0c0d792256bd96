"""Roots, agents and hands for the tests of the local driver; what a test leaves running fails it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundcontrol.drivers.local import process
from groundcontrol.drivers.local.driver import RemoteHost
from groundcontrol.drivers.local.host import LocalHost
from groundcontrol.ports.processes import Processes, UnitObserved


class Root:
    """A root folder, and whatever serves it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.hosts: list[LocalHost] = []
        self.agents: list[subprocess.Popen[str]] = []
        self.clients: list[RemoteHost] = []

    def host(self, **options: object) -> LocalHost:
        host = LocalHost(self.path, **{"cores": 64, "memory_mb": 65536, **options})  # type: ignore[arg-type]
        self.hosts.append(host)
        return host

    def agent(self, *options: str) -> tuple[subprocess.Popen[str], RemoteHost]:
        """A new agent process of this root and a client of it."""
        token = Path(f"{self.path}.token")
        if not token.exists():
            token.write_text(secrets.token_hex(16))
            token.chmod(0o600)
        command = [sys.executable, "-m", "groundcontrol.drivers.local.agent", "--root", self.path]
        command += ["--listen", "127.0.0.1:0", "--token-file", str(token), "--cores", "64", *options]
        agent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.agents.append(agent)
        assert agent.stderr is not None
        line = agent.stderr.readline()
        assert " listens on " in line, line
        self.clients.append(RemoteHost(line.rsplit(" ", 1)[1].strip(), token.read_text()))
        return agent, self.clients[-1]

    def key(self) -> str:
        return Path(self.path, "host.json").read_text().split('"key":"')[1].split('"')[0]

    def carrying(self, unit_id: str = "") -> dict[int, str]:
        """Live processes with a token of this root, or of one of its units."""
        if not Path(self.path, "host.json").exists():
            return {}
        key, found = f":{self.key()}.", {}
        for pid, token in process.with_token(unit_id).items():
            row = process.look_at(pid)
            if key in token and unit_id in ("", token.partition(":")[0]) and row is not None and row.state not in "ZX":
                found[pid] = token
        return found

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for agent in self.agents:
            agent.kill()
            agent.wait()
            if agent.stderr is not None:
                agent.stderr.close()
        for host in self.hosts:
            host.close()
        last = LocalHost(self.path, cores=64)
        last.close(stop_units=True)
        left = self.carrying()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, left


@pytest.fixture
def root() -> Iterator[Root]:
    # Not pytest's folder: that is closed to the user ids of tenants.
    with tempfile.TemporaryDirectory(prefix="ground-test-") as top:
        os.chmod(top, 0o711)
        place = Root(f"{top}/root")
        try:
            yield place
        finally:
            place.close()


@pytest.fixture
def until() -> Callable[..., UnitObserved]:
    """`until(host, id, condition, seconds=5)`: the unit once the condition holds."""

    def wait(
        host: Processes, unit_id: str, holds: Callable[[UnitObserved], object], seconds: float = 5.0
    ) -> UnitObserved:
        deadline = time.monotonic() + seconds
        while not holds(unit := host.get(unit_id)):
            assert time.monotonic() < deadline, unit
            time.sleep(0.01)
        return unit

    return wait
