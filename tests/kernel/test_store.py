"""The store: acts that stand alone in a common commit, numbers without gaps, a cache that is the database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import (
    AlreadyExists,
    Conflict,
    Fenced,
    GroundError,
    NotFound,
    OutcomeUnknown,
    TooOld,
    Unavailable,
)
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.store import Store, Subscription
from groundcontrol.kernel.tx import Event, Tx
from tests.kernel.things import key, store_at, thing

BOUND = 20.0
"""Seconds after which a test that waits is taken to hang."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = store_at(tmp_path)
    yield store
    store.close()


class Pause:
    """An act that keeps the writer busy until it is released, so that what follows is one commit."""

    def __init__(self, store: Store) -> None:
        self._go, self._there = threading.Event(), threading.Event()
        self.future = store.submit(self._act)
        assert self._there.wait(BOUND)

    def _act(self, tx: Tx) -> None:
        self._there.set()
        assert self._go.wait(BOUND)

    def release(self) -> None:
        self._go.set()
        self.future.result(BOUND)


def stored(store: Store) -> dict[Key, bytes]:
    with store.reading() as conn:
        return {Key(r.kind, r.namespace, r.name): r.doc for r in conn.execute(sa.select(tables.resources))}


def numbers(store: Store) -> list[int]:
    with store.reading() as conn:
        return [r.seq for r in conn.execute(sa.select(tables.events.c.seq).order_by(tables.events.c.seq))]


def drain(subscription: Subscription) -> list[Event]:
    found: list[Event] = []
    while batch := subscription.get(timeout=0):
        found += batch
    return found


# ── one commit for many acts ────────────────────────────────────────────────────────────────────────────────────


def test_an_error_undoes_only_its_own_act_and_leaves_no_gap(store: Store) -> None:
    store.write(lambda tx: tx.create(thing("here")))
    begun = store.sequence

    def broken(tx: Tx) -> None:
        tx.create(thing("never"))
        tx.replace(thing("here", colour="blue"))
        tx.delete(key("here"))
        tx.create(thing("here", colour="green"))
        tx.fact("audit", key("never"), "me")
        tx.conn.execute(sa.insert(tables.meta).values(key="never", value="x"))
        raise RuntimeError("changed my mind")

    pause = Pause(store)
    futures = [store.submit(lambda tx, n=n: tx.create(thing(f"t{n}"))) for n in range(3)]
    futures.insert(1, store.submit(broken))
    futures.append(store.submit(lambda tx: tx.get(key("here"))["spec"]["colour"]))
    pause.release()
    with pytest.raises(RuntimeError, match="changed my mind"):
        futures.pop(1).result(BOUND)
    assert futures.pop().result(BOUND) == "red"
    assert [f.result(BOUND)["metadata"]["resourceVersion"] for f in futures] == [begun + 1, begun + 2, begun + 3]
    assert numbers(store) == list(range(1, begun + 4))
    assert store.get(key("never")) is None
    assert stored(store).keys() == {key("here"), key("t0"), key("t1"), key("t2")}
    assert store.fact_sequence == 0
    with store.reading() as conn:
        assert conn.execute(sa.select(tables.meta).where(tables.meta.c.key == "never")).first() is None


def test_a_part_of_an_act_can_fail_alone(store: Store) -> None:
    def act(tx: Tx) -> list[str]:
        tx.create(thing("first"))
        with pytest.raises(AlreadyExists):
            tx.attempt(lambda tx: (tx.create(thing("half")), tx.create(thing("first"))))
        tx.create(thing("last"))
        return sorted(e.key.name for e in tx.entries("Thing"))

    assert store.write(act) == ["first", "last"]
    assert [e.key.name for e in store.entries("Thing")] == ["first", "last"]
    assert numbers(store) == [1, 2]


def test_acts_of_one_commit_see_one_another_and_nobody_else_sees_half(store: Store) -> None:
    heard = store.subscribe()
    pause = Pause(store)
    futures = [store.submit(lambda tx: tx.create(thing("a"))), store.submit(lambda tx: tx.need(key("a")))]
    assert store.get(key("a")) is None
    pause.release()
    assert futures[1].result(BOUND)["metadata"]["name"] == "a"
    assert [e.seq for e in drain(heard)] == [1]


def test_a_transaction_that_the_database_gave_up_is_given_up_as_a_whole(store: Store) -> None:
    """With a full disk SQLite rolls everything back by itself, in the middle of a commit of many acts."""
    store.write(lambda tx: tx.create(thing("before")))

    def full(tx: Tx) -> None:
        tx.create(thing("never"))
        tx.conn.exec_driver_sql("ROLLBACK")
        raise OSError("database or disk is full")

    pause = Pause(store)
    futures = [store.submit(lambda tx, n=n: tx.create(thing(f"t{n}"))) for n in range(2)]
    futures.insert(1, store.submit(full))
    pause.release()
    for future in futures:
        with pytest.raises(Unavailable, match="nothing of this was written"):
            future.result(BOUND)
    store.write(lambda tx: tx.create(thing("after")))
    assert stored(store).keys() == {key("before"), key("after")}
    assert [e.key.name for e in store.entries("Thing")] == ["after", "before"]
    assert numbers(store) == [1, 2]


