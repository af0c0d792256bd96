"""The `Repositories` port over git: one bare copy per url below a folder, changed under a lock, read in between.

The place of a copy is a link to a folder of its own name, set when the copy is whole: a killed process leaves no half
of one, and a copy made anew never has the path of the one before (libgit2 remembers open packs by path, also broken
ones). A copy found damaged is marked and made anew by the next fetch; it holds nothing that the server has not.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from groundcontrol.drivers.git import command, push
from groundcontrol.drivers.git.answers import meaning
from groundcontrol.drivers.git.command import Settings
from groundcontrol.drivers.git.mirror import DAMAGED, Damaged, Mirror
from groundcontrol.drivers.git.signatures import verify_commit
from groundcontrol.kernel.errors import NotFound, TooLarge, Unavailable
from groundcontrol.ports.repository import Commit, Credentials, Difference, Offer, Signature, Tree, Trust

_LOOSE = 30
"""Loose objects in one of 256 folders, and packs, above which a copy is tidied: git's own thresholds."""
_PACKS = 50


class GitRepositories:
    """Local copies of repositories, by url. Safe to use from several threads and processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._mirrors: dict[Path, Mirror] = {}
        self._guard = threading.Lock()

    def fetch(self, url: str, branch: str, credentials: Credentials | None = None) -> str:
        transport = command.check_url(url, self.settings)
        command.check_branch(branch)
        place = self._place(url)
        with self._locked(place), self._shown(url, transport, credentials) as (env, secrets):
            if place.exists() and not (place / DAMAGED).exists():
                result = self._fetch(place, url, branch, env, secrets)
                if result.code == 0 and (sha := self._arrived(url, place, branch)):
                    return sha
                error = meaning(result, url, branch) if result.code else None
                if error is not None:
                    raise error
                # Not the server's doing: the copy is damaged. Once more from nothing.
            return self._clone(place, url, branch, env, secrets)

    def heads(self, url: str, prefix: str, credentials: Credentials | None = None) -> Mapping[str, str]:
        transport = command.check_url(url, self.settings)
        command.check_branch(f"{prefix}x")
        with self._shown(url, transport, credentials) as (env, secrets):
            return push.heads(url, prefix, self.settings, env, secrets)

    def propose(self, url: str, offer: Offer, credentials: Credentials | None = None) -> str:
        transport = command.check_url(url, self.settings)
        command.check_branch(offer.branch)
        place = self._place(url)
        with self._locked(place), self._shown(url, transport, credentials) as (env, secrets):
            with self._reading(url) as mirror:
                sha = mirror.commit_offer(offer)
                where = mirror.path
            push.push(where, url, transport, sha, offer.branch, self.settings, env, secrets)
            return sha

    @contextmanager
    def _shown(
        self, url: str, transport: str, credentials: Credentials | None
    ) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
        """The environment of a call to that server, with what it is shown, and what nobody else may see of that."""
        with command.private_folder(self.settings) as folder:
            env = command.environment(self.settings, folder)
            env |= command.credentials_environment(url, transport, credentials, self.settings, folder)
            yield env, (credentials.password,) if credentials else ()

    def tree(self, url: str, commit: str, path: str = ".") -> Tree:
        with self._reading(url) as mirror:
            return mirror.tree(commit, path)

    def read(self, url: str, blob: str) -> bytes:
        with self._reading(url) as mirror:
            return mirror.read(blob)

    def diff(self, url: str, old: str, new: str, path: str = ".") -> Difference:
        with self._reading(url) as mirror:
            return mirror.diff(old, new, path)

    def log(self, url: str, commit: str, n: int) -> list[Commit]:
        with self._reading(url) as mirror:
            return mirror.log(commit, n)

    def is_ancestor(self, url: str, old: str, new: str) -> bool:
        with self._reading(url) as mirror:
            return mirror.is_ancestor(old, new)

    def verify(self, url: str, commit: str, trust: Trust) -> Signature:
        with self._reading(url) as mirror:
            mirror.commit(commit)
            return verify_commit(mirror.path, commit, trust, self.settings)

    def forget(self, url: str) -> None:
        place = self._place(url)
        with self._locked(place):
            self._drop(place)

    # -------------------------------------------------------------------------------------------------- the copies

    def _place(self, url: str) -> Path:
        return self.settings.cache / f"{hashlib.sha256(url.encode()).hexdigest()[:40]}.git"

    @contextmanager
    def _locked(self, place: Path) -> Iterator[None]:
        """One fetch of a repository at a time, across processes; reading goes on meanwhile."""
        self.settings.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = time.monotonic() + self.settings.timeout
        with open(place.with_suffix(".lock"), "w", encoding="ascii") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Unavailable("another fetch of this repository is under way; tried again later") from None
                    time.sleep(0.05)
            yield

    @contextmanager
    def _reading(self, url: str) -> Iterator[Mirror]:
        place = self._place(url)
        mirror = self._mirror(url, place)
        try:
            with mirror.lock:
                yield mirror
        except Damaged as error:
            if place.exists():
                (place / DAMAGED).touch()
            self._close(place)
            raise Unavailable(f"the local copy of {url} is damaged and will be fetched anew: {error}") from error

    def _mirror(self, url: str, place: Path) -> Mirror:
        with self._guard:
            found, path = self._mirrors.get(place), place.resolve()
            if found is None or found.path != path:
                self._mirrors.pop(place, None)
                if not path.exists():
                    raise NotFound(f"repository {url} was not fetched yet")
                found = self._mirrors[place] = Mirror(path, self.settings.max_files)
            return found

    def _close(self, place: Path) -> None:
        with self._guard:
            self._mirrors.pop(place, None)

    def _drop(self, place: Path) -> None:
        """Remove the copy. Only under the lock."""
        self._close(place)
        place.unlink(missing_ok=True)
        self._sweep(place)

    def _sweep(self, place: Path) -> None:
        """Remove what killed processes and older copies left beside the copy that counts. Only under the lock."""
        current = place.resolve()
        for left in place.parent.glob(f"{place.name}.*"):
            if left != current and left.is_symlink():
                left.unlink(missing_ok=True)
            elif left.resolve() != current:
                shutil.rmtree(left, ignore_errors=True)

    # -------------------------------------------------------------------------------------------------- fetching

    def _clone(self, place: Path, url: str, branch: str, env: dict[str, str], secrets: tuple[str, ...]) -> str:
        self._sweep(place)
        name = f"{place.name}.{os.getpid()}-{time.monotonic_ns()}"
        fresh = place.with_name(name)
        try:
            made = command.run(
                [*command.arguments(self.settings), "init", "--quiet", "--bare", "--template=", str(fresh)],
                env,
                timeout=30,
            )
            if made.code:
                raise Unavailable(f"no local copy of {url} can be made in {self.settings.cache.name}: {made.err}")
            result = self._fetch(fresh, url, branch, env, secrets)
            if result.code:
                raise meaning(result, url, branch) or Unavailable(
                    f"repository {url} could not be fetched. git: {result.err[-500:]}"
                )
            link = place.with_name(f"{place.name}.link")
            link.symlink_to(name)
            link.replace(place)
            self._close(place)
            self._sweep(place)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        sha = self._arrived(url, place, branch)
        if sha is None:
            raise Unavailable(f"repository {url} was fetched and cannot be read; tried again later")
        return sha

    def _fetch(
        self, place: Path, url: str, branch: str, env: dict[str, str], secrets: tuple[str, ...]
    ) -> command.Result:
        self._clear_partial(place)
        options = ["--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance"]
        wanted = f"+refs/heads/{branch}:{_ref(branch)}"
        start = [*command.arguments(self.settings), f"--git-dir={place}", "fetch", *options]
        try:
            result = command.run(
                [*start, "--no-show-forced-updates", "--refmap=", "--", url, wanted],
                env,
                timeout=self.settings.timeout,
                watched=place,
                max_bytes=self.settings.max_bytes,
                secrets=secrets,
            )
        except TooLarge as error:
            self._clear_partial(place)
            # It was stopped, and may have been done all but the last of it.
            if place.is_symlink() and command.size_of(place) > self.settings.max_bytes:
                self._drop(place)
            raise TooLarge(f"{url}: {error} (allowed by the operator's setting max_bytes)") from None
        except Unavailable as error:
            raise Unavailable(f"fetching {url}: {error}") from None
        if result.code == 0:
            self._tidy(place, env)
            if command.size_of(place) > self.settings.max_bytes:
                if place.is_symlink():
                    self._drop(place)
                raise TooLarge(f"{url}: the repository is larger than {self.settings.max_bytes:,} bytes")
        return result

    @staticmethod
    def _clear_partial(place: Path) -> None:
        """Remove what a killed fetch left. We hold the only lock that counts."""
        for stale in (*place.glob("*.lock"), *place.glob("refs/**/*.lock"), *place.glob("objects/pack/tmp_*")):
            stale.unlink(missing_ok=True)

    def _arrived(self, url: str, place: Path, branch: str) -> str | None:
        """The commit that was fetched, when it and its tree can be read; None when the copy is damaged."""
        try:
            with (mirror := self._mirror(url, place)).lock:
                return mirror.resolve(_ref(branch))
        except Damaged:
            self._close(place)
            return None

    def _tidy(self, place: Path, env: dict[str, str]) -> None:
        sample = place / "objects" / "17"
        packs = sum(1 for _ in (place / "objects" / "pack").glob("*.pack"))
        if packs <= _PACKS and (not sample.exists() or len(os.listdir(sample)) <= _LOOSE):
            return
        # Commits no branch leads to any more stay for weeks: a Source may still stand on one of them.
        command.run(
            [*command.arguments(self.settings), f"--git-dir={place}", "gc", "--quiet", "--prune=30.days.ago"],
            env,
            timeout=self.settings.timeout,
        )
        self._close(place)


def _ref(branch: str) -> str:
    """Where a branch is kept. Hashed, since `a` and `a/b` cannot both be references, one after the other they can."""
    return f"refs/ground/{hashlib.sha256(branch.encode()).hexdigest()[:40]}"
