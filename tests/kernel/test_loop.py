"""The loop: who is looked at next, how often, and that nobody is slower because somebody else is in trouble."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.errors import OutcomeUnknown, Unavailable
from groundcontrol.kernel.loop import PERSON, RESYNC, WORLD, Controller, Pace
from groundcontrol.kernel.plan import STORE, Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, StoreWrite, store_change
from groundcontrol.kernel.resource import Key, condition
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.turn import Outcome, Turns
from groundcontrol.kernel.world import World
from tests.kernel.outside import FAST, QUICK, Outside, Rig, until
from tests.kernel.things import Thing, key, store_at, thing


class Turned:
    """Stands in for `Turns`: says what each turn comes to, and remembers who had one."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.answer: Callable[[str], Outcome] = lambda name: Outcome()

    def turn(self, reconciler: Any, at: Key) -> Outcome:
        self.order.append(at.name)
        return self.answer(at.name)


class ByName(Reconciler[Thing]):
    """Only says which shard a Thing is in."""

    name = "things"
    kind = Thing

    def shard(self, resource: Thing) -> str:
        return resource.spec.at


class Bench:
    """A controller over a store, with turns to order."""

    def __init__(self, directory: Path, pace: Pace = QUICK) -> None:
        self.store: Store = store_at(directory)
        self.world = World(FAST, lambda name, items: None)
        self.turned, self.reconciler = Turned(), ByName()
        self.controller = Controller(self.store, self.world, self.turned, [self.reconciler], pace)  # type: ignore[arg-type]

    def make(self, *names: str, at: str = STORE) -> None:
        for future in [self.store.submit(lambda tx, n=n: tx.create(thing(n, at=at))) for n in names]:
            future.result(20)

    def look(self, name: str, priority: int) -> None:
        self.controller.enqueue(self.reconciler, key(name), priority)

    def count(self, name: str) -> int:
        return self.turned.order.count(name)

    def close(self) -> None:
        self.controller.stop()
        self.store.close()


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**pace: Any) -> Bench:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Bench(directory, Pace(**{**QUICK.__dict__, **pace})))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def behind(gate: threading.Event, *, only: str = "", but: str = "") -> Callable[[str], Outcome]:
    """Turns that wait until the gate is open: all, only one's, or all but one's."""

    def turn(name: str) -> Outcome:
        if (not only or name == only) and name != but:
            assert gate.wait(20)
        return Outcome()

    return turn


def started(bench: Bench) -> Bench:
    bench.controller.start()
    until(bench.controller.idle)
    return bench


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_person_changed_goes_before_a_long_queue(benches: Any) -> None:
    bench = benches(workers=2)
    names = [f"t{n}" for n in range(2000)]
    bench.make(*names)
    bench.make("wanted", at="site/other")
    gate = threading.Event()
    bench.turned.answer = behind(gate)
    bench.controller.start()
    until(lambda: len(bench.turned.order) == 2)
    bench.store.write(lambda tx: tx.replace(thing("wanted", at="site/other", colour="blue")))
    bench.store.write(lambda tx: tx.replace(thing("t1999", at=STORE, colour="blue")))
    until(lambda: all(bench.controller._items["things", key(n)].priority == PERSON for n in ("t1999", "wanted")))
    gate.set()
    until(lambda: bench.count("wanted") >= 1 and bench.count("t1999") >= 1)
    place = max(bench.turned.order.index("wanted"), bench.turned.order.index("t1999"))
    assert place < 30
    until(bench.controller.idle)
    assert set(bench.turned.order) == {*names, "wanted"}


def test_a_long_queue_in_one_shard_does_not_stand_before_another_shard(benches: Any) -> None:
    bench = benches(workers=1)
    names = [f"t{n}" for n in range(1000)]
    bench.make(*names)
    bench.make("other", at="site/b")
    started(bench)
    gate = hold_up(bench)
    for name in [*names, "other"]:
        bench.look(name, RESYNC)
    gate.set()
    until(bench.controller.idle)
    assert bench.turned.order.index("other") < 5


