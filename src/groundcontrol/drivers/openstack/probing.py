"""Calls that prove a right of our account: each only reads, and asks for one entry where the service can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from groundcontrol.drivers.openstack.session import Connection
from groundcontrol.kernel.errors import GroundError, NotFound, Refused
from groundcontrol.ports.cloud import PROBES, Probe


class Call(NamedTuple):
    """One such call; `{own}` is the id of our project."""

    service: str
    path: str


CALLS: Mapping[str, Call] = {
    "own-servers": Call("compute", "/servers?limit=1"),
    "own-networks": Call("network", "/networks?limit=1&fields=id"),
    "own-quota": Call("compute", "/os-quota-sets/{own}"),
    "all-servers": Call("compute", "/servers?all_tenants=1&limit=1"),
    "hypervisors": Call("compute", "/os-hypervisors?limit=1"),
    "compute-services": Call("compute", "/os-services?binary=nova-compute"),
    "all-projects": Call("identity", "/projects?limit=1"),
    "all-users": Call("identity", "/users?limit=1"),
    "role-assignments": Call("identity", "/role_assignments?limit=1"),
    # Of a project that is not there: who may read it is told before whether it is there.
    "other-quota": Call("network", "/quotas/00000000000000000000000000000000"),
}
VERSIONS = {"hypervisors": "2.53"}
assert CALLS.keys() <= PROBES.keys()


def probe(connection: Connection, name: str) -> Probe:
    """Make the call of this name. Never raises for a refusal."""
    call = CALLS.get(name)
    if call is None:
        return Probe("unknown", f"there is no call {name!r}")
    try:
        own = connection.sign_in(connection.own).project_id or ""
        path = call.path.format(own=own)
        asked = f"GET {call.service} {path}"
        connection.call(call.service, "GET", path, version=VERSIONS.get(name, ""), what=asked)
    except Refused as error:
        if error.cause == "NotAuthorised":
            return Probe("refused", f"{asked}: 403")
        return Probe("unknown", error.message)
    except NotFound:
        # Neutron hides what one may not see; where the thing asked for is ours or a list, it is an address gone wrong.
        hidden = name == "other-quota"
        return Probe("refused" if hidden else "unknown", f"{asked}: 404")
    except GroundError as error:
        return Probe("unknown", error.message)
    return Probe("allowed", f"{asked}: 200")
