"""Which Runs wait for something about which resources, so that a change wakes those and nobody else.

In memory only: after a restart every Run that waits is looked at once and says again what it waits for.
"""

from __future__ import annotations

import threading

from groundcontrol.kernel.resource import Key


class Awaited:
    """Which Runs wait for something about which resources."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_target: dict[Key, set[Key]] = {}
        self._by_run: dict[Key, set[Key]] = {}

    def add(self, run: Key, target: Key) -> None:
        with self._lock:
            self._by_target.setdefault(target, set()).add(run)
            self._by_run.setdefault(run, set()).add(target)

    def of(self, target: Key) -> tuple[Key, ...]:
        """The Runs to tell when this resource changes."""
        if target not in self._by_target:
            return ()
        with self._lock:
            return tuple(self._by_target.get(target, ()))

    def forget(self, run: Key) -> None:
        """It waits for nothing any more."""
        with self._lock:
            for target in self._by_run.pop(run, ()):
                waiting = self._by_target[target]
                waiting.discard(run)
                if not waiting:
                    del self._by_target[target]
