"""What a Run does to others: it sets fields and holds them for a while, or calls an action, as whoever started it.

A `set` is one transaction with its journal entry, so it happens exactly once. The Run becomes the manager of the
fields it sets, so that a Source reports them and leaves them alone; when the Run lets go, whoever managed them before
does so again. Rights are judged at each act, inside the transaction, by what they are then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from groundcontrol.kernel.access import Access
from groundcontrol.kernel.errors import Forbidden, Invalid, NotFound
from groundcontrol.kernel.guard import hold, unhold
from groundcontrol.kernel.resource import Doc, Key, Kinds
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.run_admission import Sequence, resolve
from groundcontrol.kernel.run_journal import Progress, stamp
from groundcontrol.kernel.run_steps import Act, Step
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import SERVER, Tx

SUBJECT = "ground/subject"
"""Annotation by which another part of the server says for whom it made a Run; believed of the server only."""
SCOPE = frozenset({"read", "write"})
"""What a Run may do of what its starter may: it cannot approve, and cannot change who may do what."""


@dataclass(frozen=True)
class Case:
    """One Run as one turn sees it."""

    key: Key
    uid: str
    doc: Doc
    sequence: Sequence
    progress: Progress

    @property
    def manager(self) -> str:
        """The manager of the fields it sets."""
        return f"run:{self.key.path}"

    @property
    def subject(self) -> str:
        """Name of who started it."""
        return str(self.progress.frozen["subject"])

    @property
    def scope(self) -> dict[str, Any]:
        """What values and predicates may name."""
        steps = {
            name: {
                "state": s.state,
                "output": s.output,
                "attempts": s.attempts,
                "message": s.message,
                "started": stamp(s.started),
                "ended": stamp(s.ended),
            }
            for name, s in self.progress.steps.items()
        }
        run = {"name": self.key.name, "namespace": self.key.namespace, "uid": self.uid}
        return {"inputs": self.progress.frozen["inputs"], "steps": steps, "run": run}

    def target(self, kinds: Kinds, kind: str, namespace: str, name: str) -> Key:
        """The resource that is meant."""
        found = resolve(name, self.scope)
        if not isinstance(found, str) or not found:
            raise Invalid(f"the name {name} stands for is {found!r}")
        if not kinds.get(kind).info.namespaced:
            return Key(kind, "", found)
        place = resolve(namespace, self.scope)
        if not isinstance(place, str):
            raise Invalid(f"the namespace {namespace} stands for is {place!r}")
        return Key(kind, place or self.key.namespace, found)


def starter(doc: Doc) -> str:
    """Name of the subject a new Run acts as: whoever wrote all of its spec. Forbidden when that is not one."""
    meta = doc["metadata"]
    names = {owner for path, owner in meta["managers"].items() if path.startswith("spec.")}
    if meta["generation"] != 1 or len(names) != 1:
        raise Forbidden("its spec was changed by somebody before it was admitted; make a new Run")
    (name,) = names
    if name == SERVER:
        name = meta["annotations"].get(SUBJECT, "")
    if not name.startswith(("user:", "source:")):
        who = repr(name) if name else "the server"
        raise Forbidden(f"a Run acts with the rights of who starts it, and {who} has none; start it as yourself")
    return str(name)


def subject_of(get: Callable[[Key], Doc | None], name: str) -> Subject:
    """Who a Run acts as, as they are now. A Source's Run acts as the Source's own subject."""
    who, _, rest = name.partition(":")
    if who == "source":
        source = get(Key("Source", "", rest))
        if source is None:
            raise Forbidden(f"the Source {rest} that declared this Run is gone")
        who, _, rest = str(source["spec"].get("subject") or name).partition(":")
    if who == "group":
        return Subject(f"group:{rest}", groups=frozenset({rest}), scope=SCOPE)
    if who == "user":
        account = get(Key("Account", "", rest))
        if account is None or account["spec"].get("disabled"):
            raise Forbidden(f"the account {rest}, with whose rights it acts, is disabled or gone")
        return Subject(f"user:{rest}", frozenset(account["spec"].get("groups") or ()), SCOPE)
    return Subject(f"{who}:{rest}", scope=SCOPE)


def may_see(store: Store, access: Access, subject: Subject, key: Key) -> Doc | None:
    """The resource as it is, or None when it is not there; Forbidden or NotFound when the subject may not read it."""
    entry = store.entry(key)
    if entry is None and access.somewhere(subject, "get", key.kind, key.namespace or None):
        return None
    labels = entry.labels if entry else {}
    access.require(subject, "get", key.kind, namespace=key.namespace, name=key.name, labels=labels)
    return entry.doc if entry else None


def judge(tx: Tx, access: Access, subject: Subject, verb: str, key: Key) -> Doc:
    """The resource, when the subject may do this to it now; Forbidden or NotFound otherwise."""
    doc = tx.get(key)
    labels = doc["metadata"].get("labels") or {} if doc else {}
    access.require_in(tx, subject, verb, key.kind, namespace=key.namespace, name=key.name, labels=labels)
    if doc is None:
        raise NotFound(f"there is no {key}")
    return doc


def bodied(case: Case, act: Act, step: Step, undo: bool) -> Doc:
    """What an action is given: its body, why, and a key that is the same whenever this step is tried (or undone)."""
    body = {name: resolve(value, case.scope) for name, value in act.body.items()}
    key = f"{case.uid}:{step.name}" + ":undo" * undo
    return {"reason": f"step {step.name} of Run {case.key.path}", **body, "changeKey": key}


# ── setting fields ──────────────────────────────────────────────────────────────────────────────────────────────────


def set_fields(tx: Tx, access: Access, case: Case, step: Step, act: Act) -> dict[str, Any]:
    """Set what the act says, take the holds, record it on the target; what goes into the journal under `set`."""
    assert act.set is not None
    key = case.target(tx.store.kinds, act.set.kind, act.set.namespace, act.set.name)
    fields = {path: resolve(value, case.scope) for path, value in act.set.fields.items()}
    until = tx.time + act.hold_for
    return _write(tx, access, case, step, key, fields, until)


def restore_fields(tx: Tx, access: Access, case: Case, step: Step) -> tuple[list[dict[str, Any]], str]:
    """Give what a step set its old values back, where they are still what it set; what was done, and a sentence
    about what was not."""
    made, left = [], []
    for done in [d for d in case.progress.sets if d["step"] == step.name]:
        key = Key(done["kind"], done["namespace"], done["name"])
        doc = tx.get(key)
        if doc is None or doc["metadata"]["uid"] != done["uid"]:
            left.append(f"{key} is gone")
            continue
        same = {p: before for p, (before, after) in done["fields"].items() if _at(doc["spec"], p) == after}
        left += [f"{p} of {key} was changed since" for p in done["fields"] if p not in same]
        if same:
            made.append(_write(tx, access, case, step, key, same, tx.time, set(done["missing"])))
    return made, "; ".join(left)


def _write(
    tx: Tx,
    access: Access,
    case: Case,
    step: Step,
    key: Key,
    fields: Mapping[str, Any],
    until: float,
    absent: Iterable[str] = (),
) -> dict[str, Any]:
    subject = subject_of(tx.get, case.subject)
    old = judge(tx, access, subject, "update", key)
    if old["metadata"]["deletionTimestamp"]:
        raise Invalid(f"{key} is being deleted")
    spec = copy.deepcopy(old["spec"])
    for path, value in fields.items():
        _put(spec, path, value, drop=path in absent)
    meta = {n: old["metadata"].get(n) or {} for n in ("labels", "annotations")}
    new = tx.store.kinds.parse(
        {
            "apiVersion": old["apiVersion"],
            "kind": key.kind,
            "metadata": {**meta, "name": key.name, "namespace": key.namespace},
            "spec": spec,
        }
    )
    access.admit(tx, subject, "update", key, old, new)
    managers: Mapping[str, str] = old["metadata"]["managers"]
    touched = sorted({".".join(path.split(".")[:2]) for path in fields})
    mine = {path for path, owner in managers.items() if owner == case.manager}
    uid = old["metadata"]["uid"]
    for path in fields if until > tx.time else ():
        hold(tx, key, uid, path, case.key.path, until)
    tx.replace(new, case.manager, given=frozenset(mine | set(touched)))
    changes = {p: [_at(old["spec"], p), _at(new["spec"], p)] for p in fields}
    tx.audit(case.subject, "update", key, run=case.key.path, step=step.name, paths=sorted(fields))
    tx.event(key, uid, "ChangedByRun", f"{', '.join(sorted(fields))} by step {step.name} of Run {case.key.path}")
    return {
        **key._asdict(),
        "uid": uid,
        "fields": changes,
        "missing": [p for p in fields if not _has(old["spec"], p)],
        "managers": {path: managers.get(path, "") for path in touched},
        "until": until,
    }


def let_go(tx: Tx, case: Case, at: float | None = None) -> tuple[list[int], tuple[str, ...]]:
    """End the holds (that are over at `at`; all when None), and give the fields back to who managed them before.

    Returns the numbers of the journal entries that are settled, and the uids of the resources that were held."""
    over = [d for d in case.progress.sets if not d["released"] and (at is None or d["until"] <= at)]
    still = [d for d in case.progress.sets if not d["released"] and d not in over]
    for done in over:
        key = Key(done["kind"], done["namespace"], done["name"])
        for path in done["managers"]:
            if not any(d["uid"] == done["uid"] and path in d["managers"] for d in still):
                _hand_back(tx, case, key, done["uid"], path)
    uids = tuple(sorted({d["uid"] for d in over}))
    if at is None:
        uids = tuple(sorted({*uids, *unhold(tx, case.key.path)}))
    return [d["number"] for d in over], uids


def _hand_back(tx: Tx, case: Case, key: Key, uid: str, path: str) -> None:
    doc = tx.get(key)
    if doc is None or doc["metadata"]["uid"] != uid or doc["metadata"]["deletionTimestamp"]:
        return
    managers: Mapping[str, str] = doc["metadata"]["managers"]
    if managers.get(path) != case.manager:
        return  # somebody took it over meanwhile: it is theirs
    before = [d["managers"][path] for d in case.progress.sets if d["uid"] == uid and path in d["managers"]]
    owner = next((name for name in before if name != case.manager), "")
    if owner:
        tx.replace(doc, owner, given=frozenset({p for p, m in managers.items() if m == owner} | {path}))
    else:
        kept = {p for p, m in managers.items() if m == case.manager and p != path}
        tx.replace(doc, case.manager, given=frozenset(kept))


def _parts(path: str) -> list[str]:
    return path.split(".")[1:]


def _at(spec: Any, path: str) -> Any:
    for part in _parts(path):
        spec = spec.get(part) if isinstance(spec, Mapping) else None
    return spec


def _has(spec: Any, path: str) -> bool:
    *parents, last = _parts(path)
    for part in parents:
        spec = spec.get(part) if isinstance(spec, Mapping) else None
    return isinstance(spec, Mapping) and last in spec


def _put(spec: dict[str, Any], path: str, value: Any, *, drop: bool) -> None:
    *parents, last = _parts(path)
    at: Any = spec
    for part in parents:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise Invalid(f"{path}: {part} is not a mapping")
    if drop:
        at.pop(last, None)
    else:
        at[last] = value
