"""Where every value of a YAML text stands, so that one of them can be replaced without writing the others anew.

Only for texts that `kernel/manifest.py` has accepted: that is what bounds size and depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from yaml import events
from yaml._yaml import CParser


@dataclass
class Node:
    """A value and its place: characters from `start` to before `end`, its anchor and tag among them."""

    kind: Literal["scalar", "map", "list", "alias"]
    start: int
    end: int
    flow: bool = False
    """Written in `{}` or `[]`."""
    style: str = ""
    """Of a scalar: `'`, `"`, `|`, `>`, or empty when it is plain."""
    anchor: str = ""
    """What `&` names it, or what an alias means."""
    text: str = ""
    entries: list[tuple[Node, Node]] = field(default_factory=list)
    """Of a mapping: keys and values in their order, merge keys among them."""
    items: list[Node] = field(default_factory=list)
    """Of a list."""
    merges: bool = False
    """Whether a mapping takes keys from elsewhere (`<<`)."""

    def key(self, name: str) -> Node | None:
        """The key of that name that stands here itself."""
        return next((k for k, _ in self.entries if k.text == name), None)

    def value_of(self, step: str | int) -> Node | None:
        """What stands under a key, or at a number of a list."""
        if isinstance(step, int):
            return self.items[step] if step < len(self.items) else None
        return next((v for k, v in self.entries if k.text == step), None)

    def walk(self) -> Iterator[Node]:
        """This node and all inside it."""
        yield self
        for inner in (*self.items, *(v for _, v in self.entries)):
            yield from inner.walk()


@dataclass
class NodeDocument:
    """One document that is not empty, and where in the text it stands."""

    root: Node
    start: int
    end: int
    """Before the next document's first character."""
    aliases: frozenset[str]
    """Anchors that an alias repeats."""


def nodes_of(text: str) -> list[NodeDocument]:
    """The documents of a text, in the order of `load_documents`; empty ones are left out there and here."""
    parser = CParser(text.encode("utf-8"))
    documents: list[NodeDocument] = []
    starts: list[tuple[int, bool]] = []
    try:
        while (event := parser.get_event()) is not None:
            if isinstance(event, events.DocumentStartEvent):
                begin = _at(event.start_mark)
                line = text.rfind("\n", 0, begin) + 1
                starts.append((begin if text[line:begin].strip() else line, False))
                aliases: set[str] = set()
                root = _node(parser.get_event(), parser, aliases)
                empty = root.kind == "scalar" and root.start == root.end and not root.anchor
                if not empty:
                    starts[-1] = (starts[-1][0], True)
                    documents.append(NodeDocument(root, starts[-1][0], 0, frozenset(aliases)))
    finally:
        parser.dispose()
    ends = [*(start for start, _ in starts[1:]), len(text)]
    filled = [end for (_, full), end in zip(starts, ends, strict=True) if full]
    for document, end in zip(documents, filled, strict=True):
        document.end = end
    return documents


def end_of(text: str, node: Node, key: Node | None = None) -> int:
    """After the last character of a value (behind `key`, if any); the parser's marks reach to what comes after it."""
    if node.kind == "list" and not node.flow:
        return end_of(text, node.items[-1])
    if node.kind == "map" and not node.flow:
        last_key, last = node.entries[-1]
        return end_of(text, last, last_key)
    if node.start == node.end:
        return max(len(text[: node.start].rstrip()), key.end if key else 0)
    if node.style in ("|", ">"):
        piece = text[node.start : node.end]
        if "+" in piece.split("\n", 1)[0].split("#")[0]:
            return node.start + len(piece.removesuffix("\n").removesuffix("\r"))
        return node.start + len(piece.rstrip(" \r\n"))
    return node.end


def _node(event: Any, parser: Any, aliases: set[str]) -> Node:
    start, end, anchor = _at(event.start_mark), _at(event.end_mark), event.anchor or ""
    if isinstance(event, events.AliasEvent):
        aliases.add(anchor)
        return Node("alias", start, end, anchor=anchor)
    if isinstance(event, events.ScalarEvent):
        return Node("scalar", start, end, style=(event.style or "").strip(), anchor=anchor, text=event.value)
    node = Node("map" if isinstance(event, events.MappingStartEvent) else "list", start, end, anchor=anchor)
    node.flow = bool(event.flow_style)
    while not isinstance(event := parser.get_event(), (events.MappingEndEvent, events.SequenceEndEvent)):
        inner = _node(event, parser, aliases)
        if node.kind == "list":
            node.items.append(inner)
            continue
        node.merges = node.merges or (inner.text == "<<" and not inner.style)
        node.entries.append((inner, _node(parser.get_event(), parser, aliases)))
    node.end = _at(event.end_mark)
    return node


def _at(mark: Any) -> int:
    return int(mark.index)
