"""Changes of things that are there: what can be changed in place, and how each service wants it said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from groundcontrol.drivers.openstack import making, marks
from groundcontrol.drivers.openstack.desk import Desk
from groundcontrol.drivers.openstack.listing import Doc
from groundcontrol.drivers.openstack.session import Scope
from groundcontrol.drivers.openstack.table import TABLE
from groundcontrol.drivers.openstack.things import rule
from groundcontrol.kernel.errors import AlreadyExists, Conflict, NotFound, Refused
from groundcontrol.ports.cloud import IN_PLACE, Thing

PATCH = "application/openstack-images-v2.1-json-patch"
After = Mapping[str, Any]


def plain(value: Any) -> Any:
    """A value to compare: lists have no order, and nothing is nothing."""
    if isinstance(value, Mapping):
        return sorted((k, plain(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return sorted((plain(v) for v in value), key=repr)
    return "" if value is None else value


def check(name: str, thing: Thing, fields: Mapping[str, tuple[Any, Any]]) -> None:
    """Refused (NeedsReplacement) for what cannot be changed in place, Conflict for what is another by now."""
    what = f"{name}: change {thing.type} {thing.id}"
    making.known(thing.type, fields)
    fixed = sorted(fields.keys() - IN_PLACE[thing.type])
    size = fields.get("size")
    if thing.type == "volume" and size and int(size[1]) < int(thing.fields.get("size", 0)):
        fixed.append("size")
    if fixed:
        raise Refused(f"{what}: {', '.join(fixed)} cannot be changed in place", cause="NeedsReplacement")
    if thing.state in ("busy", "leaving"):
        raise Conflict(f"{what}: it is {thing.status} {thing.task}".rstrip() + "; look again")
    stale = [n for n, (before, _) in fields.items() if n in thing.fields and plain(thing.fields[n]) != plain(before)]
    if stale:
        raise Conflict(f"{what}: {', '.join(sorted(stale))} is another by now; look again")


class Changes:
    """Makes changes, one call after the other."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def change(self, type: str, id: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
        """As in the port."""
        making.known(type, fields)
        doc, thing = self._desk.raw(type, id)
        check(self._desk.name, thing, fields)
        after = {name: wanted for name, (_, wanted) in fields.items()}
        with self._desk.touching(type, id):
            self.apply(type, id, doc, thing, after, self._desk.scope_of(thing))

    def apply(self, type: str, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        """Make it so."""
        do: Callable[[str, Doc, Thing, After, Scope], None] = getattr(self, f"_{type}")
        do(id, doc, thing, after, scope)

    def _put(self, type: str, id: str, body: Any, scope: Scope, method: str = "PUT", version: str = "") -> None:
        row = TABLE[type]
        what = f"change {type.replace('_', ' ')} {id}"
        path = f"{row.path}/{id}"
        self._desk.call(row.service, method, path, what, {row.one: body}, scope=scope, version=version or row.version)

    # ── compute ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _server(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        if "name" in after:
            self._put("server", id, {"name": after["name"]}, scope)
        if "metadata" in after:
            held = doc.get("metadata") or {}
            kept = {k: v for k, v in held.items() if k.startswith(marks.PREFIX)}
            whole = {"metadata": {**after["metadata"], **kept}}
            path = f"/servers/{id}/metadata"
            self._desk.call("compute", "PUT", path, f"change metadata of server {id}", whole, scope=scope)
        if "networks" in after:
            self._interfaces(id, thing, after["networks"], scope)
        if "security_groups" in after:
            for port in self._desk.ports(id):
                body = {"security_groups": list(after["security_groups"])}
                self._put("port", str(port["id"]), body, scope)
        # A lock keeps everybody but administrators from the rest: so it comes last, and goes first.
        if after.get("locked") is False:
            self.action("server", id, {"unlock": None}, "unlock", scope)
        if "flavor" in after:
            self.action("server", id, {"resize": {"flavorRef": after["flavor"]}}, "resize", scope)
        if "power" in after:
            verb = "start" if after["power"] == "on" else "stop"
            self.action("server", id, {f"os-{verb}": None}, verb, scope)
        if after.get("locked") is True:
            self.action("server", id, {"lock": None}, "lock", scope)

    def action(self, type: str, id: str, body: Any, verb: str, scope: Scope, version: str = "") -> Any:
        """What an action answers."""
        row = TABLE[type]
        path, what = f"{row.path}/{id}/action", f"{verb} {type} {id}"
        return self._desk.call(row.service, "POST", path, what, body, scope=scope, version=version or row.version).body

    def _interfaces(self, id: str, thing: Thing, wanted: Iterable[str], scope: Scope) -> None:
        here, wanted = set(thing.fields.get("networks") or ()), set(wanted)
        path = f"/servers/{id}/os-interface"
        for network in sorted(wanted - here):
            body = {"interfaceAttachment": {"net_id": network}}
            what = f"connect server {id} to network {network}"
            self._desk.call("compute", "POST", path, what, body, scope=scope, version="2.46")
        for port in self._desk.ports(id):
            if port["network_id"] in here - wanted:
                what = f"take server {id} from network {port['network_id']}"
                self._desk.call("compute", "DELETE", f"{path}/{port['id']}", what, scope=scope)

    def _flavor(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        before, wanted = thing.fields.get("properties") or {}, after["properties"]
        path = f"/flavors/{id}/os-extra_specs"
        changed = {k: str(v) for k, v in wanted.items() if before.get(k) != str(v)}
        if changed:
            self._desk.call("compute", "POST", path, f"change flavor {id}", {"extra_specs": changed}, version="2.61")
        for name in sorted(before.keys() - wanted.keys()):
            self._desk.call("compute", "DELETE", f"{path}/{name}", f"change flavor {id}", version="2.61")

    # ── block storage and images ────────────────────────────────────────────────────────────────────────────────

    def _volume(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        body = {name: after[name] for name in ("name", "description") if name in after}
        if body:
            self._put("volume", id, body, scope)
        if "metadata" in after:
            held = doc.get("metadata") or {}
            kept = {k: v for k, v in held.items() if k not in thing.fields.get("metadata", {})}
            path, what = f"/volumes/{id}/metadata", f"change metadata of volume {id}"
            whole = {"metadata": {**after["metadata"], **kept}}
            self._desk.call("block-storage", "PUT", path, what, whole, scope=scope, version="3.60")
        if "bootable" in after:
            self.action("volume", id, {"os-set_bootable": {"bootable": after["bootable"]}}, "change", scope)
        if "size" in after:
            self.action("volume", id, {"os-extend": {"new_size": int(after["size"])}}, "extend", scope)
        if "attached_to" in after:
            before = str(thing.fields.get("attached_to") or "")
            if before and before != after["attached_to"]:
                self.detach(before, id, scope)
            if after["attached_to"]:
                self.attach(str(after["attached_to"]), id, scope)

    def attach(self, server: str, volume: str, scope: Scope) -> None:
        """Give a server a volume."""
        path, body = f"/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}}
        with self._desk.touching("server", server), self._desk.touching("volume", volume):
            what = f"attach volume {volume} to server {server}"
            self._desk.call("compute", "POST", path, what, body, scope=scope, version="2.46")

    def detach(self, server: str, volume: str, scope: Scope) -> None:
        """Take it away again; its guest should have let go of it."""
        path = f"/servers/{server}/os-volume_attachments/{volume}"
        with self._desk.touching("server", server), self._desk.touching("volume", volume):
            self._desk.call("compute", "DELETE", path, f"detach volume {volume} from server {server}", scope=scope)

    def _image(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        steps: list[dict[str, Any]] = [
            {"op": "replace", "path": f"/{name}", "value": after[name]}
            for name in ("name", "visibility", "min_disk", "min_ram", "protected")
            if name in after
        ]
        if "properties" in after:
            before, wanted = thing.fields.get("properties") or {}, after["properties"]
            for name, value in sorted(wanted.items()):
                if before.get(name) != str(value):
                    op = "replace" if name in before else "add"
                    steps.append({"op": op, "path": f"/{_pointer(name)}", "value": str(value)})
            gone = sorted(before.keys() - wanted.keys())
            steps += [{"op": "remove", "path": f"/{_pointer(name)}"} for name in gone]
        if steps:
            headers = {"Content-Type": PATCH}
            self._desk.call(
                "image", "PATCH", f"/images/{id}", f"change image {id}", steps, scope=scope, headers=headers
            )

    # ── network ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _described(self, doc: Doc, after: After) -> dict[str, Any]:
        """The description to say. While the mark stands in it alone, it stays there."""
        said, before = str(after.get("description", "")), str(doc.get("description") or "")
        mark = marks.from_text(before)
        if mark and not marks.from_tags(doc.get("tags") or ()):
            said = marks.text(mark, said)
        return {"description": said} if "description" in after else {}

    def _network(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        names = {"name": "name", "shared": "shared", "external": "router:external", "mtu": "mtu"}
        names["port_security"] = "port_security_enabled"
        body = {theirs: after[ours] for ours, theirs in names.items() if ours in after}
        self._put("network", id, body | self._described(doc, after), scope)

    def _subnet(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        name = {"name": after["name"]} if "name" in after else {}
        self._put("subnet", id, name | making.subnet_body(after), scope)

    def _router(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        body = {"name": after["name"]} if "name" in after else {}
        body |= self._described(doc, after)
        if "external_network" in after or "snat" in after:
            whole = {"external_network": thing.fields.get("external_network"), **after}
            body["external_gateway_info"] = making.gateway(whole)
        if body:
            self._put("router", id, body, scope)
        if "subnets" in after:
            here, wanted = set(thing.fields.get("subnets") or ()), set(after["subnets"])
            for subnet in sorted(here - wanted):
                self.interface(id, {"subnet_id": subnet}, "remove", scope)
            for subnet in sorted(wanted - here):
                self.interface(id, {"subnet_id": subnet}, "add", scope)

    def interface(self, router: str, body: Mapping[str, str], verb: str, scope: Scope) -> None:
        """Put a router into a subnet, or take it out."""
        what = f"{verb} an interface of router {router}"
        self._desk.call("network", "PUT", f"/routers/{router}/{verb}_router_interface", what, body, scope=scope)

    def _security_group(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        body = {"name": after["name"]} if "name" in after else {}
        body |= self._described(doc, after)
        if body:
            self._put("security_group", id, body, scope)
        if "rules" in after:
            self._rules(id, doc, after["rules"], scope)

    def _rules(self, group: str, doc: Doc, wanted: Iterable[Mapping[str, str]], scope: Scope) -> None:
        """New ones first: what stays allowed is allowed all the time."""
        here = {_rule_key(rule(held)): str(held["id"]) for held in doc.get("security_group_rules") or ()}
        asked = {_rule_key(one): one for one in wanted}
        for key in asked.keys() - here.keys():
            body = {"security_group_rule": making.rule(group, asked[key])}
            try:
                self._desk.call("network", "POST", "/security-group-rules", f"add a rule to {group}", body, scope=scope)
            except AlreadyExists:  # somebody else was as fast
                continue
        for key in here.keys() - asked.keys():
            path = f"/security-group-rules/{here[key]}"
            try:
                self._desk.call("network", "DELETE", path, f"remove a rule from {group}", scope=scope)
            except NotFound:
                continue

    def _floating_ip(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        body = self._described(doc, after)
        if "server" in after or "port" in after:
            port = after.get("port") or (self.port_of(str(after["server"])) if after.get("server") else None)
            body["port_id"] = port or None
        if after.get("fixed_ip"):
            body |= {"port_id": body.get("port_id", doc.get("port_id")), "fixed_ip_address": after["fixed_ip"]}
        if body:
            self._put("floating_ip", id, body, scope)

    def port_of(self, server: str) -> str:
        """The port a floating IP leads to. Refused when the server has none."""
        ports = self._desk.ports(server)
        if not ports:
            raise Refused(f"{self._desk.name}: server {server} has no port to lead to", cause="InvalidRequest")
        return str(ports[0]["id"])

    # ── identity and quotas ─────────────────────────────────────────────────────────────────────────────────────

    def _project(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        self._put("project", id, dict(after), scope, method="PATCH")

    def _quota(self, id: str, doc: Doc, thing: Thing, after: After, scope: Scope) -> None:
        self.set_quota(id, after)

    def set_quota(self, project: str, wanted: After) -> None:
        """Tell each service what it shall allow."""
        for service, limits in making.quota(wanted).items():
            member = "quota" if service == "network" else "quota_set"
            path = f"/quotas/{project}" if service == "network" else f"/os-quota-sets/{project}"
            what = f"change the {service} quota of project {project}"
            self._desk.call(service, "PUT", path, what, {member: limits})

    def give_back_quota(self, project: str) -> None:
        """Let each service allow what it allows a fresh project."""
        there = self._desk.connection.endpoints(self._desk.connection.sign_in(self._desk.connection.own))
        for service in ("compute", "block-storage", "network"):
            if service in there:
                path = f"/quotas/{project}" if service == "network" else f"/os-quota-sets/{project}"
                try:
                    self._desk.call(service, "DELETE", path, f"give back the {service} quota of project {project}")
                except NotFound:  # Neutron has no entry for a project that has its defaults
                    continue


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _rule_key(one: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(one.get(name) or "") for name in ("direction", "ethertype", "protocol", "ports", "remote"))
