"""How a command says no: one clear message, what to do next, and a documented exit code instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

OK = 0
ERROR = 1
USAGE = 2
CHANGES = 2
"""`ground plan --source` and `ground diff`: something would change."""
HELD = 3
"""`ground plan --source`: the changes would be held for a person."""
NOT_FOUND = 4
REFUSED = 5
UNREACHABLE = 6
INTERRUPTED = 130
BROKEN_PIPE = 141


class Failure(Exception):
    """A mistake or a refusal that the person at the terminal can do something about."""

    def __init__(self, message: str, *details: str, code: int = ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        """More lines below the message: the single problems, then the remedy."""
        self.code = code


class Unreachable(Failure):
    """No answer came. When `sent`, the call may have been carried out all the same."""

    def __init__(self, message: str, *details: str, sent: bool = False) -> None:
        super().__init__(message, *details, code=UNREACHABLE)
        self.sent = sent


class Refused(Failure):
    """The server answered with an error."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        problems: Iterable[Mapping[str, Any]] = (),
        *details: str,
        retry_after: float | None = None,
    ) -> None:
        self.problems = tuple(problems)
        super().__init__(message, *(p for p in map(problem_line, self.problems) if p != message), *details)
        self.code = _exit_code(status)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.remedies = details


def _exit_code(status: int) -> int:
    if status == 404:
        return NOT_FOUND
    if status in (401, 403, 409):
        return REFUSED
    if status in (502, 503, 504):
        return UNREACHABLE
    return ERROR


def problem_line(problem: Mapping[str, Any]) -> str:
    """One problem of an answer as `file:line: path: message (remedy)`; what is missing is left out."""
    file, line = problem.get("file") or "", problem.get("line") or 0
    place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
    path = f"{problem['path']}: " if problem.get("path") else ""
    remedy = f" ({problem['remedy']})" if problem.get("remedy") else ""
    return f"{place}{path}{problem.get('message', '')}{remedy}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "sites"?` or nothing; upper and lower case are the same word."""
    by_lower = {k.lower(): k for k in known}
    near = get_close_matches(word.lower(), sorted(by_lower), n=1, cutoff=0.6)
    return f'did you mean "{by_lower[near[0]]}"?' if near else ""
