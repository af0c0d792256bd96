"""What a cloud of virtual machines can do: list what is there, make, change, act on and remove single things.

A `Thing` is a server, a volume, a network, … of one region of one cloud. What can be wanted of it stands in `fields`,
under names that are the same whatever the product; `FIELDS` says which there are. Everything we make carries a `Mark`
inside the thing itself (tags, metadata), so that it is known again when an answer was lost, or our database.

Every call either returns, or raises one of `kernel.errors`: `Refused` when the cloud looked at the call and said no
(`cause` says why in one word), `Unavailable` when the call certainly did nothing, `OutcomeUnknown` when it may have
happened, `NotFound`, `Conflict`. Calls are accepted before they are done: a thing is `busy` until the cloud is through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from groundcontrol.kernel.errors import RefusalCause
from groundcontrol.kernel.world import Fencing, Item, Listing

State = Literal["ready", "off", "busy", "failed", "leaving"]
"""`off`: there and stopped, as its user may want it; `busy`: the cloud works on it; `leaving`: it is being deleted."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FIELDS: Mapping[str, frozenset[str]] = {
    "server": _names(
        "name flavor image networks security_groups keypair zone user_data boot_volume metadata power locked"
    ),
    "volume": _names("name size type description zone image snapshot bootable attached_to metadata"),
    "network": _names("name description shared external mtu port_security"),
    "subnet": _names("name network cidr gateway dns dhcp pools ip_version host_routes"),
    "router": _names("name external_network subnets snat description"),
    "security_group": _names("name description rules"),
    "floating_ip": _names("network address server port fixed_ip description"),
    "keypair": _names("name public_key"),
    "image": _names("name visibility format container min_disk min_ram properties checksum protected source"),
    "flavor": _names("name cores memory_mb disk_gb ephemeral_gb swap_mb public properties"),
    "project": _names("name description enabled domain"),
    "quota": _names(
        "cores instances ram_mb keypairs server_groups volumes gigabytes snapshots networks subnets ports routers"
        " floating_ips security_groups security_group_rules"
    ),
}
"""Type of thing to what can be wanted of it. References to other things are ids, lists of them have no order, text that
is not there is "", and a field that a product does not tell is left out. Sizes of volumes are GiB.

    server          `networks`, `security_groups`: ids; `keypair`: its name; `boot_volume`: {"size", "type"}, absent
                    when it boots from its image; `metadata`: without our marks; `power`: "on" or "off"; `user_data`:
                    text, never told. Told besides: `addresses`, {network id: [address]}, and `volumes`, ids
    volume          `attached_to`: id of a server, or ""; `size`: only grows in place
    subnet          `gateway`: address, or "" for none; `pools`: [{"start", "end"}];
                    `host_routes`: [{"destination", "nexthop"}]
    security_group  `rules`: [{"direction": "ingress" | "egress", "ethertype": "IPv4" | "IPv6", "protocol": "tcp", … or
                    "" for any, "ports": "80", "8000-8080" or "" for any, "remote": a CIDR, "group:ID" or "" for any}]
    floating_ip     `network`: the external one; `server`: id of the server it leads to, or "" (its first port)
    keypair         its id is its name; it carries no mark
    image           `source`: where its bytes are fetched from, an https address; never told
    quota           its id is the id of its project; it is always there: create sets it, delete gives the defaults back
"""

IN_PLACE: Mapping[str, frozenset[str]] = {
    "server": _names("name flavor networks security_groups metadata power locked"),
    "volume": _names("name size description bootable attached_to metadata"),
    "network": _names("name description shared external mtu port_security"),
    "subnet": _names("name gateway dns dhcp pools host_routes"),
    "router": FIELDS["router"],
    "security_group": FIELDS["security_group"],
    "floating_ip": _names("server port fixed_ip description"),
    "keypair": frozenset(),
    "image": _names("name visibility min_disk min_ram properties protected"),
    "flavor": _names("properties"),
    "project": _names("name description enabled"),
    "quota": FIELDS["quota"],
}
"""What `change` can change of a thing that is there; anything else is refused as `NeedsReplacement`. Another flavor of
a server is a resize: the server is busy, then its status is `VERIFY_RESIZE` until somebody acts `confirm-resize` or
`revert-resize`."""

