"""The settings of one deployment: one file, `ground.yaml`, checked whole before anything starts.

The docstrings under the fields are the manual: `example()` writes them as comments into the file `ground init` makes.
Values are taken as they are written (`workers: "8"` is text and therefore refused); secrets are references.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from groundcontrol.kernel.errors import GroundError, Invalid, Problem
from groundcontrol.kernel.manifest import load_yaml
from groundcontrol.kernel.plan import DEFAULT_LIMITS, Limit
from groundcontrol.kernel.resource import Model, did_you_mean
from groundcontrol.kernel.secrets import OperatorSecret, Resolver

Seconds = Annotated[float, Field(gt=0, le=10 * 366 * 86400)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]

# ------------------------------------------------------------------------------------------------ checks of one value


def _present(reference: str, info: ValidationInfo) -> str:
    """A reference that leads nowhere is found at the start, not at the first use in the night."""
    resolver = (info.context or {}).get("resolver")
    if resolver is not None:
        try:
            resolver.resolve(reference)
        except GroundError as error:
            raise ValueError(error.message) from None
    return reference


def _existing(path: str, info: ValidationInfo) -> str:
    directory = (info.context or {}).get("directory")
    if directory is not None and not (directory / path).is_file():
        raise ValueError(f"there is no file {directory / path}")
    return path


def _address(text: str) -> str:
    host, port = _split(text)
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("not an address of the form host:port (IPv6 in brackets, [::1]:8440)")
    return text


def _split(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    bracketed = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]", host)
    return (bracketed[1], port) if bracketed else ("" if ":" in host else host, port)


def _http(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
        raise ValueError("not an address of the form https://host or https://host:port/path")
    return url.rstrip("/")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if _http(url) != url or not url or parts.path or parts.username is not None or parts.port == 0:
        raise ValueError("not an origin of the form https://host or http://host:port")
    return url


def _vault_address(url: str) -> str:
    parts = urlsplit(_http(url))
    if parts.username is not None:
        raise ValueError("an address does not carry a name or password; auth says how we sign in")
    host = parts.hostname or ""
    if parts.scheme == "http" and not (host in ("localhost", "::1") or host.startswith("127.")):
        raise ValueError("http is for this machine only: anywhere else the token and the secrets would go in clear")
    return url.rstrip("/")


Credential = Annotated[OperatorSecret, AfterValidator(_present)]
ExistingFile = Annotated[str, Field(min_length=1), AfterValidator(_existing)]

# ------------------------------------------------------------------------------------------------ sections


class LogSettings(Model):
    """What the program says about itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important messages that are written: debug, info, warning or error."""
    format: Literal["text", "json"] = "text"
    """`text` for people, `json` (one object per line) for collectors."""


class LimitSettings(Model):
    """How much may be destroyed in one scope and window without asking anybody; beyond it a plan is held."""

    scope: Literal["source", "kind", "site", "namespace", "group", "subject", "all"]
    """What has a budget of its own: each source, kind, site, namespace, group or subject, or all together."""
    count: int = Field(ge=0)
    """This many destructive changes pass in a window."""
    share: Share = 1.0
    """And not more than this share of what the scope has, once more than `floor` would go."""
    floor: int = Field(default=2, ge=0)
    """Up to this many destroyed in a window the share is not asked."""
    window: Seconds = 600.0
    """Length of the window in seconds."""

    def as_limit(self) -> Limit:
        return Limit(scope=self.scope, count=self.count, share=self.share, floor=self.floor, window=self.window)


def _default_limits() -> list[LimitSettings]:
    return [LimitSettings.model_validate({n: getattr(d, n) for n in d.__struct_fields__}) for d in DEFAULT_LIMITS]


class LoopSettings(Model):
    """How resources are looked at and changes are made."""

    workers: Annotated[int, Field(ge=2, le=256)] = 16
    """Threads that look and act."""
    resync_seconds: Seconds = 300.0
    """Every resource is looked at again after this time, even when nothing is known to have changed."""
    backoff_first_seconds: Seconds = 1.0
    """Wait after a first failure; each further one doubles it."""
    backoff_max_seconds: Seconds = 300.0
    """The longest wait after a failure."""
    in_flight: Annotated[int, Field(ge=1, le=256)] = 4
    """Calls to one driver instance at the same time, so that one slow site cannot hold every worker; less than half of
    them."""
    call_seconds: Seconds = 30.0
    """A call to the world that has not answered by then counts as failed."""
    breaker_failures: Count = 5
    """After this many failures in a row nothing more is sent to that driver instance for a while."""
    breaker_reset_seconds: Seconds = 30.0
    """How long; then one call tries again."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.backoff_first_seconds > self.backoff_max_seconds:
            raise ValueError("backoffFirstSeconds is longer than backoffMaxSeconds")
        if self.in_flight * 2 > self.workers:
            raise ValueError("inFlight is more than half of workers: one slow site could hold them all")
        return self


