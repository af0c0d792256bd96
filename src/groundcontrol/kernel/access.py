"""Who may do what, where: roles bound to people, groups and Sources over a selector of places and kinds.

    Role         rules: which verbs on which kinds
    RoleBinding  gives a role to `user:ada`, `group:experiments/alpha`, `group:experiments/**` or `source:platform`
                 over the places its selector names (namespaces, namespaces of groups, sites; everywhere when none)
    Namespace    belongs to one group's full path; being in that group gives nothing by itself, a binding does

Tenants are assumed hostile. Whoever may see nothing of a namespace is told that it does not exist; nobody can hand
on more than they hold. `*` as a kind leaves out the kinds that decide about access themselves: those must be named.
Reads are answered from rights compiled from the cache; a change is judged inside the transaction that makes it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, field_validator

from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound, Problem, Unauthenticated
from groundcontrol.kernel.resource import NAME, Column, Doc, Key, KindInfo, Model, Resource, selector
from groundcontrol.kernel.rights import (
    ACCESS_KINDS,
    BUILT_IN,
    READING,
    SCOPES,
    VERBS,
    Allowed,
    Policy,
    Right,
    Rights,
    Subject,
    Where,
    first_missing,
)
from groundcontrol.kernel.store import Entry, Store
from groundcontrol.kernel.tx import Tx

__all__ = ["ACCESS_KINDS", "BUILT_IN", "KINDS", "READING", "SCOPES", "VERBS", "Access", "Hidden", "Subject"]

GROUP = r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*"


class NamespaceSpec(Model):
    """Whose a namespace is."""

    group: str = Field(pattern=f"^{GROUP}$", max_length=255)
    """Full path of the group it belongs to, `experiments/alpha`."""
    description: str = Field(default="", max_length=1000)
    """What it is for."""


class Namespace(Resource):
    """A place for the resources of one group."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="namespaces",
        namespaced=False,
        short=("ns",),
        columns=(
            Column("Group", "spec.group"),
            Column("Age", "age:metadata.creationTimestamp"),
            Column("Description", "spec.description", wide=True),
        ),
    )
    spec: NamespaceSpec
    """Whose it is."""


class AccountSpec(Model):
    """A person or a program that signs in. The password is not in it."""

    groups: list[str] = Field(default_factory=list, max_length=256)
    """Full paths of the groups it is in, `experiments/alpha`."""
    disabled: bool = False
    """May not sign in, and its tokens are refused at once."""
    description: str = Field(default="", max_length=1000)
    """Who or what it is."""
    robot: bool = False
    """A program: whoever holds every right it has may make tokens for it."""

    @field_validator("groups")
    @classmethod
    def _groups(cls, groups: list[str]) -> list[str]:
        return [_matching(group, GROUP, "a group's full path, like experiments/alpha") for group in groups]


