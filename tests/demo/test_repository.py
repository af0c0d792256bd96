"""The repository of the demonstration, and its hook that speaks as GitLab does."""

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.demo.observer import branch_head
from groundcontrol.demo.repository import GitFailed, Repository


class Hooked:
    """Takes what the hook sends."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], Any]] = []
        me = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                me.heard.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(202)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hooks/gitlab/platform"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def hooked() -> Iterator[Hooked]:
    made = Hooked()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def repository(tmp_path: Path, hooked: Hooked) -> Repository:
    token = tmp_path / "token"
    token.write_text("open sesame\n")
    made = Repository(tmp_path / "origin.git", tmp_path / "platform")
    made.make(hooked.url, token)
    return made


def test_a_push_is_told_as_gitlab_tells_it(repository: Repository, hooked: Hooked) -> None:
    repository.commit("First", {"a.yaml": "a: 1\n", "b.yaml": "b: 1\n"})
    assert "202" in repository.push()
    repository.commit("Second\n\nAnd why.", {"a.yaml": "a: 2\n", "c.yaml": "c: 1\n"}, ["b.yaml"])
    assert "202" in repository.push()
    (path, headers, first), (_, _, second) = hooked.heard
    assert path == "/hooks/gitlab/platform"
    assert headers["X-Gitlab-Event"] == "Push Hook"
    assert headers["X-Gitlab-Token"] == "open sesame"
    assert headers["Content-Type"] == "application/json"
    assert (first["object_kind"], first["ref"], first["before"]) == ("push", "refs/heads/main", "0" * 40)
    assert first["commits"][0]["added"] == ["a.yaml", "b.yaml"]
    assert second["after"] == second["checkout_sha"] == repository.head() == branch_head(repository.origin)
    (commit,) = second["commits"]
    assert (commit["added"], commit["modified"], commit["removed"]) == (["c.yaml"], ["a.yaml"], ["b.yaml"])
    assert commit["title"] == "Second"
    assert commit["author"] == {"name": "Ada", "email": "ada@example.org"}


def test_several_commits_are_told_oldest_first(repository: Repository, hooked: Hooked) -> None:
    repository.commit("First", {"a": "1"})
    repository.commit("Second", {"a": "2"})
    assert "202" in repository.push()
    assert [commit["title"] for commit in hooked.heard[0][2]["commits"]] == ["First", "Second"]
    assert hooked.heard[0][2]["total_commits_count"] == 2


def test_a_server_that_is_down_does_not_fail_the_push(repository: Repository, hooked: Hooked) -> None:
    hooked.server.shutdown()
    hooked.server.server_close()
    repository.commit("First", {"a": "1"})
    assert "not reached" in repository.push()
    assert branch_head(repository.origin) == repository.head()


def test_without_a_change_there_is_no_commit(repository: Repository) -> None:
    assert repository.commit("First", {"a": "1"}) is not None
    assert repository.commit("Second", {"a": "1"}) is None


def test_revert_brings_back(repository: Repository) -> None:
    repository.commit("First", {"a": "1", "b": "1"})
    repository.commit("Second", {}, ["b"])
    assert repository.files() == {"a"}
    repository.revert(repository.head())
    assert repository.files() == {"a", "b"}


def test_made_twice_it_is_the_same(repository: Repository, tmp_path: Path, hooked: Hooked) -> None:
    repository.commit("First", {"a": "1"})
    head = repository.head()
    again = Repository(tmp_path / "origin.git", tmp_path / "platform")
    again.make(hooked.url, tmp_path / "token")
    (again.checkout / "a").write_text("half done")
    (again.checkout / ".git" / "index.lock").touch()
    again.settle()
    assert again.head() == head
    assert (again.checkout / "a").read_text() == "1"


def test_the_users_own_git_settings_take_no_part(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitconfig").write_text(
        "[user]\n\tname = Somebody\n[commit]\n\tgpgsign = true\n[core]\n\thooksPath = /no\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    repository.commit("First", {"a": "1"})
    said = subprocess.run(
        ["git", "log", "--format=%an"], cwd=repository.checkout, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "Ada"


def test_what_git_says_is_not_lost(repository: Repository) -> None:
    with pytest.raises(GitFailed, match="git revert"):
        repository.revert("0123456")
