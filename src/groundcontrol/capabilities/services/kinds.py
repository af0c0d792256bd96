"""Services and the instances they are made of."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from groundcontrol.kernel.resource import NAME, Column, KindInfo, Model, Resource, Status
from groundcontrol.kernel.secrets import SecretRef

Port = int
_PORT_NAME = r"^[a-z]([a-z0-9-]{0,14}[a-z0-9])?$"


class HealthCheck(Model):
    """How it is told whether an instance is healthy. The check runs at the site."""

    kind: Literal["http", "tcp", "command", "none"] = "none"
    """`http`: 2xx or 3xx is good; `tcp`: a connection is good; `command`: exit 0 is good; `none`: running is good."""
    port: str = ""
    """Name of the port to ask; the only port when empty."""
    path: str = "/"
    """Path to ask for, `http` only."""
    command: list[str] = Field(default_factory=list)
    """Program and arguments, `command` only; no shell."""
    interval: float = Field(default=1.0, ge=0.2, le=3600)
    """Seconds between probes."""
    timeout: float = Field(default=2.0, ge=0.1, le=60)
    """Seconds after which a probe counts as failed."""
    failures: int = Field(default=3, ge=1, le=100)
    """Failed probes in a row that make it unhealthy."""
    successes: int = Field(default=1, ge=1, le=100)
    """Good probes in a row that make it healthy."""
    start_period: float = Field(default=0, ge=0, le=3600)
    """Seconds after start in which failed probes do not count."""


class Resources(Model):
    """What one instance asks of its site; 0 means no limit."""

    memory_mb: int = Field(default=0, ge=0)
    """Memory, MiB; a limit, and counted against the site's capacity."""
    cores: float = Field(default=0, ge=0)
    """Cores; counted against the site's capacity, and a limit where the site can enforce it."""
    open_files: int = Field(default=0, ge=0)
    """Open files per process."""
    processes: int = Field(default=0, ge=0)
    """Processes and threads."""


class Placement(Model):
    """Where instances may run."""

    site_selector: str = ""
    """Label selector over sites; all sites when empty."""
    sites: list[str] = Field(default_factory=list)
    """Names of the only sites to use; any when empty."""
    spread: Literal["none", "site", "rack"] = "none"
    """`site` or `rack`: no two instances share one; what cannot be spread is not placed."""


class Update(Model):
    """How a change reaches running instances."""

    strategy: Literal["rolling", "blue-green"] = "rolling"
    """`rolling`: one by one, each new one healthy before an old one goes; `blue-green`: all new ones beside the old
    ones, then the old ones go."""
    deadline: float = Field(default=120, ge=1, le=86400)
    """Seconds the new instances have to become healthy."""
    rollback: bool = True
    """Go back to the last good revision when they do not."""


