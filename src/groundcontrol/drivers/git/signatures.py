"""Checks who signed a commit, by git itself, against the keys the operator trusts and no others on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from groundcontrol.drivers.git import command
from groundcontrol.drivers.git.command import Settings
from groundcontrol.kernel.errors import Invalid, Unavailable
from groundcontrol.ports.repository import Signature, Trust

_SSH_GOOD = re.compile(r'^Good "git" signature for (\S+) with (\S+) key (\S+)', re.MULTILINE)
_GPG_GOOD = re.compile(r"^\[GNUPG:\] GOODSIG ([0-9A-F]+) (.*)$", re.MULTILINE)
_TIMEOUT = 30.0


def verify_commit(repository: Path, commit: str, trust: Trust, settings: Settings) -> Signature:
    """Whether one of those trusted signed the commit; a missing program is Unavailable, not a bad signature."""
    with command.private_folder(settings) as folder:
        env = command.environment(settings, folder)
        if trust.method == "ssh":
            signers = folder / "allowed_signers"
            signers.write_text(trust.signers.strip() + "\n", encoding="utf-8")
            # gpg.program=false: a gpg signature does not count where ssh keys are trusted, and the other way round.
            options = {"gpg.ssh.allowedSignersFile": str(signers), "gpg.program": "false", "gpg.minTrustLevel": "fully"}
        else:
            env |= _gpg_home(folder, trust, env)
            options = {"gpg.ssh.program": "false", "gpg.program": "gpg"}
        settings_of_it = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        verify = [f"--git-dir={repository}", "verify-commit", "--raw", "--", commit]
        result = command.run(
            [*command.arguments(settings), *settings_of_it, *verify],
            env,
            timeout=_TIMEOUT,
        )
        if trust.method == "gpg":
            command.run(["gpgconf", "--kill", "all"], env, timeout=_TIMEOUT)
    said = result.err + "\n" + result.out
    found = (_SSH_GOOD if trust.method == "ssh" else _GPG_GOOD).search(said)
    if result.code == 0 and found:
        return Signature(good=True, signer=found[1] if trust.method == "ssh" else f"{found[2]} ({found[1]})")
    if "cannot run" in said:
        raise Unavailable(
            f"signatures cannot be checked: {'ssh-keygen' if trust.method == 'ssh' else 'gpg'} is missing"
        )
    return Signature(good=False, reason=_why(said, trust))


def _gpg_home(folder: Path, trust: Trust, env: dict[str, str]) -> dict[str, str]:
    # The folder's own path may be too long for the sockets gpg-agent makes; verifying needs no agent.
    home = folder / "gpg"
    home.mkdir(mode=0o700)
    (home / "gpg.conf").write_text("trust-model always\nno-autostart\nno-auto-key-retrieve\n", encoding="ascii")
    keys = folder / "keys.asc"
    keys.write_text(trust.signers, encoding="utf-8")
    extra = {"GNUPGHOME": str(home)}
    try:
        done = command.run(["gpg", "--batch", "--quiet", "--import", str(keys)], {**env, **extra}, timeout=_TIMEOUT)
    except FileNotFoundError:
        raise Unavailable("signatures cannot be checked: gpg is not installed here") from None
    if done.code:
        last = done.err.splitlines()[-1:] or [os.strerror(2)]
        raise Invalid(f"spec.verify.allowedSigners holds no readable armoured public keys: {last[0]}")
    return extra


def _why(said: str, trust: Trust) -> str:
    lower = said.lower()
    if "badsig" in lower or "signature verification failed" in lower or "incorrect signature" in lower:
        return "its signature is wrong: the commit was changed after it was signed"
    if "expkeysig" in lower or "expsig" in lower or "expired" in lower:
        return "its signature or key has expired"
    if "revkeysig" in lower:
        return "the key that signed it was revoked"
    if "no principal matched" in lower or "no_pubkey" in lower or "good " in lower:
        return "it is signed by somebody who is not among spec.verify.allowedSigners"
    return f"it carries no {trust.method} signature"
