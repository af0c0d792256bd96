"""The manifest: what a capability brings. A value in a list in `assembly.py`; nothing registers itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from groundcontrol.kernel.reconcile import Reconciler
from groundcontrol.kernel.resource import Resource, Versions


@dataclass(frozen=True)
class Capability:
    """One folder's contribution to the product."""

    name: str
    kinds: tuple[type[Resource] | Versions, ...] = ()
    reconcilers: Callable[[Any], tuple[Reconciler[Any], ...]] = lambda runtime: ()
    """Makes the reconcilers, given the runtime of `assembly.py`."""
    reads: tuple[str, ...] = ()
    """Capabilities whose `kinds` this one imports."""
    actions: Mapping[tuple[str, str], Callable[..., Any]] = field(default_factory=dict)
    """(kind, verb) to what the API's `…/actions/{verb}` does: `act(runtime, subject, key, body) -> dict`."""
    repeatable: frozenset[tuple[str, str]] = frozenset()
    """The actions that may be done twice without harm; a Run that does another one must say what to do when it
    cannot know whether it happened."""
