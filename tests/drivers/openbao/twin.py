"""A small server that answers as Vault 1.14 was seen to, and misbehaves in ways no real one can be made to.

What it says to good requests is held to the real server by tests/contracts/test_secretstore.py, which runs on both.
"""

from __future__ import annotations

import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from groundcontrol.kernel.settings import VaultSettings
from tests.drivers.openbao.certificates import Authority

Doc = dict[str, Any]
Fault = Callable[["Handler"], None]
GRANTS = ("data", "subkeys")


class Quiet(ThreadingHTTPServer):
    """Says nothing of callers who hang up, which is what many tests are about."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        return None


class VaultTwin:
    """One KV engine of version 2 at `secret`, one of version 1 at `old`, AppRole and JWT."""

    def __init__(self, folder: Path, *, tls: bool = True) -> None:
        self.role_id, self.secret_id, self.jwt = "role-of-ground", secrets.token_hex(16), secrets.token_hex(16)
        for name in ("role_id", "secret_id", "jwt"):
            (folder / name).write_text(getattr(self, name), encoding="ascii")
        self.folder, self.token_file = folder, folder / "token"
        self.versions: dict[str, list[Doc | None]] = {}
        self.tokens: dict[str, float] = {}
        """Token to the moment it ends."""
        self.allowed, self.sealed = set(GRANTS), False
        self.lease, self.renewable, self.longest = 3600, True, 3600.0
        self.fault: Fault | None = None
        self.seen: list[tuple[str, str, str]] = []
        """Method, path and token of every request."""
        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.twin = self  # type: ignore[attr-defined]
        self.authority = Authority(folder)
        self._tls = tls
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.authority.sign())
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # ── the other side of the port ──────────────────────────────────────────────────────────────────────────────

    @property
    def address(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def settings(self, method: str = "approle", **changes: Any) -> VaultSettings:
        """Settings that work; `changes` make them others."""
        auth = {
            "approle": {"roleId": f"file:{self.folder}/role_id", "secretId": f"file:{self.folder}/secret_id"},
            "jwt": {"role": "ground", "jwt": f"file:{self.folder}/jwt"},
            "token_file": {"token": f"file:{self.token_file}"},
        }[method]
        given = {"address": self.address, "caCert": str(self.authority.file), "auth": {"method": method, **auth}}
        return VaultSettings.model_validate({**given, "timeoutSeconds": 10, **changes})

    def put(self, namespace: str, name: str, values: Doc) -> None:
        self.versions.setdefault(f"ground/{namespace}/{name}", []).append(values)

    def delete(self, namespace: str, name: str) -> None:
        self.versions[f"ground/{namespace}/{name}"][-1] = None

    def grant(self, *what: str) -> None:
        """Of `data` and `subkeys`, what our policy lets us read."""
        self.allowed = set(what)

    def end_tokens(self) -> None:
        self.tokens.clear()

    def seal(self) -> None:
        self.sealed = True

    def unseal(self) -> None:
        self.sealed = False

    def give_token(self, lease: float = 3600) -> str:
        """A token as an administrator makes one; written into `token_file`."""
        token = f"hvs.{secrets.token_hex(12)}"
        self.tokens[token] = time.monotonic() + lease
        self.token_file.write_text(token, encoding="ascii")
        return token

    def logins(self) -> int:
        return sum(path.endswith("/login") for _, path, _ in self.seen)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    PLAIN: ClassVar[Doc] = {
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "wrap_info": None,
        "warnings": None,
    }

    @property
    def twin(self) -> VaultTwin:
        found: VaultTwin = self.server.twin  # type: ignore[attr-defined]
        return found

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return None

    def _handle(self) -> None:
        twin = self.twin
        self.token = self.headers.get("X-Vault-Token", "")
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.body: Doc = json.loads(raw) if raw else {}
        path = self.path.partition("?")[0].removeprefix("/v1/")
        twin.seen.append((self.command, path, self.token))
        if twin.fault is not None:
            twin.fault(self)
        elif twin.sealed:
            self.say(503, {"errors": ["Vault is sealed"]})
        elif path.endswith("/login"):
            self._log_in(path)
        elif twin.tokens.get(self.token, 0.0) <= time.monotonic():
            self.say(403, {"errors": ["permission denied"]})
        else:
            self._serve(path)

    def _log_in(self, path: str) -> None:
        twin, given = self.twin, self.body
        good = {
            "auth/approle/login": {"role_id": twin.role_id, "secret_id": twin.secret_id},
            "auth/jwt/login": {"role": "ground", "jwt": twin.jwt},
        }.get(path)
        if good is None:
            self.say(403, {"errors": ["permission denied"]})
        elif given != good:
            self.say(400, {"errors": [f"invalid role or secret ID {given}"]})  # as nosy as a server can be
        else:
            token = f"hvs.{secrets.token_hex(12)}"
            twin.tokens[token] = time.monotonic() + twin.lease
            self.good(auth={"client_token": token, "lease_duration": twin.lease, "renewable": twin.renewable})

    def _serve(self, path: str) -> None:
        twin = self.twin
        mount, _, rest = path.partition("/")
        if path == "auth/token/lookup-self":
            left = int(twin.tokens[self.token] - time.monotonic())
            self.good(data={"ttl": left, "renewable": twin.renewable})
        elif path == "auth/token/renew-self":
            lease = min(float(twin.lease), twin.longest)
            twin.tokens[self.token] = time.monotonic() + lease
            self.good(auth={"client_token": self.token, "lease_duration": lease, "renewable": True})
        elif path == "auth/token/revoke-self":
            del twin.tokens[self.token]
            self.say(204, None)
        elif path == "sys/capabilities-self":
            (asked,) = self.body["paths"]
            granted = ["read"] if "data" in twin.allowed and asked.startswith("secret/data/ground/") else ["deny"]
            self.good(data={"capabilities": granted, asked: granted})
        elif path.startswith("sys/internal/ui/mounts/"):
            version = {"secret": "2", "old": "1"}.get(path.rpartition("/")[2])
            if version:
                self.good(data={"type": "kv", "options": {"version": version}})
            else:
                self.say(403, {"errors": ["preflight capability check returned 403"]})
        elif mount == "old":
            self.say(404, {"errors": []})
        elif mount != "secret":
            self.say(403, {"errors": ["permission denied"]})  # a policy hides what is not mounted
        else:
            self._kv(*rest.partition("/")[::2])

    def _kv(self, what: str, path: str) -> None:
        versions = self.twin.versions.get(path)
        if what not in self.twin.allowed or not path.startswith("ground/"):
            self.say(403, {"errors": ["permission denied"]})
        elif not versions:
            self.say(404, {"errors": []})
        else:
            values, gone = versions[-1], versions[-1] is None
            times = {"created_time": "2026-01-01T00:00:00.5Z", "deletion_time": "2026-01-02T00:00:00Z" if gone else ""}
            metadata = {**times, "custom_metadata": None, "destroyed": False, "version": len(versions)}
            shown = {"data": values} if what == "data" else {"subkeys": None if gone else dict.fromkeys(values or ())}
            self.good(404 if gone else 200, data={"metadata": metadata, **shown})

    def good(self, status: int = 200, *, data: Any = None, auth: Any = None) -> None:
        self.say(status, {**self.PLAIN, "request_id": secrets.token_hex(8), "data": data, "auth": auth})

    def say(self, status: int, body: Any, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), "Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)
