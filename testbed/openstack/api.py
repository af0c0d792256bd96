"""Calls the APIs of a cloud with nothing but the standard library, for what the test bed has to set up and see."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from testbed.openstack.layout import BedError, Cloud, patience

ROOTS = {
    "identity": "/v3",
    "placement": "",
    "image": "/v2",
    "compute": "/v2.1",
    "network": "/v2.0",
    "block-storage": "/v3/{project}",
}


class ApiError(BedError):
    """An API said no. `status` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """The administrator of one cloud, by the plain ports inside, so that an expired certificate is no hindrance."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.token = self.project = ""

    def login(self) -> Api:
        domain = {"name": "Default"}
        user = {"name": "admin", "password": self.cloud.passwords["admin"], "domain": domain}
        method = {"methods": ["password"], "password": {"user": user}}
        scope = {"project": {"name": "admin", "domain": domain}}
        body = {"auth": {"identity": method, "scope": scope}}
        answer, headers = self._send("POST", f"{self.cloud.internal('identity')}/v3/auth/tokens", body)
        self.token, self.project = headers["X-Subject-Token"], answer["token"]["project"]["id"]
        return self

    def get(self, service: str, path: str) -> Any:
        return self._call("GET", service, path, None)

    def post(self, service: str, path: str, body: object) -> Any:
        return self._call("POST", service, path, body)

    def put(self, service: str, path: str, body: object = None) -> Any:
        return self._call("PUT", service, path, body)

    def named(self, service: str, path: str, name: str) -> dict[str, Any] | None:
        """The one of this name in a collection; `path` ends with its key in the answer."""
        key = path.rpartition("/")[2].replace("-", "_")
        found: list[dict[str, Any]] = [x for x in self.get(service, path)[key] if x["name"] == name]
        return found[0] if found else None

    def _call(self, method: str, service: str, path: str, body: object) -> Any:
        root = self.cloud.internal(service) + ROOTS[service].format(project=self.project)
        return self._send(method, root + path, body)[0]

    def _send(self, method: str, url: str, body: object) -> tuple[Any, Any]:
        kind, data = "application/json", None
        if isinstance(body, bytes):
            kind, data = "application/octet-stream", body
        elif body is not None:
            data = json.dumps(body).encode()
        headers = {"Content-Type": kind, "Accept": "application/json", "X-Auth-Token": self.token}
        request = urllib.request.Request(url, data, {k: v for k, v in headers.items() if v}, method=method)
        try:
            # No proxy of the caller's stands between this machine and itself.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=patience()) as answer:
                raw = answer.read()
                return (json.loads(raw) if raw else None), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()[:500].decode(errors="replace")
            raise ApiError(error.code, f"{method} {url} of {self.cloud.name}: {error.code} {said}") from None
        except OSError as error:
            raise BedError(f"{method} {url} of {self.cloud.name}: {error}; see {self.cloud.logs}") from None


def until(what: str, look: Callable[[], str | None], logs: object) -> None:
    """Wait until `look` has nothing left to say; raises BedError with its last words."""
    deadline = time.monotonic() + patience()
    while (lacks := look()) is not None:
        if time.monotonic() > deadline:
            raise BedError(f"{what}: {lacks} after {patience():.0f} s; see {logs}, or give GROUND_TESTBED_PATIENCE")
        time.sleep(0.3)
