"""W3: a repository of 10,000 files, one changed. One fetch, one file read and parsed, within 100 ms.

python -m bench.gitops_parse [files]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pygit2

from groundcontrol.assembly import CAPABILITIES
from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.reconcile import SourceReconciler
from groundcontrol.drivers.git.command import Settings
from groundcontrol.drivers.git.driver import GitRepositories
from groundcontrol.kernel.access import Access
from groundcontrol.kernel.plan import Plan
from groundcontrol.kernel.reconcile import Look
from groundcontrol.kernel.runtime import kinds_of
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx
from groundcontrol.kernel.world import Watching, World
from groundcontrol.programs.serve import calm_collector

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


class Here:
    """A store that holds what the repository declares, and the reconciler that keeps it so."""

    def __init__(self, folder: Path, url: str) -> None:
        kinds = kinds_of(CAPABILITIES)
        self.store = Store(f"sqlite:///{folder / 'ground.db'}", kinds).open()
        self.world = World(Watching(), lambda name, items: None)
        self.git = GitRepositories(Settings(cache=folder / "cache", allow_file=True))
        self.reads = 0
        self.seconds: dict[str, float] = {}
        for name in ("fetch", "tree", "read"):
            setattr(self.git, name, self._timed(name, getattr(self.git, name)))
        self.reconciler = SourceReconciler(kinds, self.git, Access(self.store), lambda namespace, reference: "")
        doc = {"apiVersion": "ground/v1", "kind": "Source", "metadata": {"name": "bench"}}
        parsed = kinds.parse({**doc, "spec": {"repository": url, "branch": "main"}})
        self.source = Source.view(self.store.write(lambda tx: tx.create(parsed, "user:ada")))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
                self.reads += name == "read"

        return timed

    def turn(self) -> tuple[Plan, dict[str, float], int]:
        """Fetch, list, read, parse and compare, as a turn of the server does after a push; seconds of each."""
        self.seconds, self.reads = {}, 0
        self.reconciler.ask("bench")
        look = Look(self.store, self.world, self.source.key, self.source.metadata.uid)
        began = time.perf_counter()
        plan = self.reconciler.plan(self.source, look)
        rest = time.perf_counter() - began - sum(self.seconds.values())
        return plan, {**self.seconds, "parse and plan": rest}, self.reads

    def apply(self, plan: Plan) -> None:
        """What the kernel would do with the plan."""
        manager = self.reconciler.manager_of(self.source)

        def act(tx: Tx) -> None:
            for change in plan.changes:
                put = tx.create if change.verb == "create" else tx.replace
                put(change.payload.doc, manager, given=change.payload.given)

        self.store.write(act, timeout=600)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        origin = Origin(Path(folder) / "origin.git", count)
        here = Here(Path(folder), f"file://{folder}/origin.git")
        plan, seconds, reads = here.turn()
        assert len(plan.changes) == count, len(plan.changes)
        show(f"cold, {count:,} files", seconds, reads)
        here.apply(plan)
        calm_collector()
        plan, seconds, reads = here.turn()
        assert not plan.changes, plan.changes[:3]
        show("nothing changed, first look", seconds, reads)
        rounds = []
        for number in range(ROUNDS):
            origin.change(number * 37 % count, 61 + number)
            plan, seconds, reads = here.turn()
            assert len(plan.changes) == 1, plan.changes[:3]
            here.apply(plan)
            rounds.append(seconds)
        median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        show(f"one changed (median of {ROUNDS})", median, reads)
        total = sum(median.values()) * 1000
        print(f"W3: 1 fetch, {reads} read, {total:.0f} ms; wanted < 100 ms: {'yes' if total < 100 else 'NO'}")
        here.store.close()


def show(what: str, seconds: dict[str, float], reads: int) -> None:
    parts = ", ".join(f"{name} {value * 1000:.1f}" for name, value in seconds.items())
    print(f"{what}: {reads:,} read; ms: {parts}; total {sum(seconds.values()) * 1000:.1f}")


if __name__ == "__main__":
    main()
