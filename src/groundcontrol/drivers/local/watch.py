"""Notices within milliseconds that a process ended, and within half a second that a unit was edited by hand."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

TICK = 0.5
"""Seconds between two looks for edits by hand."""
RETRY = 0.005
"""Seconds until an end is looked at again that could not be dealt with at once."""


class Watcher:
    """One thread over the pidfds of all units. `ended` gets the token that was watched; False: ask again."""

    def __init__(self, ended: Callable[[str], bool], tick: Callable[[], None]) -> None:
        self._ended = ended
        self._tick = tick
        self._epoll = select.epoll()
        self._tokens: dict[int, str] = {}
        self._again: list[str] = []
        self._closed = False
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake_out, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name="ground-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        os.write(self._wake_in, b"w")
        if self._thread.is_alive():
            self._thread.join()
        self._epoll.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def add(self, pidfd: int, token: str) -> None:
        self._tokens[pidfd] = token
        # ONESHOT: an end that waits for a busy unit must not keep this thread spinning.
        self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)

    def drop(self, pidfd: int) -> None:
        """Stop watching and close."""
        self._tokens.pop(pidfd, None)
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(pidfd)
        os.close(pidfd)

    def _serve(self) -> None:
        next_tick = time.monotonic() + TICK
        while not self._closed:
            pause = RETRY if self._again else max(0.0, next_tick - time.monotonic())
            ends, self._again = self._again, []
            for descriptor, _ in self._epoll.poll(pause):
                token = self._tokens.get(descriptor)
                if token is not None:
                    ends.append(token)
            self._again += [token for token in ends if not self._ended(token)]
            if time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + TICK
