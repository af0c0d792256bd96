"""What git and the programs below it say in the C locale when they fail, and which of our errors that is."""

from __future__ import annotations

from typing import NamedTuple

from groundcontrol.drivers.git.command import Result
from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, Invalid, NotFound, Unavailable


class Answer(NamedTuple):
    """Phrases in lower case, any of which means this error."""

    phrases: tuple[str, ...]
    error: type[GroundError]
    what: str
    """After "repository <url>"; `{branch}` is filled in."""
    remedy: str


# The first that fits counts: "unable to access" stands in the same line as the status that explains it.
ANSWERS = (
    Answer(
        ("couldn't find remote ref", "could not find remote ref"),
        NotFound,
        "has no branch {branch}",
        "was it renamed or deleted? Set spec.branch",
    ),
    Answer(
        ("host key verification failed", "no matching host key"),
        Forbidden,
        "shows a host key that is not known",
        "compare the server's line from ssh-keyscan with the one its owner publishes, and put it into known_hosts",
    ),
    Answer(
        # As GnuTLS and as OpenSSL say it: an authority nobody trusts, another host's name, a date.
        ("certificate verification failed", "certificate problem", "ssl certificate", "certificate subject name"),
        Forbidden,
        "shows a certificate that is not trusted",
        "is it this host's, and not expired? For a private authority start `ground serve` with GIT_SSL_CAINFO=its file",
    ),
    Answer(
        (
            *("authentication failed", "could not read username", "could not read password", "prompts disabled"),
            *("error: 401", "error: 403", "permission denied", "access denied"),
        ),
        Forbidden,
        "refused the credentials",
        "check that the token or key has not expired and may read this repository",
    ),
    Answer(
        ("error: 301", "error: 302", "error: 307", "error: 308", "unable to update url base"),
        Invalid,
        "is elsewhere: the server redirects",
        "write the url it redirects to; often only .git is missing at the end",
    ),
    Answer(
        (
            *("error: 404", "repository not found", "' not found", "does not appear to be a git repository"),
            "could not be found or you don't have permission",
        ),
        NotFound,
        "is not there, or these credentials may not see it",
        "was it moved or deleted? Set spec.repository",
    ),
    Answer(
        ("fsck error", "error in packed object"),
        Invalid,
        "holds objects that git itself calls broken",
        "run `git fsck` in a clone",
    ),
    Answer(
        (
            *("could not resolve", "connection refused", "timed out", "connection reset", "couldn't connect"),
            *("failed to connect", "unable to access", "early eof", "remote end hung up", "unexpected disconnect"),
            *("network is unreachable", "no route to host", "operation too slow", "rpc failed", "protocol error"),
            *("bad line length", "kex_exchange_identification", "connection closed", "could not read from remote"),
        ),
        Unavailable,
        "did not answer",
        "tried again later; is the server up, and does this machine reach it?",
    ),
)


# Asked first when a push fails.
REFUSED = (
    Answer(
        ("stale info", "already exists", "exists; cannot create", "non-fast-forward", "fetch first"),
        Conflict,
        "has a branch {branch} already",
        "it is left as it is",
    ),
    Answer(
        (
            *("remote rejected", "hook declined", "not allowed to push", "write access", "read-only", "read only"),
            *("error: 403", "permission denied", "access denied", "denied to"),
        ),
        Forbidden,
        "does not let these credentials push {branch}",
        "give them the right to push such branches, or leave spec.proposals out",
    ),
)
NOT_SENT = ("could not resolve", "connection refused", "couldn't connect", "failed to connect", "no route to host")
"""What is said when not even a connection came to be."""


def meaning(result: Result, url: str, branch: str, answers: tuple[Answer, ...] = ANSWERS) -> GroundError | None:
    """The error behind what git said; None when it is not about the server, so that our copy may be damaged."""
    said = result.err.lower()
    for answer in answers:
        if any(phrase in said for phrase in answer.phrases):
            lines = (line for line in result.err.splitlines() if any(p in line.lower() for p in answer.phrases))
            what = answer.what.format(branch=branch)
            return answer.error(f"repository {url} {what} ({answer.remedy}). git: {next(lines, '')[:300]}")
    return None
