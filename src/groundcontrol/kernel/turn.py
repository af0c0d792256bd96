"""One turn of one resource: look, plan, pass the guard, apply, look again, and say in the status what is so.

Two commits surround every call outside: before it, the claim and the intent; after it, the outcome, the audit entry,
the timeline and the status together. A worker killed anywhere in between leaves an intent, which the next turn
resolves by looking.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.claims import (
    Intent,
    claim,
    claims_of,
    close_intent,
    intents_of,
    open_intent,
    release,
)
from groundcontrol.kernel.errors import Conflict, GroundError, OutcomeUnknown, Unavailable
from groundcontrol.kernel.guard import Verdict, decide, held_paths
from groundcontrol.kernel.plan import STORE, Change, Limit, Plan, Target
from groundcontrol.kernel.reconcile import Act, Look, Reconciler, Report, StoreWrite, store_key
from groundcontrol.kernel.resource import Condition, Key, Resource, now, seconds
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx
from groundcontrol.kernel.world import World

log = logging.getLogger(__name__)
AnyReconciler = Reconciler[Any]

LOOK_STAMP = 300.0
"""Seconds after which `lastLooked` is renewed even when nothing else in the status changed."""
SETTLE = 5.0
"""Seconds for which an unknown create blocks another one, at drivers that cannot tell a repeated call."""


@dataclass(frozen=True)
class Outcome:
    """What a turn came to."""

    again: float | None = None
    """Seconds until the next look; None: when something is heard."""
    failed: bool = False
    """Whether the next look should wait longer each time."""
    unreachable: bool = False
    """Whether a call outside got no answer; counts against the driver instance's breaker."""


@dataclass
class _Turn:
    """The state of one turn."""

    resource: Resource
    plan: Plan
    verdict: Verdict = field(default_factory=lambda: Verdict(()))
    intents: list[tuple[Change, str]] = field(default_factory=list)
    done: list[Change] = field(default_factory=list)
    unknown: list[tuple[Change, str]] = field(default_factory=list)
    refused: list[tuple[Change, str]] = field(default_factory=list)
    error: GroundError | None = None
    trace: str = ""
    foreign: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.resource.key

    @property
    def uid(self) -> str:
        return self.resource.metadata.uid


