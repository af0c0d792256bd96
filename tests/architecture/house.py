"""The house rules that only reading the sources can check; each is a function from a tree to what it found there.

A tree is a directory that looks like the repository: `src/groundcontrol/…`, `tests/…`, `bench/…`, `testbed/…`, any of
them may be missing. That makes every rule provable: give it a small tree with the mistake in it and see the mistake
found.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "groundcontrol"

LONGEST_FILE = 600
LONGEST_FUNCTION = 80

# Words that say nothing about what is inside. A module may not be called so, nor end so (`dns_utils`).
EMPTY_NAMES = frozenset({"base", "common", "helper", "helpers", "manager", "managers", "util", "utils"})

# What every capability folder holds, so that whoever knows one knows them all.
CAPABILITY_FILES = ("__init__.py", "README.md", "kinds.py", "logic.py", "reconcile.py")
# What one may hold besides, and why. A new name is added here, with its reason, or it does not exist.
CAPABILITY_EXTRAS = {
    "acting.py": "its actions, where they are more than one transaction",
    "operations.py": "what its actions are and what is known of them; pure",
    "queries.py": "questions to the ledger",
    "procedures.py": "Runs the capability brings",
    "proposals.py": "changes it offers for review instead of making them",
    "view.py": "what is known of one resource in one turn, before anything is decided",
    "webhooks.py": "what other programs tell it, turned into facts",
    "pages": "its pages of the web application",
}

# In logic.py these are clocks, dice or I/O whatever they are imported from.
IMPURE_METHODS = frozenset({"now", "utcnow", "today", "uuid1", "uuid4", "uuid7"})
IMPURE_BUILTINS = frozenset({"open", "input", "print", "exec", "eval", "__import__"})


@dataclass(frozen=True, order=True)
class Finding:
    """One place where a rule is broken; `str()` is what a person reads."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Exemption:
    """A file that may be too long for a while: who shortens it, why it is long, and the last day of the exemption."""

    path: str
    owner: str
    reason: str
    last_day: date


@dataclass(frozen=True)
class Imported:
    """One imported name in dotted form: `from a.b import c` is `a.b.c`, whether c is a module or something in one."""

    dotted: str
    line: int


# ------------------------------------------------------------------------------------------------ reading a tree


def modules(tree: Path, *places: str) -> Iterator[Path]:
    """Python files below the given places of the tree, sorted."""
    for place in places or ("src", "tests", "bench", "testbed"):
        for path in sorted((tree / place).rglob("*.py")):
            if "node_modules" not in path.parts:
                yield path


@cache
def _parse(path: Path, _changed: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def parse(path: Path) -> ast.Module:
    return _parse(path, path.stat().st_mtime_ns)


def imports(path: Path, tree: Path) -> Iterator[Imported]:
    """Everything a module imports, relative imports resolved, wherever in the module the statement stands."""
    parts = path.relative_to(tree / "src").with_suffix("").parts
    package = parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Imported(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*start, *((node.module,) if node.module else ())))
            for alias in node.names:
                yield Imported(f"{origin}.{alias.name}", node.lineno)


def _where(path: Path, tree: Path) -> str:
    return path.relative_to(tree).as_posix()


# ------------------------------------------------------------------------------------------------ names and sizes


def empty_names(tree: Path) -> list[Finding]:
    """No module or package is called utils, helpers, common, base or manager."""
    found = {
        Finding(_where(place, tree), 1, f"the name {place.stem!r} does not say what is inside")
        for path in modules(tree)
        for place in (path, *path.parents)
        if place != tree and tree in place.parents and place.stem.split("_")[-1].lower() in EMPTY_NAMES
    }
    return sorted(found)


def no_opening_sentence(tree: Path) -> list[Finding]:
    """Every module opens with a docstring that says why it exists."""
    return [
        Finding(_where(path, tree), 1, "the module does not open with a sentence that says why it exists")
        for path in modules(tree)
        if not (ast.get_docstring(parse(path)) or "").strip()
    ]


def long_files(tree: Path, exemptions: tuple[Exemption, ...], today: date) -> list[Finding]:
    """No file is longer than LONGEST_FILE lines, but for exemptions that are needed and not yet over."""
    found = []
    pending = {exemption.path: exemption for exemption in exemptions}
    for path in modules(tree):
        where = _where(path, tree)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        exemption = pending.pop(where, None)
        if lines <= LONGEST_FILE:
            if exemption:
                found.append(Finding(where, 1, "is short enough now; remove its exemption"))
        elif exemption is None:
            found.append(Finding(where, lines, f"has {lines} lines; {LONGEST_FILE} are allowed: split it by meaning"))
        elif today > exemption.last_day:
            found.append(
                Finding(
                    where, lines, f"{exemption.owner}'s exemption ended on {exemption.last_day} ({exemption.reason})"
                )
            )
    found += [Finding(where, 1, "has an exemption and does not exist") for where in pending]
    return sorted(found)


def long_functions(tree: Path) -> list[Finding]:
    """No function is longer than LONGEST_FUNCTION lines, its decorators and docstring included."""
    found = []
    for path in modules(tree):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                lines = (node.end_lineno or node.lineno) - first + 1
                if lines > LONGEST_FUNCTION:
                    what = f"{node.name} has {lines} lines; {LONGEST_FUNCTION} are allowed"
                    found.append(Finding(_where(path, tree), node.lineno, what))
    return found


# Who may print: what people call on a terminal, and programs that stand alone.
PRINTING = (("interfaces", "cli"), ("programs",), ("demo",), ("samples",))


