"""Things in a cloud are made, kept, changed, replaced and taken down, through the real store, loop and world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities.clouds.sky import KEY, Sky, sky


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        yield found


def test_a_server_with_all_it_needs_is_made_and_goes(here: Sky) -> None:
    here.server(networks=["lan"], securityGroups=["web"], keypair="ada")
    here.apply("SecurityGroup", "web", rules=[{"protocol": "tcp", "ports": "443"}, {"group": "self"}])
    here.apply("Keypair", "ada", publicKey=KEY)
    here.apply("Network", "lan")
    here.apply("Subnet", "lan", network="lan", cidr="10.1.0.0/24")
    here.apply("Router", "way", externalNetwork="cloud:public", subnets=["lan"])
    here.apply("Volume", "data", size=10, attachedTo="web")
    here.apply("FloatingIP", "front", network="cloud:public", server="web")
    kinds = {"Server": "web", "Volume": "data", "FloatingIP": "front", "Router": "way", "SecurityGroup": "web"}
    for kind, name in kinds.items():
        here.ready(kind, name)
    server, group = here.only("server"), here.only("security_group")
    assert server.mark is not None
    assert server.mark.owner_key == "Server alpha/web"
    assert server.fields["security_groups"] == [group.id]
    assert server.fields["keypair"] == "alpha.ada"
    assert here.only("volume").fields["attached_to"] == server.id
    assert {"remote": f"group:{group.id}", "direction": "ingress"}.items() <= group.fields["rules"][-1].items()
    assert here.status("FloatingIP", "front")["addresses"]
    for kind in ("Server", "Volume", "FloatingIP", "Router", "SecurityGroup"):
        here.fed.delete(kind, kinds[kind], "alpha")
    for kind, name in (("Keypair", "ada"), ("Subnet", "lan"), ("Network", "lan")):
        here.fed.delete(kind, name, "alpha")
    here.fed.delete("Project", "lab")
    here.fed.until(lambda: here.fed.get("Project", "lab") is None)
    assert [t for t in here.cloud.things() if t.mark is not None or t.type == "keypair"] == []
