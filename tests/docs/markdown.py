"""Markdown as the tests of the documentation read it: blocks with their marks, links, headings, functions named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = REPOSITORY / "docs" / "guides"
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "src").rglob("README.md")]
)
_MARK = re.compile(r"<!-- (.*?) -->")
_FENCE = re.compile(r"^( *)```(.*)$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """What the HTML comment directly above it says; empty without one."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """What is typed: behind `$ ` in a console."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]

    @property
    def shown(self) -> list[str]:
        """What it shows as the answer."""
        return [line for line in self.text.splitlines() if line and not line.startswith("$ ")]


def blocks(path: Path) -> Iterator[Block]:
    page = path.relative_to(REPOSITORY).as_posix()
    mark, inside, lines = "", None, path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if inside is not None:
            start, language, indent, text = inside
            if fence and not fence[2].strip():
                yield Block(page, start, language, "\n".join(text) + "\n", mark)
                inside, mark = None, ""
            else:
                text.append(line.removeprefix(indent))
        elif fence:
            inside = (number, fence[2].strip(), fence[1], [])
        elif found := _MARK.fullmatch(line.strip()):
            mark = found[1]
        elif line.strip():
            mark = ""


def prose(path: Path) -> str:
    """The text without fenced blocks and `code`."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "``", text)


def links(path: Path) -> list[str]:
    return _LINK.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as git forges make them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).replace("`", "").lower() for head in heads)
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in plain}
