"""What a capability writes to keep one kind true, and what it may look at while doing so.

`plan` looks and never touches; `apply` makes one change outside and is safe to try again; `report` says in the status
what is so. The kernel does the rest: limits, approvals, claims, intents, audit, events, retries and `Ready`. A
reconciler is told only *which* resource to look at, never what happened: it decides from what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from groundcontrol.kernel.claims import Claim, claims_of
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.guard import Scope
from groundcontrol.kernel.plan import STORE, Change, Plan, Target
from groundcontrol.kernel.resource import Condition, Doc, Key, Resource, Status, Truth
from groundcontrol.kernel.store import Entry, Store
from groundcontrol.kernel.tx import Tx
from groundcontrol.kernel.world import Seen, Snapshot, World

R = TypeVar("R", bound=Resource)
K = TypeVar("K", bound=Resource)


class Look:
    """Everything a reconciler may look at: resources as they are now, and the world as it was last seen."""

    def __init__(self, store: Store, world: World, key: Key, uid: str) -> None:
        self._store, self._world = store, world
        self.key, self.uid = key, uid
        self.now = store.clock()
        self._claims: dict[Target, Claim] | None = None

    @property
    def installation(self) -> str:
        return self._store.installation

    @property
    def epoch(self) -> int:
        """Of this server: what carries another was written by one that is gone."""
        return self._store.epoch

    def get(self, kind: type[K], name: str, namespace: str = "") -> K | None:
        """One resource, typed."""
        entry = self._store.entry(Key(kind.__name__, namespace, name))
        return self._view(kind, entry) if entry else None

    def all(self, kind: type[K], namespace: str | None = None) -> list[K]:
        """All of a kind, typed, ordered by name."""
        return [self._view(kind, e) for e in self._store.entries(kind.__name__, namespace)]

    def entries(self, kind: str, namespace: str | None = None) -> list[Entry]:
        """All of a kind, untyped."""
        return self._store.entries(kind, namespace)

    def children(self, kind: type[K]) -> list[K]:
        """What was made for this resource."""
        return [self._view(kind, e) for e in self._store.children(self.uid) if e.key.kind == kind.__name__]

    def get_any(self, kind: str, name: str, namespace: str = "") -> Doc | None:
        """One resource of a kind known by name only, untyped."""
        return self._store.get(Key(kind, namespace, name))

    def _view(self, kind: type[K], entry: Entry) -> K:
        return kind.view(self._store.kinds.versions(kind.__name__).to_current(entry.doc))

    @property
    def claims(self) -> Mapping[Target, Claim]:
        """What this resource owns outside."""
        if self._claims is None:
            with self._store.reading() as conn:
                self._claims = claims_of(conn, self.uid)
        return self._claims

    def snapshot(self, instance: str) -> Snapshot:
        return self._world.snapshot(instance)

    def trusted(self, instance: str) -> bool:
        """Whether the snapshot may be spoken of as what is so now."""
        return self._world.trusted(instance)

    @property
    def starting(self) -> bool:
        """Whether this program began so recently that what has not been looked at yet says nothing."""
        return self._world.starting

    def seen(self, target: Target) -> Seen:
        """Whether a thing is there; makes a direct look before it answers `absent`."""
        return self._world.seen(target)

    def reading(self) -> Any:
        return self._store.reading()


class Act:
    """What `apply` gets besides the change."""

    def __init__(self, store: Store, world: World, key: str, change: Change) -> None:
        self._world = world
        self.change_key = key
        """Goes into the thing itself (tag, metadata, chosen id), so that a retry finds it."""
        self.epoch = store.epoch
        """For drivers that fence."""
        self.installation = store.installation
        self.target = change.target

    @property
    def instance(self) -> Any:
        """The driver instance of the change's target."""
        return self._world.instance(self.target.driver)


@dataclass(frozen=True)
class Report:
    """What is so, for the status. The kernel sets times, generations and the kernel's own conditions."""

    status: Status | None
    """None leaves the status as it is."""
    again: float | None = None
    """Seconds after which to look again even if nothing is heard."""
    events: tuple[tuple[str, str, bool], ...] = ()
    """(reason, message, warning) for the timeline; only when something happened that is not a change of ours."""


@dataclass(frozen=True)
class Watch:
    """Events of another kind that make this reconciler look again. `keys` says at which resources."""

    kind: str
    keys: Callable[[Doc, Store], Iterable[Key]]


def owner_of(kind: str) -> Callable[[Doc, Store], Iterable[Key]]:
    """For `Watch`: the owner of that kind of what changed."""

    def keys(doc: Doc, store: Store) -> Iterable[Key]:
        for reference in doc["metadata"].get("ownerReferences") or ():
            entry = store.by_uid(reference["uid"])
            if entry and entry.key.kind == kind:
                yield entry.key

    return keys


