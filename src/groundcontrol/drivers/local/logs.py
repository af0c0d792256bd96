"""Reads the logs of units. Offsets are bytes in the file and stay true when the head is given back to the disk.

The keeper bounds a log by punching a hole into its head; `lseek(SEEK_DATA)` then says where text begins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from groundcontrol.ports.processes import LogChunk

LARGEST = 1 << 20
"""Bytes of one chunk at most."""


def read(path: str, offset: int, limit: int) -> LogChunk:
    """A chunk from `offset`, negative: from the end. Never splits a UTF-8 character."""
    limit = max(1, min(limit, LARGEST))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return LogChunk("", 0)
    try:
        size = os.fstat(descriptor).st_size
        from_end = offset < 0
        if from_end:
            offset = max(0, size + offset)
        if offset > size:
            offset = 0  # The file was cut (a file system without holes): begin with what there is.
        if offset == size:
            return LogChunk("", size)
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            return LogChunk("", size)
        data = os.pread(descriptor, limit + 4, offset)
    finally:
        os.close(descriptor)
    # A hole ends at a block's edge, in the middle of a line; and a tail may begin inside a character.
    skip = 0
    while from_end and skip < min(4, len(data)) and data[skip] & 0xC0 == 0x80:
        skip += 1
    keep = _whole(data[:limit]) if len(data) >= limit else _whole(data)
    return LogChunk(data[skip:keep].decode(errors="replace"), offset + keep)


def _whole(data: bytes) -> int:
    """Length of `data` without a character cut off at its end; all of it when it is not UTF-8 anyway."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if need > back and len(data) > back else len(data)
    return len(data)


def follow(path: str, offset: int, exists: Callable[[], bool], pause: float = 0.1) -> Iterator[LogChunk]:
    """Chunks as they are written, and an empty one each second of silence; ends when the unit is gone."""
    silent = time.monotonic()
    if offset < 0:
        try:
            offset = max(0, os.stat(path).st_size + offset)
        except OSError:
            offset = 0
    while exists():
        chunk = read(path, offset, LARGEST // 4)
        offset = chunk.offset
        if chunk.text or time.monotonic() - silent > 1.0:
            silent = time.monotonic()
            yield chunk
        else:
            time.sleep(pause)
