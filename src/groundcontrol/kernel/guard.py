"""What stands between a plan and the world: limits, approvals and holds, all read and spent in the store.

Destructive changes are counted per scope and rolling window *across all plans*, since a wrong selector makes a
thousand resources plan one deletion each. What does not fit is held, grouped by the scope it did not fit in; that
group is the plan a person sees, with a digest over exactly its changes.
"""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Invalid, NotFound, PlanChanged, Problem, TooMany
from groundcontrol.kernel.incarnation import observing, plan_of, release
from groundcontrol.kernel.plan import Change, Limit, Spent, digest_of, over_limit
from groundcontrol.kernel.resource import Doc, Key, now
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx

_h, _a, _s, _o = tables.held, tables.approvals, tables.spent, tables.holds

APPROVAL_LASTS = 86_400.0
"""Seconds for which an approved digest stands."""
GATHERING = "gathering:"
"""Prefix of the scopes in which what is about to be judged is counted."""
GATHERED = 60.0
"""Seconds after which what was counted and never judged is not wanted any more: its owner is gone."""
REFUSAL_LASTS = 3650 * 86_400.0
"""A refusal stands until somebody approves after all."""


class Scope(NamedTuple):
    """One budget that a change counts against."""

    scope: str
    """As in `Limit.scope`."""
    value: str
    total: int
    """How many things of this kind the scope has now."""

    @property
    def id(self) -> str:
        return f"{self.scope}:{self.value}"


class Verdict(NamedTuple):
    """What may be done now, and what waits."""

    allowed: tuple[Change, ...]
    held: tuple[Change, ...] = ()
    plan: str = ""
    """Id of the plan that the held ones are part of."""
    reason: str = ""
    """Why, as a sentence."""
    gathering: float = 0.0
    """Seconds until those that are neither allowed nor held are judged together with what others plan meanwhile."""


def decide(
    tx: Tx,
    owner: Key,
    owner_uid: str,
    changes: Sequence[Change],
    scopes: Sequence[Scope],
    limits: Iterable[Limit],
    gather: float = 0.0,
) -> Verdict:
    """Sort the changes of one plan into allowed and held, spend the budget of what is allowed, record what is held.

    `gather`: seconds for which what destroys is only counted before it is judged, so that a thousand owners who plan
    one deletion each are seen together, and none of the thousand passes."""
    risky = list({c.digest: c for c in changes if c.destructive}.values())
    previous = _let_go(tx, owner_uid)
    _gather_no_more(tx, owner_uid, {c.digest for c in risky})
    if not risky:
        return Verdict(tuple(changes))
    limits = tuple(limits)
    passed, refused = _answered(tx, owner_uid, risky, scopes, limits)
    waiting = {c.digest: (c, *refused[c.digest]) for c in risky if c.digest in refused}
    waiting |= {c.digest: (c, scopes[0].id, c.ask) for c in risky if c.ask and c.digest not in {*passed, *refused}}
    rest = [c for c in risky if c.digest not in passed and c.digest not in waiting]
    fresh = [c for c in rest if c.digest not in previous]
    wait = _gather(tx, owner_uid, fresh, scopes, gather) if gather and limits else 0.0
    if wait:
        unjudged = {c.digest for c in rest}
        verdict = _hold(tx, owner, owner_uid, [c for c in changes if c.digest not in unjudged], waiting, previous)
        return verdict._replace(gathering=wait)
    if over := _exceeded(tx, owner_uid, rest, scopes, limits):
        waiting |= {c.digest: (c, *over) for c in rest}
    else:
        _spend(tx, owner_uid, rest, {s.id for s in scopes})
    _gather_no_more(tx, owner_uid, set())
    return _hold(tx, owner, owner_uid, changes, waiting, previous)


def _gather(tx: Tx, owner_uid: str, changes: Sequence[Change], scopes: Sequence[Scope], gather: float) -> float:
    """Count these in their scopes without letting them pass; seconds until all have been counted for long enough."""
    mine = sa.select(_s.c.digest, sa.func.min(_s.c.at).label("since")).where(
        _s.c.owner_uid == owner_uid, _s.c.scope.startswith(GATHERING)
    )
    known = {r.digest: r.since for r in tx.conn.execute(mine.group_by(_s.c.digest))}
    new = [c for c in changes if c.digest not in known]
    _spend(tx, owner_uid, new, {f"{GATHERING}{s.id}" for s in scopes})
    latest = max([tx.time if new else 0.0, *(known[c.digest] for c in changes if c.digest in known)], default=0.0)
    return max(0.0, latest + gather - tx.time)


