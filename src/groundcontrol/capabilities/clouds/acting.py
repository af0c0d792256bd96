"""Does what people and Runs ask of servers and volumes: judged, written down, asked of the cloud, written down again.

What a field of the spec can say is only set there, and the reconciler does the rest. Anything else is one call to the
cloud, with a record of it in the resource from before the call; one whose answer is lost is looked up, never repeated.
"""

from __future__ import annotations

import copy
import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from groundcontrol.capabilities.clouds.kinds import TYPES, CloudResource, not_granted
from groundcontrol.capabilities.clouds.logic import in_words
from groundcontrol.capabilities.clouds.operations import (
    HELD_RESIZE,
    LONGEST,
    OPERATIONS,
    Operation,
    Record,
    happened,
    inputs,
    noted,
    records,
    refusal,
    word,
)
from groundcontrol.capabilities.clouds.view import Shelf, Sight, driver_of
from groundcontrol.kernel.claims import claims_of, intents_of
from groundcontrol.kernel.errors import (
    Conflict,
    Forbidden,
    GroundError,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Problem,
    Refused,
    Unavailable,
)
from groundcontrol.kernel.incarnation import observing
from groundcontrol.kernel.plan import Target
from groundcontrol.kernel.reconcile import Look
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.tx import Tx
from groundcontrol.ports.cloud import Cloud, Thing

log = logging.getLogger(__name__)
LONGEST_CALL = 900.0
"""Seconds after which a call that was begun and never ended keeps nobody else out."""
MOST_TEXT = 64 * 1024
"""Letters of a console that are given; the newest."""
Action = Callable[[Any, Subject, Key, dict[str, Any]], dict[str, Any]]