def stray_prints(tree: Path) -> list[Finding]:
    """Only what people call on a terminal prints."""
    found = []
    for path in modules(tree, "src"):
        inside = path.relative_to(tree / "src" / PACKAGE).parts
        if any(inside[: len(place)] == place for place in PRINTING):
            continue
        found += [
            Finding(_where(path, tree), node.lineno, "print: raise, return, log or record it instead")
            for node in ast.walk(parse(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    return found


# ------------------------------------------------------------------------------------------------ capabilities


def capability_folders(tree: Path) -> list[Path]:
    root = tree / "src" / PACKAGE / "capabilities"
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "_.")


def capability_shapes(tree: Path) -> list[Finding]:
    """Every capability is a folder with the same file names; what is extra stands in CAPABILITY_EXTRAS."""
    root = tree / "src" / PACKAGE / "capabilities"
    found = [
        Finding(_where(path, tree), 1, "a capability is a folder, not a module")
        for path in sorted(root.glob("*.py"))
        if path.name != "__init__.py"
    ]
    for folder in capability_folders(tree):
        present = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
        where = _where(folder, tree)
        found += [Finding(where, 1, f"{name} is missing") for name in CAPABILITY_FILES if name not in present]
        found += [
            Finding(f"{where}/{name}", 1, "is not a name capabilities have; see CAPABILITY_EXTRAS")
            for name in sorted(present.difference(CAPABILITY_FILES, CAPABILITY_EXTRAS))
        ]
    return found


def declared_reads(folder: Path) -> frozenset[str] | None:
    """The `reads` of `CAPABILITY = Capability(…)` in the folder's `__init__.py`; None when there is no manifest."""
    manifest = folder / "__init__.py"
    if not manifest.is_file():
        return None
    for node in parse(manifest).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == "CAPABILITY" for target in targets)
        if named and isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            for keyword in node.value.keywords:
                if keyword.arg == "reads":
                    return frozenset(ast.literal_eval(keyword.value))
            return frozenset()
    return None


def undeclared_reads(tree: Path) -> list[Finding]:
    """A capability imports of another its kinds only, and only when its own manifest says that it reads it."""
    found = []
    folders = capability_folders(tree)
    names = {folder.name for folder in folders}
    prefix = f"{PACKAGE}.capabilities."
    for folder in folders:
        reads = declared_reads(folder)
        if reads is None:
            found.append(Finding(f"{_where(folder, tree)}/__init__.py", 1, "no `CAPABILITY = Capability(…)` here"))
            reads = frozenset()
        found += [
            Finding(f"{_where(folder, tree)}/__init__.py", 1, f"reads {name!r}, which is no capability")
            for name in sorted(reads - names)
        ]
        for path in sorted(folder.rglob("*.py")):
            for imported in imports(path, tree):
                if not imported.dotted.startswith(prefix):
                    continue
                other, *rest = imported.dotted.removeprefix(prefix).split(".")
                if other == folder.name or other not in names:
                    continue
                if rest[:1] != ["kinds"]:
                    found.append(Finding(_where(path, tree), imported.line, f"takes more of {other!r} than its kinds"))
                elif other not in reads:
                    what = f"imports the kinds of {other!r} and the manifest does not say reads=({other!r},)"
                    found.append(Finding(_where(path, tree), imported.line, what))
    return found


def impure_logic(tree: Path) -> list[Finding]:
    """logic.py calls no clock, dice or I/O by any name and takes of its own capability only the kinds.

    The modules it may not import stand in the import contract `logic`; this finds what hides behind allowed ones.
    """
    found = []
    for folder in capability_folders(tree):
        path = folder / "logic.py"
        if not path.is_file():
            continue
        where = _where(path, tree)
        own = f"{PACKAGE}.capabilities.{folder.name}."
        for imported in imports(path, tree):
            if imported.dotted.startswith(own) and imported.dotted.removeprefix(own).split(".")[0] != "kinds":
                found.append(Finding(where, imported.line, "logic takes of its own capability only the kinds"))
            if imported.dotted.rsplit(".", 1)[-1] in IMPURE_METHODS:
                found.append(Finding(where, imported.line, f"{imported.dotted} is a clock or dice"))
        sources = _sources(path)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and node.attr in IMPURE_METHODS and _root(node.value) in sources:
                found.append(Finding(where, node.lineno, f".{node.attr} is a clock or dice: pass the value in"))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS:
                found.append(Finding(where, node.lineno, f"{node.func.id}() is not pure"))
    return found


def _sources(path: Path) -> set[str]:
    """What the module calls datetime, date or uuid. `self.now` and `world.now` are values passed in, no clocks."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = node.module if isinstance(node, ast.ImportFrom) else None
            for alias in node.names:
                if (origin or alias.name).split(".")[0] in {"datetime", "uuid"}:
                    found.add(alias.asname or alias.name)
    return found


def _root(node: ast.expr) -> str:
    """`a` of `a`, `a.b` and `a.b.c`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


# ------------------------------------------------------------------------------------------------ the demo


def demo_leans_on_something(tree: Path) -> list[Finding]:
    """The demo imports the standard library and itself; its observer not even the rest of the demo."""
    found = []
    demo = f"{PACKAGE}.demo"
    for path in modules(tree, f"src/{PACKAGE}/demo"):
        first = path.relative_to(tree / "src" / PACKAGE / "demo").parts[0]
        own = {"observer.py": None, "observer": f"{demo}.observer"}.get(first, demo)
        who = "the observer" if first.startswith("observer") else "the demo"
        for imported in imports(path, tree):
            itself = own is not None and f"{imported.dotted}.".startswith(f"{own}.")
            if not itself and imported.dotted.split(".")[0] not in sys.stdlib_module_names:
                found.append(Finding(_where(path, tree), imported.line, f"{who} may not import {imported.dotted}"))
    return found
