"""What a store of secrets outside can do for us: say which secret there is without its values, and give one value.

A secret is named by namespace and name and by nothing else; the driver turns these two into one path below the prefix
it was given, so that nobody can name what belongs to another namespace. Errors: `Invalid` for a name that cannot be one
and for a value that is not text, `NotFound` when the secret, its newest version or the key is not there (with the path
and what to do), `SecretUnavailable` for all that keeps us from knowing: no answer in time, sealed, not permitted. No
error carries anything the server said: it might be the value.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from groundcontrol.kernel.secrets import Secret


class Found(NamedTuple):
    """What is said of a secret. No values."""

    version: int
    """Number of its newest version, counted from 1."""
    created: str
    """When that version was written, RFC 3339."""
    keys: tuple[str, ...]
    """The names of its values, sorted."""


class SecretStore(Protocol):
    """One store, as it was configured."""

    def look(self, namespace: str, name: str) -> Found:
        """What there is now, when a service could be given it now."""
        ...

    def read(self, namespace: str, name: str, key: str) -> Secret:
        """One value of the newest version. Kept by nobody on a disk; in memory for seconds."""
        ...

    def place(self, namespace: str, name: str) -> str:
        """The path, for people."""
        ...

    def check(self) -> None:
        """Sign in, when that has not been done; raises what is in the way."""
        ...

    def close(self) -> None:
        """Give back what was logged in with."""
        ...
