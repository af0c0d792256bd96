"""What may be done to resources inside one act of the writer: read, create, change, delete, record.

Every change of a resource takes the next event number. Reads see what this commit has written so far. All of it
becomes visible to others, and durable, together.
"""

from __future__ import annotations

import copy
import functools
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa
from pydantic import BaseModel

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import AlreadyExists, Conflict, NotFound, Problem
from groundcontrol.kernel.resource import Doc, Key, did_you_mean, key_of, now

if TYPE_CHECKING:
    from groundcontrol.kernel.store import Store

T = TypeVar("T")

SERVER = "server"
"""The manager of fields that reconcilers set on resources they made themselves."""


class Event(NamedTuple):
    """One change of one resource. `seq` is also the resourceVersion of the document."""

    seq: int
    type: str
    """ADDED, MODIFIED or DELETED."""
    key: Key
    raw: bytes
    was: Mapping[str, str] | None = None
    """The labels before; None when they are not known any more."""


class Entry(NamedTuple):
    """One resource in the cache. `doc` decodes afresh, so that nobody can change what others read."""

    key: Key
    uid: str
    seq: int
    labels: dict[str, str]
    owner_uid: str
    raw: bytes

    @property
    def doc(self) -> Doc:
        return msgspec.json.decode(self.raw)  # type: ignore[no-any-return]


class _Owner(msgspec.Struct):
    uid: str = ""


class _Meta(msgspec.Struct, rename="camel"):
    uid: str
    resource_version: int
    labels: dict[str, str] = {}
    owner_references: list[_Owner] = []


class _Doc(msgspec.Struct):
    metadata: _Meta


_DECODER = msgspec.json.Decoder(_Doc)


def entry_of(key: Key, raw: bytes) -> Entry:
    meta = _DECODER.decode(raw).metadata
    owner = meta.owner_references[0].uid if meta.owner_references else ""
    return Entry(key, meta.uid, meta.resource_version, meta.labels, owner, raw)


class Applied(NamedTuple):
    """What `apply` did."""

    doc: Doc
    result: str
    """created, changed or unchanged."""


