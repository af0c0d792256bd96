"""Where instances go, when they are replaced, and what a service's state is: pure functions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from groundcontrol.capabilities.services.kinds import Failure, InstanceSpec, ServiceSpec, ServiceStatus
from groundcontrol.kernel.resource import Truth

IN_PLACE = frozenset(
    {"replicas", "files", "health", "resources", "placement", "update", "restart", "depends_on", "stop_grace", "drift"}
)
"""Fields whose change needs no new instance."""
RESTARTED = "ground/restarted-at"
"""Annotation that makes a new revision of the same spec."""


def revision(spec: ServiceSpec, restarted: str = "") -> str:
    """The name of what an instance is made from; another one needs new instances."""
    parts = spec.model_dump(mode="json", exclude=set(IN_PLACE))
    encoded = json.dumps([parts, restarted] if restarted else parts, sort_keys=True)
    return hashlib.sha256(encoded.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class SiteView:
    """A site as placement sees it."""

    name: str
    state: str
    trusted: bool
    """Whether it answers now."""
    matches: bool
    """Whether the service's selector and list of sites allow it."""
    rack: str
    free_cores: float
    free_memory_mb: float
    closed: str = ""
    """Why nothing new may be placed there; empty when it may. What is there stays."""


@dataclass(frozen=True)
class Copy:
    """An instance as the service's decisions see it."""

    name: str
    index: int
    site: str
    revision: str
    spec: InstanceSpec
    ready: Truth = "Unknown"
    reason: str = ""
    message: str = ""
    complete: bool = False
    deleting: bool = False
    failure: Failure = field(default_factory=Failure)
    address: str = ""
    drift: str = ""
    """What was changed by hand, in words."""

    @property
    def good(self) -> bool:
        return self.ready == "True"


@dataclass(frozen=True)
class Step:
    """One thing to do to the instances of a service."""

    verb: Literal["create", "update", "delete"]
    name: str
    spec: InstanceSpec | None = None
    destructive: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """What to do, and why not more."""

    steps: tuple[Step, ...] = ()
    revision: str = ""
    waiting: str = ""
    problems: tuple[str, ...] = ()


def copy_name(service: str, index: int, revision_: str, site: str) -> str:
    """Always the same for the same copy at the same place, so that making it twice makes it once."""
    tail = hashlib.sha256(f"{service} {revision_} {site}".encode()).hexdigest()[:6]
    return f"{service[:48].rstrip('-.')}-{index}-{tail}"


def wanted_revision(spec: ServiceSpec, status: ServiceStatus, copies: Sequence[Copy], restarted: str) -> str:
    """The revision to run: the spec's, or the last good one while the spec's is known to fail."""
    asked = revision(spec, restarted)
    failed = spec.update.rollback and status.failed_revision == asked
    if failed and any(c.revision == status.good_revision for c in copies):
        return status.good_revision
    return asked


