"""Inventory: the sites that form the cloud, what they offer, whether they answer, and how they join."""

from typing import Any

from groundcontrol.capabilities.inventory.kinds import JoinPolicy, Site
from groundcontrol.capabilities.inventory.reconcile import Asking, JoinPolicyReconciler, SiteReconciler, confirm_loss
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.reconcile import Reconciler
from groundcontrol.kernel.resource import Key


def _reconcilers(runtime: Any) -> tuple[Reconciler[Any], ...]:
    asking = Asking(
        runtime.settings.joining.every_seconds,
        lambda site: runtime.controller.wake_key(Key("Site", "", site)),
        runtime.store.clock,
    )
    return SiteReconciler(runtime.world, runtime.connect, asking, runtime.web), JoinPolicyReconciler()


CAPABILITY = Capability(
    name="inventory",
    kinds=(Site, JoinPolicy),
    reconcilers=_reconcilers,
    actions={("Site", "confirm-loss"): confirm_loss},
)
