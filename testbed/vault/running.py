"""One real Vault on a port of this machine: started, opened, with the mounts, policy and logins the tests need."""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

Doc = dict[str, Any]
PATIENCE = 60.0
"""Seconds until a start is given up; a bound against hanging, not a measure."""


class VaultServer:
    """`up` makes it, `stop` and `start` leave its data, `down` ends it. `ca` is the file that vouches for `cert`."""

    def __init__(self, program: Path, folder: Path, port: int, ca: Path, cert: Path, key: Path) -> None:
        self.folder, self.port, self.ca = folder, port, ca
        self.address = f"https://127.0.0.1:{port}"
        self.root = ""
        self._key = ""
        data = folder / "data"
        data.mkdir(exist_ok=True)
        self._command = [str(program), "-listen", f"127.0.0.1:{port}", "-data", str(data)]
        self._command += ["-cert", str(cert), "-key", str(key)]
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> VaultServer:
        self.start(opened=False)
        made = self.ok("POST", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self.root, self._key = made["root_token"], made["keys"][0]
        self.unseal()
        self.ok("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        self.ok("POST", "sys/mounts/old", {"type": "kv", "options": {"version": "1"}})
        self.ok("POST", "sys/auth/approle", {"type": "approle"})
        self.ok("POST", "sys/auth/jwt", {"type": "jwt"})
        self._until(lambda: self.call("GET", "secret/config")[0] == 200, "the engine is there")
        return self

    def start(self, *, opened: bool = True) -> None:
        """Start it; with `opened` unseal it too."""
        with (self.folder / "vault.log").open("ab") as said:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        self._until(self._answers, "the vault answers")
        if opened:
            self.unseal()

    def stop(self) -> None:
        """Kill it; harmless when it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    down = stop

    def up_and_open(self) -> bool:
        try:
            return self.call("GET", "sys/health")[0] == 200
        except OSError:
            return False

    def seal(self) -> None:
        self.ok("POST", "sys/seal")

    def unseal(self) -> None:
        self.ok("POST", "sys/unseal", {"key": self._key})
        # It takes a moment until it is the active one; before, it answers as a standby.
        self._until(lambda: self.call("GET", "sys/health")[0] == 200, "the vault is open")

    def policy(self, name: str, *rules: str) -> None:
        """Paths that may be read."""
        text = "\n".join(f'path "{rule}" {{ capabilities = ["read"] }}' for rule in rules)
        self.ok("POST", f"sys/policies/acl/{name}", {"policy": text or "# nothing"})

    def approle(self, name: str, policy: str, **given: Any) -> tuple[str, str]:
        """Role id and secret id of a new role."""
        self.ok("POST", f"auth/approle/role/{name}", {"token_policies": [policy], **given})
        role = self.ok("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        return str(role), str(self.ok("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"])

    def call(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Doc]:
        """Status and content, as the administrator."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        try:
            raw = None if body is None else json.dumps(body)
            connection.request(method, f"/v1/{path}", raw, {"X-Vault-Token": token or self.root})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else {}
        finally:
            connection.close()

    def ok(self, method: str, path: str, body: Any = None) -> Doc:
        status, content = self.call(method, path, body)
        assert status < 300, f"{method} {path}: {status} {content}\n{self.log()}"
        return content

    def log(self) -> str:
        return (self.folder / "vault.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return self.call("GET", "sys/seal-status")[0] == 200
        except OSError:
            return False

    def _until(self, holds: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}\n{self.log()}"
            time.sleep(0.05)


def word() -> str:
    """Something nobody has written before."""
    return secrets.token_hex(16)
