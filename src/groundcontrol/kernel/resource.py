"""The one shape everything that somebody wants has: apiVersion, kind, metadata, spec, status, as documented classes.

From one class come the API routes, the JSON schema, the CLI, tables, forms and the reference page; the docstring under
a field is what all of them show. Documents are stored as JSON and handed around as plain dicts (`Doc`); the classes
are typed views of them. Unknown fields are errors where a person wrote them (`parse`) and are kept where a newer
version of us wrote them (`view`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from groundcontrol.kernel.errors import Invalid, NotFound, Problem

if TYPE_CHECKING:
    from groundcontrol.kernel.tx import Tx

Doc = dict[str, Any]
"""A resource as JSON: what is stored, sent and watched."""

API_VERSION = "ground/v1"
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


class Key(NamedTuple):
    """What a resource is called. `namespace` is empty for kinds of the whole platform."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    @property
    def path(self) -> str:
        """`namespace/name`, or `name`."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Model(BaseModel):
    """A documented structure: camelCase outside, unknown fields refused, the docstring under a field is its manual."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class OwnerReference(Model):
    """The resource this one was made for; when the owner goes, this one goes first."""

    kind: str
    """Kind of the owner."""
    name: str
    """Name of the owner, in the same namespace or platform-wide."""
    uid: str
    """Uid of the owner; a new owner of the same name is another owner."""


class Meta(Model):
    """What every resource carries."""

    name: str = Field(min_length=1, max_length=63, pattern=f"^{NAME.pattern}$")
    """Unique per kind and namespace: lower-case letters, digits, `-` and `.`."""
    namespace: str = Field(default="", max_length=63, pattern=f"^({NAME.pattern})?$")
    """The namespace it lives in; empty for kinds of the whole platform."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Words to select by."""
    annotations: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Notes for people and tools; nothing is selected by them."""
    generation: int = 0
    """Grows with every change of the spec. Set by the server."""
    resource_version: int = 0
    """Number of the event that last changed this resource. Sent back with a change, it refuses a lost update."""
    uid: str = ""
    """Never used twice. Set by the server."""
    creation_timestamp: str = ""
    """When it was created, RFC 3339 in UTC. Set by the server."""
    deletion_timestamp: str = ""
    """When its deletion was asked for; what it made outside is being taken down. Set by the server."""
    finalizers: list[str] = Field(default_factory=list, max_length=16)
    """Who still has to clean up before it may go. Set by the server."""
    owner_references: list[OwnerReference] = Field(default_factory=list, max_length=4)
    """The resources this one was made for. Set by the server."""
    managers: dict[str, str] = Field(default_factory=dict)
    """Field path to the one manager that sets it (a Source, a person, a scaler). Set by the server."""


Truth = Literal["True", "False", "Unknown"]


class Condition(Model):
    """One thing that is so, is not so, or is not known."""

    type: str
    """`Ready`, or a narrower question."""
    status: Truth
    """`Unknown` means that we could not look; not having looked is not health."""
    reason: str = ""
    """One stable word for programs."""
    message: str = ""
    """One sentence for the person who asked; no times and no counters."""
    last_transition_time: str = ""
    """When `status` last changed, RFC 3339 in UTC."""
    observed_generation: int = 0
    """The generation this speaks of."""


class Status(Model):
    """What was last seen. Written by reconcilers only."""

    observed_generation: int = 0
    """The generation last looked at."""
    conditions: list[Condition] = Field(default_factory=list)
    """The answers, `Ready` first."""
    last_looked: str = ""
    """When the world was last looked at for this resource, RFC 3339 in UTC."""


@dataclass(frozen=True)
class Column:
    """One column of the table that lists a kind."""

    title: str
    path: str
    """Dotted path in the document; `conditions.Ready` reads that condition's status; `age:` before it shows an age."""
    wide: bool = False


@dataclass(frozen=True)
class KindInfo:
    """What the interfaces need to know of a kind besides its fields."""

    plural: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    actions: tuple[str, ...] = ()
    """Verbs beside get, list, create, update and delete that access rules may name."""
    internal: bool = False
    """Made by reconcilers only: people may read it, not write it."""


class Need(NamedTuple):
    """A right that a change asks for besides the one to make it."""

    verb: str
    kind: str
    why: str
    """What of the change asks for it: the first words of a refusal."""


