"""The token we have with the vault: got by AppRole, JWT or from a file, renewed while used, replaced when it died.

A token is asked for at the first use, so that we start while the vault is down. It is renewed when two thirds of its
time are over; one that cannot be renewed, or that comes near its last day, is replaced by another login.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from typing import Any

from groundcontrol.drivers.openbao.http import Answer, Server
from groundcontrol.kernel.errors import GroundError, SecretUnavailable
from groundcontrol.kernel.secrets import Resolver, Secret
from groundcontrol.kernel.settings import VaultAuthSettings

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
"""What may stand in a header; http.client would repeat anything else in its error."""


class Login:
    """Signs in. Safe for many threads; one of them logs in, the others wait for it."""

    def __init__(self, server: Server, settings: VaultAuthSettings) -> None:
        self._server, self._settings = server, settings
        self._mount = settings.mount_path or f"auth/{settings.method}"
        self._lock = threading.Lock()
        self._token: Secret | None = None
        self._first = 0.0
        """Seconds the token was good for when it was new; 0: for ever."""
        self._due = 0.0
        """When it is to be renewed, monotonic; 0: never."""
        self._renewable = False

    def token(self, until: float) -> Secret:
        """A token that is thought to be good."""
        self._wait(until)
        try:
            if self._token is None:
                self._enter(until)
            elif self._due and time.monotonic() >= self._due:
                self._renew(until)
            assert self._token is not None
            return self._token
        finally:
            self._lock.release()

    def another(self, refused: Secret, until: float) -> Secret | None:
        """A new token in place of one that was refused; None when that one is alive and simply may not."""
        self._wait(until)
        try:
            if self._token is not None and self._token is not refused:
                return self._token  # somebody else has done it meanwhile
            if self._server.send("GET", "auth/token/lookup-self", until, refused).status == 200:
                return None
            self._token = None
            self._enter(until)
            return self._token
        finally:
            self._lock.release()

    def give_back(self, until: float) -> None:
        """Revoke what we logged in for. A token of the operator's is left alone."""
        token, self._token = self._token, None
        if token is not None and self._settings.method != "token_file":
            with suppress(GroundError):
                self._server.send("POST", "auth/token/revoke-self", until, token)

    # ── behind the lock ─────────────────────────────────────────────────────────────────────────────────────────

    def _wait(self, until: float) -> None:
        if not self._lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise SecretUnavailable(f"the vault at {self._server.address} did not answer in time", why="Slow")

    def _enter(self, until: float) -> None:
        settings = self._settings
        match settings.method:
            case "approle":
                secret_id = {"secret_id": _own(settings.secret_id).reveal()} if settings.secret_id else {}
                self._log_in({"role_id": _own(settings.role_id).reveal(), **secret_id}, until)
            case "jwt":
                self._log_in({"role": settings.role, "jwt": _own(settings.jwt).reveal()}, until)
            case "token_file":
                self._look_up(_own(settings.token), until)

    def _log_in(self, body: dict[str, str], until: float) -> None:
        answer = self._server.send("POST", f"{self._mount}/login", until, body=body)
        auth = answer.body.get("auth")
        if answer.status != 200 or not isinstance(auth, dict):
            names = {"approle": "roleId and secretId", "jwt": "role and jwt"}[self._settings.method]
            raise self._refused(answer, f"look at {names} of secrets.vault.auth, and at {self._mount}")
        self._keep(auth.get("client_token"), auth.get("lease_duration"), auth.get("renewable"))

    def _look_up(self, token: Secret, until: float) -> None:
        checked = self._checked(token.reveal())
        answer = self._server.send("GET", "auth/token/lookup-self", until, checked)
        data = answer.body.get("data")
        if answer.status != 200 or not isinstance(data, dict):
            raise self._refused(answer, "the token of secrets.vault.auth.token is over or was revoked: put a fresh one")
        self._keep(checked.reveal(), data.get("ttl"), data.get("renewable"))

    def _renew(self, until: float) -> None:
        """Longer when it can be; another one when that one's end is near; the same when nobody answers."""
        assert self._token is not None
        if self._renewable:
            answer = self._server.send("POST", "auth/token/renew-self", until, self._token, {})
            auth = answer.body.get("auth")
            if answer.status == 200 and isinstance(auth, dict):
                lease = _seconds(auth.get("lease_duration"))
                if self._settings.method == "token_file" or lease * 2 >= self._first:
                    self._due = time.monotonic() + lease * 2 / 3
                    return
            elif answer.status >= 500 or answer.status == 429 or 300 <= answer.status < 400:
                return  # the request that needs the token will say what is the matter
        self._token = None
        self._enter(until)

    def _keep(self, token: Any, lease: Any, renewable: Any) -> None:
        self._token = self._checked(token)
        self._first, self._renewable = _seconds(lease), renewable is True
        self._due = time.monotonic() + self._first * (2 / 3 if self._renewable else 0.9) if self._first else 0.0

    def _checked(self, token: Any) -> Secret:
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise SecretUnavailable(
                f"the vault at {self._server.address}: the token is not one line of plain characters; "
                f"look at secrets.vault.auth.{'token' if self._settings.method == 'token_file' else 'mountPath'}",
                why="LoginRefused",
            )
        return Secret(token)

    def _refused(self, answer: Answer, remedy: str) -> SecretUnavailable:
        at = f"the vault at {self._server.address}"
        if answer.status >= 500 or answer.status == 429 or 300 <= answer.status < 400:
            return cannot_now(self._server.address, answer)
        way = f"by {self._settings.method}" if self._settings.method != "token_file" else "with our token"
        return SecretUnavailable(f"{at} refused the login {way} ({answer.status}); {remedy}", why="LoginRefused")


def cannot_now(address: str, answer: Answer) -> SecretUnavailable:
    """An answer that says nothing of the secret: sealed, a standby, an error of the server."""
    at = f"the vault at {address}"
    said = " ".join(e for e in answer.body.get("errors") or () if isinstance(e, str)).lower()
    if answer.status == 503 and "sealed" in said:
        return SecretUnavailable(f"{at} is sealed; unseal it", why="Sealed")
    if 300 <= answer.status < 400:
        return SecretUnavailable(
            f"{at} points to another address, where we do not take our token; give the address of the active server, "
            "or of a balancer before it, as secrets.vault.address",
            why="Redirected",
        )
    if answer.status == 429:
        return SecretUnavailable(f"{at} has a quota, and it is used up", why="Busy", retry_after=answer.retry_after)
    if answer.status in (412, 472, 473):
        return SecretUnavailable(f"{at} is a standby that does not serve yet", why="Standby")
    if answer.status == 200:
        return SecretUnavailable(f"{at} does not answer as a vault does; look at the address", why="NotAVault")
    return SecretUnavailable(f"{at} answered {answer.status}; its log says why", why="ServerError")


def _own(reference: str | None) -> Secret:
    """What the operator's settings name, read now. SecretUnavailable when it is not there any more."""
    try:
        return Resolver(None).resolve(reference or "")
    except GroundError as error:
        raise SecretUnavailable(f"cannot sign in to the vault: {error.message}", why="LoginRefused") from None


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
