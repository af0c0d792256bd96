"""Asks an address once: an origin that was named, over a checked connection, within a bounded time.

Written on sockets and `http.client`, which follow no redirection and read no proxy from the environment. The name is
looked up once and the connection goes to the very address that was checked, so that a name server cannot send us
elsewhere between the two. Nothing of the answer but its status is kept.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from urllib.parse import urlsplit

from groundcontrol.ports.web import Answered, origin

AT_ONCE = 16
"""Addresses asked at once, those whose callers have gone among them."""
TRIED = 3
"""Addresses of one name that are tried."""


class _Refused(Exception):
    """It may not be asked; the message says why."""


class WebClient:
    """Implements `ports.web.Web`. `origins` are all that may be asked; `longest` is the longest call in seconds."""

    def __init__(self, origins: Iterable[str], longest: float = 10.0) -> None:
        self._origins = frozenset(origin(o) for o in origins)
        self._longest = longest
        self._slots = threading.BoundedSemaphore(AT_ONCE)

    def ask(self, url: str, ca: str = "") -> Answered:
        try:
            wanted = origin(url)
        except ValueError as error:
            return Answered(asked=False, problem=str(error))
        if wanted not in self._origins:
            return Answered(asked=False, problem=f"{wanted} is not in joining.origins of the settings")
        until = time.monotonic() + self._longest
        if not self._slots.acquire(timeout=self._longest):
            return Answered(asked=False, problem="too many addresses are being asked at once")
        call = _Call(url, ca, until)
        answer: Future[Answered] = Future()

        def work() -> None:
            try:
                answer.set_result(call.make())
            except BaseException as error:  # handed to who waits; a thread that dies of it would leave him waiting
                answer.set_exception(error)
            finally:
                self._slots.release()

        # On a thread of its own: whatever hangs (a resolver, a server that sends a byte a second), we are back in time.
        threading.Thread(target=work, name="ask-web", daemon=True).start()
        try:
            return answer.result(max(0.0, until - time.monotonic()) + 0.1)
        except TimeoutError:
            return Answered(problem=f"no answer within {self._longest:g} s", expires=call.expires)
        except _Refused as error:
            return Answered(asked=False, problem=str(error))
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Answered(problem=_in_words(error), expires=call.expires)
        finally:
            call.hang_up()


class _Call:
    """One call under way."""

    def __init__(self, url: str, ca: str, until: float) -> None:
        self._url, self._ca, self._until = url, ca, until
        self._sock: socket.socket | None = None
        self._over = False
        self.expires = 0.0

    def make(self) -> Answered:
        parts = urlsplit(self._url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        sock = self._sock = self._connected(host, port)
        if parts.scheme == "https":
            sock = self._sock = _context(self._ca).wrap_socket(sock, server_hostname=host)
            self.expires = _end_of(sock)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = sock
        headers = {"Host": parts.netloc, "Accept": "*/*", "User-Agent": "ground-control", "Connection": "close"}
        try:
            connection.request("GET", parts.path or "/", headers=headers)
            with connection.getresponse() as response:
                return Answered(status=response.status, expires=self.expires)
        finally:
            connection.close()

    def _connected(self, host: str, port: int) -> socket.socket:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        good = [a for a in addresses if not _inward(a, host)]
        if not good:
            raise _Refused(f"{host} leads to {addresses[0]}, which is asked only when joining.origins names it itself")
        last: OSError | None = None
        for address in good[:TRIED]:
            left = self._until - time.monotonic()
            if left <= 0 or self._over:
                break
            try:
                sock = socket.create_connection((address, port), timeout=left)
                sock.settimeout(max(0.05, self._until - time.monotonic()))
                return sock
            except OSError as error:
                last = error
        raise last or TimeoutError("timed out")

    def hang_up(self) -> None:
        """End whatever the thread still waits for."""
        self._over = True
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                self._sock.close()


def _inward(address: str, host: str) -> bool:
    """Whether it leads to this machine or its link, where nothing is for others, and was not named itself."""
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    if found.is_loopback and host == "localhost":
        return False
    with suppress(ValueError):
        if ipaddress.ip_address(host) == found:
            return False
    special = found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified
    return special or found.is_reserved


def _context(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca or None)
    except ssl.SSLError:
        raise ValueError("caCert of the rule holds no certificate in PEM") from None


def _end_of(sock: ssl.SSLSocket) -> float:
    told = (sock.getpeercert() or {}).get("notAfter")
    return float(ssl.cert_time_to_seconds(told)) if isinstance(told, str) else 0.0


def _in_words(error: Exception) -> str:
    """What went wrong, without a word of what the other side sent."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return "it does not speak TLS as we do"
        case socket.gaierror():
            return "its name is not known"
        case TimeoutError():
            return "no answer in time"
        case http.client.HTTPException():
            return "what it sends is not HTTP"
        case OSError():
            return (error.strerror or type(error).__name__).lower()
        case _:
            return str(error)