def _gather_no_more(tx: Tx, owner_uid: str, planned: Collection[str]) -> None:
    """Forget what was counted of an owner and is judged now, or not planned any more."""
    counted = sa.delete(_s).where(_s.c.owner_uid == owner_uid, _s.c.scope.startswith(GATHERING))
    tx.conn.execute(counted.where(_s.c.digest.not_in(planned)) if planned else counted)


def observe(tx: Tx, owner: Key, owner_uid: str, changes: Sequence[Change], why: str) -> Verdict:
    """Hold all changes of one plan, those that destroy nothing too: this installation only observes."""
    previous = _let_go(tx, owner_uid)
    scope = plan_of(tx.conn)
    return _hold(tx, owner, owner_uid, changes, {c.digest: (c, scope, _observes(why)) for c in changes}, previous)


_Waiting = Mapping[str, tuple[Change, str, str]]
"""Digest to change, scope and words."""


def _let_go(tx: Tx, owner_uid: str) -> dict[str, float]:
    """Forget what is held of a resource; the digests, with since when."""
    rows = tx.conn.execute(sa.select(_h.c.digest, _h.c.since).where(_h.c.owner_uid == owner_uid)).all()
    if rows:
        tx.conn.execute(sa.delete(_h).where(_h.c.owner_uid == owner_uid))
    return {r.digest: r.since for r in rows}


def _hold(
    tx: Tx, owner: Key, owner_uid: str, changes: Sequence[Change], waiting: _Waiting, previous: Mapping[str, float]
) -> Verdict:
    for change, scope, reason in waiting.values():
        tx.conn.execute(
            sa.insert(_h).values(
                owner_uid=owner_uid,
                digest=change.digest,
                scope=scope,
                owner=str(owner),
                change=msgspec.json.encode(change.as_dict(str(owner))),
                reason=reason,
                since=previous.get(change.digest, tx.time),
            )
        )
    if not waiting:
        return Verdict(tuple(changes))
    _, scope, reason = next(iter(waiting.values()))
    if not waiting.keys() <= previous.keys():
        tx.event(owner, owner_uid, "Held", f"{len(waiting)} changes wait for approval: {reason}", warning=True)
    held = tuple(c for c, _, _ in waiting.values())
    return Verdict(tuple(c for c in changes if c.digest not in waiting), held, scope, reason)


def charge(tx: Tx, subject: str, change: Change, limits: Iterable[Limit]) -> None:
    """Count one destructive act that a person asked for by hand. TooMany when it does not fit what one subject may do
    in a window; nothing is held then: whoever asked can wait, or have more allowed by a bound on `subject:NAME`."""
    scope, owner = Scope("subject", subject, 0), f"subject:{subject}"
    limits = tuple(limit for limit in limits if limit.scope == "subject")
    passed, _ = _answered(tx, owner, [change], [scope], limits)
    if change.digest in passed:
        return
    if over := _exceeded(tx, owner, [change], [scope], limits):
        wait = min(limit.window for limit in limits)
        remedy = f"wait, or have more allowed: ground approve {scope.id} --up-to 20 --until 2h --reason …"
        raise TooMany(f"{over[1]}; {remedy}", retry_after=wait)
    _spend(tx, owner, [change], {scope.id})


def _answered(
    tx: Tx, owner_uid: str, risky: list[Change], scopes: Sequence[Scope], limits: Sequence[Limit]
) -> tuple[set[str], dict[str, tuple[str, str]]]:
    """Digests that pass because they were counted in this window or approved; and the refused ones with scope and
    words. What an approval lets pass is counted too, so that what comes on top of it is beyond the limit."""
    by_digest, ids = {c.digest: c for c in risky}, {s.id for s in scopes}
    window = max((limit.window for limit in limits), default=0.0)
    counted: dict[str, set[str]] = {}
    rows = tx.conn.execute(sa.select(_s).where(_s.c.owner_uid == owner_uid, _s.c.digest.in_(list(by_digest)))).all()
    for row in rows:
        if row.at > tx.time - window or row.scope.startswith("approval:"):
            counted.setdefault(row.scope, set()).add(row.digest)
    passed = {d for scope, digests in counted.items() if scope in ids for d in digests}
    refused: dict[str, tuple[str, str]] = {}
    answers = tx.conn.execute(sa.select(_a).where(_a.c.scope.in_(ids), _a.c.until >= tx.time).order_by(_a.c.at))
    for row in answers.all():
        if row.state == "refused":
            for digest in by_digest.keys() & set(msgspec.json.decode(row.digests)):
                refused[digest] = (row.scope, f"refused by {row.subject}: {row.reason}")
                passed.discard(digest)
            continue
        before = counted.get(f"approval:{row.id}", set())
        if row.verb:
            able = [d for d, c in by_digest.items() if c.verb == row.verb and not c.ask and d not in passed | before]
            named = {d for d in able if d not in refused}
            named = set(sorted(named)[: row.remaining])
            tx.conn.execute(sa.update(_a).where(_a.c.id == row.id).values(remaining=row.remaining - len(named)))
        else:
            named = by_digest.keys() & set(msgspec.json.decode(row.digests)) - before
        _spend(tx, owner_uid, [by_digest[d] for d in named], ids | {f"approval:{row.id}"})
        passed |= named | (before & by_digest.keys())
        refused = {d: why for d, why in refused.items() if d not in named | before}
    return passed, refused


