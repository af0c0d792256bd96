"""An outside to order, a reconciler that looks after it, and a rig that puts the kernel together around them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Fenced, NotFound
from groundcontrol.kernel.guard import Scope
from groundcontrol.kernel.loop import Controller, Pace
from groundcontrol.kernel.plan import Change, Limit, Plan, Target
from groundcontrol.kernel.reconcile import Act, Look, Reconciler, Report, conditions
from groundcontrol.kernel.resource import Doc, condition
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.turn import Outcome, Turns
from groundcontrol.kernel.world import Fencing, Item, Listing, Watching, World
from tests.kernel.things import Thing, ThingStatus, key, store_at, thing

BOUND = 20.0
"""Seconds after which a test that waits is taken to hang."""
FAST = Watching(wait=0.1, stale_after=5.0, relist=0.5, retry=0.02, retry_max=0.1)
QUICK = Pace(workers=4, backoff=0.02, backoff_max=0.2, breaker_reset=0.2, resync=30.0)
NO_LIMITS: tuple[Limit, ...] = ()


def until(holds: Callable[[], Any], what: str = "") -> None:
    """Wait for what must come."""
    deadline = time.monotonic() + BOUND
    while not holds():
        assert time.monotonic() < deadline, f"it did not come: {what or holds}"
        time.sleep(0.005)


class Outside:
    """Things at one place. With `file` they survive the process; `hook(call, moment, id)` may raise, hang or kill."""

    def __init__(self, fencing: Fencing = "idempotent", file: Path | None = None) -> None:
        self.fencing: Fencing = fencing
        self.hook: Callable[[str, str, str], None] = lambda call, moment, id_: None
        self.hidden: set[str] = set()
        self.complete = True
        self.closed = False
        self._file, self._lock = file, threading.Condition(threading.RLock())
        self._state: dict[str, Any] = {"things": {}, "sequence": 1, "epoch": 0, "effects": []}
        if file and file.exists():
            self._state = json.loads(file.read_text())

    # ── as a driver instance ────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> Listing:
        self.hook("look", "before", "")
        with self._lock:
            items = {("thing", i): dict(t) for i, t in self._state["things"].items() if i not in self.hidden}
            return Listing(items, self.complete, sequence=self._state["sequence"])

    def wait(self, since: int, timeout: float) -> int:
        self.hook("wait", "before", "")
        with self._lock:
            self._lock.wait_for(lambda: self.closed or self._state["sequence"] != since, timeout)
            return int(self._state["sequence"])

    def direct(self, item: Item) -> Any:
        self.hook("direct", "before", item[1])
        with self._lock:
            if item[1] not in self._state["things"] or item[1] in self.hidden:
                raise NotFound(f"there is no {item[1]}")
            return dict(self._state["things"][item[1]])

    def find(self, change_key: str) -> tuple[Item, ...]:
        self.hook("find", "before", "")
        with self._lock:
            return tuple(("thing", i) for i, t in self._state["things"].items() if t["key"] == change_key)

    def close(self) -> None:
        with self._lock:
            self.closed = True
            self._lock.notify_all()

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def create(self, id_: str, colour: str, change_key: str, epoch: int) -> str:
        with self._change("create", id_, epoch):
            things = self._state["things"]
            if id_ in things and self.fencing != "neither":
                return id_
            chosen, number = id_, 1
            while chosen in things:
                number += 1
                chosen = f"{id_}~{number}"
            things[chosen] = {"colour": colour, "key": change_key}
            self._state["effects"].append(["create", chosen])
            return chosen

    def update(self, id_: str, colour: str, epoch: int) -> None:
        with self._change("update", id_, epoch):
            if id_ not in self._state["things"]:
                raise NotFound(f"there is no {id_}")
            if self._state["things"][id_]["colour"] != colour:
                self._state["effects"].append(["update", id_])
            self._state["things"][id_]["colour"] = colour

    def delete(self, id_: str, epoch: int = 0) -> None:
        with self._change("delete", id_, epoch):
            if self._state["things"].pop(id_, None):
                self._state["effects"].append(["delete", id_])

    def by_hand(self, **things: str | None) -> None:
        """Somebody changes, makes or removes things."""
        with self._lock:
            for id_, colour in things.items():
                if colour is None:
                    self._state["things"].pop(id_, None)
                else:
                    self._state["things"].setdefault(id_, {"key": ""})["colour"] = colour
            self._bump()

    def show(self, *, complete: bool = True, hidden: Sequence[str] = ()) -> None:
        """Leave things out of what is answered."""
        with self._lock:
            self.complete, self.hidden = complete, set(hidden)
            self._bump()

    def things(self) -> dict[str, str]:
        with self._lock:
            return {i: t["colour"] for i, t in self._state["things"].items()}

    def effects(self, call: str = "") -> list[str]:
        """Ids of what calls really did, in order."""
        with self._lock:
            return [i for c, i in self._state["effects"] if call in ("", c)]

    def _change(self, call: str, id_: str, epoch: int) -> _Changing:
        return _Changing(self, call, id_, epoch)

    def _bump(self) -> None:
        self._state["sequence"] += 1
        if self._file:
            aside = self._file.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(self._state))
            os.replace(aside, self._file)
        self._lock.notify_all()


class _Changing:
    """Around one change: the hooks before and after its effect, and the fence."""

    def __init__(self, outside: Outside, call: str, id_: str, epoch: int) -> None:
        self.outside, self.call, self.id, self.epoch = outside, call, id_, epoch

    def __enter__(self) -> None:
        self.outside.hook(self.call, "before", self.id)
        self.outside._lock.acquire()
        state = self.outside._state
        if self.outside.fencing == "fences" and self.epoch < state["epoch"]:
            self.outside._lock.release()
            raise Fenced(f"epoch {self.epoch} is over")
        state["epoch"] = self.epoch

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self.outside._bump()
        self.outside._lock.release()
        if kind is None:
            self.outside.hook(self.call, "after", self.id)


def base(id_: str) -> str:
    return id_.split("~")[0]


class ThingReconciler(Reconciler[Thing]):
    """One thing outside per name, of the wanted colour; what is ours and not wanted goes."""

    name = "things"
    kind = Thing
    tears_down = True

    def __init__(self) -> None:
        self.looks: list[str] = []
        self.before_plan: Callable[[Thing], None] = lambda resource: None
        self.share = "kind"

    def shard(self, resource: Thing) -> str:
        return resource.spec.at

    def plan(self, resource: Thing, look: Look) -> Plan:
        self.looks.append(resource.metadata.name)
        self.before_plan(resource)
        spec = resource.spec
        wanted = [] if resource.deleting else spec.names or [resource.metadata.name]
        have = {base(t.id): t for t in look.claims}
        changes: list[Change] = []
        for name in wanted:
            target = have.get(name, Target(spec.at, "thing", name))
            seen = look.seen(target)
            if seen.truth == "unknown":
                return Plan(waiting=seen.message)
            if seen.truth == "absent":
                changes.append(Change(Target(spec.at, "thing", name), "create", {"thing": (None, name)}))
            elif seen.item["colour"] != spec.colour:
                changes.append(Change(target, "update", {"colour": (seen.item["colour"], spec.colour)}))
        for target in look.claims:
            if base(target.id) in wanted:
                continue
            seen = look.seen(target)
            if seen.truth == "unknown":
                return Plan(waiting=seen.message)
            if seen.truth == "present":
                fields = {"thing": (target.id, None)}
                changes.append(Change(target, "delete", fields, destructive=True))
        return Plan(tuple(changes))

    def apply(self, resource: Thing, change: Change, act: Act) -> str | None:
        port: Outside = act.instance
        match change.verb:
            case "create":
                return port.create(change.target.id, resource.spec.colour, act.change_key, act.epoch)
            case "update":
                port.update(change.target.id, resource.spec.colour, act.epoch)
            case "delete":
                port.delete(change.target.id, act.epoch)
        return None

    def report(self, resource: Thing, plan: Plan, look: Look) -> Report:
        seen = {t: look.seen(t) for t in look.claims}
        unknown = next((s for s in seen.values() if s.truth == "unknown"), None)
        status = ThingStatus.model_validate(resource.status.model_dump())
        status.seen = sorted(t.id for t, s in seen.items() if s.truth == "present")
        ready: Any = ("True", "Seen", "everything is there")
        if plan.waiting or unknown:
            ready = ("Unknown", unknown.reason if unknown else "Waiting", plan.waiting or "not looked")
        elif plan.changes:
            ready = ("False", "Changing", "not everything is as wanted")
        status.conditions = conditions(Ready=ready)
        return Report(status)

    def scopes(self, resource: Thing, change: Change, store: Store) -> Sequence[Scope]:
        return [Scope("kind", "Thing", store.count("Thing")), Scope("site", resource.spec.at, store.count("Thing"))]


class Rig:
    """A store, a world with outsides, turns and (when started) the loop."""

    def __init__(
        self,
        directory: Path,
        outsides: dict[str, Outside] | None = None,
        *,
        limits: Sequence[Limit] = NO_LIMITS,
        settle: float = 0.1,
        gather: float = 0.0,
        watching: Watching = FAST,
        pace: Pace = QUICK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory, self.outsides = directory, outsides or {"site/a": Outside()}
        self.limits, self.settle, self.gather = limits, settle, gather
        self.watching, self.pace, self.clock = watching, pace, clock
        self.reconciler = ThingReconciler()
        self.open()

    def open(self) -> None:
        self.store = store_at(self.directory, finalizers=frozenset({"Thing"}), clock=self.clock)
        self.world = World(
            self.watching,
            lambda name, items: self.controller.world_changed(name, items),
            lambda name: self.controller.expected_things(name),
        )
        self.turns = Turns(self.store, self.world, self.limits, self.settle, self.gather)
        self.controller = Controller(self.store, self.world, self.turns, [self.reconciler], self.pace)
        for name, outside in self.outsides.items():
            self.world.attach(name, outside)

    def start(self) -> Rig:
        self.controller.start()
        return self

    def close(self) -> None:
        self.controller.stop()
        self.world.close()
        self.store.close()

    def restart(self, **outsides: Any) -> None:
        """As after a stop of the server, without a stop of what is outside."""
        self.close()
        for outside in self.outsides.values():
            outside.closed = False
        self.open()

    @property
    def outside(self) -> Outside:
        return self.outsides["site/a"]

    def make(self, name: str, **spec: Any) -> Doc:
        return self.store.write(lambda tx: tx.create(thing(name, **spec)))

    def change(self, name: str, **spec: Any) -> None:
        self.store.write(lambda tx: tx.replace(thing(name, **spec)))

    def delete(self, name: str) -> None:
        self.store.write(lambda tx: tx.delete(key(name)))

    def get(self, name: str) -> Doc:
        doc = self.store.get(key(name))
        assert doc, f"there is no {name}"
        return doc

    def condition(self, name: str, type_: str = "Ready") -> tuple[str, str]:
        found = condition(self.get(name), type_)
        return found["status"], found["reason"]

    def ready(self, *names: str) -> bool:
        docs = [self.get(n) for n in names or [e.key.name for e in self.store.entries("Thing")]]
        return all(
            condition(d, "Ready")["status"] == "True"
            and d["status"]["observedGeneration"] == d["metadata"]["generation"]
            and not self.rows(tables.intents)
            for d in docs
        )

    def turn(self, name: str) -> Outcome:
        """One turn by hand, once the world has been looked at since the last change."""
        for site in self.outsides:
            observer = self.world._observers[site]
            until(lambda o=observer: o.snapshot.error or (o.snapshot.reachable and not o.wrote))
        return self.turns.turn(self.reconciler, key(name))

    def turns_until_quiet(self, name: str) -> Outcome:
        for _ in range(20):
            outcome = self.turn(name)
            if outcome.again is None:
                return outcome
            time.sleep(min(outcome.again, 0.2))
        raise AssertionError(f"{name} does not come to rest")

    def rows(self, table: sa.Table) -> list[Any]:
        with self.store.reading() as conn:
            return list(conn.execute(sa.select(table)))

    def claimed(self) -> set[str]:
        return {r.id for r in self.rows(tables.claims)}

    def timeline(self, name: str) -> list[str]:
        """Reasons on the timeline of a Thing, in order."""
        rows = [r for r in self.rows(tables.facts) if r.dataset == "events" and r.name == name]
        return [msgspec.json.decode(r.doc)["reason"] for r in sorted(rows, key=lambda r: r.seq)]
