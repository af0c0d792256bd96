"""Sites: the places where services run, and how they are reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import Column, KindInfo, Model, Resource, Status
from groundcontrol.kernel.secrets import SecretRef

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


class SiteSpec(Model):
    """How a site is reached and used."""

    driver: str
    """Product that runs the site: `local` (processes on a host)."""
    endpoint: str = "local:"
    """Where the driver reaches it: `local:` for this host, or the address of an agent, `https://host:8441`."""
    credentials: SecretRef | None = None
    """`secret:NAME/KEY`, a secret of the namespace `platform`, for the driver to sign in with."""
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
    from `retired` everything is moved away, and it comes back as `candidate` only."""
    options: dict[str, str] = Field(default_factory=dict)
    """What only this driver understands."""


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
    """Things of this installation found here that nobody wants, and things that are not ours; left alone."""


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
            Column("Looked", "age:status.lastLooked"),
            Column("Region", "spec.region", wide=True),
            Column("Rack", "spec.topology.rack", wide=True),
            Column("Endpoint", "spec.endpoint", wide=True),
        ),
        actions=("confirm-loss",),
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