def _exceeded(
    tx: Tx, owner_uid: str, rest: list[Change], scopes: Sequence[Scope], limits: Sequence[Limit]
) -> tuple[str, str] | None:
    """The scope in which these would be too many, and why. What is held there already passes as one or not at all:
    a wrong selector must not trickle through window by window."""
    for limit in limits if rest else ():
        for scope in scopes:
            if scope.scope != limit.scope:
                continue
            used = tx.conn.execute(
                sa.select(sa.func.coalesce(sa.func.sum(_s.c.weight), 0)).where(
                    _s.c.scope == scope.id, _s.c.at > tx.time - limit.window
                )
            ).scalar_one()
            beside = sa.select(sa.func.count()).where(
                _s.c.scope == f"{GATHERING}{scope.id}",
                _s.c.at > tx.time - GATHERED,
                sa.not_((_s.c.owner_uid == owner_uid) & _s.c.digest.in_([c.digest for c in rest])),
            )
            wanted = len(rest) + _held_beside(tx, owner_uid, scope.id, limit.count)
            wanted += tx.conn.execute(beside).scalar_one()
            # What was deleted in the window was there when it opened, so the share is taken of what there was then.
            # Of a scope that does not say how much it has no share can be taken.
            total = scope.total + int(used) if scope.total else 0
            if reason := over_limit(limit, scope.value, Spent(int(used), total), wanted):
                return scope.id, reason
    return None


def _held_beside(tx: Tx, owner_uid: str, scope: str, most: int) -> int:
    """How many changes of others wait in this scope for an answer, counted up to a bit more than `most`."""
    answered = tx.conn.execute(sa.select(_a.c.digests).where(_a.c.scope == scope, _a.c.until >= tx.time)).all()
    known = {d for r in answered for d in msgspec.json.decode(r.digests)}
    here = sa.select(_h.c.digest).where(_h.c.scope == scope, _h.c.owner_uid != owner_uid)
    rows = tx.conn.execute(here.limit(most + 1 + len(known))).all()
    return sum(r.digest not in known for r in rows)


def _spend(tx: Tx, owner_uid: str, changes: Iterable[Change], scopes: set[str]) -> None:
    rows = [
        {"scope": scope, "digest": c.digest, "owner_uid": owner_uid, "weight": 1, "at": tx.time}
        for c in changes
        for scope in scopes
    ]
    if not rows:
        return
    mine = sa.delete(_s).where(_s.c.owner_uid == owner_uid, _s.c.digest.in_({r["digest"] for r in rows}))
    tx.conn.execute(mine.where(_s.c.scope.in_(scopes)))
    tx.conn.execute(sa.insert(_s), rows)
    tx.conn.execute(sa.delete(_s).where(_s.c.at < tx.time - 8 * 86_400))


# ── what people see and answer ──────────────────────────────────────────────────────────────────────────────────


def _plan(scope: str, rows: Sequence[Any], reason: str = "", since: float = 0.0) -> dict[str, Any]:
    changes = sorted((msgspec.json.decode(r.change) for r in rows), key=lambda c: sorted(c["target"].values()))
    return {
        "id": scope,
        "scope": scope,
        "state": "held",
        "digest": digest_of({c["digest"] for c in changes}),
        "reason": reason or rows[0].reason,
        "since": now(since or min(r.since for r in rows)),
        "changes": changes,
    }


def held_plans(conn: sa.Connection) -> list[dict[str, Any]]:
    """Everything that waits, grouped by the scope whose budget it did not fit in. The plan of a restored installation
    is there while it only observes, even when nothing is to be changed: approving it ends that."""
    groups: dict[str, list[Any]] = {}
    for row in conn.execute(sa.select(_h).order_by(_h.c.scope, _h.c.owner)):
        groups.setdefault(row.scope, []).append(row)
    found = observing(conn)
    own = groups.pop(plan_of(conn), []) if found else []
    first = [_plan(plan_of(conn), own, _observes(found.why), found.since)] if found else []
    return first + [_plan(scope, rows) for scope, rows in groups.items()]


