"""How many durable acts a second the store takes, from one writer and from 32, beside bare SQLite."""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

from bench._kernel import opened, told, widget
from groundcontrol.kernel.store import Store


def acts(store: Store, writers: int, seconds: float, mark: str) -> float:
    """Acts a second, each waited for by its writer."""
    done = [0] * writers
    end = time.perf_counter() + seconds

    def write(n: int) -> None:
        while time.perf_counter() < end:
            doc = widget(f"{mark}-{n}-{done[n]}", "x" * 500)
            store.write(lambda tx, doc=doc: tx.create(doc))
            done[n] += 1

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def bare(path: Path, seconds: float) -> float:
    """The same bytes, three rows, one durable commit each."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE a (id INTEGER PRIMARY KEY, doc BLOB)")
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        connection.execute("BEGIN")
        for _ in range(3):
            connection.execute("INSERT INTO a (doc) VALUES (?)", (b"x" * 900,))
        connection.execute("COMMIT")
        count += 1
    connection.close()
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as directory:
        store = opened(Path(directory))
        try:
            one, many = acts(store, 1, seconds, "one"), acts(store, 32, seconds, "many")
        finally:
            store.close()
        peer = bare(Path(directory) / "bare.db", seconds)
    words = f"{one:,.0f} acts/s from one writer, {many:,.0f} from 32; bare SQLite {peer:,.0f} commits/s"
    told("kernel_store", words, one=one, many=many, bare=peer, ratio=many / peer)


if __name__ == "__main__":
    main()
