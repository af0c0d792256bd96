"""One call to one service of a cloud: signed in to a project, within its time, and what its silence means.

Signing in and sending are keystoneauth's, which openstacksdk stands on. It is told to follow no redirect, to read no
proxy from the environment, to log nothing, and to repeat nothing: what is repeated, and when, is decided here. Each
call runs on a thread of its own, so that whatever hangs the caller is back in time.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import requests
import urllib3.exceptions
from keystoneauth1 import exceptions as keystone
from keystoneauth1.access import AccessInfo
from keystoneauth1.identity import v3
from keystoneauth1.identity.base import BaseIdentityPlugin
from keystoneauth1.session import Session

from groundcontrol.drivers.openstack import failures
from groundcontrol.drivers.openstack.options import FORMS, Credentials, Options
from groundcontrol.kernel.errors import Invalid, OutcomeUnknown, Refused, Unavailable

T = TypeVar("T")
LARGEST = 64 << 20
"""Bytes of an answer."""
AT_ONCE = 8
"""Calls to one service under way, those whose callers have gone among them."""
READS = ("GET", "HEAD")
PLAIN = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Headers of every request. Bodies are read as they come, so they come as they are."""

SERVICES: Mapping[str, tuple[str, ...]] = {
    "compute": ("compute",),
    "network": ("network",),
    "image": ("image",),
    "block-storage": ("block-storage", "volumev3", "block-store", "volume"),
    "identity": ("identity",),
    "placement": ("placement",),
    "object-store": ("object-store",),
}
"""Our name of a service to its types in catalogues, best first."""
_VERSIONED = {"network": "/v2.0", "image": "/v2"}
_MICROVERSION = {"compute": "compute", "block-storage": "volume", "placement": "placement"}


class Answer(NamedTuple):
    """What a service said."""

    status: int
    body: Any
    """Decoded JSON, or text."""
    headers: Mapping[str, str]


class Scope:
    """Being signed in to one project."""

    def __init__(self, plugin: BaseIdentityPlugin, project: str) -> None:
        self.plugin, self.wanted = plugin, project
        self.access: AccessInfo | None = None

    @property
    def told(self) -> AccessInfo:
        """What Keystone said of us; sign in first."""
        if self.access is None:
            raise Unavailable("not signed in yet")
        return self.access

    @property
    def project(self) -> str:
        return self.told.project_id or ""


