"""Keeps services made of the right instances, and instances running, healthy and as they were declared."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import msgspec
from pydantic.alias_generators import to_camel

from groundcontrol.capabilities.inventory.kinds import Site, closed_to_new
from groundcontrol.capabilities.services.kinds import (
    Failure,
    Instance,
    InstanceSpec,
    InstanceStatus,
    Service,
    ServiceSpec,
    ServiceStatus,
)
from groundcontrol.capabilities.services.logic import (
    RESTARTED,
    STEADY,
    Copy,
    Decision,
    Run,
    SiteView,
    decide,
    describe_exit,
    differences,
    endpoints,
    judge,
    overdue,
    restart_after,
    revision,
)
from groundcontrol.capabilities.services.proposals import Suggest, drift_answer
from groundcontrol.kernel.errors import Conflict, NotFound
from groundcontrol.kernel.guard import Scope
from groundcontrol.kernel.plan import Change, Plan, Target
from groundcontrol.kernel.reconcile import (
    Act,
    Look,
    Reconciler,
    Report,
    StoreWrite,
    Watch,
    conditions,
    owner_of,
    store_change,
)
from groundcontrol.kernel.resource import Doc, Key, now, seconds, selector
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx, managed_paths
from groundcontrol.kernel.world import Seen
from groundcontrol.ports.hosts import UNIT
from groundcontrol.ports.processes import Check, HostObserved, Limits, UnitObserved, UnitSpec

Reveal = Callable[[str, str], str]
"""(namespace, secret reference) to its value; raises when it is not granted."""


# ── services ────────────────────────────────────────────────────────────────────────────────────────────────────


def _dependents(doc: Doc, store: Store) -> Iterable[Key]:
    name, namespace = doc["metadata"]["name"], doc["metadata"]["namespace"]
    for entry in store.entries("Service", namespace):
        if name in entry.doc["spec"].get("dependsOn", ()):
            yield entry.key


def _unsettled(doc: Doc, store: Store) -> Iterable[Key]:
    """Services that may want to use or leave a site that changed."""
    for entry in store.entries("Service"):
        service = entry.doc
        ready = next((c for c in service["status"].get("conditions", ()) if c["type"] == "Ready"), None)
        if ready is None or ready["status"] != "True" or doc["metadata"]["name"] in service["status"].get("sites", ()):
            yield entry.key


class ServiceReconciler(Reconciler[Service]):
    """Makes, replaces and removes instances."""

    name = "services"
    kind = Service
    tears_down = True
    watches = (
        Watch("Instance", owner_of("Service")),
        Watch("Service", _dependents),
        Watch("Site", _unsettled),
    )

    def plan(self, resource: Service, look: Look) -> Plan:
        instances = look.children(Instance)
        if resource.deleting:
            return self._teardown(instances)
        decision = self._decide(resource, instances, look)
        changes = []
        by_name = {i.metadata.name: i for i in instances}
        for step in decision.steps:
            key = Key("Instance", resource.metadata.namespace, step.name)
            if step.verb == "delete":
                changes.append(
                    store_change(
                        "delete",
                        key,
                        StoreWrite(uid=by_name[step.name].metadata.uid),
                        destructive=step.destructive,
                        reason=step.reason,
                        event="InstanceRemoved",
                    )
                )
                continue
            assert step.spec is not None
            doc = _instance_doc(resource, step.name, step.spec)
            old = by_name.get(step.name)
            fields: dict[str, Any] = {"spec.site": (None, step.spec.site), "spec.revision": (None, step.spec.revision)}
            if old is not None:
                fields = differences(doc["spec"]["template"], old.as_doc()["spec"]["template"], "spec.template")
                if step.spec.endpoints != old.spec.endpoints:
                    fields["spec.endpoints"] = (old.spec.endpoints, step.spec.endpoints)
            write = StoreWrite(doc, managed_paths(doc), old.metadata.uid if old else "")
            event = "InstanceMade" if step.verb == "create" else "InstanceChanged"
            changes.append(store_change(step.verb, key, write, fields=fields, reason=step.reason, event=event))
        waiting = "" if changes else decision.waiting
        return Plan(tuple(changes), decision.problems, waiting=waiting, again=0.5 if self._early(look) else None)

    def _teardown(self, instances: list[Instance]) -> Plan:
        """Their deletion was decided with the service's: it is not counted twice."""
        changes = [
            store_change(
                "delete",
                i.key,
                StoreWrite(uid=i.metadata.uid),
                reason="its service is deleted",
                event="InstanceRemoved",
            )
            for i in instances
            if not i.deleting
        ]
        return Plan(tuple(changes), waiting="instances are being taken down" if instances and not changes else "")

    def _decide(self, resource: Service, instances: list[Instance], look: Look) -> Decision:
        spec, namespace = resource.spec, resource.metadata.namespace
        endpoints: dict[str, dict[str, list[str]]] = {}
        missing = ""
        for name in spec.depends_on:
            other = look.get(Service, name, namespace)
            if other is None:
                missing = missing or f"it depends on service {name}, which does not exist"
                continue
            endpoints[name] = other.status.endpoints
            available = next((c.status for c in other.status.conditions if c.type == "Available"), "Unknown")
            if available != "True":
                missing = missing or f"it depends on service {name}, which is not available"
        restarted = resource.metadata.annotations.get(RESTARTED, "")
        copies = [_copy(i) for i in instances]
        sites = list(_sites(spec, look))
        name = resource.metadata.name
        decision = decide(name, spec, resource.status, copies, sites, endpoints, missing, restarted)
        if decision.problems and self._early(look):
            # Just begun: a site that has had no time to answer is no reason to complain.
            return replace(decision, problems=(), waiting="sites are being looked at")
        return decision

    @staticmethod
    def _early(look: Look) -> bool:
        return look.starting and not all(look.snapshot(f"site/{s.metadata.name}").ended for s in look.all(Site))

    def scopes(self, resource: Service, change: Change, store: Store) -> Sequence[Scope]:
        """A scaled-down instance also counts against its site."""
        entry = store.entry(Key("Instance", *change.target.id.rpartition("/")[::2]))
        scopes = list(super().scopes(resource, change, store))
        if entry:
            site = entry.doc["spec"]["site"]
            there = sum(1 for e in store.entries("Instance") if e.doc["spec"]["site"] == site)
            scopes.append(Scope("site", site, there))
        return scopes

    def authorise(self, tx: Tx, resource: Service, change: Change) -> None:
        """No site is overbooked by two services that were planned at the same time, or used although it closed."""
        if change.verb != "create":
            return
        spec = change.payload.doc["spec"]
        need = spec["template"].get("resources", {})
        site = tx.get(Key("Site", "", spec["site"]))
        if site is None:
            raise NotFound(f"site {spec['site']} is gone")
        if why := closed_to_new(site, [e.doc for e in tx.entries("JoinPolicy")], tx.time, brief=True):
            raise Conflict(f"site {spec['site']} takes nothing new: {why}")
        if not need.get("cores") and not need.get("memoryMb"):
            return
        placed = [
            d["spec"]["template"].get("resources", {})
            for e in tx.store.entries("Instance")
            if (d := tx.get(e.key)) is not None and d["spec"]["site"] == spec["site"]
        ]
        for name in ("cores", "memoryMb"):
            used = sum(r.get(name, 0) for r in placed)
            if site["status"].get(name) and used + need.get(name, 0) > site["status"][name]:
                raise Conflict(f"site {spec['site']} was filled meanwhile; placing again")

    def report(self, resource: Service, plan: Plan, look: Look) -> Report:
        instances = look.children(Instance)
        old = resource.status
        copies = [_copy(i) for i in instances]
        decision = self._decide(resource, instances, look)
        status = ServiceStatus.model_validate(old.model_dump())
        answers = judge(resource.spec, decision, copies)
        asked = revision(resource.spec, resource.metadata.annotations.get(RESTARTED, ""))
        if status.revision != decision.revision:
            status.progress_since = now(look.now)
        status.revision = decision.revision
        status.replicas = len([c for c in copies if not c.deleting])
        status.ready = sum(c.good for c in copies if not c.deleting)
        status.updated = sum(c.good and c.revision == decision.revision for c in copies if not c.deleting)
        status.sites = sorted({c.site for c in copies if not c.deleting})
        status.endpoints = endpoints(resource.spec.ports, copies, old.endpoints)
        latest = max([old.last_failure, *(c.failure for c in copies)], key=lambda f: f.time)
        status.last_failure = latest
        events: list[tuple[str, str, bool]] = []
        if answers["Ready"][0] == "True":
            status.good_revision = decision.revision
        if status.failed_revision and status.failed_revision != asked:
            status.failed_revision = ""
        age = look.now - seconds(status.progress_since) if status.progress_since else 0.0
        deadline = resource.spec.update.deadline
        again = None
        if answers["Ready"][0] != "True" and status.good_revision not in ("", decision.revision):
            again = max(0.1, deadline - age) if age <= deadline else None
            if resource.spec.update.rollback and overdue(status, decision, copies, age, deadline):
                status.failed_revision = decision.revision
                back = status.good_revision
                events.append(("RolledBack", f"{decision.revision} did not become healthy; back to {back}", True))
                again = 0.1
        if status.failed_revision:
            message = f"revision {status.failed_revision} did not become healthy and was rolled back"
            answers["RolledBack"] = ("True", "Unhealthy", message)
            if answers["Ready"][0] == "True":
                answers["Ready"] = ("False", "RolledBack", message)
        if resource.deleting:
            answers = {"Ready": ("False", "Deleting", plan.waiting or "it is being taken down")}
        status.conditions = conditions(**answers)
        return Report(status, again, tuple(events))