class Turns:
    """Takes turns for all reconcilers of one store and world."""

    def __init__(self, store: Store, world: World, limits: Sequence[Limit], settle: float = SETTLE) -> None:
        self.store, self.world, self.limits, self.settle = store, world, tuple(limits), settle
        self.crash_point: Callable[[str], None] = lambda where: None
        """Called before and after each durable write and outside call; the crash tests kill the process in it."""
        with store.reading() as conn:
            # Every intent found at the start was left by a worker that is gone: this epoch has made none yet.
            self._unresolved = {r.owner_uid for r in conn.execute(sa.select(tables.intents.c.owner_uid).distinct())}
            self._holding = {r.owner_uid for r in conn.execute(sa.select(tables.held.c.owner_uid).distinct())}

    def turn(self, reconciler: AnyReconciler, key: Key) -> Outcome:
        """One turn. Never raises for what a reconciler or the world does wrong: that becomes the status."""
        entry = self.store.entry(key)
        if entry is None:
            return Outcome()
        look = Look(self.store, self.world, key, entry.uid)
        resource: Resource | None = None
        try:
            resource = self.store.kinds.view(entry.doc)
            waiting = self._resolve(look) if entry.uid in self._unresolved else ""
            plan = Plan(waiting=waiting, again=0.2) if waiting else reconciler.plan(resource, look)
            turn = _Turn(resource, plan)
            if resource.deleting and reconciler.tears_down and not plan and self._finish(turn, look):
                return Outcome()
            self._begin(reconciler, turn)
            self._call(reconciler, turn)
            report = reconciler.report(resource, plan, look)
            self._end(reconciler, turn, report)
            return self._outcome(turn, report)
        except Conflict as error:
            log.debug("somebody else was first; planning again", extra={"key": str(key), "error": str(error)})
            return Outcome(again=0.02)
        except GroundError as error:
            self._stalled(reconciler, key, entry.uid, error.reason, error.message)
            return Outcome(failed=True)
        except Exception as error:
            trace = _trace(key, reconciler, error)
            self._stalled(reconciler, key, entry.uid, "Bug", f"unexpected error, trace {trace} in the server's log")
            return Outcome(failed=True)

    # ── before the calls ────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, reconciler: AnyReconciler, turn: _Turn) -> None:
        if not turn.plan.changes and turn.uid not in self._holding:
            return
        self.crash_point("before begin")
        self.store.write(lambda tx: self._admit(tx, reconciler, turn))
        (self._holding.add if turn.verdict.held else self._holding.discard)(turn.uid)
        self.crash_point("after begin")

    def _admit(self, tx: Tx, reconciler: AnyReconciler, turn: _Turn) -> None:
        current = tx.get(turn.key)
        meta = turn.resource.metadata
        if (
            current is None
            or current["metadata"]["uid"] != meta.uid
            or current["metadata"]["generation"] != meta.generation
            or current["metadata"]["deletionTimestamp"] != meta.deletion_timestamp
        ):
            raise Conflict(f"{turn.key} changed while it was planned")
        turn.intents, turn.done, turn.refused = [], [], []
        changes, turn.foreign = _not_held(turn.plan.changes, held_paths(tx.conn, meta.uid, tx.time))
        scopes = list(dict.fromkeys(s for c in changes if c.destructive for s in _scopes(reconciler, turn, c, self)))
        turn.verdict = decide(tx, turn.key, meta.uid, changes, scopes, self.limits)
        for change in turn.verdict.allowed:
            try:
                if change.target.driver == STORE:
                    tx.attempt(lambda tx, change=change: self._apply_store(tx, reconciler, turn, change))  # type: ignore[misc]
                    turn.done.append(change)
                else:
                    if change.target.id:
                        claim(tx, change.target, turn.key, meta.uid)
                    turn.intents.append((change, open_intent(tx, change, turn.key, meta.uid)))
            except GroundError as error:
                turn.refused.append((change, error.message))
                turn.error = turn.error or error
        self._record(tx, reconciler, turn, turn.done, "done")

    def _apply_store(self, tx: Tx, reconciler: AnyReconciler, turn: _Turn, change: Change) -> None:
        reconciler.authorise(tx, turn.resource, change)
        write: StoreWrite = change.payload
        manager = reconciler.manager_of(turn.resource)
        key = store_key(change.target)
        if change.verb == "delete":
            if tx.get(key) is not None:
                tx.delete(key, write.uid)
        elif change.verb == "create":
            assert write.doc is not None
            tx.create(write.doc, manager, write.given)
        elif change.verb == "status":
            assert write.doc is not None
            tx.set_status(key, write.uid, write.doc["status"])
        else:
            assert write.doc is not None
            old = tx.need(key)
            if write.uid and old["metadata"]["uid"] != write.uid:
                raise Conflict(f"{key} was made anew meanwhile")
            tx.replace(write.doc, manager, given=write.given)

    # ── the calls ───────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, reconciler: AnyReconciler, turn: _Turn) -> None:
        for change, change_key in turn.intents:
            if turn.error is not None and isinstance(turn.error, Unavailable):
                turn.refused.append((change, "not tried: the one before it got no answer"))
                continue
            act = Act(self.store, self.world, change_key, change)
            try:
                self.crash_point("before call")
                made = reconciler.apply(turn.resource, change, act)
                self.crash_point("after call")
                if made and made != change.target.id:
                    change = replace(change, target=change.target._replace(id=made))
                turn.done.append(change)
            except OutcomeUnknown as error:
                turn.unknown.append((change, change_key))
                turn.error = error
            except GroundError as error:
                turn.refused.append((change, error.message))
                turn.error = turn.error or error
                self.world.failed(change.target.driver, error)
            except Exception as error:
                turn.unknown.append((change, change_key))
                turn.trace = _trace(turn.key, reconciler, error)
                turn.error = GroundError(f"unexpected error, trace {turn.trace} in the server's log")
            self.world.wrote(change.target, gone=change.verb == "delete")

    # ── after the calls ─────────────────────────────────────────────────────────────────────────────────────────

    def _end(self, reconciler: AnyReconciler, turn: _Turn, report: Report) -> None:
        status = self._status(reconciler, turn, report)
        outside = bool(turn.intents)
        if not outside and status is None and not report.events:
            return
        self.crash_point("before end")

        def end(tx: Tx) -> None:
            unknown = {key for _, key in turn.unknown}
            for _, change_key in turn.intents:
                close_intent(tx, change_key, unknown=change_key in unknown)
            if outside:
                made = [c for c in turn.done if c.target.driver != STORE]
                for change in made:
                    if change.verb == "create":
                        claim(tx, change.target, turn.key, turn.uid)
                self._record(tx, reconciler, turn, made, "done")
                self._record(tx, reconciler, turn, [c for c, _ in turn.unknown], "unknown")
                self._record(tx, reconciler, turn, [c for c, _ in turn.refused], "failed")
            for reason, message, warning in report.events:
                tx.event(turn.key, turn.uid, reason, message, warning=warning)
            if status is not None:
                self._set_status(tx, turn.key, turn.uid, status)

        self.store.write(end)
        self.crash_point("after end")
        if turn.unknown:
            self._unresolved.add(turn.uid)

    def _record(self, tx: Tx, reconciler: AnyReconciler, turn: _Turn, changes: Sequence[Change], outcome: str) -> None:
        for change in changes:
            fields = {path: list(pair) for path, pair in change.fields.items()}
            key = reconciler.told_on(turn.resource, change)
            uid = turn.uid if key == turn.key else (tx.get(key) or {"metadata": {"uid": ""}})["metadata"]["uid"]
            tx.audit(
                reconciler.actor(turn.resource),
                change.verb,
                key,
                outcome,
                target=change.target._asdict(),
                fields=fields,
                reason=change.reason,
            )
            what = change.reason or f"{change.verb} {change.target}"
            if outcome == "done":
                reason = change.event or change.verb.title()
                tx.event(key, uid, reason, what, warning=change.warning, fields=fields)
            elif outcome == "unknown":
                tx.event(turn.key, turn.uid, f"{change.verb.title()}Unknown", what, warning=True)

    def _status(self, reconciler: AnyReconciler, turn: _Turn, report: Report) -> dict[str, Any] | None:
        """The status to write, or None when it is as it was."""
        if report.status is None or not reconciler.reports:
            return None
        resource, found = turn.resource, report.status
        answers = {c.type: c for c in found.conditions}
        if turn.error is not None:
            truth = "Unknown" if isinstance(turn.error, Unavailable) else "False"
            reason = "Bug" if turn.trace else turn.error.reason
            answers["Ready"] = Condition(type="Ready", status=truth, reason=reason, message=turn.error.message)  # type: ignore[arg-type]
        if turn.verdict.held:
            message = f"{turn.verdict.reason}; look at it and approve it: ground approve {turn.verdict.plan}"
            answers["Held"] = Condition(type="Held", status="True", reason="OverLimit", message=message)
            if not turn.done and turn.error is None:
                answers["Ready"] = Condition(type="Ready", status="False", reason="Held", message=message)
        if turn.foreign:
            message = "; ".join(turn.foreign)
            answers["HeldByRun"] = Condition(type="HeldByRun", status="True", reason="RunHolds", message=message)
        return _with_times(resource, found, list(answers.values()))

    def _set_status(self, tx: Tx, key: Key, uid: str, status: dict[str, Any]) -> None:
        old = tx.get(key)
        if old is None or not tx.set_status(key, uid, status):
            return
        before = {c["type"]: c for c in old["status"].get("conditions", ())}
        for entry in status["conditions"]:
            if entry["type"] == "Ready" and before.get("Ready", {}).get("status") != entry["status"]:
                reason = entry["reason"] or f"Ready{entry['status']}"
                tx.event(key, uid, reason, entry["message"], warning=entry["status"] != "True")

    def _outcome(self, turn: _Turn, report: Report) -> Outcome:
        waits = [s for s in (report.again, turn.plan.again) if s is not None]
        again = min(waits) if waits else None
        if turn.error is not None:
            return Outcome(again, failed=True, unreachable=isinstance(turn.error, Unavailable))
        return Outcome(0.0 if turn.done else again)

    def _stalled(self, reconciler: AnyReconciler, key: Key, uid: str, reason: str, message: str) -> None:
        """Say in the status that this resource cannot be looked after; others go on."""
        if not reconciler.reports:
            return

        def write(tx: Tx) -> None:
            old = tx.get(key)
            if old is None:
                return
            rest = [c for c in old["status"].get("conditions", ()) if c["type"] != "Ready"]
            before = next((c for c in old["status"].get("conditions", ()) if c["type"] == "Ready"), None)
            truth = "Unknown" if reason in ("Unavailable", "OutcomeUnknown") else "False"
            ready = {
                "type": "Ready",
                "status": truth,
                "reason": reason,
                "message": message if reason != "Bug" or not before or before["reason"] != "Bug" else before["message"],
                "lastTransitionTime": before["lastTransitionTime"]
                if before and before["status"] == truth
                else now(tx.time),
                "observedGeneration": old["metadata"]["generation"],
            }
            self._set_status(tx, key, uid, {**old["status"], "conditions": [ready, *rest]})

        try:
            self.store.write(write)
        except GroundError:
            log.exception("cannot write status", extra={"key": str(key)})

    # ── unknown outcomes, and the end of a resource ─────────────────────────────────────────────────────────────

    def _resolve(self, look: Look) -> str:
        """Settle intents whose outcome was never recorded; what is still waited for, or nothing."""
        with self.store.reading() as conn:
            intents = intents_of(conn, look.uid)
        for intent in intents:
            waiting = self._resolve_one(look, intent)
            if waiting:
                return waiting
        self._unresolved.discard(look.uid)
        return ""

    def _resolve_one(self, look: Look, intent: Intent) -> str:
        target = intent.target
        instance = self.world.instance(target.driver)
        settled = intent.opened + (self.settle if instance.fencing == "neither" else 0.0)
        if look.now < settled or not self.world.refreshed(target.driver, max(settled, intent.opened)):
            return f"the outcome of {intent.verb} {target} is not known; waiting for a fresh look at {target.driver}"
        found = instance.find(intent.key) if intent.verb == "create" else ()

        def settle(tx: Tx) -> None:
            close_intent(tx, intent.key)
            for number, (type_, id_) in enumerate(found):
                thing = Target(target.driver, type_, id_)
                if number == 0:
                    claim(tx, thing, look.key, look.uid)
                    tx.event(look.key, look.uid, "FoundAgain", f"{thing} was made by a call that got no answer")
                else:
                    hold_for_removal(tx, thing, look.key, look.uid)
            outcome = "found" if found else "looked"
            tx.audit("kernel", intent.verb, look.key, outcome, target=target._asdict(), change=intent.key)

        self.store.write(settle)
        return ""

    def _finish(self, turn: _Turn, look: Look) -> bool:
        """Let a deleted resource go once everything it had outside is confirmed gone; True when it went."""
        if turn.plan.waiting or turn.plan.problems or self.store.children(turn.uid):
            return False
        if any(look.seen(t).truth != "absent" for t in look.claims):
            return False

        def finish(tx: Tx) -> None:
            for target in claims_of(tx.conn, turn.uid):
                release(tx, target, turn.uid)
            tx.conn.execute(sa.delete(tables.held).where(tables.held.c.owner_uid == turn.uid))
            tx.conn.execute(sa.delete(tables.holds).where(tables.holds.c.owner_uid == turn.uid))
            tx.audit("kernel", "finalize", turn.key)
            tx.event(turn.key, turn.uid, "Gone", "everything it had is gone")
            tx.finalize(turn.key, turn.uid)

        self.crash_point("before finish")
        self.store.write(finish)
        self.crash_point("after finish")
        return True


