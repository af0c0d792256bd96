"""Creating, changing, deleting and listing through the API: what comes back, who sets which field, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from groundcontrol.kernel.resource import Doc
from tests.interfaces.api.installation import Installation

NOTES = "/api/v1/namespaces/alpha/notes"


def note(name: str = "n", **spec: Any) -> Doc:
    return {"metadata": {"name": name}, "spec": spec}


def error(answer: Any) -> Doc:
    found: Doc = answer.json()["error"]
    return found


def test_the_life_of_a_resource(ada: TestClient) -> None:
    made = ada.post(NOTES, json=note(text="a"))
    assert made.status_code == 201
    version = made.json()["metadata"]["resourceVersion"]
    assert made.headers["x-ground-event"] == str(version)
    assert made.json()["metadata"]["managers"] == {"spec.text": "user:ada"}
    assert ada.post(NOTES, json=note()).status_code == 409
    assert ada.get(f"{NOTES}/n").json() == made.json()
    replaced = ada.put(f"{NOTES}/n", json={"metadata": {"labels": {"a": "b"}}, "spec": {"size": 3}}).json()
    assert (replaced["spec"]["text"], replaced["spec"]["size"], replaced["metadata"]["generation"]) == ("", 3, 2)
    patched = ada.patch(
        f"{NOTES}/n", json={"spec": {"text": "b"}, "metadata": {"labels": {"a": None, "c": "d"}}}
    ).json()
    assert (patched["spec"]["text"], patched["spec"]["size"], patched["metadata"]["labels"]) == ("b", 3, {"c": "d"})
    assert ada.delete(f"{NOTES}/n").status_code == 200
    assert error(ada.get(f"{NOTES}/n"))["reason"] == "NotFound"


def test_a_lost_update_is_refused(ada: TestClient) -> None:
    first = ada.post(NOTES, json=note()).json()
    ada.patch(f"{NOTES}/n", json={"spec": {"size": 1}})
    for call, body in (
        (ada.put, {**first, "spec": {"size": 2}}),
        (ada.patch, {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "spec": {"size": 2}}),
    ):
        assert error(call(f"{NOTES}/n", json=body))["reason"] == "Conflict"
    other = {"metadata": {"uid": "another"}, "spec": {}}
    assert error(ada.put(f"{NOTES}/n", json=other))["reason"] == "Conflict"
    assert ada.get(f"{NOTES}/n").json()["spec"]["size"] == 1


def test_the_path_fills_and_binds(ada: TestClient) -> None:
    wrong = [
        {**note(), "kind": "Service"},
        {"metadata": {"name": "n", "namespace": "beta"}, "spec": {}},
        {**note(), "apiVersion": "ground/v9"},
        {**note(), "more": 1},
        {"metadata": {"name": "n", "lables": {}}, "spec": {}},
        {"metadata": {"name": "N!"}, "spec": {}},
        {"metadata": [], "spec": {}},
        note(size="3"),
        [],
    ]
    for body in wrong:
        assert ada.post(NOTES, json=body).status_code == 422, body
    ada.post(NOTES, json=note())
    assert ada.put(f"{NOTES}/n", json={"spec": {}}).status_code == 422
    ada.delete(f"{NOTES}/n")
    misspelt = error(ada.post(NOTES, json=note(txt="a")))
    assert misspelt["problems"][0]["path"] == "spec.txt"
    assert "text" in misspelt["problems"][0]["remedy"]


def test_a_dry_run_answers_and_writes_nothing(here: Installation, ada: TestClient) -> None:
    ada.post(NOTES, json=note(text="a"))
    sequence, facts = here.store.sequence, here.store.fact_sequence
    for method, path, body in (
        ("POST", NOTES, note("other")),
        ("PUT", f"{NOTES}/n", {"metadata": {}, "spec": {"size": 7}}),
        ("PATCH", f"{NOTES}/n", {"spec": {"size": 7}}),
        ("DELETE", f"{NOTES}/n", None),
        ("POST", "/api/v1/apply", {"documents": [{"apiVersion": "ground/v1", "kind": "Note", **note("b"),
                                                  "metadata": {"name": "b", "namespace": "alpha"}}]}),
    ):  # fmt: skip
        answer = ada.request(method, f"{path}?dryRun=true", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ground-dry-run"] == "true"
        assert "x-ground-event" not in answer.headers
    assert (here.store.sequence, here.store.fact_sequence) == (sequence, facts)
    assert ada.post(f"{NOTES}?dryRun=true", json=note(size="x")).status_code == 422, "it is judged as the real one"
    assert ada.post(f"{NOTES}?dryRun=true", json=note()).status_code == 409


def test_a_refused_dry_run_is_refused(bob: TestClient) -> None:
    assert bob.post(f"{NOTES}?dryRun=true", json=note()).status_code == 404


def test_apply_is_all_or_nothing_and_says_which_document(ada: TestClient) -> None:
    def document(name: str, namespace: str = "alpha", **spec: Any) -> Doc:
        return {
            "apiVersion": "ground/v1",
            "kind": "Note",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }

    first = ada.post("/api/v1/apply", json={"documents": [document("a", text="x"), document("b")]}).json()["results"]
    assert [(r["key"], r["result"]) for r in first] == [("Note alpha/a", "created"), ("Note alpha/b", "created")]
    again = ada.post("/api/v1/apply", json={"documents": [document("a", text="y"), document("b")]}).json()["results"]
    assert [(r["result"], r["fields"]) for r in again] == [("changed", {"spec.text": ["x", "y"]}), ("unchanged", {})]
    wrong = ada.post(
        "/api/v1/apply", json={"documents": [document("c"), document("d", size=0.5), document("e", txt="")]}
    )
    assert [p["path"] for p in error(wrong)["problems"]] == ["documents.1.spec.size", "documents.2.spec.txt"]
    assert ada.get(f"{NOTES}/c").status_code == 404
    elsewhere = ada.post("/api/v1/apply", json={"documents": [document("c"), document("c", "beta")]})
    assert elsewhere.status_code == 404
    assert error(elsewhere)["problems"][0]["path"] == "documents.1"
    assert ada.get(f"{NOTES}/c").status_code == 404


def test_apply_leaves_alone_what_others_set_and_lets_go_of_its_own(root: TestClient, ada: TestClient) -> None:
    def document(**spec: Any) -> Doc:
        place = {"name": "n", "namespace": "alpha"}
        return {"documents": [{"apiVersion": "ground/v1", "kind": "Note", "metadata": place, "spec": spec}]}

    ada.post("/api/v1/apply", json=document(text="a", size=2))
    root.patch(f"{NOTES}/n", json={"spec": {"tags": ["x"]}})
    ada.post("/api/v1/apply", json=document(text="b"))
    found = ada.get(f"{NOTES}/n").json()
    assert found["spec"] == {"text": "b", "size": 0, "tags": ["x"]}
    assert found["metadata"]["managers"] == {"spec.text": "user:ada", "spec.tags": "user:root"}
    answer = ada.post("/api/v1/apply", json={**document(size=4), "manager": "scaler"}).json()
    assert answer["results"][0]["fields"] == {"spec.size": [0, 4]}
    assert ada.get(f"{NOTES}/n").json()["metadata"]["managers"]["spec.size"] == "scaler"
    for manager in ("source:platform", "server", "user:root", "A b", 3):
        assert ada.post("/api/v1/apply", json={**document(), "manager": manager}).status_code == 422


class TestWhatASourceSets:
    @pytest.fixture(autouse=True)
    def _declared(self, here: Installation) -> None:
        here.make("Source", "platform", url="https://git.example.org/platform.git")
        here.make("Note", "n", "alpha", manager="source:platform", text="declared", size=1)

        def mark(tx: Any) -> None:
            marks = {"ground/source": "platform", "ground/file": "https://git.example.org/platform.git#alpha/n.yaml:12"}
            key = here.store.entries("Note")[0].key
            tx.touch(key, marks)

        here.store.write(mark)

    @pytest.mark.parametrize(
        ("method", "body"),
        [
            ("PATCH", {"spec": {"size": 2}}),
            ("PUT", {"metadata": {}, "spec": {"text": "mine", "size": 1}}),
            ("DELETE", None),
        ],
    )
    def test_is_changed_in_its_repository(self, ada: TestClient, method: str, body: Any) -> None:
        refused = error(ada.request(method, f"{NOTES}/n", json=body))
        assert refused["reason"] == "Conflict"
        problem = refused["problems"][0]
        assert problem["file"] == "https://git.example.org/platform.git#alpha/n.yaml"
        assert problem["line"] == 12
        assert "alpha/n.yaml of https://git.example.org/platform.git" in problem["remedy"]
        assert "source:platform" in refused["message"]

    def test_may_be_sent_back_unchanged_and_stays_with_the_source(self, ada: TestClient) -> None:
        found = ada.get(f"{NOTES}/n").json()
        assert ada.put(f"{NOTES}/n", json=found).json()["metadata"]["managers"] == found["metadata"]["managers"]
        taken = ada.patch(f"{NOTES}/n", json={"metadata": {"labels": {"a": "b"}}})
        assert taken.status_code == 200
        assert taken.json()["metadata"]["managers"]["metadata.labels"] == "user:ada"
        assert taken.json()["metadata"]["annotations"]["ground/source"] == "platform"

    def test_marks_of_the_program_cannot_be_written(self, ada: TestClient) -> None:
        mark = {"metadata": {"annotations": {"ground/file": "elsewhere"}}}
        assert ada.patch(f"{NOTES}/n", json=mark).status_code == 422
        assert ada.post(NOTES, json={"metadata": {"name": "m", **mark["metadata"]}, "spec": {}}).status_code == 422

    def test_is_free_when_the_source_is_gone(self, here: Installation, ada: TestClient) -> None:
        here.remove("Source", "platform")
        assert ada.patch(f"{NOTES}/n", json={"spec": {"size": 2}}).status_code == 200
        assert ada.delete(f"{NOTES}/n").status_code == 200


def test_what_another_person_set_is_taken_over(root: TestClient, ada: TestClient) -> None:
    root.post(NOTES, json=note(text="a", size=1))
    managers = ada.patch(f"{NOTES}/n", json={"spec": {"size": 2}}).json()["metadata"]["managers"]
    assert managers == {"spec.text": "user:root", "spec.size": "user:ada"}


def test_internal_kinds_are_only_read(here: Installation, root: TestClient) -> None:
    assert root.post("/api/v1/namespaces/alpha/instances", json={}).status_code == 405
    template = {"service": "one", "site": "bari", "revision": "1", "template": {"sample": "web"}}
    document = {
        "apiVersion": "ground/v1",
        "kind": "Instance",
        "metadata": {"name": "i", "namespace": "alpha"},
        "spec": template,
    }
    assert root.post("/api/v1/apply", json={"documents": [document]}).status_code == 403


def test_a_namespace_goes_last(root: TestClient, ada: TestClient) -> None:
    ada.post(NOTES, json=note("first"))
    refused = error(root.delete("/api/v1/namespaces/alpha"))
    assert refused["reason"] == "Conflict"
    assert "Note alpha/first" in refused["message"]
    ada.delete(f"{NOTES}/first")
    assert root.delete("/api/v1/namespaces/alpha").status_code == 200


def test_nothing_is_made_in_a_namespace_that_is_not_there(root: TestClient) -> None:
    assert root.post("/api/v1/namespaces/alpah/notes", json=note()).status_code == 404


def test_actions_are_judged_audited_and_done(
    here: Installation, ada: TestClient, bob: TestClient, root: TestClient
) -> None:
    ada.post(NOTES, json=note())
    assert ada.post(f"{NOTES}/n/actions/shout", json={"loud": True}).json() == {"done": "shout"}
    assert ada.post(f"{NOTES}/n/actions/shout").status_code == 200, "an action needs no body"
    assert bob.post(f"{NOTES}/n/actions/shout").status_code == 404
    assert ada.post(f"{NOTES}/n/actions/whisper").status_code == 404
    here.backend.actions = {}
    assert error(ada.post(f"{NOTES}/n/actions/shout"))["reason"] == "Unavailable"
    audited = root.get("/api/v1/audit?verb=shout&subject=user:ada").json()["items"]
    assert [(a["subject"], a["outcome"]) for a in audited] == [("user:ada", "asked"), ("user:ada", "asked")]


def test_what_is_missing_is_said(here: Installation, root: TestClient) -> None:
    here.make("Service", "web", "alpha", sample="web")
    backend = here.backend
    backend.plans = backend.ledger = backend.log_reader = backend.hooks = backend.source_plan = backend.status = None
    for method, path, body in (
        ("GET", "/api/v1/plans", None),
        ("GET", "/api/v1/plans/x", None),
        ("POST", "/api/v1/ledger/query", {"dataset": "audit"}),
        ("GET", "/api/v1/namespaces/alpha/services/web/log", None),
        ("POST", "/hooks/gitlab/tree", {}),
        ("POST", "/api/v1/sources/plan", {"files": {}}),
        ("GET", "/api/v1/status", None),
    ):
        answer = root.request(method, path, json=body)
        assert answer.status_code == 503
        assert "assembled without" in error(answer)["message"]


class TestLists:
    @pytest.fixture
    def many(self, here: Installation) -> list[str]:
        names = [f"n{number:03}" for number in range(120)]
        for name in names:
            place = "alpha" if int(name[1:]) % 2 else "beta"
            here.make("Note", name, place, {"parity": name[-1]}, size=int(name[1:]))
        return names

    @staticmethod
    def pages(client: TestClient, path: str, between: Callable[[], Any] = lambda: None) -> list[str]:
        found, proceed = [], ""
        while True:
            answer = client.get(path, params={"limit": 7, "continue": proceed})
            assert answer.status_code == 200, answer.text
            found += [d["metadata"]["name"] for d in answer.json()["items"]]
            proceed = answer.json().get("continue", "")
            if not proceed:
                return found
            between()

    def test_pages_are_complete_and_in_order(self, many: list[str], root: TestClient, ada: TestClient) -> None:
        odd, even = many[1::2], many[::2]
        assert self.pages(root, "/api/v1/notes") == odd + even
        assert self.pages(ada, "/api/v1/notes") == odd
        assert self.pages(root, NOTES) == odd
        assert len(root.get("/api/v1/notes").json()["items"]) == 120
        assert len(root.get("/api/v1/notes?limit=120").json()["items"]) == 120
        assert "continue" not in root.get("/api/v1/notes?limit=120").json()

    def test_pages_stay_right_while_things_change(self, here: Installation, many: list[str], root: TestClient) -> None:
        steady = set(many)
        numbers = iter(range(1000))

        def change() -> None:
            number = next(numbers)
            here.make("Note", f"a{number}", "alpha")
            here.make("Note", f"z{number}", "beta")
            gone = f"n{number * 2 + 1:03}"
            here.remove("Note", gone, "alpha")
            steady.discard(gone)

        found = self.pages(root, "/api/v1/notes", change)
        assert len(found) == len(set(found)), "nothing comes twice"
        assert steady <= set(found), "nothing that stood all the time is missed"

    def test_selectors(self, many: list[str], root: TestClient) -> None:
        def names(**params: str) -> list[str]:
            return [d["metadata"]["name"] for d in root.get("/api/v1/notes", params=params).json()["items"]]

        assert set(names(labelSelector="parity in (1,2)")) == {n for n in many if n[-1] in "12"}
        assert names(fieldSelector="spec.size=17") == ["n017"]
        assert names(fieldSelector="metadata.name=n018,metadata.namespace=beta") == ["n018"]
        assert names(labelSelector="parity=1", fieldSelector="spec.size=2") == []
        assert root.get("/api/v1/notes", params={"labelSelector": "a b"}).status_code == 422

    def test_a_continue_of_another_list_is_refused(self, many: list[str], root: TestClient) -> None:
        proceed = root.get("/api/v1/notes?limit=5").json()["continue"]
        for path, params in (
            ("/api/v1/notes", {"continue": "x"}),
            ("/api/v1/notes", {"continue": "é"}),
            ("/api/v1/notes", {"continue": proceed, "labelSelector": "parity=1"}),
            (NOTES, {"continue": proceed}),
            ("/api/v1/sites", {"continue": proceed}),
        ):
            assert root.get(path, params=params).status_code == 422

    def test_a_forged_continue_shows_nothing_more(self, many: list[str], root: TestClient, ada: TestClient) -> None:
        proceed = root.get("/api/v1/notes?limit=70").json()["continue"]
        assert ada.get("/api/v1/notes", params={"continue": proceed, "limit": "70"}).json()["items"] == []

    def test_not_older_than(self, here: Installation, many: list[str], root: TestClient) -> None:
        assert root.get("/api/v1/notes", params={"notOlderThan": here.store.sequence}).status_code == 200
        refused = root.get("/api/v1/notes", params={"notOlderThan": here.store.sequence + 1})
        assert error(refused)["reason"] == "TooOld"

    def test_a_namespace_that_is_not_there_is_not_an_empty_one(self, root: TestClient, many: list[str]) -> None:
        refused = root.get("/api/v1/namespaces/alpah/notes")
        assert refused.status_code == 404
        assert 'did you mean "alpha"' in error(refused)["message"]


def test_managers_and_marks_are_not_taken_from_the_body(ada: TestClient) -> None:
    sent = note()
    sent["metadata"] |= {"managers": {"spec.text": "user:root"}, "finalizers": ["x"], "generation": 9}
    sent["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    made = ada.post(NOTES, json=sent).json()
    assert made["metadata"]["managers"] == {}
    assert made["metadata"]["finalizers"] == []
    assert made["status"]["conditions"] == []
    for wrong in (
        {"status": {}},
        {"apiVersion": True},
        {"kind": "Site"},
        {"metadata": {"generation": 1}},
        {"spec": None},
    ):
        assert ada.patch(f"{NOTES}/n", json=wrong).status_code == 422
