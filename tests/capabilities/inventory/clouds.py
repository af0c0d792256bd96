"""A cloud that says whatever a test wants, for joining and the inventory: it has no things of its own to make."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from groundcontrol.kernel.errors import NotFound, Unavailable
from groundcontrol.ports.cloud import CloudFacts, CloudObserved, Endpoint, Host, Probe, QuotaUse, Thing

DAY = 86_400.0
SERVICES = ("identity", "compute", "network")


def endpoint(service: str, at: float, **changes: Any) -> Endpoint:
    """A service that answers well."""
    given = {"url": f"https://{service}.example.org:5000/v3", "version": "2.96", "minimum": "2.1", "trusted": True}
    given |= {"expires": at + 90 * DAY, "skew": 0.2}
    return Endpoint(service=service, **{**given, **changes})


def facts(at: float, **changes: Any) -> CloudFacts:
    """A small cloud in good order."""
    given: dict[str, Any] = {
        "regions": ("one",),
        "zones": ("nova",),
        "endpoints": tuple(endpoint(s, at) for s in SERVICES),
        "hosts": (Host(name="h1", up=True, cores=8), Host(name="h2", up=False), Host(name="h3", enabled=False)),
        "quotas": (QuotaUse(project="p-1", resource="cores", limit=100, used=30, reserved=10),),
        "roles": ("member",),
        "project": "p-1",
        "looked": dict.fromkeys(("endpoints", "quotas", "hosts", "flavor", "image", "server"), at),
        "cores": 8.0,
        "memory_mb": 16_384,
    }
    return CloudFacts(**{**given, **changes})


def flavor(name: str, cores: int, memory_mb: int, *, public: bool = True, **properties: str) -> Thing:
    fields = {"cores": cores, "memory_mb": memory_mb, "disk_gb": 20, "public": public, "properties": properties}
    return Thing(type="flavor", id=f"f-{name}", name=name, fields=fields)


def image(name: str, visibility: str = "public", **properties: str) -> Thing:
    fields = {"visibility": visibility, "properties": properties}
    return Thing(type="image", id=f"i-{name}", name=name, fields=fields)


@dataclass
class SayingCloud:
    """Implements `ports.cloud.Cloud` as far as looking goes, and `Joining`."""

    facts: CloudFacts = field(default_factory=lambda: facts(time.time()))
    things: tuple[Thing, ...] = (flavor("small", 2, 2048), flavor("large", 8, 16_384), image("debian-12"))
    complete: bool = True
    problems: tuple[str, ...] = ()
    down: bool = False
    answers: dict[str, Probe] = field(
        default_factory=lambda: {
            "own-servers": Probe("allowed", "GET /servers: 200"),
            "all-users": Probe("refused", "GET /users: 403"),
        }
    )
    stuck: bool = False
    """Whether calls that prove a right hang until `release`."""
    probed: list[str] = field(default_factory=list)
    fencing = "neither"
    _changes: int = 1
    _released: threading.Event = field(default_factory=threading.Event)

    @property
    def probes(self) -> frozenset[str]:
        return frozenset(self.answers)

    def release(self) -> None:
        self._released.set()

    def probe(self, name: str) -> Probe:
        self.probed.append(name)
        if self.stuck:
            self._released.wait(60.0)
        return self.answers[name]

    def changed(self) -> None:
        """Something is another now."""
        self._changes += 1

    def look(self) -> CloudObserved:
        if self.down:
            raise Unavailable("connection refused")
        return CloudObserved(
            things=self.things,
            complete=self.complete,
            sequence=self._changes,
            facts=self.facts,
            problems=self.problems,
        )

    def wait(self, since: int, timeout: float) -> int:
        until = time.monotonic() + timeout
        while time.monotonic() < until and self._changes == since:
            if self.down:
                raise Unavailable("connection refused")
            time.sleep(0.01)
        return self._changes

    def get(self, type: str, id: str) -> Thing:
        raise NotFound(f"no {type} {id}")

    def find(self, change_key: str) -> tuple[tuple[str, str], ...]:
        return ()

    def close(self) -> None:
        self._released.set()
