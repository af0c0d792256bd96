"""Turns beside Runs: a Run takes its own, and the turns of all others leave the fields alone that a Run has set.

A Run is not kept as it is wanted, it goes through something once. What its turn raises becomes a status as for every
other resource, so that one Run in trouble stalls itself only.

A hold on a field of a spec keeps every reconciler from changing that field (or removing the resource), whosever turn
it is. It does not keep the resource's own reconciler from making the spec true: that is what the Run waits for.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from groundcontrol.kernel.errors import Conflict, GroundError
from groundcontrol.kernel.guard import Hold, holds_of
from groundcontrol.kernel.plan import STORE, Change
from groundcontrol.kernel.reconcile import Reconciler, store_key
from groundcontrol.kernel.resource import Key, now
from groundcontrol.kernel.run_acts import fields_of
from groundcontrol.kernel.turn import Outcome, Turns, _Turn
from groundcontrol.kernel.tx import Tx

log = logging.getLogger(__name__)


@runtime_checkable
class TakesOwnTurns(Protocol):
    """A reconciler whose kind is not kept as it is wanted, but goes through something once."""

    def take_turn(self, key: Key, turns: Turns) -> Outcome:
        """One turn. May raise what `Turns.turn` turns into a status."""


class RunTurns(Turns):
    """Turns for all reconcilers, those that take their own among them."""

    def _admit(self, tx: Tx, reconciler: Reconciler[Any], turn: _Turn) -> None:
        plan, free, waiting, until = turn.plan, [], [], []
        for change in plan.changes:
            by = self._holder(tx, change)
            if by is None:
                free.append(change)
            else:
                waiting.append(f"{change.verb} {change.target} waits for run {by.run} until {now(by.until)}")
                until.append(by.until)
        turn.plan = replace(plan, changes=tuple(free)) if waiting else plan
        super()._admit(tx, reconciler, turn)
        turn.foreign += tuple(waiting)
        turn.free_at = min((at for at in (*until, turn.free_at) if at is not None), default=None)

    def _holder(self, tx: Tx, change: Change) -> Hold | None:
        """The hold that a change of one of our own resources would touch."""
        if change.target.driver != STORE or change.verb in ("create", "status"):
            return None
        entry = self.store.entry(store_key(change.target))
        if entry is None:
            return None
        return next((h for h in holds_of(tx.conn, fields_of(entry.uid), tx.time) if h.touches(change)), None)

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
