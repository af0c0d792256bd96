"""Installs the Debian packages that the clouds stand on, without letting any of them start a server of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from testbed.openstack.layout import BedError

PROGRAMS = {
    "mariadbd": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
    "rabbitmq-server": "rabbitmq-server",
    "epmd": "erlang-base",
    "nginx": "nginx",
    "memcached": "memcached",
    "openssl": "openssl",
}
"""A program we start, and the package that brings it."""
UNITS = {"rabbitmq-server": ("rabbitmq-server", "epmd"), "nginx": ("nginx",), "memcached": ("memcached",)}
"""What a package would start at the next boot."""
POLICY = Path("/usr/sbin/policy-rc.d")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LONGEST = 1200
"""Seconds apt may take, a lock that somebody else holds included."""


def missing() -> list[str]:
    """Packages to install, by looking for their programs."""
    return [package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None]


def install(log: Path) -> list[str]:
    """Install what is missing; its names. Raises BedError with the end of the log."""
    packages = missing()
    if not packages:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BedError(f"missing on this machine: {', '.join(packages)}; be root on Debian, or install them first")
    log.parent.mkdir(parents=True, exist_ok=True)
    # Debian starts a server when it is installed, unless this program says no.
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        _apt(["update", "-qq"], log)
        _apt(["install", "-qq", "--yes", "--no-install-recommends", *packages], log)
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)
    if shutil.which("systemctl"):
        units = [unit for package in packages for unit in UNITS.get(package, ())]
        subprocess.run(["systemctl", "disable", "--quiet", *units], capture_output=True, check=False)
    if still := missing():
        raise BedError(f"apt ended well and {', '.join(still)} did not bring its program; see {log}")
    return packages


def _apt(words: list[str], log: Path) -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("ab") as out:
        try:
            done = subprocess.run(
                ["apt-get", "-o", "DPkg::Lock::Timeout=600", *words],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BedError(f"apt-get {words[0]} took longer than {LONGEST} s; see {log}") from None
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise BedError(f"apt-get {words[0]} failed; see {log}, which ends\n{end}")
