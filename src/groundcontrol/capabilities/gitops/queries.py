"""The plan of a tree before it is merged: the same reading and comparing as the Source does, and nothing is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.logic import (
    FILE,
    SOURCE,
    Desired,
    File,
    kinds_version,
    parse_tree,
    plan_changes,
)
from groundcontrol.kernel.errors import Invalid, NotFound, Problem
from groundcontrol.kernel.plan import Plan, Spent, over_limit
from groundcontrol.kernel.resource import Doc, Key, did_you_mean


def preview_plan(runtime: Any, subject: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """A Plan in the API's shape, `state: preview`, with what would be held and why."""
    name, files, against = str(body.get("source") or ""), body.get("files"), body.get("against")
    for label, value in (("files", files), ("against", against if against is not None else {})):
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise Invalid(problems=(Problem("expected a mapping of path to text", label),))
    source = _source(runtime, name)
    desired = _read(runtime, source, files or {})
    owner = source.metadata.name if source else "preview"
    if against is not None:
        before = _read(runtime, source, against)
        owned = {
            k: {**w.declared.doc, "metadata": {**w.declared.doc["metadata"], **_identity(runtime, k, w, owner)}}
            for k, w in before.resources.items()
        }
    else:
        if source is None:
            raise Invalid(problems=(Problem("name a Source, or a tree to compare with", "source"),))
        owned = _owned(runtime, owner)
    visible = {k: d for k, d in owned.items() if _may(runtime, subject, k, d)}
    existing = {} if against is not None else _existing(runtime, subject, desired, visible)
    outcome = plan_changes(desired, visible, existing, owner, kinds=runtime.kinds)
    reason = _would_be_held(runtime, outcome.plan, owner, visible)
    return {
        "id": "preview",
        "scope": f"source:{owner}",
        "state": "preview",
        "digest": outcome.plan.digest,
        "reason": reason,
        "limit": reason,
        "since": "",
        "changes": [c.as_dict() for c in outcome.plan.changes],
        "problems": [t.problem.as_dict() for t in outcome.troubles],
    }


def _source(runtime: Any, name: str) -> Source | None:
    if not name:
        known = runtime.store.entries("Source")
        return Source.view(known[0].doc) if len(known) == 1 else None
    doc = runtime.store.get(Key("Source", "", name))
    if doc is None:
        raise NotFound(
            f"there is no Source {name}{did_you_mean(name, [e.key.name for e in runtime.store.entries('Source')])}"
        )
    return Source.view(doc)


def _read(runtime: Any, source: Source | None, files: Mapping[str, str]) -> Desired:
    prefix = "" if source is None or source.spec.path in ("", ".") else source.spec.path.strip("/") + "/"
    given: dict[str, File] = {}
    for path, text in files.items():
        if path.startswith(prefix):
            raw = text.encode()
            given[path] = File(hashlib.sha256(raw).hexdigest(), len(raw), lambda raw=raw: raw)  # type: ignore[misc]
    namespace = source.spec.namespace if source else ""
    return parse_tree(given, runtime.kinds, version=kinds_version(runtime.kinds), namespace=namespace)


def _identity(runtime: Any, key: Key, wanted: Any, owner: str) -> dict[str, Any]:
    """What the Source would have stored of it: its marks, and the uid of what is there, so that the plan seen before
    the merge has the digest of the plan after it."""
    marks = {**wanted.declared.doc["metadata"]["annotations"], SOURCE: owner, FILE: wanted.file}
    entry = runtime.store.entry(key)
    return {"annotations": marks, **({"uid": entry.uid} if entry else {})}


def _owned(runtime: Any, name: str) -> dict[Key, Doc]:
    mark = f'"{SOURCE}":"{name}"'.encode()
    return {e.key: e.doc for kind in runtime.kinds for e in runtime.store.entries(kind.__name__) if mark in e.raw}


def _existing(runtime: Any, subject: Any, desired: Desired, owned: Mapping[Key, Doc]) -> dict[Key, Doc]:
    found = {k: runtime.store.get(k) for k in desired.resources if k not in owned}
    return {k: d for k, d in found.items() if d is not None and _may(runtime, subject, k, d)}


def _may(runtime: Any, subject: Any, key: Key, doc: Doc) -> bool:
    labels = doc["metadata"].get("labels") or {}
    return bool(runtime.access.allowed(subject, "get", key.kind, namespace=key.namespace, name=key.name, labels=labels))


def _would_be_held(runtime: Any, plan: Plan, owner: str, owned: Mapping[Key, Doc]) -> str:
    risky = [c for c in plan.changes if c.destructive]
    for limit in runtime.limits:
        if limit.scope != "source" or not risky:
            continue
        for kind in {c.target.type for c in risky}:
            total = sum(1 for k in owned if k.kind == kind)
            if reason := over_limit(limit, owner, Spent(0, total), len(risky)):
                return reason
    return ""
