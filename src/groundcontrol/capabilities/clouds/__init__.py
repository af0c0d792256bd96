"""Clouds: servers, volumes, networks and what they need, as resources; made, kept and taken down at sites."""

from typing import Any

from groundcontrol.capabilities.clouds import procedures
from groundcontrol.capabilities.clouds.acting import ACTIONS, REPEATABLE
from groundcontrol.capabilities.clouds.kinds import KINDS
from groundcontrol.capabilities.clouds.queries import import_things
from groundcontrol.capabilities.clouds.reconcile import RECONCILERS
from groundcontrol.capabilities.clouds.view import Shelf
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.reconcile import Reconciler


def _reconcilers(runtime: Any) -> tuple[Reconciler[Any], ...]:
    shelf = Shelf()
    return tuple(made(shelf, lambda *wish: runtime.reconciler("proposals").suggest(*wish)) for made in RECONCILERS)


CAPABILITY = Capability(
    name="clouds",
    kinds=KINDS,
    reconcilers=_reconcilers,
    reads=("inventory",),
    actions={**ACTIONS, **procedures.ACTIONS, ("Site", "import"): import_things},
    repeatable=REPEATABLE | procedures.REPEATABLE | {("Site", "import")},
)
