"""Changes single fields of a manifest's text and leaves every other byte as somebody wrote it.

A writer of YAML would lose comments, order and quoting. So the events of the parser say where a value stands, and only
that piece of text is replaced. What comes out is read again by `kernel/manifest.py` and compared with what was asked
for: a text that would say anything else is refused, never given out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.manifest import MAX_BYTES, load_documents
from groundcontrol.kernel.manifest_nodes import Node, NodeDocument, end_of, nodes_of

Path = tuple[str | int, ...]
Above = tuple[Node, Node | None] | None
"""What holds the holder of what is edited, and the key it stands behind, if any."""
MOST_EDITS = 100
"""More than that is a new document, not a change."""
MOST_WORK = 8 << 20
"""Characters read: each edit reads the document anew."""

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+-]*(?: [A-Za-z0-9_./@+-]+)*")
# What one version of YAML or another takes for something else than text.
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_MISSING = object()


class Edit(NamedTuple):
    """One change of one place. Edits are made one after the other: later paths speak of what earlier ones left."""

    path: Path
    """Keys and, in lists, numbers counted from 0."""
    op: Literal["set", "remove", "insert"] = "set"
    """`set` also adds a key that is missing; `insert` puts something new into a list before that number."""
    value: Any = None


# ── what is to be changed ───────────────────────────────────────────────────────────────────────────────────────────


def edits_between(
    written: Any, old: Any, new: Any, alias: Callable[[Any, str], str] = lambda at, key: key
) -> list[Edit]:
    """The edits of what is `written` that bring the difference between `old` and `new` into it, and nothing else.

    `written` may say less than `old` (defaults are left out of files) and may be newer. `alias(mapping, key)` is the
    name a key has in a written mapping."""
    out: list[Edit] = []
    _differ((), written, old, new, alias, out)
    return out


def _differ(path: Path, written: Any, old: Any, new: Any, alias: Callable[[Any, str], str], out: list[Edit]) -> None:
    if _same(old, new):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        if not isinstance(written, dict):
            value = _only_new(old, new)
            out += [Edit(path, "set", value)] if value else []
            return
        for key in [*new, *(k for k in old if k not in new)]:  # what is taken away comes last: nothing gets empty
            name = alias(written, key)
            inner = written.get(name, _MISSING)
            _differ((*path, name), inner, old.get(key, _MISSING), new.get(key, _MISSING), alias, out)
    elif isinstance(old, list) and isinstance(new, list) and _same(written, old):
        _differ_list(path, old, new, alias, out)
    elif new is _MISSING:
        out += [Edit(path, "remove")] if written is not _MISSING else []
    elif not _same(written, new):
        out.append(Edit(path, "set", copy.deepcopy(new)))


def _differ_list(path: Path, old: list[Any], new: list[Any], alias: Callable[[Any, str], str], out: list[Edit]) -> None:
    start, shorter = 0, min(len(old), len(new))
    while start < shorter and _same(old[start], new[start]):
        start += 1
    end = 0
    while end < shorter - start and _same(old[-1 - end], new[-1 - end]):
        end += 1
    both = shorter - end
    for number in range(start, both):
        _differ((*path, number), old[number], old[number], new[number], alias, out)
    out += [Edit((*path, n), "insert", copy.deepcopy(new[n])) for n in range(both, len(new) - end)]
    out += [Edit((*path, n), "remove") for n in reversed(range(both, len(old) - end))]


def _only_new(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What of a mapping is to be written where nothing of it stands yet."""
    found: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key, _MISSING)
        if _same(before, value):
            continue
        both = isinstance(before, dict) and isinstance(value, dict)
        inner = _only_new(before, value) if both else copy.deepcopy(value)
        if inner or not both:
            found[key] = inner
    return found


def edited_value(value: Any, edits: Sequence[Edit]) -> Any:
    """The value with the edits made: what the edited text must say. Raises KeyError or IndexError for no such place."""
    value = copy.deepcopy(value)
    for path, op, new in edits:
        at = value
        for step in path[:-1]:
            at = at[step]
        last = path[-1]
        if op == "remove":
            del at[last]
        elif op == "insert":
            at.insert(last, copy.deepcopy(new))
        else:
            at[last] = copy.deepcopy(new)
    return value


