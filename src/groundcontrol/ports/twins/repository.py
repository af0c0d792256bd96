"""Git servers in memory, for tests of whatever uses the `Repositories` port; it passes the port's contract tests.

The calls of the port see what `fetch` brought; the other methods are the server's side: what people push, rewrite and
delete. `fetches`, `reads` and `pushes` count the calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, Invalid, NotFound, OutcomeUnknown
from groundcontrol.ports.repository import (
    Commit,
    Credentials,
    Difference,
    Entry,
    Offer,
    Refused,
    Signature,
    Tree,
    Trust,
)

_LINK, _SUBMODULE = 0o120000, 0o160000
File = tuple[bytes, int]
"""Content and mode."""


class _Version:
    """A commit: all its files, and what it was built upon."""

    def __init__(self, files: Mapping[str, File], parent: str, about: Commit) -> None:
        self.files = dict(files)
        self.parent = parent
        self.about = about
        self.signer = ""


class TwinRepositories:
    """Both sides of a git server, in memory."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        """Url to branch to commit, as the server has it. A url not in here is a repository that is gone."""
        self.passwords: dict[str, str] = {}
        """Url to the password it asks for."""
        self.broken: dict[str, GroundError] = {}
        """Url to what fetching it raises."""
        self.fetches: list[tuple[str, str]] = []
        self.reads: list[str] = []
        self.pushes: list[tuple[str, str]] = []
        self.protected: set[str] = set()
        """Urls where these credentials may read, and not push."""
        self.silent: Literal["", "lost", "late"] = ""
        """The next push is not answered: it never arrived (`lost`), or it arrives and nobody hears of it (`late`)."""
        self._versions: dict[str, _Version] = {}
        self._blobs: dict[str, bytes] = {}
        self._here: dict[str, set[str]] = {}
        self._clock = 1_700_000_000.0

    # ---------------------------------------------------------------------------------------- the server's side

    def push(
        self,
        url: str,
        files: Mapping[str, str | bytes],
        *,
        branch: str = "main",
        remove: Iterable[str] = (),
        rewrite: bool = False,
        subject: str = "change",
        author: str = "Ada",
        signer: str = "",
    ) -> str:
        """Commit changed files on a branch, or with `rewrite` a history that knows nothing of the one before."""
        heads = self.branches.setdefault(url, {})
        parent = "" if rewrite else heads.get(branch, "")
        contents = dict(self._versions[parent].files) if parent else {}
        for path in remove:
            del contents[path]
        for path, text in files.items():
            contents[path] = (text.encode() if isinstance(text, str) else text, 0o100644)
        return self._commit(url, branch, contents, parent, subject, author, signer)

    def special(self, url: str, path: str, mode: int, *, branch: str = "main") -> str:
        """Commit a symbolic link (0o120000) or a submodule (0o160000)."""
        parent = self.branches.setdefault(url, {}).get(branch, "")
        contents = dict(self._versions[parent].files) if parent else {}
        return self._commit(url, branch, {**contents, path: (b"../elsewhere", mode)}, parent, "special", "Ada", "")

    def _commit(
        self, url: str, branch: str, files: Mapping[str, File], parent: str, subject: str, author: str, signer: str
    ) -> str:
        self._clock += 1
        sha = hashlib.sha1(f"{url} {parent} {self._clock} {len(self._versions)}".encode()).hexdigest()
        about = Commit(sha=sha, author=author, time=self._clock, subject=subject.split("\n", 1)[0])
        self._versions[sha] = _Version(files, parent, about)
        self._versions[sha].signer = signer
        self.branches[url][branch] = sha
        return sha

    # ------------------------------------------------------------------------------------------------ the port

    def fetch(self, url: str, branch: str, credentials: Credentials | None = None) -> str:
        self._may_be(url, branch)
        self.fetches.append((url, branch))
        self._reach(url, credentials)
        if branch not in self.branches[url]:
            raise NotFound(f"repository {url} has no branch {branch}")
        head = at = self.branches[url][branch]
        here = self._here.setdefault(url, set())
        while at and at not in here:
            here.add(at)
            at = self._versions[at].parent
        return head

    def _may_be(self, url: str, branch: str) -> None:
        if "://" not in url or url.startswith("-"):
            raise Invalid(f"repository {url!r} is not a url")
        if not branch or branch.startswith("-") or " " in branch or ".." in branch:
            raise Invalid(f"{branch!r} is not a branch name")

    def _reach(self, url: str, credentials: Credentials | None) -> None:
        if url in self.broken:
            raise self.broken[url]
        if url not in self.branches:
            raise NotFound(f"repository {url} is not there, or these credentials may not see it")
        if url in self.passwords and (credentials is None or credentials.password != self.passwords[url]):
            raise Forbidden(f"repository {url} refused the credentials")

    def tree(self, url: str, commit: str, path: str = ".") -> Tree:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        prefix = "".join(f"{part}/" for part in parts)
        found = {p: f for p, f in self._version(url, commit).files.items() if p.startswith(prefix)}
        if prefix and not found:
            raise NotFound(f"no folder {path} in commit {commit[:12]}")
        files: dict[str, Entry] = {}
        refused: list[Refused] = []
        for where, (content, mode) in sorted(found.items()):
            if mode in (_LINK, _SUBMODULE):
                refused.append(Refused(where, "is a symbolic link" if mode == _LINK else "is a submodule"))
            else:
                files[where] = Entry(self._blob(content), len(content), mode)
        return Tree(files, tuple(refused))

    def _blob(self, content: bytes) -> str:
        sha = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self._blobs[sha] = content
        return sha

    def read(self, url: str, blob: str) -> bytes:
        self._known(url)
        if blob not in self._blobs:
            raise NotFound(f"no file content {blob[:40]}")
        self.reads.append(blob)
        return self._blobs[blob]

    def diff(self, url: str, old: str, new: str, path: str = ".") -> Difference:
        after = self.tree(url, new, path).files
        self._version(url, old)
        try:
            before = self.tree(url, old, path).files
        except NotFound:
            before = {}
        changed = {where: entry for where, entry in after.items() if before.get(where) != entry}
        return Difference(changed, tuple(where for where in before if where not in after))

    def log(self, url: str, commit: str, n: int) -> list[Commit]:
        out: list[Commit] = []
        self._version(url, commit)
        while commit and len(out) < n:
            out.append(self._versions[commit].about)
            commit = self._versions[commit].parent
        return out

    def is_ancestor(self, url: str, old: str, new: str) -> bool:
        self._version(url, new)
        at = new
        while at:
            if at == old:
                return True
            at = self._versions[at].parent
        return False

    def verify(self, url: str, commit: str, trust: Trust) -> Signature:
        """`trust.signers` lists the principals that `push(signer=…)` may name, one per line."""
        signer = self._version(url, commit).signer
        if not signer:
            return Signature(good=False, reason=f"it carries no {trust.method} signature")
        if signer not in (line.split(" ")[0] for line in trust.signers.splitlines()):
            return Signature(good=False, reason="it is signed by somebody who is not among spec.verify.allowedSigners")
        return Signature(good=True, signer=signer)

    def heads(self, url: str, prefix: str, credentials: Credentials | None = None) -> Mapping[str, str]:
        self._reach(url, credentials)
        return {name: sha for name, sha in sorted(self.branches[url].items()) if name.startswith(prefix)}

    def propose(self, url: str, offer: Offer, credentials: Credentials | None = None) -> str:
        self._may_be(url, offer.branch)
        files = dict(self._version(url, offer.base).files)
        for path, content in offer.files.items():
            if path not in files or files[path][1] in (_LINK, _SUBMODULE):
                raise NotFound(f"no file {path} in commit {offer.base[:12]}")
            files[path] = (content, files[path][1])
        self._reach(url, credentials)
        self.pushes.append((url, offer.branch))
        silent, self.silent = self.silent, ""
        if silent == "lost":
            raise OutcomeUnknown(f"repository {url} did not answer; branch {offer.branch} may come or not: look first")
        if url in self.protected:
            raise Forbidden(f"repository {url} does not let these credentials push {offer.branch}")
        identity = repr((url, sorted(files.items()), offer.base, offer.message, offer.author, offer.email, offer.time))
        sha = hashlib.sha1(identity.encode()).hexdigest()
        there = self.branches[url].get(offer.branch)
        if there is not None:
            raise Conflict(f"repository {url} has a branch {offer.branch} already; it is left as it is")
        about = Commit(sha=sha, author=offer.author, time=offer.time, subject=offer.message.split("\n", 1)[0])
        self._versions[sha] = _Version(files, offer.base, about)
        self.branches[url][offer.branch] = sha
        if silent == "late":
            raise OutcomeUnknown(f"repository {url} did not answer; branch {offer.branch} may come or not: look first")
        return sha

    def forget(self, url: str) -> None:
        self._here.pop(url, None)

    def _known(self, url: str) -> set[str]:
        if url not in self._here:
            raise NotFound(f"repository {url} was not fetched yet")
        return self._here[url]

    def _version(self, url: str, commit: str) -> _Version:
        if commit not in self._known(url):
            raise NotFound(f"no commit {commit[:40]} in the local copy")
        return self._versions[commit]
