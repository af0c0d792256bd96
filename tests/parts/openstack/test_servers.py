"""What may be done to a server does what OpenStack says it does, on both releases, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openstack import exceptions

from tests.parts.openstack.site import Site, fresh, until

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def kept(site: Site) -> Iterator[list[Any]]:
    """The server of the tests below; one that a test spoiled is replaced."""
    servers: list[Any] = []
    yield servers
    for server in servers:
        site.delete(server)


@pytest.fixture
def server(site: Site, kept: list[Any]) -> Any:
    if kept and site.see(kept[-1]).status != "ACTIVE":
        site.delete(kept.pop())
    if not kept:
        kept.append(site.boot())
    return kept[-1]


def test_stop_and_start(site: Site, server: Any) -> None:
    site.member.compute.stop_server(server)
    assert site.wait(server, "SHUTOFF").power_state == 4
    site.member.compute.start_server(server)
    assert site.wait(server, "ACTIVE").power_state == 1


@pytest.mark.parametrize("kind", ["SOFT", "HARD"])
def test_reboot(site: Site, server: Any, kind: str) -> None:
    before = len(list(site.member.compute.server_actions(server)))
    site.member.compute.reboot_server(server, kind)
    until("the reboot is known", lambda: len(list(site.member.compute.server_actions(server))) > before)
    site.wait(server, "ACTIVE")


def test_rebuild_takes_another_image(site: Site, server: Any) -> None:
    site.member.compute.rebuild_server(server, image=site.image("rocky-9").id)
    until("it has the other image", lambda: site.see(server).image["id"] == site.image("rocky-9").id)
    site.wait(server, "ACTIVE")


def test_resize_confirmed_and_reverted(site: Site, server: Any) -> None:
    for answer, flavor in (("confirm", "m1.small"), ("revert", "m1.small")):
        wanted = "m1.medium" if answer == "revert" else flavor
        site.member.compute.resize_server(server, site.flavor(wanted).id)
        assert site.wait(server, "VERIFY_RESIZE").flavor["original_name"] == wanted
        getattr(site.member.compute, f"{answer}_server_resize")(server)
        assert site.wait(server, "ACTIVE").flavor["original_name"] == flavor


def test_snapshot_is_an_image_with_bytes(site: Site, server: Any) -> None:
    image = site.member.compute.create_server_image(server, fresh("snapshot"))
    image = until("the image is active", lambda: _active(site, image))
    assert image.size == 64 * 1024
    assert image.hash_value
    site.member.image.delete_image(image)


def _active(site: Site, image: Any) -> Any:
    found = site.member.image.get_image(image.id)
    return found if found.status == "active" else None


def test_shelve_and_unshelve(site: Site, server: Any) -> None:
    site.member.compute.shelve_server(server)
    site.wait(server, "SHELVED_OFFLOADED")
    # Nova says so a moment before it lets go of the host.
    until("it is on no host", lambda: site.see(server).compute_host is None)
    site.member.compute.unshelve_server(server)
    assert site.wait(server, "ACTIVE").compute_host in site.running.cloud.hosts


def test_a_locked_server_is_left_alone(site: Site, server: Any) -> None:
    # A lock holds against everybody but administrators, also against whoever made it.
    site.member.compute.lock_server(server, locked_reason="kept for the audit")
    with pytest.raises(exceptions.ConflictException, match="locked"):
        site.member.compute.stop_server(server)
    assert site.see(server).is_locked
    site.member.compute.unlock_server(server)
    assert site.see(server).status == "ACTIVE"


def test_rescue_pause_and_suspend(site: Site, server: Any) -> None:
    calls = {"rescue": ("RESCUE", "unrescue"), "pause": ("PAUSED", "unpause"), "suspend": ("SUSPENDED", "resume")}
    for call, (status, back) in calls.items():
        getattr(site.member.compute, f"{call}_server")(server)
        site.wait(server, status)
        getattr(site.member.compute, f"{back}_server")(server)
        site.wait(server, "ACTIVE")


def test_console_log(site: Site, server: Any) -> None:
    whole = site.member.compute.get_server_console_output(server)["output"]
    assert server.name in whole
    assert len(whole.splitlines()) > 30


def test_cold_migration(site: Site, server: Any) -> None:
    before = site.host(server)
    site.admin.compute.migrate_server(server)
    site.wait(server, "VERIFY_RESIZE")
    site.admin.compute.confirm_server_resize(server)
    site.wait(server, "ACTIVE")
    assert site.host(server) != before


def test_live_migration(site: Site, server: Any) -> None:
    before = site.host(server)
    site.admin.compute.live_migrate_server(server, host=None, block_migration="auto")
    until("it is on another host", lambda: site.host(server) != before)
    assert site.wait(server, "ACTIVE").power_state == 1


def test_an_interface_comes_and_goes(site: Site, server: Any) -> None:
    network = site.member.network.create_network(name=fresh("network"))
    site.member.network.create_subnet(network_id=network.id, ip_version=4, cidr="10.2.0.0/24")
    port = site.member.network.create_port(network_id=network.id)
    try:
        for _ in range(2):
            site.member.compute.create_server_interface(server, port_id=port.id)
            until("the port is active", lambda: site.member.network.get_port(port.id).status == "ACTIVE")
            site.member.compute.delete_server_interface(port.id, server=server)
            until("the port is free", lambda: not site.member.network.get_port(port.id).device_id)
    finally:
        site.member.network.delete_port(port)
        site.member.network.delete_network(network)


def test_metadata_and_tags_of_a_create_are_found(site: Site) -> None:
    key = fresh("key")
    site.member.compute.default_microversion = "2.90"
    try:
        with site.server(metadata={"ground-key": key}, tags=[key]) as server:
            assert [s.id for s in site.member.compute.servers(tags=key)] == [server.id]
            assert site.see(server).metadata == {"ground-key": key}
    finally:
        site.member.compute.default_microversion = None


def test_a_quota_refuses(site: Site) -> None:
    project = site.other.current_project_id
    site.admin.compute.update_quota_set(project, instances=1)
    server = site.boot(site.other)
    try:
        with pytest.raises(exceptions.ForbiddenException, match="Quota exceeded for instances"):
            site.boot(site.other)
    finally:
        site.delete(server)
        site.admin.compute.revert_quota_set(project)


def test_no_host_is_large_enough(site: Site) -> None:
    flavor = site.admin.compute.create_flavor(name=fresh("huge"), vcpus=5000, ram=1024, disk=1)
    try:
        with site.server(flavor_id=flavor.id, status="ERROR") as server:
            assert "No valid host was found" in site.see(server).fault["message"]
    finally:
        site.admin.compute.delete_flavor(flavor)


def test_a_project_sees_its_own_servers_only(site: Site, server: Any) -> None:
    assert server.id in {s.id for s in site.member.compute.servers()}
    assert server.id not in {s.id for s in site.other.compute.servers()}
    with pytest.raises(exceptions.NotFoundException):
        site.other.compute.get_server(server.id)
    assert server.id in {s.id for s in site.admin.compute.servers(all_projects=True)}
