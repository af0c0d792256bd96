"""What is wanted of a thing in a cloud, what differs, and what follows: one small description per kind, and pure
functions over them."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic.alias_generators import to_camel

from groundcontrol.capabilities.clouds.kinds import CLOUD, KINDS, TYPES, SecurityGroupSpec, ThingSpec
from groundcontrol.kernel.resource import Doc
from groundcontrol.ports.cloud import FIELDS, IN_PLACE, Thing

PLATFORM = frozenset({"Image", "Flavor", "Project", "Quota"})
"""Kinds of the whole platform."""
KIND_OF = {type_: kind for kind, type_ in TYPES.items()}
"""Type of thing to kind."""
STUCK = 1800.0
"""Seconds after which something that is still being worked on is called stuck."""
ASK_AGAIN = 120.0
"""Seconds after which a deletion that was accepted and is not done is asked for again."""
EVERYTHING = [
    {"direction": "egress", "ethertype": ethertype, "protocol": "", "ports": "", "remote": ""}
    for ethertype in ("IPv4", "IPv6")
]
"""The rules of a security group that lets servers reach everything."""


# ── references ──────────────────────────────────────────────────────────────────────────────────────────────────


class Reference(NamedTuple):
    """A name in a spec that stands for another thing."""

    field: str
    """Field of the spec, as in Python."""
    kind: str
    """Kind it names."""
    text: str
    """A resource's name, or `cloud:NAME_OR_ID`."""


HOLD_IN_PLACE = frozenset({"project", "network", "networks", "subnets", "external_network", "security_groups"})
"""Fields that keep what they name from being deleted."""
Ids = Mapping[tuple[str, str], str]
"""(kind, text) of references to the ids they stand for."""


def chosen(things: Iterable[Thing], reference: Reference, project: str) -> tuple[str, str]:
    """(id, why not) of a `cloud:` reference among the things of its type: by id, else by name, of those that the
    project may use."""
    wanted = reference.text.removeprefix(CLOUD)
    usable = [t for t in things if usable_by(t, project)]
    found = [t.id for t in usable if t.id == wanted] or [t.id for t in usable if t.name == wanted]
    noun = TYPES[reference.kind].replace("_", " ")
    if len(found) == 1:
        return found[0], ""
    if found:
        return "", f"{len(found)} {noun}s of the site are called {wanted}: {', '.join(sorted(found)[:5])}; give the id"
    return "", f"there is no {noun} {wanted} at the site that this project may use"


def usable_by(thing: Thing, project: str) -> bool:
    """Whether things of a project may refer to it. Only what is told counts."""
    if thing.type == "flavor" and thing.fields.get("public") is False:
        return False
    if thing.project in ("", project):
        return True
    for_all = thing.fields.get("shared") is True or thing.fields.get("external") is True
    return for_all or thing.fields.get("visibility") in ("public", "community")


# ── descriptions ────────────────────────────────────────────────────────────────────────────────────────────────