def hold_up(bench: Bench) -> threading.Event:
    """Keep the one worker busy until the event is set; what follows is all queued together."""
    gate = threading.Event()
    bench.turned.answer = behind(gate, only="gate")
    bench.make("gate")
    until(lambda: bench.count("gate"))
    bench.turned.order.clear()
    return gate


def test_shards_take_turns(benches: Any) -> None:
    bench = benches(workers=1, in_flight=1)
    for shard in "ab":
        bench.make(*[f"{shard}{n}" for n in range(100)], at=f"site/{shard}")
    started(bench)
    gate = hold_up(bench)
    for shard in "ab":
        for n in range(100):
            bench.look(f"{shard}{n}", WORLD)
    gate.set()
    until(bench.controller.idle)
    first = Counter(name[0] for name in bench.turned.order[:100])
    assert 45 <= first["a"] <= 55


def test_a_storm_of_people_starves_nobody(benches: Any) -> None:
    bench = benches(workers=1)
    bench.make("hot", "cold")
    started(bench)
    stop = threading.Event()

    def again(name: str) -> Outcome:
        if name == "hot" and not stop.is_set():
            bench.look("hot", PERSON)
        return Outcome()

    bench.turned.answer = again
    bench.look("hot", PERSON)
    for priority in (WORLD, RESYNC):
        before = bench.count("cold")
        bench.look("cold", priority)
        until(lambda before=before: bench.count("cold") > before)
    stop.set()


def test_a_key_is_queued_once_and_never_has_two_turns_at_once(benches: Any) -> None:
    bench = benches(workers=8)
    bench.make("a")
    started(bench)
    inside, most = [0], [0]
    bench.turned.order.clear()

    def turn(name: str) -> Outcome:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return Outcome()

    bench.turned.answer = turn
    for _ in range(500):
        bench.look("a", random.choice((PERSON, WORLD, RESYNC)))
    until(bench.controller.idle)
    assert most[0] == 1
    assert len(bench.turned.order) <= 20


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_that_always_fails_is_looked_at_once_per_step_of_its_back_off(benches: Any) -> None:
    bench = benches(backoff=0.1, backoff_max=10.0)
    bench.make("bad", "hot")
    bench.turned.answer = lambda name: Outcome(failed=name == "bad")
    bench.controller.start()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        bench.look("hot", PERSON)
        bench.look("bad", WORLD)
        time.sleep(0.01)
    # 0.1, 0.2, 0.4, 0.8 …, each within a fifth, cannot be more than five looks in 1.5 s.
    assert 2 <= bench.count("bad") <= 6
    assert bench.count("hot") > 20


def test_a_persons_change_of_a_failing_resource_is_looked_at_at_once(benches: Any) -> None:
    bench = benches(backoff=500.0, backoff_max=1000.0)
    bench.make("bad")
    bench.turned.answer = lambda name: Outcome(failed=True)
    started(bench)
    before = bench.count("bad")
    bench.store.write(lambda tx: tx.replace(thing("bad", at=STORE, colour="blue")))
    until(lambda: bench.count("bad") > before)


def test_a_change_heard_of_during_a_failing_turn_is_not_lost(benches: Any) -> None:
    bench = benches(backoff=500.0, backoff_max=1000.0)
    bench.make("bad")
    there, go = threading.Event(), threading.Event()

    def turn(name: str) -> Outcome:
        there.set()
        go.wait(20)
        return Outcome(failed=True)

    bench.turned.answer = turn
    bench.controller.start()
    assert there.wait(20)
    bench.store.write(lambda tx: tx.replace(thing("bad", at=STORE, colour="blue")))
    until(lambda: bench.controller._items["things", key("bad")].dirty == PERSON)
    go.set()
    until(lambda: bench.count("bad") >= 2)


