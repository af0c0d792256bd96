"""What is known of the world: a dated snapshot per driver instance, kept fresh by one observer thread each.

A snapshot comes from one bulk listing and is marked complete or partial. Absence counts only from a complete listing
begun after our last write *and* a direct look that says "not there". When more than a bounded share vanishes at once,
nothing of that listing is believed and the instance is held until the things are back or a person confirms the loss:
a dead cell must not look like deleted servers. An instance that does not answer delays nobody but its own resources.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from groundcontrol.kernel.errors import GroundError, NotFound, Unavailable
from groundcontrol.kernel.plan import Target

log = logging.getLogger(__name__)

Item = tuple[str, str]
"""(type, id) of a thing at one driver instance."""
Fencing = Literal["fences", "idempotent", "neither"]
"""What a driver can promise about a call of a worker whose lease is over or a call made twice: it refuses stale
epochs; it makes no second thing; neither."""


class Listing(NamedTuple):
    """One bulk look, as a driver instance answers it."""

    items: Mapping[Item, Any]
    complete: bool = True
    problems: tuple[str, ...] = ()
    sequence: int = 0
    """Change counter of the far side, for `wait`."""
    facts: Any = None
    """What else the far side said of itself, for example its capacity."""


class DriverInstance(Protocol):
    """One product at one place, as the kernel sees it. All calls are synchronous and bounded in time."""

    fencing: Fencing

    def look(self) -> Listing:
        """List everything."""

    def wait(self, since: int, timeout: float) -> int:
        """Return when something changed after `since`, or after `timeout` seconds; the new change counter."""

    def direct(self, item: Item) -> Any:
        """Look at one thing; NotFound is proof of absence."""

    def find(self, change_key: str) -> tuple[Item, ...]:
        """Things that carry this change key."""

    def close(self) -> None:
        """Let go of connections."""


@dataclass(frozen=True)
class Snapshot:
    """What is believed of one driver instance."""

    instance: str
    items: Mapping[Item, Any] = field(default_factory=dict)
    complete: bool = False
    began: float = 0.0
    """When the listing was asked for; what was written later is not in it."""
    ended: float = 0.0
    """When the instance last said that this is so."""
    reachable: bool = False
    since: float = 0.0
    """When `reachable` last changed."""
    error: str = ""
    """Why it cannot be looked at."""
    held: str = ""
    """Why its listings are not believed; empty when they are."""
    problems: tuple[str, ...] = ()
    facts: Any = None
    sequence: int = 0
    """Change counter of the far side when it was listed."""
    number: int = 0
    """How manieth look of this observer it was; what was written after that look began is not in it."""
    unseen: frozenset[Item] = frozenset()
    """What the last listing did not name and `items` has from an earlier one."""

    def trusted(self, now: float, stale_after: float) -> bool:
        """Whether it may be spoken of as what is so now."""
        return self.reachable and not self.held and now - self.ended <= stale_after


class Seen(NamedTuple):
    """The answer to "is this thing there?"."""

    truth: Literal["present", "absent", "unknown"]
    item: Any = None
    reason: str = ""
    """Word for a condition, when unknown."""
    message: str = ""


@dataclass(frozen=True)
class Watching:
    """How closely driver instances are watched; seconds."""

    wait: float = 2.0
    """Longest wait for a change before asking again."""
    stale_after: float = 15.0
    """Age from which knowledge is `Unknown`."""
    relist: float = 30.0
    """Everything is listed at least this often."""
    retry: float = 0.5
    """First wait after a failed look; doubles up to `retry_max`."""
    retry_max: float = 5.0
    vanished_share: float = 0.5
    """When more than this share is gone at once (and more than `vanished_floor` things), nothing is believed."""
    vanished_floor: int = 2


class World:
    """All driver instances. `on_change(instance, items)` is called when what is believed of them changed;
    `items` is None when everything may have. `expected(instance)` are the things the store says are there."""

    def __init__(
        self,
        watching: Watching,
        on_change: Callable[[str, frozenset[Item] | None], None],
        expected: Callable[[str], Set[Item]] = lambda name: frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.watching, self.expected, self.clock = watching, expected, clock
        self._on_change = on_change
        self._began = clock()
        self._observers: dict[str, Observer] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watchdog: threading.Thread | None = None

    def attach(self, name: str, instance: DriverInstance, identity: str = "") -> None:
        """Watch this instance from now on. `identity` says when a second call means the same connection."""
        with self._lock:
            old = self._observers.get(name)
            if old and identity and old.identity == identity:
                if instance is not old.instance:
                    instance.close()
                return
            self._observers[name] = observer = Observer(self, name, instance, identity)
            if self._watchdog is None:
                self._watchdog = threading.Thread(target=self._watch_age, name="world-age", daemon=True)
                self._watchdog.start()
        if old:
            old.stop()
            observer.inherit(old)
        observer.start()

    def detach(self, name: str) -> None:
        with self._lock:
            observer = self._observers.pop(name, None)
        if observer:
            observer.stop()

    @property
    def starting(self) -> bool:
        """Whether it began so recently that an instance not looked at yet may just have had no time to answer."""
        return self.clock() - self._began < self.watching.stale_after

    def names(self) -> tuple[str, ...]:
        return tuple(self._observers)

    def identity(self, name: str) -> str:
        observer = self._observers.get(name)
        return observer.identity if observer else ""

    def close(self) -> None:
        self._closed.set()
        for name in self.names():
            self.detach(name)

    def _watch_age(self) -> None:
        """Says so when knowledge becomes stale: an instance that hangs for ever in a look never fails in it."""
        while not self._closed.wait(min(1.0, self.watching.stale_after / 4)):
            with self._lock:
                observers = tuple(self._observers.values())
            for observer in observers:
                observer.check_age()

    def instance(self, name: str) -> DriverInstance:
        """The connection; Unavailable when nobody attached it."""
        return self._observer(name).instance

    def snapshot(self, name: str) -> Snapshot:
        observer = self._observers.get(name)
        return observer.snapshot if observer else Snapshot(name, error=f"{name} is not attached")

    def trusted(self, name: str) -> bool:
        return self.snapshot(name).trusted(self.clock(), self.watching.stale_after)

    def seen(self, target: Target) -> Seen:
        """Whether a thing is there, or why that is not known. Looks directly before it says absent."""
        observer = self._observers.get(target.driver)
        first = observer is None or not (observer.snapshot.ended or observer.snapshot.error)
        if first and self.starting:
            return Seen("unknown", None, "Looking", f"{target.driver} is being looked at for the first time")
        if observer is None:
            return Seen("unknown", None, "NotAttached", f"{target.driver} is not attached")
        snapshot, item = observer.snapshot, (target.type, target.id)
        present = snapshot.items.get(item)
        if snapshot.held:
            return Seen("unknown", present, "Held", snapshot.held)
        if not snapshot.trusted(self.clock(), self.watching.stale_after):
            return Seen("unknown", present, *_why(snapshot))
        if snapshot.number <= observer.wrote.get(item, -1):
            observer.poke()
            return Seen("unknown", present, "Looking", f"{target.driver} has not been listed since the last change")
        if present is not None and item not in snapshot.unseen:
            return Seen("present", present)
        if not snapshot.complete:
            return Seen("unknown", present, "PartialListing", f"the last listing of {target.driver} was not complete")
        try:
            return Seen("present", observer.instance.direct(item))
        except NotFound:
            return Seen("absent")
        except GroundError as error:
            return Seen("unknown", None, error.reason, error.message)

    def wrote(self, target: Target, gone: bool = False) -> None:
        """Say that a change was made: older listings say nothing about this thing. `gone`: it was removed."""
        observer = self._observers.get(target.driver)
        if observer:
            observer.note_write((target.type, target.id), gone)

    def refreshed(self, name: str, after: float) -> bool:
        """Whether a listing begun after `after` is here; asks for one when not."""
        observer = self._observers.get(name)
        if observer is None:
            return False
        snapshot = observer.snapshot
        if snapshot.reachable and snapshot.began > after and not snapshot.held:
            return True
        observer.poke()
        return False

    def failed(self, name: str, error: GroundError) -> None:
        """A call failed: look again now rather than at the next turn."""
        observer = self._observers.get(name)
        if observer and isinstance(error, Unavailable):
            observer.poke()

    def confirm_loss(self, name: str) -> None:
        """A person says that what vanished is really gone."""
        self._observer(name).confirm()

    def _observer(self, name: str) -> Observer:
        try:
            return self._observers[name]
        except KeyError:
            raise Unavailable(f"{name} is not attached; is its Site there and active?") from None

    def changed(self, name: str, items: frozenset[Item] | None) -> None:
        try:
            self._on_change(name, items)
        except Exception:
            log.exception("cannot say what changed", extra={"instance": name})


def _why(snapshot: Snapshot) -> tuple[str, str]:
    if not snapshot.began and snapshot.reachable is False and not snapshot.error:
        return "NotLooked", f"{snapshot.instance} has not answered yet"
    detail = f": {snapshot.error}" if snapshot.error else ""
    if not snapshot.ended:
        return "Unreachable", f"{snapshot.instance} has never answered{detail}"
    last = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(snapshot.ended))
    return "Unreachable", f"{snapshot.instance} does not answer, last seen {last}{detail}"


class Observer:
    """Keeps one driver instance's snapshot fresh, on threads of its own."""

    def __init__(self, world: World, name: str, instance: DriverInstance, identity: str) -> None:
        self.name, self.instance, self.identity = name, instance, identity
        self.snapshot = Snapshot(name)
        self.wrote: dict[Item, int] = {}
        """Item to the number of the last look that had begun when it was written."""
        self._world = world
        self._number = 0
        self._known: set[Item] | None = None
        """What a listing must not suddenly lack; None before the first listing."""
        self._gone: set[Item] = set()
        """What we removed: its absence is no surprise."""
        self._confirmed = False
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        """The snapshot is another one, or the end has come."""
        self._stopping = threading.Event()
        self._poked = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"observe-{name}", daemon=True)
        self._waiter = threading.Thread(target=self._wait_for_changes, name=f"wait-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._waiter.start()

    def stop(self) -> None:
        """Look no more. What a look under way still brings is not believed."""
        self._stopping.set()
        self._poked.set()
        with self._news:
            self._news.notify_all()
        try:
            self.instance.close()
        except Exception:
            log.exception("cannot close a driver instance", extra={"instance": self.name})

    def inherit(self, old: Observer) -> None:
        """Take over what the last connection knew, as knowledge of its age."""
        with old._lock:
            self.snapshot = replace(old.snapshot, reachable=False)
            self.wrote, self._gone, self._known = dict(old.wrote), set(old._gone), old._known
            self._number = old._number

    def check_age(self) -> None:
        """Say that nothing is known any more when the last answer is too old."""
        snapshot, age = self.snapshot, self._world.clock() - self.snapshot.ended
        if snapshot.reachable and age > self._world.watching.stale_after:
            self._unreachable(Unavailable(f"it has not answered for {age:.0f} s"))
            self.poke()

    def poke(self) -> None:
        """Look now."""
        self._poked.set()

    def note_write(self, item: Item, gone: bool) -> None:
        with self._lock:
            self.wrote[item] = self._number
            (self._gone.add if gone else self._gone.discard)(item)
        self.poke()

    def confirm(self) -> None:
        self._confirmed = True
        self.poke()

    def _run(self) -> None:
        watching = self._world.watching
        retry = watching.retry
        while not self._stopping.is_set():
            self._poked.clear()
            with self._lock:
                self._number += 1
                number, began = self._number, self._world.clock()
            started = time.monotonic()
            try:
                self._accept(number, began, self.instance.look())
            except Exception as error:
                if self._stopping.is_set():
                    return
                self._unreachable(error)
                # A poke shortens a long wait, but must not become a busy loop against a dead site.
                self._stopping.wait(watching.retry)
                self._poked.wait(max(0.0, retry - watching.retry))
                retry = min(retry * 2, watching.retry_max)
                continue
            retry = watching.retry
            took = time.monotonic() - started
            self._poked.wait(watching.relist)
            # Changes that come together are seen together, and looking takes half of the time at most.
            self._stopping.wait(min(max(0.01, took), 1.0))

    def _wait_for_changes(self) -> None:
        """The long poll, beside the looks, so that a look that was asked for need not wait for it to end."""
        watching = self._world.watching
        while not self._stopping.is_set():
            base = self.snapshot
            if not base.reachable:
                self._another(base)
                continue
            began = time.monotonic()
            try:
                reached = self.instance.wait(base.sequence, watching.wait)
            except Exception as error:
                if self._stopping.is_set():
                    return
                log.debug("wait failed", extra={"instance": self.name, "error": str(error)})
                self.poke()
                self._stopping.wait(watching.retry)
                continue
            if reached == base.sequence:
                with self._lock:  # nothing changed until now; what was listed meanwhile knows better
                    if self.snapshot is base:
                        self.snapshot = replace(base, ended=self._world.clock())
                if time.monotonic() - began < 0.1:
                    self._stopping.wait(0.1)  # one that does not really wait must not spin
            else:
                self.poke()
                self._another(base)

    def _another(self, base: Snapshot) -> None:
        """Wait for another snapshot than this one."""
        with self._news:
            self._news.wait_for(lambda: self.snapshot is not base or self._stopping.is_set(), 1.0)

    def _unreachable(self, error: Exception) -> None:
        message = error.message if isinstance(error, GroundError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, GroundError):
            log.error("look failed", exc_info=error, extra={"instance": self.name})
        with self._news:
            before = self.snapshot
            first = before.reachable or not before.error
            since = self._world.clock() if first else before.since
            self.snapshot = replace(before, reachable=False, error=message, since=since)
            self._news.notify_all()
        if first:
            log.warning("driver instance does not answer", extra={"instance": self.name, "error": message})
            self._world.changed(self.name, None)

    def _accept(self, number: int, began: float, listing: Listing) -> None:
        items, now = dict(listing.items), self._world.clock()
        # The first listing after a start is held against what the store says is there.
        expected = set(self._world.expected(self.name)) if self._known is None else set()
        with self._news:
            if self._stopping.is_set():
                return
            before = self.snapshot
            known = expected if self._known is None else self._known
            settled = frozenset(k for k, at in self.wrote.items() if at < number)
            for item in settled:
                del self.wrote[item]
            held = "" if listing.complete else before.held
            if listing.complete:
                held = self._missing(known, items.keys())
                self._confirmed = False
            believed = listing.complete and not held
            unseen: frozenset[Item] = frozenset()
            if believed:
                self._known = set(items)
                self._gone &= items.keys()
            else:
                # What such a listing does not name is not gone; it is kept as it was last seen.
                self._known = known | items.keys()
                unseen = frozenset(before.items.keys() - items.keys() - self._gone)
                items = {**{k: before.items[k] for k in unseen}, **items}
            self.snapshot = after = Snapshot(
                self.name,
                items,
                listing.complete,
                began,
                now,
                True,
                before.since if before.reachable else now,
                held=held,
                problems=listing.problems,
                facts=listing.facts,
                sequence=listing.sequence,
                number=number,
                unseen=unseen,
            )
            self._news.notify_all()
        self._tell(before, after, settled)

    def _missing(self, known: Set[Item], found: Set[Item]) -> str:
        """Why a complete listing is not believed; empty when it is."""
        watching, missing = self._world.watching, known - found - self._gone
        if self._confirmed or len(missing) <= max(watching.vanished_floor, watching.vanished_share * len(known)):
            return ""
        return (
            f"{len(missing)} of {len(known)} things vanished from {self.name} at once; nothing is done"
            " there until they are back or somebody confirms the loss"
        )

    def _tell(self, before: Snapshot, after: Snapshot, settled: frozenset[Item]) -> None:
        whole = not before.reachable or after.held != before.held or after.complete != before.complete
        touched = settled | (before.unseen ^ after.unseen)
        touched |= {k for k in {*after.items, *before.items} if after.items.get(k) != before.items.get(k)}
        if not before.reachable and before.error:
            log.info("driver instance answers again", extra={"instance": self.name})
        if whole or touched:
            self._world.changed(self.name, None if whole else touched)
