"""A small installation to put the API on: real store and kinds, people of every sort, stand-ins for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from groundcontrol.capabilities.inventory.kinds import Site
from groundcontrol.capabilities.monitoring.kinds import Incident
from groundcontrol.capabilities.services.kinds import Instance, Service
from groundcontrol.interfaces.api.backend import Backend
from groundcontrol.kernel.access import KINDS, Access, Subject
from groundcontrol.kernel.accounts import Accounts, ensure_admin
from groundcontrol.kernel.errors import NotFound, PlanChanged, Unauthenticated
from groundcontrol.kernel.resource import Doc, Key, KindInfo, Kinds, Model, Resource
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx

PASSWORD = "correct horse"


class NoteSpec(Model):
    """A note."""

    text: str = ""
    """What it says."""
    size: int = 0
    """How large it is."""
    tags: list[str] = Field(default_factory=list)
    """Words."""


class Note(Resource):
    """The smallest kind in a namespace; cheap enough for thousands."""

    info: ClassVar[KindInfo] = KindInfo(plural="notes", short=("nt",), actions=("shout",))
    spec: NoteSpec
    """What it says."""


class SourceSpec(Model):
    """A repository."""

    url: str = ""
    """Where it is."""


class Source(Resource):
    """What follows a repository."""

    info: ClassVar[KindInfo] = KindInfo(plural="sources", namespaced=False, actions=("sync",))
    spec: SourceSpec
    """Which repository."""


CLASSES: tuple[type[Resource], ...] = (*KINDS, Site, Service, Instance, Incident, Note, Source)

ACCOUNTS: Mapping[str, tuple[str, ...]] = {
    "olga": (),
    "ada": ("experiments/alpha",),
    "bob": ("experiments/beta",),
    "vic": (),
    "nobody": (),
}
BINDINGS: Mapping[str, Doc] = {
    "operators": {"role": "operator", "subjects": ["user:olga"]},
    "alpha": {
        "role": "member",
        "subjects": ["group:experiments/alpha"],
        "selector": {"groups": ["experiments/alpha"]},
    },
    "beta": {"role": "member", "subjects": ["group:experiments/beta"], "selector": {"groups": ["experiments/beta"]}},
    "viewers": {"role": "viewer", "subjects": ["user:vic"], "selector": {"groups": ["experiments/alpha"]}},
}


PROPOSAL: Doc = {
    "source": "tree", "repository": "https://git.example.org/platform.git", "resources": ["Note alpha/one"],
    "files": ["one.yaml"], "diff": "--- a/one.yaml\n", "base": "a" * 40, "branch": "ground/note-alpha-one-1",
    "commit": "b" * 40, "digest": "sha256:1", "state": "pushed",
}  # fmt: skip


@dataclass
class Board:
    """Plans kept in a dict."""

    plans: dict[str, Doc] = field(default_factory=dict)
    answers: list[tuple[Any, ...]] = field(default_factory=list)

    def list(self, state: str) -> list[Doc]:
        return [p for p in self.plans.values() if state in ("", p["state"])]

    def get(self, id: str) -> Doc:
        if id not in self.plans:
            raise NotFound(f"there is no plan {id}")
        return self.plans[id]

    def approve(self, id: str, digest: str, subject: Subject, reason: str) -> Doc:
        if digest != self.get(id)["digest"]:
            raise PlanChanged("another digest stands now")
        self.answers.append(("approve", id, digest, subject.name, reason))
        return {**self.get(id), "state": "approved"}

    def approve_bound(self, id: str, verb: str, count: int, until: float, subject: Subject, reason: str) -> Doc:
        self.answers.append(("approve_bound", id, verb, count, until, subject.name, reason))
        return self.get(id)

    def refuse(self, id: str, subject: Subject, reason: str) -> Doc:
        self.answers.append(("refuse", id, subject.name, reason))
        return {**self.get(id), "state": "refused"}


class Facts:
    """A ledger that says what it was asked."""

    def query(self, body: Doc, namespaces: frozenset[str] | None) -> Doc:
        return {"columns": ["namespaces"], "rows": [[sorted(namespaces) if namespaces is not None else None]]}


def plan(id: str, owner: str) -> Doc:
    change = {
        "target": {"driver": "store", "type": "Note", "id": "x"},
        "verb": "delete",
        "fields": {},
        "owner": owner,
        "destructive": True,
    }
    return {"id": id, "scope": "source:platform", "state": "held", "digest": "sha256:1", "reason": "many", "limit": "",
            "since": "2026-01-01T00:00:00.000Z", "changes": [change], "problems": []}  # fmt: skip


LOG = b"".join(b"line %d\n" % n for n in range(100))


@dataclass
class Installation:
    """A store with people in it, and the backend over it."""

    store: Store
    backend: Backend
    board: Board
    calls: list[tuple[Any, ...]]

    def token(self, name: str, scope: Any = ("read", "write", "approve", "admin"), expires: float = 3600.0) -> str:
        return self.backend.accounts.issue(f"user:{name}", scope, expires).token

    def make(
        self, kind: str, name: str, namespace: str = "", labels: Any = None, manager: str = "server", **spec: Any
    ) -> Doc:
        """A resource, put in behind the API's back."""
        meta = {"name": name, "namespace": namespace, "labels": labels or {}}
        doc = self.store.kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": spec})
        return self.store.write(lambda tx: tx.create(doc, manager))

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        self.store.write(lambda tx: tx.delete(Key(kind, namespace, name)))

    def close(self) -> None:
        self.backend.access.close()
        self.store.close()


