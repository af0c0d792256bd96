"""Predicates: what they answer, what is refused before they run, and what a hostile one may cost."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundcontrol.kernel.errors import GroundError, Invalid
from groundcontrol.kernel.expression import LONGEST, Unanswered, compile_predicate

ROOTS = frozenset({"inputs", "resource"})
READY = "resource.conditions.exists(c, c.type == 'Ready' && c.status == 'True')"
VALUES: dict[str, Any] = {
    "inputs": {"n": 3, "s": "web-1", "t": "2026-01-02T03:04:05.678Z", "none": None},
    "resource": {"conditions": [{"type": "Ready", "status": "True"}], "labels": {"a/b": "c"}, "empty": {}},
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("inputs.n > 2 && inputs.n <= 3", True),
        (READY, True),
        ("resource.conditions.all(c, c.status == 'False')", False),
        ("resource.labels['a/b'] == 'c' && 'a/b' in resource.labels", True),
        ("inputs.s.startsWith('web') && inputs.s.matches('^web-[0-9]+$') && size(inputs.s) == 5", True),
        ("timestamp(inputs.t) < timestamp('2027-01-01T00:00:00Z')", True),
        ("timestamp(inputs.t) - timestamp('2026-01-01T00:00:00Z') > duration('24h')", True),
        ("inputs.none == null", True),
        ("has(resource.empty.x)", False),
        ('inputs.s == "a // b .map(x) \\" \'r\'"', False),
    ],
)
def test_answers(text: str, answer: bool) -> None:
    assert compile_predicate(text, ROOTS).holds(VALUES) is answer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("inputs.n >", "not CEL"),
        ("true || " * 200 + "true", f"at most {LONGEST} characters"),
        ("input.n > 1", 'did you mean "inputs"'),
        ("open('/etc/passwd') == 'x'", "may not use open"),
        ("inputs.s + inputs.s == 'x'", "may not use +"),
        ("resource.l.map(x, x) == []", "may not use +, map"),
        ("resource.l.filter(x, true) == []", "may not use +"),
        ("resource.l.all(x, resource.l.exists(y, x == y))", "inside another"),
        ("resource.l\n.\nall (x, (resource.l) . exists\t(y, x == y))", "inside another"),
        ("resource.l.all(x, true) // .all(", "comments"),
        ("inputs.s == r'\\' && resource.l.all(x, resource.l.all(y, true)) && 'x' == 'y'", "plain strings"),
        ("inputs.s == '''a''' ", "plain strings"),
        ("resource.l.all(i, v, v > 1)", "may not use all"),
        ("cel.bind(x, 1, x) == 1", "may not use bind"),
    ],
)
def test_refused_before_it_runs(text: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        compile_predicate(text, ROOTS)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["inputs.x > 1", "inputs.n > 'a'", "inputs.n", "inputs.n / 0 == 1", "resource.conditions[7].type == 'x'",
     "timestamp(inputs.s) > timestamp(inputs.t)", "inputs.s.matches('(')", "9223372036854775807 * 2 > 1"],
)  # fmt: skip
def test_no_answer_is_said_not_guessed(text: str) -> None:
    with pytest.raises(Unanswered):
        compile_predicate(text, ROOTS).holds(VALUES)


def test_what_it_reads_is_known() -> None:
    used = compile_predicate("inputs.s.startsWith('inputs.x') && resource.spec.inputs.y == inputs.n", ROOTS).used
    assert {(u.root, *u.path) for u in used} == {("inputs", "s"), ("resource", "spec", "inputs", "y"), ("inputs", "n")}


@pytest.mark.parametrize(
    "text",
    ["resource.l.all(x, " + " && ".join(["resource == resource"] * 40) + ")",
     "resource.l.exists(x, resource.l == [x])", "resource.s.matches('(.*.*.*)*x')",
     "resource.l.all(x, x in resource.l)"],
)  # fmt: skip
def test_what_it_may_cost(text: str) -> None:
    began = time.perf_counter()
    for size in (10, 300, 5000, 100_000):
        values = {"inputs": {}, "resource": {"l": list(range(size)), "s": "a" * size}}
        with contextlib.suppress(Unanswered):
            compile_predicate(text, ROOTS).holds(values)
    assert time.perf_counter() - began < 10


@given(st.text(max_size=200))
def test_nothing_but_our_own_errors(text: str) -> None:
    with contextlib.suppress(GroundError):
        compile_predicate(text, ROOTS).holds(VALUES)


@given(st.text(alphabet="inputsresource.alex()[]{}<>=!&|'\"\\?:0123456789- \n\t,", max_size=120))
def test_nor_for_what_looks_like_it(text: str) -> None:
    with contextlib.suppress(GroundError):
        compile_predicate(text, ROOTS).holds(VALUES)
