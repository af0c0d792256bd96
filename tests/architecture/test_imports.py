"""The import contracts of pyproject.toml hold, and each breaks when a violation is planted in a copy of the sources."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture import house

SETTINGS = house.REPOSITORY / "pyproject.toml"
LINT = Path(sys.executable).with_name("lint-imports")

# contract, file to write, its text
PLANTED = (
    ("layers", "kernel/planted.py", "import groundcontrol.ports.planted_port"),
    ("layers", "kernel/planted.py", "from groundcontrol.drivers import planted_driver"),
    ("layers", "kernel/planted.py", "def f():\n    import groundcontrol.capabilities"),
    ("layers", "ports/planted.py", "import groundcontrol.interfaces.api"),
    ("layers", "drivers/planted.py", "import groundcontrol.capabilities"),
    ("layers", "capabilities/planted/__init__.py", "import groundcontrol.drivers"),
    ("layers", "interfaces/api/planted.py", "import groundcontrol.capabilities"),
    ("layers", "interfaces/api/planted.py", "import groundcontrol.assembly"),
    ("layers", "planted/__init__.py", ""),
    ("drivers", "drivers/planted_driver/__init__.py", "import groundcontrol.drivers.planted_other"),
    ("logic", "capabilities/planted/logic.py", "import os.path"),
    ("logic", "capabilities/planted/logic.py", "from time import sleep"),
    ("logic", "capabilities/planted/logic.py", "def f():\n    import random"),
    ("logic", "capabilities/planted/logic.py", "import sqlalchemy"),
    ("logic", "capabilities/planted/logic.py", "from pathlib import Path"),
    ("demo", "demo/planted.py", "import groundcontrol.interfaces.cli"),
    ("demo", "demo/planted.py", "import groundcontrol.kernel"),
    ("demo-unused", "interfaces/cli/planted.py", "def f():\n    import groundcontrol.demo"),
    ("demo-unused", "kernel/planted.py", "from groundcontrol import demo"),
)

SCAFFOLD = {
    "ports/planted_port.py": "",
    "drivers/planted_driver/__init__.py": "",
    "drivers/planted_other/__init__.py": "",
    "capabilities/planted/__init__.py": "",
    "capabilities/planted/logic.py": "",
}


def lint(source: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    """Run lint-imports over the package found in `source`."""
    arguments = [str(LINT), "--no-logo", "--no-cache", "--config", str(SETTINGS)]
    for contract in contracts:
        arguments += ["--contract", contract]
    environment = os.environ | {"PYTHONPATH": str(source), "COLUMNS": "200"}
    return subprocess.run(arguments, cwd=source, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of src/ with one empty port, two drivers and a capability added, and an assembly if there is none."""
    source = tmp_path / "src"
    shutil.copytree(house.REPOSITORY / "src", source, ignore=shutil.ignore_patterns("__pycache__", "dist"))
    for name, text in SCAFFOLD.items():
        write(source, name, text)
    if not (source / house.PACKAGE / "assembly.py").exists():
        write(source, "assembly.py", "")
    return source


def write(source: Path, name: str, text: str) -> None:
    path = source / house.PACKAGE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def test_the_contracts_hold() -> None:
    result = lint(house.REPOSITORY / "src")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_contract_has_a_planted_violation() -> None:
    contracts = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    assert {contract["id"] for contract in contracts} == {contract for contract, _, _ in PLANTED}


@pytest.mark.parametrize(("contract", "name", "text"), PLANTED)
def test_a_planted_violation_breaks_the_contract(contract: str, name: str, text: str, copy: Path) -> None:
    write(copy, name, text)
    result = lint(copy, contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 broken" in result.stdout, result.stdout + result.stderr
    assert "planted" in result.stdout, result.stdout


def test_only_programs_put_the_program_together(copy: Path) -> None:
    write(copy, "programs/planted.py", "from groundcontrol import assembly")
    assert lint(copy, "layers").returncode == 0
    write(copy, "interfaces/cli/planted.py", "def serve():\n    from groundcontrol import assembly")
    assert lint(copy, "layers").returncode != 0
