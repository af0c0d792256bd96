"""A small kind for the kernel's tests, and stores of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from groundcontrol.kernel.resource import Doc, Key, KindInfo, Kinds, Model, Resource, Status
from groundcontrol.kernel.store import Store


class Inner(Model):
    """A part of a spec that is a structure itself."""

    depth: int = 0
    """Anything."""


class ThingSpec(Model):
    """What is wanted."""

    at: str = "site/a"
    """Driver instance it is at."""
    colour: str = "red"
    """Something that can be changed in place."""
    names: list[str] = Field(default_factory=list)
    """Things outside that it should have; one by its own name when empty."""
    inner: Inner = Field(default_factory=Inner)
    """A structure."""


class ThingStatus(Status):
    """What was seen."""

    seen: list[str] = Field(default_factory=list)
    """Names of the things that are there."""


class Thing(Resource):
    """Something that has things outside."""

    info: ClassVar[KindInfo] = KindInfo(plural="things")
    kind: Literal["Thing"] = "Thing"
    spec: ThingSpec
    status: ThingStatus = Field(default_factory=ThingStatus)


KINDS = Kinds([Thing])


def key(name: str, kind: str = "Thing") -> Key:
    return Key(kind, "alpha", name)


def thing(name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> Doc:
    """A complete document, as a person's would be."""
    meta = {"name": name, "namespace": "alpha", "labels": labels or {}}
    return KINDS.parse({"apiVersion": "ground/v1", "kind": "Thing", "metadata": meta, "spec": spec})


def store_at(directory: Path, **options: Any) -> Store:
    """An open store in a file."""
    return Store(f"sqlite:///{directory / 'ground.db'}", options.pop("kinds", KINDS), **options).open()
