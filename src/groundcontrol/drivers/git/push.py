"""Pushes one commit as a new branch and asks a server which branches it has, by git, with the safety of a fetch.

A push is for a branch that is not there, and says so to the server: nothing is overwritten, by us or in a race. When
no answer comes, the server is asked whether the branch is there before anybody is told anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from groundcontrol.drivers.git import command
from groundcontrol.drivers.git.answers import NOT_SENT, REFUSED, meaning
from groundcontrol.drivers.git.command import Result, Settings
from groundcontrol.kernel.errors import GroundError, OutcomeUnknown, TooLarge, Unavailable

MOST_HEADS = 5000
"""Branches that are listed at most."""
# A repository on this machine is written to by a git of ours: nothing that it configures may run as us.
_HERE = (
    "git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.alternateRefsCommand=true"
    " -c receive.autogc=false -c gc.auto=0 receive-pack"
)


def heads(
    url: str, prefix: str, settings: Settings, env: Mapping[str, str], secrets: tuple[str, ...]
) -> dict[str, str]:
    """The server's branches whose names begin so, with their commits."""
    pattern = f"refs/heads/{prefix}*"
    listing = [*command.arguments(settings), "ls-remote", "--heads", "--quiet", "--", url, pattern]
    try:
        result = command.run(listing, env, timeout=settings.timeout, secrets=secrets)
    except Unavailable as error:
        raise Unavailable(f"asking {url} for its branches: {error}") from None
    if result.code:
        raise meaning(result, url, prefix) or Unavailable(
            f"repository {url} does not tell its branches. git: {result.err[-300:]}"
        )
    found = dict[str, str]()
    for line in result.out.splitlines():
        sha, _, ref = line.partition("\t")
        name = ref.removeprefix("refs/heads/")
        if len(sha) == 40 and name != ref and name.startswith(prefix):
            found[name] = sha
        if len(found) > MOST_HEADS:
            raise TooLarge(f"repository {url} has more than {MOST_HEADS:,} branches below {prefix}; delete old ones")
    return found


def push(
    place: Path,
    url: str,
    transport: str,
    sha: str,
    branch: str,
    settings: Settings,
    env: Mapping[str, str],
    secrets: tuple[str, ...],
) -> None:
    """Push the commit as that branch; Conflict when it is there, OutcomeUnknown when nobody can say."""
    options = ["--porcelain", "--no-verify", "--no-follow-tags", "--recurse-submodules=no", "--no-signed", "--thin"]
    # Expected to be nothing: git's word for "only if there is no such branch".
    options += [f"--force-with-lease=refs/heads/{branch}:"]
    options += [f"--receive-pack={_HERE}"] if transport == "file" else []
    start = [*command.arguments(settings), f"--git-dir={place}", "push", *options]
    failed: GroundError
    try:
        result = command.run(
            [*start, "--", url, f"{sha}:refs/heads/{branch}"], env, timeout=settings.timeout, secrets=secrets
        )
        if result.code == 0:
            return
        failed = _failure(result, url, branch)
    except Unavailable as error:
        failed = OutcomeUnknown(f"pushing {branch} to {url}: {error}")
    if not isinstance(failed, OutcomeUnknown):
        raise failed
    try:
        if heads(url, branch, settings, env, secrets).get(branch) == sha:
            return
    except GroundError:
        raise failed from None
    raise failed


def _failure(result: Result, url: str, branch: str) -> GroundError:
    said = Result(result.code, "", "\n".join((result.out, result.err)))
    error = meaning(said, url, branch, REFUSED) or meaning(said, url, branch)
    if error is not None and not isinstance(error, Unavailable):
        return error
    if error is not None and any(phrase in said.err.lower() for phrase in NOT_SENT):
        return error
    last = result.err.splitlines()[-1:] or ["nothing"]
    return OutcomeUnknown(
        f"repository {url} did not answer the push of {branch}: it may have come or not; look first. "
        f"git: {last[0][:300]}"
    )