def _instance_doc(service: Service, name: str, spec: InstanceSpec) -> Doc:
    doc = Instance.model_validate(
        {
            "kind": "Instance",
            "metadata": {
                "name": name,
                "namespace": service.metadata.namespace,
                "labels": {
                    **service.metadata.labels,
                    "ground/service": service.metadata.name,
                    "ground/site": spec.site,
                },
                "ownerReferences": [{"kind": "Service", "name": service.metadata.name, "uid": service.metadata.uid}],
            },
            "spec": spec.model_dump(),
        }
    )
    return doc.as_doc()


def _copy(instance: Instance) -> Copy:
    ready = next((c for c in instance.status.conditions if c.type == "Ready"), None)
    # What was said of an older generation of the instance says nothing of this one.
    known = ready is not None
    return Copy(
        instance.metadata.name,
        instance.spec.index,
        instance.spec.site,
        instance.spec.revision,
        instance.spec,
        ready.status if ready and known else "False",
        ready.reason if ready else "Starting",
        ready.message if ready else "it is being made",
        complete=bool(ready and ready.reason == "Completed"),
        deleting=instance.deleting,
        failure=instance.status.last_exit,
        address=instance.status.address,
        drift=next((c.message for c in instance.status.conditions if c.type == "Drift" and c.status == "True"), ""),
    )