class Resource(Model):
    """Base of every kind. A subclass sets `info`, `spec` and `status`."""

    info: ClassVar[KindInfo]
    version: ClassVar[str] = API_VERSION

    api_version: str = Field(default=API_VERSION)
    """Version of the kind's shape."""
    kind: str
    """Name of the kind."""
    metadata: Meta
    """What every resource carries."""
    spec: Model
    """What is wanted."""
    status: Status = Field(default_factory=Status)
    """What was last seen."""

    @property
    def key(self) -> Key:
        return Key(self.kind, self.metadata.namespace, self.metadata.name)

    @property
    def deleting(self) -> bool:
        return bool(self.metadata.deletion_timestamp)

    @classmethod
    def admit(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Raise Invalid when a good document may not follow the one that is there; asked inside the transaction."""

    @classmethod
    def admit_among(cls, old: Mapping[str, Any] | None, new: Mapping[str, Any], tx: Tx) -> None:
        """Raise Invalid or Conflict when other resources, as the transaction sees them, forbid this one. Asked inside
        it at create (`old` is None) and at every change of spec, labels or annotations."""

    @classmethod
    def needs(cls, old: Mapping[str, Any] | None, new: Mapping[str, Any], tx: Tx) -> Iterable[Need]:
        """Rights over the whole platform that whoever makes this change must have besides that to make it."""
        return ()

    @classmethod
    def view(cls, doc: Mapping[str, Any]) -> Self:
        """A typed view of a stored document; fields of a newer version are passed over (the document keeps them)."""
        try:
            return cls.model_validate(doc, extra="ignore")
        except ValidationError as error:
            # Stored before a rule became stricter. Nothing may be decided from a guess at it.
            wrong = tuple(Problem(*_explain(e, cls)) for e in error.errors(include_url=False))
            told = "; ".join(str(p) for p in wrong[:3])
            where = f"{key_of(doc)} as it is stored does not fit {cls.version}"
            raise Invalid(f"{where}: {told}; apply it with that field given", problems=wrong) from None

    def as_doc(self) -> Doc:
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Versions:
    """A kind with every version of its shape that documents may have.

    `upgrade` maps an older apiVersion to a function that turns a document of it into the current shape;
    `downgrade` the other way, for writing what the oldest live worker understands.
    """

    current: type[Resource]
    upgrade: Mapping[str, Callable[[Doc], Doc]] = field(default_factory=dict)
    downgrade: Mapping[str, Callable[[Doc], Doc]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.current.__name__

    def to_current(self, doc: Doc) -> Doc:
        """The document in the current shape (the same object when it already is)."""
        version = str(doc.get("apiVersion", ""))
        if version == self.current.version:
            return doc
        if version not in self.upgrade:
            known = ", ".join([self.current.version, *self.upgrade])
            raise Invalid(
                problems=(Problem(f"{self.name} has no version {version!r}", "apiVersion", remedy=f"known: {known}"),)
            )
        return {**self.upgrade[version](doc), "apiVersion": self.current.version}

    def to_version(self, doc: Doc, version: str) -> Doc:
        """The document in the shape of `version`, as an older worker understands it."""
        if version == self.current.version:
            return doc
        return {**self.downgrade[version](doc), "apiVersion": version}


class Kinds:
    """The kinds of this installation, by name, plural or short name. A value, not a registry: assembly makes it."""

    def __init__(self, kinds: Iterable[type[Resource] | Versions]) -> None:
        self._by_name: dict[str, Versions] = {}
        self._alias: dict[str, str] = {}
        for entry in kinds:
            versions = entry if isinstance(entry, Versions) else Versions(entry)
            name, info = versions.name, versions.current.info
            for alias in {name, name.lower(), info.plural, *info.short}:
                if self._alias.setdefault(alias, name) != name:
                    raise ValueError(f"two kinds answer to {alias!r}: {name} and {self._alias[alias]}")
            self._by_name[name] = versions

    def __iter__(self) -> Any:
        return iter(v.current for v in self._by_name.values())

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def versions(self, name: str) -> Versions:
        return self._by_name[self.resolve(name)]

    def get(self, name: str) -> type[Resource]:
        """The class of a kind by name, plural or short name; NotFound with the nearest name otherwise."""
        return self._by_name[self.resolve(name)].current

    def resolve(self, name: str) -> str:
        found = self._alias.get(name) or self._alias.get(name.lower())
        if found is None:
            raise NotFound(f"no kind {name!r}{did_you_mean(name, self._by_name)}")
        return found

    def view(self, doc: Doc) -> Resource:
        versions = self._by_name[doc["kind"]]
        return versions.current.view(versions.to_current(doc))

    def parse(self, doc: Any, *, file: str = "", lines: Callable[[str], int] | None = None) -> Doc:
        """Check a document a person wrote and return it complete (defaults filled, server fields emptied).

        `lines` gives the line of a dotted path in `file`. Raises Invalid with every problem found, each with its
        path, file, line and remedy."""
        at = lines or (lambda path: 0)

        def problem(message: str, path: str = "", remedy: str = "") -> Problem:
            return Problem(message, path, file, at(path), remedy)

        if not isinstance(doc, dict):
            raise Invalid(problems=(problem(f"expected a mapping with apiVersion and kind, found {_noun(doc)}"),))
        name = doc.get("kind")
        if not isinstance(name, str) or name not in self._by_name:
            hint = did_you_mean(str(name), self._by_name).strip(" ;") if name else f"known: {', '.join(self._by_name)}"
            raise Invalid(problems=(problem(f"unknown kind {name!r}" if name else "kind is missing", "kind", hint),))
        versions = self._by_name[name]
        if "apiVersion" not in doc:
            raise Invalid(
                problems=(problem("apiVersion is missing", "apiVersion", f'write "{versions.current.version}"'),)
            )
        try:
            doc = versions.to_current(cast(Doc, doc))
        except Invalid as error:
            raise Invalid(problems=tuple(problem(p.message, p.path, p.remedy) for p in error.problems)) from None
        doc = {k: v for k, v in doc.items() if k != "status"}
        if isinstance(doc.get("metadata"), dict):
            doc["metadata"] = {k: v for k, v in doc["metadata"].items() if k not in SERVER_FIELDS}
        try:
            # Strict: what is written as text is not a number, here as in the schema that is published.
            parsed = versions.current.model_validate(doc, strict=True)
        except ValidationError as error:
            raise Invalid(
                problems=tuple(problem(*_explain(e, versions.current)) for e in error.errors(include_url=False))
            ) from None
        problems = list(_meta_problems(parsed, problem))
        if problems:
            raise Invalid(problems=tuple(problems))
        return parsed.as_doc()


SERVER_FIELDS = frozenset(
    {
        "generation",
        "resourceVersion",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "finalizers",
        "ownerReferences",
        "managers",
    }
)


def _meta_problems(parsed: Resource, problem: Callable[..., Problem]) -> Iterable[Problem]:
    info, meta = parsed.info, parsed.metadata
    if info.namespaced and not meta.namespace:
        yield problem(f"{parsed.kind} lives in a namespace", "metadata.namespace", "name one")
    if not info.namespaced and meta.namespace:
        yield problem(f"{parsed.kind} is platform-wide", "metadata.namespace", "leave it out")
    for key, value in meta.labels.items():
        if not LABEL_KEY.fullmatch(key):
            yield problem(f"label {key!r} is not a valid key", f"metadata.labels.{key}", "letters, digits, - _ . and /")
        if len(value) > 63:
            yield problem(f"label {key!r} is longer than 63 characters", f"metadata.labels.{key}")


def _explain(error: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    """(message, path, remedy) of one pydantic error, in words for the person who wrote the document."""
    loc = [str(part) for part in error["loc"] if not _is_union_tag(str(part))]
    path = ".".join(loc)
    match error["type"]:
        case "extra_forbidden":
            known = _fields_at(model, loc[:-1])
            return f"unknown field {loc[-1]!r}", path, did_you_mean(loc[-1], known).strip(" ;") or _known(known)
        case "missing":
            return f"{loc[-1]} is missing", path, "add it"
        case _:
            given = error.get("input")
            shown = f", found {given!r}" if isinstance(given, (str, int, float, bool)) and len(str(given)) < 60 else ""
            message = str(error["msg"]).removeprefix("Value error, ")
            return message[0].lower() + message[1:] + shown, path, ""


def _is_union_tag(part: str) -> bool:
    return "[" in part or part.startswith(("function-", "constrained-"))


def _fields_at(model: type[BaseModel], loc: list[str]) -> list[str]:
    current: Any = model
    for part in loc:
        found = next((f for n, f in current.model_fields.items() if part in (n, f.alias)), None)
        candidates = _models_in(found.annotation) if found else []
        if not candidates:
            return []
        current = candidates[0]
    return [f.alias or n for n, f in current.model_fields.items()]


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _models_in(arg)]


def _known(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"known: {', '.join(names)}" if names else ""


def _noun(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(value), type(value).__name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing when nothing is near."""
    by_lower = {k.lower(): k for k in known}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f'; did you mean "{by_lower[near[0]]}"?' if near else ""


def now(at: float | None = None) -> str:
    """RFC 3339 in UTC with milliseconds."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(stamp: str) -> float:
    """The inverse of `now`: seconds since the epoch; 0.0 for an empty stamp."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def key_of(doc: Mapping[str, Any]) -> Key:
    meta = doc["metadata"]
    return Key(doc["kind"], meta.get("namespace", ""), meta["name"])


def condition(doc: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    """That condition of a document; `{"status": "Unknown", "reason": "NotLooked"}` when nobody wrote it yet."""
    for entry in (doc.get("status") or {}).get("conditions", ()):
        if entry["type"] == type_:
            return cast(Mapping[str, Any], entry)
    return {"type": type_, "status": "Unknown", "reason": "NotLooked", "message": "nobody has looked yet"}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaf path to value: `{"spec": {"a": 1}}` → `{"spec.a": 1}`. Lists are leaves; dots in keys are quoted in []."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        part = f"[{key}]" if "." in key else f".{key}"
        out.update(flatten(inner, f"{prefix}{part}" if prefix else part.removeprefix(".")))
    return out


def field_changes(before: Any, after: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaf paths that differ, with (before, after); a missing side is None."""
    old, new = flatten(before or {}, prefix), flatten(after or {}, prefix)
    return {
        path: (old.get(path), new.get(path))
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path) and not (path == prefix and (path not in old or path not in new))
    }


_TERM = re.compile(r"\s*([^\s,!=()]+)\s*(?:(==|=|!=)\s*([^\s,!=()]*)|\s+(in|notin)\s+\(([^)]*)\))?\s*(?:,|$)")


def selector(text: str, *, fields: bool = False) -> Callable[[Mapping[str, Any]], bool]:
    """A label selector (`a=b,c!=d,e in (f,g),h,!i`), or a field selector over dotted paths, as a test of documents."""
    tests: list[tuple[str, str, tuple[str, ...]]] = []
    position = 0
    while position < len(text):
        negated = text[position:].lstrip().startswith("!")
        start = text.index("!", position) + 1 if negated else position
        match = _TERM.match(text, start)
        if not match or (negated and (match[2] or match[4])):
            raise Invalid(
                f"selector {text!r} is wrong at character {position + 1}; write a=b, a!=b, a in (b,c), a or !a"
            )
        key, op, value, setop, members = match.groups()
        if setop:
            tests.append((key, setop, tuple(m.strip() for m in members.split(","))))
        elif op:
            tests.append((key, "notin" if op == "!=" else "in", (value,)))
        else:
            tests.append((key, "absent" if negated else "present", ()))
        position = match.end()

    def value_of(doc: Mapping[str, Any], key: str) -> str | None:
        if not fields:
            labels = doc["metadata"].get("labels") or {}
            return cast("str | None", labels.get(key))
        if key.startswith("conditions."):
            return str(condition(doc, key.removeprefix("conditions."))["status"])
        at: Any = doc
        for part in key.split("."):
            at = at.get(part) if isinstance(at, Mapping) else None
        return None if at is None else str(at).lower() if isinstance(at, bool) else str(at)

    def matches(doc: Mapping[str, Any]) -> bool:
        for key, op, members in tests:
            found = value_of(doc, key)
            holds = {
                "in": found in members,
                "notin": found not in members,
                "present": found is not None,
                "absent": found is None,
            }[op]
            if not holds:
                return False
        return True

    return matches
