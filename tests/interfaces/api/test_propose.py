"""Proposing changes through the API: judged as the change itself, checked, and handed on as (is, should be)."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from groundcontrol.kernel.errors import OutcomeUnknown
from groundcontrol.kernel.resource import Key
from tests.interfaces.api.installation import PROPOSAL, Installation

SOURCE = "source:platform"


@pytest.fixture(autouse=True)
def declared(here: Installation) -> None:
    """A Note that a file declares, one field of it set by bob."""
    here.make("Source", "platform", url="https://git.example.org/platform.git")
    declare(here)


def declare(here: Installation, **labels: str) -> None:
    here.make("Note", "one", "alpha", labels, manager=SOURCE, text="as written", size=1, tags=["a"])
    marks = {"ground/source": "platform", "ground/file": "alpha.yaml"}
    here.store.write(lambda tx: tx.touch(Key("Note", "alpha", "one"), marks))


def note(spec: Any, **meta: Any) -> dict[str, Any]:
    meta = {"name": "one", "namespace": "alpha", **meta}
    return {"apiVersion": "ground/v1", "kind": "Note", "metadata": meta, "spec": spec}


def propose(client: TestClient, *documents: Any, query: str = "", **more: Any) -> Any:
    return client.post(f"/api/v1/propose{query}", json={"documents": documents, **more})


def test_what_is_refused_as_a_change_is_taken_as_a_proposal(here: Installation, ada: TestClient) -> None:
    answer = ada.post("/api/v1/apply", json={"documents": [note({"text": "other"})]})
    assert answer.status_code == 409
    assert "ground apply --propose" in answer.json()["error"]["problems"][0]["remedy"]
    before = here.store.sequence
    answer = propose(ada, note({"text": "other"}))
    assert (answer.status_code, answer.json()) == (200, {"proposals": [PROPOSAL]})
    ((verb, who, [(old, new)], dry),) = here.calls
    assert (verb, who, dry) == ("propose", "user:ada", False)
    assert old["spec"] == {"text": "as written", "size": 1, "tags": ["a"]}
    assert new["spec"] == {"text": "other", "size": 1, "tags": ["a"]}, "what it does not say stays"
    assert new["metadata"]["annotations"] == old["metadata"]["annotations"]
    assert here.store.sequence == before, "nothing changes here"


def test_a_whole_document_returns_what_it_leaves_out(here: Installation, ada: TestClient) -> None:
    answer = propose(ada, note({"text": "other"}), query="?dryRun=true", whole=True)
    assert answer.headers["x-ground-dry-run"] == "true"
    ((_, _, [(_, new)], dry),) = here.calls
    assert (new["spec"], dry) == ({"text": "other", "size": 0, "tags": []}, True)


def test_who_may_not_change_it_may_not_propose(here: Installation, sign_in: Any) -> None:
    for person, status in (("bob", 404), ("vic", 403), ("nobody", 404)):
        assert propose(sign_in(person), note({"text": "x"})).status_code == status, person
    assert propose(sign_in("ada", "read"), note({"text": "x"})).status_code == 403
    assert not here.calls


def test_the_new_state_is_judged_too(here: Installation, root: TestClient, sign_in: Any) -> None:
    """Ada may change notes labelled open: not by proposing to close one."""
    here.make("RoleBinding", "open", role="member", subjects=["user:nobody"],
              selector={"namespaces": ["alpha"], "labels": "state=open"})  # fmt: skip
    assert propose(sign_in("nobody"), note({"text": "x"})).status_code == 404
    here.remove("Note", "one", "alpha")
    declare(here, state="open")
    assert propose(sign_in("nobody"), note({"text": "x"})).status_code == 200
    assert propose(sign_in("nobody"), note({"text": "x"}, labels={"state": "closed"})).status_code in (403, 404)
    assert len(here.calls) == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"documents": []}, 422, "1 to 100"),
        ({"documents": [note({})] * 101}, 422, "1 to 100"),
        ({"documents": [note({}), note({"text": "x"})]}, 422, "twice"),
        ({"documents": [note({"txet": "x"})]}, 422, "did you mean"),
        ({"documents": [note({"text": "x"}, name="two")]}, 404, "there is no Note alpha/two"),
        ({"documents": [note({"text": "x"}, resourceVersion=1)]}, 409, "changed meanwhile"),
        ({"documents": [note({"text": "x"}, uid="other")]}, 409, "made anew"),
        ({"documents": [note({"text": "x"}, annotations={"ground/source": "mine"})]}, 422, "set by the server"),
        ({"documents": [note({"text": "x"})], "whole": "yes"}, 422, "true or false"),
        ({"documents": [note({"text": "x"})], "force": True}, 422, "force"),
        ({"documents": "x"}, 422, "list"),
    ],
)
def test_what_is_wrong_is_said(here: Installation, ada: TestClient, body: Any, status: int, said: str) -> None:
    answer = ada.post("/api/v1/propose", json=body)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
    assert not here.calls


def test_a_field_that_a_person_set_is_not_for_the_file(here: Installation, ada: TestClient) -> None:
    assert ada.patch("/api/v1/namespaces/alpha/notes/one", json={"metadata": {"labels": {"a": "b"}}},
                     headers={"content-type": "application/merge-patch+json"}).status_code == 200  # fmt: skip
    answer = propose(ada, note({"text": "x"}, labels={"a": "c"}))
    assert answer.status_code == 409
    assert "metadata.labels is set by user:ada and by no file" in answer.text


def test_a_push_without_an_answer_is_told_as_that(here: Installation, ada: TestClient) -> None:
    def unsure(*_: Any) -> Any:
        raise OutcomeUnknown("it may have come or not; look first")

    here.backend.propose = unsure
    answer = propose(ada, note({"text": "x"}))
    assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "OutcomeUnknown")
    here.backend.propose = None
    assert propose(ada, note({"text": "x"})).status_code == 503
