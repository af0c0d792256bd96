"""YAML as people write it, turned into documents that know the line of every field, so that an error can point at it.

Scalars follow the core schema of YAML 1.2: `on`, `yes` and `no` are text, `12:30:45` is text, dates are text, `0o17`
is octal and `017` is seventeen. Duplicate keys are errors, merge keys (`<<`) work, and what a file may grow to is
bounded before it grows. The C parser of PyYAML delivers events and this file builds the values from them without
recursion: composing nodes in C overflows the stack on a file of opening brackets, and PyYAML's own constructors keep
no lines and speak YAML 1.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from yaml import events
from yaml._yaml import CParser
from yaml.error import MarkedYAMLError, YAMLError
from yaml.reader import ReaderError

from groundcontrol.kernel.errors import Invalid, Problem

MAX_BYTES = 1 << 20
"""A file larger than this is refused unread."""
MAX_DEPTH = 64
"""Mappings and lists inside one another, aliases expanded."""
MAX_WEIGHT = 8 << 20
"""What one file may grow to with aliases expanded: `_NODE` for every value and key, and the length of every text."""
_NODE = 8

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMERIC = frozenset("0123456789+-.")
_CORE = "tag:yaml.org,2002:"
_PATH = re.compile(r"\[([^\]]*)\]|([^.\[]+)")


class _Node(NamedTuple):
    """A value with the line it stands on and the nodes inside it; `weight` and `depth` count aliases expanded."""

    value: Any
    line: int
    inside: dict[str, _Node]
    weight: int
    depth: int


_NOTHING: dict[str, _Node] = {}
"""What is inside a scalar; shared, never written to."""


class Document:
    """One YAML document: its value, its first line, and the line of every field."""

    __slots__ = ("_root", "line", "value")

    def __init__(self, root: _Node) -> None:
        self._root = root
        self.value: Any = root.value
        self.line = root.line
        """Line of its first value, counted from 1."""

    def line_of(self, path: str) -> int:
        """Line of a dotted path (`spec.ports.0.name`, `metadata.labels[a.b]`); of the nearest parent that exists."""
        parts = [quoted or plain for quoted, plain in _PATH.findall(path)]
        node, start = self._root, 0
        while start < len(parts):
            # A key may hold dots itself (`example.org/team`): the longest run of parts that is a key wins.
            for end in range(len(parts), start, -1):
                found = node.inside.get(".".join(parts[start:end]))
                if found is not None:
                    node, start = found, end
                    break
            else:
                break
        return node.line


def load_yaml(text: str | bytes, file: str) -> tuple[Any, Callable[[str], int]]:
    """The one document of a file (None when there is none) and the line of each path in it. Raises Invalid."""
    documents = load_documents(text, file)
    if len(documents) > 1:
        _refuse(file, documents[1].line, "a second document starts here, and one is expected", "keep one per file")
    if not documents:
        return None, lambda path: 1
    return documents[0].value, documents[0].line_of


def load_documents(text: str | bytes, file: str, *, max_bytes: int = MAX_BYTES) -> list[Document]:
    """Every document of a file that is not empty, in order. Raises Invalid with file, line, reason and remedy."""
    raw = _checked_bytes(text, file, max_bytes)
    try:
        return _Builder(file).documents(CParser(raw))
    except MarkedYAMLError as error:
        _refuse_syntax(error, raw, file)
    except ReaderError as error:
        before = raw[: max(error.position, 0)]
        _refuse(file, before.count(b"\n") + 1, f"unreadable character: {error.reason}", "remove it")
    except YAMLError as error:
        _refuse(file, 0, f"not YAML: {error}")


def _refuse(file: str, line: int, message: str, remedy: str = "", path: str = "") -> NoReturn:
    raise Invalid(problems=(Problem(message, path, file, line, remedy),))


def _checked_bytes(text: str | bytes, file: str, max_bytes: int) -> bytes:
    """UTF-8 without byte order mark and NUL, within the bound."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > max_bytes:
        _refuse(file, 0, f"the file has {len(raw):,} bytes; {max_bytes:,} are allowed", "split it")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        _refuse(file, 1, "the file is UTF-16", "save it as UTF-8")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        _refuse(file, line, f"the file is not UTF-8 (byte 0x{raw[error.start]:02x})", "save it as UTF-8")
    nul = raw.find(b"\0")
    if nul >= 0:
        _refuse(file, raw.count(b"\n", 0, nul) + 1, "the file holds a NUL character", "is it a binary file?")
    return raw


