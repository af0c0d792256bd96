"""What people write in YAML becomes what they meant, or an error that says where; and nothing else, whatever comes."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.manifest import MAX_BYTES, MAX_DEPTH, Document, load_documents, load_yaml


def value(text: str | bytes) -> Any:
    return load_yaml(text, "a.yaml")[0]


def problem(text: str | bytes) -> Problem:
    with pytest.raises(Invalid) as caught:
        load_documents(text, "dir/a.yaml")
    (found,) = caught.value.problems
    assert found.file == "dir/a.yaml"
    return found


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("null", None),
        ("12:30:45", "12:30:45"),
        ("2026-01-02", "2026-01-02"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("+7", 7),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("-", [None]),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("!!float 1", 1.0),
        ("9223372036854775807", 9223372036854775807),
        ("|\n  a\n  b\n", "a\nb\n"),
        (">\n  a\n  b\n", "a b\n"),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
        ("{on: 1, yes: 2}", {"on": 1, "yes": 2}),
    ],
)
def test_scalars_follow_the_core_schema(written: str, meant: Any) -> None:
    found = value(written)
    assert found == meant
    assert type(found) is type(meant)


def test_merge_keys_and_the_order_in_which_they_win() -> None:
    text = """
base: &base {a: 1, b: [x]}
other: &other {a: 2, c: 3}
one: {<<: *base, a: 9}
two: {a: 9, <<: [*base, *other]}
quoted: {"<<": text}
"""
    found = value(text)
    assert found["one"] == {"a": 9, "b": ["x"]}
    assert found["two"] == {"a": 9, "b": ["x"], "c": 3}
    assert found["quoted"] == {"<<": "text"}
    found["one"]["b"].append("y")
    assert found["two"]["b"] == ["x"]
    assert found["base"]["b"] == ["x"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a'"),
        ("x:\n  a: 1\n  a: 3\n", 3, "duplicate key 'a'"),
        ("a: 1\n\tb: 2\n", 2, "a tab in the indentation"),
        ("a:\n  b: 1\n\t\tc: 2\n", 3, "a tab in the indentation"),
        ("a: [1,\nb: 2\n", 2, "not YAML"),
        ("a: 'b\n\n", 1, "not YAML"),
        ("a: *nothing\n", 1, "*nothing has no &nothing"),
        ("a: &a\n  - *a\n", 2, "*a stands inside the value"),
        ("a: 1\n1: b\n", 2, "the key '1' is not text"),
        ("true: b\n", 1, "the key 'true' is not text"),
        ("? [a]\n: b\n", 1, "a mapping or list as a key"),
        ("a: &x b\n*x : c\n", 2, "*x as a key"),
        ("&x a: 1\n", 1, "an anchor on the key"),
        ("a: .inf\n", 1, "not a finite number"),
        ("a: -.INF\n", 1, "not a finite number"),
        ("a: .nan\n", 1, "not a finite number"),
        ("a: 1e999\n", 1, "not a finite number"),
        ("a: 9223372036854775808\n", 1, "does not fit 64 bits"),
        ("a: " + "9" * 6000, 1, "does not fit 64 bits"),
        ("a: !!python/object:os.system x\n", 1, "is not allowed"),
        ("a: !!binary aGVsbG8=\n", 1, "is not allowed"),
        ("a: !mine {}\n", 1, "is not allowed"),
        ("a: !!int x\n", 1, "'x' is not a int"),
        ("a: {<<: 1}\n", 1, "`<<` takes a mapping"),
        ("x: &x {}\na:\n  <<: *x\n  <<: *x\n", 4, "a second `<<`"),
        ('a: 1\nb: "\\0"\n', 2, "a NUL character in a text"),
        ("a: 1\nb: \0\n", 2, "holds a NUL character"),
        (b"a: 1\nb: caf\xe9\n", 2, "is not UTF-8 (byte 0xe9)"),
        ("a: b".encode("utf-16"), 1, "the file is UTF-16"),
        ("a: 1\nb: \x07\n", 2, "unreadable character"),
        ("a: \ud800\n", 1, "is not UTF-8"),
        ("%YAML 3.0\n---\na: 1\n", 1, "not YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str | bytes, line: int, message: str) -> None:
    found = problem(text)
    assert message in found.message
    assert found.line == line


def test_a_byte_order_mark_is_no_error() -> None:
    assert value(b"\xef\xbb\xbfa: 1\n") == {"a": 1}


def test_every_field_knows_its_line() -> None:
    text = """# why
