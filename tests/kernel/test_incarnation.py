"""A database put back from a copy is noticed, and its numbers are never taken for those of the lost history."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from groundcontrol.kernel import incarnation, tables
from groundcontrol.kernel.errors import TooOld, Unavailable
from groundcontrol.kernel.incarnation import LEAP, Observing, droppable
from groundcontrol.kernel.store import Store
from tests.kernel.things import KINDS, key, thing


@contextmanager
def opened(folder: Path, *, restored: str = "", keep: int = 100_000) -> Iterator[Store]:
    folder.mkdir(exist_ok=True)
    store = Store(
        f"sqlite:///{folder / 'ground.db'}",
        KINDS,
        lock=folder / "lock",
        witness=folder / "witness.json",
        restored=restored,
        keep_events=keep,
    )
    store.open()
    try:
        yield store
    finally:
        store.close()


def observed(store: Store) -> Observing | None:
    with store.reading() as conn:
        return incarnation.observing(conn)


def copied(folder: Path, to: Path) -> None:
    """A copy as a backup program takes it, of a database in use."""
    with closing(sqlite3.connect(folder / "ground.db")) as live, closing(sqlite3.connect(to)) as copy:
        live.backup(copy)


def put_back(copy: Path, folder: Path) -> None:
    for name in ("ground.db", "ground.db-wal", "ground.db-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "ground.db").write_bytes(copy.read_bytes())


def make(store: Store, *names: str) -> None:
    for name in names:
        store.write(lambda tx, name=name: tx.create(thing(name)))  # type: ignore[misc]


def test_what_goes_on_in_its_own_folder_is_no_restore(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        make(store, "a", "b")
        first = store.incarnation
        assert observed(store) is None
    for _ in range(2):
        with opened(tmp_path) as store:
            assert (store.incarnation, observed(store)) == (first, None)
            make(store, f"more{store.epoch}")


@pytest.mark.parametrize("restarts", [0, 1])
def test_an_older_copy_begins_a_new_incarnation_beyond_every_number_handed_out(tmp_path: Path, restarts: int) -> None:
    with opened(tmp_path) as store:
        make(store, "a")
        store.write(lambda tx: tx.audit("me", "create", key("a")))
        copied(tmp_path, tmp_path / "copy")
        make(store, "b", "c")
        store.write(lambda tx: tx.audit("me", "create", key("b")))
        lost = (store.incarnation, store.epoch, store.sequence, store.fact_sequence)
    for _ in range(restarts):
        with opened(tmp_path) as store:
            lost = (store.incarnation, store.epoch, store.sequence, store.fact_sequence)
    put_back(tmp_path / "copy", tmp_path)
    with opened(tmp_path) as store:
        found = observed(store)
        assert found is not None
        assert "copy from before event 3" in found.why
        assert store.incarnation != lost[0]
        assert store.epoch > lost[1]
        assert store.sequence == store.fact_sequence == LEAP
        assert store.get(key("b")) is None
        with pytest.raises(TooOld):
            store.subscribe(since=2)  # of the lost history; there is an event 2 no more
        subscription = store.subscribe(since=0)
        make(store, "b")
        seen = [e.seq for _ in range(2) for e in subscription.get(5) or ()]
        assert seen == [1, LEAP + 1], "what both histories share, then what is new"
    with opened(tmp_path) as store:
        assert observed(store) == found, "it observes until somebody lets it go, over restarts"
        store.write(lambda tx: incarnation.release(tx.conn))
    with opened(tmp_path) as store:
        assert observed(store) is None


def test_a_database_in_a_folder_it_never_ran_in_is_taken_for_restored(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as store:
        make(store, "a")
        copied(tmp_path / "one", tmp_path / "copy")
    (tmp_path / "two").mkdir()
    put_back(tmp_path / "copy", tmp_path / "two")
    with opened(tmp_path / "two") as store:
        found = observed(store)
        assert found is not None
        assert "never ran" in found.why
    with opened(tmp_path / "three") as store:
        make(store, "a")
    put_back(tmp_path / "copy", tmp_path / "three")
    with opened(tmp_path / "three") as store:
        found = observed(store)
        assert found is not None
        assert "another database" in found.why


def test_a_lost_database_is_not_begun_anew_without_a_word(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        make(store, "a")
    for name in ("ground.db", "ground.db-wal", "ground.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    for _ in range(2):
        with pytest.raises(Unavailable, match="put back a copy"), opened(tmp_path):
            pass
    (tmp_path / "witness.json").unlink()
    with opened(tmp_path) as store:
        assert observed(store) is None


def test_a_witness_cut_short_by_a_power_failure_accuses_nobody(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        make(store, "a")
    for torn in (b"", b'["abc", 1'):
        (tmp_path / "witness.json").write_bytes(torn)
        with opened(tmp_path) as store:
            assert observed(store) is None


def test_a_person_can_say_that_everything_was_put_back(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        make(store, "a")
        before = store.epoch
    with opened(tmp_path, restored="the array was rolled back") as store:
        found = observed(store)
        assert found is not None
        assert found.why == "the array was rolled back"
        assert store.epoch > before + 1000


def test_events_and_facts_from_before_are_kept_until_as_many_new_ones_came(tmp_path: Path) -> None:
    assert droppable(70, 50) == 20
    assert droppable(40, 50) <= 0
    assert droppable(LEAP + 49, 50) == 0
    assert droppable(LEAP + 60, 50) == LEAP + 10
    with opened(tmp_path, keep=5) as store:
        make(store, *(f"a{n}" for n in range(5)))
    with opened(tmp_path, keep=5, restored="test") as store:
        make(store, "b")
        with store.reading() as conn:
            assert len(conn.execute(tables.events.select()).all()) > 5
        make(store, *(f"c{n}" for n in range(9)))
        with store.reading() as conn:
            assert min(r.seq for r in conn.execute(tables.events.select())) > LEAP
