"""Git is the place to change it, and nobody has to open an editor there: edits and drift become branches to merge."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from groundcontrol.interfaces.api.app import create_app
from groundcontrol.kernel.resource import Doc, Key, condition
from groundcontrol.programs.wiring import backend
from tests.federation import Federation
from tests.stories.conftest import REPOSITORY, ask, pushed, service, source

WEB = service("web", files='{banner.txt: "as agreed"}', drift="propose")
FILE = f"# The web of alpha. Grace keeps it.\n{WEB}"


def heads(fed: Federation) -> dict[str, str]:
    return {n: sha for n, sha in fed.repositories.branches[REPOSITORY].items() if n != "main"}


def merge(fed: Federation, branch: str) -> None:
    """A reviewer merges the branch and deletes it; the Source hears of it."""
    branches = fed.repositories.branches[REPOSITORY]
    branches["main"] = branches.pop(branch)
    ask(fed)


def drift(fed: Federation) -> Doc:
    (instance,) = fed.instances("web")
    return dict(condition(instance, "Drift"))


def test_an_edit_becomes_a_branch_and_then_what_is_wanted(fed: Federation) -> None:
    source(fed, proposals={})
    pushed(fed, {"web.yaml": FILE})
    fed.until_ready("Service", "web", "alpha")
    fed.apply("Account", "grace", {})
    where = {"role": "member", "subjects": ["user:grace"], "selector": {"namespaces": ["alpha"]}}
    fed.apply("RoleBinding", "grace", where)
    token = fed.runtime.accounts.issue("user:grace", ("read", "write")).token

    with TestClient(create_app(backend(fed.runtime)), headers={"authorization": f"Bearer {token}"}) as grace:
        # She wants a second copy, and is told where that is decided, and how to ask for it.
        wanted: Doc = {"apiVersion": "ground/v1", "kind": "Service", "metadata": {"name": "web", "namespace": "alpha"}}
        wanted["spec"] = {"replicas": 2}
        refused = grace.post("/api/v1/apply", json={"documents": [wanted]})
        assert refused.status_code == 409
        assert "--propose" in refused.json()["error"]["problems"][0]["remedy"]
        seen = grace.post("/api/v1/propose?dryRun=true", json={"documents": [wanted]}).json()["proposals"]
        assert "-  replicas: 1\n+  replicas: 2\n" in seen[0]["diff"]
        assert not heads(fed)
        (made,) = grace.post("/api/v1/propose", json={"documents": [wanted]}).json()["proposals"]
        assert (made["state"], heads(fed)) == ("pushed", {made["branch"]: made["commit"]})
        (again,) = grace.post("/api/v1/propose", json={"documents": [wanted]}).json()["proposals"]
        assert (again["state"], again["branch"]) == ("exists", made["branch"])
    fed.settled()
    assert len(fed.units()) == 1, "a proposal changes nothing"

    merge(fed, made["branch"])
    fed.until(lambda: len(fed.units()) == 2, "what was merged is made so")
    fed.until_ready("Source", "platform")
    main = fed.repositories.branches[REPOSITORY]["main"]
    entry = fed.repositories.tree(REPOSITORY, main).files["web.yaml"]
    assert fed.repositories.read(REPOSITORY, entry.blob).decode() == FILE.replace("replicas: 1", "replicas: 2")


def test_what_was_changed_by_hand_is_proposed_once_and_ends_with_the_merge(fed: Federation) -> None:
    source(fed, proposals={"author": "Robot <robot@example.org>"})
    pushed(fed, {"web.yaml": FILE})
    fed.until_ready("Service", "web", "alpha")
    (unit,) = fed.units()
    host = next(h for h in fed.hosts.values() if h.look().units)

    # Somebody at the site mends the banner in place. It is left, and asked for in git.
    host.edit_file(unit.id, "banner.txt", "mended: at night")
    fed.until(lambda: drift(fed)["reason"] == "Proposed", "it is proposed")
    ((branch, commit),) = heads(fed).items()
    assert branch in drift(fed)["message"]
    (event,) = fed.events("DriftProposed")
    assert branch in event["message"]
    assert fed.repositories.log(REPOSITORY, head(fed, branch), 1)[0].author == "Robot"

    # Looking again, at anything, and even a restart, makes no second one.
    ask(fed)
    fed.restart()
    (instance,) = fed.instances("web")
    fed.until(lambda: fed.ready("Service", "web", "alpha")[0] == "True")
    for _ in range(3):
        fed.runtime.controller.wake_key(Key("Instance", "alpha", instance["metadata"]["name"]))
        fed.settled()
    assert (heads(fed), len(fed.repositories.pushes), len(fed.events("DriftProposed"))) == ({branch: commit}, 1, 1)
    assert fed.hosts_unit(unit.id).spec.files["banner.txt"] == "mended: at night"

    # It is changed once more: that is another drift, and another branch.
    host.edit_file(unit.id, "banner.txt", "mended by day")
    fed.until(lambda: len(heads(fed)) == 2 and drift(fed)["reason"] == "Proposed", "the other one too")
    fed.until(lambda: len(fed.events("DriftProposed")) == 2)

    # The first is refused by deleting its branch, the second is merged: the drift is over, without a restart.
    (other,) = set(heads(fed)) - {branch}
    del fed.repositories.branches[REPOSITORY][branch]
    merge(fed, other)
    fed.until(lambda: drift(fed)["reason"] == "NotLooked", "the file says so now")
    fed.settled()
    assert not heads(fed), "what was refused does not come back"
    assert fed.hosts_unit(unit.id).starts == 1
    assert len(fed.events("Proposed")) == 2


def head(fed: Federation, branch: str) -> str:
    return fed.repositories.fetch(REPOSITORY, branch)


def test_without_branches_drift_says_how_to_get_the_diff(fed: Federation) -> None:
    source(fed)
    pushed(fed, {"web.yaml": FILE})
    fed.until_ready("Service", "web", "alpha")
    (unit,) = fed.units()
    host = next(h for h in fed.hosts.values() if h.look().units)
    host.edit_file(unit.id, "banner.txt", "better")
    fed.until(lambda: drift(fed)["reason"] == "Proposed")
    (instance,) = fed.instances("web")
    name = instance["metadata"]["name"]
    assert f"`ground diff --proposed instance {name} -n alpha` shows the diff" in drift(fed)["message"]
    found = act(fed, name, dryRun=True)
    assert '+  files: {banner.txt: "better"}' in found["diff"]
    assert (found["state"], found["branch"], heads(fed)) == ("diff", "", {})


def test_a_git_server_that_hangs_holds_up_no_site_and_what_may_be_a_secret_stays(fed: Federation) -> None:
    source(fed, proposals={})
    pushed(fed, {"web.yaml": FILE.replace("drift: propose", 'drift: propose\n  stopGrace: 1'),
                 "db.yaml": service("db", drift="propose", files='{a: "1"}')})  # fmt: skip
    fed.until_ready("Service", "web", "alpha")
    fed.until_ready("Service", "db", "alpha")
    by_name = {i["spec"]["service"]: i["status"]["unit"] for i in (*fed.instances("web"), *fed.instances("db"))}
    hosts = {u.id: h for h in fed.hosts.values() for u in h.look().units}
    hosts[by_name["db"]].edit_file(by_name["db"], "a", "-----BEGIN PRIVATE KEY-----")

    def secret() -> Any:
        (instance,) = fed.instances("db")
        found = condition(instance, "Drift")
        return found if found["reason"] == "Proposed" else None

    found = fed.until(secret, "it is told")
    assert "it may be a secret: no branch is made by itself" in found["message"]
    assert "PRIVATE" not in found["message"]
    assert not heads(fed)

    fed.repositories.silent = "lost"
    hosts[by_name["web"]].edit_file(by_name["web"], "banner.txt", "better")
    fed.until(lambda: "cannot be proposed" in drift(fed)["message"], "it is said")
    assert drift(fed)["reason"] == "Proposing"
    assert fed.ready("Service", "web", "alpha")[0] == "True"
    assert not [e for e in fed.events("DriftProposed") if e["name"].startswith("web")]


def act(fed: Federation, name: str, **body: Any) -> Doc:
    """`ground diff --proposed instance NAME`, as the operator ada."""
    from groundcontrol.kernel.rights import Subject

    fed.apply("RoleBinding", "ada", {"role": "admin", "subjects": ["user:ada"]})
    action = backend(fed.runtime).actions[("Instance", "propose")]
    (found,) = action(Subject.user("ada"), Key("Instance", "alpha", name), body)["proposals"]
    return dict(found)