class ObserveSettings(Model):
    """How the world is looked at, and when what was seen is believed."""

    wait_seconds: Seconds = 5.0
    """How long a site may take to say that there is no news, before it is asked again; less than half of
    staleAfterSeconds."""
    stale_after_seconds: Seconds = 15.0
    """What was not heard of for this long is Unknown."""
    vanished_share: Share = 0.5
    """When more than this share of what was there vanishes at once, nothing of it is believed: a dead cell must not
    look like deleted servers."""

    @model_validator(mode="after")
    def _heard_in_time(self) -> Self:
        if self.wait_seconds * 2 > self.stale_after_seconds:
            raise ValueError("waitSeconds is more than half of staleAfterSeconds: a quiet site would count as silent")
        return self


class EventSettings(Model):
    """The numbered changes that watchers resume from."""

    keep: Count = 100_000
    """This many of the newest are kept; who asks for an older one has to list again."""


class LedgerSettings(Model):
    """Append-only facts (audit, timeline, journals, probes, usage), kept in a process of its own."""

    enabled: bool = True
    """False: facts stay in the store only, and are dropped there when old."""
    path: str = ""
    """The DuckDB file; empty: `ledger.duckdb` in the data directory."""
    memory_mb: Annotated[int, Field(ge=64, le=1_048_576)] = 512
    """The most memory its queries may take, in MiB."""
    keep_days: Annotated[int, Field(ge=0, le=36600)] = 400
    """Days a fact is kept, unless its dataset is named below; 0: for ever."""
    retention_days: dict[str, Annotated[int, Field(ge=0, le=36600)]] = Field(default_factory=dict)
    """Days by dataset, for example {audit: 3650, probes: 30}; 0: for ever."""

    def days(self, dataset: str) -> int:
        """Days the facts of a dataset are kept; 0 for ever."""
        return self.retention_days.get(dataset, self.keep_days)


