"""W5: one object changes ten times a second beside one that always fails; both must cost the others nothing."""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from pathlib import Path

from bench._kernel import Widget, controller, filled, key, opened, percentile, told, widget
from groundcontrol.kernel.loop import WORLD, Pace

PACE = Pace(backoff=0.5, backoff_max=60.0, resync=1e6)


def steps(seconds: float) -> int:
    """How many looks the back-off allows in so many seconds, at the short end of its jitter."""
    at, wait, count = 0.0, PACE.backoff, 1
    while (at := at + wait * 0.8) < seconds:
        count, wait = count + 1, min(wait * 2, PACE.backoff_max)
    return count


class Neighbours:
    """Changes of the others, one after the other, and how long each took to be looked at."""

    def __init__(self, directory: Path, count: int) -> None:
        self.names = [f"n{n}" for n in range(count)]
        self.bad_looks = self.restless_looks = 0
        self._wanted, self._seen = "", threading.Event()
        self.store = opened(directory)
        filled(self.store, [*self.names, "bad", "restless"])
        self.loop = controller(self.store, self._looked, PACE)
        self.loop.start()

    def _looked(self, resource: Widget) -> None:
        match resource.metadata.name:
            case "bad":
                self.bad_looks += 1
                raise RuntimeError("it always fails")
            case "restless":
                self.restless_looks += 1
            case _ if resource.spec.text == self._wanted:
                self._seen.set()

    def times(self, seconds: float, mark: str) -> list[float]:
        found: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            name = self.names[len(found) % len(self.names)]
            self._wanted = text = f"{mark}{len(found)}"
            self._seen.clear()
            start = time.perf_counter()
            self.store.write(lambda tx, name=name, text=text: tx.replace(widget(name, text)))
            if not self._seen.wait(60):
                raise SystemExit(f"{name} was never looked at")
            found.append(time.perf_counter() - start)
            time.sleep(0.005)
        return found

    def storm(self, stop: threading.Event) -> None:
        number = 0
        while not stop.wait(0.1):
            number += 1
            text = f"storm {number}"
            self.store.write(lambda tx, text=text: tx.replace(widget("restless", text)))
            self.loop.enqueue(self.loop.reconcilers[0], key("bad"), WORLD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # that it fails is the point
    with tempfile.TemporaryDirectory() as directory:
        others = Neighbours(Path(directory), options.count)
        stop = threading.Event()
        try:
            quiet = others.times(options.seconds / 2, "quiet")
            others.loop.enqueue(others.loop.reconcilers[0], key("bad"), 0)
            others.bad_looks = others.restless_looks = 0
            storm = threading.Thread(target=others.storm, args=(stop,))
            storm.start()
            loud = others.times(options.seconds, "loud")
            stop.set()
            storm.join()
        finally:
            stop.set()
            others.loop.stop()
            others.store.close()
    allowed, before, after = steps(options.seconds), percentile(quiet, 0.99), percentile(loud, 0.99)
    words = (
        f"the failing one was looked at {others.bad_looks} times ({allowed} steps of its back-off), the restless one"
    )
    words += (
        f" {others.restless_looks} times; the others' p99 {before * 1000:.0f} ms before, {after * 1000:.0f} ms beside"
    )
    told(
        "w5_storm",
        words,
        looksOfFailing=others.bad_looks,
        stepsAllowed=allowed,
        looksOfRestless=others.restless_looks,
        p50Quiet=percentile(quiet, 0.5),
        p50Storm=percentile(loud, 0.5),
        p99Quiet=before,
        p99Storm=after,
    )


if __name__ == "__main__":
    main()
