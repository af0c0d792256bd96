"""Keeps things in clouds as they were declared: one reconciler for all kinds, which the descriptions in `logic.py` tell
apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic.alias_generators import to_camel

from groundcontrol.capabilities.clouds.kinds import (
    KINDS,
    NEW,
    TYPES,
    CloudResource,
    Fault,
    ThingStatus,
    not_granted,
)
from groundcontrol.capabilities.clouds.logic import (
    ASK_AGAIN,
    HOLD_IN_PLACE,
    SHAPES,
    STUCK,
    Difference,
    Sorted,
    cause_of,
    differences,
    digest,
    held_by_project,
    in_words,
    names_of,
    next_try,
    own_group,
    sort_out,
)
from groundcontrol.capabilities.clouds.operations import asked_last, parked, set_and_not_done
from groundcontrol.capabilities.clouds.proposals import Suggest, proposed
from groundcontrol.capabilities.clouds.view import Shelf, Sight, View, driver_of
from groundcontrol.capabilities.inventory.kinds import closed_to_new
from groundcontrol.kernel.errors import Conflict, Forbidden, Refused
from groundcontrol.kernel.guard import Scope
from groundcontrol.kernel.plan import Change, Plan, Target
from groundcontrol.kernel.reconcile import Act, Look, Reconciler, Report, Watch, conditions
from groundcontrol.kernel.resource import Doc, Key, now, seconds
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx
from groundcontrol.ports.cloud import UNMARKED, Mark, Thing

BLOCKED_FOR = 5.0
"""Seconds after which something that a person has to move out of the way is looked for again."""
LOOK_AGAIN = 30.0
"""Seconds after which something that is waited for is looked at even when nothing was heard."""


class CloudReconciler(Reconciler[CloudResource]):
    """Makes a thing, keeps it, and takes it down."""

    tears_down = True

    def __init__(self, shelf: Shelf, suggest: Suggest) -> None:
        self._shelf, self._suggest = shelf, suggest
        self._sight = Sight(shelf, self.kind.__name__)

    @property
    def _name(self) -> str:
        return self.kind.__name__

    @property
    def _type(self) -> str:
        return TYPES[self._name]

    @property
    def _noun(self) -> str:
        return self._type.replace("_", " ")

    def shard(self, resource: CloudResource) -> str:
        return driver_of(resource)

    def keeps(self, resource: CloudResource) -> bool:
        return resource.spec.deletion == "keep"

    # ── planning ────────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self, resource: CloudResource, look: Look) -> Plan:
        view = self._sight.of(resource, look)
        if resource.deleting:
            return self._teardown(resource, view, look)
        if view.seen.truth == "unknown":
            return Plan(waiting=view.seen.message, again=1.0 if view.seen.reason == "Looking" else None)
        if view.gone and self._type not in UNMARKED:
            # Proved to be gone; asked for once more, so that the claim on it is let go as after any deletion.
            changes = [Change(t, "delete", {"thing": (t.id, None)}, reason=f"{t.type} {t.id} is not there any more",
                              event="Vanished", warning=True) for t in view.gone]  # fmt: skip
            return Plan(tuple(changes))
        if view.thing is None:
            return self._obtain(resource, view, look)
        if view.target is not None and view.target not in look.claims:
            return self._take_over(resource, view, view.target)
        return self._keep(resource, view, view.thing, look)

    def _take_over(self, resource: CloudResource, view: View, target: Target) -> Plan:
        """Something whose id is known before it is made is there already."""
        thing = view.thing
        if thing is not None and self._type == "keypair" and differences(self._name, view.wanted, thing):
            return _blocked(f"a keypair {target.id} with another key is there already; delete it in the cloud")
        return Plan((_adoption(target, "it is there already"),))

    def _obtain(self, resource: CloudResource, view: View, look: Look) -> Plan:
        """There is nothing of ours: find it by its mark, take over what is named, or make it."""
        driver, adopt = self.shard(resource), resource.spec.adopt
        if why := self._sight.not_whole(look, driver):
            return Plan(waiting=why, again=LOOK_AGAIN)
        if adopt and adopt != NEW:
            return self._adopt(resource, view, Target(driver, self._type, adopt), look)
        found = self._marked(resource, view, look)
        ours = [t for t in found if t.mark is not None and t.mark.installation == look.installation]
        if len(ours) > 1:
            names = ", ".join(sorted(t.id for t in ours))
            return _blocked(f"several things carry the mark of this: {names}; name one in spec.adopt")
        if ours:
            return Plan((_adoption(Target(driver, self._type, ours[0].id), "it carries our mark"),))
        if found and adopt != NEW:
            return _blocked(_other_installation(found[0]))
        if view.missing or view.open:
            return Plan(waiting="; ".join(view.missing), again=LOOK_AGAIN)
        wait = self._back_off(resource, look)
        if wait > 0:
            return Plan(waiting="the next attempt waits a while", again=wait)
        if why := self._closed(resource, look):
            return Plan(waiting=why, again=LOOK_AGAIN)
        return Plan((self._creation(resource, view),))

    def _marked(self, resource: CloudResource, view: View, look: Look) -> list[Thing]:
        """Things of no living resource that carry the mark of this one, in its own project."""
        driver = self.shard(resource)
        _, by_owner = self._shelf.of(look.snapshot(driver))
        found = []
        for thing in by_owner.get(str(resource.key), ()):
            if thing.type != self._type or thing.state == "leaving" or thing.project not in ("", view.project):
                continue
            if thing.project or not resource.metadata.namespace:
                found.append(thing)
        return found

    def _adopt(self, resource: CloudResource, view: View, target: Target, look: Look) -> Plan:
        seen = look.seen(target)
        if seen.truth == "unknown":
            return Plan(waiting=seen.message, again=1.0)
        if seen.truth == "absent":
            return _blocked(f"spec.adopt: there is no {self._noun} {target.id} at the site")
        if resource.metadata.namespace and (not view.project or seen.item.project != view.project):
            # Not told apart from absence: what other projects have is nobody's business.
            return _blocked(f"spec.adopt: there is no {self._noun} {target.id} in the project")
        return Plan((_adoption(target, "it is taken over as it is"),))

    def _closed(self, resource: CloudResource, look: Look) -> str:
        site = look.get_any("Site", resource.spec.site)
        if site is None:
            return f"there is no Site {resource.spec.site}"
        return _takes_nothing_new(site, [e.doc for e in look.entries("JoinPolicy")], look.now)

    def _back_off(self, resource: CloudResource, look: Look) -> float:
        retry, status = getattr(resource.spec, "retry", None), resource.status
        if retry is None or not status.attempts or not status.fault.time:
            return 0.0
        wait = next_try(status.attempts, 1_000, retry.delay)
        return seconds(status.fault.time) + (wait or 0.0) - look.now

    def _creation(self, resource: CloudResource, view: View) -> Change:
        wanted = dict(view.wanted)
        shown = {f"spec.{to_camel(n)}": (None, v if n != "user_data" else digest(v)) for n, v in wanted.items()}
        if resource.status.made:
            # Another call than the one before, so that its key is another.
            shown["made"] = (None, resource.status.made + 1)
        again, tried = resource.status.id != "" and not resource.status.attempts, resource.status.attempts
        target = view.target or Target(driver_of(resource), self._type, "")
        return Change(
            target,
            "create",
            shown,
            reason="it is not there any more" if again else "the attempt before failed" if tried else "",
            event="Recreated" if again else "Made",
            warning=again,
            payload=(view.project, _to_send(wanted)),
        )

    def _keep(self, resource: CloudResource, view: View, thing: Thing, look: Look) -> Plan:
        assert view.target is not None
        if thing.state in ("busy", "leaving"):
            return Plan(again=LOOK_AGAIN)
        if thing.state == "failed":
            return self._failed(resource, view.target, thing)
        if aside := parked(resource.metadata.annotations, thing):
            flavors = (view.wanted.get("flavor"), thing.fields.get("flavor"))
            if aside[0] != "Resized" or flavors[0] == flavors[1]:
                return Plan(waiting=aside[1])
        if thing.status == "VERIFY_RESIZE":
            meant = view.wanted.get("flavor") == thing.fields.get("flavor")
            verb = "confirm-resize" if meant else "revert-resize"
            return Plan((Change(view.target, verb, {"status": (thing.status, "ACTIVE")}, reason="it was resized"),))
        todo = self._sorted(resource, view, thing)
        if todo.change:
            names = ", ".join(to_camel(d.field) for d in todo.change)
            hand = bool({d.field for d in todo.change} & {d.field for d in todo.by_hand})
            detaches = any(d.field == "attached_to" and d.found for d in todo.change)
            change = Change(
                view.target,
                "update",
                {f"spec.{to_camel(d.field)}": (d.found, d.wanted) for d in todo.change},
                destructive=detaches,
                reason=f"{names} changed by hand; put back" if hand else f"{names} changed",
                event="DriftCorrected" if hand else "Changed",
                warning=hand,
                payload={d.field: (d.found, d.wanted) for d in todo.change},
            )
            return Plan((change,))
        if todo.replace and (asked := set_and_not_done(resource.as_doc(), {d.field for d in todo.replace})):
            return _blocked(f"{asked.verb} has not come true: look at the operation in the status")
        if todo.replace:
            return Plan((self._replacement(resource, view.target, todo),))
        return Plan()

    def _sorted(self, resource: CloudResource, view: View, thing: Thing) -> Sorted:
        found = differences(self._name, view.wanted, thing)
        status = resource.status
        if status.id != thing.id and (resource.spec.adopt == thing.id or self._type == "keypair"):
            # Just taken over, and not written down yet: nothing is touched.
            return Sorted(left=tuple(found))
        applied = status.applied
        ours = thing.mark is not None and thing.mark.owner == resource.metadata.uid
        if status.id != thing.id and not ours and self._type not in UNMARKED:
            # Found by its mark: what is not as wanted was changed while nobody looked.
            applied = {d.field: digest(d.wanted) for d in found}
        return sort_out(resource.spec, found, applied, status.left)

    def _replacement(self, resource: CloudResource, target: Target, todo: Sorted) -> Change:
        names = ", ".join(to_camel(d.field) for d in todo.replace)
        ask = resource.spec.replace == "ask"
        return Change(
            target,
            "delete",
            {f"spec.{to_camel(d.field)}": (d.found, d.wanted) for d in todo.replace},
            destructive=True,
            reason=f"{names} cannot be changed in place: it is deleted and made anew",
            event="Replaced",
            warning=True,
            ask=f"{resource.key} would be deleted and made anew, since {names} cannot be changed in place"
            if ask
            else "",
        )

    def _failed(self, resource: CloudResource, target: Target, thing: Thing) -> Plan:
        retry, status = getattr(resource.spec, "retry", None), resource.status
        if (status.id, status.state) != (thing.id, "failed"):
            return Plan(again=0.1)  # it is written down first: attempts are counted, and causes kept
        mine = thing.mark is not None and thing.mark.owner == resource.metadata.uid
        if retry is None or not mine or status.built == thing.id or resource.spec.adopt == thing.id:
            return Plan()
        if status.attempts >= retry.attempts:
            return Plan()
        fields = {"thing": (thing.id, None), "attempt": (status.attempts, retry.attempts)}
        reason = f"it failed before it was ever ready ({cause_of(thing)}): it is deleted and made anew"
        return Plan((Change(target, "delete", fields, reason=reason, event="Retried", warning=True),))

    def _teardown(self, resource: CloudResource, view: View, look: Look) -> Plan:
        if self.keeps(resource):
            return Plan()
        if users := self._users(resource, look):
            return Plan(waiting=f"still used by {', '.join(users[:5])}", again=5.0)
        if view.seen.truth == "unknown":
            return Plan(waiting=view.seen.message, again=1.0)
        thing, target = view.thing, view.target
        if thing is None or target is None or target not in look.claims:
            return Plan()
        if why := self._still_holds(resource, thing, look):
            return Plan(waiting=why, again=5.0)
        shield = SHAPES[self._name].shield
        if shield and thing.fields.get(shield) is True:
            off = {shield: (True, False)}
            return Plan((Change(target, "update", off, reason=f"it is {shield}", payload=off),))
        fields: dict[str, Any] = {"thing": (thing.id, None)}
        if thing.state == "leaving":
            asked = seconds(resource.status.busy_since) or look.now
            if look.now - asked < ASK_AGAIN:
                return Plan(waiting="the cloud is deleting it", again=min(LOOK_AGAIN, asked + ASK_AGAIN - look.now))
            fields["asked"] = (resource.status.busy_since, None)
            again = "its deletion was accepted and is not done: it is asked for again"
            return Plan((Change(target, "delete", fields, reason=again, event="DeletedAgain", warning=True),))
        return Plan((Change(target, "delete", fields, reason="no longer wanted", event="Deleted"),))

    def _still_holds(self, resource: CloudResource, thing: Thing, look: Look) -> str:
        """Why a project cannot go yet: clouds let it, and what is in it costs on, and nobody can reach it."""
        if thing.type != "project":
            return ""
        snapshot = look.snapshot(driver_of(resource))
        if not snapshot.complete:
            return "not everything of the site could be listed; something may still be in the project"
        left = held_by_project((t for t in snapshot.items.values() if isinstance(t, Thing)), thing.id)
        names = ", ".join(f"{t.type.replace('_', ' ')} {t.name or t.id}" for t in left[:5])
        return f"{len(left)} things that no resource owns are still in it: {names}" if left else ""

    def _users(self, resource: CloudResource, look: Look) -> list[str]:
        """Resources that name this one, and are to go first."""
        me, found = (self._name, resource.metadata.name), []
        written = f'"{me[1]}"'.encode()
        for kind in KINDS:
            for entry in look.entries(kind.__name__, resource.metadata.namespace or None):
                if written not in entry.raw:
                    continue
                named = {n[1:] for n in names_of(kind.__name__, entry.doc) if n.field in HOLD_IN_PLACE}
                if entry.uid != look.uid and me in named:
                    found.append(str(entry.key))
        return found

    # ── making it so ────────────────────────────────────────────────────────────────────────────────────────────

    def authorise(self, tx: Tx, resource: CloudResource, change: Change) -> None:
        """Judged once more, with what is so in the moment the intent is written."""
        if change.verb not in ("create", "adopt"):
            return
        if resource.metadata.namespace:
            doc = resource.as_doc()
            if why := not_granted(tx.get(Key("Project", "", doc["spec"]["project"])), doc):
                raise Forbidden(why)
        if change.verb == "create":
            site = tx.get(Key("Site", "", resource.spec.site))
            if site is None:
                raise Conflict(f"there is no Site {resource.spec.site}")
            if why := _takes_nothing_new(site, [e.doc for e in tx.entries("JoinPolicy")], tx.time):
                raise Conflict(why)

    def apply(self, resource: CloudResource, change: Change, act: Act) -> str | None:
        port, target = act.instance.port, change.target
        try:
            match change.verb:
                case "create":
                    project, fields = change.payload
                    mark = Mark(
                        installation=act.installation,
                        owner=resource.metadata.uid,
                        owner_key=str(resource.key),
                        change=act.change_key,
                    )
                    return str(port.create(target.type, project, fields, mark).id)
                case "update":
                    port.change(target.type, target.id, change.payload)
                case "confirm-resize" | "revert-resize":
                    port.act(target.type, target.id, change.verb, {})
                case "delete":
                    port.delete(target.type, target.id)
        except Refused as error:
            said = in_words(error.cause, error.message)
            raise Refused(said, cause=error.cause, retry_after=error.retry_after) from None
        return None

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def report(self, resource: CloudResource, plan: Plan, look: Look) -> Report:
        view = self._sight.of(resource, look)
        status = ThingStatus.model_validate(resource.status.model_dump())
        thing, events = view.thing, list[tuple[str, str, bool]]()
        answers: dict[str, Any] = {}
        if thing is not None and view.target in {*look.claims, *_adopted(plan)}:
            events += self._note(resource, status, view, thing, plan, look)
            answers = self._drift(resource, view, thing, look, events)
        elif view.seen.truth == "absent":
            status.state, status.word, status.task, status.busy_since = "", "", "", ""
        if view.missing:
            answers["References"] = ("False", "NotFound", "; ".join(view.missing))
        pending = [d.field for d in differences(self._name, view.wanted, thing)] if thing else []
        notes = resource.metadata.annotations
        status.operation = asked_last(notes, status.operation, look.epoch, thing, pending)
        ready = _ready(resource, status, view, plan, look)
        status.conditions = conditions(Ready=ready, **answers)
        wait = LOOK_AGAIN if thing is not None and thing.state in ("busy", "leaving") else None
        return Report(status, wait, events=tuple(events))

    def _note(
        self, resource: CloudResource, status: ThingStatus, view: View, thing: Thing, plan: Plan, look: Look
    ) -> list[tuple[str, str, bool]]:
        """Write down what the thing is now; what goes onto the timeline."""
        found = differences(self._name, view.wanted, thing)
        events = []
        another = status.id != thing.id
        if another:
            _changed_hands(resource, status, thing, found)
        asked = any(c.verb == "delete" for c in plan.changes)
        working = thing.state in ("busy", "leaving")
        before = status.state == thing.state and not (asked and thing.state == "leaving")
        status.busy_since = (status.busy_since if before and status.busy_since else now(look.now)) if working else ""
        if thing.state == "failed" and (status.state != "failed" or another):
            status.fault = Fault(time=now(look.now), cause=cause_of(thing), message=thing.fault[:1000])
            events.append(("Failed", in_words(status.fault.cause, status.fault.message), True))
        status.id, status.state, status.word, status.task = thing.id, thing.state, thing.status, thing.task
        if thing.state in ("ready", "off"):
            status.built, status.attempts = thing.id, 0
        differing = {d.field for d in found}
        if not working:
            wanted = own_fields(view.wanted, thing)
            status.applied |= {n: digest(v) for n, v in wanted.items() if n in thing.fields and n not in differing}
        status.left = {d.field: status.left[d.field] for d in found if d.field in status.left}
        status.addresses = _addresses(thing)
        return events

    def _drift(
        self, resource: CloudResource, view: View, thing: Thing, look: Look, events: list[tuple[str, str, bool]]
    ) -> dict[str, Any]:
        """The condition `Drift`, and what of it is told once."""
        answers: dict[str, Any] = {}
        if thing.state in ("busy", "leaving", "failed"):
            known = next((c for c in resource.status.conditions if c.type == "Drift"), None)
            return {"Drift": (known.status, known.reason, known.message)} if known else {}
        todo = self._sorted(resource, view, thing)
        before = next((c.message for c in resource.status.conditions if c.type == "Drift" and c.status == "True"), "")
        if todo.by_hand:
            names = ", ".join(to_camel(d.field) for d in todo.by_hand)
            answers["Drift"] = ("True", "ChangedByHand", f"changed by hand: {names}")
            if todo.propose:
                answers["Drift"] = proposed(self._name, resource, thing, todo.propose, look, self._suggest)
            if before != answers["Drift"][2] and not todo.corrected:
                events.append(("Drift", answers["Drift"][2], True))
        elif todo.left:
            names = ", ".join(to_camel(d.field) for d in todo.left)
            answers["Drift"] = ("True", "LeftAsFound", f"not as in the spec since it was taken over: {names}")
        return answers

    def scopes(self, resource: CloudResource, change: Change, store: Store) -> list[Scope]:
        """A replacement waits among replacements; deletions count for kind, namespace and site."""
        site, namespace = resource.spec.site, resource.metadata.namespace
        here = [e for e in store.entries(self._name) if e.doc["spec"]["site"] == site]
        scopes = [
            Scope("kind", self._name, store.count(self._name)),
            Scope("site", site, len(here)),
            Scope("all", "", 0),
        ]
        if namespace:
            scopes.append(Scope("namespace", namespace, len(store.entries(self._name, namespace))))
        return [Scope("replacement", f"{self._name}:{namespace or site}", 0), *scopes] if change.ask else scopes


def _takes_nothing_new(site: Doc, policies: list[Doc], at: float) -> str:
    """Why nothing new is made at a site; empty when it may be."""
    name, state = site["metadata"]["name"], site["spec"]["state"]
    if state != "active" or site["metadata"]["deletionTimestamp"]:
        return f"site {name} takes nothing new: it is {'being deleted' if state == 'active' else state}"
    why = closed_to_new(site, policies, at, brief=True)
    return f"site {name} takes nothing new: {why}" if why else ""


def _to_send(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What a thing is made with: a rule that names its own group has to wait until that is there."""
    rules = [r for r in wanted.get("rules", ()) if r["remote"] != "group:self"]
    return {**wanted, "rules": rules} if "rules" in wanted else dict(wanted)


