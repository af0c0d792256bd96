"""W3: a repository of 10,000 files, one changed. One fetch, one file read and parsed, within 100 ms.

python -m bench.gitops_parse [files]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import pygit2

from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.logic import Desired, File, kinds_version, parse_tree, plan_changes
from groundcontrol.drivers.git.command import Settings
from groundcontrol.drivers.git.driver import GitRepositories
from groundcontrol.kernel.resource import Kinds

KINDS = Kinds([Source])
ROUNDS = 7


def manifest(number: int, interval: int = 60) -> str:
    return f"""apiVersion: ground/v1
kind: Source
metadata:
  name: team-{number}
  labels:
    team: t{number % 50}
    tier: web
spec:
  repository: https://git.example.org/teams/{number}.git
  branch: main
  path: deploy
  interval: {interval}
  namespace: team-{number}
"""


class Origin:
    """A bare repository; `change` commits one file."""

    def __init__(self, path: Path, files: int) -> None:
        self.repository = pygit2.init_repository(str(path), bare=True)
        self.index = pygit2.Index()
        for number in range(files):
            self.add(number, 60)
        self.commit([])

    def add(self, number: int, interval: int) -> None:
        blob = self.repository.create_blob(manifest(number, interval).encode())
        self.index.add(pygit2.IndexEntry(f"d{number % 100}/f{number}.yaml", blob, 0o100644))

    def commit(self, parents: list[pygit2.Oid]) -> None:
        who = pygit2.Signature("Ada", "ada@example.org", 1_700_000_000, 0)
        tree = self.index.write_tree(self.repository)
        self.head = self.repository.create_commit("refs/heads/main", who, who, "change", tree, parents)

    def change(self, number: int, interval: int) -> None:
        self.add(number, interval)
        self.commit([self.head])


def once(
    here: GitRepositories, url: str, version: str, before: Desired | None
) -> tuple[dict[str, float], Desired, int]:
    """Fetch, list, parse and plan; seconds of each, what is wanted, and how many files were read."""
    reads = 0
    marks = [time.perf_counter()]

    def reader(blob: str) -> bytes:
        nonlocal reads
        reads += 1
        return here.read(url, blob)

    commit = here.fetch(url, "main")
    marks.append(time.perf_counter())
    tree = here.tree(url, commit)
    marks.append(time.perf_counter())
    files = {path: File(e.blob, e.size, lambda blob=e.blob: reader(blob)) for path, e in tree.files.items()}
    desired = parse_tree(files, KINDS, version=version, cache=before.cache if before else None, refused=tree.refused)
    marks.append(time.perf_counter())
    owned = {}
    if before:
        for key, wanted in before.resources.items():
            doc = wanted.declared.doc
            notes = {"ground/source": "bench", "ground/file": wanted.file}
            managers = dict.fromkeys(wanted.declared.given, "source:bench")
            owned[key] = {**doc, "metadata": {**doc["metadata"], "annotations": notes, "managers": managers}}
    begun = time.perf_counter()
    outcome = plan_changes(desired, owned, {}, "bench", kinds=KINDS)
    marks.append(marks[-1] + time.perf_counter() - begun)  # without making up what the store would hold
    assert not outcome.troubles, outcome.troubles[:3]
    names = ("fetch", "list", "parse", "plan")
    seconds = {name: marks[n + 1] - marks[n] for n, name in enumerate(names)}
    return seconds, desired, reads


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    version = kinds_version(KINDS)
    with tempfile.TemporaryDirectory() as folder:
        origin = Origin(Path(folder) / "origin.git", count)
        url = f"file://{folder}/origin.git"
        here = GitRepositories(Settings(cache=Path(folder) / "cache", allow_file=True))
        seconds, desired, reads = once(here, url, version, None)
        show(f"cold, {count:,} files", seconds, reads)
        rounds = []
        for number in range(ROUNDS):
            origin.change(number * 37 % count, 61 + number)
            seconds, desired, reads = once(here, url, version, desired)
            rounds.append(seconds)
        median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        show(f"one changed (median of {ROUNDS})", median, reads)
        total = sum(median.values()) * 1000
        print(f"W3: 1 fetch, {reads} read, {total:.0f} ms; wanted < 100 ms: {'yes' if total < 100 else 'NO'}")


def show(what: str, seconds: dict[str, float], reads: int) -> None:
    parts = ", ".join(f"{name} {value * 1000:.1f}" for name, value in seconds.items())
    print(f"{what}: {reads:,} read; ms: {parts}; total {sum(seconds.values()) * 1000:.1f}")


if __name__ == "__main__":
    main()
