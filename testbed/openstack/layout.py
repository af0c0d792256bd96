"""Says what clouds there are and where everything of them lies: directories, ports, addresses, passwords."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCAL = "127.0.0.1"

SERVICES = ("identity", "placement", "image", "compute", "network", "block-storage", "object-store")
"""By type, as in the catalogue. The place in this list is the offset of the port."""
INTERNAL = 20
"""From the port for everybody (TLS) to the port the services use among themselves (plain)."""
OFFSETS = {"amqp": 30, "erlang": 31, "epmd": 32, "memcached": 33, "account": 34, "container": 35, "object": 36}
PORTS_OF_A_CLOUD = 40
LONGEST_SOCKET = 100
"""Bytes of a path; the kernel's limit for a Unix socket is 107."""


class BedError(Exception):
    """Something of the test bed could not be done. The text says what, and what to read or do next."""


def home() -> Path:
    """The directory of all test beds: `GROUND_TESTBED_DIR`, or one in the cache of the person who runs it."""
    named = os.environ.get("GROUND_TESTBED_DIR") or "~/.cache/groundcontrol-testbed"
    return Path(named).expanduser().resolve()


def first_port() -> int:
    """`GROUND_TESTBED_PORT`, or 15000; each cloud takes forty ports from there."""
    named = os.environ.get("GROUND_TESTBED_PORT", "15000")
    if not named.isdecimal() or not 1024 <= int(named) <= 65000:
        raise BedError(f"GROUND_TESTBED_PORT is {named!r}; give a number from 1024 to 65000")
    return int(named)


def patience() -> float:
    """Seconds that one part may take to become ready: `GROUND_TESTBED_PATIENCE`, or 300."""
    named = os.environ.get("GROUND_TESTBED_PATIENCE", "300")
    if not named.isdecimal() or not int(named):
        raise BedError(f"GROUND_TESTBED_PATIENCE is {named!r}; give a number of seconds")
    return float(named)


@dataclass(frozen=True)
class Bed:
    """All clouds, and what they share: the certificate authority, the environments, clouds.yaml."""

    root: Path

    @property
    def clouds_yaml(self) -> Path:
        return self.root / "clouds.yaml"

    @property
    def authority(self) -> Path:
        """The certificate of the authority, for whoever talks to the clouds."""
        return self.root / "authority" / "ca.pem"

    @cached_property
    def clouds(self) -> tuple[Cloud, ...]:
        port = first_port()
        return (
            Cloud(self, "north", "2026.1", port, object_store=False),
            Cloud(self, "south", "2026.2", port + PORTS_OF_A_CLOUD, object_store=True),
        )

    def cloud(self, name: str) -> Cloud:
        for found in self.clouds:
            if found.name == name:
                return found
        raise BedError(f"there is no cloud {name!r}; there are {', '.join(c.name for c in self.clouds)}")


@dataclass(frozen=True)
class Cloud:
    """One cloud: its release, its ports, its directory. A value; nothing here touches a process."""

    bed: Bed
    name: str
    release: str
    port: int
    object_store: bool
    hosts_count: int = 3

    @property
    def root(self) -> Path:
        return self.bed.root / self.name

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def run(self) -> Path:
        """Sockets, and one record per process."""
        return self.root / "run"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def environment(self) -> Path:
        """The Python environment of its release."""
        return self.bed.root / "environments" / self.release

    def program(self, name: str) -> str:
        return str(self.environment / "bin" / name)

    @property
    def region(self) -> str:
        return self.name

    @property
    def services(self) -> tuple[str, ...]:
        return SERVICES if self.object_store else SERVICES[:-1]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hypervisors, each a nova-compute."""
        return tuple(f"{self.name}-hv{number}" for number in range(1, self.hosts_count + 1))

    def public_port(self, service: str) -> int:
        return self.port + SERVICES.index(service)

    def internal_port(self, service: str) -> int:
        return self.public_port(service) + INTERNAL

    def own_port(self, name: str) -> int:
        return self.port + OFFSETS[name]

    @property
    def ports(self) -> list[int]:
        """Every port on which something of this cloud may listen."""
        apis = [port for s in self.services for port in (self.public_port(s), self.internal_port(s))]
        return apis + [self.own_port(n) for n in OFFSETS]

    def public(self, service: str) -> str:
        return f"https://{LOCAL}:{self.public_port(service)}"

    def internal(self, service: str) -> str:
        return f"http://{LOCAL}:{self.internal_port(service)}"

    def socket(self, name: str) -> Path:
        path = self.run / f"{name}.sock"
        if len(os.fsencode(path)) > LONGEST_SOCKET:
            raise BedError(f"{path} is too long a name for a socket; set GROUND_TESTBED_DIR to a shorter directory")
        return path

    @cached_property
    def passwords(self) -> dict[str, str]:
        """Made once, kept in a file that only its owner reads: database, messages, service, admin, alice, bob."""
        path = self.root / "passwords.json"
        if not path.exists():
            made = {w: secrets.token_hex(12) for w in ("database", "messages", "service", "admin", "alice", "bob")}
            write(path, json.dumps(made, indent=1) + "\n")
        found: dict[str, str] = json.loads(path.read_text())
        return found

    def state_of(self, host: str) -> Path:
        """The directory of one hypervisor; the state of its guests and its faults are there."""
        if host not in self.hosts:
            raise BedError(f"cloud {self.name} has no host {host!r}; it has {', '.join(self.hosts)}")
        return self.state / host


def write(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only; untouched when it says this already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() == text:
        return
    fresh = path.with_name(f".{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


def the_bed() -> Bed:
    return Bed(home() / "openstack")
