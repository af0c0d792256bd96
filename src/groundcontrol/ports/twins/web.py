"""A web in memory: answers as they are put in, for tests of what asks."""

from __future__ import annotations

import threading

from groundcontrol.ports.web import Answered


class MemoryWeb:
    """Implements `ports.web.Web`. `answers` is address to answer; an address that is not in it is not allowed."""

    def __init__(self) -> None:
        self.answers: dict[str, Answered] = {}
        self.asked: list[str] = []
        """Every address asked for, in order."""
        self.stuck: set[str] = set()
        """Addresses that do not answer before `release`."""
        self._released = threading.Event()

    def release(self) -> None:
        """Let what is stuck go on."""
        self._released.set()

    def ask(self, url: str, ca: str = "") -> Answered:
        self.asked.append(url)
        if url in self.stuck:
            self._released.wait(60.0)
        found = self.answers.get(url)
        return found or Answered(asked=False, problem="its origin is not in joining.origins of the settings")