def hold_for_removal(tx: Tx, thing: Target, owner: Key, owner_uid: str) -> None:
    """A second thing made by a repeated call: owned, and named on the timeline for a person to remove."""
    claim(tx, thing, owner, owner_uid)
    tx.event(
        owner, owner_uid, "Duplicate", f"{thing} was made twice by a call without an answer; remove it", warning=True
    )


def _scopes(reconciler: AnyReconciler, turn: _Turn, change: Change, turns: Turns) -> Any:
    return reconciler.scopes(turn.resource, change, turns.store)


def _not_held(changes: Sequence[Change], held: dict[str, str]) -> tuple[list[Change], tuple[str, ...]]:
    """The changes that touch no field a Run has its hands on, and words about those that do."""
    if not held:
        return list(changes), ()
    free, foreign = [], []
    for change in changes:
        by = [who for path, who in held.items() if path == "*" or any(f.startswith(path) for f in change.fields)]
        if by:
            foreign.append(f"{change.verb} {change.target} waits for {by[0]}")
        else:
            free.append(change)
    return free, tuple(foreign)


def _with_times(resource: Resource, found: Any, answers: list[Condition]) -> dict[str, Any] | None:
    """The status as a document with the times of its conditions; None when nothing but the time of looking differs."""
    old = resource.status
    before = {c.type: c for c in old.conditions}
    stamp, generation = now(), resource.metadata.generation
    conditions = []
    for answer in answers:
        same = before.get(answer.type)
        since = same.last_transition_time if same and same.status == answer.status else stamp
        conditions.append(answer.model_copy(update={"last_transition_time": since, "observed_generation": generation}))
    conditions.sort(key=lambda c: (c.type != "Ready", c.type))
    new = found.model_copy(update={"conditions": conditions, "observed_generation": generation})
    same_but_time = new.model_copy(update={"last_looked": old.last_looked}) == old
    if same_but_time and old.last_looked and seconds(stamp) - seconds(old.last_looked) < LOOK_STAMP:
        return None
    return new.model_copy(update={"last_looked": stamp}).model_dump(mode="json", by_alias=True)  # type: ignore[no-any-return]


def _trace(key: Key, reconciler: AnyReconciler, error: Exception) -> str:
    trace = uuid.uuid4().hex[:8]
    log.error(
        "unexpected error in a turn",
        exc_info=error,
        extra={"key": str(key), "reconciler": reconciler.name, "trace": trace},
    )
    return trace
