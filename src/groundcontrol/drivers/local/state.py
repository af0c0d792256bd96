"""What a host remembers across its own death, written so that a kill at any moment leaves the old or the new, whole.

root/lock           held by the one process that serves this root
root/host.json      name key, secret key, highest epoch seen, tenants and their user ids
root/keeper/        lock and socket of the keeper
root/new/           units being put together; emptied at start
root/trash/         units being removed; emptied at start
root/units/<id>/    unit.json secret run exit log dir/
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import subprocess
from typing import Literal, TypeVar

import msgspec

from groundcontrol.kernel.errors import Conflict, Fenced
from groundcontrol.ports.processes import UnitSpec

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`unit.json`: what was ordered and what is known of the past. Who runs now is read from `run` and /proc."""

    id: str
    tags: dict[str, str]
    spec: UnitSpec
    """Without `secret_env`, which lies in `secret`."""
    secret_hash: str = ""
    address: str
    uid: int | None = None
    revision: int = 1
    goal: Literal["run", "stop", "delete"] = "run"
    """What was last ordered; written before it is done, so that a host that was killed knows what to finish."""
    run: str = ""
    """Nonce of the run ordered last."""
    ended: str = ""
    """Nonce of the run whose end is counted in `exits` already."""
    unapplied: bool = False
    """The files of `spec` may not be on disk yet."""
    starts: int = 0
    exits: int = 0
    exit_code: int | None = None
    exited: float = 0.0
    started: float = 0.0


class Run(msgspec.Struct, frozen=True):
    """`run`, written by the keeper before the process executes anything."""

    run: str
    pid: int
    ticks: int
    boot: str
    started: float


class Exit(msgspec.Struct, frozen=True):
    """`exit`, written by the keeper before the zombie goes."""

    run: str
    code: int
    time: float


class HostRecord(msgspec.Struct, kw_only=True):
    """`host.json`."""

    key: str
    """Part of every run token: tells this host's processes from those of another root on the same machine."""
    secret: str
    """Key of `secret_hash`."""
    epoch: int = 0
    tenants: dict[str, int] = {}


# Described on the thread that imports: see ports/processes.py.
for _kind in (Record, Run, Exit, HostRecord):
    msgspec.json.Decoder(_kind)


def write_whole(path: str, content: bytes, mode: int = 0o600) -> None:
    """Replace a file so that a reader, or a start after a power cut, finds the old or the new content, never a mix."""
    folder, name = os.path.split(path)
    temporary = f"{folder}/.{name}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with open(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


def sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_as(path: str, kind: type[T]) -> T | None:
    """The file as `kind`; None when it is not there. Raises msgspec.DecodeError when it is damaged."""
    try:
        with open(path, "rb") as source:
            return msgspec.json.decode(source.read(), type=kind)
    except FileNotFoundError:
        return None


class Place:
    """The root folder of one host."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        # Others may pass through, to reach the folder of their own unit, but list nothing.
        os.makedirs(self.root, mode=0o711, exist_ok=True)
        os.chmod(self.root, 0o711)
        self._lock = self._take_lock()
        for name, mode in (("keeper", 0o700), ("new", 0o700), ("trash", 0o700), ("units", 0o711)):
            os.makedirs(f"{self.root}/{name}", exist_ok=True)
            os.chmod(f"{self.root}/{name}", mode)
        self._path = f"{self.root}/host.json"
        known = read_as(self._path, HostRecord)
        self.host = known or HostRecord(key=secrets.token_hex(4), secret=secrets.token_hex(32))
        if known is None:
            self.save_host()

    def _take_lock(self) -> int:
        descriptor = os.open(f"{self.root}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 64).decode(errors="replace").strip()
            os.close(descriptor)
            raise Conflict(
                f"{self.root} is already served by process {owner or 'unknown'}: stop that one, or choose another root"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def close(self) -> None:
        os.close(self._lock)

    def save_host(self) -> None:
        write_whole(self._path, msgspec.json.encode(self.host))

    def admit(self, epoch: int) -> None:
        """Refuse an older epoch than one seen; remember a newer one before anything is done under it."""
        if epoch < self.host.epoch:
            raise Fenced(
                f"epoch {epoch} is over: this host has seen epoch {self.host.epoch}; another worker owns it now"
            )
        if epoch > self.host.epoch:
            self.host.epoch = epoch
            self.save_host()

    def hash_secret(self, unit_id: str, secret_env: dict[str, str]) -> str:
        """Keyed hash of a secret environment: equal for equal secrets of the same unit, useless for guessing."""
        if not secret_env:
            return ""
        text = json.dumps([unit_id, sorted(secret_env.items())]).encode()
        return hmac.new(bytes.fromhex(self.host.secret), text, hashlib.sha256).hexdigest()

    def unit(self, unit_id: str) -> str:
        return f"{self.root}/units/{unit_id}"

    def unit_ids(self) -> list[str]:
        return sorted(os.listdir(f"{self.root}/units"))

    def save(self, record: Record) -> None:
        write_whole(f"{self.unit(record.id)}/unit.json", msgspec.json.encode(record))

    def load(self, unit_id: str) -> Record | None:
        return read_as(f"{self.unit(unit_id)}/unit.json", Record)

    def secret_env(self, unit_id: str) -> dict[str, str]:
        return read_as(f"{self.unit(unit_id)}/secret", dict[str, str]) or {}

    def begin(self) -> str:
        """An empty folder in which a unit is put together out of sight."""
        path = f"{self.root}/new/{secrets.token_hex(8)}"
        os.mkdir(path)
        os.chmod(path, 0o711)
        return path

    def publish(self, draft: str, unit_id: str) -> None:
        """Make the draft the unit, at once and durably."""
        sync_folder(draft)
        os.rename(draft, self.unit(unit_id))
        sync_folder(f"{self.root}/units")

    def discard(self, unit_id: str) -> None:
        """Take the unit out of sight at once and durably, then remove what it left."""
        trash = f"{self.root}/trash/{secrets.token_hex(8)}"
        try:
            os.rename(self.unit(unit_id), trash)
        except FileNotFoundError:
            return
        sync_folder(f"{self.root}/units")
        remove(trash)

    def sweep(self) -> None:
        """Remove what a killed host left half made or half removed."""
        for name in ("new", "trash"):
            for entry in os.listdir(f"{self.root}/{name}"):
                remove(f"{self.root}/{name}/{entry}")


def remove(path: str) -> None:
    """Remove a folder a tenant may have filled: follows no link, copes with any depth, stops at mounts."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        subprocess.run(["rm", "-rf", "--one-file-system", path], check=False, stderr=subprocess.DEVNULL)
