"""Makes the Python environment of an OpenStack release from a lock file with hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from testbed.openstack.layout import HERE, BedError

LONGEST = 1800

AMENDED = {
    "2026.1": (
        "oslo_messaging/_drivers/amqpdriver.py",
        "            except queue.Empty:\n                time.sleep(0.5)\n",
        "            except queue.Empty:\n                time.sleep(0.005)\n",
    )
}
"""oslo.messaging 17 looks for the answer to a call every half second (its way round bug 2035113; 18.3 waits properly),
so each operation of Nova would take seconds of doing nothing. A release, its file, the old text, the new."""


def lock_of(release: str) -> Path:
    return HERE / "requirements" / f"{release}.lock"


def find_uv() -> str:
    """uv: from `UV`, from PATH, or the one that `make setup` put into .tools."""
    ours = HERE.parents[1] / ".tools" / "uv" / "bin" / "uv"
    found = os.environ.get("UV") or shutil.which("uv") or (str(ours) if ours.exists() else None)
    if found is None:
        raise BedError("uv is missing: call this through `make testbed-openstack`, or put uv on your PATH")
    return found


def build(release: str, target: Path, log: Path) -> bool:
    """Make the environment unless it is there from this very lock file; whether it was made."""
    lock = lock_of(release)
    stamp = target / "made-from"
    key = hashlib.sha256(lock.read_bytes() + repr(AMENDED.get(release)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == key:
        return False
    log.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    uv = find_uv()
    _run([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(target)], log)
    python = str(target / "bin" / "python")
    _run([uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, str(lock)], log)
    _amend(release, target)
    stamp.write_text(key)
    return True


def _run(command: list[str], log: Path) -> None:
    environ = {"UV_SYSTEM_CERTS": "1", **os.environ}
    with log.open("ab") as out:
        try:
            done = subprocess.run(command, env=environ, stdout=out, stderr=out, timeout=LONGEST, check=False)
        except subprocess.TimeoutExpired:
            raise BedError(f"{' '.join(command[:3])} took longer than {LONGEST} s; see {log}") from None
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise BedError(f"{' '.join(command[:3])} failed; see {log}, which ends\n{end}")


def _amend(release: str, target: Path) -> None:
    if release not in AMENDED:
        return
    name, old, new = AMENDED[release]
    (site,) = (target / "lib").glob("python3*/site-packages")
    path = site / name
    text = path.read_text()
    if text.count(old) != 1:
        raise BedError(f"{path} is not the file that AMENDED in {__file__} speaks of; was the lock file changed?")
    # uv links files from its cache: write another file instead of changing that one for everybody.
    path.unlink()
    path.write_text(text.replace(old, new))
