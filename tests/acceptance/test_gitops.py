"""What git says is what is here: through real repositories, pushes and webhooks, with everything people do to them."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping

import pytest

from tests.acceptance.installation import Installation, until
from tests.acceptance.repository import Repository, service

pytestmark = pytest.mark.acceptance


def note(ground: Installation, name: str, namespace: str = "alpha") -> str | None:
    """What a service says it was made with; None when it is not there."""
    doc = ground.get("services", name, namespace)
    return None if doc is None else str(doc["spec"]["env"].get("NOTE"))


def sync(ground: Installation, name: str) -> None:
    ground.ok("POST", ground.path("sources", name) + "/actions/sync", {})


def test_a_push_is_live_through_the_webhook(ground: Installation) -> None:
    repository = ground.source("push")
    ground.applied("push", repository.push({"a/web.yaml": service("hello", replicas=1, note="one")}))
    ground.until_ready("services", "hello", "alpha")
    commit = repository.push({"a/web.yaml": service("hello", replicas=1, note="two")}, message="Say two")
    status = ground.applied("push", commit)
    until(lambda: [u.env["NOTE"] for u in ground.units("hello")] == ["two"], "the change runs")
    assert status["commits"][0]["subject"] == "Say two"
    pushed = ground.ok("GET", "/api/v1/audit?kind=Source&name=push&verb=push")["items"]
    assert pushed[-1]["subject"] == "hook:gitlab"
    assert pushed[-1]["detail"]["commit"] == commit
    ground.applied("push", repository.push(remove=["a/web.yaml"]))
    ground.until_gone("services", "hello", "alpha")
    until(lambda: not ground.running(), "its process is gone")


def test_mistakes_are_told_with_file_and_line_and_the_rest_applies(ground: Installation) -> None:
    repository = ground.source("slips")
    names = ("yaml", "field", "kind", "type", "big", "twice", "good", "link")
    ground.applied("slips", repository.push({f"{n}.yaml": service(f"slip-{n}", note="before") for n in names}))
    repository.push(
        {
            "yaml.yaml": service("slip-yaml", note="after") + "  broken: [\n",
            "field.yaml": service("slip-field", note="after", replicaz="2"),
            "kind.yaml": service("slip-kind", note="after").replace("kind: Service", "kind: Servise"),
            "type.yaml": service("slip-type", note="after", dependsOn='"db"'),
            "big.yaml": service("slip-big", note="after") + "#" * (1 << 20),
            "copy/twice.yaml": service("slip-twice", note="after"),
            "good.yaml": service("slip-good", note="after"),
            "more.yaml": service("slip-more", note="after") + "---\n" + service("slip-no", note="x", prots="1"),
        }
    )
    (repository.clone / "link.yaml").unlink()
    (repository.clone / "link.yaml").symlink_to("../../admin.password")
    head = repository.commit()
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{head},module")
    repository.git("commit", "--quiet", "--message=a submodule")
    repository.git("push", "--quiet", "origin", "HEAD:main")
    status = ground.applied("slips", repository.git("rev-parse", "HEAD").strip())
    found = {p["file"]: p for p in status["problems"]}
    assert set(found) == {
        *("yaml.yaml", "field.yaml", "kind.yaml", "type.yaml", "big.yaml", "copy/twice.yaml", "more.yaml"),
        *("link.yaml", "module"),
    }
    assert (found["field.yaml"]["line"], found["field.yaml"]["name"]) == (9, "alpha/slip-field")
    assert 'did you mean "replicas"' in found["field.yaml"]["remedy"]
    assert 'did you mean "Service"' in found["kind.yaml"]["remedy"]
    assert found["kind.yaml"]["line"] == 2
    assert found["yaml.yaml"]["line"] >= 9
    assert "bytes" in found["big.yaml"]["message"]
    assert "twice.yaml:1" in found["copy/twice.yaml"]["message"]
    assert "symbolic link" in found["link.yaml"]["message"]
    assert "submodule" in found["module"]["message"]
    assert found["more.yaml"]["line"] > 9
    kept = ("yaml", "field", "kind", "type", "big", "twice", "link")
    assert {n: note(ground, f"slip-{n}") for n in kept} == dict.fromkeys(kept, "before"), "the last good state is kept"
    assert (note(ground, "slip-good"), note(ground, "slip-more")) == ("after", "after"), "the rest applies"
    ready = ground.condition("sources", "slips")
    assert (ready["status"], ready["reason"]) == ("False", "Problems")
    shown, described = (
        ground.ground(*w) for w in (["get", "source", "slips", "-o", "yaml"], ["describe", "source", "slips"])
    )
    for said in (shown, described):
        assert said.returncode == 0, said.stderr
        assert "field.yaml" in said.stdout
        assert "replicaz" in said.stdout
        assert 'did you mean "replicas"' in said.stdout
        assert re.search(r"file: field.yaml\n\s+line: 9\b", said.stdout), said.stdout
    mended = {f"{n}.yaml": service(f"slip-{n}", note="mended") for n in names}
    ground.applied("slips", repository.push(mended, remove=["copy/twice.yaml", "more.yaml"]))
    assert not ground.need("sources", "slips")["status"]["problems"]
    assert {note(ground, f"slip-{n}") for n in names} == {"mended"}
    assert note(ground, "slip-more") is None


def test_only_what_it_owns_is_pruned(ground: Installation) -> None:
    ground.apply(ground.document("Service", "by-hand", {"sample": "web", "replicas": 0}, "alpha"))
    one, two = ground.source("owner-one"), ground.source("owner-two", prune=False)
    ground.applied("owner-one", one.push({"a.yaml": service("one-a"), "b.yaml": service("one-b")}))
    ground.applied("owner-two", two.push({"a.yaml": service("two-a")}))
    commit = one.push({"c.yaml": service("two-a"), "d.yaml": service("by-hand", note="mine")}, remove=["a.yaml"])
    status = ground.applied("owner-one", commit)
    ground.until_gone("services", "one-a", "alpha")
    told = {p["file"]: p["message"] for p in status["problems"]}
    assert "belongs to Source owner-two (file a.yaml)" in told["c.yaml"]
    assert "was made by user:admin" in told["d.yaml"]
    assert (note(ground, "by-hand"), note(ground, "two-a")) == ("None", "None"), "untouched"
    ground.applied("owner-one", one.push(remove=["c.yaml", "d.yaml"]))
    ground.applied("owner-two", two.push(remove=["a.yaml"]))
    assert all(note(ground, n) is not None for n in ("one-b", "by-hand", "two-a"))


def test_what_a_source_owns_is_not_changed_by_hand(ground: Installation) -> None:
    repository = ground.source("owned")
    ground.applied("owned", repository.push({"groups/alpha/db.yaml": service("owned-db", note="as written")}))
    path = ground.path("services", "owned-db", "alpha")
    answer = ground.call("PATCH", path, {"spec": {"env": {"NOTE": "by hand"}}})
    assert answer.status == 409, answer.message
    assert "groups/alpha/db.yaml" in answer.message
    assert repository.url in answer.message
    answer = ground.call("DELETE", path)
    assert answer.status == 409, answer.message
    assert "groups/alpha/db.yaml" in answer.message
    said = ground.ground("delete", "service", "owned-db", "-n", "alpha", "--yes")
    assert said.returncode == 5, said.stderr
    assert "groups/alpha/db.yaml" in said.stderr
    file = ground.root / "edit.yaml"
    file.write_text(service("owned-db", note="by hand"))
    said = ground.ground("apply", "-f", str(file))
    assert said.returncode == 5, said.stderr
    assert "groups/alpha/db.yaml" in said.stderr
    assert note(ground, "owned-db") == "as written"
    ground.patch("services", "owned-db", "alpha", stopGrace=9), "a field the file leaves open is anybody's"
    assert ground.need("services", "owned-db", "alpha")["spec"]["stopGrace"] == 9


SHARED = """\
# The portal. Ask grace before you change it.
apiVersion: ground/v1
kind: Service
metadata: {name: offered, namespace: alpha}
spec:
  sample: web
  replicas: 0        # not yet
  ports: {http: 8080}
  env:
    NOTE: 'as "agreed"'   # in the meeting
