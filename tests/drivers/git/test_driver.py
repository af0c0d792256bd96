"""The git driver against real repositories and servers: secrets, refusals, damage, slowness, size, signatures."""

import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pygit2
import pytest

from groundcontrol.drivers.git import command
from groundcontrol.drivers.git.command import Settings
from groundcontrol.drivers.git.driver import GitRepositories
from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound, TooLarge, Unavailable
from groundcontrol.ports.repository import Credentials, Trust
from tests.drivers.git.origin import HttpGit, Origin

SECRET = "glpat-Very+Secret/Token"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache", allow_file=True, allow_http=True, timeout=20, stall=5)


@pytest.fixture
def here(settings: Settings) -> GitRepositories:
    return GitRepositories(settings)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    (tmp_path / "served").mkdir()
    made = Origin(tmp_path / "served" / "platform.git")
    made.commit({"a.yaml": "a: 1\n"})
    return made


@pytest.fixture
def server(origin: Origin) -> Iterator[HttpGit]:
    http = HttpGit(origin.path.parent, SECRET)
    yield http
    http.close()


def mirror_of(settings: Settings) -> Path:
    (found,) = settings.cache.glob("*.git")
    return found


# --------------------------------------------------------------------------------------------------- credentials


def test_a_password_reaches_the_server_and_nothing_else(
    server: HttpGit, here: GitRepositories, origin: Origin, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    run = command.run

    def spy(arguments: list[str], *args: object, **kwargs: object) -> command.Result:
        seen.append(arguments)
        return run(arguments, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "run", spy)
    url = f"{server.url}/platform.git"
    assert here.fetch(url, "main", Credentials(password=SECRET)) == origin.head()
    assert seen
    assert SECRET not in str(seen)
    for path in settings.cache.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert not list(settings.cache.glob(".private-*"))
    assert SECRET not in f"{Credentials(password=SECRET)!r} {Credentials(password=SECRET)}"


@pytest.mark.parametrize("credentials", [None, Credentials(password="wrong-" + SECRET), Credentials(username="x")])
def test_refused_credentials_are_forbidden_and_not_shown(
    server: HttpGit, here: GitRepositories, credentials: Credentials | None
) -> None:
    with pytest.raises(Forbidden, match="refused the credentials") as caught:
        here.fetch(f"{server.url}/platform.git", "main", credentials)
    assert SECRET not in str(caught.value)


def test_what_was_fetched_with_a_password_is_not_fetched_without(server: HttpGit, here: GitRepositories) -> None:
    url = f"{server.url}/platform.git"
    here.fetch(url, "main", Credentials(password=SECRET))
    with pytest.raises(Forbidden):
        here.fetch(url, "main")


def test_secrets_are_taken_out_of_what_git_says() -> None:
    env = {"PATH": os.defpath}
    said = command.run(
        ["sh", "-c", f"printf 'bad \\033[31m{SECRET} https://ada:pw@host/x' >&2; exit 1"],
        env,
        timeout=5,
        secrets=(SECRET,),
    )
    assert said.err == "bad  [31m… https://host/x"


def test_a_redirect_is_not_followed_with_credentials(server: HttpGit, here: GitRepositories, origin: Origin) -> None:
    other = HttpGit(origin.path.parent)
    try:
        server.redirect = other.url
        with pytest.raises(Invalid, match="the server redirects"):
            here.fetch(f"{server.url}/platform.git", "main", Credentials(password=SECRET))
        assert other.authorization == []
    finally:
        other.close()


def test_ssh_is_called_with_nothing_from_this_machine(settings: Settings, tmp_path: Path) -> None:
    given = Credentials(ssh_key="KEY", known_hosts="host ssh-ed25519 AAAA")
    folder = tmp_path / "pri vate"
    folder.mkdir()
    env = command.credentials_environment("git@host:p.git", "ssh", given, settings, folder)
    line = env["GIT_SSH_COMMAND"]
    for option in ("-F /dev/null", "StrictHostKeyChecking=yes", "BatchMode=yes", "IdentityAgent=none"):
        assert option in line
    assert "KEY" not in line.replace("HostKey", "")
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert (folder / "key").read_text() == "KEY\n"
    assert (folder / "known_hosts").read_text().startswith("host ssh-ed25519 AAAA\n")


def test_an_ssh_server_that_is_not_there(here: GitRepositories) -> None:
    with pytest.raises(Unavailable, match="did not answer"):
        here.fetch("ssh://git@127.0.0.1:1/platform.git", "main", Credentials(ssh_key="no key"))


# -------------------------------------------------------------------------------------------------------- urls


@pytest.mark.parametrize(
    "url",
    [
        "--upload-pack=touch /tmp/x",
        "ext::sh -c 'touch /tmp/x'",
        "http://git.example.org/x.git",
        "git://git.example.org/x.git",
        "ftp://git.example.org/x.git",
        "https://ada:secret@git.example.org/x.git",
        "https://token@git.example.org/x.git",
        "https:///x.git",
        "https://-x/y.git",
        "ssh://-oProxyCommand=x/y.git",
        "git@host:",
        "git@-host:x.git",
        "/etc",
        "https://host/x y.git",
        "https://host/x\ny.git",
        "",
    ],
)
def test_urls_that_are_refused_unfetched(here: GitRepositories, settings: Settings, url: str) -> None:
    with pytest.raises(Invalid) as caught:
        here.fetch(url, "main")
    assert "secret" not in str(caught.value)
    assert not settings.cache.exists() or not list(settings.cache.glob("*.git*"))


def test_file_and_http_are_for_operators_who_allow_them(origin: Origin, tmp_path: Path) -> None:
    strict = GitRepositories(Settings(cache=tmp_path / "strict"))
    for url in (origin.url, "http://127.0.0.1:1/x.git"):
        with pytest.raises(Invalid, match="only https, ssh can be fetched"):
            strict.fetch(url, "main")
    assert command.check_url("git@gitlab.example.org:group/platform.git", strict.settings) == "ssh"
    assert command.check_url("ssh://git@gitlab.example.org:2222/group/platform.git", strict.settings) == "ssh"
    assert command.check_url("https://gitlab.example.org/group/platform.git", strict.settings) == "https"


def test_the_machine_s_git_configuration_does_not_count(
    origin: Origin, here: GitRepositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f'[url "file:///nowhere/"]\n\tinsteadOf = {origin.url}\n')
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "url.file:///nowhere/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", origin.url)
    assert here.fetch(origin.url, "main") == origin.head()


