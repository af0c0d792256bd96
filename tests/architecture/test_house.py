"""The house rules hold for the real sources, and each rule sees the mistake it is there for."""

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.architecture import house
from tests.architecture.conftest import Plant
from tests.architecture.exemptions import LONG_FILES

SRC = "src/groundcontrol"
TODAY = date(2026, 1, 1)

Rule = Callable[[Path], list[house.Finding]]

RULES: tuple[Rule, ...] = (
    house.empty_names,
    house.no_opening_sentence,
    house.long_functions,
    house.stray_prints,
    house.capability_shapes,
    house.undeclared_reads,
    house.impure_logic,
    house.demo_leans_on_something,
)


def capability(name: str, reads: str = "()", **files: str) -> dict[str, str]:
    """A capability folder without fault; `files` replaces or adds modules by stem."""
    folder = f"{SRC}/capabilities/{name}"
    return {
        f"{folder}/__init__.py": f'"""M."""\nCAPABILITY = Capability(name="{name}", reads={reads})\n',
        f"{folder}/README.md": "# It\n",
        **{f"{folder}/{stem}.py": '"""M."""\n' for stem in ("kinds", "logic", "reconcile")},
        **{f"{folder}/{stem}.py": f'"""M."""\n{text}\n' for stem, text in files.items()},
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_sources_keep(rule: Rule) -> None:
    found = rule(house.REPOSITORY)
    assert not found, "\n" + "\n".join(map(str, found))


def test_the_sources_keep_long_files() -> None:
    found = house.long_files(house.REPOSITORY, LONG_FILES, date.today())
    assert not found, "\n" + "\n".join(map(str, found))


LONG = "def f() -> None:\n" + "    x = 1\n" * house.LONGEST_FUNCTION
DECORATED = "@deco(\n" + "    1,\n" * 10 + ")\ndef f() -> None:\n" + "    x = 1\n" * (house.LONGEST_FUNCTION - 5)

# rule, the planted tree, and a piece of what must be found
PLANTED: tuple[tuple[Rule, dict[str, str], str], ...] = (
    (house.empty_names, {f"{SRC}/utils.py": ""}, "utils.py:1"),
    (house.empty_names, {f"{SRC}/kernel/dns_helpers.py": ""}, "dns_helpers.py:1"),
    (house.empty_names, {f"{SRC}/common/zone.py": ""}, "common:1"),
    (house.empty_names, {"tests/base.py": ""}, "tests/base.py:1"),
    (house.empty_names, {f"{SRC}/ports/manager.py": ""}, "manager.py:1"),
    (house.no_opening_sentence, {f"{SRC}/a.py": "import os\n"}, "a.py:1"),
    (house.no_opening_sentence, {f"{SRC}/a.py": ""}, "a.py:1"),
    (house.long_functions, {f"{SRC}/a.py": LONG}, "f has 81 lines"),
    (house.long_functions, {f"{SRC}/a.py": DECORATED}, "f has 88 lines"),
    (house.long_functions, {f"{SRC}/a.py": "async " + LONG}, "f has 81 lines"),
    (house.stray_prints, {f"{SRC}/kernel/a.py": "def f():\n    print(1)\n"}, "a.py:2"),
    (house.stray_prints, {f"{SRC}/interfaces/api/a.py": "print(1)\n"}, "api/a.py:1"),
    (house.capability_shapes, {f"{SRC}/capabilities/dns.py": ""}, "folder, not a module"),
    (house.capability_shapes, {f"{SRC}/capabilities/dns/__init__.py": ""}, "kinds.py is missing"),
    (house.capability_shapes, capability("dns", planner=""), "dns/planner.py"),
    (house.undeclared_reads, {f"{SRC}/capabilities/dns/__init__.py": ""}, "no `CAPABILITY"),
    (house.undeclared_reads, capability("dns", reads='("sites",)'), "no capability"),
    (
        house.undeclared_reads,
        capability("sites") | capability("dns", logic="from groundcontrol.capabilities.sites.kinds import Site"),
        "does not say reads=('sites',)",
    ),
    (
        house.undeclared_reads,
        capability("sites") | capability("dns", logic="from ..sites import kinds"),
        "does not say reads=('sites',)",
    ),
    (
        house.undeclared_reads,
        capability("sites")
        | capability("dns", '("sites",)', reconcile="import groundcontrol.capabilities.sites.logic"),
        "more of 'sites'",
    ),
    (
        house.undeclared_reads,
        capability("sites") | capability("dns", '("sites",)', reconcile="from groundcontrol.capabilities import sites"),
        "more of 'sites'",
    ),
    (house.impure_logic, capability("dns", logic="from datetime import datetime\nx = datetime.now()"), "logic.py:3"),
    (house.impure_logic, capability("dns", logic="import datetime\nx = datetime.date.today()"), "logic.py:3"),
    (house.impure_logic, capability("dns", logic="from uuid import uuid4"), "logic.py:2"),
    (house.impure_logic, capability("dns", logic="import datetime as dt\nclock = dt.datetime.now"), "logic.py:3"),
    (house.impure_logic, capability("dns", logic="from datetime import datetime as D\nx = D.now()"), "logic.py:3"),
    (house.impure_logic, capability("dns", logic="x = open('f')"), "open() is not pure"),
    (house.impure_logic, capability("dns", logic="from .reconcile import f"), "only the kinds"),
    (house.demo_leans_on_something, {f"{SRC}/demo/a.py": "import httpx\n"}, "the demo may not import httpx"),
    (house.demo_leans_on_something, {f"{SRC}/demo/a.py": "from ..kernel import plan\n"}, "groundcontrol.kernel.plan"),
    (house.demo_leans_on_something, {f"{SRC}/demo/observer.py": "from . import world\n"}, "the observer may not"),
    (house.demo_leans_on_something, {f"{SRC}/demo/observer/a.py": "import groundcontrol\n"}, "the observer may not"),
)


@pytest.mark.parametrize(("rule", "files", "expected"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_mistake_is_found(rule: Rule, files: dict[str, str], expected: str, plant: Plant) -> None:
    found = [str(finding) for finding in rule(plant(files))]
    assert any(expected in line for line in found), found


def test_every_rule_has_a_planted_mistake() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_a_tree_without_fault_has_no_findings(plant: Plant) -> None:
    tree = plant(
        capability("sites")
        | capability(
            "dns",
            '("sites",)',
            logic="from groundcontrol.capabilities.sites.kinds import Site\nfrom . import kinds\nx = world.now",
            queries="",
            webhooks="",
        )
        | {
            f"{SRC}/interfaces/cli/a.py": '"""M."""\nprint(1)\n',
            f"{SRC}/demo/__init__.py": '"""M."""\nimport json\nfrom . import b\nfrom .c import d\nprint(1)\n',
            f"{SRC}/demo/observer.py": '"""M."""\nimport urllib.request\n',
            f"{SRC}/kernel/database.py": '"""M."""\n',
        }
    )
    assert [finding for rule in RULES for finding in rule(tree)] == []


class TestLongFiles:
    """The exemption is the interesting part: it must be needed, and it must end."""

    where = f"{SRC}/a.py"
    long = "x = 1\n" * (house.LONGEST_FILE + 1)

    def found(self, tree: Path, *exemptions: house.Exemption) -> list[str]:
        return [str(finding) for finding in house.long_files(tree, exemptions, TODAY)]

    def exemption(self, last_day: date = TODAY) -> house.Exemption:
        return house.Exemption(self.where, "ada", "being split", last_day)

    def test_without_exemption(self, plant: Plant) -> None:
        assert "601 lines" in self.found(plant({self.where: self.long}))[0]

    def test_on_its_last_day_an_exemption_holds(self, plant: Plant) -> None:
        assert self.found(plant({self.where: self.long}), self.exemption()) == []

    def test_the_day_after_it_does_not(self, plant: Plant) -> None:
        ended = self.exemption(TODAY - timedelta(days=1))
        assert "ada's exemption ended on 2025-12-31" in self.found(plant({self.where: self.long}), ended)[0]

    def test_of_a_short_file(self, plant: Plant) -> None:
        assert "remove its exemption" in self.found(plant({self.where: "x = 1\n"}), self.exemption())[0]

    def test_of_no_file(self, plant: Plant) -> None:
        assert "does not exist" in self.found(plant({f"{SRC}/b.py": "x = 1\n"}), self.exemption())[0]
