"""`ground(…)` in this process against a fake server, with what it printed and its exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from groundcontrol.interfaces.cli import main as cli
from groundcontrol.interfaces.cli import stream
from tests.interfaces.cli.fake_api import TOKEN, FakeApi


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ground = Callable[..., Outcome]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi().running() as running:
        yield running


@pytest.fixture
def ground(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Ground:
    """`ground("get", "sites")`; signed in by GROUND_TOKEN, with a configuration of its own, on no terminal."""
    monkeypatch.setenv("GROUND_URL", api.url)
    monkeypatch.setenv("GROUND_TOKEN", TOKEN)
    monkeypatch.setenv("GROUND_CONFIG", str(tmp_path / "config.json"))
    for name in ("VISUAL", "EDITOR", "http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stream, "FIRST_PAUSE", 0.001)

    def run(*words: str, stdin: str = "") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsysbinary.readouterr()
        code = cli.main(list(words))
        out, err = capsysbinary.readouterr()
        return Outcome(code, out.decode(), err.decode())

    return run
