"""What a git server can do for us: give a branch, let its files, history and signatures be read, take a new branch.

A driver keeps a local copy of each repository, named by its url. `fetch`, `heads` and `propose` leave the machine;
all others read what earlier fetches brought. Nothing of a repository is ever run: no hooks, filters, submodules or
links. Errors: `Invalid` for a url or branch that cannot be one, `Unavailable` when the server did not answer or the
copy here is damaged (fetch again), `Forbidden` when it refused the credentials, `NotFound` when repository, branch,
commit, path or blob is not there, `TooLarge` when the repository is over the driver's bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import msgspec


class Credentials(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is shown to the server. Resolved where it is used; never in a url, argument, log or error."""

    username: str = ""
    """For https; git servers that take tokens accept any name, so empty means `git`."""
    password: str = ""
    """Password or token for https."""
    ssh_key: str = ""
    """Private key in OpenSSH form, without passphrase."""
    known_hosts: str = ""
    """Lines of a known_hosts file; a server whose key is not in it (or in the operator's) is not talked to."""

    def __repr__(self) -> str:
        return "Credentials(…)"

    __str__ = __repr__


class Entry(NamedTuple):
    """One file of a tree."""

    blob: str
    """Name of its content: equal names are equal bytes."""
    size: int
    """Bytes."""
    mode: int
    """0o100644, or 0o100755 for an executable."""


class Refused(NamedTuple):
    """Something in a tree that is not a file and is not followed."""

    path: str
    reason: str


class Tree(NamedTuple):
    """The files below a path, by path from the repository's root."""

    files: Mapping[str, Entry]
    refused: tuple[Refused, ...] = ()


class Difference(NamedTuple):
    """What is different between two trees."""

    changed: Mapping[str, Entry]
    """Added and changed files, as they are in the newer tree."""
    removed: tuple[str, ...]


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One commit of the history."""

    sha: str
    author: str
    """Name of the author, as the commit claims."""
    time: float
    """Seconds since the epoch, as the committer claims."""
    subject: str
    """First line of the message."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A commit to be made, for people to look at."""

    base: str
    """The commit it is built upon; it was fetched before."""
    branch: str
    """The branch it is pushed as. It must not be there yet."""
    files: Mapping[str, bytes]
    """Path to new content, of files that are in `base`; their modes stay."""
    message: str
    author: str
    """Name of author and committer."""
    email: str
    time: float
    """Seconds since the epoch. Equal offers are equal commits."""


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """Whose signatures count."""

    method: Literal["ssh", "gpg"]
    signers: str
    """For ssh the lines of an allowed_signers file (see ssh-keygen); for gpg the armoured public keys."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when the signature of a commit was checked."""

    good: bool
    signer: str = ""
    """Principal or key that signed; only when good."""
    reason: str = ""
    """Why it is not good."""


class Repositories(Protocol):
    """Local copies of repositories, by url."""

    def fetch(self, url: str, branch: str, credentials: Credentials | None = None) -> str:
        """Bring the branch here, rewritten or not, and return its commit. Older commits stay readable for weeks."""
        ...

    def tree(self, url: str, commit: str, path: str = ".") -> Tree:
        """The files below a path."""
        ...

    def read(self, url: str, blob: str) -> bytes:
        """The content of a file."""
        ...

    def diff(self, url: str, old: str, new: str, path: str = ".") -> Difference:
        """What changed below a path from one commit to another; a path missing in `old` counts as empty."""
        ...

    def log(self, url: str, commit: str, n: int) -> list[Commit]:
        """At most `n` commits from this one backwards, newest first."""
        ...

    def is_ancestor(self, url: str, old: str, new: str) -> bool:
        """Whether `new` was built upon `old` (or is it). False when `old` is no longer known: history was rewritten."""
        ...

    def verify(self, url: str, commit: str, trust: Trust) -> Signature:
        """Whether one of those trusted signed this commit."""
        ...

    def heads(self, url: str, prefix: str, credentials: Credentials | None = None) -> Mapping[str, str]:
        """The server's branches whose names begin so, as they are now, with their commits."""
        ...

    def propose(self, url: str, offer: Offer, credentials: Credentials | None = None) -> str:
        """Make the commit and push it as a branch of its own; returns the commit. The local copy alone gets nothing.

        Never forced and never onto a branch that is there: `Conflict` then. `OutcomeUnknown` when no answer came and
        the server, asked again, does not show it: it may still come."""
        ...

    def forget(self, url: str) -> None:
        """Drop the local copy."""
        ...
