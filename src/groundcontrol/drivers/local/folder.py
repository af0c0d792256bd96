"""Files inside a unit's directory, which its tenant owns and may fill with links, pipes and races.

Every step goes through a descriptor of the folder before it and follows no link, so that whatever the tenant swaps in,
the host never reads or writes outside.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator

from groundcontrol.kernel.errors import Conflict, Invalid, Problem

LARGEST = 1 << 20
"""Bytes of one file, given or read back."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Stamp = tuple[int, int, int, int]
"""Inode, size, mtime, ctime: differs whenever the content may."""


def check_path(path: str) -> None:
    """Raise Invalid for a path that is not plainly below the directory."""
    parts = path.split("/")
    if not path or "\0" in path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        text = f"{path[:80]!r} does not stay inside the unit's directory"
        remedy = "give a relative path without `.`, `..` or empty parts"
        raise Invalid(problems=(Problem(text, "files", remedy=remedy),))
    if len(path.encode()) > 1024 or any(len(part.encode()) > 240 for part in parts):
        raise Invalid(problems=(Problem(f"{path[:60]!r}… is too long", "files"),))


@contextlib.contextmanager
def _parent(directory: str, path: str, make_for: int | None = None) -> Iterator[tuple[int, str]]:
    """Descriptor of the folder that holds `path`, and the last name. `make_for`: make folders, owned by this uid."""
    *folders, name = path.split("/")
    here = os.open(directory, FOLDER)
    try:
        for folder in folders:
            if make_for is not None:
                _make_folder(here, folder, make_for)
            there = os.open(folder, FOLDER, dir_fd=here)
            os.close(here)
            here = there
        yield here, name
    finally:
        os.close(here)


def _make_folder(here: int, folder: str, uid: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(folder, dir_fd=here, follow_symlinks=False).st_mode):
            return
        os.unlink(folder, dir_fd=here)  # A link or file where our folder belongs: it goes, its target stays.
    os.mkdir(folder, 0o700, dir_fd=here)
    there = os.open(folder, FOLDER, dir_fd=here)
    try:
        if uid != os.geteuid():
            os.fchown(there, uid, uid)
    finally:
        os.close(there)


def write(directory: str, path: str, text: str, uid: int) -> None:
    """Replace one file; whoever reads it sees the old content or the new."""
    try:
        with _parent(directory, path, make_for=uid) as (folder, name):
            temporary = f".{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
            try:
                with open(descriptor, "wb") as out:
                    out.write(text.encode())
                    out.flush()
                    if uid != os.geteuid():
                        os.fchown(out.fileno(), uid, uid)
                    os.fsync(out.fileno())
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)
    except OSError as problem:
        raise Conflict(
            f"cannot write {path!r} into the unit's directory: {problem.strerror}; see what the unit put in its place"
        ) from problem


def remove(directory: str, path: str) -> None:
    """Remove one file; what is not there is removed already."""
    try:
        with _parent(directory, path) as (folder, name):
            os.unlink(name, dir_fd=folder)
    except OSError:
        return


def stamp(directory: str, path: str) -> Stamp | None:
    """Cheap sign of the file's content; None when there is no such file."""
    try:
        if "/" not in path:
            found = os.stat(f"{directory}/{path}", follow_symlinks=False)
        else:
            with _parent(directory, path) as (folder, name):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def read(directory: str, path: str, uid: int) -> str | None:
    """Content of one file as it is on disk; None when it is absent, not a plain file or not the unit's own."""
    try:
        with _parent(directory, path) as (folder, name):
            # NONBLOCK: a pipe planted in the file's place must not hold us.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=folder)
            try:
                found = os.fstat(descriptor)
                # The owner is compared because a hard link could bring in a file of somebody else.
                if not stat.S_ISREG(found.st_mode) or found.st_uid != uid:
                    return None
                if found.st_size > LARGEST:
                    return f"({found.st_size} bytes, more than the {LARGEST} that are read back)"
                return os.read(descriptor, LARGEST).decode(errors="replace")
            finally:
                os.close(descriptor)
    except OSError:
        return None
