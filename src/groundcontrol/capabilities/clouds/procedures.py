"""Maintenance of a host: closing and opening it, and the Run that empties it and hands it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from groundcontrol.kernel.claims import owners_at
from groundcontrol.kernel.errors import Conflict, Invalid, NotFound, Problem, Unavailable
from groundcontrol.kernel.incarnation import observing
from groundcontrol.kernel.resource import Doc, Key, did_you_mean
from groundcontrol.kernel.rights import Subject
from groundcontrol.ports.cloud import CloudFacts, Host, Thing

How = Literal["live", "cold", "stop"]
HOWS: tuple[How, ...] = ("live", "cold", "stop")
MOST = 60
"""Servers of one Run: it has at most 200 steps."""
FRESH = 30.0
"""Seconds a listing may be old to say that a host is empty."""
MOVES: Mapping[How, str] = {"live": "live-migrate", "cold": "migrate", "stop": "stop"}


class Placed(NamedTuple):
    """A server on a host."""

    thing: Thing
    key: Key | None
    """The resource it belongs to; None: nobody's here."""


def disable_host(runtime: Any, subject: Subject, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Let no new server come to a host of the cloud; those on it stay. Takes `host`*."""
    name = _host(runtime, key, body).name
    reason = str(body.get("reason") or "")[:200] or f"by {subject.name}"
    return _set_host(runtime, subject, key, name, "disable", {"reason": reason})


def enable_host(runtime: Any, subject: Subject, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Let servers come to a host of the cloud again. Takes `host`*."""
    return _set_host(runtime, subject, key, _host(runtime, key, body).name, "enable", {})


def _set_host(
    runtime: Any, subject: Subject, key: Key, host: str, verb: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    driver = f"site/{key.name}"

    def ask(tx: Any) -> None:
        runtime.access.require_in(tx, subject, f"{verb}-host", "Site", name=key.name, labels=_labels(tx.get(key)))
        if found := observing(tx.conn):
            raise Unavailable(f"nothing is changed for now: {found.why}")
        tx.audit(subject.name, f"{verb}-host", key, "asked", host=host)

    runtime.store.write(ask)
    # Asked twice it is as asked once: a lost answer needs nothing but another try.
    runtime.world.instance(driver).port.act("host", host, verb, given)
    runtime.store.write(lambda tx: tx.audit(subject.name, f"{verb}-host", key, host=host))
    return {"host": host, "done": verb}


def host_is_empty(runtime: Any, subject: Subject, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Say whether anything still runs on a host of the cloud; refused with what does. Takes `host`*."""
    host, driver = _host(runtime, key, body), f"site/{key.name}"
    if not runtime.world.refreshed(driver, runtime.store.clock() - FRESH):
        raise Conflict(f"{key} is being looked at anew; try again in a moment")
    port = runtime.world.instance(driver).port
    left = []
    for placed in _on(runtime, key, host.name):
        try:
            now = port.get("server", placed.thing.id)
        except NotFound:
            continue
        if now.host == host.name and now.state != "off":
            left.append(str(placed.key or now.id))
    if left:
        raise Conflict(f"{len(left)} still run on {host.name}: {', '.join(sorted(left)[:5])}")
    return {"host": host.name, "empty": "yes"}


def drain_host(runtime: Any, subject: Subject, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Start a Run that closes a host, moves or stops what runs on it one after the other, sees that nothing runs there
    any more, asks a person, and opens it again. Takes `host`*, `namespace`* (where the Run is), `how` (live, cold or
    stop; live when not said), and `live`, `cold`, `stop`: servers as NAMESPACE/NAME, with commas, that differ."""
    host, namespace = _host(runtime, key, body), str(body.get("namespace") or "")
    if not namespace:
        raise Invalid(problems=(Problem("drain-host needs the namespace its Run is in", "namespace"),))
    placed = _on(runtime, key, host.name)
    hows = _hows(body, placed)
    strangers = sorted(p.thing.id for p in placed if p.key is None and p.thing.state != "off")
    if len(hows) > MOST:
        raise Invalid(f"{len(hows)} servers are on {host.name}, and one Run takes {MOST}; move some of them first")
    spec = {"steps": _steps(key.name, host.name, hows)}
    name = f"drain-{''.join(c if c.isalnum() else '-' for c in host.name.lower())[:30].strip('-')}"

    def start(tx: Any) -> str:
        runtime.access.require_in(tx, subject, "drain-host", "Site", name=key.name, labels=_labels(tx.get(key)))
        taken = {e.key.name for e in tx.entries("Run", namespace)}
        free = next(f"{name}-{n}" for n in range(1, len(taken) + 2) if f"{name}-{n}" not in taken)
        where = {"name": free, "namespace": namespace}
        doc = runtime.kinds.parse({"apiVersion": "ground/v1", "kind": "Run", "metadata": where, "spec": spec})
        runtime.access.admit(tx, subject, "create", Key("Run", namespace, free), None, doc)
        tx.create(doc, subject.name)
        tx.audit(subject.name, "drain-host", key, host=host.name, run=f"{namespace}/{free}", servers=len(hows))
        return free

    answer = {"run": f"{namespace}/{runtime.store.write(start)}", "servers": len(hows)}
    return answer | ({"notOurs": ", ".join(strangers[:20])} if strangers else {})


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _labels(doc: Doc | None) -> dict[str, str]:
    return (doc["metadata"].get("labels") or {}) if doc else {}


def _host(runtime: Any, key: Key, body: Mapping[str, Any]) -> Host:
    """The host that is meant, as it was last seen."""
    name, facts = str(body.get("host") or ""), runtime.world.snapshot(f"site/{key.name}").facts
    known = {h.name: h for h in facts.hosts} if isinstance(facts, CloudFacts) else {}
    if not known:
        raise Invalid(problems=(Problem(f"{key} tells of no hosts that one could close", "metadata.name"),))
    if name not in known:
        remedy = f"known: {', '.join(sorted(known)[:10])}"
        raise Invalid(problems=(Problem(f"no host {name!r}{did_you_mean(name, known)}", "host", remedy=remedy),))
    return known[name]


def _on(runtime: Any, key: Key, host: str) -> list[Placed]:
    """Servers on a host, as they were last seen, by their keys."""
    driver = f"site/{key.name}"
    things = [t for t in runtime.world.snapshot(driver).items.values() if isinstance(t, Thing)]
    there = [t for t in things if t.type == "server" and t.host == host]
    with runtime.store.reading() as conn:
        owners = owners_at(conn, driver, [("server", t.id) for t in there])
    keys = {e.uid: e.key for e in runtime.store.entries("Server")}
    placed = [Placed(t, keys.get(owners.get(("server", t.id), ""))) for t in there]
    return sorted(placed, key=lambda p: (str(p.key), p.thing.id))


def _hows(body: Mapping[str, Any], placed: Iterable[Placed]) -> dict[Key, How]:
    """What is to become of each of our servers. One that stands still is moved cold: nothing of it runs."""
    general = str(body.get("how") or "live")
    if general not in HOWS:
        raise Invalid(problems=(Problem(f"{general!r} is not one of {', '.join(HOWS)}", "how"),))
    named: dict[str, How] = {
        path: how for how in HOWS for path in str(body.get(how) or "").replace(" ", "").split(",") if path
    }
    ours = {p.key.path: p for p in placed if p.key is not None}
    if unknown := sorted(named.keys() - ours.keys()):
        raise Invalid(problems=(Problem(f"not on this host: {', '.join(unknown[:5])}", named[unknown[0]]),))
    found: dict[Key, How] = {}
    for path, (thing, key) in ours.items():
        how = next(h for h in HOWS if h == named.get(path, general))
        if thing.state == "off" and how == "live":
            how = "cold"
        if key is not None and not (thing.state == "off" and how == "stop"):
            found[key] = how
    return found


def _steps(site: str, host: str, hows: Mapping[Key, How]) -> list[Doc]:
    """The Run: close, empty, verify, ask, open, and start again what was stopped."""
    here: Doc = {"kind": "Site", "name": site, "body": {"host": host}}
    opened = {**here, "verb": "enable-host"}
    steps: list[Doc] = [{"name": "close", "act": {**here, "verb": "disable-host"}, "undo": opened}]
    again: list[Doc] = []
    for number, (key, how) in enumerate(hows.items(), 1):
        server, verb = {"kind": "Server", "namespace": key.namespace, "name": key.name}, MOVES[how]
        step: Doc = {"name": f"move_{number}", "act": {**server, "verb": verb}, "onFailure": "continue"}
        mine = f"resource.status.operation.key.startsWith(run.uid) && resource.status.operation.verb == '{verb}'"
        until = f"{mine} && resource.status.operation.state in ['Done', 'Failed', 'Refused']"
        done = f"steps.move_{number}.state == 'done'"
        steps += [
            # The action knows the key of its step: asked again it looks, and does not do it twice.
            step | ({"undo": {**server, "verb": "start"}} if how == "stop" else {"onUnknown": "repeat"}),
            {"name": f"moved_{number}", "when": done, "wait": {**server, "until": until, "timeout": 3600},
             "onFailure": "continue"},
        ]  # fmt: skip
        if how == "stop":
            start: Doc = {**server, "verb": "start"}
            again.append({"name": f"start_{number}", "when": done, "act": start, "onFailure": "continue"})
    question = f"Nothing runs on {host} of site {site} any more. Is the work on it done, and may it be used again?"
    return [
        *steps,
        {"name": "empty", "act": {**here, "verb": "host-is-empty"}, "timeout": 600},
        {"name": "handback", "ask": {"question": question, "timeout": 30 * 86_400}},
        {"name": "open", "act": opened},
        *again,
    ]


ACTIONS = {
    ("Site", "disable-host"): disable_host,
    ("Site", "enable-host"): enable_host,
    ("Site", "host-is-empty"): host_is_empty,
    ("Site", "drain-host"): drain_host,
}
REPEATABLE = frozenset({("Site", "disable-host"), ("Site", "enable-host"), ("Site", "host-is-empty")})
