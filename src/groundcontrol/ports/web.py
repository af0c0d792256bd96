"""Asking an address on the web whether it answers, and how long its certificate is good.

Addresses come from people, so what may be asked is decided where it is asked: an implementation knows the origins its
operator named and asks no other, sends no credentials, follows no redirection and keeps nothing of the body.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

import msgspec


class Answered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of asking."""

    asked: bool = True
    """False: it was not asked, since that is not allowed; `problem` says what would allow it."""
    status: int = 0
    """Status of the answer (RFC 9110); 0 without one."""
    expires: float = 0.0
    """When the certificate ends, seconds since the epoch; 0 without TLS or before it was seen."""
    problem: str = ""
    """Why there is no answer; empty when there is one."""


def origin(url: str) -> str:
    """`https://host:port` of an address, the port always given; ValueError when it is no address of the web."""
    wrong = ValueError("not an address of the form https://host/path")
    if not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
        raise wrong
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise wrong
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


class Web(Protocol):
    """Asks addresses. Implemented by `drivers.web` and by the twin."""

    def ask(self, url: str, ca: str = "") -> Answered:
        """GET the address once. `ca` are the certificates that may vouch for it, PEM; empty: those of this machine.

        Bounded in time, and never raises for what the other side does."""
