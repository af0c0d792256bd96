"""What was changed by hand at a site, as a change of the file that declares the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from groundcontrol.capabilities.services.kinds import Instance
from groundcontrol.capabilities.services.logic import drift_name, kept_by_hand, proposal
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.reconcile import Answer, Look
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.secrets import looks_secret

Drift = Mapping[str, tuple[Any, Any]]
"""Field path to (found, wanted)."""
Suggest = Callable[[Doc, Doc, Key], tuple[bool, str]]
"""(service as it is, as it should be, who looks again) to whether that is settled, and what to say of it. Answers at
once; settled without words means that its Source takes no branches."""


def drift_answer(instance: Instance, drift: Drift, look: Look, suggest: Suggest) -> tuple[Answer, str]:
    """The condition `Drift` of an instance whose drift is proposed, and what goes on its timeline: once per drift."""
    name, namespace = instance.metadata.name, instance.metadata.namespace
    mark = f"({drift_name(drift)})"
    for known in instance.status.conditions:
        if known.type == "Drift" and known.reason == "Proposed" and known.message.endswith(mark):
            # Proposed before. People have the word: a branch they deleted does not come back.
            return Answer("True", "Proposed", known.message), ""
    service = look.get_any("Service", instance.spec.service, namespace)
    annotations = (service["metadata"].get("annotations") or {}) if service else {}
    source = look.get_any("Source", annotations.get("ground/source", ""))
    shown = {
        path: ("***", wanted) if secretive(path, found) else (found, wanted) for path, (found, wanted) in drift.items()
    }
    repository = str(source["spec"].get("repository", "")) if source else ""
    words = proposal(shown, annotations.get("ground/file", ""), repository)
    spec = kept_by_hand(service["spec"], drift) if service else None
    if service is None or source is None or spec is None:
        return _final(words, mark)
    how = f"`ground diff --proposed instance {name} -n {namespace}` shows the diff"
    if any(secretive(path, found) for path, (found, _) in drift.items()):
        return _final(f"{words} (it may be a secret: no branch is made by itself; {how})", mark)
    try:
        settled, said = suggest(service, {**service, "spec": spec}, instance.key)
    except GroundError as error:
        settled, said = False, f"it cannot be proposed: {error.message}"
    if not settled:
        return Answer("True", "Proposing", f"changed by hand: {', '.join(drift)}; {said}"), ""
    if not said:
        return _final(f"{words}; {how}", mark)
    return _final(f"changed by hand: {', '.join(drift)}; {said}: merge it to keep that", mark)


def _final(words: str, mark: str) -> tuple[Answer, str]:
    message = f"{words} {mark}"
    return Answer("True", "Proposed", message), message


def secretive(path: str, value: Any) -> bool:
    """Whether what was found may be a secret, which nobody puts into a repository without being asked."""
    if isinstance(value, Mapping):
        return any(looks_secret(f"{path}.{name}", str(text)) for name, text in value.items())
    return looks_secret(path, str(value))