def own_fields(wanted: Mapping[str, Any], thing: Thing) -> dict[str, Any]:
    """What is wanted, with a group's own id where its rules say `self`."""
    return {n: own_group(v, thing.id) if n == "rules" else v for n, v in wanted.items()}


def _blocked(why: str) -> Plan:
    """What stands in the way is nobody's of ours, so nothing is heard when it goes: it is looked at again."""
    return Plan(problems=(why,), again=BLOCKED_FOR)


def _adoption(target: Target, reason: str) -> Change:
    return Change(target, "adopt", {"thing": (None, target.id)}, reason=f"{target.id}: {reason}", event="Adopted")


def _adopted(plan: Plan) -> set[Target]:
    return {c.target for c in plan.changes if c.verb == "adopt"}


def _other_installation(thing: Thing) -> str:
    assert thing.mark is not None
    return (
        f"{thing.type.replace('_', ' ')} {thing.id} was made for this very resource by installation"
        f" {thing.mark.installation}, and is not made twice. If that was this one before its database was lost, give"
        " it its id back (`ground admin installation`); else name the thing in spec.adopt, or say `adopt: new`"
    )


def _changed_hands(resource: CloudResource, status: ThingStatus, thing: Thing, found: Iterable[Difference]) -> None:
    """It is another thing than before: made by us, taken over, or found again by its mark."""
    status.applied, status.left = {}, {}
    mine = thing.mark is not None and thing.mark.owner == resource.metadata.uid
    if mine and resource.spec.adopt != thing.id:
        status.made += 1
        status.attempts += 1
        return
    status.built = thing.id
    if thing.type == "quota":
        return
    status.applied = {d.field: digest(d.wanted) for d in found}
    if resource.spec.adopt == thing.id:
        status.left = {d.field: digest(d.found) for d in found}


