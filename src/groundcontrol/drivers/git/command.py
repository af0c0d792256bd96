"""Runs the git command against a server nobody trusts: a bare environment, bounds on time and size, secrets unseen.

Nothing from the machine's or the operator's git configuration is read, no hook runs, nothing asks a person, and only
the transports the operator allows are open. Credentials travel in the environment of the one command that needs them
(an askpass program prints them, to the expected host only) or in a key file that lives as long as that command.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from groundcontrol.kernel.errors import Invalid, TooLarge, Unavailable
from groundcontrol.ports.repository import Credentials

GIT = "git"

_SCP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:(?!/?/)[^:\s]+")
_URL = re.compile(r"[a-z]+://[^\s\\\x00-\x20\x7f]+")
_BAD_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/.]|/\.|[/.]$|\.lock(/|$)|^@$")
# What the machine may say about how to reach the world; everything else is left out.
_PASSED_ON = (
    *("PATH", "http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"),
)
_ASKPASS = """#!/bin/sh
case "$1" in
  Username*"://$GROUND_GIT_HOST'"*) printf '%s\\n' "$GROUND_GIT_USERNAME" ;;
  Password*"@$GROUND_GIT_HOST'"*) printf '%s\\n' "$GROUND_GIT_PASSWORD" ;;
  *) exit 1 ;;
esac
"""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator decides about git."""

    cache: Path
    """Where the local copies are kept."""
    allow_file: bool = False
    """Whether `file://` may be fetched: repositories on this machine, readable by whoever may write a Source."""
    allow_http: bool = False
    """Whether plain `http://` may be fetched, from this machine only; for tests."""
    schemes: tuple[str, ...] = ("https", "ssh")
    """Which of https and ssh may be used."""
    timeout: float = 120.0
    """Seconds one fetch may take."""
    stall: int = 30
    """Seconds without progress after which a transfer is given up."""
    max_bytes: int = 2 << 30
    """Size of one local copy."""
    max_files: int = 100_000
    """Files and folders in one tree."""
    known_hosts: str = ""
    """Lines of a known_hosts file for ssh, besides those that come with credentials."""


class Result(NamedTuple):
    code: int
    out: str
    err: str
    """The end of what git said, without secrets and control characters."""


def check_url(url: str, settings: Settings) -> str:
    """The transport of a url that may be fetched; Invalid for any other."""
    if url.startswith("-") or len(url) > 2000:
        raise Invalid(f"repository {url[:80]!r} is not a url; write https://host/path.git or git@host:path.git")
    allowed = transports(settings)
    if _SCP.fullmatch(url) and "ssh" in allowed:
        return "ssh"
    parts = urlsplit(url) if _URL.fullmatch(url) else None
    if parts is None or parts.scheme not in allowed:
        shown = url.split("@")[-1][:80]
        raise Invalid(f"repository {shown!r}: only {', '.join(allowed)} can be fetched; write https://host/path.git")
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
        raise Invalid(f"repository on {parts.hostname}: a url may hold no user or password; use `credentials`")
    if parts.scheme != "file" and (not parts.hostname or parts.hostname.startswith("-")):
        raise Invalid(f"repository {url[:80]!r} names no host")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise Invalid(f"repository on {parts.hostname}: plain http is for this machine only; use https")
    return parts.scheme


def check_branch(branch: str) -> str:
    """The branch, when it can be one; Invalid otherwise."""
    if not branch or len(branch) > 255 or _BAD_BRANCH.search(branch):
        raise Invalid(f"{branch[:80]!r} is not a branch name; write it as git shows it, for example main")
    return branch


def arguments(settings: Settings) -> list[str]:
    """The command and the options every call gets."""
    options = {
        "core.hooksPath": "/dev/null",
        "core.fsmonitor": "false",
        "credential.helper": "",
        "protocol.allow": "never",
        **{f"protocol.{name}.allow": "always" for name in transports(settings)},
        "protocol.version": "2",
        "submodule.recurse": "false",
        "fetch.recurseSubmodules": "false",
        "transfer.fsckObjects": "true",
        # Old, harmless mistakes of old git versions, found in the history of well-kept repositories.
        **{f"fetch.fsck.{name}": "warn" for name in ("zeroPaddedFilemode", "badTimezone", "missingSpaceBeforeDate")},
        "transfer.bundleURI": "false",
        "http.followRedirects": "false",
        "http.lowSpeedLimit": "100",
        "http.lowSpeedTime": str(settings.stall),
        "http.sslVerify": "true",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "advice.detachedHead": "false",
    }
    return [GIT, "--no-pager", *(part for name, value in options.items() for part in ("-c", f"{name}={value}"))]


