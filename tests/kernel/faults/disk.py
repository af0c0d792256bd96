"""A disk that forgets: SQLite's own file layer with a journal of every write and every sync, and faults to order.

It works without a compiler: through ctypes it registers a VFS that opens files as SQLite does, and then points each
file at a copy of its table of functions in which write, truncate and sync are ours. `replay` makes the files as they
would be found after the power failed: everything that was synced, and any part of what was not.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_Pointer, _Int, _Int64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_CLOSE, _READ, _WRITE, _TRUNCATE, _SYNC = 0, 1, 2, 3, 4
_METHODS = 18
"""Pointers in a `sqlite3_io_methods` of version 3, behind the version itself."""
FULL = 13
"""SQLITE_FULL."""
_HEAD = struct.Struct("<cHqI")


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", _Int),
        ("file_size", _Int),
        ("path_size", _Int),
        ("next", _Pointer),
        ("name", ctypes.c_char_p),
        ("data", _Pointer),
        ("open", _Pointer),
        ("rest", _Pointer * 15),
    )


class _Table(ctypes.Structure):
    _fields_ = (("version", _Int), ("call", _Pointer * _METHODS))


_OPEN = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Pointer, _Int, _Pointer)
_ON_WRITE = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Int, _Int64)
_ON_TRUNCATE = ctypes.CFUNCTYPE(_Int, _Pointer, _Int64)
_ON_SYNC = ctypes.CFUNCTYPE(_Int, _Pointer, _Int)


class ForgetfulDisk:
    """Replaces the file layer of this whole process; journals to `journal`."""

    def __init__(self, journal: Path) -> None:
        self.fault: Callable[[str, str], int] = lambda call, name: 0
        """Asked before each write, truncate and sync with the file's name; an SQLite error code, or 0 to go on."""
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._names: dict[int, str] = {}
        self._tables: dict[int, tuple[_Table, Any]] = {}
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        real = library.sqlite3_vfs_find(None).contents
        self._vfs = _Vfs.from_buffer_copy(real)
        self._real_open, self._open = _OPEN(real.open), _OPEN(self._on_open)
        self._vfs.name, self._vfs.next = b"forgetful", None
        self._vfs.open = ctypes.cast(self._open, _Pointer)
        # The copy hands itself to the real functions, which only ever read the fields that are the same.
        if library.sqlite3_vfs_register(ctypes.byref(self._vfs), 1):
            raise OSError("SQLite refused the file layer")

    def _on_open(self, vfs: int, name: int, file: int, flags: int, out: int) -> int:
        code = self._real_open(vfs, name, file, flags, out)
        methods = ctypes.cast(file, ctypes.POINTER(_Pointer))
        if code == 0 and name and methods[0]:
            with self._lock:
                self._names[file] = os.path.basename(ctypes.string_at(name).decode())
                methods[0] = self._table(methods[0])
        return code

    def _table(self, original: int) -> int:
        if original not in self._tables:
            real = _Table.from_address(original)
            table = _Table.from_buffer_copy(real)
            kept = (
                _ON_WRITE(self._writer(_ON_WRITE(real.call[_WRITE]))),
                _ON_TRUNCATE(self._truncater(_ON_TRUNCATE(real.call[_TRUNCATE]))),
                _ON_SYNC(self._syncer(_ON_SYNC(real.call[_SYNC]))),
            )
            for place, function in zip((_WRITE, _TRUNCATE, _SYNC), kept, strict=True):
                table.call[place] = ctypes.cast(function, _Pointer)
            self._tables[original] = (table, kept)
        return ctypes.addressof(self._tables[original][0])

    def _writer(self, real: Any) -> Callable[[int, int, int, int], int]:
        def write(file: int, data: int, size: int, offset: int) -> int:
            name = self._names[file]
            code = self.fault("write", name) or real(file, data, size, offset)
            if code == 0:
                self._note(b"w", name, offset, ctypes.string_at(data, size))
            return code

        return write

    def _truncater(self, real: Any) -> Callable[[int, int], int]:
        def truncate(file: int, size: int) -> int:
            name = self._names[file]
            code = self.fault("truncate", name) or real(file, size)
            if code == 0:
                self._note(b"t", name, size)
            return code

        return truncate

    def _syncer(self, real: Any) -> Callable[[int, int], int]:
        def sync(file: int, flags: int) -> int:
            name = self._names[file]
            code = self.fault("sync", name) or real(file, flags)
            if code == 0:
                self._note(b"s", name)
            return code

        return sync

    def _note(self, what: bytes, name: str, number: int = 0, data: bytes = b"") -> None:
        encoded = name.encode()
        os.write(self._journal, _HEAD.pack(what, len(encoded), number, len(data)) + encoded + data)


def replay(journal: Path, before: Path, after: Path, chance: random.Random | None = None) -> int:
    """Make in `after` the files of `before` as the power failure left them; how many writes were lost.

    Without `chance` everything that was not synced is lost, with it each such write is lost or torn by chance."""
    files = {p.name: bytearray(p.read_bytes()) for p in before.iterdir() if p.is_file()}
    unsynced: dict[str, list[tuple[bytes, int, bytes]]] = {}
    raw, at = journal.read_bytes(), 0
    while at + _HEAD.size <= len(raw):
        what, name_size, number, size = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        if at + name_size + size > len(raw):
            break  # the process was killed while it wrote this
        name = raw[at : at + name_size].decode()
        data = raw[at + name_size : at + name_size + size]
        at += name_size + size
        if what == b"s":
            for one in unsynced.pop(name, []):
                _apply(files.setdefault(name, bytearray()), *one)
        else:
            unsynced.setdefault(name, []).append((what, number, data))
    lost = 0
    for name, rest in unsynced.items():
        for what, number, data in rest:
            if chance is None or chance.random() < 0.5:
                lost += 1
            else:
                torn = data[: chance.randrange(len(data) + 1)] if chance.random() < 0.2 else data
                _apply(files.setdefault(name, bytearray()), what, number, torn)
    after.mkdir()
    for name, content in files.items():
        (after / name).write_bytes(content)
    return lost


def _apply(content: bytearray, what: bytes, number: int, data: bytes) -> None:
    if what == b"t":
        del content[number:]
        return
    if len(content) < number:
        content.extend(bytes(number - len(content)))
    content[number : number + len(data)] = data
