"""How the ledger's two processes talk: length-prefixed MessagePack over one socket pair, requests with a deadline."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Any

import msgspec

MAX_FRAME = 128 << 20
"""A longer frame is a defect on the other side."""

GAVE_UP = 2
"""Exit code of a child whose DuckDB is of no use any more, after it told why."""

_HEAD = struct.Struct(">I")


class Request(msgspec.Struct, array_like=True):
    """One call. `deadline` is CLOCK_MONOTONIC, which both processes share: what nobody waits for is not done."""

    id: int
    op: str
    args: list[Any]
    deadline: float


class Reply(msgspec.Struct, array_like=True):
    """The answer to request `id`; `reason` is empty when it went well, a word of ours otherwise."""

    id: int
    value: Any = None
    reason: str = ""
    message: str = ""


_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_request = msgspec.msgpack.Decoder(Request)
_reply = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    body = _encoder.encode(message)
    return _HEAD.pack(len(body)) + body


def receive_request(sock: socket.socket) -> Request | None:
    """The next request; None when the other side is gone."""
    body = _receive(sock)
    return None if body is None else _request.decode(body)


def receive_reply(sock: socket.socket) -> Reply | None:
    """The next reply; None when the other side is gone."""
    body = _receive(sock)
    return None if body is None else _reply.decode(body)


def _receive(sock: socket.socket) -> bytearray | None:
    head = _exactly(sock, _HEAD.size)
    if head is None:
        return None
    (length,) = _HEAD.unpack(head)
    return None if length > MAX_FRAME else _exactly(sock, length)


def _exactly(sock: socket.socket, count: int) -> bytearray | None:
    buffer = bytearray(count)
    view, have = memoryview(buffer), 0
    while have < count:
        try:
            got = sock.recv_into(view[have:])
        except OSError:
            return None
        if not got:
            return None
        have += got
    return buffer


def send(sock: socket.socket, frame: bytes, deadline: float) -> int:
    """Send until the deadline and return how many bytes went out; after a part of a frame the stream is of no use.

    The other side may be stopped with its buffer full, so this must not block. Raises OSError when it is gone."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    rest = memoryview(frame)
    while rest:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        try:
            rest = rest[sock.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            continue
    return len(frame) - len(rest)
