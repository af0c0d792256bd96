"""Networks, routers, addresses and rules are those of a real Neutron, though nothing flows through them."""

from __future__ import annotations

import pytest
from openstack import exceptions

from tests.parts.openstack.site import Site, fresh, until

pytestmark = pytest.mark.acceptance


def test_a_server_is_reached_from_outside(site: Site) -> None:
    net = site.member.network
    network = net.create_network(name=fresh("network"))
    subnet = net.create_subnet(network_id=network.id, ip_version=4, cidr="10.1.0.0/24")
    outside = net.find_network("public", ignore_missing=False)
    router = net.create_router(name=fresh("router"), external_gateway_info={"network_id": outside.id})
    net.add_interface_to_router(router, subnet_id=subnet.id)
    try:
        with site.server(networks=[{"uuid": network.id}]) as server:
            port = next(iter(net.ports(device_id=server.id)))
            assert port.status == "ACTIVE"
            assert site.admin.network.get_port(port.id).binding_host_id == site.host(server)
            address = net.create_ip(floating_network_id=outside.id, port_id=port.id)
            assert address.fixed_ip_address == port.fixed_ips[0]["ip_address"]
            until("the server shows it", lambda: address.floating_ip_address in str(site.see(server).addresses))
            net.delete_ip(address)
        until("its port went with it", lambda: not list(net.ports(device_id=server.id)))
    finally:
        net.remove_interface_from_router(router, subnet_id=subnet.id)
        net.delete_router(router)
        net.delete_network(network)


def test_a_rule_opened_by_hand_is_seen(site: Site) -> None:
    group = site.member.network.create_security_group(name=fresh("group"))
    before = {rule["id"] for rule in group.security_group_rules}
    rule = site.member.network.create_security_group_rule(
        security_group_id=group.id, direction="ingress", protocol="tcp", port_range_min=22, port_range_max=22
    )
    with pytest.raises(exceptions.ConflictException):
        site.member.network.create_security_group_rule(
            security_group_id=group.id, direction="ingress", protocol="tcp", port_range_min=22, port_range_max=22
        )
    seen = {r["id"] for r in site.member.network.get_security_group(group.id).security_group_rules}
    assert seen - before == {rule.id}
    site.member.network.delete_security_group(group)


def test_a_keypair(site: Site) -> None:
    # The cloud makes none any more: who wants one brings a public key.
    public = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5sFZ0ZQmQ4k9cKkq1o7q0u4o7o2qkHqgUu3Q2m7t6E test"
    key = site.member.compute.create_keypair(name=fresh("key"), public_key=public)
    assert site.member.compute.find_keypair(key.name).fingerprint == key.fingerprint
    site.member.compute.delete_keypair(key)
