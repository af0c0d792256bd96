"""What strangers send: too much, too deep, half of something, and what they may learn from the answers."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from groundcontrol.interfaces.api import body, refusals
from groundcontrol.interfaces.api.app import create_app
from tests.interfaces.api.installation import PASSWORD, Installation

NOTES = "/api/v1/namespaces/alpha/notes"


def reason(answer: Any) -> str:
    return str(answer.json()["error"]["reason"])


BODIES: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"{", 422),
    "nothing": (b"", 422),
    "NUL": (b'{"metadata":{"name":"n"},"spec":{"text":"a\\u0000b"}}', 422),
    "NUL in a key": (b'{"metadata":{"name":"n","labels":{"a\\u0000":"b"}},"spec":{}}', 422),
    "half a surrogate": (b'{"metadata":{"name":"n"},"spec":{"text":"\\ud800"}}', 422),
    "the other half": (b'{"metadata":{"name":"n"},"spec":{"text":"\\udc00 "}}', 422),
    "not UTF-8": (b'{"metadata":{"name":"n"},"spec":{"text":"\xff"}}', 422),
    "NaN": (b'{"metadata":{"name":"n"},"spec":{"size":NaN}}', 422),
    "infinite": (b'{"metadata":{"name":"n"},"spec":{"size":1e999}}', 422),
    "beyond 64 bits": (b'{"metadata":{"name":"n"},"spec":{"size":99999999999999999999}}', 422),
    "deep": (b'{"a":' * 70 + b"1" + b"}" * 70, 422),
    "very deep": (b"[" * 200_000, 422),
    "a byte order mark": (b"\xef\xbb\xbf{}", 422),
    "text": (b'"text"', 422),
    "large": (b'{"metadata":{"name":"n"},"spec":{"text":"' + b"x" * (2 << 20) + b'"}}', 413),
}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("case", BODIES)
def test_bodies(ada: TestClient, case: str, method: str) -> None:
    raw, status = BODIES[case]
    path = NOTES if method == "POST" else f"{NOTES}/n"
    media = "application/merge-patch+json" if method == "PATCH" else "application/json"
    answer = ada.request(method, path, content=raw, headers={"content-type": media})
    assert answer.status_code == status, answer.text
    assert reason(answer) in ("Invalid", "TooLarge")


@pytest.mark.parametrize("path", ["/api/v1/login", "/api/v1/tokens", "/api/v1/apply", "/api/v1/ledger/query",
                                  "/api/v1/sources/plan", "/api/v1/plans/p/alpha/approve"])  # fmt: skip
def test_other_bodies(ada: TestClient, path: str) -> None:
    for raw, status in BODIES.values():
        if raw or path != "/api/v1/tokens":
            assert ada.post(path, content=raw, headers={"content-type": "application/json"}).status_code == status


def test_a_streamed_body_is_bounded_while_it_comes(here: Installation, port: int) -> None:
    """No Content-Length, and the server does not wait for the end of what is too much."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", NOTES)
    connection.putheader("authorization", f"Bearer {here.token('ada')}")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    sent = 0
    try:
        for _ in range(200):
            connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536
    except OSError:
        pass
    try:
        assert connection.getresponse().status == 413
    except (http.client.HTTPException, OSError):
        assert sent < 200 * 65536, "the connection was cut"
    connection.close()


def test_another_media_type_is_refused(ada: TestClient) -> None:
    raw = json.dumps({"metadata": {"name": "n"}, "spec": {}}).encode()
    assert ada.post(NOTES, content=raw, headers={"content-type": "text/plain"}).status_code == 422
    assert ada.post(NOTES, content=raw, headers={"content-type": "application/json; charset=utf-8"}).status_code == 201


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/api/v1/sites?limt=3", "limit"),
        ("/api/v1/sites?limit=0", "whole number"),
        ("/api/v1/sites?limit=5001", "whole number"),
        ("/api/v1/sites?limit=1&limit=2", "once"),
        ("/api/v1/sites?limit=%EF%BC%91", "whole number"),
        ("/api/v1/sites?labelSelector=%00", "NUL"),
        ("/api/v1/watch?since=-1", "whole number"),
        ("/api/v1/events?since=yesterday", "write 2030"),
        ("/api/v1/whoami?x=1", "none"),
        ("/api/v1/plans?state=hold", "held"),
        ("/api/v1/namespaces/alpha/notes/n?dryRun=true", "notOlderThan"),
    ],
)
def test_wrong_questions_are_answered_with_what_to_do(root: TestClient, path: str, remedy: str) -> None:
    answer = root.get(path)
    assert answer.status_code == 422
    assert remedy in answer.json()["error"]["problems"][0]["remedy"]


