"""The post-receive hook of the demonstration's repository: tells the server of a push as GitLab would.

Run as `python -I hook.py URL TOKEN-FILE REPOSITORY-URL` by git, in the bare repository, with one line
`before after ref` per pushed branch on standard input. A server that is down does not fail the push.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

ZERO = "0" * 40
FIELD, RECORD = "\x1f", "\x1e"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def commits(before: str, after: str) -> list[dict[str, Any]]:
    """The pushed commits, oldest first, at most twenty, as GitLab lists them."""
    span = [after] if before == ZERO else [f"{before}..{after}"]
    shape = RECORD + FIELD.join(("%H", "%B", "%cI", "%an", "%ae")) + FIELD
    found = []
    for record in git("log", "--name-status", "--no-renames", "-20", f"--format={shape}", *span).split(RECORD)[1:]:
        sha, message, when, name, email, files = record.split(FIELD)
        listed = [line.split("\t") for line in files.split("\n") if "\t" in line]
        found.append(
            {
                "id": sha,
                "message": message,
                "title": message.split("\n", 1)[0],
                "timestamp": when,
                "author": {"name": name, "email": email},
                "added": [path for kind, path in listed if kind == "A"],
                "modified": [path for kind, path in listed if kind == "M"],
                "removed": [path for kind, path in listed if kind == "D"],
            }
        )
    return found[::-1]


def push(before: str, after: str, ref: str, repository: str) -> dict[str, Any]:
    """The body of GitLab's push event (docs.gitlab.com, "Webhook events", push events)."""
    listed = [] if after == ZERO else commits(before, after)
    name = Path(repository).stem
    last = listed[-1]["author"] if listed else {"name": "", "email": ""}
    project = {
        "id": 1,
        "name": name,
        "description": "What the demonstration federation should be",
        "web_url": repository,
        "git_ssh_url": repository,
        "git_http_url": repository,
        "namespace": "demo",
        "visibility_level": 0,
        "path_with_namespace": f"demo/{name}",
        "default_branch": "main",
    }
    return {
        "object_kind": "push",
        "event_name": "push",
        "before": before,
        "after": after,
        "ref": ref,
        "ref_protected": True,
        "checkout_sha": None if after == ZERO else after,
        "user_id": 1,
        "user_name": last["name"],
        "user_username": last["name"].lower(),
        "user_email": last["email"],
        "project_id": 1,
        "project": project,
        "commits": listed,
        "total_commits_count": len(listed),
        "repository": {
            "name": name,
            "url": repository,
            "description": project["description"],
            "homepage": repository,
            "git_http_url": repository,
            "git_ssh_url": repository,
            "visibility_level": 0,
        },
    }


def send(url: str, token: str, body: dict[str, Any]) -> int:
    """Send one event; the HTTP status."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitLab/17.0.0",
        "X-Gitlab-Event": "Push Hook",
        "X-Gitlab-Token": token,
        "X-Gitlab-Event-UUID": str(uuid.uuid4()),
        "X-Gitlab-Instance": "http://gitlab.example.org",
        "Idempotency-Key": str(uuid.uuid4()),
    }
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=10) as answer:
        return int(answer.status)


def main(arguments: list[str]) -> int:
    url, token_file, repository = arguments
    token = Path(token_file).read_text(encoding="ascii").strip()
    for line in sys.stdin:
        before, after, ref = line.split()
        try:
            print(f"webhook: {url} answered {send(url, token, push(before, after, ref, repository))}")
        except (OSError, http.client.HTTPException) as error:
            print(f"webhook: {url} was not reached ({error}); the Source finds the commit at its next look")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
