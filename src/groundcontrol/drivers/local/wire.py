"""What the agent and its client say to each other: bodies of requests, and errors that arrive as what they were."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from groundcontrol.kernel import errors
from groundcontrol.ports.processes import UnitSpec

LARGEST_BODY = 16 << 20
"""Bytes of one request; a spec may have 4 MiB, and JSON may need several bytes for one character."""
LONGEST_WAIT = 30.0
"""Seconds one `wait` is held open; the client asks again."""


class Create(msgspec.Struct):
    """PUT /v1/units/{id}"""

    spec: UnitSpec
    tags: dict[str, str]
    epoch: int


class Update(msgspec.Struct):
    """PATCH /v1/units/{id}"""

    spec: UnitSpec
    if_revision: int
    epoch: int


class Turn(msgspec.Struct):
    """POST /v1/units/{id}/start and /stop"""

    if_revision: int
    epoch: int


class Failure(msgspec.Struct, omit_defaults=True):
    """Body of every answer that is not good."""

    reason: str
    message: str
    problems: list[dict[str, Any]] = []
    retry_after: float | None = None


# Described on the thread that imports: see ports/processes.py.
for _kind in (Create, Update, Turn, Failure):
    msgspec.json.Decoder(_kind)

_CLASSES: dict[str, type[errors.GroundError]] = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.GroundError)
}


def failure_of(problem: errors.GroundError) -> bytes:
    body = Failure(problem.reason, problem.message, [p.as_dict() for p in problem.problems], problem.retry_after)
    return msgspec.json.encode(body)


def error_of(body: bytes) -> errors.GroundError | None:
    """The error an answer carries; None when the body is not ours."""
    try:
        failure = msgspec.json.decode(body, type=Failure)
        problems = tuple(errors.Problem(**problem) for problem in failure.problems)
    except (msgspec.MsgspecError, TypeError):
        return None
    kind = _CLASSES.get(failure.reason)
    if kind is None:
        return None
    error = kind(failure.message)
    error.problems, error.retry_after = problems, failure.retry_after
    return error
