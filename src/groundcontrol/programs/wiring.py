"""Connects a running installation to the API: every question the API may ask, and who answers it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from groundcontrol.capabilities.gitops.queries import preview_plan
from groundcontrol.capabilities.gitops.reconcile import hook, offer
from groundcontrol.capabilities.inventory.queries import inventory
from groundcontrol.interfaces.api.backend import Backend
from groundcontrol.kernel.errors import Invalid, NotFound, Unavailable
from groundcontrol.kernel.ledger_sql import parse as parse_query
from groundcontrol.kernel.resource import Doc, Key, condition
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.runtime import Runtime

LOG_PIECE = 256 * 1024
"""Bytes of a log read at once."""


def backend(runtime: Runtime) -> Backend:
    """The API's view of a running installation."""
    actions = {
        kind_and_verb: partial(act, runtime)
        for capability in runtime.capabilities
        for kind_and_verb, act in capability.actions.items()
    }
    return Backend(
        store=runtime.store,
        kinds=runtime.kinds,
        access=runtime.access,
        accounts=runtime.accounts,
        ledger=_Ledger(runtime) if runtime.ledger else None,
        actions=actions,
        plans=runtime.plans,
        limits=runtime.limits,
        source_plan=lambda subject, body: preview_plan(runtime, subject, body),
        propose=lambda subject, wishes, dry: offer(runtime, subject, wishes, dry),
        hooks=lambda provider, name, headers, body: hook(runtime, provider, name, headers, body),
        log_reader=lambda key, index, offset: read_log(runtime, key, index, offset),
        inventory=lambda subject, site, type_, limit, proceed: inventory(runtime, subject, site, type_, limit, proceed),
        status=lambda subject: status(runtime, subject),
    )


class _Ledger:
    """Queries of the ledger, bounded to the namespaces the asker may read."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def query(self, body: Doc, namespaces: frozenset[str] | None) -> Doc:
        query = parse_query(body)
        if namespaces is not None:
            asked = query.where.get("namespace", sorted(namespaces))
            wanted = asked if isinstance(asked, list) else [asked]
            allowed = [n for n in wanted if n in namespaces]
            if not allowed:
                return {"columns": [], "rows": []}
            query = msgspec.structs.replace(query, where={**query.where, "namespace": allowed})
        assert self._runtime.ledger is not None
        columns, rows = self._runtime.ledger.query(query)
        return {"columns": columns, "rows": rows}


def read_log(runtime: Runtime, key: Key, index: int, offset: int) -> bytes:
    """The next piece of the log of an instance, or of a service's instance of that index."""
    if key.kind == "Service":
        service = runtime.store.entry(key)
        if service is None:
            raise NotFound(f"there is no {key}")
        instances = [e.doc for e in runtime.store.children(service.uid) if e.key.kind == "Instance"]
        found = [d for d in instances if d["spec"]["index"] == index]
        if not found:
            known = sorted({d["spec"]["index"] for d in instances})
            raise NotFound(f"{key} has no instance {index}; it has {known or 'none'}")
        doc = max(found, key=lambda d: d["metadata"]["creationTimestamp"])
    else:
        stored = runtime.store.get(key)
        if stored is None:
            raise NotFound(f"there is no {key}")
        doc = stored
    unit = doc["status"].get("unit")
    if not unit:
        raise Unavailable(f"Instance {doc['metadata']['name']} has not been started yet")
    if abs(offset) > 1 << 40:
        raise Invalid("offset is out of range")
    port = runtime.world.instance(f"site/{doc['spec']['site']}").port  # type: ignore[attr-defined]
    return bytes(port.log(unit, offset, LOG_PIECE).text.encode())


def status(runtime: Runtime, subject: Subject) -> Doc:
    """What is wrong, since when, who is affected and what is being done, as far as the subject may know."""
    kinds: dict[str, dict[str, int]] = {}
    wrong: list[Doc] = []
    for kind in runtime.kinds:
        name = kind.__name__
        visible = runtime.access.visible(subject, name)
        for entry in runtime.store.entries(name):
            if not visible(entry):
                continue
            doc = entry.doc
            if name == "Incident" or not doc["status"].get("conditions"):
                continue
            ready = condition(doc, "Ready")
            counts = kinds.setdefault(name, {"True": 0, "False": 0, "Unknown": 0})
            counts[ready["status"]] += 1
            if ready["status"] != "True" and not kind.info.internal:
                wrong.append(_trouble(doc, ready))
            if name == "Site" and (closed := _closed(doc)):
                wrong.append(_trouble(doc, closed))
    incidents = [
        {"key": str(e.key), **e.doc["spec"], "openedAt": e.doc["status"].get("openedAt", "")}
        for e in runtime.store.entries("Incident")
        if runtime.access.visible(subject, "Incident")(e) and e.doc["status"].get("phase") == "Open"
    ]
    may_see_plans = runtime.access.allowed(subject, "approve", "Plan")
    backlog = runtime.backlog()
    return {
        "resourceVersion": runtime.store.sequence,
        "kinds": kinds,
        "wrong": wrong,
        "sites": [_site(e.doc) for e in runtime.store.entries("Site") if runtime.access.visible(subject, "Site")(e)],
        "incidents": incidents,
        "plans": [_held(p) for p in runtime.plans.list("held")] if may_see_plans else [],
        "ledger": {"backlog": backlog.facts, "error": backlog.error} if backlog else None,
    }


def _closed(doc: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Why an active site takes nothing new for the rules of joining; None when it does, or no rule is about it."""
    told = [c for c in doc["status"]["conditions"] if c["type"] == "Placeable" and c["status"] != "True"]
    return told[0] if told and doc["spec"].get("state") == "active" else None


def _trouble(doc: Mapping[str, Any], ready: Mapping[str, Any]) -> Doc:
    return {
        "kind": doc["kind"],
        "namespace": doc["metadata"]["namespace"],
        "name": doc["metadata"]["name"],
        "status": ready["status"],
        "reason": ready["reason"],
        "message": ready["message"],
        "since": ready.get("lastTransitionTime", ""),
    }


def _site(doc: Mapping[str, Any]) -> Doc:
    ready = condition(doc, "Ready")
    return {
        "name": doc["metadata"]["name"],
        "status": ready["status"],
        "reason": ready["reason"],
        "message": ready["message"],
        "since": doc["status"].get("reachableSince", ""),
        "instances": doc["status"].get("instances", 0),
    }


def _held(plan: Mapping[str, Any]) -> Doc:
    return {n: plan[n] for n in ("id", "digest", "reason", "since")} | {"changes": len(plan["changes"])}
