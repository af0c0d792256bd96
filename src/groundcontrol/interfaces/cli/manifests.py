"""The files named with `-f`, as documents that remember file and line, so that every complaint can say where."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundcontrol.interfaces.cli.client import Doc
from groundcontrol.interfaces.cli.failure import NOT_FOUND, USAGE, Failure, Refused, problem_line
from groundcontrol.interfaces.cli.kinds import Catalogue

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Manifest:
    """One document of one file."""

    value: Doc
    file: str
    line: int
    line_of: Callable[[str], int]

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def read(files: Iterable[str]) -> list[Manifest]:
    """Every document of the files, directories and standard input, in order; `kind: List` is its items."""
    from groundcontrol.kernel.errors import Invalid
    from groundcontrol.kernel.manifest import load_documents

    found, problems = list[Manifest](), list[str]()
    for name, text in _texts(files):
        try:
            documents = load_documents(text, name)
        except Invalid as error:
            problems += [problem_line(p.as_dict()) for p in error.problems] or [f"{name}: {error.message}"]
            continue
        for document in documents:
            manifest = Manifest(document.value, name, document.line, document.line_of)
            if isinstance(document.value, dict):
                found += _items(manifest)
            else:
                problems.append(f"{manifest.place}: expected a mapping with apiVersion and kind")
    if problems:
        raise Failure(
            "the files cannot be read:" if len(problems) > 1 else problems[0], *problems[len(problems) == 1 :]
        )
    if not found:
        raise Failure(f"no documents in {', '.join(files)}", code=USAGE)
    return found


def _items(manifest: Manifest) -> Iterator[Manifest]:
    items = manifest.value.get("items")
    if manifest.value.get("kind") != "List" or not isinstance(items, list):
        yield manifest
        return
    for number, item in enumerate(items):
        if isinstance(item, dict):
            yield Manifest(
                item, manifest.file, manifest.line_of(f"items.{number}"), _below(manifest, f"items.{number}")
            )


def _below(manifest: Manifest, prefix: str) -> Callable[[str], int]:
    return lambda path: manifest.line_of(f"{prefix}.{path}" if path else prefix)


def _texts(files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in files:
        if name == "-":
            yield "standard input", sys.stdin.buffer.read()
            continue
        path = Path(name)
        inside = sorted(_below_directory(path)) if path.is_dir() else [path]
        if not inside:
            raise Failure(f"no {', '.join(SUFFIXES)} files below {name}", code=USAGE)
        for file in inside:
            try:
                yield str(file), file.read_bytes()
            except FileNotFoundError as error:
                raise Failure(f"no file {file}", code=NOT_FOUND) from error
            except OSError as error:
                raise Failure(f"cannot read {file}: {error.strerror}") from error


def _below_directory(top: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, n) for n in names if n.endswith(SUFFIXES) and not n.startswith("."))


def put_namespace(manifests: Iterable[Manifest], kinds: Catalogue, namespace: str) -> None:
    """The namespace of the command goes into documents that name none; one that names another is left alone."""
    if not namespace:
        return
    for manifest in manifests:
        meta = manifest.value.get("metadata")
        word = manifest.value.get("kind")
        if isinstance(meta, dict) and not meta.get("namespace") and isinstance(word, str):
            kind = next((kind for kind in kinds if kind.name == word), None)
            if kind is not None and kind.namespaced:
                meta["namespace"] = namespace


_INDEXED = re.compile(r"(?:body\.)?documents?(?:\.(\d+)|\[(\d+)\])\.?(.*)", re.DOTALL)


def with_lines(refused: Refused, manifests: list[Manifest]) -> Failure:
    """The server's complaints about paths (`documents.3.spec.replicas`), told as complaints about files and lines."""
    if not refused.problems:
        return refused
    lines = [problem_line(_placed(problem, manifests)) for problem in refused.problems]
    title = refused.message if refused.status != 422 else "the server refused the files:"
    if len(lines) == 1 and (refused.status == 422 or refused.problems[0].get("message") == refused.message):
        title, lines = lines[0], []
    return Failure(title, *lines, *refused.remedies, code=refused.code)


def _placed(problem: Any, manifests: list[Manifest]) -> dict[str, Any]:
    path = str(problem.get("path") or "")
    match = _INDEXED.fullmatch(path)
    number = int(match[1] or match[2]) if match else 0 if len(manifests) == 1 else -1
    if not 0 <= number < len(manifests):
        return dict(problem)
    manifest, inner = manifests[number], match[3] if match else path
    message, theirs = str(problem.get("message", "")), str(problem.get("file") or "")
    if theirs and theirs not in message:  # the file of the Source that sets the field; ours stands in front
        line = f":{problem['line']}" if problem.get("line") else ""
        message = f"{message} [{theirs}{line}]"
    return {**problem, "message": message, "path": inner, "file": manifest.file, "line": manifest.line_of(inner)}
