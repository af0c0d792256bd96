"""A server to be killed: it works on a store and a file-backed outside until all is as wanted, or until it dies.

One process imports everything once and forks a worker per line on its standard input: `directory fencing point`. The
worker kills itself, with a real SIGKILL, at the given crash point (counted from 1; 0: never). The answer is a line
`killed` or `converged <crash points passed>`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.kernel.outside import Outside, Rig

LONGEST = 20.0


def work(directory: Path, fencing: Any, point: int) -> None:
    """Converge; every durable write and every outside call passes a crash point before and after."""
    passed, lock = [0], threading.Lock()

    def reach(where: str) -> None:
        with lock:
            passed[0] += 1
            if passed[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)

    outside = Outside(fencing, directory / "outside.json")
    outside.hook = lambda call, moment, id_: (
        reach(f"{call} {moment}") if call in ("create", "update", "delete") else None
    )
    rig = Rig(directory, {"site/a": outside}, settle=0.05)
    rig.turns.crash_point = reach
    rig.start()
    deadline = time.monotonic() + LONGEST
    while not all_is_well(rig):
        if time.monotonic() > deadline:
            print("stuck", [e.doc["status"] for e in rig.store.entries("Thing")], outside.things(), flush=True)
            os._exit(3)
        time.sleep(0.005)
    rig.close()
    print("converged", passed[0], flush=True)


def all_is_well(rig: Rig) -> bool:
    docs = [e.doc for e in rig.store.entries("Thing")]
    wanted = {n: d["spec"]["colour"] for d in docs for n in d["spec"]["names"]}
    deleting = any(d["metadata"]["deletionTimestamp"] for d in docs)
    return not deleting and rig.outside.things() == wanted and rig.ready()


def main() -> None:
    for line in sys.stdin:
        directory, fencing, point = line.split()
        child = os.fork()
        if child == 0:
            work(Path(directory), fencing, int(point))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print("killed", os.WTERMSIG(status), flush=True)


if __name__ == "__main__":
    main()
