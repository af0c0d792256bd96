"""The few calls of the public API that the demonstration makes itself: sign in, bootstrap, approve."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import quote


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason = status, reason


class Api:
    """One server, one token."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.token = ""

    def ready(self) -> bool:
        """The server says that it is ready for work."""
        try:
            self.call("GET", "/api/v1/readyz")
        except (OSError, Refused):
            return False
        return True

    def login(self, user: str, password: str) -> None:
        """Sign in for a day and keep the token."""
        body = {"user": user, "password": password, "expires": 86_400, "description": "the demonstration"}
        self.token = str(self.call("POST", "/api/v1/login", body)["token"])

    def apply(self, documents: list[dict[str, Any]]) -> None:
        """Make resources as the documents say."""
        self.call("POST", "/api/v1/apply", {"documents": documents, "manager": "demo"})

    def approve(self, plan: str, digest: str, reason: str) -> None:
        """Approve exactly the changes of this digest."""
        self.call("POST", f"/api/v1/plans/{quote(plan, safe='')}/approve", {"digest": digest, "reason": reason})

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call; its JSON. OSError when the server does not answer, Refused when it answers with an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            raw, status = answer.read(), answer.status
        except http.client.HTTPException as problem:
            raise OSError(f"no proper answer to {method} {path}: {type(problem).__name__}") from problem
        finally:
            connection.close()
        try:
            content = json.loads(raw) if raw else None
        except ValueError:
            content = raw.decode(errors="replace")
        if status >= 300:
            error = content.get("error", {}) if isinstance(content, dict) else {"message": str(content)[:200]}
            problems = "; ".join(str(p.get("message", p)) for p in error.get("problems", []) if isinstance(p, dict))
            raise Refused(status, str(error.get("reason", "")), f"{error.get('message', '')} {problems}".strip())
        return content
