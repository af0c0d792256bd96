"""Keeps each site connected and says what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from groundcontrol.capabilities.inventory.kinds import Site, SiteStatus
from groundcontrol.capabilities.inventory.logic import identity, strays
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.plan import Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, Report, conditions
from groundcontrol.kernel.resource import Key, now
from groundcontrol.kernel.world import DriverInstance, World

COUNT_EVERY = 5.0
"""Seconds between renewals of a site's counts, so that a busy site does not write its status at every change."""


def instance_name(site: str) -> str:
    """The driver instance of a site."""
    return f"site/{site}"


class SiteReconciler(Reconciler[Site]):
    """A site has nothing to be made; it is connected, looked at, and only let go when nothing of ours is there."""

    name = "sites"
    kind = Site
    tears_down = True

    def __init__(self, world: World, connect: Callable[[Site], DriverInstance]) -> None:
        self._world, self._connect = world, connect

    def shard(self, resource: Site) -> str:
        return instance_name(resource.metadata.name)

    def plan(self, resource: Site, look: Look) -> Plan:
        name = instance_name(resource.metadata.name)
        placed = [e.key.name for e in look.entries("Instance") if e.doc["spec"]["site"] == resource.metadata.name]
        if resource.deleting and not placed:
            self._world.detach(name)
            return Plan()
        wanted = identity(resource.spec)
        if self._world.identity(name) != wanted:
            try:
                self._world.attach(name, self._connect(resource), wanted)
            except GroundError as error:
                return Plan(problems=(error.message,), again=5.0)
        if resource.deleting:
            return Plan(waiting=f"{len(placed)} instances are still placed here", again=1.0)
        return Plan()

    def report(self, resource: Site, plan: Plan, look: Look) -> Report:
        name = instance_name(resource.metadata.name)
        snapshot = look.snapshot(name)
        old, placed = resource.status, [e.doc for e in look.entries("Instance")]
        placed = [d for d in placed if d["spec"]["site"] == resource.metadata.name]
        status = old.model_copy()
        resources = [d["spec"]["template"].get("resources", {}) for d in placed]
        status.instances = len(placed)
        status.cores_used = round(sum(r.get("cores", 0) for r in resources), 3)
        status.memory_used_mb = sum(r.get("memoryMb", 0) for r in resources)
        status.reachable_since = now(snapshot.since) if snapshot.since else ""
        if host := snapshot.facts:
            spec = resource.spec.capacity
            status.cores = min(spec.cores or host.cores, host.cores)
            status.memory_mb = min(spec.memory_mb or host.memory_mb, host.memory_mb)
            wanted = {d["metadata"]["uid"] for d in placed}
            status.strays = strays(((u.id, u.tags) for u in host.units), look.installation, wanted)[:100]
        if plan.problems:
            ready: tuple[Any, str, str] = ("False", "CannotConnect", plan.problems[0])
        elif snapshot.held:
            ready = ("Unknown", "Held", snapshot.held)
        elif snapshot.reachable:
            ready = ("True", "Answers", "the site answers")
            if snapshot.problems:
                ready = ("True", "AnswersWithProblems", "; ".join(snapshot.problems[:3]))
        elif snapshot.error:
            seen = f", last seen {now(snapshot.ended)}" if snapshot.ended else ""
            ready = ("Unknown", "Unreachable", f"no answer{seen}: {snapshot.error}")
        else:
            ready = ("Unknown", "NotLooked", "the site has not been looked at yet")
        status = SiteStatus.model_validate(status.model_dump())
        status.conditions = conditions(Ready=ready)
        return Report(status, again=COUNT_EVERY if snapshot.reachable else 1.0)


def confirm_loss(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """A person says that what vanished from a site is really gone; what was there is made anew elsewhere or here."""
    reason = str(body.get("reason", ""))
    runtime.store.write(lambda tx: tx.audit(str(subject.name), "confirm-loss", key, reason=reason))
    runtime.world.confirm_loss(instance_name(key.name))
    return {"confirmed": str(key)}
