"""A small server in this process that keeps the contract of docs/guides/api.md, for testing the command line alone.

It stores documents, counts events and remembers every request; answers that need a story (streams that break off,
refusals) are put in by the test.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "good-token"


def _kind(
    name: str, plural: str, short: str, namespaced: bool, columns: list[tuple[str, str, bool]], **more: Any
) -> Any:
    return {
        "name": name,
        "plural": plural,
        "short": [short] if short else [],
        "namespaced": namespaced,
        "columns": [{"title": t, "path": p, "wide": w} for t, p, w in columns],
        "versions": ["ground/v1"],
        "schema": more.pop("schema", {"type": "object", "properties": {}}),
        "actions": more.pop("actions", []),
        **more,
    }


SERVICE_SCHEMA = {
    "description": "A program that is kept running.",
    "type": "object",
    "required": ["spec"],
    "properties": {"spec": {"$ref": "#/$defs/ServiceSpec", "description": "What is wanted."}},
    "$defs": {
        "ServiceSpec": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "description": "What to run.\nA second line."},
                "replicas": {"type": "integer", "minimum": 0, "default": 1, "description": "How many."},
                "policy": {"anyOf": [{"$ref": "#/$defs/Policy"}, {"type": "null"}], "description": "Where."},
                "ports": {"type": "array", "items": {"$ref": "#/$defs/Port"}},
            },
        },
        "Policy": {"type": "object", "properties": {"spread": {"enum": ["site", "rack"], "description": "Apart by."}}},
        "Port": {"type": "object", "properties": {"number": {"type": "integer"}}},
    },
}

KINDS = [
    _kind("Namespace", "namespaces", "ns", False, []),
    _kind(
        "Site",
        "sites",
        "",
        False,
        [("Ready", "conditions.Ready", False), ("Region", "spec.region", True)],
        actions=["confirm-loss"],
    ),
    _kind(
        "Service",
        "services",
        "svc",
        True,
        [("Ready", "conditions.Ready", False), ("Wanted", "spec.replicas", False), ("Image", "spec.image", True)],
        schema=SERVICE_SCHEMA,
    ),
    _kind("Instance", "instances", "", True, [], internal=True, actions=["propose"]),
    _kind("Run", "runs", "", True, [("State", "status.phase", False)]),
]


class Request(NamedTuple):
    """What came over the wire."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    authorization: str


class Answer(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"status": status, "reason": reason, "message": message, "problems": [], **more}}


def sse(event: str, body: Any, id_: int | None = None) -> bytes:
    head = f"id: {id_}\n" if id_ is not None else ""
    return f"{head}event: {event}\ndata: {json.dumps(body)}\n\n".encode()