def test_no_hook_runs(origin: Origin, here: GitRepositories, settings: Settings, tmp_path: Path) -> None:
    here.fetch(origin.url, "main")
    hooks = mirror_of(settings) / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("reference-transaction", "post-merge", "pre-auto-gc"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (hooks / name).chmod(0o755)
    origin.commit({"a.yaml": "a: 2\n"})
    here.fetch(origin.url, "main")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------ unwell servers


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Forbidden), (403, Forbidden), (404, NotFound), (500, Unavailable), (502, Unavailable), (503, Unavailable)],
)
def test_what_servers_answer(server: HttpGit, here: GitRepositories, status: int, error: type[GroundError]) -> None:
    server.status = status
    with pytest.raises(error) as caught:
        here.fetch(f"{server.url}/platform.git", "main", Credentials(password=SECRET))
    assert type(caught.value) is error
    assert "(" in caught.value.message  # a remedy


def test_a_dead_server_is_unavailable(here: GitRepositories) -> None:
    with pytest.raises(Unavailable, match="did not answer"):
        here.fetch("http://127.0.0.1:1/platform.git", "main")


def test_a_silent_server_is_given_up_and_nothing_stays_behind(server: HttpGit, origin: Origin, tmp_path: Path) -> None:
    here = GitRepositories(Settings(cache=tmp_path / "cache", allow_http=True, timeout=1.0))
    server.stall.set()
    started = time.monotonic()
    with pytest.raises(Unavailable, match="no end after 1 seconds"):
        here.fetch(f"{server.url}/platform.git", "main")
    assert time.monotonic() - started < 5
    assert not list((tmp_path / "cache").glob("*.git*"))
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert server.url not in left
    server.stall.clear()
    server.released.set()
    assert here.fetch(f"{server.url}/platform.git", "main", Credentials(password=SECRET)) == origin.head()


def test_one_slow_server_does_not_hold_up_another(server: HttpGit, origin: Origin, here: GitRepositories) -> None:
    server.stall.set()

    def fetch_slowly() -> None:
        with pytest.raises(GroundError):
            here.fetch(f"{server.url}/x.git", "main")

    slow = threading.Thread(target=fetch_slowly)
    slow.start()
    started = time.monotonic()
    here.fetch(origin.url, "main")
    assert time.monotonic() - started < 3
    assert slow.is_alive()
    server.released.set()
    slow.join(20)


def test_a_repository_over_the_size_is_refused_and_removed(origin: Origin, tmp_path: Path) -> None:
    here = GitRepositories(Settings(cache=tmp_path / "cache", allow_file=True, max_bytes=300_000))
    assert here.fetch(origin.url, "main")
    origin.commit({"big": os.urandom(2_000_000)})
    with pytest.raises(TooLarge, match="larger than 300,000 bytes"):
        here.fetch(origin.url, "main")
    assert command.size_of(tmp_path / "cache") < 300_000


