"""What people ask of a server or volume besides what its spec says: which verbs, when, and what is known of each call.

Pure. What was asked stands in an annotation of the resource, as reconcilers never write there: it is in the store
before the cloud is called, with how that ended after. `acting.py` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from pydantic import Field
from pydantic.alias_generators import to_camel

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import Doc, Model, did_you_mean, now
from groundcontrol.ports.cloud import Thing

RECORDS = "ground/operations"
"""Annotation with the newest operations of a resource."""
HELD_RESIZE = "ground/resized-from"
"""Annotation with the flavor a server had, while a person is to confirm or revert its resize; empty otherwise."""
MOST = 5
"""Records that are kept."""
LONGEST = 300
"""Letters of a record's message."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operation that somebody asked for."""

    verb: str
    key: str
    """The same for every try of the same step of a Run; a fresh one for each call of a person."""
    by: str
    at: float
    epoch: int
    """Of the server that asked: what an earlier one left as `asked` is not known to have happened."""
    state: Literal["asked", "accepted", "refused", "unknown"] = "asked"
    message: str = ""
    was: str = ""
    """What the thing was before, in the words of `word`."""
    fields: dict[str, tuple[Any, Any]] = {}
    """Fields of the spec that it set: name as in documents to (before, after)."""
    answer: dict[str, str] = {}


class Asked(Model):
    """What somebody asked for last, besides changes of the spec."""

    verb: str = ""
    """reboot, snapshot, …"""
    by: str = ""
    """Who asked."""
    time: str = ""
    """When, RFC 3339."""
    key: str = ""
    """Names this very operation; the same for every try of the same step of a Run."""
    state: str = ""
    """Asked, Working, Waiting (for a person), Done, Failed, Refused, or Unknown: nobody can say whether it happened."""
    message: str = ""
    """More of that, in words."""
    answer: dict[str, str] = Field(default_factory=dict)
    """What came of it, for example the id of an image."""


def records(annotations: Mapping[str, str]) -> list[Record]:
    """What was asked, oldest first."""
    try:
        return msgspec.json.decode(annotations.get(RECORDS) or "[]", type=list[Record])
    except msgspec.MsgspecError:
        return []


def noted(annotations: Mapping[str, str], record: Record) -> dict[str, str]:
    """The annotation with this record in it, in place of an earlier one with its key."""
    kept = [r for r in records(annotations) if r.key != record.key]
    return {RECORDS: msgspec.json.encode([*kept, record][-MOST:]).decode()}


def set_and_not_done(doc: Doc, fields: Iterable[str]) -> Record | None:
    """The operation that set these fields (as the thing calls them) of a spec and was not refused: they are for it to
    make true, and no reason to make the thing anew. None when there is none, or the spec was changed since."""
    wanted = {to_camel(f) for f in fields}
    for record in reversed(records(doc["metadata"]["annotations"])):
        stands = all(doc["spec"].get(name) == after for name, (_, after) in record.fields.items())
        if wanted and wanted <= record.fields.keys() and stands:
            return None if record.state == "refused" else record
    return None


# ── what a thing is ─────────────────────────────────────────────────────────────────────────────────────────────

_STATUS = {
    "VERIFY_RESIZE": "resized",
    "SHELVED": "shelved",
    "SHELVED_OFFLOADED": "shelved",
    "RESCUE": "in rescue mode",
    "PAUSED": "paused",
    "SUSPENDED": "suspended",
}
_STATE = {"ready": "running", "off": "stopped", "busy": "busy", "failed": "failed", "leaving": "being deleted"}
PARKED: Mapping[str, tuple[str, str]] = {
    "shelved": ("Shelved", "it is shelved; unshelve brings it back"),
    "in rescue mode": ("Rescued", "it runs a rescue image; unrescue brings it back"),
    "paused": ("Paused", "it was paused in the cloud; resume it there"),
    "suspended": ("Suspended", "it was suspended in the cloud; resume it there"),
    "resized": ("Resized", "it was resized; confirm-resize keeps that, revert-resize undoes it"),
}
"""What a server is, to the reason and words of its `Ready`, while nothing is corrected."""
_REMEDY = {
    "stopped": "start it first",
    "running": "stop it first",
    "busy": "wait until the cloud is through with it",
    "failed": "`reboot -i type=hard` or `rebuild` may mend it",
    "being deleted": "it cannot be brought back",
    **{word: told for word, (_, told) in PARKED.items()},
}


def word(thing: Thing) -> str:
    """What a server or volume is, in one word or a few."""
    if thing.state in ("ready", "off") and thing.status in _STATUS:
        return _STATUS[thing.status]
    return "there" if thing.type == "volume" and thing.state == "ready" else _STATE[thing.state]


def parked(annotations: Mapping[str, str], thing: Thing) -> tuple[str, str] | None:
    """(reason, words) when a server is left as it is, since somebody put it aside; None for all others."""
    found = word(thing)
    if found == "resized" and not annotations.get(HELD_RESIZE):
        return None
    return PARKED.get(found) if thing.type == "server" else None