def _sites(spec: ServiceSpec, look: Look) -> Iterable[SiteView]:
    matches = selector(spec.placement.site_selector)
    used: dict[str, tuple[float, float]] = {}
    for entry in look.entries("Instance"):
        doc = entry.doc
        need, site = doc["spec"]["template"].get("resources", {}), doc["spec"]["site"]
        cores, memory = used.get(site, (0.0, 0.0))
        used[site] = (cores + need.get("cores", 0), memory + need.get("memoryMb", 0))
    policies = [e.doc for e in look.entries("JoinPolicy")]
    for site in look.all(Site):
        name, doc = site.metadata.name, site.as_doc()
        cores, memory = used.get(name, (0.0, 0.0))
        facts = look.snapshot(f"site/{name}").facts
        hosts = facts is None or isinstance(facts, HostObserved)
        yield SiteView(
            name,
            "retired" if site.deleting else site.spec.state,
            look.trusted(f"site/{name}"),
            matches(doc) and (not spec.placement.sites or name in spec.placement.sites),
            "/".join(p for p in (site.spec.topology.datacentre, site.spec.topology.room, site.spec.topology.rack) if p),
            site.status.cores - cores if site.status.cores else float("inf"),
            site.status.memory_mb - memory if site.status.memory_mb else float("inf"),
            closed_to_new(doc, policies, look.now, brief=True)
            if hosts
            else f"its driver {site.spec.driver} runs no services",
        )


