"""What is said of a secret; what it is stays sealed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from groundcontrol.kernel.resource import Column, KindInfo, Model, Resource, Status


class SecretSpec(Model):
    """What a secret is for."""

    description: str = Field(default="", max_length=1000)
    """What it is for, for people."""


class SecretKey(Model):
    """One value of a secret, by name only."""

    name: str
    """Its name; resources say `secret:NAME/KEY`."""
    set_at: str = ""
    """When it was last set, RFC 3339."""
    set_by: str = ""
    """Who set it."""


class SecretStatus(Status):
    """Which values there are."""

    keys: list[SecretKey] = Field(default_factory=list)
    """The values there are, by name."""


class Secret(Resource):
    """Values that only running services see. Set one with the action `set`; it can be replaced, never read."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="secrets",
        columns=(
            Column("Keys", "status.keys"),
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
