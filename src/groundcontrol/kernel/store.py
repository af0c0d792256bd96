"""Where resources live: one writer with group commit, numbered events, and a cache that serves every read.

`write(act)` runs `act(tx)` in its own savepoint inside the next group commit and returns once that commit is on disk.
What `act` raises undoes only its own writes. After the commit the batch is put into the cache and handed to watchers,
so a watcher never meets a lower number late. Reads come from the cache; claims, approvals, budgets and permissions
are read inside the writing transaction.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import logging
import os
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import event as sa_event

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Fenced, GroundError, Invalid, OutcomeUnknown, TooOld, Unavailable
from groundcontrol.kernel.incarnation import Numbers, Witness, begin, droppable
from groundcontrol.kernel.migrations import migrate
from groundcontrol.kernel.resource import Doc, Key, Kinds
from groundcontrol.kernel.tx import Entry as Entry
from groundcontrol.kernel.tx import Event, Tx, entry_of

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH = 256
"""Most acts in one group commit."""
RING = 20_000
"""Events kept in memory for watchers; older ones come from the database."""


class Subscription:
    """Committed events in order, for one watcher. Iterate, or `get`; `close` when done."""

    def __init__(self, store: Store, backlog: list[Event]) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[tuple[Event, ...] | None] = queue.SimpleQueue()
        self.on_event: Callable[[], None] | None = None
        """Called (from the writer thread) after something was put in; it must return at once."""
        if backlog:
            self._queue.put(tuple(backlog))

    def put(self, batch: tuple[Event, ...] | None) -> None:
        self._queue.put(batch)
        if self.on_event:
            self.on_event()

    def get(self, timeout: float | None = None) -> tuple[Event, ...] | None:
        """The next batch; empty after `timeout` seconds without one; None once the store is closed."""
        try:
            return self._queue.get(block=timeout != 0, timeout=timeout or None)
        except queue.Empty:
            return ()

    def __iter__(self) -> Iterator[tuple[Event, ...]]:
        while (batch := self.get()) is not None:
            yield batch

    def close(self) -> None:
        self._store._unsubscribe(self)
        self._queue.put(None)


class Store:
    """The store of one installation. `url` is a SQLAlchemy URL; `lock` a file only one server may hold; `witness` a
    file that tells a restored database; `restored` says why a new incarnation is to begin even without that."""

    def __init__(
        self,
        url: str,
        kinds: Kinds,
        *,
        lock: Path | None = None,
        witness: Path | None = None,
        restored: str = "",
        keep_events: int = 100_000,
        clock: Callable[[], float] = time.time,
        finalizers: frozenset[str] = frozenset(),
    ) -> None:
        self.kinds = kinds
        self.clock = clock
        self.finalizers = finalizers
        """Kinds whose resources must be taken down by their reconciler before they may go."""
        self.installation = ""
        self.incarnation = ""
        self.epoch = 0
        self.sequence = 0
        self._url, self._lock_path, self._keep = url, lock, keep_events
        self._witness, self._restored = Witness(witness) if witness else None, restored
        self._lock_file: int | None = None
        self._acts: queue.SimpleQueue[tuple[Callable[[Tx], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._cache: dict[str, dict[tuple[str, str], Entry]] = {}
        self._order: dict[str, list[tuple[str, str]]] = {}
        self._by_uid: dict[str, Entry] = {}
        self._children: dict[str, dict[Key, None]] = {}
        self._ring: deque[Event] = deque(maxlen=RING)
        self._subscriptions: list[Subscription] = []
        self._mutex = threading.Condition()
        self._fact_hooks: list[Callable[[], None]] = []
        self.on_fenced: Callable[[], None] = lambda: None
        """Called when another server took over: nothing can be written any more, and the program should end."""
        self._next_trim = 0
        self._gate = threading.Lock()
        """Held while something is handed to the writer, so that nothing is handed in behind the end."""

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> Store:
        """Take the lock, bring the schema up to date, begin a new epoch, fill the cache, start the writer."""
        if self._lock_path:
            self._lock_file = _lock(self._lock_path)
        self._engine = _engine(self._url)
        try:
            self._load()
        except BaseException:
            self._let_go()
            raise
        self._writer = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._writer.start()
        return self

    def _load(self) -> None:
        migrate(self._engine)
        with self._engine.connect().execution_options(immediate=True) as conn, conn.begin():
            ran_before = conn.execute(_EPOCH, {"shard": "server"}).first() is not None
            if self._witness and not ran_before:
                self._witness.require_none()
            self.installation = _meta(conn, "installation", lambda: uuid.uuid4().hex[:12])
            self.incarnation = _meta(conn, "incarnation", lambda: uuid.uuid4().hex[:8])
            self.sequence = int(_meta(conn, "sequence", lambda: "0"))
            self.fact_sequence = int(_meta(conn, "factSequence", lambda: "0"))
            self._begin_anew(conn, ran_before)
            self.epoch = _next_epoch(conn, self.clock())
            columns = [tables.resources.c[c] for c in ("kind", "namespace", "name", "doc")]
            for row in conn.execute(sa.select(*columns).order_by(*columns[:3])):
                self._put(entry_of(Key(row.kind, row.namespace, row.name), self._current(row.kind, row.doc)))
        if self._witness:
            self._witness.note(self._numbers(), durably=True)

    def _numbers(self) -> Numbers:
        return Numbers(self.incarnation, self.epoch, self.sequence, self.fact_sequence)

    def _begin_anew(self, conn: sa.Connection, ran_before: bool) -> None:
        """A database that was put back from a copy begins a new incarnation, which only observes."""
        row = conn.execute(_EPOCH, {"shard": "server"}).first()
        now = Numbers(self.incarnation, int(row.epoch) if row else 0, self.sequence, self.fact_sequence)
        why = self._restored or (self._witness.doubts(now) if self._witness and ran_before else "")
        if not why:
            return
        new = begin(conn, self._witness.newest(now) if self._witness else now, why, self.clock())
        conn.execute(sa.update(tables.leases).where(tables.leases.c.shard == "server").values(epoch=new.epoch))
        self.incarnation, self.sequence, self.fact_sequence = new.incarnation, new.sequence, new.facts
        log.warning("a new incarnation only observes", extra={"incarnation": new.incarnation, "why": why})

    def _current(self, kind: str, raw: bytes) -> bytes:
        """A stored document in the shape this program writes; one of a newer program stays as it is."""
        if kind not in self.kinds:
            return raw
        versions = self.kinds.versions(kind)
        if msgspec.json.decode(raw, type=_Head).apiVersion == versions.current.version:
            return raw
        try:
            return msgspec.json.encode(versions.to_current(msgspec.json.decode(raw)))
        except Invalid as error:
            log.warning("a document is of a version unknown here", extra={"kind": kind, "error": error.message})
        except Exception:
            log.exception("cannot upgrade a document", extra={"kind": kind})
        return raw

    def close(self) -> None:
        """Finish what was handed in, then let go of everything."""
        with self._gate:
            writer, self._writer = self._writer, None
            self._acts.put(None)
        if writer:
            writer.join()
            if self._witness:
                self._witness.note(self._numbers(), durably=True)
        with self._mutex:
            for subscription in self._subscriptions:
                _told(lambda subscription=subscription: subscription.put(None))  # type: ignore[misc]
            self._subscriptions.clear()
        self._let_go()

    def _let_go(self) -> None:
        self._engine.dispose()
        if self._witness:
            self._witness.close()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, act: Callable[[Tx], T], timeout: float = 60.0) -> T:
        """Run `act` in the next group commit; returns its result once that is durable, or raises what it raised."""
        if threading.current_thread() is self._writer:
            raise GroundError("a listener of the store waits for a write it itself holds up; hand it in with `submit`")
        future = self.submit(act)
        try:
            return future.result(timeout)
        except WaitedTooLong:
            if future.done():
                raise  # the act itself raised it
            if future.cancel():
                raise Unavailable(f"the store did not get to this within {timeout:g} s; nothing was written") from None
            raise OutcomeUnknown(f"the store has not answered for {timeout:g} s; it may still be written") from None

    def submit(self, act: Callable[[Tx], T]) -> Future[T]:
        """As `write`, without waiting."""
        future: Future[T] = Future()
        with self._gate:
            if self._writer is None:
                raise Unavailable("the store is closed")
            self._acts.put((act, future))
        return future

    def _run(self) -> None:
        while True:
            first = self._acts.get()
            if first is None:
                return
            batch, ending = [first], False
            while len(batch) < BATCH and not self._acts.empty():
                act = self._acts.get()
                if act is None:
                    ending = True
                    break
                batch.append(act)
            self._commit([(act, future) for act, future in batch if future.set_running_or_notify_cancel()])
            if ending:
                return

    def _commit(self, batch: list[tuple[Callable[[Tx], Any], Future[Any]]]) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        tx: Tx | None = None
        try:
            with self._engine.connect().execution_options(immediate=True) as conn, conn.begin():
                self._check_epoch(conn)
                tx = Tx(self, conn, self.sequence, self.fact_sequence)
                for act, future in batch:
                    try:
                        answers.append((future, tx.attempt(act), None))
                    except Exception as error:
                        if tx.broken:  # the database gave up the whole transaction, for example with a full disk
                            raise
                        answers.append((future, None, error))
                tx.finish()
                self._trim(conn, tx)
        except GroundError as error:
            self._fail(batch, error)
            return
        except Exception as error:
            log.exception("group commit failed", extra={"acts": len(batch)})
            failure = Unavailable(f"the store could not commit: {error}; nothing of this was written")
            failure.__cause__ = error
            self._fail(batch, failure)
            return
        try:
            self._publish(tx)
        except Exception:
            log.exception("what was committed could not be told to everybody")
        if self._witness:
            self._witness.note(self._numbers())
        for future, result, problem in answers:
            if problem is not None:
                future.set_exception(problem)
            else:
                future.set_result(result)

    @staticmethod
    def _fail(batch: list[tuple[Callable[[Tx], Any], Future[Any]]], error: GroundError) -> None:
        for _, future in batch:
            future.set_exception(error)

    def _check_epoch(self, conn: sa.Connection) -> None:
        row = conn.execute(_EPOCH, {"shard": "server"}).first()
        if row is None or row.epoch != self.epoch:
            self.on_fenced()
            raise Fenced(f"another server took over this store (its epoch is {row and row.epoch}, ours {self.epoch})")

    def _trim(self, conn: sa.Connection, tx: Tx) -> None:
        """Drop old events, now and then."""
        if tx.sequence < self._next_trim:
            return
        self._next_trim = tx.sequence + max(1, self._keep // 20)
        conn.execute(sa.delete(tables.events).where(tables.events.c.seq <= droppable(tx.sequence, self._keep)))

    def _publish(self, tx: Tx) -> None:
        with self._mutex:
            for change in tx.events:
                if change.type == "DELETED":
                    self._drop(change.key)
                else:
                    self._put(entry_of(change.key, change.raw))
            self._ring.extend(tx.events)
            self.sequence, self.fact_sequence = tx.sequence, tx.fact_sequence
            if tx.events:
                batch = tuple(tx.events)
                for subscription in self._subscriptions:
                    _told(lambda subscription=subscription: subscription.put(batch))  # type: ignore[misc]
            self._mutex.notify_all()
        if tx.facts:
            for hook in self._fact_hooks:
                _told(hook)

    # ── cache ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _put(self, entry: Entry) -> None:
        kept, place = self._cache.setdefault(entry.key.kind, {}), (entry.key.namespace, entry.key.name)
        if place not in kept:
            bisect.insort(self._order.setdefault(entry.key.kind, []), place)
        elif kept[place].owner_uid != entry.owner_uid:
            self._children.get(kept[place].owner_uid, {}).pop(entry.key, None)
        kept[place] = entry
        self._by_uid[entry.uid] = entry
        if entry.owner_uid:
            self._children.setdefault(entry.owner_uid, {})[entry.key] = None

    def _drop(self, key: Key) -> None:
        entry = self._cache.get(key.kind, {}).pop((key.namespace, key.name), None)
        if entry:
            order = self._order[key.kind]
            del order[bisect.bisect_left(order, (key.namespace, key.name))]
            self._by_uid.pop(entry.uid, None)
            if entry.owner_uid:
                self._children.get(entry.owner_uid, {}).pop(key, None)
            self._children.pop(entry.uid, None)

    def entry(self, key: Key) -> Entry | None:
        return self._cache.get(key.kind, {}).get((key.namespace, key.name))

    def get(self, key: Key) -> Doc | None:
        """The document, or None. The caller may change what it gets."""
        entry = self.entry(key)
        return entry.doc if entry else None

    def by_uid(self, uid: str) -> Entry | None:
        return self._by_uid.get(uid)

    def entries(self, kind: str, namespace: str | None = None) -> list[Entry]:
        """All of a kind, ordered by namespace and name; a consistent copy."""
        with self._mutex:
            order, kept = self._order.get(kind, []), self._cache.get(kind, {})
            first, last = 0, len(order)
            if namespace is not None:
                first, last = (
                    bisect.bisect_left(order, (namespace, "")),
                    bisect.bisect_left(order, (f"{namespace}\0", "")),
                )
            return [kept[place] for place in order[first:last]]

    def after(self, kind: str, place: tuple[str, str], most: int) -> list[Entry]:
        """The next `most` of a kind behind (namespace, name), which need not be there, in that order."""
        with self._mutex:
            order, kept = self._order.get(kind, []), self._cache.get(kind, {})
            first = bisect.bisect_right(order, place)
            return [kept[p] for p in order[first : first + most]]

    def snapshot(self, kinds: Iterable[str]) -> tuple[int, list[Entry]]:
        """Everything of these kinds, and the event number at which it was so."""
        with self._mutex:
            return self.sequence, [e for kind in kinds for e in self.entries(kind)]

    def children(self, uid: str) -> list[Entry]:
        """What was made for this resource, by its first owner reference, in order of name."""
        with self._mutex:
            keys = list(self._children.get(uid, ()))
        return [e for e in (self.entry(k) for k in sorted(keys)) if e]

    def count(self, kind: str) -> int:
        return len(self._cache.get(kind, ()))

    # ── watching ────────────────────────────────────────────────────────────────────────────────────────────────

    def subscribe(self, since: int | None = None) -> Subscription:
        """Events after number `since` (None: from now on). TooOld when some of them are no longer kept."""
        backlog: list[Event] = []
        while True:
            with self._mutex:
                known, kept = self.sequence, self._ring[0].seq if self._ring else self.sequence + 1
                if since is None or since == known or kept <= since + 1 <= known:
                    backlog += [e for e in self._ring if since is not None and e.seq > since]
                    subscription = Subscription(self, backlog)
                    self._subscriptions.append(subscription)
                    return subscription
            if since > known:
                raise TooOld(f"event {since} is not of this history (we are at {known}); list again")
            # Read while others go on; what is committed meanwhile is handed out by its own commit.
            backlog += self._events_between(since, known)
            since = known

    def _events_between(self, since: int, last: int) -> list[Event]:
        table = tables.events
        with self._engine.connect() as conn:
            rows = conn.execute(
                sa.select(table).where(table.c.seq > since, table.c.seq <= last).order_by(table.c.seq)
            ).all()
        if not rows or rows[0].seq != since + 1:
            raise TooOld(f"events after {since} are no longer kept; list again")
        return [Event(r.seq, r.type, Key(r.kind, r.namespace, r.name), self._current(r.kind, r.doc)) for r in rows]

    def _unsubscribe(self, subscription: Subscription) -> None:
        with self._mutex, contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)

    def wait_for(self, sequence: int, timeout: float) -> bool:
        """Block until the cache is not older than `sequence`."""
        with self._mutex:
            return self._mutex.wait_for(lambda: self.sequence >= sequence, timeout)

    # ── other tables ────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that sees committed state; for facts, plans, tokens and the like."""
        with self._engine.connect() as conn:
            yield conn

    def on_facts(self, hook: Callable[[], None]) -> None:
        """Call `hook` after each commit that wrote facts; it must return at once."""
        self._fact_hooks.append(hook)


