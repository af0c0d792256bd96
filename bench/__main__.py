"""Runs the workloads one after the other, each in a process of its own, and prints their figures.

`make bench`, or `make bench ONLY=ledger,w4_priority`. With `--save`, the figures and the machine go to
`bench/results/<date>.json`; only worth it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LONGEST = 900.0
"""Seconds after which a workload is given up."""


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memoryMb": int(memory.split()[1]) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "loadBefore": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def figures(output: str) -> list[Any]:
    """The lines of a workload's output that are JSON."""
    found = []
    for line in output.splitlines():
        if line.startswith(("{", "[")):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def main() -> int:
    """Exit code 1 when a workload failed."""
    workloads = sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--only", default="", help=f"some of: {', '.join(workloads)}")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name] or workloads
    unknown = set(chosen) - set(workloads)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(workloads)}")
    kept: dict[str, Any] = {"machine": machine(), "workloads": {}}
    failed = []
    for name in chosen:
        print(f"── {name}", flush=True)
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", f"bench.{name}"], capture_output=True, text=True, timeout=LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"given up after {LONGEST:g} s")
            failed.append(name)
            continue
        print(done.stdout, end="")
        if done.returncode:
            print(done.stderr[-2000:])
            failed.append(name)
        kept["workloads"][name] = {"seconds": round(time.monotonic() - began, 1), "figures": figures(done.stdout)}
    if options.save:
        path = HERE / "results" / f"{kept['machine']['date']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"saved {path.relative_to(HERE.parent)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