def _observes(why: str) -> str:
    return f"this installation only observes: {why}; once this is approved, it acts"


def answered_plans(conn: sa.Connection, state: str, limit: int = 100) -> list[dict[str, Any]]:
    """Past answers, newest first."""
    rows = conn.execute(sa.select(_a).where(_a.c.state == state).order_by(_a.c.at.desc()).limit(limit))
    return [
        {
            "id": r.id,
            "scope": r.scope,
            "state": r.state,
            "digest": digest_of(msgspec.json.decode(r.digests)),
            "reason": r.reason,
            "since": now(r.at),
            "changes": [],
            "approval": {
                "subject": r.subject,
                "until": now(r.until),
                **({"bound": {"verb": r.verb, "remaining": r.remaining}} if r.verb else {}),
            },
        }
        for r in rows
    ]


class Answer(NamedTuple):
    """What an answer was given to, and who has to look again."""

    plan: dict[str, Any]
    owner_uids: tuple[str, ...]


def _answer(tx: Tx, scope: str, digest: str, state: str, subject: str, reason: str) -> Answer:
    rows = tx.conn.execute(sa.select(_h).where(_h.c.scope == scope)).all()
    found = observing(tx.conn) if scope == plan_of(tx.conn) else None
    if not rows and not found:
        raise NotFound(f"no plan {scope} is held; `ground plan list` shows what is")
    plan = _plan(scope, rows, _observes(found.why), found.since) if found else _plan(scope, rows)
    if plan["digest"] != digest:
        raise PlanChanged(
            f"plan {scope} is not the one you saw; it now has {len(rows)} changes, digest {plan['digest']}; look again"
        )
    digests = msgspec.json.encode(sorted({r.digest for r in rows}))
    lasts = APPROVAL_LASTS if state == "approved" else REFUSAL_LASTS
    _record(tx, scope, state, subject, reason, digests=digests, until=tx.time + lasts)
    if found and state == "approved":
        release(tx.conn)
    return Answer({**plan, "state": state}, tuple({r.owner_uid for r in rows}))


def approve(tx: Tx, scope: str, digest: str, subject: str, reason: str) -> Answer:
    """Let exactly these changes pass. PlanChanged when the digest is not the one that stands."""
    return _answer(tx, scope, digest, "approved", subject, reason)


def refuse(tx: Tx, scope: str, digest: str, subject: str, reason: str) -> Answer:
    """Hold these changes until somebody approves them after all, or they are no longer planned."""
    return _answer(tx, scope, digest, "refused", subject, reason)


def approve_bound(tx: Tx, scope: str, verb: str, count: int, until: float, subject: str, reason: str) -> Answer:
    """Let up to `count` changes of `verb` in this scope pass until a time, whatever they are."""
    problems = []
    if scope == plan_of(tx.conn):
        problems.append(Problem("a restored installation is let go by the digest of its plan", "bound"))
    if not 0 < count <= 10_000:
        problems.append(Problem("must be between 1 and 10000", "bound.count"))
    if not tx.time < until <= tx.time + 7 * 86_400:
        problems.append(Problem("must be a time within the next seven days", "bound.until"))
    if problems:
        raise Invalid(problems=tuple(problems))
    rows = tx.conn.execute(sa.select(_h).where(_h.c.scope == scope)).all()
    _record(tx, scope, "approved", subject, reason, verb=verb, remaining=count, until=until)
    plan = _plan(scope, rows) if rows else {"id": scope, "scope": scope, "changes": [], "digest": digest_of(())}
    return Answer({**plan, "state": "approved"}, tuple({r.owner_uid for r in rows}))


def _record(
    tx: Tx,
    scope: str,
    state: str,
    subject: str,
    reason: str,
    *,
    digests: bytes = b"[]",
    verb: str = "",
    remaining: int = 0,
    until: float,
) -> None:
    tx.conn.execute(
        sa.insert(_a).values(
            id=uuid.uuid4().hex[:12],
            scope=scope,
            digests=digests,
            verb=verb,
            remaining=remaining,
            until=until,
            state=state,
            subject=subject,
            reason=reason,
            at=tx.time,
        )
    )
    count = len(msgspec.json.decode(digests)) or remaining
    tx.audit(subject, state, Key("Plan", "", scope), changes=count, bound=verb, reason=reason)


# ── holds of Runs ───────────────────────────────────────────────────────────────────────────────────────────────


