"""The judge of the demonstration: believes sockets, /proc and git, and holds what the public API says against them.

It imports nothing of the program it judges, nor of the demonstration. Every judgement returns the list of reasons why
something does not hold; an empty list means that it does.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

Doc = dict[str, Any]
Reasons = list[str]
LABEL = "SERVICE"
"""Environment variable in which every declared service carries its own name: the observer trusts no list for that."""


class Wanted(NamedTuple):
    """One service as git declares it."""

    name: str
    """`namespace/name`."""
    speaks: Literal["http", "tcp", "nothing"]
    port: int = 0
    replicas: int = 1
    version: str = ""
    """Value of VERSION in the environment of its processes; any when empty."""
    says: str = ""
    """Text its HTTP answer (or, when it runs once, its log) holds."""
    behind: str = ""
    """Text that the service it depends on answers when it is asked through this one (`/backend`)."""
    apart: bool = False
    """Its replicas are on different sites."""
    once: bool = False
    """It runs once: no process is left, and its log tells that it did."""


class Unit(NamedTuple):
    """One running instance, as /proc shows it: the first process of a tree."""

    service: str
    site: str
    run: str
    """GROUND_RUN: differs for every start."""
    pid: int
    ticks: int
    """Start time in clock ticks since boot; pid and ticks together are never used twice."""
    address: str
    directory: str
    version: str


class NoAnswer(Exception):
    """The API did not answer, or not with what it should."""


class Verdict(NamedTuple):
    """What came out of watching."""

    ok: bool
    seconds: float
    reasons: Reasons
    """Why not, as last seen."""


def until(
    check: Callable[[], Reasons],
    seconds: float,
    *,
    pause: float = 0.1,
    stay: float = 0.0,
    told: Callable[[Reasons], None] = lambda _: None,
) -> Verdict:
    """Look again and again until the judgement holds (and goes on holding for `stay` seconds) or time is up.

    `Verdict.seconds` is the time to the look from which on it held."""
    began = time.monotonic()
    held_since: float | None = None
    while True:
        at = time.monotonic()
        try:
            reasons = check()
        except (NoAnswer, OSError) as problem:
            reasons = [str(problem)]
        held_since = None if reasons else held_since or at
        if held_since is not None and time.monotonic() - held_since >= stay:
            return Verdict(True, held_since - began, [])
        told(reasons)
        if time.monotonic() - began > seconds:
            return Verdict(False, time.monotonic() - began, reasons or ["it held, but not for long enough"])
        time.sleep(pause)


# ------------------------------------------------------------------------------------------------ /proc


def _read_unit(pid: int, sites: str) -> tuple[Unit, int] | None:
    """(the unit a process belongs to, its parent), None for any other process."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        if b"GROUND_RUN=" not in environ:
            return None
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    pairs = (entry.decode(errors="replace").partition("=") for entry in environ.split(b"\0") if entry)
    variables = {name: value for name, _, value in pairs}
    directory = variables.get("GROUND_DIR", "")
    if stat[0] in (b"Z", b"X") or not directory.startswith(sites):
        return None
    unit = Unit(
        service=variables.get(LABEL, ""),
        site=directory.removeprefix(sites).split("/")[0],
        run=variables["GROUND_RUN"],
        pid=pid,
        ticks=int(stat[19]),
        address=variables.get("GROUND_ADDRESS", ""),
        directory=directory,
        version=variables.get("VERSION", ""),
    )
    return unit, int(stat[1])


def running(sites: Path) -> list[Unit]:
    """Every instance that runs below the folder of the sites: one for each tree of processes."""
    found = {int(n): got for n in os.listdir("/proc") if n.isdigit() and (got := _read_unit(int(n), f"{sites}/"))}
    return sorted(unit for unit, parent in found.values() if parent not in found or found[parent][0].run != unit.run)


