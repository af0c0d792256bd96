"""Keeps what is known of a cloud: who is asked when, on which thread, and what of it is fresh enough to be told.

Each service has a thread of its own, so that a slow one makes its own types partial and nothing else. A type is told
only while it is fresh: what could not be listed for a while is left out, and the look is partial.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from groundcontrol.drivers.openstack import facts
from groundcontrol.drivers.openstack.listing import Lister, OverBudget, Shelf
from groundcontrol.drivers.openstack.session import Connection, Scope
from groundcontrol.drivers.openstack.table import GROUPS, TABLE
from groundcontrol.drivers.openstack.things import Around, Json
from groundcontrol.kernel.errors import GroundError, Unavailable
from groundcontrol.ports.cloud import FIELDS, CloudFacts, CloudObserved, Endpoint, Host, QuotaUse, Thing

log = logging.getLogger(__name__)
GRACE = 15.0
"""Seconds for which what was due is still told."""
BUSY = 900.0
"""Seconds for which a thing that is worked on is looked at more often; what takes longer may be stuck."""
SERVICES_EVERY = 10.0
"""Seconds between looks at whether hosts are up."""
FACTS_EVERY = 60.0
QUOTAS_AT_ONCE = 20
"""Projects whose quotas are read in one go; the others have their turn later."""


class Part:
    """Something that is asked on a thread of its own."""

    def __init__(self, name: str, work: Callable[[], None], due: Callable[[], bool]) -> None:
        self.name, self.work, self.due = name, work, due
        self.running = False


class Known:
    """The facts, each with its date and why it could not be had."""

    def __init__(self) -> None:
        self.regions: tuple[str, ...] = ()
        self.zones: tuple[str, ...] = ()
        self.endpoints: tuple[Endpoint, ...] = ()
        self.hosts: tuple[Host, ...] = ()
        self.hypervisors: list[Any] = []
        self.services: list[Any] = []
        self.aggregates: list[Any] = []
        self.quotas: dict[str, Mapping[str, Mapping[str, Any]]] = {}
        self.quota_at: dict[str, float] = {}
        self.looked: dict[str, float] = {}
        self.at: dict[str, float] = {}
        """The same of the monotonic clock."""
        self.problems: dict[str, GroundError] = {}

    def did(self, what: str, began: float, at: float) -> None:
        self.looked[what], self.at[what] = at, began
        self.problems.pop(what, None)

    def age(self, what: str) -> float:
        return time.monotonic() - self.at[what] if what in self.at else float("inf")


class Looking:
    """What is known of one region. `look` and `wait` are as in the port."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.options = connection, connection.options
        self.lister = Lister(connection, self.scopes)
        self.shelves = {type: Shelf(type, row) for type, row in TABLE.items()}
        self.known = Known()
        self._projects: tuple[Json, ...] = ()
        self._parts = [
            *(Part(name, self._shelves_of(types), self._any_due(types)) for name, types in GROUPS.items()),
            Part("hosts", self._hosts, lambda: self._fact_due("services", SERVICES_EVERY)),
            Part("quotas", self._quotas, lambda: self._fact_due("quotas", FACTS_EVERY)),
            Part("endpoints", self._endpoints, lambda: self._fact_due("endpoints", FACTS_EVERY)),
        ]
        self._news = threading.Condition()
        self._tried: dict[str, float] = {}
        self._built: tuple[Any, CloudObserved | None] = (None, None)
        self._sequence = 0
        self._hurry = False
        self._asked = 0.0
        """When the last asking began, of the monotonic clock: what was changed before has to be in its answer."""
        self._closed = False

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()

    # ── the port ────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> CloudObserved:
        """Ask what is due, wait for it as long as the options say, and tell what is fresh."""
        self.connection.sign_in(self.connection.own)
        self.lister.learn()
        self._refresh(time.monotonic() + self.options.look)
        observed = self._observed()
        if not any(shelf.looked for shelf in self.shelves.values()):
            raise next((s.error for s in self.shelves.values() if s.error), None) or Unavailable(
                f"{self.connection.name}: no service has answered yet"
            )
        return observed

    def wait(self, since: int, timeout: float) -> int:
        """Ask what is due until something differs; asks once at least, so that "nothing" is true when it is said."""
        end = time.monotonic() + timeout
        pause = min(timeout, self.options.poll)
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._hurry, pause)
                if self._closed:
                    return since
                self._hurry = False
            self._refresh(min(end + self.options.look, time.monotonic() + self.options.look))
            self._observed()
            if self._sequence != since:
                return self._sequence
            pause = min(self.options.poll, end - time.monotonic())
            if pause <= 0:
                self._answering()
                return since

    def touch(self, type: str, id: str = "") -> None:
        """Something of this type was changed by us, or may have been; empty: it is not known which."""
        self.shelves[type].touch(id)
        with self._news:
            self._hurry = True
            self._news.notify_all()

    def hurry(self, what: str) -> None:
        """A fact was changed by us: ask for it at once."""
        self._tried.pop({"quota": "quotas"}.get(what, what), None)
        self.known.quota_at.clear()
        with self._news:
            self._hurry = True
            self._news.notify_all()

    def _answering(self) -> None:
        """Raise when no service answers any more: then nobody knows whether something changed."""
        if all(shelf.error for shelf in self.shelves.values()):
            raise next(s.error for s in self.shelves.values() if s.error)

    # ── projects ────────────────────────────────────────────────────────────────────────────────────────────────

    def scopes(self) -> Sequence[Scope]:
        """Where to list what belongs to projects, for an account that may not see all at once."""
        own = self.connection.own
        if not self.connection.rescopes or self.lister.everywhere:
            return (own,)
        if not self._fact_fresh("projects", FACTS_EVERY) or not self._projects:
            began, at = time.monotonic(), time.time()
            answer = self.connection.call("identity", "GET", "/auth/projects", what="list our projects")
            listed = answer.body.get("projects") or ()
            self._projects = tuple(p for p in listed if p.get("enabled", True) and self._wanted(p))
            self.known.did("projects", began, at)
        own_id = self.connection.sign_in(own).project_id
        others = sorted(str(p["id"]) for p in self._projects if p["id"] != own_id)
        return (own, *(self.connection.scope(id) for id in others))

    def _wanted(self, project: Json) -> bool:
        chosen = self.options.projects
        return not chosen or bool({str(project.get("id")), str(project.get("name"))} & chosen)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _refresh(self, until: float) -> None:
        """Start every part that is due, and wait for those that run until the moment given."""
        with self._news:
            self._asked = time.monotonic()
            for part in self._parts:
                if not part.running and part.due():
                    part.running = True
                    threading.Thread(
                        target=self._run, args=(part,), name=f"{self.connection.name} {part.name}", daemon=True
                    ).start()
            waited = [p for p in self._parts if p.running]
            self._news.wait_for(
                lambda: self._closed or not any(p.running for p in waited), max(0.0, until - time.monotonic())
            )

    def _run(self, part: Part) -> None:
        try:
            part.work()
        except Exception:
            log.exception("a part of a look failed", extra={"instance": self.connection.name, "part": part.name})
        finally:
            with self._news:
                part.running = False
                self._news.notify_all()

    def _any_due(self, types: Iterable[str]) -> Callable[[], bool]:
        return lambda: any(self._due(self.shelves[type]) for type in types)

    def _shelves_of(self, types: Iterable[str]) -> Callable[[], None]:
        def work() -> None:
            for type in types:
                if not self._closed and self._due(shelf := self.shelves[type]):
                    self._refresh_shelf(shelf)

        return work

    def _refresh_shelf(self, shelf: Shelf) -> None:
        own = self.connection.own
        if not shelf.looked and shelf.row.service not in self._there(own):
            shelf.tried = time.monotonic()
            return
        before = shelf.version
        self.lister.refresh(shelf, self._whole(shelf))
        if shelf.version != before:
            self._note_busy(shelf)
            if shelf.type == "server":  # their ports tell their networks and addresses
                self.shelves["port"].touch("")

    def _there(self, scope: Scope) -> Mapping[str, str]:
        try:
            return self.connection.endpoints(self.connection.sign_in(scope)) | {"identity": self.connection.address}
        except GroundError:
            return dict.fromkeys(GROUPS, "")

    def _due(self, shelf: Shelf) -> bool:
        since = time.monotonic() - shelf.tried
        if not shelf.tried or (shelf.touched and not shelf.error):
            return True
        if shelf.error or shelf.row.tells_deleted or self._working(shelf):
            return since >= self.options.poll
        return since >= self.options.relist

    def _whole(self, shelf: Shelf) -> bool:
        age = time.monotonic() - shelf.whole
        if shelf.row.tells_deleted:
            # Changes of what stands in other tables of Nova's do not show in "changed since".
            return age >= 4 * self.options.relist
        return age >= self.options.relist or not self._working(shelf) or shelf.leaving

    def _working(self, shelf: Shelf) -> bool:
        now = time.monotonic()
        return any(now - at < BUSY for at in shelf.busy_since.values())

    def _note_busy(self, shelf: Shelf) -> None:
        translate = shelf.row.translate
        if translate is None:
            return
        nothing, now = Around(), time.monotonic()
        states = {id: translate(doc, nothing).state for id, doc in shelf.entries.items()}
        busy = {id for id, state in states.items() if state in ("busy", "leaving")}
        shelf.leaving = "leaving" in states.values()
        shelf.busy_since = {id: shelf.busy_since.get(id, now) for id in busy}

    # ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _fact_due(self, what: str, every: float) -> bool:
        return time.monotonic() - self._tried.get(what, float("-inf")) >= every

    def _fact_fresh(self, what: str, every: float) -> bool:
        return self.known.age(what) < every

    def _ask(self, what: str, every: float, work: Callable[[], None]) -> None:
        """Do this when it is due; what fails is kept as a problem."""
        if not self._fact_due(what, every):
            return
        began, at = time.monotonic(), time.time()
        self._tried[what] = began
        try:
            work()
        except OverBudget:
            return
        except GroundError as error:
            self.known.problems[what] = error
        else:
            self.known.did(what, began, at)

    def _get(self, service: str, path: str, what: str, version: str = "") -> Any:
        if not self.lister.budget(service).take():
            raise OverBudget("the budget of calls is used up")
        return self.connection.call(service, "GET", path, what=what, version=version).body

    def _hosts(self) -> None:
        def services() -> None:
            body = self._get("compute", "/os-services?binary=nova-compute", "list services", facts.HYPERVISORS)
            self.known.services = body["services"]

        def hypervisors() -> None:
            listed, path = [], "/os-hypervisors/detail?limit=1000"
            while path:
                body = self._get("compute", path, "list hypervisors", facts.HYPERVISORS)
                listed += body["hypervisors"]
                links = [link for link in body.get("hypervisors_links") or () if link.get("rel") == "next"]
                path = f"/os-hypervisors/detail?{links[0]['href'].partition('?')[2]}" if links else ""
            self.known.aggregates = self._get("compute", "/os-aggregates", "list aggregates")["aggregates"]
            self.known.hypervisors = listed

        def zones() -> None:
            self.known.zones = facts.zones(self._get("compute", "/os-availability-zone", "list availability zones"))

        self._ask("services", SERVICES_EVERY, services)
        self._ask("hosts", self.options.relist, hypervisors)
        self._ask("zones", FACTS_EVERY, zones)
        self.known.hosts = facts.hosts(self.known.hypervisors, self.known.services, self.known.aggregates)

    def _endpoints(self) -> None:
        def endpoints() -> None:
            access = self.connection.sign_in(self.connection.own)
            region = self.connection.region(access)
            there = {"identity": self.connection.address} | self.connection.endpoints(access)
            found = [facts.endpoint(self.connection, s, url, region) for s, url in sorted(there.items())]
            self.known.endpoints = tuple(found)

        def regions() -> None:
            listed = self._get("identity", "/regions", "list regions")["regions"]
            self.known.regions = tuple(sorted(str(r["id"]) for r in listed))

        self._ask("endpoints", FACTS_EVERY, endpoints)
        self._ask("regions", 10 * FACTS_EVERY, regions)

    def _quotas(self) -> None:
        def quotas() -> None:
            own = self.connection.sign_in(self.connection.own).project_id or ""
            listed = self.shelves["project"].entries.values() if self.lister.everywhere else ()
            ids = {own} | {str(p["id"]) for p in listed if self._wanted(p) and not p.get("is_domain")}
            for gone in self.known.quotas.keys() - ids:
                del self.known.quotas[gone]
            oldest = sorted(ids, key=lambda id: (self.known.quota_at.get(id, 0.0), id != own))
            for id in oldest[:QUOTAS_AT_ONCE]:
                at = time.time()
                try:
                    self.known.quotas[id] = facts.quota(
                        self.connection, id, lambda service: self.lister.budget(service).take()
                    )
                except GroundError:
                    if id == own:
                        raise
                self.known.quota_at[id] = at

        self._ask("quotas", FACTS_EVERY, quotas)

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _fresh(self, shelf: Shelf) -> bool:
        every = self.options.poll if shelf.row.tells_deleted else self.options.relist
        changed = any(when <= self._asked for when in list(shelf.touched.values()))
        return shelf.age() < every + GRACE and not changed

    def _missing(self, shelf: Shelf) -> str:
        """Why a type is not told; empty when it is."""
        if self._fresh(shelf) or (shelf.tried and not shelf.looked and not shelf.error):
            return ""
        why = shelf.error.message if shelf.error else "it has not been listed in time"
        return f"{shelf.row.many.replace('_', ' ')}: {why}"

    def around(self) -> Around:
        """What lists say of one another."""
        ports, volumes = self.shelves["port"], self.shelves["volume"]
        by_device: dict[str, list[Json]] = {}
        for port in ports.entries.values():
            by_device.setdefault(str(port.get("device_id") or ""), []).append(port)
        held = {id: tuple(found) for id, found in by_device.items()}
        fresh = bool(ports.looked) and self._fresh(ports)
        return Around(ports=held if fresh else None, port_by_id=dict(ports.entries), volumes=dict(volumes.entries))

    def _observed(self) -> CloudObserved:
        missing = {type: why for type, shelf in self.shelves.items() if (why := self._missing(shelf))}
        unread = {what: error.message for what, error in self.known.problems.items()}
        problems = (*missing.values(), *(f"{what}: {why}" for what, why in sorted(unread.items())))
        versions = tuple((type, shelf.version, type in missing) for type, shelf in self.shelves.items())
        quotas: tuple[QuotaUse, ...] = tuple(
            use for id, raw in sorted(self.known.quotas.items()) for use in facts.uses(id, raw)
        )
        told = (versions, problems, quotas, self.known.hosts, self.known.zones, self._judged())
        with self._news:
            if self._built[0] != told or self._built[1] is None:
                things = tuple(self._things(missing))
                self._sequence += 1
            else:
                things = self._built[1].things
            observed = CloudObserved(
                things=things,
                complete=not missing,
                sequence=self._sequence,
                facts=self._facts(quotas),
                problems=problems,
            )
            self._built = (told, observed)
            return observed

    def _judged(self) -> tuple[Any, ...]:
        return tuple((e.service, e.url, e.version, e.problem, e.expires, e.trusted) for e in self.known.endpoints)

    def _things(self, missing: Mapping[str, str]) -> Iterable[Thing]:
        around = self.around()
        for type, shelf in self.shelves.items():
            translate = shelf.row.translate
            if type in missing or translate is None:
                continue
            for doc in list(shelf.entries.values()):
                thing = translate(doc, around)
                if self._told(thing):
                    yield thing
        for id, raw in list(self.known.quotas.items()):
            yield facts.quota_thing(id, raw)

    def _told(self, thing: Thing) -> bool:
        """Whether it is of a project the Site is to look at, or for all."""
        chosen = self.options.projects
        if not chosen or not thing.project:
            return not chosen or thing.type != "project" or bool({thing.id, thing.name} & chosen)
        if thing.fields.get("shared") or thing.fields.get("external") or thing.fields.get("visibility") == "public":
            return True
        name = str(self.shelves["project"].entries.get(thing.project, {}).get("name", ""))
        return bool({thing.project, name} & chosen)

    def _facts(self, quotas: tuple[QuotaUse, ...]) -> CloudFacts:
        access, known = self.connection.own.told, self.known
        looked = {type: shelf.looked for type, shelf in self.shelves.items() if shelf.looked and type in FIELDS}
        looked |= {what: at for what, at in known.looked.items() if what in ("hosts", "quotas", "endpoints")}
        looked |= {"quota": known.looked["quotas"]} if "quotas" in known.looked else {}
        cores, memory = sum(h.cores for h in known.hosts), sum(h.memory_mb for h in known.hosts)
        project = access.project_id or ""
        if not known.hosts:
            own = {use.resource: use.limit for use in quotas if use.project == project}
            cores, memory = max(0, own.get("cores", 0)), max(0, own.get("ram_mb", 0))
        return CloudFacts(
            regions=known.regions,
            zones=known.zones,
            endpoints=known.endpoints,
            hosts=known.hosts,
            quotas=quotas,
            roles=tuple(sorted(access.role_names or ())),
            project=project,
            looked=looked,
            calls=self.connection.calls,
            cores=float(cores),
            memory_mb=memory,
        )


assert set(FIELDS) <= set(TABLE) | {"quota"}
