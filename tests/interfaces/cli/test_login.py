"""Signing in and out, contexts, tokens: where credentials are kept and where they are sent."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import TOKEN, Answer, FakeApi


@pytest.fixture
def fresh(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """Without what the environment says."""
    monkeypatch.delenv("GROUND_TOKEN")
    monkeypatch.delenv("GROUND_URL")
    return ground


def sign_in(ground: Ground, api: FakeApi, *words: str) -> None:
    found = ground("login", api.url, "--user", "ada", "--password-stdin", *words, stdin="right\n")
    assert found.code == 0, found.err


def test_the_token_is_kept_privately_and_used(fresh: Ground, api: FakeApi, tmp_path: Path) -> None:
    sign_in(fresh, api, "--expires", "8h", "--scope", "read")
    body = api.sent("POST", "/login")[0].body
    assert (body["user"], body["expires"], body["scope"]) == ("ada", 28800, ["read"])
    kept = tmp_path / "config.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())["contexts"]["default"]["token"] == TOKEN
    assert "right" not in kept.read_text()
    assert fresh("whoami").out.startswith(f"user:ada at {api.url} (default)\n")
    assert fresh("logout").out == f"signed out of {api.url} and the token revoked\n"
    assert [r.path for r in api.sent("DELETE")] == ["/api/v1/tokens/t-1"]
    assert "token" not in json.loads(kept.read_text())["contexts"]["default"]
    assert fresh("whoami").code == 5


def test_a_wrong_password_and_a_growing_delay(fresh: Ground, api: FakeApi) -> None:
    found = fresh("login", api.url, "-u", "ada", "--password-stdin", stdin="wrong\n")
    assert found.code == 5
    assert "does not know user 'ada' with that password" in found.err
    api.fail("POST", "/login", Answer(429, "TooMany", "too many tries", retryAfter=8))
    found = fresh("login", api.url, "-u", "ada", "--password-stdin", stdin="right\n")
    assert (found.code, "try again in 8 s" in found.err) == (1, True)
    assert fresh("login", api.url, "-u", "ada").code == 2


def test_an_expired_token_says_what_to_do(fresh: Ground, api: FakeApi, tmp_path: Path) -> None:
    sign_in(fresh, api)
    kept = tmp_path / "config.json"
    kept.write_text(kept.read_text().replace(TOKEN, "old"))
    found = fresh("get", "sites")
    assert found.code == 5
    assert "the token has expired" in found.err
    assert "run `ground login`" in found.err


def test_a_stored_token_goes_only_where_it_came_from(
    fresh: Ground, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(fresh, api)
    with FakeApi().running() as other:
        monkeypatch.setenv("GROUND_URL", other.url)
        assert fresh("get", "sites").code == 5
        assert fresh("--url", api.url, "get", "sites").code == 0
        assert {r.authorization for r in other.requests} == {""}


def test_contexts(fresh: Ground, api: FakeApi) -> None:
    sign_in(fresh, api)
    sign_in(fresh, api, "--name", "second")
    assert [line.split()[:2] for line in fresh("config", "list").out.splitlines()][1:] == [
        ["-", "default"],
        ["*", "second"],
    ]
    assert fresh("config", "use", "default").code == 0
    wrong = fresh("config", "use", "secnd")
    assert (wrong.code, 'did you mean "second"?' in wrong.err) == (2, True)
    fresh("config", "set", "--namespace", "alpha")
    api.put("Service", "web", "alpha")
    assert fresh("get", "services", "-o", "name").out == "service/web\n"
    assert fresh("--context", "second", "get", "services", "-o", "name").out == "service/alpha/web\n"
    moved = fresh("config", "set", "--url", "http://127.0.0.1:1")
    assert "forgotten" in moved.err
    assert fresh("config", "remove", "default").code == 0
    assert fresh("config", "list", "-o", "name").out == "second\n"


def test_a_broken_configuration_is_named(ground: Ground, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"contexts": {"a": 1}}'):
        (tmp_path / "config.json").write_text(text)
        found = ground("get", "sites")
        assert found.code == 1
        assert str(tmp_path / "config.json") in found.err
        assert "Traceback" not in found.err


def test_tokens(ground: Ground, api: FakeApi) -> None:
    found = ground("token", "create", "ci", "--scope", "read", "--expires", "30d")
    assert (found.out, api.requests[-1].body["expires"]) == ("new-token\n", 2592000)
    assert "not shown again" in found.err
    api.tokens = [{"id": "t-2", "description": "ci", "scope": ["read"], "expires": ""}]
    assert ground("token", "list").out.splitlines()[1].split() == ["t-2", "ci", "read", "never"]
    assert ground("token", "revoke", "t-2").code == 0