def _same(spec: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return wanted


@dataclass(frozen=True)
class Shape:
    """What is particular about a kind. A field of the spec with the name of a field of the thing is wanted as it is;
    what is empty or left out is not wanted at all."""

    refers: Mapping[str, str] = field(default_factory=dict)
    """Field to the kind it names."""
    once: frozenset[str] = frozenset()
    """Fields that are given when it is made and looked at never again."""
    empty: frozenset[str] = frozenset()
    """Fields that are wanted when they are empty, too: to take something away."""
    finish: Callable[[Any, dict[str, Any]], dict[str, Any]] = _same
    """(spec, what is wanted so far) to what is wanted."""
    more: Callable[[Any], list[Reference]] = lambda spec: []
    """References that lie deeper in the spec."""
    written: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """The inverse of `finish`: what a spec says, from the fields of a thing, references resolved."""
    destroys: bool = False
    """Whether what is in it is lost with it."""
    shield: str = ""
    """The field that keeps it from being deleted."""


def _server(spec: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    if spec.power == "user":
        wanted.pop("power")
    return wanted


def _subnet(spec: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    wanted["ip_version"] = ipaddress.ip_network(spec.cidr).version
    if spec.gateway == "none":
        wanted["gateway"] = ""
    return wanted


def _subnet_written(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "gateway": fields["gateway"] or "none"} if "gateway" in fields else fields


def _rules(spec: SecurityGroupSpec, wanted: dict[str, Any]) -> dict[str, Any]:
    rules = [dict(r) for r in EVERYTHING] if spec.egress == "all" else []
    for rule in wanted.pop("rules", ()):
        group = rule.pop("group")
        rule["remote"] = f"group:{group}" if group else rule["remote"]
        rules.append(rule)
    return {**wanted, "rules": rules}


def _groups_named(spec: SecurityGroupSpec) -> list[Reference]:
    return [Reference("rules", "SecurityGroup", r.group) for r in spec.rules if r.group not in ("", "self")]


def _rules_written(fields: dict[str, Any]) -> dict[str, Any]:
    found = [dict(rule) for rule in fields.get("rules", ())]
    all_out = all(rule in found for rule in EVERYTHING)
    rules = []
    for rule in found:
        if all_out and rule in EVERYTHING:
            continue
        prefix, _, group = rule["remote"].partition("group:")
        rules.append({**rule, "remote": "", "group": group} if not prefix and group else {**rule, "group": ""})
    return {**fields, "rules": rules, "egress": "all" if all_out else "rules"}


def _quota(spec: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return dict(spec.limits)


SHAPES: Mapping[str, Shape] = {
    "Server": Shape(
        refers={
            "flavor": "Flavor",
            "image": "Image",
            "networks": "Network",
            "security_groups": "SecurityGroup",
            "keypair": "Keypair",
        },
        once=frozenset({"user_data", "boot_volume"}),
        empty=frozenset({"networks", "security_groups", "metadata", "locked"}),
        finish=_server,
        destroys=True,
        shield="locked",
    ),
    "Volume": Shape(
        refers={"image": "Image", "attached_to": "Server"},
        once=frozenset({"image", "snapshot"}),
        empty=frozenset({"description", "attached_to", "metadata"}),
        destroys=True,
    ),
    "Network": Shape(empty=frozenset({"description", "port_security"})),
    "Subnet": Shape(
        refers={"network": "Network"},
        empty=frozenset({"dns", "dhcp", "pools", "host_routes"}),
        finish=_subnet,
        written=_subnet_written,
    ),
    "Router": Shape(
        refers={"external_network": "Network", "subnets": "Subnet"},
        empty=frozenset({"external_network", "subnets", "snat", "description"}),
    ),
    "SecurityGroup": Shape(empty=frozenset({"description"}), finish=_rules, more=_groups_named, written=_rules_written),
    "FloatingIP": Shape(
        refers={"network": "Network", "server": "Server"}, empty=frozenset({"server", "description"}), destroys=True
    ),
    "Keypair": Shape(),
    "Image": Shape(
        once=frozenset({"source"}),
        empty=frozenset({"min_disk", "min_ram", "properties", "protected"}),
        destroys=True,
        shield="protected",
    ),
    "Flavor": Shape(empty=frozenset({"disk_gb", "ephemeral_gb", "swap_mb", "public", "properties"})),
    "Project": Shape(empty=frozenset({"description", "enabled"}), destroys=True),
    "Quota": Shape(finish=_quota),
}
"""One more kind is a class in `kinds.py`, a line here, and its type in the drivers."""
SPECS: Mapping[str, Any] = {kind.__name__: kind.model_fields["spec"].annotation for kind in KINDS}
NAMES_ONLY = frozenset({"keypair", "attached_to", "server"})
"""Fields that name resources, and nothing else of the site."""


def references(kind: str, spec: ThingSpec) -> list[Reference]:
    """Everything a spec names."""
    found = []
    for name, named in SHAPES[kind].refers.items():
        value = getattr(spec, name)
        texts = [value] if isinstance(value, str) else value or ()
        found += [Reference(name, named, text) for text in texts if text]
    return [*found, *SHAPES[kind].more(spec)]


def names_of(kind: str, doc: Mapping[str, Any]) -> Iterable[Reference]:
    """Every resource that a document names, its project too; from the document as it is stored."""
    spec = doc["spec"]
    for name, named in SHAPES[kind].refers.items():
        value = spec.get(to_camel(name))
        for text in [value] if isinstance(value, str) else value or ():
            if text and not text.startswith(CLOUD):
                yield Reference(name, named, text)
    if kind == "SecurityGroup":
        groups = [str(r.get("group") or "self") for r in spec.get("rules") or ()]
        yield from (Reference("rules", kind, g) for g in groups if g != "self" and not g.startswith(CLOUD))
    if spec.get("project"):
        yield Reference("project", "Project", spec["project"])


def cloud_name(kind: str, spec: ThingSpec, namespace: str, name: str) -> str:
    """What a thing is called in the cloud."""
    if kind == "Keypair":
        return f"{namespace}.{name}"
    return spec.name or name


def wanted_fields(kind: str, spec: ThingSpec, name: str, ids: Ids) -> tuple[dict[str, Any], frozenset[str]]:
    """(what is wanted of a thing, fields that name something not known yet). `name` as of `cloud_name`."""
    shape, fields = SHAPES[kind], FIELDS[TYPES[kind]]
    unknown = {r.field for r in references(kind, spec) if (r.kind, r.text) not in ids}
    dumped = spec.model_dump(mode="json", by_alias=False)
    wanted: dict[str, Any] = {}
    for field_ in sorted(fields & dumped.keys() - unknown):
        value = dumped[field_]
        if value is None or (not value and field_ not in shape.empty and not isinstance(value, bool)):
            continue
        if field_ in shape.refers:
            named = shape.refers[field_]
            value = ids.get((named, value), "") if isinstance(value, str) else [ids[named, text] for text in value]
        elif field_ == "rules":
            value = [{**r, "group": ids.get(("SecurityGroup", r["group"]), r["group"])} for r in value]
        wanted[field_] = value
    if "name" in fields:
        wanted["name"] = name
    return {k: v for k, v in shape.finish(spec, wanted).items() if k not in unknown}, frozenset(unknown)


# ── differences ─────────────────────────────────────────────────────────────────────────────────────────────────


def held_by_project(things: Iterable[Thing], project: str) -> list[Thing]:
    """What is in a project, and would be out of everybody's reach without it."""
    born_with = ("security_group", "default")
    return [t for t in things if t.project == project and t.type != "quota" and (t.type, t.name) != born_with]


class Difference(NamedTuple):
    """A field that is not as wanted."""

    field: str
    found: Any
    wanted: Any
    in_place: bool
    """Whether the cloud can change it in the thing that is there."""


def plain(value: Any) -> Any:
    """A value to compare: lists have no order."""
    if isinstance(value, Mapping):
        return sorted((k, plain(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return sorted((plain(v) for v in value), key=repr)
    return value


def digest(value: Any) -> str:
    """A short name of a value."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, default=str).encode()).hexdigest()[:12]


def differences(kind: str, wanted: Mapping[str, Any], thing: Thing) -> list[Difference]:
    """What of a thing is not as wanted; what the cloud does not tell is not looked at."""
    found = []
    for name, value in wanted.items():
        if name in SHAPES[kind].once or name not in thing.fields:
            continue
        if (thing.type, name, thing.fields[name]) == ("server", "image", ""):
            continue  # it boots from a volume, and the cloud does not tell what that was made of
        value = own_group(value, thing.id) if name == "rules" else value
        there = thing.fields[name]
        if plain(there) != plain(value):
            grows = not (thing.type == "volume" and name == "size" and value < there)
            found.append(Difference(name, there, value, name in IN_PLACE[thing.type] and grows))
    return found


def own_group(rules: Iterable[Mapping[str, Any]], id: str) -> list[dict[str, Any]]:
    """Rules with the id of the group itself where they say `self`."""
    return [{**r, "remote": f"group:{id}"} if r["remote"] == "group:self" else dict(r) for r in rules]


@dataclass(frozen=True)
class Sorted:
    """What is to be done about the differences of a thing."""

    change: tuple[Difference, ...] = ()
    """To be changed in place now."""
    replace: tuple[Difference, ...] = ()
    """These ask for another thing."""
    by_hand: tuple[Difference, ...] = ()
    """Changed by hand: told."""
    propose: tuple[Difference, ...] = ()
    """Of those, the ones to be proposed as a change of the spec."""
    left: tuple[Difference, ...] = ()
    """There since its adoption, and left alone."""

    @property
    def corrected(self) -> bool:
        """Whether what is changed had been changed by hand."""
        return bool({d.field for d in (*self.change, *self.replace)} & {d.field for d in self.by_hand})


def sort_out(
    spec: ThingSpec, found: Sequence[Difference], applied: Mapping[str, str], left: Mapping[str, str]
) -> Sorted:
    """Field by field: what the spec asks for anew is done; what was changed by hand is treated as `drift` says."""
    change: list[Difference] = []
    replace: list[Difference] = []
    by_hand, propose, leave = [], [], []
    for d in found:
        hand = applied.get(d.field) == digest(d.wanted)
        if hand and left.get(d.field) == digest(d.found):
            leave.append(d)
            continue
        policy = spec.drift_of.get(to_camel(d.field), spec.drift_of.get(d.field, spec.drift)) if hand else "correct"
        if hand:
            by_hand.append(d)
        if policy == "propose":
            propose.append(d)
        if policy == "correct":
            (change if d.in_place else replace).append(d)
    return Sorted(tuple(change), tuple(replace), tuple(by_hand), tuple(propose), tuple(leave))


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────

CAUSES: Mapping[str, str] = {
    "QuotaExceeded": "the project's quota is used up",
    "NoValidHost": "no host of the cloud has room for it, or none offers what it asks for",
    "BadImage": "the image cannot be used",
    "BadFlavor": "the flavor cannot be used",
    "NotAuthenticated": "the cloud does not accept the site's credentials",
    "NotAuthorised": "the site's account may not do this",
    "Throttled": "the cloud takes no more calls for now",
    "Timeout": "the cloud did not answer in time",
    "Unreachable": "the cloud cannot be reached",
    "InUse": "something else still uses it",
    "RemoteBug": "the cloud itself failed",
    "InvalidRequest": "the cloud does not take the request as it is",
    "NeedsReplacement": "the cloud cannot change this in place",
    "Vanished": "it was there and is not any more",
    "Failed": "it failed in the cloud",
}
"""Cause to what it means."""
_TELLING = (
    ("NoValidHost", ("no valid host", "not enough hosts", "exceeded maximum number of retries")),
    ("QuotaExceeded", ("quota", "overlimit")),
    ("BadImage", ("image",)),
    ("BadFlavor", ("flavor",)),
)


def cause_of(thing: Thing) -> str:
    """What kind of fault a failed thing has: as the driver says, else as its words tell."""
    text = thing.fault.lower()
    return thing.cause or next((cause for cause, words in _TELLING if any(w in text for w in words)), "Failed")


def in_words(cause: str, message: str) -> str:
    """A cause and what the cloud said, as a sentence."""
    meaning = CAUSES.get(cause, "")
    return f"{meaning}: {message}" if meaning and message else meaning or message


def next_try(attempts: int, allowed: int, delay: float) -> float | None:
    """Seconds from a failure to the next attempt after so many; None when there is none."""
    return None if attempts >= allowed else delay * 2 ** max(0, attempts - 1)


# ── from what is there to manifests ─────────────────────────────────────────────────────────────────────────────


def as_spec(kind: str, thing: Thing, named: Callable[[str, str], str]) -> Doc:
    """The fields of a spec that say what a thing is now. `named(kind, id)` is how a spec names another thing."""
    shape, spec = SHAPES[kind], SPECS[kind]
    fields: dict[str, Any] = {}
    for name, value in thing.fields.items():
        if name not in FIELDS[thing.type]:
            continue
        if name in shape.refers and value:
            to = shape.refers[name]
            value = named(to, value) if isinstance(value, str) else [named(to, v) for v in value]
            if name in NAMES_ONLY and str(value).startswith(CLOUD):
                continue
        fields[name] = value
    if kind == "Quota":
        return {"limits": fields}
    if "rules" in fields:
        fields["rules"] = [_rule_named(r, thing.id, named) for r in fields["rules"]]
    fields = shape.written(fields)
    return {to_camel(n): v for n, v in sorted(fields.items()) if n in spec.model_fields and n not in shape.once}


def _rule_named(rule: Mapping[str, Any], own: str, named: Callable[[str, str], str]) -> dict[str, Any]:
    prefix, _, group = str(rule["remote"]).partition("group:")
    if prefix or not group:
        return dict(rule)
    return {**rule, "remote": f"group:{'self' if group == own else named('SecurityGroup', group)}"}


def resource_name(thing: Thing, taken: Iterable[str]) -> str:
    """A name for a resource, made of the thing's name; another one when it is taken."""
    text = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in thing.name.lower()).strip("-")
    text = text[:50].strip("-") or f"{thing.type.replace('_', '-')}-{digest(thing.id)[:8]}"
    return f"{text}-{digest(thing.id)[:6]}" if text in set(taken) else text
