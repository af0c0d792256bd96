"""W10: ten thousand Runs that wait their turn must not make the next one start later."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundcontrol.capabilities.procedures import CAPABILITY
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.runtime import Runtime
from groundcontrol.kernel.settings import Settings

PLACE = "bench"
BY = "user:bench"


def opened(directory: Path) -> Runtime:
    settings = Settings.model_validate({"data": str(directory), "ledger": {"enabled": False}})
    runtime = Runtime(settings, (CAPABILITY,), {}, lambda _: None).open()
    create(runtime, "Namespace", PLACE, {"group": PLACE}, "")
    create(runtime, "Account", "bench", {}, "")
    create(runtime, "RoleBinding", "bench", {"role": "operator", "subjects": [BY]}, "")
    create(runtime, "Procedure", "asks", {"steps": [{"name": "ask", "ask": {"question": "go on?"}}]})
    create(runtime, "Procedure", "quick", {"steps": [{"name": "tell", "notify": {"message": "done"}}]})
    return runtime


def create(runtime: Runtime, kind: str, name: str, spec: dict[str, Any], namespace: str = PLACE) -> None:
    """As the API would, for one person."""
    submitted(runtime, kind, name, spec, namespace).result(60)


def submitted(runtime: Runtime, kind: str, name: str, spec: dict[str, Any], namespace: str = PLACE) -> Any:
    meta = {"name": name, **({"namespace": namespace} if namespace else {})}
    doc = runtime.kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": spec})
    given = frozenset(f"spec.{path}" for path in spec)
    return runtime.store.submit(lambda tx: tx.create(doc, BY, given))


def status(runtime: Runtime, name: str) -> dict[str, Any]:
    doc = runtime.store.get(Key("Run", PLACE, name))
    return doc["status"] if doc else {}


def until(holds: Callable[[], Any], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("never")
        time.sleep(0.001)


def started(runtime: Runtime, name: str) -> float:
    """Seconds from asking for a Run to its end: admitted, begun, one step, over."""
    began = time.perf_counter()
    create(runtime, "Run", name, {"procedure": "quick"})
    until(lambda: status(runtime, name).get("phase") == "Succeeded")
    return time.perf_counter() - began


def measured(counts: list[int], samples: int, directory: Path) -> list[dict[str, float]]:
    """Figures with so many Runs pending."""
    runtime, rows, made = opened(directory), [], 0
    try:
        started(runtime, "warm")
        for count in counts:
            began = time.perf_counter()
            waiting = [submitted(runtime, "Run", f"r{n}", {"procedure": "asks"}) for n in range(made, count)]
            for future in waiting:
                future.result(600)
            until(
                lambda first=made, last=count: all(status(runtime, f"r{n}").get("admitted") for n in (first, last - 1))
            )  # type: ignore[misc]
            until(runtime.controller.idle)
            admitted = (count - made) / (time.perf_counter() - began)
            made = count
            times = sorted(started(runtime, f"quick-{count}-{n}") for n in range(samples))
            spent = time.process_time()
            time.sleep(1.0)
            rows.append(
                {
                    "pending": count - 50 if count > 50 else 0,
                    "admitted/s": admitted,
                    "start p50 ms": statistics.median(times) * 1000,
                    "start p99 ms": times[int(len(times) * 0.99)] * 1000,
                    "idle CPU %": (time.process_time() - spent) * 100,
                    "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            )
        if len(list(runtime.store.entries("Run"))) != made + 1 + samples * len(counts):
            raise SystemExit("Runs are missing")
        phases = [e.doc["status"]["phase"] for e in runtime.store.entries("Run") if e.key.name.startswith("r")]
        if phases.count("Waiting") != min(50, made):
            raise SystemExit(f"{phases.count('Waiting')} are under way")
        return rows
    finally:
        runtime.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pending", type=int, nargs="*", default=[60, 1_000, 10_000])
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for row in measured(options.pending, options.samples, Path(directory)):
            print(json.dumps({name: round(value, 1) for name, value in row.items()}), flush=True)


if __name__ == "__main__":
    main()
