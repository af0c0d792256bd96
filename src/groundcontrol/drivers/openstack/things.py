"""What OpenStack says of a thing, in the words of the port: one function for each type, from JSON to `Thing`.

Pure. What an answer does not hold is left out of the fields, so that it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from groundcontrol.drivers.openstack import marks
from groundcontrol.drivers.openstack.failures import fault_cause, words
from groundcontrol.ports.cloud import State, Thing

Json = Mapping[str, Any]


class Around(msgspec.Struct, frozen=True, kw_only=True):
    """What other lists say that a thing's own entry does not."""

    ports: Mapping[str, tuple[Json, ...]] | None = None
    """Id of a server, router, … to its ports; None: they are not known."""
    port_by_id: Mapping[str, Json] = {}
    volumes: Mapping[str, Json] = {}


Translate = Callable[[Json, Around], Thing]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def moment(text: Any) -> float:
    """Seconds since the epoch of an ISO time, which is UTC when it does not say; 0 when it is none."""
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return 0.0
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _picked(doc: Json, **names: str) -> dict[str, Any]:
    """Fields by their name in the answer; those it does not hold are left out."""
    return {ours: doc[theirs] for ours, theirs in names.items() if theirs in doc}


# ── compute ─────────────────────────────────────────────────────────────────────────────────────────────────────

_RUNNING = frozenset({"ACTIVE", "RESCUE", "PASSWORD", "REBOOT", "HARD_REBOOT", "VERIFY_RESIZE", "BUILD", "REBUILD"})
_STOPPED = frozenset({"SHUTOFF", "PAUSED", "SUSPENDED", "SHELVED", "SHELVED_OFFLOADED"})
_SETTLED: Mapping[str, State] = {
    "ACTIVE": "ready",
    "RESCUE": "ready",
    "VERIFY_RESIZE": "ready",
    "ERROR": "failed",
    "DELETED": "leaving",
    "SOFT_DELETED": "leaving",
    **dict.fromkeys(_STOPPED, "off"),
}


def server(doc: Json, around: Around) -> Thing:
    """A server, as of microversion 2.19 to 2.46, where the flavor is told by its id."""
    status, task = str(doc.get("status", "")), str(doc.get("OS-EXT-STS:task_state") or "")
    # While it is moved its status is not settled; a snapshot of a running one does not disturb it.
    state = _SETTLED.get(status, "busy")
    if task == "deleting" or task == "soft-deleting":
        state = "leaving"
    elif task and state in ("ready", "off"):
        state = "busy"
    fault = doc.get("fault") if status == "ERROR" or state == "failed" else None
    said = words({"fault": fault}) if isinstance(fault, Mapping) else ""
    metadata = doc.get("metadata") or {}
    fields: dict[str, Any] = {
        "name": doc.get("name", ""),
        "keypair": doc.get("key_name") or "",
        "metadata": marks.without(metadata),
        **_picked(doc, zone="OS-EXT-AZ:availability_zone", locked="locked"),
    }
    if "id" in (doc.get("flavor") or {}):
        fields["flavor"] = doc["flavor"]["id"]
    if status in _RUNNING or status in _STOPPED:
        fields["power"] = "on" if status in _RUNNING else "off"
    attached = [str(v["id"]) for v in doc.get("os-extended-volumes:volumes_attached") or ()]
    fields["volumes"] = sorted(attached)
    image = doc.get("image")
    if isinstance(image, Mapping):
        fields["image"] = image.get("id", "")
    else:
        fields |= _booted_from(attached, around)
    fields |= _wired(doc, around)
    return Thing(
        type="server",
        id=str(doc["id"]),
        name=str(doc.get("name", "")),
        project=str(doc.get("tenant_id", "")),
        state=state,
        status=status,
        task=task,
        fault=said,
        cause=fault_cause(said) if said or state == "failed" else "",
        host=str(doc.get("OS-EXT-SRV-ATTR:host") or ""),
        fields=fields,
        mark=marks.from_metadata(metadata),
        created=moment(doc.get("created")),
        updated=moment(doc.get("updated")),
    )


