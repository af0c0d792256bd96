"""What can be wanted of a cloud of virtual machines: servers, volumes, networks, and what they need."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from groundcontrol.capabilities.clouds.operations import Asked, verbs
from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import NAME, Column, Key, KindInfo, Model, Resource, Status, did_you_mean
from groundcontrol.ports.cloud import FIELDS

if TYPE_CHECKING:
    from groundcontrol.kernel.tx import Tx

CLOUD = "cloud:"
"""Before the name or id of what is there at the site and not a resource of ours."""
NEW = "new"
"""For `adopt`: make a new thing although one carries the mark of another installation for this very resource."""

Drift = Literal["correct", "report", "propose"]
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$", max_length=63)]
Ref = Annotated[str, Field(pattern=r"^(cloud:[^\x00-\x1f]{1,255}|[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)$")]
"""`NAME` of a resource, or `cloud:NAME_OR_ID` of what is there at the site."""
OptionalRef = Annotated[str, Field(pattern=r"^(cloud:[^\x00-\x1f]{1,255}|[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?$")]
Words = Annotated[str, Field(max_length=255)]
Pairs = Annotated[dict[str, Words], Field(max_length=64)]
Amount = Annotated[int, Field(ge=0, le=1_000_000_000)]


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def _cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"not a network like 10.0.0.0/24: {error}") from None


Address = Annotated[str, AfterValidator(_address)]
Cidr = Annotated[str, AfterValidator(_cidr)]


class ThingSpec(Model):
    """What everything in a cloud has."""

    site: Name
    """Site it is at. It stays there."""
    name: str = Field(default="", max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")
    """Its name in the cloud; the resource's name when empty."""
    adopt: str = Field(default="", max_length=255, pattern=r"^[^\x00-\x1f\x7f/?#]*$")
    """Id of a thing that is there already, to be taken over without touching it. `new`: make a new one even where a
    thing carries the mark of another installation for this resource."""
    deletion: Literal["delete", "keep"] = "delete"
    """What happens in the cloud when this resource is deleted: `keep` leaves the thing there, as nobody's."""
    drift: Drift = "correct"
    """What happens to a change made by hand in the cloud: put back; only reported; or left, and proposed as a change of
    the file in git that declares this."""
    drift_of: dict[str, Drift] = Field(default_factory=dict, max_length=32, examples=[{"rules": "report"}])
    """The same for single fields of this spec, by their names."""
    replace: Literal["ask", "allowed"] = "ask"
    """What happens when a field changes that the cloud cannot change in place. The thing is deleted and made anew, with
    the loss of what is in it: `ask` holds that until a person approves it."""


class TenantSpec(ThingSpec):
    """What everything in a project of a cloud has."""

    project: Name
    """Project it is in. It must be of the same site and grant this namespace. It stays there."""


class Fault(Model):
    """What went wrong last."""

    time: str = ""
    """When it was seen, RFC 3339."""
    cause: str = ""
    """One word: QuotaExceeded, NoValidHost, BadImage, BadFlavor, Vanished, RemoteBug, …"""
    message: str = ""
    """What the cloud said."""


class ThingStatus(Status):
    """What is known of something in a cloud."""

    id: str = ""
    """Its id in the cloud."""
    state: str = ""
    """ready, off, busy, failed, leaving; empty when it is not there."""
    word: str = ""
    """What the cloud itself calls that."""
    task: str = ""
    """What the cloud is doing with it."""
    operation: Asked = Field(default_factory=Asked)
    """What was asked for last by an action; of servers and volumes."""
    addresses: list[str] = Field(default_factory=list)
    """Addresses it has."""
    fault: Fault = Field(default_factory=Fault)
    """The last failure; kept until something else fails."""
    made: int = 0
    """How often it was made."""
    attempts: int = 0
    """How often it was made since it was last ready."""
    built: str = ""
    """Id with which it was once seen ready: what is lost with that is not thrown away to try again."""
    busy_since: str = ""
    """Since when the cloud works on it, or deletes it; RFC 3339."""
    applied: dict[str, str] = Field(default_factory=dict)
    """Field to a digest of the value that was last found as wanted: a difference from that was made by hand."""
    left: dict[str, str] = Field(default_factory=dict)
    """Field to a digest of what was found at its adoption and is not as wanted: left alone until either changes."""


