"""A cloud in memory: asynchronous like a real one, with quotas, marks, things in use, and faults to order.

What is asked for is accepted at once and done `delay` seconds later, by the clock; everybody who looks meanwhile sees a
busy thing. `fencing` is `neither`: a repeated create makes a second thing.
"""

from __future__ import annotations

import ipaddress
import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import msgspec

from groundcontrol.kernel.errors import (
    Conflict,
    GroundError,
    NotFound,
    OutcomeUnknown,
    RefusalCause,
    Refused,
    Unavailable,
)
from groundcontrol.kernel.world import Fencing, Item
from groundcontrol.ports.cloud import (
    FIELDS,
    IN_PLACE,
    UNMARKED,
    VERBS,
    Cloud,
    CloudFacts,
    CloudObserved,
    Endpoint,
    Made,
    Mark,
    Probe,
    QuotaUse,
    State,
    Thing,
)
from groundcontrol.ports.twins import cloud_acts

Moment = Literal["before", "after"]
GLOBAL = frozenset({"project", "flavor", "quota", "keypair"})
"""Types whose things belong to no project."""
COUNTED = {
    "server": "instances",
    "volume": "volumes",
    "network": "networks",
    "subnet": "subnets",
    "router": "routers",
    "floating_ip": "floating_ips",
    "security_group": "security_groups",
}
"""Type of thing to the quota that one of it uses."""
QUOTAS = dict.fromkeys(FIELDS["quota"], 1000) | {"cores": 1000, "ram_mb": 4_000_000, "gigabytes": 100_000}
ANYWHERE = [
    {"direction": "egress", "ethertype": ethertype, "protocol": "", "ports": "", "remote": ""}
    for ethertype in ("IPv4", "IPv6")
]
"""The rules a security group is born with."""
REFERENCES: Mapping[str, tuple[tuple[str, str, RefusalCause], ...]] = {
    "server": (
        ("flavor", "flavor", "BadFlavor"),
        ("image", "image", "BadImage"),
        ("networks", "network", "InvalidRequest"),
        ("security_groups", "security_group", "InvalidRequest"),
        ("keypair", "keypair", "InvalidRequest"),
    ),
    "volume": (("image", "image", "BadImage"), ("attached_to", "server", "InvalidRequest")),
    "subnet": (("network", "network", "InvalidRequest"),),
    "router": (("external_network", "network", "InvalidRequest"), ("subnets", "subnet", "InvalidRequest")),
    "floating_ip": (("network", "network", "InvalidRequest"), ("server", "server", "InvalidRequest")),
}
"""Type of thing to its fields that hold ids: (field, type it names, cause when there is none)."""


class Fault:
    """One failure to come, of a call for things of a type."""

    def __init__(self, call: str, type: str, moment: Moment, error: GroundError | None, hang: threading.Event | None):
        self.call, self.type, self.moment, self.error, self.hang = call, type, moment, error, hang

    def meets(self, call: str, type: str, moment: Moment) -> bool:
        return self.call in ("*", call) and self.type in ("*", type) and self.moment == moment


