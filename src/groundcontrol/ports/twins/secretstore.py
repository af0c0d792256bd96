"""A store of secrets in memory, for tests of what uses the port."""

from __future__ import annotations

from groundcontrol.kernel.errors import Invalid, NotFound, SecretUnavailable
from groundcontrol.kernel.resource import NAME
from groundcontrol.kernel.secrets import Secret
from groundcontrol.ports.secretstore import Found


class MemorySecretStore:
    """Implements `ports.secretstore.SecretStore`. `down` makes everything unknown."""

    def __init__(self) -> None:
        self.down: SecretUnavailable | None = None
        self._versions: dict[tuple[str, str], list[dict[str, object] | None]] = {}

    def put(self, namespace: str, name: str, values: dict[str, object]) -> None:
        self._versions.setdefault((namespace, name), []).append(values)

    def delete(self, namespace: str, name: str) -> None:
        """Delete the newest version."""
        self._versions[namespace, name][-1] = None

    def look(self, namespace: str, name: str) -> Found:
        number, values = self._newest(namespace, name)
        return Found(number, "2026-01-01T00:00:00Z", tuple(sorted(values)))

    def read(self, namespace: str, name: str, key: str) -> Secret:
        values = self._newest(namespace, name)[1]
        if key not in values:
            raise NotFound(f"{self.place(namespace, name)} has no key {key}")
        value = values[key]
        if not isinstance(value, str):
            raise Invalid(f"{self.place(namespace, name)}, key {key}, is not text")
        return Secret(value)

    def place(self, namespace: str, name: str) -> str:
        if not NAME.fullmatch(namespace) or not NAME.fullmatch(name):
            raise Invalid("a secret outside is named by a namespace and a name, nothing else")
        return f"memory/{namespace}/{name}"

    def check(self) -> None:
        if self.down is not None:
            raise self.down

    def close(self) -> None:
        return None

    def _newest(self, namespace: str, name: str) -> tuple[int, dict[str, object]]:
        place = self.place(namespace, name)
        self.check()
        versions = self._versions.get((namespace, name), [])
        if not versions:
            raise NotFound(f"there is nothing at {place}")
        if versions[-1] is None:
            raise NotFound(f"version {len(versions)} of {place} was deleted")
        return len(versions), versions[-1]