# ── instances ───────────────────────────────────────────────────────────────────────────────────────────────────


class InstanceReconciler(Reconciler[Instance]):
    """Keeps one process at one site as it was declared."""

    name = "instances"
    kind = Instance
    tears_down = True

    def __init__(self, reveal: Reveal, suggest: Suggest) -> None:
        self._reveal, self._suggest = reveal, suggest

    def shard(self, resource: Instance) -> str:
        return f"site/{resource.spec.site}"

    def plan(self, resource: Instance, look: Look) -> Plan:
        target = unit_of(resource)
        seen = look.seen(target)
        if seen.truth == "unknown":
            return Plan(waiting=seen.message, again=1.0 if seen.reason == "Looking" else None)
        if resource.deleting:
            if seen.truth == "absent":
                return Plan()
            fields = {"unit": (target.id, None)}
            return Plan((Change(target, "delete", fields, reason="no longer wanted", event="Stopped"),))
        if seen.truth == "absent":
            if _completed(resource):
                return Plan()
            again = resource.status.unit != ""
            return Plan(
                (
                    Change(
                        target,
                        "create",
                        {"unit": (None, target.id)},
                        reason="it had vanished from the site" if again else "",
                        event="Recreated" if again else "Started",
                        warning=again,
                    ),
                )
            )
        return self._keep(resource, seen.item, target, look)

    def _keep(self, resource: Instance, unit: UnitObserved, target: Target, look: Look) -> Plan:
        template = resource.spec.template
        fields = unit_differences(resource, unit)
        changes: list[Change] = []
        by_hand = resource.status.synced_generation == resource.metadata.generation
        if fields and (template.drift == "correct" or not by_hand):
            names = ", ".join(fields)
            changes.append(
                Change(
                    target,
                    "update",
                    fields,
                    reason=f"{names} changed by hand; put back" if by_hand else f"{names} changed",
                    event="DriftCorrected" if by_hand else "Changed",
                    warning=by_hand,
                    payload=unit.revision,
                )
            )
        run = Run(unit.state, unit.started, unit.exited, unit.exits, unit.exit_code)
        verdict, wait = restart_after(template, run, _time_at(resource, look))
        if verdict == "now":
            how = describe_exit(unit.exit_code) if unit.state == "exited" else f"it was {unit.state}"
            changes.append(
                Change(
                    target,
                    "start",
                    {"state": (unit.state, "running"), "starts": (unit.starts, unit.starts + 1)},
                    reason=f"it {how}" if unit.state == "exited" else how,
                    event="Restarted",
                    warning=True,
                    payload=unit.revision,
                )
            )
        return Plan(tuple(changes[:1]), again=wait if verdict == "later" else None)

    def apply(self, resource: Instance, change: Change, act: Act) -> str | None:
        port = act.instance.port
        unit_id = change.target.id
        match change.verb:
            case "create":
                tags = {
                    "installation": act.installation,
                    "owner": resource.metadata.uid,
                    "owner_key": resource.key.path,
                    "change": act.change_key,
                }
                port.create(unit_id, self._spec(resource), tags, epoch=act.epoch)
            case "update":
                port.update(unit_id, self._spec(resource), if_revision=change.payload, epoch=act.epoch)
            case "start":
                port.start(unit_id, if_revision=change.payload, epoch=act.epoch)
            case "delete":
                port.delete(unit_id, epoch=act.epoch)
        return None

    def _spec(self, resource: Instance) -> UnitSpec:
        namespace = resource.metadata.namespace
        secrets = {n: self._reveal(namespace, ref) for n, ref in resource.spec.template.secret_env.items()}
        return unit_spec(resource, secrets)

    def report(self, resource: Instance, plan: Plan, look: Look) -> Report:
        seen = look.seen(unit_of(resource))
        status = InstanceStatus.model_validate(resource.status.model_dump())
        unit = seen.item
        events: list[tuple[str, str, bool]] = []
        if unit is not None and seen.truth == "present":
            _note_exit(resource, status, unit)
            status.unit, status.address, status.state = unit.id, unit.address, unit.state
            status.pid = unit.pid if unit.state == "running" else 0
            status.started = now(unit.started) if unit.started else ""
            status.starts, status.exits = unit.starts, unit.exits
            if not unit_differences(resource, unit):
                status.synced_generation = resource.metadata.generation
        elif seen.truth == "absent" and not _completed(resource):
            status.state, status.pid = "", 0
        steady = 0.0
        if unit is not None and unit.state == "running" and unit.spec.check.kind == "none" and not unit.spec.run_once:
            steady = max(0.0, min(STEADY, unit.started + STEADY - _time_at(resource, look)))
        answers = {"Ready": _ready(resource, seen, steady)}
        drift = unit_differences(resource, unit) if unit is not None and seen.truth == "present" else {}
        if drift and resource.status.synced_generation == resource.metadata.generation:
            answers["Drift"] = ("True", "ChangedByHand", f"changed by hand: {', '.join(drift)}")
            if resource.spec.template.drift == "propose":
                answers["Drift"], told = drift_answer(resource, drift, look, self._suggest)
                events += [("DriftProposed", told, True)] if told else []
        known = next((c for c in resource.status.conditions if c.type == "Drift"), None)
        if known is not None and seen.truth == "unknown":
            # Not having looked ends no drift: it would be told, and proposed, once more at the next look.
            answers["Drift"] = (known.status if seen.reason == "Looking" else "Unknown", known.reason, known.message)
        if resource.deleting:
            answers = {"Ready": ("False", "Deleting", plan.waiting or "it is being stopped")}
        status.conditions = conditions(**answers)
        return Report(status, steady or None, events=tuple(events))


