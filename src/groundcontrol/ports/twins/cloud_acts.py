"""What becomes of a server or volume of the cloud in memory when something is done to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from groundcontrol.kernel.errors import Conflict, NotFound, Refused
from groundcontrol.ports.cloud import Host, Mark, State, Thing


class Course(NamedTuple):
    """How a thing looks while the cloud works on it, and then."""

    meanwhile: Thing
    then: Thing


class Move(NamedTuple):
    """A verb: the status and task meanwhile, and what the thing is then (empty: what it was)."""

    status: str
    task: str
    state: State | None = None
    word: str = ""
    power: str = ""
    only: frozenset[str] = frozenset()
    """Statuses in which it is taken; none: all but those of a server that was put aside."""


ASIDE = frozenset({"SHELVED", "SHELVED_OFFLOADED", "RESCUE", "VERIFY_RESIZE"})
SHELVED = frozenset({"SHELVED", "SHELVED_OFFLOADED"})
MOVES: Mapping[str, Move] = {
    "reboot": Move("REBOOT", "rebooting", "ready", "ACTIVE", "on"),
    "rebuild": Move("REBUILD", "rebuilding"),
    "shelve": Move("ACTIVE", "shelving", "off", "SHELVED_OFFLOADED", "off"),
    "unshelve": Move("SHELVED", "unshelving", "ready", "ACTIVE", "on", SHELVED),
    "rescue": Move("ACTIVE", "rescuing", "ready", "RESCUE", "on"),
    "unrescue": Move("RESCUE", "unrescuing", "ready", "ACTIVE", "on", frozenset({"RESCUE"})),
    "migrate": Move("RESIZE", "migrating", "ready", "VERIFY_RESIZE"),
    "live-migrate": Move("MIGRATING", "migrating"),
    "retype": Move("retyping", ""),
}


def course(thing: Thing, verb: str, given: Mapping[str, Any]) -> Course | None:
    """What follows from a verb; None when nothing does. Conflict when it is not in a state for that."""
    move = MOVES.get(verb)
    if move is None:
        return None
    fits = thing.status in move.only if move.only else thing.status not in ASIDE
    if thing.state in ("busy", "leaving") or not fits:
        raise Conflict(f"cannot {verb} {thing.type} {thing.id} while it is {thing.status or thing.state}")
    fields, host = dict(thing.fields), thing.host
    if verb == "rebuild":
        fields["image"] = given["image"]
    elif verb == "retype":
        if not given.get("type"):
            raise Refused("retype needs a type", cause="InvalidRequest")
        fields["type"] = given["type"]
    elif verb in ("migrate", "live-migrate"):
        host = str(given.get("host") or ("h2" if thing.host == "h1" else "h1"))
        if verb == "migrate":
            fields["resized_from"] = fields["flavor"]
    if move.power:
        fields["power"] = move.power
    after = {"fields": fields, "host": host, "state": move.state or thing.state, "status": move.word or thing.status}
    then = msgspec.structs.replace(thing, **after)
    return Course(msgspec.structs.replace(thing, state="busy", status=move.status, task=move.task), then)


def image_of(thing: Thing, id: str, given: Mapping[str, Any], at: float) -> Thing:
    """The image of a server that a snapshot makes."""
    told = {name.removeprefix("ground:"): text for name, text in (given.get("metadata") or {}).items()}
    mark = Mark(
        installation=told.get("installation", ""),
        owner=told.get("owner", ""),
        owner_key=told.get("key", ""),
        change=told.get("change", ""),
    )
    return Thing(
        type="image",
        id=id,
        name=str(given["name"]),
        project=thing.project,
        state="busy",
        status="queued",
        fields={"name": given["name"], "visibility": "private"},
        mark=mark if mark.change else None,
        created=at,
        updated=at,
    )


class Hosts:
    """The hypervisors: `h1`, where servers are born, and `h2`."""

    def __init__(self, cores: int) -> None:
        self._known = {n: Host(name=n, zone="nova", up=True, cores=cores, memory_mb=1 << 20) for n in ("h1", "h2")}

    def told(self) -> tuple[Host, ...]:
        """As they are."""
        return tuple(self._known.values())

    def act(self, name: str, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """enable, disable, force-down and un-force-down; NotFound."""
        if name not in self._known:
            raise NotFound(f"there is no host {name!r} in this cloud")
        changes: Mapping[str, dict[str, Any]] = {
            "enable": {"enabled": True, "disabled_reason": ""},
            "disable": {"enabled": False, "disabled_reason": str(given.get("reason", ""))},
            "force-down": {"forced_down": True, "up": False},
            "un-force-down": {"forced_down": False, "up": True},
        }
        self._known[name] = msgspec.structs.replace(self._known[name], **changes[verb])
        return {}
