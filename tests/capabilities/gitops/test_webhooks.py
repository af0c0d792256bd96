"""What git servers send, in their own shapes, believed only when it is signed."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from groundcontrol.capabilities.gitops.webhooks import MAX_BODY, Push, normal, parse_push
from groundcontrol.kernel.errors import Invalid, NotFound, TooLarge, Unauthenticated

SECRET = "a long secret"
AFTER = "d8f7e6c7a7bcdac418fac7aebb9e5c38aefca14c"
ZERO = "0" * 40

GITLAB: dict[str, Any] = {
    "object_kind": "push",
    "event_name": "push",
    "before": "4a2f7017bbba0719158102884b88d12d0f98359d",
    "after": AFTER,
    "ref": "refs/heads/main",
    "checkout_sha": AFTER,
    "project_id": 15,
    "project": {
        "name": "platform",
        "web_url": "https://gitlab.example.org/infra/platform",
        "git_ssh_url": "git@gitlab.example.org:infra/platform.git",
        "git_http_url": "https://gitlab.example.org/infra/platform.git",
        "path_with_namespace": "infra/platform",
        "default_branch": "main",
    },
    "commits": [{"id": AFTER, "message": "change\n", "added": [], "modified": ["a.yaml"], "removed": []}],
    "total_commits_count": 1,
}
GITHUB: dict[str, Any] = {
    "ref": "refs/heads/main",
    "before": ZERO,
    "after": AFTER,
    "created": False,
    "deleted": False,
    "forced": False,
    "repository": {
        "full_name": "infra/platform",
        "html_url": "https://github.example.org/infra/platform",
        "git_url": "git://github.example.org/infra/platform.git",
        "ssh_url": "git@github.example.org:infra/platform.git",
        "clone_url": "https://github.example.org/infra/platform.git",
    },
    "commits": [],
    "head_commit": None,
}
GITEA: dict[str, Any] = {
    "ref": "refs/heads/main",
    "before": ZERO,
    "after": AFTER,
    "compare_url": "https://gitea.example.org/infra/platform/compare/a...b",
    "commits": [],
    "repository": {
        "full_name": "infra/platform",
        "html_url": "https://gitea.example.org/infra/platform",
        "ssh_url": "ssh://git@gitea.example.org:2222/infra/platform.git",
        "clone_url": "https://gitea.example.org/infra/platform.git",
    },
}
PAYLOADS = {"gitlab": GITLAB, "github": GITHUB, "gitea": GITEA}


def sent(provider: str, payload: Any, event: str = "", secret: str = SECRET) -> tuple[dict[str, str], bytes]:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "gitlab": {"X-Gitlab-Event": event or "Push Hook", "X-Gitlab-Token": secret},
        "github": {"X-GitHub-Event": event or "push", "X-Hub-Signature-256": f"sha256={mac}"},
        "gitea": {"X-Gitea-Event": event or "push", "X-GitHub-Event": event or "push", "X-Gitea-Signature": mac},
    }[provider]
    return headers, body


@pytest.fixture(params=["gitlab", "github", "gitea"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_push(provider: str) -> None:
    found = parse_push(provider, *sent(provider, PAYLOADS[provider]), SECRET)
    assert found is not None
    assert (found.branch, found.after, found.deleted) == ("main", AFTER, False)
    assert found.concerns(f"https://{provider}.example.org/infra/platform.git", "main")
    assert found.concerns(f"https://{provider}.example.org/infra/platform", "main")
    assert not found.concerns(f"https://{provider}.example.org/infra/platform.git", "next")
    assert not found.concerns(f"https://{provider}.example.org/infra/other.git", "main")


def test_header_names_have_no_case(provider: str) -> None:
    headers, body = sent(provider, PAYLOADS[provider])
    assert parse_push(provider, {k.upper(): v for k, v in headers.items()}, body, SECRET)


def test_a_wrong_secret_or_none(provider: str) -> None:
    headers, body = sent(provider, PAYLOADS[provider])
    with pytest.raises(Unauthenticated):
        parse_push(provider, headers, body, "another secret")
    with pytest.raises(Unauthenticated):
        parse_push(provider, {}, body, SECRET)
    with pytest.raises(Unauthenticated):
        parse_push(provider, *sent(provider, PAYLOADS[provider], secret=""), "")
    with pytest.raises(Unauthenticated):
        parse_push(provider, dict.fromkeys(headers, "é"), body, SECRET)


@pytest.mark.parametrize("provider", ["github", "gitea"])
def test_a_body_changed_on_the_way(provider: str) -> None:
    headers, body = sent(provider, PAYLOADS[provider])
    with pytest.raises(Unauthenticated):
        parse_push(provider, headers, body + b" ", SECRET)


def test_the_secret_is_asked_before_anything_else_is_read(provider: str) -> None:
    headers, _ = sent(provider, b"{", secret="wrong")
    with pytest.raises(Unauthenticated):
        parse_push(provider, headers, b"{", SECRET)


@pytest.mark.parametrize("event", ["ping", "Tag Push Hook", "Merge Request Hook", "issues", "create"])
def test_other_events_are_passed_over(provider: str, event: str) -> None:
    assert parse_push(provider, *sent(provider, {"zen": "x"}, event), SECRET) is None


def test_tags_are_passed_over(provider: str) -> None:
    payload = {**PAYLOADS[provider], "ref": "refs/tags/v1"}
    assert parse_push(provider, *sent(provider, payload), SECRET) is None
    if provider == "gitlab":
        assert parse_push(provider, *sent(provider, {**GITLAB, "object_kind": "tag_push"}), SECRET) is None


def test_a_deleted_branch_is_noted(provider: str) -> None:
    payload = {**PAYLOADS[provider], "after": ZERO, "ref": "refs/heads/feature/one"}
    found = parse_push(provider, *sent(provider, payload), SECRET)
    assert found is not None
    assert (found.branch, found.after, found.deleted) == ("feature/one", "", True)


@pytest.mark.parametrize(
    "payload", [b"not json", b"[]", b'{"object_kind": "push"}', b"[" * 100_000, b'{"ref": 1, "after": 2}', b"\xff"]
)
def test_signed_nonsense_is_invalid(provider: str, payload: bytes) -> None:
    if provider == "gitlab" and b"ref" in payload:
        payload = b'{"object_kind": "push", "ref": 1}'
    with pytest.raises(Invalid):
        parse_push(provider, *sent(provider, payload), SECRET)


def test_the_body_is_bounded(provider: str) -> None:
    with pytest.raises(TooLarge):
        parse_push(provider, {}, b"x" * (MAX_BODY + 1), SECRET)


def test_unknown_servers() -> None:
    with pytest.raises(NotFound, match="known: gitlab, github, gitea"):
        parse_push("svn", {}, b"", SECRET)


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.org/infra/platform.git",
        "https://git.example.org/infra/platform",
        "https://Git.Example.org:443/infra/platform/",
        "git@git.example.org:infra/platform.git",
        "ssh://git@git.example.org/infra/platform.git",
        "ssh://git@git.example.org:22/infra/platform.git",
    ],
)
def test_one_repository_under_many_urls(url: str) -> None:
    assert normal(url) == "git.example.org/infra/platform"
    assert Push((url,), "main", AFTER).concerns("https://git.example.org/infra/platform.git", "main")