class Tx:
    """One group commit under way; an act gets it and must not keep it."""

    def __init__(self, store: Store, conn: sa.Connection, sequence: int, fact_sequence: int) -> None:
        self.store = store
        self.conn = conn
        self.sequence = sequence
        self.fact_sequence = fact_sequence
        self.events: list[Event] = []
        self.facts: list[dict[str, Any]] = []
        self._overlay: dict[Key, bytes | None] = {}
        self._undo: list[tuple[Key, bytes | None, bool]] = []
        self.changed: dict[str, list[Key]] = {}
        """Per kind what was written or taken back in this commit, in that order; only ever longer."""
        self.time = store.clock()
        self.broken = False
        """The database ended the transaction under us; nothing of this commit can be kept."""

    # ── bookkeeping of the commit ───────────────────────────────────────────────────────────────────────────────

    def mark(self) -> tuple[int, int, int, int, int]:
        return self.sequence, self.fact_sequence, len(self.events), len(self.facts), len(self._undo)

    def rewind(self, mark: tuple[int, int, int, int, int]) -> None:
        """Forget what came after `mark`, so that numbers have no gap."""
        self.sequence, self.fact_sequence, events, facts, undo = mark
        del self.events[events:], self.facts[facts:]
        while len(self._undo) > undo:
            key, raw, was_there = self._undo.pop()
            self.changed[key.kind].append(key)
            if was_there:
                self._overlay[key] = raw
            else:
                self._overlay.pop(key, None)

    def attempt(self, act: Callable[[Tx], T]) -> T:
        """Run a part of this act on its own: if it raises, only its own writes are undone."""
        mark = self.mark()
        savepoint = self.conn.begin_nested()
        try:
            result = act(self)
        except BaseException:
            try:
                savepoint.rollback()
            except sa.exc.DBAPIError:
                self.broken = True
            self.rewind(mark)
            raise
        savepoint.commit()
        return result

    def finish(self) -> None:
        """Write events, facts and counters; the last thing before the commit."""
        if self.events:
            self.conn.execute(
                _INSERT_EVENT,
                [{"seq": e.seq, "type": e.type, "doc": e.raw, **e.key._asdict()} for e in self.events],
            )
            self.conn.execute(_SET_META, {"k": "sequence", "v": str(self.sequence)})
        if self.facts:
            self.conn.execute(_INSERT_FACT, self.facts)
            self.conn.execute(_SET_META, {"k": "factSequence", "v": str(self.fact_sequence)})

    # ── resources ───────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: Key) -> Doc | None:
        """The document as of this moment of the commit."""
        raw = self._raw(key)
        return msgspec.json.decode(raw) if raw is not None else None

    def need(self, key: Key) -> Doc:
        """As `get`; NotFound with the nearest name otherwise."""
        doc = self.get(key)
        if doc is None:
            names = [e.key.name for e in self.store.entries(key.kind, key.namespace)]
            raise NotFound(f"there is no {key}{did_you_mean(key.name, names)}")
        return doc

    def entries(self, kind: str, namespace: str | None = None) -> list[Entry]:
        """All of a kind (in a namespace) as of this moment of the commit, in no order."""
        found = self.store.entries(kind, namespace)
        if not self.changed.get(kind):
            return found
        mine = {k: raw for k, raw in self._overlay.items() if k.kind == kind and namespace in (None, k.namespace)}
        written = [entry_of(k, raw) for k, raw in mine.items() if raw is not None]
        return [e for e in found if e.key not in mine] + written

    def _raw(self, key: Key) -> bytes | None:
        if key in self._overlay:
            return self._overlay[key]
        entry = self.store.entry(key)
        return entry.raw if entry else None

    def create(self, doc: Doc, manager: str = SERVER, given: frozenset[str] | None = None) -> Doc:
        """Write a new resource; `doc` is complete (from `Kinds.parse` or a model). `given` are the managed paths."""
        key = key_of(doc)
        if self._raw(key) is not None:
            raise AlreadyExists(f"{key} exists already")
        self._check_namespace(key)
        self._admit_among(None, doc)
        meta = {
            **doc["metadata"],
            "generation": 1,
            "uid": uuid.uuid4().hex,
            "creationTimestamp": now(self.time),
            "deletionTimestamp": "",
            "finalizers": ["ground"] if key.kind in self.store.finalizers else [],
            "managers": dict.fromkeys(sorted(given if given is not None else managed_paths(doc)), manager),
        }
        return self._write({**doc, "metadata": meta}, "ADDED")

    def replace(
        self,
        doc: Doc,
        manager: str = SERVER,
        *,
        given: frozenset[str] | None = None,
        refuse: Callable[[str, str], Problem | None] | None = None,
    ) -> Applied:
        """Make spec, labels and annotations of an existing resource those of `doc`.

        `refuse(path, owner)` is asked for each changed path another manager sets, and answers the problem to refuse
        with, or None to take the path over. Paths the manager gave before and no longer gives are let go.
        """
        key = key_of(doc)
        old = self.need(key)
        if old["metadata"]["deletionTimestamp"]:
            raise Conflict(f"{key} is being deleted; wait until it is gone, then create it anew")
        expected = doc["metadata"].get("resourceVersion")
        if expected and expected != old["metadata"]["resourceVersion"]:
            raise Conflict(f"{key} changed meanwhile (you have {expected}, it is at {_version(old)}); read it again")
        given = managed_paths(doc) if given is None else given
        managers = {p: m for p, m in old["metadata"]["managers"].items() if m != manager or p in given}
        changed = {p for p in {*managed_paths(old), *managed_paths(doc)} if part(old, p) != part(doc, p)}
        problems = [
            problem
            for path in sorted(changed)
            if refuse and managers.get(path, manager) != manager and (problem := refuse(path, managers[path]))
        ]
        if problems:
            raise Conflict(f"{key}: {problems[0].message}", problems=tuple(problems))
        managers |= dict.fromkeys(given, manager)
        self._refuse_newer(old)
        new = copy.deepcopy(old)
        new["apiVersion"], new["spec"] = (
            doc["apiVersion"],
            self._with_unknown(key.kind, "spec", old["spec"], doc["spec"]),
        )
        meta = new["metadata"]
        for name in ("labels", "annotations"):
            meta[name] = doc["metadata"].get(name) or {}
        if doc["metadata"].get("ownerReferences"):
            meta["ownerReferences"] = doc["metadata"]["ownerReferences"]
        meta["managers"] = dict(sorted(managers.items()))
        if new == old:
            return Applied(old, "unchanged")
        if new["spec"] != old["spec"]:
            self.store.kinds.get(key.kind).admit(old, new)
            meta["generation"] += 1
        self._admit_among(old, new)
        return Applied(self._write(new, "MODIFIED"), "changed")

    def set_status(self, key: Key, uid: str, status: Mapping[str, Any]) -> bool:
        """Replace the status when it differs; False when it does not, or when the resource is gone or another."""
        old = self.get(key)
        if old is None or old["metadata"]["uid"] != uid:
            return False
        status = self._with_unknown(key.kind, "status", old.get("status"), dict(status))
        if old.get("status") == status:
            return False
        self._write({**old, "status": status}, "MODIFIED")
        return True

    def touch(self, key: Key, annotations: Mapping[str, str]) -> Doc:
        """Set annotations, as a hint to reconcilers; managers are not asked."""
        old = self.need(key)
        meta = {**old["metadata"], "annotations": {**old["metadata"]["annotations"], **annotations}}
        return self._write({**old, "metadata": meta}, "MODIFIED")

    def delete(self, key: Key, uid: str = "") -> Doc:
        """Ask for deletion: gone at once without finalizers, else marked until its reconciler has taken it down."""
        old = self.need(key)
        if uid and old["metadata"]["uid"] != uid:
            raise Conflict(f"{key} is not the one you saw: it was deleted and made anew")
        if not old["metadata"]["finalizers"]:
            return self._write(old, "DELETED")
        if old["metadata"]["deletionTimestamp"]:
            return old
        meta = {**old["metadata"], "deletionTimestamp": now(self.time)}
        return self._write({**old, "metadata": meta}, "MODIFIED")

    def finalize(self, key: Key, uid: str) -> None:
        """The reconciler has taken everything down: the resource goes."""
        old = self.get(key)
        if old is None or old["metadata"]["uid"] != uid or not old["metadata"]["deletionTimestamp"]:
            return
        self._write({**old, "metadata": {**old["metadata"], "finalizers": []}}, "DELETED")

    def _admit_among(self, old: Doc | None, new: Doc) -> None:
        if new["kind"] in self.store.kinds:
            self.store.kinds.get(new["kind"]).admit_among(old, new, self)

    def _with_unknown(self, kind: str, part: str, old: Any, new: dict[str, Any]) -> dict[str, Any]:
        """`new` with those fields of `old` that this program does not know: a newer one wrote them."""
        if not old or kind not in self.store.kinds:
            return new
        model = _models(self.store.kinds.get(kind)).get(part)
        return _keep_unknown(model, old, new) if model else new

    def _refuse_newer(self, old: Doc) -> None:
        kind = old["kind"]
        if kind in self.store.kinds and old["apiVersion"] != self.store.kinds.get(kind).version:
            raise Conflict(
                f"{key_of(old)} was written as {old['apiVersion']} by a newer version of this program; upgrade this one"
            )

    def _check_namespace(self, key: Key) -> None:
        if not key.namespace or "Namespace" not in self.store.kinds:
            return
        space = self.get(Key("Namespace", "", key.namespace))
        if space is None:
            known = [e.key.name for e in self.store.entries("Namespace")]
            raise NotFound(
                f"there is no Namespace {key.namespace}{did_you_mean(key.namespace, known)}; create it first"
            )
        if space["metadata"]["deletionTimestamp"]:
            raise Conflict(f"Namespace {key.namespace} is being deleted")

    def _write(self, doc: Doc, type_: str) -> Doc:
        key = key_of(doc)
        self.sequence += 1
        doc["metadata"]["resourceVersion"] = self.sequence
        was = self._labels(key) if type_ != "ADDED" else {}
        raw = msgspec.json.encode(doc)
        row = {"uid": doc["metadata"]["uid"], "seq": self.sequence, "doc": raw, **key._asdict()}
        if type_ == "ADDED":
            self.conn.execute(_INSERT, row)
        elif type_ == "MODIFIED":
            self.conn.execute(_UPDATE, {"u": row["uid"], "s": self.sequence, "d": raw})
        else:
            self.conn.execute(_DELETE, {"u": row["uid"]})
            for forget in _FORGET:
                self.conn.execute(forget, {"u": row["uid"]})
        self._undo.append((key, self._overlay.get(key), key in self._overlay))
        self._overlay[key] = None if type_ == "DELETED" else raw
        self.changed.setdefault(key.kind, []).append(key)
        self.events.append(Event(self.sequence, type_, key, raw, was))
        return doc

    def _labels(self, key: Key) -> Mapping[str, str]:
        if key not in self._overlay and (entry := self.store.entry(key)):
            return entry.labels
        doc = self.get(key)
        return doc["metadata"].get("labels") or {} if doc else {}

    # ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def fact(self, dataset: str, key: Key, subject: str, **data: Any) -> int:
        """Record a fact in the same commit as the act; it is shipped to the ledger later, once."""
        self.fact_sequence += 1
        self.facts.append(
            {
                "seq": self.fact_sequence,
                "dataset": dataset,
                "time": self.time,
                "subject": subject,
                "doc": msgspec.json.encode(data),
                **key._asdict(),
            }
        )
        return self.fact_sequence

    def event(self, key: Key, uid: str, reason: str, message: str, *, warning: bool = False, fields: Any = None) -> int:
        """Put something that happened on the timeline of a resource."""
        extra = {"fields": fields} if fields else {}
        return self.fact(
            "events", key, "", uid=uid, type="Warning" if warning else "Normal", reason=reason, message=message, **extra
        )

    def audit(self, subject: str, verb: str, key: Key, outcome: str = "done", **detail: Any) -> int:
        """Record who did what."""
        return self.fact("audit", key, subject, verb=verb, outcome=outcome, detail=detail)


