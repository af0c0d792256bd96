"""Incidents: what went wrong, since when, who is affected, and what was done."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from groundcontrol.kernel.resource import Column, KindInfo, Model, Resource, Status


class Subject(Model):
    """What an incident is about."""

    kind: str
    """Kind of the resource."""
    namespace: str = ""
    """Its namespace; empty for kinds of the whole platform."""
    name: str
    """Its name."""


class IncidentSpec(Model):
    """What an incident is about."""

    subject: Subject
    """The resource that is in trouble."""
    title: str
    """One sentence."""
    severity: Literal["info", "warning", "critical"] = "warning"
    """`critical`: nobody can use it; `warning`: some of it is gone, or not known; `info`: it healed at once."""


class Entry(Model):
    """One line of an incident's timeline."""

    time: str
    """When, RFC 3339."""
    text: str
    """What was seen or done."""


class IncidentStatus(Status):
    """How far it is."""

    phase: Literal["Open", "Closed"] = "Open"
    """Open until the subject is well again."""
    opened_at: str = ""
    """When the trouble began, RFC 3339."""
    closed_at: str = ""
    """When the subject was well again, RFC 3339."""
    acknowledged_by: str = ""
    """Who said that they look after it."""
    timeline: list[Entry] = Field(default_factory=list)
    """What was seen and done, oldest first; the last hundred lines."""
    failure_seen: str = ""
    """Time of the last failure of the subject that this incident speaks of, RFC 3339."""


class Incident(Resource):
    """Something that went wrong with a service or a site. Opened and closed by monitoring; people acknowledge."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="incidents",
        short=("inc",),
        columns=(
            Column("Phase", "status.phase"),
            Column("Severity", "spec.severity"),
            Column("Subject", "spec.subject.name"),
            Column("Title", "spec.title"),
            Column("Opened", "age:status.openedAt"),
            Column("Closed", "age:status.closedAt"),
            Column("Acknowledged", "status.acknowledgedBy", wide=True),
        ),
        actions=("acknowledge",),
        internal=True,
    )

    kind: Literal["Incident"] = "Incident"
    """Name of the kind."""
    spec: IncidentSpec
    """What it is about."""
    status: IncidentStatus = Field(default_factory=IncidentStatus)
    """How far it is."""
