"""The log of what runs, as text: from an offset to its end, or on and on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from starlette.responses import Response

from groundcontrol.interfaces.api.answers import Stream
from groundcontrol.interfaces.api.backend import LogReader
from groundcontrol.interfaces.api.operation import Call, Operation, Param
from groundcontrol.kernel.errors import GroundError, NotFound, Unavailable
from groundcontrol.kernel.resource import Key

EVERY = 0.5
"""Seconds between looks of a followed log."""

QUERY = (
    Param("index", "integer", "Which instance of a service.", default=0, most=9999),
    Param("offset", "integer", "Begin behind so many bytes.", default=0),
    Param("follow", "boolean", "Go on with what is written from now on.", default=False),
)


def log_operation(kind: str, one: str, tag: str) -> Operation:
    """`GET …/{name}/log` of a kind whose actions have `log`."""
    return Operation(
        "GET", f"{one}/log", f"log{kind}", tag, "What it wrote, as text.", partial(_log, kind), QUERY,
        answers={200: None}, answer_media="text/plain", kind=kind, verb="log",
    )  # fmt: skip


async def _log(kind: str, call: Call) -> Response:
    backend, key = call.backend, call.key(kind)
    _may_read(call, key)
    if backend.log_reader is None:
        raise Unavailable("this server reads no logs; it was assembled without a reader")
    reader, index, offset = backend.log_reader, call.query["index"], call.query["offset"]
    first = await call.blocking(lambda: reader(key, index, offset))
    return Stream(_pieces(call, reader, key, first), "text/plain")


def _may_read(call: Call, key: Key) -> None:
    entry = call.backend.store.entry(key)
    labels = entry.labels if entry else {}
    access = call.backend.access
    access.require(call.subject, "log", key.kind, namespace=key.namespace, name=key.name, labels=labels)
    if entry is None:
        raise NotFound(f"there is no {key}")


async def _pieces(call: Call, reader: LogReader, key: Key, piece: bytes) -> AsyncIterator[bytes]:
    """The pieces; a followed log ends when its resource, the right to read it, or the token is gone."""
    index, offset, follow = call.query["index"], call.query["offset"], call.query["follow"]
    while True:
        while piece:
            yield piece
            offset += len(piece)
            piece = await call.blocking(partial(reader, key, index, offset))
        if not follow:
            return
        await asyncio.sleep(EVERY)
        try:
            call.signed_in(call.backend.accounts.again(call.subject))
            _may_read(call, key)
            piece = await call.blocking(partial(reader, key, index, offset))
        except GroundError:
            return
