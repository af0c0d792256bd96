"""What is installed is what is declared: requirements agree and are locked, and the wheel carries every file."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.architecture import house

REQUIREMENTS = house.REPOSITORY / "requirements"
LOCKS = ("runtime.lock", "openstack.lock", "dev.lock", "uv.txt")
TESTBED = sorted((house.REPOSITORY / "testbed").rglob("*.lock"))

ADDRESS = re.compile(r"[a-z+]+://|--(extra-)?index-url|--find-links|^\s*-f\s|(?<![\w-])/\w+/\w", re.MULTILINE)
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==\S+.*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def listed(name: str) -> list[str]:
    lines = (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith(("#", "-"))]


def addresses(text: str) -> list[str]:
    """Registry addresses and paths of a machine in the text of a lock file."""
    return [
        match.group()
        for match in ADDRESS.finditer(text.replace("-r requirements/", "").replace("-c requirements/", ""))
    ]


def unpinned(text: str) -> set[str]:
    """Names that stand in a lock file without an exact version and a hash."""
    names = {re.split(r"[ =<>;\[]", line)[0] for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)}
    return names - {match.group(1) for match in PINNED.finditer(text)}


def test_the_runtime_requirements_are_the_declared_dependencies() -> None:
    project = tomllib.loads((house.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert listed("runtime.in") == sorted(project["dependencies"])


def test_the_requirements_of_an_extra_are_the_declared_ones() -> None:
    project = tomllib.loads((house.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, wanted in project["optional-dependencies"].items():
        assert listed(f"{extra}.in") == sorted(wanted)


@pytest.mark.parametrize("path", [*(REQUIREMENTS / name for name in LOCKS), *TESTBED], ids=lambda p: p.name)
def test_a_lock_file_names_no_registry(path: Path) -> None:
    assert addresses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [*(REQUIREMENTS / name for name in LOCKS), *TESTBED], ids=lambda p: p.name)
def test_everything_locked_has_a_version_and_hashes(path: Path) -> None:
    assert unpinned(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("source", "lock"),
    [
        *(("runtime.in", "runtime.lock"), ("runtime.in", "dev.lock"), ("dev.in", "dev.lock")),
        *(("openstack.in", "openstack.lock"), ("openstack.in", "dev.lock")),
    ],
)
def test_every_requirement_is_locked(source: str, lock: str) -> None:
    locked = {match.group(1).lower() for match in PINNED.finditer((REQUIREMENTS / lock).read_text(encoding="utf-8"))}
    assert {re.split(r"[<>=\[ ]", line)[0].lower() for line in listed(source)} <= locked


@pytest.mark.parametrize(
    "line", ["--index-url https://registry.example/simple", "-f /srv/wheels", "a @ file:///srv/a.whl"]
)
def test_a_planted_address_is_found(line: str) -> None:
    assert addresses(f"a==1 \\\n    --hash=sha256:{'0' * 64}\n{line}\n")


@pytest.mark.parametrize("line", ["b==1", "b>=1", "b"])
def test_a_planted_requirement_without_hash_is_found(line: str) -> None:
    assert unpinned(f"a==1 \\\n    --hash=sha256:{'0' * 64}\n    # via c\n{line}\n") == {"b"}


def test_the_wheel_carries_what_is_not_python(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copytree(house.REPOSITORY / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(house.REPOSITORY / name, tree)
    planted = ("demo/world.yaml", "kernel/migrations/script.py.mako", "interfaces/web/dist/index.html", "py.typed")
    for name in planted:
        path = tree / "src" / house.PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {f"{house.PACKAGE}/{name}" for name in planted} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
