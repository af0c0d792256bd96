"""A small set of kinds and files to test the logic of Sources with."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.logic import FILE, SOURCE, Desired, File, kinds_version, parse_tree
from groundcontrol.kernel.plan import Change
from groundcontrol.kernel.resource import Doc, Key, KindInfo, Kinds, Model, Resource, Status, key_of
from groundcontrol.ports.repository import Refused


class ThingSpec(Model):
    """A thing."""

    replicas: int = 1
    """How many."""
    memory_mb: int = 0
    """How much."""
    words: list[str] = Field(default_factory=list)
    """Which."""


class Thing(Resource):
    """Something in a namespace."""

    info: ClassVar[KindInfo] = KindInfo(plural="things")
    kind: Literal["Thing"] = "Thing"
    spec: ThingSpec
    status: Status = Field(default_factory=Status)


class PlaceSpec(Model):
    """A place."""

    size: int = 0
    """How big."""


class Namespace(Resource):
    """A namespace, as far as the order of changes cares."""

    info: ClassVar[KindInfo] = KindInfo(plural="namespaces", namespaced=False)
    kind: Literal["Namespace"] = "Namespace"
    spec: PlaceSpec
    status: Status = Field(default_factory=Status)


class Site(Resource):
    """A site, as far as the order of changes cares."""

    info: ClassVar[KindInfo] = KindInfo(plural="sites", namespaced=False)
    kind: Literal["Site"] = "Site"
    spec: PlaceSpec
    status: Status = Field(default_factory=Status)


KINDS = Kinds([Thing, Namespace, Site, Source])
VERSION = kinds_version(KINDS)


def thing(name: str, namespace: str = "alpha", *, kind: str = "Thing", meta: str = "", **spec: Any) -> str:
    lines = ["apiVersion: ground/v1", f"kind: {kind}", "metadata:", f"  name: {name}"]
    lines += [f"  namespace: {namespace}"] if namespace else []
    lines += [f"  {line}" for line in meta.splitlines()]
    lines += ["spec:", *(f"  {k}: {v}" for k, v in spec.items())] if spec else ["spec: {}"]
    return "\n".join(lines) + "\n"


class Tree:
    """Files with made-up blob names, counting what is read."""

    def __init__(self, files: Mapping[str, str | bytes]) -> None:
        self.files = dict(files)
        self.reads: list[str] = []

    def entries(self) -> dict[str, File]:
        return {path: self._file(path, content) for path, content in self.files.items()}

    def _file(self, path: str, content: str | bytes) -> File:
        raw = content.encode() if isinstance(content, str) else content

        def read() -> bytes:
            self.reads.append(path)
            return raw

        return File(f"blob-{hash(raw)}", len(raw), read)


def desire(
    files: Mapping[str, str | bytes],
    *,
    before: Desired | None = None,
    refused: tuple[Refused, ...] = (),
    **options: Any,
) -> Desired:
    return parse_tree(Tree(files).entries(), KINDS, version=VERSION, before=before, refused=refused, **options)


class Store:
    """What applying the changes of plans leaves, as the kernel's store would do it."""

    def __init__(self) -> None:
        self.docs: dict[Key, Doc] = {}

    def owned(self, source: str) -> dict[Key, Doc]:
        return {k: d for k, d in self.docs.items() if d["metadata"]["annotations"].get(SOURCE) == source}

    def put(self, doc: Doc, manager: str, given: frozenset[str] | None = None) -> Doc:
        paths = given if given is not None else {f"spec.{name}" for name in doc["spec"]}
        old = self.docs.get(key_of(doc))
        managers = dict(old["metadata"]["managers"]) if old else {}
        managers = {p: m for p, m in managers.items() if m != manager or p in paths} | dict.fromkeys(paths, manager)
        meta = {**doc["metadata"], "managers": managers, "uid": f"uid-{doc['metadata']['name']}"}
        self.docs[key_of(doc)] = {**doc, "metadata": meta}
        return self.docs[key_of(doc)]

    def apply(self, change: Change, manager: str) -> None:
        if change.verb == "delete":
            namespace, _, name = change.target.id.rpartition("/")
            del self.docs[Key(change.target.type, namespace, name)]
        else:
            self.put(change.payload.doc, manager, change.payload.given)


__all__ = ["FILE", "KINDS", "SOURCE", "VERSION", "Store", "Tree", "desire", "thing"]