def _booted_from(attached: Iterable[str], around: Around) -> dict[str, Any]:
    """Image and boot volume of a server that boots from a volume."""
    for one in attached:
        volume = around.volumes.get(one)
        if volume and any(a.get("device") in ("/dev/vda", "/dev/sda") for a in volume.get("attachments") or ()):
            image = (volume.get("volume_image_metadata") or {}).get("image_id", "")
            return {
                "image": image,
                "boot_volume": {"size": volume.get("size", 0), "type": volume.get("volume_type") or ""},
            }
    return {}


def _wired(doc: Json, around: Around) -> dict[str, Any]:
    """Networks, groups and addresses of a server, from its ports. Nova itself knows networks by name only."""
    if around.ports is None:
        return {}
    addresses: dict[str, list[str]] = {}
    groups: set[str] = set()
    ports = around.ports.get(str(doc["id"]), ())
    for port in ports:
        at = addresses.setdefault(str(port["network_id"]), [])
        at += [str(ip["ip_address"]) for ip in port.get("fixed_ips") or ()]
        groups |= {str(g) for g in port.get("security_groups") or ()}
    told: dict[str, Any] = {"networks": sorted(addresses), "addresses": {n: sorted(a) for n, a in addresses.items()}}
    # Without a port there is nothing a group could hold for.
    return told | ({"security_groups": sorted(groups)} if ports else {})


def flavor(doc: Json, around: Around) -> Thing:
    """A flavor, as of microversion 2.61."""
    description = str(doc.get("description") or "")
    return Thing(
        type="flavor",
        id=str(doc["id"]),
        name=str(doc.get("name", "")),
        fields={
            **_picked(doc, name="name", cores="vcpus", memory_mb="ram", disk_gb="disk"),
            "ephemeral_gb": doc.get("OS-FLV-EXT-DATA:ephemeral", 0),
            "swap_mb": doc.get("swap") or 0,
            "public": doc.get("os-flavor-access:is_public", True),
            "properties": dict(doc.get("extra_specs") or {}),
        },
        mark=marks.from_text(description),
    )


def keypair(doc: Json, around: Around) -> Thing:
    """A keypair of our account; the entry of a list and a single one differ by one layer."""
    inner = doc.get("keypair", doc)
    return Thing(
        type="keypair",
        id=str(inner["name"]),
        name=str(inner["name"]),
        fields={"name": inner["name"], **_picked(inner, public_key="public_key")},
        created=moment(inner.get("created_at")),
    )


# ── block storage ───────────────────────────────────────────────────────────────────────────────────────────────

_VOLUME: Mapping[str, State] = {
    **dict.fromkeys(("available", "in-use", "awaiting-transfer", "reserved"), "ready"),
    "deleting": "leaving",
}


def volume(doc: Json, around: Around) -> Thing:
    """A volume."""
    status = str(doc.get("status", ""))
    state: State = "failed" if "error" in status else _VOLUME.get(status, "busy")
    metadata = doc.get("metadata") or {}
    attachments = doc.get("attachments") or ()
    return Thing(
        type="volume",
        id=str(doc["id"]),
        name=str(doc.get("name") or ""),
        project=str(doc.get("os-vol-tenant-attr:tenant_id") or ""),
        state=state,
        status=status,
        task=str(doc.get("migration_status") or ""),
        fault=f"the volume is {status}" if state == "failed" else "",
        cause="RemoteBug" if state == "failed" else "",
        host=str(doc.get("os-vol-host-attr:host") or ""),
        fields={
            **_picked(doc, size="size", zone="availability_zone"),
            "name": doc.get("name") or "",
            "type": doc.get("volume_type") or "",
            "description": doc.get("description") or "",
            "image": (doc.get("volume_image_metadata") or {}).get("image_id", ""),
            "snapshot": doc.get("snapshot_id") or "",
            "bootable": doc.get("bootable") in (True, "true"),
            "attached_to": next((str(a["server_id"]) for a in attachments if a.get("server_id")), ""),
            "metadata": {k: v for k, v in marks.without(metadata).items() if k not in ("readonly", "attached_mode")},
        },
        mark=marks.from_metadata(metadata),
        created=moment(doc.get("created_at")),
        updated=moment(doc.get("updated_at")),
    )