def test_a_fetch_stopped_too_late_leaves_nothing_either(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = GitRepositories(Settings(cache=tmp_path / "cache", allow_file=True, max_bytes=300_000))
    assert here.fetch(origin.url, "main")
    origin.commit({"big": os.urandom(2_000_000)})
    run = command.run

    def late(words: list[str], env: dict[str, str], **more: Any) -> command.Result:
        if "fetch" not in words:
            return run(words, env, **more)
        run(words, env, timeout=20)
        raise TooLarge("the repository is larger than 300,000 bytes")

    monkeypatch.setattr(command, "run", late)
    with pytest.raises(TooLarge):
        here.fetch(origin.url, "main")
    assert command.size_of(tmp_path / "cache") < 300_000


# ------------------------------------------------------------------------------------------------------- damage


def damages(mirror: Path) -> dict[str, list[Path]]:
    return {
        "pack": list(mirror.glob("objects/pack/*.pack")) + [p for p in mirror.glob("objects/??/*") if p.is_file()],
        "head": [mirror / "HEAD"],
        "config": [mirror / "config"],
        "ref": list(mirror.glob("refs/ground/*")) + list(mirror.glob("packed-refs")),
    }


@pytest.mark.parametrize("what", ["pack", "head", "config", "ref"])
@pytest.mark.parametrize("how", ["empty", "garbage", "gone"])
def test_a_damaged_copy_is_made_anew(
    origin: Origin, here: GitRepositories, settings: Settings, what: str, how: str
) -> None:
    here.fetch(origin.url, "main")
    targets = damages(mirror_of(settings))[what]
    assert targets
    for path in targets:
        path.chmod(0o600)
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(b"" if how == "empty" else b"\xde\xad" * 50)
    fresh = GitRepositories(settings)  # as after a restart: nothing is open
    new = origin.commit({"b.yaml": "b: 1\n"})
    for _ in range(3):
        try:
            assert fresh.fetch(origin.url, "main") == new
            files = fresh.tree(origin.url, new).files
            assert fresh.read(origin.url, files["a.yaml"].blob) == b"a: 1\n"
            break
        except Unavailable:
            continue  # found while reading; the next fetch starts anew
    else:
        pytest.fail("the copy did not heal")


def test_damage_found_while_reading_heals_with_the_next_fetch(
    origin: Origin, here: GitRepositories, settings: Settings
) -> None:
    commit = here.fetch(origin.url, "main")
    blob = here.tree(origin.url, commit).files["a.yaml"].blob
    for pack in mirror_of(settings).glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"garbage" * 1000)
    fresh = GitRepositories(settings)
    with pytest.raises(Unavailable, match="fetched anew"):
        fresh.read(origin.url, blob)
    assert fresh.fetch(origin.url, "main") == commit
    assert fresh.read(origin.url, blob) == b"a: 1\n"


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "garbled"])
def test_one_file_content_that_is_gone_heals_with_the_next_fetch(
    origin: Origin, here: GitRepositories, settings: Settings, lost: bool
) -> None:
    commit = here.fetch(origin.url, "main")
    blob = here.tree(origin.url, commit).files["a.yaml"].blob
    for pack in list(mirror_of(settings).glob("objects/pack/*.pack")):
        moved = pack.rename(settings.cache / "moved.pack")
        pack.with_suffix(".idx").unlink()
        with moved.open("rb") as file:
            unpack = ["git", f"--git-dir={mirror_of(settings)}", "unpack-objects", "-q"]
            subprocess.run(unpack, stdin=file, check=True)
    loose = mirror_of(settings) / "objects" / blob[:2] / blob[2:]
    loose.unlink()
    if not lost:
        loose.write_bytes(b"garbage")  # a fetch that brings nothing new does not notice
    fresh = GitRepositories(settings)
    with pytest.raises(NotFound if lost else Unavailable):
        fresh.read(origin.url, blob)
    assert fresh.fetch(origin.url, "main") == commit
    assert fresh.read(origin.url, blob) == b"a: 1\n"


def test_a_copy_found_damaged_stays_until_a_new_one_is_whole(
    origin: Origin, here: GitRepositories, settings: Settings
) -> None:
    commit = here.fetch(origin.url, "main")
    with pytest.raises(NotFound):
        here.read(origin.url, "1" * 40)
    (settings.cache / f"{mirror_of(settings).name}.123-killed").mkdir()
    away = origin.path.rename(origin.path.with_name("away"))
    with pytest.raises(NotFound):
        here.fetch(origin.url, "main")
    assert here.tree(origin.url, commit).files
    away.rename(origin.path)
    assert here.fetch(origin.url, "main") == commit
    assert len(list(settings.cache.glob("*.git.*"))) == 1