def test_a_turn_that_asks_for_another_look_gets_it(benches: Any) -> None:
    bench = benches()
    bench.make("a")
    answers = [Outcome(again=0.02), Outcome(again=0.0), Outcome(again=0.02)]
    bench.turned.answer = lambda name: answers.pop() if answers else Outcome()
    bench.controller.start()
    until(lambda: bench.count("a") >= 4)


def test_everything_is_looked_at_again_now_and_then(benches: Any) -> None:
    bench = benches(resync=0.05)
    bench.make("a", "b")
    bench.controller.start()
    until(lambda: bench.count("a") > 5 and bench.count("b") > 5)


def test_a_turn_that_breaks_stalls_nobody_else(benches: Any) -> None:
    bench = benches(workers=1)
    bench.make("bad", "good")

    def turn(name: str) -> Outcome:
        if name == "bad":
            raise ZeroDivisionError
        return Outcome()

    bench.turned.answer = turn
    bench.controller.start()
    until(lambda: bench.count("good") and bench.count("bad") > 3)


def test_the_breaker_opens_tries_one_and_closes(benches: Any) -> None:
    bench = benches(workers=8, in_flight=4, breaker_failures=3, breaker_reset=0.3, backoff=0.001, backoff_max=0.002)
    names = [f"t{n}" for n in range(20)]
    bench.make(*names, at="site/a")
    bench.make("well", at="site/b")
    dead, inside, most = [True], [0], [0]
    lock = threading.Lock()

    def turn(name: str) -> Outcome:
        if name == "well":
            return Outcome(answered=True)
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        with lock:
            inside[0] -= 1
        return Outcome(failed=dead[0], unreachable=dead[0], answered=not dead[0])

    bench.turned.answer = turn
    bench.controller.start()
    until(lambda: bench.controller.state()["shards"].get("site/a", {}).get("breaker") == "open")
    assert most[0] <= 4
    begun, most[0] = len(bench.turned.order), 0
    time.sleep(1.0)
    assert len(bench.turned.order) - begun <= 8, "while it is open, one tries per reset"
    assert most[0] <= 1
    before = bench.count("well")
    bench.look("well", WORLD)
    until(lambda: bench.count("well") > before)
    dead[0] = False
    until(lambda: all(bench.turned.order[begun:].count(n) for n in names))
    assert bench.controller.state()["shards"]["site/a"]["breaker"] == "closed"


def test_calls_that_hang_do_not_use_up_the_pool(benches: Any) -> None:
    bench = benches(workers=2, in_flight=4, patience=0.2)
    for site in "abc":
        bench.make(*[f"{site}{n}" for n in range(3)], at=f"site/{site}")
    bench.make("well")
    go = threading.Event()
    bench.turned.answer = behind(go, but="well")
    bench.controller.start()
    until(lambda: sum(s["inFlight"] for s in bench.controller.state()["shards"].values()) == 3)
    for _ in range(5):
        before = bench.count("well")
        bench.look("well", WORLD)
        until(lambda before=before: bench.count("well") > before)
    go.set()
    until(bench.controller.idle)
    assert {bench.count(f"{s}{n}") for s in "abc" for n in range(3)} == {1}
    until(lambda: bench.controller._workers == 2, "those that replaced the hanging ones go home")


def test_stop_lets_turns_finish_and_leaves_no_thread(benches: Any) -> None:
    bench = benches()
    bench.controller.stop()  # before it began: nothing to do
    bench = benches()
    bench.make("slow")
    done: list[str] = []
    there = threading.Event()

    def turn(name: str) -> Outcome:
        there.set()
        time.sleep(0.2)
        done.append(name)
        return Outcome(again=0.0)

    bench.turned.answer = turn
    bench.controller.start()
    threads = list(bench.controller._threads)
    assert there.wait(20)
    bench.controller.stop()
    assert done == ["slow"]
    assert not [t for t in threads if t.is_alive()]


