"""What is in a project of a cloud, as manifests: applied, they take it over as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from groundcontrol.capabilities.clouds.kinds import CLOUD, TYPES, Project
from groundcontrol.capabilities.clouds.logic import KIND_OF, as_spec, resource_name
from groundcontrol.kernel.claims import owners_at
from groundcontrol.kernel.errors import Conflict, Invalid, NotFound, Problem, Unavailable
from groundcontrol.kernel.resource import API_VERSION, NAME, Doc, Key, Kinds, did_you_mean
from groundcontrol.kernel.world import Item
from groundcontrol.ports.cloud import CloudFacts, Thing

IMPORTED = ("network", "subnet", "router", "security_group", "volume", "server", "floating_ip")
"""Types that are written, what others name first."""


def import_things(runtime: Any, subject: Any, key: Key, body: Mapping[str, Any]) -> Doc:
    """Write manifests of what is in a `project` of this site (its name or id) for a `namespace`. Changes nothing."""
    wanted, namespace = (str(body.get(n) or "") for n in ("project", "namespace"))
    missing = [Problem(f"{n} is missing", n) for n, v in (("project", wanted), ("namespace", namespace)) if not v]
    if missing or not NAME.fullmatch(namespace):
        raise Invalid(problems=tuple(missing) or (Problem("not the name of a namespace", "namespace"),))
    driver = f"site/{key.name}"
    snapshot = runtime.world.snapshot(driver)
    if not isinstance(snapshot.facts, CloudFacts) and snapshot.ended:
        raise Conflict(f"{key} is no cloud: there is nothing to be imported from it")
    if not runtime.world.trusted(driver) or not snapshot.complete:
        why = snapshot.held or snapshot.error or "; ".join(snapshot.problems) or "it has not been looked at yet"
        raise Unavailable(f"{key} is not known well enough: {why}")
    things = {item: t for item, t in snapshot.items.items() if isinstance(t, Thing)}
    project = _project(things, wanted, key.name)
    with runtime.store.reading() as conn:
        owners = owners_at(conn, driver)
    return _Writer(runtime, key.name, namespace, things, owners).write(project)


def _project(things: Mapping[Item, Thing], wanted: str, site: str) -> Thing:
    projects = [t for (type_, _), t in things.items() if type_ == "project"]
    found = [t for t in projects if t.id == wanted] or [t for t in projects if t.name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise Conflict(f"{len(found)} projects of site {site} are called {wanted}: give the id")
    raise NotFound(f"site {site} shows no project {wanted}{did_you_mean(wanted, [t.name for t in projects])}")


class _Writer:
    """Manifests for one namespace."""

    def __init__(
        self, runtime: Any, site: str, namespace: str, things: Mapping[Item, Thing], owners: Mapping[Item, str]
    ) -> None:
        self._store, self._kinds, self._site, self._namespace = runtime.store, runtime.kinds, site, namespace
        self._things, self._owners = things, owners
        self._names: dict[Item, str] = {}
        self._left: list[Doc] = []

    def write(self, project: Thing) -> Doc:
        """`{"documents": […], "leftOut": [{"type", "id", "name", "why"}]}`."""
        name, documents = self._of_project(project)
        mine = [t for type_ in IMPORTED for t in self._sorted(type_) if t.project == project.id]
        chosen = [t for t in mine if self._may_be_written(t)]
        for thing in chosen:
            kind = KIND_OF[thing.type]
            taken = {e.key.name for e in self._store.entries(kind, self._namespace)}
            taken |= {n for (type_, _), n in self._names.items() if type_ == thing.type}
            self._names[thing.type, thing.id] = resource_name(thing, taken)
        for thing in chosen:
            own = self._names[thing.type, thing.id]
            spec: Doc = {"site": self._site, "project": name, "adopt": thing.id, "deletion": "keep"}
            if thing.name and thing.name != own and thing.type != "floating_ip":
                spec["name"] = thing.name
            kind = KIND_OF[thing.type]
            doc = _manifest(kind, own, self._namespace, spec | as_spec(kind, thing, self._named))
            if why := _wrong(self._kinds, doc):
                self._leave(thing, why)
            else:
                documents.append(doc)
        return {"documents": documents, "leftOut": self._left}

    def _sorted(self, type_: str) -> list[Thing]:
        return sorted((t for (found, _), t in self._things.items() if found == type_), key=lambda t: (t.name, t.id))

    def _of_project(self, project: Thing) -> tuple[str, list[Doc]]:
        """The name of the Project, and its manifest when there is none yet."""
        for entry in self._store.entries("Project"):
            known = Project.view(entry.doc)
            if known.spec.site == self._site and known.status.id == project.id:
                return known.metadata.name, []
        taken = {e.key.name for e in self._store.entries("Project")}
        name = resource_name(project, taken)
        spec: Doc = {"site": self._site, "adopt": project.id, "deletion": "keep", "namespaces": [self._namespace]}
        if project.name and project.name != name:
            spec["name"] = project.name
        return name, [_manifest("Project", name, "", spec | as_spec("Project", project, self._named))]

    def _may_be_written(self, thing: Thing) -> bool:
        if (thing.type, thing.id) in self._owners:
            return False
        if thing.type == "security_group" and thing.name == "default":
            self._leave(thing, "the project's own group; it cannot be deleted, and need not be declared")
        elif thing.state in ("busy", "leaving", "failed"):
            self._leave(thing, f"it is {thing.state}: {thing.fault or thing.status}")
        elif thing.mark is not None and thing.mark.installation != self._store.installation:
            self._leave(thing, f"installation {thing.mark.installation} made it and may look after it")
        else:
            return True
        return False

    def _leave(self, thing: Thing, why: str) -> None:
        self._left.append({"type": thing.type, "id": thing.id, "name": thing.name, "why": why})

    def _named(self, kind: str, id_: str) -> str:
        """How a spec of the namespace names a thing."""
        item = (TYPES[kind], id_)
        if item in self._names:
            return self._names[item]
        entry = self._store.by_uid(self._owners[item]) if item in self._owners else None
        if entry is not None and entry.key.kind == kind and entry.key.namespace in ("", self._namespace):
            return str(entry.key.name)
        return f"{CLOUD}{id_}"


def _manifest(kind: str, name: str, namespace: str, spec: Doc) -> Doc:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": meta, "spec": spec}


def _wrong(kinds: Kinds, doc: Doc) -> str:
    try:
        kinds.parse(doc)
    except Invalid as error:
        return f"no manifest can say what it is: {'; '.join(str(p) for p in error.problems[:3])}"
    return ""
