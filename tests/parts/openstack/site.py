"""What the tests of the real clouds share: a cloud with its people, and waiting for what is asked for there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from openstack import exceptions
from openstack.connection import Connection

from testbed.openstack.cloud import Running

LONGEST = 180.0
"""Seconds; a loaded machine is no failure. What comes true earlier ends the wait."""
T = TypeVar("T")


def until(what: str, look: Callable[[], T | None]) -> T:
    """The first answer that is neither None nor False."""
    deadline = time.monotonic() + LONGEST
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not so after {LONGEST:.0f} s: {what}"
        time.sleep(0.2)


def fresh(word: str) -> str:
    """A name that nothing has yet."""
    return f"{word}-{uuid.uuid4().hex[:8]}"


@dataclass
class Site:
    """One cloud: its processes, alice of alpha, the administrator, bob of beta."""

    running: Running
    member: Connection
    admin: Connection
    other: Connection

    def image(self, name: str = "debian-12") -> Any:
        return self.member.image.find_image(name, ignore_missing=False)

    def flavor(self, name: str = "m1.tiny") -> Any:
        return self.member.compute.find_flavor(name, ignore_missing=False)

    def boot(self, who: Connection | None = None, networks: Any = "none", status: str = "ACTIVE", **more: Any) -> Any:
        """A server, once it has come to that status."""
        spec = {"flavor_id": self.flavor().id, "image_id": self.image().id, "networks": networks} | more
        server = (who or self.member).compute.create_server(name=fresh("server"), **spec)
        return self.wait(server, status)

    def see(self, server: Any) -> Any:
        return self.admin.compute.get_server(server.id)

    def wait(self, server: Any, status: str) -> Any:
        """Until a server rests in this status."""

        def look() -> Any:
            seen = self.see(server)
            if seen.status == "ERROR" and status != "ERROR":
                raise AssertionError(f"{seen.name} is in ERROR: {(seen.fault or {}).get('message')}")
            return seen if seen.status == status and not seen.task_state else None

        return until(f"{server.name} is {status}", look)

    def host(self, server: Any) -> str:
        return str(self.see(server).compute_host)

    def delete(self, server: Any) -> None:
        """Delete a server and wait until it is gone."""
        self.admin.compute.delete_server(server, ignore_missing=True)
        until(f"{server.name} is gone", lambda: self.gone(server))

    def gone(self, server: Any) -> bool:
        try:
            self.see(server)
        except exceptions.NotFoundException:
            return True
        return False

    def compute_service(self, host: str) -> Any:
        return next(s for s in self.admin.compute.services(binary="nova-compute") if s.host == host)

    @contextmanager
    def server(self, **spec: Any) -> Iterator[Any]:
        found = self.boot(**spec)
        try:
            yield found
        finally:
            self.delete(found)
