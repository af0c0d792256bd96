"""The journal: numbered, of one worker at a time, and progress is its sum wherever it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.errors import Conflict, Fenced
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.run_journal import Line, Progress, append, forget, progress_of, read
from groundcontrol.kernel.store import Store
from tests.kernel.things import store_at

RUN = Key("Run", "alpha", "r")
ADMITTED = Line("", "admitted", {"sequence": {"steps": [{"name": "a"}, {"name": "b"}]}, "inputs": {}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = store_at(tmp_path)
    yield found
    found.close()


def write(store: Store, progress: Progress, *lines: Line, uid: str = "u") -> Progress:
    return store.write(lambda tx: append(tx, RUN, uid, progress, lines, "user:ada"))


def known(store: Store, uid: str = "u") -> Progress:
    with store.reading() as conn:
        return progress_of(read(conn, uid))


def test_what_was_written_is_what_is_read(store: Store) -> None:
    progress = write(store, Progress(), ADMITTED, Line("", "begun"))
    progress = write(store, progress, Line("a", "started", {"before": {"x": 1}}))
    progress = write(store, progress, Line("a", "unknown", {"message": "?"}))
    progress = write(store, progress, Line("a", "asked", {"question": "?", "choices": ["happened"], "doubt": True}))
    assert progress.phase == "Unknown"
    progress = write(
        store, progress, Line("a", "answered", {"answer": "happened", "by": "user:bob"}), Line("a", "done", {})
    )
    assert progress == known(store)
    assert (progress.last, progress.phase, progress.steps["a"].state) == (7, "Running", "done")
    assert (progress.steps["a"].attempts, progress.steps["a"].answered_by) == (1, "user:bob")
    with store.reading() as conn:
        assert [e.number for e in read(conn, "u")] == [1, 2, 3, 4, 5, 6, 7]
        assert {e.epoch for e in read(conn, "u")} == {store.epoch}


def test_two_workers_do_not_write_the_same_line(store: Store) -> None:
    first = write(store, Progress(), ADMITTED)
    write(store, first, Line("a", "started"))
    with pytest.raises(Conflict, match="went on meanwhile"):
        write(store, first, Line("a", "started"))
    assert known(store).last == 2
    write(store, Progress(), ADMITTED, uid="other")


def test_progress_that_failed_to_be_written_is_not_progress(store: Store) -> None:
    first = write(store, Progress(), ADMITTED)

    def act(tx: Any) -> None:
        append(tx, RUN, "u", first, [Line("a", "started")], "")
        raise Conflict("no")

    with pytest.raises(Conflict):
        store.write(act)
    assert first.steps["a"].state == "pending"
    assert known(store) == first


def test_a_worker_of_an_older_epoch_writes_nothing(tmp_path: Path) -> None:
    old = store_at(tmp_path)
    progress = write(old, Progress(), ADMITTED)
    new = store_at(tmp_path)
    assert new.epoch > old.epoch
    with pytest.raises(Fenced):
        write(old, progress, Line("a", "started"))
    progress = write(new, known(new), Line("a", "started"))
    with pytest.raises(Fenced):
        write(old, progress, Line("a", "done"))
    assert known(new).steps["a"].state == "running"
    old.close()
    new.close()


def test_nor_where_workers_have_epochs_of_their_own(store: Store) -> None:
    """Many workers over one database: the store's own check passes, the journal's does not."""
    progress = write(store, Progress(), ADMITTED)
    store.write(lambda tx: tx.conn.exec_driver_sql(f"update journal set epoch = {store.epoch + 1}"))
    with pytest.raises(Fenced, match="another worker's by now"):
        write(store, progress, Line("a", "started"))


def test_forgotten(store: Store) -> None:
    write(store, Progress(), ADMITTED)
    write(store, Progress(), ADMITTED, uid="other")
    store.write(lambda tx: forget(tx, "u"))
    assert known(store) == Progress()
    assert known(store, "other").last == 1


def test_fields_are_let_go_once(store: Store) -> None:
    sets = [{"kind": "Thing", "namespace": "alpha", "name": "t", "uid": "x", "until": 5.0}]
    progress = write(store, Progress(), ADMITTED, Line("a", "done", {"sets": sets, "once": True}))
    progress = write(store, progress, Line("b", "done", {"sets": sets, "once": True}))
    assert [s["number"] for s in progress.sets] == [2, 3]
    progress = write(store, progress, Line("", "released", {"numbers": [2]}))
    assert [s["released"] for s in progress.sets] == [True, False]
    progress = write(store, progress, Line("", "ended", {"phase": "Succeeded"}))
    assert [s["released"] for s in progress.sets] == [True, True]
    assert progress.phase == "Succeeded"
