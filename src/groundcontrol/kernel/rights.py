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
"""Every other verb is an action of a kind; a rule may say `actions` for all of those."""
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
            verb in verbs or "*" in verbs or ("actions" in verbs and verb not in VERBS and verb != "*")
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
    """What all roles, bindings and namespaces say at one moment."""

    def __init__(self, namespaces: Iterable[Doc], roles: Iterable[Doc], bindings: Iterable[Doc]) -> None:
        self._by_group: dict[str, set[str]] = {}
        for doc in namespaces:
            self._by_group.setdefault(doc["spec"]["group"], set()).add(doc["metadata"]["name"])
        self.roles = {doc["metadata"]["name"]: _rules(doc) for doc in roles} | dict(BUILT_IN)
        self._bindings: dict[str, list[Doc]] = {}
        for doc in bindings:
            for name in doc["spec"]["subjects"]:
                self._bindings.setdefault(name, []).append(doc)
        self._known: dict[frozenset[str], Rights] = {}

    def rights(self, names: frozenset[str]) -> Rights:
        """Everything a subject that answers to `names` has."""
        found = self._known.get(names)
        if found is None:
            bindings = {d["metadata"]["name"]: d for name in names for d in self._bindings.get(name, ())}
            found = tuple(right for _, doc in sorted(bindings.items()) for right in self.given(doc))
            if len(self._known) < 100_000:
                self._known[names] = found
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
        selected = set(namespaces)
        for pattern in groups:
            if pattern.endswith("/**"):
                selected.update(*(names for group, names in self._by_group.items() if _below(group, pattern)))
            else:
                selected |= self._by_group.get(pattern, set())
        return Where(not (namespaces or groups or sites), namespaces, groups, sites, frozenset(selected))


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
