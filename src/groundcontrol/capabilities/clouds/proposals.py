"""What was changed by hand in a cloud, as a change of the file that declares the resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic.alias_generators import to_camel

from groundcontrol.capabilities.clouds.kinds import CLOUD, KINDS, CloudResource
from groundcontrol.capabilities.clouds.logic import Difference, as_spec, digest
from groundcontrol.kernel.errors import GroundError, Invalid
from groundcontrol.kernel.reconcile import Answer, Look
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.secrets import looks_secret
from groundcontrol.ports.cloud import Thing

Suggest = Callable[[Doc, Doc, Key], tuple[bool, str]]
"""(resource as it is, as it should be, who looks again) to whether that is settled, and what to say of it."""


def proposed(
    kind: str, resource: CloudResource, thing: Thing, drift: Sequence[Difference], look: Look, suggest: Suggest
) -> Answer:
    """The condition `Drift` of what is proposed: once per drift, so that a branch people deleted does not come back."""
    names = ", ".join(to_camel(d.field) for d in drift)
    mark = f"({digest([(d.field, d.found) for d in drift])})"
    for known in resource.status.conditions:
        if known.type == "Drift" and known.reason == "Proposed" and known.message.endswith(mark):
            return Answer("True", "Proposed", known.message)
    words = f"changed by hand: {names}"
    if any(looks_secret(to_camel(d.field), str(d.found)) for d in drift):
        return Answer("True", "Proposed", f"{words}; it may be a secret, and no branch is made by itself {mark}")
    doc = look.get_any(resource.kind, resource.metadata.name, resource.metadata.namespace)
    wish = kept(kind, doc, thing, drift) if doc else None
    if doc is None or wish is None:
        return Answer("True", "Proposed", f"{words}; the spec cannot say that: put it back, or change the spec {mark}")
    if look.get_any("Source", doc["metadata"]["annotations"].get("ground/source", "")) is None:
        return Answer("True", "Proposed", f"{words}; no Source declares it: change the spec to keep that {mark}")
    try:
        settled, said = suggest(doc, wish, resource.key)
    except GroundError as error:
        settled, said = False, f"it cannot be proposed: {error.message}"
    if not settled:
        return Answer("True", "Proposing", f"{words}; {said}")
    return Answer("True", "Proposed", f"{words}; {said or 'change the spec to keep it'} {mark}")


def kept(kind: str, doc: Doc, thing: Thing, drift: Sequence[Difference]) -> Doc | None:
    """The resource as it would have to be for the drift to be what it wants; None when no spec can say that."""
    found = as_spec(kind, thing, lambda _, id: f"{CLOUD}{id}")
    fields = {"limits"} if kind == "Quota" else {to_camel(d.field) for d in drift}
    if not fields <= found.keys():
        return None
    spec = {**doc["spec"], **{n: found[n] for n in fields}}
    if kind == "Quota":
        spec["limits"] = {**doc["spec"]["limits"], **{d.field: d.found for d in drift}}
    wish = {**doc, "spec": spec}
    try:
        next(k for k in KINDS if k.__name__ == kind).view(wish)
    except Invalid:
        return None
    return wish
