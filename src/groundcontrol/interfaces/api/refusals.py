"""Audit of what was refused: the first of its sort at once, the rest counted, so that guessing cannot fill the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.store import Store

log = logging.getLogger(__name__)

WINDOW = 60.0
"""Seconds over which refusals of one sort are counted into one fact."""
SORTS = 500
"""Sorts told apart in a window; what comes beyond is counted together."""


@dataclass
class _Sort:
    key: Key
    detail: str
    since: float
    more: int = 0


class Refusals:
    """Used from the event loop only."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._sorts: dict[tuple[str, str, str, str], _Sort] = {}

    def note(self, subject: str, verb: str, key: Key, error: GroundError, peer: str) -> None:
        """Somebody was refused."""
        moment = self._clock()
        sort = (subject, verb, key.kind, key.namespace)
        if sort not in self._sorts and len(self._sorts) >= SORTS:
            self.flush()
        if sort not in self._sorts and len(self._sorts) >= SORTS:
            sort, key = ("many", "many", "", ""), Key("", "", "")
        known = self._sorts.get(sort)
        if known is not None and moment - known.since < WINDOW:
            known.more += 1
            return
        if known is not None:
            self._write(sort, known)
        self._sorts[sort] = _Sort(key, error.message[:300], moment)
        self._audit(sort, key, {"reason": error.reason, "message": error.message[:300], "peer": peer})

    def flush(self, *, everything: bool = False) -> None:
        """Write the counts of windows that ended."""
        moment = self._clock()
        for sort, known in list(self._sorts.items()):
            if everything or moment - known.since >= WINDOW:
                del self._sorts[sort]
                self._write(sort, known)

    def _write(self, sort: tuple[str, str, str, str], known: _Sort) -> None:
        if known.more:
            self._audit(sort, known.key, {"more": known.more, "seconds": round(WINDOW), "message": known.detail})

    def _audit(self, sort: tuple[str, str, str, str], key: Key, detail: dict[str, object]) -> None:
        subject, verb, *_ = sort
        try:
            self._store.submit(lambda tx: tx.audit(subject[:255], verb[:64], _short(key), "refused", **detail))
        except GroundError as error:
            log.warning("a refusal could not be audited: %s", error)


def _short(key: Key) -> Key:
    return Key(key.kind[:255], key.namespace[:255], key.name[:255])