def test_what_is_deleted_is_forgotten(benches: Any) -> None:
    bench = benches()
    bench.make("a")
    started(bench)
    bench.store.write(lambda tx: tx.delete(key("a")))
    until(lambda: not bench.controller._items)
    bench.make("a")
    until(lambda: bench.count("a") >= 2)


def test_timers_that_were_overtaken_are_dropped(benches: Any) -> None:
    bench = benches(resync=1000.0)
    bench.make("a")
    started(bench)
    for _ in range(200):
        bench.look("a", WORLD)
        until(bench.controller.idle)
    with bench.controller._lock:
        bench.controller._timers += [(0.5, -n, bench.controller._items["things", key("a")]) for n in range(20_000)]
        bench.controller._timers.sort()
        bench.controller._timer_set.notify_all()
    until(lambda: len(bench.controller._timers) < 11_000)


def stress(directory: Path, seed: int) -> None:
    """Random news and turns that take their time; the last news of each is followed by a turn that began later."""
    directory.mkdir()
    chance = random.Random(seed)
    bench = Bench(directory, Pace(workers=chance.choice((1, 2, 8)), in_flight=2, backoff=0.001, backoff_max=0.004))
    names = [f"t{n}" for n in range(6)]
    for n, name in enumerate(names):
        bench.make(name, at=(STORE, "site/a", "site/b")[n % 3])
    heard = dict.fromkeys(names, 0)
    seen = dict.fromkeys(names, 0)
    inside: set[str] = set()
    doubled: list[str] = []

    def turn(name: str) -> Outcome:
        if name in inside:
            doubled.append(name)
        inside.add(name)
        level = heard[name]
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.001)
        seen[name] = max(seen[name], level)
        inside.discard(name)
        roll = chance.random()
        if roll < 0.2:
            return Outcome(failed=True, unreachable=chance.random() < 0.2)
        return Outcome(again=chance.choice((None, 0.0, 0.001)), answered=True) if roll < 0.4 else Outcome()

    bench.turned.answer = turn
    bench.controller.start()

    def shout(mine: random.Random) -> None:
        for _ in range(150):
            name = mine.choice(names)
            heard[name] += 1
            bench.look(name, mine.choice((PERSON, WORLD, RESYNC)))
            if mine.random() < 0.2:
                time.sleep(mine.random() * 0.001)

    shouters = [threading.Thread(target=shout, args=(random.Random(f"{seed}-{n}"),)) for n in range(3)]
    for shouter in shouters:
        shouter.start()
    for shouter in shouters:
        shouter.join()
    try:
        until(lambda: all(seen[n] >= heard[n] for n in names), f"a wake-up was lost, seed {seed}: {heard} {seen}")
        assert not doubled, f"two turns at once, seed {seed}"
    finally:
        bench.close()


@pytest.mark.parametrize("seed", range(6))
def test_no_wake_up_is_lost(tmp_path: Path, seed: int) -> None:
    stress(tmp_path / "s", seed)


@pytest.mark.slow
def test_no_wake_up_is_lost_in_many_rounds(tmp_path: Path) -> None:
    first = random.randrange(1_000_000)
    for seed in range(first, first + 100):
        print("seed", seed)
        stress(tmp_path / str(seed), seed)


# ── with real turns ─────────────────────────────────────────────────────────────────────────────────────────────


