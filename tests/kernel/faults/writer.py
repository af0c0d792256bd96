"""A process of its own that writes to a store and says what was acknowledged; the tests kill it.

`python -m tests.kernel.faults.writer <directory> <mode> <seed>`: one line on standard output per acknowledged act.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from groundcontrol.kernel import store as store_module
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.store import Store
from tests.kernel.faults.disk import FULL, ForgetfulDisk
from tests.kernel.things import key, store_at, thing


def say(*words: object) -> None:
    os.write(1, (" ".join(str(w) for w in words) + "\n").encode())


def write_for_ever(store: Store, worker: int, chance: random.Random) -> None:
    """Each act creates or changes a thing of this worker's own and records a fact; then it is said."""
    number = 0
    while True:
        number += 1
        name, colour = f"w{worker}-{chance.randrange(20)}", f"c{number}"

        def act(tx: Any, name: str = name, colour: str = colour) -> int:
            doc = thing(name, colour=colour, names=["x" * 50] * 20)
            written = tx.create(doc) if tx.get(key(name)) is None else tx.replace(doc).doc
            tx.fact("audit", key(name), colour)
            return int(written["metadata"]["resourceVersion"])

        say("ack", name, colour, store.write(act))


def promise_too_much(mode: str) -> None:
    """The test of the test: a store that calls durable what is not."""
    make = store_module._engine

    def engine(url: str) -> sa.Engine:
        made = make(url)
        sa.event.listen(made, "connect", lambda c, _: c.execute(f"PRAGMA synchronous={mode}"))
        return made

    store_module._engine = engine


def until_killed(directory: Path, mode: str, seed: int) -> None:
    disk = ForgetfulDisk(directory.parent / "journal")
    if mode != "safe":
        promise_too_much(mode)
    store = store_at(directory)
    say("ready", id(disk))
    threads = [
        threading.Thread(target=write_for_ever, args=(store, n, random.Random(f"{seed}-{n}")), daemon=True)
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    threads[0].join()


def with_faults(directory: Path, mode: str, seed: int) -> None:
    """Acts on a disk that is full now and then; says what was acknowledged and what was refused."""
    chance = random.Random(seed)
    disk = ForgetfulDisk(directory.parent / "journal")
    store = store_at(directory)
    left = [0]

    def full_soon(call: str, name: str) -> int:
        left[0] -= 1
        return FULL if left[0] < 0 and call != "truncate" else 0

    for round_ in range(40):
        if mode == "full":
            left[0] = chance.randrange(12)
            disk.fault = full_soon
        else:
            size = max(p.stat().st_size for p in directory.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + chance.randrange(20_000), resource.RLIM_INFINITY))
        futures = [
            (n, store.submit(lambda tx, r=round_, n=n: tx.create(thing(f"r{r}-{n}", names=["x" * 100] * 30))))
            for n in range(chance.randrange(1, 12))
        ]
        for n, future in futures:
            try:
                future.result(20)
                say("ack", f"r{round_}-{n}", "red", 0)
            except GroundError as error:
                say("refused", f"r{round_}-{n}", error.reason)
        disk.fault = lambda call, name: 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.write(lambda tx, r=round_: tx.create(thing(f"after-{r}")))
        say("ack", f"after-{round_}", "red", 0)
    say("done", store.sequence, len(store.entries("Thing")))


if __name__ == "__main__":
    place, how, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    (with_faults if how in ("full", "limit") else until_killed)(place, how, number)
