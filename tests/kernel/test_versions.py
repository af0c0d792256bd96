"""Two versions of a kind side by side, and fields that only a newer program knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import pytest
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Conflict, Invalid
from groundcontrol.kernel.resource import Doc, KindInfo, Kinds, Model, Resource, Status, Versions
from groundcontrol.kernel.store import Store
from tests.kernel.test_store import drain
from tests.kernel.things import Thing, key, store_at, thing


class SizedSpec(Model):
    """What is wanted, since the second version."""

    size: str = "0 cm"
    """With its unit."""


class Box(Resource):
    """A kind whose first version had a bare number."""

    info: ClassVar[KindInfo] = KindInfo(plural="boxes")
    version: ClassVar[str] = "ground/v2"
    kind: Literal["Box"] = "Box"
    spec: SizedSpec
    status: Status = Status()


class OldSpec(Model):
    """What was wanted in the first version."""

    centimetres: int = 0
    """Without its unit."""


class OldBox(Resource):
    """The kind as an older program has it."""

    info: ClassVar[KindInfo] = KindInfo(plural="boxes")
    kind: Literal["Box"] = "Box"
    spec: OldSpec
    status: Status = Status()


OldBox.__name__ = "Box"


def up(doc: Doc) -> Doc:
    return {**doc, "spec": {"size": f"{doc['spec']['centimetres']} cm"}}


def down(doc: Doc) -> Doc:
    return {**doc, "spec": {"centimetres": int(doc["spec"]["size"].split()[0])}}


OLD = Kinds([OldBox, Thing])
BOTH = Kinds([Versions(Box, {"ground/v1": up}, {"ground/v1": down}), Thing])


def box(version: str, **spec: Any) -> Doc:
    meta = {"name": "box", "namespace": "alpha"}
    return {"apiVersion": version, "kind": "Box", "metadata": meta, "spec": spec}


BOX = key("box", "Box")


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[Store]:
    """A store whose Box was written by an older program."""
    old = store_at(tmp_path, kinds=OLD)
    old.write(lambda tx: tx.create(OLD.parse(box("ground/v1", centimetres=7))))
    old.close()
    store = store_at(tmp_path, kinds=BOTH)
    yield store
    store.close()


def raw(store: Store) -> Doc:
    with store.reading() as conn:
        row = conn.execute(sa.select(tables.resources).where(tables.resources.c.name == "box")).one()
    doc: Doc = msgspec.json.decode(row.doc)
    return doc


def test_what_an_older_program_wrote_is_read_in_the_current_shape(upgraded: Store) -> None:
    doc = upgraded.get(BOX)
    assert doc
    assert (doc["apiVersion"], doc["spec"]) == ("ground/v2", {"size": "7 cm"})
    assert raw(upgraded)["spec"] == {"centimetres": 7}
    assert msgspec.json.decode(drain(upgraded.subscribe(0))[0].raw)["spec"] == {"size": "7 cm"}


def test_it_is_written_in_one_shape_only(upgraded: Store) -> None:
    doc = upgraded.get(BOX)
    assert doc
    upgraded.write(lambda tx: tx.set_status(BOX, doc["metadata"]["uid"], {"observedGeneration": 1, "conditions": []}))
    assert (raw(upgraded)["apiVersion"], raw(upgraded)["spec"]) == ("ground/v2", {"size": "7 cm"})


def test_the_same_wish_in_either_version_changes_nothing(upgraded: Store) -> None:
    for wish in (box("ground/v1", centimetres=7), box("ground/v2", size="7 cm")):
        applied = upgraded.write(lambda tx, wish=wish: tx.replace(BOTH.parse(wish)))
        assert applied.doc["metadata"]["generation"] == 1
    applied = upgraded.write(lambda tx: tx.replace(BOTH.parse(box("ground/v1", centimetres=8))))
    assert (applied.doc["spec"], applied.doc["metadata"]["generation"]) == ({"size": "8 cm"}, 2)


def test_an_older_worker_is_written_to_in_its_own_shape(upgraded: Store) -> None:
    doc = upgraded.get(BOX)
    assert doc
    older = BOTH.versions("Box").to_version(doc, "ground/v1")
    assert (older["apiVersion"], older["spec"]) == ("ground/v1", {"centimetres": 7})
    assert BOTH.versions("Box").to_current(older) == doc


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Invalid, match=r"no version 'ground/v9'.*ground/v2, ground/v1"):
        BOTH.parse(box("ground/v9", size="7 cm"))


def test_a_program_that_was_downgraded_opens_the_store_and_destroys_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path, kinds=BOTH)
    store.write(lambda tx: tx.create(BOTH.parse(box("ground/v2", size="7 cm"))))
    store.close()
    store = store_at(tmp_path, kinds=OLD)
    with pytest.raises(Conflict, match="newer version"):
        store.write(lambda tx: tx.replace(OLD.parse(box("ground/v1", centimetres=1))))
    assert raw(store)["spec"] == {"size": "7 cm"}
    with pytest.raises(Invalid):
        OLD.view(store.get(BOX))
    store.close()


def test_fields_of_a_newer_program_survive_status_writes_and_changes(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    made = thing("a", colour="red")
    made["spec"] |= {"shine": 3, "inner": {"depth": 1, "width": 2}}
    made["metadata"]["mood"] = "good"
    made["status"] |= {"weather": "fine"}
    uid = store.write(lambda tx: tx.create(made))["metadata"]["uid"]
    view = Thing.view(store.get(key("a")) or {})
    assert view.spec.inner.depth == 1
    status = view.status.model_copy(update={"seen": ["a"]}).model_dump(mode="json", by_alias=True)
    assert store.write(lambda tx: tx.set_status(key("a"), uid, status))
    assert not store.write(lambda tx: tx.set_status(key("a"), uid, status))
    assert store.write(lambda tx: tx.replace(thing("a", colour="blue", inner={"depth": 5}))).result == "changed"
    doc = store.get(key("a"))
    assert doc
    assert doc["spec"] | {"names": [], "at": ""} == {
        "at": "", "colour": "blue", "names": [], "shine": 3, "inner": {"depth": 5, "width": 2},
    }  # fmt: skip
    assert (doc["metadata"]["mood"], doc["status"]["weather"], doc["status"]["seen"]) == ("good", "fine", ["a"])
    store.close()
