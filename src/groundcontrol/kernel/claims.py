"""Who owns what outside, and which calls may be under way.

Everything outside has one owner: (driver instance, type, id[, field]). A change first claims its target; a target
claimed by another resource is refused by name; a claim is let go only when the thing is confirmed gone.

A call that changes something is preceded by an intent, committed before it is sent and closed with its outcome. An
intent left open by a dead worker, or closed without an answer, is resolved by looking: the intent's key is in the
thing itself, so that a create is found again and never repeated blindly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, NamedTuple

import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Claimed
from groundcontrol.kernel.plan import Change, Target
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.tx import Tx

_c, _i = tables.claims, tables.intents


class Claim(NamedTuple):
    """One thing outside (or one field of it) and the resource it belongs to."""

    target: Target
    field: str
    owner: str
    owner_uid: str
    since: float


class Intent(NamedTuple):
    """A call that may have been made."""

    key: str
    target: Target
    verb: str
    owner: str
    owner_uid: str
    epoch: int
    opened: float
    state: str
    """`open` (a worker is at it, or died at it), `unknown` (sent, no answer) or `answered` (what it came to is still
    to be seen; the next turns go on)."""


DUPLICATE = "!duplicate"
"""The field of a claim that marks a thing made twice: held for a person to remove."""


def claim(tx: Tx, target: Target, owner: Key, owner_uid: str, field: str = "") -> None:
    """Make `owner` the one owner; harmless when it is already. Claimed names the other owner."""
    row = tx.conn.execute(_where_claim(sa.select(_c), target, field)).first()
    if row is None:
        tx.conn.execute(
            sa.insert(_c).values(**target._asdict(), field=field, owner=str(owner), owner_uid=owner_uid, since=tx.time)
        )
    elif row.owner_uid != owner_uid:
        raise Claimed(f"{target} belongs to {row.owner}; {owner} may not touch it")


def release(tx: Tx, target: Target, owner_uid: str, field: str = "") -> None:
    """Let go of one field of a thing, or, without a field, of all of a thing that was confirmed gone."""
    of_thing = (_c.c.driver == target.driver, _c.c.type == target.type, _c.c.id == target.id)
    statement = sa.delete(_c).where(*of_thing, _c.c.owner_uid == owner_uid)
    tx.conn.execute(statement.where(_c.c.field == field) if field else statement)


def hold_duplicate(tx: Tx, target: Target, owner: Key, owner_uid: str) -> None:
    """A second thing made by a repeated call is owned, and nobody but a person removes it."""
    claim(tx, target, owner, owner_uid)
    claim(tx, target, owner, owner_uid, DUPLICATE)


def claims_of(conn: sa.Connection, owner_uid: str, *, duplicates: bool = False) -> dict[Target, Claim]:
    """What a resource owns outside; or what was made twice for it."""
    rows = conn.execute(sa.select(_c).where(_c.c.owner_uid == owner_uid).order_by(_c.c.since)).all()
    found = [Claim(Target(r.driver, r.type, r.id), r.field, r.owner, r.owner_uid, r.since) for r in rows]
    twice = {c.target for c in found if c.field == DUPLICATE}
    return {c.target: c for c in found if (c.target in twice) == duplicates}


def owners_at(
    conn: sa.Connection, driver: str, only: Collection[tuple[str, str]] | None = None
) -> dict[tuple[str, str], str]:
    """(type, id) to owner uid, for everything claimed at one driver instance, or only for some of it."""
    query = sa.select(_c.c.type, _c.c.id, _c.c.owner_uid).where(_c.c.driver == driver)
    if only is not None and len(only) <= 500:
        query = query.where(_c.c.id.in_({id_ for _, id_ in only}))
    owners = {(r.type, r.id): r.owner_uid for r in conn.execute(query)}
    return owners if only is None else {thing: uid for thing, uid in owners.items() if thing in only}


def _where_claim(statement: Any, target: Target, field: str) -> Any:
    return statement.where(
        _c.c.driver == target.driver, _c.c.type == target.type, _c.c.id == target.id, _c.c.field == field
    )


def change_key(owner_uid: str, change: Change) -> str:
    """The name of this change of this owner, the same at every attempt."""
    return "c-" + hashlib.sha256(f"{owner_uid} {change.digest}".encode()).hexdigest()[:24]


def open_intent(tx: Tx, change: Change, owner: Key, owner_uid: str) -> str:
    """Say, before a call, that it may happen; returns the change key. An older intent of the same change is renewed."""
    key = change_key(owner_uid, change)
    tx.conn.execute(sa.delete(_i).where(_i.c.key == key))
    tx.conn.execute(
        sa.insert(_i).values(
            key=key,
            **change.target._asdict(),
            verb=change.verb,
            owner=str(owner),
            owner_uid=owner_uid,
            epoch=tx.store.epoch,
            opened=tx.time,
            state="open",
        )
    )
    return key


def close_intent(tx: Tx, key: str, state: str = "") -> None:
    """The call is over: its outcome is known and recorded, or kept as `unknown` or `answered`."""
    if state:
        tx.conn.execute(sa.update(_i).where(_i.c.key == key).values(state=state, opened=tx.time, epoch=tx.store.epoch))
    else:
        tx.conn.execute(sa.delete(_i).where(_i.c.key == key))


def being_made(conn: sa.Connection, driver: str) -> frozenset[tuple[str, str]]:
    """(type, id) of what calls without a recorded outcome may not have made, or may have removed."""
    rows = conn.execute(sa.select(_i.c.type, _i.c.id).where(_i.c.driver == driver, _i.c.verb.in_(("create", "delete"))))
    return frozenset((r.type, r.id) for r in rows)


def intents_of(conn: sa.Connection, owner_uid: str) -> tuple[Intent, ...]:
    """Calls for this resource whose outcome is not recorded."""
    rows = conn.execute(sa.select(_i).where(_i.c.owner_uid == owner_uid).order_by(_i.c.opened))
    return tuple(
        Intent(r.key, Target(r.driver, r.type, r.id), r.verb, r.owner, r.owner_uid, r.epoch, r.opened, r.state)
        for r in rows
    )
