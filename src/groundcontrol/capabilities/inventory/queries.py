"""What is at a site in detail, from what was last seen there: by type, in pages, and only what the asker may see."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from groundcontrol.capabilities.inventory.kinds import Site
from groundcontrol.capabilities.inventory.logic import clean
from groundcontrol.capabilities.inventory.reconcile import instance_name
from groundcontrol.kernel.errors import Forbidden, Invalid, NotFound, Problem
from groundcontrol.kernel.resource import Doc, Key, did_you_mean, now
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.world import Snapshot
from groundcontrol.ports.cloud import FIELDS, CloudFacts, Thing

HOSTS, QUOTAS, ENDPOINTS = "hosts", "quotas", "endpoints"
TYPES = (*sorted(FIELDS.keys() - {"quota"}), HOSTS, QUOTAS, ENDPOINTS)
"""What can be listed."""
FOR_ALL: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "flavor": lambda fields: fields.get("public") is True,
    "image": lambda fields: fields.get("visibility") in ("public", "community"),
    "network": lambda fields: fields.get("shared") is True or fields.get("external") is True,
    ENDPOINTS: lambda fields: True,
}
"""Type to which of it whoever may read the site may see. All else is for those who look after the site: it belongs to
other projects, or says how the site is built."""
TOLD_ALL = ("type", "id", "name", "state", "status", "created", "updated", "fields")
"""What those who may only read the site are told of a thing; who owns it and where it lies is not among it."""
HIDDEN = frozenset({"user_data"})
"""Fields that are never shown: people put secrets into them."""


def inventory(runtime: Any, subject: Subject, site: str, type_: str, limit: int, proceed: str) -> Doc:
    """One page of a type, or with an empty `type_` how many there are of each. The caller has judged that the subject
    may read the site. Raises NotFound, Forbidden, and Invalid for a `proceed` of another list."""
    doc = runtime.store.get(Key("Site", "", site))
    if doc is None:
        raise NotFound(f"there is no Site {site}")
    if type_ and type_ not in TYPES:
        raise NotFound(f"an inventory has no {type_[:60]!r}{did_you_mean(type_, TYPES)}; known: {', '.join(TYPES)}")
    labels = doc["metadata"].get("labels") or {}
    all_of_it = runtime.access.allowed(subject, "update", "Site", name=site, labels=labels)
    if type_ and not all_of_it and type_ not in FOR_ALL:
        raise Forbidden(
            f"{subject.name} may not list {type_} of site {site}: that is for those who may update the site; "
            f"you may list {', '.join(FOR_ALL)}"
        )
    snapshot = runtime.world.snapshot(instance_name(site))
    facts = snapshot.facts if isinstance(snapshot.facts, CloudFacts) else None
    known = {
        "site": site,
        "driver": Site.view(doc).spec.driver,
        "answers": runtime.world.trusted(instance_name(site)),
        "complete": snapshot.complete,
        "problems": [clean(p) for p in (*snapshot.problems, snapshot.error, snapshot.held) if p],
    }
    if facts is None:
        return {**known, "type": type_, "looked": "", "items": []}
    if not type_:
        return {**known, "type": "", "looked": _age(snapshot.ended), "items": _summary(snapshot, facts, all_of_it)}
    items = sorted(_items(snapshot, facts, type_, all_of_it), key=lambda i: (str(i["name"]), str(i["id"])))
    page, following = _page(items, site, type_, limit, proceed)
    looked = _age(facts.looked.get(type_, snapshot.ended))
    return {**known, "type": type_, "looked": looked, "total": len(items), "items": page} | following


def _age(at: float) -> str:
    return now(at) if at else ""


def _summary(snapshot: Snapshot, facts: CloudFacts, all_of_it: bool) -> list[Doc]:
    """One entry for each type that the asker may list."""
    counts: Counter[str] = Counter()
    for (type_, _), thing in snapshot.items.items():
        counts[type_] += all_of_it or _for_all(thing)
    counts[ENDPOINTS] = len(facts.endpoints)
    counts[HOSTS], counts[QUOTAS] = len(facts.hosts), len(facts.quotas)
    return [
        {"name": type_, "id": type_, "count": counts[type_], "looked": _age(facts.looked.get(type_, 0.0))}
        for type_ in TYPES
        if all_of_it or type_ in FOR_ALL
    ]


def _items(snapshot: Snapshot, facts: CloudFacts, type_: str, all_of_it: bool) -> Iterable[Doc]:
    if type_ == HOSTS:
        yield from ({"id": h.name, **_plain(h)} for h in facts.hosts)
    elif type_ == ENDPOINTS:
        for e in facts.endpoints:
            told = {**_plain(e), "url": clean(e.url), "problem": clean(e.problem)}
            yield {"id": f"{e.service} {told['url']}", "name": e.service, **told, "expires": _age(e.expires)}
    elif type_ == QUOTAS:
        names = {t.id: t.name for t in snapshot.items.values() if t.type == "project"}
        for q in facts.quotas:
            yield {"id": f"{q.project} {q.resource}", "name": names.get(q.project, q.project), **_plain(q)}
    else:
        for (kind, _), thing in snapshot.items.items():
            if kind == type_ and (all_of_it or _for_all(thing)):
                yield _thing(thing, all_of_it)


def _for_all(thing: Thing) -> bool:
    return thing.type in FOR_ALL and FOR_ALL[thing.type](thing.fields)


def _plain(value: Any) -> Doc:
    """As JSON, every member there."""
    return {name: msgspec.to_builtins(getattr(value, name)) for name in value.__struct_fields__}


def _thing(thing: Thing, all_of_it: bool) -> Doc:
    found = _plain(thing)
    fields = {n: v for n, v in found.pop("fields").items() if n not in HIDDEN}
    mark = found.pop("mark")
    found |= {n: _age(found[n]) for n in ("created", "updated")} | {"fault": clean(thing.fault), "fields": fields}
    if all_of_it:
        return found | {"madeFor": mark["owner_key"] if mark else ""}
    return {n: found[n] for n in TOLD_ALL}


def _page(items: list[Doc], site: str, type_: str, limit: int, proceed: str) -> tuple[list[Doc], Doc]:
    """The items behind the place that `proceed` names, and how to go on. The place stays meaningful whatever comes and
    goes between two pages."""
    if proceed:
        try:
            text = base64.urlsafe_b64decode(proceed.encode("ascii"))
            *about, name, identity = msgspec.json.decode(text, type=list[str])
        except (ValueError, binascii.Error, UnicodeError, msgspec.MsgspecError):
            about = []
        if about != [site, type_]:
            problem = Problem("it belongs to another list", "continue", remedy="begin again without it")
            raise Invalid(problems=(problem,))
        items = [i for i in items if (str(i["name"]), str(i["id"])) > (name, identity)]
    page = items[:limit]
    if len(items) <= limit:
        return page, {}
    last = [site, type_, str(page[-1]["name"]), str(page[-1]["id"])]
    return page, {"continue": base64.urlsafe_b64encode(msgspec.json.encode(last)).decode()}
