"""From the files of a commit to the changes that make them true, as pure functions.

`parse_tree` turns files into what is wanted, each blob once. `plan_changes` compares that with what is there. What
cannot be read is never taken for absent: a document with a mistake keeps the state it had when it was last good.

Who owns a resource stands in its annotations: `ground/source` and `ground/file`. The line does not, since it would
change whenever something above it does; it is in the problems of a Source and can be had by parsing the file again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic.alias_generators import to_camel

from groundcontrol.kernel.errors import GroundError, Invalid, NotFound, Problem, TooLarge
from groundcontrol.kernel.manifest import Document, load_documents
from groundcontrol.kernel.plan import Change, Plan
from groundcontrol.kernel.reconcile import StoreWrite, store_change
from groundcontrol.kernel.resource import Doc, Key, Kinds, Resource, field_changes, key_of
from groundcontrol.ports.repository import Credentials, Refused

SOURCE = "ground/source"
"""Annotation: name of the Source that owns the resource."""
FILE = "ground/file"
"""Annotation: path of the file that declares it."""
ADOPT = "ground/adopt"
"""Annotation in a file: `"true"` takes over a resource that exists and is not this Source's. Not stored."""

MAX_FILE_BYTES = 1 << 20
SUFFIXES = (".yaml", ".yml")
_WORD = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
# What others are made inside of comes first when made and last when taken away.
_RANK = {"Namespace": 0, "Role": 1, "Secret": 1, "Site": 1, "Project": 1}
_ORDINARY = 2


class File(NamedTuple):
    """One file of a commit; `read` is called only when its blob was not parsed before."""

    blob: str
    size: int
    read: Callable[[], bytes]


class Trouble(NamedTuple):
    """Something that cannot be applied, and where it stands."""

    message: str
    file: str = ""
    line: int = 0
    path: str = ""
    remedy: str = ""
    kind: str = ""
    name: str = ""
    """`namespace/name`, as far as it could be read."""

    @property
    def problem(self) -> Problem:
        return Problem(self.message, self.path, self.file, self.line, self.remedy)

    def __str__(self) -> str:
        return str(self.problem)


class Declared(NamedTuple):
    """One good document of a blob."""

    key: Key
    doc: Doc
    given: frozenset[str]
    """The managed paths the file sets; what it leaves to defaults may be set by others."""
    adopt: bool
    line: int


class Parsed(NamedTuple):
    """What a blob says, wherever it lies: the file is filled in by whoever looks at a path."""

    declared: tuple[Declared, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    mentions: frozenset[str] = frozenset()
    """Names that its bad documents may be about."""


Cache = Mapping[tuple[str, str], Parsed]
"""By (blob, version of everything else that decides the result)."""


class Wanted(NamedTuple):
    """One resource as the files want it, and where they say so."""

    declared: Declared
    file: str
    blob: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.declared.line}"


@dataclass(frozen=True)
class Desired:
    """What the files of a commit want."""

    resources: Mapping[Key, Wanted]
    troubles: tuple[Trouble, ...] = ()
    broken: frozenset[str] = frozenset()
    """Files with something in them that could not be read: what they owned stays."""
    unread: frozenset[str] = frozenset()
    """The broken files of which nothing is known, not even names."""
    mentions: frozenset[str] = frozenset()
    """Names that bad documents may be about, wherever they moved."""
    cache: Cache = field(default_factory=dict, repr=False)
    """To be handed to the next call; holds what this commit uses and nothing older."""
    parsed: int = 0
    """How many blobs were parsed because the cache did not have them."""
    blobs: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Path to blob of the files that were looked at."""
    version: str = ""
    """Of everything besides the files that decides the result."""


class Outcome(NamedTuple):
    """The plan, and what is to be told beside it."""

    plan: Plan
    troubles: tuple[Trouble, ...]
    """All of the files' and what keeps a resource from being planned."""
    unpruned: tuple[Key, ...]
    """Owned, no longer declared, and left because pruning is off."""
    kept: tuple[Key, ...]
    """Owned, not found in the files, and left because a file that may hold it cannot be read."""


