"""Who is looked at next: a level-triggered keyed queue with priorities, shards, back-off and a breaker per shard.

Every resource a reconciler looks after is one item of the queue, once, however often something is heard of it. Items
are sharded by driver instance; a shard has a bounded number of turns in flight and a breaker, so that a dead site
cannot fill the pool. What a person changed goes before what the world did, and that before the regular look.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from groundcontrol.kernel.claims import being_made, owners_at
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.plan import STORE
from groundcontrol.kernel.reconcile import Reconciler
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.turn import Outcome, Turns
from groundcontrol.kernel.tx import Event
from groundcontrol.kernel.world import Item as Thing
from groundcontrol.kernel.world import World

log = logging.getLogger(__name__)

PERSON, WORLD, RESYNC = 0, 1, 2
"""Priorities: what a person changed, what the world did, the regular look."""


@dataclass(frozen=True)
class Pace:
    """How the loop is paced; times in seconds."""

    workers: int = 16
    in_flight: int = 4
    """Turns under way at once per driver instance; never more than half of the workers."""
    patience: float = 10.0
    """A turn that takes longer gets its worker replaced, so that calls that hang do not use up the pool."""
    resync: float = 300.0
    """Everything is looked at at least this often."""
    backoff: float = 0.5
    """First wait after a failed turn; doubles up to `backoff_max`."""
    backoff_max: float = 60.0
    breaker_failures: int = 5
    """Calls without an answer in a row that open a driver instance's breaker."""
    breaker_reset: float = 5.0
    """Time before one turn may try again."""


@dataclass(eq=False)
class _Item:
    reconciler: Reconciler[Any]
    key: Key
    shard: str = STORE
    priority: int = RESYNC
    ticket: int = 0
    """Of the queue entry that counts; older entries are passed over."""
    queued: bool = False
    running: bool = False
    dirty: int | None = None
    """The priority of what was heard while it ran."""
    due: float = 0.0
    then: int = RESYNC
    """The priority it gets when it is due."""
    began: float = 0.0
    failures: int = 0


@dataclass
class _Shard:
    limit: int
    ready: tuple[deque[tuple[int, _Item]], ...] = field(default_factory=lambda: (deque(), deque(), deque()))
    offered: list[bool] = field(default_factory=lambda: [False, False, False])
    """Whether it stands in the line of a priority."""
    in_flight: int = 0
    failures: int = 0
    open_until: float = 0.0
    """0 while the breaker is closed; later than now: nothing is tried; else one at a time is."""

    def has_room(self, at: float) -> bool:
        return self.in_flight < (1 if self.open_until else self.limit) and self.open_until <= at

    def waiting(self) -> int:
        return sum(len(q) for q in self.ready)


