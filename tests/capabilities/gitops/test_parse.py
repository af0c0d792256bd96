"""Files become what is wanted: mistakes cost only the document they are in, and each blob is looked at once."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.logic import Desired, File, credentials_of, kinds_version, parse_tree
from groundcontrol.kernel.errors import Invalid, NotFound, Unavailable
from groundcontrol.kernel.resource import Key, Kinds
from groundcontrol.ports.repository import Refused
from tests.capabilities.gitops.tiny import KINDS, VERSION, Thing, Tree, desire, thing


def test_resources_carry_their_file_line_and_blob() -> None:
    found = desire(
        {"a.yaml": "# why\n" + thing("one") + "---\n" + thing("two"), "sub/b.yml": thing("here", "", kind="Site")}
    )
    assert {key.path: wanted.place for key, wanted in found.resources.items()} == {
        "alpha/one": "a.yaml:2",
        "alpha/two": "a.yaml:9",
        "here": "sub/b.yml:1",
    }
    assert found.troubles == ()
    assert all(wanted.blob.startswith("blob-") for wanted in found.resources.values())


def test_only_yaml_that_is_not_hidden_counts() -> None:
    files = {
        "README.md": "x",
        ".gitlab-ci.yml": "a: 1",
        ".github/w.yaml": "a: 1",
        "x.json": "{}",
        "a.yaml": thing("one"),
    }
    found = desire(files)
    assert list(found.resources) == [Key("Thing", "alpha", "one")]
    assert not found.troubles


@pytest.mark.parametrize(
    ("bad", "line", "message", "remedy"),
    [
        ("a: [\n", 1, "not YAML", ""),
        (thing("x") + "extra: 1\n", 7, "unknown field 'extra'", ""),
        (thing("x", replica=2), 7, "unknown field 'replica'", 'did you mean "replicas"?'),
        (thing("x").replace("Thing", "Thin"), 2, "unknown kind 'Thin'", 'did you mean "Thing"?'),
        (thing("x", replicas="many"), 7, "valid integer", ""),
        (thing("x").replace("  name: x\n", ""), 3, "name is missing", "add it"),
        (thing("x", ""), 3, "lives in a namespace", "name one"),
        ("- a\n- b\n", 1, "expected a mapping", ""),
        ("just text\n", 1, "expected a mapping", ""),
        (
            thing("x", meta="annotations: {ground/source: other}"),
            6,
            "ground/source is set by Ground Control",
            "remove it",
        ),
        (thing("X"), 4, "pattern", ""),
        (b"\xff\xfe\x00", 1, "UTF-16", ""),
    ],
)
def test_a_bad_document_is_told_and_the_others_are_wanted(
    bad: str | bytes, line: int, message: str, remedy: str
) -> None:
    found = desire({"bad.yaml": bad, "good.yaml": thing("good")})
    assert list(found.resources) == [Key("Thing", "alpha", "good")]
    (trouble,) = found.troubles
    assert (trouble.file, trouble.line) == ("bad.yaml", line)
    assert message in trouble.message
    assert remedy in trouble.remedy
    assert found.broken == {"bad.yaml"}


def test_the_good_documents_of_a_bad_file_are_wanted() -> None:
    found = desire({"a.yaml": thing("one") + "---\n" + thing("two", nonsense=1) + "---\n" + thing("three")})
    assert {key.name for key in found.resources} == {"one", "three"}
    (trouble,) = found.troubles
    assert (trouble.line, trouble.kind, trouble.name) == (14, "Thing", "alpha/two")
    assert found.mentions == {"two"}


def test_the_second_of_two_of_a_name_is_the_problem_and_names_both_places() -> None:
    files = {"a.yaml": thing("one", replicas=1), "b.yaml": thing("zero") + "---\n" + thing("one", replicas=2)}
    found = desire(files)
    key = Key("Thing", "alpha", "one")
    assert found.resources[key].file == "a.yaml"
    (trouble,) = found.troubles
    assert (trouble.file, trouble.line) == ("b.yaml", 8)
    assert "a.yaml:1" in trouble.message
    assert "b.yaml:8" in trouble.message
    # A copy that sorts first does not take over what another file declares so far.
    settled = desire(files, settled={key: "b.yaml"}.get)
    assert settled.resources[key].file == "b.yaml"
    assert settled.troubles[0].file == "a.yaml"
    assert settled.resources[key].declared.doc["spec"]["replicas"] == 2


def test_a_default_namespace_for_kinds_that_live_in_one() -> None:
    found = desire({"a.yaml": thing("one", "") + "---\n" + thing("site", "", kind="Site")}, namespace="beta")
    assert set(found.resources) == {Key("Thing", "beta", "one"), Key("Site", "", "site")}


def test_what_the_file_gives_and_what_it_leaves() -> None:
    found = desire({"a.yaml": thing("one", memoryMb=5, words="[a]", meta="labels: {a: b}")})
    (wanted,) = found.resources.values()
    assert wanted.declared.given == {"spec.memoryMb", "spec.words", "metadata.labels", "metadata.annotations"}
    assert wanted.declared.doc["spec"] == {"replicas": 1, "memoryMb": 5, "words": ["a"]}


def test_too_large_and_unreadable_files_are_told_unread() -> None:
    tree = Tree({"big.yaml": "x" * 2000, "a.yaml": thing("one")})
    files = tree.entries()

    def gone() -> bytes:
        raise NotFound("no file content")

    files["gone.yaml"] = File("1" * 40, 10, gone)
    found = parse_tree(files, KINDS, version=VERSION, max_bytes=1000)
    assert [(t.file, t.message.split(";")[0]) for t in found.troubles] == [
        ("big.yaml", "the file has 2,000 bytes"),
        ("gone.yaml", "no file content"),
    ]
    assert found.unread == {"big.yaml", "gone.yaml"}
    assert "big.yaml" not in tree.reads


def test_a_damaged_copy_is_not_taken_for_bad_files() -> None:
    def damaged() -> bytes:
        raise Unavailable("damaged")

    with pytest.raises(Unavailable):
        parse_tree({"a.yaml": File("1" * 40, 10, damaged)}, KINDS, version=VERSION)


def test_links_are_told_where_they_could_matter() -> None:
    links = (Refused("site", "is a symbolic link"), Refused("a.yaml", "is a symbolic link"))
    quiet = (Refused("README.md", "is a symbolic link"), Refused(".x/y", "is a symbolic link"))
    found = desire({}, refused=(*links, *quiet))
    assert [t.file for t in found.troubles] == ["a.yaml", "site"]


# ----------------------------------------------------------------------------------------------- once per blob


def test_ten_thousand_files_are_parsed_once_and_then_only_what_changed() -> None:
    tree = Tree({f"d{n % 100}/f{n}.yaml": thing(f"t{n}") for n in range(10_000)})
    first = parse_tree(tree.entries(), KINDS, version=VERSION)
    assert len(first.resources) == first.parsed == len(tree.reads) == 10_000
    tree.reads.clear()
    again = parse_tree(tree.entries(), KINDS, version=VERSION, before=first)
    assert (again.parsed, tree.reads) == (0, [])
    assert again.resources == first.resources
    tree.files["d7/f7.yaml"] = thing("t7", replicas=7)
    changed = parse_tree(tree.entries(), KINDS, version=VERSION, before=again)
    assert (changed.parsed, tree.reads) == (1, ["d7/f7.yaml"])
    assert changed.resources[Key("Thing", "alpha", "t7")].declared.doc["spec"]["replicas"] == 7
    assert len(changed.cache) == 10_000  # the old blob is forgotten


_NAMES = ("a", "b", "c")
_CONTENTS = st.one_of(
    st.sampled_from(["", "a: [", thing("a") + "---\n" + thing("b"), thing("a", "beta")]),
    st.builds(lambda name, count: thing(name, replicas=count), st.sampled_from(_NAMES), st.integers(1, 2)),
)
_TREES = st.dictionaries(st.sampled_from(["a.yaml", "b.yaml", "d/c.yaml", "d/e.yml", "notes.md"]), _CONTENTS)


@given(trees=st.lists(_TREES, min_size=2, max_size=6), link=st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_changed_since_gives_the_same_as_everything(trees: list[dict[str, str]], link: bool) -> None:
    before: Desired | None = None
    for number, files in enumerate(trees):
        refused = (Refused("x.yaml", "is a link"),) if link and number == 1 else ()
        before = desire(files, before=before, refused=refused)
        whole = desire(files, refused=refused)
        assert replace(before, parsed=0) == replace(whole, parsed=0)


def test_equal_files_are_parsed_once_and_told_by_their_own_path() -> None:
    tree = Tree({"a.yaml": "a: [", "b/c.yaml": "a: ["})
    found = parse_tree(tree.entries(), KINDS, version=VERSION)
    assert tree.reads == ["a.yaml"]
    assert [t.file for t in found.troubles] == ["a.yaml", "b/c.yaml"]


def test_another_version_of_the_kinds_or_another_default_parses_again() -> None:
    tree = Tree({"a.yaml": thing("one", "")})
    first = parse_tree(tree.entries(), KINDS, version=VERSION, namespace="alpha")
    for options in ({"version": "other", "namespace": "alpha"}, {"version": VERSION, "namespace": "beta"}):
        assert parse_tree(tree.entries(), KINDS, before=first, **options).parsed == 1
    assert kinds_version(KINDS) == VERSION != kinds_version(Kinds([Thing]))


# ----------------------------------------------------------------------------------------------- the kind itself


def source(**spec: object) -> dict[str, object]:
    spec = {"repository": "https://git.example.org/p.git", **spec}
    return KINDS.parse({"apiVersion": "ground/v1", "kind": "Source", "metadata": {"name": "platform"}, "spec": spec})


def test_a_source_and_its_defaults() -> None:
    found = Source.view(source())
    assert (found.spec.branch, found.spec.path, found.spec.interval, found.spec.prune) == ("main", ".", 60, True)
    assert found.subject == "source:platform"
    assert Source.view(source(subject="user:ada")).subject == "user:ada"
    assert Source.view(source(credentials="secret:git/token")).spec.credentials == "secret:git/token"


@pytest.mark.parametrize(
    "spec",
    [
        {"interval": 4},
        {"path": "../x"},
        {"path": "/x"},
        {"credentials": "env:TOKEN"},
        {"credentials": "glpat-a-token"},
        {"verify": {"signatures": "ssh"}},
        {"subject": "root"},
        {"repository": ""},
    ],
)
def test_sources_that_cannot_be(spec: dict[str, object]) -> None:
    with pytest.raises(Invalid) as caught:
        source(**spec)
    assert "glpat" not in str(caught.value)


def test_what_a_secret_means() -> None:
    assert credentials_of("glpat-x").password == "glpat-x"
    assert (credentials_of("ada:pw:x").username, credentials_of("ada:pw:x").password) == ("ada", "pw:x")
    assert credentials_of("-----BEGIN OPENSSH PRIVATE KEY-----\nx: y\n", "host key").ssh_key.startswith("-----BEGIN")