def unit_of(instance: Instance) -> Target:
    """The thing at the site that an instance is."""
    return Target(f"site/{instance.spec.site}", UNIT, f"u-{instance.metadata.uid[:20]}")


def unit_spec(instance: Instance, secrets: dict[str, str]) -> UnitSpec:
    """What an instance asks of its host."""
    template = instance.spec.template
    check, need = template.health, template.resources
    port = template.ports.get(check.port) or next(iter(template.ports.values()), 0)
    command, env, files = tuple(template.command), dict(template.env), dict(template.files)
    if template.sample:
        # Brought along as files, so that it runs wherever there is a Python, also as a tenant's own user.
        command = ("{python}", "-S", "-m", f"groundcontrol.samples.{template.sample}")
        env["PYTHONPATH"] = "{dir}/.sample"
        files |= sample_files(template.sample)
    if template.depends_on:
        files["endpoints.json"] = _endpoints_json(instance)
    return UnitSpec(
        command=command,
        env=env,
        secret_env=secrets,
        ports=dict(template.ports),
        files=files,
        check=Check(
            kind=check.kind,
            port=port if check.kind in ("http", "tcp") else 0,
            path=check.path,
            command=tuple(check.command),
            interval=check.interval,
            timeout=check.timeout,
            failures=check.failures,
            successes=check.successes,
            start_period=check.start_period,
        ),
        limits=Limits(memory_mb=need.memory_mb, cores=need.cores, open_files=need.open_files, processes=need.processes),
        user=instance.metadata.namespace,
        run_once=template.run_once,
        stop_grace=template.stop_grace,
    )