def test_a_watcher_that_fails_stops_nobody(store: Store) -> None:
    broken, heard = store.subscribe(), store.subscribe()

    def raises() -> None:
        raise RuntimeError("cannot listen")

    broken.on_event = raises
    store.on_facts(raises)
    for n in range(3):
        store.write(lambda tx, n=n: (tx.create(thing(f"t{n}")), tx.event(key(f"t{n}"), "u", "Made", "it")))
    assert [e.seq for e in drain(heard)] == [1, 2, 3]


def test_a_listener_that_writes_is_told_so_and_hangs_nobody(store: Store) -> None:
    told: list[Exception] = []

    def writes() -> None:
        try:
            store.write(lambda tx: None)
        except GroundError as error:
            told.append(error)

    store.on_facts(writes)
    store.write(lambda tx: tx.event(key("a"), "u", "Made", "it"), timeout=BOUND)
    assert "submit" in str(told[0])


def test_what_was_given_up_waiting_for_is_not_written(store: Store) -> None:
    pause = Pause(store)
    with pytest.raises(Unavailable, match="nothing was written"):
        store.write(lambda tx: tx.create(thing("late")), timeout=0.01)
    pause.release()
    store.write(lambda tx: tx.create(thing("next")))
    assert [e.key.name for e in store.entries("Thing")] == ["next"]


def test_an_act_that_is_under_way_when_its_caller_gives_up_has_an_unknown_outcome(store: Store) -> None:
    go = threading.Event()

    def slow(tx: Tx) -> None:
        go.wait(BOUND)
        tx.create(thing("slow"))

    with pytest.raises(OutcomeUnknown):
        store.write(slow, timeout=0.2)
    go.set()
    store.write(lambda tx: None)
    assert store.get(key("slow"))


def test_a_closed_store_answers_at_once(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    pause = Pause(store)
    last = store.submit(lambda tx: tx.create(thing("last")))
    closer = threading.Thread(target=store.close)
    closer.start()
    pause.release()
    closer.join(BOUND)
    assert last.result(0)["metadata"]["name"] == "last"
    with pytest.raises(Unavailable):
        store.write(lambda tx: None, timeout=BOUND)


# ── one server, one epoch ───────────────────────────────────────────────────────────────────────────────────────


def test_a_second_server_is_refused_and_leaves_no_lock_when_it_cannot_open(tmp_path: Path) -> None:
    store = store_at(tmp_path, lock=tmp_path / "lock")
    with pytest.raises(Unavailable, match="another server"):
        store_at(tmp_path, lock=tmp_path / "lock")
    store.close()
    with sa.create_engine(f"sqlite:///{tmp_path / 'ground.db'}").begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Unavailable, match="newer"):
        store_at(tmp_path, lock=tmp_path / "lock")
    with sa.create_engine(f"sqlite:///{tmp_path / 'ground.db'}").begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    store_at(tmp_path, lock=tmp_path / "lock").close()


def test_the_first_server_writes_nothing_once_a_second_one_took_over(tmp_path: Path) -> None:
    first = store_at(tmp_path)
    first.write(lambda tx: tx.create(thing("mine")))
    second = store_at(tmp_path)
    assert second.epoch == first.epoch + 1
    for _ in range(2):
        with pytest.raises(Fenced):
            first.write(lambda tx: tx.create(thing("late")))
    second.write(lambda tx: tx.create(thing("theirs")))
    assert sorted(k.name for k in stored(second)) == ["mine", "theirs"]
    assert first.get(key("late")) is None
    first.close()
    second.close()


