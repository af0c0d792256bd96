"""What can be done to servers, volumes and hosts besides changing their fields: a table from verb to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from groundcontrol.drivers.openstack.changing import Changes
from groundcontrol.drivers.openstack.desk import Desk
from groundcontrol.kernel.errors import NotFound, Refused
from groundcontrol.ports.cloud import VERBS

Arguments = Mapping[str, Any]


class Verb(NamedTuple):
    """The action of OpenStack for one of ours."""

    body: Callable[[Arguments], Any]
    version: str = ""
    takes: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()


def _plain(name: str) -> Verb:
    return Verb(lambda given: {name: None})


def _snapshot(given: Arguments) -> Any:
    return {"createImage": {"name": given["name"], "metadata": dict(given.get("metadata") or {})}}


def _live(given: Arguments) -> Any:
    return {"os-migrateLive": {"host": given.get("host") or None, "block_migration": "auto"}}


_HOST = frozenset({"host"})
SERVER: Mapping[str, Verb] = {
    "start": _plain("os-start"),
    "stop": _plain("os-stop"),
    "reboot": Verb(
        lambda given: {"reboot": {"type": str(given.get("type") or "soft").upper()}}, "", frozenset({"type"})
    ),
    "rebuild": Verb(
        lambda given: {"rebuild": {"imageRef": given["image"]}}, "", frozenset({"image"}), frozenset({"image"})
    ),
    "resize": Verb(
        lambda given: {"resize": {"flavorRef": given["flavor"]}}, "", frozenset({"flavor"}), frozenset({"flavor"})
    ),
    "confirm-resize": _plain("confirmResize"),
    "revert-resize": _plain("revertResize"),
    "snapshot": Verb(_snapshot, "2.45", frozenset({"name", "metadata"}), frozenset({"name"})),
    "shelve": _plain("shelve"),
    "unshelve": _plain("unshelve"),
    "lock": _plain("lock"),
    "unlock": _plain("unlock"),
    "rescue": Verb(
        lambda given: {"rescue": {"rescue_image_ref": given["image"]} if given.get("image") else None},
        "",
        frozenset({"image"}),
    ),
    "unrescue": _plain("unrescue"),
    "console": Verb(
        lambda given: {"os-getConsoleOutput": {"length": int(given.get("lines") or 100)}}, "", frozenset({"lines"})
    ),
    "migrate": Verb(lambda given: {"migrate": {"host": given["host"]} if given.get("host") else None}, "2.56", _HOST),
    "live-migrate": Verb(_live, "2.68", _HOST),
    # From 2.95 on it stays stopped; until then it comes up as it was.
    "evacuate": Verb(lambda given: {"evacuate": {"host": given["host"]} if given.get("host") else {}}, "2.68", _HOST),
    "force-delete": _plain("forceDelete"),
    "reset-state": Verb(
        lambda given: {"os-resetState": {"state": given.get("state") or "active"}}, "", frozenset({"state"})
    ),
}
VOLUME: Mapping[str, Verb] = {
    "extend": Verb(
        lambda given: {"os-extend": {"new_size": int(given["size"])}}, "", frozenset({"size"}), frozenset({"size"})
    ),
    "retype": Verb(
        lambda given: {
            "os-retype": {
                "new_type": given["type"],
                "migration_policy": "on-demand" if given.get("migrate") else "never",
            }
        },
        "",
        frozenset({"type", "migrate"}),
        frozenset({"type"}),
    ),
    "reset-state": Verb(
        lambda given: {"os-reset_status": {"status": given.get("state") or "available"}}, "", frozenset({"state"})
    ),
}
HOST: Mapping[str, Callable[[Arguments], dict[str, Any]]] = {
    "enable": lambda given: {"status": "enabled"},
    "disable": lambda given: {"status": "disabled", "disabled_reason": str(given.get("reason") or "by Ground Control")},
    "force-down": lambda given: {"forced_down": True},
    "un-force-down": lambda given: {"forced_down": False},
}


class Acts:
    """Does what is in `VERBS`."""

    def __init__(self, desk: Desk, changes: Changes) -> None:
        self._desk, self._changes = desk, changes

    def act(self, type: str, id: str, verb: str, given: Arguments) -> dict[str, Any]:
        """As in the port. Refused when there is no such verb, or an argument is missing or unknown."""
        if verb not in VERBS.get(type, ()):
            raise Refused(f"{self._desk.name}: a {type} cannot {verb}", cause="InvalidRequest")
        if type == "host":
            return self._host(id, verb, given)
        if verb in ("attach-volume", "detach-volume"):
            return self._attach(id, verb, given)
        if (type, verb) == ("volume", "snapshot"):
            return self._volume_snapshot(id, given)
        table = SERVER if type == "server" else VOLUME
        chosen = table[verb]
        self._checked(f"{verb} {type} {id}", given, chosen.takes, chosen.needs)
        thing = self._desk.get(type, id)
        with self._desk.touching(type, id):
            scope = self._desk.scope_of(thing)
            body = chosen.body(given)
            answer = self._changes.action(type, id, body, verb, scope, chosen.version)
        if verb == "console":
            return {"output": str(answer.get("output") or "") if isinstance(answer, Mapping) else ""}
        if verb == "snapshot":
            self._desk.looking.touch("image")
            return {"image": str(answer.get("image_id") or "") if isinstance(answer, Mapping) else ""}
        return {}

    def _checked(self, what: str, given: Arguments, takes: frozenset[str], needs: frozenset[str]) -> None:
        if unknown := sorted(given.keys() - takes):
            raise Refused(f"{self._desk.name}: {what}: takes no {', '.join(unknown)}", cause="InvalidRequest")
        if missing := sorted(name for name in needs if not given.get(name)):
            raise Refused(f"{self._desk.name}: {what}: needs {', '.join(missing)}", cause="InvalidRequest")

    def _attach(self, id: str, verb: str, given: Arguments) -> dict[str, Any]:
        one = frozenset({"volume"})
        self._checked(f"{verb} server {id}", given, one, one)
        thing = self._desk.get("server", id)
        scope = self._desk.scope_of(thing)
        do = self._changes.attach if verb == "attach-volume" else self._changes.detach
        do(id, str(given["volume"]), scope)
        return {}

    def _volume_snapshot(self, id: str, given: Arguments) -> dict[str, Any]:
        self._checked(f"snapshot volume {id}", given, frozenset({"name", "metadata"}), frozenset({"name"}))
        thing = self._desk.get("volume", id)
        body = {"volume_id": id, "name": given["name"], "force": True, "metadata": dict(given.get("metadata") or {})}
        with self._desk.touching("volume", id):
            answer = self._desk.call(
                "block-storage", "POST", "/snapshots", f"snapshot volume {id}", {"snapshot": body},
                scope=self._desk.scope_of(thing),
            )  # fmt: skip
        return {"snapshot": str(answer.body["snapshot"]["id"])}

    def _host(self, name: str, verb: str, given: Arguments) -> dict[str, Any]:
        self._checked(f"{verb} host {name}", given, frozenset({"reason"} if verb == "disable" else ()), frozenset())
        query = {"binary": "nova-compute", "host": name}
        listed = self._desk.connection.call(
            "compute", "GET", "/os-services", query=query, version="2.53", what=f"look for host {name}"
        ).body.get("services")
        if not listed:
            raise NotFound(f"{self._desk.name}: there is no host {name!r}")
        path, body = f"/os-services/{listed[0]['id']}", HOST[verb](given)
        try:
            self._desk.call("compute", "PUT", path, f"{verb} host {name}", body, version="2.53")
        finally:
            self._desk.looking.hurry("services")
        return {}
