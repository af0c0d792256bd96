"""A Source may do what its own subject may do, and nobody makes a Source that may do more than they."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.acceptance.installation import Installation, until
from tests.acceptance.repository import service

pytestmark = pytest.mark.acceptance

SITE = """\
apiVersion: ground/v1
kind: Site
metadata: {name: stolen}
spec: {driver: local, endpoint: "local:"}
"""
BINDING = """\
apiVersion: ground/v1
kind: RoleBinding
metadata: {name: stolen}
spec: {role: admin, subjects: ["source:beta"]}
"""


def test_a_groups_repository_declares_only_what_the_group_may(ground: Installation) -> None:
    ground.apply(ground.document("Namespace", "beta", {"group": "experiments/beta"}))
    ground.apply(ground.document("Service", "theirs", {"sample": "web", "replicas": 0}, "alpha"))
    binding = {"selector": {"namespaces": ["beta"]}}
    repository = ground.source("beta", "member", binding=binding)
    repository.push(
        {
            "mine.yaml": service("mine", "beta"),
            "site.yaml": SITE,
            "binding.yaml": BINDING,
            "alpha/new.yaml": "# a comment\n" + service("planted", "alpha"),
            "alpha/theirs.yaml": service("theirs", "alpha", note="taken").replace(
                "namespace: alpha}", 'namespace: alpha, annotations: {ground/adopt: "true"}}'
            ),
        }
    )
    until(lambda: ground.get("services", "mine", "beta"), "what it may declare is there")

    def told() -> dict[str, Any]:
        found = {p["file"]: p for p in ground.need("sources", "beta")["status"]["problems"]}
        return found if len(found) == 4 else {}

    problems = until(told, "each refusal is told", told=lambda: json.dumps(ground.need("sources", "beta")["status"]))
    assert set(problems) == {"site.yaml", "binding.yaml", "alpha/new.yaml", "alpha/theirs.yaml"}
    assert (problems["alpha/new.yaml"]["line"], problems["site.yaml"]["line"]) == (2, 1)
    assert "source:beta may not" in problems["site.yaml"]["message"]
    assert ground.condition("sources", "beta")["status"] == "False"
    assert ground.get("sites", "stolen") is None
    assert ground.get("rolebindings", "stolen") is None
    assert ground.get("services", "planted", "alpha") is None
    theirs = ground.need("services", "theirs", "alpha")
    assert theirs["spec"]["env"] == {}
    assert "ground/source" not in theirs["metadata"]["annotations"]
    commit = repository.push(remove=["site.yaml", "binding.yaml", "alpha/new.yaml", "alpha/theirs.yaml"])
    assert ground.applied("beta", commit)["problems"] == []
    ground.until_ready("sources", "beta")
    ground.delete("rolebindings", "source-beta")
    repository.push({"mine.yaml": service("mine", "beta", note="after")})
    until(
        lambda: ground.condition("sources", "beta")["status"] == "False", "rights that were taken away are gone at once"
    )
    assert ground.need("services", "mine", "beta")["spec"]["env"] == {}


def test_nobody_makes_a_source_mightier_than_themselves(ground: Installation) -> None:
    ada = ground.person("ada", "experiments/alpha", "alpha")
    refused = ground.call(
        "POST", "/api/v1/sources", ground.document("Source", "x", {"repository": "file:///x"}), token=ada
    )
    assert refused.status == 403, refused.message
    ground.apply(
        ground.document("Role", "source-maker", {"rules": [{"kinds": ["Source"], "verbs": ["*"]}]}),
        ground.document("RoleBinding", "ada-makes", {"role": "source-maker", "subjects": ["user:ada"]}),
        ground.document("RoleBinding", "robot-admin", {"role": "admin", "subjects": ["source:robot"]}),
    )

    def make(name: str, **spec: str) -> Any:
        document = ground.document("Source", name, {"repository": "file:///nowhere.git", **spec})
        return ground.call("POST", "/api/v1/sources", document, token=ada)

    for name, subject in (("x", "user:admin"), ("x", "source:robot"), ("robot", "")):
        answer = make(name, **({"subject": subject} if subject else {}))
        assert answer.status == 403, (subject, answer.message)
        assert "hands on" in answer.message
    assert make("own", subject="user:ada").status == 201
    assert make("powerless").status == 201
    for name, spec in (("own", {"subject": "user:admin"}), ("powerless", {"subject": "source:robot"})):
        answer = ground.call("PATCH", ground.path("sources", name), {"spec": spec}, token=ada)
        assert answer.status == 403, answer.message
    ground.apply(ground.document("Source", "mighty", {"repository": "file:///a.git", "subject": "source:robot"}))
    answer = ground.call(
        "PATCH", ground.path("sources", "mighty"), {"spec": {"repository": "file:///b.git"}}, token=ada
    )
    assert answer.status == 403, answer.message
    assert ground.need("sources", "mighty")["spec"]["repository"] == "file:///a.git"
    said = ground.ground(
        "apply", "-f", "-", token=ada, stdin=json.dumps(ground.need("sources", "mighty") | {"spec": {}})
    )
    assert said.returncode != 0


def test_a_site_passes_through_its_life_cycle_from_git_too(ground: Installation) -> None:
    repository = ground.source("life")
    text = "apiVersion: ground/v1\nkind: Site\nmetadata: {{name: far}}\nspec:\n  driver: local\n  state: {}\n"
    ground.applied(
        "life", repository.push({"far.yaml": text.format("candidate"), "s.yaml": service("life", note="one")})
    )
    repository.push({"far.yaml": text.format("maintenance"), "s.yaml": service("life", note="two")})
    until(lambda: ground.need("services", "life", "alpha")["spec"]["env"]["NOTE"] == "two", "the rest applies")
    (problem,) = until(lambda: ground.need("sources", "life")["status"]["problems"], "it is told")
    assert (problem["file"], problem["kind"], problem["name"]) == ("far.yaml", "Site", "far")
    assert "is candidate and cannot become maintenance" in problem["message"]
    assert "active" in problem["remedy"]
    assert ground.need("sites", "far")["spec"]["state"] == "candidate"
    for state in ("active", "maintenance", "active", "retired", "candidate", "retired"):
        ground.applied("life", repository.push({"far.yaml": text.format(state)}))
        assert ground.need("sites", "far")["spec"]["state"] == state