class Account(Resource):
    """Somebody who may sign in."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="accounts",
        namespaced=False,
        columns=(
            Column("Groups", "spec.groups"),
            Column("Disabled", "spec.disabled"),
            Column("Robot", "spec.robot"),
            Column("Description", "spec.description", wide=True),
        ),
    )
    spec: AccountSpec
    """Who it is."""


class Rule(Model):
    """Verbs on kinds."""

    kinds: list[str] = Field(min_length=1, max_length=64)
    """Names of kinds. `*`: all but Namespace, Account, Role and RoleBinding, which must be named. `Plan`, `Audit` and
    `Ledger` can be named too."""
    verbs: list[str] = Field(min_length=1, max_length=64)
    """get, list, watch, create, update, delete, approve, log, an action, `actions` for all of them but those that reach
    below a place (migrate, live-migrate, and those on hosts), or `*`."""


class RoleSpec(Model):
    """What a role allows."""

    rules: list[Rule] = Field(max_length=64)
    """What may be done; it is the sum of the rules."""


class Role(Resource):
    """Something that may be given to people. `admin`, `operator`, `member` and `viewer` are built in."""

    info: ClassVar[KindInfo] = KindInfo(plural="roles", namespaced=False)
    spec: RoleSpec
    """What it allows."""


class Selector(Model):
    """Where a binding holds. Places add up (namespaces, groups, sites); without any of them it holds everywhere.
    Labels and kinds narrow it."""

    namespaces: list[str] = Field(default_factory=list, max_length=256)
    """Names of namespaces."""
    groups: list[str] = Field(default_factory=list, max_length=256)
    """Namespaces that belong to these groups: `experiments/alpha`, or `experiments/**` for it and all below."""
    sites: list[str] = Field(default_factory=list, max_length=256)
    """Names of Sites."""
    labels: str = Field(default="", max_length=1000)
    """Label selector; only resources with such labels."""
    kinds: list[str] = Field(default_factory=list, max_length=64)
    """Only these kinds."""

    @field_validator("groups")
    @classmethod
    def _groups(cls, groups: list[str]) -> list[str]:
        return [_matching(g, rf"{GROUP}(/\*\*)?", "a group's full path, or one with /** behind it") for g in groups]

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: str) -> str:
        try:
            selector(labels)
        except Invalid as error:
            raise ValueError(error.message) from None
        return labels


class RoleBindingSpec(Model):
    """Who gets which role where."""

    role: str = Field(pattern=f"^{NAME.pattern}$", max_length=63)
    """Name of the role."""
    subjects: list[str] = Field(min_length=1, max_length=256)
    """`user:ada`; `group:experiments/alpha` for exactly that group, `group:experiments/**` for it and all below;
    `source:platform`."""
    selector: Selector = Field(default_factory=Selector)
    """Where it holds."""

    @field_validator("subjects")
    @classmethod
    def _subjects(cls, subjects: list[str]) -> list[str]:
        shape = rf"(user|source):{NAME.pattern}|group:{GROUP}(/\*\*)?"
        return [_matching(s, shape, "user:NAME, group:PATH, group:PATH/** or source:NAME") for s in subjects]


class RoleBinding(Resource):
    """Gives a role to people, groups and Sources. Nobody can give more than they hold."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="rolebindings",
        namespaced=False,
        short=("rb",),
        columns=(Column("Role", "spec.role"), Column("Subjects", "spec.subjects")),
    )
    spec: RoleBindingSpec
    """Who gets what."""


KINDS: tuple[type[Resource], ...] = (Namespace, Account, Role, RoleBinding)


