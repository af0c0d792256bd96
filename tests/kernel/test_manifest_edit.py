"""Changing fields of a manifest's text: what was asked for comes out, and nothing else is touched."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.manifest import load_documents
from groundcontrol.kernel.manifest_edit import Edit, edited, edited_value, edits_between

FILE = textwrap.dedent("""\
    # The portal of gamma. Ask grace before you change it.
    apiVersion: ground/v1   # the only one there is
    kind: Service
    metadata: {name: portal, namespace: gamma}
    spec:
      sample: "web"
      replicas: 2  # two are enough
      ports: {http: 8080}
      env:
        # where the mirror is
        MIRROR: 'https://mirror.example.org'
        MODE: fast
      files:
        motd.txt: |
          Welcome.

          Be nice.
      command:
      - run   # it
      - --fast

      - --quiet
      placement:
        sites: [cnaf, bari]   # near the data
    # the end of gamma
    ---
    # somebody else's
    kind: Other
    spec: {replicas: 2}
    """)


def changed(text: str, *edits: Edit, line: int = 2) -> tuple[list[str], list[str]]:
    """The lines that went and the lines that came."""
    new = edited(text.encode(), line, edits).decode()
    diff = list(difflib.unified_diff(text.split("\n"), new.split("\n"), n=0, lineterm=""))[2:]
    return [d[1:] for d in diff if d[0] == "-"], [d[1:] for d in diff if d[0] == "+"]


def at(*path: str | int, value: Any = None, op: Any = "set") -> Edit:
    return Edit(("spec", *path), op, value)


@pytest.mark.parametrize(
    ("edit", "gone", "come"),
    [
        (at("replicas", value=3), ["  replicas: 2  # two are enough"], ["  replicas: 3  # two are enough"]),
        (at("sample", value="tcp"), ['  sample: "web"'], ['  sample: "tcp"']),
        (at("ports", "http", value=81), ["  ports: {http: 8080}"], ["  ports: {http: 81}"]),
        (at("ports", "admin", value=9), ["  ports: {http: 8080}"], ["  ports: {http: 8080, admin: 9}"]),
        (at("ports", "http", op="remove"), ["  ports: {http: 8080}"], ["  ports: {}"]),
        (
            at("env", "MIRROR", value="it's"),
            ["    MIRROR: 'https://mirror.example.org'"],
            ["    MIRROR: 'it''s'"],
        ),
        (at("env", "MODE", value="on"), ["    MODE: fast"], ['    MODE: "on"']),
        (at("env", "NEW", value="a\nb\n"), [], ["    NEW: |", "      a", "      b"]),
        (at("env", "MODE", op="remove"), ["    MODE: fast"], []),
        (at("env", value={}), None, ["  env: {}"]),
        (at("files", "motd.txt", value="Go away.\n"), ["      Welcome.", "", "      Be nice."], ["      Go away."]),
        (at("files", "motd.txt", value="x"), None, ["    motd.txt: x"]),
        (at("files", "motd.txt", op="remove"), None, ["  files: {}"]),
        (at("files", "b.txt", value="1"), [], ['    b.txt: "1"']),
        (at("command", 0, value="go"), ["  - run   # it"], ["  - go   # it"]),
        (at("command", 1, op="remove"), ["  - --fast"], []),
        (at("command", 3, value="-v", op="insert"), [], ['  - "-v"']),
        (at("command", 0, value="env", op="insert"), [], ["  - env"]),
        (
            at("placement", "sites", 2, value="recas", op="insert"),
            ["    sites: [cnaf, bari]   # near the data"],
            ["    sites: [cnaf, bari, recas]   # near the data"],
        ),
        (at("placement", "sites", 0, op="remove"), None, ["    sites: [bari]   # near the data"]),
        (at("placement", "spread", value="site"), [], ["    spread: site"]),
        (at("health", value={"kind": "http", "path": "/"}), [], ["  health:", "    kind: http", "    path: /"]),
        (at("dependsOn", value=["db", "no"]), [], ["  dependsOn:", "    - db", '    - "no"']),
        (at("replicas", op="remove"), ["  replicas: 2  # two are enough"], []),
    ],
    ids=lambda v: str(v)[:50] if isinstance(v, Edit) else "",
)
def test_one_field_changes_and_its_line_only(edit: Edit, gone: list[str] | None, come: list[str]) -> None:
    went, came = changed(FILE, edit)
    assert came == come
    if gone is not None:
        assert went == gone


def test_several_edits_of_the_second_document() -> None:
    went, came = changed(FILE, at("replicas", value=1), at("a", value="b"), line=28)
    assert (went, came) == (["spec: {replicas: 2}"], ["spec: {replicas: 1, a: b}"])


def test_line_breaks_of_windows_and_a_missing_last_one_stay() -> None:
    raw = b"\xef\xbb\xbfa: 1\r\nspec:\r\n  x: 1 # \xc3\xbc\r\n  y: 2"
    assert edited(raw, 1, [at("z", value=3)]) == raw + b"\r\n  z: 3"
    assert edited(raw, 1, [at("y", op="remove")]) == raw.removesuffix(b"\r\n  y: 2")
    assert edited(raw, 1, [at("x", value=None)]) == raw.replace(b"x: 1", b"x: null")


def test_mixed_line_breaks_cost_no_comment() -> None:
    raw = b"spec:\r\n  x: 1\n  # about y\n  y: 2\r\n  z:\n    a: 1\n  # the end\r\n"
    assert edited(raw, 1, [at("x", op="remove")]) == raw.replace(b"  x: 1\n", b"")
    assert edited(raw, 1, [at("y", op="remove")]) == raw.replace(b"  y: 2\r\n", b"")
    assert edited(raw, 1, [at("z", "a", op="remove")]) == raw.replace(b"  z:\n    a: 1\n", b"  z: {}\n")
    assert edited(raw, 1, [at("z", "b", value=2)]) == raw.replace(b"a: 1\n", b"a: 1\r\n    b: 2\n")


def test_a_key_that_has_no_value_yet() -> None:
    assert changed("spec:\n  env: # none\n", at("env", value={"A": "1"}), line=1)[1] == ['  env: {A: "1"} # none']


def test_lists_of_mappings() -> None:
    text = (
        "spec:\n  rules:\n    - kinds: [a]\n      verbs: [get]\n    # the second\n    - kinds: [b]\n      verbs: [x]\n"
    )
    assert changed(text, at("rules", 1, "kinds", 0, op="remove"), line=1)[1] == ["    - kinds: []"]
    assert changed(text, at("rules", 0, "kinds", op="remove"), line=1)[1] == ["    - verbs: [get]"]
    assert changed(text, at("rules", 0, op="remove"), line=1)[0] == ["    - kinds: [a]", "      verbs: [get]"]
    new = {"kinds": ["c"], "verbs": ["y"]}
    lines = ["    - kinds:", "        - c", "      verbs:", '        - "y"']
    assert changed(text, at("rules", 2, value=new, op="insert"), line=1)[1] == lines


@pytest.mark.parametrize(
    ("text", "edit", "why"),
    [
        ("spec: &s {x: 1}\nother: *s\n", at("x", value=2), "an alias elsewhere repeats it"),
        ("x: &s {x: 1}\nspec: *s\n", at("x", value=2), r"behind the alias \*s"),
        ("spec:\n  a: &s 1\n  b: *s\n", at("a", value=2), "an alias elsewhere repeats it"),
        ("b: &s {x: {y: 1}}\nspec:\n  <<: *s\n", at("x", "y", value=2), "comes from a merge key"),
        ("b: &s {x: {y: 1}}\nspec:\n  <<: *s\n", at("x", op="remove"), "comes from a merge key"),
        ("spec: 5\n", at("x", value=2), "not a mapping"),
        ("spec:\n  ? x\n  : 1\n", at("x", value=2), "question mark"),
        ("spec: {a: 1, # one\n  x: 1}\n", at("x", op="remove"), "a comment stands"),
        ("spec: {}\n", at("x", value="a\0b"), "breaking the file"),
        ("spec: {}\n", at("x" * 2000, value=1), "breaking the file"),
        ("spec: {a: b\u2028c}\n", at("x", value=1), "line breaks"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_words(text: str, edit: Edit, why: str) -> None:
    with pytest.raises(Invalid, match=why) as caught:
        edited(text.encode(), 1, [edit], "a.yaml")
    (problem,) = caught.value.problems
    assert problem.file == "a.yaml"
    assert problem.remedy


def test_a_key_is_laid_over_a_merged_one() -> None:
    text = "base: &b {x: 1}\nspec:\n  <<: *b\n  y: 2\n"
    assert edited(text.encode(), 1, [at("x", value=5)]).decode() == text + "  x: 5\n"


def test_too_many_places_are_not_a_change() -> None:
    with pytest.raises(Invalid, match="places would change"):
        edited(b"spec: {}\n", 1, [at(f"x{n}", value=1) for n in range(101)])


def test_a_long_document_is_not_read_for_ever() -> None:
    text = "spec:\n" + "".join(f"  k{n}: {'x' * 80}\n" for n in range(10_000))
    assert edited(text.encode(), 1, [at("k9", value=1)])
    with pytest.raises(Invalid, match="too long for 10 changes"):
        edited(text.encode(), 1, [at(f"k{n}", value=1) for n in range(10)])


def test_a_file_says_less_than_what_is_stored() -> None:
    written = {"spec": {"health": {"kind": "http"}, "memory_mb": 5, "words": ["a", "b"]}}
    old = {
        "spec": {
            "health": {"kind": "http", "interval": 10},
            "memoryMb": 5,
            "words": ["a", "b"],
            "open": {"x": 1, "y": 2},
        }
    }
    new = {
        "spec": {
            "health": {"kind": "http", "interval": 5},
            "memoryMb": 6,
            "words": ["a", "c", "b"],
            "open": {"x": 1, "y": 3},
        }
    }
    names = {"memoryMb": "memory_mb"}
    assert edits_between(written, old, new, lambda at, key: names.get(key, key)) == [
        Edit(("spec", "health", "interval"), "set", 5),
        Edit(("spec", "memory_mb"), "set", 6),
        Edit(("spec", "words", 1), "insert", "c"),
        Edit(("spec", "open"), "set", {"y": 3}),
    ]
    assert edits_between(new, old, new) == [], "the file says so already"


# ── any text, any edits ─────────────────────────────────────────────────────────────────────────────────────────────

WORDS = st.sampled_from(
    [
        "a",
        "b",
        "web",
        "no",
        "5",
        "a: b",
        "# x",
        "it's",
        'say "x"',
        "ü",
        "two words",
        "",
        "x\ny\n",
        " x",
        "- a",
        "1e3",
        "~",
        "\x7f\x85",
        "😀",
    ]
)
SCALARS = st.one_of(
    WORDS, st.integers(-5, 5), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)


def written(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any], column: int, flow: bool = False) -> str:
    """The value as somebody might write it: block or flow, with comments, quotes and empty lines; after `key:`."""
    from groundcontrol.kernel.manifest_edit import in_flow

    remark = draw(st.sampled_from(["", "", " # why", "   # a: b"])) if not flow else ""
    if not isinstance(value, dict | list) or not value or draw(st.booleans()) or flow:
        return f" {in_flow(value, draw(st.sampled_from(['', '', chr(34), chr(39)])))}{remark}\n"
    lines = [f"{remark}\n"]
    inner = column + draw(st.sampled_from([2, 4] if isinstance(value, dict) else [0, 2]))
    for key in value:
        if draw(st.integers(0, 5)) == 0:
            lines.append(draw(st.sampled_from(["\n", f"{' ' * inner}# a remark\n", "# at the edge\n"])))
        if isinstance(value, dict):
            lines.append(f"{' ' * inner}{in_flow(key)}:{written(value[key], draw, inner)}")
        else:
            lines.append(f"{' ' * inner}-{written(key, draw, inner + 1)}")
    return "".join(lines)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_change_of_any_text(data: st.DataObject) -> None:
    spec = data.draw(st.dictionaries(WORDS, VALUES, min_size=1, max_size=4))
    wanted = data.draw(st.dictionaries(WORDS, VALUES, max_size=4))
    for key in spec:  # half of it stays
        if data.draw(st.booleans()):
            wanted[key] = spec[key]
    head, tail = "kind: One # 1\n", "---\n# another's\nkind: Two\nspec: {x: 1}\n"
    text = head + "spec:" + written(spec, data.draw, 0) + tail
    if data.draw(st.booleans()):
        text = text.replace("\n", "\r\n")
        head, tail = head.replace("\n", "\r\n"), tail.replace("\n", "\r\n")
    old, new = {"kind": "One", "spec": spec}, {"kind": "One", "spec": wanted}
    assert load_documents(text, "")[0].value == old, text
    edits = edits_between(old, old, new)
    assert edited_value(old, edits) == new
    found = edited(text.encode(), 1, edits).decode()
    first, second = (d.value for d in load_documents(found, ""))
    assert first == new
    assert second == {"kind": "Two", "spec": {"x": 1}}
    assert found.startswith(head)
    assert found.endswith(tail)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_replaced_scalar_touches_only_its_own_characters(data: st.DataObject) -> None:
    spec = data.draw(st.dictionaries(WORDS, VALUES, min_size=1, max_size=4))
    text = "kind: One\nspec:" + written(spec, data.draw, 0) + "# the end\n"
    paths = list(scalars(("spec",), spec))
    if not paths:
        return
    path, value = data.draw(st.sampled_from(paths))
    found = edited(text.encode(), 1, [Edit(path, "set", "another")]).decode()
    before = len(commonprefix(text, found))
    after = len(commonprefix(text[before:][::-1], found[before:][::-1]))
    gone, come = text[before : len(text) - after], found[before : len(found) - after]
    assert "#" not in gone or "#" in str(value), "no comment goes"
    assert "\n" not in gone + come, "and no line"
    assert come in "'\"another'\""


def scalars(path: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from scalars((*path, key), inner)
    else:
        yield path, value


def commonprefix(one: str, other: str) -> str:
    return one[
        : next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]
