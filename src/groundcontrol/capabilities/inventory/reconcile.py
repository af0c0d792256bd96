"""Keeps each site connected, says what is known of it, and judges the rules by which it joins."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from groundcontrol.capabilities.inventory.kinds import (
    JoinPolicy,
    JoinPolicySpec,
    JoinPolicyStatus,
    RuleResult,
    Site,
    SiteStatus,
    UrlRule,
    excepted,
    judgement,
    not_joined,
    selecting,
)
from groundcontrol.capabilities.inventory.logic import (
    Dated,
    Known,
    clean,
    described,
    evaluate,
    identity,
    joined,
    placed,
    results,
)
from groundcontrol.kernel.claims import owners_at
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.plan import Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, Report, Watch, conditions
from groundcontrol.kernel.resource import Doc, Key, now
from groundcontrol.kernel.secrets import REVEALED
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.world import DriverInstance, Snapshot, World
from groundcontrol.ports.cloud import CloudFacts, Joining, Probe
from groundcontrol.ports.web import Answered, Web

log = logging.getLogger(__name__)
COUNT_EVERY = 5.0
"""Seconds between renewals of a site's counts, so that a busy site does not write its status at every change."""
SOONER = 0.1
"""What went wrong is asked again after this share of the time for which what went well counts."""


def instance_name(site: str) -> str:
    """The driver instance of a site."""
    return f"site/{site}"


# ── what rules ask ──────────────────────────────────────────────────────────────────────────────────────────────


class Question(NamedTuple):
    """Something to be asked outside for a rule."""

    ask: Callable[[], Any]
    """Bounded in time."""
    good: Callable[[Any], bool]
    """Whether an answer is as the rule wants it."""
    failed: Callable[[str], Any]
    """The answer when asking broke; gets why."""


