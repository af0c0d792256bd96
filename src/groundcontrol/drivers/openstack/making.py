"""How a thing of each type is asked for, and what has to be said after that before it is as it was wanted.

The bodies are pure. What follows the create (tags, rules, interfaces) may fail without harm: the thing is there and
carries its mark from its first moment, and what it lacks shows as a difference that a change mends.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from groundcontrol.drivers.openstack import marks
from groundcontrol.drivers.openstack.things import QUOTA
from groundcontrol.kernel.errors import Refused
from groundcontrol.ports.cloud import FIELDS, Mark

Fields = Mapping[str, Any]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call that makes a thing."""

    service: str
    path: str
    body: Any
    version: str = ""


def _taken(fields: Fields, **names: str) -> dict[str, Any]:
    """Members of a body by our names of them; what is not wanted is left to the cloud."""
    return {theirs: fields[ours] for ours, theirs in names.items() if ours in fields}


def _filled(fields: Fields, **names: str) -> dict[str, Any]:
    """The same, without what is empty."""
    return {theirs: fields[ours] for ours, theirs in names.items() if fields.get(ours)}


def server(fields: Fields, mark: Mark) -> Request:
    """With tags, by which it is found while it is not in a cell yet."""
    boot = fields.get("boot_volume") or {}
    body: dict[str, Any] = {
        **_filled(fields, name="name", flavor="flavorRef", keypair="key_name", zone="availability_zone"),
        "networks": [{"uuid": id} for id in fields.get("networks") or ()] or "none",
        "metadata": {**(fields.get("metadata") or {}), **marks.metadata(mark)},
        "tags": [marks.change_tag(mark.change)],
    }
    if fields.get("security_groups") and fields.get("networks"):
        body["security_groups"] = [{"name": id} for id in fields["security_groups"]]
    if fields.get("user_data"):
        body["user_data"] = base64.b64encode(str(fields["user_data"]).encode()).decode()
    if boot:
        disk = {
            **{"boot_index": 0, "source_type": "image", "destination_type": "volume", "uuid": fields.get("image")},
            **{"volume_size": boot.get("size"), "delete_on_termination": True},
        }
        if boot.get("type"):
            disk["volume_type"] = boot["type"]
        body["block_device_mapping_v2"] = [disk]
    else:
        body["imageRef"] = fields.get("image", "")
    return Request(service="compute", path="/servers", body={"server": body}, version="2.67")


def volume(fields: Fields, mark: Mark) -> Request:
    """A volume, empty or of an image or a snapshot."""
    body = {
        **_filled(fields, name="name", size="size", type="volume_type", description="description"),
        **_filled(fields, zone="availability_zone", image="imageRef", snapshot="snapshot_id"),
        "metadata": {**(fields.get("metadata") or {}), **marks.metadata(mark)},
    }
    return Request(service="block-storage", path="/volumes", body={"volume": body}, version="3.60")


def _neutron(path: str, one: str, fields: Fields, mark: Mark, body: dict[str, Any]) -> Request:
    """Neutron takes no tags when it makes a thing: the mark stands in the description until the tags are set."""
    said = str(fields.get("description") or "")
    whole = {**body, **_taken(fields, name="name"), "description": marks.text(mark, said)}
    return Request(service="network", path=f"/{path}", body={one: whole})


def network(fields: Fields, mark: Mark) -> Request:
    """A network; what only administrators may say is said only when it differs from what everybody gets."""
    body = {
        **_filled(fields, shared="shared", external="router:external", mtu="mtu"),
        **_taken(fields, port_security="port_security_enabled"),
    }
    return _neutron("networks", "network", fields, mark, body)


def subnet_body(fields: Fields) -> dict[str, Any]:
    """What of a subnet can be said at any time."""
    body = _taken(
        fields, dhcp="enable_dhcp", dns="dns_nameservers", pools="allocation_pools", host_routes="host_routes"
    )
    if "gateway" in fields:
        body["gateway_ip"] = fields["gateway"] or None
    return body


def subnet(fields: Fields, mark: Mark) -> Request:
    """A subnet; the IP version is that of its CIDR when it is not said."""
    version = fields.get("ip_version") or (6 if ":" in str(fields.get("cidr", "")) else 4)
    body = {**_taken(fields, network="network_id", cidr="cidr"), "ip_version": version, **subnet_body(fields)}
    if not body.get("allocation_pools"):
        body.pop("allocation_pools", None)
    return _neutron("subnets", "subnet", fields, mark, body)


