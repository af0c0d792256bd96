"""The world: what is believed, what is not, and that nobody waits for somebody else's dead site."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from groundcontrol.kernel.errors import Unavailable
from groundcontrol.kernel.plan import Target
from groundcontrol.kernel.world import Item, Seen, Snapshot, Watching, World
from tests.kernel.outside import FAST, Outside, until

NAMES = [f"t{n}" for n in range(10)]


class Watched:
    """A world with one outside at `site/a`, and what was said about it."""

    def __init__(self, watching: Watching = FAST, expected: Callable[[str], Any] = lambda name: frozenset()) -> None:
        self.said: list[tuple[str, frozenset[Item] | None]] = []
        self.world = World(watching, lambda name, items: self.said.append((name, items)), expected)
        self.world._began -= 3600  # what is not known now is not for want of time since the start
        self.outside = Outside()
        self.outside.by_hand(**dict.fromkeys(NAMES, "red"))

    def attach(self) -> Watched:
        self.world.attach("site/a", self.outside, "one")
        until(lambda: self.world.snapshot("site/a").ended)
        return self

    def seen(self, name: str) -> Seen:
        return self.world.seen(Target("site/a", "thing", name))

    def looked(self) -> None:
        """Wait for a listing that began from now on."""
        now = self.world.clock()
        until(lambda: self.world.snapshot("site/a").began > now or self.world._observers["site/a"].poke())

    @property
    def held(self) -> str:
        return self.world.snapshot("site/a").held


@pytest.fixture
def watched() -> Iterator[Watched]:
    found = Watched().attach()
    yield found
    found.world.close()


def test_a_thing_is_present_absent_or_unknown(watched: Watched) -> None:
    assert watched.seen("t1").truth == "present"
    assert watched.seen("nowhere").truth == "absent"
    found = watched.world.seen(Target("site/other", "thing", "t1"))
    assert (found.truth, found.reason) == ("unknown", "NotAttached")


def test_absent_is_only_said_after_a_direct_look(watched: Watched) -> None:
    def late(call: str, moment: str, id_: str) -> None:
        if call == "direct":
            raise Unavailable("no answer")

    watched.outside.hook = late
    assert watched.seen("nowhere").truth == "unknown"
    # A listing that forgot it is overruled by the thing itself.
    watched.outside.hook = lambda call, moment, id_: None
    watched.outside.show(hidden=["t1"])
    until(lambda: ("thing", "t1") not in watched.world.snapshot("site/a").items)
    watched.outside.hidden = set()
    assert watched.seen("t1").truth == "present"


def test_a_listing_begun_before_our_last_write_says_nothing(watched: Watched) -> None:
    go = threading.Event()

    def slow(call: str, moment: str, id_: str) -> None:
        if call == "look":
            go.wait(20)

    watched.outside.hook = slow
    watched.world._observers["site/a"].poke()
    until(lambda: watched.world._observers["site/a"]._number > watched.world.snapshot("site/a").number)
    watched.outside._state["things"]["t1"]["colour"] = "blue"
    watched.world.wrote(Target("site/a", "thing", "t1"))
    assert (watched.seen("t1").truth, watched.seen("t1").reason) == ("unknown", "Looking")
    assert watched.seen("t2").truth == "present"
    go.set()
    until(lambda: watched.seen("t1").truth == "present")
    assert watched.seen("t1").item["colour"] == "blue"


def test_a_partial_listing_takes_nothing_away_and_says_so(watched: Watched) -> None:
    watched.outside.show(complete=False, hidden=NAMES[:9])
    until(lambda: not watched.world.snapshot("site/a").complete)
    assert {(s.truth, s.reason) for s in map(watched.seen, NAMES[:9])} == {("unknown", "PartialListing")}
    assert watched.seen("t9").truth == "present"
    assert watched.seen("nowhere").truth == "unknown"
    watched.outside.show()
    until(lambda: watched.seen("t0").truth == "present")


def test_a_partial_listing_in_between_does_not_hide_what_vanished(watched: Watched) -> None:
    watched.outside.show(complete=False, hidden=NAMES)
    until(lambda: not watched.world.snapshot("site/a").complete)
    watched.outside.show(hidden=NAMES)
    until(lambda: watched.held)
    watched.outside.show(complete=False, hidden=NAMES)
    until(lambda: not watched.world.snapshot("site/a").complete)
    assert watched.held
    assert watched.seen("t1").reason == "Held"


@pytest.mark.parametrize("gone", [NAMES[:6], NAMES], ids=["half", "everything"])
def test_what_vanishes_at_once_is_not_believed_until_it_returns(watched: Watched, gone: list[str]) -> None:
    watched.outside.show(hidden=gone)
    until(lambda: watched.held)
    for _ in range(3):
        watched.looked()
        assert f"{len(gone)} of 10 things vanished" in watched.held
        assert {(s.truth, s.reason) for s in map(watched.seen, NAMES)} == {("unknown", "Held")}
    assert watched.said[-1] == ("site/a", None)
    watched.outside.show()
    until(lambda: watched.seen("t0").truth == "present")


def test_a_person_confirms_the_loss(watched: Watched) -> None:
    watched.outside.by_hand(**dict.fromkeys(NAMES[:8]))
    until(lambda: watched.held)
    watched.world.confirm_loss("site/a")
    until(lambda: watched.seen("t0").truth == "absent")
    assert watched.seen("t9").truth == "present"
    # The word was for that loss, not for the next one.
    watched.outside.by_hand(**dict.fromkeys(NAMES[:8], "red"))
    watched.looked()
    watched.outside.show(hidden=NAMES)
    until(lambda: watched.held)


def test_what_we_removed_ourselves_has_not_vanished(watched: Watched) -> None:
    for name in NAMES[:8]:
        watched.outside.delete(name)
        watched.world.wrote(Target("site/a", "thing", name), gone=True)
    watched.outside.show(complete=False)
    until(lambda: not watched.world.snapshot("site/a").complete)
    watched.outside.show()
    until(lambda: watched.seen("t0").truth == "absent")
    assert not watched.held


def test_a_few_may_go(watched: Watched) -> None:
    watched.outside.by_hand(t0=None, t1=None)
    until(lambda: watched.seen("t0").truth == "absent")
    assert not watched.held


def test_the_first_listing_after_a_start_is_held_against_what_should_be_there() -> None:
    watched = Watched(expected=lambda name: {("thing", n) for n in NAMES})
    watched.outside.show(hidden=NAMES[:7])
    watched.attach()
    for _ in range(4):
        watched.looked()
        assert "7 of 10" in watched.held
        assert watched.seen("t0").reason == "Held"
    watched.outside.show()
    until(lambda: watched.seen("t0").truth == "present")
    watched.world.close()


def test_a_partial_first_listing_does_not_stand_for_everything() -> None:
    watched = Watched(expected=lambda name: {("thing", n) for n in NAMES})
    watched.outside.show(complete=False, hidden=NAMES[:9])
    watched.attach()
    watched.outside.show(hidden=NAMES[:9])
    until(lambda: watched.held)
    watched.world.close()


def test_nothing_is_believed_while_nobody_knows_what_should_be_there() -> None:
    broken = [True]

    def expected(name: str) -> set[Item]:
        if broken[0]:
            raise RuntimeError("the store does not answer")
        return {("thing", n) for n in NAMES}

    watched = Watched(expected=expected)
    watched.outside.show(hidden=NAMES)
    watched.world.attach("site/a", watched.outside)
    until(lambda: watched.world.snapshot("site/a").error)
    assert not watched.world.trusted("site/a")
    broken[0] = False
    until(lambda: watched.held)
    watched.world.close()


def test_stale_knowledge_is_unknown_with_reason_and_age() -> None:
    go = threading.Event()
    watched = Watched(Watching(wait=0.05, stale_after=0.3, relist=0.1, retry=0.02)).attach()

    def hang(call: str, moment: str, id_: str) -> None:
        if call in ("look", "wait"):
            go.wait(20)

    watched.outside.hook = hang
    until(lambda: watched.seen("t1").truth == "unknown")
    until(lambda: not watched.world.snapshot("site/a").reachable)
    found = watched.seen("t1")
    assert found.reason == "Unreachable"
    assert "last seen 20" in found.message
    assert "has not answered for" in found.message
    assert watched.said[-1] == ("site/a", None)
    go.set()
    watched.outside.hook = lambda call, moment, id_: None
    until(lambda: watched.seen("t1").truth == "present")
    watched.world.close()


def test_knowledge_has_an_age_even_before_anybody_notices() -> None:
    snapshot = Snapshot("site/a", complete=True, ended=100.0, reachable=True)
    assert snapshot.trusted(now=115.0, stale_after=15.0)
    assert not snapshot.trusted(now=116.0, stale_after=15.0)
    assert not replace(snapshot, held="half vanished").trusted(now=100.0, stale_after=15.0)


def test_a_wait_that_answers_does_not_make_an_old_listing_fresh() -> None:
    go = threading.Event()
    watched = Watched(Watching(wait=0.02, stale_after=0.3, relist=10, retry=0.02)).attach()

    def hang(call: str, moment: str, id_: str) -> None:
        if call == "look":
            go.wait(20)

    watched.outside.hook = hang
    watched.outside.by_hand(t1="blue")  # heard of by the wait, not seen by any look
    until(lambda: watched.seen("t1").truth == "unknown")
    go.set()
    watched.world.close()


def test_while_nothing_changes_a_wait_keeps_knowledge_fresh_without_looks() -> None:
    watched = Watched(Watching(wait=0.05, stale_after=0.4, relist=30)).attach()
    looks: list[str] = []
    watched.outside.hook = lambda call, moment, id_: looks.append(call)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert watched.world.trusted("site/a")
        time.sleep(0.02)
    assert looks.count("look") <= 1
    watched.world.close()


def test_a_wait_that_fails_or_does_not_wait_becomes_no_storm(watched: Watched) -> None:
    looks: list[str] = []

    def hook(call: str, moment: str, id_: str) -> None:
        looks.append(call)
        if call == "wait":
            raise Unavailable("not supported")

    watched.outside.hook = hook
    time.sleep(0.5)
    assert looks.count("wait") < 100
    watched.outside.wait = lambda since, timeout: since  # type: ignore[method-assign]
    looks.clear()
    watched.outside.hook = lambda call, moment, id_: looks.append(call)
    time.sleep(0.3)
    assert watched.world.trusted("site/a")
    assert len(looks) < 20


def test_pokes_do_not_spin_whether_the_site_answers_or_not(watched: Watched) -> None:
    looks: list[str] = []

    def storm(seconds: float) -> int:
        looks.clear()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            watched.world._observers["site/a"].poke()
            time.sleep(0.0005)
        return looks.count("look")

    watched.outside.hook = lambda call, moment, id_: looks.append(call)
    assert storm(0.5) <= 50

    def dead(call: str, moment: str, id_: str) -> None:
        looks.append(call)
        raise Unavailable("no route")

    watched.outside.hook = dead
    assert storm(0.5) <= 26, "not more than one per first wait"


def test_a_site_that_hangs_delays_no_other(watched: Watched) -> None:
    go = threading.Event()
    dead = Outside()
    dead.hook = lambda call, moment, id_: go.wait(20) and None
    watched.world.attach("site/dead", dead)
    for colour in ("blue", "green"):
        watched.outside.by_hand(t1=colour)
        until(lambda colour=colour: watched.seen("t1").item["colour"] == colour)
    assert watched.world.seen(Target("site/dead", "thing", "x")).reason == "NotLooked"
    assert not watched.world.trusted("site/dead")
    go.set()


def test_a_connection_is_replaced_only_when_it_is_another_one(watched: Watched) -> None:
    spare = Outside()
    watched.world.attach("site/a", spare, "one")
    assert watched.world.instance("site/a") is watched.outside
    assert spare.closed
    other = Outside()
    other.by_hand(t1="blue", t2="blue")
    watched.world.attach("site/a", other, "two")
    assert watched.outside.closed
    assert watched.world.identity("site/a") == "two"
    # What the last connection knew is not gone because the new one does not name it.
    until(lambda: watched.held)
    watched.world.detach("site/a")
    assert watched.seen("t1").reason == "NotAttached"
    with pytest.raises(Unavailable, match="not attached"):
        watched.world.instance("site/a")


def test_a_connection_that_cannot_be_closed_is_replaced_all_the_same(watched: Watched) -> None:
    def broken() -> None:
        raise OSError("already gone")

    watched.outside.close = broken  # type: ignore[method-assign]
    other = Outside()
    other.by_hand(**dict.fromkeys(NAMES, "blue"))
    watched.world.attach("site/a", other, "two")
    until(lambda: watched.seen("t1").truth == "present" and watched.seen("t1").item["colour"] == "blue")


def test_a_listener_that_fails_does_not_end_the_watch() -> None:
    def fails(name: str, items: Any) -> None:
        raise RuntimeError("cannot listen")

    world, outside = World(FAST, fails), Outside()
    world.attach("site/a", outside)
    for colour in ("red", "blue"):
        outside.by_hand(x=colour)
        until(lambda colour=colour: (world.seen(Target("site/a", "thing", "x")).item or {}).get("colour") == colour)
    world.close()
