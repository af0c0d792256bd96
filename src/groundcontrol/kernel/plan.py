"""A plan is the changes that would make a resource true, written down before any is made. Empty means "it is so".

Limits bound what may be destroyed per scope and rolling window, across all plans. A person approves the digest of
sorted (target, verb, field before → after), or a bound, never a flag. What remains of an approved plan stays
approved; anything added does not.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

STORE = "store"
"""The driver instance whose things are our own resources: target type is the kind, target id the path."""


class Target(NamedTuple):
    """One thing outside (or one resource of ours, when `driver` is `store`)."""

    driver: str
    """Driver instance, for example `site/bari`."""
    type: str
    id: str

    def __str__(self) -> str:
        return f"{self.type} {self.id}" if self.driver == STORE else f"{self.driver} {self.type} {self.id}"


Fields = Mapping[str, tuple[Any, Any]]
"""Field path to (before, after)."""


@dataclass(frozen=True)
class Change:
    """One change to one thing."""

    target: Target
    verb: str
    """`create`, `update`, `delete`, `start`, `stop`, … as the driver's port has them."""
    fields: Fields = field(default_factory=dict)
    destructive: bool = False
    """Something is lost that cannot be had back by the opposite change; counted against limits."""
    reason: str = ""
    """Why, for people; not part of the digest."""
    payload: Any = None
    """What the reconciler needs to apply it; not part of the digest, never logged."""
    event: str = ""
    """Word for the timeline when it was made; the verb when empty."""
    warning: bool = False
    """The timeline entry is a warning, for example because somebody had changed something by hand."""
    ask: str = ""
    """Why it waits for a person whatever the limits say; only for what is destructive. An approval of its digest lets
    it pass, a bound does not."""

    @functools.cached_property
    def digest(self) -> str:
        return _digest([self._parts()])

    def _parts(self) -> tuple[Any, ...]:
        return (*self.target, self.verb, sorted((path, list(pair)) for path, pair in self.fields.items()))

    def as_dict(self, owner: str = "") -> dict[str, Any]:
        """The shape the API answers with."""
        return {
            "target": self.target._asdict(),
            "verb": self.verb,
            "fields": {path: list(pair) for path, pair in self.fields.items()},
            "destructive": self.destructive,
            "reason": self.reason,
            "digest": self.digest,
            **({"owner": owner} if owner else {}),
        }


def _digest(parts: Iterable[tuple[Any, ...]]) -> str:
    encoded = sorted(msgspec.json.encode(part, enc_hook=str, order="deterministic") for part in parts)
    return "sha256:" + hashlib.sha256(b"\n".join(encoded)).hexdigest()


def digest_of(digests: Iterable[str]) -> str:
    """The digest of a plan from the digests of its changes; order does not matter."""
    return "sha256:" + hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What would be changed, and what was seen that will be left alone."""

    changes: tuple[Change, ...] = ()
    problems: tuple[str, ...] = ()
    """Why something wanted cannot even be planned; shown, and `Ready` is not said."""
    foreign: tuple[str, ...] = ()
    """What is there and is not ours: reported and left."""
    waiting: str = ""
    """What it waits for before more can be planned; empty when nothing."""
    again: float | None = None
    """Seconds after which to look again even if nothing is heard."""

    @property
    def digest(self) -> str:
        return digest_of(c.digest for c in self.changes)

    def __bool__(self) -> bool:
        return bool(self.changes)


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be destroyed in one scope and window without asking anybody."""

    scope: str
    """`source`, `kind`, `site`, `namespace`, `group`, `subject`, or `all`; each value of it has a budget of its own."""
    count: int
    """This many destructive changes pass in a window."""
    share: float = 1.0
    """And not more than this share (0 to 1) of what the scope has, once it has more than `floor` things."""
    floor: int = 2
    """Below this many destroyed in the window the share is not asked."""
    window: float = 600.0
    """Seconds."""


DEFAULT_LIMITS = (
    Limit(scope="source", count=25, share=0.3, floor=1),
    Limit(scope="subject", count=50, share=1.0),
    Limit(scope="kind", count=100, share=0.3, floor=20),
    Limit(scope="site", count=50, share=0.5, floor=10),
)


class Spent(NamedTuple):
    """What a scope has used up in its window, and how many things it has."""

    used: int
    total: int


def over_limit(limit: Limit, value: str, spent: Spent, wanted: int) -> str:
    """Why `wanted` more would be too many, as a sentence; empty when they may pass."""
    after = spent.used + wanted
    where = f"{limit.scope} {value}" if value else limit.scope
    window = f"{limit.window / 60:g} minutes" if limit.window >= 60 else f"{limit.window:g} seconds"
    if after > limit.count:
        return f"{after} deletions in {where} within {window}, {limit.count} allowed"
    if after > limit.floor and spent.total and after > limit.share * spent.total:
        return f"{after} of {spent.total} in {where} would be deleted within {window}, {limit.share:.0%} allowed"
    return ""
