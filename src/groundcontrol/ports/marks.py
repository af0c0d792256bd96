"""Whose a thing at a site is, read from the thing itself, whatever the driver."""

from __future__ import annotations

from typing import Any, NamedTuple

from groundcontrol.ports.cloud import Thing
from groundcontrol.ports.processes import UnitObserved


class Whose(NamedTuple):
    """What a thing carries of who made it, and for what."""

    installation: str
    owner: str
    """Uid of the resource it was made for."""
    owner_key: str
    """That resource in words; of clouds `Kind namespace/name`."""


def whose(item: Any) -> Whose | None:
    """What an item of a snapshot says of its maker; None when it says nothing."""
    if isinstance(item, Thing) and item.mark is not None:
        return Whose(item.mark.installation, item.mark.owner, item.mark.owner_key)
    if isinstance(item, UnitObserved) and item.tags.get("installation"):
        tags = item.tags
        return Whose(tags["installation"], tags.get("owner", ""), tags.get("owner_key", ""))
    return None