# ── verbs ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Argument(NamedTuple):
    """One input of an operation."""

    name: str
    what: str
    choices: tuple[str, ...] = ()
    number: tuple[int, int] | None = None
    """Smallest and largest."""
    longest: int = 255
    needed: bool = False


Given = Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """One verb of one kind."""

    kind: str
    verb: str
    about: str
    when: frozenset[str]
    """What the thing may be, in the words of `word`."""
    takes: tuple[Argument, ...] = ()
    repeatable: bool = False
    sets: Callable[[Mapping[str, Any], Given], dict[str, Any]] = lambda spec, given: {}
    """(spec as in documents, inputs) to the fields of the spec that are set by it."""
    calls: bool | None = None
    """Whether the cloud is called at once; None: when no field of the spec is set, as the reconciler does the rest."""
    sends: tuple[str, ...] = ()
    """Inputs that the cloud gets as they are."""
    ends: frozenset[str] = frozenset()
    """What the thing is when it happened, and was not before. A busy thing shows that it happened in any case."""
    reads: bool = False
    """It changes nothing, and is not written down."""
    harder: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """`NAME=VALUE` of an input to what the thing may be besides."""


def _words(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(","))


def _power(wanted: str) -> Callable[[Mapping[str, Any], Given], dict[str, Any]]:
    return lambda spec, given: {} if spec.get("power") == "user" else {"power": wanted}


_HOST = Argument("host", "machine it goes to; the cloud chooses when it is left out")
_THERE = _words("running, stopped, paused, suspended")
_LIVING = _words("running, stopped, failed")
_ANY = _THERE | _words("busy, failed, shelved, in rescue mode, resized")

OPERATIONS: tuple[Operation, ...] = (
    Operation("Server", "start", "Start it: `spec.power` becomes `on`.", _words("running, stopped, failed, busy"),
              repeatable=True, sets=_power("on"), ends=_words("running")),
    Operation("Server", "stop", "Stop it: `spec.power` becomes `off`.", _words("running, stopped, failed, busy"),
              repeatable=True, sets=_power("off"), ends=_words("stopped")),
    Operation("Server", "reboot", "Restart its system (`type=soft`), or cut its power for a moment (`type=hard`).",
              _words("running"), (Argument("type", "how", ("soft", "hard")),), sends=("type",),
              harder={"type=hard": _words("stopped, paused, suspended, failed")}),
    Operation("Server", "rebuild", "Begin anew on the same place and addresses, from `image` or the image it has; what"
              " is on its disk is lost.", _LIVING,
              (Argument("image", "an Image, or cloud:NAME; `spec.image` becomes that"),), calls=True,
              sets=lambda spec, given: {"image": given["image"]} if given.get("image") else {}),
    Operation("Server", "resize", "Give it another flavor: `spec.flavor` becomes `flavor`. With `confirm=ask` it waits"
              " for confirm-resize or revert-resize, else it is confirmed at once.", _words("running, stopped"),
              (Argument("flavor", "a Flavor, or cloud:NAME", needed=True),
               Argument("confirm", "who confirms it", ("auto", "ask"))), repeatable=True,
              sets=lambda spec, given: {"flavor": given["flavor"]}),
    Operation("Server", "confirm-resize", "Keep the new flavor.", _words("resized"), repeatable=True, calls=False),
    Operation("Server", "revert-resize", "Go back to the flavor before: `spec.flavor` becomes that.",
              _words("resized"), repeatable=True, calls=False),
    Operation("Server", "snapshot", "Make an image of its disk.", _THERE,
              (Argument("name", "name of the image", needed=True),), sends=("name",)),
    Operation("Server", "shelve", "Put it aside: it is stopped, kept, and uses no host.", _THERE,
              ends=_words("shelved")),
    Operation("Server", "unshelve", "Bring it back after shelve.", _words("shelved"), ends=_words("running, stopped")),
    Operation("Server", "lock", "Keep its users from changing it in the cloud: `spec.locked` becomes true.", _ANY,
              repeatable=True, sets=lambda spec, given: {"locked": True}),
    Operation("Server", "unlock", "Let its users change it in the cloud: `spec.locked` becomes false.", _ANY,
              repeatable=True, sets=lambda spec, given: {"locked": False}),
    Operation("Server", "rescue", "Start it from the cloud's rescue image, with its own disk beside.", _LIVING,
              ends=_words("in rescue mode")),
    Operation("Server", "unrescue", "Start it from its own disk again.", _words("in rescue mode"),
              ends=_words("running, stopped")),
    Operation("Server", "console", "Read the end of what it wrote to its console.", _ANY,
              (Argument("lines", "how many", number=(1, 10_000)),), repeatable=True, sends=("lines",), reads=True),
    Operation("Server", "migrate", "Move it to another host; it stands still meanwhile.", _words("running, stopped"),
              (_HOST,), sends=("host",)),
    Operation("Server", "live-migrate", "Move it to another host while it runs.", _words("running, paused"),
              (_HOST,), sends=("host",)),
    Operation("Volume", "snapshot", "Make a snapshot of it.", _words("there"),
              (Argument("name", "name of the snapshot", needed=True),), sends=("name",)),
    Operation("Volume", "extend", "Make it larger: `spec.size` becomes `size`.", _words("there, busy"),
              (Argument("size", "GiB, more than it has", number=(1, 1_000_000), needed=True),), repeatable=True,
              sets=lambda spec, given: {"size": given["size"]}),
    Operation("Volume", "retype", "Give it another type: `spec.type` becomes `type`. With `migrate=yes` its data may be"
              " copied to another back end for that.", _words("there"),
              (Argument("type", "a type of volume", needed=True),
               Argument("migrate", "whether its data may move", ("no", "yes"))), calls=True,
              sets=lambda spec, given: {"type": given["type"]}, sends=("type",)),
)  # fmt: skip


