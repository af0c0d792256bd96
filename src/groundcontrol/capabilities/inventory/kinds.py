"""Sites: the places where services run, how they are reached, and the rules by which they join."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import (
    Column,
    KindInfo,
    Model,
    Need,
    Resource,
    Status,
    Truth,
    did_you_mean,
    seconds,
    selector,
)
from groundcontrol.kernel.secrets import SecretRef
from groundcontrol.ports.cloud import FIELDS, PROBES
from groundcontrol.ports.web import origin

if TYPE_CHECKING:
    from groundcontrol.kernel.tx import Tx

DAY = 86_400.0
LONGEST_EXCEPTION = 366 * DAY

TRANSITIONS = {
    "candidate": {"active", "retired"},
    "active": {"maintenance", "retired"},
    "maintenance": {"active", "retired"},
    "retired": {"candidate"},
}
"""Life cycle: from which state a site may go to which."""


class Topology(Model):
    """Where a site's machines stand; what fails together."""

    datacentre: str = ""
    """Building or campus."""
    room: str = ""
    """Room in it."""
    rack: str = ""
    """Rack in the room; services can be spread over racks."""


class Capacity(Model):
    """How much of a site Ground Control may use."""

    cores: float = Field(default=0, ge=0)
    """Cores to place on; 0 takes what the site itself offers."""
    memory_mb: int = Field(default=0, ge=0)
    """Memory to place on, MiB; 0 takes what the site itself offers."""


def _moment(text: str) -> str:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("not a time like 2030-01-31T18:00:00Z") from None
    if at.tzinfo is None:
        raise ValueError("it has no time zone; put a Z behind it for UTC")
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class JoinException(Model):
    """Somebody answers for using a site whose rules of joining do not hold, for a while."""

    reason: str = Field(min_length=1, max_length=500, examples=["the certificate is renewed on Monday"])
    """Why; shown wherever the site is, and kept in the audit."""
    until: Annotated[str, AfterValidator(_moment)] = Field(examples=["2030-01-31T18:00:00Z"])
    """When it ends, RFC 3339; a year from now at most."""


class SiteSpec(Model):
    """How a site is reached and used."""

    driver: str
    """Product that runs the site: `local` (processes on a host) or `openstack` (one region of a cloud)."""
    endpoint: str = "local:"
    """Where the driver reaches it: `local:` for this host, the address of an agent, `https://host:8441`, or that of a
    cloud's Keystone, `https://host:5000/v3`."""
    credentials: SecretRef | None = None
    """`secret:NAME/KEY`, a secret of the namespace `platform`, for the driver to sign in with. For `openstack` it holds
    the `auth` of a `clouds.yaml` as JSON."""
    region: str = ""
    """Region the site belongs to."""
    zone: str = ""
    """Availability zone the site belongs to."""
    topology: Topology = Field(default_factory=Topology)
    """Where its machines stand."""
    capacity: Capacity = Field(default_factory=Capacity)
    """How much of it may be used."""
    state: Literal["candidate", "active", "maintenance", "retired"] = "active"
    """Life cycle: only `active` sites get new instances; on `maintenance` what runs is left alone;
    from `retired` everything is moved away, and it comes back as `candidate` only. It becomes `active` only when the
    rules of every JoinPolicy that selects it hold."""
    join_exception: JoinException | None = None
    """Uses the site although rules of joining do not hold. Needs the right to `approve` JoinPolicies."""
    options: dict[str, str] = Field(default_factory=dict)
    """What only this driver understands."""


class RuleResult(Model):
    """What became of one rule of joining."""

    policy: str
    """The JoinPolicy it is of."""
    rule: str
    """Which of its rules."""
    result: Truth
    """`Unknown`: it could not be looked at."""
    evidence: str = ""
    """What was seen."""
    remedy: str = ""
    """What to do about it; empty when it holds."""
    since: str = ""
    """Since when the result is this one, RFC 3339."""


class ServiceSeen(Model):
    """One service of a cloud's catalogue."""

    service: str
    """Type of service, as in the catalogue."""
    url: str = ""
    """Where it is, without what may be secret in an address."""
    version: str = ""
    """Highest version it speaks."""
    minimum: str = ""
    """Lowest version it speaks."""
    problem: str = ""
    """Why it did not answer; empty when it did."""
    certificate_until: str = ""
    """When its certificate ends, RFC 3339."""


