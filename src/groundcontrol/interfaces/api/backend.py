"""What the API stands on: assembly fills it. What is missing is answered with 503 and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from groundcontrol.kernel.access import Access
from groundcontrol.kernel.accounts import Accounts
from groundcontrol.kernel.plan import Limit
from groundcontrol.kernel.resource import Doc, Key, Kinds
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Store


class PlanBoard(Protocol):
    """Plans that wait for a person. Every Plan is a dict in the shape of docs/guides/api.md. Called on a thread."""

    def list(self, state: str) -> list[Doc]:
        """The plans in that state; all when empty."""

    def get(self, id: str) -> Doc:
        """One; NotFound."""

    def approve(self, id: str, digest: str, subject: Subject, reason: str) -> Doc:
        """Approve exactly these changes; PlanChanged when the digest is not the one that stands now."""

    def approve_bound(self, id: str, verb: str, count: int, until: float, subject: Subject, reason: str) -> Doc:
        """Approve up to `count` changes of `verb` until then (seconds since the epoch)."""

    def refuse(self, id: str, subject: Subject, reason: str) -> Doc:
        """Refuse it."""


class Ledger(Protocol):
    """Facts by the million. Called on a thread."""

    def query(self, body: Doc, namespaces: frozenset[str] | None) -> Doc:
        """`{"columns", "rows"}` of a question; only facts of these namespaces when they are given."""


Action = Callable[[Subject, Key, Doc], Doc]
"""(subject, key, body) to an answer. Called on a thread, after access was judged and "asked" was audited. The subject
may have lost its right meanwhile: an action that writes asks `Access.require_in` in its own transaction."""
SourcePlan = Callable[[Subject, Doc], Doc]
"""(subject, {"source"?, "files", "against"?}) to a Plan that is not stored."""
Proposer = Callable[[Subject, list[tuple[Doc, Doc]], bool], list[Doc]]
"""(subject, (resource as it is, as it should be), dry run) to one proposal per Source. Judges both once more before it
pushes anything, and audits."""
Hook = Callable[[str, str, Mapping[str, str], bytes], None]
"""(gitlab | github | gitea, Source, headers in lower case, body). Verifies the secret: Unauthenticated when wrong."""
LogReader = Callable[[Key, int, int], bytes]
"""(key, index of the instance, offset in bytes) to the next piece of the log; empty at its end. At most about 1 MiB."""
InventoryReader = Callable[[Subject, str, str, int, str], Doc]
"""(subject, Site, type or nothing, entries of a page, where to go on) to what is there, as far as the subject may know.
That it may read the Site was judged before."""
StatusReader = Callable[[Subject], Doc]
"""What is wrong, as far as this subject may know."""


@dataclass
class Backend:
    """Everything the API calls."""

    store: Store
    kinds: Kinds
    access: Access
    accounts: Accounts
    ledger: Ledger | None = None
    actions: Mapping[tuple[str, str], Action] = field(default_factory=dict)
    """(kind, verb) to what does it."""
    plans: PlanBoard | None = None
    limits: tuple[Limit, ...] = ()
    """What bounds the deletions one person asks for by hand."""
    source_plan: SourcePlan | None = None
    propose: Proposer | None = None
    hooks: Hook | None = None
    log_reader: LogReader | None = None
    inventory: InventoryReader | None = None
    status: StatusReader | None = None
    ready: Callable[[], str] = lambda: ""
    """Why it is not ready to serve; empty when it is. Must return at once."""
