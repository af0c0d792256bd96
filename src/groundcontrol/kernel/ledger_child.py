"""The process that owns the ledger's DuckDB file: bounded memory, one writer, gone when its parent is gone.

DuckDB runs here and not in the server, since a query may eat its whole memory limit and a fault in it ends the
process. The main thread only reads requests and answers `ping`, so that a process that does not answer one is known
to hang. What is written is committed (and in the write-ahead log on disk) before it is answered.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import duckdb
import msgspec

from groundcontrol.kernel import ledger_sql as sql
from groundcontrol.kernel import ledger_wire as wire
from groundcontrol.kernel.errors import Invalid

WAITING = 32
"""Requests that may wait for a thread; one more is told to come back."""
MAX_ANSWER = 32 << 20
"""Bytes of an answer, roughly."""
READERS = 2
_PR_SET_PDEATHSIG = 1


class Setup(msgspec.Struct):
    """What the parent says first."""

    path: str
    memory_mb: int
    threads: int
    datasets: list[sql.Dataset]


class Trouble(NamedTuple):
    """An error in words. A fatal one leaves DuckDB unusable: the process ends after it was told."""

    reason: str
    message: str
    fatal: bool = False


def main(handle: int, parent: int) -> None:
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it stops us in order
    os.umask(0o077)
    os.nice(5)
    sock = socket.socket(fileno=handle)
    request = wire.receive_request(sock)
    if request is None:
        return
    setup = msgspec.convert(request.args[0], Setup)
    replies = _Replies(sock)
    try:
        engine = _Engine(setup)
    except Exception as error:
        replies.trouble(request, explain(error, setup))
        _leave(1)
    replies.send(wire.Reply(request.id, os.getpid()))
    _serve(sock, replies, engine, setup)


def _die_with(parent: int) -> None:
    """Also when we are stopped or busy, where the closed socket would not be seen."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _leave(0)


def _leave(code: int) -> NoReturn:
    # Not sys.exit: threads inside DuckDB would be waited for, and destructors would flush what nobody promised.
    os._exit(code)


