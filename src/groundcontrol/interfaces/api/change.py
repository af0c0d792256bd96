"""The one way resources change through the API: judged, checked, written and audited in one transaction.

A field has one manager. What a living Source sets is not changed here but in its repository; what another person set
is taken over by whoever changes it; what somebody does not mention in `apply` and did not set before is left alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

from groundcontrol.kernel.access import Access
from groundcontrol.kernel.errors import AlreadyExists, Conflict, Forbidden, GroundError, Invalid, NotFound, Problem
from groundcontrol.kernel.guard import charge
from groundcontrol.kernel.plan import STORE, Change, Limit, Target
from groundcontrol.kernel.resource import Doc, Key, Kinds, did_you_mean, field_changes, key_of
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.secrets import SECRETIVE, looks_secret
from groundcontrol.kernel.tx import SERVER, Tx, managed_paths, part

T = TypeVar("T")
_FIRST = {"Namespace": 0, "Account": 1, "Role": 2, "RoleBinding": 3, "Project": 4}
MARKS = "ground/"
"""Annotations that begin so are set by the program."""
PROPOSING = "`ground apply --propose`, `ground edit --propose`, POST /api/v1/propose"
MANAGER = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Fields = dict[str, tuple[Any, Any]]


class Changed(NamedTuple):
    """What a change did."""

    doc: Doc
    result: str
    """created, changed, unchanged, deleting or deleted."""
    fields: Fields


class _Undone(Exception):
    """Carries the result of a dry run out of the transaction, which thereby is rolled back."""

    def __init__(self, result: Any) -> None:
        super().__init__("dry run")
        self.result = result


def dry(act: Callable[[Tx], T]) -> Callable[[Tx], T]:
    """The same act, undone at its end; `undone` gets its result."""

    def undone_act(tx: Tx) -> T:
        raise _Undone(act(tx))

    return undone_act


def undone(error: BaseException) -> Any:
    """The result of a dry run; raises what else it was."""
    if isinstance(error, _Undone):
        return error.result
    raise error


@dataclass(frozen=True)
class Wish:
    """A document as somebody wrote it: checked for its place, not yet for its shape."""

    key: Key
    raw: Doc

    @property
    def written(self) -> frozenset[str]:
        """The managed paths it says something about."""
        meta = dict(self.raw.get("metadata") or {})
        notes = meta.get("annotations")
        if isinstance(notes, dict):  # marks are nobody's wish
            meta["annotations"] = {k: v for k, v in notes.items() if not k.startswith(MARKS)}
        return managed_paths({"spec": self.raw.get("spec") or {}, "metadata": meta})

    @property
    def expected(self) -> int:
        """The resourceVersion it must still have; 0 when that does not matter."""
        return int(self.raw["metadata"].get("resourceVersion", 0))


def wish(kinds: Kinds, raw: Any, kind: str = "", namespace: str = "", name: str = "") -> Wish:
    """What a body asks for; the path it was sent to fills what it leaves out and may not be contradicted."""
    if not isinstance(raw, dict):
        raise Invalid("a document is a JSON object with apiVersion, kind, metadata and spec")
    meta = raw.get("metadata", {})
    if not isinstance(meta, dict):
        raise Invalid(problems=(Problem("metadata is not an object", "metadata"),))
    raw = {**raw, "metadata": {**meta}}
    if kind:
        raw.setdefault("apiVersion", kinds.get(kind).version)
        for path, holder, member, value in (
            ("kind", raw, "kind", kind),
            ("metadata.namespace", raw["metadata"], "namespace", namespace),
            ("metadata.name", raw["metadata"], "name", name),
        ):
            given = holder.get(member, value)
            if given == "" and member == "namespace":  # as documents of the whole platform have it
                given = value
            if (value and given != value) or not isinstance(given, str):
                raise Invalid(
                    problems=(Problem(f"{given!r} is not the {value!r} of the path", path, remedy="leave it out"),)
                )
            if given:
                holder[member] = given
    found = raw.get("kind")
    if not isinstance(found, str) or found not in kinds:
        kinds.parse(raw)  # says what is wrong with it
        raise Invalid(problems=(Problem("kind is missing", "kind"),))
    version, uid = raw["metadata"].get("resourceVersion", 0), raw["metadata"].get("uid", "")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise Invalid(problems=(Problem("resourceVersion is a number", "metadata.resourceVersion"),))
    if not isinstance(uid, str):
        raise Invalid(problems=(Problem("uid is text", "metadata.uid"),))
    place, called = raw["metadata"].get("namespace") or "", raw["metadata"].get("name") or ""
    if not (isinstance(place, str) and isinstance(called, str)):
        raise Invalid(problems=(Problem("name and namespace are text", "metadata"),))
    return Wish(Key(found, place, called), raw)


class Changer:
    """Changes by one subject inside one transaction."""

    def __init__(
        self, tx: Tx, access: Access, subject: Subject, manager: str = "", limits: tuple[Limit, ...] = ()
    ) -> None:
        self._tx = tx
        self._limits = limits
        self._access = access
        self._subject = subject
        self._manager = manager or subject.name
        self._kinds = tx.store.kinds

    def create(self, wanted: Wish) -> Changed:
        """A new resource; AlreadyExists."""
        doc = self._parsed(wanted.raw)
        key = key_of(doc)
        self._access.admit(self._tx, self._subject, "create", key, None, doc)
        if self._tx.get(key) is not None:
            raise AlreadyExists(f"{key} exists already")
        self._own_marks(doc, None)
        new = self._tx.create(doc, self._manager, given=wanted.written)
        fields = {p: pair for p, pair in _fields(None, new).items() if _says(wanted.written, p)}
        self._record("create", "Created", new, fields)
        return Changed(new, "created", fields)

    def replace(self, wanted: Wish) -> Changed:
        """Spec, labels and annotations become those of the document; what it leaves out gets its default."""
        old = self._existing(wanted.key, "update")
        return self._update(wanted, old, self._parsed(wanted.raw), wanted.written, "update")

    def patch(self, key: Key, patch: Doc) -> Changed:
        """RFC 7396 over spec, labels and annotations."""
        old = self._existing(key, "update")
        given = {**patch, "metadata": patch.get("metadata") or {}}
        bare = {"apiVersion": old["apiVersion"], "kind": key.kind, "metadata": _own_meta(old), "spec": old["spec"]}
        raw = _merged(bare, {n: v for n, v in given.items() if n in ("metadata", "spec")})
        if not isinstance(raw.get("spec"), dict) or not isinstance(raw.get("metadata"), dict):
            raise Invalid(problems=(Problem("spec and metadata are objects and cannot be removed", "spec"),))
        raw["metadata"] |= {"name": key.name, "namespace": key.namespace}
        for name in ("resourceVersion", "uid"):
            if given["metadata"].get(name):
                raw["metadata"][name] = given["metadata"][name]
        mine = {path for path, owner in old["metadata"]["managers"].items() if owner == self._manager}
        patched = Wish(key, raw)
        written = Wish(key, given).written if isinstance(given.get("spec") or {}, dict) else frozenset()
        return self._update(patched, old, self._parsed(raw), written | mine, "update")

    def apply(self, wanted: Wish) -> Changed:
        """Create it, or set what the document says and let go of what it no longer says."""
        old = self._tx.get(wanted.key)
        if old is None:
            return self.create(wanted)
        self._may(wanted.key, "update", old)
        raw = self._laid_over(wanted, old)
        return self._update(Wish(wanted.key, raw), old, self._parsed(raw), wanted.written, "apply")

    def proposed(self, wanted: Wish, *, whole: bool) -> tuple[Doc, Doc]:
        """A resource as it is and as `apply` (with `whole`: `replace`) would have to make it: judged as that change
        and not made. Conflict for a field that somebody sets by hand: what a file says of it would not count."""
        old = self._existing(wanted.key, "update")
        new = self._parsed(wanted.raw if whole else self._laid_over(wanted, old))
        self._access.admit(self._tx, self._subject, "update", wanted.key, old, new)
        self._own_marks(new, old)
        self._must_stand(wanted, old)
        source = f"source:{(old['metadata'].get('annotations') or {}).get(f'{MARKS}source', '')}"
        problems = [
            Problem(f"{path} is set by {owner} and by no file", path, remedy="change it without proposing")
            for path, owner in sorted(old["metadata"]["managers"].items())
            if owner != source and part(old, path) != part(new, path)
        ]
        if problems:
            raise Conflict(f"{wanted.key}: {problems[0].message}", problems=tuple(problems))
        if new["spec"] != old["spec"]:
            self._kinds.get(wanted.key.kind).admit(old, new)
        self._kinds.get(wanted.key.kind).admit_among(old, new, self._tx)
        return old, new

    def _laid_over(self, wanted: Wish, old: Doc) -> Doc:
        """The document with what others set where it says nothing."""
        managers: Mapping[str, str] = old["metadata"]["managers"]
        raw = copy.deepcopy(wanted.raw)
        spec = raw.get("spec")
        if isinstance(spec, dict):
            kept = {n: v for n, v in old["spec"].items() if managers.get(f"spec.{n}") != self._manager}
            raw["spec"] = {**kept, **spec}
        for name in ("labels", "annotations"):
            if raw["metadata"].get(name) is None and managers.get(f"metadata.{name}") != self._manager:
                raw["metadata"][name] = old["metadata"].get(name) or {}
        return raw

    @staticmethod
    def _must_stand(wanted: Wish, old: Doc) -> None:
        """Conflict unless it is the resource that was read, as it was read, and stays."""
        uid, meta = wanted.raw["metadata"].get("uid"), old["metadata"]
        if uid and uid != meta["uid"]:
            raise Conflict(f"{wanted.key} is not the one you read: it was deleted and made anew")
        if wanted.expected and wanted.expected != meta["resourceVersion"]:
            raise Conflict(
                f"{wanted.key} changed meanwhile (you have {wanted.expected}, it is at {meta['resourceVersion']}); "
                "read it again"
            )
        if meta["deletionTimestamp"]:
            raise Conflict(f"{wanted.key} is being deleted")

    def delete(self, key: Key) -> Changed:
        """Ask for deletion."""
        old = self._existing(key, "delete")
        self._refuse_source_deletion(key, old)
        if key.kind == "Namespace":
            self._must_be_empty(key.name)
        if not old["metadata"]["deletionTimestamp"]:
            uid = old["metadata"]["uid"]
            fields = {"metadata.uid": (uid, None)}
            deletion = Change(Target(STORE, key.kind, key.path), "delete", fields, destructive=True)
            charge(self._tx, self._subject.name, deletion, self._limits)
        new = self._tx.delete(key)
        gone = self._tx.get(key) is None
        self._record("delete", "Deleted" if gone else "DeletionAsked", new, {})
        return Changed(new, "deleted" if gone else "deleting", {})

    def apply_all(self, wishes: Iterable[Wish]) -> list[Changed]:
        """Each of them, namespaces and roles before what needs them; Invalid with the problems of all."""
        numbered = sorted(enumerate(wishes), key=lambda pair: (_FIRST.get(pair[1].key.kind, 9), pair[0]))
        done: dict[int, Changed] = {}
        problems: list[Problem] = []
        for number, wanted in numbered:
            try:
                done[number] = self.apply(wanted)
            except Invalid as error:
                problems += in_document(number, error).problems
            except GroundError as error:
                raise in_document(number, error) from error
        if problems:
            raise Invalid(problems=tuple(problems[:100]))
        return [done[number] for number in sorted(done)]

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _parsed(self, raw: Doc) -> Doc:
        doc = self._kinds.parse(raw)
        if self._kinds.get(doc["kind"]).info.internal:
            raise Forbidden(f"{doc['kind']} is made by the server only; nobody writes it by hand")
        return doc

    def _existing(self, key: Key, verb: str) -> Doc:
        old = self._tx.get(key)
        self._may(key, verb, old)
        if old is None:
            sees = self._access.sees(self._subject, key.kind)
            names = [e.key.name for e in self._tx.entries(key.kind, key.namespace) if sees(*e.key[1:], e.labels)]
            raise NotFound(f"there is no {key}{did_you_mean(key.name, names)}")
        return old

    def _may(self, key: Key, verb: str, old: Doc | None) -> None:
        labels = old["metadata"].get("labels") or {} if old else {}
        self._access.require_in(
            self._tx, self._subject, verb, key.kind, namespace=key.namespace, name=key.name, labels=labels
        )

    def _update(self, wanted: Wish, old: Doc, new: Doc, written: frozenset[str], verb: str) -> Changed:
        key = wanted.key
        self._access.admit(self._tx, self._subject, "update", key, old, new)
        self._own_marks(new, old)
        if wanted.expected:
            new["metadata"]["resourceVersion"] = wanted.expected
        uid = wanted.raw["metadata"].get("uid")
        if uid and uid != old["metadata"]["uid"]:
            raise Conflict(f"{key} is not the one you read: it was deleted and made anew")
        managers: Mapping[str, str] = old["metadata"]["managers"]
        given = set()
        for path in managed_paths(new) | managed_paths(old):
            owner, changed = managers.get(path), part(old, path) != part(new, path)
            if (path in written and (changed or owner in (None, self._manager))) or (
                changed and owner != self._manager
            ):
                given.add(path)
        applied = self._tx.replace(new, self._manager, given=frozenset(given), refuse=self._refuser(old))
        fields = _fields(old, applied.doc) if applied.result == "changed" else {}
        if applied.result == "changed":
            self._record(verb, "Changed", applied.doc, fields)
        return Changed(applied.doc, applied.result, fields)

    def _own_marks(self, doc: Doc, old: Doc | None) -> None:
        """Annotations of the program cannot be written by people, and survive what people write."""
        kept = {
            k: v for k, v in (old["metadata"].get("annotations") or {} if old else {}).items() if k.startswith(MARKS)
        }
        given: dict[str, str] = doc["metadata"].get("annotations") or {}
        for name in given:
            if name.startswith(MARKS) and given[name] != kept.get(name):
                raise Invalid(
                    problems=(Problem(f"{name} is set by the server", "metadata.annotations", remedy="leave it out"),)
                )
        if kept:
            doc["metadata"]["annotations"] = {**given, **kept}

    def _refuser(self, old: Doc) -> Callable[[str, str], Problem | None]:
        def refuse(path: str, owner: str) -> Problem | None:
            return _by_source(old, path, owner, self._repository(owner)) if self._lives(owner) else None

        return refuse

    def _refuse_source_deletion(self, key: Key, old: Doc) -> None:
        owner = next((o for o in old["metadata"]["managers"].values() if self._lives(o)), "")
        if owner:
            problem = _by_source(old, "", owner, self._repository(owner))
            raise Conflict(f"{key}: {problem.message}", problems=(problem,))

    def _lives(self, owner: str) -> bool:
        """Whether that manager is a Source that still exists: only then is its repository the place to change it."""
        who, _, name = owner.partition(":")
        if who != "source" or self._manager == owner:
            return False
        return "Source" not in self._kinds or any(e.key.name == name for e in self._tx.entries("Source"))

    def _repository(self, owner: str) -> str:
        source = self._tx.get(Key("Source", "", owner.partition(":")[2]))
        return str(source["spec"].get("repository", "")) if source else ""

    def _must_be_empty(self, namespace: str) -> None:
        left: list[str] = []
        for kind in self._kinds:
            if kind.info.namespaced:
                sees = self._access.sees(self._subject, kind.__name__)
                found = self._tx.entries(kind.__name__, namespace)
                left += [str(e.key) if sees(*e.key[1:], e.labels) else f"a {kind.__name__}" for e in found[:10]]
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise Conflict(f"Namespace {namespace} still has {', '.join(left[:5])}{more}; delete what is in it first")

    def _record(self, verb: str, reason: str, doc: Doc, fields: Fields) -> None:
        shown = without_secrets(fields)
        key = key_of(doc)
        detail: Doc = {"fields": shown} if shown else {}
        self._tx.audit(self._subject.name, verb, key, **detail)
        self._tx.event(key, doc["metadata"]["uid"], reason, f"by {self._subject.name}", fields=shown or None)


def _by_source(old: Doc, path: str, owner: str, source: str) -> Problem:
    """Where to change what a Source sets. `ground/file` is `PATH`, `REPOSITORY#PATH` or `REPOSITORY#PATH:LINE`;
    `source` is the repository of the Source."""
    annotations: Mapping[str, str] = old["metadata"].get("annotations") or {}
    repository, hash_, file = annotations.get("ground/file", "").partition("#")
    if not hash_:
        repository, file = source, repository
    file, _, line = file.rpartition(":") if re.search(r":\d+$", file) else (file, "", "0")
    what = f"{path} is set by {owner}" if path else f"it is declared by {owner}"
    where = f"{file or 'its file'} of {repository or annotations.get('ground/source') or owner}"
    return Problem(
        f"{what}, in {where}" + (f", line {line}" if line != "0" else ""),
        path,
        file=f"{repository}#{file}" if file else "",
        line=int(line),
        remedy=f"change it in {where}, or propose that: {PROPOSING}" if path else f"remove it from {where}",
    )


def manager_of(subject: Subject, given: Any) -> str:
    """The manager of an apply: the subject, or a plain name it gives (a program that speaks for people)."""
    if given in (None, "", subject.name):
        return subject.name
    if not isinstance(given, str) or not MANAGER.fullmatch(given) or given == SERVER:
        raise Invalid(
            problems=(
                Problem("a manager is a word of lower-case letters, digits and -", "manager", remedy="leave it out"),
            )
        )
    return given


def in_document(number: int, error: GroundError) -> GroundError:
    """The error, with its problems placed in the document of that number."""
    if isinstance(error, Invalid) and not error.problems:
        return Invalid(problems=(Problem(error.message, f"documents.{number}"),))
    problems = tuple(
        Problem(
            p.message, f"documents.{number}.{p.path}" if p.path else f"documents.{number}", p.file, p.line, p.remedy
        )
        for p in error.problems
    )
    if isinstance(error, Invalid):
        return Invalid(problems=problems)
    return type(error)(error.message, problems=problems or (Problem(error.message, f"documents.{number}"),))


def _own_meta(doc: Doc) -> Doc:
    return {n: doc["metadata"].get(n) or {} for n in ("labels", "annotations")}


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _fields(old: Doc | None, new: Doc) -> Fields:
    def wanted(doc: Doc | None) -> Doc:
        return {"spec": doc["spec"], "metadata": _own_meta(doc)} if doc else {}

    # An empty mapping is a leaf of its own when it is flattened; that it comes or goes is no change.
    return {p: (a, b) for p, (a, b) in field_changes(wanted(old), wanted(new)).items() if (a or None) != (b or None)}


def _says(written: frozenset[str], path: str) -> bool:
    return any(path == w or path.startswith((f"{w}.", f"{w}[")) for w in written)


def without_secrets(fields: Mapping[str, tuple[Any, Any]], most: int = 50) -> dict[str, list[Any]]:
    """Field changes for the audit: what may be a secret is not in it, and nothing is long."""
    shown = {path: [_shown(path, value) for value in pair] for path, pair in list(fields.items())[:most]}
    if len(fields) > most:
        shown["…"] = [None, f"and {len(fields) - most} more"]
    return shown


def _shown(path: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value if not SECRETIVE.search(path) or isinstance(value, bool) or value is None else "***"
    text = value if isinstance(value, str) else repr(value)
    if text.startswith(("secret:", "env:", "file:")) and len(text) < 300:
        return text
    if looks_secret(path, text):
        return "***"
    if len(text) > 200:
        return f"{text[:200]}… ({len(text)} characters)"
    return value


def as_results(changes: Iterable[Changed]) -> Doc:
    """The answer of `apply`."""
    return {
        "results": [
            {
                "key": str(key_of(c.doc)),
                "result": c.result,
                "fields": {path: list(pair) for path, pair in c.fields.items()} if c.result == "changed" else {},
                "resourceVersion": cast(int, c.doc["metadata"]["resourceVersion"]),
            }
            for c in changes
        ]
    }