def _same(one: Any, other: Any) -> bool:
    """Equal, and of equal type: True is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


# ── the text ────────────────────────────────────────────────────────────────────────────────────────────────────────


def edited(raw: bytes, line: int, edits: Sequence[Edit], file: str = "", *, max_bytes: int = MAX_BYTES) -> bytes:
    """The file with the edits made in the document whose first value stands in `line`; Invalid with the reason when
    that cannot be done without touching anything else."""
    before = load_documents(raw, file, max_bytes=max_bytes)
    number = next((n for n, d in enumerate(before) if d.line == line), None)
    if number is None:
        _refuse(file, line, "no document begins here")
    if len(edits) > MOST_EDITS:
        _refuse(file, line, f"{len(edits)} places would change; {MOST_EDITS} are edited at most")
    text = raw.decode("utf-8")
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(mark)
    if re.search("[\x85\u2028\u2029]|\r(?!\n)", text):
        _refuse(file, line, "the file has line breaks that few programs know", "use plain ones")
    documents = nodes_of(text)
    start, end = documents[number].start, documents[number].end
    piece = text[start:end]
    if len(edits) * len(piece) > MOST_WORK:
        _refuse(file, line, f"the document is too long for {len(edits)} changes at once", "propose fewer at a time")
    for edit in edits:
        piece = _Editor(piece, nodes_of(piece)[0], file, line, "\r\n" if "\r\n" in text else "\n").make(edit)
    found = (mark + text[:start] + piece + text[end:]).encode("utf-8")
    _check(found, [d.value for d in before], number, edits, file, line, max_bytes)
    return found


def _check(
    raw: bytes, values: list[Any], number: int, edits: Sequence[Edit], file: str, line: int, max_bytes: int
) -> None:
    """Refuse unless the new text says what was asked for, and everything else as before."""
    values[number] = edited_value(values[number], edits)
    try:
        said = [d.value for d in load_documents(raw, file, max_bytes=max_bytes)]
    except Invalid as error:
        _refuse(file, line, f"it cannot be edited without breaking the file ({error.problems[0].message})")
    if not _same(said, values):
        _refuse(file, line, "it cannot be edited without changing more than was asked for")


def _refuse(file: str, line: int, message: str, remedy: str = "edit the file by hand", path: str = "") -> NoReturn:
    raise Invalid(problems=(Problem(message, path, file, line, remedy),))


class _Editor:
    """Makes one edit in one document's text."""

    def __init__(self, text: str, document: NodeDocument, file: str, line: int, newline: str) -> None:
        self._text, self._document, self._file, self._line, self._newline = text, document, file, line, newline
        self._path: Path = ()

    def make(self, edit: Edit) -> str:
        """The new text."""
        self._path = edit.path
        holder, flow = self._document.root, self._document.root.flow
        above: Above = None
        for step in edit.path[:-1]:
            self._may_touch(holder)
            above = (holder, holder.key(step) if isinstance(step, str) else None)
            holder = self._step(holder, step)
            flow = flow or holder.flow
        self._may_touch(holder)
        self._need(holder, "map" if isinstance(edit.path[-1], str) else "list")
        if holder.kind == "map":
            return self._in_map(holder, str(edit.path[-1]), edit, flow, above)
        return self._in_list(holder, int(edit.path[-1]), edit, flow, above)

    # ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self, holder: Node, step: str | int) -> Node:
        self._need(holder, "map" if isinstance(step, str) else "list")
        found = holder.value_of(step)
        if found is None:
            self._no("it comes from a merge key (<<)" if holder.merges else "it is not in the file")
        return found

    def _need(self, node: Node, kind: str) -> None:
        if node.kind == "alias":
            self._no(f"it stands behind the alias *{node.anchor}")
        if node.kind != kind:
            self._no(f"it stands in something that is not a {'mapping' if kind == 'map' else 'list'}")

    def _may_touch(self, node: Node) -> None:
        if node.anchor in self._document.aliases and node.kind != "alias":
            self._no(f"&{node.anchor} stands on it, and an alias elsewhere repeats it")

    def _may_lose(self, node: Node) -> None:
        for inner in node.walk():
            self._may_touch(inner)

    def _no(self, why: str) -> NoReturn:
        path = "".join(f".{p}" if isinstance(p, str) else f"[{p}]" for p in self._path).removeprefix(".")
        _refuse(self._file, self._line, f"it cannot be edited here: {why}", path=path[:200])

    # ── mappings ────────────────────────────────────────────────────────────────────────────────────────────────

    def _in_map(self, holder: Node, name: str, edit: Edit, flow: bool, above: Above) -> str:
        key, old = holder.key(name), holder.value_of(name)
        if key is not None and old is not None:
            if "?" in self._text[self._line_start(key.start) : key.start]:
                self._no("its key is written with a question mark")
            self._may_lose(old)
            if edit.op == "set":
                return self._replaced(old, edit.value, flow, self._column(key), key)
            if len(holder.entries) == 1:
                return self._emptied(holder, "{}", flow, above)
            number = next(n for n, (k, _) in enumerate(holder.entries) if k is key)
            pieces = [(k.start, self._end(v, k)) for k, v in holder.entries]
            return self._cut_flow(pieces, number) if flow else self._cut_entry(pieces, number)
        if edit.op == "remove":
            self._no("it comes from a merge key (<<)" if holder.merges else "it is not in the file")
        if flow:
            entry = f"{text_of(name)}: {in_flow(edit.value)}"
            return self._add_flow(holder, [(k.start, self._end(v, k)) for k, v in holder.entries], -1, entry)
        column = self._column(holder.entries[0][0])
        last_key, last = holder.entries[-1]
        return self._add_lines(self._end(last, last_key), _entry_lines(name, edit.value), column)

    def _cut_entry(self, pieces: list[tuple[int, int]], number: int) -> str:
        start, end = pieces[number]
        if not self._text[self._line_start(start) : start].strip():
            return self._cut_lines(start, end)
        # The first key of a list's item stands behind the dash: the next key takes its place.
        after = pieces[number + 1][0]
        if "#" in self._text[end:after]:
            self._no("a comment stands between it and what takes its place")
        return self._splice(start, after, "")

    # ── lists ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _in_list(self, holder: Node, number: int, edit: Edit, flow: bool, above: Above) -> str:
        items = holder.items
        if edit.op != "insert":
            self._may_lose(items[number])
        if edit.op == "set":
            return self._replaced(items[number], edit.value, flow, self._dash(holder, number)[1] if not flow else 0)
        pieces = [(item.start, self._end(item)) for item in items]
        if edit.op == "remove":
            if len(items) == 1:
                return self._emptied(holder, "[]", flow, above)
            if flow:
                return self._cut_flow(pieces, number)
            dash, _ = self._dash(holder, number)
            if self._text[self._line_start(dash) : dash].strip():
                self._no("it stands in a list that begins in the line of another")
            return self._cut_lines(dash, pieces[number][1])
        if flow or not items:
            return self._add_flow(holder, pieces, number, in_flow(edit.value))
        dash, column = self._dash(holder, 0)
        lines = _item_lines(edit.value)
        if number:
            return self._add_lines(pieces[number - 1][1], lines, column)
        if self._text[self._line_start(dash) : dash].strip():
            self._no("it stands in a list that begins in the line of another")
        new = self._newline.join(" " * column + part for part in lines) + self._newline
        return self._splice(self._line_start(dash), self._line_start(dash), new)

    def _dash(self, holder: Node, number: int) -> tuple[int, int]:
        """Where the dash of an item stands, and in which column."""
        first = holder.start
        if self._text[first : first + 1] != "-":
            self._no("its list is written in a way that is not understood")
        column = self._column(holder)
        if not number:
            return first, column
        after = self._end(holder.items[number - 1])
        found = re.compile(rf"^ {{{column}}}-(?=\s)", re.MULTILINE).search(self._text, after)
        if found is None or found.end() > holder.items[number].start:
            self._no("its list is written in a way that is not understood")
        return found.end() - 1, column

    # ── pieces of text ──────────────────────────────────────────────────────────────────────────────────────────

    def _replaced(self, old: Node, value: Any, flow: bool, column: int, key: Node | None = None) -> str:
        end = self._end(old, key)
        if old.start == old.end:
            return self._splice(end, end, " " + in_flow(value))
        collection = old.kind in ("map", "list") and not old.flow
        if collection and not flow:
            end = self._line_end(end)  # a comment behind the last of it belongs to it
            lines = _entry_lines("", value)[1:]
            own = self._column_at(old.start)
            if lines and (own > column or isinstance(value, list)):
                return self._splice(old.start, end, f"{self._newline}{' ' * own}".join(_shifted(lines)))
            return self._collapsed(old, end, in_flow(value), key)
        if old.style in ("|", ">") and isinstance(value, str) and (lines := _literal(value)):
            text = self._newline.join([lines[0], *(f"{' ' * (column + 2)}{part}".rstrip(" ") for part in lines[1:])])
            return self._splice(old.start, end, text)
        return self._splice(old.start, end, in_flow(value, old.style or ""))

    def _emptied(self, holder: Node, text: str, flow: bool, above: Above) -> str:
        """The last of a collection goes: it stays as an empty one."""
        if flow:
            opening = self._text.index(text[0], holder.start)
            return self._splice(opening, holder.end, text)
        if above is None:
            self._no("nothing would be left of the document")
        key = above[1]
        return self._collapsed(holder, self._line_end(self._end(holder)), text, key)

    def _collapsed(self, old: Node, end: int, text: str, key: Node | None) -> str:
        """A collection over several lines becomes one value behind its key."""
        begin = self._line_start(old.start)
        if key is None or self._text[begin : old.start].strip():
            return self._splice(old.start, end, text)
        colon = self._text.index(":", key.end) + 1
        return f"{self._text[:colon]} {text}{self._text[colon:begin]}{self._text[self._next_line(end) :]}"

    def _add_lines(self, after: int, lines: Sequence[str], column: int) -> str:
        at = self._line_end(after)
        new = "".join(f"{self._newline}{' ' * column}{part}".rstrip(" ") for part in lines)
        return self._splice(at, at, new)

    def _add_flow(self, holder: Node, pieces: list[tuple[int, int]], number: int, text: str) -> str:
        if not pieces:
            at = self._text.index("{" if holder.kind == "map" else "[", holder.start) + 1
            return self._splice(at, at, text)
        if number == 0:
            return self._splice(pieces[0][0], pieces[0][0], f"{text}, ")
        at = pieces[number - 1 if number > 0 else -1][1]
        return self._splice(at, at, f", {text}")

    def _cut_flow(self, pieces: list[tuple[int, int]], number: int) -> str:
        start, end = pieces[number]
        start, end = (pieces[number - 1][1], end) if number else (start, pieces[1][0])
        if "#" in self._text[start : pieces[number][0]] or "#" in self._text[pieces[number][1] : end]:
            self._no("a comment stands beside it")
        return self._splice(start, end, "")

    def _cut_lines(self, start: int, end: int) -> str:
        start, end = self._line_start(start), self._line_end(end)
        if end < len(self._text):
            return self._splice(start, self._next_line(end), "")
        return self._splice(len(self._text[:start].removesuffix("\n").removesuffix("\r")), end, "")

    def _splice(self, start: int, end: int, text: str) -> str:
        return self._text[:start] + text + self._text[end:]

    # ── places ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _line_start(self, at: int) -> int:
        return self._text.rfind("\n", 0, at) + 1

    def _line_end(self, at: int) -> int:
        """Where the line ends, without its break."""
        found = self._text.find("\n", at)
        if found < 0:
            return len(self._text)
        return found - 1 if self._text[found - 1 : found] == "\r" and found > at else found

    def _next_line(self, end: int) -> int:
        """Where the line after the one that ends there begins."""
        return min(end + (2 if self._text[end : end + 1] == "\r" else 1), len(self._text))

    def _column_at(self, at: int) -> int:
        return at - self._line_start(at)

    def _column(self, node: Node) -> int:
        return self._column_at(node.start)

    def _end(self, node: Node, key: Node | None = None) -> int:
        return end_of(self._text, node, key)


