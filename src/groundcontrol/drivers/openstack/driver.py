"""The `Cloud` port over OpenStack: one region, one account."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from groundcontrol.drivers.openstack import facts, options
from groundcontrol.drivers.openstack.looking import Looking
from groundcontrol.drivers.openstack.session import Connection
from groundcontrol.drivers.openstack.table import TABLE
from groundcontrol.drivers.openstack.things import Around
from groundcontrol.kernel.errors import NotFound
from groundcontrol.kernel.world import Fencing
from groundcontrol.ports.cloud import CloudObserved, Thing


class OpenStack:
    """One region of an OpenStack cloud. Safe for threads."""

    fencing: Fencing = "neither"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.looking = Looking(connection)

    def look(self) -> CloudObserved:
        return self.looking.look()

    def wait(self, since: int, timeout: float) -> int:
        return self.looking.wait(since, timeout)

    def get(self, type: str, id: str) -> Thing:
        self.looking.lister.learn()
        if not id:
            raise NotFound(f"{self._connection.name}: there is no {type} without an id")
        if type == "quota":
            return facts.quota_thing(id, facts.quota(self._connection, id))
        row = TABLE[type]
        doc = self.looking.lister.one(row, id)
        assert row.translate is not None
        return row.translate(doc, self._around(type, id, doc))

    def _around(self, type: str, id: str, doc: Mapping[str, Any]) -> Around:
        """What a thing's own answer does not say, asked anew."""
        lister = self.looking.lister
        if type in ("server", "router"):
            ports = tuple(lister.found(TABLE["port"], {"device_id": id}))
            volumes: dict[str, Any] = {}
            if type == "server" and not doc.get("image"):
                for held in doc.get("os-extended-volumes:volumes_attached") or ():
                    volumes[held["id"]] = lister.one(TABLE["volume"], held["id"])
            return Around(ports={id: ports}, volumes=volumes)
        return Around()

    def close(self) -> None:
        self.looking.close()
        self._connection.close()


def connect(instance: str, endpoint: str, secret: str, given: Mapping[str, Any], longest: float) -> OpenStack:
    """The cloud of one driver instance. Nothing is called yet. Invalid names the option or credential that is wrong."""
    address = options.auth_url(instance, endpoint)
    read = options.options(instance, given, longest)
    return OpenStack(Connection(instance, address, options.credentials(instance, secret, address), read))
