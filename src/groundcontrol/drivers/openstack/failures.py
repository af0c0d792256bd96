"""What the answers and silences of OpenStack mean: which error of ours they are, and what kind of fault a text tells.

Pure: statuses and texts in, errors out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from groundcontrol.kernel.errors import (
    AlreadyExists,
    Conflict,
    GroundError,
    NotFound,
    OutcomeUnknown,
    RefusalCause,
    Refused,
    Unavailable,
)

LONGEST_TEXT = 300
LONGEST_WAIT = 300.0
"""Seconds; a longer wait that the server asks for is cut down to this."""

_WORDS: tuple[tuple[str, RefusalCause], ...] = (
    (r"no valid host|maximum number of retries|not enough (hosts|resources)|no weighed backends", "NoValidHost"),
    # Not the word alone: a policy that keeps us from reading a quota has it in its name.
    (
        r"quota (has been |was )?exceeded|exceed\w*\b.*\bquota|over ?quota|quota ?exceeded|exceedsavailablequota"
        r"|maximum number of (ports|instances|volumes|key ?pairs)",
        "QuotaExceeded",
    ),
    (r"flavor'?s? (disk|memory|ram)|flavor .*(not (be )?found|too small|not supported)|invalid flavor", "BadFlavor"),
    (r"(size|virtual size) of (the )?image|minimum (disk|ram|memory)", "BadFlavor"),
    (
        r"image .*(not (be )?found|not active|is not ready|deactivated|unacceptable|corrupt)"
        r"|(cannot|can not|failed to) (find|download) (the )?(requested )?image"
        r"|(invalid|bad) image|imageref|image is .*(invalid|unavailable)",
        "BadImage",
    ),
    (r"still attached|in[- ]use|has .*attachments|must not be migrating, attached|has (one or more )?ports", "InUse"),
)
_COMPILED = tuple((re.compile(words, re.IGNORECASE), cause) for words, cause in _WORDS)


def cause_of(text: str) -> RefusalCause | Literal[""]:
    """What kind of fault these words tell; empty when they do not."""
    return next((cause for words, cause in _COMPILED if words.search(text)), "")


def fault_cause(text: str) -> RefusalCause:
    """The same of a thing that failed: what is not known is the cloud's own fault."""
    found = cause_of(text)
    return "RemoteBug" if found == "" or found == "InUse" else found


def words(body: Any) -> str:
    """What a service says in the body of an error, in whichever of its forms, on one line."""
    if isinstance(body, Mapping):
        for value in body.values():
            if isinstance(value, Mapping) and isinstance(value.get("message"), str):
                return _line(value["message"])
        for name in ("message", "description", "detail", "title"):
            if isinstance(body.get(name), str):
                return _line(body[name])
        errors = body.get("errors")
        if isinstance(errors, list) and errors and isinstance(errors[0], Mapping):
            return _line(str(errors[0].get("detail") or errors[0].get("title") or ""))
        inner = next((v for v in body.values() if isinstance(v, str)), "")
        return _line(inner)
    return _line(re.sub(r"<[^>]*>", " ", body)) if isinstance(body, str) else ""


def _line(text: str) -> str:
    text = re.sub(r"<[^>]*>", " ", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds it asks us to wait; None when it does not."""
    text = headers.get("Retry-After") or headers.get("X-Retry-After") or ""
    return min(float(text), LONGEST_WAIT) if re.fullmatch(r"[0-9]{1,9}", text) else None


def failed(what: str, method: str, status: int, body: Any, headers: Mapping[str, str]) -> GroundError:
    """The error for an answer that is none of success. `what`: what was tried, on what."""
    said = words(body)
    message = f"{what}: {said or 'no reason given'} (HTTP {status})"
    wait = retry_after(headers)
    told = f"{said} {_type(body)}"
    if status == 401:
        return Refused(f"{message}; the credentials of the Site are wrong or over", cause="NotAuthenticated")
    if status == 403:
        if cause_of(told) == "QuotaExceeded":
            return Refused(message, cause="QuotaExceeded")
        return Refused(f"{message}; the account of the Site may not do this", cause="NotAuthorised")
    if status == 404:
        return NotFound(message)
    if status == 409:
        return _conflict(message, told)
    if status == 413:
        quota = cause_of(told) == "QuotaExceeded" or wait is None
        return Refused(message, cause="QuotaExceeded" if quota else "Throttled", retry_after=wait)
    if status == 429:
        return Refused(message, cause="Throttled", retry_after=wait)
    if status >= 500 and status != 501:
        if method not in ("GET", "HEAD"):
            return OutcomeUnknown(f"{message}; it may have been done nevertheless", retry_after=wait)
        if status == 500:
            return Refused(f"{message}; this is a fault of the cloud", cause="RemoteBug", retry_after=wait)
        return Unavailable(message, retry_after=wait)
    if 300 <= status < 400:
        return Unavailable(f"{message}; it sends us elsewhere, where we do not go: mend the address")
    found = cause_of(told)
    return Refused(message, cause=found or "InvalidRequest")


def _type(body: Any) -> str:
    """Neutron names the class of an error apart from its words."""
    if isinstance(body, Mapping):
        inner = body.get("NeutronError")
        if isinstance(inner, Mapping):
            return str(inner.get("type", ""))
    return ""


def _conflict(message: str, told: str) -> GroundError:
    if cause_of(told) == "QuotaExceeded":
        return Refused(message, cause="QuotaExceeded")
    if re.search(r"already (exists|used)|duplicate|already a|same name", told, re.IGNORECASE):
        return AlreadyExists(message)
    if re.search(r"in ?use|has .*ports|still attached|attachments|protected", told, re.IGNORECASE):
        return Refused(message, cause="InUse")
    if re.search(r"conflicts? with allocation pool|overlaps", told, re.IGNORECASE):
        return Refused(message, cause="InvalidRequest")  # of the request with itself, or with what will stay
    if cause_of(told) == "NoValidHost":
        return Refused(message, cause="NoValidHost")
    return Conflict(message)


def lost(what: str, method: str, sent: bool, why: str) -> Unavailable:
    """The error for no answer at all. `sent`: whether the request may have reached the service."""
    if sent and method not in ("GET", "HEAD"):
        return OutcomeUnknown(f"{what}: it was sent, and {why}; it may have been done")
    return Unavailable(f"{what}: {why}")