def gateway(fields: Fields) -> dict[str, Any]:
    """The way out of a router."""
    if not fields.get("external_network"):
        return {}
    return {"network_id": fields["external_network"], **_taken(fields, snat="enable_snat")}


def router(fields: Fields, mark: Mark) -> Request:
    """A router; it is put into its subnets afterwards."""
    body = {"external_gateway_info": gateway(fields)} if fields.get("external_network") else {}
    return _neutron("routers", "router", fields, mark, body)


def security_group(fields: Fields, mark: Mark) -> Request:
    """A security group; its rules come afterwards."""
    return _neutron("security-groups", "security_group", fields, mark, {})


def rule(group: str, wanted: Mapping[str, str]) -> dict[str, Any]:
    """One rule of a group, for Neutron. Refused when its ports are none."""
    low, _, high = str(wanted.get("ports") or "").partition("-")
    remote = str(wanted.get("remote") or "")
    try:
        ports = (int(low), int(high or low)) if low else (None, None)
    except ValueError:
        raise Refused(f"ports {wanted.get('ports')!r} of a rule are no numbers", cause="InvalidRequest") from None
    return {
        "security_group_id": group,
        "direction": wanted["direction"],
        "ethertype": wanted["ethertype"],
        "protocol": wanted.get("protocol") or None,
        "port_range_min": ports[0],
        "port_range_max": ports[1],
        "remote_group_id": remote.removeprefix("group:") if remote.startswith("group:") else None,
        "remote_ip_prefix": None if not remote or remote.startswith("group:") else remote,
    }


def floating_ip(fields: Fields, mark: Mark) -> Request:
    """A floating IP; the port of a server was looked up before."""
    body = _filled(
        fields, network="floating_network_id", address="floating_ip_address", port="port_id",
        fixed_ip="fixed_ip_address",
    )  # fmt: skip
    without_name = {k: v for k, v in fields.items() if k != "name"}
    return _neutron("floatingips", "floatingip", without_name, mark, body)


def keypair(fields: Fields, mark: Mark) -> Request:
    """A keypair of our account; without a public key the cloud makes one, and tells the private one once."""
    body = _filled(fields, name="name", public_key="public_key")
    return Request(service="compute", path="/os-keypairs", body={"keypair": body}, version="2.35")


def image(fields: Fields, mark: Mark) -> Request:
    """An image without its bytes."""
    body = {
        **{str(k): str(v) for k, v in (fields.get("properties") or {}).items()},
        **_filled(fields, name="name", visibility="visibility", format="disk_format", container="container_format"),
        **_taken(fields, min_disk="min_disk", min_ram="min_ram", protected="protected"),
        **marks.metadata(mark),
    }
    return Request(service="image", path="/images", body=body)


def flavor(fields: Fields, mark: Mark) -> Request:
    """A flavor; the mark is its description."""
    body = {
        **_taken(fields, name="name", cores="vcpus", memory_mb="ram", disk_gb="disk"),
        **_filled(fields, ephemeral_gb="OS-FLV-EXT-DATA:ephemeral", swap_mb="swap"),
        "os-flavor-access:is_public": fields.get("public", True),
        "description": marks.text(mark, longest=60_000),
    }
    return Request(service="compute", path="/flavors", body={"flavor": {"disk": 0, **body}}, version="2.61")


def project(fields: Fields, mark: Mark) -> Request:
    """A project."""
    body = {
        **_taken(fields, name="name", description="description", enabled="enabled"),
        **_filled(fields, domain="domain_id"),
        "tags": marks.tags(mark),
    }
    return Request(service="identity", path="/projects", body={"project": body})


def quota(fields: Fields) -> dict[str, dict[str, int]]:
    """What to tell each service, of the resources that are wanted otherwise."""
    found: dict[str, dict[str, int]] = {}
    for resource, limit in fields.items():
        service, name = QUOTA[resource]
        found.setdefault(service, {})[name] = int(limit)
    return found


REQUESTS: Mapping[str, Callable[[Fields, Mark], Request]] = {
    "server": server,
    "volume": volume,
    "network": network,
    "subnet": subnet,
    "router": router,
    "security_group": security_group,
    "floating_ip": floating_ip,
    "keypair": keypair,
    "image": image,
    "flavor": flavor,
    "project": project,
}


def known(type: str, fields: Fields) -> None:
    """Refused when a type has no such field."""
    if type not in FIELDS:
        raise Refused(f"there is no type {type!r} of thing", cause="InvalidRequest")
    if unknown := sorted(fields.keys() - FIELDS[type]):
        raise Refused(f"a {type} has no {', '.join(unknown)}", cause="InvalidRequest")
