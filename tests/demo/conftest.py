"""A stage for the observer: real processes that look like units, and an API that says whatever a test lets it say."""

import copy
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from groundcontrol.demo.observer import Observer, Unit, Wanted, ask_http, echoes, running

Doc = dict[str, Any]
THEN, NOW = "2026-01-01T00:00:00Z", "2126-01-01T00:00:00Z"
NETWORK = 3
"""Second number of the loopback addresses here: below those a demonstration takes."""


class FakeApi:
    """Answers GET below /api/v1 from a dict: path to content."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.asked: list[str] = []
        said = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                said.asked.append(self.path)
                found = said.content.get(parts.path.removeprefix("/api/v1/"))
                if found is not None and "kind" in (query := parse_qs(parts.query)):
                    found = {"items": [i for i in found["items"] if i.get("kind") == query["kind"][0]]}
                text = isinstance(found, str)
                body = found.encode() if isinstance(found, str) else json.dumps(found).encode()
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Type", "text/plain" if text else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Stage:
    """Processes below `sites` and what the API says of them."""

    def __init__(self, root: Path, api: FakeApi) -> None:
        self.sites = root / "sites"
        self.sites.mkdir()
        self.api = api
        self.observer = Observer(self.sites, root / "origin.git", api.url, lambda: "token", "platform")
        self.processes: list[subprocess.Popen[bytes]] = []
        for plural in ("services", "instances", "incidents", "sites", "events", "audit", "plans"):
            api.content[plural] = {"items": []}

    def start(self, one: Wanted, site: str, *, pretend: str = "", sample: str = "") -> Unit:
        """Run a unit; `pretend`: text it really says."""
        number = len(self.processes) + 1
        directory = self.sites / site / "units" / f"u{number}" / "dir"
        directory.mkdir(parents=True)
        (directory / "message.txt").write_text(pretend or one.says)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GROUND_RUN": f"u{number}:host.{number}",
            "GROUND_DIR": str(directory),
            "GROUND_ADDRESS": f"127.{NETWORK}.{os.getpid() % 250}.{number}",
            "GROUND_PORT_HTTP": str(one.port),
            "GROUND_PORT_TCP": str(one.port),
            "SERVICE": one.name,
            "VERSION": one.version,
        }
        module = f"groundcontrol.samples.{sample or {'http': 'web', 'tcp': 'tcp'}[one.speaks]}"
        process = subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=subprocess.DEVNULL)
        self.processes.append(process)
        return self.unit(process.pid, one)

    def unit(self, pid: int, one: Wanted) -> Unit:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for unit in running(self.sites):
                if unit.pid == pid and _up(unit, one):
                    return unit
            time.sleep(0.02)
        raise AssertionError(f"pid {pid} did not come up")

    def kill(self, unit: Unit) -> None:
        process = next(p for p in self.processes if p.pid == unit.pid)
        process.kill()
        process.wait()

    def say(self, plural: str, *documents: Doc) -> None:
        """Let the API list these (deep copies, so that a test may change them)."""
        self.api.content[plural] = {"items": copy.deepcopy(list(documents))}

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _up(unit: Unit, one: Wanted) -> bool:
    try:
        if one.speaks == "tcp":
            return echoes(unit.address, one.port)
        return one.speaks == "nothing" or ask_http(unit.address, one.port)[0] == 200
    except OSError:
        return False


def document(kind: str, name: str, ready: str = "True", *, since: str = THEN, **spec: Any) -> Doc:
    """A resource that says how it is."""
    namespace, _, short = name.rpartition("/")
    said = {"status": ready, "reason": "Because", "message": "", "lastTransitionTime": since}
    return {
        "kind": kind,
        "metadata": {"name": short, "namespace": namespace, "generation": 1},
        "spec": spec,
        "status": {
            "observedGeneration": 1,
            "conditions": [{"type": "Ready", **said}, {"type": "Available", **said}],
        },
    }


@pytest.fixture
def api() -> Iterator[FakeApi]:
    made = FakeApi()
    yield made
    made.close()


@pytest.fixture
def stage(tmp_path: Path, api: FakeApi) -> Iterator[Stage]:
    made = Stage(tmp_path, api)
    yield made
    made.close()


@pytest.fixture
def say_yes() -> Callable[..., Doc]:
    return document
