"""How fast the ledger takes facts and how fast it answers: rows a second appended, and a group-by over them."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from groundcontrol.kernel.ledger import Dataset, Ledger, Query

USAGE = Dataset("usage", {"site": "text", "user": "text", "cores": "int", "hours": "float"})
BATCH = 10_000


def batch(first: int, count: int) -> list[dict[str, object]]:
    return [
        {
            "source": "bench/1",
            "seq": n,
            "time": 1767225600.0 + n * 30,
            "site": f"site-{n % 20}",
            "user": f"user-{n % 5000}",
            "cores": n % 64,
            "hours": n % 24 / 4,
            "vm": f"vm-{n % 100_000}",
        }
        for n in range(first, first + count)
    ]


def measured(rows: int, directory: Path) -> dict[str, float]:
    """Figures of one run: seconds, rows a second, bytes."""
    ledger = Ledger(directory / "ledger.duckdb", [USAGE], call_seconds=60.0)
    try:
        began = time.perf_counter()
        if not ledger.start(30):
            raise SystemExit(ledger.status()["error"])
        figures = {"start s": time.perf_counter() - began}
        spent = 0.0
        for first in range(1, rows + 1, BATCH):
            facts = batch(first, min(BATCH, rows + 1 - first))
            began = time.perf_counter()
            ledger.append("usage", facts)
            spent += time.perf_counter() - began
        figures["append rows/s"] = rows / spent
        began = time.perf_counter()
        ledger.append("usage", batch(1, BATCH))
        figures["append again rows/s"] = BATCH / (time.perf_counter() - began)
        query = Query(dataset="usage", group=["time:month", "site"], measure=["count", "sum:cores", "avg:hours"])
        times = []
        for _ in range(5):
            began = time.perf_counter()
            _, found = ledger.query(query)
            times.append(time.perf_counter() - began)
        if sum(row[2] for row in found) != rows:
            raise SystemExit(f"the ledger has {sum(row[2] for row in found)} of {rows} facts")
        figures["month x site ms"] = sorted(times)[2] * 1000
        began = time.perf_counter()
        for n in range(20):
            ledger.append("usage", batch(rows + 1 + n, 1))
        figures["single append ms"] = (time.perf_counter() - began) * 50
        figures["file MB"] = ledger.status()["bytes"] / 1e6
        return figures
    finally:
        ledger.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as directory:
        for name, figure in measured(rows, Path(directory)).items():
            print(f"{name:22} {figure:12,.1f}")


if __name__ == "__main__":
    main()