def verbs(kind: str) -> tuple[str, ...]:
    """What can be done to a kind."""
    return tuple(o.verb for o in OPERATIONS if o.kind == kind)


PASSED = frozenset({"reason", "changeKey"})
"""What every body may hold besides."""


def inputs(operation: Operation, body: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a body, checked. Invalid names each that is wrong, and what it takes."""
    known = {a.name: a for a in operation.takes}
    wrong: list[Problem] = []
    given: dict[str, Any] = {}
    for name, value in body.items():
        if name in known:
            try:
                given[name] = _checked(known[name], value)
            except ValueError as error:
                wrong.append(Problem(str(error), name, remedy=f"it is {known[name].what}"))
        elif name not in PASSED:
            takes = ", ".join(known) or "nothing"
            hint = did_you_mean(name, known)
            wrong.append(Problem(f"{operation.verb} takes no {name!r}{hint}", name, remedy=f"it takes {takes}"))
    wrong += [
        Problem(f"{operation.verb} needs {a.name}", a.name, remedy=a.what)
        for a in operation.takes
        if a.needed and a.name not in body
    ]
    if wrong:
        raise Invalid(problems=tuple(wrong))
    return given


def _checked(argument: Argument, value: Any) -> Any:
    if argument.number:
        low, high = argument.number
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise ValueError(f"{str(value)[:60]!r} is not a number from {low} to {high}")
        return number
    if not isinstance(value, str) or not 0 < len(value) <= argument.longest or not value.isprintable():
        raise ValueError(f"{str(value)[:60]!r} is not a text of 1 to {argument.longest} letters")
    if argument.choices and value not in argument.choices:
        raise ValueError(f"{value!r} is not one of {', '.join(argument.choices)}")
    return value


def refusal(operation: Operation, given: Given, thing: Thing) -> Problem | None:
    """Why it cannot be done with the thing as it is; None when it can."""
    may = operation.when.union(*(operation.harder.get(f"{n}={v}", frozenset()) for n, v in given.items()))
    found = word(thing)
    if found in may:
        return None
    fits = "; ".join(_REMEDY[w] for w in (found,) if w in _REMEDY)
    needs = " or ".join(sorted(may - {"busy"}))
    return Problem(f"it is {found}, and {operation.verb} needs one that is {needs}", "status.state", remedy=fits)


def happened(operation: Operation, record: Record, thing: Thing) -> bool:
    """Whether one sees that a call without an answer was heard; False says nothing."""
    if thing.state == "busy" and record.was != "busy":
        return True
    now = word(thing)
    return now in operation.ends and record.was not in operation.ends


def asked_last(
    annotations: Mapping[str, str], before: Asked, epoch: int, thing: Thing | None, pending: Iterable[str]
) -> Asked:
    """The newest operation, for the status. `pending`: fields of the thing that are not as the spec says; `before`:
    what the status says so far, and how it once ended stays."""
    known = records(annotations)
    if not known:
        return Asked()
    last = known[-1]
    if before.key == last.key and before.state in ("Done", "Failed", "Refused"):
        return before
    held = thing is not None and word(thing) == "resized" and bool(annotations.get(HELD_RESIZE))
    state, message = _progress(last, epoch, thing, {to_camel(p) for p in pending}, held)
    return Asked(
        verb=last.verb, by=last.by, time=now(last.at), key=last.key, state=state, message=message, answer=last.answer
    )


def _progress(record: Record, epoch: int, thing: Thing | None, pending: set[str], held: bool) -> tuple[str, str]:
    if record.state == "refused":
        return "Refused", record.message
    if record.state == "unknown" or (record.state == "asked" and record.epoch != epoch):
        return "Unknown", record.message or "the server stopped before the answer came; it may or may not have happened"
    if record.state == "asked":
        return "Asked", "the cloud is being asked"
    if thing is None or thing.state == "busy":
        return "Working", "the cloud is working on it"
    if thing.state == "failed":
        return "Failed", thing.fault[:LONGEST] or "it failed in the cloud"
    if held and record.verb == "resize":
        return "Waiting", PARKED["resized"][1]
    if pending & record.fields.keys() or (thing.status == "VERIFY_RESIZE" and record.verb != "snapshot"):
        return "Working", "it is not as the spec says yet"
    return "Done", record.message