class FakeApi:
    """The state; the tests write into it and read `requests`."""

    def __init__(self) -> None:
        self.docs: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.seq = 40
        self.requests: list[Request] = []
        self.page = 1000
        self.faults: dict[tuple[str, str], list[Exception]] = {}
        self.streams: list[bytes | Exception] = []
        """One for each connection to watch; then 403 "the story is over"."""
        self.logs: list[bytes | Exception] = []
        self.plans: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.audit: list[dict[str, Any]] = []
        self.tokens: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {"kinds": {}, "sites": {}, "plans": [], "incidents": [], "ledger": {"backlog": 0}}
        self.preview: dict[str, Any] = {
            "id": "",
            "state": "preview",
            "digest": "sha256:0",
            "changes": [],
            "problems": [],
        }
        self.proposal: dict[str, Any] = {}
        self.inventory: dict[str, list[dict[str, Any]]] = {}
        """Path to its pages, one for each call."""
        self.open = True
        self.url = ""

    def put(self, kind: str, name: str, namespace: str = "", **parts: Any) -> dict[str, Any]:
        self.seq += 1
        meta = {"name": name, **({"namespace": namespace} if namespace else {}), "resourceVersion": self.seq}
        meta |= {"generation": 1, "uid": f"u{self.seq}", "creationTimestamp": "2020-01-01T00:00:00Z"}
        meta |= parts.pop("metadata", {})
        ready = parts.pop("ready", None)
        doc = {"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": parts.pop("spec", {}), "status": {}}
        doc.update(parts)
        if ready:
            entry = {"type": "Ready", "status": ready, "lastTransitionTime": "2020-01-01T00:00:00Z"}
            doc["status"].setdefault("conditions", []).append(entry | parts.pop("why", {}))
        self.docs[(kind, namespace, name)] = doc
        return doc

    def fail(self, method: str, path: str, *errors: Exception) -> None:
        self.faults[(method, path)] = list(errors)

    def sent(self, method: str, path: str = "") -> list[Request]:
        return [r for r in self.requests if r.method == method and r.path.startswith(f"/api/v1{path}")]

    @contextmanager
    def running(self) -> Iterator[FakeApi]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)

    # -------------------------------------------------------------------------------------------- the calls

    def call(self, request: Request) -> Any:
        self.requests.append(request)
        waiting = self.faults.get((request.method, request.path.removeprefix("/api/v1")))
        if waiting:
            raise waiting.pop(0)
        path = request.path.removeprefix("/api/v1")
        if path == "/login":
            if request.body["password"] != "right":
                raise Answer(401, "Unauthenticated", "wrong user or password")
            return {"token": TOKEN, "expires": "2999-01-01T00:00:00Z", "id": "t-1"}
        if path == "/healthz":
            return {"version": "9.9"}
        if request.authorization != f"Bearer {TOKEN}":
            raise Answer(401, "Unauthenticated", "the token has expired")
        fixed = self._fixed(request.method, path, request)
        return self._resources(request, path) if fixed is None else fixed

    def _fixed(self, method: str, path: str, request: Request) -> Any:
        answers: dict[tuple[str, str], Any] = {
            ("GET", "/kinds"): {"items": KINDS},
            ("GET", "/whoami"): {
                "subject": "user:ada",
                "groups": ["ops"],
                "scope": ["read"],
                "expires": "2999-01-01T00:00:00Z",
            },
            ("GET", "/status"): self.status,
            ("GET", "/tokens"): {"items": self.tokens},
            ("POST", "/tokens"): {"token": "new-token", "id": "t-2", "expires": "2999-01-01T00:00:00Z"},
            ("POST", "/sources/plan"): self.preview,
            ("POST", "/propose"): {"proposals": [self.proposal]},
        }
        if (method, path) in answers:
            return answers[(method, path)]
        if method == "GET" and path in ("/events", "/audit"):
            items = self.events if path == "/events" else self.audit
            after = int(request.query.get("since") or 0)
            return {"items": [item for item in items if item["seq"] > after]}
        if pages := self.inventory.get(path):
            return pages.pop(0)
        if path.startswith(("/tokens/", "/accounts/")):
            return {}
        if path.startswith("/plans"):
            return self._plans(method, path, request)
        if path == "/apply":
            return {"results": [self._apply(doc, request) for doc in request.body["documents"]]}
        return None

    def _plans(self, method: str, path: str, request: Request) -> Any:
        parts = path.split("/")
        if len(parts) == 2:
            wanted = request.query.get("state")
            return {"items": [plan for plan in self.plans if not wanted or plan["state"] == wanted]}
        plan = next((plan for plan in self.plans if plan["id"] == parts[2]), None)
        if plan is None:
            raise Answer(404, "NotFound", f"no plan {parts[2]}")
        if method == "POST" and parts[3] == "approve" and request.body.get("digest", plan["digest"]) != plan["digest"]:
            raise Answer(409, "PlanChanged", f"plan {plan['id']} is now {plan['digest']}")
        return plan

    def _apply(self, doc: dict[str, Any], request: Request) -> dict[str, Any]:
        meta = doc["metadata"]
        key = (doc["kind"], meta.get("namespace", ""), meta["name"])
        old = self.docs.get(key)
        fields = {}
        for name in {**(old or {}).get("spec", {}), **doc["spec"]}:
            before, after = (old or {"spec": {}})["spec"].get(name), doc["spec"].get(name)
            if before != after:
                fields[f"spec.{name}"] = [before, after]
        if request.query.get("dryRun") != "true":
            self.put(*(key[0], key[2], key[1]), spec=doc["spec"])
        verdict = "created" if old is None else "changed" if fields else "unchanged"
        shown = f"{key[0]} " + (f"{key[1]}/" if key[1] else "") + key[2]
        return {"key": shown, "result": verdict, "fields": fields, "resourceVersion": self.seq}

    def _resources(self, request: Request, path: str) -> Any:
        match = re.fullmatch(r"(?:/namespaces/([^/]+)(?=/))?/([a-z]+)(?:/([^/]+))?(?:/actions/([a-z-]+))?", path)
        kind = next((k for k in KINDS if match and k["plural"] == match[2]), None)
        if match is None or kind is None:
            raise Answer(404, "NotFound", f"nothing at {path}")
        namespace, name = unquote(match[1] or ""), unquote(match[3] or "")
        if match[4]:
            return {"proposals": [self.proposal]} if match[4] == "propose" else {}
        if request.method == "POST":
            return self.put(kind["name"], request.body["metadata"]["name"], namespace, spec=request.body["spec"])
        if not name:
            return self._list(kind["name"], namespace, request.query)
        doc = self.docs.get((kind["name"], namespace, name))
        if doc is None:
            raise Answer(404, "NotFound", f"no {kind['name']} {name}")
        if request.method == "DELETE" and request.query.get("dryRun") != "true":
            del self.docs[(kind["name"], namespace, name)]
        if request.method == "PUT":
            if request.body["metadata"].get("resourceVersion") not in (None, doc["metadata"]["resourceVersion"]):
                raise Answer(409, "Conflict", f"{name} was changed meanwhile")
            self.seq += 1
            doc["spec"] = request.body["spec"]
            doc["metadata"]["resourceVersion"] = self.seq
        return doc

    def _list(self, kind: str, namespace: str, query: dict[str, str]) -> Any:
        found = [d for (k, n, _), d in sorted(self.docs.items()) if k == kind and namespace in ("", n)]
        for key, op, value in re.findall(r"([\w./-]+)(!?=)([\w.-]+)", query.get("labelSelector", "")):
            found = [d for d in found if ((d["metadata"].get("labels") or {}).get(key) == value) == (op == "=")]
        for key, op, value in re.findall(r"([\w.]+)(!?=)([\w.-]+)", query.get("fieldSelector", "")):
            found = [d for d in found if (_field(d, key) == value) == (op == "=")]
        start, size = int(query.get("continue") or 0), min(int(query.get("limit") or 500), self.page)
        page = {"items": found[start : start + size], "resourceVersion": self.seq}
        if start + size < len(found):
            page |= {"continue": str(start + size), "remaining": len(found) - start - size}
        return page


