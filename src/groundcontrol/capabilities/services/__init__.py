"""Services: what should run, on which sites, in how many copies; kept running, healthy and up to date."""

from typing import Any

from groundcontrol.capabilities.services.kinds import Instance, Service
from groundcontrol.capabilities.services.logic import RESTARTED
from groundcontrol.capabilities.services.reconcile import InstanceReconciler, ServiceReconciler
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.resource import Key, now


def restart(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Replace every instance by a fresh one, as the update strategy says."""

    def act(tx: Any) -> None:
        tx.touch(key, {RESTARTED: now(tx.time)})
        tx.audit(str(subject.name), "restart", key, reason=str(body.get("reason", "")))

    runtime.store.write(act)
    return {"restarting": str(key)}


CAPABILITY = Capability(
    name="services",
    kinds=(Service, Instance),
    reconcilers=lambda runtime: (ServiceReconciler(), InstanceReconciler(runtime.reveal)),
    reads=("inventory",),
    actions={("Service", "restart"): restart},
)
