"""What every cloud promises: the same tests on the twin and on real clouds.

A real one needs, besides an account that may administer it: a flavor and an image that boot, an external network, and
room for three servers in a project. `beds` below says how a driver joins.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from groundcontrol.kernel.errors import Conflict, NotFound, OutcomeUnknown, Refused, Unavailable
from groundcontrol.ports.cloud import FIELDS, UNMARKED, Cloud, CloudInstance, Joining, Mark, Thing
from groundcontrol.ports.twins.cloud import MemoryCloud
from tests.drivers.openstack.bed import real
from tests.drivers.openstack.clouds import administered

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8kQ3f0Rk2nYy5m0p8V5xv0c1bqk2a9yq1m3l5n7p9r test"
REAL = administered()
"""Clouds of the clouds.yaml that `GROUND_TEST_CLOUDS` names."""
BEDS = ("memory", *(pytest.param(name, marks=pytest.mark.acceptance) for name in REAL))
MADE_BY_HAND = ("server", "volume", "network", "subnet", "router", "security_group", "floating_ip", "keypair", "image")
MADE_BY_OPERATORS = ("flavor", "project")


@dataclass
class Bed:
    """A cloud, what a test needs to know of it, and what it made there."""

    cloud: Cloud
    flavor: str
    """Id of a small flavor that boots."""
    other_flavor: str
    """Id of another one."""
    image: str
    external: str
    """Id of the external network."""
    source: str
    """Where a new image is fetched from."""
    patience: float = 20.0
    """Seconds in which a server is built."""
    project: str = ""
    """Id of the project that things are made in; empty: the account's own."""
    made: list[tuple[str, str]] = field(default_factory=list)

    def name(self) -> str:
        return f"contract-{secrets.token_hex(4)}"

    def mark(self) -> Mark:
        key = secrets.token_hex(12)
        return Mark(installation="i-contract", owner=f"u{key[:8]}", owner_key="Server alpha/web", change=f"c-{key}")

    def ask(self, type: str, mark: Mark | None = None, **fields: Any) -> str:
        """Create something of this type that the cloud accepts; its id."""
        wanted = self.fields(type, **fields)
        made = self.cloud.create(type, self.project, wanted, mark or self.mark())
        self.made.append((type, made.id))
        return made.id

    def make(self, type: str, **fields: Any) -> Thing:
        """The same, once it is ready."""
        id = self.ask(type, **fields)
        return self.until(type, id, lambda t: t.state in ("ready", "off"))

    def fields(self, type: str, **given: Any) -> dict[str, Any]:
        """What is given, and what else such a thing needs."""
        needs: dict[str, Any] = {} if type == "floating_ip" else {"name": self.name()}
        match type:
            case "server":
                needs |= {"flavor": self.flavor, "image": self.image}
                needs |= {} if "networks" in given else {"networks": [self.lan()]}
            case "volume":
                needs |= {"size": 1}
            case "subnet":
                needs |= {"cidr": "10.77.0.0/24", "ip_version": 4}
                needs |= {} if "network" in given else {"network": self.make("network").id}
            case "floating_ip":
                needs |= {"network": self.external}
            case "keypair":
                needs |= {"public_key": KEY}
            case "image":
                needs |= {"format": "qcow2", "container": "bare", "visibility": "private", "source": self.source}
            case "flavor":
                needs |= {"cores": 1, "memory_mb": 64, "disk_gb": 0, "public": True}
        return needs | given

    def lan(self) -> str:
        """A network with a subnet: what a server needs to get an address."""
        network = self.make("network").id
        self.make("subnet", network=network)
        return network

    def until(self, type: str, id: str, holds: Callable[[Thing], bool]) -> Thing:
        deadline = time.monotonic() + self.patience
        while True:
            thing = self.cloud.get(type, id)
            if holds(thing):
                return thing
            assert time.monotonic() < deadline, thing
            time.sleep(0.02)

    def gone(self, type: str, id: str) -> None:
        """Ask for its end, and wait until it is proved."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                self.cloud.delete(type, id)
                self.cloud.get(type, id)
            except NotFound:
                return
            except (Refused, Conflict, OutcomeUnknown):
                pass  # in use by what is still leaving
            assert time.monotonic() < deadline, (type, id)
            time.sleep(0.02)

    def clean(self) -> None:
        for type, id in reversed(self.made):
            self.gone(type, id)


@contextlib.contextmanager
def beds(kind: str) -> Iterator[Bed]:
    """A bed of this kind. A driver adds its kind to `BEDS` and a branch here, which may `pytest.skip`."""
    if kind in REAL:
        with real(kind) as parts:
            yield Bed(**parts)
        return
    assert kind == "memory"
    cloud = MemoryCloud()
    image = cloud.add("image", name="small", visibility="public")
    flavors = [cloud.add("flavor", name=n, cores=c, memory_mb=64, disk_gb=0) for n, c in (("one", 1), ("two", 2))]
    external = cloud.add("network", name="public", project="p-other", external=True)
    yield Bed(cloud, flavors[0], flavors[1], image, external, "https://images.example.org/small.qcow2", project="p-own")


@pytest.fixture(params=BEDS)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with beds(request.param) as found:
        try:
            yield found
        finally:
            found.clean()


@pytest.fixture
def twin(bed: Bed) -> MemoryCloud:
    """Only where faults can be ordered."""
    if not isinstance(bed.cloud, MemoryCloud):
        pytest.skip("faults are ordered on the twin; on a real cloud a proxy makes them")
    return bed.cloud


def listed(bed: Bed, type: str, id: str) -> Thing | None:
    return next((t for t in bed.cloud.look().things if (t.type, t.id) == (type, id)), None)


# ── every type ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("type", [*MADE_BY_HAND, *MADE_BY_OPERATORS])
def test_a_thing_is_made_marked_found_listed_and_goes(bed: Bed, type: str) -> None:
    mark, wanted = bed.mark(), bed.fields(type)
    id = bed.ask(type, mark, **wanted)
    assert bed.cloud.get(type, id).id == id
    thing = bed.until(type, id, lambda t: t.state == "ready")
    told = {n: v for n, v in wanted.items() if n in thing.fields}
    assert {n: thing.fields[n] for n in told} == told
    assert wanted.keys() - told.keys() <= {"source", "user_data"}, "a field that was set is not told"
    if type in UNMARKED:
        assert thing.mark is None
        assert id == wanted["name"]
    else:
        assert thing.mark == mark
        assert bed.cloud.find(mark.change) == ((type, id),)
    seen = listed(bed, type, id)
    assert seen is not None
    assert (seen.id, seen.name, seen.mark, seen.project) == (thing.id, thing.name, thing.mark, thing.project)
    bed.gone(type, id)
    bed.cloud.delete(type, id)
    assert listed(bed, type, id) is None
    assert bed.cloud.find(mark.change) == ()


@pytest.mark.parametrize("type", [*FIELDS])
def test_absence_is_proved(bed: Bed, type: str) -> None:
    for id in ("00000000-0000-4000-8000-000000000000", "nothing-like-it", ""):
        with pytest.raises(NotFound):
            bed.cloud.get(type, id)


@pytest.mark.parametrize("type", [t for t in MADE_BY_HAND if t not in ("server", "keypair", "subnet", "floating_ip")])
def test_a_repeated_create_makes_another(bed: Bed, type: str) -> None:
    mark, wanted = bed.mark(), bed.fields(type)
    both = {bed.ask(type, mark, **wanted), bed.ask(type, mark, **wanted)}
    assert len(both) == 2
    assert {id for _, id in bed.cloud.find(mark.change)} == both
    assert bed.cloud.fencing == "neither"


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "server": {"name": "other", "metadata": {"team": "red"}, "power": "off", "locked": True},
    "volume": {"name": "other", "size": 2, "description": "data"},
    "network": {"name": "other", "description": "lan"},
    "subnet": {"name": "other", "dns": ["192.0.2.53"], "gateway": ""},
    "router": {"name": "other"},
    "security_group": {"name": "other", "description": "web"},
    "image": {"name": "other", "min_disk": 1},
    "flavor": {"properties": {"hw:cpu_policy": "shared"}},
    "project": {"description": "of alpha"},
}


@pytest.mark.parametrize(("type", "field"), [(t, f) for t, fields in CHANGES.items() for f in fields])
def test_a_field_changes_in_place(bed: Bed, type: str, field: str) -> None:
    wanted = CHANGES[type][field]
    if field == "name":
        wanted = bed.name()
    thing = bed.make(type)
    bed.cloud.change(type, thing.id, {field: (thing.fields.get(field), wanted)})
    changed = bed.until(type, thing.id, lambda t: t.fields.get(field) == wanted and t.state in ("ready", "off"))
    assert changed.mark == thing.mark
    if field == "locked":
        bed.cloud.change(type, thing.id, {field: (True, False)})


FIXED: Mapping[str, tuple[str, Any]] = {
    "server": ("image", "another"),
    "volume": ("zone", "elsewhere"),
    "subnet": ("cidr", "10.78.0.0/24"),
    "floating_ip": ("network", "another"),
    "keypair": ("public_key", KEY + "2"),
    "image": ("format", "raw"),
    "flavor": ("cores", 64),
}


@pytest.mark.parametrize("type", [*FIXED])
def test_what_cannot_change_in_place_is_refused_and_left(bed: Bed, type: str) -> None:
    name, value = FIXED[type]
    thing = bed.make(type)
    before = thing.fields.get(name)
    with pytest.raises(Refused) as caught:
        bed.cloud.change(type, thing.id, {name: (before, value)})
    assert caught.value.cause == "NeedsReplacement"
    assert bed.cloud.get(type, thing.id).fields.get(name) == before


def test_a_change_from_what_is_not_so_any_more_is_a_conflict(bed: Bed) -> None:
    network = bed.make("network", description="one")
    with pytest.raises(Conflict):
        bed.cloud.change("network", network.id, {"description": ("zero", "two")})
    assert bed.cloud.get("network", network.id).fields["description"] == "one"


def test_what_is_not_there_cannot_be_changed_or_acted_on(bed: Bed) -> None:
    gone = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(NotFound):
        bed.cloud.change("network", gone, {"description": ("", "x")})
    with pytest.raises(NotFound):
        bed.cloud.act("server", gone, "stop", {})


# ── what each type has of its own ───────────────────────────────────────────────────────────────────────────────


def test_a_server_takes_its_time_and_has_an_address(bed: Bed) -> None:
    id = bed.ask("server")
    assert bed.cloud.get("server", id).state in ("busy", "ready")
    server = bed.until("server", id, lambda t: t.state == "ready")
    (network,) = server.fields["networks"]
    assert server.fields["addresses"][network]
    assert server.fields["power"] == "on"
    assert server.created > 0
    assert bed.project in ("", server.project)


def test_a_server_is_stopped_and_started(bed: Bed) -> None:
    server = bed.make("server")
    bed.cloud.act("server", server.id, "stop", {})
    off = bed.until("server", server.id, lambda t: t.state == "off")
    assert off.fields["power"] == "off"
    bed.cloud.change("server", server.id, {"power": ("off", "on")})
    assert bed.until("server", server.id, lambda t: t.state == "ready").fields["power"] == "on"


def test_a_server_gets_another_flavor_and_is_confirmed(bed: Bed) -> None:
    server = bed.make("server")
    bed.cloud.change("server", server.id, {"flavor": (bed.flavor, bed.other_flavor)})
    waiting = bed.until("server", server.id, lambda t: t.status == "VERIFY_RESIZE")
    assert waiting.fields["flavor"] == bed.other_flavor
    bed.cloud.act("server", server.id, "confirm-resize", {})
    assert bed.until("server", server.id, lambda t: t.status == "ACTIVE").fields["flavor"] == bed.other_flavor


def test_a_server_that_is_being_made_can_be_deleted(bed: Bed) -> None:
    id = bed.ask("server")
    bed.gone("server", id)


def test_a_volume_is_attached_and_in_use(bed: Bed) -> None:
    server, volume = bed.make("server"), bed.make("volume")
    bed.cloud.change("volume", volume.id, {"attached_to": ("", server.id)})
    bed.until("volume", volume.id, lambda t: t.fields["attached_to"] == server.id)
    with pytest.raises(Refused) as caught:
        bed.cloud.delete("volume", volume.id)
    assert caught.value.cause == "InUse"
    bed.cloud.change("volume", volume.id, {"attached_to": (server.id, "")})
    bed.until("volume", volume.id, lambda t: t.fields["attached_to"] == "" and t.state == "ready")


def test_a_volume_does_not_shrink(bed: Bed) -> None:
    volume = bed.make("volume", size=2)
    with pytest.raises(Refused) as caught:
        bed.cloud.change("volume", volume.id, {"size": (2, 1)})
    assert caught.value.cause == "NeedsReplacement"


def rule(**fields: str) -> dict[str, str]:
    plain = {"direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "ports": "", "remote": "0.0.0.0/0"}
    return plain | fields


def sorted_rules(thing: Thing) -> list[tuple[Any, ...]]:
    return sorted(tuple(sorted(r.items())) for r in thing.fields["rules"])


def test_the_rules_of_a_group_are_what_was_asked_for(bed: Bed) -> None:
    group = bed.make("security_group")
    wanted = [*group.fields["rules"], rule(ports="22"), rule(ports="8000-8080", remote=f"group:{group.id}")]
    wanted.append(rule(protocol="icmp", remote=""))
    bed.cloud.change("security_group", group.id, {"rules": (group.fields["rules"], wanted)})
    found = bed.cloud.get("security_group", group.id)
    assert sorted_rules(found) == sorted(tuple(sorted(r.items())) for r in wanted)
    fewer = [rule(ports="22")]
    bed.cloud.change("security_group", group.id, {"rules": (found.fields["rules"], fewer)})
    assert sorted_rules(bed.cloud.get("security_group", group.id)) == [tuple(sorted(fewer[0].items()))]


def test_a_floating_address_leads_to_a_server(bed: Bed) -> None:
    network = bed.make("network").id
    subnet = bed.make("subnet", network=network).id
    router = bed.make("router", external_network=bed.external, subnets=[subnet])
    assert router.fields["external_network"] == bed.external
    assert router.fields["subnets"] == [subnet]
    server, address = bed.make("server", networks=[network]), bed.make("floating_ip")
    assert address.fields["address"]
    bed.cloud.change("floating_ip", address.id, {"server": ("", server.id)})
    assert bed.until("floating_ip", address.id, lambda t: t.fields["server"] == server.id)
    bed.cloud.change("floating_ip", address.id, {"server": (server.id, "")})
    assert bed.until("floating_ip", address.id, lambda t: t.fields["server"] == "")


def test_a_second_keypair_of_a_name_is_a_conflict(bed: Bed) -> None:
    keypair = bed.make("keypair")
    with pytest.raises(Conflict):
        bed.cloud.create("keypair", bed.project, {"name": keypair.id, "public_key": KEY}, bed.mark())


def test_quotas_are_set_told_and_given_back(bed: Bed) -> None:
    project = bed.make("project").id
    before = bed.cloud.get("quota", project).fields
    bed.cloud.change("quota", project, {"instances": (before["instances"], 3)})
    assert bed.cloud.get("quota", project).fields["instances"] == 3
    bed.cloud.delete("quota", project)
    assert bed.cloud.get("quota", project).fields["instances"] == before["instances"]


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(bed: Bed, type: str, **fields: Any) -> str:
    with pytest.raises(Refused) as caught:
        bed.ask(type, **fields)
    return caught.value.cause


def test_what_a_server_needs_and_is_not_there_is_named(bed: Bed) -> None:
    nothing = "00000000-0000-4000-8000-000000000000"
    assert refused(bed, "server", flavor=nothing) == "BadFlavor"
    assert refused(bed, "server", image=nothing) == "BadImage"


def test_a_used_up_quota_is_named(bed: Bed) -> None:
    mine = bed.project or bed.cloud.look().facts.project
    before = bed.cloud.get("quota", mine).fields["security_groups"]
    # Some clouds take no limit below what is used.
    used = sum((t.type, t.project) == ("security_group", mine) for t in bed.cloud.look().things)
    bed.cloud.change("quota", mine, {"security_groups": (before, used)})
    try:
        assert refused(bed, "security_group") == "QuotaExceeded"
    finally:
        bed.cloud.change("quota", mine, {"security_groups": (used, before)})


def test_a_server_that_no_host_takes_fails_and_says_so(bed: Bed) -> None:
    flavor = bed.make("flavor", cores=500, memory_mb=64).id
    mine = bed.project or bed.cloud.look().facts.project
    before = bed.cloud.get("quota", mine).fields["cores"]
    bed.cloud.change("quota", mine, {"cores": (before, 1000)})
    try:
        id = bed.ask("server", flavor=flavor)
        failed = bed.until("server", id, lambda t: t.state == "failed")
        assert "no valid host" in failed.fault.lower()
        bed.gone("server", id)
    finally:
        bed.cloud.change("quota", mine, {"cores": (1000, before)})


def test_a_network_in_use_is_not_deleted(bed: Bed) -> None:
    network = bed.lan()
    bed.make("server", networks=[network])
    with pytest.raises(Refused) as caught:
        bed.cloud.delete("network", network)
    assert caught.value.cause == "InUse"


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_is_noticed(bed: Bed) -> None:
    before = bed.cloud.look().sequence
    id = bed.ask("network")
    deadline = time.monotonic() + bed.patience
    while listed(bed, "network", id) is None:
        bed.cloud.wait(before, 1.0)
        assert time.monotonic() < deadline
    assert bed.cloud.look().sequence > before


def test_every_type_is_dated_and_facts_are_told(bed: Bed) -> None:
    seen = bed.cloud.look()
    assert seen.complete, seen.problems
    assert set(FIELDS) <= seen.facts.looked.keys()
    assert seen.facts.endpoints
    assert seen.facts.project
    assert any(q.project == seen.facts.project and q.resource == "instances" for q in seen.facts.quotas)


def test_probes_answer_and_never_raise(bed: Bed) -> None:
    if isinstance(bed.cloud, Joining):
        for name in sorted(bed.cloud.probes):
            assert bed.cloud.probe(name).evidence


def test_the_kernel_sees_it_as_a_driver_instance(bed: Bed) -> None:
    instance, mark = CloudInstance(bed.cloud), bed.mark()
    id = bed.ask("network", mark)
    assert instance.find(mark.change) == (("network", id),)
    assert instance.direct(("network", id)).id == id
    listing = instance.look()
    assert ("network", id) in listing.items
    assert listing.facts.project


# ── faults, where they can be ordered ───────────────────────────────────────────────────────────────────────────


def test_a_lost_answer_is_found_by_its_key(bed: Bed, twin: MemoryCloud) -> None:
    for moment, made in (("before", 0), ("after", 1)):
        mark = bed.mark()
        twin.fail("create", "network", moment=moment, error=OutcomeUnknown("no answer"))  # type: ignore[arg-type]
        with pytest.raises(OutcomeUnknown):
            bed.cloud.create("network", bed.project, {"name": "lost"}, mark)
        found = bed.cloud.find(mark.change)
        assert len(found) == made
        bed.made += found


def test_ordered_faults_are_raised_once(bed: Bed, twin: MemoryCloud) -> None:
    twin.fail("look")
    with pytest.raises(Unavailable):
        twin.look()
    twin.look()
    twin.fail("create", "volume", error=Refused("forbidden", cause="NotAuthorised"))
    bed.make("network")
    assert refused(bed, "volume") == "NotAuthorised"


def test_a_hanging_call_hangs_until_it_is_let_go(bed: Bed, twin: MemoryCloud) -> None:
    release = twin.hang("get", "network")
    id = bed.make("router").id
    thread = threading.Thread(target=_ask_for, args=(twin, id))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    release.set()
    thread.join(20)
    assert not thread.is_alive()


def _ask_for(twin: MemoryCloud, id: str) -> None:
    with contextlib.suppress(NotFound):
        twin.get("network", id)


def test_a_type_that_cannot_be_listed_makes_the_listing_partial(bed: Bed, twin: MemoryCloud) -> None:
    network = bed.make("network").id
    twin.deny("volume")
    seen = twin.look()
    assert not seen.complete
    assert seen.problems == ("volume could not be listed",)
    assert "volume" not in seen.facts.looked
    assert listed(bed, "network", network) is not None
    twin.hide(network, complete=True)
    twin.deny()
    lying = twin.look()
    assert lying.complete
    assert all(t.id != network for t in lying.things)


def test_what_is_stuck_stays_and_a_build_may_fail(bed: Bed, twin: MemoryCloud) -> None:
    lan = bed.lan()
    twin.stick("create", "delete")
    id = bed.ask("server", networks=[lan])
    time.sleep(0.1)
    assert twin.get("server", id).state == "busy"
    twin.delete("server", id)
    time.sleep(0.1)
    assert twin.get("server", id).state == "leaving"
    twin.stick()
    twin.delete("server", id)
    twin.build("Build of instance aborted: out of disk", None)
    broken = bed.ask("server", networks=[lan])
    assert bed.until("server", broken, lambda t: t.state == "failed").fault.startswith("Build of instance")
    assert bed.make("server", networks=[lan]).fault == ""
