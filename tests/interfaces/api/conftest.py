"""The installation and a client per person."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from groundcontrol.interfaces.api.app import create_app
from tests.interfaces.api.installation import Installation, install


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Installation]:
    installation = install(tmp_path)
    yield installation
    installation.close()


@pytest.fixture
def anybody(here: Installation) -> Iterator[TestClient]:
    """A client without a token, on a running application."""
    with TestClient(create_app(here.backend), raise_server_exceptions=True) as client:
        yield client


@pytest.fixture
def sign_in(here: Installation, anybody: TestClient) -> Callable[..., TestClient]:
    """A client with a token of that person; all share one application."""

    def client(name: str, *scope: str) -> TestClient:
        token = here.token(name, scope or ("read", "write", "approve", "admin"))
        other = TestClient(anybody.app, headers={"authorization": f"Bearer {token}"})
        other.portal = anybody.portal  # the same event loop
        return other

    return client


@pytest.fixture
def root(sign_in: Callable[..., TestClient]) -> TestClient:
    return sign_in("root")


@pytest.fixture
def ada(sign_in: Callable[..., TestClient]) -> TestClient:
    """A member of alpha."""
    return sign_in("ada")


@pytest.fixture
def bob(sign_in: Callable[..., TestClient]) -> TestClient:
    """A member of beta."""
    return sign_in("bob")


@pytest.fixture
def port(here: Installation) -> Iterator[int]:
    """The application behind a real server on loopback, for what streams."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(here.backend), log_level="critical", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(10)
