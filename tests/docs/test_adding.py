"""Adding a kind and a driver is as the guides say: they are followed in a copy, and the files touched are counted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.conftest import Place, free_port, wait_until_ready
from tests.docs.markdown import GUIDES, REPOSITORY, Block, blocks

KIND, DRIVER = "adding-a-kind.md", "adding-a-driver.md"
BIG = """\
apiVersion: ground/v1
kind: Namespace
metadata: {name: alpha}
spec: {group: a}
---
apiVersion: ground/v1
kind: Service
metadata: {name: big, namespace: alpha}
spec: {command: [run], replicas: 20, resources: {cores: 2}, placement: {sites: [stage]}}
"""
"""More than this machine has: only a site that pretends can run it."""


class Copy:
    """A copy of the tree in which a guide is followed."""

    def __init__(self, root: Path, guide: str) -> None:
        self.root, self.guide = root, guide
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "dist")
        for name in ("src", "tests"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
        shutil.copy(REPOSITORY / "pyproject.toml", root)
        self.touched: set[str] = set()
        for block in blocks(GUIDES / guide):
            verb, _, path = block.mark.partition(": ")
            if verb == "file":
                self._write(path, block)
            elif verb == "edit":
                self._edit(path, block)

    def _write(self, path: str, block: Block) -> None:
        target = self.root / path
        assert not target.exists(), f"{block}: {path} is there already"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")
        self.touched.add(path)

    def _edit(self, path: str, block: Block) -> None:
        lines = block.text.splitlines()
        old = "\n".join(line[1:] for line in lines if line[:1] in "- ")
        new = "\n".join(line[1:] for line in lines if line[:1] in "+ ")
        text = (self.root / path).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{block}: {old!r} stands {text.count(old)} times in {path}"
        (self.root / path).write_text(text.replace(old, new), encoding="utf-8")
        self.touched.add(path)

    @property
    def sources(self) -> set[str]:
        return {path for path in self.touched if path.startswith("src/")}

    def python(self, *words: str, timeout: float = 110) -> str:
        """Run Python on the copy; what it said, once it ended well."""
        environ = os.environ | {"PYTHONPATH": str(self.root / "src")}
        done = subprocess.run(
            [sys.executable, *words], cwd=self.root, env=environ, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def tests(self, *words: str) -> None:
        self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(self.root), *words)


@pytest.fixture(scope="module", params=[KIND, DRIVER])
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"), request.param)


def only(copy: Copy, guide: str) -> None:
    if copy.guide != guide:
        pytest.skip(f"is about {guide}")


def test_the_files_are_counted(copy: Copy) -> None:
    """What one more thing costs decides whether this is a good house."""
    assert len(copy.sources) == {KIND: 6, DRIVER: 3}[copy.guide]
    assert not [path for path in copy.sources if "/interfaces/" in path or "/kernel/" in path]
    words = {KIND: "Six files", DRIVER: "three files"}[copy.guide]
    assert words in (GUIDES / copy.guide).read_text()
    row = {KIND: r"a kind with its capability \| 6 \| 0", DRIVER: r"a driver for a port that exists \| 3 \| 0"}
    assert re.search(row[copy.guide], (REPOSITORY / "ARCHITECTURE.md").read_text())


def test_the_house_rules_and_contracts_hold(copy: Copy) -> None:
    # Formatting the list is what the guide leaves to `make format`.
    code = [path for path in sorted(copy.touched) if path.endswith(".py") and "assembly.py" not in path]
    copy.python("-m", "ruff", "check", *code)
    copy.python("-m", "ruff", "format", "--check", *[p for p in code if "contracts" not in p])
    copy.tests("tests/architecture/test_house.py", "-k", "test_the_sources_keep")


def test_types_are_right(copy: Copy) -> None:
    cache = REPOSITORY / ".mypy_cache"
    if not cache.exists():
        pytest.skip("there is no cache of mypy's to start from; `make lint` makes one")
    shutil.copytree(cache, copy.root / ".mypy_cache", dirs_exist_ok=True)
    copy.python("-m", "mypy", *[path for path in sorted(copy.sources) if path.endswith(".py")])


def test_the_tests_of_the_guide_pass(copy: Copy) -> None:
    if copy.guide == KIND:
        copy.tests("tests/capabilities/windows")
    else:
        copy.tests("tests/contracts/test_processes.py", "-k", "pretend")


def test_the_reference_has_the_kind(copy: Copy) -> None:
    only(copy, KIND)
    copy.python("-m", "groundcontrol.programs.admin", "reference", "--directory", "reference")
    page = (copy.root / "reference" / "kinds" / "window.md").read_text()
    assert "| `spec.begins` | text | **required** | When it begins, RFC 3339. |" in page
    assert "`NoSite`" in page
    assert "begins: '2030-01-07T08:00:00Z'" in page, "the example is made from the fields"
    described = (copy.root / "reference" / "openapi.json").read_text()
    assert "/api/v1/windows/{name}" in described
    assert "WindowInput" in described


@pytest.fixture
def server(copy: Copy) -> Iterator[Place]:
    """A server of the copy, with a site `here`."""
    root = Path(tempfile.mkdtemp(prefix="ground-copy-", dir="/var/tmp"))
    root.chmod(0o711)
    place = Place(root, free_port())
    place.environ["PYTHONPATH"] = str(copy.root / "src")
    assert place.run("ground init control").returncode == 0
    config = root / "control" / "ground.yaml"
    config.write_text(place.typed(config.read_text()))
    log = root / "server.log"
    command = [sys.executable, "-m", "groundcontrol.programs.serve", "--config", str(config)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=root, env=place.environ, stdout=out, stderr=out)
    try:
        wait_until_ready(place.address, process, log)
        login = f"ground login http://{place.address} --user admin --password-stdin < control/admin.password"
        assert place.run(login).returncode == 0
        site = "apiVersion: ground/v1\nkind: Site\nmetadata: {name: here}\nspec: {driver: local}\n"
        place.save("site.yaml", site)
        assert place.run("ground apply -f site.yaml").returncode == 0
        yield place
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(root, ignore_errors=True)


def test_what_the_guide_shows_is_there(copy: Copy, server: Place) -> None:
    manifest = next(b for b in blocks(GUIDES / copy.guide) if b.language == "yaml")
    server.save("new.yaml", manifest.text)
    waits = {KIND: "window/january", DRIVER: "site/stage"}[copy.guide]
    shown = next(b for b in blocks(GUIDES / copy.guide) if b.mark.startswith("with the "))
    said = ""
    for command in ["ground apply -f new.yaml", f"ground wait {waits} --for=condition=Ready", *shown.commands]:
        done = server.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        said += done.stdout
    assert {KIND: "Planned", DRIVER: "64"}[copy.guide] in said
    if copy.guide == DRIVER:
        server.save("big.yaml", BIG)
        wait = "ground wait service/big -n alpha --for=condition=Ready --timeout 30s"
        for command in ("ground apply -f big.yaml", wait):
            done = server.run(command)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