class ServiceSpec(Model):
    """What should run."""

    command: list[str] = Field(default_factory=list)
    """Program and arguments, no shell. `{address}`, `{port.NAME}` and `{dir}` are replaced."""
    sample: Literal["", "web", "tcp", "slow", "once", "crash", "flaky"] = ""
    """A bundled sample app instead of a command: `web`, `tcp`, `slow`, `once`, `crash` or `flaky`."""
    replicas: int = Field(default=1, ge=0, le=1000)
    """How many instances."""
    ports: dict[str, int] = Field(default_factory=dict)
    """Port name to number; every instance has an address of its own."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables; nothing is inherited from the server."""
    secret_env: dict[str, SecretRef] = Field(default_factory=dict)
    """Environment variable to secret reference (`secret:NAME/KEY`) granted to the namespace."""
    files: dict[str, str] = Field(default_factory=dict)
    """Relative path to content; kept as written here, changed in place without a restart."""
    health: HealthCheck = Field(default_factory=HealthCheck)
    """How it is told whether an instance is healthy."""
    resources: Resources = Field(default_factory=Resources)
    """What one instance asks of its site."""
    placement: Placement = Field(default_factory=Placement)
    """Where instances may run."""
    restart: Literal["always", "on-failure", "never"] = "always"
    """What happens when an instance ends by itself."""
    run_once: bool = False
    """Instances are expected to end with exit code 0 and then are complete."""
    depends_on: list[str] = Field(default_factory=list)
    """Services of the same namespace that must be available first; their addresses are kept in the instance's file
    `endpoints.json`, `{"name": ["address:port", …]}`."""
    update: Update = Field(default_factory=Update)
    """How a change reaches running instances."""
    drift: Literal["correct", "report", "propose"] = "correct"
    """What happens to a change made by hand at the site: put back; only reported; or left, and proposed as a change of
    the file in git that declares the service."""
    stop_grace: float = Field(default=5, ge=0, le=600)
    """Seconds between SIGTERM and SIGKILL."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.command) == bool(self.sample):
            raise ValueError("give either command or sample")
        for name, number in self.ports.items():
            if not 0 < number < 65536:
                raise ValueError(f"port {name} is {number}; ports are 1 to 65535")
        check = self.health
        if check.kind in ("http", "tcp"):
            if check.port and check.port not in self.ports:
                raise ValueError(f"health.port {check.port!r} is not among ports ({', '.join(self.ports) or 'none'})")
            if not check.port and len(self.ports) != 1:
                raise ValueError("health.port must name a port when there is not exactly one")
        if check.kind == "command" and not check.command:
            raise ValueError("health.command is missing")
        for path in self.files:
            if path.startswith("/") or ".." in path.split("/") or not path or path == "endpoints.json":
                raise ValueError(f"file {path!r}: paths are relative, without .., and not endpoints.json")
        return self


class Failure(Model):
    """The last time an instance failed."""

    time: str = ""
    """When, RFC 3339."""
    instance: str = ""
    """Which instance."""
    reason: str = ""
    """One stable word."""
    message: str = ""
    """One sentence."""


class ServiceStatus(Status):
    """What is known of a service."""

    replicas: int = 0
    """Instances there are."""
    ready: int = 0
    """Of those, known to be healthy."""
    updated: int = 0
    """Of those, of the wanted revision."""
    revision: str = ""
    """The wanted revision."""
    good_revision: str = ""
    """The last revision that was completely healthy."""
    failed_revision: str = ""
    """The revision that did not become healthy and was rolled back."""
    progress_since: str = ""
    """When the roll-out of the wanted revision began, RFC 3339."""
    endpoints: dict[str, list[str]] = Field(default_factory=dict)
    """Port name to `address:port` of every healthy instance, then of those that were healthy when their site was last
    seen."""
    sites: list[str] = Field(default_factory=list)
    """Where instances are."""
    last_failure: Failure = Field(default_factory=Failure)
    """The last failure, also when it was healed at once."""


class Service(Resource):
    """Something that runs on one or more sites, and is kept running, healthy and up to date."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="services",
        short=("svc",),
        columns=(
            Column("Ready", "conditions.Ready"),
            Column("Replicas", "status.ready"),
            Column("Wanted", "spec.replicas"),
            Column("Sites", "status.sites"),
            Column("Reason", "reason.Ready"),
            Column("Age", "age:metadata.creationTimestamp"),
            Column("Revision", "status.revision", wide=True),
            Column("Looked", "age:status.lastLooked", wide=True),
        ),
        actions=("restart", "log"),
    )

    kind: Literal["Service"] = "Service"
    """Name of the kind."""
    spec: ServiceSpec
    """What should run."""
    status: ServiceStatus = Field(default_factory=ServiceStatus)
    """What is known of it."""


class InstanceSpec(Model):
    """One copy of a service at one site. Made by the service; nobody writes it by hand."""

    service: str = Field(pattern=f"^{NAME.pattern}$")
    """The service it belongs to."""
    index: int = 0
    """Which replica it is."""
    site: str
    """Where it runs."""
    revision: str
    """The revision of the service it runs."""
    template: ServiceSpec
    """The service as it was at that revision."""
    endpoints: dict[str, list[str]] = Field(default_factory=dict)
    """Addresses of the services it depends on; changed in place."""


class InstanceStatus(Status):
    """What is known of an instance."""

    unit: str = ""
    """Its id at the site."""
    address: str = ""
    """Its own address."""
    state: str = ""
    """running, exited, stopped, lost, or empty when it was never seen."""
    pid: int = 0
    """Process id at the site."""
    started: str = ""
    """When it (last) started, RFC 3339."""
    starts: int = 0
    """How often it was started."""
    exits: int = 0
    """How often it ended without being asked to."""
    last_exit: Failure = Field(default_factory=Failure)
    """The last end that nobody asked for."""
    synced_generation: int = 0
    """The generation at which it was last found to be as wanted; a difference after that was made by hand."""


class Instance(Resource):
    """One copy of a service at one site: a process, its directory, its address."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="instances",
        short=("inst",),
        columns=(
            Column("Ready", "conditions.Ready"),
            Column("Site", "spec.site"),
            Column("State", "status.state"),
            Column("Address", "status.address"),
            Column("Starts", "status.starts"),
            Column("Reason", "reason.Ready"),
            Column("Looked", "age:status.lastLooked"),
            Column("Pid", "status.pid", wide=True),
            Column("Revision", "spec.revision", wide=True),
        ),
        actions=("log", "propose"),
        internal=True,
    )

    kind: Literal["Instance"] = "Instance"
    """Name of the kind."""
    spec: InstanceSpec
    """What it is a copy of."""
    status: InstanceStatus = Field(default_factory=InstanceStatus)
    """What is known of it."""
