"""Lets one change of a name happen at a time, also of a name that does not exist yet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """Locks by name, kept only while somebody holds or wants them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[None]:
        with self._lock:
            turn, count = self._wanted.get(name, (threading.Lock(), 0))
            self._wanted[name] = (turn, count + 1)
        try:
            with turn:
                yield
        finally:
            with self._lock:
                count = self._wanted[name][1] - 1
                self._wanted[name] = (turn, count)
                if not count:
                    del self._wanted[name]
