"""Calls whose outcome was never recorded, or is still to be seen: settled by looking, never by repeating.

A call that changes something leaves an intent. After a call without an answer nothing else is done for its resource
until a fresh look tells what came of it; a create is found again by its key. After an answered one the next turns go
on, and the intent stays until the world shows the result: what is not there is not owned any more, and what was made
twice is held for a person to remove.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.claims import (
    DUPLICATE,
    Intent,
    claim,
    claims_of,
    close_intent,
    hold_duplicate,
    intents_of,
    release,
)
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.plan import Plan, Target
from groundcontrol.kernel.reconcile import Look
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx
from groundcontrol.kernel.world import World


class Outcomes:
    """What is not known yet of the calls of one store's resources. `reach` is the crash point of the turns."""

    def __init__(self, store: Store, world: World, settle: float, reach: Callable[[str], None]) -> None:
        self._store, self._world, self._seconds, self._reach = store, world, settle, reach
        self._started = store.clock()
        self._lock = threading.Lock()
        self._calling: dict[str, str] = {}
        """Change key to owner uid, of calls that a turn of ours is at."""
        self._turns_over = 0
        i, c = tables.intents.c, tables.claims.c
        with store.reading() as conn:
            # Every intent found at the start was left by a worker that is gone: this epoch has made none yet.
            self._pending = {r.owner_uid for r in conn.execute(sa.select(i.owner_uid).distinct())}
            twice = sa.select(c.owner_uid).where(c.field == DUPLICATE).distinct()
            self._twice = {r.owner_uid for r in conn.execute(twice)}

    def begun(self, change_key: str, owner_uid: str) -> None:
        """A turn is at this call."""
        with self._lock:
            self._calling[change_key] = owner_uid

    def over(self, change_keys: Iterable[str], owner_uid: str) -> None:
        """The turn is over, well or not: what is still open in the store is looked at by the next one."""
        with self._lock:
            self._turns_over += 1
            self._pending.add(owner_uid)
            for change_key in change_keys:
                self._calling.pop(change_key, None)

    def resolve(self, look: Look, deleting: bool) -> tuple[Plan | None, float | None]:
        """Settle calls whose outcome was never recorded: a plan that only waits while one cannot be settled yet, and
        seconds until an answered one wants another look."""
        if look.uid not in self._pending:
            return None, None
        turns_over = self._turns_over
        with self._store.reading() as conn:
            intents = intents_of(conn, look.uid)
        with self._lock:
            if not intents and turns_over == self._turns_over and look.uid not in self._calling.values():
                self._pending.discard(look.uid)
            # What another turn is at right now is no business of this one.
            intents = tuple(i for i in intents if i.key not in self._calling)
        waits: list[float] = []
        for intent in intents:
            if intent.state == "answered":
                if not (deleting and intent.verb == "delete") and (wait := self._confirm(look, intent)):
                    waits.append(wait)  # (`_finish` looks at the others)
            elif wait := self._unsettled(look, intent):
                target = intent.target
                words = f"the outcome of {intent.verb} {target} is not known; waiting for a fresh look"
                return Plan(waiting=f"{words} at {target.driver}", again=wait), None
        return None, min(waits, default=None)

    def _unsettled(self, look: Look, intent: Intent) -> float | None:
        """Seconds until a call without an answer may be settled; None once it is."""
        target = intent.target
        instance = self._world.instance(target.driver)
        # A worker that is gone may have sent its call until we started.
        sent = intent.opened if intent.epoch == self._store.epoch else max(intent.opened, self._started)
        settled = sent + (self._seconds if instance.fencing == "neither" else 0.0)
        if look.now < settled:
            return settled - look.now + 0.01
        if not self._world.refreshed(target.driver, settled):
            return 0.5
        found = instance.find(intent.key) if intent.verb == "create" else ()
        truth = look.seen(target).truth
        if truth == "unknown" and intent.verb in ("create", "delete") and not found:
            self._store.write(lambda tx: close_intent(tx, intent.key, "answered"))  # it blocks nothing any more
        else:
            self._settle(look, intent, found, gone=truth == "absent" and not found)
        return None

    def _confirm(self, look: Look, intent: Intent) -> float | None:
        """See what an answered call came to: a thing that is not there is not owned, a second one is held. Seconds
        until it is to be tried again; None when it is done, or something will be heard."""
        seen = look.seen(intent.target)
        if seen.truth == "unknown":
            return None
        instance = self._world.instance(intent.target.driver)
        found: Sequence[tuple[str, str]] = ()
        if intent.verb == "create" and instance.fencing == "neither":
            if look.now < intent.opened + self._seconds:
                return intent.opened + self._seconds - look.now + 0.01
            try:
                found = instance.find(intent.key)
            except GroundError:
                return self._seconds + 1.0
        self._settle(look, intent, found, gone=seen.truth == "absent")
        return None

    def _settle(self, look: Look, intent: Intent, found: Sequence[tuple[str, str]], *, gone: bool = False) -> None:
        def settle(tx: Tx) -> None:
            close_intent(tx, intent.key)
            if gone:
                release(tx, intent.target, look.uid)
            twice = claims_of(tx.conn, look.uid, duplicates=True)
            mine = claims_of(tx.conn, look.uid)
            things = [t for t in (Target(intent.target.driver, *f) for f in found) if t not in twice]
            # The one we asked for, else the one we have already, else the first, is ours; the others are too many.
            things.sort(key=lambda t: (t != intent.target, t not in mine))
            for thing in things[:1]:
                claim(tx, thing, look.key, look.uid)
                if intent.state != "answered":
                    tx.event(look.key, look.uid, "FoundAgain", f"{thing} was made by a call that got no answer")
            for thing in things[1:]:
                hold_duplicate(tx, thing, look.key, look.uid)
                message = f"{thing} was made twice by a call without an answer; remove it"
                tx.event(look.key, look.uid, "Duplicate", message, warning=True)
                self._twice.add(look.uid)
            outcome = "found" if found else "looked"
            target = intent.target._asdict()
            tx.audit("kernel", intent.verb, look.key, outcome, target=target, change=intent.key)

        self._reach("before settle")
        self._store.write(settle)
        self._reach("after settle")

    def made_twice(self, look: Look) -> tuple[Target, ...]:
        """What was made too often and is still there; what a person has removed is let go."""
        if look.uid not in self._twice:
            return ()
        with self._store.reading() as conn:
            known = claims_of(conn, look.uid, duplicates=True)
        gone = [t for t in known if look.seen(t).truth == "absent"]

        def let_go(tx: Tx) -> None:
            for target in gone:
                release(tx, target, look.uid)

        if gone:
            self._store.write(let_go)
        if len(gone) == len(known):
            self._twice.discard(look.uid)
        return tuple(t for t in known if t not in gone)
