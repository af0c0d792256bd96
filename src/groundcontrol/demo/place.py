"""The directory of a demonstration: where everything lies, its ports, passwords and addresses, kept between runs."""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import shutil
import socket
import tempfile
import zlib
from pathlib import Path
from typing import Any

SITES = ("cnaf", "bari", "recas")
PORTS = range(20_000, 32_000)
"""Below what Linux gives to outgoing connections, so that no passer-by sits on one of ours."""
SERVER_PORT = 8440
MARKER = "demo.json"
ELSEWHERE = "ground-demo-sites-"


class Busy(Exception):
    """Another demonstration runs in this directory, or the directory is not one of ours."""


class Place:
    """Paths and numbers. Made once per directory; a second start finds the same."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.origin = self.root / "origin.git"
        self.checkout = self.root / "platform"
        self.settings = self.root / "ground.yaml"
        self.logs = self.root / "logs"
        self.keys = self.root / "keys"
        self.password = self.keys / "admin.password"
        self.hook_token = self.keys / "webhook.token"
        self.running = self.root / "running.json"
        self.cut = self.root / "cut"
        """Names of sites to cut, for those who play along; empty: none."""
        self.ports: dict[str, int] = {}
        self.networks: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------ paths

    @property
    def sites(self) -> Path:
        """Where the agents keep their units, links resolved."""
        return (self.root / "sites").resolve()

    def site(self, name: str) -> Path:
        """The folder an agent keeps its units in."""
        return self.sites / name

    def agent_token(self, name: str) -> Path:
        return self.keys / f"{name}.token"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['server']}"

    # ------------------------------------------------------------------------------------------ making it

    def take(self) -> None:
        """Make the directory ours for as long as this process lives."""
        if self.root.is_dir() and any(self.root.iterdir()) and not (self.root / MARKER).exists():
            raise Busy(f"{self.root} holds something else; name another with --directory")
        self.root.mkdir(parents=True, exist_ok=True)
        # Units of other user ids pass through on the way to their own folders.
        self.root.chmod(0o711)
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"a demonstration already runs in {self.root}; stop it with Ctrl-C where it runs") from None

    def make_sites(self) -> None:
        """An empty folder for the sites. As root, their units run under user ids of their own; where those cannot pass
        (root's home is closed to everybody), the folder lies in /var/tmp and a link leads to it."""
        self.remove_sites()
        if os.geteuid() != 0 or _lets_others_pass(self.root):
            (self.root / "sites").mkdir(mode=0o711)
            return
        elsewhere = Path(tempfile.mkdtemp(prefix=ELSEWHERE, dir="/var/tmp"))
        (self.root / "sites").symlink_to(elsewhere)
        elsewhere.chmod(0o711)

    def remove_sites(self) -> None:
        """What is left of the sites' folders."""
        link = self.root / "sites"
        if link.is_symlink():
            if link.resolve().name.startswith(ELSEWHERE):
                shutil.rmtree(link.resolve(), ignore_errors=True)
            link.unlink()
        shutil.rmtree(link, ignore_errors=True)

    def release(self) -> None:
        """Let another process take it."""
        os.close(self._lock)

    def prepare(self, port: int = 0, *, passing: bool = False) -> None:
        """Folders, secrets, ports and networks. `passing`: any free port for the server will do."""
        marker = self.root / MARKER
        kept: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
        self.logs.mkdir(mode=0o700, exist_ok=True)
        self.keys.mkdir(mode=0o700, exist_ok=True)
        for file in (self.password, self.hook_token, *(self.agent_token(name) for name in SITES)):
            if not file.exists():
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "w", encoding="ascii") as out:
                    out.write(secrets.token_urlsafe(18) + "\n")
        self.ports = {name: int(number) for name, number in kept.get("ports", {}).items()}
        self._choose_ports(port, passing)
        self.networks = kept.get("networks") or self._choose_networks()
        beside = marker.with_suffix(".new")
        beside.write_text(
            json.dumps({"ports": self.ports, "networks": self.networks}, indent=1) + "\n", encoding="utf-8"
        )
        beside.replace(marker)
        self.cut.write_text("", encoding="ascii")
        # The directory may lie in a clone of somebody's; nothing of it belongs there.
        (self.root / ".gitignore").write_text("*\n", encoding="ascii")

    def _choose_ports(self, port: int, passing: bool) -> None:
        if port:
            if not _is_free(port):
                raise Busy(f"port {port} is taken; choose another with --port, or leave it out")
            self.ports["server"] = port
        elif "server" not in self.ports and not passing and _is_free(SERVER_PORT):
            self.ports["server"] = SERVER_PORT
        for name in ("server", *(f"{what}-{site}" for site in SITES for what in ("agent", "proxy"))):
            taken = {number for other, number in self.ports.items() if other != name}
            while not (number := self.ports.get(name, 0)) or number in taken or not _is_free(number):
                self.ports[name] = random.choice(PORTS)

    def _choose_networks(self) -> dict[str, str]:
        """A /16 of loopback addresses for each site in which nobody listens, different for different directories."""
        busy = _loopback_in_use()
        start = zlib.crc32(str(self.root).encode()) % 200
        free = [n for n in ((start + i) % 200 + 20 for i in range(200)) if n not in busy]
        return {site: f"127.{number}.0.0/16" for site, number in zip(SITES, free, strict=False)}


def _lets_others_pass(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.resolve().parents))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _loopback_in_use() -> set[int]:
    """Second number of every 127.n.… address that something listens on."""
    found = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        address, state = line.split()[1], line.split()[3]
        raw = bytes.fromhex(address.split(":")[0])[::-1]
        if state == "0A" and raw[0] == 127:
            found.add(raw[1])
    return found