def kinds_version(kinds: Kinds) -> str:
    """Changes when any kind changes in a way that matters to parsing."""
    schemas = sorted((k.__name__, k.version, json.dumps(k.model_json_schema(), sort_keys=True)) for k in kinds)
    return hashlib.sha256(json.dumps(schemas).encode()).hexdigest()[:16]


def credentials_of(secret: str, known_hosts: str = "") -> Credentials:
    """What a secret's value means to a git server: a private key, `user:password`, or a token."""
    if secret.lstrip().startswith("-----BEGIN"):
        return Credentials(ssh_key=secret, known_hosts=known_hosts)
    username, colon, password = secret.strip().partition(":")
    return Credentials(
        username=username if colon else "", password=password if colon else username, known_hosts=known_hosts
    )


def applies(path: str) -> bool:
    """Whether a file of the tree is one of ours: YAML, and neither it nor a folder above it is hidden."""
    return path.endswith(SUFFIXES) and "/." not in f"/{path}"


# ──────────────────────────────────────────────────────────────────────────────────────────────────── parsing


def parse_tree(
    files: Mapping[str, File],
    kinds: Kinds,
    *,
    version: str,
    namespace: str = "",
    before: Desired | None = None,
    settled: Callable[[Key], str] = lambda key: "",
    refused: Iterable[Refused] = (),
    max_bytes: int = MAX_FILE_BYTES,
) -> Desired:
    """What the files want. `version` is `kinds_version(kinds)`; `before` what an earlier commit wanted: only what
    changed since is looked at; `settled` says which file declares a key so far, so that a copy elsewhere is the one
    reported as duplicate; `refused` are the links and submodules of the tree."""
    known, new = before.cache if before else {}, dict[tuple[str, str], Parsed]()
    version, refused = f"{version}/{namespace}/{max_bytes}", tuple(refused)
    blobs = {path: file.blob for path, file in files.items() if applies(path)}
    if before is not None and before.version == version and not before.troubles and not refused:
        read = functools.partial(_read_blob, files, kinds, namespace, max_bytes)
        if (found := _changed_since(before, blobs, read)) is not None:
            return found
    resources: dict[Key, Wanted] = {}
    troubles = [Trouble(f"{r.path} {r.reason}", r.path) for r in refused if _may_matter(r.path)]
    broken, unread, mentions, count = {r.path for r in refused}, set[str](), set[str](), 0
    for path, blob in sorted(blobs.items()):
        parsed = new.get((blob, version)) or known.get((blob, version))
        if parsed is None:
            try:
                parsed, count = _read_blob(files, kinds, namespace, max_bytes, path), count + 1
            except (NotFound, TooLarge, Invalid) as error:
                troubles.append(Trouble(error.message, path))
                broken.add(path)
                unread.add(path)
                continue
        new[blob, version] = parsed
        if parsed.troubles:
            troubles += [trouble._replace(file=path) for trouble in parsed.troubles]
            broken.add(path)
            mentions |= parsed.mentions
        for declared in parsed.declared:
            wanted = Wanted(declared, path, blob)
            first = resources.setdefault(declared.key, wanted)
            if first is not wanted:
                keeps, loses = (wanted, first) if settled(declared.key) == path != first.file else (first, wanted)
                resources[declared.key] = keeps
                troubles.append(_duplicate(keeps, loses))
    troubles.sort(key=lambda t: (t.file, t.line))
    files_with = (frozenset(broken), frozenset(unread), frozenset(mentions))
    return Desired(resources, tuple(troubles), *files_with, new, count, blobs, version)


def _read_blob(files: Mapping[str, File], kinds: Kinds, namespace: str, max_bytes: int, path: str) -> Parsed:
    _, size, read = files[path]
    if size > max_bytes:
        raise TooLarge(f"the file has {size:,} bytes; {max_bytes:,} are allowed (split it)")
    return parse_blob(read(), kinds, namespace, max_bytes)


