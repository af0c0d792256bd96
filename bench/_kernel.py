"""A small kind, a store of it and a loop over it, for the kernel's workloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from groundcontrol.kernel.loop import Controller, Pace
from groundcontrol.kernel.plan import Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, Report, conditions
from groundcontrol.kernel.resource import Doc, Key, KindInfo, Kinds, Model, Resource, Status
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.turn import Turns
from groundcontrol.kernel.world import Watching, World


class WidgetSpec(Model):
    """What is wanted."""

    shard: str = "store"
    """Driver instance it is at."""
    text: str = ""
    """Anything."""


class Widget(Resource):
    """Something to look after."""

    info: ClassVar[KindInfo] = KindInfo(plural="widgets")
    kind: Literal["Widget"] = "Widget"
    spec: WidgetSpec
    status: Status = Status()


KINDS = Kinds([Widget])


def key(name: str) -> Key:
    return Key("Widget", "bench", name)


def widget(name: str, text: str = "", shard: str = "store") -> Doc:
    meta = {"name": name, "namespace": "bench"}
    spec = {"shard": shard, "text": text}
    return KINDS.parse({"apiVersion": "ground/v1", "kind": "Widget", "metadata": meta, "spec": spec})


class Looks(Reconciler[Widget]):
    """Looks, finds that all is well, and tells who listens."""

    name = "widgets"
    kind = Widget

    def __init__(self, looked: Callable[[Widget], None]) -> None:
        self._looked = looked

    def shard(self, resource: Widget) -> str:
        return resource.spec.shard

    def plan(self, resource: Widget, look: Look) -> Plan:
        self._looked(resource)
        return Plan()

    def report(self, resource: Widget, plan: Plan, look: Look) -> Report:
        status = Status.model_validate(resource.status.model_dump())
        status.conditions = conditions(Ready=("True", "Well", "it is well"))
        return Report(status)


def opened(directory: Path) -> Store:
    return Store(f"sqlite:///{directory / 'ground.db'}", KINDS).open()


def filled(store: Store, names: list[str], text: str = "x" * 500) -> None:
    """Make these, a thousand in one act."""
    for first in range(0, len(names), 1000):
        some = [widget(n, text) for n in names[first : first + 1000]]

        def make(tx: Any, some: list[Doc] = some) -> None:
            for doc in some:
                tx.create(doc)

        store.write(make)


def controller(store: Store, looked: Callable[[Widget], None], pace: Pace) -> Controller:
    world = World(Watching(), lambda name, items: None)
    return Controller(store, world, Turns(store, world, ()), [Looks(looked)], pace)


def told(workload: str, words: str, **figures: Any) -> None:
    """One line for people, one for programs."""
    print(f"{workload}: {words}")
    print(
        json.dumps(
            {"workload": workload, **{k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}}
        )
    )


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