class _Head(msgspec.Struct):
    """As much of a document as it takes to know its shape."""

    apiVersion: str = ""


def _told(tell: Callable[[], None]) -> None:
    """Whoever cannot listen must not stop the writer."""
    try:
        tell()
    except Exception:
        log.exception("a listener of the store failed")


_EPOCH = sa.select(tables.leases.c.epoch).where(tables.leases.c.shard == sa.bindparam("shard"))


def _lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Unavailable(
            f"another server runs on {path.parent}; stop it first, or give this one its own `data`"
        ) from None
    return handle


def _engine(url: str) -> sa.Engine:
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        @sa_event.listens_for(engine, "connect")
        def _connect(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # we say BEGIN ourselves, so that savepoints work
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        @sa_event.listens_for(engine, "begin")
        def _begin(conn: sa.Connection) -> None:
            # Writers take the lock at once: a read that becomes a write could fail half way.
            conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("immediate") else "BEGIN")

    return engine


def _meta(conn: sa.Connection, key: str, make: Callable[[], str]) -> str:
    row = conn.execute(sa.select(tables.meta.c.value).where(tables.meta.c.key == key)).first()
    if row:
        return str(row.value)
    value = make()
    conn.execute(sa.insert(tables.meta).values(key=key, value=value))
    return value


def _next_epoch(conn: sa.Connection, now: float) -> int:
    row = conn.execute(_EPOCH, {"shard": "server"}).first()
    holder = f"{os.uname().nodename}:{os.getpid()}"
    if row is None:
        conn.execute(sa.insert(tables.leases).values(shard="server", holder=holder, epoch=1, expires=now))
        return 1
    epoch = int(row.epoch) + 1
    conn.execute(
        sa.update(tables.leases)
        .where(tables.leases.c.shard == "server")
        .values(holder=holder, epoch=epoch, expires=now)
    )
    return epoch