class HostCounts(Model):
    """Hypervisors of a cloud."""

    up: int = 0
    """How many answer."""
    down: int = 0
    """How many do not."""
    unknown: int = 0
    """Of how many the cloud does not say."""
    disabled: int = 0
    """How many of all of them take nothing new."""


class SiteStatus(Status):
    """What is known of a site."""

    reachable_since: str = ""
    """Since when it answers, or since when it does not; RFC 3339."""
    cores: float = 0
    """Cores offered."""
    memory_mb: int = 0
    """Memory offered, MiB."""
    cores_used: float = 0
    """Cores asked for by what is placed here."""
    memory_used_mb: int = 0
    """Memory asked for by what is placed here, MiB."""
    instances: int = 0
    """Instances placed here."""
    strays: list[str] = Field(default_factory=list)
    """Things of this installation found here that nobody wants, and things that are not ours, a hundred at most; left
    alone. `ground get orphans` lists all of them."""
    regions: list[str] = Field(default_factory=list)
    """Regions the cloud has."""
    zones: list[str] = Field(default_factory=list)
    """Availability zones of this region."""
    services: list[ServiceSeen] = Field(default_factory=list)
    """What the cloud's catalogue offers here, and whether it answers."""
    hosts: HostCounts = Field(default_factory=HostCounts)
    """Hypervisors, as far as they are ours to see."""
    found: dict[str, int] = Field(default_factory=dict)
    """How many of each type of thing there are; `ground inventory SITE TYPE` lists them."""
    looked: dict[str, str] = Field(default_factory=dict)
    """When each type of thing was last listed whole, RFC 3339; to within a minute."""
    joining: list[RuleResult] = Field(default_factory=list)
    """The rules of joining, one by one."""
    judged: dict[str, str] = Field(default_factory=dict)
    """JoinPolicy to what of it and of this site's connection was judged."""