class Recorder:
    """Notes, until it is left, every instance that is seen running: what was started twice shows up here. Beside that
    it keeps the facts that `read` tells, whenever it tells any: what had been acknowledged when a server was killed."""

    def __init__(self, sites: Path, read: Callable[[], dict[int, Doc]] = dict, every: float = 0.03) -> None:
        self._sites, self._read, self._every = sites, read, every
        self._stop = threading.Event()
        self.seen: set[Unit] = set()
        self.facts: dict[int, Doc] = {}
        self._threads = [threading.Thread(target=act, daemon=True) for act in (self._watch, self._listen)]

    def __enter__(self) -> Recorder:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.seen.update(running(self._sites))

    def _listen(self) -> None:
        while not self._stop.wait(self._every * 3):
            with contextlib.suppress(NoAnswer):
                self.facts.update(self._read())

    def doubled(self, wanted: Iterable[Wanted]) -> Reasons:
        """Services of which more instances of the wanted version were ever started than there should be."""
        why = []
        for one in wanted:
            runs = {unit.run for unit in self.seen if unit.service == one.name and unit.version == one.version}
            if len(runs) > one.replicas:
                why.append(f"{one.name}: {len(runs)} starts of version {one.version}, {one.replicas} wanted")
        return why


# ------------------------------------------------------------------------------------------------ sockets


