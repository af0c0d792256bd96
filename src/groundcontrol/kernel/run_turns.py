"""Lets a reconciler take its own turns: a Run is not kept as it is wanted, it goes through something once.

What a turn raises becomes a status here as for every other resource, so that one Run in trouble stalls itself only.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any, Protocol, runtime_checkable

from groundcontrol.kernel.errors import Conflict, GroundError
from groundcontrol.kernel.reconcile import Reconciler
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.turn import Outcome, Turns

log = logging.getLogger(__name__)


@runtime_checkable
class TakesOwnTurns(Protocol):
    """A reconciler whose kind is not kept as it is wanted, but goes through something once."""

    def take_turn(self, key: Key, turns: Turns) -> Outcome:
        """One turn. May raise what `Turns.turn` turns into a status."""


class RunTurns(Turns):
    """Turns for all reconcilers, those that take their own among them."""

    def turn(self, reconciler: Reconciler[Any], key: Key) -> Outcome:
        if not isinstance(reconciler, TakesOwnTurns):
            return super().turn(reconciler, key)
        entry = self.store.entry(key)
        if entry is None:
            return Outcome()
        try:
            return reconciler.take_turn(key, self)
        except Conflict as error:
            log.debug("somebody else was first; looking again", extra={"key": str(key), "error": str(error)})
            return Outcome(again=0.02)
        except GroundError as error:
            self._stalled(reconciler, key, entry.uid, error.reason, error.message)
        except Exception as error:
            trace = uuid.uuid4().hex[:8]
            log.error("unexpected error in a turn", exc_info=error, extra={"key": str(key), "trace": trace})
            self._stalled(reconciler, key, entry.uid, "Bug", f"unexpected error, trace {trace} in the server's log")
        return Outcome(failed=True)