# ── writing values ──────────────────────────────────────────────────────────────────────────────────────────────────


def text_of(text: str, style: str = "") -> str:
    """A text as YAML of one line: as it is when nobody can take it for anything else, else in quotes."""
    if style == "'" and text.isprintable() and "\ufeff" not in text:
        return "'" + text.replace("'", "''") + "'"
    if style != '"' and _PLAIN.fullmatch(text) and text.lower() not in _WORDS and len(text) < 200:
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable() and character != "\ufeff":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def in_flow(value: Any, style: str = "") -> str:
    """Any value as YAML of one line. `style` is the quote that a text had before, if any."""
    if isinstance(value, str):
        return text_of(value, style)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text_of(str(k))}: {in_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_flow, value)) + "]"
    return repr(value)


def _literal(text: str) -> list[str]:
    """The header and the lines of a block of text (`|`), unindented; nothing when it cannot be one."""
    body = text.removesuffix("\n")
    lines = body.split("\n")
    fits = "\n" in text and all(part.isprintable() and "\ufeff" not in part for part in lines) and lines[-1].strip()
    if not fits or lines[0][:1] in ("", " ") or any(part and not part.strip() for part in lines):
        return []
    return ["|" if text.endswith("\n") else "|-", *lines]


def _entry_lines(name: str, value: Any) -> list[str]:
    """A key and its value, unindented, one list entry per line."""
    key = text_of(name)
    if isinstance(value, Mapping) and value:
        return [f"{key}:", *(f"  {part}" for k, v in value.items() for part in _entry_lines(str(k), v))]
    if isinstance(value, list) and value:
        return [f"{key}:", *(f"  {part}" for item in value for part in _item_lines(item))]
    if isinstance(value, str) and (lines := _literal(value)):
        return [f"{key}: {lines[0]}", *(f"  {part}" for part in lines[1:])]
    return [f"{key}: {in_flow(value)}"]


def _item_lines(value: Any) -> list[str]:
    """An item of a list, unindented."""
    if isinstance(value, Mapping) and value:
        first, *rest = (part for k, v in value.items() for part in _entry_lines(str(k), v))
        return [f"- {first}", *(f"  {part}" for part in rest)]
    if isinstance(value, str) and (lines := _literal(value)):
        return [f"- {lines[0]}", *(f"  {part}" for part in lines[1:])]
    return [f"- {in_flow(value)}"]


def _shifted(lines: Sequence[str]) -> Iterator[str]:
    return (part.removeprefix("  ") for part in lines)
