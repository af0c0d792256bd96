"""What kinds the server has, and what people mean by the words they type for them and their members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from groundcontrol.interfaces.cli.client import API, Client, Doc, path_of
from groundcontrol.interfaces.cli.failure import NOT_FOUND, USAGE, Failure, did_you_mean


class Column(NamedTuple):
    """One column of a kind's table."""

    title: str
    path: str
    wide: bool


@dataclass(frozen=True)
class Kind:
    """One entry of `GET /api/v1/kinds`."""

    name: str
    plural: str
    namespaced: bool
    short: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    actions: tuple[str, ...] = ()
    internal: bool = False
    versions: tuple[str, ...] = ()
    schema: Doc = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, entry: Doc) -> Kind:
        return cls(
            entry["name"],
            entry["plural"],
            bool(entry.get("namespaced")),
            tuple(entry.get("short") or entry.get("shortNames") or ()),
            tuple(Column(c["title"], c["path"], bool(c.get("wide"))) for c in entry.get("columns") or ()),
            tuple(entry.get("actions") or ()),
            bool(entry.get("internal")),
            tuple(entry.get("versions") or ()),
            entry.get("schema") or entry.get("jsonSchema") or {},
        )


class Target(NamedTuple):
    """One resource somebody named. `namespace` is empty for platform-wide kinds, or when it is not known."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.name} {self.namespace}/{self.name}" if self.namespace else f"{self.kind.name} {self.name}"

    @property
    def path(self) -> str:
        return path_of(self.kind.plural, self.namespace, self.name)


class Catalogue:
    """The kinds by every word they answer to."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._kinds = sorted(kinds, key=lambda kind: kind.name)
        self._words = {word.lower(): k for k in self._kinds for word in (*k.short, k.plural, k.name)}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds)

    def resolve(self, word: str) -> Kind:
        found = self._words.get(word.lower())
        if found is None:
            hint = did_you_mean(word, self._words) or f"known: {', '.join(k.plural for k in self._kinds)}"
            raise Failure(f"no kind {word!r}", hint, code=NOT_FOUND)
        return found

    def several(self, words: str) -> list[Kind]:
        """`sites,services`, or `all`: every kind that people write."""
        if words == "all":
            return [kind for kind in self._kinds if not kind.internal]
        kinds = [self.resolve(word) for word in words.split(",") if word]
        if not kinds:
            raise Failure("name a kind", "`ground kinds` lists them", code=USAGE)
        return list(dict.fromkeys(kinds))

    def targets(self, words: Iterable[str], namespace: str) -> tuple[list[Kind], list[Target]]:
        """What `KIND[,KIND] [NAME…]` or `KIND/NAME…` means: kinds to list whole, or single resources.

        A name may carry its namespace (`alpha/web`, `service/alpha/web`), as our own output writes it."""
        words = list(words)
        if "/" in words[0]:
            targets = []
            for word in words:
                kind, _, name = word.partition("/")
                if not name:
                    raise Failure(f"{word!r} is not KIND/NAME", code=USAGE)
                targets.append(self._target(self.resolve(kind), name, namespace))
            return [], targets
        kinds = self.several(words[0])
        return kinds, [self._target(kind, name, namespace) for kind in kinds for name in words[1:]]

    def _target(self, kind: Kind, name: str, namespace: str) -> Target:
        place, slash, last = name.rpartition("/")
        if slash and not kind.namespaced:
            raise Failure(f"{kind.plural} are platform-wide: {name!r} cannot have a namespace", code=USAGE)
        return Target(kind, (place or namespace) if kind.namespaced else "", last)

    def target_of(self, doc: Doc) -> Target:
        """Which resource a document is."""
        meta = doc.get("metadata") or {}
        return Target(self.resolve(str(doc.get("kind"))), str(meta.get("namespace") or ""), str(meta.get("name")))


def catalogue(client: Client) -> Catalogue:
    answer = client.get(f"{API}/kinds")
    entries = answer if isinstance(answer, list) else answer.get("items") or answer.get("kinds") or []
    return Catalogue(Kind.of(entry) for entry in entries)


def fetch(client: Client, target: Target) -> Doc:
    """One document. Without a namespace it is looked for in all of them, and must be there once."""
    if not target.kind.namespaced or target.namespace:
        found: Doc = client.get(target.path)
        return found
    items, _ = client.list_all(path_of(target.kind.plural), {"fieldSelector": f"metadata.name={target.name}"})
    if len(items) == 1:
        return items[0]
    if not items:
        raise Failure(f"no {target} in any namespace you can see", code=NOT_FOUND)
    places = ", ".join(sorted(str(i["metadata"].get("namespace")) for i in items))
    raise Failure(f"{target} is in several namespaces: {places}", "say which with -n", code=USAGE)


def must_have_namespace(target: Target) -> Target:
    """For what changes something: no guessing where."""
    if target.kind.namespaced and not target.namespace:
        raise Failure(
            f"{target.kind.plural} live in a namespace",
            "say which: -n NAMESPACE, or `ground config set --namespace`",
            code=USAGE,
        )
    return target


def name_of(kind: Kind, doc: Doc, *, placed: bool) -> str:
    """`site/bari`, or `service/alpha/web` where the namespace is not plain from the command."""
    meta: dict[str, Any] = doc["metadata"]
    place = f"{meta['namespace']}/" if placed and meta.get("namespace") else ""
    return f"{kind.name.lower()}/{place}{meta['name']}"
