"""Opens an incident when a service or a site is in trouble, keeps its timeline, and closes it when all is well."""

from __future__ import annotations

from typing import Any

from groundcontrol.capabilities.inventory.kinds import Site
from groundcontrol.capabilities.monitoring.kinds import Entry, Incident, IncidentStatus
from groundcontrol.capabilities.monitoring.logic import Trouble, closed, service_trouble, site_trouble, told
from groundcontrol.capabilities.services.kinds import Service
from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.plan import Change, Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, StoreWrite, store_change
from groundcontrol.kernel.resource import Doc, Key, Resource, now, seconds
from groundcontrol.kernel.tx import managed_paths

PLATFORM = "platform"
"""Namespace of incidents about sites."""


def incidents_about(look: Look, subject: Key, namespace: str) -> list[Incident]:
    """Incidents about a subject, oldest first."""
    found = [
        i
        for i in look.all(Incident, namespace)
        if (i.spec.subject.kind, i.spec.subject.name) == (subject.kind, subject.name)
    ]
    return sorted(found, key=lambda i: i.status.opened_at)


def plan_incident(look: Look, subject: Key, namespace: str, trouble: Trouble | None, well: bool, gone: bool) -> Plan:
    """What to do about the incidents of one subject."""
    about = incidents_about(look, subject, namespace)
    current = next((i for i in about if i.status.phase == "Open"), None)
    at = now(look.now)
    if current is None:
        if trouble is None or look.get_any("Namespace", namespace) is None:
            return Plan()
        return Plan((_open(subject, namespace, trouble, at),))
    if ((well or gone) and trouble is None) or (well and trouble is not None and trouble.severity == "info"):
        text = "it was deleted" if gone else "it is well again"
        after = closed(current.status, text, trouble.failure if trouble else "", at)
        return Plan((_status(current, after, "IncidentClosed", text),))
    if trouble is not None:
        after = told(current.status, trouble, at)
        if after is not current.status:
            return Plan((_status(current, after, "IncidentTold", trouble.text),))
    return Plan()


def _open(subject: Key, namespace: str, trouble: Trouble, at: str) -> Change:
    since = trouble.since or at
    name = f"{subject.name[:40].rstrip('-.')}-{int(seconds(since) * 1000):x}"
    incident = Incident.model_validate(
        {
            "kind": "Incident",
            "metadata": {"name": name, "namespace": namespace, "labels": {"ground/subject": subject.name}},
            "spec": {
                "subject": subject._asdict(),
                "title": trouble.title,
                "severity": trouble.severity,
            },
        }
    )
    status = IncidentStatus(opened_at=since, timeline=[Entry(time=at, text=trouble.text)])
    doc = incident.model_copy(update={"status": status}).as_doc()
    key = Key("Incident", namespace, name)
    write = StoreWrite(doc, managed_paths(doc))
    return store_change("create", key, write, reason=trouble.title, event="IncidentOpened")


def _status(incident: Incident, status: IncidentStatus, event: str, reason: str) -> Change:
    doc: Doc = {"status": status.model_dump(mode="json", by_alias=True)}
    fields = {"status.phase": (incident.status.phase, status.phase)}
    write = StoreWrite(doc, uid=incident.metadata.uid)
    return store_change("status", incident.key, write, fields=fields, reason=reason, event=event)


def _well(resource: Resource) -> bool:
    """A change that waits for a person does not keep an incident open; whether it is down is asked before."""
    return any(c.type == "Ready" and (c.status == "True" or c.reason == "Held") for c in resource.status.conditions)


class ServiceIncidents(Reconciler[Service]):
    """Incidents about services, in the service's own namespace."""

    name = "service-incidents"
    kind = Service
    reports = False
    on_status = True

    def plan(self, resource: Service, look: Look) -> Plan:
        namespace = resource.metadata.namespace
        about = incidents_about(look, resource.key, namespace)
        failure_told = max((i.status.failure_seen for i in about), default="")
        trouble = service_trouble(resource.as_doc(), failure_told)
        return plan_incident(look, resource.key, namespace, trouble, _well(resource), resource.deleting)


class SiteIncidents(Reconciler[Site]):
    """Incidents about sites, in the namespace `platform`."""

    name = "site-incidents"
    kind = Site
    reports = False
    on_status = True

    def plan(self, resource: Site, look: Look) -> Plan:
        trouble = site_trouble(resource.as_doc(), resource.status.instances)
        return plan_incident(look, resource.key, PLATFORM, trouble, _well(resource), resource.deleting)


def acknowledge(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Somebody says that they look after it."""

    def act(tx: Any) -> Doc:
        doc = tx.need(key)
        if doc["status"].get("phase") != "Open":
            raise Invalid(f"{key} is closed; there is nothing to acknowledge")
        note = str(body.get("reason", "")) or "acknowledged"
        line = {"time": now(tx.time), "text": f"{subject.name}: {note}"[:500]}
        timeline = [*doc["status"].get("timeline", ()), line][-100:]
        status = {**doc["status"], "acknowledgedBy": str(subject.name), "timeline": timeline}
        tx.set_status(key, doc["metadata"]["uid"], status)
        tx.audit(str(subject.name), "acknowledge", key, reason=note)
        return status

    return {"status": runtime.store.write(act)}
