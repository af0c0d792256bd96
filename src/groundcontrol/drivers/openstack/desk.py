"""Calls about single things: in which project, with which words, and what has to be known anew afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from groundcontrol.drivers.openstack import facts, marks
from groundcontrol.drivers.openstack.listing import Doc, Lister
from groundcontrol.drivers.openstack.looking import Looking
from groundcontrol.drivers.openstack.session import Answer, Connection, Scope
from groundcontrol.drivers.openstack.table import GROUPS, TABLE, Row
from groundcontrol.drivers.openstack.things import Around
from groundcontrol.kernel.errors import NotFound, Refused
from groundcontrol.kernel.world import Item
from groundcontrol.ports.cloud import Thing


class Desk:
    """What making, changing, acting and removing share."""

    def __init__(self, connection: Connection, looking: Looking) -> None:
        self.connection, self.looking = connection, looking
        self.name = connection.name

    @property
    def lister(self) -> Lister:
        return self.looking.lister

    def call(
        self,
        service: str,
        method: str,
        path: str,
        what: str,
        body: Any = None,
        *,
        scope: Scope | None = None,
        version: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call; errors say what was tried."""
        return self.connection.call(
            service, method, path, what=what, body=body, scope=scope, version=version, headers=headers
        )

    @contextmanager
    def touching(self, type: str, id: str = "") -> Iterator[None]:
        """What is known of this thing is out of date from now on, whatever becomes of the call."""
        try:
            yield
        finally:
            self.touch(type, id)

    def touch(self, type: str, id: str) -> None:
        """Say that a thing was changed; without an id it is not known which."""
        if type not in self.looking.shelves:
            self.looking.hurry(type)
            return
        if type in ("server", "router", "floating_ip"):
            self.looking.touch("port")
        self.looking.touch(type, id)

    # ── projects ────────────────────────────────────────────────────────────────────────────────────────────────

    def scope_of(self, thing: Thing) -> Scope:
        """Where to speak of a thing: at home when we administer the cloud, else in its project."""
        self.lister.learn()
        return self.connection.own if self.lister.everywhere else self.scope_in(thing.project)

    def scope_in(self, project: str) -> Scope:
        """Being in a project. In one that Ground Control made our account gets its role when it has none there."""
        scope = self.connection.scope(project)
        try:
            self.connection.sign_in(scope)
        except Refused as error:
            if error.cause != "NotAuthorised" or not self._enter(project):
                raise
            self.connection.sign_in(scope)
        return scope

    def _enter(self, project: str) -> bool:
        doc = self.lister.one(TABLE["project"], project)
        if marks.from_tags(doc.get("tags") or ()) is None:
            return False
        wanted = self.connection.options.role
        query = {"name": wanted}
        found = self.connection.call("identity", "GET", "/roles", query=query, what=f"look for the role {wanted}")
        roles = found.body.get("roles") or ()
        if not roles:
            raise Refused(f"{self.name}: options.projectRole: there is no role {wanted!r}", cause="NotAuthorised")
        user = self.connection.own.told.user_id
        path = f"/projects/{project}/users/{user}/roles/{roles[0]['id']}"
        self.call("identity", "PUT", path, f"give our account the role {wanted} in project {project}")
        return True

    # ── single things ───────────────────────────────────────────────────────────────────────────────────────────

    def get(self, type: str, id: str) -> Thing:
        """One thing, looked at directly."""
        return self.raw(type, id)[1]

    def raw(self, type: str, id: str) -> tuple[Doc, Thing]:
        """The same, with what the cloud says of it."""
        if not id or "/" in id or id in (".", ".."):
            raise NotFound(f"{self.name}: there is no {type} {id!r}")
        self.lister.learn()
        if type == "quota":
            self.lister.one(TABLE["project"], id)  # some services answer for any project, there or not
            return {}, facts.quota_thing(id, facts.quota(self.connection, id))
        row = TABLE.get(type)
        if row is None or row.translate is None:
            raise NotFound(f"{self.name}: there is no type {type!r} of thing")
        doc = self.lister.one(row, id)
        return doc, row.translate(doc, self._around(type, id, doc))

    def _around(self, type: str, id: str, doc: Mapping[str, Any]) -> Around:
        """What a thing's own answer does not say, asked anew."""
        if type not in ("server", "router"):
            return Around()
        volumes: dict[str, Any] = {}
        if type == "server" and not doc.get("image"):
            for held in doc.get("os-extended-volumes:volumes_attached") or ():
                volumes[held["id"]] = self.lister.one(TABLE["volume"], held["id"])
        return Around(ports={id: tuple(self.ports(id))}, volumes=volumes)

    def ports(self, device: str) -> list[Doc]:
        """Ports of a server or router, oldest first."""
        found = self.lister.found(TABLE["port"], {"device_id": device})
        return sorted(found, key=lambda port: (str(port.get("created_at")), str(port.get("id"))))

    # ── by the key of a change ──────────────────────────────────────────────────────────────────────────────────

    def find(self, change_key: str) -> tuple[Item, ...]:
        """(type, id) of what carries this key. Raises when one service cannot be asked: then nobody knows."""
        self.lister.learn()
        there = self.connection.endpoints(self.connection.sign_in(self.connection.own)) | {"identity": ""}
        self.looking.scopes()  # once, and not by each of the threads

        def of_group(types: tuple[str, ...]) -> list[Item]:
            rows = [(type, TABLE[type]) for type in types if TABLE[type].service in there]
            return [(type, id) for type, row in rows for id in self._carrying(type, row, change_key)]

        with ThreadPoolExecutor(len(GROUPS)) as pool:
            found = [item for items in pool.map(of_group, GROUPS.values()) for item in items]
        return tuple(sorted(found))

    def _carrying(self, type: str, row: Row, key: str) -> set[str]:
        if row.translate is None or type == "keypair" or (type == "project" and not self.lister.everywhere):
            return set()
        name, form = row.mark_query
        # Nova finds no server by its tags before it is in a cell.
        queries = [{name: form.format(key)}] if name else [{}]
        queries += [{"status": "BUILD"}] if type == "server" else []
        nothing, found = Around(), set()
        for query in queries:
            for doc in self.lister.found(row, query):
                thing = row.translate(doc, nothing)
                if thing.mark and thing.mark.change == key:
                    found.add(thing.id)
        return found