class Site(Resource):
    """A place where services run: one host with the `local` driver, a cloud or a cluster with others."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="sites",
        namespaced=False,
        columns=(
            Column("Ready", "conditions.Ready"),
            Column("State", "spec.state"),
            Column("Driver", "spec.driver"),
            Column("Instances", "status.instances"),
            Column("Cores", "status.cores"),
            Column("Used", "status.coresUsed"),
            Column("Joined", "conditions.Joined", wide=True),
            Column("Looked", "age:status.lastLooked"),
            Column("Region", "spec.region", wide=True),
            Column("Rack", "spec.topology.rack", wide=True),
            Column("Endpoint", "spec.endpoint", wide=True),
        ),
        actions=("confirm-loss", "import", "disable-host", "enable-host", "host-is-empty", "drain-host"),
    )

    kind: Literal["Site"] = "Site"
    """Name of the kind."""
    spec: SiteSpec
    """How it is reached and used."""
    status: SiteStatus = Field(default_factory=SiteStatus)
    """What is known of it."""

    @classmethod
    def admit(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """A site passes through its life cycle step by step, whoever changes it."""
        before, after = old["spec"].get("state"), new["spec"].get("state")
        if before == after or after in TRANSITIONS.get(before, {after}):
            return
        remedy = f"from {before} it goes to {' or '.join(sorted(TRANSITIONS[before]))}"
        message = f"site {new['metadata']['name']} is {before} and cannot become {after} at once"
        raise Invalid(problems=(Problem(message, "spec.state", remedy=remedy),))

    @classmethod
    def admit_among(cls, old: Mapping[str, Any] | None, new: Mapping[str, Any], tx: Tx) -> None:
        """A site becomes active when the rules of joining hold, or somebody answers for it."""
        spec, before = new["spec"], old["spec"] if old else {}
        exception = spec.get("joinException")
        if exception and exception != before.get("joinException"):
            ends = seconds(exception["until"]) - tx.time
            if not 0 < ends <= LONGEST_EXCEPTION:
                what = "ends before it begins" if ends <= 0 else "lasts longer than a year"
                problem = Problem(f"the exception {what}", "spec.joinException.until", remedy="give another time")
                raise Invalid(problems=(problem,))
        if old is None or spec.get("state") != "active" or before.get("state") == "active":
            return
        judged = {**new, "status": old.get("status") or {}}
        if why := closed_to_new(judged, [e.doc for e in tx.entries("JoinPolicy")], tx.time):
            name = new["metadata"]["name"]
            remedy = f"`ground describe site {name}` says what to do; or give spec.joinException a reason and an end"
            raise Invalid(problems=(Problem(f"site {name} cannot become active: {why}", "spec.state", remedy=remedy),))

    @classmethod
    def needs(cls, old: Mapping[str, Any] | None, new: Mapping[str, Any], tx: Tx) -> Iterable[Need]:
        """Whoever may look after a site may not therefore let it off the rules of the federation."""
        exception = new["spec"].get("joinException")
        if exception and exception != ((old or {}).get("spec") or {}).get("joinException"):
            yield Need("approve", "JoinPolicy", "spec.joinException lets the site off the rules of joining")
        if old is None:
            return
        policies = [e.doc for e in tx.entries("JoinPolicy")]
        left = {p["metadata"]["name"] for p in selecting(old, policies)}
        left -= {p["metadata"]["name"] for p in selecting(new, policies)}
        if left:
            names = ", ".join(sorted(left))
            yield Need(
                "approve", "JoinPolicy", f"with these labels and this driver the site leaves the rules of {names}"
            )


# ── joining ─────────────────────────────────────────────────────────────────────────────────────────────────────


Name = Annotated[str, Field(min_length=1, max_length=100)]
Days = Annotated[int, Field(ge=0, le=3650)]
Least = Annotated[int, Field(ge=0, le=1_000_000_000)]
Version = Annotated[str, Field(pattern=r"^([0-9]{1,6}(\.[0-9]{1,6}){0,2})?$", examples=["2.79"])]
Properties = Annotated[dict[str, str], Field(max_length=16)]


def _known(text: str, known: Iterable[str], what: str) -> str:
    names = sorted(known)
    if text not in names:
        raise ValueError(f"there is no {what} {text!r}{did_you_mean(text, names)} (known: {', '.join(names)})")
    return text


def _address(url: str) -> str:
    try:
        origin(url)
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(str(error)) from None
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("an address of a rule has no name, password, query or fragment: it is shown to many")
    return url


class EndpointRule(Model):
    """Services of the catalogue must answer over TLS."""

    services: list[Name] = Field(min_length=1, max_length=32, examples=[["identity", "compute", "network", "image"]])
    """Types of services, as in the catalogue. Each is a rule of its own."""
    valid_days: Days = 14
    """Their certificates must be valid for so many days, and trusted by the site's own authorities (`options.caCert`)
    or those of this machine."""


class VersionRule(Model):
    """A service speaks versions within bounds."""

    service: Name
    """Type of service, as in the catalogue."""
    at_least: Version = ""
    """The highest (micro)version it speaks is this one or a higher one; empty: any."""
    at_most: Version = ""
    """The highest (micro)version it speaks is this one or a lower one; empty: any."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not (self.at_least or self.at_most):
            raise ValueError("it bounds nothing: give atLeast or atMost")
        return self


class RoleRule(Model):
    """The service account may do what it should, and no more."""

    exactly: list[Name] = Field(min_length=1, max_length=32, examples=[["member"]])
    """Its roles in its project: these, and no others."""
    allowed: str = Field(examples=["own-servers"], json_schema_extra={"enum": [*sorted(PROBES)]})
    """A call that it must be allowed to make."""
    refused: str = Field(examples=["all-users"], json_schema_extra={"enum": [*sorted(PROBES)]})
    """A call that it must be refused."""

    @field_validator("allowed", "refused")
    @classmethod
    def _offered(cls, name: str) -> str:
        return _known(name, PROBES, "call")

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.allowed == self.refused:
            raise ValueError("the call that must be allowed is the one that must be refused")
        return self


class ImageRule(Model):
    """An image must be there."""

    name: Name = "*"
    """Its name; `*` and `?` stand for anything."""
    properties: Properties = Field(default_factory=dict)
    """Properties it must have."""


class FlavorRule(Model):
    """A flavor must be there that is large enough."""

    name: Name = "*"
    """Its name; `*` and `?` stand for anything."""
    cores: Least = 0
    """At least so many cores."""
    memory_mb: Least = 0
    """At least so much memory, MiB."""
    disk_gb: Least = 0
    """At least so much disk, GiB."""
    properties: Properties = Field(default_factory=dict)
    """Extra specs it must have."""