def hold(tx: Tx, owner: Key, owner_uid: str, path: str, run: str, until: float) -> None:
    """A Run takes its hands on a field of a resource until a time; another Run's hold is refused by name."""
    row = tx.conn.execute(sa.select(_o).where(_o.c.owner_uid == owner_uid, _o.c.path == path)).first()
    if row is not None and row.run != run and row.until > tx.time:
        raise Invalid(f"{owner} {path} is held by run {row.run} until {now(row.until)}")
    tx.conn.execute(sa.delete(_o).where(_o.c.owner_uid == owner_uid, _o.c.path == path))
    tx.conn.execute(sa.insert(_o).values(owner_uid=owner_uid, path=path, owner=str(owner), run=run, until=until))


def unhold(tx: Tx, run: str) -> tuple[str, ...]:
    """A Run lets go of everything; returns the uids of the resources it held."""
    uids = tuple(r.owner_uid for r in tx.conn.execute(sa.select(_o.c.owner_uid).where(_o.c.run == run).distinct()))
    tx.conn.execute(sa.delete(_o).where(_o.c.run == run))
    return uids


class Hold(NamedTuple):
    """A field on which a Run has its hands."""

    path: str
    """`spec.…` of the resource itself; anything else (`*`: everything) of what it has outside."""
    run: str
    until: float

    @property
    def of_spec(self) -> bool:
        return self.path.startswith("spec.")

    def touches(self, change: Change) -> bool:
        """Whether a change would touch it. What makes or removes the whole thing touches every field."""
        if self.path == "*" or not change.fields or change.destructive or change.verb in ("create", "delete"):
            return True
        return any(f == self.path or f.startswith((f"{self.path}.", f"{self.path}[")) for f in change.fields)


def all_holds(conn: sa.Connection, at: float) -> dict[str, tuple[Hold, ...]]:
    """What Runs hold now, by the uid of the resource. There are few: as many as steps of live Runs."""
    found: dict[str, tuple[Hold, ...]] = {}
    for r in conn.execute(sa.select(_o).where(_o.c.until > at).order_by(_o.c.owner_uid, _o.c.path)):
        found[r.owner_uid] = (*found.get(r.owner_uid, ()), Hold(r.path, r.run, r.until))
    return found


Permit = Callable[[Tx, Subject, str], None]


class PlanBoard:
    """The held plans of one store, as the API shows and answers them. `wake(uids)` is told who has to look again;
    `permit(tx, subject, namespace)` raises unless the subject may answer for that namespace, judged in the
    transaction of the answer."""

    def __init__(self, store: Store, wake: Any, permit: Permit | None = None) -> None:
        self._store, self._wake, self._permit = store, wake, permit

    def list(self, state: str = "held") -> builtins.list[Doc]:
        with self._store.reading() as conn:
            held = held_plans(conn) if state in ("", "held") else []
            states = ("approved", "refused") if not state else () if state == "held" else (state,)
            return held + [plan for s in states for plan in answered_plans(conn, s)]

    def get(self, id: str) -> Doc:
        for plan in self.list(""):
            if plan["id"] == id:
                return plan
        raise NotFound(f"no plan {id} is held; `ground plan list` shows what is")

    def approve(self, id: str, digest: str, subject: Subject, reason: str) -> Doc:
        return self._answered(id, subject, lambda tx: approve(tx, id, digest, subject.name, reason))

    def approve_bound(self, id: str, verb: str, count: int, until: float, subject: Subject, reason: str) -> Doc:
        return self._answered(id, subject, lambda tx: approve_bound(tx, id, verb, count, until, subject.name, reason))

    def refuse(self, id: str, subject: Subject, reason: str) -> Doc:
        digest = str(self.get(id)["digest"])
        return self._answered(id, subject, lambda tx: refuse(tx, id, digest, subject.name, reason))

    def _answered(self, id: str, subject: Subject, answer: Callable[[Tx], Answer]) -> Doc:
        def act(tx: Tx) -> Answer:
            owners = tx.conn.execute(sa.select(_h.c.owner).where(_h.c.scope == id).distinct()).all()
            # `Service alpha/web` belongs to alpha, `Source platform` to the whole platform; so does an empty plan.
            paths = [str(r.owner).partition(" ")[2] for r in owners]
            if not paths or id == plan_of(tx.conn):
                paths.append("")  # what it lets go is everybody's
            for namespace in sorted({path.rpartition("/")[0] for path in paths}):
                if self._permit is not None:
                    self._permit(tx, subject, namespace)
            return answer(tx)

        found = self._store.write(act)
        self._wake(found.owner_uids)
        return found.plan
