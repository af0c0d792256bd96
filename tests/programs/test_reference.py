"""The reference pages say everything there is, always the same, and nothing that is gone."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from groundcontrol.assembly import kinds
from groundcontrol.interfaces.cli.main import SECTIONS
from groundcontrol.kernel import turn
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.settings import Settings
from groundcontrol.programs import reference
from groundcontrol.programs.fields import rows

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages(EXAMPLES)


def test_the_same_sources_give_the_same_pages(pages: dict[str, str]) -> None:
    assert reference.pages(EXAMPLES) == pages


def test_every_field_of_every_kind_has_a_row_with_words(pages: dict[str, str]) -> None:
    for kind in kinds():
        page = pages[f"kinds/{kind.__name__.lower()}.md"]
        spec = kind.model_fields["spec"].annotation
        assert isinstance(spec, type)
        for row in rows(spec, "spec", elsewhere=lambda model: "elsewhere"):
            assert f"| `{row.path}` |" in page, (kind, row)
            assert row.about, f"{kind.__name__} {row.path} has no docstring"


def test_bounds_defaults_and_choices_are_shown(pages: dict[str, str]) -> None:
    page = pages["kinds/service.md"]
    assert "| `spec.health.interval` | number, 0.2 to 3,600 | `1.0` | Seconds between probes. |" in page
    assert "| `spec.update.strategy` | `rolling` or `blue-green` | `rolling` |" in page
    assert "**required**" in pages["kinds/site.md"]


def test_conditions_reasons_columns_and_actions_are_shown(pages: dict[str, str]) -> None:
    types, reasons = reference.said_by(kinds().get("Service"))
    assert {"Ready", "Available", "RolledBack"} <= {*types}
    assert {"Unplaceable", "Progressing", "Healthy"} <= {*reasons}
    assert "/services/{name}/actions/restart" in pages["kinds/service.md"]
    assert "| Wanted | `spec.replicas` | always |" in pages["kinds/service.md"]


def test_the_conditions_the_kernel_adds_are_explained() -> None:
    source = inspect.getsource(turn)
    assert set(re.findall(r'answers\["(\w+)"\] = ', source)) == {*reference.EVERYWHERE}


def test_every_error_setting_and_command_is_there(pages: dict[str, str]) -> None:
    waiting: list[type[GroundError]] = [GroundError]
    while waiting:
        error = waiting.pop()
        if error.__module__ == GroundError.__module__:
            assert f"`{error.__name__}`" in pages["errors.md"]
            waiting += error.__subclasses__()
    for row in rows(Settings):
        assert f"| `{row.path}` |" in pages["settings.md"]
        assert row.about, f"the setting {row.path} has no docstring"
    for section in SECTIONS.values():
        for name in section:
            assert f"### ground {name}\n" in pages["cli.md"]


def test_a_page_of_what_is_gone_goes_and_other_files_stay(tmp_path: Path) -> None:
    reference.write(tmp_path, {"a.md": f"{reference.MADE}\nA\n", "kinds/b.md": f"{reference.MADE}\nB\n"})
    (tmp_path / "notes.md").write_text("by hand\n")
    changed = reference.write(tmp_path, {"a.md": f"{reference.MADE}\nA\n"})
    assert changed == [tmp_path / "kinds" / "b.md"]
    assert sorted(p.name for p in tmp_path.rglob("*.md")) == ["a.md", "notes.md"]
