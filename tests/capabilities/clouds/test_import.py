"""What is in a project is written as manifests that take it over without touching it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.capabilities.clouds.queries import import_things
from groundcontrol.kernel.errors import Conflict, Invalid, NotFound, Unavailable
from groundcontrol.kernel.resource import Doc, Key, condition
from groundcontrol.ports.cloud import Mark
from groundcontrol.ports.twins.cloud import ANYWHERE
from tests.capabilities.clouds.sky import Sky, sky


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        yield found


def ask(here: Sky, **body: Any) -> Doc:
    return import_things(here.fed.runtime, None, Key("Site", "", "bari"), body)


def old_project(here: Sky) -> str:
    """A project somebody made by hand, with all there is in one."""
    cloud = here.cloud
    p = cloud.add("project", name="Old Lab", description="before us", enabled=True)
    net = cloud.add("network", project=p, name="Net 1", description="", shared=False, port_security=True)
    pools = [{"start": "10.0.0.5", "end": "10.0.0.9"}]
    range_ = cloud.add("subnet", project=p, name="range", network=net, cidr="10.0.0.0/24", gateway="", dhcp=True,
                       dns=[], ip_version=4, host_routes=[], pools=pools)  # fmt: skip
    cloud.add("router", project=p, name="r", external_network="n-public", subnets=[range_], description="")
    group = cloud.add("security_group", project=p, name="web", description="d")
    rule = {"direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "ports": "22", "remote": "192.0.2.0/24"}
    rules = [*ANYWHERE, rule, {**rule, "ports": "", "remote": f"group:{group}"}]
    cloud.edit("security_group", group, rules=rules)
    server = cloud.add("server", project=p, name="web", flavor="f-small", image="i-debian", networks=[net], power="on",
                       security_groups=[group], keypair="", locked=False, metadata={"a": "b"}, zone="nova")  # fmt: skip
    cloud.add("server", project=p, name="web", flavor="f-big", image="i-debian", networks=[net], power="off",
              security_groups=[], state="off", locked=True, metadata={})  # fmt: skip
    cloud.add("volume", project=p, name="", size=3, type="fast", description="", attached_to=server, metadata={})
    cloud.add("floating_ip", project=p, network="n-public", address="192.0.2.9", server=server, description="")
    cloud.add("security_group", project=p, name="default", rules=ANYWHERE)
    broken = cloud.add("server", project=p, name="broken", state="failed", flavor="f-small")
    cloud.alter("server", broken, fault="boom")
    other = cloud.add("volume", project=p, name="others", size=1)
    mark = Mark(installation="other", owner="u", owner_key="Volume x/y", change="c")
    cloud.alter("volume", other, mark=mark)
    here.listed("volume", other)
    return p


def test_what_is_imported_is_taken_over_and_nothing_is_touched(here: Sky) -> None:
    project = old_project(here)
    before = here.cloud.things()
    here.cloud.calls.clear()
    found = ask(here, project="Old Lab", namespace="alpha")
    kinds = [d["kind"] for d in found["documents"]]
    assert kinds == [
        "Project",
        "Network",
        "Subnet",
        "Router",
        "SecurityGroup",
        "Volume",
        "Server",
        "Server",
        "FloatingIP",
    ]
    assert {left["name"]: left["why"].split()[0] for left in found["leftOut"]} == {
        "default": "the",
        "broken": "it",
        "others": "installation",
    }
    for doc in found["documents"]:
        meta = doc["metadata"]
        here.fed.apply(doc["kind"], meta["name"], doc["spec"], meta.get("namespace", ""))
    for doc in found["documents"]:
        here.ready(doc["kind"], doc["metadata"]["name"], doc["metadata"].get("namespace", ""))
    here.fed.settled()
    for doc in found["documents"]:
        now = here.fed.get(doc["kind"], doc["metadata"]["name"], doc["metadata"].get("namespace", "")) or {}
        # A thing without a name gets one only when somebody changes its spec.
        nameless = doc["metadata"]["name"].startswith("volume-")
        assert condition(now, "Drift")["reason"] == ("LeftAsFound" if nameless else "NotLooked"), (doc, now["status"])
        assert now["status"]["id"] == doc["spec"]["adopt"]
    assert here.calls("create", "change", "delete", "act stop") == []
    assert here.cloud.things() == before
    again = ask(here, project=project, namespace="alpha")
    assert again["documents"] == [], "what resources own is not written again"


def test_manifests_name_what_is_written_beside_them_and_the_rest_by_id(here: Sky) -> None:
    old_project(here)
    docs = {
        (d["kind"], d["metadata"]["name"]): d["spec"]
        for d in ask(here, project="Old Lab", namespace="alpha")["documents"]
    }
    assert docs["Subnet", "range"]["network"] == "net-1"
    assert docs["Network", "net-1"]["name"] == "Net 1"
    server = docs["Server", "web"]
    assert (server["flavor"], server["networks"], server["securityGroups"]) == ("cloud:f-small", ["net-1"], ["web"])
    assert docs["SecurityGroup", "web"]["rules"][1]["group"] == "self"
    assert docs["FloatingIP", next(n for k, n in docs if k == "FloatingIP")]["server"] == "web"
    assert all(spec["deletion"] == "keep" for spec in docs.values())
    here.apply("Flavor", "small", "", cores=1, memoryMb=512, adopt="f-small")
    here.ready("Flavor", "small", "")
    again = ask(here, project="Old Lab", namespace="alpha")["documents"]
    assert next(d["spec"]["flavor"] for d in again if d["kind"] == "Server") == "small"


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ({}, Invalid, "project is missing"),
        ({"project": "Old Lab"}, Invalid, "namespace is missing"),
        ({"project": "Old Lab", "namespace": "../x"}, Invalid, "not the name of a namespace"),
        ({"project": "Old Lad", "namespace": "alpha"}, NotFound, 'did you mean "Old Lab"'),
    ],
)
def test_what_cannot_be_imported_is_said(here: Sky, body: Doc, error: type[Exception], said: str) -> None:
    old_project(here)
    with pytest.raises(error, match=said):
        ask(here, **body)


def test_a_site_that_is_not_known_well_or_no_cloud_imports_nothing(here: Sky) -> None:
    old_project(here)
    here.cloud.deny("volume")
    here.fed.until(lambda: not here.fed.runtime.world.snapshot("site/bari").complete)
    with pytest.raises(Unavailable, match="volume could not be listed"):
        ask(here, project="Old Lab", namespace="alpha")
    here.fed.sites("host")
    with pytest.raises(Conflict, match="is no cloud"):
        import_things(here.fed.runtime, None, Key("Site", "", "host"), {"project": "x", "namespace": "alpha"})
