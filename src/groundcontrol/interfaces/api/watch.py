"""Watches: one reader of the store's events for all clients, each event encoded once, permissions per client.

Clients that ask for the same thing with the same rights share one view; an event is judged once per view and the same
bytes go to all of its clients. A client that reads slower than events come is cut at a bound and told so; it goes on
from the last number it has. When somebody's rights change, the stream ends with `TooOld`: only a new list can be right.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from groundcontrol.interfaces.api.listing import selection
from groundcontrol.interfaces.api.operation import Pool
from groundcontrol.kernel.access import Access
from groundcontrol.kernel.errors import GroundError, TooMany, TooOld, Unavailable
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Entry, Store
from groundcontrol.kernel.tx import Event

HEARTBEAT = 5.0
"""Seconds of silence after which a BOOKMARK is sent."""
BEHIND = 4 << 20
"""Bytes a client may be behind before it is cut."""
PIECE = 256 << 10
"""Bytes handed to the connection at once."""
STALLED = 30.0
"""Seconds one piece may take to be taken; then the connection is closed."""
CLIENTS, CLIENTS_EACH = 2000, 50
Sees = Callable[[str, str, Mapping[str, str]], bool]


class Ask(NamedTuple):
    """What is to be watched; with a subject's rights and scope it makes a view."""

    kinds: tuple[str, ...]
    namespace: str
    labels: str


@dataclass(eq=False)
class View:
    """One question under one set of rights, and the clients that have it."""

    ask: Ask
    rights: Any
    sees: dict[str, Sees]
    select: Callable[[dict[str, str], Callable[[], Any]], bool] | None
    key: tuple[Any, ...] = ()
    clients: set[Client] = field(default_factory=set)

    def chosen(self, kind: str, namespace: str, name: str, labels: Mapping[str, str]) -> tuple[bool, bool]:
        """(may be seen, is asked for)."""
        sees = self.sees.get(kind)
        if sees is None or (self.ask.namespace and namespace != self.ask.namespace):
            return False, False
        if not sees(namespace, name, labels):
            return False, False
        return True, self.select is None or self.select(dict(labels), dict)

    def frame(self, event: Event, encoded: Encoded) -> bytes | None:
        """The event as this view has it; None when it has nothing to do with it."""
        kind, namespace, name = event.key
        if kind not in self.sees or (self.ask.namespace and namespace != self.ask.namespace):
            return None
        now = encoded.labels
        was = now if event.was is None else event.was
        seen, chosen = self.chosen(kind, namespace, name, now)
        chosen_before = chosen if was == now else self.chosen(kind, namespace, name, was)[1]
        if event.type == "DELETED":
            return encoded.frame("DELETED") if chosen_before and seen else None
        if chosen:
            before = chosen_before and event.type != "ADDED"
            return encoded.frame(event.type if before or event.was is None else "ADDED")
        if event.type == "ADDED" or not (chosen_before or (event.was is None and seen and self.select)):
            return None
        return encoded.frame("DELETED") if seen else encoded.gone()


class Encoded:
    """One event, made into frames at most once for all views."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self._frames: dict[str, bytes] = {}
        self._labels: dict[str, str] | None = None

    @property
    def labels(self) -> dict[str, str]:
        if self._labels is None:
            self._labels = msgspec.json.decode(self._event.raw, type=_Labelled).metadata.labels or {}
        return self._labels

    def frame(self, type_: str) -> bytes:
        found = self._frames.get(type_)
        if found is None:
            found = self._frames[type_] = frame(type_, self._event.seq, self._event.raw)
        return found

    def gone(self) -> bytes:
        """For somebody who may not see any more what it has become: that it is gone, and nothing else."""
        kind, namespace, name = self._event.key
        meta = {"name": name, "namespace": namespace, "resourceVersion": self._event.seq}
        return frame("DELETED", self._event.seq, msgspec.json.encode({"kind": kind, "metadata": meta}))


class _Meta(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Labelled(msgspec.Struct):
    metadata: _Meta


msgspec.json.Decoder(_Labelled)  # described on the thread that imports: see ports/processes.py


def frame(type_: str, number: int, data: bytes) -> bytes:
    """One server-sent event. JSON written compactly has no line ends."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, type_.encode(), data)