---
# For the eyes of beta alone.
"""


def test_a_change_of_what_git_decides_is_proposed_as_a_branch(ground: Installation) -> None:
    ground.apply(ground.document("Namespace", "offered", {"group": "experiments/offered"}))
    repository = ground.source("offered", proposals={"branchPrefix": "proposed/"})
    text = SHARED + service("theirs", "offered")
    ground.applied("offered", repository.push({"groups/all.yaml": text, "a/b.yaml": service("offered-b")}))
    main = repository.git("rev-parse", "HEAD").strip()
    grace = member(ground, "grace", "alpha")
    file = ground.root / "offered.yaml"
    file.write_text(service("offered", note="anew").replace("replicas: 0", "replicas: 1"))

    said = ground.ground("apply", "-f", str(file), token=grace)
    assert said.returncode == 5, said.stderr
    assert "ground apply --propose" in said.stderr
    said = ground.ground("diff", "--proposed", "-f", str(file), token=grace)
    assert said.returncode == 2, said.stderr
    assert branches(repository) == ["main"], "nothing is made for looking"
    shown = said.stdout
    said = ground.ground("apply", "--propose", "-f", str(file), token=grace)
    assert (said.returncode, said.stdout) == (0, shown), said.stderr
    (branch,) = set(branches(repository)) - {"main"}
    assert branch.startswith("proposed/service-alpha-offered-")
    assert branch in said.stderr
    again = ground.ground("apply", "--propose", "-f", str(file), token=grace)
    assert "proposed already" in again.stderr
    assert set(branches(repository)) == {"main", branch}

    # What the branch says is the file with two values changed, and nothing else.
    repository.git("fetch", "--quiet", "origin")
    assert repository.git("rev-parse", "origin/main").strip() == main, "its own branch is not touched"
    assert repository.git("rev-parse", f"origin/{branch}^").strip() == main
    wanted = text.replace("replicas: 0        #", "replicas: 1        #").replace("""'as "agreed"'""", "'anew'")
    assert repository.git("show", f"origin/{branch}:groups/all.yaml") == wanted
    assert repository.git("diff", "--name-only", "main", f"origin/{branch}") == "groups/all.yaml\n"
    message = repository.git("log", "-1", "--format=%an%n%B", f"origin/{branch}")
    assert message.startswith("Ground Control\nService alpha/offered: ")
    assert "Proposed by user:grace." in message

    # She may not read beta's document: nothing of it is shown to her, though it stands three lines below.
    assert "replicas: 1        # not yet" in shown
    assert "beta" not in shown
    assert "theirs" not in shown
    (event,) = ground.events("Service", "offered", "alpha", reason="Proposed")
    assert branch in event["message"]
    audit = ground.ok("GET", "/api/v1/audit?kind=Service&name=offered&verb=propose")["items"]
    assert [(a["subject"], a["outcome"]) for a in audit][:2] == [("user:grace", "asked"), ("user:grace", "done")]

    # A stranger may not, and a reviewer's merge makes it so.
    said = ground.ground("apply", "--propose", "-f", str(file), token=member(ground, "bob", "offered"))
    assert said.returncode == 4, said.stderr
    repository.git("merge", "--quiet", "--ff-only", f"origin/{branch}")
    ground.applied("offered", repository.push())
    until(lambda: note(ground, "offered") == "anew", "what was merged is made so")
    until(lambda: [u.env["NOTE"] for u in ground.units("offered")] == ["anew"], "and runs")


def test_drift_becomes_a_branch_once(ground: Installation) -> None:
    repository = ground.source("drifts", proposals={})
    declared = service("drifted", replicas=1, drift="propose", files='{"a.txt": "as agreed"}')
    ground.applied("drifts", repository.push({"drifted.yaml": declared}))
    ground.until_ready("services", "drifted", "alpha")
    (unit,) = ground.units("drifted")
    (unit.directory / "a.txt").write_text("better")
    until(lambda: len(branches(repository)) == 2, "it is proposed", told=lambda: str(ground.list("instances", "alpha")))
    (branch,) = set(branches(repository)) - {"main"}
    repository.git("fetch", "--quiet", "origin")
    assert repository.git("show", f"origin/{branch}:drifted.yaml") == declared.replace("as agreed", "better")
    (instance,) = (i for i in ground.list("instances", "alpha") if i["spec"]["service"] == "drifted")

    def told() -> str:
        found = ground.condition("instances", instance["metadata"]["name"], "alpha", "Drift")
        return str(found["message"]) if found["reason"] == "Proposed" else ""

    assert branch in until(told, "the condition names it")
    assert (unit.directory / "a.txt").read_text() == "better", "what was found is left"
    repository.git("merge", "--quiet", "--ff-only", f"origin/{branch}")
    ground.applied("drifts", repository.push())
    until(lambda: not told(), "the drift is over")
    assert set(branches(repository)) == {"main", branch}


def branches(repository: Repository) -> list[str]:
    """What the server has."""
    listed = repository.git("ls-remote", "--heads", "origin")
    return [line.partition("refs/heads/")[2] for line in listed.splitlines()]


def member(ground: Installation, name: str, namespace: str) -> str:
    """The token of somebody who works in one namespace."""
    binding = {"role": "member", "subjects": [f"user:{name}"], "selector": {"namespaces": [namespace]}}
    ground.apply(ground.document("Account", name, {"robot": True}), ground.document("RoleBinding", name, binding))
    return str(ground.ok("POST", "/api/v1/tokens", {"account": name})["token"])


def test_rewritten_history_is_followed_and_told(ground: Installation) -> None:
    repository = ground.source("rewrite")
    repository.push({"a.yaml": service("re-a", note="one")})
    ground.applied("rewrite", repository.push({"a.yaml": service("re-a", note="two"), "b.yaml": service("re-b")}))
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    status = ground.applied("rewrite", repository.push({"a.yaml": service("re-a", note="three")}))
    assert status["rewritten"] is True
    ground.until_gone("services", "re-b", "alpha")
    assert note(ground, "re-a") == "three"
    repository.git("checkout", "--quiet", "--orphan", "anew")
    status = ground.applied("rewrite", repository.push({"a.yaml": service("re-a", note="four")}))
    assert status["rewritten"] is True
    assert note(ground, "re-a") == "four"
    assert ground.applied("rewrite", repository.push({"c.yaml": service("re-c")}))["rewritten"] is False


def test_a_repository_or_branch_that_is_gone_changes_nothing(ground: Installation) -> None:
    repository = ground.source("away")
    ground.applied("away", repository.push({"a.yaml": service("away-a", note="one")}))
    aside = repository.origin.rename(repository.origin.with_suffix(".aside"))
    sync(ground, "away")
    said = ground.until_ready("sources", "away", status="Unknown", reason="CannotFetch")
    assert "away.git" in said["message"]
    assert note(ground, "away-a") == "one"
    aside.rename(repository.origin)
    ground.applied("away", repository.push({"a.yaml": service("away-a", note="two")}))
    ground.until_ready("sources", "away")
    head = repository.git("rev-parse", "HEAD").strip()
    repository.git("push", "--quiet", "origin", f"{head}:refs/heads/other")
    repository._git(repository.origin, "update-ref", "-d", "refs/heads/main")
    sync(ground, "away")
    said = ground.until_ready("sources", "away", status="Unknown", reason="CannotFetch")
    assert "main" in said["message"]
    assert note(ground, "away-a") == "two"
    ground.patch("sources", "away", branch="other")
    ground.until_ready("sources", "away")
    assert note(ground, "away-a") == "two"


def shaped(provider: str, url: str, commit: str, secret: str) -> tuple[bytes, Mapping[str, str]]:
    """A push event as that git server sends and signs it."""
    base = {"ref": "refs/heads/main", "before": "0" * 40, "after": commit}
    if provider == "gitlab":
        project = {"git_http_url": url, "git_ssh_url": url}
        body = json.dumps({"object_kind": "push", **base, "project": project}).encode()
        return body, {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": secret}
    body = json.dumps({**base, "repository": {"clone_url": url, "html_url": url}}).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    if provider == "github":
        return body, {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"}
    return body, {"X-Gitea-Event": "push", "X-Gitea-Signature": signature}


@pytest.mark.parametrize("provider", ["gitlab", "github", "gitea"])
def test_webhooks_of_three_git_servers_and_none_with_a_wrong_secret(ground: Installation, provider: str) -> None:
    name = f"hook-{provider}"
    repository = ground.source(name)
    repository.untell()
    commit = repository.push({"a.yaml": service(f"{name}-a", note="one")})
    path, secret = f"/hooks/{provider}/{name}", ground.hook_token.read_text().strip()

    def send(secret: str) -> int:
        body, headers = shaped(provider, repository.url, commit, secret)
        return ground.call("POST", path, body, token=" ", headers=headers).status

    assert send("not the secret") == 401
    body, headers = shaped(provider, repository.url, commit, secret)
    unsigned = {k: v for k, v in headers.items() if "Token" not in k and "Signature" not in k}
    assert ground.call("POST", path, body, token=" ", headers=unsigned).status == 401
    if provider != "gitlab":
        assert ground.call("POST", path, body + b" ", token=" ", headers=headers).status == 401, "the body was changed"
    assert ground.call("POST", f"/hooks/{provider}/nobody", body, token=" ", headers=headers).status == 401
    time.sleep(0.7)
    assert ground.need("sources", name)["status"]["fetchedCommit"] != commit
    assert send(secret) == 202
    ground.applied(name, commit)
    assert note(ground, f"{name}-a") == "one"


def test_ten_thousand_files_and_one_of_them_changed(ground: Installation) -> None:
    repository = ground.source("large")
    ground.apply(ground.document("Namespace", "large", {"group": "experiments/large"}))
    files = {f"d{n // 100:02}/s{n:05}.yaml": service(f"s{n:05}", "large", note=str(n)) for n in range(10_000)}
    commit = repository.push(files)
    until(lambda: ground.need("sources", "large")["status"].get("commit") == commit, "10,000 files", seconds=120)
    assert ground.need("sources", "large")["status"]["resources"] == 10_000
    began = time.monotonic()
    commit = repository.push({"d00/s00007.yaml": service("s00007", "large", note="changed")})
    ground.applied("large", commit)
    took = time.monotonic() - began
    assert note(ground, "s00007", "large") == "changed"
    assert took < 15, f"one of 10,000 files took {took:.1f} s"