def _changed_since(before: Desired, blobs: Mapping[str, str], read: Callable[[str], Parsed]) -> Desired | None:
    """The same from what differs only; None when something in it is wrong and everything has to be seen together."""
    resources, cache, version = dict(before.resources), dict(before.cache), before.version
    changed = [path for path, blob in blobs.items() if before.blobs.get(path) != blob]
    gone = [path for path in before.blobs if blobs.get(path) != before.blobs[path]]
    for path in gone:
        for declared in cache[before.blobs[path], version].declared:
            if resources[declared.key].file == path:
                del resources[declared.key]
    count = 0
    for path in changed:
        parsed = cache.get((blobs[path], version))
        if parsed is None:
            try:
                parsed, count = read(path), count + 1
            except (NotFound, TooLarge, Invalid):
                return None
        if parsed.troubles or any(declared.key in resources for declared in parsed.declared):
            return None
        cache[blobs[path], version] = parsed
        for declared in parsed.declared:
            if resources.setdefault(declared.key, Wanted(declared, path, blobs[path])).declared is not declared:
                return None
    for blob in {before.blobs[path] for path in gone}.difference(blobs.values()):
        del cache[blob, version]
    return Desired(resources, cache=cache, parsed=count, blobs=blobs, version=version)


def _may_matter(path: str) -> bool:
    """Whether a link or submodule may stand where one of our files or folders is expected."""
    return "/." not in f"/{path}" and (path.endswith(SUFFIXES) or "." not in path.rsplit("/", 1)[-1])


def parse_blob(raw: bytes, kinds: Kinds, namespace: str = "", max_bytes: int = MAX_FILE_BYTES) -> Parsed:
    """What one file's content says. Depends on nothing else, so it is right for every path with that content."""
    try:
        documents = load_documents(raw, "", max_bytes=max_bytes)
    except Invalid as error:
        words = frozenset(_WORD.findall(raw.decode("utf-8", "replace")))
        return Parsed(troubles=tuple(_trouble(p, None) for p in error.problems), mentions=words)
    declared: list[Declared] = []
    troubles: list[Trouble] = []
    mentions: set[str] = set()
    for document in documents:
        try:
            declared.append(declared_in(document, kinds, namespace))
        except Invalid as error:
            name = _text_at(document.value, "name")
            mentions |= {name} if name else set(_WORD.findall(raw.decode("utf-8", "replace")))
            troubles += [_trouble(p, document) for p in error.problems]
    return Parsed(tuple(declared), tuple(troubles), frozenset(mentions))


def declared_in(document: Document, kinds: Kinds, namespace: str) -> Declared:
    """What one document of a file declares; Invalid with its mistakes."""
    value = document.value
    meta = value.get("metadata") if isinstance(value, dict) else None
    if isinstance(meta, dict):
        kind = value.get("kind")
        if namespace and "namespace" not in meta and kind in kinds and kinds.get(kind).info.namespaced:
            value = {**value, "metadata": {**meta, "namespace": namespace}}
        for name in (SOURCE, FILE):
            if name in (meta.get("annotations") or ()):
                line = document.line_of(f"metadata.annotations.{name}")
                raise Invalid(problems=(Problem(f"{name} is set by Ground Control", line=line, remedy="remove it"),))
    doc = kinds.parse(value, lines=document.line_of)
    written = kinds.versions(doc["kind"]).to_current(value)
    spec = {name if name in doc["spec"] else to_camel(name) for name in written.get("spec") or {}}
    given = {f"spec.{name}" for name in spec} | {"metadata.annotations"}
    if written["metadata"].get("labels"):
        given.add("metadata.labels")
    adopt = doc["metadata"]["annotations"].pop(ADOPT, "") == "true"
    return Declared(key_of(doc), doc, frozenset(given), adopt, document.line)