def decide(
    name: str,
    spec: ServiceSpec,
    status: ServiceStatus,
    copies: Sequence[Copy],
    sites: Sequence[SiteView],
    endpoints: Mapping[str, Mapping[str, list[str]]],
    missing: str = "",
    restarted: str = "",
) -> Decision:
    """What makes the copies of a service as its spec wants them. `endpoints` are the addresses of what it depends on,
    `missing` says which dependency is not available yet."""
    live = [c for c in copies if not c.deleting]
    target = wanted_revision(spec, status, live, restarted)
    template = _template(spec, live, target, restarted)
    addresses = {n: sorted(a for group in ports.values() for a in group) for n, ports in endpoints.items()}
    steps: list[Step] = [
        Step("delete", c.name, destructive=True, reason=f"{spec.replicas} replicas are wanted")
        for c in live
        if c.index >= spec.replicas
    ]
    live = [c for c in live if c.index < spec.replicas]
    allowed = {s.name for s in sites if s.matches and s.state in ("active", "maintenance")}
    current = {c.index: c for c in live if c.revision == target and c.site in allowed}
    old = [c for c in live if current.get(c.index) is not c]
    steps += _updates(live, template, target, addresses)
    steps += _replaced(spec, current, old)
    going = {s.name for s in steps if s.verb == "delete"}
    room = _Room(spec, template, sites, [c for c in live if c.name not in going])
    busy = {c.index for c in old if c.index in current}
    waiting, problems = "", []
    for index in range(spec.replicas):
        if index in current:
            continue
        has_old = any(c.index == index for c in old)
        if missing and not has_old:
            waiting = missing
            break
        if has_old and busy and spec.update.strategy == "rolling":
            waiting = "one after the other"
            continue
        site, why = room.place(index, [c for c in old if c.index == index])
        if site is None:
            problems.append(f"replica {index} cannot be placed: {why}")
            continue
        made = copy_name(name, index, target, site)
        if any(c.name == made for c in copies):
            waiting = f"{made} is still being taken down"
            continue
        steps.append(
            Step(
                "create",
                made,
                InstanceSpec(
                    service=name,
                    index=index,
                    site=site,
                    revision=target,
                    template=template,
                    endpoints=addresses,
                ),
                reason=f"replica {index} on {site}",
            )
        )
        if has_old:
            busy.add(index)
    return Decision(tuple(steps), target, waiting, tuple(problems))


def _template(spec: ServiceSpec, live: Sequence[Copy], target: str, restarted: str) -> ServiceSpec:
    """What copies of the target revision are made from: the spec, or an older one with today's in-place fields."""
    if target == revision(spec, restarted):
        return spec.model_copy(update={"replicas": 1})
    old = next(c.spec.template for c in live if c.revision == target)
    return old


def _updates(
    live: Sequence[Copy], template: ServiceSpec, target: str, addresses: dict[str, list[str]]
) -> Iterable[Step]:
    for copy in live:
        if copy.revision != target:
            continue
        spec = copy.spec.model_copy(update={"template": template, "endpoints": addresses})
        if spec != copy.spec:
            yield Step("update", copy.name, spec, reason="changed in place")


def _replaced(spec: ServiceSpec, current: Mapping[int, Copy], old: Sequence[Copy]) -> Iterable[Step]:
    """Old copies that may go: their successor is healthy (blue-green: all successors are)."""
    done = {i for i, c in current.items() if c.good}
    if spec.update.strategy == "blue-green" and len(done) < spec.replicas:
        return
    for copy in old:
        if copy.index in done:
            yield Step("delete", copy.name, reason=f"replaced by {current[copy.index].name}")


class _Room:
    """Keeps count of what is free while copies are placed."""

    def __init__(self, spec: ServiceSpec, template: ServiceSpec, sites: Sequence[SiteView], live: list[Copy]) -> None:
        self.spec, self.sites, self.live = spec, sites, list(live)
        self.cores, self.memory = template.resources.cores, template.resources.memory_mb
        self.free = {s.name: (s.free_cores, s.free_memory_mb) for s in sites}
        self.racks = {s.name: s.rack or s.name for s in sites}
        self.used = [(c.index, c.site) for c in live]

    def place(self, index: int, replaces: Sequence[Copy]) -> tuple[str | None, str]:
        """The best site for a copy, or None and why none fits. The place of what it replaces counts as free."""
        others = [site for i, site in self.used if i != index]
        rejected: dict[str, str] = {}
        fits: list[tuple[int, int, float, str]] = []
        for site in self.sites:
            why = self._reject(site, others)
            if why:
                rejected[site.name] = why
                continue
            stays = 0 if any(c.site == site.name for c in replaces) else 1
            fits.append((others.count(site.name), stays, -self.free[site.name][0], site.name))
        if not fits:
            return None, "; ".join(f"{name}: {why}" for name, why in sorted(rejected.items())) or "there is no site"
        chosen = min(fits)[3]
        cores, memory = self.free[chosen]
        self.free[chosen] = (cores - self.cores, memory - self.memory)
        self.used.append((index, chosen))
        return chosen, ""

    def _reject(self, site: SiteView, others: Sequence[str]) -> str:
        if not site.matches:
            return "not selected"
        if site.state != "active":
            return f"is in state {site.state}"
        if not site.trusted:
            return "does not answer"
        if site.closed:
            return site.closed
        if self.spec.placement.spread == "site" and site.name in others:
            return "has a replica already"
        if self.spec.placement.spread == "rack" and self.racks[site.name] in [self.racks[o] for o in others]:
            return f"its rack {self.racks[site.name]} has a replica already"
        cores, memory = self.free[site.name]
        if self.cores > cores:
            return f"{max(cores, 0):g} cores free, {self.cores:g} needed"
        if self.memory > memory:
            return f"{max(memory, 0):g} MiB free, {self.memory} needed"
        return ""