class CloudResource(Resource):
    """Something in a cloud."""

    spec: ThingSpec
    """What is wanted."""
    status: ThingStatus = Field(default_factory=ThingStatus)
    """What is known of it."""

    @classmethod
    def admit(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Nothing moves from site to site, or from project to project."""
        for field in ("site", "project"):
            before, after = old["spec"].get(field), new["spec"].get(field)
            if before != after:
                message = f"it is in {field} {before} and cannot move to {after}"
                remedy = "make another resource there, and delete this one"
                raise Invalid(problems=(Problem(message, f"spec.{field}", remedy=remedy),))

    @classmethod
    def admit_among(cls, old: Mapping[str, Any] | None, new: Mapping[str, Any], tx: Tx) -> None:
        """The project must be there, at this site, and grant the namespace."""
        if "project" in new["spec"] and new["metadata"]["namespace"]:
            project = tx.get(Key("Project", "", new["spec"]["project"]))
            if why := not_granted(project, new):
                raise Invalid(problems=(Problem(why, "spec.project", remedy="ask those who run the platform"),))


def not_granted(project: Mapping[str, Any] | None, doc: Mapping[str, Any]) -> str:
    """Why this resource may not be in its project; empty when it may. Tells nobody which other projects there are."""
    spec, namespace = doc["spec"], doc["metadata"]["namespace"]
    known = project is not None and namespace in project["spec"].get("namespaces", ())
    if known and project is not None and project["spec"]["site"] == spec["site"]:
        return ""
    at = f"; it is at {project['spec']['site']}" if known and project is not None else ""
    return f"there is no project {spec['project']} at site {spec['site']} for namespace {namespace}{at}"


def _info(
    plural: str, *short: str, namespaced: bool = True, columns: tuple[Column, ...] = (), actions: tuple[str, ...] = ()
) -> KindInfo:
    where = (Column("Project", "spec.project", wide=True),) if namespaced else ()
    return KindInfo(
        plural=plural,
        namespaced=namespaced,
        short=short,
        actions=actions,
        columns=(
            Column("Ready", "conditions.Ready"),
            Column("Site", "spec.site"),
            Column("State", "status.state"),
            *columns,
            Column("Reason", "reason.Ready"),
            Column("Looked", "age:status.lastLooked"),
            *where,
            Column("Id", "status.id", wide=True),
        ),
    )


# ── in a project ────────────────────────────────────────────────────────────────────────────────────────────────


class BootVolume(Model):
    """The volume a server boots from."""

    size: int = Field(ge=1, le=1_000_000)
    """GiB."""
    type: Words = ""
    """Type of volume; the cloud's default when empty."""


class Retry(Model):
    """What happens to a server that failed before it was ever ready."""

    attempts: int = Field(default=3, ge=1, le=10)
    """How often it is made before it is left as it is. Each time the failed one is deleted and seen gone first."""
    delay: float = Field(default=30, ge=0, le=3600)
    """Seconds before the second attempt; doubled for each further one."""


class ServerSpec(TenantSpec):
    """A virtual machine."""

    flavor: Ref = Field(examples=["cloud:m1.small"])
    """A Flavor, or `cloud:NAME`. Another one resizes the server, which restarts it."""
    image: Ref = Field(examples=["cloud:debian-12"])
    """An Image, or `cloud:NAME`."""
    networks: list[Ref] = Field(default_factory=list, max_length=16)
    """Networks it is in."""
    security_groups: list[Ref] | None = Field(default=None, max_length=16)
    """Security groups of its interfaces; left out: the project's default."""
    keypair: Annotated[str, Field(pattern=f"^({NAME.pattern})?$")] = ""
    """A Keypair whose owner may log in."""
    zone: Words = ""
    """Availability zone; the cloud chooses when empty."""
    user_data: str = Field(default="", max_length=65_535)
    """What the image's cloud-init gets. It is not a place for secrets: whoever may read this resource reads it."""
    boot_volume: BootVolume | None = None
    """Boot from a volume made of the image; left out: from a disk of the flavor."""
    metadata: Pairs | None = None
    """Key and value, for the image and for people; left out: left as it is."""
    power: Literal["on", "off", "user"] = "on"
    """`user`: whoever uses it may stop and start it."""
    locked: bool = False
    """Whether its users may not change it in the cloud."""
    retry: Retry = Field(default_factory=Retry)
    """What happens when it fails before it was ever ready."""


class VolumeSpec(TenantSpec):
    """A disk of its own."""

    size: int = Field(ge=1, le=1_000_000)
    """GiB. It grows in place and never shrinks."""
    type: Words = ""
    """Type of volume; the cloud's default when empty."""
    description: Words | None = None
    """What it is for; left out: left as it is."""
    zone: Words = ""
    """Availability zone; the cloud chooses when empty."""
    image: OptionalRef = ""
    """What it is filled with: an Image, or `cloud:NAME`."""
    snapshot: Words = ""
    """Id of a volume's snapshot that it is filled with."""
    attached_to: Annotated[str, Field(pattern=f"^({NAME.pattern})?$")] | None = None
    """Server it is attached to; empty: to none; left out: left as it is."""
    metadata: Pairs | None = None
    """Key and value; left out: left as it is."""


class NetworkSpec(TenantSpec):
    """A network of the project's own."""

    description: Words | None = None
    """What it is for; left out: left as it is."""
    mtu: Annotated[int, Field(ge=576, le=65_535)] | None = None
    """Largest packet, bytes; left out: what the cloud says."""
    port_security: bool | None = None
    """Whether security groups hold on it; left out: what the cloud says."""


class Pool(Model):
    """A range of addresses that are given out."""

    start: Address
    """The first."""
    end: Address
    """The last."""


class Route(Model):
    """A route that servers are told of."""

    destination: Cidr
    """Network it leads to."""
    nexthop: Address
    """Address it goes through."""


class SubnetSpec(TenantSpec):
    """A range of addresses on a network."""

    network: Ref
    """The Network it is on, or `cloud:NAME`."""
    cidr: Cidr = Field(examples=["10.20.0.0/24"])
    """Its addresses."""
    gateway: Address | Literal["", "none"] = ""
    """Address of the router; `none`: there is none; empty: the cloud chooses."""
    dns: list[Address] | None = Field(default=None, max_length=8)
    """Name servers that servers are told of; left out: left as it is."""
    dhcp: bool | None = None
    """Whether servers are told their addresses by DHCP; left out: what the cloud says."""
    pools: list[Pool] | None = Field(default=None, max_length=16)
    """Addresses that are given out; left out: all that are free."""
    host_routes: list[Route] | None = Field(default=None, max_length=32)
    """Routes that servers are told of; left out: left as it is."""


class RouterSpec(TenantSpec):
    """What connects subnets, and leads outside."""

    external_network: OptionalRef | None = Field(default=None, examples=["cloud:public"])
    """The external network it leads to; empty: to none; left out: left as it is."""
    subnets: list[Ref] = Field(default_factory=list, max_length=32)
    """Subnets it connects."""
    snat: bool | None = None
    """Whether servers without a floating address reach the outside; left out: what the cloud says."""
    description: Words | None = None
    """What it is for; left out: left as it is."""


class SecurityRule(Model):
    """Traffic that is let through."""

    direction: Literal["ingress", "egress"] = "ingress"
    """To the server, or from it."""
    ethertype: Literal["IPv4", "IPv6"] = "IPv4"
    """Version of IP."""
    protocol: str = Field(default="", pattern=r"^[a-z0-9-]{0,20}$", examples=["tcp"])
    """tcp, udp, icmp, …; empty: any."""
    ports: str = Field(default="", pattern=r"^([0-9]{1,5}(-[0-9]{1,5})?)?$", examples=["443", "8000-8080"])
    """A port or a range; empty: any. For icmp, type and code."""
    remote: Cidr | Literal[""] = ""
    """Network at the other end; empty: any, or `group`."""
    group: OptionalRef = ""
    """Security group at the other end: a SecurityGroup, `self`, or `cloud:ID`."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.remote and self.group:
            raise ValueError("the other end is either remote or group")
        if self.remote and ipaddress.ip_network(self.remote).version != int(self.ethertype[-1]):
            raise ValueError(f"{self.remote} is not {self.ethertype}")
        low, _, high = self.ports.partition("-")
        if self.ports and not (self.protocol and int(low) <= int(high or low) <= 65_535):
            raise ValueError("ports need a protocol, the lower one first, 65535 at most")
        return self


class SecurityGroupSpec(TenantSpec):
    """What may reach a server, and what it may reach."""

    description: Words | None = None
    """What it is for; left out: left as it is."""
    rules: list[SecurityRule] = Field(default_factory=list, max_length=200)
    """Traffic that is let through; all else is not."""
    egress: Literal["all", "rules"] = "all"
    """`all`: servers may reach everything; `rules`: only what rules with `direction: egress` let through."""


class FloatingIPSpec(TenantSpec):
    """An address of an external network that can lead to a server."""

    network: Ref = Field(examples=["cloud:public"])
    """The external network."""
    server: Annotated[str, Field(pattern=f"^({NAME.pattern})?$")] | None = None
    """Server it leads to; empty: to none; left out: left as it is."""
    description: Words | None = None
    """What it is for; left out: left as it is."""


class KeypairSpec(TenantSpec):
    """A public key that servers are made with. In the cloud it is called `NAMESPACE.NAME`."""

    public_key: str = Field(max_length=16_384, pattern=r"^(ssh|ecdsa|sk)[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n]*)?$")
    """The key, as in an `id_ed25519.pub`."""

    @model_validator(mode="after")
    def _named_by_us(self) -> Self:
        if self.name or self.adopt:
            # Keypairs of all namespaces lie side by side in the account of the site.
            raise ValueError("a keypair is called NAMESPACE.NAME in the cloud; leave name and adopt out")
        return self


# ── of the whole platform ───────────────────────────────────────────────────────────────────────────────────────


class ImageSpec(ThingSpec):
    """What servers boot from."""

    project: Annotated[str, Field(pattern=f"^({NAME.pattern})?$")] = ""
    """Project that owns it; empty: the one of the site's account."""
    visibility: Literal["private", "shared", "community", "public"] = "private"
    """Who may use it."""
    format: Literal["raw", "qcow2", "vmdk", "iso"] = "qcow2"
    """Format of the disk."""
    container: Literal["bare", "ovf"] = "bare"
    """What is around it."""
    source: str = Field(default="", max_length=2048, pattern=r"^(https://[^\s@]+)?$")
    """Address its bytes are fetched from when it is made."""
    min_disk: Amount = 0
    """GiB a server needs."""
    min_ram: Amount = 0
    """MiB a server needs."""
    properties: Pairs | None = None
    """Key and value; left out: left as it is."""
    protected: bool = False
    """Whether it cannot be deleted in the cloud."""


class FlavorSpec(ThingSpec):
    """A size of servers."""

    cores: int = Field(ge=1, le=10_000)
    """Cores."""
    memory_mb: int = Field(ge=1, le=100_000_000)
    """Memory, MiB."""
    disk_gb: Amount = 0
    """Disk, GiB; 0: as large as the image says."""
    ephemeral_gb: Amount = 0
    """Second disk, GiB."""
    swap_mb: Amount = 0
    """Swap, MiB."""
    public: bool = True
    """Whether every project may use it."""
    properties: Pairs | None = None
    """Key and value for the scheduler; left out: left as it is."""


class ProjectSpec(ThingSpec):
    """A tenant of a cloud, and which namespaces may use it."""

    namespaces: list[Name] = Field(default_factory=list, max_length=256)
    """Namespaces whose resources may be in it."""
    description: Words | None = None
    """What it is for; left out: left as it is."""
    enabled: bool = True
    """Whether anybody may work in it."""
    domain: Words = ""
    """Id of the domain it is in; the account's own when empty."""


class QuotaSpec(ThingSpec):
    """How much a project may use; what is left out is left as it is, and -1 is no limit."""

    deletion: Literal["delete", "keep"] = "keep"
    """`keep`: the quota stays as it is; nothing else can be done with it."""
    project: Name
    """Project it is of."""
    limits: dict[str, Annotated[int, Field(ge=-1, le=1_000_000_000)]] = Field(
        max_length=32, examples=[{"instances": 10, "cores": 40, "ram_mb": 81920}]
    )
    """What to how much: cores, instances, ram_mb, keypairs, server_groups, volumes, gigabytes, snapshots, networks,
    subnets, ports, routers, floating_ips, security_groups, security_group_rules."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name or self.adopt or self.deletion != "keep":
            raise ValueError("a project always has its one quota; leave name, adopt and deletion out")
        for name in self.limits:
            if name not in FIELDS["quota"]:
                known = ", ".join(sorted(FIELDS["quota"]))
                raise ValueError(f"no quota {name!r}{did_you_mean(name, FIELDS['quota'])} (known: {known})")
        return self


# ── kinds ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Server(CloudResource):
    """A virtual machine in a cloud."""

    info: ClassVar[KindInfo] = _info(
        "servers", "srv", columns=(Column("Addresses", "status.addresses"),), actions=verbs("Server")
    )
    spec: ServerSpec
    """What is wanted."""


class Volume(CloudResource):
    """A disk in a cloud, that servers come and go from."""

    info: ClassVar[KindInfo] = _info("volumes", "vol", columns=(Column("GiB", "spec.size"),), actions=verbs("Volume"))
    spec: VolumeSpec
    """What is wanted."""


class Network(CloudResource):
    """A network of a project in a cloud."""

    info: ClassVar[KindInfo] = _info("networks", "net")
    spec: NetworkSpec
    """What is wanted."""


class Subnet(CloudResource):
    """A range of addresses on a network in a cloud."""

    info: ClassVar[KindInfo] = _info("subnets", columns=(Column("Cidr", "spec.cidr"),))
    spec: SubnetSpec
    """What is wanted."""


class Router(CloudResource):
    """A router in a cloud."""

    info: ClassVar[KindInfo] = _info("routers")
    spec: RouterSpec
    """What is wanted."""


class SecurityGroup(CloudResource):
    """A set of rules in a cloud, of what may reach servers."""

    info: ClassVar[KindInfo] = _info("securitygroups", "sg")
    spec: SecurityGroupSpec
    """What is wanted."""


class FloatingIP(CloudResource):
    """An outside address in a cloud."""

    info: ClassVar[KindInfo] = _info("floatingips", "fip", columns=(Column("Address", "status.addresses"),))
    spec: FloatingIPSpec
    """What is wanted."""


class Keypair(CloudResource):
    """A public key in a cloud, for logging in to servers."""

    info: ClassVar[KindInfo] = _info("keypairs", "kp")
    spec: KeypairSpec
    """What is wanted."""


class Image(CloudResource):
    """A disk image in a cloud."""

    info: ClassVar[KindInfo] = _info("images", "img", namespaced=False)
    spec: ImageSpec
    """What is wanted."""


class Flavor(CloudResource):
    """A size of servers in a cloud."""

    info: ClassVar[KindInfo] = _info("flavors", namespaced=False)
    spec: FlavorSpec
    """What is wanted."""


class Project(CloudResource):
    """A tenant of a cloud, and the namespaces that may use it."""

    info: ClassVar[KindInfo] = _info(
        "projects", "proj", namespaced=False, columns=(Column("Namespaces", "spec.namespaces"),)
    )
    spec: ProjectSpec
    """What is wanted."""


class Quota(CloudResource):
    """How much a project of a cloud may use."""

    info: ClassVar[KindInfo] = _info("quotas", namespaced=False, columns=(Column("Project", "spec.project"),))
    spec: QuotaSpec
    """What is wanted."""


KINDS: tuple[type[CloudResource], ...] = (
    Server, Volume, Network, Subnet, Router, SecurityGroup, FloatingIP, Keypair, Image, Flavor, Project, Quota,
)  # fmt: skip
TYPES: Mapping[str, str] = {
    "Server": "server",
    "Volume": "volume",
    "Network": "network",
    "Subnet": "subnet",
    "Router": "router",
    "SecurityGroup": "security_group",
    "FloatingIP": "floating_ip",
    "Keypair": "keypair",
    "Image": "image",
    "Flavor": "flavor",
    "Project": "project",
    "Quota": "quota",
}
"""Kind to the type of thing it is, as the port calls it."""