def _trouble(problem: Problem, document: Document | None) -> Trouble:
    kind, name = "", ""
    if document is not None:
        kind = str(document.value.get("kind") or "") if isinstance(document.value, dict) else ""
        name = "/".join(filter(None, (_text_at(document.value, "namespace"), _text_at(document.value, "name"))))
    line = problem.line or (document.line if document else 0)
    return Trouble(problem.message, "", line, problem.path, problem.remedy, kind[:63], name[:127])


def _text_at(value: Any, name: str) -> str:
    meta = value.get("metadata") if isinstance(value, dict) else None
    found = meta.get(name) if isinstance(meta, dict) else None
    return found if isinstance(found, str) else ""


def _duplicate(keeps: Wanted, loses: Wanted) -> Trouble:
    key = keeps.declared.key
    return Trouble(
        f"{key} is declared twice: in {keeps.place}, which counts, and in {loses.place}",
        *(loses.file, loses.declared.line, "metadata.name", "remove one of the two", key.kind, key.path),
    )


# ──────────────────────────────────────────────────────────────────────────────────────────────────── planning


def plan_changes(
    desired: Desired,
    owned: Mapping[Key, Doc],
    existing: Mapping[Key, Doc],
    source: str,
    *,
    kinds: Kinds | None = None,
    prune: bool = True,
    manager: str = "",
    unchanged: Collection[Key] = frozenset(),
) -> Outcome:
    """The changes that make the files true.

    `owned` is what carries this Source's annotation, `existing` whatever exists of what the files declare (it may
    hold more, and need not repeat `owned`). `manager` is the name its fields are managed under, `source:NAME` when
    empty. With `kinds`, defaults that came after a resource was stored count as equal. `unchanged` are known to be as
    the files want them (`as_written`)."""
    manager = manager or f"source:{source}"
    changes: list[Change] = []
    troubles, foreign, deleting = list(desired.troubles), list[str](), list[Key]()
    for key, wanted in desired.resources.items():
        if key in unchanged:
            continue
        old = owned.get(key) or existing.get(key)
        if old is None:
            changes.append(_creation(wanted, source))
            continue
        if old["metadata"].get("deletionTimestamp"):
            deleting.append(key)
            continue
        mine = old["metadata"].get("annotations", {}).get(SOURCE) == source
        if not mine and not wanted.declared.adopt:
            troubles.append(_not_ours(wanted, old))
            continue
        if mine and as_written(wanted.declared, old, manager, wanted.file):
            continue
        change = _update(wanted, old, source, manager, kinds, takes_all=not mine, foreign=foreign)
        if change is not None:
            changes.append(change)
    gone = [key for key in owned if key not in desired.resources]
    held = _held(desired, owned, gone)
    lost = [k for k in gone if k not in held and not owned[k]["metadata"].get("deletionTimestamp")]
    if prune:
        changes += [_deletion(key, owned[key]) for key in lost]
    foreign += [] if prune else [f"{key} is in no file any more and stays, since prune is off" for key in lost]
    foreign += [f"{key} stays: {reason}" for key, reason in held.items()]
    waiting = f"until {_some(deleting)} is gone, to make it anew" if deleting else ""
    plan = Plan(tuple(sorted(changes, key=_order)), tuple(map(str, troubles)), tuple(foreign), waiting)
    return Outcome(plan, tuple(troubles), () if prune else tuple(lost), tuple(held))


def _order(change: Change) -> tuple[Any, ...]:
    """What is made or changed first, then what is deleted; containers first when made and last when deleted."""
    deletion = change.verb == "delete"
    rank = _RANK.get(change.target.type, _ORDINARY)
    return (deletion, -rank if deletion else rank, change.target.type, change.target.id)


