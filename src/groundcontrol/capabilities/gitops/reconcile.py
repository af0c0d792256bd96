"""Keeps what is here as the files of a git repository say, with the rights of the Source and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from groundcontrol.capabilities.gitops.kinds import Source, SourceCommit, SourceProblem, SourceStatus
from groundcontrol.capabilities.gitops.logic import (
    FILE,
    MAX_FILE_BYTES,
    SOURCE,
    Desired,
    File,
    Outcome,
    as_written,
    credentials_of,
    kinds_version,
    parse_tree,
    plan_changes,
    refusals,
)
from groundcontrol.capabilities.gitops.proposals import Desk, Proposal, Wanted, source_of, wish_digest
from groundcontrol.capabilities.gitops.webhooks import parse_push
from groundcontrol.kernel.access import Access
from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, Invalid, NotFound, Unavailable
from groundcontrol.kernel.guard import Scope
from groundcontrol.kernel.plan import Change, Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, Report, StoreWrite, conditions, store_key
from groundcontrol.kernel.resource import Doc, Key, Kinds, key_of, now
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Entry, Tx
from groundcontrol.ports.repository import Credentials, Repositories, Trust

MOST_PROBLEMS = 100
PLATFORM = "platform"
"""Namespace of the secrets of a Source that names none."""


@dataclass
class _State:
    """What is known of one Source beside its status; lost at a restart, and then looked up again."""

    fetched: float = 0.0
    commit: str = ""
    url: str = ""
    error: str = ""
    asked: bool = True
    generation: int = 0
    """Of the spec that was last fetched with: mended credentials are tried at once."""
    desired: Desired | None = None
    last: Desired | None = None
    """What was last read, whichever commit, branch or path it was of: what has not changed since is not read again."""
    written: dict[Key, tuple[int, object]] = field(default_factory=dict)
    """What was seen to be as the files want it: at which event, and what they wanted."""
    parsed_for: tuple[str, ...] = ()
    outcome: Outcome | None = None
    refused: dict[Key, GroundError] = field(default_factory=dict)
    """What of the plan was not admitted."""
    rewritten: bool = False
    commits: list[SourceCommit] = field(default_factory=list)


class _Annotated(msgspec.Struct):
    annotations: dict[str, str] = {}


class _Marked(msgspec.Struct):
    """As much of a document as says whose it is."""

    metadata: _Annotated


_MARKED = msgspec.json.Decoder(_Marked)


def _marked(raw: bytes) -> str:
    return _MARKED.decode(raw).metadata.annotations.get(SOURCE, "")


class Owned(Mapping[Key, Doc]):
    """What carries a Source's mark, decoded when it is asked for: most of it never is."""

    def __init__(self, source: str, entries: Iterable[Entry], known: Mapping[Key, tuple[int, object]]) -> None:
        """`known`: of which event it was seen before that the mark is where it belongs."""
        mark = f'"{SOURCE}":"{source}"'.encode()
        self._docs: dict[Key, Doc] = {}
        unknown = (0,)
        # A tenant may have written the same words elsewhere, as a variable of an environment for example.
        self._entries = {
            e.key: e
            for e in entries
            if known.get(e.key, unknown)[0] == e.seq or (mark in e.raw and _marked(e.raw) == source)
        }

    def __getitem__(self, key: Key) -> Doc:
        if key not in self._docs:
            self._docs[key] = self._entries[key].doc
        return self._docs[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def seq(self, key: Key) -> int:
        """The number of the event that last changed it; 0 when it is not there."""
        entry = self._entries.get(key)
        return entry.seq if entry else 0

    def file(self, key: Key) -> str:
        """The file that declared it; empty when it is not there."""
        return str(self[key]["metadata"]["annotations"].get(FILE, "")) if key in self else ""


class SourceReconciler(Reconciler[Source]):
    """Fetches, reads, compares; its changes are changes of our own resources."""

    name = "sources"
    kind = Source
    gathers = False

    def __init__(
        self,
        kinds: Kinds,
        repositories: Repositories,
        access: Access,
        reveal: Callable[[str, str], str],
        max_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self._kinds, self._repositories, self._access, self._reveal = kinds, repositories, access, reveal
        self._max_bytes = max_bytes
        self._version = kinds_version(kinds)
        self._states: dict[str, _State] = {}

    def shard(self, resource: Source) -> str:
        return f"source/{resource.metadata.name}"

    def ask(self, name: str) -> None:
        """Fetch at the next turn, whatever the interval."""
        self._states.setdefault(name, _State()).asked = True

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self, resource: Source, look: Look) -> Plan:
        spec, state = resource.spec, self._states.setdefault(resource.metadata.name, _State())
        state.refused = {}
        if spec.suspend or resource.deleting:
            state.outcome = None
            return Plan(waiting="it is suspended" if spec.suspend else "")
        place = f"{spec.repository} {spec.branch}"
        mended = state.generation != resource.metadata.generation
        if state.asked or mended or state.url != place or look.now - state.fetched >= spec.interval:
            state.asked, state.generation = False, resource.metadata.generation
            self._fetch(resource, state, place, look.now)
        if state.error and not state.commit:
            raise Unavailable(state.error)
        owned = self._owned(resource.metadata.name, state, look)
        desired = self._desired(resource, state, owned)
        existing = {
            key: doc
            for key in desired.resources
            if key not in owned and (doc := look.get_any(key.kind, key.name, key.namespace)) is not None
        }
        outcome = plan_changes(
            desired,
            owned,
            existing,
            resource.metadata.name,
            kinds=self._kinds,
            prune=spec.prune,
            manager=self.manager_of(resource),
            unchanged=self._unchanged(resource, state, desired, owned),
        )
        state.outcome = outcome
        again = max(0.5, spec.interval - (look.now - state.fetched))
        # Its troubles are told in the report; they do not keep the rest of the commit back.
        return replace(outcome.plan, problems=(), again=1.0 if outcome.plan.waiting else again)

    def _fetch(self, resource: Source, state: _State, place: str, at: float) -> None:
        spec = resource.spec
        state.fetched, state.error = at, ""
        try:
            commit, _ = self.head(resource)
            before = resource.status.commit
            state.rewritten = bool(before) and not self._repositories.is_ancestor(spec.repository, before, commit)
            log = self._repositories.log(spec.repository, commit, 5)
            state.commits = [
                SourceCommit(sha=c.sha, author=c.author, time=now(c.time), subject=c.subject[:200]) for c in log
            ]
            state.commit, state.url = commit, place
        except GroundError as error:
            state.error = error.message
            if state.url != place:
                state.commit, state.desired = "", None
            if not state.commit and isinstance(error, (Invalid, Forbidden, NotFound)):
                raise

    def head(self, resource: Source) -> tuple[str, Credentials | None]:
        """The branch's newest commit, fetched now, and what the server was shown; Forbidden for one nobody signed."""
        spec = resource.spec
        secret = self._reveal(spec.namespace or PLATFORM, spec.credentials) if spec.credentials else ""
        credentials = credentials_of(secret, spec.known_hosts) if secret or spec.known_hosts else None
        commit = self._repositories.fetch(spec.repository, spec.branch, credentials)
        if spec.verify.signatures != "none":
            trust = Trust(method=spec.verify.signatures, signers=spec.verify.allowed_signers)
            signature = self._repositories.verify(spec.repository, commit, trust)
            if not signature.good:
                raise Forbidden(f"commit {commit[:12]} is not applied: {signature.reason}")
        return commit, credentials

    def _owned(self, name: str, state: _State, look: Look) -> Owned:
        """Everything that carries this Source's mark."""
        return Owned(name, (e for kind in self._kinds for e in look.entries(kind.__name__)), state.written)

    def _unchanged(self, resource: Source, state: _State, desired: Desired, owned: Owned) -> frozenset[Key]:
        """What is as the files want it. Whoever was seen to be so, and was not touched since, is not read again."""
        manager, written = self.manager_of(resource), dict[Key, tuple[int, object]]()
        for key, wanted in desired.resources.items():
            seq = owned.seq(key)
            if seq and (
                state.written.get(key) == (seq, wanted) or as_written(wanted.declared, owned[key], manager, wanted.file)
            ):
                written[key] = seq, wanted
        state.written = written
        return frozenset(written)

    def _desired(self, resource: Source, state: _State, owned: Owned) -> Desired:
        spec = resource.spec
        identity = (state.commit, spec.repository, spec.path, spec.namespace)
        if state.desired is not None and state.parsed_for == identity:
            return state.desired
        tree = self._repositories.tree(spec.repository, state.commit, spec.path)
        files = {
            path: File(e.blob, e.size, lambda blob=e.blob: self._repositories.read(spec.repository, blob))  # type: ignore[misc]
            for path, e in tree.files.items()
        }
        state.last = state.desired = parse_tree(
            files,
            self._kinds,
            version=self._version,
            namespace=spec.namespace,
            before=state.last,
            settled=owned.file,
            refused=tree.refused,
            max_bytes=self._max_bytes,
        )
        state.parsed_for = identity
        return state.desired

    # ── changing ────────────────────────────────────────────────────────────────────────────────────────────────

    def manager_of(self, resource: Source) -> str:
        return f"source:{resource.metadata.name}"

    def actor(self, resource: Source) -> str:
        return resource.subject

    def told_on(self, resource: Source, change: Change) -> Key:
        return store_key(change.target)

    def scopes(self, resource: Source, change: Change, store: Store) -> Sequence[Scope]:
        """A Source's budget is a share of what it has of the kind that goes."""
        mark = f'"{SOURCE}":"{resource.metadata.name}"'.encode()
        total = sum(1 for e in store.entries(change.target.type) if mark in e.raw)
        return [Scope("source", resource.metadata.name, total), *super().scopes(resource, change, store)]

    def authorise(self, tx: Tx, resource: Source, change: Change) -> None:
        """A Source may do what its subject may do, judged now."""
        write: StoreWrite = change.payload
        key = store_key(change.target)
        after = write.doc if change.verb != "delete" else None
        self._access.admit(tx, subject_of(resource), change.verb, key, tx.get(key), after)

    def refused(self, resource: Source, change: Change, error: GroundError) -> None:
        if not isinstance(error, Conflict):  # that is another one's haste, and over when it is tried again
            self._states.setdefault(resource.metadata.name, _State()).refused[store_key(change.target)] = error

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def report(self, resource: Source, plan: Plan, look: Look) -> Report:
        state = self._states.setdefault(resource.metadata.name, _State())
        status = SourceStatus.model_validate(resource.status.model_dump())
        if resource.spec.suspend:
            status.conditions = conditions(Ready=("Unknown", "Suspended", "it is suspended"))
            return Report(status)
        status.fetched_commit, status.commits, status.rewritten = state.commit, state.commits, state.rewritten
        if not state.error and (not status.fetched_at or status.commit != state.commit):
            status.fetched_at = now(state.fetched)
        troubles = [*(state.outcome.troubles if state.outcome else ()), *refusals(state.refused, state.desired)]
        status.problem_count = len(troubles)
        status.problems = [
            SourceProblem(file=t.file, line=t.line, kind=t.kind, name=t.name, message=_said(t), remedy=t.remedy)
            for t in troubles[:MOST_PROBLEMS]
        ]
        if state.desired is not None:
            status.resources = len(state.desired.resources)
        events: tuple[tuple[str, str, bool], ...] = ()
        if not plan.changes and not plan.waiting and state.commit and status.commit != state.commit:
            status.commit, status.revision, status.applied_at = state.commit, state.commit[:10], now(look.now)
            subject = state.commits[0].subject if state.commits else ""
            events = (("Applied", f"{state.commit[:10]} {subject}".strip(), False),)
        status.conditions = conditions(Ready=self._ready(state, plan, troubles), **self._webhook(resource))
        return Report(status, events=events)

    def _webhook(self, resource: Source) -> dict[str, Any]:
        """Said only when pushes would be refused for a reason the git server cannot tell."""
        spec = resource.spec
        if not spec.webhook_secret:
            return {}
        try:
            self._reveal(spec.namespace or PLATFORM, spec.webhook_secret)
        except GroundError as error:
            return {"Webhook": ("False", error.reason, f"pushes are refused: {error.message}")}
        return {}

    @staticmethod
    def _ready(state: _State, plan: Plan, troubles: Sequence[Any]) -> Any:
        if state.error:
            return ("Unknown", "CannotFetch", state.error)
        if troubles:
            more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
            return ("False", "Problems", f"{troubles[0]}{more}")
        if plan.changes:
            return ("False", "Applying", f"{state.commit[:10]} is being applied")
        if plan.waiting:
            return ("False", "Waiting", plan.waiting)
        return ("True", "Applied", f"{state.commit[:10]} is applied")


def _said(trouble: Any) -> str:
    return f"{trouble.path}: {trouble.message}" if trouble.path else str(trouble.message)


def subject_of(source: Source) -> Subject:
    """Who a Source acts as."""
    who, _, name = source.subject.partition(":")
    if who == "user":
        return Subject.user(name)
    if who == "group":
        return Subject(source.subject, groups=frozenset({name}))
    return Subject.source(name)


# ── what is offered for review ──────────────────────────────────────────────────────────────────────────────────

PROPOSER = "reconciler:proposals"
RETRY = 30.0
"""Seconds after which what could not be proposed is tried again, when somebody asks for it."""
_MOST_ASKED = 1000


@dataclass
class _Asked:
    """Something to be proposed by nobody in person, and what came of it."""

    wanted: Wanted
    told: Key
    """Looks again when it is settled."""
    state: Literal["waiting", "done", "failed"] = "waiting"
    words: str = "it is being proposed"
    at: float = 0.0


class ProposalReconciler(Reconciler[Source]):
    """Takes what reconcilers want to have in git to the Source's repository, in the turns of that Source: a git server
    that hangs holds up no site. What it makes has a name derived from what is wanted, so it needs no memory."""

    name = "proposals"
    kind = Source
    reports = False

    def __init__(self, runtime: Any, desk: Desk) -> None:
        self._runtime, self.desk = runtime, desk
        self._asked: dict[str, _Asked] = {}
        self._mutex = threading.Lock()

    def shard(self, resource: Source) -> str:
        return f"source/{resource.metadata.name}"

    def suggest(self, old: Doc, new: Doc, told: Key) -> tuple[bool, str]:
        """Whether it is settled, and what to say. Answers at once; `told` looks again when there is news. Settled and
        empty: its Source takes no branches."""
        wanted = Wanted(old, new)
        source = self._runtime.store.get(Key("Source", "", source_of(old)))
        if source is None or not source["spec"].get("proposals"):
            return True, ""
        identity = f"{source['metadata']['uid']} {wanted.key} {wish_digest(wanted)} {told}"
        at = self._runtime.store.clock()
        with self._mutex:
            asked = self._asked.get(identity)
            if asked is None or (asked.state == "failed" and at - asked.at > RETRY):
                while len(self._asked) >= _MOST_ASKED:
                    del self._asked[next(iter(self._asked))]
                words = asked.words if asked else ""
                self._asked[identity] = asked = _Asked(wanted, told, at=at)
                asked.words = words or asked.words
        if asked.state == "waiting":
            self._runtime.controller.wake_key(Key("Source", "", source["metadata"]["name"]))
        return asked.state == "done", asked.words

    def offer(self, subject: Subject, wishes: Sequence[tuple[Doc, Doc]], dry: bool) -> list[Doc]:
        """As the function `offer`, for actions of other capabilities."""
        return offer(self._runtime, subject, wishes, dry)

    def plan(self, resource: Source, look: Look) -> Plan:
        if resource.spec.suspend or resource.deleting:
            return Plan()
        name = resource.metadata.name
        with self._mutex:
            waiting = [a for a in self._asked.values() if a.state == "waiting" and source_of(a.wanted.old) == name]
        for asked in waiting:
            try:
                asked.words = self._settle(resource, asked)
                asked.state = "done"
            except GroundError as error:
                asked.words, asked.state, asked.at = f"it cannot be proposed: {error.message}", "failed", look.now
            self._runtime.controller.wake_key(asked.told)
        return Plan()

    def _settle(self, source: Source, asked: _Asked) -> str:
        proposal, credentials = self.desk.prepare(source, [asked.wanted], lambda verb, key, labels: True)
        if proposal.state == "unchanged":
            return f"{source.spec.branch} of {source.spec.repository} says so already"
        done = self.desk.push(source, proposal, credentials, PROPOSER, self._runtime.store.clock())
        self._runtime.store.write(lambda tx: record_proposal(tx, PROPOSER, done))
        return f"it is proposed as branch {done.branch} of {done.repository}"


def record_proposal(tx: Tx, who: str, proposal: Proposal) -> None:
    """In the audit always; on the timeline of the resources when a branch was made."""
    detail = {n: v for n, v in proposal.as_dict().items() if n not in ("diff", "resources")}
    for key in proposal.resources:
        doc = tx.get(key)
        tx.audit(who, "propose", key, **detail)
        if doc is not None and proposal.state == "pushed":
            words = f"by {who}: branch {proposal.branch} of {proposal.repository}, commit {proposal.commit[:12]}"
            tx.event(key, doc["metadata"]["uid"], "Proposed", words)


def offer(runtime: Any, subject: Subject, wishes: Sequence[tuple[Doc, Doc]], dry: bool) -> list[Doc]:
    """Propose (old, new) of some resources, one proposal per Source, when the subject may make each of them so.

    With `dry` nothing is pushed or recorded. Raises before anything is pushed when one of them cannot be proposed."""
    desk: Desk = runtime.reconciler("proposals").desk

    def may(verb: str, key: Key, labels: Mapping[str, str]) -> bool:
        return bool(
            runtime.access.allowed(subject, verb, key.kind, namespace=key.namespace, name=key.name, labels=labels)
        )

    by_source: dict[str, list[Wanted]] = {}
    for old, new in wishes:
        by_source.setdefault(source_of(old), []).append(Wanted(old, new))
    prepared: list[tuple[Source, Proposal, Credentials | None]] = []
    for name, wanted in by_source.items():
        doc = runtime.store.get(Key("Source", "", name))
        if doc is None:
            raise NotFound(f"Source {name}, which declares {wanted[0].key}, is gone; apply it without proposing")
        source = Source.view(doc)
        prepared.append((source, *desk.prepare(source, wanted, may)))
    if dry:
        return [proposal.as_dict() for _, proposal, _ in prepared]

    def ask(tx: Tx) -> None:
        # Fetching took its time: judged once more, now.
        for old, new in wishes:
            key = key_of(old)
            runtime.access.admit(tx, subject, "update", key, tx.get(key), new)
            tx.audit(subject.name, "propose", key, "asked")

    runtime.store.write(ask)
    done: list[Doc] = []
    for source, proposal, credentials in prepared:
        try:
            made = desk.push(source, proposal, credentials, subject.name, runtime.store.clock())
        except GroundError as error:
            failed, reason = proposal, error.reason
            runtime.store.write(
                lambda tx, failed=failed, reason=reason: [
                    tx.audit(subject.name, "propose", key, "failed", reason=reason, branch=failed.branch)
                    for key in failed.resources
                ]
            )
            raise
        runtime.store.write(lambda tx, made=made: record_proposal(tx, subject.name, made))
        done.append(made.as_dict())
    return done


# ── what people and git servers ask for ─────────────────────────────────────────────────────────────────────────


def sync(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Fetch now."""
    runtime.store.write(lambda tx: tx.audit(str(subject.name), "sync", key))
    runtime.reconciler("sources").ask(key.name)
    runtime.controller.wake_key(key)
    return {"asked": str(key), "time": now(time.time())}


def hook(runtime: Any, provider: str, name: str, headers: Mapping[str, str], body: bytes) -> None:
    """A git server says that a branch moved. Unauthenticated when the secret is wrong or there is no such Source."""
    key = Key("Source", "", name)
    doc = runtime.store.get(key)
    source = Source.view(doc) if doc else None
    secret = ""
    if source is not None and source.spec.webhook_secret:
        secret = runtime.reveal(source.spec.namespace or PLATFORM, source.spec.webhook_secret)
    push = parse_push(provider, headers, body, secret)
    if push is None or source is None or push.branch != source.spec.branch:
        return
    runtime.store.write(lambda tx: tx.audit(f"hook:{provider}", "push", key, commit=push.after))
    runtime.reconciler("sources").ask(name)
    runtime.controller.wake_key(key)