kind: Service
metadata:
  name: web
  labels:
    example.org/team: alpha
    a.b: c
spec:
  ports:
    - name: http
      number: 80
    -
      name: other
"""
    _, line_of = load_yaml(text, "a.yaml")
    expected = {
        "": 2,
        "kind": 2,
        "metadata": 3,
        "metadata.name": 4,
        "metadata.namespace": 3,
        "metadata.labels.example.org/team": 6,
        "metadata.labels[a.b]": 7,
        "metadata.labels.a.b": 7,
        "metadata.labels.a": 5,
        "spec.ports": 9,
        "spec.ports.0": 10,
        "spec.ports.0.number": 11,
        "spec.ports[1].name": 13,
        "spec.ports.7.name": 9,
        "spec.replicas": 8,
        "nothing.at.all": 2,
    }
    assert {path: line_of(path) for path in expected} == expected


def test_several_documents_and_the_empty_ones_between_them() -> None:
    found = load_documents("# only a comment\n---\na: 1\n---\n---\n# nothing\n---\nb: 2\n...\n", "a.yaml")
    assert [(d.value, d.line) for d in found] == [({"a": 1}, 3), ({"b": 2}, 8)]
    assert load_documents("", "a.yaml") == []
    assert load_yaml("# nothing\n", "a.yaml")[0] is None
    with pytest.raises(Invalid, match="a second document"):
        load_yaml("a: 1\n---\nb: 2\n", "a.yaml")


def test_anchors_end_with_their_document() -> None:
    assert "no &a before it" in problem("x: &a 1\n---\ny: *a\n").message


def test_alias_bombs_are_refused_before_they_go_off() -> None:
    lists = ["a0: &a0 [" + ",".join("x" * 9) + "]"]
    lists += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    merges = ["a0: &a0 {k: [x, x, x, x]}"]
    merges += [f"a{n}: &a{n} {{{','.join(f'k{i}: *a{n - 1}' for i in range(9))}}}" for n in range(1, 12)]
    text = "a: &a " + "x" * 100_000 + "\nb: [" + ",".join(["*a"] * 10_000) + "]\n"
    many = "\n---\n".join(["a: &a " + "x" * 1000 + "\nb: [" + ",".join(["*a"] * 1000) + "]\n"] * 20)
    started = time.process_time()
    for bomb in ("\n".join(lists), "\n".join(merges), text, many):
        assert "grows too large" in problem(bomb).message
    assert time.process_time() - started < 5


def test_depth_is_bounded_however_it_is_made() -> None:
    assert "nested more than" in problem("[" * 100_000).message
    assert "nested more than" in problem("{a: " * 100_000).message
    assert "nested more than" in problem("- " * 1000).message
    chain = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, MAX_DEPTH + 1)]
    assert "nested more than" in problem("\n".join(chain)).message
    fits = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert value(fits) is not None


def test_size_is_bounded() -> None:
    assert "bytes" in problem("a" * (MAX_BYTES + 1)).message
    assert value("a" * MAX_BYTES) == "a" * MAX_BYTES


WORDS = rb"""--- ... a: - { } [ ] , &a *a <<: !!str ' " | > # ? : %YAML 1 .5 0x ~ \x00 !!int !< %TAG .inf + 0o8"""
SPACES = (b"\n", b"\n", b"\n", b" ", b"  ", b"\t", b"\r")
BYTES = (b"\x00", b"\xff", b"\x85", b"\xe2\x80\xa8", b"\xef\xbb\xbf")
fragments = st.sampled_from([*WORDS.split(), *SPACES, *BYTES])


def never_another_exception(raw: bytes) -> None:
    started = time.process_time()
    found: list[Document] = []
    problems: tuple[Problem, ...] = ()
    try:
        found = load_documents(raw, "fuzz.yaml")
    except Invalid as error:
        problems = error.problems or (Problem("none given"),)
    assert all(p.file == "fuzz.yaml" and p.message for p in problems)
    assert all(isinstance(d, Document) and d.line >= 1 for d in found)
    assert time.process_time() - started < 2


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_documents_or_invalid(raw: bytes) -> None:
    never_another_exception(raw)


@settings(max_examples=1000, deadline=None)
@given(st.lists(fragments, max_size=60).map(b"".join))
def test_any_pieces_of_yaml_give_documents_or_invalid(raw: bytes) -> None:
    never_another_exception(raw)
