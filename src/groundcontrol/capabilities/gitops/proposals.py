"""Changes of a Source's files that are offered for review: the new text, its diff, and a branch where one is allowed.

A proposal gives nobody a right: what is merged is judged by people, and then by the rights of the Source. Whoever asks
may change the resource; of a file that holds documents of others they are shown their own alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, NamedTuple

from pydantic.alias_generators import to_camel

from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.logic import FILE, MAX_FILE_BYTES, SOURCE, Declared, declared_in
from groundcontrol.kernel.errors import Conflict, Forbidden, Invalid, NotFound, Problem, TooMany
from groundcontrol.kernel.manifest import Document, load_documents
from groundcontrol.kernel.manifest_edit import Edit, edited, edits_between
from groundcontrol.kernel.manifest_nodes import end_of, nodes_of
from groundcontrol.kernel.resource import Doc, Key, Kinds, key_of
from groundcontrol.ports.repository import Credentials, Offer, Repositories

MARKS = "ground/"
CONTEXT = 3
"""Lines shown around a change."""
FRESH = 2.0
"""Seconds for which a fetched commit counts as the newest one."""
_LONGEST_MIDDLE = 2000
"""Lines between the first and the last change above which they are shown as one: comparing costs their square."""


class Wanted(NamedTuple):
    """A resource as it is, and as somebody wants it."""

    old: Doc
    new: Doc

    @property
    def key(self) -> Key:
        return key_of(self.old)


@dataclass(frozen=True)
class Proposal:
    """What is offered of one Source."""

    source: str
    repository: str
    base: str
    """The commit it is built upon."""
    resources: tuple[Key, ...]
    files: Mapping[str, bytes]
    """Path to new content; empty when the files say so already."""
    diff: str
    """Unified; lines of documents that the asker may not read are left out."""
    branch: str
    """The branch it is pushed as, or would be; empty when the Source takes none."""
    digest: str
    """Of what is changed, not of what it is built upon: the same wish twice is one proposal."""
    subject: str
    """First line of the message."""
    commit: str = ""
    """What was pushed, or found there."""
    state: str = "diff"
    """`unchanged`: the files say so already; `diff`: nothing is pushed; `pushed`; `exists`: it was there before."""

    def as_dict(self) -> Doc:
        return {
            "source": self.source,
            "repository": self.repository,
            "resources": [str(key) for key in self.resources],
            "files": sorted(self.files),
            "diff": self.diff,
            "base": self.base,
            "branch": self.branch,
            "commit": self.commit,
            "digest": self.digest,
            "state": self.state,
        }


Judge = Callable[[str, Key, Mapping[str, str]], bool]
"""(verb, key, labels): whether whoever asks may do that."""


def source_of(doc: Doc) -> str:
    """The Source that declares a resource; Conflict when none does."""
    name = (doc["metadata"].get("annotations") or {}).get(SOURCE, "")
    if not name:
        remedy = "apply it without proposing"
        raise Conflict(f"{key_of(doc)} is declared by no Source: there is no file to change ({remedy})")
    return str(name)


def wish_digest(wanted: Wanted) -> str:
    """Names what is wanted of a resource, whatever its file says."""
    old, new = _visible(wanted.old), _visible(wanted.new)
    return hashlib.sha256(json.dumps(edits_between(old, old, new), default=list).encode()).hexdigest()[:16]


# ── the text ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _visible(doc: Doc) -> Doc:
    """What a file may say of a resource."""
    meta = doc["metadata"]
    notes = {k: v for k, v in (meta.get("annotations") or {}).items() if not k.startswith(MARKS)}
    return {"metadata": {"labels": meta.get("labels") or {}, "annotations": notes}, "spec": doc["spec"]}


def _written_name(written: Mapping[str, Any], name: str) -> str:
    """The name a field has in a file: it may be written with underscores."""
    if name in written:
        return name
    return next((k for k in written if "_" in k and to_camel(k) == name), name)


def _find(raw: bytes, key: Key, kinds: Kinds, namespace: str, file: str) -> tuple[Document, Declared]:
    """The document of a file that declares a resource."""
    found: list[tuple[Document, Declared]] = []
    broken = ""
    for document in load_documents(raw, file, max_bytes=len(raw)):
        try:
            declared = declared_in(document, kinds, namespace)
        except Invalid as error:
            broken = f"; a document of it is wrong: {error.problems[0].message}"
            continue
        if declared.key == key:
            found.append((document, declared))
    if not found:
        raise Conflict(f"{file} does not declare {key} in the newest commit{broken}; wait until that is applied")
    if len(found) > 1:
        raise Conflict(f"{file} declares {key} twice: remove one first")
    return found[0]


def changed_text(
    raw: bytes, wanted: Wanted, kinds: Kinds, namespace: str, file: str, may: Judge | None = None
) -> tuple[bytes, list[Edit]]:
    """The file's text with the difference between `wanted.old` and `wanted.new` in it, and what was edited.

    Raises Invalid or Conflict with the reason when the text cannot say it, Forbidden when the document as it is in
    the newest commit is not the asker's to change."""
    document, declared = _find(raw, wanted.key, kinds, namespace, file)
    labels = declared.doc["metadata"].get("labels") or {}
    if may is not None and not (may("update", wanted.key, labels) and may("get", wanted.key, labels)):
        raise Forbidden(f"{wanted.key} as {file} declares it in the newest commit is not yours to change")
    current = kinds.get(wanted.key.kind).version
    if document.value.get("apiVersion") != current:
        what = f"it is written as {document.value.get('apiVersion')}"
        raise Invalid(problems=(Problem(what, "apiVersion", file, document.line, f"rewrite it as {current} first"),))
    old, new = _visible(wanted.old), _visible(wanted.new)
    edits = edits_between(document.value, old, new, _written_name)
    if not edits:
        return raw, []
    found = edited(raw, document.line, edits, file, max_bytes=MAX_FILE_BYTES)
    _, said = _find(found, wanted.key, kinds, namespace, file)
    if edits_between(_visible(said.doc), old, new):
        raise Invalid(
            problems=(Problem("the file cannot be made to say that", "", file, document.line, "edit the file by hand"),)
        )
    return found, edits


