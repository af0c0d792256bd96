"""Carries facts from the store's outbox into the ledger, each once, however often either side falls over.

How far it has come is kept by the ledger itself, in the transaction that stores the facts. After any failure, and
after a kill between storing and acknowledging, it asks the ledger and goes on from there.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from groundcontrol.kernel import ledger_sql as sql
from groundcontrol.kernel.errors import GroundError, Invalid, TooLarge
from groundcontrol.kernel.ledger import Ledger, Mark

log = logging.getLogger(__name__)

Fact = Mapping[str, Any]
Pull = Callable[[int, int], Sequence[Fact]]
"""(after_seq, limit) to the next facts in the order of their seq; each names its `dataset`."""


class Backlog(NamedTuple):
    """What is not in the ledger yet."""

    facts: int
    """How many: from the newest seq of the outbox, or, where that is not known, at least so many."""
    seconds: float
    """Since when it was not empty."""
    error: str
    """Why the last attempt failed; empty when it did not."""


class Shipper:
    """A thread between one outbox and the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        pull: Pull,
        acknowledge: Callable[[int], None],
        *,
        source: str,
        newest: Callable[[], int] | None = None,
        stream: str = "outbox",
        batch: int = 5000,
        idle_seconds: float = 1.0,
        longest_wait: float = 30.0,
    ) -> None:
        """`source` is the installation the facts are of, `newest` the highest seq in the outbox."""
        self._ledger = ledger
        self._pull = pull
        self._acknowledge = acknowledge
        self._source = source
        self._newest = newest
        self._stream = stream
        self._most = batch
        self._batch = batch
        self._idle = idle_seconds
        self._longest_wait = longest_wait
        self._position: int | None = None
        self._pending = 0
        self._behind_since = 0.0
        self._error = ""
        self._wait = 0.0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=f"ship-{self._stream}", daemon=True)
        self._thread.start()

    def stop(self, wait: float = 15.0) -> None:
        """Stop after the batch under way."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(wait)

    def wake(self) -> None:
        """Something new is in the outbox: do not wait for the next look."""
        self._wake.set()

    def backlog(self) -> Backlog:
        facts = self._pending
        if self._newest is not None and self._position is not None:
            try:
                facts = max(0, self._newest() - self._position)
            except GroundError as error:
                log.debug("the size of the outbox is not known: %s", error.message)
        since = self._behind_since
        return Backlog(facts, time.monotonic() - since if since else 0.0, self._error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                shipped = self.step()
            except Exception as error:
                self._failed(error)
                continue
            if not shipped:
                self._wake.wait(self._idle)
                self._wake.clear()

    def _failed(self, error: Exception) -> None:
        if not self._error:
            log.warning("facts stay in the outbox: %s", error, exc_info=not isinstance(error, GroundError))
        self._error = str(error)
        self._position = None  # what was stored of it, the ledger knows
        self._behind_since = self._behind_since or time.monotonic()
        # It may have been too much at once for a slow disk or little memory.
        self._batch = max(1, self._batch // 2)
        self._wait = min(self._longest_wait, max(0.1, self._wait * 2))
        self._stopping.wait(self._wait * random.uniform(0.5, 1.0))

    def step(self) -> int:
        """Ship one batch; how many facts it had. Raises what ledger, outbox or acknowledging raised."""
        if self._position is None:
            position = self._ledger.watermark(self._source, self._stream)
            if position:
                self._acknowledge(position)
            self._position = position
        facts = self._pull(self._position, self._batch)
        self._pending = len(facts)
        if facts:
            self._behind_since = self._behind_since or time.monotonic()
            last = max(int(fact["seq"]) for fact in facts)
            self._store(facts, last)
            self._acknowledge(last)
            self._position = last
            self._batch = min(self._most, self._batch * 2)
        if len(facts) < self._batch:
            self._behind_since = 0.0
        self._pending, self._error, self._wait = 0, "", 0.0
        return len(facts)

    def _store(self, facts: Sequence[Fact], last: int) -> None:
        mark = Mark(self._source, self._stream, last)
        parts: dict[str, list[Fact]] = {}
        for fact in facts:
            parts.setdefault(str(fact.get("dataset", "")), []).append({"source": self._source, **fact})
        try:
            self._ledger.store(parts, mark)
        except (Invalid, TooLarge) as error:
            if isinstance(error, TooLarge) and len(facts) > 1:
                raise  # fewer come the next time
            self._ledger.store(self._sifted(parts), mark)

    def _sifted(self, parts: Mapping[str, Sequence[Fact]]) -> dict[str, list[Fact]]:
        """The same with every fact that fits nowhere moved to the dataset `rejected`, with the reason."""
        out: dict[str, list[Fact]] = {}
        for name, facts in parts.items():
            for fact in facts:
                try:
                    rows = sql.batch(self._ledger.dataset(name), [fact]).rows
                    if len(rows) > self._ledger.largest // 2:
                        raise TooLarge(f"{len(rows):,} bytes in one fact")
                    out.setdefault(name, []).append(fact)
                except (Invalid, TooLarge) as error:
                    log.error("a fact fits no dataset: %s %s: %s", name, fact.get("seq"), error.message)
                    out.setdefault(sql.REJECTED.name, []).append(self._rejected(name, fact, error.message))
        return out

    def _rejected(self, name: str, fact: Fact, reason: str) -> Fact:
        moment = fact.get("time")
        return {
            "source": self._source,
            "seq": fact["seq"],
            "time": moment if sql.stamp(moment) else time.time(),
            "dataset": name.encode(errors="replace").decode(),
            "reason": reason.encode(errors="replace").decode(),
            # Text, since what does not fit may be that it cannot be written as JSON.
            "data": {"fact": repr(dict(fact))[: 1 << 16].encode(errors="replace").decode()},
        }
