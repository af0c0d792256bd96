"""The one list of capabilities and drivers. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groundcontrol.capabilities import (
    clouds,
    gitops,
    inventory,
    monitoring,
    orphans,
    procedures,
    secrets,
    services,
)
from groundcontrol.drivers import openstack
from groundcontrol.drivers.git.command import Settings as GitSettings
from groundcontrol.drivers.git.driver import GitRepositories
from groundcontrol.drivers.local import driver as local
from groundcontrol.drivers.openbao.driver import OpenBao
from groundcontrol.drivers.web.driver import WebClient
from groundcontrol.kernel.resource import Kinds
from groundcontrol.kernel.runtime import Connect, Runtime, kinds_of
from groundcontrol.kernel.settings import Settings
from groundcontrol.ports.cloud import CloudInstance
from groundcontrol.ports.hosts import HostInstance
from groundcontrol.ports.secretstore import SecretStore

CAPABILITIES = (
    inventory.CAPABILITY,
    gitops.CAPABILITY,
    services.CAPABILITY,
    clouds.CAPABILITY,
    orphans.CAPABILITY,
    secrets.CAPABILITY,
    monitoring.CAPABILITY,
    procedures.CAPABILITY,
)


def _local(instance: str, endpoint: str, secret: str, options: dict[str, Any], longest: float) -> HostInstance:
    if endpoint.startswith("http"):
        options = {"change": longest, **options}
    return HostInstance(local.connect(instance, endpoint, secret, options=options))


def _openstack(instance: str, endpoint: str, secret: str, options: dict[str, Any], longest: float) -> CloudInstance:
    return CloudInstance(openstack.connect(instance, endpoint, secret, options, longest))


DRIVERS: dict[str, Connect] = {"local": _local, "openstack": _openstack}


def _repositories(settings: Settings) -> GitRepositories:
    sources = settings.sources
    return GitRepositories(
        GitSettings(
            cache=Path(settings.data) / "git",
            allow_file=sources.allow_file,
            allow_http="http" in sources.schemes,
            schemes=tuple(s for s in sources.schemes if s != "http"),
            timeout=sources.fetch_seconds,
            max_files=sources.max_files,
        )
    )


def secret_store(settings: Settings) -> SecretStore | None:
    """Where secrets are kept outside; None when the settings name no such place."""
    vault = settings.secrets.vault
    return OpenBao(vault) if vault.address else None


def web(settings: Settings) -> WebClient:
    """What asks addresses for rules; only below the origins the settings name."""
    return WebClient(settings.joining.origins, settings.joining.ask_seconds)


def kinds() -> Kinds:
    """Every kind, without opening anything."""
    return kinds_of(CAPABILITIES)


def build(settings: Settings) -> Runtime:
    """An installation, not opened yet."""
    return Runtime(settings, CAPABILITIES, DRIVERS, _repositories, secret_store, web)