def ask_http(address: str, port: int, path: str = "/", timeout: float = 2.0) -> tuple[int, str]:
    """(status, text) of a GET, straight to the address."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20).decode(errors="replace")
    except http.client.HTTPException as problem:
        raise OSError(f"{address}:{port} does not speak HTTP ({type(problem).__name__})") from problem
    finally:
        connection.close()


def echoes(address: str, port: int, timeout: float = 2.0) -> bool:
    """What is sent over TCP comes back."""
    word = os.urandom(8).hex().encode()
    with socket.create_connection((address, port), timeout=timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(word + b"\n")
        heard = b""
        while word not in heard and (piece := connection.recv(4096)):
            heard += piece
    return word in heard


def answering(one: Wanted, unit: Unit) -> Reasons:
    """The instance answers on its own address, with what it should."""
    where = f"{one.name} at {unit.site} ({unit.address}:{one.port})"
    try:
        if one.speaks == "tcp" and not echoes(unit.address, one.port):
            return [f"{where} does not echo"]
        if one.speaks == "http":
            status, text = ask_http(unit.address, one.port)
            if status != 200:
                return [f"{where} answers {status}"]
            if one.says not in text:
                return [f"{where} does not say {one.says!r}"]
            if one.behind:
                status, text = ask_http(unit.address, one.port, "/backend")
                if status != 200 or one.behind not in text:
                    return [f"{where} does not reach the service behind it"]
            if (pid := json.loads(ask_http(unit.address, one.port, "/info")[1]).get("pid")) != unit.pid:
                return [f"{where} is answered by pid {pid}, not {unit.pid}"]
    except (OSError, ValueError) as problem:
        return [f"{where} does not answer: {problem}"]
    return []


# ------------------------------------------------------------------------------------------------ git


def branch_head(repository: Path, branch: str = "main") -> str:
    """The commit a branch of a bare repository is at."""
    command = ["git", "--git-dir", str(repository), "rev-parse", f"refs/heads/{branch}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoAnswer(f"git: {done.stderr.strip()}")
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------ the public API


def condition(doc: Doc, kind: str) -> Doc:
    """A condition of a resource; an empty one with status Unknown when it does not say."""
    found = [c for c in doc.get("status", {}).get("conditions", []) if c.get("type") == kind]
    return found[0] if found else {"type": kind, "status": "Unknown", "reason": "", "message": "says nothing"}


def named(doc: Doc) -> str:
    meta = doc["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


class Observer:
    """Judges one demonstration: its sites' folder, its bare repository and its server's API."""

    def __init__(self, sites: Path, repository: Path, url: str, token: Callable[[], str], source: str) -> None:
        self._sites, self._repository, self._token, self._source = sites, repository, token, source
        host, _, port = url.removeprefix("http://").partition(":")
        self._server = (host, int(port))

    # -------------------------------------------------------------------------------------- reading

    def get(self, path: str, **query: str | int) -> Any:
        """JSON of one GET below /api/v1 (text where it is not JSON)."""
        target = f"/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")
        connection = http.client.HTTPConnection(*self._server, timeout=10)
        try:
            connection.request("GET", target, headers={"Authorization": f"Bearer {self._token()}"})
            answer = connection.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as problem:
            raise NoAnswer(f"the API does not answer: {type(problem).__name__} {problem}") from problem
        finally:
            connection.close()
        if answer.status != 200:
            raise NoAnswer(f"GET {target} answers {answer.status}: {raw[:200].decode(errors='replace')}")
        if not (answer.headers.get("Content-Type") or "").startswith("application/json"):
            return raw.decode(errors="replace")
        return json.loads(raw)

    def listed(self, plural: str) -> dict[str, Doc]:
        """Every resource of a kind, by `namespace/name`."""
        return {named(doc): doc for doc in self.get(plural, limit=500)["items"]}

    def units(self, service: str = "") -> list[Unit]:
        """What runs, as /proc shows it."""
        return [unit for unit in running(self._sites) if not service or unit.service == service]

    def facts(self, what: Literal["events", "audit"]) -> dict[int, Doc]:
        """The last thousand entries of the timeline or the audit, by number."""
        return {int(entry["seq"]): entry for entry in self.get(what, limit=1000)["items"]}

    def plan(self, scope: str) -> Doc | None:
        """The plan held for a scope."""
        found = [plan for plan in self.get("plans", state="held")["items"] if plan["scope"] == scope]
        return found[0] if found else None

    # -------------------------------------------------------------------------------------- converge

    def converged(self, wanted: Sequence[Wanted], sites: Collection[str] = ()) -> Reasons:
        """Every service is Ready by the API's account and by our own eyes, and nothing else runs."""
        docs, units, why = self.listed("services"), self.units(), list[str]()
        for one in wanted:
            mine = [unit for unit in units if unit.service == one.name]
            why += _said(one, docs.get(one.name)) + _counted(one, mine)
            for unit in mine:
                why += answering(one, unit)
            if one.once and not why:
                why += self._ran(one)
        names = {one.name for one in wanted}
        why += [f"{name} exists and nobody declares it" for name in sorted(docs.keys() - names)]
        why += [f"pid {u.pid} at {u.site} runs for {u.service or 'nobody'}" for u in units if u.service not in names]
        if sites:
            known = self.listed("sites")
            ready = {name for name, doc in known.items() if condition(doc, "Ready")["status"] == "True"}
            why += [f"site {name} is not Ready" for name in sites if name not in ready]
        return why

    def _ran(self, one: Wanted) -> Reasons:
        namespace, name = one.name.split("/")
        log = str(self.get(f"namespaces/{quote(namespace)}/services/{quote(name)}/log"))
        return [] if one.says in log else [f"{one.name}: its log does not say {one.says!r}"]

    # -------------------------------------------------------------------------------------- change

    def read_from_git(self, commit: str) -> Reasons:
        """The branch is at this commit, and the Source says that it read it and found nothing wrong."""
        head = branch_head(self._repository)
        if head != commit:
            return [f"the branch is at {head[:8]}, not at {commit[:8]}"]
        source = self.get(f"sources/{self._source}")
        if commit not in json.dumps(source["status"]):
            return [f"Source {self._source} has not read commit {commit[:8]}"]
        ready = condition(source, "Ready")
        return [] if ready["status"] == "True" else [f"Source {self._source}: {ready['reason']} {ready['message']}"]

    def live(self, one: Wanted) -> Reasons:
        """Every instance of a service answers with what it should, by our own eyes only."""
        mine = self.units(one.name)
        return _counted(one, mine) + [reason for unit in mine for reason in answering(one, unit)]

    # -------------------------------------------------------------------------------------- heal

    def replaced(self, one: Wanted, old: Unit) -> Reasons:
        """The killed process is gone, and another one answers in its place."""
        return ["the killed process still runs"] if old in self.units(one.name) else self.live(one)

    def incident(self, name: str, since: float) -> Reasons:
        """An incident about this service was opened after `since` and is closed."""
        namespace, _, short = name.partition("/")
        for doc in self.listed("incidents").values():
            subject, status = doc["spec"]["subject"], doc["status"]
            about = (subject["kind"], subject.get("namespace", ""), subject["name"]) == ("Service", namespace, short)
            # The incident may say "since" the second before the kill: RFC 3339 times may be whole seconds.
            if not about or _when(status.get("openedAt", "")) < since - 1:
                continue
            if status.get("phase") != "Closed" or _when(status["closedAt"]) < _when(status["openedAt"]):
                return [f"the incident {named(doc)} is still {status.get('phase')}"]
            return [] if len(status["timeline"]) > 1 else [f"the incident {named(doc)} does not tell what happened"]
        return [f"no incident about {name} was opened"]

    def on_timeline(self, name: str, after: int, words: Collection[str] = (), warning: bool = True) -> Reasons:
        """The timeline has an entry younger than number `after` about a service or its instances, with these words."""
        namespace, _, short = name.partition("/")
        others = []
        for seq, entry in sorted(self.facts("events").items()):
            if seq <= after or entry["namespace"] != namespace or not str(entry["name"]).startswith(short):
                continue
            text = json.dumps(entry)
            if (not warning or entry["type"] == "Warning") and all(word in text for word in words):
                return []
            others.append(f"{entry['type']} {entry['reason']} {', '.join(entry.get('fields') or {})}".rstrip())
        what = " ".join(("warning" if warning else "entry", f"about {name}", *words))
        return [f"the timeline has no {what}, only: {'; '.join(others) or 'nothing'}"]

    # -------------------------------------------------------------------------------------- drift

    def corrected(self, one: Wanted, unit: Unit, path: str, content: str) -> Reasons:
        """The file is as declared again, the process was not touched, and it answers as before."""
        if unit not in self.units(one.name):
            return [f"pid {unit.pid} was replaced to correct a file"]
        found = (Path(unit.directory) / path).read_text(encoding="utf-8")
        return answering(one, unit) if found == content else [f"{path} is {found!r}"]

    # -------------------------------------------------------------------------------------- guard

    def held(self, scope: str, names: Collection[str]) -> Reasons:
        """A plan is held for this scope that deletes exactly these services and does nothing else."""
        plan = self.plan(scope)
        if plan is None:
            return [f"no plan is held for {scope}"]
        found = sorted(f"{c['verb']} {c['target']['type']} {c['target']['id']}" for c in plan["changes"])
        should = sorted(f"delete Service {name}" for name in names)
        if found != should:
            return [f"the plan held for {scope} would {', '.join(found)}; expected {', '.join(should)}"]
        return [] if str(plan.get("digest", "")).startswith("sha256:") else ["the held plan has no digest"]

    def untouched(self, before: Collection[Unit], names: Collection[str]) -> Reasons:
        """The same processes run as before, and no service is being deleted."""
        docs, now = self.listed("services"), set(self.units())
        why = [f"{u.service}: pid {u.pid} is gone" for u in before if u not in now]
        why += [f"{u.service}: pid {u.pid} is new" for u in now if u not in before]
        why += [f"{name} is gone" for name in names if name not in docs]
        return why + [
            f"{n} is being deleted" for n in names if n in docs and docs[n]["metadata"].get("deletionTimestamp")
        ]

    def gone(self, names: Collection[str], before: Iterable[Unit], ports: dict[str, int]) -> Reasons:
        """These services exist no more: not for the API, not as processes, not on their sockets."""
        docs, units = self.listed("services"), self.units()
        why = [f"{name} still exists" for name in names if name in docs]
        why += [f"{u.service}: pid {u.pid} still runs" for u in units if u.service in names]
        for unit in before:
            if unit.service in names and ports.get(unit.service) and _connects(unit.address, ports[unit.service]):
                why.append(f"{unit.service} still answers at {unit.address}")
        return why

    # -------------------------------------------------------------------------------------- cut and return

    def unknown(self, site: str, before: Collection[Unit], wanted: Sequence[Wanted], since: float) -> Reasons:
        """What is at an unreachable site is Unknown with reason and age, nothing is called failed, and all of it runs.

        A service with a replica elsewhere stays available, and answers there."""
        services, instances = self.listed("services"), self.listed("instances")
        why = _is_unknown(f"site {site}", self.listed("sites")[site], since)
        for name, doc in instances.items():
            if doc["spec"]["site"] == site and not doc["spec"]["template"].get("runOnce"):
                why += _is_unknown(f"instance {name}", doc, since)
        for one in wanted:
            doc = services[one.name]
            places = {unit.site for unit in before if unit.service == one.name}
            if places == {site}:
                why += _is_unknown(one.name, doc, since)
            elif site in places and condition(doc, "Available")["status"] != "True":
                why.append(f"{one.name} has a replica elsewhere and is not Available")
        whole = {**services, **instances, **{f"site {n}": d for n, d in self.listed("sites").items()}}
        for name, doc in whole.items():
            said = {c["type"]: c for c in doc["status"].get("conditions", []) if c["type"] in ("Ready", "Available")}
            why += [f"{name} is called {t}=False ({c['reason']})" for t, c in said.items() if c["status"] == "False"]
        return why + self.same(before, wanted)

    def same(self, before: Collection[Unit], wanted: Iterable[Wanted]) -> Reasons:
        """Exactly the processes of before run, and all of them answer."""
        now, why = set(self.units()), list[str]()
        why += [f"{u.service} at {u.site}: pid {u.pid} is gone" for u in before if u not in now]
        why += [f"{u.service} at {u.site}: pid {u.pid} was started" for u in now if u not in before]
        by_name = {one.name: one for one in wanted}
        return why + [r for u in now if u.service in by_name for r in answering(by_name[u.service], u)]

    # -------------------------------------------------------------------------------------- crash

    def on_record(self) -> dict[int, Doc]:
        """Audit and timeline as they are now, by number."""
        return self.facts("audit") | self.facts("events")

    def kept(self, before: dict[int, Doc]) -> Reasons:
        """Everything that was on record is on record still, unchanged, as far back as the API tells."""
        audit, events = self.facts("audit"), self.facts("events")
        now, oldest = audit | events, max(min(audit, default=0), min(events, default=0))
        lost = [seq for seq, entry in sorted(before.items()) if seq >= oldest and now.get(seq) != entry]
        return [f"{len(lost)} entries on record are lost or changed, the first is {before[lost[0]]}"] if lost else []

    def done_once(self) -> Reasons:
        """Nothing was made or started twice, by the account of the API and of the audit."""
        docs = self.listed("instances")
        why = [f"{n} was started {c} times" for n, d in docs.items() if (c := d["status"].get("starts", 0)) > 1]
        made: dict[str, int] = {}
        for entry in self.facts("audit").values():
            target = entry.get("detail", {}).get("target", {})
            if (entry["verb"], entry["outcome"], target.get("type")) == ("create", "done", "unit"):
                made[target["id"]] = made.get(target["id"], 0) + 1
        return why + [f"the audit has {count} creations of unit {name}" for name, count in made.items() if count > 1]