class Reconciler(Generic[R]):
    """Keeps one kind true. Subclasses set `name` and `kind` and write `plan`, `report` and, for what is outside,
    `apply`. Plain synchronous code on a thread; it never sleeps, it asks to be called again."""

    name: ClassVar[str]
    kind: type[R]
    watches: ClassVar[tuple[Watch, ...]] = ()
    tears_down: ClassVar[bool] = False
    """Whether a resource must be taken down by this reconciler before it may go. One reconciler per kind may."""
    reports: ClassVar[bool] = True
    """Whether it writes the status of its kind. One reconciler per kind may."""
    on_status: ClassVar[bool] = False
    """Whether a change of its own kind's status makes it look again (for a second reconciler of a kind)."""
    gathers: ClassVar[bool] = True
    """Whether what its plans destroy is judged together with what others of its kind plan within a second. Not where
    one plan has all of it."""
    manager: ClassVar[str] = "server"
    """The manager of fields of resources it makes."""

    def shard(self, resource: R) -> str:
        """The driver instance whose call budget and breaker this resource's turns share."""
        return STORE

    def plan(self, resource: R, look: Look) -> Plan:
        """What would make it so. Must not change anything; must be harmless to call at any time."""
        raise NotImplementedError

    def apply(self, resource: R, change: Change, act: Act) -> str | None:
        """Make one change outside. Safe to try again. May return the id of what was made when it was not chosen.

        Raises `OutcomeUnknown` when the call may have happened; anything else means that it did not."""
        raise NotImplementedError(f"{self.name} has no outside")

    def report(self, resource: R, plan: Plan, look: Look) -> Report:
        """What is so, given what was planned (and by now mostly done)."""
        return Report(None)

    def scopes(self, resource: R, change: Change, store: Store) -> Sequence[Scope]:
        """Budgets that a destructive change counts against."""
        kind = change.target.type
        scopes = [Scope("kind", kind, store.count(kind)), Scope("all", "", 0)]
        namespace = resource.metadata.namespace
        if namespace:
            scopes.append(Scope("namespace", namespace, len(store.entries(kind, namespace))))
        return scopes

    def manager_of(self, resource: R) -> str:
        """Who manages the fields of what it makes in the store."""
        return self.manager

    def actor(self, resource: R) -> str:
        """Who the audit names for its changes."""
        return f"reconciler:{self.name}"

    def told_on(self, resource: R, change: Change) -> Key:
        """The resource on whose timeline a change is told."""
        return resource.key

    def refused(self, resource: R, change: Change, error: GroundError) -> None:
        """Told of each change that was not admitted, before `report`; the same one may be told again."""

    def authorise(self, tx: Tx, resource: R, change: Change) -> None:
        """Raise Forbidden, or Conflict, when a change is not this reconciler's to make. Asked inside the transaction
        that makes a change of the store, or says that a call outside may come."""

    def keeps(self, resource: R) -> bool:
        """Whether what it has outside stays there, as nobody's, when the resource goes."""
        return False


@dataclass(frozen=True)
class StoreWrite:
    """The payload of a change of our own resources."""

    doc: Doc | None = None
    """The complete document, for create and update."""
    given: frozenset[str] | None = None
    """The paths the maker manages."""
    uid: str = ""
    """Of what is to be updated or deleted: another one of the same name is left alone."""


def store_change(
    verb: str,
    key: Key,
    write: StoreWrite,
    *,
    fields: Mapping[str, tuple[Any, Any]] | None = None,
    destructive: bool = False,
    reason: str = "",
    event: str = "",
) -> Change:
    """A change of one of our own resources."""
    identity: dict[str, tuple[Any, Any]] = {"metadata.uid": (write.uid, None)} if verb == "delete" else {}
    return Change(
        Target(STORE, key.kind, key.path),
        verb,
        {**(fields or {}), **identity},
        destructive=destructive,
        reason=reason,
        payload=write,
        event=event,
    )


def store_key(target: Target) -> Key:
    """The key of a store change's target."""
    namespace, _, name = target.id.rpartition("/")
    return Key(target.type, namespace, name)


class Answer(NamedTuple):
    """A condition without its bookkeeping."""

    status: Truth
    reason: str
    message: str


def conditions(**answers: Answer | tuple[Truth, str, str]) -> list[Condition]:
    """`conditions(Ready=("True", "Healthy", "all instances are healthy"))`."""
    return [Condition(type=t, status=a[0], reason=a[1], message=a[2]) for t, a in answers.items()]
