"""What is said of a secret; what it is stays sealed, or in the vault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import Column, KindInfo, Model, Resource, Status


class SecretSpec(Model):
    """What a secret is for, and where its values are kept."""

    description: str = Field(default="", max_length=1000)
    """What it is for, for people."""
    store: Literal["sealed", "vault"] = "sealed"
    """`sealed`: kept here, set with the action `set`. `vault`: kept in the OpenBao or Vault server of the settings, at
    the path of this namespace and name; set there, read when a service is given it. It cannot be changed later."""


class SecretKey(Model):
    """One value of a secret, by name only."""

    name: str
    """Its name; resources say `secret:NAME/KEY`."""
    set_at: str = ""
    """When it was last set, RFC 3339; empty in a vault, which knows it for the whole."""
    set_by: str = ""
    """Who set it; empty in a vault, whose own audit says it."""


class SecretStatus(Status):
    """Which values there are."""

    keys: list[SecretKey] = Field(default_factory=list)
    """The values there are, by name. Of a vault: as last seen."""
    place: str = ""
    """Path in the vault; empty when it is sealed here."""
    version: int = 0
    """Number of the newest version in the vault, as last seen; 0 when there is none."""
    version_at: str = ""
    """When that version was written, RFC 3339."""


class Secret(Resource):
    """Values that only running services see. Set one with the action `set`, or in the vault; it can be replaced, never
    read."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="secrets",
        columns=(
            Column("Store", "spec.store"),
            Column("Keys", "status.keys"),
            Column("Place", "status.place", wide=True),
            Column("Version", "status.version", wide=True),
            Column("Description", "spec.description"),
            Column("Age", "age:metadata.creationTimestamp"),
        ),
        actions=("set", "unset"),
    )

    kind: Literal["Secret"] = "Secret"
    """Name of the kind."""
    spec: SecretSpec = Field(default_factory=SecretSpec)
    """What it is for."""
    status: SecretStatus = Field(default_factory=SecretStatus)
    """Which values there are."""

    @classmethod
    def admit(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Values do not move with a word in the spec: what is sealed would come back later, unlooked for."""
        before, after = (doc["spec"].get("store", "sealed") for doc in (old, new))
        if before != after:
            name = new["metadata"]["name"]
            remedy = "make another Secret, name that one in the services, then delete this one"
            message = f"secret {name} is kept as `{before}` and cannot become `{after}`"
            raise Invalid(problems=(Problem(message, "spec.store", remedy=remedy),))