class QuotaRule(Model):
    """What the service account's project may use must suffice."""

    resource: str = Field(examples=["cores"], json_schema_extra={"enum": [*sorted(FIELDS["quota"])]})
    """Which resource."""
    limit: Least = 0
    """The quota is at least this."""
    free: Least = 0
    """At least so much of it is not used."""

    @field_validator("resource")
    @classmethod
    def _resource(cls, name: str) -> str:
        return _known(name, FIELDS["quota"], "quota of")


class UrlRule(Model):
    """An address must answer, for example of accounting or monitoring. This server asks it, without any credentials
    and following no redirection, and only when the settings name its origin (`joining.origins`)."""

    name: Name = Field(examples=["accounting"])
    """What is there, in a word."""
    url: Annotated[str, Field(max_length=500), AfterValidator(_address)] = Field(
        examples=["https://accounting.example.org/health"]
    )
    """The address: https, or http where the settings allow that. `{site}` in it stands for the name of the site."""
    statuses: list[Annotated[int, Field(ge=100, le=599)]] = Field(default_factory=list, max_length=16)
    """Answers that count as alive; empty: 200 to 399."""
    valid_days: Days = 14
    """Its certificate must be valid for so many days."""
    ca_cert: str = Field(default="", max_length=100_000)
    """Certificates that may vouch for it, PEM; empty: those of this machine."""


class JoinPolicySpec(Model):
    """Which sites, and what must be so there."""

    selector: str = Field(default="", max_length=1000, examples=["tier=production"])
    """Over the labels of Sites; empty: all."""
    drivers: list[Name] = Field(default_factory=list, max_length=16)
    """Only sites with one of these drivers; empty: any."""
    endpoints: EndpointRule | None = None
    """Services that must answer over TLS."""
    versions: list[VersionRule] = Field(default_factory=list, max_length=32)
    """Bounds on versions."""
    roles: RoleRule | None = None
    """What the service account may do."""
    images: list[ImageRule] = Field(default_factory=list, max_length=64)
    """Images that must be there."""
    flavors: list[FlavorRule] = Field(default_factory=list, max_length=64)
    """Flavors that must be there."""
    quotas: list[QuotaRule] = Field(default_factory=list, max_length=32)
    """Quotas that must suffice."""
    max_skew: float | None = Field(default=None, gt=0, le=86_400)
    """The clocks of its services differ from ours by so many seconds at most."""
    urls: list[UrlRule] = Field(default_factory=list, max_length=16)
    """Addresses that must answer."""
    regions: list[Name] = Field(default_factory=list, max_length=32)
    """Regions the cloud must have."""
    zones: list[Name] = Field(default_factory=list, max_length=32)
    """Availability zones that must be there."""

    @field_validator("selector")
    @classmethod
    def _selector(cls, text: str) -> str:
        try:
            selector(text)
        except Invalid as error:
            raise ValueError(error.message) from None
        return text

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        names = rule_names(self)
        if not names:
            raise ValueError("it has no rule")
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"said twice: {', '.join(twice)}")
        return self


def flavor_name(rule: FlavorRule) -> str:
    """How the rule is called in results."""
    sizes = [f"{n} {u}" for n, u in ((rule.cores, "cores"), (rule.memory_mb, "MiB"), (rule.disk_gb, "GiB disk")) if n]
    return f"flavor {rule.name}" + (f" with {', '.join([*sizes, *_pairs(rule.properties)])}" if _asks(rule) else "")


def image_name(rule: ImageRule) -> str:
    """How the rule is called in results."""
    return f"image {rule.name}" + (f" with {', '.join(_pairs(rule.properties))}" if rule.properties else "")


def _asks(rule: FlavorRule) -> bool:
    return bool(rule.cores or rule.memory_mb or rule.disk_gb or rule.properties)


def _pairs(properties: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(properties.items())]


