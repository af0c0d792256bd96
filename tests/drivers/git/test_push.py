"""Pushing a proposal with the git driver: real servers that refuse, lose answers, hang, and repositories with hooks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from groundcontrol.drivers.git import command
from groundcontrol.drivers.git.command import Settings
from groundcontrol.drivers.git.driver import GitRepositories
from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, OutcomeUnknown, Unavailable
from groundcontrol.ports.repository import Credentials, Offer
from tests.drivers.git.origin import HttpGit, Origin

SECRET = "glpat-Very+Secret/Token"
TOKEN = Credentials(password=SECRET)


class PushGit(HttpGit):
    """A server that takes pushes, and may lose them or the answer to them."""

    lost = ""
    """`push`: it never gets there; `answer`: it does, and the line breaks; `both`: and asking again fails too."""

    def answer(self, request: BaseHTTPRequestHandler, root: Path) -> None:
        pushing = request.path.endswith("/git-receive-pack") and request.command == "POST"
        if self.lost == "push" and pushing:
            return
        if self.lost and pushing:
            real, request.wfile = request.wfile, open(os.devnull, "wb")  # noqa: SIM115
            try:
                super().answer(request, root)
            finally:
                request.wfile.close()
                request.wfile = real
            if self.lost == "both":
                self.status = 503
            return
        super().answer(request, root)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    (tmp_path / "served").mkdir()
    made = Origin(tmp_path / "served" / "platform.git")
    made.repository.config["http.receivepack"] = True
    made.commit({"a.yaml": "a: 1\n"})
    return made


@pytest.fixture
def server(origin: Origin) -> Iterator[PushGit]:
    http = PushGit(origin.path.parent, SECRET)
    yield http
    http.close()


@pytest.fixture
def here(tmp_path: Path) -> GitRepositories:
    return GitRepositories(Settings(cache=tmp_path / "cache", allow_file=True, allow_http=True, timeout=20, stall=5))


def offer(base: str, content: bytes = b"a: 2\n", branch: str = "ground/a-1") -> Offer:
    return Offer(
        base=base, branch=branch, files={"a.yaml": content}, message="a\n", author="G", email="g@x", time=1_700_000_000
    )


def hook(origin: Origin, name: str, script: str) -> None:
    path = origin.path / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def branches(origin: Origin) -> list[str]:
    return sorted(name for name in origin.repository.references if name.startswith("refs/heads/"))


def test_the_token_of_the_source_pushes_and_is_seen_nowhere(
    server: PushGit, origin: Origin, here: GitRepositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/platform.git"
    base = here.fetch(url, "main", TOKEN)
    called: list[list[str]] = []
    run = command.run
    monkeypatch.setattr(command, "run", lambda words, *a, **k: called.append(words) or run(words, *a, **k))
    made = here.propose(url, offer(base), TOKEN)
    assert origin.head("ground/a-1") == made
    assert here.heads(url, "ground/", TOKEN) == {"ground/a-1": made}
    assert SECRET not in str(called)
    assert not any(
        word in ("-f", "--force", "--mirror", "--delete") or word.startswith("+") for w in called for word in w
    )
    assert not list(here.settings.cache.glob(".private-*"))
    for call in (lambda: here.propose(url, offer(base, branch="ground/b")), lambda: here.heads(url, "ground/")):
        with pytest.raises(Forbidden, match="refused the credentials"):
            call()


def test_a_server_that_lets_nobody_push(server: PushGit, origin: Origin, here: GitRepositories) -> None:
    origin.repository.config["http.receivepack"] = False
    url = f"{server.url}/platform.git"
    base = here.fetch(url, "main", TOKEN)
    with pytest.raises(Forbidden, match="does not let these credentials push ground/a-1") as caught:
        here.propose(url, offer(base), TOKEN)
    assert "spec.proposals" in caught.value.message, "what to do next"
    origin.repository.config["http.receivepack"] = True
    hook(origin, "pre-receive", "echo 'only ada may do that' >&2; exit 1")
    with pytest.raises(Forbidden, match="does not let these credentials push"):
        here.propose(url, offer(base), TOKEN)
    assert branches(origin) == ["refs/heads/main"]


def test_an_answer_that_is_lost_is_found_by_looking(server: PushGit, origin: Origin, here: GitRepositories) -> None:
    url = f"{server.url}/platform.git"
    base = here.fetch(url, "main", TOKEN)
    server.lost = "answer"
    made = here.propose(url, offer(base), TOKEN)
    assert origin.head("ground/a-1") == made


@pytest.mark.parametrize("lost", ["push", "both"])
def test_what_nobody_can_say_is_said_to_be_unknown(
    server: PushGit, origin: Origin, here: GitRepositories, lost: str
) -> None:
    url = f"{server.url}/platform.git"
    base = here.fetch(url, "main", TOKEN)
    server.lost = lost
    with pytest.raises(OutcomeUnknown, match="may have come or not"):
        here.propose(url, offer(base), TOKEN)
    server.lost, server.status = "", 0
    there = here.heads(url, "ground/", TOKEN)
    assert list(there) == (["ground/a-1"] if lost == "both" else [])
    if there:
        with pytest.raises(Conflict):
            here.propose(url, offer(base, b"a: 3\n"), TOKEN)
        assert origin.head("ground/a-1") == there["ground/a-1"], "nobody's commit is overwritten"
    else:
        assert here.propose(url, offer(base), TOKEN) == origin.head("ground/a-1")


def test_a_server_that_is_not_there_got_nothing(origin: Origin, here: GitRepositories) -> None:
    http = PushGit(origin.path.parent, SECRET)
    url = f"{http.url}/platform.git"
    base = here.fetch(url, "main", TOKEN)
    http.close()
    with pytest.raises(Unavailable) as caught:
        here.propose(url, offer(base), TOKEN)
    assert not isinstance(caught.value, OutcomeUnknown)


def test_no_hook_and_no_program_of_a_repository_on_this_machine_runs(
    origin: Origin, here: GitRepositories, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    for name in ("pre-receive", "update", "post-receive", "post-update", "reference-transaction", "proc-receive"):
        hook(origin, name, f"echo {name} >> {ran}")
    config = origin.repository.config
    for name in ("core.fsmonitor", "core.alternateRefsCommand", "gc.recentObjectsHook", "core.sshCommand"):
        config[name] = f"sh -c 'echo {name} >> {ran}'"
    config["receive.procReceiveRefs"] = "refs/for"
    base = here.fetch(origin.url, "main")
    (mirror,) = (path for path in here.settings.cache.glob("*.git") if path.is_symlink())
    (mirror / "hooks").mkdir(exist_ok=True)
    for name in ("pre-push", "post-commit", "reference-transaction"):
        path = mirror / "hooks" / name
        path.write_text(f"#!/bin/sh\necho {name} >> {ran}\n")
        path.chmod(0o755)
    made = here.propose(origin.url, offer(base))
    assert origin.head("ground/a-1") == made
    assert not ran.exists(), ran.read_text()


def test_a_name_that_git_would_take_for_an_option_or_a_pattern(origin: Origin, here: GitRepositories) -> None:
    base = here.fetch(origin.url, "main")
    for branch in ("--mirror", "a:refs/heads/main", "a*", "x.lock", "a b"):
        with pytest.raises(GroundError):
            here.propose(origin.url, offer(base, branch=branch))
        with pytest.raises(GroundError):
            here.heads(origin.url, branch.replace("x.lock", "a..b"))
    assert origin.head() == base