def test_wrong_ways_in(root: TestClient) -> None:
    for path in (
        "/",
        "/api",
        "/api/v1/",
        "/api/v1/sites/",
        "/api/v2/sites",
        "/api/v1/sites/a/b",
        "/docs",
        "/%00",
        "/é",
    ):
        answer = root.get(path)
        assert (answer.status_code, reason(answer)) == (404, "NotFound"), path
    for path in ("/api/v1/sites/%00", "/api/v1/sites/..%2F..%2Fetc", "/api/v1/sites/" + "x" * 5000):
        assert root.get(path).status_code == 404
    wrong = root.request("BREW", "/api/v1/sites")
    assert (wrong.status_code, reason(wrong), wrong.headers["allow"]) == (405, "MethodNotAllowed", "GET, HEAD, POST")
    assert root.head("/api/v1/sites").status_code == 200
    assert root.head("/api/v1/watch").status_code == 405, "it has no end"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic cm9vdDpyb290", "Bearer gct_nope", "Bearer \xff", "x" * 5000]
)
def test_wrong_credentials(anybody: TestClient, header: str) -> None:
    answer = anybody.get("/api/v1/whoami", headers={"authorization": header.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_every_answer_has_the_headers(root: TestClient, anybody: TestClient) -> None:
    for answer in (
        root.get("/api/v1/sites"),
        anybody.get("/api/v1/sites"),
        root.get("/nowhere"),
        root.post("/api/v1/whoami"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_host_header_is_not_believed(root: TestClient) -> None:
    answer = root.get("/api/v1/sites", headers={"host": "evil.example.org"})
    assert answer.status_code == 200
    assert "evil" not in str(answer.headers) + answer.text


def test_a_defect_is_told_without_its_details(here: Installation, anybody: TestClient) -> None:
    def broken(subject: Any) -> Any:
        raise RuntimeError("the password is hunter2")

    here.backend.status = broken
    answer = anybody.get("/api/v1/status", headers={"authorization": f"Bearer {here.token('ada')}"})
    assert answer.status_code == 500
    assert "hunter2" not in answer.text


class TestTheBoundsOfTenants:
    """What bob, of beta, learns of alpha."""

    @pytest.fixture(autouse=True)
    def _secret(self, here: Installation) -> None:
        here.make("Note", "secret", "alpha", text="of alpha")

    def test_there_and_not_there_look_alike(self, bob: TestClient) -> None:
        def answers(namespace: str, name: str) -> list[Any]:
            base = f"/api/v1/namespaces/{namespace}/notes"
            calls = [
                bob.get(f"{base}/{name}"), bob.get(base), bob.delete(f"{base}/{name}"),
                bob.patch(f"{base}/{name}", json={"spec": {"size": 1}}),
                bob.put(f"{base}/{name}", json={"metadata": {}, "spec": {}}),
                bob.post(base, json={"metadata": {"name": name}, "spec": {}}),
                bob.post(f"{base}/{name}/actions/shout"),
                bob.get(f"/api/v1/watch?namespace={namespace}&kinds=notes"),
                bob.get(f"/api/v1/namespaces/{namespace}"),
                bob.post("/api/v1/apply", json={"documents": [{"apiVersion": "ground/v1", "kind": "Note", "spec": {},
                                                              "metadata": {"name": name, "namespace": namespace}}]}),
            ]  # fmt: skip
            return [(c.status_code, c.text.replace(namespace, "NS").replace(name, "NAME")) for c in calls]

        assert answers("alpha", "secret") == answers("atlantis", "nothing")
        assert all(status == 404 for status, _ in answers("alpha", "secret"))

    def test_lists_history_and_hints_tell_nothing(self, bob: TestClient) -> None:
        paths = [f"/api/v1/{what}" for what in ("notes", "namespaces", "events", "audit", "plans")]
        paths += ["/api/v1/events?namespace=alpha", "/api/v1/audit?namespace=alpha", "/api/v1/namespaces/alph"]
        paths += ["/api/v1/events?kind=Note&name=secret"]
        for path in paths:
            answer = bob.get(path)
            text = answer.text.replace("/api/v1/namespaces/alph", "").replace("Namespace alph", "")
            assert "alpha" not in text, (path, text)
            assert "secret" not in answer.text

    def test_the_ledger_is_asked_for_what_they_may_see(self, bob: TestClient, root: TestClient) -> None:
        question = {"dataset": "audit"}
        assert bob.post("/api/v1/ledger/query", json=question).json()["rows"] == [[["beta"]]]
        assert root.post("/api/v1/ledger/query", json=question).json()["rows"] == [[None]]


class TestAudit:
    def test_changes_are_in_it_without_secrets(self, here: Installation, root: TestClient, ada: TestClient) -> None:
        env = {"DB_PASSWORD": "hunter2", "MODE": "fast", "URL": "https://me:hunter2@example.org"}
        made = {"metadata": {"name": "web"}, "spec": {"sample": "web", "env": env, "secretEnv": {"A": "secret:db/a"}}}
        assert ada.post("/api/v1/namespaces/alpha/services", json=made).status_code == 201
        (item,) = root.get("/api/v1/audit?kind=Service").json()["items"]
        assert (item["subject"], item["verb"], item["outcome"]) == ("user:ada", "create", "done")
        fields = item["detail"]["fields"]
        assert fields["spec.env.MODE"] == [None, "fast"]
        assert fields["spec.env.DB_PASSWORD"] == [None, "***"]
        assert fields["spec.env.URL"] == [None, "***"]
        everything = root.get("/api/v1/audit?limit=5000").text + root.get("/api/v1/events?limit=5000").text
        assert "hunter2" not in everything
        assert PASSWORD not in everything

    def test_it_is_written_with_the_act_or_not_at_all(self, here: Installation, ada: TestClient) -> None:
        before = here.store.fact_sequence
        ada.post(NOTES, json={"metadata": {"name": "n"}, "spec": {}})
        done = here.store.fact_sequence
        assert done > before
        ada.post(NOTES, json={"metadata": {"name": "n"}, "spec": {}})
        assert here.store.fact_sequence == done, "a conflict is no act"

    def test_refusals_are_counted_not_piled_up(self, here: Installation, root: TestClient, sign_in: Any) -> None:
        vic = sign_in("vic")
        for number in range(200):
            assert vic.delete(f"{NOTES}/n{number}").status_code in (403, 404)
            assert vic.post(NOTES, json={"metadata": {"name": f"n{number}"}, "spec": {}}).status_code == 403
        here.store.write(lambda tx: None)  # what was handed in before is written now
        refused = [i for i in root.get("/api/v1/audit?subject=user:vic").json()["items"] if i["outcome"] == "refused"]
        assert [(i["verb"], i["kind"]) for i in refused] == [("delete", "Note"), ("create", "Note")]
        vic.app.state.server.refusals.flush(everything=True)
        here.store.write(lambda tx: None)  # what was handed in before is written now
        refused = [i for i in root.get("/api/v1/audit?subject=user:vic").json()["items"] if i["outcome"] == "refused"]
        assert [i["detail"]["more"] for i in refused[2:]] == [199, 199]

    def test_looking_where_nothing_may_be_seen_is_a_refusal_too(
        self, here: Installation, root: TestClient, bob: TestClient
    ) -> None:
        assert bob.get(f"{NOTES}/n").status_code == 404
        here.store.write(lambda tx: None)  # what was handed in before is written now
        (item,) = root.get("/api/v1/audit?subject=user:bob").json()["items"]
        assert (item["verb"], item["namespace"], item["outcome"]) == ("get", "alpha", "refused")

    def test_guessing_names_does_not_fill_the_disk(
        self, here: Installation, anybody: TestClient, root: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refusals, "SORTS", 10)
        for number in range(60):
            answer = anybody.post("/api/v1/login", json={"user": f"u{number}", "password": "wrong horse"})
            assert answer.status_code in (401, 429)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["retryAfter"] >= 1
        refused = [
            i for i in root.get("/api/v1/audit?verb=login&limit=500").json()["items"] if i["outcome"] == "refused"
        ]
        assert len(refused) <= 11


class TestTokens:
    def test_they_can_do_no_more_than_what_made_them(self, sign_in: Any) -> None:
        writer = sign_in("root", "read", "write")
        assert writer.post("/api/v1/tokens", json={"scope": ["read"]}).status_code == 201
        assert writer.post("/api/v1/tokens", json={"scope": ["admin"]}).status_code == 403
        made = writer.post("/api/v1/tokens", json={}).json()
        headers = {"authorization": f"Bearer {made['token']}"}
        assert writer.get("/api/v1/whoami", headers=headers).json()["scope"] == ["read", "write"]
        assert writer.post("/api/v1/accounts", json={"metadata": {"name": "x"}, "spec": {}}).status_code == 403

    def test_a_robot_gets_one_from_whoever_holds_all_it_may(
        self, here: Installation, root: TestClient, ada: TestClient
    ) -> None:
        made = root.post("/api/v1/tokens", json={"account": "bot", "scope": ["read"]})
        assert made.status_code == 201
        assert (
            root.get("/api/v1/whoami", headers={"authorization": f"Bearer {made.json()['token']}"}).json()["subject"]
            == "user:bot"
        )
        assert root.post("/api/v1/tokens", json={"account": "ada"}).status_code == 403
        assert ada.post("/api/v1/tokens", json={"account": "bot"}).status_code == 403

    def test_others_cannot_revoke_them(
        self, here: Installation, ada: TestClient, bob: TestClient, root: TestClient
    ) -> None:
        mine = ada.get("/api/v1/tokens").json()["items"][0]["id"]
        assert bob.delete(f"/api/v1/tokens/{mine}").status_code == 404
        assert ada.get("/api/v1/whoami").status_code == 200
        assert root.delete(f"/api/v1/tokens/{mine}").status_code == 200
        assert ada.get("/api/v1/whoami").status_code == 401

    def test_one_may_change_ones_own_password_knowing_the_old_one(self, here: Installation, root: TestClient) -> None:
        path, new = "/api/v1/accounts/root/password", "another horse"
        assert root.put(path, json={"password": new}).status_code == 401
        assert root.put(path, json={"password": new, "old": "wrong"}).status_code == 401
        assert root.put(path, json={"password": "short", "old": PASSWORD}).status_code == 422
        assert root.put(path, json={"password": new, "old": PASSWORD}).status_code == 200
        assert root.get("/api/v1/whoami").status_code == 401
        assert root.post("/api/v1/login", json={"user": "root", "password": new}).status_code == 200


def test_nobody_gives_more_than_they_hold(here: Installation, sign_in: Any) -> None:
    rule = {"kinds": ["RoleBinding", "Role", "Account", "Namespace"], "verbs": ["*"]}
    here.make("Role", "decider", rules=[rule])
    here.make("RoleBinding", "deciders", role="decider", subjects=["user:bob"])
    bob = sign_in("bob")
    for kind, doc in (
        ("rolebindings", {"metadata": {"name": "me"}, "spec": {"role": "admin", "subjects": ["user:bob"]}}),
        ("roles", {"metadata": {"name": "all"}, "spec": {"rules": [{"kinds": ["*"], "verbs": ["*"]}]}}),
        ("accounts", {"metadata": {"name": "two"}, "spec": {"groups": ["experiments/alpha"]}}),
    ):
        assert bob.post(f"/api/v1/{kind}", json=doc).status_code == 403
    assert bob.patch("/api/v1/accounts/bob", json={"spec": {"groups": ["experiments/alpha"]}}).status_code == 403
    assert bob.patch("/api/v1/namespaces/alpha", json={"spec": {"group": "experiments/beta"}}).status_code == 403
    assert bob.put("/api/v1/accounts/root/password", json={"password": "another horse"}).status_code == 403
    documents = [
        {"apiVersion": "ground/v1", "kind": "Role", "metadata": {"name": "x"}, "spec": {"rules": [rule]}},
        {"apiVersion": "ground/v1", "kind": "RoleBinding", "metadata": {"name": "x"},
         "spec": {"role": "operator", "subjects": ["user:bob"]}},
    ]  # fmt: skip
    assert bob.post("/api/v1/apply", json={"documents": documents}).status_code == 403
    mine = {"role": "viewer", "subjects": ["user:vic"], "selector": {"namespaces": ["beta"]}}
    assert bob.post("/api/v1/rolebindings", json={"metadata": {"name": "mine"}, "spec": mine}).status_code == 201


def test_plans_are_answered_by_digest_and_by_those_who_may(here: Installation, sign_in: Any) -> None:
    olga, ada = sign_in("olga"), sign_in("ada")
    assert [p["id"] for p in ada.get("/api/v1/plans?state=held").json()["items"]] == ["p/alpha"]
    assert len(olga.get("/api/v1/plans").json()["items"]) == 2
    path = "/api/v1/plans/p/alpha"
    assert olga.post(f"{path}/approve", json={"digest": "sha256:2"}).json()["error"]["reason"] == "PlanChanged"
    assert olga.post(f"{path}/approve", json={}).status_code == 422
    bound = {"verb": "delete", "count": 20, "until": "2030-01-01T00:00:00Z"}
    assert olga.post(f"{path}/approve", json={"bound": bound}).status_code == 422, "a bound needs a reason"
    assert olga.post(f"{path}/approve", json={"bound": {**bound, "count": 0}, "reason": "x"}).status_code == 422
    assert olga.post(f"{path}/approve", json={"bound": bound, "reason": "rack 4"}).status_code == 200
    assert olga.post(f"{path}/approve", json={"digest": "sha256:1"}).status_code == 200
    assert here.board.answers == [
        ("approve_bound", "p/alpha", "delete", 20, 1893456000.0, "user:olga", "rack 4"),
        ("approve", "p/alpha", "sha256:1", "user:olga", ""),
    ]
    reader = sign_in("olga", "read", "write")
    assert reader.post(f"{path}/approve", json={"digest": "sha256:1"}).status_code == 403
    outcomes = [i["outcome"] for i in olga.get("/api/v1/audit?verb=approve").json()["items"]]
    assert outcomes == ["asked", "failed", "asked", "asked"]


def test_hooks_are_taken_with_the_secret_only(here: Installation, anybody: TestClient) -> None:
    assert anybody.post("/hooks/gitlab/tree", content=b"{}").status_code == 401
    answer = anybody.post("/hooks/gitlab/tree", content=b"{}", headers={"X-Gitlab-Token": "s3cret"})
    assert answer.status_code == 202
    assert here.calls == [("hook", "gitlab", "tree", b"{}")]
    large = anybody.post("/hooks/gitlab/tree", content=b"x" * (body.LARGEST + 1), headers={"X-Gitlab-Token": "s3cret"})
    assert large.status_code == 413


def test_a_log_is_read_from_where_one_says(here: Installation, ada: TestClient) -> None:
    here.make("Service", "web", "alpha", sample="web")
    path = "/api/v1/namespaces/alpha/services/web/log"
    whole = ada.get(path)
    assert whole.text.splitlines()[-1] == "line 99"
    assert whole.headers["content-type"].startswith("text/plain")
    assert ada.get(f"{path}?offset={len(whole.content) - 8}").text == "line 99\n"
    assert ada.get(f"{path}?index=-1").status_code == 422


def test_two_applications_can_stand_on_one_store(here: Installation) -> None:
    """A second one begins cleanly after the first has ended."""
    for _ in range(2):
        with TestClient(create_app(here.backend)) as client:
            assert client.get("/api/v1/readyz").status_code == 200
    here.backend.ready = lambda: "the world was not looked at yet"
    with TestClient(create_app(here.backend)) as client:
        assert client.get("/api/v1/readyz").status_code == 503
        assert client.get("/api/v1/healthz").status_code == 200
