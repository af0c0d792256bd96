"""What roles and bindings come to: the rights of one subject, and whether they allow something somewhere.

Pure values, compiled from documents; `kernel/access.py` says where the documents come from and who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from groundcontrol.kernel.resource import Doc, selector

ACCESS_KINDS = frozenset({"Namespace", "Account", "Role", "RoleBinding"})
READING = frozenset({"get", "list", "watch"})
VERBS = READING | {"create", "update", "delete", "approve", "log"}
"""Every other verb is an action of a kind; a rule may say `actions` for all of those but the `RESERVED` ones."""
RESERVED = frozenset(
    {"migrate", "live-migrate", "evacuate", "enable-host", "disable-host", "drain-host", "host-is-empty"}
)
"""Actions that reach below a place, to the machines that many places share: a rule names them, or says `*`."""
SCOPES = frozenset({"read", "write", "approve", "admin"})


class Allowed(NamedTuple):
    """One rule, in sets."""

    kinds: frozenset[str]
    verbs: frozenset[str]


def _rule(kinds: Iterable[str], verbs: Iterable[str]) -> Allowed:
    return Allowed(frozenset(kinds), frozenset(verbs))


_ALL = _rule("*", "*")
BUILT_IN: Mapping[str, tuple[Allowed, ...]] = {
    "admin": (_ALL, _rule(ACCESS_KINDS, "*")),
    "operator": (_ALL, _rule(ACCESS_KINDS, READING)),
    "member": (_rule("*", (VERBS - {"approve"}) | {"actions"}), _rule(["Namespace"], READING)),
    "viewer": (_rule("*", READING | {"log"}), _rule(["Namespace"], READING)),
}
"""`admin`: everything. `operator`: everything but deciding about access. `member`: works in a place. `viewer`: looks
and reads logs."""


@dataclass(frozen=True)
class Subject:
    """Who asks, and how far their token goes."""

    name: str
    """`user:ada` or `source:platform`."""
    groups: frozenset[str] = frozenset()
    scope: frozenset[str] = SCOPES
    token: str = ""
    """Id of the token; empty for a Source."""
    expires: float = 0.0
    """When the token ends, seconds since the epoch; 0 when it does not."""

    @classmethod
    def source(cls, name: str) -> Subject:
        """The subject that a Source of that name acts as."""
        return cls(f"source:{name}")

    @classmethod
    def user(cls, name: str, groups: Iterable[str] = (), scope: Iterable[str] = SCOPES) -> Subject:
        return cls(f"user:{name}", frozenset(groups), frozenset(scope))

    @property
    def names(self) -> frozenset[str]:
        """Every word by which a binding may mean this subject."""
        below = {f"group:{'/'.join(g.split('/')[: n + 1])}/**" for g in self.groups for n in range(g.count("/") + 1)}
        return frozenset({self.name, *(f"group:{g}" for g in self.groups), *below})


class Where(NamedTuple):
    """The places of a selector. `selected` are the namespaces it means now, those of its groups among them."""

    anywhere: bool
    namespaces: frozenset[str]
    groups: frozenset[str]
    sites: frozenset[str]
    selected: frozenset[str]

    def covers(self, verb: str, kind: str, namespace: str, name: str) -> bool:
        if self.anywhere:
            return True
        if namespace:
            return namespace in self.selected
        if kind == "Namespace":
            return verb in READING and name in self.selected
        return kind == "Site" and name in self.sites

    def contains(self, other: Where) -> bool:
        """Whether it holds wherever `other` does, also for namespaces that are made later."""
        return self.anywhere or (
            not other.anywhere
            and other.namespaces <= self.selected
            and other.sites <= self.sites
            and all(any(_below(group, own) for own in self.groups) for group in other.groups)
        )


def _below(group: str, pattern: str) -> bool:
    """`a/b` and `a/**` are below `a/**`; `a` is below `a` and `a/**`."""
    if group == pattern:
        return True
    parent = pattern.removesuffix("/**")
    return parent != pattern and (group == parent or group.startswith(f"{parent}/"))


class Right(NamedTuple):
    """One rule over one selector, as one subject has it."""

    rule: Allowed
    where: Where
    labels: str

    def covers(self, verb: str, kind: str) -> bool:
        kinds, verbs = self.rule
        return (kind in kinds or ("*" in kinds and kind not in ACCESS_KINDS)) and (
            verb in verbs or "*" in verbs or ("actions" in verbs and verb not in VERBS | RESERVED and verb != "*")
        )

    def allows(self, verb: str, kind: str, namespace: str, name: str, labels: Mapping[str, str]) -> bool:
        return (
            self.covers(verb, kind)
            and self.where.covers(verb, kind, namespace, name)
            and _labelled(self.labels, labels)
        )


_SELECTORS: dict[str, Callable[[Mapping[str, Any]], bool]] = {}


def _labelled(text: str, labels: Mapping[str, str]) -> bool:
    if not text:
        return True
    test = _SELECTORS.get(text)
    if test is None:
        if len(_SELECTORS) > 1000:
            _SELECTORS.clear()
        test = _SELECTORS[text] = selector(text)
    return test({"metadata": {"labels": labels}})


Rights = tuple[Right, ...]


class Policy:
    """What all roles, bindings and namespaces say at one moment.

    A copy of one follows changes, one at a time: `put` forgets the rights of those subjects whom the change concerns,
    and of no others. A policy that many threads read is never changed."""

    def __init__(self, namespaces: Iterable[Doc] = (), roles: Iterable[Doc] = (), bindings: Iterable[Doc] = ()) -> None:
        self._group: dict[str, str] = {}
        """Namespace to the group it belongs to."""
        self._selected: dict[str, set[str]] = {}
        """What a selector may say (a group's path, or one with /** behind it) to the namespaces it means."""
        self.roles: dict[str, tuple[Allowed, ...]] = dict(BUILT_IN)
        self._bindings: dict[str, Doc] = {}
        self._of_subject: dict[str, set[str]] = {}
        self._of_role: dict[str, set[str]] = {}
        self._of_pattern: dict[str, set[str]] = {}
        """Subject, role and pattern of groups to the names of the bindings that say so."""
        self._known: dict[frozenset[str], Rights] = {}
        self._asked: dict[str, set[frozenset[str]]] | None = None
        """In a copy: a word that may mean a subject, to the keys of `_known` it is part of."""
        for kind, docs in (("Namespace", namespaces), ("Role", roles), ("RoleBinding", bindings)):
            for doc in docs:
                self.put(kind, doc["metadata"]["name"], doc)

    def copy(self) -> Policy:
        """One of its own, to be changed."""
        other = Policy()
        other._group, other.roles, other._bindings = self._group.copy(), self.roles.copy(), self._bindings.copy()
        for name in ("_selected", "_of_subject", "_of_role", "_of_pattern"):
            setattr(other, name, {word: set(found) for word, found in getattr(self, name).items()})
        other._asked = {}
        return other

    def put(self, kind: str, name: str, doc: Doc | None) -> None:
        """What a Namespace, Role or RoleBinding says now; None when it is not there any more."""
        if kind == "Namespace":
            self._put_namespace(name, doc["spec"]["group"] if doc else None)
        elif kind == "Role":
            self._put_role(name, doc)
        elif kind == "RoleBinding":
            self._put_binding(name, doc)

    def _put_namespace(self, name: str, group: str | None) -> None:
        before = self._group.pop(name, None)
        if group is not None:
            self._group[name] = group
        if before == group:
            return
        gone, come = _patterns(before), _patterns(group)
        for pattern in gone:
            _drop(self._selected, pattern, name)
        for pattern in come:
            self._selected.setdefault(pattern, set()).add(name)
        for pattern in {*gone, *come}:
            self._forget(self._of_pattern.get(pattern, ()))

    def _put_role(self, name: str, doc: Doc | None) -> None:
        if name in BUILT_IN:
            return
        if doc is None:
            self.roles.pop(name, None)
        else:
            self.roles[name] = _rules(doc)
        self._forget(self._of_role.get(name, ()))

    def _put_binding(self, name: str, doc: Doc | None) -> None:
        before = self._bindings.get(name)
        if before is not None:
            self._forget((name,))
            for index, word in self._words(before):
                _drop(index, word, name)
            del self._bindings[name]
        if doc is not None:
            self._bindings[name] = doc
            for index, word in self._words(doc):
                index.setdefault(word, set()).add(name)
            self._forget((name,))

    def _words(self, binding: Doc) -> Iterator[tuple[dict[str, set[str]], str]]:
        """Under what a binding is found."""
        spec = binding["spec"]
        yield self._of_role, spec["role"]
        yield from ((self._of_subject, subject) for subject in spec["subjects"])
        yield from ((self._of_pattern, group) for group in (spec.get("selector") or {}).get("groups") or ())

    def _forget(self, bindings: Iterable[str]) -> None:
        """The rights of everybody whom these bindings mean are compiled anew when they are asked for."""
        if not self._asked:
            return
        for name in bindings:
            for subject in self._bindings[name]["spec"]["subjects"]:
                for names in self._asked.pop(subject, ()):
                    self._known.pop(names, None)

    def rights(self, names: frozenset[str]) -> Rights:
        """Everything a subject that answers to `names` has."""
        found = self._known.get(names)
        if found is None:
            bindings = {binding for name in names for binding in self._of_subject.get(name, ())}
            found = tuple(right for name in sorted(bindings) for right in self.given(self._bindings[name]))
            if len(self._known) < 100_000:
                self._known[names] = found
                if self._asked is not None:
                    for name in names:
                        self._asked.setdefault(name, set()).add(names)
        return found

    def given(self, binding: Doc) -> Iterator[Right]:
        """What a binding gives; nothing when its role does not exist."""
        spec = binding["spec"]
        where = spec.get("selector") or {}
        only = frozenset(where.get("kinds") or ())
        place = self._where(where)
        for rule in self.roles.get(spec["role"], ()):
            kinds = _narrowed(rule.kinds, only)
            if kinds:
                yield Right(Allowed(kinds, rule.verbs), place, where.get("labels") or "")

    def _where(self, where: Mapping[str, Any]) -> Where:
        namespaces, groups, sites = (frozenset(where.get(n) or ()) for n in ("namespaces", "groups", "sites"))
        selected = namespaces.union(*(self._selected.get(pattern, ()) for pattern in groups))
        return Where(not (namespaces or groups or sites), namespaces, groups, sites, selected)


def _patterns(group: str | None) -> list[str]:
    """Everything a selector may say to mean the namespaces of a group: `a/b` is meant by `a/b`, `a/b/**` and `a/**`."""
    parts = group.split("/") if group is not None else []
    return [group, *("/".join(parts[: n + 1]) + "/**" for n in range(len(parts)))] if group is not None else []


def _drop(index: dict[str, set[str]], word: str, name: str) -> None:
    """Take a name from under a word; a word without names goes too."""
    found = index.get(word, set())
    found.discard(name)
    if not found:
        index.pop(word, None)


def _narrowed(kinds: frozenset[str], only: frozenset[str]) -> frozenset[str]:
    if not only or "*" in only:
        return kinds if not only else (kinds - ACCESS_KINDS) | (kinds & only)
    return (kinds & only) | (only - ACCESS_KINDS if "*" in kinds else frozenset())


def _rules(doc: Doc) -> tuple[Allowed, ...]:
    return tuple(_rule(rule["kinds"], rule["verbs"]) for rule in doc["spec"]["rules"])


def first_missing(own: Rights, wanted: Iterable[Right]) -> Right | None:
    """The first of the wanted rights that `own` does not contain, cut down to one kind and verb; None when all are."""
    for right in wanted:
        for kind in sorted(right.rule.kinds):
            for verb in sorted(right.rule.verbs):
                if not any(
                    r.covers(verb, kind) and r.where.contains(right.where) and r.labels in ("", right.labels)
                    for r in own
                ):
                    return Right(_rule([kind], [verb]), right.where, right.labels)
    return None
