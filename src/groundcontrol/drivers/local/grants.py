"""Hands out what a host has: a user id to each tenant, an address to each unit, and room while there is some."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import threading
from collections.abc import Iterable

from groundcontrol.drivers.local.state import Place
from groundcontrol.kernel.errors import Conflict, Invalid, Problem
from groundcontrol.ports.processes import UnitSpec


def check_room(unit_id: str, spec: UnitSpec, others: Iterable[UnitSpec], cores: float, memory_mb: int) -> None:
    """Raise Conflict when a capacity of `cores` and `memory_mb` does not hold the unit besides all others."""
    others = tuple(others)
    # A sum of tenths is not exact.
    free_cores = round(cores - sum(other.limits.cores for other in others), 6)
    free_memory = memory_mb - sum(other.limits.memory_mb for other in others)
    if spec.limits.cores > free_cores or spec.limits.memory_mb > free_memory:
        raise Conflict(
            f"no room for unit {unit_id}: it asks for {spec.limits.cores:g} cores and {spec.limits.memory_mb} MB; free"
            f" are {max(0.0, free_cores):g} of {cores:g} cores and {max(0, free_memory)} of {memory_mb} MB"
        )


class Tenants:
    """Tenant to user id, remembered for ever: files a tenant left must never become another's."""

    def __init__(self, place: Place, uid_range: tuple[int, int]) -> None:
        self._place = place
        self._range = uid_range
        self._lock = threading.Lock()
        self.isolates = os.geteuid() == 0

    def uid(self, user: str) -> int | None:
        """The user id to run under; None: the host's own."""
        if not user:
            return None
        with self._lock:
            tenants = self._place.host.tenants
            if not self.isolates:
                self._check_only(user, tenants)
                return None
            if user not in tenants:
                self._check_passage()
                taken = set(tenants.values())
                free = (number for number in range(self._range[0], self._range[1] + 1) if number not in taken)
                number = next(free, None)
                if number is None:
                    first, last = self._range
                    raise Conflict(f"no user id is left in {first}-{last} for tenant {user!r}: widen --uid-range")
                tenants[user] = number
                self._place.save_host()
            return tenants[user]

    def _check_only(self, user: str, tenants: dict[str, int]) -> None:
        """Without root there is one user id, so there may be one tenant."""
        if not tenants:
            tenants[user] = os.geteuid()
            self._place.save_host()
        if user not in tenants:
            remedy = "run the agent as root, or give this tenant a host of its own"
            text = f"this host is not root and serves tenant {next(iter(tenants))!r}: it cannot keep {user!r} apart"
            raise Invalid(problems=(Problem(text, "user", remedy=remedy),))

    def _check_passage(self) -> None:
        """A tenant reaches its directory only when every folder above lets others pass."""
        folder = self._place.root
        while True:
            if not os.stat(folder).st_mode & 0o001:
                remedy = f"chmod o+x {folder}, or choose a root elsewhere (for example /var/lib/ground)"
                text = f"other user ids cannot pass through {folder} to their units' directories"
                raise Invalid(problems=(Problem(text, "user", remedy=remedy),))
            if folder == "/":
                return
            folder = os.path.dirname(folder)


class Addresses:
    """Loopback addresses of one host; one is not given again while its unit exists, nor soon after."""

    def __init__(self, network: str, root: str) -> None:
        if not network:
            # Hosts of one machine must not share addresses; the root tells them apart.
            number = int.from_bytes(hashlib.sha256(root.encode()).digest()[:4], "big") % (240 * 16)
            network = f"127.{16 + number // 16}.{number % 16 * 16}.0/20"
        try:
            self.network = ipaddress.IPv4Network(network)
        except ValueError as problem:
            raise Invalid(f"addresses: {network!r} is not an IPv4 network: {problem}") from None
        if not self.network.is_loopback or self.network.prefixlen > 30:
            raise Invalid(f"addresses: {network} is not a part of 127.0.0.0/8 with room for two")
        self._taken: set[str] = set()
        self._next = 0

    def keep(self, address: str) -> None:
        """An address of a unit that exists already."""
        self._taken.add(address)
        number = int(ipaddress.IPv4Address(address)) - int(self.network.network_address)
        self._next = max(self._next, number) if 0 < number < self.network.num_addresses else self._next

    def take(self) -> str:
        room = self.network.num_addresses - 2
        for _ in range(room):
            self._next = self._next % room + 1
            address = str(self.network.network_address + self._next)
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise Conflict(f"no address is left in {self.network}: {len(self._taken)} units hold them all")

    def release(self, address: str) -> None:
        self._taken.discard(address)