def _matching(text: str, pattern: str, wanted: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{text[:60]!r} is not {wanted}")
    return text


EVERYWHERE = Where(True, frozenset(), frozenset(), frozenset(), frozenset())
EVERYTHING = Right(Allowed(frozenset("*"), frozenset("*")), EVERYWHERE, "")


class Hidden(NotFound):
    """NotFound, because the subject may not know of it; nobody can tell it from the other."""

    @property
    def reason(self) -> str:
        return "NotFound"


DECIDING = ("Namespace", "Role", "RoleBinding")
"""The kinds a policy is made of. An Account is read where it is needed."""


class _Following:
    """The policy of one commit under way: that of the commit before it, and what has changed since.

    Each change is applied once, and by what stands there now: what was taken back stands as it was. So a commit of
    thousands of Roles costs thousands of small changes, not thousands of policies compiled from all documents."""

    def __init__(self, tx: Tx, policy: Policy) -> None:
        self.tx = tx
        self._policy = policy
        self._seen = dict.fromkeys(DECIDING, 0)

    def now(self, changed: Mapping[str, Sequence[Key]]) -> Policy:
        for kind, keys in changed.items():
            for key in dict.fromkeys(keys[self._seen[kind] :]):
                self._policy.put(kind, key.name, self.tx.get(key))
            self._seen[kind] = len(keys)
        return self._policy


class Access:
    """Decides for one store. Make one, and share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._policy: Policy | None = None
        self._following: _Following | None = None
        self.version = 0
        """Grows when a Namespace, Account, Role or RoleBinding changes: what was decided before may no longer hold."""
        self._mutex = threading.Lock()
        self._events = store.subscribe()
        self._events.on_event = self._changed

    def close(self) -> None:
        self._events.on_event = None
        self._events.close()

    def _changed(self) -> None:
        """Called by the writer after each commit."""
        while batch := self._events.get(timeout=0):
            if any(event.key.kind in ACCESS_KINDS for event in batch):
                with self._mutex:
                    self.version += 1
                    self._policy = None

    def policy(self) -> Policy:
        """What holds now."""
        found, version = self._policy, self.version
        if found is None:
            found = Policy(*([e.doc for e in self._store.entries(k)] for k in ("Namespace", "Role", "RoleBinding")))
            with self._mutex:
                if self.version == version:
                    self._policy = found
        return found

    def policy_in(self, tx: Tx) -> Policy:
        """What holds at this moment of a commit under way."""
        changed = {kind: keys for kind in DECIDING if (keys := tx.changed.get(kind))}
        if not changed:
            return self.policy()
        if self._following is None or self._following.tx is not tx:
            self._following = _Following(tx, self.policy().copy())
        return self._following.now(changed)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def rights(self, subject: Subject) -> Rights:
        """All that roles give the subject; its token's scope narrows that."""
        return self.policy().rights(subject.names)

    def allowed(
        self,
        subject: Subject,
        verb: str,
        kind: str,
        *,
        namespace: str = "",
        name: str = "",
        labels: Mapping[str, str] = {},
    ) -> bool:
        """Whether the subject may do this to this. An empty namespace means the whole platform."""
        return _in_scope(subject, verb, kind) and _any(self.rights(subject), verb, kind, namespace, name, labels)

    def somewhere(self, subject: Subject, verb: str, kind: str, namespace: str | None = None) -> bool:
        """Whether there may be something (in that namespace) to which the subject may do this."""
        if not _in_scope(subject, verb, kind):
            return False
        return any(r.covers(verb, kind) and self._reaches(r, kind, namespace) for r in self.rights(subject))

    def _reaches(self, right: Right, kind: str, namespace: str | None) -> bool:
        """Whether something of the kind (in that namespace) may lie where the right holds."""
        where = right.where
        if where.anywhere or namespace:
            return where.anywhere or namespace in where.selected
        if kind == "Site":
            return bool(where.sites)
        placed = kind == "Namespace" or kind not in self._store.kinds or self._store.kinds.get(kind).info.namespaced
        return placed and bool(where.selected)

    def knows(self, subject: Subject, namespace: str) -> bool:
        """Whether the subject may know that such a namespace exists."""
        return any(r.where.anywhere or namespace in r.where.selected for r in self.rights(subject))

    def require(
        self,
        subject: Subject,
        verb: str,
        kind: str,
        *,
        namespace: str = "",
        name: str = "",
        labels: Mapping[str, str] = {},
    ) -> None:
        """Raises Forbidden saying who may, or NotFound when the subject may not even know of it."""
        policy = self.policy()
        self._require(policy.rights(subject.names), subject, verb, Key(kind, namespace, name), labels)

    def require_list(self, subject: Subject, verb: str, kind: str, namespace: str = "") -> None:
        """As `require` for a list or a watch: enough when something there may be seen."""
        if self.somewhere(subject, verb, kind, namespace or None):
            return
        raise self._refusal(self.rights(subject), subject, verb, Key(kind, namespace, ""), {})

    def visible(self, subject: Subject, kind: str, verb: str = "list") -> Callable[[Entry], bool]:
        """A test of the entries of a kind, for lists and watches."""
        test = self.sees(subject, kind, verb)
        return lambda entry: test(entry.key.namespace, entry.key.name, entry.labels)

    def sees(self, subject: Subject, kind: str, verb: str = "list") -> Callable[[str, str, Mapping[str, str]], bool]:
        """As `visible`, of (namespace, name, labels)."""
        if not _in_scope(subject, verb, kind):
            return lambda namespace, name, labels: False
        rights = tuple(r for r in self.rights(subject) if r.covers(verb, kind))
        if any(r.where.anywhere and not r.labels for r in rights):
            return lambda namespace, name, labels: True
        if all(not r.labels for r in rights) and kind not in ("Namespace", "Site"):
            selected = frozenset[str]().union(*(r.where.selected for r in rights))
            return lambda namespace, name, labels: namespace in selected
        return lambda namespace, name, labels: _any(rights, verb, kind, namespace, name, labels)

    def namespaces(self, subject: Subject, verb: str, kind: str) -> frozenset[str] | None:
        """The namespaces in which the subject may do this to something; None when everywhere."""
        rights = [r for r in self.rights(subject) if r.covers(verb, kind)] if _in_scope(subject, verb, kind) else []
        if any(r.where.anywhere for r in rights):
            return None
        return frozenset[str]().union(*(r.where.selected for r in rights))

    # ── changing ────────────────────────────────────────────────────────────────────────────────────────────────

    def require_in(
        self,
        tx: Tx,
        subject: Subject,
        verb: str,
        kind: str,
        *,
        namespace: str = "",
        name: str = "",
        labels: Mapping[str, str] = {},
    ) -> None:
        """As `require`, judged by what the transaction sees."""
        policy = self.policy_in(tx)
        subject = self._current(tx, subject)
        self._require(policy.rights(subject.names), subject, verb, Key(kind, namespace, name), labels)

    def admit(self, tx: Tx, subject: Subject, verb: str, key: Key, before: Doc | None, after: Doc | None) -> None:
        """`require_in` for a change from `before` to `after`, and nobody hands on more than they hold.

        Call it before writing `after`."""
        policy = self.policy_in(tx)
        subject = self._current(tx, subject)
        own = policy.rights(subject.names)
        for doc in (before, after):
            if doc is not None:
                self._require(own, subject, verb, key, doc["metadata"].get("labels") or {})
        if after is not None:
            wanted = tuple(_handed_on(policy, key, before, after))
            _must_hold(own, wanted, subject, f"{verb} {key}")
            self._meets(tx, own, subject, before, after)

    def _meets(self, tx: Tx, own: Rights, subject: Subject, before: Doc | None, after: Doc) -> None:
        """Forbidden unless the subject has what the kind asks for such a change."""
        if after["kind"] not in tx.store.kinds:
            return
        for need in tx.store.kinds.get(after["kind"]).needs(before, after, tx):
            try:
                self._require(own, subject, need.verb, Key(need.kind, "", ""), {})
            except GroundError as error:
                raise Forbidden(f"{need.why}: {error.message}") from None

    def require_all_of(self, tx: Tx, subject: Subject, other: str, doing: str) -> None:
        """Refuse unless `subject` holds every right of the account `other`: whoever can sign in as it has them."""
        policy = self.policy_in(tx)
        account = tx.get(Key("Account", "", other))
        groups = account["spec"].get("groups") or () if account else ()
        own = policy.rights(self._current(tx, subject).names)
        _must_hold(own, policy.rights(Subject.user(other, groups).names), subject, doing)

    def _require(self, rights: Rights, subject: Subject, verb: str, key: Key, labels: Mapping[str, str]) -> None:
        kind, namespace, name = key
        if not _in_scope(subject, verb, kind) or not _any(rights, verb, kind, namespace, name, labels):
            raise self._refusal(rights, subject, verb, key, labels)

    def _refusal(self, rights: Rights, subject: Subject, verb: str, key: Key, labels: Mapping[str, str]) -> GroundError:
        """NotFound for what the subject may not know of, else Forbidden; neither names anything of other tenants."""
        kind, namespace, name = key
        if namespace and not any(r.where.anywhere or namespace in r.where.selected for r in rights):
            return Hidden(f"there is no Namespace {namespace}")
        hidden = name and verb != "create" and not _any(rights, "get", kind, namespace, name, labels)
        if hidden and any(r.covers("get", kind) and self._reaches(r, kind, namespace) for r in rights):
            return Hidden(f"there is no {key}")
        what = str(key) if name else f"{kind} in namespace {namespace}" if namespace else f"{kind}, platform-wide"
        if not _in_scope(subject, verb, kind):
            return Forbidden(f"your token may not {verb} {what}: its scope lacks {_scope_of(verb, kind)!r}")
        giving = [n for n, rules in BUILT_IN.items() if any(Right(r, EVERYWHERE, "").covers(verb, kind) for r in rules)]
        roles = f"the role {giving[0]}" if len(giving) == 1 else f"one of the roles {', '.join(giving)}"
        place = f"namespace {namespace}" if namespace else "the whole platform"
        return Forbidden(f"{subject.name} may not {verb} {what}; {roles} for {place} may: ask for a RoleBinding")

    @staticmethod
    def _current(tx: Tx, subject: Subject) -> Subject:
        """The subject with the groups its account has now; Unauthenticated when it was taken away."""
        who, _, name = subject.name.partition(":")
        if who != "user":
            return subject
        account = tx.get(Key("Account", "", name))
        if account is None or account["spec"].get("disabled"):
            raise Unauthenticated(f"the account {name} is disabled or gone")
        return replace(subject, groups=frozenset(account["spec"].get("groups") or ()))


def _in_scope(subject: Subject, verb: str, kind: str) -> bool:
    return "admin" in subject.scope or _scope_of(verb, kind) in subject.scope


def _scope_of(verb: str, kind: str) -> str:
    if verb in READING or verb == "log":
        return "read"
    return "admin" if kind in ACCESS_KINDS else "approve" if verb == "approve" else "write"


def _any(rights: Rights, verb: str, kind: str, namespace: str, name: str, labels: Mapping[str, str]) -> bool:
    return any(r.allows(verb, kind, namespace, name, labels) for r in rights)


def _handed_on(policy: Policy, key: Key, before: Doc | None, after: Doc) -> Any:
    """The rights that come into other hands when `after` is written."""
    spec, old = after["spec"], before["spec"] if before else {}
    if key.kind == "Role":
        if key.name in BUILT_IN:
            raise Invalid(
                problems=(Problem(f"{key.name} is a built-in role", "metadata.name", remedy="choose another"),)
            )
        for rule in spec["rules"] if spec != old else ():
            yield Right(Allowed(frozenset(rule["kinds"]), frozenset(rule["verbs"])), EVERYWHERE, "")
    elif key.kind == "RoleBinding" and spec != old:
        if spec["role"] not in policy.roles:
            known = ", ".join(BUILT_IN)
            raise Invalid(
                problems=(Problem(f"there is no Role {spec['role']}", "spec.role", remedy=f"built in: {known}"),)
            )
        yield from policy.given(after)
    elif key.kind == "Account":
        added = set(spec.get("groups") or ()) - set(old.get("groups") or ())
        yield from policy.rights(replace(Subject.user("-", added), name="").names) if added else ()
    elif key.kind == "Namespace" and before is not None and spec["group"] != old["group"]:
        yield EVERYTHING  # whoever has rights in the new group's namespaces gets what is in this one
    elif key.kind == "Source" and spec != old:
        who, _, name = str(spec.get("subject") or f"source:{key.name}").partition(":")
        groups = frozenset({name} if who == "group" else ())
        yield from policy.rights(replace(Subject.source(key.name), name=f"{who}:{name}", groups=groups).names)


def _must_hold(own: Rights, wanted: Rights, subject: Subject, doing: str) -> None:
    missing = first_missing(own, wanted)
    if missing is None:
        return
    (kind,), (verb,) = missing.rule
    where = missing.where
    parts = [*sorted(where.namespaces), *sorted(where.groups), *sorted(where.sites)]
    place = "everywhere" if where.anywhere else f"in {', '.join(parts[:5])}"
    raise Forbidden(
        f"{subject.name} may not {doing}: it hands on {verb!r} on {kind!r} {place}, which you do not hold yourself; "
        "somebody with the role admin may"
    )
