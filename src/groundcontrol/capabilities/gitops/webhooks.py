"""What git servers tell us when somebody pushes, verified before it is read; pure.

Shapes: GitLab "Push events" (X-Gitlab-Token holds the secret itself), GitHub "push" (X-Hub-Signature-256 is
`sha256=` and the HMAC of the body), Gitea and Forgejo "push" (X-Gitea-Signature is the bare HMAC-SHA256). A push is a
hint to fetch soon, nothing more: what it says of the commits is not believed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from groundcontrol.kernel.errors import Invalid, NotFound, TooLarge, Unauthenticated

Provider = Literal["gitlab", "github", "gitea"]

MAX_BODY = 4 << 20
"""Bytes; a push of two thousand commits is well below."""


class Push(NamedTuple):
    """A branch moved."""

    urls: tuple[str, ...]
    """The urls the repository is fetched under, as the server gives them."""
    branch: str
    after: str
    """The commit it is at now; empty when the branch was deleted."""

    @property
    def deleted(self) -> bool:
        return not self.after

    def concerns(self, repository: str, branch: str) -> bool:
        """Whether a Source with this repository and branch should look now."""
        return branch == self.branch and normal(repository) in {normal(url) for url in self.urls}


def parse_push(provider: str, headers: Mapping[str, str], body: bytes, secret: str) -> Push | None:
    """The push a request tells of; None for a ping, a tag, or another event.

    Unauthenticated: the secret is wrong or there is none. Invalid: signed, and still not what the server sends."""
    if provider not in _READERS:
        raise NotFound(f"no webhooks from {provider[:40]!r}; known: {', '.join(_READERS)}")
    if len(body) > MAX_BODY:
        raise TooLarge(f"a webhook of {len(body):,} bytes; {MAX_BODY:,} are allowed")
    given = {name.lower(): value for name, value in headers.items()}
    if not secret or not _verified(provider, given, body, secret):
        raise Unauthenticated(f"the webhook is not signed with this Source's secret; set it in {provider}'s settings")
    if given.get(_EVENT[provider], "").lower() not in ("push", "push hook", "system hook"):
        return None
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        raise Invalid(f"the webhook is not JSON; choose application/json in {provider}'s settings") from None
    if not isinstance(payload, dict):
        raise Invalid("the webhook is not a JSON object")
    return _READERS[provider](payload)


def normal(url: str) -> str:
    """A repository's url without what differs between https and ssh and between ways to write it: `host/path`."""
    url = url.strip()
    scheme, found, rest = url.partition("://")
    if found:
        host, _, path = rest.partition("/")
        host = host.rpartition("@")[2]
        name, colon, port = host.rpartition(":")
        if colon and {"https": "443", "http": "80", "ssh": "22"}.get(scheme.lower()) == port:
            host = name
    else:
        host, _, path = url.rpartition("@")[2].partition(":")
    return f"{host.lower()}/{path.strip('/').removesuffix('.git')}"


_EVENT = {"gitlab": "x-gitlab-event", "github": "x-github-event", "gitea": "x-gitea-event"}


def _verified(provider: str, headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    key = secret.encode()
    if provider == "gitlab":
        return hmac.compare_digest(headers.get("x-gitlab-token", "").encode(), key)
    expected = hmac.new(key, body, hashlib.sha256).hexdigest()
    if provider == "github":
        return hmac.compare_digest(headers.get("x-hub-signature-256", "").encode(), f"sha256={expected}".encode())
    return hmac.compare_digest(headers.get("x-gitea-signature", "").encode(), expected.encode())


def _gitlab(payload: Mapping[str, Any]) -> Push | None:
    if payload.get("object_kind") != "push":
        return None
    return _push(payload, payload.get("project"), ("git_http_url", "git_ssh_url", "http_url", "ssh_url", "web_url"))


def _hub(payload: Mapping[str, Any]) -> Push | None:
    return _push(payload, payload.get("repository"), ("clone_url", "ssh_url", "git_url", "html_url"))


_READERS = {"gitlab": _gitlab, "github": _hub, "gitea": _hub}


def _push(payload: Mapping[str, Any], repository: Any, names: tuple[str, ...]) -> Push | None:
    ref, after = payload.get("ref"), payload.get("after")
    if not isinstance(ref, str) or not isinstance(after, str) or not isinstance(repository, dict):
        raise Invalid("the webhook says it is a push and lacks ref, after or the repository")
    if not ref.startswith("refs/heads/"):
        return None
    urls = dict.fromkeys(url for name in names if isinstance(url := repository.get(name), str) and url)
    gone = bool(payload.get("deleted")) or not after.strip("0")
    return Push(tuple(urls), ref.removeprefix("refs/heads/"), "" if gone else after)
