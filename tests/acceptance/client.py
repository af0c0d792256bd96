"""A client that never stops asking: it takes the endpoints of a service from the API and wants an answer from one."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.acceptance.installation import Installation


class Client:
    """What came of asking, again and again."""

    def __init__(self, ground: Installation, service: str, namespace: str = "alpha") -> None:
        self._ground, self._service, self._namespace = ground, service, namespace
        self._stop = threading.Event()
        self.answers = 0
        self.versions: list[str] = []
        """The versions that answered, in the order in which each was first met after another."""
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._ask()
            except Exception as problem:
                self.failures.append(f"{type(problem).__name__}: {problem}")
            time.sleep(0.01)

    def _ask(self) -> None:
        endpoints = self._ground.endpoints(self._service, self._namespace)
        tried = [f"{e}: {self._version(e)}" for e in endpoints]
        good = [t.partition(": ok ")[2] for t in tried if ": ok " in t]
        if not good:
            self.failures.append(f"none of {tried} answers")
            return
        self.answers += 1
        self.versions += [v for v in good if not self.versions or self.versions[-1] != v]

    def _version(self, endpoint: str) -> str:
        connection = http.client.HTTPConnection(endpoint, timeout=2)
        try:
            connection.request("GET", "/info")
            return "ok " + str(json.loads(connection.getresponse().read())["version"])
        except (OSError, http.client.HTTPException) as problem:
            return f"{type(problem).__name__} {problem}"
        finally:
            connection.close()


@contextmanager
def asking(ground: Installation, service: str) -> Iterator[Client]:
    """Ask all the while; afterwards nobody was ever turned away."""
    client = Client(ground, service)
    thread = threading.Thread(target=client._run)
    thread.start()
    try:
        yield client
    finally:
        client._stop.set()
        thread.join(30)
    assert not client.failures, client.failures[:5]
    assert client.answers > 20
