"""The story in eight steps: each does something real to the demonstration's world and asks the observer about it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from groundcontrol.demo import manifests
from groundcontrol.demo.client import Refused
from groundcontrol.demo.federation import Federation
from groundcontrol.demo.manifests import ALL, State, path_of, tree, wanted
from groundcontrol.demo.observer import Observer, Reasons, Recorder, Unit, Verdict, Wanted, condition, until
from groundcontrol.demo.place import SITES
from groundcontrol.demo.telling import Teller

SCOPE = f"source:{manifests.SOURCE}"
WEB, ARCHIVE = "alpha/web", "alpha/archive"
FILE = "message.txt"
LIMIT = 90.0
"""Seconds after which something that does not come true is given up; steps are judged by truth, not by time."""


class Failed(Exception):
    """A step did not hold; the message says what was seen instead."""


class Result(NamedTuple):
    """How a step that held went."""

    seconds: float
    """The time that matters in it: to ready, to live, to healthy."""
    detail: str


class Story:
    """Plays the steps. Every step begins and ends with all services as the repository declares them."""

    def __init__(self, federation: Federation, observer: Observer, teller: Teller) -> None:
        self._world, self._observer, self._teller = federation, observer, teller
        self._state = State()
        self.steps: dict[str, tuple[str, Callable[[], Result]]] = {
            "converge": ("six services declared in git become Ready", self.converge),
            "change": ("a commit alters one, and it is live", self.change),
            "heal": ("a process is killed with -9", self.heal),
            "drift": ("somebody edits a file of a running service by hand", self.drift),
            "guard": ("a commit would delete five of six services", self.guard),
            "cut": ("a site can no longer be reached", self.cut),
            "return": ("it comes back", self.come_back),
            "crash": ("the server is killed with -9 in the middle of its work, three times", self.crash),
        }
        self._cut_site = ""
        self._before_cut: list[Unit] = []

    # ------------------------------------------------------------------------------------------ what steps share

    @property
    def _wanted(self) -> dict[str, Wanted]:
        return wanted(self._state)

    def _all_well(self) -> Reasons:
        return self._observer.converged(list(self._wanted.values()), SITES)

    def _until(self, what: str, check: Callable[[], Reasons], seconds: float = LIMIT, **how: float) -> Verdict:
        """Wait with a line of progress; Failed with the last reasons when it does not come true."""

        def told(why: Reasons) -> None:
            self._teller.waits(f"{what}: {_few(why) if why else 'so far it is'}")

        verdict = until(check, seconds, told=told, **how)
        if not verdict.ok:
            raise Failed(f"{what}: not so after {verdict.seconds:.0f} s: {_few(verdict.reasons, 4)}")
        return verdict

    def _until_well(self, stay: float = 0.0) -> Verdict:
        return self._until("all services Ready", self._all_well, stay=stay)

    def _declare(self, message: str, state: State, without: tuple[str, ...] = ()) -> tuple[float, str]:
        """Commit the tree of this state and push it; (time just before `git commit`, the commit)."""
        self._state = state
        files = tree(self._world.place, state)
        for name in without:
            del files[path_of(name)]
        repository = self._world.repository
        began = repository.commit(message, files, repository.files() - files.keys())
        began = time.monotonic() if began is None else began
        said = repository.push()
        commit = repository.head()
        self._teller.did(f"git commit {commit[:8]} {message!r}, git push" + (f"; {said}" if said else ""))
        return began, commit

    def _newest_event(self) -> int:
        return max(self._observer.facts("events"), default=0)

    def restore(self) -> None:
        """After a step that failed: back to where every step begins. Failed when that cannot be reached."""
        for site in SITES:
            self._world.proxy.restore(site)
        self._world.mend()
        self._declare("Back to where it began", self._state)
        self._until_well()

    # ------------------------------------------------------------------------------------------ converge, change

    def converge(self) -> Result:
        began, commit = self._declare("Declare three sites, two groups, six services", State())
        self._until("all services Ready", self._all_well)
        seconds = time.monotonic() - began
        self._until("the Source has read the commit", lambda: self._observer.read_from_git(commit))
        places = {unit.site for unit in self._observer.units()}
        return Result(
            seconds,
            f"{len(ALL)} services Ready at {len(places)} sites and answering on their sockets {seconds:.1f} s after"
            " git commit; portal reaches web, archive is at two sites, ingest has completed",
        )

    def change(self) -> Result:
        before = self._observer.units()
        greeting = f"Changed by a commit at {time.strftime('%H:%M:%S')}.\n"
        began, commit = self._declare("Let web say something else", self._state._replace(greeting=greeting))
        self._until("web says so", lambda: self._observer.live(self._wanted[WEB]), pause=0.03)
        seconds = time.monotonic() - began
        self._until("the Source has read the commit", lambda: self._observer.read_from_git(commit))
        self._until_well()
        self._hold(self._observer.same(before, self._wanted.values()))
        return Result(
            seconds, f"commit {commit[:8]} was live {seconds:.1f} s after git commit; no process was restarted"
        )

    # ------------------------------------------------------------------------------------------ heal, drift

    def heal(self) -> Result:
        web = self._wanted[WEB]
        (old,) = self._observer.units(WEB)
        mark, since, began = self._newest_event(), time.time(), time.monotonic()
        os.kill(old.pid, signal.SIGKILL)
        self._teller.did(f"kill -9 {old.pid}, the process of {WEB} at {old.site}")
        self._until("web answers again", lambda: self._observer.replaced(web, old), pause=0.03)
        seconds = time.monotonic() - began
        (new,) = self._observer.units(WEB)
        self._until("the incident is closed", lambda: self._observer.incident(WEB, since))
        self._until("it is on the timeline", lambda: self._observer.on_timeline(WEB, mark))
        self._until_well()
        return Result(
            seconds,
            f"pid {new.pid} answered {seconds:.1f} s after pid {old.pid} was killed; an incident was opened and closed",
        )

    def drift(self) -> Result:
        web = self._wanted[WEB]
        (unit,) = self._observer.units(WEB)
        mark, path, began = self._newest_event(), Path(unit.directory) / FILE, time.monotonic()
        # Into the file as it is: a new file would belong to us, not to the tenant.
        with path.open("r+", encoding="utf-8") as file:
            file.write("Somebody was here.\n")
            file.truncate()
        self._teller.did(f"edited {FILE} of {WEB} at {unit.site} by hand")
        self._until(
            "it is put back", lambda: self._observer.corrected(web, unit, FILE, self._state.greeting), pause=0.03
        )
        seconds = time.monotonic() - began
        self._until("it is reported", lambda: self._observer.on_timeline(WEB, mark, words=(FILE, "Somebody was here")))
        self._until_well()
        return Result(
            seconds, f"reported with the field ({FILE}) and put back after {seconds:.1f} s, process untouched"
        )

    # ------------------------------------------------------------------------------------------ guard

    def guard(self) -> Result:
        began, look = time.monotonic(), self._observer
        five = tuple(name for name in ALL if name != WEB)
        before = look.units()
        (web,) = look.units(WEB)
        self._declare("Remove five services", self._state, without=five)
        self._until("the plan is held", lambda: look.held(SCOPE, five))
        first = self._digest()
        self._until("nothing is deleted for three seconds", lambda: look.untouched(before, ALL), stay=3.0)
        self._teller.did(f"held: plan {SCOPE} would delete {', '.join(five)}; digest {first[:15]}…")

        _, addition = self._declare("Remove the sixth too", self._state, without=ALL)
        self._until("the plan has six deletions", lambda: look.held(SCOPE, ALL))
        second = self._digest()
        if second == first:
            raise Failed("the plan grew from five deletions to six and kept its digest")
        self._refused(first)
        self._until("nothing is deleted", lambda: look.untouched(before, ALL), stay=2.0)
        self._teller.did(f"held again: six deletions, digest {second[:15]}…; the digest of the five is refused")

        self._world.repository.revert(addition)
        self._world.repository.push()
        self._until("the plan has five deletions again", lambda: look.held(SCOPE, five))
        digest = self._digest()
        self._world.api.approve(SCOPE, digest, "the story says so")
        self._teller.did(f"git revert {addition[:8]}; approved digest {digest[:15]}…")
        ports = {name: one.port for name, one in self._wanted.items()}
        self._until("the five are gone", lambda: look.gone(five, before, ports))
        self._hold([] if look.units() == [web] else ["web was touched although it was not in the approved plan"])
        self._hold(look.live(self._wanted[WEB]))

        self._declare("Bring the five back", self._state)
        self._until_well()
        self._hold([] if look.units(WEB) == [web] else ["web was restarted although nobody asked for it"])
        return Result(
            time.monotonic() - began,
            "five deletions were held; with a sixth added the plan was held anew and the old digest refused (409"
            " PlanChanged); approved by its digest, exactly the five went, and a commit brought them back;"
            f" web ran on as pid {web.pid}",
        )

    def _digest(self) -> str:
        plan = self._observer.plan(SCOPE)
        if plan is None:
            raise Failed(f"no plan is held for {SCOPE} any more")
        return str(plan["digest"])

    def _refused(self, digest: str) -> None:
        try:
            self._world.api.approve(SCOPE, digest, "this is not the plan that stands")
        except Refused as refusal:
            if (refusal.status, refusal.reason) != (409, "PlanChanged"):
                raise Failed(f"approving an old digest was refused with {refusal}, not 409 PlanChanged") from None
        else:
            raise Failed("an old digest could be approved")

    def _hold(self, reasons: Reasons) -> None:
        """It must be so now."""
        if reasons:
            raise Failed(_few(reasons, 4))

    # ------------------------------------------------------------------------------------------ cut, return

    def cut(self) -> Result:
        look = self._observer
        before = look.units()
        # The one with the most to lose, among those that have a replica of archive.
        sites = {unit.site: sum(u.site == unit.site for u in before) for unit in before if unit.service == ARCHIVE}
        site = self._cut_site = max(sites, key=lambda name: (sites[name], name))
        there = [unit for unit in before if unit.site == site]
        self._before_cut = before
        since, began = time.time(), time.monotonic()
        self._world.proxy.cut(site)
        self._teller.did(f"cut the traffic to {site}, where {', '.join(u.service for u in there)} run")
        check = lambda: look.unknown(site, before, list(self._wanted.values()), since)  # noqa: E731
        self._until("known to be unknown", check, stay=2.0)
        seconds = time.monotonic() - began - 2.0
        doc = look.listed("sites")[site]
        reason = condition(doc, "Ready")["reason"]
        (other,) = (unit for unit in before if unit.service == ARCHIVE and unit.site != site)
        return Result(
            seconds,
            f"{site} and what is only there are Unknown ({reason}) after {seconds:.1f} s, nothing is called failed;"
            f" archive is available through {other.site}; the {len(there)} processes at {site} run on",
        )

    def come_back(self) -> Result:
        site, before = self._cut_site, self._before_cut
        if not site or not self._world.proxy.is_cut(site):
            raise Failed("no site is cut off that could come back")
        edition = "Archive, second edition, declared while a site was cut off.\n"
        self._declare("A new edition of archive meanwhile", self._state._replace(archive=edition))
        time.sleep(1.0)
        began = time.monotonic()
        self._world.proxy.restore(site)
        self._teller.did(f"traffic to {site} flows again")

        def back() -> Reasons:
            return self._all_well() + self._observer.same(before, self._wanted.values())

        seconds = self._until("all services Ready, with the processes of before", back, stay=1.0).seconds
        return Result(
            seconds,
            f"all Ready {seconds:.1f} s after {site} came back: the same {len(before)} processes, no duplicate;"
            f" what was declared meanwhile arrived ({time.monotonic() - began:.1f} s in all)",
        )

    # ------------------------------------------------------------------------------------------ crash

    def crash(self) -> Result:
        began, notes = time.monotonic(), []
        moments: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
            ("at the first change", lambda landed, of: landed >= 1),
            ("half way", lambda landed, of: landed * 2 >= of),
            ("before the first change", lambda landed, of: True),
        )
        for name, moment in moments:
            notes.append(self._crash_once(name, moment))
        return Result(
            time.monotonic() - began,
            f"killed {'; '.join(notes)}; every time all it had acknowledged was finished, nothing was started twice,"
            " and the audit and the timeline of before were intact",
        )

    def _crash_once(self, name: str, moment: Callable[[int, int], bool]) -> str:
        """One commit that replaces every process, one kill, one recovery."""
        look, world = self._observer, self._world
        version = str(int(self._state.version) + 1)
        whole = sum(one.replicas for one in self._wanted.values())
        with Recorder(world.place.sites, look.on_record) as recorder:
            state = self._state._replace(version=version, greeting=f"This is version {version}.\n")
            _, commit = self._declare(f"Version {version} of everything", state)

            def landed() -> int:
                return len({unit.run for unit in recorder.seen if unit.version == version})

            moved = lambda: [] if moment(landed(), whole) else [f"{landed()} of {whole}"]  # noqa: E731
            self._until(f"the moment to strike ({name})", moved, pause=0.01)
            world.kill_server()
            done, record = landed(), dict(recorder.facts)
            self._teller.did(f"kill -9 of the server {name}: {done} of {whole} instances of version {version} started")
            if done >= whole:
                raise Failed(f"the server had finished before it was killed ({name})")
            up = world.start_server()
            self._teller.did(f"the server is ready again after {up:.1f} s")
            well = lambda: self._all_well() + look.read_from_git(commit)  # noqa: E731
            self._until(f"version {version} everywhere", well, stay=1.0)
        self._hold(recorder.doubled(self._wanted.values()))
        self._hold(look.done_once() + look.kept(record))
        self._hold([] if record else ["nothing was on record before the kill"])
        return f"{name} ({done} of {whole} started)"


def _few(reasons: Reasons, count: int = 2) -> str:
    more = f" (and {len(reasons) - count} more)" if len(reasons) > count else ""
    return "; ".join(reasons[:count]) + more