class Call:
    """One operation on one resource, from its body to its outcome."""

    def __init__(self, runtime: Any, subject: Subject, key: Key, operation: Operation, body: Mapping[str, Any]) -> None:
        self.runtime, self.subject, self.key, self.operation = runtime, subject, key, operation
        self.store = runtime.store
        self.given = inputs(operation, body)
        self.change_key = str(body.get("changeKey") or uuid.uuid4().hex)[:200]
        self.reason = str(body.get("reason") or "")[:LONGEST]
        self.crash_point: Callable[[str], None] = runtime.turns.crash_point

    def run(self) -> dict[str, Any]:
        doc = self.store.get(self.key)
        if doc is None:
            raise NotFound(f"there is no {self.key}")
        resource: CloudResource = self.store.kinds.view(doc)
        uid = resource.metadata.uid
        known = next((r for r in records(doc["metadata"]["annotations"]) if r.key == self.change_key), None)
        if known is not None and known.state == "accepted":
            return self._answer(known)
        target, thing = self._found(resource)
        if known is not None and known.state != "refused" and not self.operation.repeatable:
            return self._asked_before(uid, known, thing)
        if problem := refusal(self.operation, self.given, thing):
            raise Invalid(problems=(problem,))
        if self.operation.reads:
            return self._read(target)
        arguments = self._arguments(resource, thing)
        record = self.store.write(lambda tx: self._begin(tx, uid, target, thing))
        if record.state == "accepted":
            return self._answer(record)
        self.crash_point("after asked")
        return self._send(uid, target, record, arguments)

    def _found(self, resource: CloudResource) -> tuple[Target, Thing]:
        """Its thing, looked at directly."""
        driver, type_ = driver_of(resource), TYPES[self.key.kind]
        with self.store.reading() as conn:
            mine = [t for t in claims_of(conn, resource.metadata.uid) if t.driver == driver and t.type == type_]
        missing = Problem(f"{self.key} is not there yet", "status.id", remedy="its condition Ready says why")
        if not mine:
            raise Invalid(problems=(missing,))
        target = next((t for t in mine if t.id == resource.status.id), mine[0])
        try:
            return target, self._port(target).get(target.type, target.id)
        except NotFound:
            raise Conflict(f"{target} is not there any more; it is made anew, or {self.key} says why not") from None

    def _port(self, target: Target) -> Cloud:
        port: Cloud = self.runtime.world.instance(target.driver).port
        return port

    def _arguments(self, resource: CloudResource, thing: Thing) -> dict[str, Any]:
        """What the cloud is told. Invalid when something that is named is not there, or cannot be."""
        operation, given = self.operation, self.given
        sent = {n: given[n] for n in operation.sends if n in given}
        if operation.verb == "extend" and given["size"] < max(int(thing.fields.get("size", 0)), resource.spec.size):  # type: ignore[attr-defined]
            has = thing.fields.get("size", 0)
            raise Invalid(problems=(Problem(f"it has {has} GiB already and never shrinks", "size"),))
        if operation.verb in ("rebuild", "resize"):
            name = "image" if operation.verb == "rebuild" else "flavor"
            id_ = self._resolved(resource, thing, name)
            if operation.verb == "rebuild":
                sent["image"] = id_
        if operation.verb == "retype":
            sent["migrate"] = given.get("migrate") == "yes"
        if (operation.kind, operation.verb) == ("Server", "snapshot"):
            sent["metadata"] = {
                "ground:installation": self.store.installation,
                "ground:owner": resource.metadata.uid,
                "ground:key": str(self.key),
                "ground:change": self._mark,
            }
        return sent

    @property
    def _mark(self) -> str:
        """By this an image is found again when the answer to its making was lost."""
        return f"s-{self.change_key}"

    def _resolved(self, resource: CloudResource, thing: Thing, name: str) -> str:
        """The id that an input stands for, as the same field of the spec would."""
        changed = resource.model_copy(deep=True)
        if self.given.get(name):
            spec = changed.spec.model_dump(mode="json", by_alias=True) | {name: self.given[name]}
            try:
                changed.spec = type(changed.spec).model_validate(spec)
            except ValueError:
                raise Invalid(problems=(Problem(f"{self.given[name]!r} is no name of one", name),)) from None
        look = Look(self.store, self.runtime.world, self.key, resource.metadata.uid)
        view = Sight(Shelf(), self.key.kind).of(changed, look)
        if found := view.wanted.get(name):
            return str(found)
        why = "; ".join(m for m in view.missing if m.startswith(name)) or "; ".join(view.missing)
        raise Invalid(problems=(Problem(why or f"the {name} of {thing.name} is not known", name),))

    # ── before the call ─────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, tx: Tx, uid: str, target: Target, thing: Thing) -> Record:
        """Judge, set what the spec can say, and write down that the cloud may be called."""
        old = self._judged(tx, uid, target)
        notes: dict[str, str] = old["metadata"]["annotations"]
        begun = [r for r in records(notes) if r.state == "asked" and r.epoch == tx.store.epoch]
        busy = next((r for r in begun if tx.time - r.at < LONGEST_CALL), None)
        if busy is not None and busy.key != self.change_key:
            raise Conflict(f"{busy.verb} of {self.key} is being asked for {busy.by}; try again in a moment")
        fields = self._fields(old)
        calls = not fields if self.operation.calls is None else self.operation.calls
        calls = calls and not (self.operation.repeatable and word(thing) in self.operation.ends)
        record = Record(
            verb=self.operation.verb,
            key=self.change_key,
            by=self.subject.name,
            at=tx.time,
            epoch=tx.store.epoch,
            state="asked" if calls else "accepted",
            was=word(thing),
            fields={n: (old["spec"].get(n), v) for n, v in fields.items()},
        )
        if fields:
            self._set(tx, old, fields)
        tx.touch(self.key, noted(notes, record) | self._resize_note(old))
        detail = dict(self.given) | ({"reason": self.reason} if self.reason else {})
        tx.audit(self.subject.name, record.verb, self.key, record.state, change=record.key, **detail)
        if not calls:
            tx.event(self.key, uid, "Asked", f"{record.verb} by {record.by}")
        return record

    def _judged(self, tx: Tx, uid: str, target: Target) -> Doc:
        """The resource, when the subject may do this to it now and it is ours to touch."""
        old = tx.get(self.key)
        labels = old["metadata"].get("labels") or {} if old else {}
        place = {"namespace": self.key.namespace, "name": self.key.name}
        self.runtime.access.require_in(tx, self.subject, self.operation.verb, self.key.kind, labels=labels, **place)
        if old is None or old["metadata"]["uid"] != uid:
            raise Conflict(f"{self.key} was deleted or made anew meanwhile")
        if old["metadata"]["deletionTimestamp"]:
            raise Invalid(f"{self.key} is being deleted")
        if found := observing(tx.conn):
            raise Unavailable(f"nothing is changed for now: {found.why}")
        if why := not_granted(tx.get(Key("Project", "", old["spec"]["project"])), old):
            raise Forbidden(why)
        if target not in claims_of(tx.conn, uid):
            raise Conflict(f"{target} is not of {self.key} any more; look again")
        if any(i.state == "open" and i.target == target for i in intents_of(tx.conn, uid)):
            raise Conflict(f"a change of {self.key} is under way; try again in a moment")
        return old

    def _fields(self, old: Doc) -> dict[str, Any]:
        """Fields of the spec that this sets."""
        if self.operation.verb != "revert-resize":
            return self.operation.sets(old["spec"], self.given)
        before = old["metadata"]["annotations"].get(HELD_RESIZE)
        if not before:
            raise Invalid(problems=(Problem("its resize is being confirmed already; resize it back", "status.state"),))
        return {"flavor": before}

    def _resize_note(self, old: Doc) -> dict[str, str]:
        if self.operation.verb == "resize":
            return {HELD_RESIZE: old["spec"]["flavor"] if self.given.get("confirm") == "ask" else ""}
        return {HELD_RESIZE: ""} if self.operation.verb in ("confirm-resize", "revert-resize") else {}

    def _set(self, tx: Tx, old: Doc, fields: Mapping[str, Any]) -> None:
        """Set fields as this person, unless a Source declares them: then its file is where to change them."""
        meta = {n: old["metadata"].get(n) or {} for n in ("labels", "annotations")}
        new = tx.store.kinds.parse(
            {
                "apiVersion": old["apiVersion"],
                "kind": self.key.kind,
                "metadata": {**meta, "name": self.key.name, "namespace": self.key.namespace},
                "spec": copy.deepcopy(old["spec"]) | dict(fields),
            }
        )
        self.runtime.access.admit(tx, self.subject, self.operation.verb, self.key, old, new)
        managers: Mapping[str, str] = old["metadata"]["managers"]
        mine = {path for path, owner in managers.items() if owner == self.subject.name}
        changed = {f"spec.{n}" for n, v in fields.items() if old["spec"].get(n) != v}
        tx.replace(
            new, self.subject.name, given=frozenset(mine | changed), refuse=lambda *field: _declared(tx, old, *field)
        )

    # ── the call, and after ─────────────────────────────────────────────────────────────────────────────────────

    def _send(self, uid: str, target: Target, record: Record, arguments: Mapping[str, Any]) -> dict[str, Any]:
        port, close = self._port(target), self._close
        try:
            answer = port.act(target.type, target.id, record.verb, arguments)
            self.crash_point("after act")
        except OutcomeUnknown as error:
            try:
                thing = port.get(target.type, target.id)
            except GroundError:
                thing = None
            return self._looked_up(uid, target, record, thing, error.message)
        except GroundError as error:
            said = in_words(error.cause, error.message) if isinstance(error, Refused) else error.message
            close(uid, target, record, "refused", said)
            if isinstance(error, Refused):
                raise Refused(said, cause=error.cause, retry_after=error.retry_after) from None
            raise
        except Exception as error:
            close(uid, target, record, "unknown", f"unexpected {type(error).__name__}")
            raise
        told = {n: str(v)[:LONGEST] for n, v in answer.items() if v}
        return self._answer(close(uid, target, record, "accepted", "", told))

    def _looked_up(self, uid: str, target: Target, record: Record, thing: Thing | None, why: str) -> dict[str, Any]:
        """No answer came: what one sees. OutcomeUnknown when that does not tell."""
        if thing is not None and happened(self.operation, record, thing):
            return self._answer(
                self._close(uid, target, record, "accepted", "no answer came, and it is seen to happen")
            )
        if (self.operation.kind, self.operation.verb) == ("Server", "snapshot"):
            try:
                images = [id_ for type_, id_ in self._port(target).find(self._mark) if type_ == "image"]
            except GroundError:
                images = []
            if images:
                told = {"image": images[0]}
                return self._answer(self._close(uid, target, record, "accepted", "found again by its mark", told))
        wanted = {n: v for n, (_, v) in record.fields.items()}
        if record.verb == "retype" and thing is not None and thing.fields.get("type") == wanted.get("type"):
            return self._answer(self._close(uid, target, record, "accepted", "no answer came, and it has the type"))
        message = f"{record.verb} of {self.key}: no answer came, and it cannot be seen whether it happened: {why}"
        self._close(uid, target, record, "unknown", message)
        raise OutcomeUnknown(f"{message}. Look at it before you ask again")

    def _asked_before(self, uid: str, record: Record, thing: Thing) -> dict[str, Any]:
        """The same step of a Run asks again what it asked before."""
        if record.state == "asked" and record.epoch == self.store.epoch:
            raise Conflict(f"{record.verb} of {self.key} is being asked already")
        target, _ = self._found(self.store.kinds.view(self.store.get(self.key)))
        return self._looked_up(uid, target, record, thing, "the server stopped before the answer came")

    def _close(
        self,
        uid: str,
        target: Target,
        record: Record,
        state: str,
        message: str,
        answer: Mapping[str, str] | None = None,
    ) -> Record:
        """Write down how it ended; what a refused call would have made true is wanted no more."""
        ended = msgspec.structs.replace(record, state=state, message=message[:LONGEST], answer=dict(answer or {}))
        self.runtime.world.wrote(target)

        def close(tx: Tx) -> None:
            doc = tx.get(self.key)
            tx.audit(record.by, record.verb, self.key, state, change=record.key)
            if doc is None or doc["metadata"]["uid"] != uid:
                return
            if state == "refused":
                self._take_back(tx, doc, record)
                doc = tx.need(self.key)
            tx.touch(self.key, noted(doc["metadata"]["annotations"], ended))
            words = f"{record.verb} by {record.by}: {state}" + (f": {message[:LONGEST]}" if message else "")
            tx.event(self.key, uid, f"Operation{state.title()}", words, warning=state != "accepted")

        self.crash_point("before close")
        self.store.write(close)
        return ended

    def _take_back(self, tx: Tx, doc: Doc, record: Record) -> None:
        managers: Mapping[str, str] = doc["metadata"]["managers"]
        spec = copy.deepcopy(doc["spec"])
        for name, (before, after) in record.fields.items():
            if spec.get(name) == after and managers.get(f"spec.{name}", record.by) == record.by:
                spec[name] = before
        if spec != doc["spec"] and not doc["metadata"]["deletionTimestamp"]:
            mine = frozenset(path for path, owner in managers.items() if owner == record.by)
            tx.replace({**doc, "spec": spec}, record.by, given=mine)

    def _read(self, target: Target) -> dict[str, Any]:
        sent = {n: self.given[n] for n in self.operation.sends if n in self.given}
        answer = self._port(target).act(target.type, target.id, self.operation.verb, sent)
        text = str(answer.get("text") or answer.get("output") or "")[-MOST_TEXT:]
        self.store.write(lambda tx: tx.audit(self.subject.name, self.operation.verb, self.key))
        return {"text": text}

    def _answer(self, record: Record) -> dict[str, Any]:
        return {"operation": record.verb, "state": record.state, "changeKey": record.key, **record.answer}


def _declared(tx: Tx, old: Doc, path: str, owner: str) -> Problem | None:
    """Why a field is not set here: a living Source declares it in a file."""
    who, _, name = owner.partition(":")
    if who != "source" or not any(e.key.name == name for e in tx.entries("Source")):
        return None
    notes: Mapping[str, str] = old["metadata"]["annotations"]
    where = notes.get("ground/file") or f"a file of {notes.get('ground/source') or name}"
    said = f"{path} is set by {owner}, in {where}"
    return Problem(said, path, remedy=f"change it in {where}, or let a Run set it for a while (`holdFor`)")


def _action(operation: Operation) -> Action:
    def act(runtime: Any, subject: Subject, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        return Call(runtime, subject, key, operation, body).run()

    takes = ", ".join(f"`{a.name}`" + "*" * a.needed for a in operation.takes)
    act.__doc__ = operation.about + (f" Takes {takes}." if takes else "")
    act.__name__ = f"{operation.verb}_{operation.kind}".lower().replace("-", "_")
    return act


ACTIONS: Mapping[tuple[str, str], Action] = {(o.kind, o.verb): _action(o) for o in OPERATIONS}
REPEATABLE = frozenset((o.kind, o.verb) for o in OPERATIONS if o.repeatable)