class AdminSettings(Model):
    """The first account, made at the first start; its password is not touched later."""

    user: str = Field(default="admin", pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")
    """Its name."""
    password: Credential | None = Field(default=None, examples=["env:GROUND_ADMIN_PASSWORD"])
    """Where its password is: env:NAME or file:/path. Left out, no account is made."""


class AccountSettings(Model):
    """Local accounts, which also let you in when the identity provider is down."""

    admin: AdminSettings = Field(default_factory=AdminSettings)
    """The first account."""


_NAMED = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?/[A-Za-z0-9][A-Za-z0-9._-]{0,252}$"


_PART = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
VaultPath = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*$", max_length=200)]


class VaultAuthSettings(Model):
    """How we sign in to the vault. What is not of the chosen method is left out."""

    method: Literal["approle", "jwt", "token_file"] = "approle"
    """`approle` (roleId, secretId), `jwt` (role, jwt), or `token_file` (token)."""
    mount_path: VaultPath | None = Field(default=None, examples=["auth/approle"])
    """Where the method is mounted; left out, `auth/` and the name of the method."""
    role_id: Credential | None = Field(default=None, examples=["file:/etc/ground/vault-role-id"])
    """Where the role id is, for `approle`: env:NAME or file:/path."""
    secret_id: Credential | None = Field(default=None, examples=["file:/etc/ground/vault-secret-id"])
    """Where the secret id is, for `approle`. Read again at every login, so that it can be replaced while we run."""
    role: str = Field(default="", max_length=200)
    """Name of the role, for `jwt`."""
    jwt: Credential | None = Field(default=None, examples=["file:/etc/ground/vault.jwt"])
    """Where the signed token is, for `jwt`; read again at every login."""
    token: Credential | None = Field(default=None, examples=["file:/etc/ground/vault-token"])
    """Where the token is, for `token_file`; read again when the one we have is refused. Renewed while it is used."""


class VaultSettings(Model):
    """A Vault or OpenBao server with a KV engine, version 2. A Secret with `store: vault` has its values there, at
    MOUNT/data/PREFIX/NAMESPACE/NAME and nowhere else."""

    address: Annotated[str, AfterValidator(_vault_address)] = ""
    """Where it is, https://host:8200; empty: there is none. http only on this machine."""
    ca_cert: ExistingFile | None = Field(default=None, examples=["/etc/ground/vault-ca.pem"])
    """File with the authorities that may vouch for it, PEM; left out, those of this machine."""
    namespace: str = Field(default="", pattern=rf"^({_PART}(/{_PART})*/?)?$", max_length=200)
    """Namespace of the vault itself (OpenBao 2.3 and Vault Enterprise have them); empty: its root."""
    mount: VaultPath = "secret"
    """Where the KV engine is mounted."""
    prefix: VaultPath = "ground"
    """Below which path of it the namespaces' secrets lie."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=20)] = 5.0
    """One use of a secret takes no longer, logging in and trying again among it."""
    look_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """How often is looked which version and keys a Secret has there."""
    auth: VaultAuthSettings = Field(default_factory=VaultAuthSettings)
    """How we sign in."""

    @model_validator(mode="after")
    def _can_sign_in(self) -> Self:
        needs = {"approle": ("role_id",), "jwt": ("role", "jwt"), "token_file": ("token",)}[self.auth.method]
        missing = [name for name in needs if not getattr(self.auth, name)]
        if self.address and missing:
            alias = type(self.auth).model_fields[missing[0]].alias
            raise ValueError(f"auth.{alias} is missing; the method {self.auth.method} needs it")
        return self


class SecretSettings(Model):
    """Where secrets are kept."""

    key: Credential | None = Field(default=None, examples=["file:/etc/ground/seal.key"])
    """Where the key is that seals them: env:NAME or file:/path. Left out, `seal.key` in the data directory is made and
    used: keep it in the backup, but not beside the backup of the data."""

    platform: dict[Annotated[str, Field(pattern=_NAMED)], Credential] = Field(default_factory=dict)
    """Secrets for platform-wide resources, by name: a Source or Site that says `secret:git/token` means what stands
    here as `git/token`, env:NAME or file:/path."""
    vault: VaultSettings = Field(default_factory=VaultSettings)
    """A Vault or OpenBao server that keeps values for us. Without an address only the sealed store is there."""


class TlsSettings(Model):
    """Encryption of the listening address. Left out where a proxy in front does it."""

    certificate: ExistingFile | None = Field(default=None, examples=["/etc/ground/tls.crt"])
    """File with the certificate and its chain, PEM."""
    key: ExistingFile | None = Field(default=None, examples=["/etc/ground/tls.key"])
    """File with the private key, PEM."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; one is missing")
        return self


Scheme = Literal["https", "ssh", "http"]


def _default_schemes() -> list[Scheme]:
    return ["https", "ssh"]


class SourceSettings(Model):
    """Bounds on the git repositories that Sources read."""

    fetch_seconds: Seconds = 120.0
    """A fetch that takes longer is given up."""
    max_file_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 1 << 20
    """A larger file is refused."""
    max_files: Count = 20_000
    """A tree with more files is refused."""
    schemes: list[Scheme] = Field(default_factory=_default_schemes)
    """How repositories may be reached: https, ssh, and http, which is for this machine only."""
    allow_file: bool = False
    """Allows file:// and plain paths too. Whoever may declare a Source then reads every repository on this machine."""


class JoiningSettings(Model):
    """What this server may ask for the rules by which sites join."""

    origins: list[Annotated[str, AfterValidator(_origin)]] = Field(
        default_factory=list, max_length=256, examples=[["https://accounting.example.org"]]
    )
    """Addresses of rules (`spec.urls` of a JoinPolicy) are asked only below these: https://host, https://host:port, or
    http://host:port. Nothing else is, so that nobody can look around in your network by writing a policy. A name among
    them that leads to this machine or to a link-local address is not asked either, unless that address is named."""
    ask_seconds: Annotated[float, Field(ge=0.1, le=60)] = 10.0
    """An address that has not answered by then does not answer."""
    every_seconds: Annotated[float, Field(ge=1, le=600)] = 300.0
    """How long what was asked counts before it is asked again; what went wrong is asked again after a tenth of it."""


