"""Services: what should run, on which sites, in how many copies; kept running, healthy and up to date."""

from typing import Any

from groundcontrol.capabilities.services.kinds import Instance, Service
from groundcontrol.capabilities.services.logic import RESTARTED, kept_by_hand
from groundcontrol.capabilities.services.reconcile import (
    InstanceReconciler,
    ServiceReconciler,
    unit_differences,
    unit_of,
)
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.errors import Conflict, NotFound, Unavailable
from groundcontrol.kernel.reconcile import Look
from groundcontrol.kernel.resource import Key, now


def restart(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Replace every instance by a fresh one, as the update strategy says."""

    def act(tx: Any) -> None:
        tx.touch(key, {RESTARTED: now(tx.time)})
        tx.audit(str(subject.name), "restart", key, reason=str(body.get("reason", "")))

    runtime.store.write(act)
    return {"restarting": str(key)}


def propose(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Propose that what was changed by hand at the site is what the service wants; for who may change the service."""
    stored = runtime.store.get(key)
    if stored is None:
        raise NotFound(f"there is no {key}")
    instance = Instance.view(stored)
    seen = Look(runtime.store, runtime.world, key, instance.metadata.uid).seen(unit_of(instance))
    if seen.truth != "present":
        raise Unavailable(f"{key} cannot be seen at its site: {seen.message or 'it is not there'}")
    drift = unit_differences(instance, seen.item)
    if not drift:
        raise Conflict(f"nothing of {key} was changed by hand")
    service = Key("Service", key.namespace, instance.spec.service)

    def wanted(tx: Any) -> tuple[Any, Any]:
        old = tx.need(service)
        spec = kept_by_hand(old["spec"], drift)
        if spec is None:
            raise Conflict(f"{', '.join(drift)}: no service can say that; put it back with drift: correct")
        new = {**old, "spec": spec}
        runtime.access.admit(tx, subject, "update", service, old, new)
        return old, new

    pair = runtime.store.write(wanted)
    dry = body.get("dryRun") in (True, "true")
    return {"proposals": runtime.reconciler("proposals").offer(subject, [pair], dry)}


CAPABILITY = Capability(
    name="services",
    kinds=(Service, Instance),
    reconcilers=lambda runtime: (
        ServiceReconciler(),
        InstanceReconciler(runtime.reveal, lambda *wish: runtime.reconciler("proposals").suggest(*wish)),
    ),
    reads=("inventory",),
    actions={("Service", "restart"): restart, ("Instance", "propose"): propose},
    repeatable=frozenset({("Instance", "propose")}),
)