def _field(doc: dict[str, Any], key: str) -> Any:
    if key.startswith("conditions."):
        entries = doc["status"].get("conditions") or [{"type": "Ready", "status": "Unknown"}]
        return entries[0]["status"]
    at: Any = doc
    for part in key.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at


class _Handler(BaseHTTPRequestHandler):
    """HTTP around FakeApi."""

    api: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, BrokenPipeError):
            return

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        request = Request(
            self.command, parts.path, query, json.loads(raw) if raw else None, self.headers.get("Authorization", "")
        )
        if parts.path == "/api/v1/watch" or parts.path.endswith("/log"):
            self._stream(request)
            return
        try:
            body, status = copy.deepcopy(self.api.call(request)), 200
        except Answer as answer:
            body, status = answer.body, answer.status
        except ConnectionError:
            self.close_connection = True
            return
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _stream(self, request: Request) -> None:
        self.api.requests.append(request)
        stories = self.api.streams if request.path.endswith("/watch") else self.api.logs
        story = stories.pop(0) if stories else Answer(403, "Forbidden", "the story is over")
        self.close_connection = True
        if isinstance(story, Answer):
            data = json.dumps(story.body).encode()
            self.send_response(story.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        assert isinstance(story, bytes)
        cut = story.endswith(b"<cut>")
        story = story.removesuffix(b"<cut>")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        half = len(story) // 2
        for piece in (story[:half], story[half:]):
            if piece:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if not cut:
            self.wfile.write(b"0\r\n\r\n")