def _addresses(thing: Thing) -> list[str]:
    if thing.type == "floating_ip":
        return [thing.fields["address"]] if thing.fields.get("address") else []
    by_network = thing.fields.get("addresses")
    return sorted({a for found in by_network.values() for a in found}) if isinstance(by_network, Mapping) else []


def _ready(resource: CloudResource, status: ThingStatus, view: View, plan: Plan, look: Look) -> tuple[Any, str, str]:
    if resource.deleting:
        return "False", "Deleting", plan.waiting or "it is being deleted"
    if view.seen.truth == "unknown":
        last = next((c for c in resource.status.conditions if c.type == "Ready"), None)
        if view.seen.reason == "Looking" and last is not None:
            return last.status, last.reason, last.message
        return "Unknown", view.seen.reason, view.seen.message
    if plan.problems:
        return "False", "Blocked", plan.problems[0]
    thing = view.thing
    if thing is None:
        if status.fault.cause and status.attempts:
            said = in_words(status.fault.cause, status.fault.message)
            return "False", status.fault.cause, f"attempt {status.attempts} failed: {said}"
        if plan.waiting:
            return "False", "Waiting", plan.waiting
        return "False", "Making", "it is being made"
    if thing.state == "busy":
        if look.now - seconds(status.busy_since) > STUCK:
            return "False", "Stuck", f"the cloud has been at it for more than {STUCK / 60:.0f} minutes"
        return "False", "Working", "the cloud is working on it"
    if thing.state == "leaving":
        return "False", "Leaving", "somebody is deleting it in the cloud"
    if thing.state == "failed":
        return "False", status.fault.cause or "Failed", in_words(status.fault.cause, status.fault.message)
    if aside := parked(resource.metadata.annotations, thing):
        return ("True" if aside[0] == "Resized" else "False"), *aside
    if doing := next((c for c in plan.changes if c.verb != "adopt" and not (c.verb == "update" and c.warning)), None):
        # What was changed by hand and is put back was there all the time; this is another thing, or not yet the wanted.
        return "False", "Changing", doing.reason or f"{doing.verb} is under way"
    if thing.state == "off":
        meant = getattr(resource.spec, "power", "on") != "on"
        return ("True", "Off", "it is there and stopped") if meant else ("False", "Off", "it is stopped")
    return "True", "Ready", "it is there"


