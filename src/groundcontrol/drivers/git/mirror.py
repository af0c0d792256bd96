"""Reads one local copy by pygit2, and adds commits to it: nothing is checked out, nothing followed.

Trees are read as the bytes they are. A tree of the same name has the same content, so each is looked at once and a
commit that changes one file costs the folders above that file.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pygit2
from pygit2.enums import ObjectType, SortMode

from groundcontrol.kernel.errors import NotFound, TooLarge
from groundcontrol.ports.repository import Commit, Difference, Entry, Offer, Refused, Tree

_NAME = re.compile(r"[0-9a-f]{40}")
_MAX_DEPTH = 64
_REMEMBERED = 200_000
"""Entries of trees kept in memory per repository."""
DAMAGED = "damaged"
"""A file of this name in a copy says that the next fetch makes it anew."""
_FOLDER, _LINK, _SUBMODULE = 0o040000, 0o120000, 0o160000


class Damaged(Exception):
    """The copy lacks something it must have."""


class _Item(NamedTuple):
    name: str
    sha: str
    mode: int
    size: int
    refused: str


class Mirror:
    """One local copy, open for reading. Hold `lock` while calling."""

    def __init__(self, path: Path, max_files: int) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._max_files = max_files
        self._trees: OrderedDict[str, tuple[_Item, ...]] = OrderedDict()
        self._remembered = 0
        try:
            self._repository = pygit2.Repository(str(path))
            self._odb = self._repository.odb
        except pygit2.GitError as error:
            raise Damaged(str(error)) from error

    def resolve(self, ref: str) -> str:
        """The commit a reference names, having seen that it and its tree are there."""
        try:
            target = self._repository.lookup_reference(ref).target
        except (KeyError, ValueError, pygit2.GitError) as error:
            raise Damaged(f"{ref}: {error}") from error
        try:
            self._items(str(self.commit(str(target)).tree_id))
        except NotFound as error:
            raise Damaged(str(error)) from error
        return str(target)

    def commit(self, sha: str) -> pygit2.Commit:
        try:
            found: object = self._repository.get(sha) if _NAME.fullmatch(sha) else None
        except pygit2.GitError as error:
            raise Damaged(f"commit {sha}: {error}") from error
        if not isinstance(found, pygit2.Commit):
            raise NotFound(
                f"no commit {sha[:40]} in the local copy; the history was rewritten, or it was never fetched"
            )
        return found

    def read(self, blob: str) -> bytes:
        if not _NAME.fullmatch(blob):
            raise NotFound(f"{blob[:40]!r} is not the name of a file's content")
        if blob not in self._odb:
            # Names come from trees we have: a missing one may be damage, so the next fetch starts anew.
            (self.path / DAMAGED).touch()
            raise NotFound(f"no file content {blob} in the local copy")
        try:
            kind, data = self._odb.read(blob)
        except (KeyError, ValueError, pygit2.GitError) as error:
            raise Damaged(f"content {blob}: {error}") from error
        if kind != ObjectType.BLOB:
            raise NotFound(f"{blob[:40]} is not a file's content")
        return data

    def tree(self, sha: str, path: str = ".") -> Tree:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        folder = str(self.commit(sha).tree_id)
        for depth, part in enumerate(parts):
            found = next((item for item in self._items(folder) if item.name == part and item.mode == _FOLDER), None)
            if found is None or part == "..":
                raise NotFound(f"no folder {'/'.join(parts[: depth + 1])} in commit {sha[:12]}; set spec.path")
            folder = found.sha
        files: dict[str, Entry] = {}
        refused: list[Refused] = []
        prefix = "".join(f"{part}/" for part in parts)
        for seen, (where, item) in enumerate(self._walk(folder, prefix, len(parts)), 1):
            if seen > self._max_files:
                raise TooLarge(f"more than {self._max_files:,} files and folders below {path}; narrow spec.path")
            if item.refused:
                refused.append(Refused(where, item.refused))
            elif item.mode != _FOLDER:
                files[where] = Entry(item.sha, item.size, item.mode)
        return Tree(files, tuple(refused))

    def diff(self, old: str, new: str, path: str = ".") -> Difference:
        after = self.tree(new, path).files
        self.commit(old)
        try:
            before = self.tree(old, path).files
        except NotFound:
            before = {}
        changed = {where: entry for where, entry in after.items() if before.get(where) != entry}
        return Difference(changed, tuple(where for where in before if where not in after))

    def log(self, sha: str, n: int) -> list[Commit]:
        out: list[Commit] = []
        try:
            for commit in self._repository.walk(self.commit(sha).id, SortMode.TIME):
                if len(out) >= n:
                    break
                message = commit.raw_message.decode("utf-8", "replace").strip()
                author = commit.author.raw_name.decode("utf-8", "replace")
                out.append(
                    Commit(
                        sha=str(commit.id),
                        author=_plain(author)[:100],
                        time=float(commit.commit_time),
                        subject=_plain(message.split("\n", 1)[0])[:200],
                    )
                )
        except (KeyError, pygit2.GitError) as error:
            raise Damaged(f"history of {sha}: {error}") from error
        return out

    def is_ancestor(self, old: str, new: str) -> bool:
        self.commit(new)
        try:
            self.commit(old)
        except NotFound:
            return False
        try:
            return old == new or self._repository.descendant_of(new, old)
        except (KeyError, pygit2.GitError) as error:
            raise Damaged(f"history of {new}: {error}") from error

    def commit_offer(self, offer: Offer) -> str:
        """Make the commit, under no name: only whoever knows it finds it."""
        tree = str(self.commit(offer.base).tree_id)
        try:
            for path, content in offer.files.items():
                tree = self._with_file(tree, path.split("/"), self._odb.write(ObjectType.BLOB, content).raw, path)
            who = pygit2.Signature(offer.author, offer.email, int(offer.time), 0)
            made = self._repository.create_commit(None, who, who, offer.message, tree, [offer.base])
        except (KeyError, ValueError, pygit2.GitError) as error:
            raise Damaged(f"a commit upon {offer.base}: {error}") from error
        return str(made)

    def _with_file(self, tree: str, parts: list[str], blob: bytes, path: str) -> str:
        """The tree with another content of one file. Its bytes are those of the old one but for the one name."""
        kind, data = self._odb.read(tree)
        wanted, last = parts[0].encode(), len(parts) == 1
        for mode, raw, at in _entries(data if kind == ObjectType.TREE else b""):
            if raw != wanted:
                continue
            # A link or submodule is not a file, and nothing is written through it.
            if _why_refused(mode, raw) or (mode & 0o170000 == _FOLDER) is last:
                break
            inner = data[at : at + 20].hex()
            new = blob if last else bytes.fromhex(self._with_file(inner, parts[1:], blob, path))
            return str(self._odb.write(ObjectType.TREE, data[:at] + new + data[at + 20 :]))
        raise NotFound(f"no file {path} in the commit to build upon")

    # ---------------------------------------------------------------------------------------------------- trees

    def _walk(self, folder: str, prefix: str, depth: int) -> Iterator[tuple[str, _Item]]:
        for item in self._items(folder):
            where = prefix + item.name
            if item.mode == _FOLDER and not item.refused:
                if depth >= _MAX_DEPTH:
                    yield where, item._replace(refused=f"folders are nested more than {_MAX_DEPTH} deep")
                    continue
                yield where, item
                yield from self._walk(item.sha, where + "/", depth + 1)
            else:
                yield where, item

    def _items(self, sha: str) -> tuple[_Item, ...]:
        known = self._trees.get(sha)
        if known is not None:
            self._trees.move_to_end(sha)
            return known
        try:
            kind, data = self._odb.read(sha)
            if kind != ObjectType.TREE:
                raise Damaged(f"{sha} is not a tree")
            items = tuple(self._parsed(data))
        except (KeyError, ValueError, pygit2.GitError) as error:
            raise Damaged(f"tree {sha}: {error}") from error
        self._trees[sha] = items
        self._remembered += len(items) + 1
        while self._remembered > _REMEMBERED and len(self._trees) > 1:
            _, dropped = self._trees.popitem(last=False)
            self._remembered -= len(dropped) + 1
        return items

    def _parsed(self, data: bytes) -> Iterator[_Item]:
        for mode, raw, at in _entries(data):
            sha = data[at : at + 20].hex()
            name = raw.decode("utf-8", "replace")
            refused = _why_refused(mode, raw)
            if refused:
                name = _plain(name)
            kind = mode & 0o170000
            if kind == _FOLDER:
                yield _Item(name, sha, _FOLDER, 0, refused)
            else:
                size = 0 if refused else self._odb.read_header(sha)[1]
                yield _Item(name, sha, 0o100755 if mode & 0o100 else 0o100644, size, refused)


def _entries(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Mode, name and where the object's name begins: `<octal mode> <name>\\0<20 bytes>`, one after the other."""
    at = 0
    while at < len(data):
        space = data.index(b" ", at)
        end = data.index(b"\0", space)
        yield int(data[at:space], 8), data[space + 1 : end], end + 1
        at = end + 21


def _why_refused(mode: int, raw: bytes) -> str:
    kind = mode & 0o170000
    if kind == _LINK:
        return "is a symbolic link; links are not followed: put the file itself here"
    if kind == _SUBMODULE:
        return "is a submodule; submodules are not fetched: make it a Source of its own"
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "has a name that is not UTF-8; rename it"
    if not name.isprintable() or name in (".", "..", ".git") or "/" in name:
        return "has a name that cannot be shown; rename it"
    return ""


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in text)