def rule_names(spec: JoinPolicySpec) -> list[str]:
    """Every rule, as results call it, in the order in which they are shown."""
    return [
        *(f"endpoint {s}" for s in (spec.endpoints.services if spec.endpoints else ())),
        *(f"version {v.service}" for v in spec.versions),
        *(
            ("roles", f"call {spec.roles.allowed} is allowed", f"call {spec.roles.refused} is refused")
            if spec.roles
            else ()
        ),
        *(image_name(i) for i in spec.images),
        *(flavor_name(f) for f in spec.flavors),
        *(f"quota {q.resource}" for q in spec.quotas),
        *(("clock",) if spec.max_skew is not None else ()),
        *(f"url {u.name}" for u in spec.urls),
        *(f"region {r}" for r in spec.regions),
        *(f"zone {z}" for z in spec.zones),
    ]


class JoinPolicyStatus(Status):
    """What became of it."""

    sites: int = 0
    """How many sites it selects."""
    joined: int = 0
    """At how many of them all its rules hold."""
    failing: list[str] = Field(default_factory=list)
    """Sites at which a rule does not hold."""
    unknown: list[str] = Field(default_factory=list)
    """Sites at which no rule is known not to hold, and one could not be looked at."""


class JoinPolicy(Resource):
    """What must be so at a site before it is used: the rules of joining a federation, and of staying in it."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="joinpolicies",
        namespaced=False,
        short=("jp",),
        columns=(
            Column("Ready", "conditions.Ready"),
            Column("Sites", "status.sites"),
            Column("Joined", "status.joined"),
            Column("Failing", "status.failing"),
            Column("Unknown", "status.unknown"),
            Column("Selector", "spec.selector", wide=True),
        ),
    )

    kind: Literal["JoinPolicy"] = "JoinPolicy"
    """Name of the kind."""
    spec: JoinPolicySpec
    """Which sites, and what must be so there."""
    status: JoinPolicyStatus = Field(default_factory=JoinPolicyStatus)
    """What became of it."""


def selecting(site: Mapping[str, Any], policies: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The policies that select a site, by name."""
    driver = site["spec"]["driver"]
    found = [
        p
        for p in policies
        if (not p["spec"].get("drivers") or driver in p["spec"]["drivers"])
        and selector(p["spec"].get("selector", ""))(site)
    ]
    return sorted(found, key=lambda p: str(p["metadata"]["name"]))


def judgement(policy: Mapping[str, Any], site: Mapping[str, Any]) -> str:
    """What a judgement is about: another policy, or another connection of the site, needs another one."""
    connection = [site["spec"].get(n) for n in ("driver", "endpoint", "credentials", "options")]
    encoded = json.dumps([policy["spec"], connection], sort_keys=True)
    return hashlib.sha256(encoded.encode()).hexdigest()[:12]


def not_joined(site: Mapping[str, Any], policies: Sequence[Mapping[str, Any]], *, brief: bool = False) -> str:
    """Why the rules of joining do not let a site be used; empty when they do, or none selects it. `brief` names the
    rules without what was seen, which is for those who may read the site."""
    status = site.get("status") or {}
    for policy in selecting(site, policies):
        name = policy["metadata"]["name"]
        if (status.get("judged") or {}).get(name) != judgement(policy, site):
            return f"the rules of JoinPolicy {name} have not been judged for it yet"
        rules = [r for r in status.get("joining") or () if r["policy"] == name and r["result"] != "True"]
        if rules:
            said = "; ".join(r["rule"] if brief else f"{r['rule']}: {r['evidence']}" for r in rules[:3])
            more = f" and {len(rules) - 3} more" if len(rules) > 3 else ""
            what = "do not hold" if any(r["result"] == "False" for r in rules) else "are not known to hold"
            return f"rules of JoinPolicy {name} {what}: {said}{more}"
    return ""


def excepted(site: Mapping[str, Any], at: float) -> str:
    """Why a site may be used although the rules do not hold; empty when nobody answers for that at this time."""
    exception = site["spec"].get("joinException")
    return str(exception["reason"]) if exception and seconds(exception["until"]) > at else ""


def closed_to_new(
    site: Mapping[str, Any], policies: Sequence[Mapping[str, Any]], at: float, *, brief: bool = False
) -> str:
    """Why nothing new may be placed at a site, for the rules of joining; empty when it may. What runs there goes on.

    `policies` are the documents of all JoinPolicies, `at` is the time in seconds since the epoch. `brief` is for what
    tenants read: it names the rules, and not what was seen."""
    return "" if excepted(site, at) else not_joined(site, policies, brief=brief)
