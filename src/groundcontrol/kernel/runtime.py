"""One running installation: the store, the world, the loop and what serves them, put together from values.

`assembly.py` says which capabilities and drivers there are; this says in which order they are opened and closed.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.access import KINDS as ACCESS_KINDS
from groundcontrol.kernel.access import Access
from groundcontrol.kernel.accounts import Accounts, ensure_admin
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.guard import PlanBoard
from groundcontrol.kernel.incarnation import droppable, observing, plan_of
from groundcontrol.kernel.ledger import Ledger
from groundcontrol.kernel.ledger_shipper import Shipper
from groundcontrol.kernel.ledger_sql import Dataset
from groundcontrol.kernel.loop import Controller, Pace
from groundcontrol.kernel.reconcile import Reconciler
from groundcontrol.kernel.resource import API_VERSION, Doc, Key, Kinds, did_you_mean
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.secrets import Resolver, Sealed
from groundcontrol.kernel.settings import Settings
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.turn import Turns
from groundcontrol.kernel.tx import Tx
from groundcontrol.kernel.vault import Vault
from groundcontrol.kernel.world import Watching, World

log = logging.getLogger(__name__)

PLATFORM = "platform"
"""Namespace of what belongs to the platform itself: incidents about sites, secrets of Sources and Sites."""
KEEP_FACTS = 50_000
"""Facts kept in the store after they were shipped, for the timeline and the audit pages."""
WITNESS = "witness.json"
"""Beside the database: by it a database that was put back from a copy is known."""
Connect = Callable[[str, str, str, dict[str, Any], float], Any]
"""(driver instance, endpoint, secret, options, longest call in seconds) to a `DriverInstance`."""

_WHO = {"kind": "text", "namespace": "text", "name": "text", "subject": "text"}
DATASETS = (
    Dataset("audit", {**_WHO, "verb": "text", "outcome": "text"}),
    Dataset("events", {**_WHO, "uid": "text", "type": "text", "reason": "text", "message": "text"}),
    Dataset("journal", {**_WHO, "step": "text", "state": "text"}),
)


def kinds_of(capabilities: Sequence[Capability]) -> Kinds:
    """Every kind there is."""
    return Kinds([*ACCESS_KINDS, *(kind for c in capabilities for kind in c.kinds)])


class Runtime:
    """Everything that runs. `open` starts it, `close` stops it; nothing is left half open when `open` fails."""

    def __init__(
        self,
        settings: Settings,
        capabilities: Sequence[Capability],
        drivers: Mapping[str, Connect],
        repositories: Callable[[Settings], Any],
        secret_store: Callable[[Settings], Any] = lambda settings: None,
        web: Callable[[Settings], Any] = lambda settings: None,
    ) -> None:
        self.settings, self.capabilities, self.drivers = settings, tuple(capabilities), drivers
        self.kinds = kinds_of(capabilities)
        self.limits = settings.plan_limits
        self.max_file_bytes = settings.sources.max_file_bytes
        self.data = Path(settings.data)
        self.repositories = repositories(settings)
        self.secret_store = secret_store(settings)
        """Keeps secrets outside (`ports/secretstore.py`); None when the settings name none."""
        self.web = web(settings)
        """Asks addresses (`ports/web.py`); None when nobody may."""
        self.ledger: Ledger | None = None
        self._shipper: Shipper | None = None
        self._closing: list[Callable[[], None]] = []

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> Runtime:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def _open(self) -> None:
        # Tenants of a local site pass through it to their own folders; what lies in it is closed to them.
        self.data.mkdir(parents=True, exist_ok=True, mode=0o711)
        self.data.chmod(0o711)
        key = self.settings.secrets.key
        sealed = Sealed(Resolver(None).resolve(key) if key else self.data / "seal.key")
        # The reconcilers name the kinds that must be taken down, and need the store: so the names come first.
        self.store = Store(
            f"sqlite:///{self.data / 'ground.db'}",
            self.kinds,
            lock=self.data / "lock",
            witness=self.data / WITNESS,
            keep_events=self.settings.events.keep,
        )
        self.store.open()
        self._closing.append(self.store.close)
        outside = self.secret_store
        if outside is not None:
            self._closing.append(outside.close)
        self.vault = Vault(
            self.store, sealed, PLATFORM, self.settings.secrets.platform, outside.read if outside else None
        )
        self.access, self.accounts = Access(self.store), Accounts(self.store)
        observe, loop = self.settings.observe, self.settings.loop
        watching = Watching(
            wait=observe.wait_seconds, stale_after=observe.stale_after_seconds, vanished_share=observe.vanished_share
        )
        self.world = World(watching, self._world_changed, self._expected)
        self._closing.append(self.world.close)
        self.reconcilers: tuple[Reconciler[Any], ...] = tuple(
            r for capability in self.capabilities for r in capability.reconcilers(self)
        )
        self.store.finalizers = frozenset(r.kind.__name__ for r in self.reconcilers if r.tears_down)
        self.turns = Turns(self.store, self.world, self.limits)
        pace = Pace(
            workers=loop.workers,
            in_flight=loop.in_flight,
            resync=loop.resync_seconds,
            backoff=loop.backoff_first_seconds,
            backoff_max=loop.backoff_max_seconds,
            breaker_failures=loop.breaker_failures,
            breaker_reset=loop.breaker_reset_seconds,
        )
        self.controller = Controller(
            self.store, self.world, self.turns, self.reconcilers, pace, instance_kinds={"site": "Site"}
        )
        self.plans = PlanBoard(self.store, self.controller.wake_uids, self._permit_answer)
        self._first_start()
        self._start_ledger()
        self._housekeeping = Housekeeping(self)
        self._closing.append(self._housekeeping.stop)
        self._housekeeping.start()
        self.controller.start()
        self._closing.append(self.controller.stop)

    def close(self) -> None:
        """Stop in the opposite order; what runs at the sites goes on."""
        while self._closing:
            stop = self._closing.pop()
            try:
                stop()
            except Exception:
                log.exception("could not stop in order")

    def _first_start(self) -> None:
        """The namespace of the platform and the first account, when they are not there."""
        self.store.write(self._say_observing)
        if self.store.get(Key("Namespace", "", PLATFORM)) is None:
            self.store.write(lambda tx: tx.create(self._doc("Namespace", PLATFORM, {"group": PLATFORM})))
        admin = self.settings.accounts.admin
        if admin.password and self.store.get(Key("Account", "", admin.user)) is None:
            ensure_admin(self.store, admin.user, Resolver(None).resolve(admin.password).reveal())

    @staticmethod
    def _say_observing(tx: Tx) -> None:
        if found := observing(tx.conn):
            tx.audit("kernel", "observe", Key("Plan", "", plan_of(tx.conn)), reason=found.why)

    def _doc(self, kind: str, name: str, spec: Doc) -> Doc:
        return self.kinds.parse({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})

    def _start_ledger(self) -> None:
        settings = self.settings.ledger
        if not settings.enabled:
            return
        ledger = Ledger(self.settings.ledger_path, DATASETS, memory_mb=settings.memory_mb)
        # It starts beside everything else: nothing waits for it.
        ledger.start(wait=0.0)
        # Not the incarnation: what was shipped before a restore is not shipped again, what is new has new numbers.
        shipper = Shipper(
            ledger,
            self._pull,
            self._shipped,
            source=self.store.installation,
            newest=lambda: self.store.fact_sequence,
        )
        self._closing += [ledger.stop, shipper.stop]
        shipper.start()
        self.store.on_facts(shipper.wake)
        self.ledger, self._shipper = ledger, shipper

    def _pull(self, after: int, limit: int) -> list[dict[str, Any]]:
        facts = tables.facts
        with self.store.reading() as conn:
            rows = conn.execute(sa.select(facts).where(facts.c.seq > after).order_by(facts.c.seq).limit(limit)).all()
        return [
            {
                "seq": r.seq,
                "dataset": r.dataset,
                "time": r.time,
                "kind": r.kind,
                "namespace": r.namespace,
                "name": r.name,
                "subject": r.subject,
                **msgspec.json.decode(r.doc),
            }
            for r in rows
        ]

    def _shipped(self, seq: int) -> None:
        """What is in the ledger, and old, leaves the store."""
        self.store.write(lambda tx: _drop_facts(tx, droppable(seq, KEEP_FACTS)))

    # ── what capabilities and interfaces use ────────────────────────────────────────────────────────────────────

    def reveal(self, namespace: str, reference: str) -> str:
        """The value of a secret reference in a resource of that namespace."""
        return self.vault.reveal(namespace, reference)

    def connect(self, site: Any) -> Any:
        """The driver instance of a Site."""
        connect = self.drivers.get(site.spec.driver)
        name = site.metadata.name
        if connect is None:
            raise Invalid(f"no driver {site.spec.driver!r}{did_you_mean(site.spec.driver, self.drivers)}")
        secret = self.reveal(PLATFORM, site.spec.credentials) if site.spec.credentials else ""
        options: dict[str, Any] = dict(site.spec.options)
        endpoint = site.spec.endpoint
        if endpoint == "local:":
            root = self.data / "sites"
            root.mkdir(exist_ok=True)
            root.chmod(0o711)
            options["root"] = str(root / name)
        return connect(name, endpoint, secret, options, self.settings.loop.call_seconds)

    def reconciler(self, name: str) -> Any:
        """A reconciler by name."""
        return next(r for r in self.reconcilers if r.name == name)

    def backlog(self) -> Any:
        """What is not in the ledger yet; None without a ledger."""
        return self._shipper.backlog() if self._shipper else None

    def digest(self) -> str:
        """A checksum of everything wanted, for comparing two installations."""
        parts = [e.raw for kind in self.kinds for e in self.store.entries(kind.__name__)]
        return hashlib.sha256(b"\n".join(parts)).hexdigest()

    def _permit_answer(self, tx: Tx, subject: Subject, namespace: str) -> None:
        self.access.require_in(tx, subject, "approve", "Plan", namespace=namespace)

    def _world_changed(self, instance: str, things: Any) -> None:
        if hasattr(self, "controller"):
            self.controller.world_changed(instance, things)

    def _expected(self, instance: str) -> Any:
        return self.controller.expected_things(instance)


HOUSEKEEPING = 3600.0
"""Seconds between two rounds of dropping what is old."""


class Housekeeping:
    """Drops what is old, now and then: expired answers, holds and tokens, facts nobody ships, facts of the ledger."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        # Not at once: the ledger is still starting, and there is more urgent work.
        wait = 60.0
        while not self._stopping.wait(wait):
            wait = HOUSEKEEPING
            try:
                self.round()
            except Exception:
                log.exception("housekeeping failed; it is tried again in an hour")

    def round(self) -> None:
        """One round."""
        runtime = self._runtime
        runtime.store.write(self._sweep)
        if runtime.ledger is not None:
            settings = runtime.settings.ledger
            runtime.ledger.retain({d.name: days for d in DATASETS if (days := settings.days(d.name))})

    def _sweep(self, tx: Tx) -> None:
        """The newest facts are always kept; the older ones wait for the ledger only when there is one."""
        self._runtime.vault.sweep(tx)
        if self._runtime.ledger is None:
            _drop_facts(tx, droppable(tx.fact_sequence, KEEP_FACTS))
        for table, column, grace in (
            (tables.approvals, tables.approvals.c.until, 30 * 86_400.0),
            (tables.holds, tables.holds.c.until, 0.0),
            (tables.tokens, tables.tokens.c.expires, 7 * 86_400.0),
            (tables.spent, tables.spent.c.at, 7 * 86_400.0),
        ):
            tx.conn.execute(sa.delete(table).where(column < tx.time - grace))


def _drop_facts(tx: Tx, seq: int) -> None:
    tx.conn.execute(sa.delete(tables.facts).where(tables.facts.c.seq <= seq))