# ── the diff ────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown_lines(raw: bytes, own: Iterable[Key], kinds: Kinds, namespace: str, may: Judge) -> Callable[[int], bool]:
    """A test of the numbers of lines, counted from 0: all when the asker may read every document of the file, else
    those of the documents in `own`, without what stands between documents."""
    text = raw.decode("utf-8").removeprefix("\ufeff")
    whole, mine = True, set[int]()
    for document, nodes in zip(load_documents(raw, "", max_bytes=len(raw)), nodes_of(text), strict=True):
        try:
            declared = declared_in(document, kinds, namespace)
        except Invalid:
            whole = False
            continue
        whole = whole and may("get", declared.key, declared.doc["metadata"].get("labels") or {})
        if declared.key in own:
            last = text.count("\n", 0, end_of(text, nodes.root))
            mine |= set(range(document.line - 1, last + 1))
    return (lambda number: True) if whole else mine.__contains__


def unified(old: str, new: str, file: str, shown: Callable[[int], bool]) -> str:
    """A unified diff whose context is of lines that may be shown."""
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (old, new))
    hunks: list[list[tuple[int, int, int, int]]] = []
    for change in _changes(before, after):
        gap = range(hunks[-1][-1][1], change[0]) if hunks else range(0)
        if hunks and len(gap) <= 2 * CONTEXT and all(map(shown, gap)):
            hunks[-1].append(change)
        else:
            hunks.append([change])
    out: list[str] = []
    for hunk in hunks:
        (start, _, halt, _), (_, stop, _, end) = hunk[0], hunk[-1]
        lead = tail = 0
        while lead < min(CONTEXT, start) and shown(start - lead - 1):
            lead += 1
        while tail < min(CONTEXT, len(before) - stop) and shown(stop + tail):
            tail += 1
        out.append(f"@@ -{_span(start - lead, stop + tail)} +{_span(halt - lead, end + tail)} @@\n")
        at = start - lead
        for i1, i2, j1, j2 in hunk:
            out += [_line(" ", part) for part in before[at:i1]]
            out += [_line("-", part) for part in before[i1:i2]] + [_line("+", part) for part in after[j1:j2]]
            at = i2
        out += [_line(" ", part) for part in before[at : stop + tail]]
    return f"--- a/{file}\n+++ b/{file}\n{''.join(out)}" if out else ""


