"""Secrets in a KV engine, version 2, of OpenBao or Vault: `MOUNT/data/PREFIX/NAMESPACE/NAME`, and nothing else.

A namespace and a name are checked as such before they become a path, so that no tenant's word can leave the prefix of
its namespace. What a status shows comes from `subkeys`, which carries names and no values.

When the vault cannot serve (down, sealed, refuses our login), the next request is not made before a while, which
doubles up to a minute; everybody else is told at once what was found. One request tries again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from groundcontrol.drivers.openbao.http import LONGEST_WAIT, Answer, Server
from groundcontrol.drivers.openbao.login import Login, cannot_now
from groundcontrol.kernel.errors import GroundError, Invalid, NotFound, SecretUnavailable
from groundcontrol.kernel.resource import NAME
from groundcontrol.kernel.secrets import Secret
from groundcontrol.kernel.settings import VaultSettings
from groundcontrol.ports.secretstore import Found

log = logging.getLogger(__name__)

HELD = 2.0
"""Seconds a secret that was read is held in memory: a service that takes ten keys of one secret reads it once, and gets
all of them from one version; a webhook that is called a thousand times does not call the vault a thousand times."""
MOST_HELD = 256
FIRST_WAIT = 1.0
"""Seconds before the vault is tried again after a first failure."""
_PASSING = frozenset({"PermissionDenied", "WrongEngine"})
"""Failures of one path: the vault itself serves."""

Outcome = Mapping[str, Any] | NotFound


class OpenBao:
    """Implements `ports.secretstore.SecretStore`."""

    def __init__(self, settings: VaultSettings) -> None:
        self._mount, self._prefix, self._timeout = settings.mount, settings.prefix, settings.timeout_seconds
        self._server = Server(settings.address, settings.ca_cert, settings.namespace)
        self._login = Login(self._server, settings.auth)
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], tuple[float, Outcome]] = {}
        self._failures, self._not_before = 0, 0.0
        self._failure: SecretUnavailable | None = None

    # ── the port ────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self, namespace: str, name: str) -> Found:
        path = self._path("subkeys", namespace, name)
        found: Found = self._guarded(lambda until: self._look(path, namespace, name, until))
        return found

    def read(self, namespace: str, name: str, key: str) -> Secret:
        place = self.place(namespace, name)
        outcome = self._recent(namespace, name)
        if outcome is None:
            outcome = self._guarded(lambda until: self._data(namespace, name, until))
            self._hold(namespace, name, outcome)
        if isinstance(outcome, NotFound):
            raise NotFound(outcome.message)
        if key not in outcome:
            raise NotFound(f"{place} in the vault has no key {key}; add it with `bao kv patch`")
        value = outcome[key]
        if not isinstance(value, str):
            raise Invalid(f"{place} in the vault: the value of {key} is not text; write it as text")
        return Secret(value)

    def place(self, namespace: str, name: str) -> str:
        return self._path("data", namespace, name)

    def check(self) -> None:
        self._guarded(self._login.token)

    def close(self) -> None:
        with self._lock:
            self._held.clear()
        self._login.give_back(time.monotonic() + min(2.0, self._timeout))

    # ── what is asked ───────────────────────────────────────────────────────────────────────────────────────────

    def _path(self, what: str, namespace: str, name: str) -> str:
        for part in (namespace, name):
            # Letters, digits, dots and dashes, and at the ends no dot: neither a slash nor `..` nor a `%`.
            if not NAME.fullmatch(part):
                raise Invalid("a secret in the vault is named by a namespace and a name, nothing else")
        return f"{self._mount}/{what}/{self._prefix}/{namespace}/{name}"

    def _look(self, path: str, namespace: str, name: str, until: float) -> Found:
        place = self.place(namespace, name)
        answer = self._ask("GET", f"{path}?depth=1", until)
        data = self._there(answer, path, place, until)
        metadata, keys = data.get("metadata"), data.get("subkeys")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("version"), int):
            raise cannot_now(self._server.address, answer)
        # Names can be read and values not: a service would find out what a status had not said.
        may = self._ask("POST", "sys/capabilities-self", until, {"paths": [place]})
        granted = (may.body.get("data") or {}).get(place) if may.status == 200 else None
        if isinstance(granted, list) and not {"read", "root", "sudo"} & {str(word) for word in granted}:
            raise self._denied(place)
        names = tuple(sorted(str(k) for k in keys)) if isinstance(keys, dict) else ()
        return Found(metadata["version"], str(metadata.get("created_time", ""))[:40], names)

    def _data(self, namespace: str, name: str, until: float) -> Outcome:
        place = self.place(namespace, name)
        answer = self._ask("GET", place, until)
        try:
            values = self._there(answer, place, place, until).get("data")
        except NotFound as error:
            return error
        if not isinstance(values, dict):
            raise cannot_now(self._server.address, answer)
        return values

    def _there(self, answer: Answer, path: str, place: str, until: float) -> dict[str, Any]:
        """The `data` of a good answer; what else it means otherwise."""
        data = answer.body.get("data")
        if answer.status == 200 and isinstance(data, dict):
            return data
        if answer.status == 403:
            raise self._denied(path)
        if answer.status != 404:
            raise cannot_now(self._server.address, answer)
        metadata = data.get("metadata") if isinstance(data, dict) else None
        if isinstance(metadata, dict):
            verb = "destroyed" if metadata.get("destroyed") is True else "deleted"
            number = metadata.get("version") if isinstance(metadata.get("version"), int) else "the newest"
            raise NotFound(f"version {number} of {place} in the vault was {verb}; write another one")
        self._right_engine(until)
        # Both ways to write a path of KV are in use; this is the one people type.
        typed = place.removeprefix(f"{self._mount}/data/")
        raise NotFound(
            f"there is nothing at {place} in the vault; write it: bao kv put -mount={self._mount} {typed} KEY=VALUE"
        )

    def _right_engine(self, until: float) -> None:
        """A mount of version 1, or none at all, answers as if nothing were there."""
        answer = self._ask("GET", f"sys/internal/ui/mounts/{self._mount}", until)
        data = answer.body.get("data")
        if answer.status == 200 and isinstance(data, dict):
            options = data.get("options")
            version = options.get("version") if isinstance(options, dict) else None
            if data.get("type") != "kv" or version != "2":
                message = f"{self._mount} of the vault at {self._server.address} is not a KV engine of version 2"
                raise SecretUnavailable(f"{message}; look at secrets.vault.mount", why="WrongEngine")
        elif answer.status in (400, 403, 404):
            raise SecretUnavailable(
                f"the vault at {self._server.address} has nothing mounted at {self._mount}, or nothing there that our "
                "policy allows; look at secrets.vault.mount",
                why="WrongEngine",
            )

    def _denied(self, path: str) -> SecretUnavailable:
        what = path.removeprefix(f"{self._mount}/").partition("/")[0]
        rule = f'path "{self._mount}/{what}/{self._prefix}/*" {{ capabilities = ["read"] }}'
        return SecretUnavailable(
            f"the vault at {self._server.address} does not let us read {path}; our policy lacks {rule}",
            why="PermissionDenied",
        )

    def _ask(self, method: str, path: str, until: float, body: Any = None) -> Answer:
        """The answer to a request with our token, and with another one when ours had died."""
        token = self._login.token(until)
        answer = self._server.send(method, path, until, token, body)
        if answer.status == 403 and (fresh := self._login.another(token, until)) is not None:
            answer = self._server.send(method, path, until, fresh, body)
        return answer

    # ── a vault that is down ────────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, ask: Callable[[float], Any]) -> Any:
        """`ask(until)`, unless the vault was found down just now."""
        with self._lock:
            if self._failure is not None:
                if time.monotonic() < self._not_before:
                    raise SecretUnavailable(self._failure.message, why=self._failure.why)
                self._not_before = time.monotonic() + self._timeout  # we try; the others are told what was found
        try:
            found = ask(time.monotonic() + self._timeout)
        except SecretUnavailable as error:
            self._went(None if error.why in _PASSING else error)
            raise
        except GroundError:
            self._went(None)
            raise
        self._went(None)
        return found

    def _went(self, failure: SecretUnavailable | None) -> None:
        with self._lock:
            if failure is None:
                if self._failure is not None:
                    log.info("the vault serves again", extra={"address": self._server.address})
                self._failures, self._failure = 0, None
                return
            if self._failure is None or self._failure.why != failure.why:
                log.warning("the vault cannot serve", extra={"address": self._server.address, "error": failure.message})
            self._failures, self._failure = self._failures + 1, failure
            wait = min(FIRST_WAIT * 2 ** min(self._failures - 1, 10), LONGEST_WAIT)
            wait = max(wait * random.uniform(0.8, 1.2), failure.retry_after or 0.0)
            self._not_before = time.monotonic() + wait

    # ── what is held for a moment ───────────────────────────────────────────────────────────────────────────────

    def _recent(self, namespace: str, name: str) -> Outcome | None:
        with self._lock:
            at = time.monotonic()
            self._held = {place: held for place, held in self._held.items() if held[0] > at}
            found = self._held.get((namespace, name))
            return found[1] if found else None

    def _hold(self, namespace: str, name: str, outcome: Outcome) -> None:
        with self._lock:
            if len(self._held) < MOST_HELD:
                self._held[namespace, name] = (time.monotonic() + HELD, outcome)