# ── image ───────────────────────────────────────────────────────────────────────────────────────────────────────

_IMAGE: Mapping[str, State] = {
    "active": "ready",
    "deactivated": "off",
    "killed": "failed",
    "deleted": "leaving",
    "pending_delete": "leaving",
}
_IMAGE_OWN = _words(
    "id name status visibility protected checksum owner size virtual_size min_ram min_disk disk_format container_format"
    " created_at updated_at tags self file schema locations direct_url stores owner_user_name owner_project_name"
    " user_id boot_roles instance_uuid image_type image_location image_state block_device_mapping bdm_v2"
    " root_device_name owner_id signature_verified"
)
"""Members of an image that are its own, or that the product writes among its properties."""


def image(doc: Json, around: Around) -> Thing:
    """An image."""
    status = str(doc.get("status", ""))
    lost = str(doc.get("os_glance_failed_import") or "")
    state: State = "failed" if lost and status != "active" else _IMAGE.get(status, "busy")
    fault = "the cloud could not fetch its bytes, or they are not of the format it says" if lost else ""
    own = {
        k: v
        for k, v in doc.items()
        if k not in _IMAGE_OWN and not k.startswith(("os_", "base_", marks.PREFIX)) and isinstance(v, str)
    }
    return Thing(
        type="image",
        id=str(doc["id"]),
        name=str(doc.get("name") or ""),
        project=str(doc.get("owner") or ""),
        state=state,
        status=status,
        task=str(doc.get("os_glance_importing_to_stores") or ""),
        fault=(fault or f"the image is {status}") if state == "failed" else "",
        cause="BadImage" if state == "failed" else "",
        fields={
            **_picked(doc, visibility="visibility", min_disk="min_disk", min_ram="min_ram", protected="protected"),
            "name": doc.get("name") or "",
            "format": doc.get("disk_format") or "",
            "container": doc.get("container_format") or "",
            "checksum": doc.get("checksum") or "",
            "properties": own,
        },
        mark=marks.from_metadata(doc),
        created=moment(doc.get("created_at")),
        updated=moment(doc.get("updated_at")),
    )


# ── network ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _neutron(type: str, doc: Json, fields: Mapping[str, Any]) -> Thing:
    """What all things of Neutron share. DOWN is no fault: it says that nobody forwards there now."""
    status, description = str(doc.get("status") or ""), str(doc.get("description") or "")
    state: State = {"ERROR": "failed", "BUILD": "busy", "PENDING_DELETE": "leaving"}.get(status, "ready")  # type: ignore[assignment]
    said = {"name": doc["name"]} if "name" in doc else {}
    return Thing(
        type=type,
        id=str(doc["id"]),
        name=str(doc.get("name") or ""),
        project=str(doc.get("project_id") or doc.get("tenant_id") or ""),
        state=state,
        status=status,
        fault="the network service says ERROR" if state == "failed" else "",
        cause="RemoteBug" if state == "failed" else "",
        fields={**said, "description": marks.without_text(description), **fields},
        mark=marks.from_tags(doc.get("tags") or ()) or marks.from_text(description),
        created=moment(doc.get("created_at")),
        updated=moment(doc.get("updated_at")),
    )


def network(doc: Json, around: Around) -> Thing:
    """A network."""
    names = {"shared": "shared", "external": "router:external", "mtu": "mtu", "port_security": "port_security_enabled"}
    return _neutron("network", doc, _picked(doc, **names))


def subnet(doc: Json, around: Around) -> Thing:
    """A subnet."""
    told = _neutron(
        "subnet",
        doc,
        {
            **_picked(doc, network="network_id", cidr="cidr", dhcp="enable_dhcp", ip_version="ip_version"),
            "gateway": doc.get("gateway_ip") or "",
            "dns": sorted(doc.get("dns_nameservers") or ()),
            "pools": _sorted(doc.get("allocation_pools"), "start", "end"),
            "host_routes": _sorted(doc.get("host_routes"), "destination", "nexthop"),
        },
    )
    del told.fields["description"]
    return told


