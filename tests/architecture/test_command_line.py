"""Importing the command line loads no server code, or `ground --help` would take a second instead of a blink."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.architecture import house
from tests.architecture.conftest import Plant

HEAVY = (
    "alembic",
    "duckdb",
    "fastapi",
    "groundcontrol.assembly",
    "groundcontrol.kernel.store",
    "httpx",
    "pydantic",
    "pygit2",
    "rich",
    "sqlalchemy",
    "starlette",
    "uvicorn",
)


def loaded_by(module: str, source: Path) -> set[str]:
    """The names in sys.modules after a fresh Python has imported the module from the given source folder."""
    program = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(source)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, cwd=source
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def heavy(module: str, source: Path) -> list[str]:
    return sorted(loaded_by(module, source).intersection(HEAVY))


def test_the_command_line_loads_nothing_heavy() -> None:
    assert heavy("groundcontrol.interfaces.cli.main", house.REPOSITORY / "src") == []


def test_a_planted_import_is_found(plant: Plant) -> None:
    tree = plant(
        {
            "src/groundcontrol/__init__.py": "",
            "src/groundcontrol/interfaces/__init__.py": "",
            "src/groundcontrol/interfaces/cli/__init__.py": "",
            "src/groundcontrol/interfaces/cli/main.py": "import json\nfrom . import table\n",
            "src/groundcontrol/interfaces/cli/table.py": "import pydantic\n",
        }
    )
    assert heavy("groundcontrol.interfaces.cli.main", tree / "src") == ["pydantic"]
