"""What a kind may ask at admission: of other resources in the same transaction, and of rights besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from groundcontrol.kernel.access import KINDS, Access, Subject
from groundcontrol.kernel.accounts import ensure_admin
from groundcontrol.kernel.errors import Conflict, Forbidden
from groundcontrol.kernel.resource import Doc, Key, KindInfo, Kinds, Model, Need, Resource
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx


class ShelfSpec(Model):
    """A shelf."""

    room: int = 0
    """How many books it takes."""


class Shelf(Resource):
    """A place for books."""

    info: ClassVar[KindInfo] = KindInfo(plural="shelves", namespaced=False)
    spec: ShelfSpec
    """How large it is."""


class BookSpec(Model):
    """A book."""

    shelf: str = ""
    """Where it stands."""
    banned: bool = False
    """Not for all."""


class Book(Resource):
    """Stands on a shelf that has room; only who approves shelves may ban one."""

    info: ClassVar[KindInfo] = KindInfo(plural="books", namespaced=False)
    spec: BookSpec
    """Where it stands."""

    @classmethod
    def admit_among(cls, old: Mapping[str, Any] | None, new: Mapping[str, Any], tx: Tx) -> None:
        shelf = tx.get(Key("Shelf", "", new["spec"]["shelf"]))
        there = [e for e in tx.entries("Book") if e.doc["spec"]["shelf"] == new["spec"]["shelf"]]
        others = [e for e in there if e.key.name != new["metadata"]["name"]]
        if shelf is None or len(others) >= shelf["spec"]["room"]:
            raise Conflict(f"no room on {new['spec']['shelf']}")

    @classmethod
    def needs(cls, old: Mapping[str, Any] | None, new: Mapping[str, Any], tx: Tx) -> Iterable[Need]:
        if new["spec"]["banned"] and not (old and old["spec"]["banned"]):
            yield Need("approve", "Shelf", "spec.banned keeps it from others")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(f"sqlite:///{tmp_path}/ground.db", Kinds([*KINDS, Shelf, Book])).open()
    ensure_admin(found, "root", "long enough", work=4)
    yield found
    found.close()


def doc(store: Store, kind: str, name: str, **spec: Any) -> Doc:
    return store.kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def refusal(tx: Tx, act: Callable[[Tx], Any]) -> str:
    """Why a part of a transaction is refused; empty when it is not. (The writer is no place for assertions.)"""
    try:
        tx.attempt(act)
    except Conflict as error:
        return error.message
    return ""


def test_it_sees_what_the_same_transaction_wrote_at_create_and_at_change(store: Store) -> None:
    def shelf_and_books(tx: Tx) -> str:
        tx.create(doc(store, "Shelf", "a", room=2))
        tx.create(doc(store, "Book", "one", shelf="a"))
        tx.create(doc(store, "Book", "two", shelf="a"))
        said = refusal(tx, lambda tx: tx.create(doc(store, "Book", "three", shelf="a")))
        tx.create(doc(store, "Shelf", "b", room=1))
        tx.replace(doc(store, "Book", "two", shelf="b"))
        if said:
            tx.create(doc(store, "Book", "three", shelf="a"))
        return said

    assert store.write(shelf_and_books) == "no room on a"
    assert sorted(e.key.name for e in store.entries("Book")) == ["one", "three", "two"]
    with pytest.raises(Conflict, match="no room on b"):
        store.write(lambda tx: tx.replace(doc(store, "Book", "one", shelf="b")))


def test_labels_are_judged_too_and_a_status_is_not(store: Store) -> None:
    store.write(lambda tx: tx.create(doc(store, "Shelf", "a", room=1)))
    book = store.write(lambda tx: tx.create(doc(store, "Book", "one", shelf="a")))
    store.write(lambda tx: tx.replace(doc(store, "Shelf", "a", room=0)))
    store.write(lambda tx: tx.replace(doc(store, "Book", "one", shelf="a")))  # unchanged: nothing is asked
    labelled = {**doc(store, "Book", "one", shelf="a"), "metadata": {**book["metadata"], "labels": {"a": "b"}}}
    labelled["metadata"].pop("resourceVersion")
    store.write(lambda tx: tx.set_status(Key("Book", "", "one"), book["metadata"]["uid"], {"conditions": []}))
    store.write(lambda tx: tx.replace(doc(store, "Shelf", "a", room=1)))
    store.write(lambda tx: tx.replace(labelled))
    store.write(lambda tx: tx.delete(Key("Shelf", "", "a")))
    with pytest.raises(Conflict):
        store.write(lambda tx: tx.replace({**labelled, "metadata": {**labelled["metadata"], "labels": {}}}))


def test_a_right_besides_is_asked_for_the_whole_platform(store: Store) -> None:
    def fill(tx: Tx) -> None:
        tx.create(doc(store, "Account", "lib"))
        rules = [{"kinds": ["Book"], "verbs": ["*"]}]
        tx.create(doc(store, "Role", "librarian", rules=rules))
        tx.create(doc(store, "RoleBinding", "lib", role="librarian", subjects=["user:lib"]))
        tx.create(doc(store, "Shelf", "a", room=9))

    store.write(fill)
    access = Access(store)
    plain, banned = doc(store, "Book", "one", shelf="a"), doc(store, "Book", "one", shelf="a", banned=True)
    try:
        for who, before, after, refused in (
            ("lib", None, plain, False),
            ("lib", plain, banned, True),
            ("lib", None, banned, True),
            ("lib", banned, banned, False),
            ("root", plain, banned, False),
        ):

            def act(tx: Tx, who: str = who, before: Any = before, after: Any = after) -> None:
                verb = "update" if before else "create"
                access.admit(tx, Subject.user(who), verb, Key("Book", "", "one"), before, after)

            if refused:
                with pytest.raises(Forbidden, match=r"spec.banned keeps it from others: .*approve Shelf"):
                    store.write(act)
            else:
                store.write(act)
    finally:
        access.close()