UNMARKED = frozenset({"keypair", "quota"})
"""Types whose things carry no mark. Their ids are known before they are made."""

VERBS: Mapping[str, frozenset[str]] = {
    "server": _names(
        "start stop reboot rebuild resize confirm-resize revert-resize snapshot shelve unshelve lock unlock rescue"
        " unrescue console migrate live-migrate evacuate attach-volume detach-volume force-delete reset-state"
    ),
    "volume": _names("extend snapshot retype reset-state"),
    "host": _names("enable disable force-down un-force-down"),
}
"""Type of thing to what can be done to it besides changing fields."""


class Mark(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whose a thing is; written into the thing at create."""

    installation: str
    owner: str
    """Uid of the resource it was made for."""
    owner_key: str
    """`Kind namespace/name` of that resource, for people and for a lost database."""
    change: str
    """Key of the call that made it."""


class Thing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing in a cloud, as it was last seen."""

    type: str
    id: str
    name: str = ""
    project: str = ""
    """Id of the project it belongs to; empty for what belongs to the whole cloud."""
    state: State = "ready"
    status: str = ""
    """The product's own word."""
    task: str = ""
    """What the cloud is doing with it."""
    fault: str = ""
    """What the cloud says is wrong with it."""
    cause: RefusalCause | Literal[""] = ""
    """What kind of fault that is; empty when its words do not tell."""
    host: str = ""
    """The machine it runs on, where the cloud tells."""
    fields: dict[str, Any] = {}
    mark: Mark | None = None
    """None: not made by any Ground Control, or not markable (`unmarked` types are found by their name or owner)."""
    created: float = 0.0
    """Seconds since the epoch; 0 when not told."""
    updated: float = 0.0


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service of the cloud."""

    service: str
    """Type as in the catalogue: `compute`, `network`, `block-storage`, `image`, `identity`, `placement`, …"""
    url: str
    region: str = ""
    version: str = ""
    """Highest (micro)version it speaks."""
    minimum: str = ""
    problem: str = ""
    """Why it did not answer; empty when it did."""
    expires: float = 0.0
    """When its certificate ends, seconds since the epoch; 0 without TLS."""
    trusted: bool | None = None
    """Whether an authority vouches for its certificate: the site's own (`options.caCert`), or those of this machine.
    None: nobody checked, for example because the site says not to."""
    skew: float | None = None
    """Its clock minus ours, seconds; None: it was not measured."""


class Host(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One hypervisor."""

    name: str
    zone: str = ""
    aggregates: tuple[str, ...] = ()
    up: bool | None = None
    enabled: bool = True
    disabled_reason: str = ""
    forced_down: bool = False
    cores: int = 0
    cores_used: int = 0
    memory_mb: int = 0
    memory_used_mb: int = 0
    disk_gb: int = 0
    disk_used_gb: int = 0
    servers: int = 0


class QuotaUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one project may use of one resource, and does."""

    project: str
    resource: str
    """As in `FIELDS["quota"]`."""
    limit: int
    """-1: no limit."""
    used: int = 0
    reserved: int = 0


class CloudFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a cloud says of itself; what is not allowed to be read is missing and named in `problems`."""

    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    hosts: tuple[Host, ...] = ()
    quotas: tuple[QuotaUse, ...] = ()
    roles: tuple[str, ...] = ()
    """Roles of our account in its project; empty: not told (an account without roles cannot sign in to a project)."""
    project: str = ""
    """Id of the project our account works in; `quotas` of that project are the ones that bound us."""
    looked: dict[str, float] = {}
    """Type of thing (and `hosts`, `quotas`, `endpoints`) to when it was last listed whole, seconds since the epoch."""
    calls: int = 0
    """API calls made since the connection was opened."""
    cores: float = 0.0
    memory_mb: int = 0
    """Of all hosts, or of the quota of our project where hosts are not ours to see."""


class CloudObserved(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known of one region of a cloud."""

    things: tuple[Thing, ...]
    complete: bool
    """False when something could not be listed: then absence says nothing."""
    sequence: int
    """Grows whenever something differs from the look before."""
    facts: CloudFacts
    problems: tuple[str, ...] = ()


class Made(NamedTuple):
    """What a create answered."""

    id: str
    secret: str = ""
    """What is shown only once, for example a generated private key."""


class Cloud(Protocol):
    """One region of a cloud, with one service account. Implemented by `drivers.openstack` and by the twin."""

    fencing: Fencing

    def look(self) -> CloudObserved:
        """Everything there is; incremental inside where the product can, within the budget of calls."""

    def wait(self, since: int, timeout: float) -> int:
        """Return when something changed after `since`, or after `timeout` seconds; the counter."""

    def get(self, type: str, id: str) -> Thing:
        """One thing, looked at directly; NotFound is proof of absence, also for an empty id."""

    def find(self, change_key: str) -> tuple[Item, ...]:
        """(type, id) of what carries this change key, asked of the cloud directly."""

    def create(self, type: str, project: str, fields: Mapping[str, Any], mark: Mark) -> Made:
        """Ask for a thing in a project (its id; empty: the account's own). Not idempotent: look for the mark first."""

    def change(self, type: str, id: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
        """Change fields in place, path to (before, after). Conflict when `before` is not so any more; `Refused` with
        cause `NeedsReplacement` when the product cannot change one of them."""

    def act(self, type: str, id: str, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Do one of `VERBS`; what it answers, for example the console's text."""

    def delete(self, type: str, id: str) -> None:
        """Ask for its end; deleting what is not there is done already."""

    def close(self) -> None:
        """Let go of connections."""


PROBES: Mapping[str, str] = {
    "own-servers": "list the servers of its own project",
    "own-networks": "list the networks it may use",
    "own-quota": "read the quota of its own project",
    "all-servers": "list the servers of every project",
    "hypervisors": "list the hypervisors",
    "compute-services": "list the services of the compute nodes",
    "all-projects": "list every project",
    "all-users": "list every user",
    "role-assignments": "list who has which role",
    "other-quota": "read the quota of a project that is not its own",
}
"""Calls that prove a right, by name. Each only reads, and asks for one entry where the product can."""


class Probe(NamedTuple):
    """What a call of `PROBES` came to."""

    result: Literal["allowed", "refused", "unknown"]
    """`refused`: the cloud looked at the call and said that this account may not. `unknown`: it could not be asked."""
    evidence: str
    """What was asked and answered, short and without anything secret, for example `GET /os-hypervisors: 403`."""


@runtime_checkable
class Joining(Protocol):
    """What a `Cloud` can also do when it can prove the rights of its account. The rules of joining ask for it."""

    probes: frozenset[str]
    """Those of `PROBES` it can make."""

    def probe(self, name: str) -> Probe:
        """Make this call. Changes nothing, takes no longer than any other call, and never raises for a refusal."""


class CloudInstance:
    """Implements `kernel.world.DriverInstance` over the `Cloud` port."""

    def __init__(self, port: Cloud) -> None:
        self.port = port
        self.fencing: Fencing = port.fencing

    def look(self) -> Listing:
        seen = self.port.look()
        things = {(t.type, t.id): t for t in seen.things}
        return Listing(things, seen.complete, seen.problems, seen.sequence, seen.facts)

    def wait(self, since: int, timeout: float) -> int:
        return self.port.wait(since, timeout)

    def direct(self, item: Item) -> Any:
        return self.port.get(*item)

    def find(self, change_key: str) -> tuple[Item, ...]:
        return self.port.find(change_key)

    def close(self) -> None:
        self.port.close()


# Types describe themselves to msgspec when first used, and two threads that do so at once crash the process.
msgspec.json.Decoder(CloudObserved)
