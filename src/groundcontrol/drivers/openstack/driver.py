"""The `Cloud` port over OpenStack: one region, one account."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from groundcontrol.drivers.openstack import making, marks, options, probing
from groundcontrol.drivers.openstack.acting import Acts
from groundcontrol.drivers.openstack.changing import Changes
from groundcontrol.drivers.openstack.desk import Desk
from groundcontrol.drivers.openstack.listing import Doc
from groundcontrol.drivers.openstack.looking import Looking
from groundcontrol.drivers.openstack.session import Connection, Scope
from groundcontrol.drivers.openstack.table import TABLE
from groundcontrol.kernel.errors import GroundError, NotFound, OutcomeUnknown, Refused
from groundcontrol.kernel.world import Fencing, Item
from groundcontrol.ports.cloud import CloudObserved, Made, Mark, Probe, Thing

CLOUD_WIDE = frozenset({"flavor", "project", "keypair", "quota"})
"""Types that are made by our account as it is, whatever the project."""


class OpenStack:
    """One region of an OpenStack cloud. Safe for threads."""

    fencing: Fencing = "neither"
    probes = frozenset(probing.CALLS)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.looking = Looking(connection)
        self._desk = Desk(connection, self.looking)
        self._changes = Changes(self._desk)
        self._acts = Acts(self._desk, self._changes)

    def look(self) -> CloudObserved:
        return self.looking.look()

    def wait(self, since: int, timeout: float) -> int:
        return self.looking.wait(since, timeout)

    def get(self, type: str, id: str) -> Thing:
        return self._desk.get(type, id)

    def find(self, change_key: str) -> tuple[Item, ...]:
        return self._desk.find(change_key)

    def probe(self, name: str) -> Probe:
        return probing.probe(self._connection, name)

    def close(self) -> None:
        self.looking.close()
        self._connection.close()

    # ── create ──────────────────────────────────────────────────────────────────────────────────────────────────

    def create(self, type: str, project: str, fields: Mapping[str, Any], mark: Mark) -> Made:
        making.known(type, fields)
        scope = self._desk.scope_in("" if type in CLOUD_WIDE else project)
        if type == "quota":
            home = project or self._connection.sign_in(scope).project_id or ""
            with self._desk.touching("quota", home):
                self._changes.set_quota(home, fields)
            return Made(home)
        if type == "floating_ip" and fields.get("server") and not fields.get("port"):
            fields = {**fields, "port": self._changes.port_of(str(fields["server"]))}
        request = making.REQUESTS[type](fields, mark)
        named = f" {fields['name']}" if fields.get("name") else ""
        what = f"make {type.replace('_', ' ')}{named}"
        touched = ""
        try:
            answer = self._desk.call(
                request.service, "POST", request.path, what, request.body, scope=scope, version=request.version
            )
            row = TABLE[type]
            doc = answer.body.get(row.one, answer.body) if isinstance(answer.body, dict) else {}
            touched = id = str(doc.get("name" if type == "keypair" else "id") or "")
            if not id:
                raise OutcomeUnknown(f"{self._connection.name}: {what}: the answer names no id; it may have been done")
            self._finish(type, id, doc, fields, mark, scope)
        finally:
            self._desk.touch(type, touched)
        return Made(id, str(doc.get("private_key") or "") if type == "keypair" else "")

    def _finish(self, type: str, id: str, doc: Doc, fields: Mapping[str, Any], mark: Mark, scope: Scope) -> None:
        """What is said only of a thing that is there. Failing in it leaves a difference, which is mended later."""
        if type == "image" and fields.get("source"):
            self._fetch(id, str(fields["source"]), scope)
        row = TABLE[type]
        with contextlib.suppress(GroundError):
            if row.service == "network":
                self._desk.call(
                    "network", "PUT", f"{row.path}/{id}/tags", "mark it", {"tags": marks.tags(mark)}, scope=scope
                )
                body = {row.one: {"description": str(fields.get("description") or "")}}
                self._desk.call("network", "PUT", f"{row.path}/{id}", "describe it", body, scope=scope)
        later = {
            "router": ("subnets",),
            "security_group": ("rules",),
            "flavor": ("properties",),
            "volume": ("bootable",),
        }.get(type, ())
        after = {name: fields[name] for name in later if fields.get(name)}
        if after and row.translate is not None:
            with contextlib.suppress(GroundError):
                _, thing = self._desk.raw(type, id)
                self._changes.apply(type, id, doc, thing, after, scope)

    def _fetch(self, id: str, source: str, scope: Scope) -> None:
        """Let the cloud fetch the bytes of an image; when it will not, the image goes again."""
        body = {"method": {"name": "web-download", "uri": source}}
        try:
            self._desk.call(
                "image", "POST", f"/images/{id}/import", f"fetch image {id} from {source}", body, scope=scope
            )
        except (Refused, NotFound):
            with contextlib.suppress(GroundError):
                self._desk.call("image", "DELETE", f"/images/{id}", f"remove image {id}", scope=scope)
            raise

    # ── change, act, delete ─────────────────────────────────────────────────────────────────────────────────────

    def change(self, type: str, id: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
        self._changes.change(type, id, fields)

    def act(self, type: str, id: str, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return self._acts.act(type, id, verb, arguments)

    def delete(self, type: str, id: str) -> None:
        try:
            thing = self._desk.get(type, id)
        except NotFound:
            return
        row, scope = TABLE.get(type), self._desk.scope_of(thing)
        with self._desk.touching(type, id):
            if row is None:
                self._changes.give_back_quota(id)
                return
            if type == "router":
                for port in self._desk.ports(id):
                    if "router_interface" in str(port.get("device_owner")):
                        self._changes.interface(id, {"port_id": str(port["id"])}, "remove", scope)
            with contextlib.suppress(NotFound):
                what = f"delete {type.replace('_', ' ')} {id}"
                self._desk.call(row.service, "DELETE", f"{row.path}/{id}", what, scope=scope, version=row.version)


def connect(instance: str, endpoint: str, secret: str, given: Mapping[str, Any], longest: float) -> OpenStack:
    """The cloud of one driver instance. Nothing is called yet. Invalid names the option or credential that is wrong."""
    address = options.auth_url(instance, endpoint)
    read = options.options(instance, given, longest)
    return OpenStack(Connection(instance, address, options.credentials(instance, secret, address), read))