class MemoryCloud(Cloud):
    """One region; things are only entries. Our account works in `project`, which is there from the start."""

    def __init__(
        self,
        *,
        delay: float = 0.02,
        project: str = "p-own",
        largest: int = 32,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.fencing: Fencing = "neither"
        self.clock, self.delay, self.project = clock, delay, project
        self.largest = largest
        """Cores of the largest host: a server that wants more finds none."""
        self.hosts = cloud_acts.Hosts(largest)
        self.calls: list[tuple[str, str, str]] = []
        """(call, type, id) of everything that was asked, faulty or not; looking and waiting are left out."""
        self.looks = 0
        self.probes = frozenset({"own-servers", "own-networks", "own-quota", "all-projects", "all-users"})
        self.refused_probes: set[str] = {"all-users"}
        self.quotas: dict[str, dict[str, int]] = {}
        self._things: dict[Item, Thing] = {}
        self._due: dict[Item, tuple[float, Callable[[Thing], Thing | None]]] = {}
        """What becomes of a thing, and when; None: it goes."""
        self._faults: list[Fault] = []
        self._hidden: frozenset[str] = frozenset()
        self._denied: frozenset[str] = frozenset()
        self._lying = False
        self._builds: list[str | None] = []
        self._stuck: set[str] = set()
        self._numbers, self._sequence = itertools.count(1), 1
        self._condition = threading.Condition(threading.RLock())
        self.add("project", project, name="own")

    # ------------------------------------------------------------------------------------------------ by hand

    def add(self, type: str, id: str = "", /, *, project: str = "", state: State = "ready", **fields: Any) -> str:
        """A thing somebody else made: it is there at once. Its id."""
        with self._condition:
            id = id or f"{type}-{next(self._numbers)}"
            at = self.clock()
            name = str(fields.get("name", ""))
            home = "" if type in GLOBAL else project or self.project
            self._things[type, id] = Thing(
                type=type, id=id, name=name, project=home, state=state, fields=dict(fields), created=at, updated=at
            )
            if type == "project":
                self.quotas.setdefault(id, dict(QUOTAS))
            self._bump()
            return id

    def edit(self, type: str, id: str, /, **fields: Any) -> None:
        """Change fields behind everybody's back."""
        with self._condition:
            thing = self._need(type, id)
            if type == "quota":
                self.quotas[id] |= fields
                self._bump()
            else:
                self._put(msgspec.structs.replace(thing, fields={**thing.fields, **fields}))

    def alter(self, type: str, id: str, /, **parts: Any) -> None:
        """Change what is told of a thing beside its fields: state, fault, mark, created, …"""
        with self._condition:
            self._put(msgspec.structs.replace(self._need(type, id), **parts))

    def lose(self, type: str, *ids: str) -> None:
        """Things vanish, as if somebody had deleted them by hand."""
        with self._condition:
            for id in ids:
                self._drop((type, id))

    def things(self, type: str = "") -> list[Thing]:
        """What is really there, whatever listings say."""
        with self._condition:
            self._advance()
            return [t for (found, _), t in sorted(self._things.items()) if not type or found == type]

    # ------------------------------------------------------------------------------------------------ faults to order

    def fail(
        self, call: str = "*", type: str = "*", *, moment: Moment = "before", error: GroundError | None = None
    ) -> None:
        """Let the next such call fail. Default error: Unavailable before, OutcomeUnknown after the effect."""
        text = f"ordered fault: {call} {type} {moment}"
        default = Unavailable(text) if moment == "before" else OutcomeUnknown(text)
        self._faults.append(Fault(call, type, moment, error or default, None))

    def hang(self, call: str = "*", type: str = "*", *, moment: Moment = "before") -> threading.Event:
        """Let the next such call hang until the event that is returned is set."""
        event = threading.Event()
        self._faults.append(Fault(call, type, moment, None, event))
        return event

    def hide(self, *ids: str, complete: bool = False) -> None:
        """Leave things out of listings. `complete`: lie that nothing is missing (a dead cell). No ids: show all."""
        with self._condition:
            self._hidden, self._lying = frozenset(ids), complete
            self._bump()

    def deny(self, *types: str) -> None:
        """Listing these types fails from now on: the rest is told, as a partial listing. No types: all is well."""
        with self._condition:
            self._denied = frozenset(types)
            self._bump()

    def build(self, *faults: str | None) -> None:
        """How the next servers end: None becomes ready, a text fails with it."""
        self._builds += faults

    def stick(self, *verbs: str) -> None:
        """What is asked from now on with these verbs (`create`, `delete`) is accepted and never done. None: all is."""
        self._stuck = set(verbs)

    # ------------------------------------------------------------------------------------------------ look

    def look(self) -> CloudObserved:
        with _Around(self, "look", "", ""), self._condition:
            self._advance()
            self.looks += 1
            at = self.clock()
            shown = [
                t
                for (type_, id_), t in sorted(self._things.items())
                if type_ not in self._denied and id_ not in self._hidden
            ]
            shown += [self._quota(p) for p in sorted(self.quotas) if "quota" not in self._denied]
            problems = tuple(f"{type_} could not be listed" for type_ in sorted(self._denied))
            return CloudObserved(
                things=tuple(shown),
                complete=not self._denied and (self._lying or not self._hidden),
                sequence=self._sequence,
                facts=CloudFacts(
                    regions=("memory",),
                    zones=("nova",),
                    endpoints=(Endpoint(service="compute", url="memory:", trusted=True, skew=0.0),),
                    hosts=self.hosts.told(),
                    quotas=tuple(self._uses()),
                    roles=("member",),
                    project=self.project,
                    looked=dict.fromkeys(FIELDS.keys() - self._denied, at),
                    calls=self.looks + len(self.calls),
                    cores=float(self.largest),
                    memory_mb=1 << 20,
                ),
                problems=problems,
            )

    def wait(self, since: int, timeout: float) -> int:
        with _Around(self, "wait", "", ""), self._condition:
            ends = time.monotonic() + timeout
            while True:
                self._advance()
                left = ends - time.monotonic()
                if self._sequence != since or left <= 0:
                    return self._sequence
                self._condition.wait(min(left, self.delay + 0.001 if self._due else left))

    def get(self, type: str, id: str) -> Thing:
        with _Around(self, "get", type, id), self._condition:
            self._advance()
            return self._need(type, id)

    def find(self, change_key: str) -> tuple[Item, ...]:
        with _Around(self, "find", "", change_key), self._condition:
            self._advance()
            return tuple(item for item, t in sorted(self._things.items()) if t.mark and t.mark.change == change_key)

    def probe(self, name: str) -> Probe:
        """As `ports.cloud.Joining`; refused are those in `refused_probes`."""
        refused = name in self.refused_probes
        return Probe("refused" if refused else "allowed", f"GET {name}: {403 if refused else 200}")

    # ------------------------------------------------------------------------------------------------ change

    def create(self, type: str, project: str, fields: Mapping[str, Any], mark: Mark) -> Made:
        with _Around(self, "create", type, ""), self._condition:
            self._advance()
            home = "" if type in GLOBAL - {"quota"} else project or self.project
            self._check(type, home, fields)
            if type == "quota":
                self.quotas[home] |= dict(fields)
                self._bump()
                return Made(home)
            id = str(fields["name"]) if type == "keypair" else f"{type}-{next(self._numbers)}"
            at = self.clock()
            thing = Thing(
                type=type,
                id=id,
                name=str(fields.get("name", "")),
                project=home,
                state="busy",
                status="BUILD",
                fields=self._born(type, dict(fields)),
                mark=None if type in UNMARKED else mark,
                created=at,
                updated=at,
            )
            self._put(thing)
            if type == "project":
                self.quotas[id] = dict(QUOTAS)
            if "create" not in self._stuck:
                self._later(thing, self._finish)
            return Made(id)

    def change(self, type: str, id: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
        with _Around(self, "change", type, id), self._condition:
            self._advance()
            thing = self._need(type, id)
            fixed = sorted(fields.keys() - IN_PLACE[type])
            if type == "volume" and "size" in fields and fields["size"][1] < thing.fields["size"]:
                fixed.append("size")
            if fixed:
                raise Refused(f"{', '.join(fixed)} of a {type} cannot be changed", cause="NeedsReplacement")
            if thing.state in ("busy", "leaving"):
                raise Conflict(f"{type} {id} is {thing.state}; look again")
            stale = [n for n, (before, _) in fields.items() if _plain(thing.fields.get(n)) != _plain(before)]
            if stale:
                raise Conflict(f"{', '.join(stale)} of {type} {id} is another by now: look again")
            after = {n: wanted for n, (_, wanted) in fields.items()}
            self._refer(type, thing.project, after)
            if type == "quota":
                self.quotas[id] |= after
                self._bump()
                return
            self._changed(thing, after)

    def act(self, type: str, id: str, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        with _Around(self, f"act {verb}", type, id), self._condition:
            self._advance()
            if verb not in VERBS.get(type, ()):
                raise Refused(f"a {type} cannot {verb}", cause="InvalidRequest")
            if type == "host":
                self._bump()
                return self.hosts.act(id, verb, arguments)
            thing = self._need(type, id)
            match verb:
                case "start" | "stop":
                    self._changed(thing, {"power": "on" if verb == "start" else "off"})
                case "lock" | "unlock":
                    self._changed(thing, {"locked": verb == "lock"})
                case "resize":
                    self._changed(thing, {"flavor": arguments["flavor"]})
                case "confirm-resize" | "revert-resize":
                    if thing.status != "VERIFY_RESIZE":
                        raise Conflict(f"server {id} is not waiting for a resize to be confirmed")
                    back = {} if verb == "confirm-resize" else {"flavor": thing.fields["resized_from"]}
                    fields = {n: v for n, v in ({**thing.fields, **back}).items() if n != "resized_from"}
                    self._put(msgspec.structs.replace(thing, status="ACTIVE", fields=fields))
                case "extend":
                    self._changed(thing, {"size": arguments["size"]})
                case "console":
                    return {"text": f"{thing.name} has started\n"}
                case "reset-state":
                    self._put(msgspec.structs.replace(thing, state="ready", status="ACTIVE", fault=""))
                case "snapshot":
                    return self._snapshot(thing, arguments)
                case _:
                    self._go(thing, cloud_acts.course(thing, verb, arguments))
            return {}

    def delete(self, type: str, id: str) -> None:
        with _Around(self, "delete", type, id), self._condition:
            self._advance()
            if type == "quota":
                if id in self.quotas:
                    self.quotas[id] = dict(QUOTAS)
                    self._bump()
                return
            thing = self._things.get((type, id))
            if thing is None:
                return
            if users := self._users(type, id):
                raise Refused(f"{type} {id} is in use by {', '.join(users[:3])}", cause="InUse")
            if thing.fields.get("locked"):
                raise Refused(f"server {id} is locked", cause="InUse")
            leaving = msgspec.structs.replace(thing, state="leaving", status="DELETING", task="deleting")
            self._put(leaving)
            self._due.pop((type, id), None)
            if "delete" not in self._stuck:
                self._later(leaving, lambda _: None)

    def close(self) -> None:
        """It outlives its connections."""

    # ------------------------------------------------------------------------------------------------ parts

    def fault(self, call: str, type: str, moment: Moment) -> None:
        """Raise, or hang, as ordered."""
        for fault in self._faults:
            if fault.meets(call, type, moment):
                self._faults.remove(fault)
                if fault.hang is not None:
                    fault.hang.wait()
                if fault.error is not None:
                    raise fault.error
                return

    def _bump(self) -> None:
        self._sequence += 1
        self._condition.notify_all()

    def _put(self, thing: Thing) -> None:
        self._things[thing.type, thing.id] = msgspec.structs.replace(thing, updated=self.clock())
        self._bump()

    def _go(self, thing: Thing, course: cloud_acts.Course | None) -> None:
        self._put(course.meanwhile if course else thing)
        if course:
            self._later(thing, lambda _: course.then)

    def _snapshot(self, thing: Thing, given: Mapping[str, Any]) -> dict[str, Any]:
        if thing.type == "volume":
            return {"snapshot": f"snapshot-{next(self._numbers)}"}
        image = cloud_acts.image_of(thing, f"image-{next(self._numbers)}", given, self.clock())
        self._put(image)
        self._later(image, self._finish)
        return {"image": image.id}

    def _drop(self, item: Item) -> None:
        del self._things[item]
        self._due.pop(item, None)
        if item[0] == "project":
            self.quotas.pop(item[1], None)
        if item[0] == "server":
            for other in [t for t in self._things.values() if t.type == "volume"]:
                if other.fields.get("attached_to") == item[1]:
                    self._put(msgspec.structs.replace(other, fields={**other.fields, "attached_to": ""}))
        self._bump()

    def _later(self, thing: Thing, then: Callable[[Thing], Thing | None]) -> None:
        self._due[thing.type, thing.id] = (self.clock() + self.delay, then)

    def _advance(self) -> None:
        at = self.clock()
        for item, (due, then) in list(self._due.items()):
            if due <= at:
                del self._due[item]
                after = then(self._things[item])
                if after is None:
                    self._drop(item)
                else:
                    self._put(after)

    def _finish(self, thing: Thing) -> Thing:
        """What a thing that was asked for ends as."""
        if thing.type != "server":
            return msgspec.structs.replace(thing, state="ready", status="available")
        ordered, cause = self._builds.pop(0) if self._builds else None, ""
        flavor = self._things.get(("flavor", str(thing.fields.get("flavor"))))
        if ordered is None and flavor is not None and int(flavor.fields.get("cores", 0)) > self.largest:
            ordered, cause = "No valid host was found. There are not enough hosts available.", "NoValidHost"
        if ordered is not None:
            return msgspec.structs.replace(thing, state="failed", status="ERROR", fault=ordered, cause=cause)
        state: State = "off" if thing.fields["power"] == "off" else "ready"
        return msgspec.structs.replace(thing, state=state, status="SHUTOFF" if state == "off" else "ACTIVE", host="h1")

    def _changed(self, thing: Thing, after: Mapping[str, Any]) -> None:
        """Take changes over; those of a server's power and flavor take their time."""
        fields = {**thing.fields, **after}
        resized = thing.type == "server" and after.get("flavor", thing.fields.get("flavor")) != thing.fields["flavor"]
        if resized:
            fields["resized_from"] = thing.fields["flavor"]
        changed = msgspec.structs.replace(thing, fields=fields, name=str(fields.get("name", thing.name)))
        state: State = "off" if fields.get("power") == "off" else "ready"
        status = "VERIFY_RESIZE" if resized else "SHUTOFF" if state == "off" else "ACTIVE"
        if thing.type == "server" and (resized or "power" in after):
            self._put(msgspec.structs.replace(changed, state="busy", task="resizing" if resized else "powering"))
            self._later(changed, lambda t: msgspec.structs.replace(t, state=state, status=status, task=""))
        else:
            self._put(changed)

    def _born(self, type: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a new thing as they are told: what was not asked for has the product's defaults."""
        if type == "server":
            fields.pop("user_data", None)
            fields = {"power": "on", "locked": False, "metadata": {}, "security_groups": [], "zone": "nova", **fields}
            networks: list[str] = fields.setdefault("networks", [])
            fields["addresses"] = {n: [f"10.0.0.{next(self._numbers) % 250 + 2}"] for n in networks}
        elif type == "security_group":
            fields.setdefault("rules", [dict(rule) for rule in ANYWHERE])
        elif type == "subnet":
            net = ipaddress.ip_network(str(fields["cidr"]))
            fields = {"gateway": str(net[1]), "dhcp": True, "dns": [], "host_routes": []} | fields
        elif type == "volume":
            fields = {"attached_to": "", "metadata": {}, "type": "default", "zone": "nova"} | fields
        elif type == "floating_ip":
            fields = {"address": f"192.0.2.{next(self._numbers) % 250 + 2}", "server": ""} | fields
        elif type == "image":
            fields.pop("source", None)
        return fields

    def _check(self, type: str, project: str, fields: Mapping[str, Any]) -> None:
        """Refuse what the real one refuses."""
        unknown = sorted(fields.keys() - FIELDS[type])
        if unknown:
            raise Refused(f"a {type} has no {', '.join(unknown)}", cause="InvalidRequest")
        if project and ("project", project) not in self._things:
            raise Refused(f"there is no project {project}", cause="InvalidRequest")
        if type == "keypair" and ("keypair", str(fields["name"])) in self._things:
            raise Conflict(f"there is a keypair {fields['name']} already")
        if type == "subnet":
            try:
                ipaddress.ip_network(str(fields["cidr"]))
            except ValueError as error:
                raise Refused(f"bad cidr: {error}", cause="InvalidRequest") from None
        self._refer(type, project, fields)
        if type in COUNTED:
            self._within_quota(type, project, fields)

    def _refer(self, type: str, project: str, fields: Mapping[str, Any]) -> None:
        for field, named, cause in REFERENCES.get(type, ()):
            given: Any = fields.get(field) or ()
            ids: list[str] = [given] if isinstance(given, str) else list(given)
            for id in ids:
                found = self._things.get((named, id))
                if found is None or not self._visible(found, project):
                    raise Refused(f"{field}: there is no {named} {id}", cause=cause)

    def _visible(self, thing: Thing, project: str) -> bool:
        shared = thing.fields.get("shared") or thing.fields.get("external")
        public = thing.fields.get("visibility") in ("public", "shared", "community")
        return thing.project in ("", project) or bool(shared or public)

    def _within_quota(self, type: str, project: str, fields: Mapping[str, Any]) -> None:
        wanted = {COUNTED[type]: 1}
        if type == "server":
            flavor = self._things["flavor", str(fields["flavor"])]
            wanted |= {"cores": int(flavor.fields.get("cores", 0)), "ram_mb": int(flavor.fields.get("memory_mb", 0))}
        elif type == "volume":
            wanted["gigabytes"] = int(fields.get("size", 0))
        used = self._used(project)
        for name, amount in wanted.items():
            limit = self.quotas[project].get(name, -1)
            if limit >= 0 and used.get(name, 0) + amount > limit:
                said = f"quota of {name} exceeded: {used.get(name, 0)} of {limit} used, {amount} asked for"
                raise Refused(said, cause="QuotaExceeded")

    def _used(self, project: str) -> dict[str, int]:
        used: dict[str, int] = {}
        for thing in self._things.values():
            if thing.project != project or thing.type not in COUNTED:
                continue
            amounts = {COUNTED[thing.type]: 1}
            if thing.type == "server":
                flavor = self._things.get(("flavor", str(thing.fields.get("flavor"))))
                known = flavor.fields if flavor else {}
                amounts |= {"cores": int(known.get("cores", 0)), "ram_mb": int(known.get("memory_mb", 0))}
            elif thing.type == "volume":
                amounts["gigabytes"] = int(thing.fields.get("size", 0))
            for name, amount in amounts.items():
                used[name] = used.get(name, 0) + amount
        return used

    def _uses(self) -> Iterable[QuotaUse]:
        for project, limits in sorted(self.quotas.items()):
            used = self._used(project)
            for name, limit in sorted(limits.items()):
                yield QuotaUse(project=project, resource=name, limit=limit, used=used.get(name, 0))

    def _quota(self, project: str) -> Thing:
        return Thing(type="quota", id=project, project=project, fields=dict(self.quotas[project]))

    def _users(self, type: str, id: str) -> list[str]:
        """What would break if this went; projects and flavors go whoever uses them, as they do in OpenStack."""
        holds: Collection[str] = ("network", "subnet", "security_group")
        found = []
        for (other, other_id), thing in sorted(self._things.items()):
            for field, named, _ in REFERENCES.get(other, ()):
                value = thing.fields.get(field)
                used = value == id or (isinstance(value, list) and id in value)
                if used and named == type and type in holds:
                    found.append(f"{other} {other_id}")
        thing = self._things[type, id]
        if type == "volume" and thing.fields.get("attached_to"):
            found.append(f"server {thing.fields['attached_to']}")
        return found

    def _need(self, type: str, id: str) -> Thing:
        if type == "quota" and id in self.quotas:
            return self._quota(id)
        if (type, id) not in self._things:
            raise NotFound(f"there is no {type} {id!r} in this cloud")
        return self._things[type, id]


def _plain(value: Any) -> Any:
    """A value to compare: lists have no order."""
    if isinstance(value, Mapping):
        return sorted((k, _plain(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return sorted((_plain(v) for v in value), key=repr)
    return value


class _Around:
    """Notes a call, and raises what was ordered for before and after it. After: only when it did its work."""

    def __init__(self, cloud: MemoryCloud, call: str, type: str, id: str) -> None:
        self._cloud, self._call, self._type = cloud, call, type
        if call not in ("look", "wait"):
            cloud.calls.append((call, type, id))

    def __enter__(self) -> None:
        self._cloud.fault(self._call, self._type, "before")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._cloud.fault(self._call, self._type, "after")
