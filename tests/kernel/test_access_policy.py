"""The policy that follows a commit is what would be compiled from nothing, whatever was written or taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundcontrol.kernel.access import KINDS, Access, Subject
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.resource import Doc, Key, Kinds
from groundcontrol.kernel.rights import Policy
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx

GROUPS = ("a", "a/b", "a/b/c", "ab", "d")
PEOPLE = [Subject.user("u"), *(Subject.user(f"u{n}", [group]) for n, group in enumerate(GROUPS)), Subject.source("s")]
PATTERNS = [*GROUPS, *(f"{group}/**" for group in GROUPS)]
VERBS = ["get", "update", "*"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    store = Store(f"sqlite:///{folder}/ground.db", Kinds(list(KINDS))).open()
    yield store
    store.close()


@pytest.fixture(scope="module")
def access(store: Store) -> Iterator[Access]:
    access = Access(store)
    yield access
    access.close()


def a_few(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), max_size=2, unique=True)


SUBJECTS = ["user:u", "user:u1", "source:s", *(f"group:{pattern}" for pattern in PATTERNS)]
SELECTORS = st.fixed_dictionaries({"namespaces": a_few(["n0", "n1"]), "groups": a_few(PATTERNS), "sites": a_few(["x"])})
SPECS: dict[str, st.SearchStrategy[Doc]] = {
    "Namespace": st.fixed_dictionaries({"group": st.sampled_from(GROUPS)}),
    "Role": st.builds(
        lambda kinds, verbs: {"rules": [{"kinds": kinds or ["*"], "verbs": verbs or ["get"]}]},
        a_few(["Thing", "Role"]),
        a_few(VERBS),
    ),
    "RoleBinding": st.builds(
        lambda role, subjects, selector: {"role": role, "subjects": subjects or ["user:u"], "selector": selector},
        st.sampled_from(["r0", "r1", "viewer", "gone"]),
        st.lists(st.sampled_from(SUBJECTS), max_size=3),
        SELECTORS,
    ),
    "Account": st.fixed_dictionaries({"groups": a_few(list(GROUPS))}),
}
NAMES = {"Namespace": "n", "Role": "r", "RoleBinding": "b", "Account": "u"}


def _written(kind: str) -> st.SearchStrategy[Any]:
    name = st.integers(0, 2).map(lambda n: f"{NAMES[kind]}{n}")
    return st.tuples(st.just("write"), st.just(kind), name, st.none() | SPECS[kind])


WRITES = st.one_of(*map(_written, SPECS))
STEPS = st.recursive(
    WRITES,
    lambda inner: st.tuples(st.sampled_from(["kept", "undone"]), st.lists(inner, max_size=4)),
    max_leaves=12,
)
ACTS = st.lists(st.tuples(st.booleans(), st.lists(STEPS, max_size=6)), min_size=1, max_size=4)
"""Acts of one commit or of several; those with False fail at their end."""


class Undone(Exception):
    """Thrown to take everything back."""


def write(store: Store, tx: Tx, kind: str, name: str, spec: Doc | None) -> None:
    key = Key(kind, "", name)
    if spec is None:
        if tx.get(key) is not None:
            tx.delete(key)
        return
    doc = store.kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
    if tx.get(key) is None:
        tx.create(doc)
    else:
        tx.replace(doc)


def step(store: Store, access: Access, tx: Tx, what: Any) -> None:
    if what[0] == "write":
        write(store, tx, *what[1:])
    else:

        def act(tx: Tx) -> None:
            for inner in what[1]:
                step(store, access, tx, inner)
            if what[0] == "undone":
                raise Undone

        with contextlib.suppress(Undone):
            tx.attempt(act)
    same(access, tx)


def same(access: Access, tx: Tx) -> None:
    """What is cached is what would be compiled from nothing."""
    cached = access.policy_in(tx)
    anew = Policy(*([e.doc for e in tx.entries(kind)] for kind in ("Namespace", "Role", "RoleBinding")))
    assert cached.roles == anew.roles
    for subject in PEOPLE:
        assert cached.rights(subject.names) == anew.rights(subject.names), subject.name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTS)
def test_after_any_writes_the_cached_policy_is_the_compiled_one(store: Store, access: Access, acts: Any) -> None:
    def run(tx: Tx, good: bool, steps: Any) -> None:
        same(access, tx)
        for what in steps:
            step(store, access, tx, what)
        if not good:
            raise Undone

    # Handed in together, so that several fall into one commit, now and then.
    futures = [store.submit(lambda tx, good=good, steps=steps: run(tx, good, steps)) for good, steps in acts]
    for (good, _), future in zip(acts, futures, strict=True):
        if good:
            future.result(30)
        else:
            with pytest.raises(Undone):
                future.result(30)

    def clean(tx: Tx) -> None:
        for kind in SPECS:
            for entry in tx.entries(kind):
                tx.delete(entry.key)
        same(access, tx)

    store.write(clean)
    settled = access.policy()
    assert all(settled.rights(subject.names) == () for subject in PEOPLE)


def test_a_policy_that_others_read_is_not_changed_by_a_commit(store: Store, access: Access) -> None:
    before = access.policy()

    def act(tx: Tx) -> None:
        write(store, tx, "Namespace", "n0", {"group": "a"})
        spec = {"role": "viewer", "subjects": ["user:u"], "selector": {"groups": ["a/**"]}}
        write(store, tx, "RoleBinding", "b0", spec)
        assert access.policy_in(tx).rights(frozenset({"user:u"}))
        assert access.policy() is before
        assert before.rights(frozenset({"user:u"})) == ()
        raise Undone

    with pytest.raises(Undone):
        store.write(act)
    assert access.policy() is before
    assert before.rights(frozenset({"user:u"})) == ()


TAKEN: dict[str, tuple[str, str, Doc | None]] = {
    "the binding goes": ("RoleBinding", "b0", None),
    "the binding is for somebody else": ("RoleBinding", "b0", {"role": "r0", "subjects": ["user:u1"]}),
    "the binding holds elsewhere": (
        "RoleBinding",
        "b0",
        {"role": "r0", "subjects": ["user:u0"], "selector": {"groups": ["d"]}},
    ),
    "the role goes": ("Role", "r0", None),
    "the role allows less": ("Role", "r0", {"rules": [{"kinds": ["Thing"], "verbs": ["get"]}]}),
    "the namespace belongs to others": ("Namespace", "n0", {"group": "d"}),
    "the account goes": ("Account", "u0", None),
    "the account may not": ("Account", "u0", {"disabled": True}),
}


@pytest.mark.parametrize("how", TAKEN)
def test_a_right_taken_away_in_the_same_transaction_counts(store: Store, access: Access, how: str) -> None:
    user = Subject.user("u0")

    def may(tx: Tx) -> None:
        access.require_in(tx, user, "update", "Thing", namespace="n0", name="x")

    def act(tx: Tx) -> None:
        write(store, tx, "Namespace", "n0", {"group": "a/b"})
        write(store, tx, "Role", "r0", {"rules": [{"kinds": ["Thing"], "verbs": ["update"]}]})
        binding = {"role": "r0", "subjects": ["user:u0"], "selector": {"groups": ["a/**"]}}
        write(store, tx, "RoleBinding", "b0", binding)
        write(store, tx, "Account", "u0", {})
        may(tx)

        def taken(tx: Tx) -> None:
            write(store, tx, *TAKEN[how])
            with pytest.raises(GroundError):
                may(tx)
            raise Undone

        with pytest.raises(Undone):
            tx.attempt(taken)
        may(tx)  # it was taken back: the right is there again
        raise Undone

    with pytest.raises(Undone):
        store.write(act)
