"""Things at sites that no resource wants."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from groundcontrol.kernel.resource import Column, KindInfo, Model, Resource, Status


class OrphanSpec(Model):
    """What was found, and where. Written by the server."""

    site: str
    """Site it is at."""
    type: str
    """Type of thing: server, volume, network, unit, …"""
    id: str
    """Its id there."""
    name: str = ""
    """What it is called there."""
    sort: Literal["orphan", "stray"]
    """`orphan`: this installation made it, and no resource wants it any more. `stray`: somebody else made it, in a
    project of ours or on a host of ours."""
    owner: str = ""
    """Whom it was made for, as it says itself."""
    project: str = ""
    """Id of the project it is in."""


class OrphanStatus(Status):
    """What it costs."""

    about: str = ""
    """What it is, in one line."""
    since: str = ""
    """Since when it is there, or since when it was seen when the site does not tell; RFC 3339."""
    hours: int = 0
    """For how many hours that is; renewed once an hour."""
    cores: float = 0
    """Cores it has."""
    memory_mb: int = 0
    """Memory it has, MiB."""
    disk_gb: int = 0
    """Disk it has, GiB."""
    core_hours: int = 0
    """Cores times hours."""
    gib_hours: int = 0
    """GiB of disk times hours."""


class Orphan(Resource):
    """Something at a site that nobody wants, or that is not ours. Nothing happens to it until a person says so."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="orphans",
        namespaced=False,
        columns=(
            Column("Sort", "spec.sort"),
            Column("Site", "spec.site"),
            Column("Type", "spec.type"),
            Column("Called", "spec.name"),
            Column("Made for", "spec.owner"),
            Column("Age", "age:status.since"),
            Column("Core-hours", "status.coreHours"),
            Column("GiB-hours", "status.gibHours"),
            Column("Reason", "reason.Ready"),
            Column("Id", "spec.id", wide=True),
            Column("Project", "spec.project", wide=True),
        ),
        internal=True,
    )
    spec: OrphanSpec
    """What was found."""
    status: OrphanStatus = Field(default_factory=OrphanStatus)
    """What it costs."""