def _held(desired: Desired, owned: Mapping[Key, Doc], gone: list[Key]) -> dict[Key, str]:
    """Of what is in no file: what may be in one that cannot be read, with the reason."""
    if not gone:
        return {}
    files = {key: str(doc["metadata"]["annotations"].get(FILE, "")) for key, doc in owned.items()}
    # A file that was never read and owns nothing may be an old one under a new name: it could hold anything.
    strange = sorted(desired.unread.difference(files.values()))
    held: dict[Key, str] = {}
    for key in gone:
        parts = files[key].split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
        if above & desired.broken:
            held[key] = f"{min(above & desired.broken)} cannot be read whole; it counts as it was when last good"
        elif key.name in desired.mentions:
            held[key] = "a document with mistakes may be about it"
        elif strange:
            held[key] = f"it may be in {strange[0]}, which cannot be read"
    return held


def _annotated(wanted: Wanted, source: str) -> dict[str, str]:
    return {**wanted.declared.doc["metadata"]["annotations"], SOURCE: source, FILE: wanted.file}


def _creation(wanted: Wanted, source: str) -> Change:
    declared = wanted.declared
    meta = {**declared.doc["metadata"], "annotations": _annotated(wanted, source)}
    doc = {**declared.doc, "metadata": meta}
    return store_change(
        "create",
        declared.key,
        StoreWrite(doc=doc, given=declared.given),
        fields=_fields({"metadata": {}}, doc),
        reason=f"declared in {wanted.place}",
    )


def as_written(declared: Declared, old: Doc, manager: str, file: str) -> bool:
    """Whether nothing at all differs: the usual case, answered without making anything."""
    doc, meta = declared.doc, old["metadata"]
    wanted, found = doc["metadata"], meta["annotations"]
    return (
        not meta.get("deletionTimestamp")
        and doc["spec"] == old["spec"]
        and wanted["labels"] == meta.get("labels")
        and found.get(FILE) == file
        and len(found) == len(wanted["annotations"]) + 2
        and wanted["annotations"].items() <= found.items()
        and meta.get("managers") == dict.fromkeys(declared.given, manager)
    )


def _update(
    wanted: Wanted,
    old: Doc,
    source: str,
    manager: str,
    kinds: Kinds | None,
    *,
    takes_all: bool,
    foreign: list[str],
) -> Change | None:
    declared = wanted.declared
    meta = old["metadata"]
    managers: Mapping[str, str] = {} if takes_all else meta.get("managers") or {}
    spec, kept = _merged(declared, old, managers, manager, kinds)
    foreign += [
        f"{declared.key} {path} is set by {managers[path]} and left ({wanted.place} says otherwise)" for path in kept
    ]
    labels, annotations = declared.doc["metadata"]["labels"], _annotated(wanted, source)
    old_labels, old_annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    owner = managers.get("metadata.labels", manager if takes_all else "")
    if owner not in ("", manager) or ("metadata.labels" not in declared.given and owner != manager):
        labels = old_labels
    # Marks that reconcilers and commands leave (`ground/…`) are not the file's to remove.
    annotations = {**{k: v for k, v in old_annotations.items() if k.startswith("ground/")}, **annotations}
    claims = _claims(declared.given.difference(kept), managers, manager)
    if spec == old["spec"] and labels == old_labels and annotations == old_annotations and not claims:
        return None
    doc = {**declared.doc, "spec": spec}
    doc["metadata"] = {**declared.doc["metadata"], "labels": labels, "annotations": annotations}
    return store_change(
        "update",
        declared.key,
        StoreWrite(doc=doc, given=declared.given.difference(kept), uid=meta.get("uid", "")),
        fields={**_fields(old, doc), **claims},
        reason=f"{'adopted by' if takes_all else 'declared in'} {wanted.place}",
    )


def _claims(given: frozenset[str], managers: Mapping[str, str], manager: str) -> dict[str, tuple[Any, Any]]:
    """Fields newly given with the value they have, or no longer given: only who manages them changes."""
    if not managers:
        return {}
    taken = {f"metadata.managers[{path}]": (None, manager) for path in sorted(given) if not managers.get(path)}
    let_go = {
        f"metadata.managers[{path}]": (manager, None)
        for path, owner in managers.items()
        if owner == manager and path not in given
    }
    return {**taken, **let_go}


