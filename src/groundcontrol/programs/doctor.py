"""`ground doctor`: what is missing or wrong, and what to do about it. Looks only; changes nothing."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from groundcontrol.assembly import secret_store
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.settings import Settings, load

FREE_MB = 1024
"""Less free space than this under the data directory is too little."""
NETWORK = frozenset(
    ["9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"]
)
"""File systems on which a lock may be lost while its holder goes on."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    good: bool
    what: str
    remedy: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print findings; exit 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="ground doctor", description="Check an installation.")
    parser.add_argument("--config", default="ground.yaml", metavar="FILE")
    options = parser.parse_args(argv)
    findings = list(examine(options.config))
    for finding in findings:
        print(f"{'ok   ' if finding.good else 'WRONG'} {finding.what}")
        if not finding.good and finding.remedy:
            print(f"      {finding.remedy}")
    wrong = sum(not f.good for f in findings)
    print(f"\n{wrong} of {len(findings)} are wrong" if wrong else "\nall is well")
    return 1 if wrong else 0


def examine(config: str) -> Iterator[Finding]:
    """Everything that can be looked at without starting."""
    try:
        settings = load(config)
    except GroundError as error:
        for problem in error.problems or (error.message,):
            yield Finding(False, str(problem))
        return
    yield Finding(True, f"{config} is good")
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (_git, _data, _database, _listen, _vault, _root)
    for check in checks:
        yield from check(settings)


def _git(_: Settings) -> Iterator[Finding]:
    git = shutil.which("git")
    if git is None:
        yield Finding(False, "git is not installed", "apt-get install git")
        return
    version = subprocess.run([git, "--version"], capture_output=True, text=True, timeout=10, check=False)
    yield Finding(version.returncode == 0, version.stdout.strip() or "git does not run", "reinstall git")


def _data(settings: Settings) -> Iterator[Finding]:
    data = Path(settings.data)
    there = next(p for p in (data, *data.parents) if p.exists())
    yield Finding(os.access(there, os.W_OK), f"data directory {data} can be written", f"chown it, or chmod u+w {there}")
    if data.exists():
        private = data.stat().st_mode & 0o077 in (0, 0o011)
        yield Finding(private, f"{data} is closed to others", f"chmod 0711 {data}")
    kind = _file_system(there)
    yield Finding(
        kind not in NETWORK,
        f"{there} lies on {kind or 'a file system of unknown kind'}",
        "put `data` on a local disk: locks of network file systems can be lost, and SQLite's database with them",
    )
    free = shutil.disk_usage(there).free >> 20
    yield Finding(free > FREE_MB, f"{free} MiB are free at {there}", f"{FREE_MB} MiB at least are needed")


def _file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of file system a path lies on, as the kernel names it; empty when it cannot be told."""
    place, found, length = str(path.resolve()), "", -1
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
        inside = point == "/" or place == point or place.startswith(f"{point}/")
        if inside and len(point) >= length:
            found, length = after.split()[0], len(point)
    return found


def _database(settings: Settings) -> Iterator[Finding]:
    path = Path(settings.data) / "ground.db"
    if not path.exists():
        yield Finding(True, "there is no database yet; `ground serve` makes it")
        return
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2) as connection:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        yield Finding(answer == "ok", f"{path} is whole", f"it says {answer}; restore a backup")
    except sqlite3.Error as error:
        yield Finding(False, f"{path} cannot be read: {error}", "restore a backup")


def _listen(settings: Settings) -> Iterator[Finding]:
    host, port = settings.address
    if port == 0:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(2)
        running = probe.connect_ex((host, port)) == 0
    if running:
        yield Finding(True, f"something answers on {settings.listen}")
    else:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                yield Finding(True, f"{settings.listen} is free")
            except OSError as error:
                yield Finding(False, f"cannot listen on {settings.listen}: {error.strerror}", "change `listen`")
    loopback = host in ("localhost", "::1") or host.startswith("127.")
    yield Finding(
        loopback or settings.tls.certificate is not None,
        f"{settings.listen} is encrypted or local",
        "set tls.certificate and tls.key, or listen on 127.0.0.1 behind a proxy that encrypts",
    )


def _vault(settings: Settings) -> Iterator[Finding]:
    address = settings.secrets.vault.address
    try:
        store = secret_store(settings)
        if store is None:
            return
        try:
            store.check()
        finally:
            store.close()
        yield Finding(True, f"the vault at {address} lets us in")
    except GroundError as error:
        yield Finding(False, error.message, "what runs goes on; whatever needs a secret from it waits")


def _root(_: Settings) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding(True, "running as root: the local driver keeps tenants apart by user id")
    else:
        yield Finding(True, "not root: a local site serves one tenant only and refuses others")


if __name__ == "__main__":
    raise SystemExit(main())
