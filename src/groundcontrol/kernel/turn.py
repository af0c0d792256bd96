"""One turn of one resource: look, plan, pass the guard, apply, look again, and say in the status what is so.

Two commits surround every call outside: before it, the claim and the intent; after it, the outcome, the audit entry,
the timeline and the status together. A worker killed anywhere in between leaves an intent, which the next turn
resolves by looking. What a Run has its hands on waits until the Run lets go.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.claims import claim, claims_of, close_intent, intents_of, open_intent
from groundcontrol.kernel.errors import Claimed, Conflict, GroundError, OutcomeUnknown, SecretUnavailable, Unavailable
from groundcontrol.kernel.guard import Hold, Scope, Verdict, all_holds, decide, observe
from groundcontrol.kernel.incarnation import SCOPE as RESTORE
from groundcontrol.kernel.incarnation import observing, plan_of
from groundcontrol.kernel.outcomes import Outcomes
from groundcontrol.kernel.plan import STORE, Change, Limit, Plan, Target, digest_of
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
GATHER = 1.0
"""Seconds for which what destroys is only counted, so that a thousand small plans with one cause are seen as one."""

UNSEEN = 1.0
"""Seconds after which a resource that is to go is looked at again when it could not be seen whether all it had went."""
OBSERVING = 5.0
"""Seconds after which a Run asks again whether this installation acts."""


@dataclass(frozen=True)
class Outcome:
    """What a turn came to."""

    again: float | None = None
    """Seconds until the next look; None: when something is heard."""
    failed: bool = False
    """Whether the next look should wait longer each time."""
    unreachable: bool = False
    """Whether a call outside got no answer; counts against the driver instance's breaker."""
    answered: bool = False
    """Whether a call outside was answered; closes the breaker."""


@runtime_checkable
class TakesOwnTurns(Protocol):
    """A reconciler whose kind is not kept as it is wanted, but goes through something once."""

    def take_turn(self, key: Key, turns: Turns) -> Outcome:
        """One turn. May raise what `Turns.turn` turns into a status; Conflict means to look again at once."""


class _Stale(Conflict):
    """What was planned for is not what is there any more: plan again."""


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
    free_at: float | None = None
    """When the first Run lets go of what it holds."""
    twice: tuple[Target, ...] = ()
    """What a repeated call made too much."""
    confirm_in: float | None = None
    """Seconds until an answered call is to be looked at again."""

    @property
    def key(self) -> Key:
        return self.resource.key

    @property
    def uid(self) -> str:
        return self.resource.metadata.uid