def test_locks_of_a_killed_fetch_do_not_matter(origin: Origin, here: GitRepositories, settings: Settings) -> None:
    here.fetch(origin.url, "main")
    mirror = mirror_of(settings)
    for ref in list((mirror / "refs" / "ground").iterdir()):
        ref.with_name(ref.name + ".lock").touch()
    (mirror / "objects" / "pack").mkdir(exist_ok=True)
    (mirror / "objects" / "pack" / "tmp_pack_x").write_bytes(b"half")
    same = mirror.resolve()
    new = origin.commit({"a.yaml": "a: 2\n"})
    assert here.fetch(origin.url, "main") == new
    assert mirror.resolve() == same
    assert not list(mirror.rglob("tmp_pack_x"))


def test_many_fetches_are_tidied(
    origin: Origin, here: GitRepositories, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundcontrol.drivers.git.driver._LOOSE", 0)
    first = here.fetch(origin.url, "main")
    for number in range(120):
        origin.commit({f"f{number}": str(number)})
    last = here.fetch(origin.url, "main")
    rewritten = origin.commit({"a.yaml": "new"}, rewrite=True)
    for number in range(3):
        rewritten = origin.commit({f"g{number}": str(number)})
        here.fetch(origin.url, "main")
    assert here.is_ancestor(origin.url, first, last)
    assert not here.is_ancestor(origin.url, last, rewritten)


# -------------------------------------------------------------------------------------------------- odd contents


def test_names_that_cannot_be_shown_are_reported(origin: Origin, here: GitRepositories) -> None:
    repo = origin.repository
    blob = repo.create_blob(b"x")
    raw = b"".join(b"100644 " + name + b"\0" + blob.raw for name in (b"a\nb", b"caf\xe9", b"ok"))
    tree = repo.odb.write(pygit2.enums.ObjectType.TREE, raw)
    who = pygit2.Signature("A\x1bda", "a@b", 1, 0)
    commit = repo.create_commit("refs/heads/odd", who, who, "sub\x1bject\nbody", tree, [])
    here.fetch(origin.url, "odd")
    found = here.tree(origin.url, str(commit))
    assert set(found.files) == {"ok"}
    assert {(r.path, r.reason.split(";")[0]) for r in found.refused} == {
        ("a�b", "has a name that cannot be shown"),
        ("caf�", "has a name that is not UTF-8"),
    }
    assert here.log(origin.url, str(commit), 1)[0].subject == "sub�ject"


def test_a_tree_that_unfolds_without_end_is_refused(origin: Origin, tmp_path: Path) -> None:
    here = GitRepositories(Settings(cache=tmp_path / "cache", allow_file=True, max_files=1000))
    repo = origin.repository
    builder = repo.TreeBuilder()
    builder.insert("f", repo.create_blob(b"x"), 0o100644)
    tree = builder.write()
    for _ in range(12):
        builder = repo.TreeBuilder()
        for number in range(10):
            builder.insert(f"d{number}", tree, 0o040000)
        tree = builder.write()
    who = pygit2.Signature("Ada", "a@b", 1, 0)
    commit = repo.create_commit("refs/heads/bomb", who, who, "bomb", tree, [])
    here.fetch(origin.url, "bomb")
    with pytest.raises(TooLarge, match="more than 1,000 files"):
        here.tree(origin.url, str(commit))


def test_one_changed_file_of_ten_thousand_reads_only_the_folders_above_it(
    origin: Origin, here: GitRepositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.commit({f"d{n % 100}/f{n}.yaml": f"a: {n}\n" for n in range(10_000)})
    commit = here.fetch(origin.url, "main")
    assert len(here.tree(origin.url, commit).files) == 10_001
    looked: list[str] = []
    mirror = next(iter(here._mirrors.values()))
    parsed = mirror._parsed
    monkeypatch.setattr(mirror, "_parsed", lambda data: looked.append("tree") or parsed(data))
    new = origin.commit({"d7/f7.yaml": "a: changed\n"})
    here.fetch(origin.url, "main")
    assert set(here.diff(origin.url, commit, new).changed) == {"d7/f7.yaml"}
    assert len(looked) == 2


# --------------------------------------------------------------------------------------------------- signatures


def work_tree(origin: Origin, tmp_path: Path) -> Path:
    tree = tmp_path / "work"
    subprocess.run(["git", "clone", "--quiet", str(origin.path), str(tree)], check=True, capture_output=True)
    return tree


def signed_commit(tree: Path, config: dict[str, str], env: dict[str, str], *, sign: bool = True) -> None:
    (tree / "signed").write_text(config.get("user.signingkey", ""))
    options = [part for key, value in config.items() for part in ("-c", f"{key}={value}")]
    options += ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for words in (["add", "."], ["commit", "--quiet", "-m", "signed", *(["-S"] if sign else [])], ["push", "--quiet"]):
        subprocess.run(["git", *options, *words], cwd=tree, check=True, capture_output=True, env={**os.environ, **env})


def needs(program: str) -> None:
    """Leave a test out where a program is missing; never where the tests decide about a change."""
    if shutil.which(program) is None and not os.environ.get("CI"):
        pytest.skip(f"{program} is not installed (Debian: openssh-client, gnupg)")


def ssh_key(folder: Path, name: str) -> tuple[Path, str]:
    needs("ssh-keygen")
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path, path.with_suffix(".pub").read_text().strip()


def test_ssh_signatures(origin: Origin, here: GitRepositories, tmp_path: Path) -> None:
    tree = work_tree(origin, tmp_path)
    key, public = ssh_key(tmp_path, "ada")
    _, other = ssh_key(tmp_path, "eve")
    signed_commit(tree, {"gpg.format": "ssh", "user.signingkey": str(key)}, {})
    commit = here.fetch(origin.url, "main")
    good = here.verify(origin.url, commit, Trust(method="ssh", signers=f"ada@example.org {public}"))
    assert good.good
    assert good.signer == "ada@example.org"
    unknown = here.verify(origin.url, commit, Trust(method="ssh", signers=f"ada@example.org {other}"))
    assert not unknown.good
    assert "not among" in unknown.reason
    assert not here.verify(origin.url, commit, Trust(method="ssh", signers="")).good
    wrong_use = f'ada@example.org namespaces="file" {public}'
    assert not here.verify(origin.url, commit, Trust(method="ssh", signers=wrong_use)).good
    parent = here.log(origin.url, commit, 2)[1].sha
    unsigned = here.verify(origin.url, parent, Trust(method="ssh", signers=f"ada@example.org {public}"))
    assert not unsigned.good
    assert "no ssh signature" in unsigned.reason


def test_a_commit_changed_after_it_was_signed(origin: Origin, here: GitRepositories, tmp_path: Path) -> None:
    tree = work_tree(origin, tmp_path)
    key, public = ssh_key(tmp_path, "ada")
    signed_commit(tree, {"gpg.format": "ssh", "user.signingkey": str(key)}, {})
    repo = origin.repository
    raw = repo.odb.read(origin.head())[1].replace(b"\n\nsigned", b"\n\nforged")
    forged = repo.odb.write(pygit2.enums.ObjectType.COMMIT, raw)
    repo.references.create("refs/heads/main", forged, force=True)
    here.fetch(origin.url, "main")
    found = here.verify(origin.url, str(forged), Trust(method="ssh", signers=f"ada@example.org {public}"))
    assert not found.good


def test_gpg_signatures(origin: Origin, here: GitRepositories, tmp_path: Path) -> None:
    tree = work_tree(origin, tmp_path)
    needs("gpg")
    home = tmp_path / "g"
    home.mkdir(mode=0o700)
    env = {"GNUPGHOME": str(home)}
    try:
        for who in ("ada@example.org", "eve@example.org"):
            subprocess.run(
                ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", who, "ed25519", "sign"],
                env={**os.environ, **env},
                check=True,
                capture_output=True,
            )
        signed_commit(tree, {"user.signingkey": "ada@example.org"}, env)
        ada, eve = (
            subprocess.run(
                ["gpg", "--armor", "--export", who],
                env={**os.environ, **env},
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for who in ("ada@example.org", "eve@example.org")
        )
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env={**os.environ, **env}, check=False)
    commit = here.fetch(origin.url, "main")
    good = here.verify(origin.url, commit, Trust(method="gpg", signers=ada))
    assert good.good
    assert good.signer.startswith("ada@example.org")
    unknown = here.verify(origin.url, commit, Trust(method="gpg", signers=eve))
    assert not unknown.good
    assert "not among" in unknown.reason
    assert not here.verify(origin.url, commit, Trust(method="ssh", signers="ada@example.org ssh-ed25519 AAAA")).good
    with pytest.raises(Invalid, match="no readable armoured public keys"):
        here.verify(origin.url, commit, Trust(method="gpg", signers="nonsense"))
