"""W4: a hundred thousand resources are queued for their regular look, a person changes one: time to its first look."""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

from bench._kernel import Widget, controller, filled, key, opened, percentile, told, widget
from groundcontrol.kernel.loop import RESYNC, Pace

ENOUGH = 0.5
"""Share of the queue that must still wait when a person comes."""


def measured(count: int, samples: int, directory: Path) -> tuple[list[float], float, int]:
    """Seconds to the first look per sample; regular looks a second meanwhile; the shortest queue met."""
    names = [f"w{n}" for n in range(count)]
    wanted: dict[str, tuple[str, threading.Event]] = {}
    looks = [0]

    def looked(resource: Widget) -> None:
        looks[0] += 1
        waited = wanted.get(resource.metadata.name)
        if waited and resource.spec.text == waited[0]:
            waited[1].set()

    store = opened(directory)
    filled(store, names)
    loop = controller(store, looked, Pace(resync=1e6))
    times: list[float] = []
    shortest, began = count, time.perf_counter()
    try:
        loop.start()
        for n in range(samples):
            waiting = loop.state()["shards"]["store"]["waiting"]
            if waiting < ENOUGH * count:
                for name in names:
                    loop.enqueue(loop.reconcilers[0], key(name), RESYNC)
                waiting = loop.state()["shards"]["store"]["waiting"]
            shortest = min(shortest, waiting)
            name, text, seen = random.choice(names), f"changed {n}", threading.Event()
            wanted[name] = (text, seen)
            start = time.perf_counter()
            store.write(lambda tx, name=name, text=text: tx.replace(widget(name, text)))
            if not seen.wait(60):
                raise SystemExit(f"{name} was never looked at")
            times.append(time.perf_counter() - start)
            wanted.clear()
            time.sleep(0.02)
        return times, looks[0] / (time.perf_counter() - began), shortest
    finally:
        loop.stop()
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        times, rate, shortest = measured(options.count, options.samples, Path(directory))
    half, worst = percentile(times, 0.5), percentile(times, 0.99)
    words = f"a person's change is looked at after {half * 1000:.0f} ms (p50), {worst * 1000:.0f} ms (p99)"
    words += f" behind a queue of at least {shortest:,}; regular looks meanwhile {rate:,.0f}/s"
    told("w4_priority", words, p50=half, p99=worst, queued=shortest, looksPerSecond=rate, goal=0.5)


if __name__ == "__main__":
    main()
