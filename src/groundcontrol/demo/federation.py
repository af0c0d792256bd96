"""Brings the demonstration's world up and down: three agents behind proxies, a repository with a hook, a server."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from groundcontrol.demo import manifests, processes
from groundcontrol.demo.client import Api
from groundcontrol.demo.place import SITES, Place
from groundcontrol.demo.proxy import Proxy
from groundcontrol.demo.repository import Repository

SERVER = "server"
PATIENCE = 60.0
"""Seconds an agent or the server has to come up: a loaded machine is not a failure."""


class NotUp(Exception):
    """Something did not come up; the message says what it said."""


class Federation:
    """Everything that runs. `stop` leaves nothing of it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.repository = Repository(place.origin, place.checkout)
        self.children = processes.Children(place.root, place.running)
        self.proxy = Proxy()
        self.api = Api(place.ports[SERVER])

    def start_sites(self) -> None:
        """Three agents, each behind a proxy that the Sites name as their endpoint."""
        for site in SITES:
            self.start_agent(site)
            self.proxy.add(site, self.place.ports[f"proxy-{site}"], self.place.ports[f"agent-{site}"])
        for site in SITES:
            self._wait(site, partial(_listens, self.place.ports[f"agent-{site}"]))

    def start_agent(self, site: str) -> None:
        """One site: a process of its own, which stops its units when it is told to end."""
        place = self.place
        place.site(site).mkdir(mode=0o711, exist_ok=True)
        command = [sys.executable, "-m", "groundcontrol.drivers.local.agent", "--root", str(place.site(site))]
        command += ["--name", site, "--listen", f"127.0.0.1:{place.ports[f'agent-{site}']}"]
        command += ["--token-file", str(place.agent_token(site)), "--addresses", place.networks[site]]
        command += ["--cores", "4", "--memory-mb", "4096", "--stop-units-on-exit"]
        self.children.start(site, command, place.log(site))

    def make_repository(self) -> None:
        """The repository and its hook; nothing is committed yet."""
        webhook = f"{self.place.url}/hooks/gitlab/{manifests.SOURCE}"
        self.repository.make(webhook, self.place.hook_token)
        self.repository.settle()

    def start_server(self) -> float:
        """Start the server and wait until it is ready; the seconds that took."""
        began = time.monotonic()
        self.place.settings.write_text(manifests.settings(self.place), encoding="utf-8")
        main = "groundcontrol.interfaces.cli.main"
        command = [sys.executable, "-m", main, "serve", "--config", str(self.place.settings)]
        self.children.start(SERVER, command, self.place.log(SERVER))
        self._wait(SERVER, self.api.ready)
        return time.monotonic() - began

    def kill_server(self) -> None:
        """SIGKILL, without a word."""
        self.children.kill(SERVER)

    def bootstrap(self) -> None:
        """Sign in, and declare where the repository is and what it may declare."""
        self.api.login("admin", self.place.password.read_text(encoding="ascii").strip())
        self.api.apply(manifests.bootstrap(self.place, self.repository.url))

    def mend(self) -> list[str]:
        """Start again what ended by itself (or by somebody who plays along); the names of it."""
        ended = self.children.ended()
        for name in ended:
            if name == SERVER:
                self.start_server()
            else:
                self.start_agent(name)
        return list(ended)

    def follow_cuts(self) -> list[str]:
        """Cut and restore as the file `cut` says; what was changed, in words."""
        try:
            wanted = set(self.place.cut.read_text(encoding="utf-8").split())
        except OSError:
            return []
        changed = []
        for site in SITES:
            if (site in wanted) != self.proxy.is_cut(site):
                (self.proxy.cut if site in wanted else self.proxy.restore)(site)
                changed.append(f"{site} is {'cut off' if site in wanted else 'back'}")
        return changed

    def stop(self) -> None:
        """Server first, so that nothing starts again what the sites stop; then whatever is still below us."""
        with contextlib.suppress(RuntimeError):
            for site in SITES:
                if self.proxy.knows(site):
                    self.proxy.restore(site)
        self.children.stop([SERVER], 10)
        self.children.stop(self.children.names(), 20)
        self.proxy.close()
        processes.end(processes.descendants(os.getpid()) | processes.belonging(self.place.root, self.place.sites))
        processes.reap()
        self.place.running.unlink(missing_ok=True)

    def _wait(self, name: str, up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not up():
            ended = self.children.ended()
            if name in ended or time.monotonic() > deadline:
                why = f"ended with code {ended[name]}" if name in ended else f"did not come up within {PATIENCE:g} s"
                raise NotUp(f"{name} {why}; the end of {self.place.log(name)}:\n{_tail(self.place.log(name))}")
            time.sleep(0.02)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return "(nothing)"