def _refuse_syntax(error: MarkedYAMLError, raw: bytes, file: str) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    lines = raw.rstrip().split(b"\n")
    number = min(mark.line, len(lines) - 1) if mark else 0  # the end of the file is not a line anybody can go to
    line = lines[number]
    if b"\t" in line[: len(line) - len(line.lstrip())]:
        _refuse(file, number + 1, "a tab in the indentation", "indent with spaces")
    what = error.problem or "not YAML"
    context = f" {error.context}" if error.context else ""
    since = error.context_mark.line + 1 if error.context_mark else 0
    started = f" (begun in line {since})" if since and since != number + 1 else ""
    _refuse(file, number + 1, f"not YAML: {what}{context}{started}")


class _Open:
    """A mapping or list whose end has not come yet."""

    __slots__ = ("anchor", "depth", "inside", "key", "key_line", "line", "merge", "merged", "value", "weight")

    def __init__(self, value: dict[str, Any] | list[Any], line: int, anchor: str | None) -> None:
        self.value = value
        self.line = line
        self.anchor = anchor
        self.inside: dict[str, _Node] = {}
        self.weight = _NODE
        self.depth = 1
        self.key: str | None = None
        self.key_line = 0
        self.merge = False
        """The key just read is `<<`, and its value comes next."""
        self.merged: list[_Node] = []


