"""The host's side of the conversation with the keeper: starts it when it is not there, asks, hears of ended probes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from groundcontrol.drivers.local import keeper
from groundcontrol.kernel.errors import OutcomeUnknown, Unavailable

ANSWER = 10.0
"""Seconds an order may take."""


class Keeping:
    """One connection to the keeper of `root`, made anew when it breaks."""

    def __init__(self, root: str, probe_ended: Callable[[int, int], None]) -> None:
        self._root = root
        self._probe_ended = probe_ended
        self._numbers = itertools.count(1)
        self._waiting: dict[int, list[Any]] = {}
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._closed = False
        self.pid = 0
        self._connect()
        self._thread = threading.Thread(target=self._listen, name="ground-keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        if connection is not None:
            connection.close()

    def number(self) -> int:
        """A number for an order, to be known before it is sent."""
        return next(self._numbers)

    def ask(self, do: str, number: int = 0, **order: Any) -> dict[str, Any]:
        """Send one order and wait for the answer. Unavailable: not sent; OutcomeUnknown: no answer came."""
        number = number or self.number()
        answer: list[Any] = [threading.Event(), None]
        self._waiting[number] = answer
        try:
            connection = self._connection
            if connection is None:
                raise Unavailable("the keeper of this host's units is being started: try again in a second")
            try:
                with self._send_lock:
                    _send(connection, {"n": number, "do": do, **order})
            except OSError as problem:
                raise OutcomeUnknown(f"the keeper of this host's units ended while it was asked to {do}") from problem
            if not answer[0].wait(ANSWER) or answer[1] is None:
                raise OutcomeUnknown(f"the keeper of this host's units did not answer when asked to {do}")
            result: dict[str, Any] = answer[1]
            return result
        finally:
            self._waiting.pop(number, None)

    def _connect(self) -> None:
        """Connect; start a keeper when none listens. Raises Unavailable after ten seconds of trying."""
        deadline = time.monotonic() + ANSWER
        connection = self._try_connect()
        while True:
            if connection is not None:
                self._connection = connection
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"the keeper of {self._root} does not come up: run it by hand to see why")
            # It ends its first process when it listens, or when another keeper was quicker.
            command = [sys.executable, "-I", "-S", keeper.__file__, self._root]
            # Its own log, not ours: what reads our output to its end would otherwise wait for every unit.
            environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
            with open(f"{self._root}/keeper/errors", "ab") as errors:
                subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment, check=False
                )
            connection = self._try_connect()
            if connection is None:
                time.sleep(0.1)

    def _try_connect(self) -> socket.socket | None:
        """A connection on which a keeper of our version said hello."""
        place = os.open(f"{self._root}/keeper", os.O_RDONLY | os.O_DIRECTORY)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(5.0)
            connection.connect(f"/proc/self/fd/{place}/socket")
            _send(connection, {"n": 0, "do": "hello"})
            hello = _receive(connection)
            if hello is None:
                raise ConnectionResetError
            if hello.get("version") != keeper.VERSION:
                _send(connection, {"n": 0, "do": "retire"})
                _receive(connection)
                raise ConnectionResetError
            connection.settimeout(None)
            self.pid = hello["pid"]
            return connection
        except (OSError, ValueError):
            connection.close()
            return None
        finally:
            os.close(place)

    def _listen(self) -> None:
        while True:
            try:
                message = _receive(self._connection) if self._connection is not None else None
            except (OSError, ValueError):
                message = None
            if message is None:
                if not self._reconnect():
                    return
            elif "probe" in message:
                self._probe_ended(message["probe"], message["code"])
            elif waiting := self._waiting.get(message.get("n", 0)):
                waiting[1] = message
                waiting[0].set()

    def _reconnect(self) -> bool:
        connection, self._connection = self._connection, None
        if connection is not None and not self._closed:
            connection.close()
        for waiting in list(self._waiting.values()):
            waiting[0].set()
        while not self._closed:
            try:
                self._connect()
                return True
            except (Unavailable, OSError):
                time.sleep(0.5)
        return False


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    connection.sendall(len(body).to_bytes(4, "big") + body)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """One message; None at the end."""
    header = _exactly(connection, 4)
    body = _exactly(connection, int.from_bytes(header, "big")) if header else b""
    if not body:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)
