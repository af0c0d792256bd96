"""What a fresh cloud has in it: its catalogue, two projects with a member each, flavors, images, volume types."""

from __future__ import annotations

import hashlib
from typing import Any

from testbed.openstack import settings
from testbed.openstack.api import Api
from testbed.openstack.layout import Bed, Cloud, write

CATALOGUE = {
    "placement": ("placement", ""),
    "image": ("glance", ""),
    "compute": ("nova", "/v2.1"),
    "network": ("neutron", ""),
    "block-storage": ("cinder", "/v3/%(project_id)s"),
    "object-store": ("swift", "/v1/AUTH_%(project_id)s"),
}
"""A type of service, its name, and the path of its endpoints. Keystone enters itself."""
MEMBERS = {"alice": "alpha", "bob": "beta"}
"""A user, and the project it is a member of."""
FLAVORS = {"m1.tiny": (1, 512, 1), "m1.small": (1, 2048, 20), "m1.medium": (2, 4096, 40), "m1.large": (4, 8192, 80)}
"""vCPUs, MiB, GB."""
IMAGES = ("debian-12", "rocky-9")
IMAGE_BYTES = 1024 * 1024
VOLUME_TYPES = ("standard", "fast")
OUTSIDE = {"north": "198.18.0.0/16", "south": "198.19.0.0/16"}
"""Floating IPs, from the addresses that are set aside for benchmarks."""
QUOTAS: tuple[tuple[str, str, str, dict[str, int]], ...] = (
    ("compute", "/os-quota-sets/", "quota_set", {"instances": 2000, "cores": 8000, "ram": -1, "key_pairs": 1000}),
    ("block-storage", "/os-quota-sets/", "quota_set", {"volumes": 3000, "gigabytes": 100000, "snapshots": 1000}),
    (
        *("network", "/quotas/", "quota"),
        {"network": 500, "subnet": 500, "port": 5000, "router": 100, "floatingip": 500}
        | {"security_group": 500, "security_group_rule": 5000},
    ),
)
"""Of alpha, which gets room for a thousand servers; beta keeps the defaults, so that a quota can be met."""


def fill_catalogue(cloud: Cloud) -> None:
    """Users and endpoints of the services. Public and admin endpoints are the front's TLS ports."""
    api = Api(cloud).login()
    project = _ensure(api, "projects", "service", {"domain_id": "default"})
    roles = [_ensure(api, "roles", name, {}) for name in ("admin", "service")]
    for name in settings.SERVICE_USERS:
        user = _ensure(api, "users", name, {"domain_id": "default", "password": cloud.passwords["service"]})
        for role in roles:
            api.put("identity", f"/projects/{project['id']}/users/{user['id']}/roles/{role['id']}")
    there = {(e["service_id"], e["interface"]) for e in api.get("identity", "/endpoints")["endpoints"]}
    for service in cloud.services:
        if service not in CATALOGUE:
            continue
        name, path = CATALOGUE[service]
        entry = _ensure(api, "services", name, {"type": service})
        for interface, root in (("public", cloud.public), ("internal", cloud.internal), ("admin", cloud.public)):
            if (entry["id"], interface) not in there:
                spec = {"service_id": entry["id"], "interface": interface, "region_id": cloud.region}
                api.post("identity", "/endpoints", {"endpoint": {**spec, "url": root(service) + path}})


def _ensure(api: Api, collection: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """One of Keystone's things by name, made if it is not there."""
    found = api.named("identity", f"/{collection}", name)
    one = collection.removesuffix("s")
    return found or api.post("identity", f"/{collection}", {one: {"name": name, **spec}})[one]


def fill(cloud: Cloud) -> None:
    """Everything else. What is there already stays as it is."""
    api = Api(cloud).login()
    _people(cloud, api)
    for name, (vcpus, memory, disk) in FLAVORS.items():
        if api.named("compute", "/flavors", name) is None:
            api.post("compute", "/flavors", {"flavor": {"name": name, "vcpus": vcpus, "ram": memory, "disk": disk}})
    for name in IMAGES:
        _image(api, name)
    if api.named("network", "/networks", "public") is None:
        spec = {"name": "public", "shared": False, "router:external": True, "provider:network_type": "flat"}
        network = api.post("network", "/networks", {"network": {**spec, "provider:physical_network": "outside"}})
        spec = {"name": "public-v4", "network_id": network["network"]["id"], "ip_version": 4, "enable_dhcp": False}
        api.post("network", "/subnets", {"subnet": {**spec, "cidr": OUTSIDE.get(cloud.name, "203.0.113.0/24")}})
    for name in VOLUME_TYPES:
        if not any(t["name"] == name for t in api.get("block-storage", "/types")["volume_types"]):
            api.post("block-storage", "/types", {"volume_type": {"name": name}})


def _people(cloud: Cloud, api: Api) -> None:
    member = _ensure(api, "roles", "member", {})
    for name, of in MEMBERS.items():
        project = _ensure(api, "projects", of, {"domain_id": "default"})
        user = _ensure(api, "users", name, {"domain_id": "default", "password": cloud.passwords[name]})
        api.put("identity", f"/projects/{project['id']}/users/{user['id']}/roles/{member['id']}")
        if of == "alpha":
            for service, path, key, quota in QUOTAS:
                api.put(service, path + project["id"], {key: quota})


def image_bytes(name: str) -> bytes:
    """The content of an image: always the same for a name, and not compressible."""
    return hashlib.shake_128(name.encode()).digest(IMAGE_BYTES)


def _image(api: Api, name: str) -> None:
    found = next((i for i in api.get("image", f"/images?name={name}")["images"]), None)
    if found is None:
        spec = {"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public"}
        found = api.post("image", "/images", spec)
    if found["status"] == "queued":
        api.put("image", f"/images/{found['id']}/file", image_bytes(name))


def write_clouds_yaml(bed: Bed) -> None:
    """Three entries for each cloud: the member of alpha, the member of beta, the administrator."""
    lines = ["# Written by the test bed. Whoever can read it can log in.", "clouds:"]
    for cloud in bed.clouds:
        people = {"": ("alice", "alpha"), "-beta": ("bob", "beta"), "-admin": ("admin", "admin")}
        for suffix, (user, project) in people.items():
            lines += [
                f"  {cloud.name}{suffix}:",
                f"    region_name: {cloud.region}",
                "    identity_api_version: 3",
                f"    cacert: {bed.authority}",
                "    auth:",
                f"      auth_url: {cloud.public('identity')}/v3",
                f"      username: {user}",
                f"      password: {cloud.passwords[user]}",
                f"      project_name: {project}",
                "      user_domain_name: Default",
                "      project_domain_name: Default",
            ]
    write(bed.clouds_yaml, "\n".join(lines) + "\n")
