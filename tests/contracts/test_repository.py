"""What every implementation of the `Repositories` port does; the twin and the git driver run the same tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from groundcontrol.drivers.git.command import Settings
from groundcontrol.drivers.git.driver import GitRepositories
from groundcontrol.kernel.errors import Conflict, GroundError, Invalid, NotFound, OutcomeUnknown
from groundcontrol.ports.repository import Offer, Repositories
from groundcontrol.ports.twins.repository import TwinRepositories
from tests.drivers.git.origin import LINK, SUBMODULE, Origin


class Server(Protocol):
    """The other side of the port, as the contract needs it."""

    url: str

    def commit(self, files: dict[str, Any], **options: Any) -> str: ...
    def special(self, path: str, mode: int) -> str: ...
    def delete_branch(self, branch: str) -> None: ...
    def vanish(self) -> None: ...
    def heads(self) -> dict[str, str]: ...


class GitServer(Origin):
    def special(self, path: str, mode: int) -> str:  # type: ignore[override]
        return self.commit({}, special={path: mode})

    def vanish(self) -> None:
        self.path.rename(self.path.with_name("moved"))

    def heads(self) -> dict[str, str]:
        refs = self.repository.references
        return {n.removeprefix("refs/heads/"): str(refs[n].target) for n in refs if n.startswith("refs/heads/")}


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

    def heads(self) -> dict[str, str]:
        return dict(self.twin.branches[self.url])


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


def offer(base: str, branch: str = "ground/web-1", **files: bytes) -> Offer:
    contents = {path.replace("__", "/"): content for path, content in files.items()}
    return Offer(
        base=base,
        branch=branch,
        files=contents or {"a/web": b"two\n"},
        message="Service alpha/web: replicas\n\nProposed by user:ada\n",
        author="Ground Control",
        email="ground@example.org",
        time=1_700_000_100,
    )


def test_a_proposal_is_one_commit_upon_the_branch_s_head(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    server.commit({"a/web": "one\n", "a/other": "x", "b": "y"})
    server.special("link", LINK)
    base = server.special("sub/module", SUBMODULE)
    here.fetch(server.url, "main")
    made = here.propose(server.url, offer(base))
    assert server.heads() == {"main": base, "ground/web-1": made}, "the Source's branch stays where it is"
    assert here.fetch(server.url, "ground/web-1") == made
    assert [c.sha for c in here.log(server.url, made, 2)] == [made, base]
    told = here.log(server.url, made, 1)[0]
    assert (told.author, told.subject, told.time) == (
        "Ground Control",
        "Service alpha/web: replicas",
        1_700_000_100,
    )
    found = here.diff(server.url, base, made)
    assert (set(found.changed), found.removed) == ({"a/web"}, ())
    assert here.read(server.url, found.changed["a/web"].blob) == b"two\n"
    assert here.tree(server.url, made).refused == here.tree(server.url, base).refused, "nothing else is touched"


def test_branches_are_found_by_the_beginning_of_their_names(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    base = server.commit({"a/web": "one\n"})
    assert here.heads(server.url, "ground/") == {}
    here.fetch(server.url, "main")
    made = here.propose(server.url, offer(base))
    other = server.commit({"z": "1"}, branch="other/ground/web-1")
    assert here.heads(server.url, "ground/") == {"ground/web-1": made}
    assert here.heads(server.url, "ground/web-1") == {"ground/web-1": made}
    assert here.heads(server.url, "o") == {"other/ground/web-1": other}
    assert here.heads(server.url, "nowhere/") == {}
    server.vanish()
    with pytest.raises(NotFound):
        here.heads(server.url, "ground/")


def test_a_branch_that_is_there_is_never_touched(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    first = server.commit({"a/web": "one\n"})
    base = server.commit({"a/web": "between\n"})
    somebodys = server.commit({"a/web": "mine\n"}, branch="ground/web-1")
    here.fetch(server.url, "main")
    with pytest.raises(Conflict, match=r"has a branch ground/web-1 already"):
        here.propose(server.url, offer(base))
    # Also when git would call it fast-forward: what is there is an ancestor of what we have.
    for there in (first, base):
        with pytest.raises(Conflict):
            here.propose(server.url, offer(base, branch="main", a__web=there.encode()))
    assert server.heads() == {"main": base, "ground/web-1": somebodys}


def test_equal_offers_are_one_commit(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    base = server.commit({"a/web": "one\n"})
    here.fetch(server.url, "main")
    made = here.propose(server.url, offer(base))
    try:
        again = here.propose(server.url, offer(base))
    except Conflict:
        again = here.heads(server.url, "ground/web-1")["ground/web-1"]
    assert again == made
    other = here.propose(server.url, offer(base, branch="ground/web-2", a__web=b"three\n"))
    assert other != made


def test_only_files_that_are_there_are_changed(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    server.commit({"a/web": "one\n"})
    base = server.special("link", LINK)
    here.fetch(server.url, "main")
    for path in ("new", "a", "link", "a/web/x", "../a/web", "", ".git/config"):
        with pytest.raises(NotFound):
            here.propose(server.url, offer(base, **{path: b"x"}))
    with pytest.raises(NotFound):
        here.propose(server.url, offer("f" * 40))
    assert server.heads() == {"main": base}


@pytest.mark.parametrize("branch", ["", "-x", "a b", "a..b"])
def test_a_proposal_needs_a_branch_s_name(sides: tuple[Repositories, Server], branch: str) -> None:
    here, server = sides
    base = server.commit({"a/web": "one\n"})
    here.fetch(server.url, "main")
    with pytest.raises(Invalid):
        here.propose(server.url, offer(base, branch=branch))


def test_a_server_that_is_gone_gets_nothing(sides: tuple[Repositories, Server]) -> None:
    here, server = sides
    base = server.commit({"a/web": "one\n"})
    here.fetch(server.url, "main")
    server.vanish()
    with pytest.raises(GroundError) as caught:
        here.propose(server.url, offer(base))
    assert not isinstance(caught.value, OutcomeUnknown), "it is known that nothing came of it"