def test_neighbours_of_the_failing_the_restless_and_the_hanging_are_served(tmp_path: Path) -> None:
    """One fails for ever, one changes all the time, one site hangs in every call: the others go on as ever."""
    good, hanging = Outside(), Outside()
    rig = Rig(tmp_path, {"site/a": good, "site/hangs": hanging})
    go, stop = threading.Event(), threading.Event()

    def hang(call: str, moment: str, id_: str) -> None:
        if call not in ("look", "wait"):
            go.wait(60)

    hanging.hook = hang

    def fail(call: str, moment: str, id_: str) -> None:
        if id_ == "bad":
            raise Unavailable("never")

    good.hook = fail
    rig.start()
    rig.make("bad")
    rig.make("restless")
    for n in range(6):
        rig.make(f"stuck{n}", at="site/hangs")

    def change() -> None:
        n = 0
        while not stop.wait(0.1):
            n += 1
            rig.change("restless", colour=f"c{n}")

    changer = threading.Thread(target=change)
    changer.start()
    names = [f"n{n}" for n in range(30)]
    for name in names:
        rig.make(name)
    until(lambda: all(condition(rig.get(n), "Ready")["status"] == "True" for n in names))
    for name in names:
        rig.change(name, colour="blue")
    until(lambda: all(good.things().get(n) == "blue" for n in names))
    looks = Counter(rig.reconciler.looks)
    assert max(looks[n] for n in names) < 60
    assert max(looks[f"stuck{n}"] for n in range(6)) <= 4
    stop.set()
    changer.join()
    go.set()
    rig.close()


def test_an_unexpected_error_stalls_one_resource_and_says_where_to_look(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.start()

    def trip(resource: Thing) -> None:
        if resource.metadata.name == "bad" and resource.spec.colour == "red":
            raise KeyError("surprise")

    rig.reconciler.before_plan = trip
    rig.make("bad")
    rig.make("good")
    until(lambda: rig.ready("good") and rig.condition("bad") == ("False", "Bug"))
    message = condition(rig.get("bad"), "Ready")["message"]
    assert "trace" in message
    before = rig.store.sequence
    until(lambda: rig.reconciler.looks.count("bad") > 4)
    assert rig.store.sequence == before, "the same trouble is not written again and again"
    rig.change("bad", colour="blue")
    until(lambda: rig.ready("bad"))
    rig.close()


def test_what_never_converges_does_not_spin(tmp_path: Path) -> None:
    rig = Rig(tmp_path, pace=Pace(workers=2, backoff=0.2, backoff_max=0.4))
    rig.outside.update = lambda id_, colour, epoch: None  # type: ignore[method-assign]
    rig.start()
    rig.make("a")
    until(lambda: rig.ready("a"))
    rig.change("a", colour="blue")
    rig.reconciler.looks.clear()
    time.sleep(1.0)
    assert len(rig.reconciler.looks) < 250
    rig.close()


class Restless(Reconciler[Thing]):
    """Writes the same once more at every look, and will never see that it is so."""

    name = "restless"
    kind = Thing

    def __init__(self) -> None:
        self.looks = 0

    def plan(self, resource: Thing, look: Look) -> Plan:
        self.looks += 1
        write = StoreWrite(doc=thing(resource.metadata.name))
        return Plan((store_change("update", resource.key, write, fields={"spec.colour": (None, "red")}),))


def test_the_same_write_again_and_again_does_not_spin(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    world, restless = World(FAST, lambda name, items: None), Restless()
    pace = Pace(workers=2, backoff=0.2, backoff_max=0.4)
    controller = Controller(store, world, Turns(store, world, ()), [restless], pace)
    controller.start()
    store.write(lambda tx: tx.create(thing("a")))
    until(lambda: restless.looks > 1)
    time.sleep(1.0)
    assert restless.looks < 20
    controller.stop()
    store.close()


def test_a_dead_site_costs_few_calls(tmp_path: Path) -> None:
    rig = Rig(tmp_path, pace=Pace(workers=4, backoff=0.01, backoff_max=0.02, breaker_failures=3, breaker_reset=5.0))
    calls: list[str] = []

    def lost(call: str, moment: str, id_: str) -> None:
        if call == "create" and moment == "before":
            calls.append(id_)
            raise OutcomeUnknown("no answer")

    rig.outside.hook = lost
    rig.start()
    for n in range(30):
        rig.make(f"t{n}")
    time.sleep(1.0)
    assert len(calls) <= 8
    rig.close()
