"""The published description against the running API: schemathesis makes up calls and judges the answers.

`GROUND_FUZZ_EXAMPLES` is the number of examples per operation (200 when not set). Every check of schemathesis is on
but those in EXCLUDED, and the description is the published one but for what NARROWED says.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from groundcontrol.interfaces.api.app import create_app
from groundcontrol.interfaces.api.openapi import openapi
from groundcontrol.kernel.access import SCOPES
from tests.interfaces.api.installation import install

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(3600)]

EXAMPLES = os.environ.get("GROUND_FUZZ_EXAMPLES", "200")
LONGEST = 3500
"""Seconds."""
ST = Path(sys.executable).with_name("st")

EXCLUDED = {
    "positive_data_acceptance": "what a document says can be wrong in ways a JSON schema does not tell (a port that "
    "health names and nobody declares): 422 for some data that fits the schema is right",
}
LEFT_OUT = {
    "watch": "its answer does not end; tests/interfaces/api/test_watch.py is about it",
    "setPassword": "it would revoke the token the calls are made with",
    "revokeToken": "as setPassword",
}
NARROWED = {
    "follow": "a followed log does not end: the parameter is taken out",
    "namespace": "made-up namespaces are all NotFound: it is one of those that are there",
}


def narrowed(description: dict[str, Any]) -> dict[str, Any]:
    """The description to make calls from."""
    found = copy.deepcopy(description)
    for path, methods in list(found["paths"].items()):
        for method, operation in list(methods.items()):
            if operation["operationId"] in LEFT_OUT:
                del methods[method]
            kept = [p for p in operation["parameters"] if p["name"] != "follow"]
            for parameter in kept:
                if parameter["name"] == "namespace" and parameter["in"] == "path":
                    parameter["schema"] = {"type": "string", "enum": ["alpha", "beta"]}
            operation["parameters"] = kept
        if not methods:
            del found["paths"][path]
    return found


class Served:
    """One person's installation behind uvicorn on loopback, and the run against it; nobody else is there."""

    def __init__(self, person: str, folder: Path) -> None:
        self.here = install(folder)
        self.here.make("Site", "bari", driver="local")
        self.here.make("Note", "one", "alpha")
        # Said to be TCP, so that asyncio turns Nagle off on what it accepts: 40 ms for each answer otherwise.
        self._listening = socket.socket(proto=socket.IPPROTO_TCP)
        self._listening.bind(("127.0.0.1", 0))
        self._server = uvicorn.Server(
            uvicorn.Config(create_app(self.here.backend), log_level="error", access_log=False)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)
        description = folder / "openapi.json"
        description.write_text(json.dumps(narrowed(openapi(self.here.backend.kinds))))
        self.report = folder / "report.txt"
        with self.report.open("w") as report:
            self.run = subprocess.Popen(
                self._command(person, description), cwd=folder, stdout=report, stderr=subprocess.STDOUT, text=True
            )

    def _command(self, person: str, description: Path) -> list[str]:
        url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        token = self.here.token(person, SCOPES, 7200.0)
        return [
            str(ST), "run", str(description), "--url", url, "--header", f"Authorization: Bearer {token}",
            "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", EXAMPLES,
            "--checks", "all", "--exclude-checks", ",".join(EXCLUDED), "--workers", "1", "--request-timeout", "20",
            "--continue-on-failure", "--no-color", "--warnings", "off",
            "--suppress-health-check", "all", "--generation-database", "none", "--seed", "1",
        ]  # fmt: skip

    def close(self) -> None:
        self.run.kill()
        self.run.wait()
        self._server.should_exit = True
        self._thread.join(10)
        self._listening.close()
        self.here.close()


PEOPLE = {"operator": "olga", "member": "ada"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """One run per person, beside one another: making up calls costs more than answering them."""
    found = {role: Served(person, tmp_path_factory.mktemp(person)) for role, person in PEOPLE.items()}
    yield found
    for served in found.values():
        served.close()


@pytest.mark.parametrize("role", PEOPLE)
def test_made_up_calls_find_nothing(runs: dict[str, Served], role: str) -> None:
    code = runs[role].run.wait(LONGEST)
    print(f"{role}: {EXAMPLES} examples per operation")
    print(*(line[:400] for line in runs[role].report.read_text().splitlines()), sep="\n")
    assert code == 0, "see the report above"