def install(folder: Path, **store_options: Any) -> Installation:
    """Everything, on a database in `folder`."""
    kinds = Kinds(CLASSES)
    store = Store(f"sqlite:///{folder}/ground.db", kinds, **store_options).open()
    ensure_admin(store, "root", PASSWORD, work=4)

    def fill(tx: Tx) -> None:
        def make(kind: str, name: str, **spec: Any) -> None:
            tx.create(kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}))

        make("Namespace", "alpha", group="experiments/alpha")
        make("Namespace", "beta", group="experiments/beta")
        for name, groups in ACCOUNTS.items():
            make("Account", name, groups=list(groups))
        make("Account", "bot", robot=True)
        for name, spec in BINDINGS.items():
            make("RoleBinding", name, **spec)

    store.write(fill)
    board, calls = Board({p["id"]: p for p in (plan("p/alpha", "Note alpha/x"), plan("p-all", "Site bari"))}), []
    backend = Backend(store, kinds, Access(store), Accounts(store, work=4))

    def act(verb: str) -> Any:
        return lambda subject, key, body: calls.append((verb, subject.name, key, body)) or {"done": verb}

    def read_log(key: Key, index: int, offset: int) -> bytes:
        return LOG[offset : offset + 300]

    def hook(server: str, source: str, headers: Mapping[str, str], body: bytes) -> None:
        if headers.get("x-gitlab-token") != "s3cret":
            raise Unauthenticated("the webhook's secret is wrong")
        calls.append(("hook", server, source, body))

    backend.actions = {(k.__name__, v): act(v) for k in kinds for v in k.info.actions if v != "log"}
    backend.plans, backend.ledger, backend.log_reader, backend.hooks = board, Facts(), read_log, hook
    backend.source_plan = lambda subject, body: {**plan("preview", "Note alpha/x"), "state": "preview"}
    backend.propose = lambda subject, pairs, dry: calls.append(("propose", subject.name, pairs, dry)) or [PROPOSAL]
    backend.inventory = lambda subject, site, type_, limit, proceed: {
        "site": site, "driver": "local", "answers": True, "complete": True, "problems": [], "type": type_, "looked": "",
        "items": [],
    }  # fmt: skip
    backend.status = lambda subject: {"who": subject.name}
    return Installation(store, backend, board, calls)
