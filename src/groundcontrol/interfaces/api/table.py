"""The table of all operations: what is routed is what is described."""

from __future__ import annotations

from groundcontrol.interfaces.api import derive, happened, inventory, plans, propose, signin
from groundcontrol.interfaces.api.operation import Operation
from groundcontrol.kernel.resource import Kinds


def operations(kinds: Kinds) -> list[Operation]:
    """Every operation, the ones of fixed paths first."""
    return [
        *signin.operations(),
        *happened.operations(),
        *plans.operations(),
        *propose.operations(),
        *inventory.operations(),
        *derive.operations(kinds),
    ]