class Controller:
    """Runs all reconcilers. `start` begins with everything; `stop` lets turns under way finish."""

    def __init__(
        self,
        store: Store,
        world: World,
        turns: Turns,
        reconcilers: Sequence[Reconciler[Any]],
        pace: Pace,
        *,
        instance_kinds: dict[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.world, self.turns, self.pace, self._clock = store, world, turns, pace, clock
        self.reconcilers = tuple(reconcilers)
        self._by_kind: dict[str, list[Reconciler[Any]]] = {}
        for reconciler in self.reconcilers:
            self._by_kind.setdefault(reconciler.kind.__name__, []).append(reconciler)
        self._watchers: dict[str, list[tuple[Reconciler[Any], Any]]] = {}
        for reconciler in self.reconcilers:
            for watch in reconciler.watches:
                self._watchers.setdefault(watch.kind, []).append((reconciler, watch))
        self._instance_kinds = instance_kinds or {}
        """Prefix of a driver instance's name to the kind that stands for it: {"site": "Site"}."""
        self._items: dict[tuple[str, Key], _Item] = {}
        self._shards: dict[str, _Shard] = {}
        self._lines: tuple[deque[str], ...] = (deque(), deque(), deque())
        """Per priority the shards that have something ready and room, each once: they take turns."""
        self._takes = itertools.count(1)
        self._running: dict[_Item, None] = {}
        self._workers, self._workers_wanted = 0, pace.workers
        self._timers: list[tuple[float, int, _Item]] = []
        self._numbers = itertools.count(1)
        self._seen: dict[Key, tuple[Any, ...]] = {}
        self._lock = threading.Lock()
        # Two kinds of waiters need two conditions: `notify` on a shared one could wake the wrong kind, and be lost.
        self._work_ready, self._timer_set = threading.Condition(self._lock), threading.Condition(self._lock)
        self._started = self._stopping = False
        self._threads: list[threading.Thread] = []
        self.turn_count = 0

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Listen, queue everything once, and begin to work."""
        self._subscription = self.store.subscribe()
        self._started = True
        for kind in self._by_kind:
            for entry in self.store.entries(kind):
                self._seen[entry.key] = _intent_of(entry.doc)
                for reconciler in self._by_kind[kind]:
                    self.enqueue(reconciler, entry.key, RESYNC)
        self._spawn("pump", self._pump)
        self._spawn("timer", self._tick)
        with self._lock:
            self._staff(self._clock())

    def _spawn(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _staff(self, at: float) -> None:
        """As many workers as wanted, besides those that hang in a call."""
        stuck = sum(at - item.began > self.pace.patience for item in self._running)
        self._workers_wanted = self.pace.workers + stuck
        while self._workers < self._workers_wanted:
            self._workers += 1
            self._spawn(f"turn-{self._workers}", self._work)
        if self._workers > self._workers_wanted:
            self._work_ready.notify_all()  # those too many go home
        self._threads = [t for t in self._threads if t.is_alive()]

    def stop(self, timeout: float = 10.0) -> None:
        """Take no new turns; wait for those under way."""
        with self._lock:
            self._stopping = True
            self._work_ready.notify_all()
            self._timer_set.notify_all()
        if not self._started:
            return
        self._subscription.close()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def idle(self) -> bool:
        """Whether nothing is queued or running (timers aside)."""
        with self._lock:
            return not any(i.queued or i.running for i in self._items.values())

    def state(self) -> dict[str, Any]:
        """Queue lengths and breakers, for `/status` and metrics."""
        with self._lock:
            return {
                "items": len(self._items),
                "turns": self.turn_count,
                "shards": {
                    name: {
                        "waiting": s.waiting(),
                        "inFlight": s.in_flight,
                        "breaker": "open" if s.open_until > self._clock() else "closed",
                    }
                    for name, s in self._shards.items()
                },
            }

    # ── queue ───────────────────────────────────────────────────────────────────────────────────────────────────

    def enqueue(self, reconciler: Reconciler[Any], key: Key, priority: int, delay: float = 0.0) -> None:
        """Look at `key` after `delay` seconds. News from a person ends a wait; other news does not end a back-off."""
        with self._lock:
            item = self._items.get((reconciler.name, key))
            if item is None:
                item = self._items[reconciler.name, key] = _Item(reconciler, key)
            if priority == PERSON:
                item.failures = 0
            elif item.failures and not delay and not item.running and item.due > self._clock():
                return
            self._put(item, priority, delay)

    def wake_uids(self, uids: Sequence[str], priority: int = PERSON) -> None:
        """Look at these resources now."""
        for uid in uids:
            entry = self.store.by_uid(uid)
            if entry:
                for reconciler in self._by_kind.get(entry.key.kind, ()):
                    self.enqueue(reconciler, entry.key, priority)

    def wake_key(self, key: Key) -> None:
        """Look at this resource now."""
        for reconciler in self._by_kind.get(key.kind, ()):
            self.enqueue(reconciler, key, PERSON)

    def _put(self, item: _Item, priority: int, delay: float) -> None:
        if item.running:
            item.dirty = priority if item.dirty is None else min(item.dirty, priority)
            return
        if delay > 0:
            due = self._clock() + delay
            if not item.queued and (not item.due or due < item.due or item.due <= self._clock()):
                item.due, item.then = due, priority
                heapq.heappush(self._timers, (due, next(self._numbers), item))
                if self._timers[0][2] is item:
                    self._timer_set.notify_all()
            return
        if item.queued and item.priority <= priority:
            return
        item.queued, item.priority, item.ticket, item.due = True, priority, next(self._numbers), 0.0
        shard = self._shard(item.shard)
        shard.ready[priority].append((item.ticket, item))
        self._offer(item.shard, shard)

    def _shard(self, name: str) -> _Shard:
        shard = self._shards.get(name)
        if shard is None:
            limit = self.pace.workers if name == STORE else min(self.pace.in_flight, max(1, self.pace.workers // 2))
            shard = self._shards[name] = _Shard(limit)
        return shard

    def _offer(self, name: str, shard: _Shard) -> None:
        """Let the shard stand in line, once per priority, when it has something ready and room."""
        if not shard.has_room(self._clock()):
            return  # whoever makes room offers it again
        for priority, ready in enumerate(shard.ready):
            if ready and not shard.offered[priority]:
                shard.offered[priority] = True
                self._lines[priority].append(name)
                self._work_ready.notify()

    def _take(self) -> _Item | None:
        """The next item whose shard has room; None when this worker is to end."""
        with self._lock:
            while not self._stopping and self._workers <= self._workers_wanted:
                # Now and then the lowest goes first, so that a storm at the top starves nobody.
                lines = (PERSON, WORLD, RESYNC) if next(self._takes) % 8 else (RESYNC, WORLD, PERSON)
                for priority in lines:
                    if item := self._first(priority):
                        return item
                self._work_ready.wait()
            self._workers -= 1
            return None

    def _first(self, priority: int) -> _Item | None:
        line = self._lines[priority]
        while line:
            name = line.popleft()
            shard = self._shards[name]
            shard.offered[priority] = False
            if not shard.has_room(self._clock()):
                continue
            item = self._pop(shard.ready[priority])
            if item is not None:
                shard.in_flight += 1
                item.queued, item.running, item.began = False, True, self._clock()
                self._running[item] = None
                self._offer(name, shard)
                return item
        return None

    @staticmethod
    def _pop(ready: deque[tuple[int, _Item]]) -> _Item | None:
        while ready:
            ticket, item = ready.popleft()
            if item.queued and item.ticket == ticket and not item.running:
                return item
        return None

    # ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while (item := self._take()) is not None:
            name = item.shard
            try:
                outcome = self._turn(item)
            except Exception:
                log.exception("a turn broke", extra={"key": str(item.key), "reconciler": item.reconciler.name})
                outcome = Outcome(failed=True)
            with self._lock:
                self._settle(item, name, outcome)

    def _turn(self, item: _Item) -> Outcome:
        entry = self.store.entry(item.key)
        if entry is None:
            return Outcome()
        try:
            shard = item.reconciler.shard(self.store.kinds.view(entry.doc))
        except GroundError:
            shard = item.shard
        if shard != item.shard:
            # Found out on the first turn; the next goes through the right shard.
            with self._lock:
                item.shard, item.dirty = shard, item.priority
            return Outcome()
        with self._lock:
            self.turn_count += 1
        return self.turns.turn(item.reconciler, item.key)

    def _settle(self, item: _Item, name: str, outcome: Outcome) -> None:
        shard = self._shards[name]
        shard.in_flight -= 1
        item.running = False
        self._running.pop(item, None)
        self._break(name, shard, outcome)
        dirty, item.dirty = item.dirty, None
        if self.store.entry(item.key) is None and dirty is None:
            self._items.pop((item.reconciler.name, item.key), None)
        elif outcome.failed and dirty != PERSON:
            item.failures += 1
            wait = min(self.pace.backoff * 2 ** min(item.failures - 1, 16), self.pace.backoff_max)
            self._put(item, WORLD, wait * random.uniform(0.8, 1.2))
        else:
            item.failures = item.failures if outcome.failed else 0
            if dirty is not None:
                self._put(item, dirty, 0.0)
            elif outcome.again is not None:
                self._put(item, WORLD, outcome.again)
            else:
                self._put(item, RESYNC, self.pace.resync * random.uniform(0.8, 1.2))
        self._offer(name, shard)

    def _break(self, name: str, shard: _Shard, outcome: Outcome) -> None:
        if name == STORE:
            return
        if not outcome.unreachable:
            if outcome.answered:
                shard.failures, shard.open_until = 0, 0.0
            return
        shard.failures += 1
        if shard.failures >= self.pace.breaker_failures:
            if not shard.open_until:
                log.warning("breaker opens", extra={"instance": name, "failures": shard.failures})
            shard.open_until = self._clock() + self.pace.breaker_reset

    def _tick(self) -> None:
        """Puts what is due into the queue, and lets breakers try again."""
        with self._lock:
            while not self._stopping:
                at = self._clock()
                while self._timers and self._timers[0][0] <= at:
                    due, _, item = heapq.heappop(self._timers)
                    if item.due == due and not item.queued:
                        item.due = 0.0
                        self._put(item, item.then, 0.0)
                self._staff(at)
                if len(self._timers) > 10_000 + 4 * len(self._items):
                    # Entries that an earlier look has overtaken.
                    self._timers = [t for t in self._timers if t[2].due == t[0] and not t[2].queued]
                    heapq.heapify(self._timers)
                breakers = [s.open_until for s in self._shards.values() if s.open_until]
                for name, shard in self._shards.items():
                    if shard.open_until and shard.open_until <= at:
                        self._offer(name, shard)
                waits = [t for t in [*breakers, *(self._timers[0][:1] if self._timers else ())] if t > at]
                self._timer_set.wait(min([1.0, *(w - at for w in waits)]))

    def _pump(self) -> None:
        """Turns events into looks."""
        for batch in self._subscription:
            for event in batch:
                try:
                    self._heard(event)
                except Exception:
                    log.exception("cannot follow an event", extra={"key": str(event.key)})

    def _heard(self, event: Event) -> None:
        doc: Doc = msgspec.json.decode(event.raw)
        intent = _intent_of(doc)
        news = event.type == "ADDED" or self._seen.get(event.key) != intent
        if event.type == "DELETED":
            self._seen.pop(event.key, None)
        else:
            self._seen[event.key] = intent
        for reconciler in self._by_kind.get(event.key.kind, ()):
            if news or reconciler.on_status or event.type == "DELETED":
                self.enqueue(reconciler, event.key, PERSON if news else WORLD)
        for reconciler, watch in self._watchers.get(event.key.kind, ()):
            for key in watch.keys(doc, self.store):
                self.enqueue(reconciler, key, PERSON if news else WORLD)

    # ── the world ───────────────────────────────────────────────────────────────────────────────────────────────

    def world_changed(self, name: str, things: frozenset[Thing] | None) -> None:
        """What is believed of a driver instance changed: look at the resources that have to do with it."""
        prefix, _, rest = name.partition("/")
        if prefix in self._instance_kinds:
            self.wake_world(Key(self._instance_kinds[prefix], "", rest))
        with self.store.reading() as conn:
            uids = set(owners_at(conn, name, things).values())
        for uid in uids:
            entry = self.store.by_uid(uid)
            if entry:
                self.wake_world(entry.key)
        if things is None:
            with self._lock:
                here = [i for i in self._items.values() if i.shard == name]
            for item in here:
                self.enqueue(item.reconciler, item.key, WORLD)

    def wake_world(self, key: Key) -> None:
        for reconciler in self._by_kind.get(key.kind, ()):
            self.enqueue(reconciler, key, WORLD)

    def expected_things(self, name: str) -> frozenset[Thing]:
        """What the store says is at a driver instance, without what a call still under way may not have made."""
        with self.store.reading() as conn:
            owners = owners_at(conn, name)
            return frozenset(owners.keys() - being_made(conn, name))


def _intent_of(doc: Doc) -> tuple[Any, ...]:
    """The part of a document that says what is wanted: news when it differs."""
    meta = doc["metadata"]
    return (
        meta["uid"],
        meta["generation"],
        meta["deletionTimestamp"],
        tuple(sorted(meta["labels"].items())),
        tuple(sorted(meta["annotations"].items())),
    )
