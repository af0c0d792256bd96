"""Probes the health of units: one thread and non-blocking sockets, so that a check that hangs delays no other.

A good HTTP answer is any status 200 to 399 to a GET; redirects are not followed, because the place they name may not be
the unit. Thresholds are counted here (`Check.failures`, `successes`, `start_period`).
"""

from __future__ import annotations

import errno
import heapq
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from groundcontrol.ports.processes import Check

MOST_AT_ONCE = 512
"""Probes in flight; more wait their turn, for which their own timeout does not run."""


class Health(NamedTuple):
    """What is shown of a unit's health."""

    healthy: bool | None = None
    message: str = ""
    since: float = 0.0
    probed: float = 0.0


@dataclass(eq=False)
class Patient:
    """One run of one unit, as the prober sees it."""

    check: Check
    address: str
    run_command: Callable[[Patient], None] | None = None
    """Starts the health command, soon; its end is told with `finish`."""
    stop_command: Callable[[Patient], None] | None = None
    started: float = field(default_factory=time.time)
    health: Health = field(default_factory=Health)
    bad: int = 0
    good: int = 0
    cancelled: bool = False
    probe: int = 0
    """Number of the probe in flight, to tell its answer from a late one; 0 when none is."""
    connection: socket.socket | None = None
    request: bytes = b""
    answer: bytes = b""


class Prober:
    """Runs the checks of all units; calls `changed` after `healthy` of any changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._selector = selectors.DefaultSelector()
        self._heap: list[tuple[float, int, Patient, int]] = []
        # Time, a number that decides between equal times, and the probe to give up then; 0: begin the next one.
        self._inbox: list[Callable[[], None]] = []
        self._count = 0
        self._flying: dict[int, Patient] = {}
        self._closed = False
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="ground-checks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._post(lambda: setattr(self, "_closed", True))
        self._thread.join()
        for patient in list(self._flying.values()):
            self._let_go(patient)
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def add(self, patient: Patient) -> None:
        """Probe from now on, the first time at once."""
        if patient.check.kind != "none":
            self._post(lambda: self._schedule(patient, 0.0))

    def cancel(self, patient: Patient) -> None:
        """No more probes; what is in flight is thrown away."""
        patient.cancelled = True
        self._post(lambda: self._let_go(patient))

    def finish(self, patient: Patient, probe: int, good: bool, message: str) -> None:
        """From another thread: a command check ended."""
        self._post(lambda: self._judge(patient, good, message) if patient.probe == probe else None)

    def _post(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        try:
            os.write(self._wake_in, b"w")
        except OSError:
            return  # Full: it will wake anyway. Closed: nobody is left to do it.

    def _schedule(self, patient: Patient, delay: float) -> None:
        self._count += 1
        heapq.heappush(self._heap, (time.monotonic() + delay, self._count, patient, 0))

    def _serve(self) -> None:
        while not self._closed:
            now = time.monotonic()
            pause = min(max(0.0, self._heap[0][0] - now), 60.0) if self._heap else 60.0
            for key, _ in self._selector.select(pause):
                if key.data is None:
                    os.read(self._wake_out, 4096)
                else:
                    self._advance(key.data)
            inbox, self._inbox = self._inbox, []
            for call in inbox:
                call()
            now = time.monotonic()
            while self._heap and self._heap[0][0] <= now:
                _, _, patient, probe = heapq.heappop(self._heap)
                if patient.cancelled:
                    continue
                if not probe:
                    self._begin(patient, now)
                elif probe == patient.probe:
                    self._judge(patient, False, f"no answer within {patient.check.timeout:g} s")

    def _begin(self, patient: Patient, now: float) -> None:
        if len(self._flying) >= MOST_AT_ONCE:
            self._schedule(patient, 0.05)
            return
        self._count += 1
        patient.probe = self._count
        self._flying[patient.probe] = patient
        heapq.heappush(self._heap, (now + patient.check.timeout, self._count, patient, patient.probe))
        if patient.check.kind == "command":
            if patient.run_command is not None:
                patient.run_command(patient)
        else:
            self._connect(patient)

    def _connect(self, patient: Patient) -> None:
        check = patient.check
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        patient.connection, patient.answer = connection, b""
        host = f"{patient.address}:{check.port}"
        headers = f"Host: {host}\r\nUser-Agent: ground-check\r\nConnection: close"
        patient.request = f"GET {check.path} HTTP/1.1\r\n{headers}\r\n\r\n".encode()
        result = connection.connect_ex((patient.address, check.port))
        if result not in (0, errno.EINPROGRESS):
            self._judge(patient, False, f"{host}: {os.strerror(result)}")
            return
        self._selector.register(connection, selectors.EVENT_WRITE, patient)

    def _advance(self, patient: Patient) -> None:
        """The socket of a probe is ready: connected, or answering."""
        connection = patient.connection
        if connection is None:
            return
        host = f"{patient.address}:{patient.check.port}"
        try:
            if patient.request:
                if problem := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._judge(patient, False, f"{host}: {os.strerror(problem)}")
                elif patient.check.kind == "tcp":
                    self._judge(patient, True, "")
                else:
                    patient.request = patient.request[connection.send(patient.request) :]
                    if not patient.request:
                        self._selector.modify(connection, selectors.EVENT_READ, patient)
                return
            piece = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError as problem:
            self._judge(patient, False, f"{host}: {problem.strerror}")
            return
        patient.answer += piece
        line, end, _ = patient.answer.partition(b"\n")
        if end or not piece or len(patient.answer) > 8192:
            self._judge(patient, *read_status(line, f"GET {host}{patient.check.path}"))

    def _let_go(self, patient: Patient) -> None:
        """Forget the probe in flight."""
        if self._flying.pop(patient.probe, None) is not None and patient.stop_command is not None:
            patient.stop_command(patient)
        patient.probe = 0
        if patient.connection is not None:
            if patient.connection.fileno() in self._selector.get_map():
                self._selector.unregister(patient.connection)
            patient.connection.close()
            patient.connection = None

    def _judge(self, patient: Patient, good: bool, message: str) -> None:
        """Count one result against the thresholds, and plan the next probe."""
        self._let_go(patient)
        if patient.cancelled:
            return
        check, before, now = patient.check, patient.health, time.time()
        healthy = before.healthy
        if good:
            patient.good, patient.bad = patient.good + 1, 0
            if patient.good >= check.successes:
                healthy = True
        elif before.healthy is not None or now - patient.started >= check.start_period:
            patient.good, patient.bad = 0, patient.bad + 1
            if patient.bad >= check.failures:
                healthy = False
        else:
            patient.good = 0
        since = before.since if healthy == before.healthy else now
        patient.health = Health(healthy, message, since, now)
        self._schedule(patient, max(0.05, check.interval))
        if healthy != before.healthy:
            self._changed()


def read_status(line: bytes, what: str) -> tuple[bool, str]:
    """Judge the first line of an HTTP answer."""
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return False, f"{what}: the answer is not HTTP" if line else f"{what}: closed without an answer"
    status = int(words[1])
    return 200 <= status < 400, "" if 200 <= status < 400 else f"{what}: status {status}"
