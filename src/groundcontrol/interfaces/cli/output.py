"""How answers look on a terminal: tables, YAML, ages and colour, with everything hostile in them made harmless.

Names, messages and log lines come from tenants. A terminal obeys control characters in them (clear the screen, set the
title, write text that looks like another command's), so tables and text show those as `\\x1b`; JSON and YAML escape
them, which loses nothing.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

# C0, DEL and C1; marks that reorder or hide what is read; separators that start a line; halves of characters.
_HOSTILE = "\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
_RISKY = re.compile(f"[{_HOSTILE}\U000e0000-\U000e007f]")
_RISKY_IN_TEXT = re.compile(f"(?![\n\t])[{_HOSTILE}\U000e0000-\U000e007f]")
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "bold": "1", "dim": "2"}
_TRUTH = {"True": "green", "False": "red", "Unknown": "yellow", "Warning": "yellow"}


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(match[0])
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def safe(value: Any) -> str:
    """One line that a terminal only shows."""
    return _RISKY.sub(_escaped, str(value))


def safe_text(text: str) -> str:
    """Several lines that a terminal only shows: line ends and tabs stay."""
    return _RISKY_IN_TEXT.sub(_escaped, text.replace("\r\n", "\n"))


def coloured(stream: Any = None) -> bool:
    """Colour only for a person: on a terminal, and not where NO_COLOR or TERM=dumb says no."""
    stream = stream or sys.stdout
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, *, on: bool | None = None) -> str:
    use = coloured() if on is None else on
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if use and colour and text else text


def say(text: str = "") -> None:
    """A line of ours on standard output; what it quotes has been through `safe` already."""
    print(text)


def note(text: str) -> None:
    """A remark that is not part of the answer, so it does not disturb a pipe."""
    print(safe_text(text), file=sys.stderr)


# ------------------------------------------------------------------------------------------------ tables


def width(text: str) -> int:
    """Columns a text takes: wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]], *, headers: bool = True, widths: Any = None) -> str:
    """Left-aligned columns, three spaces apart. `widths`, a list, carries the widths on to a later table."""
    cells = [[cell(value) for value in row] for row in rows]
    shown = [[safe(t).upper() for t in titles], *cells] if headers else cells
    least = list(widths or []) or [0] * len(titles)
    spans = [max([least[i], *(width(row[i]) for row in shown)]) for i in range(len(titles))]
    if widths is not None:
        widths[:] = spans
    lines = []
    for number, row in enumerate(shown):
        heading = headers and number == 0
        parts = []
        for i, text in enumerate(row):
            padding = " " * (spans[i] - width(text) + 3) if i + 1 < len(row) else ""
            parts.append(paint(text, "bold" if heading else _TRUTH.get(text, "")) + padding)
        lines.append("".join(parts).rstrip())
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value as the text of one cell; nothing is `-`."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and not any(isinstance(entry, dict | list) for entry in value):
        return safe(",".join(str(entry) for entry in value))
    if isinstance(value, list) and all(isinstance(entry, dict) and "name" in entry for entry in value):
        return safe(",".join(str(entry["name"]) for entry in value))
    if isinstance(value, dict | list):
        return safe(json.dumps(value, ensure_ascii=False))
    return safe(value)


def value_at(doc: Mapping[str, Any], path: str) -> Any:
    """What a column's path reads: `spec.a.b`, `status.list.0`, `conditions.Ready`, `reason.Ready`, `age:a.time`."""
    if path.startswith("age:"):
        found = value_at(doc, path.removeprefix("age:"))
        return age(str(found)) if found else None
    if path.startswith("reason."):
        return condition(doc, path.removeprefix("reason.")).get("reason")
    if path.startswith("conditions."):
        return condition(doc, path.removeprefix("conditions."))["status"]
    at: Any = doc
    for part in re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", path):
        key = part[0] or part[1]
        if isinstance(at, list) and key.isdigit():
            at = at[int(key)] if int(key) < len(at) else None
        else:
            at = at.get(key) if isinstance(at, Mapping) else None
    return at


def condition(doc: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    """That condition of a document; Unknown when nobody wrote it: not having looked is not health."""
    for entry in (doc.get("status") or {}).get("conditions") or ():
        if entry.get("type") == type_:
            return {"status": "Unknown", **entry}
    return {"type": type_, "status": "Unknown", "reason": "NotLooked", "message": "nobody has looked yet"}


# ------------------------------------------------------------------------------------------------ times


def moment(text: str) -> datetime | None:
    """An RFC 3339 time; None when it is none."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def age(text: str) -> str:
    """Time since then as `45s`, `3m12s`, `5h3m`, `2d4h` or `120d`; `in 3m12s` when it is still to come."""
    when = moment(text)
    if when is None:
        return safe(text) or "-"
    seconds = (datetime.now(UTC) - when).total_seconds()
    return f"in {span(-seconds)}" if seconds <= -1 else span(seconds)


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    left = max(0, round(seconds))
    units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    for i, (name, size) in enumerate(units):
        if left >= size or name == "s":
            first, rest = divmod(left, size)
            if i + 1 == len(units) or (name == "d" and first >= 10):
                return f"{first}{name}"
            second = rest // units[i + 1][1]
            return f"{first}{name}{second}{units[i + 1][0]}" if second else f"{first}{name}"
    return "0s"


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(text: str) -> float | None:
    """`90`, `90s`, `1h30m`, `7d` as seconds; None when it is no length of time."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?[smhdw])+", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhdw])", text))


# ------------------------------------------------------------------------------------------------ documents


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """JSON that says exactly what came; hostile characters stay in it, escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub(f"(?!\n)[{_HOSTILE}\U000e0000-\U000e007f]", _json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def as_yaml(value: Any) -> str:
    """YAML that reads back as the same value, also by a reader of YAML 1.2."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """PyYAML writes for 1.1; what only 1.2 takes for a number must be quoted as well."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text_of(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = None
        if _RISKY_IN_TEXT.search(text):
            style = '"'
        elif "\n" in text:
            style = "|"
        elif re.fullmatch(r"[-+]?(0o[0-7]+|0x[0-9a-fA-F]+|(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?)", text):
            style = "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, text_of)
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return _RISKY_IN_TEXT.sub(_escaped, text).rstrip("\n")


def indented(text: str, by: int = 2) -> str:
    return "\n".join(" " * by + line if line else line for line in text.split("\n"))


def fields_lines(fields: Mapping[str, Sequence[Any]], *, by: int = 4) -> list[str]:
    """Changed fields as `path: before → after`, one a line."""
    lines = []
    for path, (before, after) in sorted(fields.items()):
        shown = f"{safe(path)}: {_short(before)} → {_short(after)}"
        colour = "green" if before is None else "red" if after is None else "yellow"
        lines.append(" " * by + paint(shown, colour))
    return lines


def _short(value: Any) -> str:
    if value is None:
        return "(none)"
    text = safe(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 200 else f"{text[:199]}…"


def confirm(question: str) -> bool:
    """Ask on the terminal; the answer is no unless it is yes."""
    return click.confirm(safe_text(question), default=False, err=True)


def on_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()
