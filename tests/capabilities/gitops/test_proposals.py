"""Proposals of a Source: the text and its diff, who may see what of a shared file, the branch, and what is recorded."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.capabilities.gitops import proposals
from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.logic import declared_in
from groundcontrol.capabilities.gitops.proposals import Desk, Wanted, changed_text, shown_lines, unified
from groundcontrol.capabilities.gitops.reconcile import offer
from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, Invalid, NotFound, OutcomeUnknown, TooMany
from groundcontrol.kernel.manifest import load_documents
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from tests.capabilities.gitops.tiny import KINDS
from tests.federation import Federation, federation
from tests.stories.conftest import REPOSITORY, pushed, source

# ── the text and the diff ───────────────────────────────────────────────────────────────────────────────────────────

SHARED = textwrap.dedent("""\
    # Everybody's things.
    apiVersion: ground/v1
    kind: Thing
    metadata: {name: a, namespace: alpha}
    spec: {replicas: 1}
    # beta's password is in the drawer
    ---
    # of beta
    apiVersion: ground/v1
    kind: Thing
    metadata: {name: b, namespace: beta}
    spec:
      words: [secret]
      replicas: 2
    # the end of beta
    ---
    apiVersion: ground/v1
    kind: Thing
    metadata: {name: c, namespace: alpha}
    spec:
      memory_mb: 5 # enough
    """)


def thing(name: str, namespace: str = "alpha", text: str = SHARED) -> Doc:
    """As it is stored when the file is applied."""
    for document in load_documents(text, ""):
        declared = declared_in(document, KINDS, "")
        if declared.key == Key("Thing", namespace, name):
            return declared.doc
    raise AssertionError(name)


def wish(doc: Doc, **spec: Any) -> Wanted:
    return Wanted(doc, {**doc, "spec": {**doc["spec"], **spec}})


def members(*namespaces: str) -> Any:
    return lambda verb, key, labels: key.namespace in namespaces


def test_the_diff_shows_nothing_of_others() -> None:
    old = SHARED.encode()
    both = [wish(thing("a"), replicas=3), wish(thing("c"), memoryMb=6)]
    new = old
    for wanted in both:
        new, edits = changed_text(new, wanted, KINDS, "", "x.yaml", members("alpha"))
        assert edits
    own = [w.key for w in both]
    shown = shown_lines(old, own, KINDS, "", members("alpha"))
    diff = unified(old.decode(), new.decode(), "x.yaml", shown)
    assert diff == textwrap.dedent("""\
        --- a/x.yaml
        +++ b/x.yaml
        @@ -2,4 +2,4 @@
         apiVersion: ground/v1
         kind: Thing
         metadata: {name: a, namespace: alpha}
        -spec: {replicas: 1}
        +spec: {replicas: 3}
        @@ -18,4 +18,4 @@
         kind: Thing
         metadata: {name: c, namespace: alpha}
         spec:
        -  memory_mb: 5 # enough
        +  memory_mb: 6 # enough
        """)
    whole = unified(old.decode(), new.decode(), "x.yaml", shown_lines(old, own, KINDS, "", members("alpha", "beta")))
    assert " # beta's password" in whole
    assert "words" not in whole, "three lines around, no more"


def test_lines_between_two_own_documents_are_hidden_too() -> None:
    places = (("a", "alpha"), ("b", "beta"), ("c", "alpha"))
    head = "apiVersion: ground/v1, kind: Thing"
    text = "---\n".join(
        f"{{{head}, metadata: {{name: {n}, namespace: {s}}}, spec: {{replicas: 1}}}}\n" for n, s in places
    )
    new = text.encode()
    for name in "ac":
        new, _ = changed_text(new, wish(thing(name, text=text), replicas=9), KINDS, "", "x", members("alpha"))
    shown = shown_lines(text.encode(), [Key("Thing", "alpha", n) for n in "ac"], KINDS, "", members("alpha"))
    diff = unified(text, new.decode(), "x", shown)
    assert diff.count("@@ ") == 2
    assert "beta" not in diff


def test_a_document_that_cannot_be_read_is_nobody_s_to_see() -> None:
    text = SHARED.replace("replicas: 2", "replicaz: 2").replace("namespace: beta", "namespace: alpha")
    new, _ = changed_text(text.encode(), wish(thing("a"), replicas=3), KINDS, "", "x", members("alpha"))
    diff = unified(text, new.decode(), "x", shown_lines(text.encode(), [thing_key("a")], KINDS, "", members("alpha")))
    assert "beta" not in diff


def thing_key(name: str) -> Key:
    return Key("Thing", "alpha", name)


def test_a_diff_can_be_applied_by_others(tmp_path: Path) -> None:
    old = "".join(f"{n}\n" for n in range(60)) + "last"
    new = old.replace("10\n", "ten\n").replace("11\n", "").replace("40\n", "40\n40a\n").replace("last", "end")
    (tmp_path / "f").write_text(old)
    diff = unified(old, new, "f", lambda n: True)
    done = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f").read_text() == new


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("kind: Thing\n", Conflict, "does not declare Thing alpha/a"),
        (SHARED.replace("replicas: 1", "replicaz: 1"), Conflict, "a document of it is wrong: unknown field"),
        (SHARED + "---\n" + SHARED, Conflict, "twice"),
        ("{", Invalid, "not YAML"),
        (SHARED.replace("{replicas: 1}", "&s {replicas: 1}") + "---\n", None, ""),
        ("x: &s {replicas: 1}\n", Conflict, "does not declare"),
    ],
)
def test_files_that_cannot_say_it(text: str, error: type[GroundError] | None, why: str) -> None:
    wanted = wish(thing("a"), replicas=3)
    if error is None:
        assert changed_text(text.encode(), wanted, KINDS, "", "x")[1]
        return
    with pytest.raises(error, match=why):
        changed_text(text.encode(), wanted, KINDS, "", "x")


def test_the_document_of_the_newest_commit_is_judged_by_its_labels() -> None:
    text = SHARED.replace("{name: a, ", "{name: a, labels: {state: closed}, ")
    may = lambda verb, key, labels: labels.get("state") != "closed"  # noqa: E731
    with pytest.raises(Forbidden, match="not yours to change"):
        changed_text(text.encode(), wish(thing("a"), replicas=3), KINDS, "", "x", may)


# ── a Source ────────────────────────────────────────────────────────────────────────────────────────────────────────

SERVICES = textwrap.dedent("""\
    # The web of alpha.
    apiVersion: ground/v1
    kind: Service
    metadata: {name: web, namespace: alpha}
    spec:
      sample: web
      replicas: 0   # not yet
      ports: {http: 80}
    ---
    # not for alpha's eyes
    apiVersion: ground/v1
    kind: Service
    metadata: {name: db, namespace: beta}
    spec:
      sample: tcp
      replicas: 0
      ports: {sql: 5432}
    """)
GRACE = Subject.user("grace")


@pytest.fixture
def fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setattr(proposals, "FRESH", -1.0)
    with federation(tmp_path) as found:
        found.sites("cnaf")
        found.apply("Namespace", "beta", {"group": "experiments/beta"})
        for name, place in (("grace", "alpha"), ("bob", "beta")):
            found.apply("Account", name, {})
            where = {"role": "member", "subjects": [f"user:{name}"], "selector": {"namespaces": [place]}}
            found.apply("RoleBinding", name, where)
        source(found, proposals={})
        pushed(found, {"services.yaml": SERVICES, "other.yaml": SERVICES.replace("name: ", "name: o-")})
        found.until_ready("Source", "platform")
        yield found


def web(fed: Federation, name: str = "web", **spec: Any) -> tuple[Doc, Doc]:
    old = fed.get("Service", name, "alpha") or {}
    return old, {**old, "spec": {**old["spec"], **spec}}


def heads(fed: Federation) -> dict[str, str]:
    return fed.repositories.branches[REPOSITORY]


def facts(fed: Federation, dataset: str) -> list[Doc]:
    return [f for f in fed.runtime._pull(0, 10_000) if f["dataset"] == dataset]


def test_a_proposal_is_a_branch_with_one_commit(fed: Federation) -> None:
    before = dict(heads(fed))
    (found,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)
    assert found["branch"].startswith("ground/service-alpha-web-")
    assert (found["state"], found["files"], found["base"]) == ("pushed", ["services.yaml"], before["main"])
    assert heads(fed) == {**before, found["branch"]: found["commit"]}
    assert "+  replicas: 2   # not yet" in found["diff"]
    assert "db" not in found["diff"]
    assert "not for alpha" not in found["diff"]
    here = fed.repositories
    here.fetch(REPOSITORY, found["branch"])
    ((path, entry),) = here.diff(REPOSITORY, before["main"], found["commit"]).changed.items()
    assert path == "services.yaml"
    assert here.read(REPOSITORY, entry.blob).decode() == SERVICES.replace("replicas: 0   #", "replicas: 2   #")
    assert here.log(REPOSITORY, found["commit"], 1)[0].subject == "Service alpha/web: replicas"
    assert (fed.get("Service", "web", "alpha") or {})["spec"]["replicas"] == 0, "nothing changes here"
    told = [f for f in facts(fed, "audit") if f["verb"] == "propose"]
    assert [(f["subject"], f["outcome"]) for f in told] == [("user:grace", "asked"), ("user:grace", "done")]
    assert told[1]["detail"]["branch"] == found["branch"]
    (event,) = fed.events("Proposed")
    assert (event["name"], found["branch"] in event["message"]) == ("web", True)


def test_the_same_proposal_is_one_branch_whatever_was_pushed_meanwhile(fed: Federation) -> None:
    (first,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)
    (again,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)
    assert (again["state"], again["commit"]) == ("exists", first["commit"])
    pushed(fed, {"more.yaml": "# nothing\n"})
    (later,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)
    assert (later["state"], later["branch"], later["commit"]) == ("exists", first["branch"], first["commit"])
    (other,) = offer(fed.runtime, GRACE, [web(fed, replicas=3)], False)
    assert other["branch"] != first["branch"]
    assert len(fed.repositories.pushes) == 2
    assert len(fed.events("Proposed")) == 2


def test_looking_often_fetches_seldom(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "FRESH", 1000.0)
    fed.settled()
    before = len(fed.repositories.fetches)
    for replicas in range(1, 6):
        offer(fed.runtime, GRACE, [web(fed, replicas=replicas)], True)
    assert len(fed.repositories.fetches) <= before + 2, "one, and perhaps the Source's own"


def test_a_dry_run_leaves_no_trace(fed: Federation) -> None:
    (found,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], True)
    assert (found["state"], found["commit"]) == ("diff", "")
    assert found["branch"], "what it would be called"
    assert set(heads(fed)) == {"main"}
    assert not [f for f in facts(fed, "audit") if f["verb"] == "propose"]
    (real,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)
    assert (real["branch"], real["digest"], real["diff"]) == (found["branch"], found["digest"], found["diff"])


def test_a_source_that_takes_no_branches_gives_a_diff(fed: Federation) -> None:
    source(fed)
    (found,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)
    assert (found["state"], found["branch"], "+  replicas: 2" in found["diff"]) == ("diff", "", True)
    assert set(heads(fed)) == {"main"}


def test_what_the_file_says_already_is_not_proposed(fed: Federation) -> None:
    fed.apply("Source", "platform", {"repository": REPOSITORY, "suspend": True, "proposals": {}})
    fed.repositories.push(REPOSITORY, {"services.yaml": SERVICES.replace("replicas: 0   #", "replicas: 2   #")})
    (found,) = offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)
    assert (found["state"], found["diff"], found["branch"], found["files"]) == ("unchanged", "", "", [])
    assert set(heads(fed)) == {"main"}


def test_several_resources_are_one_proposal(fed: Federation) -> None:
    (found,) = offer(fed.runtime, GRACE, [web(fed, replicas=2), web(fed, "o-web", replicas=3)], False)
    assert found["files"] == ["other.yaml", "services.yaml"]
    assert found["diff"].index("other.yaml") < found["diff"].index("services.yaml")
    assert "and-1-more" in found["branch"]


def test_a_push_whose_answer_is_lost_is_found_by_proposing_again(fed: Federation) -> None:
    for silent in ("late", "lost"):
        fed.repositories.silent = silent
        wish = web(fed, replicas=2 if silent == "late" else 3)
        with pytest.raises(OutcomeUnknown):
            offer(fed.runtime, GRACE, [wish], False)
        assert facts(fed, "audit")[-1]["outcome"] == "failed"
        (found,) = offer(fed.runtime, GRACE, [wish], False)
        assert found["state"] == ("exists" if silent == "late" else "pushed")
        assert heads(fed)[found["branch"]] == found["commit"]
    assert len(heads(fed)) == 3


def test_no_more_branches_than_the_source_takes(fed: Federation) -> None:
    source(fed, proposals={"most": 2, "branchPrefix": "p-"})
    for replicas in (2, 3):
        offer(fed.runtime, GRACE, [web(fed, replicas=replicas)], False)
    with pytest.raises(TooMany, match=r"spec\.proposals\.most"):
        offer(fed.runtime, GRACE, [web(fed, replicas=4)], False)
    assert offer(fed.runtime, GRACE, [web(fed, replicas=3)], False)[0]["state"] == "exists"


def test_who_lost_the_right_meanwhile_pushes_nothing(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = web(fed, replicas=2)
    prepare = Desk.prepare

    def slow(*given: Any) -> Any:
        found = prepare(*given)
        fed.delete("RoleBinding", "grace")
        return found

    monkeypatch.setattr(Desk, "prepare", slow)
    with pytest.raises((Forbidden, NotFound)):
        offer(fed.runtime, GRACE, [wish], False)
    assert not fed.repositories.pushes


def test_what_is_declared_by_nobody_or_gone_is_said(fed: Federation) -> None:
    fed.service("own", replicas=0)
    with pytest.raises(Conflict, match="declared by no Source"):
        offer(fed.runtime, GRACE, [web(fed, "own", replicas=2)], True)
    fed.apply("Source", "platform", {"repository": REPOSITORY, "suspend": True})
    wish = web(fed, replicas=2)
    fed.repositories.push(REPOSITORY, {}, remove=["services.yaml"])
    with pytest.raises(NotFound, match=r"no file services\.yaml in branch main"):
        offer(fed.runtime, GRACE, [wish], True)
    fed.delete("Source", "platform")
    with pytest.raises(NotFound, match="Source platform"):
        offer(fed.runtime, GRACE, [wish], True)


def test_a_link_of_that_name_is_not_followed(fed: Federation) -> None:
    fed.apply("Source", "platform", {"repository": REPOSITORY, "suspend": True, "proposals": {}})
    wish = web(fed, replicas=2)
    fed.repositories.push(REPOSITORY, {}, remove=["services.yaml"])
    fed.repositories.special(REPOSITORY, "services.yaml", 0o120000)
    with pytest.raises(NotFound):
        offer(fed.runtime, GRACE, [wish], False)


def test_what_nobody_signed_is_not_built_upon(fed: Federation) -> None:
    signers = {"signatures": "ssh", "allowedSigners": "ada@example.org ssh-ed25519 AAAA"}
    source(fed, proposals={}, verify=signers)
    with pytest.raises(Forbidden, match="is not applied"):
        offer(fed.runtime, GRACE, [web(fed, replicas=2)], False)


@pytest.mark.parametrize("prefix", ["", "/", "a b/", "../", "-x/", "a//b/", "ground"])
def test_prefixes_that_are_none(prefix: str) -> None:
    with pytest.raises(ValueError, match="proposals"):
        spec(proposals={"branchPrefix": prefix})


@pytest.mark.parametrize("author", ["ada", "<a@b>", "a\nb <a@b>", "a <b>", "a <b@c> <d@e>"])
def test_authors_that_are_none(author: str) -> None:
    with pytest.raises(ValueError, match="proposals"):
        spec(proposals={"author": author})


def test_the_branch_that_is_applied_is_not_among_the_proposed() -> None:
    with pytest.raises(ValueError, match="what is proposed would be applied"):
        spec(branch="ground/main", proposals={})
    spec(branch="ground/main", proposals={"branchPrefix": "proposed/"})


def spec(**given: Any) -> Source:
    return Source.model_validate(
        {"kind": "Source", "metadata": {"name": "s"}, "spec": {"repository": REPOSITORY, **given}}
    )