def bookmark(number: int) -> bytes:
    return frame("BOOKMARK", number, b'{"resourceVersion":%d}' % number)


def ending(error: GroundError) -> bytes:
    """The last event of a stream that ends for a reason."""
    body = {"error": {"status": error.status, "reason": error.reason, "message": error.message}}
    return b"event: ERROR\ndata: %s\n\n" % msgspec.json.encode(body)


class Client:
    """One connection. Filled by the hub, emptied by the connection."""

    def __init__(self, view: View, subject: Subject) -> None:
        self.view = view
        self.subject = subject
        self.since = 0
        """Events up to this number it has, or will have from what is queued."""
        self.joining: list[tuple[int, bytes]] | None = []
        """What happens while the state it begins with is being read."""
        self.ended = False
        self._first: Iterator[bytes] = iter(())
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._wake = asyncio.Event()

    def begin(self, first: Iterator[bytes], since: int) -> None:
        """Go on from `since`, which `first` leads up to."""
        self._first, self.since = first, since
        met, self.joining = self.joining or [], None
        for number, data in met:
            if number > since:
                self.put(data)
                self.since = number

    def put(self, data: bytes) -> None:
        if self.ended:
            return
        if self._size + len(data) > BEHIND:
            self.end(TooMany("you read slower than events come; go on from the last number you have", retry_after=1.0))
            return
        self._pieces.append(data)
        self._size += len(data)
        self._wake.set()

    def end(self, error: GroundError, *, drop: bool = True) -> None:
        """Say why and end. What is queued is dropped: the client goes on from what it has."""
        if self.ended:
            return
        if drop:
            self._first = iter(())
            self._pieces.clear()
        self._pieces.append(ending(error))
        self.ended = True
        self._wake.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What is to be sent, with heartbeats; ends after `end`."""
        while piece := _some(self._first):
            yield piece
        while True:
            if not self._pieces:
                if self.ended:
                    return
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), HEARTBEAT)
                if not self._pieces:
                    yield bookmark(self.since)
                    continue
            taken, size = [], 0
            while self._pieces and size < PIECE:
                taken.append(self._pieces.popleft())
                size += len(taken[-1])
            self._size -= size
            yield b"".join(taken)


def _some(frames: Iterator[bytes]) -> bytes:
    taken, size = [], 0
    for data in frames:
        taken.append(data)
        size += len(data)
        if size >= PIECE:
            break
    return b"".join(taken)


class Hub:
    """All watches of one server. Lives on the event loop; only `_nudge` is called from elsewhere."""

    def __init__(self, store: Store, access: Access, still_valid: Callable[[Subject], GroundError | None]) -> None:
        self._store = store
        self._access = access
        self._still_valid = still_valid
        self._views: dict[tuple[Any, ...], View] = {}
        self._policy = access.version
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nudged = False
        self._events: Any = None
        self._task: asyncio.Task[None] | None = None
        self.sequence = 0

    def start(self) -> None:
        """Begin to follow the store, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._events = self._store.subscribe()
        self.sequence = self._store.sequence
        self._events.on_event = self._nudge
        self._nudge()
        self._task = self._loop.create_task(self._keep_checking())

    async def stop(self) -> None:
        """End every stream."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._events:
            self._events.on_event = None
            self._events.close()
        self._end_all(Unavailable("the server is stopping; connect again"))

    def _end_all(self, error: GroundError) -> None:
        for view in list(self._views.values()):
            for client in list(view.clients):
                client.end(error, drop=False)

    @property
    def clients(self) -> Iterable[Client]:
        return [c for view in self._views.values() for c in view.clients]

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _nudge(self) -> None:
        """There is something to read. Called by the writer thread: it only leaves word."""
        if not self._nudged and self._loop is not None:
            self._nudged = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._nudged = False
        for _ in range(64):
            batch = self._events.get(timeout=0)
            if batch is None:
                self._end_all(Unavailable("the store was closed; connect again"))
                return
            if not batch:
                return
            self._pass_on(batch)
        self._nudge()  # others get a turn first

    def _pass_on(self, batch: tuple[Event, ...]) -> None:
        events = [(event, Encoded(event)) for event in batch]
        for view in list(self._views.values()):
            frames = [(e.seq, f) for e, encoded in events if (f := view.frame(e, encoded)) is not None]
            whole = b"".join([f for _, f in frames])
            for client in list(view.clients):
                if client.joining is not None:
                    client.joining += frames
                    continue
                if frames and client.since < frames[0][0]:
                    client.put(whole)
                elif frames and client.since < frames[-1][0]:
                    client.put(b"".join([f for n, f in frames if n > client.since]))
                client.since = max(client.since, batch[-1].seq)
        self.sequence = batch[-1].seq
        if self._access.version != self._policy:
            self._recheck()

    def _recheck(self) -> None:
        """Rights changed: whoever's view is no longer what it was has to list again."""
        self._policy = self._access.version
        for view in list(self._views.values()):
            for client in list(view.clients):
                self._check(client)

    def _check(self, client: Client) -> None:
        error = self._still_valid(client.subject)
        if error is None and self._access.rights(client.subject) != client.view.rights:
            error = TooOld("what you may see has changed; list again")
        if error is not None:
            client.end(error)

    async def _keep_checking(self) -> None:
        """Tokens expire and are revoked without an event."""
        while True:
            await asyncio.sleep(HEARTBEAT)
            for client in self.clients:
                self._check(client)

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def join(self, subject: Subject, ask: Ask, since: int | None, pool: Pool) -> Client:
        """A new client: with the current state first, or the events after `since`. TooOld, TooMany."""
        everybody = list(self.clients)
        if len(everybody) >= CLIENTS or sum(c.subject.name == subject.name for c in everybody) >= CLIENTS_EACH:
            raise TooMany(f"{subject.name} has too many watches open; close some", retry_after=5.0)
        view = self._view(subject, ask)
        client = Client(view, subject)
        view.clients.add(client)
        try:
            if since is None:
                sequence, entries = await pool.run(lambda: self._store.snapshot(ask.kinds))
                client.begin(_state(view, entries, sequence), sequence)
            else:
                events = await pool.run(lambda: self._events_after(since))
                client.begin(_past(view, events), events[-1].seq if events else since)
        except BaseException:
            self.leave(client)
            raise
        return client

    def _events_after(self, since: int) -> tuple[Event, ...]:
        past = self._store.subscribe(since)
        try:
            return past.get(timeout=0) or ()
        finally:
            past.close()

    def _view(self, subject: Subject, ask: Ask) -> View:
        rights = self._access.rights(subject)
        key = (subject.scope, ask, rights)
        found = self._views.get(key)
        if found is None:
            sees = {kind: self._access.sees(subject, kind, "watch") for kind in ask.kinds}
            found = self._views[key] = View(ask, rights, sees, selection(ask.labels, ""), key)
        return found

    def leave(self, client: Client) -> None:
        view = client.view
        view.clients.discard(client)
        if not view.clients:
            self._views.pop(view.key, None)


def _state(view: View, entries: Iterable[Entry], sequence: int) -> Iterator[bytes]:
    for entry in entries:
        if all(view.chosen(*entry.key, entry.labels)):
            yield frame("ADDED", entry.seq, entry.raw)
    yield bookmark(sequence)


def _past(view: View, events: Iterable[Event]) -> Iterator[bytes]:
    for event in events:
        data = view.frame(event, Encoded(event))
        if data is not None:
            yield data