def _changes(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """What of the lines became what: (from, before, from, before)."""
    start, shorter = 0, min(len(before), len(after))
    while start < shorter and before[start] == after[start]:
        start += 1
    end = 0
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    stop, halt = len(before) - end, len(after) - end
    if start == stop and start == halt:
        return []
    if max(stop, halt) - start > _LONGEST_MIDDLE:
        return [(start, stop, start, halt)]
    found = difflib.SequenceMatcher(None, before[start:stop], after[start:halt], autojunk=False).get_opcodes()
    return [(i1 + start, i2 + start, j1 + start, j2 + start) for tag, i1, i2, j1, j2 in found if tag != "equal"]


def _line(sign: str, text: str) -> str:
    return f"{sign}{text}" if text.endswith("\n") else f"{sign}{text}\n\\ No newline at end of file\n"


def _span(start: int, stop: int) -> str:
    count = stop - start
    return f"{start + 1}" if count == 1 else f"{start + 1 if count else start},{count}"


# ── offering it ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Desk:
    """Prepares proposals for one Source and takes them to its git server."""

    def __init__(
        self, kinds: Kinds, repositories: Repositories, head: Callable[[Source], tuple[str, Credentials | None]]
    ) -> None:
        """`head(source)` fetches, and gives the newest commit that may be applied and what the server is shown."""
        self._kinds, self._repositories, self._head = kinds, repositories, head
        self._lately: dict[str, tuple[float, str, Credentials | None]] = {}

    def _fetched(self, source: Source) -> tuple[str, Credentials | None]:
        """What `head` gives, at most `FRESH` seconds old: who looks at diffs all day does not keep the Source from
        fetching."""
        at = monotonic()
        place = f"{source.metadata.uid} {source.metadata.generation}"
        known = self._lately.get(place)
        if known is None or at - known[0] > FRESH:
            self._lately = {p: k for p, k in self._lately.items() if at - k[0] <= FRESH}
            commit, credentials = self._head(source)
            known = self._lately[place] = (monotonic(), commit, credentials)
        return known[1], known[2]

    def prepare(self, source: Source, wishes: Sequence[Wanted], may: Judge) -> tuple[Proposal, Credentials | None]:
        """What would be offered. Reads the newest commit of the branch, and of it the files that declare these."""
        spec = source.spec
        base, credentials = self._fetched(source)
        tree = self._repositories.tree(spec.repository, base, spec.path)
        before, after = dict[str, bytes](), dict[str, bytes]()
        edits: list[tuple[str, str, list[Edit]]] = []
        for wanted in wishes:
            file = str(wanted.old["metadata"]["annotations"].get(FILE, ""))
            if file not in before:
                before[file] = after[file] = self._read(source, tree.files.get(file), file)
            after[file], made = changed_text(after[file], wanted, self._kinds, spec.namespace, file, may)
            if made:
                edits.append((str(wanted.key), file, made))
        changed = {file: text for file, text in after.items() if text != before[file]}
        own = frozenset(w.key for w in wishes)
        diff = ""
        for file in sorted(changed):
            shown = shown_lines(before[file], own, self._kinds, spec.namespace, may)
            diff += unified(_text(before[file]), _text(changed[file]), file, shown)
        told = json.dumps([spec.repository, sorted(edits)], sort_keys=True, default=list)
        digest = hashlib.sha256(told.encode()).hexdigest()
        keys = tuple(w.key for w in wishes)
        branch = f"{spec.proposals.branch_prefix}{_slug(keys)}-{digest[:12]}" if spec.proposals and changed else ""
        proposal = Proposal(
            source=source.metadata.name,
            repository=spec.repository,
            base=base,
            resources=keys,
            files=changed,
            diff=diff,
            branch=branch,
            digest=f"sha256:{digest}",
            subject=_subject(wishes),
            state="diff" if changed else "unchanged",
        )
        return proposal, credentials

    def _read(self, source: Source, entry: Any, file: str) -> bytes:
        spec = source.spec
        if entry is None:
            raise NotFound(f"there is no file {file} in branch {spec.branch} of {spec.repository} any more")
        if entry.size > MAX_FILE_BYTES:
            raise Invalid(f"{file} has {entry.size:,} bytes; {MAX_FILE_BYTES:,} are edited at most (split it)")
        return self._repositories.read(spec.repository, entry.blob)

    def push(
        self, source: Source, proposal: Proposal, credentials: Credentials | None, who: str, time: float
    ) -> Proposal:
        """The proposal as a branch of its own, when its Source allows that. What is there already is found."""
        rules, url = source.spec.proposals, source.spec.repository
        if rules is None or not proposal.branch or proposal.branch == source.spec.branch:
            return proposal
        there = self._repositories.heads(url, rules.branch_prefix, credentials)
        if proposal.branch in there:
            return replace(proposal, commit=there[proposal.branch], state="exists")
        if len(there) >= rules.most:
            raise TooMany(
                f"{len(there)} branches {rules.branch_prefix}… wait in {url}, and Source {proposal.source} takes "
                f"{rules.most} (merge or delete some, or set spec.proposals.most)"
            )
        name, _, email = rules.author.removesuffix(">").rpartition(" <")
        message = f"{proposal.subject}\n\nProposed by {who}.\n\nGround-Proposal: {proposal.digest}\n"
        offer = Offer(
            base=proposal.base,
            branch=proposal.branch,
            files=proposal.files,
            message=message,
            author=name,
            email=email,
            time=float(int(time)),
        )
        try:
            commit = self._repositories.propose(url, offer, credentials)
        except Conflict:
            there = self._repositories.heads(url, proposal.branch, credentials)
            if proposal.branch not in there:
                raise
            return replace(proposal, commit=there[proposal.branch], state="exists")
        return replace(proposal, commit=commit, state="pushed")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8")


def _slug(keys: Sequence[Key]) -> str:
    """Words for a branch's name; what makes it unique follows them."""
    first = "-".join(filter(None, keys[0]))
    more = f"-and-{len(keys) - 1}-more" if len(keys) > 1 else ""
    return re.sub(r"[^a-z0-9]+", "-", first.lower())[:100].strip("-") + more


def _subject(wishes: Sequence[Wanted]) -> str:
    """`Service alpha/web: replicas, env`; names of kinds, resources and fields of the spec, nothing anybody wrote."""
    if len(wishes) > 1:
        return f"{wishes[0].key} and {len(wishes) - 1} more"
    old, new = _visible(wishes[0].old), _visible(wishes[0].new)
    fields = [n for n in {**old["spec"], **new["spec"]} if old["spec"].get(n) != new["spec"].get(n)]
    fields += [n for n in ("labels", "annotations") if old["metadata"][n] != new["metadata"][n]]
    subject = f"{wishes[0].key}: {', '.join(fields)}"
    return subject if len(subject) <= 72 else f"{subject[:71]}…"
