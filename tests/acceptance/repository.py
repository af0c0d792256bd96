"""A bare git repository with GitLab's post-receive webhook, and a clone in which somebody commits."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from groundcontrol.demo import hook

GIT = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "GROUND_"))} | {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    **{f"GIT_{r}_{k}": v for r in ("AUTHOR", "COMMITTER") for k, v in (("NAME", "Ada"), ("EMAIL", "ada@example.org"))},
}


class Repository:
    """`push` is what a person does: change files, commit, push. The hook of the bare repository tells the server."""

    def __init__(self, place: Path, name: str) -> None:
        self.origin, self.clone = place / f"{name}.git", place / name
        self._git(place, "init", "--quiet", "--bare", "--initial-branch=main", str(self.origin))
        self._git(place, "init", "--quiet", "--initial-branch=main", str(self.clone))
        self.git("remote", "add", "origin", str(self.origin))

    @property
    def url(self) -> str:
        return self.origin.as_uri()

    def tell(self, address: str, token_file: Path) -> None:
        """From now on, every push is told there in GitLab's shape."""
        words = [sys.executable, "-I", str(Path(hook.__file__)), address, str(token_file), self.url]
        path = self.origin / "hooks" / "post-receive"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n", encoding="utf-8")
        path.chmod(0o755)

    def untell(self) -> None:
        """Pushes are told to nobody: what is new is found by looking."""
        (self.origin / "hooks" / "post-receive").unlink(missing_ok=True)

    def write(self, files: Mapping[str, str | bytes], remove: Iterable[str] = ()) -> None:
        for path, text in files.items():
            file = self.clone / path
            file.parent.mkdir(parents=True, exist_ok=True)
            # A link that a test planted must never be written through.
            file.unlink(missing_ok=True)
            file.write_bytes(text.encode() if isinstance(text, str) else text)
        for path in remove:
            (self.clone / path).unlink()

    def commit(self, message: str = "change") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={message}")
        return self.git("rev-parse", "HEAD").strip()

    def push(
        self, files: Mapping[str, str | bytes] = {}, *, remove: Iterable[str] = (), message: str = "change"
    ) -> str:
        """Write, remove, commit and push; the commit. Whoever is to be told of it has been."""
        self.write(files, remove)
        commit = self.commit(message)
        said = self.git("push", "--force", "origin", "HEAD:main")
        if (self.origin / "hooks" / "post-receive").exists():
            assert "answered 202" in said, said
        return commit

    def git(self, *arguments: str) -> str:
        return self._git(self.clone, *arguments)

    @staticmethod
    def _git(where: Path, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=where, env=GIT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"git {shlex.join(arguments)}: {done.stderr or done.stdout}"
        return done.stderr if arguments[0] == "push" else done.stdout


def service(name: str, namespace: str = "alpha", *, replicas: int = 0, note: str = "", **spec: str) -> str:
    """The text of a file that declares a service; without replicas, so that nothing has to run for it."""
    lines = ["apiVersion: ground/v1", "kind: Service", f"metadata: {{name: {name}, namespace: {namespace}}}", "spec:"]
    lines += ["  sample: web", f"  replicas: {replicas}", "  ports: {http: 8080}"]
    lines += [f'  env: {{NOTE: "{note}"}}'] if note else []
    return "\n".join([*lines, *(f"  {k}: {v}" for k, v in spec.items())]) + "\n"
