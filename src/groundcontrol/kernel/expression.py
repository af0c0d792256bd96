"""Predicates that people write (CEL), behind one file: compiled when they are admitted, bounded when they are asked.

A predicate answers yes or no about named values and can do nothing else. What a hostile one could cost is bounded
before it runs: short text, no functions that make values grow, no loop inside a loop, and no more work than the size
of the values allows. CEL itself is a published language (github.com/google/cel-spec); the package evaluates it without
limits of its own, so these are ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cel

from groundcontrol.kernel.errors import GroundError, Invalid
from groundcontrol.kernel.resource import did_you_mean

LONGEST = 1000
"""Characters of one predicate."""
MOST_WORK = 20_000_000
"""Bound on (passes of its loop) × (size of the values) × (length of the text / 8); far below a second."""
FUNCTIONS = frozenset(
    {"_&&_", "_||_", "!_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_?_:_", "_[_]", "@in", "@not_strictly_false"}
    | {"_-_", "_*_", "_/_", "_%_", "-_", "size", "contains", "startsWith", "endsWith", "matches"}
    | {"timestamp", "duration", "int", "double", "string", "type"}
)
"""What a predicate may call. `+` is not among them, nor what is made of it (`map`, `filter`): it makes values grow."""
LOOPS = ("all", "exists")
_STRING = re.compile(r"""(?P<odd>[rRbB]{1,2}(?=["'])|"{3}|'{3})|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""")
_PATH = re.compile(r"(?<![\w.])(\w+)((?:\s*\.\s*\w+)*)(\s*[\[(])?")
_TYPES = frozenset({"int", "string", "bool", "double", "list", "map", "null_type", "bytes", "uint"})


class Unanswered(GroundError):
    """The predicate is well formed, but has no answer for these values; the message says why."""

    status = 422


class Used(NamedTuple):
    """One value a predicate reads, as far as that can be seen without running it."""

    root: str
    path: tuple[str, ...]
    """The names behind the root, up to the first index or call."""


@dataclass(frozen=True)
class Predicate:
    """A compiled predicate."""

    text: str
    used: tuple[Used, ...]
    loops: bool
    _program: Any = field(repr=False, compare=False)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """The answer for these values (plain JSON); Unanswered when there is none, or when it would cost too much."""
        if self.loops:
            size, longest = _measure(values)
            if longest * (size + 10) * (len(self.text) // 8 + 1) > MOST_WORK:
                raise Unanswered(f"{self.text!r} looks through too much: {size} values, lists of up to {longest}")
        try:
            answer = self._program.execute(dict(values))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the package lets panics of its core out beside Exception
            raise Unanswered(f"{self.text!r} has no answer: {_first_line(error)}") from None
        if not isinstance(answer, bool):
            raise Unanswered(f"{self.text!r} does not answer yes or no, but {type(answer).__name__}")
        return answer


@functools.lru_cache(maxsize=4096)
def compile_predicate(text: str, roots: frozenset[str]) -> Predicate:
    """The predicate over values named `roots`. Invalid says what is wrong with it."""
    if not text.strip():
        raise Invalid("the predicate is empty")
    if len(text) > LONGEST:
        raise Invalid(f"a predicate has at most {LONGEST} characters, this one has {len(text)}")
    bare = _without_strings(text)
    try:
        program = cel.compile(text)
        functions = set(program.functions())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Invalid(f"it is not CEL: {_first_line(error)}") from None
    if unknown := sorted(functions - FUNCTIONS):
        raise Invalid(f"a predicate may not use {_called(unknown[0])}; it compares, and has all, exists, size")
    _no_inner_loops(bare)
    bound = set(re.findall(rf"\.\s*(?:{'|'.join(LOOPS)})\s*\(\s*(\w+)\s*,", bare))
    for name in sorted(set(program.variables()) - roots - bound - _TYPES):
        raise Invalid(f"there is no value {name!r} here{did_you_mean(name, roots)}; known: {', '.join(sorted(roots))}")
    return Predicate(text, tuple(_used(bare, roots)), bool(re.search(r"\.\s*(all|exists)\s*\(", bare)), program)


def _without_strings(text: str) -> str:
    """The text with every string emptied, so that what is looked for in it is code."""
    if any(match["odd"] for match in _STRING.finditer(text)):
        raise Invalid("a predicate has plain strings only, without a prefix and on one line")
    bare = _STRING.sub('""', text)
    if "//" in bare:
        raise Invalid("a predicate has no comments")
    return bare


def _no_inner_loops(bare: str) -> None:
    """Refuse a loop in a loop: its cost is a product."""
    loop = re.compile(rf"\.\s*(?:{'|'.join(LOOPS)})\s*\(")
    open_at: list[bool] = []
    position = 0
    while position < len(bare):
        found = loop.match(bare, position)
        if found:
            if any(open_at):
                raise Invalid("a predicate may not have one all or exists inside another")
            open_at.append(True)
            position = found.end()
            continue
        if bare[position] == "(":
            open_at.append(False)
        elif bare[position] == ")" and open_at:
            open_at.pop()
        position += 1


def _used(bare: str, roots: Iterable[str]) -> Iterator[Used]:
    for match in _PATH.finditer(bare):
        if match[1] in roots:
            names = tuple(re.findall(r"\w+", match[2]))
            called = bool(match[3]) and match[3].strip() == "("
            yield Used(match[1], names[:-1] if called else names)


def _measure(value: Any) -> tuple[int, int]:
    """(number of values, longest list or mapping)."""
    size, longest, rest = 0, 0, [value]
    while rest:
        inner = rest.pop()
        size += 1
        if isinstance(inner, str):
            size += len(inner) // 64
        elif isinstance(inner, Mapping):
            longest = max(longest, len(inner))
            rest.extend(inner.values())
        elif isinstance(inner, list | tuple):
            longest = max(longest, len(inner))
            rest.extend(inner)
    return size, longest


def _called(function: str) -> str:
    return {"_+_": "+, map, filter or exists_one"}.get(function, function.strip("_@"))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    found = text[0] if isinstance(error, KeyError) is False else f"there is no {error.args[0]!r}"
    return found.removeprefix("Failed to parse expression ")[:300]