class Settings(Model):
    """The settings of one deployment."""

    data: str = Field(default="./ground-data", min_length=1)
    """Directory of everything that is kept. Relative paths in this file start where the file is."""
    listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:8440"
    """Address and port the server listens on."""
    url: Annotated[str, AfterValidator(_http)] = ""
    """Address people and git servers reach it under, for links and callbacks; empty: the listening address."""
    log: LogSettings = Field(default_factory=LogSettings)
    """What the program says about itself, on standard error."""
    limits: list[LimitSettings] = Field(default_factory=_default_limits)
    """How much may be destroyed in one scope and window without asking anybody; beyond it a plan is held."""
    loop: LoopSettings = Field(default_factory=LoopSettings)
    """How resources are looked at and changes are made."""
    observe: ObserveSettings = Field(default_factory=ObserveSettings)
    """How the world is looked at, and when what was seen is believed."""
    events: EventSettings = Field(default_factory=EventSettings)
    """The numbered changes that watchers resume from."""
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    """Append-only facts (audit, timeline, journals, probes, usage), kept in a process of its own."""
    accounts: AccountSettings = Field(default_factory=AccountSettings)
    """Local accounts, which also let you in when the identity provider is down."""
    secrets: SecretSettings = Field(default_factory=SecretSettings)
    """Where secrets are kept."""
    tls: TlsSettings = Field(default_factory=TlsSettings)
    """Encryption of the listening address. Left out where a proxy in front does it."""
    sources: SourceSettings = Field(default_factory=SourceSettings)
    """Bounds on the git repositories that Sources read."""
    joining: JoiningSettings = Field(default_factory=JoiningSettings)
    """What this server may ask for the rules by which sites join."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, port = _split(self.listen)
        return host, int(port)

    @property
    def public_url(self) -> str:
        """The address for links, without a slash at the end."""
        return self.url or f"{'https' if self.tls.certificate else 'http'}://{self.listen}"

    @property
    def plan_limits(self) -> tuple[Limit, ...]:
        return tuple(limit.as_limit() for limit in self.limits)

    @property
    def ledger_path(self) -> Path:
        return Path(self.ledger.path or Path(self.data, "ledger.duckdb"))

    def placed(self, directory: Path) -> Settings:
        """The same with relative paths starting in `directory`."""

        def put(path: str | None) -> str | None:
            return os.path.normpath(directory.absolute() / path) if path else path

        tls = self.tls.model_copy(update={"certificate": put(self.tls.certificate), "key": put(self.tls.key)})
        ledger = self.ledger.model_copy(update={"path": put(self.ledger.path)})
        vault = self.secrets.vault.model_copy(update={"ca_cert": put(self.secrets.vault.ca_cert)})
        secrets = self.secrets.model_copy(update={"vault": vault})
        return self.model_copy(update={"data": put(self.data), "tls": tls, "ledger": ledger, "secrets": secrets})


# ------------------------------------------------------------------------------------------------ reading


def load(path: str | Path, *, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in that file. Raises Invalid with everything that is wrong in it."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        remedy = "`ground init` writes one" if isinstance(error, FileNotFoundError) else "make it readable"
        message = f"cannot read the settings: {error.strerror}"
        raise Invalid(problems=(Problem(message, file=str(path), remedy=remedy),)) from None
    value, line_of = load_yaml(raw, str(path))
    if value is None:
        value = {}
    if not isinstance(value, dict):
        message = "the settings are not a mapping of names to values"
        raise Invalid(problems=(Problem(message, file=str(path), line=1, remedy="see `ground init`"),))
    # `log:` with every line below it commented out is a section left alone, not an error.
    value = {name: {} if inner is None and _section(name) else inner for name, inner in value.items()}
    context = {"resolver": Resolver(None, environ=environ), "directory": path.parent}
    try:
        settings = Settings.model_validate(value, strict=True, context=context)
    except ValidationError as error:
        found = [_problem(e, str(path)) for e in error.errors(include_url=False)]
        placed = [Problem(p.message, p.path, p.file, line_of(p.path), p.remedy) for p in found]
        raise Invalid(problems=tuple(sorted(placed, key=lambda p: p.line))) from None
    return settings.placed(path.parent)


def _section(name: str) -> type[BaseModel] | None:
    found = _field(Settings, name)
    return _model(found) if found and not found.is_required() and not _is_list(found) else None


def _problem(error: Any, file: str) -> Problem:
    """One pydantic error in words for the person who wrote the file; what stands in a secret's place is not shown."""
    loc = [str(part) for part in error["loc"]]
    owner: type[BaseModel] = Settings
    found: FieldInfo | None = None
    for part in loc[:-1] if error["type"] in ("extra_forbidden", "missing") else loc:
        if (inner := _field(owner, part)) is not None:
            found, owner = inner, _model(inner) or owner
    path = ".".join(loc)
    if error["type"] == "extra_forbidden":
        known = [f.alias or n for n, f in owner.model_fields.items()]
        remedy = did_you_mean(loc[-1], known).strip(" ;") or f"known: {', '.join(sorted(known))}"
        return Problem(f"unknown setting {loc[-1]!r}", path, file, remedy=remedy)
    if error["type"] == "missing":
        return Problem(f"{loc[-1]} is missing", path, file, remedy="add it")
    message = str(error["msg"]).removeprefix("Value error, ").replace("dictionary or instance of", "mapping for")
    given = error.get("input")
    plain = isinstance(given, str | int | float) and len(str(given)) < 60
    shown = f", found {given!r}" if plain and error["type"] != "value_error" else ""
    return Problem(message[0].lower() + message[1:] + shown, path, file, remedy=_remedy(loc[-1] if loc else "", found))


