"""What at a site is nobody's, and what that costs: pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Set
from typing import Any, NamedTuple

from groundcontrol.capabilities.orphans.kinds import OrphanSpec
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.world import Item
from groundcontrol.ports.cloud import Thing
from groundcontrol.ports.marks import Whose, whose
from groundcontrol.ports.processes import UnitObserved

UNOWNED = frozenset({"flavor", "quota", "project", "keypair"})
"""Types of which a cloud has things that are nobody's in particular: without our mark they are no strays."""


def found_at(
    site: str,
    items: Mapping[Item, Any],
    installation: str,
    claimed: Set[Item],
    awaited: Callable[[Whose, str], bool],
    projects: Collection[str],
) -> list[OrphanSpec]:
    """What of a site's things is an orphan or a stray, sorted by type and id.

    `claimed` is what resources own; `awaited(whose, type)` says whether a resource may still take over what carries
    this mark; `projects` are the ids of the projects that are ours."""
    found = []
    for (type_, id_), item in sorted(items.items(), key=lambda pair: pair[0]):
        mark = whose(item)
        if (type_, id_) in claimed or _leaving(item):
            continue
        ours = mark is not None and mark.installation == installation
        if mark is not None and ours:
            if awaited(mark, type_):
                continue
        elif not _in_our_place(item, projects):
            continue
        found.append(
            OrphanSpec(
                site=site,
                type=type_,
                id=id_,
                name=_called(item)[:255],
                sort="orphan" if ours else "stray",
                owner=_owner(mark, ours),
                project=item.project if isinstance(item, Thing) else "",
            )
        )
    return found


def _leaving(item: Any) -> bool:
    return isinstance(item, Thing) and item.state == "leaving"


def _in_our_place(item: Any, projects: Collection[str]) -> bool:
    if isinstance(item, UnitObserved):
        return True
    if not isinstance(item, Thing) or item.type in UNOWNED or item.project not in projects:
        return False
    # Every project is born with one.
    return not (item.type == "security_group" and item.name == "default")


def _called(item: Any) -> str:
    return item.name if isinstance(item, Thing) else str(getattr(item, "id", ""))


def _owner(mark: Whose | None, ours: bool) -> str:
    if mark is None:
        return ""
    return mark.owner_key[:255] if ours else f"{mark.owner_key} of installation {mark.installation}"[:255]


def key_in(text: str) -> Key | None:
    """The key that a mark names; None when it is none."""
    kind, _, path = text.partition(" ")
    namespace, _, name = path.rpartition("/")
    return Key(kind, namespace, name) if kind and name else None


def record_name(site: str, type_: str, id_: str) -> str:
    """What the resource that speaks of a thing is called."""
    return f"{site[:40]}-{hashlib.sha256(f'{type_} {id_}'.encode()).hexdigest()[:12]}"


class Size(NamedTuple):
    """What a thing takes up."""

    cores: float = 0.0
    memory_mb: int = 0
    disk_gb: int = 0


def size_of(item: Any, items: Mapping[Item, Any]) -> Size:
    """How much of a site a thing takes up, as far as that is told."""
    if isinstance(item, UnitObserved):
        return Size(item.spec.limits.cores, item.spec.limits.memory_mb)
    if not isinstance(item, Thing):
        return Size()
    if item.type == "server":
        flavor = items.get(("flavor", str(item.fields.get("flavor"))))
        fields = flavor.fields if isinstance(flavor, Thing) else {}
        numbers = [fields.get(n) for n in ("cores", "memory_mb", "disk_gb")]
        cores, memory, disk = (n if isinstance(n, int) else 0 for n in numbers)
        return Size(float(cores), memory, disk)
    size = item.fields.get("size")
    return Size(disk_gb=size if item.type == "volume" and isinstance(size, int) else 0)


def sentence(spec: OrphanSpec, hours: int, core_hours: int) -> str:
    """One line for the status of the site."""
    what = spec.id if spec.type == "unit" else f"{spec.type} {spec.name or spec.id}"
    if spec.sort == "orphan":
        told = f"{what}: made for {spec.owner or 'something'}, which is gone"
    else:
        told = f"{what}: not of this installation (of {spec.owner.rpartition(' ')[2] or 'nobody'})"
    days = f", for {hours // 24} days" if hours >= 48 else f", for {hours} hours" if hours else ""
    return f"{told}{days}" + (f", {core_hours} core-hours" if core_hours else "")
