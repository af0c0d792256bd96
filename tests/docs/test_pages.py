"""Links lead somewhere, functions that are named exist, and everything there is has its words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from groundcontrol.assembly import CAPABILITIES, DRIVERS, kinds
from groundcontrol.interfaces.cli.main import SECTIONS
from groundcontrol.kernel.settings import Settings
from groundcontrol.programs.fields import rows
from tests.docs.markdown import GUIDES, PAGES, REPOSITORY, anchors, links, prose

REFERENCE = REPOSITORY / "docs" / "reference"
NAMED = re.compile(r"`(?:([A-Z]\w*)\.)?([A-Za-z_]\w*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.relative_to(REPOSITORY)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.relative_to(REPOSITORY)}: no heading for {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in reached:
                waiting.append(target)
    docs = {p for p in PAGES if p.is_relative_to(REPOSITORY / "docs")}
    assert sorted(p.name for p in docs - reached) == []


def defined(path: Path) -> set[str]:
    """`name` of functions and classes, `Class.name` of methods, and what is assigned at the top."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def test_every_function_the_tour_passes_exists() -> None:
    tour = REPOSITORY / "docs" / "tour.md"
    text = tour.read_text(encoding="utf-8")
    linked = {(tour.parent / link).resolve() for link in links(tour) if link.endswith(".py")}
    there = set().union(*(defined(path) for path in linked))
    plain = {"True", "False", "Unknown"}
    named = {".".join(filter(None, match)) for match in NAMED.findall(text)}
    classes = {name.partition(".")[0] for name in named if "." in name}
    functions = {n for n in named if "." in n or n in classes or "_" in n or n in there}
    assert len(functions) > 40
    assert sorted(functions - there - plain) == []
    # What stands directly behind a link is defined in that very file.
    behind = re.findall(r"\]\(([^)]+\.py)\)\s+`([\w.]+)`", text)
    assert len(behind) > 15
    wrong = [f"{name} is not in {link}" for link, name in behind if name not in defined(tour.parent / link)]
    assert wrong == []


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:kernel|capabilities|interfaces|programs|drivers|ports)/[\w/]+\.py)`", text):
            assert (REPOSITORY / "src" / "groundcontrol" / name).exists(), f"{page.name} names {name}"


def test_every_kind_has_a_page_and_an_example() -> None:
    for kind in kinds():
        page = REFERENCE / "kinds" / f"{kind.__name__.lower()}.md"
        assert page.exists(), f"{kind.__name__} has no page: make docs"
        assert kind.info.internal or "## Example" in page.read_text()


def test_every_setting_is_documented() -> None:
    text = (REFERENCE / "settings.md").read_text()
    assert [row.path for row in rows(Settings) if f"| `{row.path}` |" not in text] == []


def test_every_command_is_documented() -> None:
    text = (REFERENCE / "cli.md").read_text()
    assert [name for s in SECTIONS.values() for name in s if f"### ground {name}\n" not in text] == []


def test_every_driver_and_capability_has_its_words() -> None:
    for name in DRIVERS:
        assert (GUIDES / f"{name}-driver.md").exists(), f"the driver {name} has no guide"
    for capability in CAPABILITIES:
        page = REPOSITORY / "src" / "groundcontrol" / "capabilities" / capability.name / "README.md"
        assert page.read_text().startswith("# ")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_lines_can_be_read(page: Path) -> None:
    """Prose is not wider than a screen; tables, links and what is generated may be."""
    if page.is_relative_to(REFERENCE):
        return
    wide = [line for line in prose(page).splitlines() if len(line) > 130 and not line.startswith(("|", "[", "* ["))]
    assert wide == []
