"""The store against a model: whatever is committed together, the cache is the database and the numbers are whole."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.tx import Tx
from tests.kernel.test_store import Pause, drain
from tests.kernel.things import key, store_at, thing

NAMES = ("a", "b", "c", "d")
STEP = st.tuples(
    st.sampled_from(["create", "replace", "status", "delete", "finalize", "fact"]),
    st.sampled_from(NAMES),
    st.sampled_from(["red", "blue"]),
)
ACT = st.tuples(st.lists(STEP, max_size=4), st.sampled_from(["keep", "keep", "raise", "part"]))


class Changed(Exception):
    """Somebody changed their mind."""


class StoreMachine(RuleBasedStateMachine):
    """Random acts, several in one commit, some of which fail as a whole or in a part, and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.open()
        self.model: dict[Key, tuple[str, bool, int]] = {}
        """Colour, whether it is being deleted, and how often its status was written."""
        self.events: list[tuple[int, str, str]] = []
        self.facts = 0

    def open(self) -> None:
        self.store = store_at(Path(self.directory.name), finalizers=frozenset({"Thing"}))
        self.watch = self.store.subscribe()

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @rule(acts=st.lists(ACT, min_size=1, max_size=4))
    def commit(self, acts: list[Any]) -> None:
        pause = Pause(self.store)
        futures = [self.store.submit(lambda tx, a=act: self.play(tx, *a)) for act in acts]  # type: ignore[misc]
        pause.release()
        for future, (_, ending) in zip(futures, acts, strict=True):
            error = future.exception(20)
            assert isinstance(error, Changed) if ending == "raise" else error is None

    def play(self, tx: Tx, steps: list[Any], ending: str) -> None:
        """One act; the model follows what is kept (the writer is one thread, in this order)."""
        before = (dict(self.model), len(self.events), self.facts)
        for step in steps:
            self.step(tx, *step)
        if ending == "part":
            inner = (dict(self.model), len(self.events), self.facts)
            try:
                tx.attempt(lambda tx: [*(self.step(tx, *s) for s in steps), 1 / 0])
            except ZeroDivisionError:
                self.back(inner)
        assert {e.key: e.doc["spec"]["colour"] for e in tx.entries("Thing")} == {k: v[0] for k, v in self.model.items()}
        if ending == "raise":
            self.back(before)
            raise Changed

    def back(self, to: Any) -> None:
        self.model, self.facts = dict(to[0]), to[2]
        del self.events[to[1] :]

    def step(self, tx: Tx, verb: str, name: str, colour: str) -> None:
        at, was = key(name), self.model.get(key(name))
        uid = (tx.get(at) or {"metadata": {"uid": ""}})["metadata"]["uid"]
        events = len(tx.events)
        try:
            match verb:
                case "create":
                    tx.create(thing(name, colour=colour))
                    self.model[at] = (colour, False, 0)
                case "replace":
                    tx.replace(thing(name, colour=colour))
                    assert was
                    self.model[at] = (colour, was[1], was[2])
                case "status":
                    written = tx.set_status(at, uid, {"conditions": [], "seen": [colour] * (was[2] + 1 if was else 0)})
                    assert written == (was is not None)
                    if was:
                        self.model[at] = (was[0], was[1], was[2] + 1)
                case "delete":
                    tx.delete(at)
                    assert was
                    self.model[at] = (was[0], True, was[2])
                case "finalize":
                    tx.finalize(at, uid)
                    if was and was[1]:
                        del self.model[at]
                case "fact":
                    tx.fact("audit", at, "me")
                    self.facts += 1
        except GroundError:
            assert (was is None) != (verb == "create") or (was is not None and was[1])
        self.events += [(e.seq, e.type, e.key.name) for e in tx.events[events:]]

    @precondition(lambda self: self.events)
    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()

    @rule(back=st.integers(0, 30))
    def resume(self, back: int) -> None:
        since = max(0, self.store.sequence - back)
        watch = self.store.subscribe(since)
        assert [(e.seq, e.type, e.key.name) for e in drain(watch)] == self.events[since:]
        watch.close()

    @invariant()
    def the_cache_is_the_database_and_the_model(self) -> None:
        with self.store.reading() as conn:
            rows = {Key(r.kind, r.namespace, r.name): r for r in conn.execute(sa.select(tables.resources))}
            events = conn.execute(sa.select(tables.events).order_by(tables.events.c.seq)).all()
            facts = [r.seq for r in conn.execute(sa.select(tables.facts.c.seq).order_by(tables.facts.c.seq))]
        cache = {e.key: e for e in self.store.entries("Thing")}
        assert list(cache) == sorted(cache)
        assert {k: (r.seq, r.doc) for k, r in rows.items()} == {k: (e.seq, e.raw) for k, e in cache.items()}
        assert cache.keys() == self.model.keys()
        for at, (colour, deleting, written) in self.model.items():
            doc = cache[at].doc
            assert (doc["spec"]["colour"], bool(doc["metadata"]["deletionTimestamp"])) == (colour, deleting)
            assert len(doc["status"].get("seen", ())) == written
            assert self.store.by_uid(doc["metadata"]["uid"]) == cache[at]
        assert [(e.seq, e.type, e.name) for e in events] == self.events
        assert [e.seq for e in events] == list(range(1, self.store.sequence + 1))
        assert facts == list(range(1, self.facts + 1)) == list(range(1, self.store.fact_sequence + 1))
        for event in events:
            assert msgspec.json.decode(event.doc)["metadata"]["resourceVersion"] == event.seq

    @invariant()
    def the_watcher_heard_each_event_once_and_in_order(self) -> None:
        for event in drain(self.watch):
            assert (event.seq, event.type, event.key.name) == self.events[event.seq - 1]
            assert event.seq > getattr(self, "_last", 0)
            self._last = event.seq


StoreMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRandomActs = StoreMachine.TestCase
