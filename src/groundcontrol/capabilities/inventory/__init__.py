"""Inventory: the sites that form the cloud, what they offer, and whether they answer."""

from groundcontrol.capabilities.inventory.kinds import Site
from groundcontrol.capabilities.inventory.reconcile import SiteReconciler, confirm_loss
from groundcontrol.kernel.capability import Capability

CAPABILITY = Capability(
    name="inventory",
    kinds=(Site,),
    reconcilers=lambda runtime: (SiteReconciler(runtime.world, runtime.connect),),
    actions={("Site", "confirm-loss"): confirm_loss},
)
