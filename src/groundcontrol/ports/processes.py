"""What a host that runs services can do: start, look at, change in place and stop processes, and watch for change.

A `Unit` is one process tree with its own directory, log, address and limits. The caller chooses the unit's id, so a
repeated `create` finds the first one. Every call either returns, or raises one of `kernel.errors`: `Unavailable` when
the call certainly did nothing, `OutcomeUnknown` when it may have happened, `Conflict` when `if_revision` no longer
holds, `NotFound`, `Invalid`, `Fenced` when the epoch is older than one the host has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import msgspec

Fencing = Literal["fences", "idempotent", "neither"]
UnitState = Literal["running", "exited", "stopped", "lost"]
"""`running`; `exited` by itself; `stopped` by us; `lost`: it was running when the host (machine) went down."""


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the host tells whether the unit is healthy."""

    kind: Literal["http", "tcp", "command", "none"] = "none"
    port: int = 0
    path: str = "/"
    command: tuple[str, ...] = ()
    interval: float = 1.0
    """Seconds from the end of one probe to the start of the next."""
    timeout: float = 2.0
    """Seconds before one probe counts as failed."""
    failures: int = 3
    """Failed probes in a row before `healthy` becomes False."""
    successes: int = 1
    """Good probes in a row before `healthy` becomes True."""
    start_period: float = 0.0
    """Seconds after start in which failed probes do not count."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Limits of one unit; 0 means none. Enforced with setrlimit, and with cgroups where the host has them."""

    memory_mb: int = 0
    cores: float = 0.0
    """Counted against the host's capacity; enforced only where cgroups are writable."""
    open_files: int = 0
    processes: int = 0


class UnitSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a unit should be."""

    command: tuple[str, ...]
    """Program and arguments; no shell. `{address}`, `{port.NAME}`, `{dir}` and `{python}` are replaced."""
    env: dict[str, str] = {}
    """The whole environment besides PATH, HOME, LANG, GROUND_ADDRESS, GROUND_PORT_<NAME> and GROUND_DIR; nothing is
    inherited."""
    secret_env: dict[str, str] = {}
    """As `env`, never logged, never returned by `list`; only a keyed hash of it is observed."""
    ports: dict[str, int] = {}
    """Name to port number on the unit's own address."""
    files: dict[str, str] = {}
    """Relative path below the unit's directory to content (text); replaced in place when changed."""
    check: Check = Check()
    limits: Limits = Limits()
    user: str = ""
    """Tenant whose user id the unit runs under (one uid per tenant, allocated by the host); empty: the host's own."""
    run_once: bool = False
    """The unit is expected to exit 0 and then is complete."""
    stop_grace: float = 5.0
    """Seconds between SIGTERM and SIGKILL."""


class UnitObserved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a unit is, as its host sees it now."""

    id: str
    tags: dict[str, str]
    """Set at create: `installation`, `owner` (resource uid), `owner_key`, `change` (change key)."""
    revision: int
    """Grows by one with every change of the unit's spec or run; what `if_revision` is held against."""
    spec: UnitSpec
    """As it is *in the world*: files read back from disk, limits read back from the running process. `secret_env` is
    never returned; `secret_hash` stands for it."""
    secret_hash: str = ""
    state: UnitState
    address: str
    pid: int = 0
    started: float = 0.0
    """When the running (or last) process began, seconds since the epoch."""
    starts: int = 0
    """How many times the host started it, for whatever reason."""
    exits: int = 0
    """How many times it ended without our asking."""
    exit_code: int | None = None
    """Of the last end; negative: the signal; None: unknown (it ended while nobody could wait for it)."""
    exited: float = 0.0
    """When it last ended, seconds since the epoch; 0 when it never did."""
    healthy: bool | None = None
    """None: not probed yet, or no check declared."""
    health_message: str = ""
    health_since: float = 0.0
    """When `healthy` last changed."""
    probed: float = 0.0
    """When the last probe ended."""


class HostObserved(msgspec.Struct, frozen=True, kw_only=True):
    """One complete listing of a host."""

    units: tuple[UnitObserved, ...]
    complete: bool
    """False when something could not be read: then absence says nothing."""
    sequence: int
    """The host's change counter at the time of listing; give it to `wait`."""
    time: float
    """The host's clock when the listing was made."""
    cores: float
    memory_mb: int
    """Capacity offered, not what is free."""
    isolates_users: bool
    """True when units of different `user` run under different user ids."""
    problems: tuple[str, ...] = ()
    """What could not be read, or looks wrong (for example two processes claiming one unit)."""


class LogChunk(NamedTuple):
    """A piece of a unit's log."""

    text: str
    offset: int
    """Where the next read should begin, bytes."""


# msgspec describes a type to itself when it is first used, and two threads that do so at once crash the process; so
# that is done here, by the one thread that imports. Decoded types of other modules do the same.
msgspec.json.Decoder(HostObserved)
msgspec.json.Decoder(LogChunk)


class Processes(Protocol):
    """A host that runs units. Implemented by `drivers.local` (in process and through an agent) and by the twin."""

    fencing: Fencing

    def look(self) -> HostObserved:
        """List everything on the host, in one answer."""

    def wait(self, since: int, timeout: float) -> int:
        """Block until the change counter passes `since` or `timeout` seconds went by; return the counter.

        Changes that count: a unit appears, goes, starts, ends, changes health, or is edited by hand."""

    def find(self, tag: str, value: str) -> tuple[str, ...]:
        """Ids of the units carrying this tag: how an unknown `create` is found again."""

    def get(self, unit_id: str) -> UnitObserved:
        """One unit, looked at directly; NotFound is proof of absence."""

    def create(self, unit_id: str, spec: UnitSpec, tags: dict[str, str], *, epoch: int) -> UnitObserved:
        """Make the unit and start it. A second create of the same id and spec returns the first."""

    def update(self, unit_id: str, spec: UnitSpec, *, if_revision: int, epoch: int) -> UnitObserved:
        """Change in place what can be (files, limits, check); Invalid when a field needs a new unit."""

    def start(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        """Start a unit that is not running."""

    def stop(self, unit_id: str, *, if_revision: int, epoch: int) -> UnitObserved:
        """Stop a running unit: SIGTERM, grace, SIGKILL to the whole tree; returns once it is gone."""

    def delete(self, unit_id: str, *, epoch: int) -> None:
        """Stop the unit and remove what it left; deleting what is not there is done already."""

    def log(self, unit_id: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        """Read the unit's output from byte `offset`; a negative offset counts from the end."""

    def follow(self, unit_id: str, offset: int = 0) -> Iterator[LogChunk]:
        """Read as it is written, until the caller stops."""
