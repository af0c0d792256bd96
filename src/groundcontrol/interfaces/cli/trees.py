"""The YAML files of a git working tree and of a branch of it, read the way a Source on the server would see them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from groundcontrol.interfaces.cli.failure import USAGE, Failure

SUFFIXES = (".yaml", ".yml")
LARGEST = 1 << 20
"""Bytes of one file; larger ones are refused here rather than after the upload."""


def working_tree(directory: str) -> dict[str, str]:
    """Path below `directory` to text: what git tracks or would track, as it is on disk now.

    Symbolic links are left out, as they may point outside the tree; so is what was deleted and not yet committed."""
    top = Path(directory)
    inside = _git(directory, "rev-parse", "--is-inside-work-tree", quiet=True)
    if inside is None:
        names = sorted(str(path.relative_to(top)) for path in top.rglob("*") if ".git" not in path.parts)
    else:
        listed = _git(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or b""
        names = sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})
    found: dict[str, str] = {}
    for name in names:
        path = top / name
        if name.endswith(SUFFIXES) and path.is_file() and not _through_link(top, path):
            found[name] = _text(path.read_bytes(), str(path))
    return found


def committed(directory: str, revision: str) -> dict[str, str]:
    """The same of a branch or commit."""
    if revision.startswith("-"):
        raise Failure(f"{revision!r} is not a branch", code=USAGE)
    commit = _git(
        directory, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", quiet=True
    )
    if commit is None:
        raise Failure(f"no branch or commit {revision!r} in {directory}", "`git fetch` it first?", code=USAGE)
    listing = _git(directory, "ls-tree", "-r", "-z", commit.decode().strip()) or b""
    entries = []
    for entry in listing.split(b"\0"):
        head, _, name = entry.partition(b"\t")
        parts = head.split()
        if len(parts) == 3 and parts[0].startswith(b"100") and os.fsdecode(name).endswith(SUFFIXES):
            entries.append((os.fsdecode(name), parts[2]))
    blobs = _git(directory, "cat-file", "--batch", stdin=b"".join(sha + b"\n" for _, sha in entries)) or b""
    found, at = dict[str, str](), 0
    for path, _ in entries:
        end = blobs.index(b"\n", at)
        size = int(blobs[at:end].split()[2])
        found[path] = _text(blobs[end + 1 : end + 1 + size], f"{revision}:{path}")
        at = end + 1 + size + 1
    return found


def _through_link(top: Path, path: Path) -> bool:
    return any(
        (top / Path(*path.relative_to(top).parts[: n + 1])).is_symlink()
        for n in range(len(path.relative_to(top).parts))
    )


def _text(raw: bytes, name: str) -> str:
    if len(raw) > LARGEST:
        raise Failure(f"{name} has {len(raw):,} bytes; {LARGEST:,} are allowed", "split it")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Failure(f"{name}:{line}: not UTF-8", "save it as UTF-8") from error


def _git(directory: str, *words: str, stdin: bytes = b"", quiet: bool = False) -> bytes | None:
    """Output of git in the directory; None when it fails and that is an answer. No hook or monitor of it is run."""
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", directory, *words]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    except FileNotFoundError as error:
        if quiet and words[0] == "rev-parse":
            return None
        raise Failure("git is not installed") from error
    if done.returncode:
        if quiet:
            return None
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [""]
        raise Failure(f"git {words[0]} in {directory} failed: {lines[-1]}")
    return done.stdout