class Connection:
    """The way to all services of one region. Safe for threads."""

    def __init__(self, name: str, address: str, credentials: Credentials, options: Options) -> None:
        self.name, self.address, self.options = name, address, options
        self._credentials = credentials
        web = requests.Session()
        web.trust_env = False
        adapter = requests.adapters.HTTPAdapter(pool_connections=16, pool_maxsize=AT_ONCE)
        web.mount("https://", adapter)
        web.mount("http://", adapter)
        self._web = web
        self._session = Session(session=web, verify=options.verify, timeout=options.longest, redirect=False)
        self._slots: dict[str, threading.BoundedSemaphore] = defaultdict(lambda: threading.BoundedSemaphore(AT_ONCE))
        self._lock = threading.Lock()
        self.calls = 0
        self.counted: dict[str, int] = defaultdict(int)
        """Service to calls made."""
        self.own = Scope(_plugin(address, credentials, ""), "")
        self._scopes: dict[str, Scope] = {}

    def close(self) -> None:
        self._web.close()

    # ── signing in ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def rescopes(self) -> bool:
        """Whether the credentials open other projects than their own."""
        return FORMS[self._credentials.form].rescopes

    def scope(self, project: str) -> Scope:
        """Being in this project (its id; empty: our own). Not signed in yet."""
        if not project or (self.own.access and self.own.project == project):
            return self.own
        if not self.rescopes:
            raise Refused(
                f"{self.name}: an application credential works in its own project only, not in {project};"
                " give the Site a password or a token",
                cause="NotAuthorised",
            )
        with self._lock:
            if project not in self._scopes:
                self._scopes[project] = Scope(_plugin(self.address, self._credentials, project), project)
            return self._scopes[project]

    def sign_in(self, scope: Scope, until: float | None = None) -> AccessInfo:
        """The token of a scope, a new one when it is over."""
        access = scope.access
        if access is not None and not access.will_expire_soon(30):
            return access
        until = until or time.monotonic() + self.options.longest
        what = f"{self.name}: sign in at {self.address}"
        try:
            scope.access = self._bounded("identity", until, lambda: scope.plugin.get_access(self._session))
        except keystone.Unauthorized as error:
            if scope.wanted:  # Keystone answers 401 for a missing role, too
                message = (
                    f"{what} to project {scope.wanted}: {_said(error)}; the account of the Site needs a role there"
                )
                raise Refused(message, cause="NotAuthorised") from None
            raise Refused(f"{what}: {_said(error)}; look at its credentials", cause="NotAuthenticated") from None
        except TimeoutError:
            raise Unavailable(f"{what}: no answer came in time") from None
        except (keystone.HttpError, keystone.ClientException) as error:
            raise self._signing(what, error) from None
        return scope.access

    def _signing(self, what: str, error: Exception) -> Exception:
        if isinstance(error, keystone.HttpError):
            status = error.http_status or 500
            said = _said(error)
            if status == 403:
                return Refused(f"{what}: {said}", cause="NotAuthorised")
            if status == 429:
                return Refused(f"{what}: {said} (HTTP 429)", cause="Throttled")
            if status == 404:
                return Unavailable(f"{what}: there is no Keystone at this address (HTTP 404): mend the endpoint")
            return Unavailable(f"{what}: {said} (HTTP {status})")
        return Unavailable(f"{what}: {_in_words(error)}")

    # ── where services are ──────────────────────────────────────────────────────────────────────────────────────

    def endpoints(self, access: AccessInfo) -> dict[str, str]:
        """Our name of a service, or its type in the catalogue, to its address in our region."""
        region = self.region(access)
        found: dict[str, str] = {}
        rank: dict[str, int] = {}
        for entry in access.service_catalog.catalog if access.has_service_catalog() else ():
            told = str(entry.get("type", ""))
            name = next((ours for ours, types in SERVICES.items() if told in types), told)
            place = SERVICES.get(name, (told,)).index(told)
            for endpoint in entry.get("endpoints", ()):
                here = endpoint.get("region_id", endpoint.get("region"))
                if endpoint.get("interface") != self.options.interface or here != region:
                    continue
                if place < rank.get(name, 99):
                    found[name], rank[name] = str(endpoint["url"]).rstrip("/"), place
        return found

    def region(self, access: AccessInfo) -> str:
        """The region the Site is; Invalid when the catalogue has another or several and the Site says none."""
        catalogue = access.service_catalog.catalog if access.has_service_catalog() else ()
        regions = sorted(
            {str(e.get("region_id", e.get("region"))) for entry in catalogue for e in entry.get("endpoints", ())}
        )
        wanted = self.options.region
        if wanted in regions:
            return wanted
        if wanted or len(regions) != 1:
            what = f"there is no region {wanted!r}" if wanted else "the cloud has not one region"
            raise Invalid(f"{self.name}: options.region: {what}; there are: {', '.join(regions) or 'none'}")
        return regions[0]

    def url(self, scope: Scope, service: str) -> str:
        """Where paths of a service begin. Refused when the catalogue has none such."""
        if service == "identity":
            return self.address
        address = self.endpoints(self.sign_in(scope)).get(service)
        if address is None:
            raise Refused(
                f"{self.name}: the catalogue has no {service} in this region ({self.options.interface} interface)",
                cause="InvalidRequest",
            )
        version = _VERSIONED.get(service, "")
        return address if not version or address.endswith(version) else address + version

    # ── calling ─────────────────────────────────────────────────────────────────────────────────────────────────

    def call(
        self,
        service: str,
        method: str,
        path: str,
        *,
        what: str = "",
        scope: Scope | None = None,
        body: Any = None,
        version: str = "",
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """What a service answers when it is a success; the error for it otherwise.

        A token that is over is renewed once. A read that got no answer, or a passing one, is repeated once."""
        scope = scope or self.own
        what = f"{self.name}: {what or f'{method} {service} {path}'}"
        until = time.monotonic() + self.options.longest
        for last in (False, True) if method in READS else (True,):
            try:
                answer = self._signed(service, method, path, what, scope, until, body, version, query, headers)
            except OutcomeUnknown:
                raise
            except Unavailable:
                if last or time.monotonic() > until - 1:
                    raise
                continue
            if answer.status < 300:
                return answer
            if last or answer.status not in (502, 503, 504):
                break
            time.sleep(min(0.2, max(0.0, until - time.monotonic())))
        raise failures.failed(what, method, answer.status, answer.body, answer.headers)

    def _signed(
        self,
        service: str,
        method: str,
        path: str,
        what: str,
        scope: Scope,
        until: float,
        body: Any,
        version: str,
        query: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        for last in (False, True):
            access = self.sign_in(scope, until)
            sent = {**PLAIN, "X-Auth-Token": access.auth_token, **(headers or {})}
            if version:
                sent["OpenStack-API-Version"] = f"{_MICROVERSION[service]} {version}"
            arguments: dict[str, Any] = {"headers": sent}
            if body is not None:
                arguments["data"] = body if isinstance(body, bytes) else msgspec.json.encode(body)
                sent.setdefault("Content-Type", "application/json")
            if query:
                arguments["params"] = dict(query)
            address = path if path.startswith("http") else self.url(scope, service) + path
            answer = self.send(service, method, address, what, until, arguments)
            if answer.status != 401 or last:
                break
            # Revoked, or forgotten by the cloud: the next one is as good as a new one.
            if scope.access is access:
                scope.plugin.invalidate()
                scope.access = None
        return answer

    def send(
        self, service: str, method: str, address: str, what: str, until: float, arguments: Mapping[str, Any]
    ) -> Answer:
        """One request, whatever its answer's status. Unavailable or OutcomeUnknown when there is none."""
        went: list[bool] = []

        def exchange() -> Answer:
            went.append(True)
            response = self._session.request(
                address,
                method,
                authenticated=False,
                raise_exc=False,
                log=False,
                redirect=False,
                stream=True,
                timeout=(min(10.0, self.options.longest), max(0.1, until - time.monotonic())),
                **arguments,
            )
            with response:
                return Answer(response.status_code, _decoded(_read(response, until)), response.headers)

        try:
            return self._bounded(service, until, exchange)
        except TimeoutError:
            raise failures.lost(what, method, bool(went), "no answer came in time") from None
        except (keystone.ClientException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise failures.lost(what, method, _was_sent(error), _in_words(error)) from None

    def _bounded(self, service: str, until: float, work: Callable[[], T]) -> T:
        """What the work brings, on a thread of its own. TimeoutError when it is not through in time."""
        slots = self._slots[service]
        left = until - time.monotonic()
        if left <= 0 or not slots.acquire(timeout=left):
            raise Unavailable(f"{self.name}: {service} has not answered {AT_ONCE} earlier calls yet")
        with self._lock:
            self.calls += 1
            self.counted[service] += 1
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # handed to who waits; a thread that dies of it would leave him waiting
                done.set_exception(error)
            finally:
                slots.release()

        threading.Thread(target=run, name=f"{self.name} {service}", daemon=True).start()
        return done.result(max(0.0, until - time.monotonic()))


def _plugin(address: str, credentials: Credentials, project: str) -> BaseIdentityPlugin:
    members: dict[str, Any] = dict(credentials.members)
    if project:
        members = {k: v for k, v in members.items() if not k.startswith("project_")} | {"project_id": project}
    match credentials.form:
        case "password":
            return v3.Password(address, **members)
        case "v3applicationcredential":
            return v3.ApplicationCredential(address, **members)
        case "v3token":
            return v3.Token(address, **members)
    return v3.OidcAccessToken(address, **members)


def _read(response: requests.Response, until: float) -> bytes:
    """The body, piece by piece as it comes: whoever sends a byte now and then does not keep us for ever. urllib3 raises
    when it ends too early."""
    parts, size = [], 0
    while part := response.raw.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise OSError(f"the answer is longer than {LARGEST >> 20} MiB")
        if time.monotonic() > until:
            raise OSError("the answer did not end in time")
    return b"".join(parts)


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content) if content else {}
    except msgspec.DecodeError:
        return content[:4096].decode("utf-8", "replace")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, also where libraries keep that in arguments."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        waiting += [a for a in (*one.args, getattr(one, "reason", None)) if isinstance(a, BaseException)]


_BEFORE = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.LocationParseError,
    requests.exceptions.ConnectTimeout,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
)


def _was_sent(error: BaseException) -> bool:
    """False only when there was no connection to send anything over."""
    chain = tuple(_chain(error))
    if any(isinstance(e, _BEFORE) for e in chain):
        return False
    return not any(_handshake(e) for e in chain)


def _handshake(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error) or "WRONG_VERSION_NUMBER" in str(error)


def _in_words(error: BaseException) -> str:
    """Why no answer came, without addresses of objects and nesting."""
    chain = tuple(_chain(error))
    texts = " ".join(str(e) for e in chain)
    if "CERTIFICATE_VERIFY_FAILED" in texts:
        if "certificate has expired" in texts:
            return "its certificate has expired"
        return "its certificate is not trusted: set options.caCert to the authority that signed it"
    if any(isinstance(e, (urllib3.exceptions.SSLError, requests.exceptions.SSLError)) for e in chain):
        return "it does not speak TLS as we do"
    if any(isinstance(e, urllib3.exceptions.NameResolutionError) for e in chain):
        return "its name is not known"
    if any(isinstance(e, urllib3.exceptions.NewConnectionError) for e in chain):
        return "it could not be reached: nobody listens there, or the way is closed"
    if any(isinstance(e, (urllib3.exceptions.ConnectTimeoutError, requests.exceptions.ConnectTimeout)) for e in chain):
        return "it could not be reached in time"
    if any(isinstance(e, (TimeoutError, requests.exceptions.Timeout)) for e in chain):
        return "no answer came in time"
    own = next((str(e) for e in chain if type(e) is OSError), "")
    return own or "the connection broke before the answer was whole"


def _said(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        try:
            told = failures.words(_decoded(response.content))
        except (OSError, RuntimeError):
            told = ""
        if told:
            return told
    return failures.words(str(error)) or type(error).__name__


def root_of(address: str) -> str:
    """The address of a service without its version and what follows: where it says which versions it has."""
    parts = urlsplit(address)
    kept: list[str] = []
    for segment in parts.path.split("/"):
        if segment[:1] == "v" and segment[1:2].isdigit():
            break
        kept.append(segment)
    path = "/".join(kept).rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}/"