def _sorted(entries: Iterable[Json] | None, *names: str) -> list[dict[str, str]]:
    picked = [{name: str(entry.get(name, "")) for name in names} for entry in entries or ()]
    return sorted(picked, key=lambda entry: tuple(entry.values()))


def router(doc: Json, around: Around) -> Thing:
    """A router; its subnets are those its ports are in."""
    gateway = doc.get("external_gateway_info") or {}
    fields: dict[str, Any] = {"external_network": gateway.get("network_id") or ""}
    if gateway:
        fields["snat"] = gateway.get("enable_snat", True)
    if around.ports is not None:
        fields["subnets"] = sorted(
            {
                str(ip["subnet_id"])
                for port in around.ports.get(str(doc["id"]), ())
                if "router_interface" in str(port.get("device_owner"))
                for ip in port.get("fixed_ips") or ()
            }
        )
    return _neutron("router", doc, fields)


def rule(doc: Json) -> dict[str, str]:
    """One rule of a security group."""
    low, high = doc.get("port_range_min"), doc.get("port_range_max")
    ports = "" if low is None and high is None else str(low) if low == high or high is None else f"{low}-{high}"
    group = doc.get("remote_group_id")
    remote = f"group:{group}" if group else str(doc.get("remote_ip_prefix") or "")
    return {
        "direction": str(doc.get("direction", "")),
        "ethertype": str(doc.get("ethertype", "")),
        "protocol": str(doc.get("protocol") or ""),
        "ports": ports,
        "remote": remote,
    }


def security_group(doc: Json, around: Around) -> Thing:
    """A security group with its rules."""
    rules = sorted((rule(r) for r in doc.get("security_group_rules") or ()), key=lambda r: tuple(r.values()))
    return _neutron("security_group", doc, {"rules": rules})


def floating_ip(doc: Json, around: Around) -> Thing:
    """A floating IP; its name is its address."""
    port = str(doc.get("port_id") or "")
    leads = around.port_by_id.get(port) or doc.get("port_details") or {}
    fields = {
        **_picked(doc, network="floating_network_id", address="floating_ip_address"),
        "port": port,
        "fixed_ip": doc.get("fixed_ip_address") or "",
        "server": str(leads.get("device_id") or "") if port else "",
    }
    return msgspec.structs.replace(_neutron("floating_ip", doc, fields), name=str(doc.get("floating_ip_address") or ""))


# ── identity ────────────────────────────────────────────────────────────────────────────────────────────────────


def project(doc: Json, around: Around) -> Thing:
    """A project; it belongs to the cloud, not to itself."""
    return Thing(
        type="project",
        id=str(doc["id"]),
        name=str(doc.get("name", "")),
        state="ready" if doc.get("enabled", True) else "off",
        status="enabled" if doc.get("enabled", True) else "disabled",
        fields={
            **_picked(doc, name="name", enabled="enabled", domain="domain_id"),
            "description": doc.get("description") or "",
        },
        mark=marks.from_tags(doc.get("tags") or ()),
    )


QUOTA: Mapping[str, tuple[str, str]] = {
    "cores": ("compute", "cores"),
    "instances": ("compute", "instances"),
    "ram_mb": ("compute", "ram"),
    "keypairs": ("compute", "key_pairs"),
    "server_groups": ("compute", "server_groups"),
    "volumes": ("block-storage", "volumes"),
    "gigabytes": ("block-storage", "gigabytes"),
    "snapshots": ("block-storage", "snapshots"),
    "networks": ("network", "network"),
    "subnets": ("network", "subnet"),
    "ports": ("network", "port"),
    "routers": ("network", "router"),
    "floating_ips": ("network", "floatingip"),
    "security_groups": ("network", "security_group"),
    "security_group_rules": ("network", "security_group_rule"),
}
"""Our name of a resource to the service that bounds it and its name there."""