# ------------------------------------------------------------------------------------------------ small judgements


def _said(one: Wanted, doc: Doc | None) -> Reasons:
    """What the API says of a service."""
    if doc is None:
        return [f"{one.name} does not exist"]
    ready, meta = condition(doc, "Ready"), doc["metadata"]
    if meta.get("deletionTimestamp"):
        return [f"{one.name} is being deleted"]
    if ready["status"] != "True":
        return [f"{one.name} is not Ready: {ready.get('reason')} {ready.get('message', '')}".rstrip()]
    if doc["status"].get("observedGeneration") != meta["generation"]:
        return [f"{one.name}: its status is about an older generation"]
    return []


def _counted(one: Wanted, units: Sequence[Unit]) -> Reasons:
    """As many processes as wanted, of the wanted version, where they should be."""
    count = 0 if one.once else one.replicas
    if len(units) != count:
        return [f"{one.name}: {len(units)} running, {count} wanted"]
    if old := [unit for unit in units if one.version and unit.version != one.version]:
        return [f"{one.name}: {len(old)} of {count} are still version {old[0].version}"]
    if one.apart and len({unit.site for unit in units}) != count:
        return [f"{one.name}: two replicas share a site"]
    return []


def _is_unknown(name: str, doc: Doc, since: float) -> Reasons:
    ready = condition(doc, "Ready")
    if ready["status"] != "Unknown":
        return [f"{name} is Ready={ready['status']}, not Unknown"]
    if not ready.get("reason"):
        return [f"{name} is Unknown without a reason"]
    if _when(ready.get("lastTransitionTime", "")) < since - 1:
        return [f"{name} is Unknown and does not say since when"]
    return []


def _connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _when(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0 when it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
