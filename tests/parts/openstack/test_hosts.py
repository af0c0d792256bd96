"""Hypervisors that die, come back, are taken out of service, and fail when they are told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openstack import exceptions

from tests.parts.openstack.site import Site, fresh, until

pytestmark = pytest.mark.acceptance


@pytest.fixture
def whole(site: Site) -> Iterator[Site]:
    """The cloud; afterwards all its hypervisors run, are up and have no faults."""
    yield site
    for host in site.running.cloud.hosts:
        site.running.fault(host, {})
        site.running.start(host)
    for host in site.running.cloud.hosts:
        restore(site, host)


def restore(site: Site, host: str) -> None:
    def look() -> bool:
        service = site.compute_service(host)
        if service.is_forced_down:
            # Refused (400) until what was evacuated is tidied up.
            try:
                site.admin.compute.update_service_forced_down(service, forced=False)
            except exceptions.BadRequestException:
                return False
        if service.status == "disabled":
            site.admin.compute.enable_service(service)
        return bool(site.compute_service(host).state == "up")

    until(f"{host} is up", look)


def test_a_killed_host_is_noticed_and_its_servers_evacuated(whole: Site) -> None:
    site = whole
    with site.server() as server:
        host = site.host(server)
        site.running.kill(host)
        until(f"{host} is seen down", lambda: site.compute_service(host).state == "down")
        assert site.see(server).status == "ACTIVE", "Nova goes on saying so: nobody told it otherwise"
        site.admin.compute.update_service_forced_down(site.compute_service(host), forced=True)
        site.admin.compute.evacuate_server(server)
        until("it is on another host", lambda: site.host(server) != host)
        site.wait(server, "SHUTOFF")
        site.running.start(host)
        restore(site, host)
        until("the host has tidied up", lambda: not evacuations(site, host, "done"))
        site.member.compute.start_server(server)
        site.wait(server, "ACTIVE")


def evacuations(site: Site, host: str, status: str) -> list[Any]:
    answer = site.admin.compute.get("/os-migrations?migration_type=evacuation", microversion="2.80")
    found = answer.json()["migrations"]
    return [m for m in found if m["source_compute"] == host and m["status"] == status]


def test_guests_outlive_their_nova_compute(whole: Site) -> None:
    with whole.server() as server:
        host = whole.host(server)
        whole.running.kill(host)
        whole.running.start(host)
        restore(whole, host)
        whole.member.compute.stop_server(server)
        whole.wait(server, "SHUTOFF")


def test_a_disabled_host_gets_nothing_new(whole: Site) -> None:
    host = whole.running.cloud.hosts[0]
    whole.admin.compute.disable_service(whole.compute_service(host), disabled_reason="maintenance")
    for _ in range(3):
        with whole.server() as server:
            assert whole.host(server) != host


def test_an_aggregate_makes_a_zone(whole: Site) -> None:
    zone, host = fresh("zone"), whole.running.cloud.hosts[2]
    aggregate = whole.admin.compute.create_aggregate(name=zone, availability_zone=zone)
    until(f"{host} is empty", lambda: empty(whole, host))
    whole.admin.compute.add_host_to_aggregate(aggregate, host)
    try:
        assert zone in {z.name for z in whole.member.compute.availability_zones()}
        with whole.server(availability_zone=zone) as server:
            assert whole.host(server) == host
    finally:
        whole.admin.compute.remove_host_from_aggregate(aggregate, host)
        whole.admin.compute.delete_aggregate(aggregate)


def empty(site: Site, host: str) -> bool:
    """A host with servers may not change its zone."""
    return not list(site.admin.compute.servers(all_projects=True, host=host))


def test_a_spawn_that_fails_everywhere(whole: Site) -> None:
    for host in whole.running.cloud.hosts:
        whole.running.fault(host, {"spawn": "fail"})
    with whole.server(status="ERROR") as server:
        assert "Exceeded maximum number of retries" in whole.see(server).fault["message"]


def test_a_spawn_that_fails_on_one_host_goes_to_another(whole: Site) -> None:
    bad = whole.running.cloud.hosts[:2]
    for host in bad:
        whole.running.fault(host, {"spawn": "fail"})
    with whole.server() as server:
        assert whole.host(server) == whole.running.cloud.hosts[2]


def test_a_server_is_stuck_in_build_until_the_fault_is_gone(whole: Site) -> None:
    for host in whole.running.cloud.hosts:
        whole.running.fault(host, {"spawn": 3600})
    spec = {"flavor_id": whole.flavor().id, "image_id": whole.image().id, "networks": "none"}
    server = whole.member.compute.create_server(name=fresh("stuck"), **spec)
    until("it is being spawned", lambda: whole.see(server).task_state == "spawning")
    for host in whole.running.cloud.hosts:
        whole.running.fault(host, {})
    whole.wait(server, "ACTIVE")
    whole.delete(server)


def test_a_live_migration_that_fails(whole: Site) -> None:
    with whole.server() as server:
        host = whole.host(server)
        whole.running.fault(host, {"live_migration": "fail"})
        whole.admin.compute.live_migrate_server(server, host=None, block_migration="auto")
        until("the migration failed", lambda: failed(whole, server))
        assert whole.host(server) == host


def failed(site: Site, server: Any) -> bool:
    answer = site.admin.compute.get(f"/os-migrations?instance_uuid={server.id}", microversion="2.80")
    return any(m["status"] in ("error", "failed") for m in answer.json()["migrations"])