class _Replies:
    """The way back, shared by the threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, reply: wire.Reply) -> None:
        frame = wire.encode(reply)
        with self._lock:
            try:
                self._sock.sendall(frame)
            except OSError:
                _leave(0)

    def trouble(self, request: wire.Request, trouble: Trouble) -> None:
        self.send(wire.Reply(request.id, None, trouble.reason, trouble.message))


Queue = queue.Queue[wire.Request]


def _serve(sock: socket.socket, replies: _Replies, engine: _Engine, setup: Setup) -> None:
    writes: Queue = queue.Queue(WAITING)
    reads: Queue = queue.Queue(WAITING)
    writer = {"append": engine.append, "retain": engine.retain, "stop": engine.stop}
    reader = {
        "query": engine.query,
        "watermark": engine.watermark,
        "export": engine.export,
        "rows": engine.rows,
    }
    for name, waiting, handlers, count in (("writer", writes, writer, 1), ("reader", reads, reader, READERS)):
        for number in range(count):
            arguments = (waiting, handlers, replies, setup)
            threading.Thread(target=_work, args=arguments, name=f"{name}-{number}", daemon=True).start()
    while (request := wire.receive_request(sock)) is not None:
        if request.op == "ping":
            replies.send(wire.Reply(request.id))
            continue
        try:
            (writes if request.op in writer else reads).put_nowait(request)
        except queue.Full:
            replies.trouble(request, Trouble("busy", "the ledger has too much to do; try again"))
    _leave(0)


def _work(waiting: Queue, handlers: dict[str, Callable[..., Any]], replies: _Replies, setup: Setup) -> None:
    while True:
        request = waiting.get()
        if time.monotonic() >= request.deadline:
            replies.trouble(request, Trouble("timeout", "nobody waited for it any more"))
            continue
        try:
            value = handlers[request.op](request, *request.args)
        except Exception as error:
            trouble = explain(error, setup)
            replies.trouble(request, trouble)
            if trouble.fatal or (trouble.reason == "memory" and _crowded(setup.memory_mb)):
                _leave(wire.GAVE_UP)
            continue
        replies.send(wire.Reply(request.id, value))
        if request.op == "stop":
            _leave(0)


class _Engine:
    """The open database."""

    def __init__(self, setup: Setup) -> None:
        path = Path(setup.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stage = staging(path)
        self._stage.mkdir(exist_ok=True)
        for left in self._stage.iterdir():
            left.unlink()
        _bound_memory(setup.memory_mb)
        self._db = duckdb.connect(
            str(path),
            config={
                "memory_limit": f"{setup.memory_mb}MiB",
                "threads": setup.threads,
                "temp_directory": f"{path}.tmp",
                # Else a query may fill the disk the store lives on.
                "max_temp_directory_size": f"{4 * setup.memory_mb}MiB",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "preserve_insertion_order": False,
            },
        )
        self._db.execute(f"SET allowed_directories = [{sql.quoted(f'{self._stage}/')}]")
        # Whatever SQL might come to run here, it reaches no file but ours.
        self._db.execute("SET enable_external_access = false")
        self._db.execute("SET lock_configuration = true")
        self._datasets = {d.name: d for d in setup.datasets}
        self._migrate()

    def _migrate(self) -> None:
        self._db.execute("BEGIN")
        self._db.execute(
            f"CREATE TABLE IF NOT EXISTS {sql.WATERMARKS}"
            " (source VARCHAR, stream VARCHAR, seq BIGINT NOT NULL, PRIMARY KEY (source, stream))"
        )
        for dataset in self._datasets.values():
            self._db.execute(sql.create(dataset))
            present = self._db.execute(
                "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?", [dataset.name]
            ).fetchall()
            for statement in sql.missing_columns(dataset, [(str(n), str(t)) for n, t in present]):
                self._db.execute(statement)
        self._db.execute("COMMIT")

    def append(self, request: wire.Request, parts: list[tuple[str, bytes]], marks: list[tuple[str, str, int]]) -> None:
        """All parts and marks in one transaction."""
        self._db.execute("BEGIN")
        try:
            for name, rows in parts:
                self._db.execute(sql.insert(self._datasets[name]), [rows.decode()])
            for mark in marks:
                self._db.execute(
                    f"INSERT INTO {sql.WATERMARKS} VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET seq = greatest(seq, excluded.seq)",
                    list(mark),
                )
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # A failed COMMIT has rolled back already, and the first error is the one to tell.
        with contextlib.suppress(duckdb.Error):
            self._db.execute("ROLLBACK")

    def retain(self, request: wire.Request, limits: list[tuple[str, str]]) -> dict[str, int]:
        """Delete what is older, one transaction each; {dataset: rows deleted}."""
        out: dict[str, int] = {}
        for name, moment in limits:
            found = self._db.execute(sql.drop_before(self._datasets[name]), [moment]).fetchone()
            out[name] = int(found[0]) if found else 0
        if any(out.values()):
            self._db.execute("CHECKPOINT")
        return out

    def stop(self, request: wire.Request) -> None:
        self._db.execute("CHECKPOINT")
        self._db.close()

    def query(self, request: wire.Request, statement: str, parameters: list[Any]) -> list[list[Any]]:
        cursor = self._db.cursor()
        timer = threading.Timer(max(0.0, request.deadline - time.monotonic()), cursor.interrupt)
        timer.start()
        try:
            cursor.execute(statement, parameters)
            rows: list[list[Any]] = []
            size = 0
            while part := cursor.fetchmany(500):
                for row in part:
                    plain = [_plain(v) for v in row]
                    size += 8 * len(plain) + sum(len(v) for v in plain if isinstance(v, str))
                    rows.append(plain)
                if size > MAX_ANSWER:
                    raise Invalid("the answer is too large; ask for a shorter time, fewer rows, or a group")
            return rows
        finally:
            timer.cancel()
            cursor.close()

    def watermark(self, request: wire.Request, source: str, stream: str) -> int:
        rows = self.query(
            request, f"SELECT seq FROM {sql.WATERMARKS} WHERE source = ? AND stream = ?", [source, stream]
        )
        return int(rows[0][0]) if rows else 0

    def export(self, request: wire.Request, name: str, month: str, file: str) -> int:
        """Write the facts of a month to a new file in the staging directory; rows written."""
        target = self._stage / file
        statement, parameters = sql.month(self._datasets[name], month)
        copy = f"COPY ({statement}) TO {sql.quoted(str(target))} (FORMAT parquet, COMPRESSION zstd)"
        return int(self.query(request, copy, parameters)[0][0])

    def rows(self, request: wire.Request) -> dict[str, int]:
        return {n: int(self.query(request, f'SELECT count(*) FROM "{n}"', [])[0][0]) for n in self._datasets}


def staging(path: Path) -> Path:
    """Where exports are written before they are moved to where they are wanted."""
    return Path(f"{path}.export")


def _bound_memory(memory_mb: int) -> None:
    """What DuckDB's own limit does not count (results, the allocator's slack) has an end too."""
    most = _most_memory(memory_mb)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _most_memory(memory_mb: int) -> int:
    return (2 * memory_mb + 512) << 20


def _crowded(memory_mb: int) -> bool:
    """Whether a failed query left so much behind that the next ones would fail too: a new process is better."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize() > _most_memory(memory_mb) // 2


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else float(value)
    return str(value)


_HOLDER = re.compile(r"\(PID (\d+)\)")


def explain(error: BaseException, setup: Setup) -> Trouble:
    """What went wrong, and what a person is to do about it."""
    text, path = str(error).split("\n")[0], setup.path
    low = text.lower()
    full = "; free space there: nothing is lost, what was not stored is sent again"
    if isinstance(error, Invalid):
        return Trouble("invalid", error.message)
    if "could not set lock" in low:
        holder = _HOLDER.search(text)
        who = f"process {holder[1]}" if holder else "another process"
        return Trouble(
            "locked", f"{path} is in use by {who}; stop it, or give this deployment a ledger.path of its own", True
        )
    if isinstance(error, duckdb.InterruptException):
        return Trouble("timeout", "the query took too long; ask for a shorter time or fewer groups")
    if "no space left" in low or "file too large" in low or "disk quota" in low or "could not write" in low:
        return Trouble("full", f"cannot write {path}: {text}{full}", True)
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError) or "start new thread" in low:
        return Trouble(
            "memory", f"{setup.memory_mb} MiB are not enough for this; ask for less or raise ledger.memoryMb"
        )
    if "newer version" in low or "version number" in low:
        return Trouble("version", f"{path} was written by another version of DuckDB: {text}; upgrade this one", True)
    if isinstance(error, PermissionError) or "permission denied" in low or "read-only" in low:
        return Trouble("permission", f"{path} cannot be written: {text}; give this user the right to", True)
    if isinstance(error, duckdb.FatalException | duckdb.InternalException) or "invalidated" in low:
        return Trouble("fatal", f"the ledger stopped working: {text}; it is being started again", True)
    if "not a valid duckdb" in low or isinstance(error, duckdb.SerializationException) or "corrupt" in low:
        return Trouble(
            "corrupt",
            f"{path} is damaged: {text}; restore it from a backup, or move it and {path}.wal away for a new one",
            True,
        )
    return Trouble("error", f"{type(error).__name__}: {text}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
