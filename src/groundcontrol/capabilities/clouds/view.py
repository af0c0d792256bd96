"""What is known, in one turn, of a thing in a cloud, of its project, and of what it names."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from pydantic.alias_generators import to_camel

from groundcontrol.capabilities.clouds.kinds import CLOUD, TYPES, CloudResource, Project, not_granted
from groundcontrol.capabilities.clouds.logic import PLATFORM, Reference, chosen, cloud_name, references, wanted_fields
from groundcontrol.kernel.plan import Target
from groundcontrol.kernel.reconcile import Look
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.world import Seen, Snapshot
from groundcontrol.ports.cloud import UNMARKED, CloudFacts, Thing

ByText = dict[str, list[Thing]]


def driver_of(resource: CloudResource) -> str:
    """The driver instance of its site."""
    return f"site/{resource.spec.site}"


class Shelf:
    """The things of the newest snapshot of each site, by type and by whose they are; sorted once for all resources."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Snapshot, ByText, ByText]] = {}
        self._lock = threading.Lock()

    def of(self, snapshot: Snapshot) -> tuple[ByText, ByText]:
        """(type to things, `Kind namespace/name` to things that carry it in their mark)."""
        with self._lock:
            known = self._made.get(snapshot.instance)
            if known is not None and known[0] is snapshot:
                return known[1], known[2]
            by_type: ByText = {}
            by_owner: ByText = {}
            for (type_, _), thing in snapshot.items.items():
                if isinstance(thing, Thing):
                    by_type.setdefault(type_, []).append(thing)
                    if thing.mark is not None:
                        by_owner.setdefault(thing.mark.owner_key, []).append(thing)
            self._made[snapshot.instance] = (snapshot, by_type, by_owner)
            return by_type, by_owner


@dataclass
class View:
    """What is known of one resource in one turn."""

    target: Target | None = None
    """The thing that is its own; None when there is none."""
    seen: Seen = field(default_factory=lambda: Seen("absent"))
    gone: tuple[Target, ...] = ()
    """What it owned and was proved to be gone."""
    project: str = ""
    """Id of its project; empty for what has none, or when it is not known yet."""
    wanted: dict[str, Any] = field(default_factory=dict)
    open: frozenset[str] = frozenset()
    """Fields that name something not known yet."""
    missing: tuple[str, ...] = ()
    """What of its references is not there, or not ready, in words."""

    @property
    def thing(self) -> Thing | None:
        return self.seen.item if self.seen.truth == "present" else None


class Sight:
    """Looks at resources of one kind."""

    def __init__(self, shelf: Shelf, kind: str) -> None:
        self._shelf, self._kind, self._type = shelf, kind, TYPES[kind]

    def of(self, resource: CloudResource, look: Look) -> View:
        """Everything a plan or a report is made from."""
        driver, view = driver_of(resource), View()
        name = cloud_name(self._kind, resource.spec, resource.metadata.namespace, resource.metadata.name)
        view.project, missing = self._project(resource, look)
        mine = [t for t in look.claims if t.driver == driver and t.type == self._type]
        if self._type in UNMARKED and not mine:
            known = name if self._type == "keypair" else view.project
            mine = [Target(driver, self._type, known)] if known else []
        for target in mine:
            seen = look.seen(target)
            if seen.truth == "absent" and self._type not in UNMARKED:
                view.gone += (target,)
            elif view.target is None or seen.truth == "present":
                view.target, view.seen = target, seen
        ids, more = self._ids(resource, look, view.project)
        view.missing = (*missing, *more)
        view.wanted, view.open = wanted_fields(self._kind, resource.spec, name, ids)
        return view

    def not_whole(self, look: Look, driver: str) -> str:
        """Why what carries our mark may not have been seen yet; empty when all of this type has."""
        snapshot = look.snapshot(driver)
        if not look.trusted(driver):
            return snapshot.held or snapshot.error or f"{driver} has not been looked at yet"
        looked = snapshot.facts.looked.get(self._type, 0.0) if isinstance(snapshot.facts, CloudFacts) else 0.0
        if snapshot.complete or looked:
            return ""
        noun, why = self._type.replace("_", " "), "; ".join(snapshot.problems)
        return f"the {noun}s of {driver} could not be listed yet: {why}"

    def _project(self, resource: CloudResource, look: Look) -> tuple[str, tuple[str, ...]]:
        """(id of the project, why it is not known)."""
        named = getattr(resource.spec, "project", "")
        if not named:
            return "", ()
        project = look.get(Project, named)
        if resource.metadata.namespace:
            why = not_granted(project.as_doc() if project else None, resource.as_doc())
        else:
            there = project is not None and project.spec.site == resource.spec.site
            why = "" if there else f"there is no Project {named} at site {resource.spec.site}"
        if why or project is None:
            return "", (why,)
        if project.deleting:
            return project.status.id, (f"Project {named} is being deleted",)
        return project.status.id, () if project.status.id else (f"Project {named} is not there yet",)

    def _ids(
        self, resource: CloudResource, look: Look, project: str
    ) -> tuple[dict[tuple[str, str], str], tuple[str, ...]]:
        """(references to ids, what is missing in words)."""
        ids: dict[tuple[str, str], str] = {}
        missing = []
        by_type, _ = self._shelf.of(look.snapshot(driver_of(resource)))
        for reference in references(self._kind, resource.spec):
            if reference.text.startswith(CLOUD):
                id_, why = chosen(by_type.get(TYPES[reference.kind], ()), reference, project)
            else:
                id_, why = self._named(resource, reference, look)
            if id_:
                ids[reference.kind, reference.text] = id_
            if why:
                missing.append(f"{to_camel(reference.field)}: {why}")
        return ids, tuple(missing)

    def _named(self, resource: CloudResource, reference: Reference, look: Look) -> tuple[str, str]:
        """(id, why not) of a resource's thing."""
        namespace = "" if reference.kind in PLATFORM else resource.metadata.namespace
        key = Key(reference.kind, namespace, reference.text)
        doc = look.get_any(reference.kind, reference.text, namespace)
        if doc is None:
            return "", f"there is no {key}"
        for part in ("site", "project") if namespace else ("site",):
            mine, its = getattr(resource.spec, part, None), doc["spec"][part]
            if its != mine:
                return "", f"{key} is in {part} {its}"
        if doc["metadata"]["deletionTimestamp"]:
            return "", f"{key} is being deleted"
        id_, state = doc["status"].get("id", ""), doc["status"].get("state", "")
        return (id_, "") if id_ and state in ("ready", "off") else ("", f"{key} is not ready yet")
