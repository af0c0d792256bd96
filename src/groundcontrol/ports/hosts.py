"""A host of processes as the kernel's world sees it: one listing, one wait, one direct look."""

from __future__ import annotations

from typing import Any

from groundcontrol.kernel.world import Fencing, Item, Listing
from groundcontrol.ports.processes import Processes

UNIT = "unit"
"""The one type of thing at a host."""
CHANGE_TAG = "change"
"""The tag that carries the change key of the call that made a unit."""


class HostInstance:
    """Implements `kernel.world.DriverInstance` over the `Processes` port."""

    def __init__(self, port: Processes) -> None:
        self.port = port
        self.fencing: Fencing = port.fencing

    def look(self) -> Listing:
        host = self.port.look()
        return Listing({(UNIT, u.id): u for u in host.units}, host.complete, host.problems, host.sequence, host)

    def wait(self, since: int, timeout: float) -> int:
        return self.port.wait(since, timeout)

    def direct(self, item: Item) -> Any:
        return self.port.get(item[1])

    def find(self, change_key: str) -> tuple[Item, ...]:
        return tuple((UNIT, unit_id) for unit_id in self.port.find(CHANGE_TAG, change_key))

    def close(self) -> None:
        close = getattr(self.port, "close", None)
        if close:
            close()