def transports(settings: Settings) -> list[str]:
    """What may be used, as git names it."""
    return [*settings.schemes, *(["file"] if settings.allow_file else []), *(["http"] if settings.allow_http else [])]


def environment(settings: Settings, home: Path) -> dict[str, str]:
    """All that the command sees of this machine."""
    return {
        "PATH": os.defpath,
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        "HOME": str(home),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "SSH_ASKPASS": "false",
        "GIT_ALLOW_PROTOCOL": ":".join(transports(settings)),
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_SSH_COMMAND": "false",
    }


@contextmanager
def private_folder(settings: Settings) -> Iterator[Path]:
    """A folder only we can read, gone at the end; below the cache, so that it is on a disk the operator chose."""
    settings.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(prefix=".private-", dir=settings.cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def credentials_environment(
    url: str, transport: str, credentials: Credentials | None, settings: Settings, folder: Path
) -> dict[str, str]:
    """What the environment of a fetch needs besides, with the files it names written into `folder`."""
    given = credentials or Credentials()
    if transport == "ssh":
        return {"GIT_SSH_COMMAND": _ssh_command(given, settings, folder), "GIT_SSH_VARIANT": "ssh"}
    if transport == "file" or not given.password:
        return {}
    askpass = folder / "askpass"
    _write(askpass, _ASKPASS, 0o700)
    return {
        "GIT_ASKPASS": str(askpass),
        "GROUND_GIT_HOST": urlsplit(url).netloc,
        "GROUND_GIT_USERNAME": given.username or "git",
        "GROUND_GIT_PASSWORD": given.password,
    }


def _ssh_command(credentials: Credentials, settings: Settings, folder: Path) -> str:
    known = folder / "known_hosts"
    _write(known, "\n".join((credentials.known_hosts.strip(), settings.known_hosts.strip(), "")), 0o600)
    options = [
        *("BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "GlobalKnownHostsFile=/dev/null"),
        *(f"UserKnownHostsFile={known}", f"ConnectTimeout={min(settings.stall, 30)}"),
        *(f"ServerAliveInterval={max(settings.stall // 3, 1)}", "ServerAliveCountMax=3"),
        *("IdentitiesOnly=yes", "IdentityAgent=none", "ForwardAgent=no", "PermitLocalCommand=no", "ProxyCommand=none"),
    ]
    command = ["ssh", "-F", os.devnull]
    if credentials.ssh_key:
        key = folder / "key"
        _write(key, credentials.ssh_key.strip() + "\n", 0o600)
        command += ["-i", str(key)]
    return shlex.join([*command, *(part for option in options for part in ("-o", option))])


def _write(path: Path, text: str, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)


def run(
    command: list[str],
    env: Mapping[str, str],
    *,
    timeout: float,
    watched: Path | None = None,
    max_bytes: int = 0,
    secrets: tuple[str, ...] = (),
    cwd: Path | None = None,
) -> Result:
    """Run to the end, or kill the whole process group on time-out (Unavailable) or growth of `watched` (TooLarge)."""
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        ended = select.poll()
        handle = os.pidfd_open(process.pid)
        try:
            ended.register(handle, select.POLLIN)
            pause = 0.05
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise Unavailable(f"no end after {timeout:g} seconds; given up")
                if watched is not None and pause > 0.05 and size_of(watched) > max_bytes:
                    raise TooLarge(f"the repository is larger than {max_bytes:,} bytes")
                ended.poll(pause * 1000)
                pause = min(pause * 1.3, 0.2)
        finally:
            os.close(handle)
            _end(process)
        return Result(process.returncode, _tail(out, 1 << 20), _clean(_tail(err, 4000), secrets))


def _end(process: subprocess.Popen[Any]) -> None:
    """Ask the group to end, so that git removes its locks, then make it."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
    # Children outlive a leader that has ended; its group id is not given away while one of them lives.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(file: Any, count: int) -> str:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - count, 0))
    return bytes(file.read()).decode("utf-8", "replace")


def _clean(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    text = re.sub(r"://[^/\s@']*@", "://", text)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()


def size_of(folder: Path) -> int:
    """Bytes of all files below; files that vanish meanwhile count nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total