def _remedy(name: str, found: FieldInfo | None) -> str:
    if found is None:
        return "see `ground init` for an example"
    sample = found.examples[0] if found.examples else found.get_default(call_default_factory=True)
    if isinstance(sample, BaseModel | list) or sample in (None, "", {}) or name != found.alias:
        return (found.description or "").split(". ")[0]
    return f"for example `{found.alias}: {_scalar(sample)}`"


def _field(model: type[BaseModel], part: str) -> FieldInfo | None:
    return next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)


def _model(found: FieldInfo) -> type[BaseModel] | None:
    """The model a field holds, alone or in a list."""
    for candidate in (found.annotation, *get_args(found.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _is_list(found: FieldInfo) -> bool:
    return getattr(found.annotation, "__origin__", None) is list


# ------------------------------------------------------------------------------------------------ the example


def example() -> str:
    """A complete file with every setting at its default and its meaning above it."""
    head = (
        "# The settings of one deployment of Ground Control. Everything here may be left out: these are the defaults."
    )
    return "\n".join([head, *_lines(Settings(), "")]) + "\n"


def _lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, found in type(section).model_fields.items():
        value, key = getattr(section, name), found.alias or name
        if not indent:
            yield ""
        yield from _comment(found.description or "", indent)
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif value is None:
            yield f"{indent}# {key}: {found.examples[0] if found.examples else ''}"
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for part, inner in type(value[0]).model_fields.items():
                yield from _comment(f"{inner.alias or part}: {inner.description}", indent, "  ")
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_scalar(item.model_dump(by_alias=True))}" for item in value)
        else:
            yield f"{indent}{key}: {_scalar(value)}"


def _comment(text: str, indent: str, inner: str = "") -> Iterator[str]:
    yield from (f"{indent}# {inner}{line}" for line in wrap(" ".join(text.split()), 110 - len(indent)))


_PLAIN = re.compile(r"[A-Za-z./][A-Za-z0-9./_-]*(:[A-Za-z0-9./_-]+)*|[0-9]+(\.[0-9]+)+:[0-9]+")


def _scalar(value: Any) -> str:
    """A value on one line, in the quotes YAML needs and no more."""
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            return "{" + ", ".join(f"{k}: {_scalar(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_scalar, value)) + "]"
        case str():
            return value if _PLAIN.fullmatch(value) and value not in ("true", "false", "null") else json.dumps(value)
        case float():
            return f"{value:.15g}"
        case _:
            return str(value)