def _merged(
    declared: Declared, old: Doc, managers: Mapping[str, str], manager: str, kinds: Kinds | None
) -> tuple[dict[str, Any], list[str]]:
    """The spec as it should be, and the given fields that are left because somebody else manages them.

    A field the file does not give is reset to its default only when this Source gave it before; otherwise it is
    whatever a person or scaler made it."""
    before, after = old["spec"], declared.doc["spec"]
    if before == after:
        return before, []
    if kinds is not None:
        before = _with_defaults(old, kinds)
    spec: dict[str, Any] = {}
    kept: list[str] = []
    for name in {**before, **after}:
        path = f"spec.{name}"
        owner = managers.get(path, "")
        if name not in before:
            spec[name] = after[name]
        elif path in declared.given:
            other = owner not in ("", manager) and before[name] != after.get(name)
            spec[name] = before[name] if other else after.get(name)
            kept += [path] if other else []
        else:
            spec[name] = after[name] if owner == manager and name in after else before[name]
    # Only defaults were filled in: leave the document as it is stored.
    return (old["spec"] if spec == before else spec), kept


def _with_defaults(old: Doc, kinds: Kinds) -> dict[str, Any]:
    viewed: Resource = kinds.view(old)
    return {**old["spec"], **viewed.as_doc()["spec"]}


def _deletion(key: Key, old: Doc) -> Change:
    meta = old["metadata"]
    reason = f"no longer declared (it was in {meta['annotations'].get(FILE, 'a file')})"
    return store_change("delete", key, StoreWrite(uid=meta.get("uid", "")), destructive=True, reason=reason)


def _fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        **field_changes(old.get("spec"), new["spec"], "spec"),
        **field_changes(old["metadata"].get("labels"), new["metadata"]["labels"], "metadata.labels"),
        **field_changes(old["metadata"].get("annotations"), new["metadata"]["annotations"], "metadata.annotations"),
    }


def _not_ours(wanted: Wanted, old: Doc) -> Trouble:
    key = wanted.declared.key
    return Trouble(
        f"{key} exists and {owner_of(old)}",
        *(wanted.file, wanted.declared.line, "metadata.name"),
        f'rename it, or take it over with the annotation {ADOPT}: "true"',
        *(key.kind, key.path),
    )


def refusals(refused: Mapping[Key, GroundError], desired: Desired | None) -> list[Trouble]:
    """What was planned and not admitted, where the files say it."""
    found: list[Trouble] = []
    for key, error in refused.items():
        wanted = desired.resources.get(key) if desired else None
        file, line = (wanted.file, wanted.declared.line) if wanted else ("", 0)
        problems = error.problems or (Problem(error.message),)
        found += [Trouble(p.message, file, line, p.path, p.remedy, key.kind, key.path) for p in problems]
    return sorted(found, key=lambda t: (t.file, t.line, t.name))


def owner_of(doc: Doc) -> str:
    """Who a resource belongs to, as the end of a sentence."""
    annotations = doc["metadata"].get("annotations") or {}
    if annotations.get(SOURCE):
        return f"belongs to Source {annotations[SOURCE]} (file {annotations.get(FILE, 'unknown')})"
    names = sorted(set((doc["metadata"].get("managers") or {}).values()))
    return f"was made by {names[0]}" if names else "belongs to no Source"


def edit_refusal(doc: Doc, path: str, repository: str = "", manager: str = "") -> Problem | None:
    """Why a person may not change this field by hand: it comes from a file, which is named. None when it does not."""
    annotations = doc["metadata"].get("annotations") or {}
    source = annotations.get(SOURCE)
    owner = (doc["metadata"].get("managers") or {}).get(path)
    if not source or owner != (manager or f"source:{source}"):
        return None
    file = annotations.get(FILE, "")
    where = f"{file} of {repository}" if repository else file
    return Problem(f"{path} is set by Source {source}", path, file, 0, f"change {where} instead")


def _some(keys: Iterable[Key]) -> str:
    names = [str(key) for key in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