def overdue(status: ServiceStatus, decision: Decision, copies: Sequence[Copy], age: float, deadline: float) -> bool:
    """Whether the roll-out of this revision failed: past its deadline with a copy of it that is known to be unwell."""
    return (
        age > deadline
        and bool(status.good_revision)
        and status.good_revision != decision.revision
        and any(c.revision == decision.revision and c.ready == "False" for c in copies if not c.deleting)
    )


def judge(spec: ServiceSpec, decision: Decision, copies: Sequence[Copy]) -> dict[str, tuple[Truth, str, str]]:
    """The answers to Ready and Available, from what is known of the copies."""
    live = [c for c in copies if not c.deleting and c.index < spec.replicas]
    good = [c for c in live if c.good]
    unknown = [c for c in live if c.ready == "Unknown"]
    bad = [c for c in live if c.ready == "False"]
    answers: dict[str, tuple[Truth, str, str]] = {}
    if spec.replicas == 0 or good:
        answers["Available"] = ("True", "Answers", f"{len({c.index for c in good})} of {spec.replicas} are healthy")
    elif unknown:
        answers["Available"] = ("Unknown", unknown[0].reason, unknown[0].message)
    else:
        answers["Available"] = ("False", "NoneHealthy", "no instance is healthy")
    updated = {c.index for c in good if c.revision == decision.revision}
    if decision.problems:
        answers["Ready"] = ("False", "Unplaceable", decision.problems[0])
    elif bad:
        answers["Ready"] = ("False", bad[0].reason or "Unhealthy", f"{bad[0].name}: {bad[0].message}")
    elif unknown:
        answers["Ready"] = ("Unknown", unknown[0].reason, f"{unknown[0].name}: {unknown[0].message}")
    elif len(updated) < spec.replicas or len(live) > spec.replicas:
        why = decision.waiting or "instances are being made"
        answers["Ready"] = ("False", "Progressing", why)
    elif spec.run_once and live and all(c.complete for c in live):
        answers["Ready"] = ("True", "Completed", "it ran and ended well")
    else:
        answers["Ready"] = ("True", "Healthy", "all instances are healthy")
    if drifted := [c for c in live if c.drift]:
        answers["Drift"] = ("True", "ChangedByHand", f"{drifted[0].name}: {drifted[0].drift}")
    return answers


