"""Orphans and strays: what is at the sites and nobody wants, or nobody of ours made."""

from typing import Any

from groundcontrol.capabilities.orphans.kinds import Orphan
from groundcontrol.capabilities.orphans.reconcile import FinderReconciler, OrphanReconciler
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.reconcile import Reconciler


def _reconcilers(runtime: Any) -> tuple[Reconciler[Any], ...]:
    return FinderReconciler(runtime.store), OrphanReconciler(runtime.store)


CAPABILITY = Capability(
    name="orphans",
    kinds=(Orphan,),
    reconcilers=_reconcilers,
    reads=("inventory",),
)
