"""Not too many Runs of one kind at once: who is under way, who waits in line, and who may go on when one is over.

In memory, since ten thousand that wait must cost nothing; found again from the statuses of all Runs at a start.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from groundcontrol.kernel.resource import Key

HISTORY = 20
"""Runs of a procedure whose durations say how long the next one may take."""
Group = tuple[str, str]
"""(namespace, procedure): what a bound on Runs under way is about."""


class Known(NamedTuple):
    """What the status of one Run says."""

    group: Group
    uid: str
    key: Key
    waits: bool
    """It was admitted, and waits in line."""
    under_way: bool
    seconds: float | None
    """How long it took, when it ended well."""


class Slots:
    """Which Runs are under way and which wait their turn, oldest first; in memory, found again at a start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Group, set[str]] = {}
        self._waiting: dict[Group, dict[str, Key]] = {}
        self._durations: dict[Group, deque[float]] = {}
        self._learnt = False

    def learn(self, known: Callable[[], Iterable[Known]]) -> None:
        """Once: from what is known of all Runs, oldest first."""
        with self._lock:
            if self._learnt:
                return
            for run in known():
                if run.waits:
                    self._waiting.setdefault(run.group, {})[run.uid] = run.key
                elif run.under_way:
                    self._under_way.setdefault(run.group, set()).add(run.uid)
                elif run.seconds is not None:
                    self._durations.setdefault(run.group, deque(maxlen=HISTORY)).append(run.seconds)
            self._learnt = True

    def take(self, group: Group, uid: str, key: Key, bound: int) -> bool:
        """Whether this Run may go on now; it is remembered, with its place in the line, when it may not."""
        with self._lock:
            under_way = self._under_way.setdefault(group, set())
            if uid in under_way:
                return True
            waiting = self._waiting.setdefault(group, {})
            waiting[uid] = key
            if uid in itertools.islice(waiting, max(0, bound - len(under_way))):
                del waiting[uid]
                under_way.add(uid)
                return True
            return False

    def free(self, group: Group, uid: str, bound: int) -> tuple[Key, ...]:
        """It is over or gone; the Runs that may go on instead."""
        with self._lock:
            under_way, waiting = self._under_way.setdefault(group, set()), self._waiting.setdefault(group, {})
            under_way.discard(uid)
            waiting.pop(uid, None)
            return tuple(itertools.islice(waiting.values(), max(0, bound - len(under_way))))

    def has(self, group: Group, uid: str) -> bool:
        """Whether it is counted as under way, or waits its turn."""
        with self._lock:
            return uid in self._under_way.get(group, ()) or uid in self._waiting.get(group, ())

    def took(self, group: Group, seconds: float | None) -> None:
        """Remember how long a Run took."""
        if seconds is not None:
            with self._lock:
                self._durations.setdefault(group, deque(maxlen=HISTORY)).append(seconds)

    def durations(self, group: Group) -> tuple[float, ...]:
        """Of the last Runs that ended well."""
        with self._lock:
            return tuple(self._durations.get(group, ()))
