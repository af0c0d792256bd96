"""Where each type of thing is found in OpenStack: one row a type, so that one more is one row and one translation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from groundcontrol.drivers.openstack import things
from groundcontrol.drivers.openstack.things import Translate

NONE: Mapping[str, str] = MappingProxyType({})


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """How a type is listed, looked at and removed."""

    service: str
    path: str
    """Of the collection; one thing is `path/ID`."""
    list_path: str = ""
    """Where it is listed with all its fields, when that is elsewhere."""
    own_path: str = ""
    """Where it is listed by who may not see all of it, when that is elsewhere."""
    many: str
    one: str
    """Members of an answer; empty: the answer is the thing itself."""
    translate: Translate | None = None
    """None: not a type of the port, only known so that others can be told."""
    version: str = ""
    """Microversion in which it is read."""
    query: Mapping[str, str] = NONE
    everywhere: Mapping[str, str] = NONE
    """Added to the query by who may see all projects."""
    page: int = 1000
    """Entries asked for at once; 0: the service has no pages."""
    since: str = ""
    """Query that lists only what changed since a moment; empty when the service has none."""
    since_form: str = "{}"
    tells_deleted: bool = False
    """Whether that names also what was deleted: then whole lists are needed seldom."""
    belongs: bool = True
    """Whether things belong to projects: who may not see all of them asks in each of its own."""
    mark_query: tuple[str, str] = ("", "")
    """Parameter that finds a thing by the key of the change that made it, `{}` being the key; empty: its mark is looked
    for in the list."""
    mark_version: str = ""
    """Microversion that knows this parameter, when another than the usual."""


def _neutron(path: str, one: str, translate: Translate | None) -> Row:
    # No `changed_since`: Neutron documents it, and its filter validation refuses it.
    many = path.replace("-", "_")
    return Row(service="network", path=f"/{path}", many=many, one=one, translate=translate)


TABLE: Mapping[str, Row] = {
    "server": Row(
        service="compute",
        path="/servers",
        list_path="/servers/detail",
        many="servers",
        one="server",
        translate=things.server,
        version="2.46",
        everywhere={"all_tenants": "1"},
        since="changes-since",
        tells_deleted=True,
        mark_query=("tags", "ground:c={}"),
    ),
    "flavor": Row(
        service="compute",
        path="/flavors",
        list_path="/flavors/detail",
        many="flavors",
        one="flavor",
        translate=things.flavor,
        version="2.61",
        everywhere={"is_public": "None"},
        belongs=False,
    ),
    "keypair": Row(
        service="compute",
        path="/os-keypairs",
        many="keypairs",
        one="keypair",
        translate=things.keypair,
        version="2.35",
        belongs=False,
    ),
    "port": _neutron("ports", "port", None),
    "network": _neutron("networks", "network", things.network),
    "subnet": _neutron("subnets", "subnet", things.subnet),
    "router": _neutron("routers", "router", things.router),
    "security_group": _neutron("security-groups", "security_group", things.security_group),
    "floating_ip": _neutron("floatingips", "floatingip", things.floating_ip),
    "volume": Row(
        service="block-storage",
        path="/volumes",
        list_path="/volumes/detail",
        many="volumes",
        one="volume",
        translate=things.volume,
        version="3.60",
        everywhere={"all_tenants": "1"},
        since="updated_at",
        since_form="gte:{}",
        mark_query=("metadata", "{{'ground:change':'{}'}}"),
    ),
    "image": Row(
        service="image",
        path="/images",
        many="images",
        one="",
        translate=things.image,
        belongs=True,
        since="updated_at",
        since_form="gte:{}",
        mark_query=("ground:change", "{}"),
    ),
    "project": Row(
        service="identity",
        path="/projects",
        many="projects",
        one="project",
        translate=things.project,
        own_path="/auth/projects",
        page=0,
        belongs=False,
        mark_query=("tags", "ground:c={}"),
    ),
}

GROUPS: Mapping[str, tuple[str, ...]] = {
    "compute": ("server", "flavor", "keypair"),
    "network": ("port", "network", "subnet", "router", "security_group", "floating_ip"),
    "block-storage": ("volume",),
    "image": ("image",),
    "identity": ("project",),
}
"""What one thread lists one after the other: a slow service holds up its own only."""