class Turns:
    """Takes turns for all reconcilers of one store and world."""

    def __init__(
        self, store: Store, world: World, limits: Sequence[Limit], settle: float = SETTLE, gather: float = GATHER
    ) -> None:
        self.store, self.world, self.limits, self.gather = store, world, tuple(limits), gather
        self.crash_point: Callable[[str], None] = lambda where: None
        """Called before and after each durable write and outside call; the crash tests kill the process in it."""
        self._outcomes = Outcomes(store, world, settle, lambda where: self.crash_point(where))
        self._last: dict[tuple[str, str], str] = {}
        """What the last turn of each reconciler and resource did, if anything."""
        owners = sa.select(tables.held.c.owner_uid).distinct()
        with store.reading() as conn:
            self._holding = {r.owner_uid for r in conn.execute(owners)}

    def turn(self, reconciler: AnyReconciler, key: Key) -> Outcome:
        """One turn. Never raises for what a reconciler or the world does wrong: that becomes the status."""
        entry = self.store.entry(key)
        if entry is None:
            return Outcome()
        look = Look(self.store, self.world, key, entry.uid)
        turn: _Turn | None = None
        try:
            if isinstance(reconciler, TakesOwnTurns):
                return self._own_turn(reconciler, key)
            resource = self.store.kinds.view(entry.doc)
            blocked, confirm_in = self._outcomes.resolve(look, resource.deleting)
            plan = reconciler.plan(resource, look) if blocked is None else blocked
            turn = _Turn(resource, plan, confirm_in=confirm_in)
            turn.twice = self._outcomes.made_twice(look)
            if resource.deleting and reconciler.tears_down and not turn.plan and self._finish(reconciler, turn, look):
                return Outcome()
            self._begin(reconciler, turn)
            self._call(reconciler, turn)
            try:
                report = reconciler.report(resource, turn.plan, look)
            except Exception:
                self._end(reconciler, turn, Report(None))  # what was done outside is recorded even so
                raise
            self._end(reconciler, turn, report)
            return self._outcome(reconciler, turn, report)
        except _Stale as error:
            log.debug("somebody else was first; planning again", extra={"key": str(key), "error": str(error)})
            return Outcome(again=0.02)
        except GroundError as error:
            self._stalled(reconciler, key, entry.uid, error.reason, error.message)
            return Outcome(failed=True)
        except Exception as error:
            trace = _trace(key, reconciler, error)
            self._stalled(reconciler, key, entry.uid, "Bug", f"unexpected error, trace {trace} in the server's log")
            return Outcome(failed=True)
        finally:
            if turn is not None and turn.intents:
                self._outcomes.over((change_key for _, change_key in turn.intents), entry.uid)

    def _own_turn(self, reconciler: TakesOwnTurns, key: Key) -> Outcome:
        with self.store.reading() as conn:
            if observing(conn):
                return Outcome(again=OBSERVING)
        try:
            return reconciler.take_turn(key, self)
        except Conflict as error:
            raise _Stale(error.message) from error

    # ── before the calls ────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, reconciler: AnyReconciler, turn: _Turn) -> None:
        if not turn.plan.changes and (turn.uid not in self._holding or not reconciler.reports):
            return
        self.crash_point("before begin")
        self.store.write(lambda tx: self._admit(tx, reconciler, turn))
        if reconciler.reports:
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
            raise _Stale(f"{turn.key} changed while it was planned")
        changes = self._free(tx, turn)
        turn.verdict = self._judged(tx, reconciler, turn, changes)
        for change in turn.verdict.allowed:
            try:
                if change.target.driver == STORE:
                    tx.attempt(lambda tx, change=change: self._apply_store(tx, reconciler, turn, change))  # type: ignore[misc]
                    turn.done.append(change)
                else:
                    reconciler.authorise(tx, turn.resource, change)
                    turn.intents.append((change, self._announce(tx, turn, change)))
            except GroundError as error:
                turn.refused.append((change, error.message))
                turn.error = turn.error or error
                reconciler.refused(turn.resource, change, error)
        self._record(tx, reconciler, turn, turn.done, "done")

    def _judged(self, tx: Tx, reconciler: AnyReconciler, turn: _Turn, changes: list[Change]) -> Verdict:
        """What of these may be done now: limits, approvals, and whether this installation acts at all."""
        scopes = list(dict.fromkeys(s for c in changes if c.destructive for s in _scopes(reconciler, turn, c, self)))
        if restored := plan_of(tx.conn):
            scopes.append(Scope(RESTORE, restored.removeprefix(f"{RESTORE}:"), 0))
            if found := observing(tx.conn):
                return self._only_observes(tx, reconciler, turn, changes, found.why)
        # What is held of a resource is its first reconciler's: a second one that destroys nothing leaves it alone.
        asks = reconciler.reports or any(c.destructive for c in changes)
        gather = self.gather if reconciler.gathers else 0.0
        return decide(tx, turn.key, turn.uid, changes, scopes, self.limits, gather) if asks else Verdict(tuple(changes))

    @staticmethod
    def _only_observes(tx: Tx, reconciler: AnyReconciler, turn: _Turn, changes: list[Change], why: str) -> Verdict:
        """What is seen is written down, as statuses and by those that only keep records, incidents for example;
        everything else is held."""
        records = not reconciler.reports
        free = [
            c for c in changes if c.target.driver == STORE and (c.verb == "status" or (records and not c.destructive))
        ]
        waiting = [c for c in changes if c not in free]
        if records:
            return Verdict(tuple(free))
        verdict = observe(tx, turn.key, turn.uid, waiting, why)
        return verdict._replace(allowed=tuple(free))

    def _free(self, tx: Tx, turn: _Turn) -> list[Change]:
        """The changes that touch nothing a Run has its hands on; words about the others go into the turn."""
        holds = all_holds(tx.conn, tx.time)
        held = [(c, by) for c in turn.plan.changes if (by := self._holder(holds, turn, c))]
        turn.foreign = tuple(f"{c.verb} {c.target} waits for run {by.run} until {now(by.until)}" for c, by in held)
        turn.free_at = min((by.until for _, by in held), default=None)
        waiting = {id(c) for c, _ in held}
        return [c for c in turn.plan.changes if id(c) not in waiting]

    def _holder(self, holds: Mapping[str, Sequence[Hold]], turn: _Turn, change: Change) -> Hold | None:
        """The hold that a change would touch. A field of a spec is held against whoever would change that resource;
        making the spec true is what the Run waits for. Anything else is held of what the resource has outside."""
        near = [h for h in holds.get(turn.uid, ()) if not h.of_spec]
        if change.target.driver == STORE and change.verb not in ("create", "status"):
            entry = self.store.entry(store_key(change.target))
            near += [h for h in holds.get(entry.uid, ()) if h.of_spec] if entry else []
        return next((h for h in near if h.touches(change)), None)

    def _announce(self, tx: Tx, turn: _Turn, change: Change) -> str:
        """Claim the target and say that a call may come; the change key."""
        if change.target in turn.twice:
            raise Claimed(f"{change.target} was made twice; a person removes what is too much")
        if change.target.id:
            claim(tx, change.target, turn.key, turn.uid)
        change_key = open_intent(tx, change, turn.key, turn.uid)
        self._outcomes.begun(change_key, turn.uid)
        return change_key

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
        failed = ""
        for change, change_key in turn.intents:
            if failed and (failed == "no answer" or change.destructive or change.verb == "delete"):
                # Nothing is taken away behind a change that did not come to be.
                turn.refused.append((change, "not tried: the one before it failed"))
                continue
            act = Act(self.store, self.world, change_key, change)
            sent = True
            try:
                self.crash_point("before call")
                made = reconciler.apply(turn.resource, change, act)
                self.crash_point("after call")
                if made and made != change.target.id:
                    change = replace(change, target=change.target._replace(id=made))
                turn.done.append(change)
            except OutcomeUnknown as error:
                turn.unknown.append((change, change_key))
                turn.error, failed = error, "no answer"
            except GroundError as error:
                turn.refused.append((change, error.message))
                turn.error, sent = turn.error or error, False
                silent = isinstance(error, Unavailable) and not isinstance(error, SecretUnavailable)
                failed = "no answer" if silent else "refused"
                self.world.failed(change.target.driver, error)
            except Exception as error:
                turn.unknown.append((change, change_key))
                turn.trace = _trace(turn.key, reconciler, error)
                turn.error, failed = GroundError(f"unexpected error, trace {turn.trace} in the server's log"), "refused"
            self.world.wrote(change.target, gone=sent and change.verb == "delete")

    # ── after the calls ─────────────────────────────────────────────────────────────────────────────────────────

    def _end(self, reconciler: AnyReconciler, turn: _Turn, report: Report) -> None:
        status = self._status(reconciler, turn, report)
        outside = bool(turn.intents)
        if not outside and status is None and not report.events:
            return
        self.crash_point("before end")

        def end(tx: Tx) -> None:
            for change, change_key in turn.intents:
                close_intent(tx, change_key, self._left_open(turn, change, change_key))
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

    def _left_open(self, turn: _Turn, change: Change, change_key: str) -> str:
        """The state in which an intent is kept; empty when nothing is left to be seen."""
        if any(key == change_key for _, key in turn.unknown):
            return "unknown"
        done = any(c is change or c == change for c in turn.done)
        if change.verb == "create" and done:
            return "answered" if self.world.instance(change.target.driver).fencing == "neither" else ""
        return "answered" if change.verb == "create" or (change.verb == "delete" and done) else ""

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
        if turn.twice:
            message = f"made twice by a call without an answer, remove by hand: {', '.join(map(str, turn.twice))}"
            answers["Duplicate"] = Condition(type="Duplicate", status="True", reason="MadeTwice", message=message)
        return _with_times(resource, found, list(answers.values()))

    def _set_status(self, tx: Tx, key: Key, uid: str, status: dict[str, Any]) -> None:
        old = tx.get(key)
        if old is None or not tx.set_status(key, uid, status):
            return
        before = {c["type"]: c for c in (old.get("status") or {}).get("conditions", ())}
        for entry in status["conditions"]:
            if entry["type"] == "Ready" and before.get("Ready", {}).get("status") != entry["status"]:
                reason = entry["reason"] or f"Ready{entry['status']}"
                # Only what was well and is not any more deserves a warning; starting and stopping do not.
                lost = before.get("Ready", {}).get("status") == "True" and not old["metadata"]["deletionTimestamp"]
                tx.event(key, uid, reason, entry["message"], warning=lost)

    def _outcome(self, reconciler: AnyReconciler, turn: _Turn, report: Report) -> Outcome:
        waits = [s for s in (report.again, turn.plan.again, turn.confirm_in) if s is not None]
        if turn.verdict.gathering:
            waits.append(turn.verdict.gathering + 0.01)
        if turn.free_at is not None and turn.foreign:
            waits.append(max(0.05, turn.free_at - self.store.clock()))
        again = min(waits) if waits else None
        answered = any(c.target.driver != STORE for c in turn.done)
        if turn.error is not None:
            self._last.pop((reconciler.name, turn.uid), None)
            # A secret that cannot be had says nothing of the instance it was for: its breaker stays closed.
            silent = isinstance(turn.error, Unavailable) and not isinstance(turn.error, SecretUnavailable)
            return Outcome(again, failed=True, unreachable=silent, answered=answered)
        if not turn.done:
            self._last.pop((reconciler.name, turn.uid), None)
            return Outcome(again)
        did = digest_of(c.digest for c in turn.done)
        if self._last.get((reconciler.name, turn.uid)) == did:
            # The same once more, with nothing in between: it does not converge, and must not spin.
            return Outcome(again, failed=True, answered=answered)
        self._last[reconciler.name, turn.uid] = did
        return Outcome(0.0, answered=answered)

    def _stalled(self, reconciler: AnyReconciler, key: Key, uid: str, reason: str, message: str) -> None:
        """Say in the status that this resource cannot be looked after; others go on."""
        if not reconciler.reports:
            return

        def write(tx: Tx) -> None:
            old = tx.get(key)
            if old is None:
                return
            known = (old.get("status") or {}).get("conditions", ())
            rest = [c for c in known if c["type"] != "Ready"]
            before = next((c for c in known if c["type"] == "Ready"), None)
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
            self._set_status(tx, key, uid, {**(old.get("status") or {}), "conditions": [ready, *rest]})

        try:
            self.store.write(write)
        except GroundError:
            log.exception("cannot write status", extra={"key": str(key)})

    # ── the end of a resource ─────────────────────────────────────────────────────────────

    def _finish(self, reconciler: AnyReconciler, turn: _Turn, look: Look) -> bool:
        """Let a deleted resource go once everything it had outside is confirmed gone, or is to stay there; True when it
        went."""
        if turn.plan.waiting or turn.plan.problems or turn.twice or self.store.children(turn.uid):
            return False
        stays = reconciler.keeps(turn.resource)
        left = set() if stays else {look.seen(t).truth for t in look.claims} - {"absent"}
        if left:
            if "unknown" in left:
                turn.confirm_in = min(turn.confirm_in or UNSEEN, UNSEEN)  # nothing need be heard of what is gone
            return False

        def finish(tx: Tx) -> None:
            claims = claims_of(tx.conn, turn.uid)
            left = [i for i in intents_of(tx.conn, turn.uid) if i.state != "answered" or i.verb != "delete"]
            if left or not claims.keys() <= look.claims.keys() or self.store.children(turn.uid):
                raise _Stale(f"something was made for {turn.key} meanwhile")
            for table in (tables.claims, tables.intents):
                tx.conn.execute(sa.delete(table).where(table.c.owner_uid == turn.uid))
            tx.audit("kernel", "finalize", turn.key)
            words = "what it had stays where it is, as nobody's" if stays and claims else "everything it had is gone"
            tx.event(turn.key, turn.uid, "Gone", words)
            tx.finalize(turn.key, turn.uid)

        self.crash_point("before finish")
        self.store.write(finish)
        self.crash_point("after finish")
        return True


def _scopes(reconciler: AnyReconciler, turn: _Turn, change: Change, turns: Turns) -> Any:
    return reconciler.scopes(turn.resource, change, turns.store)


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
