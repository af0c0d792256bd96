"""Every verb of the port on a real cloud: what it leaves a server, a volume or a host as. Acceptance."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from groundcontrol.drivers.openstack.driver import OpenStack
from groundcontrol.kernel.errors import Conflict, GroundError, NotFound, Refused
from groundcontrol.ports.cloud import Mark, Thing
from tests.drivers.openstack.bed import cloud_of, random_name, smallest
from tests.drivers.openstack.clouds import administered

pytestmark = pytest.mark.acceptance
CLOUDS = administered() or [pytest.param("", marks=pytest.mark.skip(reason="GROUND_TEST_CLOUDS names no clouds"))]
PATIENCE = 120.0


class World:
    """A cloud, and what a test made in it."""

    def __init__(self, name: str) -> None:
        self.cloud: OpenStack = cloud_of(name)
        things = self.cloud.look().things
        self.image = next(t.id for t in things if t.type == "image" and t.fields["visibility"] == "public")
        flavors = [t for t in things if t.type == "flavor" and t.mark is None and t.fields["disk_gb"]]
        self.small, self.large = (t.id for t in smallest(flavors)[:2])
        self.made: list[tuple[str, str]] = []

    def make(self, type: str, /, **fields: Any) -> str:
        key = random_name()
        mark = Mark(installation="i-driver", owner=f"u-{key}", owner_key="Server alpha/web", change=f"c-{key}")
        id = self.cloud.create(type, "", {"name": key, **fields}, mark).id
        self.made.append((type, id))
        self.until(type, id, lambda t: t.state in ("ready", "off"))
        return id

    def server(self) -> str:
        return self.make("server", flavor=self.small, image=self.image, networks=[])

    def until(self, type: str, id: str, holds: Callable[[Thing], bool]) -> Thing:
        deadline = time.monotonic() + PATIENCE
        while True:
            thing = self.cloud.get(type, id)
            if holds(thing):
                return thing
            assert time.monotonic() < deadline, thing
            time.sleep(0.3)

    def act(self, id: str, verb: str, status: str, **given: Any) -> Thing:
        """Do it to a server, and wait until it is through."""
        self.cloud.act("server", id, verb, given)
        return self.until("server", id, lambda t: t.status == status and not t.task)

    def clean(self) -> None:
        for type, id in reversed(self.made):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    self.cloud.delete(type, id)
                    self.cloud.get(type, id)
                except NotFound:
                    break
                except GroundError:
                    pass  # still in use by what is leaving
                time.sleep(0.3)


@pytest.fixture(params=CLOUDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    found = World(request.param)
    try:
        yield found
    finally:
        found.clean()


def test_the_life_of_a_server(world: World) -> None:
    id = world.server()
    world.act(id, "stop", "SHUTOFF")
    world.act(id, "start", "ACTIVE")
    world.act(id, "reboot", "ACTIVE", type="hard")
    world.act(id, "reboot", "ACTIVE")
    world.act(id, "lock", "ACTIVE")
    assert world.cloud.get("server", id).fields["locked"]
    world.act(id, "unlock", "ACTIVE")
    world.act(id, "rescue", "RESCUE")
    world.act(id, "unrescue", "ACTIVE")
    assert world.act(id, "shelve", "SHELVED_OFFLOADED").state == "off"
    world.act(id, "unshelve", "ACTIVE")
    world.act(id, "rebuild", "ACTIVE", image=world.image)
    assert world.cloud.act("server", id, "console", {"lines": 5})["output"]
    image = world.cloud.act("server", id, "snapshot", {"name": random_name()})["image"]
    world.made.append(("image", image))
    world.until("image", image, lambda t: t.state == "ready")
    world.until("server", id, lambda t: not t.task)
    world.cloud.act("server", id, "reset-state", {"state": "error"})
    assert world.cloud.get("server", id).state == "failed"
    world.cloud.act("server", id, "reset-state", {})
    world.cloud.act("server", id, "force-delete", {})
    with pytest.raises(NotFound):
        world.until("server", id, lambda t: False)


def test_a_server_goes_to_another_host_and_size(world: World) -> None:
    id = world.server()
    first = world.cloud.get("server", id).host
    moved = world.act(id, "live-migrate", "ACTIVE")
    assert moved.host not in ("", first)
    waiting = world.act(id, "migrate", "VERIFY_RESIZE")
    assert waiting.host not in ("", moved.host)
    world.act(id, "confirm-resize", "ACTIVE")
    world.act(id, "resize", "VERIFY_RESIZE", flavor=world.large)
    back = world.act(id, "revert-resize", "ACTIVE")
    assert back.fields["flavor"] == world.small
    # Its host is up: Nova looks, and says no.
    with pytest.raises((Refused, Conflict)):
        world.cloud.act("server", id, "evacuate", {})


def test_volumes(world: World) -> None:
    server, volume = world.server(), world.make("volume", size=1, type="standard")
    world.cloud.act("server", server, "attach-volume", {"volume": volume})
    world.until("volume", volume, lambda t: t.fields["attached_to"] == server and t.state == "ready")
    assert world.cloud.get("server", server).fields["volumes"] == [volume]
    world.cloud.act("server", server, "detach-volume", {"volume": volume})
    world.until("volume", volume, lambda t: not t.fields["attached_to"] and t.state == "ready")
    world.cloud.act("volume", volume, "extend", {"size": 2})
    world.until("volume", volume, lambda t: t.fields["size"] == 2 and t.state == "ready")
    world.cloud.act("volume", volume, "retype", {"type": "fast"})
    world.until("volume", volume, lambda t: t.fields["type"] == "fast" and t.state == "ready")
    world.cloud.act("volume", volume, "reset-state", {"state": "error"})
    assert world.cloud.get("volume", volume).state == "failed"
    world.cloud.act("volume", volume, "reset-state", {})
    snapshot = world.cloud.act("volume", volume, "snapshot", {"name": random_name()})["snapshot"]
    assert snapshot
    copy = world.make("volume", size=2, snapshot=snapshot)
    assert world.cloud.get("volume", copy).fields["snapshot"] == snapshot
    world.cloud._connection.call("block-storage", "DELETE", f"/snapshots/{snapshot}")


def test_a_host_is_disabled_and_enabled(world: World) -> None:
    host = sorted(world.cloud.look().facts.hosts, key=lambda h: h.servers)[0].name

    def told(enabled: bool) -> bool:
        seen = next(h for h in world.cloud.look().facts.hosts if h.name == host)
        return seen.enabled is enabled and ("by a test" in seen.disabled_reason or enabled)

    world.cloud.act("host", host, "disable", {"reason": "by a test"})
    try:
        deadline = time.monotonic() + PATIENCE
        while not told(False):
            assert time.monotonic() < deadline
    finally:
        world.cloud.act("host", host, "enable", {})
    while not told(True):
        assert time.monotonic() < deadline
    with pytest.raises(NotFound):
        world.cloud.act("host", "no-such-host", "disable", {})


def test_a_server_boots_from_a_volume(world: World) -> None:
    id = world.make("server", flavor=world.small, image=world.image, networks=[], boot_volume={"size": 1})
    fields = world.cloud.get("server", id).fields
    assert fields["image"] == world.image
    assert fields["boot_volume"]["size"] == 1


def test_verbs_and_arguments_that_are_not_there_are_refused(world: World) -> None:
    for type, id, verb, given in (
        ("server", "x", "fly", {}),
        ("network", "x", "stop", {}),
        ("server", "x", "resize", {}),
        ("server", "x", "stop", {"how": "fast"}),
        ("volume", "x", "extend", {}),
    ):
        with pytest.raises(Refused) as caught:
            world.cloud.act(type, id, verb, given)
        assert caught.value.cause == "InvalidRequest"
