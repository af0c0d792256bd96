"""W16: from the start of the process to ready, memory when idle, and the time `ground --help` takes."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from bench._kernel import percentile, told

GROUND = Path(sys.executable).parent / "ground"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its children, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    mine = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return mine / 1024 + sum(memory_mb(int(c)) for c in children)


def server(directory: Path, idle: float) -> tuple[float, float, float, float]:
    """Seconds to ready, MB when idle, CPU seconds per idle second, CPU seconds to ready."""
    port = free_port()
    config = directory / "ground.yaml"
    settings: dict[str, Any] = {"data": str(directory / "data"), "listen": f"127.0.0.1:{port}"}
    config.write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
    began = time.perf_counter()
    process = subprocess.Popen([GROUND, "serve", "--config", config], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/readyz", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if process.poll() is not None or time.perf_counter() - began > 60:
                    raise SystemExit("the server does not become ready") from None
            time.sleep(0.01)
        ready, spent = time.perf_counter() - began, cpu(process.pid)
        time.sleep(1.0)
        before = cpu(process.pid)
        time.sleep(idle)
        return ready, memory_mb(process.pid), (cpu(process.pid) - before) / idle, spent
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def help_seconds() -> float:
    """CPU seconds of `ground --help`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([GROUND, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=3.0)
    options = parser.parse_args()
    helps = [help_seconds() for _ in range(5)]
    with tempfile.TemporaryDirectory() as directory:
        # The first start makes the database; the others are what a restart costs.
        first, *again = [server(Path(directory), options.idle) for _ in range(options.rounds + 1)]
    ready, memory, busy, spent = (percentile([round_[n] for round_ in again], 0.5) for n in range(4))
    words = f"ready {first[0]:.2f} s after the first start, {ready:.2f} s after the next ({spent:.2f} s CPU); idle"
    words += f" {memory:.0f} MB and"
    words += f" {busy * 100:.1f} % of a core; ground --help {percentile(helps, 0.5):.2f} s CPU"
    told(
        "w16_start",
        words,
        firstStart=first[0],
        start=ready,
        startCpu=spent,
        idleMb=memory,
        idleCpu=busy,
        help=percentile(helps, 0.5),
    )


if __name__ == "__main__":
    main()
