"""The tree of errors: the class decides the HTTP status and whether to try again; callers never choose.

    GroundError                 500  stop     a defect of ours unless a subclass says otherwise
    ├── Invalid                 422  stop     the input is wrong; `problems` say where and how to mend it
    ├── Unauthenticated         401  stop
    ├── Forbidden               403  stop     says who may
    ├── NotFound                404  stop
    ├── Conflict                409  again    somebody else changed it meanwhile: read, decide, try again
    │   ├── AlreadyExists       409  stop
    │   ├── Claimed             409  stop     the thing outside belongs to another resource
    │   └── PlanChanged         409  stop     the digest approved is not the digest that stands
    ├── TooOld                  410  stop     the event asked for is no longer kept: list again
    ├── TooLarge                413  stop
    ├── TooMany                 429  later    slow down; `retry_after` seconds
    ├── Fenced                  409  stop     our lease is over: another worker owns this now
    ├── Refused                 409  later    something outside looked at the call and said no; `cause` says why
    └── Unavailable             503  later    something outside did not answer; nothing is known
        ├── SecretUnavailable   503  later    a secret cannot be had from where it is kept; nothing else is down
        └── OutcomeUnknown      503  ask      a call was sent and no answer came: it may or may not have happened

Messages say what was tried, on what, and what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Retry = Literal["stop", "again", "later", "ask"]

RefusalCause = Literal[
    "QuotaExceeded",
    "NoValidHost",
    "BadImage",
    "BadFlavor",
    "NotAuthenticated",
    "NotAuthorised",
    "Throttled",
    "InUse",
    "RemoteBug",
    "InvalidRequest",
    "NeedsReplacement",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with some input, and where."""

    message: str
    """What is wrong, as one sentence."""
    path: str = ""
    """Path of the field, `spec.replicas`; empty when the whole input is meant."""
    file: str = ""
    """File the input came from; empty for an API body."""
    line: int = 0
    """Line in `file`, counted from 1; 0 when unknown."""
    remedy: str = ""
    """What to do next, for example `did you mean "replicas"?`."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        path = f"{self.path}: " if self.path else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{path}{self.message}{remedy}"

    def as_dict(self) -> dict[str, Any]:
        """The shape the API answers with; empty members are left out."""
        return {k: v for k, v in self.__dict__.items() if v}


class GroundError(Exception):
    """Everything Ground Control raises on purpose."""

    status: ClassVar[int] = 500
    retry: ClassVar[Retry] = "stop"
    """`stop`: it fails again; `again`: read, decide, retry; `later`: retry after a while; `ask`: look first."""

    def __init__(self, message: str, *, problems: tuple[Problem, ...] = (), retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.problems = problems
        self.retry_after = retry_after

    @property
    def reason(self) -> str:
        """The class name: the stable word in API answers and conditions."""
        return type(self).__name__


class Invalid(GroundError):
    """The input is wrong; `problems` say where."""

    status = 422

    def __init__(self, message: str = "", *, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message or "; ".join(str(p) for p in problems[:5]) or "invalid input", problems=problems)


class Unauthenticated(GroundError):
    """No credentials, or wrong or expired ones."""

    status = 401


class Forbidden(GroundError):
    """Known, but not allowed; the message says who may."""

    status = 403


class NotFound(GroundError):
    """Nothing there by that name (or not for this subject to know)."""

    status = 404


class Conflict(GroundError):
    """Somebody else changed it meanwhile."""

    status = 409
    retry: ClassVar[Retry] = "again"


class AlreadyExists(Conflict):
    """A resource of that name exists."""

    retry: ClassVar[Retry] = "stop"


class Claimed(Conflict):
    """The thing outside belongs to another resource, which the message names."""

    retry: ClassVar[Retry] = "stop"


class PlanChanged(Conflict):
    """What stands is not what was approved."""

    retry: ClassVar[Retry] = "stop"


class TooOld(GroundError):
    """The event number asked for is no longer kept."""

    status = 410


class TooLarge(GroundError):
    """The input is larger than the stated bound."""

    status = 413


class TooMany(GroundError):
    """Too many calls; `retry_after` says when to come back."""

    status = 429
    retry: ClassVar[Retry] = "later"


class Fenced(GroundError):
    """Our lease is over; another worker owns the shard."""

    status = 409


class Refused(GroundError):
    """Something outside looked at the call and said no; nothing was changed there.

    `cause` is one word for programs, and the reason in conditions."""

    status = 409
    retry: ClassVar[Retry] = "later"

    def __init__(self, message: str, *, cause: RefusalCause, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.cause = cause

    @property
    def reason(self) -> str:
        return self.cause


class Unavailable(GroundError):
    """Something outside did not answer, or said it cannot now. Nothing was changed."""

    status = 503
    retry: ClassVar[Retry] = "later"


class SecretUnavailable(Unavailable):
    """A secret cannot be had from where it is kept. Who was to get it was not asked, and is not to blame.

    `why` is one word for programs: Unreachable, Sealed, Redirected, LoginRefused, PermissionDenied, …"""

    def __init__(self, message: str, *, why: str = "Unreachable", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.why = why


class OutcomeUnknown(Unavailable):
    """A call was sent and its answer never came: it may have happened."""

    retry: ClassVar[Retry] = "ask"
