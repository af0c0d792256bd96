"""Every example of the README and the guides is run or checked; what is not stands in a short list."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from groundcontrol.assembly import kinds
from groundcontrol.interfaces.cli.main import cli
from groundcontrol.kernel.manifest import load_documents
from groundcontrol.kernel.resource import Resource
from groundcontrol.kernel.settings import Settings, load
from groundcontrol.programs.commands import PROGRAMS, parser_of
from tests.docs.conftest import Place
from tests.docs.markdown import GUIDES, REPOSITORY, Block, blocks

EXAMPLES = REPOSITORY / "docs" / "examples"
RUN = (
    "getting-started.md",
    "gitops.md",
    "services.md",
    "runs.md",
    "plans-and-approval.md",
    "operating.md",
    "joining.md",
)
"""Guides that are followed from top to bottom, in this order, on one server."""
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(GUIDES.glob("*.md"))]
NOT_RUN = {
    ("README.md", "console"): 2,
    ("docs/guides/clouds.md", "console"): 5,
    ("docs/guides/operating.md", "console"): 4,
    ("docs/guides/operating.md", "ini"): 1,
    ("docs/guides/plans-and-approval.md", "console"): 1,
    ("docs/guides/secrets.md", "console"): 2,
}
"""How many blocks of a page are marked as only illustrative. Each says why, above it."""
CHECKED = {"yaml", "console", "python", "diff", "text", "json", "ini", "", "sh"}


def all_blocks() -> Iterator[Block]:
    for page in PAGES:
        yield from blocks(page)


def test_what_is_not_run_is_listed() -> None:
    found: dict[tuple[str, str], int] = {}
    for block in all_blocks():
        if block.mark.startswith("illustrative"):
            assert block.mark.removeprefix("illustrative: "), f"{block} does not say why"
            place = (block.page, block.language)
            found[place] = found.get(place, 0) + 1
    assert found == NOT_RUN


def test_every_block_has_a_language_that_is_checked() -> None:
    assert [str(b) for b in all_blocks() if b.language not in CHECKED] == []


@pytest.mark.parametrize("name", RUN)
def test_the_guide_can_be_followed(place: Place, name: str) -> None:
    if name != RUN[0]:
        done = place.run("ground whoami")
        assert done.returncode == 0, f"{RUN[0]} comes first: {done.stderr}"
    for block in blocks(GUIDES / name):
        if block.mark == "start" or block.mark.startswith("illustrative"):
            continue
        if block.mark.startswith("save: "):
            place.save(block.mark.removeprefix("save: "), block.text)
        elif block.language == "console":
            output = ""
            for command in block.commands:
                done = place.run(command)
                output += done.stdout + done.stderr
                said = f"{block}: {command}\n{done.stdout}{done.stderr}"
                log = (place.root / "server.log").read_text(errors="replace")[-2000:]
                assert done.returncode == 0, f"{said}\n--- server\n{log}"
            for line in block.shown:
                assert line.split()[0] in output, f"{block}: no {line!r} in\n{output}"


# ── manifests and settings ──────────────────────────────────────────────────────────────────────────────────────


def parse_all(text: str, name: str) -> int:
    count = 0
    for document in load_documents(text.encode(), name):
        kinds().parse(document.value, file=name, lines=document.line_of)
        count += 1
    return count


# These are applied by tests/docs/test_adding.py, to a server that has what they need.
ELSEWHERE = ("docs/guides/adding-a-kind.md", "docs/guides/adding-a-driver.md")


@pytest.mark.parametrize(
    "block", [b for b in all_blocks() if b.language == "yaml" and b.page not in ELSEWHERE], ids=str
)
def test_yaml_is_a_manifest_or_settings(block: Block) -> None:
    if block.mark == "settings":
        Settings.model_validate(next(iter(load_documents(block.text.encode(), str(block)))).value, strict=True)
    else:
        assert parse_all(block.text, str(block))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_good(path: Path) -> None:
    assert parse_all(path.read_text(), path.name)
    kind = kinds().get(path.stem)
    assert not kind.info.internal


@pytest.mark.parametrize("kind", [k for k in kinds() if not k.info.internal], ids=lambda k: k.__name__)
def test_the_example_of_a_kind_is_good(kind: type[Resource]) -> None:
    page = REPOSITORY / "docs" / "reference" / "kinds" / f"{kind.__name__.lower()}.md"
    example = next((b for b in blocks(page) if b.language == "yaml"), None)
    assert example is not None, f"{page.name} has no example"
    assert parse_all(example.text, str(example)), "write a better one: docs/examples"


def test_a_server_takes_the_examples(place: Place) -> None:
    for name in ("namespace", "site", "project", "procedure"):
        assert place.run(f"ground apply -f {EXAMPLES}/{name}.yaml").returncode == 0
    done = place.run(f"ground apply --dry-run -f {EXAMPLES}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_that_init_writes_are_good(place: Place) -> None:
    assert load(place.root / "control" / "ground.yaml").listen == place.address


# ── commands that are only shown ────────────────────────────────────────────────────────────────────────────────


def shown_commands() -> Iterator[tuple[str, str]]:
    """Every line `ground …` of every page, those that are run too."""
    for block in all_blocks():
        if block.language not in ("", "console", "sh"):
            continue
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines():
            line = line.removeprefix("$ ")
            if line.startswith("ground "):
                yield str(block), line


@pytest.mark.parametrize(("where", "line"), list(shown_commands()))
def test_a_command_that_is_shown_can_be_typed(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    for end in ("|", "||", "&", "&&", ">", "<", ";"):
        words = words[: words.index(end)] if end in words else words
    name, *rest = words
    if name in PROGRAMS:
        parser_of(name).parse_args(rest)
        return
    if name == "demo":
        return
    command: click.Command | None = cli
    ctx = click.Context(cli, info_name="ground")
    rest = words
    while isinstance(command, click.Group):
        name, *rest = rest
        ctx = click.Context(command, parent=ctx, info_name=name)
        command = command.get_command(ctx, name)
        assert command is not None, f"{where}: there is no command {name}"
    assert command is not None
    command.make_context(name, rest, parent=ctx)