def test_reopening_finds_everything_and_goes_on_with_the_next_number(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.write(lambda tx: (tx.create(thing("a")), tx.create(thing("b")), tx.fact("audit", key("a"), "me")))
    store.write(lambda tx: tx.delete(key("a")))
    before = (store.installation, store.incarnation, store.sequence, store.fact_sequence, store.get(key("b")))
    store.close()
    store = store_at(tmp_path)
    assert before == (store.installation, store.incarnation, 3, 1, store.get(key("b")))
    assert (store.sequence, store.fact_sequence) == (3, 1)
    assert store.write(lambda tx: tx.fact("audit", key("b"), "me")) == 2
    assert store.write(lambda tx: tx.create(thing("a")))["metadata"]["resourceVersion"] == 4
    store.close()


# ── watching ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "database"])
def test_a_watch_resumes_behind_any_number_without_loss_or_repetition(store: Store, memory: bool) -> None:
    for n in range(10):
        store.write(lambda tx, n=n: tx.create(thing(f"t{n}")))
    if not memory:
        store._ring.clear()
    for since in range(11):
        watch = store.subscribe(since)
        assert [e.seq for e in drain(watch)] == list(range(since + 1, 11))
        watch.close()
    assert drain(store.subscribe()) == []
    with pytest.raises(TooOld, match="not of this history"):
        store.subscribe(11)


def test_a_watch_resumes_across_a_restart_from_the_database_and_the_ring(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for n in range(5):
        store.write(lambda tx, n=n: tx.create(thing(f"t{n}")))
    store.close()
    store = store_at(tmp_path)
    store.write(lambda tx: tx.delete(key("t0")))
    watch = store.subscribe(2)
    store.write(lambda tx: tx.delete(key("t1")))
    assert [(e.seq, e.type) for e in drain(watch)] == [(n, "ADDED" if n < 6 else "DELETED") for n in range(3, 8)]
    store.close()


def test_a_watch_that_resumes_during_a_commit_meets_each_event_once(store: Store) -> None:
    store.write(lambda tx: tx.create(thing("a")))
    store._ring.clear()  # as after a restart: the past comes from the database
    committed, go, publish = threading.Event(), threading.Event(), store._publish

    def held_up(tx: Tx) -> None:
        committed.set()
        assert go.wait(BOUND)
        publish(tx)

    store._publish = held_up  # type: ignore[method-assign]
    future = store.submit(lambda tx: tx.create(thing("b")))
    assert committed.wait(BOUND)
    watch = store.subscribe(0)
    go.set()
    future.result(BOUND)
    assert [e.seq for e in drain(watch)] == [1, 2]


def test_too_old_is_said_and_not_hidden(tmp_path: Path) -> None:
    store = store_at(tmp_path, keep_events=20)
    for n in range(60):
        store.write(lambda tx, n=n: tx.create(thing(f"t{n}")))
    store._ring.clear()
    kept = numbers(store)
    assert kept == list(range(kept[0], 61))
    assert kept[0] > 1
    with pytest.raises(TooOld):
        store.subscribe(kept[0] - 2)
    assert [e.seq for e in drain(store.subscribe(kept[0] - 1))] == kept
    store.close()


def test_a_watcher_ends_with_the_store(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    watch = store.subscribe()
    store.close()
    assert watch.get(BOUND) is None


# ── resources ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_update_is_refused_and_an_equal_one_writes_nothing(store: Store) -> None:
    made = store.write(lambda tx: tx.create(thing("a")))
    doc = thing("a", colour="blue")
    doc["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    assert store.write(lambda tx: tx.replace(doc)).result == "changed"
    with pytest.raises(Conflict, match="changed meanwhile"):
        store.write(lambda tx: tx.replace(doc))
    before = store.sequence
    assert store.write(lambda tx: tx.replace(thing("a", colour="blue"))).result == "unchanged"
    assert store.sequence == before


def test_a_resource_with_finalizers_goes_only_when_it_was_taken_down(store: Store) -> None:
    store.finalizers = frozenset({"Thing"})
    uid = store.write(lambda tx: tx.create(thing("a")))["metadata"]["uid"]
    store.write(lambda tx: tx.finalize(key("a"), uid))
    assert store.get(key("a"))
    store.write(lambda tx: tx.delete(key("a")))
    assert store.get(key("a"))["metadata"]["deletionTimestamp"]
    with pytest.raises(Conflict, match="being deleted"):
        store.write(lambda tx: tx.replace(thing("a", colour="blue")))
    store.write(lambda tx: tx.finalize(key("a"), "of another one"))
    assert store.get(key("a"))
    store.write(lambda tx: tx.finalize(key("a"), uid))
    assert store.get(key("a")) is None
    with pytest.raises(NotFound):
        store.write(lambda tx: tx.delete(key("a")))


def test_children_follow_their_owner_reference(store: Store) -> None:
    owners = [store.write(lambda tx, n=n: tx.create(thing(n)))["metadata"]["uid"] for n in ("one", "two")]

    def child(owner: str) -> dict[str, Any]:
        doc = thing("child")
        doc["metadata"]["ownerReferences"] = [{"kind": "Thing", "name": "x", "uid": owner}]
        return doc

    store.write(lambda tx: tx.create(child(owners[0])))
    assert [e.key.name for e in store.children(owners[0])] == ["child"]
    store.write(lambda tx: tx.replace(child(owners[1])))
    assert store.children(owners[0]) == []
    assert [e.key.name for e in store.children(owners[1])] == ["child"]
    store.write(lambda tx: tx.delete(key("child")))
    assert store.children(owners[1]) == []


def test_what_readers_get_is_theirs(store: Store) -> None:
    store.write(lambda tx: tx.create(thing("a")))
    store.get(key("a"))["spec"]["colour"] = "none"
    assert store.get(key("a"))["spec"]["colour"] == "red"
