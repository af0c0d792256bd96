"""Append-only facts by the million (audit, timeline, journals, probes, usage), kept by a child process in DuckDB.

This side never imports duckdb and never blocks for longer than it says: a child that died, hangs, or has no disk left
makes calls raise Unavailable, and is started again with a growing wait. Nothing else of the program depends on it:
facts are written in the store first and shipped here later (`ledger_shipper`).

A fact is stored once: (source, seq) is the key of its dataset, and the highest seq of each (source, dataset) commits
together with the facts, so that a sender knows where to go on.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from groundcontrol.kernel import ledger_sql as sql
from groundcontrol.kernel import ledger_wire as wire
from groundcontrol.kernel.errors import GroundError, Invalid, NotFound, TooLarge, TooMany, Unavailable
from groundcontrol.kernel.ledger_sql import Dataset, Query
from groundcontrol.kernel.resource import did_you_mean

__all__ = ["Dataset", "Ledger", "Mark", "Query"]

log = logging.getLogger(__name__)

OPEN_SECONDS = 60.0
"""Opening replays what was not folded into the file when the last child was killed."""
EXPORT_SECONDS = 600.0
RETAIN_SECONDS = 600.0
_STEADY = 10.0
"""A child that lived as long as this was well: the next one is started at once."""
_FIRST_WAIT = 0.1
# What DuckDB needs of the environment. The rest may hold our credentials and is nobody's business there.
_KEPT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class Mark(NamedTuple):
    """How far a stream has come, stored with the facts that brought it there."""

    source: str
    stream: str
    seq: int


class Ledger:
    """The ledger, as the rest of the program sees it. Safe to use from many threads."""

    def __init__(
        self,
        path: str | Path,
        datasets: Iterable[Dataset],
        *,
        memory_mb: int = 512,
        call_seconds: float = 10.0,
        hang_seconds: float = 15.0,
        longest_wait: float = 30.0,
    ) -> None:
        """`call_seconds` bounds every call but query, export and retain, which say their own. A child that does not
        answer a ping for `hang_seconds` is killed. `longest_wait` is the longest pause between two starts."""
        self.path = Path(path).absolute()
        self.datasets = {d.name: d for d in (*datasets, sql.REJECTED)}
        self._memory_mb = memory_mb
        self._call_seconds = call_seconds
        self._hang_seconds = hang_seconds
        self._longest_wait = longest_wait
        self._child: _Child | None = None
        """The one that answers; `_spawned` is also one that is still opening the file."""
        self._spawned: _Child | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._error = "it was not started"
        self._starts = 0
        self._since = time.time()
        self._rows: dict[str, int] = {}

    # -------------------------------------------------------------------------------------------- life

    def start(self, wait: float = 10.0) -> bool:
        """Start the child; True when it was ready within `wait` seconds. Otherwise it goes on trying."""
        if self._supervisor is None:
            self._stopping.clear()
            self._error = "it is starting"
            # One thread starts every child and lives as long as any: the kernel takes the death of the thread that
            # started a process for the death of its parent.
            self._supervisor = threading.Thread(target=self._supervise, name="ledger", daemon=True)
            self._supervisor.start()
        with self._changed:
            return self._changed.wait_for(lambda: self._child is not None or self._stopping.is_set(), wait)

    def stop(self, wait: float = 10.0) -> None:
        """Let the child fold its log into the file and end; kill it after `wait` seconds."""
        self._stopping.set()
        child = self._child
        if child is not None:
            try:
                child.call("stop", [], wait)
            except GroundError as error:
                log.warning("the ledger did not stop in order: %s", error.message)
        if self._spawned is not None:
            self._spawned.end()
        if self._supervisor is not None:
            self._supervisor.join(wait)
            self._supervisor = None
        self._error = "it was stopped"

    def _supervise(self) -> None:
        wait = _FIRST_WAIT
        while not self._stopping.is_set():
            began = time.monotonic()
            child: _Child | None = None
            try:
                child = self._spawned = _Child()
                self._starts += 1
                setup = {"path": str(self.path), "memory_mb": self._memory_mb, "threads": 2}
                child.call("open", [{**setup, "datasets": list(self.datasets.values())}], OPEN_SECONDS)
                self._now(child, "")
                child.watch(self._hang_seconds, self._stopping)
            except GroundError as error:
                self._now(None, error.message)
            except Exception as error:  # no process, no memory: tell it and try again
                self._now(None, f"{type(error).__name__}: {error}")
            finally:
                if child is not None:
                    child.end()
            if self._stopping.is_set():
                break
            log.warning("the ledger is down: %s", self._error)
            if time.monotonic() - began > _STEADY:
                wait = _FIRST_WAIT
            self._stopping.wait(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, self._longest_wait)
        self._now(None, "it was stopped")

    def _now(self, child: _Child | None, error: str) -> None:
        with self._changed:
            self._child, self._error, self._since = child, error, time.time()
            self._changed.notify_all()

    def _call(self, op: str, args: list[Any], seconds: float) -> Any:
        child = self._child
        if child is None:
            raise Unavailable(f"the ledger is not available: {self._error}", retry_after=1.0)
        return child.call(op, args, seconds)

    # -------------------------------------------------------------------------------------------- facts

    def dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            known = ", ".join(self.datasets)
            raise Invalid(
                f"the ledger has no dataset {name!r}{did_you_mean(name, self.datasets) or f'; it has {known}'}"
            )
        return self.datasets[name]

    def append(self, dataset: str, facts: Sequence[Mapping[str, Any]]) -> int:
        """Store facts, each once however often they are sent; the highest seq of them, which is on disk now.

        Invalid: a fact does not fit its dataset, nothing was stored. Unavailable: send them again later."""
        self.store({dataset: facts})
        return max((int(f["seq"]) for f in facts), default=0)

    def store(self, parts: Mapping[str, Sequence[Mapping[str, Any]]], mark: Mark | None = None) -> None:
        """Facts of several datasets, and how far the stream they came from is read, in one transaction."""
        batches = {name: sql.batch(self.dataset(name), facts) for name, facts in parts.items() if facts}
        size = sum(len(b.rows) for b in batches.values())
        if size > self.largest:
            raise TooLarge(f"{size:,} bytes of facts at once; {self.largest:,} are taken: send fewer")
        marks = [Mark(source, name, seq) for name, b in batches.items() for source, seq in b.highest.items()]
        if mark is not None:
            marks.append(mark)
        self._call("append", [[(name, b.rows) for name, b in batches.items()], marks], self._call_seconds)

    @property
    def largest(self) -> int:
        """Bytes of facts taken at once: reading them takes the child many times as much."""
        return min(32 << 20, (self._memory_mb << 20) // 16)

    def watermark(self, source: str, dataset: str) -> int:
        """The highest seq stored of a source in a dataset (or in the stream of a `Mark`); 0 when none is."""
        return int(self._call("watermark", [source, dataset], self._call_seconds))

    def query(self, query: Query) -> tuple[list[str], list[list[Any]]]:
        """(columns, rows). Times are RFC 3339 in UTC. Invalid says everything that is wrong with the query."""
        statement = sql.select(self.dataset(query.dataset), query)
        rows = self._call("query", [statement.sql, statement.parameters], query.timeout)
        for row in rows:
            for position in statement.json:
                if row[position] is not None:
                    row[position] = msgspec.json.decode(row[position])
        return statement.columns, rows

    def months(self, dataset: str) -> list[str]:
        """The months there are facts of, `2026-01`, oldest first."""
        rows = self._call("query", [sql.months(self.dataset(dataset)), []], EXPORT_SECONDS)
        return [str(row[0]) for row in rows]

    def export(self, dataset: str, directory: str | Path, month: str) -> Path:
        """Write the facts of a month as Parquet to `<directory>/<dataset>-<month>.parquet`, whole or not at all."""
        sql.month(self.dataset(dataset), month)
        staged = Path(f"{self.path}.export") / f"{uuid.uuid4().hex}.parquet"
        target = Path(directory) / f"{dataset}-{month}.parquet"
        try:
            if not self._call("export", [dataset, month, staged.name], EXPORT_SECONDS):
                raise NotFound(f"dataset {dataset} has no facts of {month}")
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{staged.name}")
            try:
                shutil.copyfile(staged, beside)
                os.replace(beside, target)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot write {target}: {error.strerror}") from None
        finally:
            staged.unlink(missing_ok=True)
        return target

    def export_all(self, dataset: str, directory: str | Path) -> list[Path]:
        """Every month of a dataset."""
        return [self.export(dataset, directory, month) for month in self.months(dataset)]

    def retain(self, days: Mapping[str, int], *, at: float | None = None) -> dict[str, int]:
        """Delete facts older than so many days (0: none), counted back from `at`; {dataset: facts deleted}."""
        moment = time.time() if at is None else at
        limits = [(self.dataset(name).name, sql.stamp(moment - n * 86400.0)) for name, n in days.items() if n > 0]
        found = self._call("retain", [limits], RETAIN_SECONDS)
        return {str(name): int(count) for name, count in found.items()}

    def status(self) -> dict[str, Any]:
        """For people: state, pid, facts by dataset, bytes, calls under way, starts, last error. Never raises."""
        child, error = self._child, self._error
        if child is not None:
            try:
                self._rows = child.call("rows", [], min(2.0, self._call_seconds))
            except GroundError as trouble:
                error = trouble.message
        files = (self.path, Path(f"{self.path}.wal"))
        return {
            "state": "up" if child is not None else "stopped" if self._supervisor is None else "down",
            "since": self._since,
            "pid": child.pid if child is not None else 0,
            "rows": dict(self._rows),
            "bytes": sum(f.stat().st_size for f in files if f.exists()),
            "waiting": child.waiting if child is not None else 0,
            "starts": self._starts,
            "error": error,
        }


class _Child:
    """One child process and the calls under way to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "groundcontrol.kernel.ledger_child", str(theirs.fileno()), str(os.getpid())]
        environ = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(("LC_", "PYTHON"))}
        try:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._sock = ours
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._calls: dict[int, Future[Any]] = {}
        self._next = 0
        self._trouble = ""
        """The last thing it complained of."""
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, name="ledger-reader", daemon=True)
        self._reader.start()

    @property
    def waiting(self) -> int:
        return len(self._calls)

    def call(self, op: str, args: list[Any], seconds: float) -> Any:
        """The answer, or Unavailable within `seconds` (and a little)."""
        deadline = time.monotonic() + seconds
        future: Future[Any] = Future()
        with self._lock:
            if self._ended.is_set():
                raise Unavailable("the ledger's process has ended; it is being started again", retry_after=1.0)
            self._next += 1
            number = self._next
            self._calls[number] = future
        try:
            self._send(wire.encode(wire.Request(number, op, args, deadline)), deadline)
            # A query that is interrupted at the deadline has a moment to say so.
            return future.result(max(0.0, deadline - time.monotonic()) + min(0.5, seconds))
        except TimeoutError:
            raise Unavailable(f"the ledger did not answer within {seconds:g} s", retry_after=1.0) from None
        finally:
            with self._lock:
                self._calls.pop(number, None)

    def _send(self, frame: bytes, deadline: float) -> None:
        if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        try:
            sent = wire.send(self._sock, frame, deadline)
        except OSError:
            raise Unavailable("the ledger's process has ended; it is being started again", retry_after=1.0) from None
        finally:
            self._sending.release()
        if sent < len(frame):
            if sent:
                self._process.kill()  # half a request went out: no further one would be understood
            raise TimeoutError

    def _read(self) -> None:
        try:
            while (reply := wire.receive_reply(self._sock)) is not None:
                with self._lock:
                    future = self._calls.pop(reply.id, None)
                self._trouble = reply.message or self._trouble
                if future is not None:
                    _settle(future, reply)
        except msgspec.MsgspecError:
            self._process.kill()  # it wrote half a reply, or what is none
        with self._lock:
            self._ended.set()
            left, self._calls = list(self._calls.values()), {}
        for future in left:
            future.set_exception(
                Unavailable("the ledger's process ended before it answered; it is being started again", retry_after=1.0)
            )

    def watch(self, hang_seconds: float, stopping: threading.Event) -> None:
        """Raise Unavailable when the process ended or hangs; return when `stopping` is set."""
        while not stopping.is_set() and not self._ended.wait(hang_seconds / 3):
            if not stopping.is_set():
                self.call("ping", [], hang_seconds)
        if stopping.is_set():
            self._ended.wait(hang_seconds)  # whoever stops it is waiting for its last word
        else:
            code = self._process.wait()
            if code == wire.GAVE_UP:
                raise Unavailable(self._trouble)
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            raise Unavailable(f"its process {how}")

    def end(self) -> None:
        """Make sure that it is gone."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._sock.close()


def _settle(future: Future[Any], reply: wire.Reply) -> None:
    kinds: dict[str, type[GroundError]] = {"invalid": Invalid, "busy": TooMany}
    if not reply.reason:
        future.set_result(reply.value)
    elif reply.reason in kinds:
        future.set_exception(kinds[reply.reason](reply.message))
    else:
        future.set_exception(Unavailable(reply.message, retry_after=1.0))
