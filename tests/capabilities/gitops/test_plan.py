"""What is wanted against what is there: the fewest changes, in an order that works, and nothing lost by a mistake."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundcontrol.capabilities.gitops.logic import ADOPT, FILE, SOURCE, Desired, Outcome, edit_refusal, plan_changes
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.ports.repository import Refused
from tests.capabilities.gitops.tiny import KINDS, Store, desire, thing

ME = "source:platform"
ONE, TWO = Key("Thing", "alpha", "one"), Key("Thing", "alpha", "two")


def plan(store: Store, desired: Desired, **options: Any) -> Outcome:
    return plan_changes(desired, store.owned("platform"), store.docs, "platform", kinds=KINDS, **options)


def apply(store: Store, files: Mapping[str, str | bytes], **options: Any) -> Outcome:
    found = plan(store, desire(files, **options))
    for change in found.plan.changes:
        store.apply(change, ME)
    return found


def verbs(found: Outcome) -> list[tuple[str, str]]:
    return [(change.verb, change.target.id) for change in found.plan.changes]


@pytest.fixture
def store() -> Store:
    made = Store()
    apply(made, {"a.yaml": thing("one", replicas=3), "b.yaml": thing("two")})
    return made


def stored(store: Store, name: str) -> Doc:
    return store.docs[Key("Thing", "alpha", name)]


# ------------------------------------------------------------------------------------------- the fewest changes


def test_created_things_say_where_they_come_from(store: Store) -> None:
    meta = stored(store, "one")["metadata"]
    assert meta["annotations"] == {SOURCE: "platform", FILE: "a.yaml"}
    assert meta["managers"] == {"spec.replicas": ME, "metadata.annotations": ME}


def test_nothing_changes_when_nothing_changed_or_only_moved_within_a_file(store: Store) -> None:
    assert not plan(store, desire({"a.yaml": thing("one", replicas=3), "b.yaml": thing("two")})).plan
    moved = "# a comment\n\n\n" + thing("zero") + "---\n" + thing("one", replicas=3)
    assert verbs(plan(store, desire({"a.yaml": moved, "b.yaml": thing("two")}))) == [("create", "alpha/zero")]


def test_only_the_fields_that_differ_are_in_the_change(store: Store) -> None:
    (change,) = plan(store, desire({"a.yaml": thing("one", replicas=4), "b.yaml": thing("two")})).plan.changes
    assert change.verb == "update"
    assert dict(change.fields) == {"spec.replicas": (3, 4)}
    assert not change.destructive
    assert change.payload.uid == "uid-one"


def test_a_resource_that_moves_to_another_file_is_not_made_anew(store: Store) -> None:
    (change,) = plan(store, desire({"c.yaml": thing("one", replicas=3), "b.yaml": thing("two")})).plan.changes
    assert change.verb == "update"
    assert dict(change.fields) == {f"metadata.annotations.{FILE}": ("a.yaml", "c.yaml")}


def test_defaults_that_came_later_are_equal(store: Store) -> None:
    del stored(store, "one")["spec"]["words"]
    assert not plan(store, desire({"a.yaml": thing("one", replicas=3), "b.yaml": thing("two")})).plan


def test_marks_left_by_others_stay_and_labels_follow_the_file(store: Store) -> None:
    stored(store, "one")["metadata"]["annotations"]["ground/restarted"] = "now"
    files = {"a.yaml": thing("one", replicas=3), "b.yaml": thing("two")}
    assert not plan(store, desire(files)).plan
    files["a.yaml"] = thing("one", replicas=3, meta="labels: {x: y}\nannotations: {why: because}")
    apply(store, files)
    meta = stored(store, "one")["metadata"]
    assert meta["labels"] == {"x": "y"}
    assert meta["annotations"] == {SOURCE: "platform", FILE: "a.yaml", "why": "because", "ground/restarted": "now"}
    files["a.yaml"] = thing("one", replicas=3)
    apply(store, files)
    meta = stored(store, "one")["metadata"]
    assert meta["labels"] == {}
    assert "why" not in meta["annotations"]
    assert not plan(store, desire(files)).plan


# ------------------------------------------------------------------------------------------- who sets a field


def test_a_field_the_file_does_not_give_belongs_to_whoever_sets_it(store: Store) -> None:
    doc = copy.deepcopy(stored(store, "two"))
    doc["spec"]["replicas"] = 9
    store.put(doc, "scaler:two", frozenset({"spec.replicas"}))
    files = {"a.yaml": thing("one", replicas=3), "b.yaml": thing("two")}
    assert not plan(store, desire(files)).plan
    files["b.yaml"] = thing("two", memoryMb=5)
    (change,) = plan(store, desire(files)).plan.changes
    assert change.payload.doc["spec"]["replicas"] == 9
    assert "spec.memoryMb" in change.payload.given
    files["b.yaml"] = thing("two", replicas=2)
    found = plan(store, desire(files))
    assert not found.plan
    assert "spec.replicas is set by scaler:two and left" in found.plan.foreign[0]


def test_a_field_that_leaves_the_file_goes_back_to_its_default(store: Store) -> None:
    (change,) = plan(store, desire({"a.yaml": thing("one"), "b.yaml": thing("two")})).plan.changes
    assert change.fields["spec.replicas"] == (3, 1)
    store.apply(change, ME)
    assert "spec.replicas" not in stored(store, "one")["metadata"]["managers"]
    assert not plan(store, desire({"a.yaml": thing("one"), "b.yaml": thing("two")})).plan


def test_a_field_newly_given_with_the_value_it_has_is_managed_from_then_on(store: Store) -> None:
    files = {"a.yaml": thing("one", replicas=3), "b.yaml": thing("two", replicas=1)}
    (change,) = plan(store, desire(files)).plan.changes
    assert dict(change.fields) == {"metadata.managers[spec.replicas]": (None, ME)}
    store.apply(change, ME)
    assert not plan(store, desire(files)).plan
    refusal = edit_refusal(stored(store, "two"), "spec.replicas", "https://git.example.org/p.git")
    assert refusal is not None
    assert "change b.yaml of https://git.example.org/p.git instead" in refusal.remedy
    assert edit_refusal(stored(store, "two"), "spec.memoryMb") is None


# ------------------------------------------------------------------------------------------- who owns it


@pytest.mark.parametrize(
    ("annotations", "manager", "owner"),
    [({SOURCE: "other", FILE: "x.yaml"}, "source:other", "Source other (file x.yaml)"), ({}, "user:ada", "user:ada")],
)
def test_what_is_not_ours_is_left_unless_the_file_adopts_it(
    store: Store, annotations: dict[str, str], manager: str, owner: str
) -> None:
    doc = copy.deepcopy(stored(store, "one"))
    doc["metadata"] |= {"name": "theirs", "annotations": annotations, "managers": {}}
    doc["spec"]["replicas"] = 8
    store.put(doc, manager)
    files = {"a.yaml": thing("one", replicas=3), "b.yaml": thing("two"), "c.yaml": thing("theirs", replicas=2)}
    found = plan(store, desire(files))
    assert not found.plan.changes
    (trouble,) = found.troubles
    assert owner in trouble.message
    assert (trouble.file, trouble.line) == ("c.yaml", 1)
    assert ADOPT in trouble.remedy
    files["c.yaml"] = thing("theirs", replicas=2, meta=f'annotations: {{{ADOPT}: "true"}}')
    (change,) = apply(store, files).plan.changes
    assert change.verb == "update"
    assert change.fields["spec.replicas"] == (8, 2)
    assert stored(store, "theirs")["metadata"]["annotations"] == {SOURCE: "platform", FILE: "c.yaml"}
    assert not plan(store, desire(files)).plan


def test_nothing_of_others_is_pruned(store: Store) -> None:
    doc = copy.deepcopy(stored(store, "one"))
    doc["metadata"] |= {"name": "theirs", "annotations": {SOURCE: "other", FILE: "a.yaml"}}
    store.put(doc, "source:other")
    assert verbs(plan(store, desire({}))) == [("delete", "alpha/one"), ("delete", "alpha/two")]


# ------------------------------------------------------------------------------------------- removal


def test_what_leaves_the_files_is_deleted(store: Store) -> None:
    (change,) = plan(store, desire({"a.yaml": thing("one", replicas=3)})).plan.changes
    assert (change.verb, change.target.id, change.destructive) == ("delete", "alpha/two", True)
    assert change.payload.uid == "uid-two"
    assert "b.yaml" in change.reason


def test_without_pruning_it_is_told_and_stays(store: Store) -> None:
    found = plan(store, desire({"a.yaml": thing("one", replicas=3)}), prune=False)
    assert not found.plan.changes
    assert found.unpruned == (TWO,)
    assert "Thing alpha/two is in no file any more" in found.plan.foreign[0]


BROKEN = {
    "its file does not parse": {"b.yaml": "a: [\n"},
    "its document is bad": {"b.yaml": thing("two", nonsense=1)},
    "its kind is misspelt": {"b.yaml": thing("two").replace("Thing", "Thng")},
    "its name is unreadable": {"b.yaml": thing("two").replace("name: two", "name: [two]")},
    "its file is binary": {"b.yaml": b"\x00\xff"},
    "it moved to another file, which does not parse": {"c.yaml": thing("two") + "\tx: [\n"},
    "it moved into a file that was good": {"a.yaml": thing("one", replicas=3) + "---\n" + thing("two", nonsense=1)},
    "it moved and is bad": {"sub/new.yaml": thing("two", replicas="many")},
    "it moved to a file too large to read": {"c.yaml": thing("two") + "#" * 2_000_000},
    "its file is too large to read": {"b.yaml": thing("two") + "#" * 2_000_000},
}


@pytest.mark.parametrize("files", BROKEN.values(), ids=BROKEN.keys())
def test_a_mistake_never_deletes(store: Store, files: dict[str, str | bytes]) -> None:
    found = plan(store, desire({"a.yaml": thing("one", replicas=4), **files}))
    assert ("delete", "alpha/two") not in verbs(found)
    assert TWO in found.kept
    assert found.troubles
    if "a.yaml" not in files:
        assert verbs(found) == [("update", "alpha/one")]  # the rest of the commit applies


def test_a_mistake_elsewhere_does_not_stop_a_removal(store: Store) -> None:
    files = {"a.yaml": thing("one", replicas=3), "new.yaml": "other: [\n", "bad.yaml": thing("three", nonsense=1)}
    assert verbs(plan(store, desire(files))) == [("delete", "alpha/two")]


def test_a_folder_that_became_a_link_keeps_what_was_in_it(store: Store) -> None:
    apply(store, {"a.yaml": thing("one", replicas=3), "sub/b.yaml": thing("two")})
    found = plan(store, desire({"a.yaml": thing("one", replicas=3)}, refused=(Refused("sub", "is a symbolic link"),)))
    assert not found.plan.changes
    assert found.kept == (TWO,)


def test_what_is_being_deleted_is_waited_for(store: Store) -> None:
    stored(store, "one")["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    found = plan(store, desire({"a.yaml": thing("one", replicas=5), "b.yaml": thing("two")}))
    assert not found.plan.changes
    assert "Thing alpha/one" in found.plan.waiting
    assert not plan(store, desire({"b.yaml": thing("two")})).plan.changes


def test_containers_come_first_and_go_last(store: Store) -> None:
    more = "---\n".join([thing("alpha", "", kind="Namespace"), thing("bari", "", kind="Site"), thing("zz", replicas=1)])
    found = plan(store, desire({"a.yaml": thing("one", replicas=3), "0.yaml": more}))
    assert [(c.verb, c.target.type) for c in found.plan.changes] == [
        ("create", "Namespace"),
        ("create", "Site"),
        ("create", "Thing"),
        ("delete", "Thing"),
    ]
    for change in found.plan.changes:
        store.apply(change, ME)
    assert [c.target.type for c in plan(store, desire({})).plan.changes] == ["Thing", "Thing", "Site", "Namespace"]


# ------------------------------------------------------------------------------------------- it converges


names = st.sampled_from(["one", "two", "three"])
contents = st.dictionaries(names, st.integers(0, 3), max_size=3).map(
    lambda things: "---\n".join(thing(name, replicas=count) for name, count in things.items())
)
trees = st.dictionaries(st.sampled_from(["a.yaml", "b.yaml", "c/d.yaml"]), contents | st.just("bad: ["), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(trees, min_size=1, max_size=4), st.integers(0, 5))
def test_from_any_history_cut_anywhere_it_converges(history: list[dict[str, str]], cut: int) -> None:
    store = Store()
    for files in history:
        for change in plan(store, desire(files)).plan.changes[:cut]:
            store.apply(change, ME)
    last = desire(history[-1])
    before = set(store.docs)
    first = plan(store, last)
    for change in first.plan.changes:
        store.apply(change, ME)
    again = plan(store, last)
    assert not again.plan.changes
    assert set(store.docs) == set(last.resources) | set(again.kept)
    assert set(again.kept) <= before
    for key, wanted in last.resources.items():
        assert store.docs[key]["spec"] == wanted.declared.doc["spec"]
