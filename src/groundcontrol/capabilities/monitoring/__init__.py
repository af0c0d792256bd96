"""Monitoring: from what is seen of services and sites to incidents that open, tell and close by themselves."""

from groundcontrol.capabilities.monitoring.kinds import Incident
from groundcontrol.capabilities.monitoring.reconcile import ServiceIncidents, SiteIncidents, acknowledge
from groundcontrol.kernel.capability import Capability

CAPABILITY = Capability(
    name="monitoring",
    kinds=(Incident,),
    reconcilers=lambda runtime: (ServiceIncidents(), SiteIncidents()),
    reads=("inventory", "services"),
    actions={("Incident", "acknowledge"): acknowledge},
    repeatable=frozenset({("Incident", "acknowledge")}),
)