def managed_paths(doc: Mapping[str, Any]) -> frozenset[str]:
    """The paths that have managers: each direct field of the spec, the labels as one, the annotations as one."""
    paths = {f"spec.{name}" for name in doc["spec"]}
    return frozenset(paths | {f"metadata.{n}" for n in ("labels", "annotations") if doc["metadata"].get(n)})


def part(doc: Mapping[str, Any], path: str) -> Any:
    """The value of a managed path; None when it is not there."""
    head, _, name = path.partition(".")
    value = doc[head].get(name)
    return value or None if head == "metadata" else value


@functools.cache
def _models(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Every field a model knows, by its name outside, and the model of its value when it is one."""
    found: dict[str, type[BaseModel] | None] = {}
    for name, info in model.model_fields.items():
        inner = [info.annotation, *typing.get_args(info.annotation)]
        models = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        plain = typing.get_origin(info.annotation) not in (list, dict, tuple)
        found[info.alias or name] = models[0] if len(models) == 1 and plain else None
    return found


def _keep_unknown(model: type[BaseModel], old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    known = _models(model)
    kept = {name: value for name, value in old.items() if name not in known and name not in new}
    for name, inner in known.items():
        before, after = old.get(name), new.get(name)
        if inner is not None and isinstance(before, dict) and isinstance(after, dict):
            kept[name] = _keep_unknown(inner, before, after)
    return {**new, **kept} if kept else new


def _version(doc: Mapping[str, Any]) -> int:
    return int(doc["metadata"]["resourceVersion"])


_r = tables.resources
_INSERT = sa.insert(_r)
_UPDATE = sa.update(_r).where(_r.c.uid == sa.bindparam("u")).values(seq=sa.bindparam("s"), doc=sa.bindparam("d"))
_DELETE = sa.delete(_r).where(_r.c.uid == sa.bindparam("u"))
_FORGET = [sa.delete(t).where(t.c.owner_uid == sa.bindparam("u")) for t in (tables.held, tables.holds)]
"""Nobody has to answer for what is gone."""
_INSERT_EVENT = sa.insert(tables.events)
_INSERT_FACT = sa.insert(tables.facts)
_SET_META = sa.update(tables.meta).where(tables.meta.c.key == sa.bindparam("k")).values(value=sa.bindparam("v"))