class Asking:
    """Asks what rules need to know beside the turns: one thread for a site at a time, and every answer dated.

    So a site that answers slowly, or never, holds up neither a turn nor another site."""

    def __init__(self, every: float, wake: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._every, self._wake, self._clock = every, wake, clock
        self._answers: dict[str, dict[tuple[str, ...], Dated[Any]]] = {}
        self._asking: set[str] = set()
        self._lock = threading.Lock()

    def known(self, site: str, questions: Mapping[tuple[str, ...], Question]) -> dict[tuple[str, ...], Dated[Any]]:
        """The answers there are. What was never asked, or too long ago, is being asked from now on."""
        at = self._clock()
        with self._lock:
            had = self._answers.get(site, {})
            found = {key: had[key] for key in questions if key in had}
            self._answers[site] = dict(found)
            due = [key for key, question in questions.items() if self._is_due(found.get(key), question, at)]
            start = bool(due) and site not in self._asking
            if start:
                self._asking.add(site)
        if start:
            work = {key: questions[key] for key in due}
            threading.Thread(target=self._ask, args=(site, work), name=f"join-{site}", daemon=True).start()
        return found

    def forget(self, site: str) -> None:
        """Nobody asks for this site any more."""
        with self._lock:
            self._answers.pop(site, None)

    def _is_due(self, answer: Dated[Any] | None, question: Question, at: float) -> bool:
        if answer is None:
            return True
        return not 0 <= at - answer.at < self._every * (1.0 if question.good(answer.value) else SOONER)

    def _ask(self, site: str, work: Mapping[tuple[str, ...], Question]) -> None:
        try:
            for key, question in work.items():
                try:
                    value = question.ask()
                except GroundError as error:
                    value = question.failed(error.message)
                except Exception as error:
                    log.exception("a rule of joining could not be asked", extra={"site": site})
                    value = question.failed(f"unexpected error: {type(error).__name__}")
                with self._lock:
                    if site in self._answers:
                        self._answers[site][key] = Dated(value, self._clock())
        finally:
            with self._lock:
                self._asking.discard(site)
            self._wake(site)


def _probe_failed(why: str) -> Probe:
    return Probe("unknown", why)


def _url_failed(why: str) -> Answered:
    return Answered(asked=False, problem=why)


# ── sites ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _all_sites(doc: Doc, store: Store) -> Iterable[Key]:
    return [e.key for e in store.entries("Site")]


def _its_site(doc: Doc, store: Store) -> Iterable[Key]:
    return [Key("Site", "", doc["spec"]["site"])]


class SiteReconciler(Reconciler[Site]):
    """A site has nothing to be made; it is connected, looked at, and only let go when nothing of ours is there."""

    name = "sites"
    kind = Site
    tears_down = True
    watches = (Watch("JoinPolicy", _all_sites), Watch("Orphan", _its_site))

    def __init__(
        self, world: World, connect: Callable[[Site], DriverInstance], asking: Asking, web: Web | None = None
    ) -> None:
        self._world, self._connect, self._asking, self._web = world, connect, asking, web

    def shard(self, resource: Site) -> str:
        return instance_name(resource.metadata.name)

    def plan(self, resource: Site, look: Look) -> Plan:
        name = instance_name(resource.metadata.name)
        here = [e.key.name for e in look.entries("Instance") if e.doc["spec"]["site"] == resource.metadata.name]
        owned = self._owned(name, look) if resource.deleting else 0
        if resource.deleting and not (here or owned):
            self._world.detach(name)
            self._asking.forget(resource.metadata.name)
            return Plan()
        wanted = identity(resource.spec)
        if self._world.identity(name) != wanted:
            try:
                self._world.attach(name, self._connect(resource), wanted)
            except GroundError as error:
                return Plan(problems=(error.message,), again=5.0)
        if resource.deleting:
            what = (
                f"{len(here)} instances are still placed here" if here else f"{owned} things here belong to resources"
            )
            return Plan(waiting=what, again=1.0)
        return Plan()

    def _owned(self, instance: str, look: Look) -> int:
        """How many things of a driver instance belong to resources, which cannot be taken down without it."""
        with look.reading() as conn:
            return len(owners_at(conn, instance))

    def report(self, resource: Site, plan: Plan, look: Look) -> Report:
        name = instance_name(resource.metadata.name)
        snapshot = look.snapshot(name)
        here = [d for e in look.entries("Instance") if (d := e.doc)["spec"]["site"] == resource.metadata.name]
        fields = _counted(resource, snapshot, here)
        nobodys = [e.doc for e in look.entries("Orphan")]
        lines = sorted(d["status"].get("about", "") for d in nobodys if d["spec"]["site"] == resource.metadata.name)
        fields["strays"] = [line for line in lines if line][:100]
        answers: dict[str, Any] = {"Ready": _ready(plan, snapshot)}
        events: tuple[tuple[str, str, bool], ...] = ()
        site, policies = resource.as_doc(), [e.doc for e in look.entries("JoinPolicy")]
        selected = selecting(site, policies)
        fields |= {"joining": [], "judged": {}}
        if selected:
            rules, judged = self._judge(resource, site, selected, snapshot, look)
            fields |= {"joining": rules, "judged": judged}
            told = {**site, "status": {"joining": [r.model_dump() for r in rules], "judged": judged}}
            answers |= {"Joined": joined(rules), "Placeable": _placeable(told, selected, look.now)}
            events = _told(resource, answers["Joined"])
        else:
            self._asking.forget(resource.metadata.name)
        status = SiteStatus.model_validate({**resource.status.model_dump(by_alias=False), **fields})
        status.conditions = conditions(**answers)
        return Report(status, again=COUNT_EVERY if snapshot.reachable else 1.0, events=events)

    def _judge(
        self, resource: Site, site: Doc, policies: Iterable[Mapping[str, Any]], snapshot: Snapshot, look: Look
    ) -> tuple[list[RuleResult], dict[str, str]]:
        """The results of all rules, and what was judged."""
        name, old = resource.metadata.name, resource.status
        views = [(JoinPolicy.view(p), judgement(p, site)) for p in policies]
        specs = {p.metadata.name: placed(p.spec, name) for p, _ in views}
        questions = self._questions(resource, specs, snapshot)
        found = self._asking.known(name, questions)
        rules: list[RuleResult] = []
        for policy, about in views:
            called = policy.metadata.name
            known = self._known(specs[called], called, snapshot, found, look)
            keep = look.starting and old.judged.get(called) == about
            rules += results(called, evaluate(specs[called], known, look.now), old.joining, now(look.now), keep=keep)
        # What the other side said may repeat what we sent.
        shown = [r.model_copy(update={"evidence": REVEALED.redact(r.evidence)}) for r in rules]
        return shown, {p.metadata.name: about for p, about in views}

    def _questions(
        self, resource: Site, specs: Mapping[str, JoinPolicySpec], snapshot: Snapshot
    ) -> dict[tuple[str, ...], Question]:
        """What is asked outside for these rules; the keys say of which connection and which rule."""
        found: dict[tuple[str, ...], Question] = {}
        connection = identity(resource.spec)
        port = self._port(snapshot.instance)
        for policy, spec in specs.items():
            if spec.roles and isinstance(port, Joining) and snapshot.reachable:
                for name, wanted in ((spec.roles.allowed, "allowed"), (spec.roles.refused, "refused")):
                    if name in port.probes:
                        found["call", policy, name, connection] = _call(port, name, wanted)
            for rule in spec.urls:
                found["url", policy, rule.name, rule.url, rule.ca_cert] = self._address(rule)
        return found

    def _address(self, rule: UrlRule) -> Question:
        web = self._web
        if web is None:
            return Question(lambda: _url_failed("this server asks no addresses"), _is_alive, _url_failed)
        return Question(lambda: web.ask(rule.url, rule.ca_cert), _is_alive, _url_failed)

    def _port(self, instance: str) -> Any:
        try:
            return getattr(self._world.instance(instance), "port", None)
        except GroundError:
            return None

    def _known(
        self,
        spec: JoinPolicySpec,
        policy: str,
        snapshot: Snapshot,
        found: Mapping[tuple[str, ...], Dated[Any]],
        look: Look,
    ) -> Known:
        port = self._port(snapshot.instance)
        probes = {key[2]: answer for key, answer in found.items() if key[:2] == ("call", policy)}
        no_probes = "" if isinstance(port, Joining) else "the site's driver makes no such calls"
        if isinstance(port, Joining) and spec.roles:
            for name in {spec.roles.allowed, spec.roles.refused} - set(port.probes):
                probes[name] = Dated(Probe("unknown", "the site's driver does not offer this call"), look.now)
        answers = {key[2]: answer for key, answer in found.items() if key[:2] == ("url", policy)}
        first = not snapshot.ended and not snapshot.error
        blind = "" if look.trusted(snapshot.instance) else (snapshot.held or snapshot.error or "it does not answer")
        facts = snapshot.facts if isinstance(snapshot.facts, CloudFacts) else None
        wanted = ("image", "flavor") if spec.images or spec.flavors else ()
        return Known(
            facts=facts,
            things=[thing for (type_, _), thing in snapshot.items.items() if type_ in wanted],
            complete=snapshot.complete,
            blind="it has not been looked at yet" if first else blind,
            pending=first or (bool(blind) and look.starting),
            probes=probes,
            no_probes=no_probes,
            answers=answers,
        )


def _call(port: Joining, name: str, wanted: str) -> Question:
    return Question(lambda: port.probe(name), lambda probe: bool(probe.result == wanted), _probe_failed)


def _is_alive(answer: Answered) -> bool:
    return not answer.problem and 200 <= answer.status < 400


def _counted(resource: Site, snapshot: Snapshot, here: list[Doc]) -> dict[str, Any]:
    """The fields of the status that say what is there and how much of it is used."""
    needs = [d["spec"]["template"].get("resources", {}) for d in here]
    fields: dict[str, Any] = {
        "instances": len(here),
        "cores_used": round(sum(r.get("cores", 0) for r in needs), 3),
        "memory_used_mb": sum(r.get("memoryMb", 0) for r in needs),
        "reachable_since": now(snapshot.since) if snapshot.since else "",
    }
    facts, capacity = snapshot.facts, resource.spec.capacity
    if facts:
        fields["cores"] = min(capacity.cores or facts.cores, facts.cores)
        fields["memory_mb"] = min(capacity.memory_mb or facts.memory_mb, facts.memory_mb)
    if isinstance(facts, CloudFacts):
        counts = Counter(type_ for type_, _ in snapshot.items)
        fields |= described(facts, counts, resource.status.looked)
    return fields


def _ready(plan: Plan, snapshot: Snapshot) -> tuple[str, str, str]:
    if plan.problems:
        return "False", "CannotConnect", plan.problems[0]
    if snapshot.held:
        return "Unknown", "Held", snapshot.held
    if snapshot.reachable:
        if snapshot.problems:
            return "True", "AnswersWithProblems", "; ".join(clean(p) for p in snapshot.problems[:3])
        return "True", "Answers", "the site answers"
    if snapshot.error:
        seen = f", last seen {now(snapshot.ended)}" if snapshot.ended else ""
        return "Unknown", "Unreachable", f"no answer{seen}: {clean(snapshot.error)}"
    return "Unknown", "NotLooked", "the site has not been looked at yet"


def _placeable(site: Doc, policies: list[Mapping[str, Any]], at: float) -> tuple[str, str, str]:
    """Whether something new may be placed at a site that rules of joining select."""
    state = site["spec"]["state"]
    if state != "active":
        return "False", "NotActive", f"it is in state {state}"
    why = not_joined(site, policies)
    if not why:
        return "True", "Joined", "the rules of joining hold"
    if reason := excepted(site, at):
        until = site["spec"]["joinException"]["until"]
        return "True", "Exception", f"used until {until} although rules do not hold: {reason}"
    return "False", "NotJoined", why


def _told(resource: Site, answer: tuple[str, str, str]) -> tuple[tuple[str, str, bool], ...]:
    """What goes onto the timeline when `Joined` becomes another."""
    before = next((c.status for c in resource.status.conditions if c.type == "Joined"), "")
    if before == answer[0] or (not before and answer[0] == "Unknown"):
        return ()
    return (("Joined", answer[2], False),) if answer[0] == "True" else (("NotJoined", answer[2], True),)


def confirm_loss(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """A person says that what vanished from a site is really gone; what was there is made anew elsewhere or here."""
    reason = str(body.get("reason", ""))
    runtime.store.write(lambda tx: tx.audit(str(subject.name), "confirm-loss", key, reason=reason))
    runtime.world.confirm_loss(instance_name(key.name))
    return {"confirmed": str(key)}


# ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────


def _all_policies(doc: Doc, store: Store) -> Iterable[Key]:
    return [e.key for e in store.entries("JoinPolicy")]


class JoinPolicyReconciler(Reconciler[JoinPolicy]):
    """Sums up what became of a policy at the sites it selects; they judge it themselves."""

    name = "joinpolicies"
    kind = JoinPolicy
    watches = (Watch("Site", _all_policies),)

    def plan(self, resource: JoinPolicy, look: Look) -> Plan:
        return Plan()

    def report(self, resource: JoinPolicy, plan: Plan, look: Look) -> Report:
        doc = look.get_any("JoinPolicy", resource.metadata.name)
        if doc is None:
            return Report(None)
        sites = [d for e in look.entries("Site") if selecting(d := e.doc, [doc])]
        failing, unknown = [], []
        for site in sites:
            name = site["metadata"]["name"]
            mine = [r for r in site["status"].get("joining") or () if r["policy"] == resource.metadata.name]
            if any(r["result"] == "False" for r in mine):
                failing.append(name)
            elif not_joined(site, [doc]):
                unknown.append(name)
        joined_sites = len(sites) - len(failing) - len(unknown)
        status = JoinPolicyStatus(sites=len(sites), joined=joined_sites, failing=failing, unknown=unknown)
        if sites:
            ready = ("True", "Judged", "each site it selects says in its status what became of the rules")
        else:
            ready = ("True", "SelectsNothing", "it selects no site")
        status.conditions = conditions(Ready=ready)  # type: ignore[arg-type]
        return Report(status)
