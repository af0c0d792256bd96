"""Notices that the database is a copy from earlier, and keeps the server to looking until a person has let it act.

After a restore the world is newer than what is known of it: what was made since looks like nobody's, what was deleted
looks lost. So a restored database begins a new incarnation. Event numbers and epochs leap beyond everything the lost
history can have handed out, so that no watcher and no driver mistakes one for the other; and nothing is changed: all
that would be done is held as one plan, which a person approves by its digest.

What the database cannot tell of itself, a witness beside it does: a small file with the newest numbers seen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import uuid
from pathlib import Path
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Conflict, Invalid, Unavailable

log = logging.getLogger(__name__)
_m = tables.meta

SCOPE = "restore"
"""The plan of a restored installation is `restore:INCARNATION`."""
LEAP = 10**12
"""Numbers of events and facts begin anew at the next multiple: ten years at three thousand a second, and nine thousand
restores, before a number does not fit the integers of JavaScript."""
EPOCH_LEAP = 10**6
"""Epochs likewise: one is used up by each start."""
ID = re.compile(r"[0-9a-f]{12}")
"""What an installation is called; it is in the mark of everything it makes."""
RECORD = 256
"""Bytes of what the witness notes."""


class Numbers(NamedTuple):
    """Where a store stands."""

    incarnation: str
    epoch: int
    sequence: int
    facts: int


class Observing(msgspec.Struct, frozen=True):
    """That nothing is changed, since when and why."""

    since: float
    why: str


class Witness:
    """The file beside the database. It is written right after each commit, and so never ahead of the database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def require_none(self) -> None:
        """Refuse an empty database where one ran before: it was lost, or its disk is not mounted."""
        if self._path.exists():
            raise Unavailable(
                f"the database that ran in {self._path.parent} is gone; put back a copy of it,"
                f" or remove {self._path} to begin with nothing"
            )

    def doubts(self, now: Numbers) -> str:
        """Why the database is not the newest that ran in this folder, as a sentence; empty when it may be."""
        try:
            seen = msgspec.json.decode(self._path.read_bytes(), type=Numbers)
        except FileNotFoundError:
            return "the database was put into a folder in which it never ran"
        except msgspec.MsgspecError:
            return ""  # cut short by a power failure: it says nothing
        except OSError as error:
            raise Unavailable(
                f"cannot read {self._path}: {error.strerror}; it says whether the database was restored"
            ) from None
        if seen.incarnation != now.incarnation:
            return "another database ran in this folder last"
        if seen.sequence > now.sequence or seen.epoch > now.epoch:
            return f"the database is a copy from before event {seen.sequence}: it ends at event {now.sequence}"
        return ""

    def newest(self, now: Numbers) -> Numbers:
        """The highest numbers known to have been handed out."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            seen = msgspec.json.decode(self._path.read_bytes(), type=Numbers)
            pairs = zip(now[1:], seen[1:], strict=True)
            return Numbers(now.incarnation, *(max(pair) for pair in pairs))
        return now

    def note(self, now: Numbers, *, durably: bool = False) -> None:
        """Remember these numbers, on disk when `durably`. A full disk stops nothing."""
        # Written in place, at one length: after each commit a rename would cost more than the note is worth.
        record = msgspec.json.encode(now).ljust(RECORD - 1) + b"\n"
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, record, 0)
            if durably:
                os.fsync(self._file)
        except OSError as error:
            log.warning("cannot note how far the store is", extra={"path": str(self._path), "error": str(error)})

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def begin(conn: sa.Connection, newest: Numbers, why: str, at: float) -> Numbers:
    """Start a new incarnation that only observes; the numbers to go on from."""
    new = Numbers(uuid.uuid4().hex[:8], _leap(newest.epoch, EPOCH_LEAP), *(_leap(n, LEAP) for n in newest[2:]))
    _put(conn, "incarnation", new.incarnation)
    _put(conn, "sequence", str(new.sequence))
    _put(conn, "factSequence", str(new.facts))
    _put(conn, "restored", new.incarnation)
    _put(conn, "observing", msgspec.json.encode(Observing(at, why)).decode())
    return new


def observing(conn: sa.Connection) -> Observing | None:
    """Whether nothing may be changed now."""
    text = _get(conn, "observing")
    return msgspec.json.decode(text, type=Observing) if text else None


def plan_of(conn: sa.Connection) -> str:
    """Id of the plan in which a restored installation holds everything; empty when it was never restored."""
    restored = _get(conn, "restored")
    return f"{SCOPE}:{restored}" if restored else ""


def release(conn: sa.Connection) -> None:
    """From now on it acts again."""
    conn.execute(sa.delete(_m).where(_m.c.key == "observing"))


def give_back(conn: sa.Connection, installation: str, *, even_so: bool = False) -> None:
    """Make this the id that a lost database had: what carries it at the sites is this installation's again. Raises as
    `check_id` does."""
    check_id(conn, installation, even_so=even_so)
    _put(conn, "installation", installation)


def check_id(conn: sa.Connection, installation: str, *, even_so: bool = False) -> None:
    """Raise Invalid for what is no id of an installation, and Conflict when this database owns things at sites already
    (unless `even_so`): their marks carry the id that it has now."""
    if not ID.fullmatch(installation):
        raise Invalid(f"{installation[:40]!r} is no id of an installation; it is 12 of the digits 0-9a-f")
    owned = conn.execute(sa.select(sa.func.count()).select_from(tables.claims)).scalar_one()
    if owned and not even_so and installation != _get(conn, "installation"):
        raise Conflict(
            f"this installation owns {owned} things at sites under its own id {_get(conn, 'installation')}; with"
            " another one they would not be known again if its database were lost. Begin with a new data directory"
        )


def droppable(newest: int, keep: int) -> int:
    """The highest number that may be dropped when `keep` are kept. Behind a leap everything is kept until as many new
    ones have come: how many there are cannot be read off their numbers."""
    return newest - keep if newest % LEAP >= keep else 0


def _leap(number: int, step: int) -> int:
    return (number // step + 1) * step


def _get(conn: sa.Connection, key: str) -> str:
    row = conn.execute(sa.select(_m.c.value).where(_m.c.key == key)).first()
    return str(row.value) if row else ""


def _put(conn: sa.Connection, key: str, value: str) -> None:
    conn.execute(sa.delete(_m).where(_m.c.key == key))
    conn.execute(sa.insert(_m).values(key=key, value=value))