# ── when to look ────────────────────────────────────────────────────────────────────────────────────────────────


def _naming(kind: str) -> Callable[[Doc, Store], Iterable[Key]]:
    """For `Watch`: resources of this kind that name what changed."""

    def keys(doc: Doc, store: Store) -> Iterable[Key]:
        named = (doc["kind"], doc["metadata"]["name"])
        written = f'"{named[1]}"'.encode()
        for entry in store.entries(kind, doc["metadata"]["namespace"] or None):
            # Few of many name it: the others need not be decoded.
            if written in entry.raw and named in {n[1:] for n in names_of(kind, entry.doc)}:
                yield entry.key

    return keys


def _waiting_at(kind: str) -> Callable[[Doc, Store], Iterable[Key]]:
    """For `Watch`: resources of this kind that may wait for a site to be open."""

    def keys(doc: Doc, store: Store) -> Iterable[Key]:
        for entry in store.entries(kind):
            if b'"id":""' not in entry.raw:
                continue
            other = entry.doc
            if other["spec"]["site"] == doc["metadata"]["name"] and not other["status"].get("id"):
                yield entry.key

    return keys


def _watches(kind: str) -> tuple[Watch, ...]:
    named = {*SHAPES[kind].refers.values()} | ({"SecurityGroup"} if kind == "SecurityGroup" else set())
    named |= set() if kind in ("Project", "Flavor") else {"Project"}
    return (*(Watch(n, _naming(kind)) for n in sorted(named)), Watch("Site", _waiting_at(kind)))


def _reconciler(kind: type[CloudResource]) -> type[CloudReconciler]:
    parts = {"name": kind.info.plural, "kind": kind, "watches": _watches(kind.__name__), "__module__": __name__}
    return type(f"{kind.__name__}Reconciler", (CloudReconciler,), parts)


RECONCILERS: tuple[type[CloudReconciler], ...] = tuple(_reconciler(kind) for kind in KINDS)
