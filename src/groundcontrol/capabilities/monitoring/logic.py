"""When an incident begins, goes on and ends: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from groundcontrol.capabilities.monitoring.kinds import Entry, IncidentStatus

MOST_ENTRIES = 100
"""Lines kept on an incident's timeline."""
Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a subject now, in its own words."""

    severity: Severity
    title: str
    text: str
    since: str
    failure: str = ""
    """Time of the failure behind it, when there was one."""


def _condition(status: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    none = {"status": "Unknown", "reason": "NotLooked", "message": "", "lastTransitionTime": ""}
    return next((c for c in status.get("conditions", ()) if c["type"] == type_), none)


_MEANT = ("Progressing", "Starting", "NotLooked", "Held")
"""Why a service is not Ready though nothing failed: somebody wants it otherwise, and it is on its way or waits."""


def service_trouble(doc: Mapping[str, Any], failure_told: str) -> Trouble | None:
    """The trouble of a service that was well before, or that failed since `failure_told`; None when there is none.

    A first roll-out and a deliberate change are not trouble."""
    name, status = doc["metadata"]["name"], doc["status"]
    ready, available = _condition(status, "Ready"), _condition(status, "Available")
    failure = status.get("lastFailure") or {}
    failed = failure.get("time", "")
    if not status.get("goodRevision") or doc["metadata"]["deletionTimestamp"]:
        return None
    # A change that is held covers what else Ready would say; being down is trouble all the same.
    down = ready["reason"] == "Held" and available["status"] == "False"
    bad = ready["status"] != "True" and (ready["reason"] not in _MEANT or down)
    text = available["message"] if down else ready["message"]
    if bad and available["status"] != "True":
        word = "is down" if available["status"] == "False" else "may be down"
        severity: Severity = "critical" if available["status"] == "False" else "warning"
        since = available["lastTransitionTime"] or ready["lastTransitionTime"]
        return Trouble(severity, f"{name} {word}", text, since, failed)
    if bad:
        return Trouble("warning", f"{name} is impaired", ready["message"], ready["lastTransitionTime"], failed)
    if failed and failed > failure_told:
        text = f"{failure.get('instance', '')}: {failure.get('message', '')}"
        return Trouble("info", f"{name} failed and was restarted", text, failed, failed)
    return None


def site_trouble(doc: Mapping[str, Any], affected: int) -> Trouble | None:
    """A site that answered before and does not now."""
    ready = _condition(doc["status"], "Ready")
    if ready["status"] == "True" or ready["reason"] not in ("Unreachable", "Held"):
        return None
    name = doc["metadata"]["name"]
    title = f"site {name} does not answer" if ready["reason"] == "Unreachable" else f"site {name} is held"
    text = f"{ready['message']}; {affected} instances are placed there"
    return Trouble("critical" if affected else "warning", title, text, ready["lastTransitionTime"])


def told(status: IncidentStatus, trouble: Trouble, at: str) -> IncidentStatus:
    """The incident with what is new about its trouble; the same when nothing is."""
    last = status.timeline[-1].text if status.timeline else ""
    if trouble.text == last and status.failure_seen >= trouble.failure:
        return status
    timeline = list(status.timeline)
    if trouble.text != last:
        timeline.append(Entry(time=at, text=trouble.text))
    seen = max(status.failure_seen, trouble.failure)
    return status.model_copy(update={"timeline": timeline[-MOST_ENTRIES:], "failure_seen": seen})


def closed(status: IncidentStatus, text: str, failure: str, at: str) -> IncidentStatus:
    """The incident, over."""
    timeline = [*status.timeline, Entry(time=at, text=text)][-MOST_ENTRIES:]
    seen = max(status.failure_seen, failure)
    return status.model_copy(update={"phase": "Closed", "closed_at": at, "timeline": timeline, "failure_seen": seen})
