"""How a mark is written into a thing: as metadata where there is some, as tags elsewhere, as text where neither is.

Pure. Values in tags and texts are quoted, as some services take no slash and no comma there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from groundcontrol.ports.cloud import Mark

PREFIX = "ground:"
_NAMES = {"installation": "installation", "owner": "owner", "key": "owner_key", "change": "change"}
"""Name in metadata to field of the mark."""
_LETTERS = {"i": "installation", "o": "owner", "k": "owner_key", "c": "change"}
LONGEST_TAG = 60
_CHUNK = 48
_IN_TEXT = re.compile(r" ?\[(ground:[^\]]*)\]")


def metadata(mark: Mark) -> dict[str, str]:
    """For servers, volumes, images."""
    return {f"{PREFIX}{name}": getattr(mark, field)[:255] for name, field in _NAMES.items()}


def from_metadata(held: Mapping[str, Any]) -> Mark | None:
    """The mark in metadata; None when there is none."""
    return _mark({field: str(held.get(f"{PREFIX}{name}", "")) for name, field in _NAMES.items()})


def without(held: Mapping[str, Any]) -> dict[str, str]:
    """Metadata but the mark."""
    return {k: str(v) for k, v in held.items() if not k.startswith(PREFIX)}


def _quoted(text: str) -> str:
    return quote(text, safe="._:@")


def change_tag(change: str) -> str:
    """By this tag a thing is found when the answer to its making was lost."""
    return f"{PREFIX}c={_quoted(change)}"


def tags(mark: Mark) -> list[str]:
    """For what has only tags: each at most 60 characters long; a long value is spread over several."""
    found = []
    for letter, field in _LETTERS.items():
        value = _quoted(getattr(mark, field))
        if len(value) <= _CHUNK:
            found.append(f"{PREFIX}{letter}={value}")
        else:
            parts = [value[at : at + _CHUNK] for at in range(0, len(value), _CHUNK)]
            found += [f"{PREFIX}{letter}{number}={part}" for number, part in enumerate(parts)]
    return found


def from_tags(held: Iterable[str]) -> Mark | None:
    """The mark in tags; None when there is none."""
    parts: dict[str, list[tuple[int, str]]] = {}
    for tag in held:
        match = re.fullmatch(PREFIX + r"([iokc])([0-9]{0,3})=(.*)", tag)
        if match:
            parts.setdefault(match[1], []).append((int(match[2] or 0), match[3]))
    return _mark(
        {f: unquote("".join(p for _, p in sorted(parts[letter]))) for letter, f in _LETTERS.items() if letter in parts}
    )


def text(mark: Mark, said: str = "", longest: int = 255) -> str:
    """What stands in a description, behind what somebody wants to stand there: as much of the mark as has room, the
    key of the change first."""
    held: list[str] = []
    for tag in sorted(tags(mark), key=lambda tag: "ciok".find(tag[len(PREFIX)])):
        if len(f"{said} [{' '.join([*held, tag])}]") > longest:
            break
        held.append(tag)
    return f"{said} [{' '.join(held)}]".lstrip() if held else said


def from_text(said: str) -> Mark | None:
    """The mark in a description; None when there is none."""
    match = _IN_TEXT.search(said or "")
    return from_tags(match[1].split(" ")) if match else None


def without_text(said: str) -> str:
    """A description but the mark."""
    return _IN_TEXT.sub("", said or "")


def _mark(values: Mapping[str, str]) -> Mark | None:
    if not values.get("installation") and not values.get("change"):
        return None
    return Mark(**{field: values.get(field, "") for field in _NAMES.values()})
