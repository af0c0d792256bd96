"""Finds what at the sites is nobody's, says what it costs, and deletes an orphan when a person approves that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from groundcontrol.capabilities.inventory.kinds import Site
from groundcontrol.capabilities.orphans.kinds import Orphan, OrphanSpec, OrphanStatus
from groundcontrol.capabilities.orphans.logic import found_at, key_in, record_name, sentence, size_of
from groundcontrol.kernel.claims import claims_of, owners_at
from groundcontrol.kernel.errors import Conflict
from groundcontrol.kernel.guard import Scope
from groundcontrol.kernel.incarnation import observing
from groundcontrol.kernel.plan import Change, Plan, Target
from groundcontrol.kernel.reconcile import Act, Look, Reconciler, Report, StoreWrite, Watch, conditions, store_change
from groundcontrol.kernel.resource import Doc, Key, now, seconds
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx, managed_paths
from groundcontrol.kernel.world import Item
from groundcontrol.ports.hosts import UNIT
from groundcontrol.ports.marks import Whose, whose

EVERY = 10.0
"""Seconds between two searches of one site."""
GRACE = 20.0
"""Seconds for which a thing of ours must be nobody's before it is called an orphan: at a start, and after a restore,
its resource may only be late."""
MOST = 500
"""Records per site; what is more is found when these are dealt with."""


def _awaited(store: Store, conn: sa.Connection, driver: str, mark: Whose, type_: str) -> bool:
    """Whether a resource may still take this over, or a call for it is under way: it lives, and has no such thing."""
    named = key_in(mark.owner_key)
    entries = [store.by_uid(mark.owner), store.entry(named) if named else None]
    for entry in entries:
        if entry is not None:
            return not any(t.driver == driver and t.type == type_ for t in claims_of(conn, entry.uid))
    return False


class FinderReconciler(Reconciler[Site]):
    """Keeps one record for each thing of a site that is nobody's."""

    name = "orphan-finder"
    kind = Site
    reports = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.every, self.grace = EVERY, GRACE
        self._searched: dict[str, float] = {}
        self._since: dict[tuple[str, Item], float] = {}

    def shard(self, resource: Site) -> str:
        return f"site/{resource.metadata.name}"

    def plan(self, resource: Site, look: Look) -> Plan:
        site = resource.metadata.name
        driver = f"site/{site}"
        snapshot = look.snapshot(driver)
        if resource.deleting or not look.trusted(driver):
            return Plan()
        wait = self._searched.get(site, 0.0) + self.every - look.now
        if 0 < wait <= self.every:
            return Plan(again=wait)
        self._searched[site] = look.now
        known = {r.metadata.name: r for r in look.all(Orphan) if r.spec.site == site}
        # Of a partial listing too: what it does not name is kept in the snapshot as it was last seen.
        projects = {
            e.doc["status"].get("id", "") for e in look.entries("Project") if e.doc["spec"].get("site") == site
        } - {""}
        with look.reading() as conn:
            claimed = {item for item, uid in owners_at(conn, driver).items() if self._is_real(uid)}
            found = found_at(
                site,
                snapshot.items,
                look.installation,
                claimed,
                lambda mark, type_: _awaited(self._store, conn, driver, mark, type_),
                projects,
            )
        wanted = {record_name(site, s.type, s.id): s for s in self._lasting(site, found, look.now)[:MOST]}
        changes = [_made(name, spec) for name, spec in wanted.items() if name not in known]
        changes += [
            store_change("delete", r.key, StoreWrite(uid=r.metadata.uid), reason="it is not nobody's any more")
            for name, r in known.items()
            if not r.deleting and (name not in wanted or wanted[name].sort != r.spec.sort)
        ]
        return Plan(tuple(changes), again=self.every)

    def _is_real(self, uid: str) -> bool:
        """Whether a claim is of a resource that wants the thing: a record that sweeps it does not."""
        entry = self._store.by_uid(uid)
        return entry is not None and entry.key.kind != "Orphan"

    def _lasting(self, site: str, found: list[OrphanSpec], at: float) -> list[OrphanSpec]:
        """Those that have been nobody's for long enough."""
        items = {(site, (s.type, s.id)) for s in found}
        self._since = {k: v for k, v in self._since.items() if k[0] != site or k in items}
        return [
            s
            for s in found
            if s.sort == "stray" or at - self._since.setdefault((site, (s.type, s.id)), at) >= self.grace
        ]


