"""What every implementation of the `Repositories` port does; the twin and the git driver run the same tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from groundcontrol.drivers.git.command import Settings
from groundcontrol.drivers.git.driver import GitRepositories
from groundcontrol.kernel.errors import Invalid, NotFound
from groundcontrol.ports.repository import Repositories
from groundcontrol.ports.twins.repository import TwinRepositories
from tests.drivers.git.origin import LINK, SUBMODULE, Origin


class Server(Protocol):
    """The other side of the port, as the contract needs it."""

    url: str

    def commit(self, files: dict[str, Any], **options: Any) -> str: ...
    def special(self, path: str, mode: int) -> str: ...
    def delete_branch(self, branch: str) -> None: ...
    def vanish(self) -> None: ...


class GitServer(Origin):
    def special(self, path: str, mode: int) -> str:  # type: ignore[override]
        return self.commit({}, special={path: mode})

    def vanish(self) -> None:
        self.path.rename(self.path.with_name("moved"))


class TwinServer:
    url = "https://git.example.org/platform.git"

    def __init__(self, twin: TwinRepositories) -> None:
        self.twin = twin

    def commit(self, files: dict[str, Any], **options: Any) -> str:
        return self.twin.push(self.url, files, **options)

    def special(self, path: str, mode: int) -> str:
        return self.twin.special(self.url, path, mode)

    def delete_branch(self, branch: str) -> None:
        del self.twin.branches[self.url][branch]

    def vanish(self) -> None:
        del self.twin.branches[self.url]


def git(tmp_path: Path) -> tuple[Repositories, Server]:
    settings = Settings(cache=tmp_path / "cache", allow_file=True, timeout=30)
    return GitRepositories(settings), GitServer(tmp_path / "origin.git")


def twin(tmp_path: Path) -> tuple[Repositories, Server]:
    both = TwinRepositories()
    return both, TwinServer(both)


@pytest.fixture(params=[git, twin], ids=["git", "twin"])
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Repositories, Server]:
    make: Callable[[Path], tuple[Repositories, Server]] = request.param
    return make(tmp_path)


def test_a_branch_is_fetched_and_its_files_are_read(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    pushed = server.commit({"a.yaml": "a: 1\n", "sub/deep/b.yaml": "b: 2\n", "sub/ü.txt": "x"})
    commit = here.fetch(server.url, "main")
    assert commit == pushed
    files = here.tree(server.url, commit).files
    assert {path: (entry.size, entry.mode) for path, entry in files.items()} == {
        "a.yaml": (5, 0o100644),
        "sub/deep/b.yaml": (5, 0o100644),
        "sub/ü.txt": (1, 0o100644),
    }
    assert here.read(server.url, files["sub/deep/b.yaml"].blob) == b"b: 2\n"
    assert set(here.tree(server.url, commit, "sub").files) == {"sub/deep/b.yaml", "sub/ü.txt"}
    assert set(here.tree(server.url, commit, "./sub/deep/").files) == {"sub/deep/b.yaml"}


def test_equal_content_has_one_name_in_every_commit(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    server.commit({"a": "same", "b": "same", "c": "other"})
    first = here.tree(server.url, here.fetch(server.url, "main")).files
    server.commit({"c": "changed"})
    second = here.tree(server.url, here.fetch(server.url, "main")).files
    assert first["a"].blob == first["b"].blob == second["a"].blob
    assert first["c"].blob != second["c"].blob


def test_what_changed_between_two_commits(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    old = server.commit({"keep": "1", "change": "1", "x/remove": "1", "x/y/keep": "1"})
    here.fetch(server.url, "main")
    new = server.commit({"change": "2", "x/add": "1"}, remove=["x/remove"])
    here.fetch(server.url, "main")
    found = here.diff(server.url, old, new)
    assert set(found.changed) == {"change", "x/add"}
    assert found.removed == ("x/remove",)
    assert set(here.diff(server.url, old, new, "x").changed) == {"x/add"}
    assert here.diff(server.url, new, new) == ({}, ())
    third = server.commit({"later/z": "1"})
    here.fetch(server.url, "main")
    assert set(here.diff(server.url, old, third, "later").changed) == {"later/z"}


def test_history_and_its_rewriting(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    first = server.commit({"a": "1"}, subject="First\n\nwith a body")
    second = server.commit({"a": "2"}, subject="Second")
    here.fetch(server.url, "main")
    log = here.log(server.url, second, 10)
    assert [(c.sha, c.subject, c.author) for c in log] == [(second, "Second", "Ada"), (first, "First", "Ada")]
    assert log[0].time > log[1].time
    assert [c.sha for c in here.log(server.url, second, 1)] == [second]
    assert here.is_ancestor(server.url, first, second)
    assert here.is_ancestor(server.url, second, second)
    assert not here.is_ancestor(server.url, second, first)
    rewritten = server.commit({"a": "3"}, rewrite=True)
    assert here.fetch(server.url, "main") == rewritten
    assert not here.is_ancestor(server.url, second, rewritten)
    assert not here.is_ancestor(server.url, "f" * 40, rewritten)
    # What was applied last stays readable, so that the difference can be shown.
    assert set(here.diff(server.url, second, rewritten).changed) == {"a"}


def test_links_and_submodules_are_reported_and_not_followed(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    server.commit({"a": "1"})
    server.special("link", LINK)
    server.special("sub/module", SUBMODULE)
    tree = here.tree(server.url, here.fetch(server.url, "main"))
    assert set(tree.files) == {"a"}
    assert {r.path: r.reason.split(";")[0] for r in tree.refused} == {
        "link": "is a symbolic link",
        "sub/module": "is a submodule",
    }


def test_branches_come_and_go(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    server.commit({"a": "1"})
    other = server.commit({"b": "1"}, branch="feature")
    here.fetch(server.url, "main")
    assert here.fetch(server.url, "feature") == other
    with pytest.raises(NotFound, match="no branch nowhere"):
        here.fetch(server.url, "nowhere")
    server.delete_branch("feature")
    with pytest.raises(NotFound, match="no branch feature"):
        here.fetch(server.url, "feature")
    below = server.commit({"c": "1"}, branch="feature/one")
    assert here.fetch(server.url, "feature/one") == below
    assert here.tree(server.url, other).files  # fetched before, still readable


def test_a_repository_that_is_gone_leaves_what_was_fetched(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    commit = server.commit({"a": "1"})
    here.fetch(server.url, "main")
    server.vanish()
    with pytest.raises(NotFound, match="is not there"):
        here.fetch(server.url, "main")
    assert set(here.tree(server.url, commit).files) == {"a"}


def test_what_was_never_fetched_is_not_found(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    commit = server.commit({"a": "1"})
    with pytest.raises(NotFound, match="not fetched yet"):
        here.tree(server.url, commit)
    here.fetch(server.url, "main")
    later = server.commit({"a": "2"})
    for call in (
        lambda: here.tree(server.url, later),
        lambda: here.tree(server.url, commit, "nowhere"),
        lambda: here.tree(server.url, "main"),
        lambda: here.tree(server.url, "HEAD~1"),
        lambda: here.log(server.url, later, 3),
        lambda: here.is_ancestor(server.url, commit, later),
        lambda: here.diff(server.url, commit, later),
        lambda: here.read(server.url, "0" * 40),
        lambda: here.read(server.url, "../../etc/passwd"),
    ):
        with pytest.raises(NotFound):
            call()
    here.forget(server.url)
    with pytest.raises(NotFound, match="not fetched yet"):
        here.tree(server.url, commit)
    assert here.fetch(server.url, "main") == later


@pytest.mark.parametrize("branch", ["", "-x", "a b", "a..b", "--upload-pack=touch /tmp/x"])
def test_what_cannot_be_a_branch_is_invalid(sides: tuple[Repositories, Server], branch: str) -> None:
    here, server = sides
    server.commit({"a": "1"})
    with pytest.raises(Invalid):
        here.fetch(server.url, branch)


@pytest.mark.parametrize("url", ["-oProxyCommand=x", "not a url", "ext::sh"])
def test_what_cannot_be_a_repository_is_invalid(sides: tuple[Repositories, Server], url: str) -> None:
    with pytest.raises(Invalid):
        sides[0].fetch(url, "main")
