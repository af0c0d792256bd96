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
from tests.interfaces.api.installation import Installation, install

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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, str, Path]]:
    """An installation behind uvicorn on loopback, its address, and the file of its description."""
    folder = tmp_path_factory.mktemp("installation")
    here = install(folder)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(here.backend), log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        description = folder / "openapi.json"
        description.write_text(json.dumps(narrowed(openapi(here.backend.kinds))))
        yield here, f"http://127.0.0.1:{listening.getsockname()[1]}", description
        server.should_exit = True
        thread.join(10)
    here.close()


PEOPLE = {"operator": "olga", "member": "ada"}


@pytest.fixture(scope="module")
def runs(
    served: tuple[Installation, str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One run per person, beside one another: making up calls costs far more than answering them."""
    here, url, description = served
    found = {}
    for role, person in PEOPLE.items():
        here.make("Site", f"bari-{person}", driver="local")
        here.make("Note", f"one-{person}", "alpha")
        token = here.token(person, SCOPES, 7200.0)
        folder = tmp_path_factory.mktemp(person)
        command = [
            str(ST), "run", str(description), "--url", url, "--header", f"Authorization: Bearer {token}",
            "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", EXAMPLES,
            "--checks", "all", "--exclude-checks", ",".join(EXCLUDED), "--workers", "1", "--request-timeout", "20",
            "--continue-on-failure", "--no-color", "--warnings", "off",
            "--suppress-health-check", "all", "--generation-database", "none", "--seed", "1",
        ]  # fmt: skip
        with (folder / "report.txt").open("w") as report:
            found[role] = subprocess.Popen(command, cwd=folder, stdout=report, stderr=subprocess.STDOUT, text=True)
        found[role].report = folder / "report.txt"  # type: ignore[attr-defined]
    yield found
    for run in found.values():
        run.kill()
        run.wait()


@pytest.mark.parametrize("role", PEOPLE)
def test_made_up_calls_find_nothing(runs: dict[str, subprocess.Popen[str]], role: str) -> None:
    begun = time.monotonic()
    code = runs[role].wait(LONGEST)
    report: Path = runs[role].report  # type: ignore[attr-defined]
    print(f"{role}: {EXAMPLES} examples per operation, {time.monotonic() - begun:.0f} s more")
    print(*(line[:400] for line in report.read_text().splitlines()), sep="\n")
    assert code == 0, "see the report above"
