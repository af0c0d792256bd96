"""Answers in the one shape: documents, lists and errors, with the headers every answer has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.resource import Doc

log = logging.getLogger(__name__)

SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def raw_json(data: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that is encoded already."""
    return Response(data, status, {**SECURITY, **(headers or {})}, "application/json")


def encoded(value: Any, status: int = 200, *, dry_run: bool = False, event: int = 0) -> Response:
    """A value as JSON; `event` is the number of the last event a reader can ask for."""
    headers = {"x-ground-dry-run": "true"} if dry_run else {"x-ground-event": str(event)} if event else {}
    return raw_json(msgspec.json.encode(value), status, headers)


def document(doc: Doc, status: int = 200, *, dry_run: bool = False) -> Response:
    """A resource, after a change."""
    return encoded(doc, status, dry_run=dry_run, event=doc["metadata"]["resourceVersion"])


def failure(error: GroundError, status: int = 0, reason: str = "") -> Response:
    """The shape of every error."""
    body: Doc = {
        "status": status or error.status,
        "reason": reason or error.reason,
        "message": error.message,
        "problems": [p.as_dict() for p in error.problems],
    }
    headers = {}
    if error.retry_after is not None:
        body["retryAfter"] = error.retry_after
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if body["status"] == 401:
        headers["www-authenticate"] = 'Bearer realm="ground"'
    return raw_json(msgspec.json.encode({"error": body}), body["status"], headers)


class Stream(Response):
    """A body that comes bit by bit. It ends when the caller goes, or takes no piece for `stalled` seconds."""

    def __init__(self, pieces: AsyncIterator[bytes], media: str, *, stalled: float = 30.0) -> None:
        self._pieces = pieces
        self._stalled = stalled
        super().__init__(None, 200, {**SECURITY, "x-accel-buffering": "no"}, media)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            for task in (sending, leaving):
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task
            close = getattr(self._pieces, "aclose", None)
            if close:
                await close()

    async def _send(self, send: Send) -> None:
        try:
            async for piece in self._pieces:
                message = {"type": "http.response.body", "body": piece, "more_body": True}
                await asyncio.wait_for(send(message), self._stalled)
        except TimeoutError:
            # The connection takes nothing any more: no proper end can be sent either.
            log.info("a reader took nothing for %g s; its stream is closed", self._stalled)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