def _made(name: str, spec: OrphanSpec) -> Change:
    doc = Orphan.model_validate({"kind": "Orphan", "metadata": {"name": name}, "spec": spec.model_dump()}).as_doc()
    return store_change(
        "create", Key("Orphan", "", name), StoreWrite(doc, managed_paths(doc)), reason="", event="Found"
    )


def _of_site(doc: Doc, store: Store) -> Iterable[Key]:
    if store.entry(Key("Site", "", doc["metadata"]["name"])) is not None:
        return []
    return [e.key for e in store.entries("Orphan") if e.doc["spec"]["site"] == doc["metadata"]["name"]]


class OrphanReconciler(Reconciler[Orphan]):
    """Tells what a thing costs, and holds its deletion until a person approves it."""

    name = "orphans"
    kind = Orphan
    tears_down = True
    watches = (Watch("Site", _of_site),)

    def __init__(self, store: Store) -> None:
        self._store = store

    def shard(self, resource: Orphan) -> str:
        return f"site/{resource.spec.site}"

    def keeps(self, resource: Orphan) -> bool:
        return True

    def plan(self, resource: Orphan, look: Look) -> Plan:
        if resource.deleting:
            return Plan()
        if look.get_any("Site", resource.spec.site) is None:
            write = StoreWrite(uid=resource.metadata.uid)
            return Plan((store_change("delete", resource.key, write, reason="its site is gone"),))
        if resource.spec.sort == "stray":
            return Plan()
        with look.reading() as conn:
            if observing(conn):
                # All that is planned now would be let go as one; this is not to be among it.
                return Plan(waiting="this installation only observes", again=5.0)
        seen = look.seen(_target(resource))
        if seen.truth != "present":
            return Plan(waiting=seen.message if seen.truth == "unknown" else "")
        if getattr(seen.item, "state", "") == "leaving":
            return Plan(waiting="it is being deleted", again=5.0)
        mark = whose(seen.item)
        return Plan(
            (
                Change(
                    _target(resource),
                    "delete",
                    {"thing": (resource.spec.id, None), "name": (resource.spec.name, None)},
                    destructive=True,
                    reason=f"made for {mark.owner_key if mark else 'nobody'}, which is gone",
                    event="Swept",
                    warning=True,
                    ask="orphans are deleted only when a person approves it",
                ),
            )
        )

    def authorise(self, tx: Tx, resource: Orphan, change: Change) -> None:
        """Not when somebody wants it by now."""
        if change.target.driver != f"site/{resource.spec.site}":
            return
        key = key_in(resource.spec.owner)
        entry = self._store.entry(key) if key else None
        if entry is not None and not any(t.type == resource.spec.type for t in claims_of(tx.conn, entry.uid)):
            raise Conflict(f"{key} is there again and may want it")

    def apply(self, resource: Orphan, change: Change, act: Act) -> str | None:
        port = act.instance.port
        if change.target.type == UNIT:
            port.delete(change.target.id, epoch=act.epoch)
        else:
            port.delete(change.target.type, change.target.id)
        return None

    def report(self, resource: Orphan, plan: Plan, look: Look) -> Report:
        status = OrphanStatus.model_validate(resource.status.model_dump())
        snapshot = look.snapshot(f"site/{resource.spec.site}")
        item: Any = snapshot.items.get((resource.spec.type, resource.spec.id))
        if item is not None:
            made = getattr(item, "created", 0.0) or getattr(item, "started", 0.0)
            since = made or seconds(resource.status.since) or look.now
            status.since = resource.status.since or now(since)
            size = size_of(item, snapshot.items)
            status.cores, status.memory_mb, status.disk_gb = size
            status.hours = int(max(0.0, look.now - seconds(status.since)) // 3600)
            status.core_hours, status.gib_hours = int(size.cores * status.hours), size.disk_gb * status.hours
            status.about = sentence(resource.spec, status.hours, status.core_hours)
        if resource.spec.sort == "stray":
            ready = ("True", "Stray", "somebody else made it; it is left alone")
        elif item is None:
            ready = ("Unknown", "Gone", "it is not listed any more")
        else:
            ready = ("True", "Orphan", "nobody wants it; it is left alone until its deletion is approved")
        status.conditions = conditions(Ready=ready)  # type: ignore[arg-type]
        return Report(status, again=3600.0)

    def scopes(self, resource: Orphan, change: Change, store: Store) -> list[Scope]:
        """All orphans of a site are one plan."""
        site = resource.spec.site
        return [Scope("orphans", site, 0), Scope("site", site, 0), Scope("all", "", 0)]


def _target(resource: Orphan) -> Target:
    return Target(f"site/{resource.spec.site}", resource.spec.type, resource.spec.id)
