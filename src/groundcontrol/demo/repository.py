"""The git repository of the demonstration: a bare origin with a hook, and a clone in which people commit."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from groundcontrol.demo import hook

BRANCH = "main"
AUTHOR = ("Ada", "ada@example.org")


class GitFailed(Exception):
    """A git command did not do what it should; carries what it said."""


class Repository:
    """Commits and pushes. Nothing of the user's own git configuration takes part."""

    def __init__(self, origin: Path, checkout: Path) -> None:
        self.origin, self.checkout = origin, checkout

    @property
    def url(self) -> str:
        return self.origin.as_uri()

    def make(self, webhook: str, token_file: Path) -> None:
        """The bare repository, its hook and the clone; what is there already is kept, the hook is written anew."""
        if not (self.origin / "HEAD").exists():
            self._git(self.origin.parent, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(self.origin))
        self._write_hook(webhook, token_file)
        if not (self.checkout / ".git").exists():
            self._git(self.origin.parent, "init", "--quiet", f"--initial-branch={BRANCH}", str(self.checkout))
            self._git(self.checkout, "remote", "add", "origin", str(self.origin))
            # For those who play along with their own git: it asks for a name otherwise.
            self._git(self.checkout, "config", "user.name", AUTHOR[0])
            self._git(self.checkout, "config", "user.email", AUTHOR[1])
            self._git(self.checkout, "config", f"branch.{BRANCH}.remote", "origin")
            self._git(self.checkout, "config", f"branch.{BRANCH}.merge", f"refs/heads/{BRANCH}")

    def _write_hook(self, webhook: str, token_file: Path) -> None:
        words = [sys.executable, "-I", str(Path(hook.__file__)), webhook, str(token_file), self.url]
        path = self.origin / "hooks" / "post-receive"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"#!/bin/sh\n# Tells the server of a push, as GitLab would.\nexec {shlex.join(words)}\n", "utf-8"
        )
        path.chmod(0o755)

    def settle(self) -> None:
        """Give up what a run that was interrupted left half done in the clone."""
        for lock in (self.checkout / ".git").glob("*.lock"):
            lock.unlink()
        if self._ask("rev-parse", "--verify", "--quiet", "HEAD"):
            self._git(self.checkout, "reset", "--quiet", "--hard")

    def commit(self, message: str, write: Mapping[str, str], remove: Iterable[str] = ()) -> float | None:
        """Write and remove files, and commit; `time.monotonic` just before `git commit`, None without a change."""
        for path, text in write.items():
            file = self.checkout / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        for path in remove:
            (self.checkout / path).unlink(missing_ok=True)
        self._git(self.checkout, "add", "--all")
        if not self._git(self.checkout, "status", "--porcelain"):
            return None
        began = time.monotonic()
        self._git(self.checkout, "commit", "--quiet", f"--message={message}")
        return began

    def revert(self, commit: str) -> None:
        """`git revert`."""
        self._git(self.checkout, "revert", "--no-edit", commit)

    def push(self) -> str:
        """`git push`; what the hook said."""
        said = self._git(self.checkout, "push", "origin", BRANCH, errors=True)
        lines = [line.removeprefix("remote:").strip() for line in said.splitlines() if line.startswith("remote:")]
        return "; ".join(line for line in lines if line)

    def head(self) -> str:
        return self._git(self.checkout, "rev-parse", "HEAD").strip()

    def files(self) -> set[str]:
        """Every file of the last commit."""
        return set(self._ask("ls-tree", "-r", "--name-only", "HEAD").splitlines())

    def _ask(self, *arguments: str) -> str:
        try:
            return self._git(self.checkout, *arguments)
        except GitFailed:
            return ""

    def _git(self, where: Path, *arguments: str, errors: bool = False) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        environment |= {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_EDITOR": "true",
            "LC_ALL": "C",
        }
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_NAME": AUTHOR[0], f"GIT_{role}_EMAIL": AUTHOR[1]}
        done = subprocess.run(
            ["git", *arguments], cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise GitFailed(f"git {shlex.join(arguments)} in {where}: {(done.stderr or done.stdout).strip()}")
        return done.stderr if errors else done.stdout
