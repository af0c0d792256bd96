"""One request to the vault: within the time that is left, over a checked connection, never to another address.

Written on `http.client`, which follows no redirect and reads no proxy from the environment: the token goes where the
operator said. Each request runs on a thread of its own, so that whatever hangs (a resolver, a handshake, a server that
sends a byte a second) the caller is back in time.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from groundcontrol.kernel.errors import Invalid, SecretUnavailable
from groundcontrol.kernel.secrets import Secret

LARGEST = 2 << 20
"""Bytes of an answer; a KV entry is at most half a MiB by the server's defaults."""
LONGEST_WAIT = 60.0
"""Seconds; a longer wait that the server asks for is cut down to this."""
AT_ONCE = 8
"""Requests under way, those whose callers have gone among them."""


class Answer(NamedTuple):
    """What the server said."""

    status: int
    body: dict[str, Any]
    retry_after: float = 0.0
    """Seconds it asks us to wait."""


class Server:
    """One address. `until` is the moment of the monotonic clock at which a caller has to be back."""

    def __init__(self, address: str, ca_cert: str | None = None, namespace: str = "") -> None:
        parts = urlsplit(address)
        self.address = address
        self._host, self._port, self._base = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._namespace = namespace
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_cert)
            except (OSError, ValueError):
                raise Invalid(f"secrets.vault.caCert: {ca_cert} holds no certificate in PEM; mend it") from None

    def send(self, method: str, path: str, until: float, token: Secret | None = None, body: Any = None) -> Answer:
        """The answer, whatever its status. SecretUnavailable when there was none in time."""
        left = until - time.monotonic()
        if left <= 0 or not self._slots.acquire(timeout=left):
            raise SecretUnavailable(f"the vault at {self.address} did not answer in time", why="Slow")
        connection = self._connection(max(0.05, until - time.monotonic()))
        headers = {"Accept": "application/json", "X-Vault-Request": "true"}
        if token is not None:
            headers["X-Vault-Token"] = token.reveal()
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        raw = None if body is None else msgspec.json.encode(body)
        answer: Future[Answer] = Future()
        arguments = (connection, method, f"{self._base}/v1/{path}", raw, headers, until, answer)
        threading.Thread(target=self._exchange, args=arguments, name="vault", daemon=True).start()
        try:
            return answer.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise SecretUnavailable(f"the vault at {self.address} did not answer in time", why="Slow") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._in_words(error) from None
        finally:
            _hang_up(connection)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        raw: bytes | None,
        headers: dict[str, str],
        until: float,
        answer: Future[Answer],
    ) -> None:
        try:
            connection.request(method, path, raw, headers)
            # Closed by us: one without a body keeps its socket otherwise.
            with connection.getresponse() as response:
                content = _read(response, until)
                later = response.getheader("Retry-After", "")
            wait = min(float(later), LONGEST_WAIT) if later.isascii() and later.isdigit() else 0.0
            answer.set_result(Answer(response.status, _decoded(content), wait))
        except BaseException as error:  # handed to who waits; a thread that dies of it would leave him waiting
            answer.set_exception(error)
        finally:
            connection.close()
            self._slots.release()

    def _in_words(self, error: Exception) -> SecretUnavailable:
        """What went wrong, without a word of what the server sent."""
        at = f"the vault at {self.address}"
        match error:
            case ssl.SSLCertVerificationError():
                remedy = "set secrets.vault.caCert to the authority that signed it"
                return SecretUnavailable(f"{at} is not trusted: {error.verify_message}; {remedy}", why="NotTrusted")
            case ssl.SSLError():
                return SecretUnavailable(f"{at} does not speak TLS as we do; look at its listener", why="NotTrusted")
            case socket.gaierror():
                return SecretUnavailable(f"{at}: its name is not known here; look at secrets.vault.address")
            case TimeoutError():
                return SecretUnavailable(f"{at} did not answer in time", why="Slow")
            case _TooLong():
                return SecretUnavailable(f"{at} answered with more than {LARGEST:,} bytes", why="NotAVault")
            case http.client.HTTPException():
                return SecretUnavailable(f"{at} does not speak HTTP; look at secrets.vault.address", why="NotAVault")
            case OSError():
                return SecretUnavailable(f"{at} does not answer: {error.strerror or 'the connection broke'}")
        return SecretUnavailable(f"{at} does not answer")


class _TooLong(OSError):
    """More came than an answer may have."""


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    parts, size = [], 0
    while part := response.read1(65_536):
        size += len(part)
        if size > LARGEST:
            raise _TooLong
        if time.monotonic() > until:
            raise TimeoutError
        parts.append(part)
    return b"".join(parts)


def _decoded(content: bytes) -> dict[str, Any]:
    """The body when it is an object; empty for anything else, as a balancer's page is no answer of a vault."""
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    return body if isinstance(body, dict) else {}


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """Wake the thread that is still reading."""
    held: socket.socket | None = connection.sock
    if held is not None:
        with suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)
