"""Reading what strangers send: bounded while it streams in, and JSON without what we could not keep or send on.

NUL and lone surrogates cannot be stored by every database, numbers beyond 64 bits by no JSON writer of ours, and deep
nesting breaks every recursive reader; all of them are answered with 422 and the place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from groundcontrol.kernel.errors import Invalid, Problem, TooLarge, Unavailable
from groundcontrol.kernel.resource import did_you_mean

LARGEST = 2 << 20
"""Bytes of a body."""
DEEPEST = 64
"""Levels of nesting."""
_NUMBER = 1 << 63


async def read(request: Request, largest: int = LARGEST) -> bytes:
    """The body; TooLarge as soon as it is known to be, whatever Content-Length said."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > largest:
        raise TooLarge(f"the body has {announced} bytes; {largest} are allowed")
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > largest:
                raise TooLarge(f"the body has more than {largest} bytes")
            pieces.append(piece)
    except ClientDisconnect:
        raise Unavailable("the caller went away before the body was complete") from None
    return b"".join(pieces)


def check_media(request: Request, expected: str) -> None:
    """Refuse a body that says it is something else than JSON."""
    said = request.headers.get("content-type", expected).partition(";")[0].strip().lower()
    if said not in (expected, "application/json"):
        raise Invalid(
            problems=(Problem(f"the body is {said[:60]!r}", remedy=f"send Content-Type: {expected}"),),
        )


def parse(raw: bytes) -> Any:
    """The value, checked."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise Invalid(f"the body is nested deeper than {DEEPEST} levels") from None
    check(value)
    return value


def check(value: Any) -> None:
    """Invalid when there is something in it that cannot be kept."""
    pending: list[tuple[Any, int, str]] = [(value, 1, "")]
    while pending:
        found, depth, path = pending.pop()
        if depth > DEEPEST:
            raise Invalid(f"the body is nested deeper than {DEEPEST} levels")
        wrong = ""
        if isinstance(found, str):
            wrong = _wrong_text(found)
        elif isinstance(found, dict):
            for key, inner in found.items():
                wrong = wrong or _wrong_text(key)
                pending.append((inner, depth + 1, f"{path}.{key}" if path else key))
        elif isinstance(found, list):
            pending += [(inner, depth + 1, f"{path}[{n}]") for n, inner in enumerate(found)]
        elif isinstance(found, int) and not -_NUMBER <= found < _NUMBER:
            wrong = "a number beyond 64 bits"
        elif isinstance(found, float) and not math.isfinite(found):
            wrong = "a number that is not finite"
        if wrong:
            raise Invalid(
                problems=(Problem(f"there is {wrong} in it", path[:200].replace("\0", "?"), remedy="leave it out"),)
            )


def _wrong_text(text: str) -> str:
    if "\0" in text:
        return "a NUL character"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "half of a surrogate pair"
    return ""


def members(value: Any, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """The value as an object with only known members and all required ones."""
    if not isinstance(value, dict):
        raise Invalid("the body is not a JSON object")
    names = list(known)
    problems = [
        Problem(
            f"unknown field {n[:60]!r}",
            n[:60],
            remedy=did_you_mean(n, names).strip(" ;") or f"known: {', '.join(names)}",
        )
        for n in value
        if n not in names
    ]
    problems += [Problem(f"{n} is missing", n, remedy="add it") for n in required if value.get(n) is None]
    if problems:
        raise Invalid(problems=tuple(problems[:20]))
    return value


def text(value: dict[str, Any], name: str, longest: int = 4096) -> str:
    """An optional member that is text; empty when missing."""
    found = value.get(name, "")
    if not isinstance(found, str) or len(found) > longest:
        raise Invalid(problems=(Problem(f"{name} is not text of at most {longest} characters", name),))
    return found
