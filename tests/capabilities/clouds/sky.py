"""A federation with one cloud in memory, ready for things to be made in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundcontrol.kernel.resource import Doc, condition
from groundcontrol.ports.cloud import Thing
from groundcontrol.ports.twins.cloud import MemoryCloud
from tests.federation import Federation, federation

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8kQ3f0Rk2nYy5m0p8V5xv0c1bqk2a9yq1m3l5n7p9r ada"


class Sky:
    """The federation, its cloud `bari`, and hands for both."""

    def __init__(self, fed: Federation, cloud: MemoryCloud) -> None:
        self.fed, self.cloud = fed, cloud

    def apply(self, kind: str, name: str, /, namespace: str = "alpha", **spec: Any) -> Doc:
        where: Doc = {"site": "bari"} | ({"project": "lab"} if namespace else {})
        return self.fed.apply(kind, name, where | spec, namespace)

    def server(self, name: str = "web", /, **spec: Any) -> Doc:
        given = {"flavor": "cloud:small", "image": "cloud:debian", "networks": ["lan"]}
        return self.apply("Server", name, **given | spec)

    def ready(self, kind: str, name: str, namespace: str = "alpha", status: str = "True") -> Doc:
        self.fed.until_ready(kind, name, namespace, status)
        return self.fed.get(kind, name, namespace) or {}

    def status(self, kind: str, name: str, namespace: str = "alpha") -> Doc:
        return (self.fed.get(kind, name, namespace) or {"status": {}})["status"]

    def lan(self) -> None:
        self.apply("Network", "lan")
        self.apply("Subnet", "lan", network="lan", cidr="10.1.0.0/24")
        self.ready("Subnet", "lan")

    def made(self, type: str) -> list[Thing]:
        """What of a type is there and of our making."""
        return [t for t in self.cloud.things(type) if t.mark is not None]

    def only(self, type: str) -> Thing:
        (thing,) = self.made(type)
        return thing

    def said(self, kind: str, name: str, words: str, namespace: str = "alpha") -> None:
        """Wait until `Ready` says these words."""

        def holds() -> bool:
            doc = self.fed.get(kind, name, namespace)
            return doc is not None and words in condition(doc, "Ready")["message"]

        self.fed.until(holds, words)

    def listed(self, type: str, id: str) -> None:
        """Wait until the newest snapshot has it, as it is in the cloud."""
        world = self.fed.runtime.world
        self.fed.until(lambda: world.snapshot("site/bari").items.get((type, id)) == self.cloud.get(type, id))

    def calls(self, *calls: str) -> list[tuple[str, str, str]]:
        return [c for c in self.cloud.calls if c[0] in calls]


def furnish(cloud: MemoryCloud) -> None:
    """What a cloud has before anybody comes."""
    cloud.add("flavor", "f-small", name="small", cores=1, memory_mb=512, disk_gb=0, public=True)
    cloud.add("flavor", "f-big", name="big", cores=4, memory_mb=4096, disk_gb=0, public=True)
    cloud.add("flavor", "f-huge", name="huge", cores=500, memory_mb=512, disk_gb=0, public=True)
    cloud.add("image", "i-debian", name="debian", visibility="public", project="p-admin")
    cloud.add("network", "n-public", name="public", external=True, project="p-admin")


def declare(sky: Sky) -> None:
    """The site, the namespace and the project."""
    fed = sky.fed
    if fed.get("Namespace", "alpha") is None:
        fed.apply("Namespace", "alpha", {"group": "experiments/alpha"})
    fed.apply("Site", "bari", {"driver": "memory-cloud", "endpoint": "memory:"})
    fed.until_ready("Site", "bari")
    sky.apply("Project", "lab", "", namespaces=["alpha"])
    sky.ready("Project", "lab", "")


@contextmanager
def sky(data: Path, *, declare_site: bool = True, cloud: MemoryCloud | None = None, **settings: Any) -> Iterator[Sky]:
    """An installation whose site `bari` is a cloud, with the project `lab` of the namespace `alpha`."""
    with federation(data, **settings) as fed:
        cloud = fed.clouds.setdefault("bari", cloud or MemoryCloud())
        furnish(cloud)
        fed.runtime.turns._outcomes._seconds = 0.1
        found = Sky(fed, cloud)
        if declare_site:
            declare(found)
        yield found