class _Builder:
    """Builds the values of one file from the parser's events."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.open: list[_Open] = []
        self.anchors: dict[str, _Node | None] = {}
        """By name; None while the anchored value is still open, so that one that holds itself is seen."""
        self.done: list[Document] = []
        self.weight = 0

    def documents(self, parser: CParser) -> list[Document]:
        try:
            while (event := parser.get_event()) is not None:
                self.take(event)
        finally:
            parser.dispose()
        return self.done

    def take(self, event: Any) -> None:
        match event:
            case events.ScalarEvent():
                self.scalar(event)
            case events.MappingStartEvent() | events.SequenceStartEvent():
                self.start(event)
            case events.MappingEndEvent() | events.SequenceEndEvent():
                self.end()
            case events.AliasEvent():
                self.alias(event)
            case events.DocumentStartEvent():
                self.anchors = {}

    def scalar(self, event: events.ScalarEvent) -> None:
        line = _line(event)
        frame = self.open[-1] if self.open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None and not frame.merge:
            self.key(frame, event, line)
            return
        if not self.open and not event.value and event.implicit[0] and event.anchor is None:
            return  # an empty document
        value = self.resolve(event, line)
        node = _Node(value, line, _NOTHING, _NODE + len(event.value), 0)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        self.put(node)

    def key(self, frame: _Open, event: events.ScalarEvent, line: int) -> None:
        text = event.value
        if event.anchor is not None:
            _refuse(self.file, line, f"an anchor on the key {_short(text)}", "put the anchor on the value")
        if text == "<<" and event.implicit[0]:
            if frame.merged:
                _refuse(self.file, line, "a second `<<` in one mapping", "write `<<: [*a, *b]`")
            frame.merge = True
            return
        if not isinstance(self.resolve(event, line), str):
            _refuse(self.file, line, f"the key {_short(text)} is not text", f'quote it: "{text}"')
        assert isinstance(frame.value, dict)
        if text in frame.value:
            first = frame.inside[text].line
            _refuse(self.file, line, f"duplicate key {_short(text)}", f"it is already in line {first}")
        self.grow(frame, _NODE + len(text), line)
        frame.key, frame.key_line = text, line

    def start(self, event: events.MappingStartEvent | events.SequenceStartEvent) -> None:
        line = _line(event)
        mapping = isinstance(event, events.MappingStartEvent)
        if event.tag not in (None, "!", f"{_CORE}map" if mapping else f"{_CORE}seq"):
            self.bad_tag(event.tag, line)
        if self.open:
            frame = self.open[-1]
            if isinstance(frame.value, dict) and frame.key is None and not frame.merge:
                _refuse(self.file, line, "a mapping or list as a key", "keys are text; quote `{` and `[`")
        if len(self.open) >= MAX_DEPTH:
            _refuse(self.file, line, f"nested more than {MAX_DEPTH} deep", "flatten it")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        self.open.append(_Open({} if mapping else [], line, event.anchor))

    def end(self) -> None:
        frame = self.open.pop()
        if isinstance(frame.value, dict):
            for source in frame.merged:
                for key, node in source.inside.items():
                    if key not in frame.value:
                        frame.value[key] = _copied(node.value)
                        frame.inside[key] = node
        node = _Node(frame.value, frame.line, frame.inside, frame.weight, frame.depth)
        if frame.anchor is not None:
            self.anchors[frame.anchor] = node
        self.put(node)

    def alias(self, event: events.AliasEvent) -> None:
        line, name = _line(event), event.anchor
        if name not in self.anchors:
            _refuse(self.file, line, f"*{name} has no &{name} before it in this document")
        node = self.anchors[name]
        if node is None:
            _refuse(self.file, line, f"*{name} stands inside the value that &{name} names")
        if self.open:
            frame = self.open[-1]
            if isinstance(frame.value, dict) and frame.key is None and not frame.merge:
                _refuse(self.file, line, f"*{name} as a key", "write the key out")
        # Refused before it is copied: the copy is what an alias bomb is made of.
        if self.weight + node.weight > MAX_WEIGHT or any(f.weight + node.weight > MAX_WEIGHT for f in self.open[-1:]):
            self.too_heavy(line)
        merging = bool(self.open) and self.open[-1].merge
        self.put(node if merging else node._replace(value=_copied(node.value), line=line))

    def put(self, node: _Node) -> None:
        """Hand a finished value to whatever is open around it."""
        if not self.open:
            self.weight += node.weight
            if self.weight > MAX_WEIGHT:
                self.too_heavy(node.line)
            self.done.append(Document(node))
            return
        frame = self.open[-1]
        frame.depth = max(frame.depth, node.depth + 1)
        if len(self.open) + node.depth > MAX_DEPTH:
            _refuse(self.file, node.line, f"nested more than {MAX_DEPTH} deep", "flatten it")
        self.grow(frame, node.weight, node.line)
        if frame.merge:
            self.put_merge(frame, node)
        elif isinstance(frame.value, list):
            frame.inside[str(len(frame.value))] = node
            frame.value.append(node.value)
        else:
            assert frame.key is not None
            frame.value[frame.key] = node.value
            # The line of a field is the line of its key, wherever its value starts.
            frame.inside[frame.key] = node if node.line == frame.key_line else node._replace(line=frame.key_line)
            frame.key = None

    def put_merge(self, frame: _Open, node: _Node) -> None:
        frame.merge = False
        sources = list(node.inside.values()) if isinstance(node.value, list) else [node]
        if not sources or not all(isinstance(source.value, dict) for source in sources):
            _refuse(self.file, node.line, "`<<` takes a mapping or a list of mappings")
        frame.merged = sources

    def grow(self, frame: _Open, weight: int, line: int) -> None:
        frame.weight += weight
        if frame.weight > MAX_WEIGHT:
            self.too_heavy(line)

    def too_heavy(self, line: int) -> NoReturn:
        _refuse(self.file, line, "the file grows too large when its aliases are followed", "use fewer aliases")

    def bad_tag(self, tag: str, line: int) -> NoReturn:
        _refuse(self.file, line, f"the tag {_short(tag.replace(_CORE, '!!'))} is not allowed", "remove it")

    def resolve(self, event: events.ScalarEvent, line: int) -> Any:
        """The value of a scalar by its tag, or by the core schema when it is plain and has none."""
        text: str = event.value
        if "\0" in text:
            _refuse(self.file, line, "a NUL character in a text", r"remove the \0")
        tag = event.tag
        if tag in (None, "!", f"{_CORE}str"):
            return text if tag or not event.implicit[0] else self.plain(text, line)
        value = self.plain(text, line)
        expected: dict[str, tuple[type, ...]] = {
            f"{_CORE}null": (type(None),),
            f"{_CORE}bool": (bool,),
            f"{_CORE}int": (int,),
            f"{_CORE}float": (float, int),
        }
        if tag not in expected:
            self.bad_tag(tag, line)
        if type(value) not in expected[tag]:
            _refuse(self.file, line, f"{_short(text)} is not {tag.replace(_CORE, 'a ')}")
        return float(value) if tag == f"{_CORE}float" else value

    def plain(self, text: str, line: int) -> Any:
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if text[0] not in _NUMERIC:
            return text
        if _INT.fullmatch(text):
            number = int(text, 0) if text[:2] in ("0x", "0o") else int(text) if len(text) < 30 else 1 << 64
            if not -(1 << 63) <= number < 1 << 63:
                _refuse(self.file, line, f"{_short(text)} does not fit 64 bits", "quote it if it is text")
            return number
        if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
            value = float(text.replace(".", "", 1)) if _NOT_FINITE.fullmatch(text) else float(text)
            if not math.isfinite(value):
                _refuse(self.file, line, f"{_short(text)} is not a finite number", "quote it if it is text")
            return value
        return text


def _line(event: events.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _copied(value: Any) -> Any:
    """A copy that shares nothing that can be changed; its depth is already bounded."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value