def endpoints(
    ports: Mapping[str, int], copies: Sequence[Copy], before: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Port name to addresses: the healthy ones, then those of which nothing is known now and that were there before.

    A site that cannot be seen from here may well be seen by those who use it: what is not known is not taken away."""
    told = {address.rpartition(":")[0] for addresses in before.values() for address in addresses}
    live = [c for c in copies if c.address and not c.deleting and not c.complete]
    healthy = sorted(c.address for c in live if c.good)
    unknown = sorted(c.address for c in live if c.ready == "Unknown" and c.address in told)
    return {name: [f"{address}:{number}" for address in healthy + unknown] for name, number in ports.items()}


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters; read it at the site)"


def proposal(drift: Mapping[str, tuple[Any, Any]], file: str, repository: str) -> str:
    """What to write into which file so that a change made by hand becomes what is wanted; one sentence."""
    parts = [f"{path}: {_short(json.dumps(found))}" for path, (found, _) in sorted(drift.items())]
    where = f"{file} of {repository}" if file and repository else file or "its manifest"
    return f"to keep what was changed by hand, write into {where}: {'; '.join(parts)}"


_DRIFTED = re.compile(r"spec\.(\w+)(?:\[(.+)\]|\.(\w+))?", re.DOTALL)


def drift_name(drift: Mapping[str, tuple[Any, Any]]) -> str:
    """Eight characters that are others for another drift."""
    found = sorted((path, found) for path, (found, _) in drift.items())
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]


def kept_by_hand(spec: Mapping[str, Any], drift: Mapping[str, tuple[Any, Any]]) -> dict[str, Any] | None:
    """The spec of a service in which what was found is what is wanted; None when a service cannot say that.

    What we bring along ourselves (a sample's program, `endpoints.json`) is of no service."""
    new: dict[str, Any] = deepcopy(dict(spec))
    for path, (found, _) in drift.items():
        match = _DRIFTED.fullmatch(path)
        if match is None:
            return None
        field, key = match[1], match[2] or match[3]
        ours = key == "endpoints.json" or (spec.get("sample") and (field == "command" or (key or "").startswith(".")))
        if ours:
            return None
        value = list(found) if isinstance(found, tuple) else found
        if field == "env" and spec.get("sample"):
            value = {name: text for name, text in (found or {}).items() if name != "PYTHONPATH"}
        if (field, key) == ("health", "port"):
            value = next((name for name, number in (spec.get("ports") or {}).items() if number == found), None)
        if key is None:
            if value is None:
                return None
            new[field] = value
        elif value is not None:
            new.setdefault(field, {})[key] = value
        elif field == "files":
            new[field].pop(key, None)
        else:
            return None
    return new


# ── one instance ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Run:
    """How a unit's process is doing."""

    state: str
    started: float = 0.0
    exited: float = 0.0
    exits: int = 0
    exit_code: int | None = None


STEADY = 1.0
"""Seconds a process without a health check has to run before running counts as health."""
LONG_RUN = 30.0
"""Seconds after which an end is taken for an accident, not for a crash loop: restarted at once."""


def restart_after(spec: ServiceSpec, run: Run, at: float) -> tuple[Literal["no", "now", "later", "complete"], float]:
    """What to do about a process that is not running: nothing, start, start in so many seconds, or it is complete."""
    if run.state == "running":
        return "no", 0.0
    if run.state == "exited":
        if spec.run_once and run.exit_code == 0:
            return "complete", 0.0
        if spec.restart == "never" or (spec.restart == "on-failure" and run.exit_code == 0):
            return "no", 0.0
        if run.exited - run.started < LONG_RUN:
            wait = min(0.25 * 2 ** min(run.exits - 1, 8), 60.0)
            left = run.exited + wait - at
            return ("later", left) if left > 0 else ("now", 0.0)
    return "now", 0.0


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "ended, nobody saw how"
    if code < 0:
        return f"was killed by signal {-code}"
    return f"ended with code {code}"


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "spec"
) -> dict[str, tuple[Any, Any]]:
    """Field path to (found, wanted) where they differ; files, health checks and resources are compared one by one."""
    fields: dict[str, tuple[Any, Any]] = {}
    for name in wanted:
        want, have = wanted[name], found.get(name)
        if name in ("files", "health", "resources"):
            for path in sorted({*want, *(have or {})}):
                if want.get(path) != (have or {}).get(path):
                    full = f"{prefix}.files[{path}]" if name == "files" else f"{prefix}.{name}.{path}"
                    fields[full] = ((have or {}).get(path), want.get(path))
        elif want != have:
            fields[f"{prefix}.{name}"] = (have, want)
    return fields