@functools.cache
def sample_files(name: str) -> dict[str, str]:
    """A bundled sample app as files of a unit."""
    found = resources.files("groundcontrol.samples")
    texts = {n: found.joinpath(f"{n}.py").read_text() for n in {name, "web"}}
    folder = ".sample/groundcontrol"
    inits = {f"{folder}/__init__.py": "", f"{folder}/samples/__init__.py": ""}
    return inits | {f"{folder}/samples/{n}.py": text for n, text in sorted(texts.items())}


def _endpoints_json(instance: Instance) -> str:
    return json.dumps(instance.spec.endpoints, sort_keys=True) + "\n"


def unit_differences(instance: Instance, unit: UnitObserved) -> dict[str, tuple[Any, Any]]:
    """Field path to (found, wanted). Secrets are compared by the host, and never appear here."""
    return differences(_compared(unit_spec(instance, {})), _compared(unit.spec))


def _compared(spec: UnitSpec) -> dict[str, Any]:
    """What is compared of a unit, under the names that the service's fields have."""
    parts = {n: msgspec.to_builtins(getattr(spec, n)) for n in ("command", "env", "ports", "files")}
    parts |= {to_camel(n): getattr(spec, n) for n in ("run_once", "stop_grace")}
    for name, part in (("health", spec.check), ("resources", spec.limits)):
        parts[name] = {to_camel(n): msgspec.to_builtins(v) for n, v in msgspec.structs.asdict(part).items()}
    return parts


def _completed(instance: Instance) -> bool:
    return any(c.type == "Ready" and c.reason == "Completed" for c in instance.status.conditions)


def _note_exit(resource: Instance, status: InstanceStatus, unit: UnitObserved) -> None:
    """Keep an end that nobody asked for; `Ready`, or the restart, puts it on the timeline."""
    if unit.exits <= resource.status.exits and resource.status.unit == unit.id:
        return
    if unit.exits == 0 or (unit.spec.run_once and unit.exit_code == 0):
        return
    how = describe_exit(unit.exit_code)
    status.last_exit = Failure(
        time=now(unit.exited), instance=resource.metadata.name, reason="Died", message=f"its process {how}"
    )


def _time_at(instance: Instance, look: Look) -> float:
    """The time by the clock of the instance's site, which need not be ours."""
    snapshot = look.snapshot(f"site/{instance.spec.site}")
    return look.now + (snapshot.facts.time - snapshot.began if snapshot.facts else 0.0)


def _ready(resource: Instance, seen: Seen, steady: float) -> Any:
    if seen.truth == "unknown":
        if seen.reason == "Looking":
            # We are looking: what was so a moment ago is still the best answer.
            last = next((c for c in resource.status.conditions if c.type == "Ready"), None)
            return (last.status, last.reason, last.message) if last else ("False", "Starting", "it is being made")
        return ("Unknown", seen.reason, seen.message)
    if seen.truth == "absent":
        return ("False", "Starting", "it is being made")
    unit: UnitObserved = seen.item
    if unit.state == "exited":
        if unit.spec.run_once and unit.exit_code == 0:
            return ("True", "Completed", "it ran and ended well")
        return ("False", "Died", f"its process {describe_exit(unit.exit_code)}")
    if unit.state != "running":
        return ("False", unit.state.title(), f"its process is {unit.state}")
    if unit.spec.run_once and unit.spec.check.kind == "none":
        return ("False", "Running", "it is running and not complete yet")
    if unit.healthy is False:
        return ("False", "Unhealthy", unit.health_message or "its health check fails")
    if unit.healthy is None and unit.spec.check.kind != "none":
        return ("False", "Starting", "it has not been found healthy yet")
    if steady:
        return ("False", "Starting", "it has no health check, and has only just started")
    return ("True", "Healthy", "it runs and is healthy")
