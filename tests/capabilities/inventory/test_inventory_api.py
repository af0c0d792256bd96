"""What was discovered at a site, through the API: by type, in pages, and only what the asker may see; and who may let
a site off the rules of joining."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from groundcontrol.interfaces.api.app import create_app
from groundcontrol.kernel.resource import now
from groundcontrol.ports.cloud import CloudInstance, Mark, QuotaUse, Thing
from groundcontrol.programs.wiring import backend
from tests.capabilities.inventory.clouds import SayingCloud, endpoint, facts, flavor, image
from tests.federation import Federation, federation

SECRET = "hunter2-the-password"
MARK = Mark(installation="i", owner="u", owner_key="Server alpha/web", change="c")
SERVERS = tuple(
    Thing(
        type="server",
        id=f"s-{n:04}",
        name=f"web-{n % 7}",
        project="p-2",
        host="h1",
        mark=MARK if n == 0 else None,
        fields={"flavor": "f-large", "user_data": SECRET},
    )
    for n in range(25)
)
THINGS = (
    *SERVERS,
    flavor("large", 8, 16_384),
    flavor("reserved", 64, 1_000_000, public=False),
    image("debian-12"),
    image("of-somebody", visibility="private"),
    Thing(type="network", id="n-1", name="public", fields={"shared": True, "external": True}, host="gw-1"),
    Thing(type="network", id="n-2", name="of-somebody", project="p-2", fields={"shared": False}),
    Thing(type="project", id="p-1", name="ground"),
)
BINDINGS = {
    "keeper": {"role": "member", "subjects": ["user:kim"], "selector": {"sites": ["bari"]}},
    "reader": {"role": "viewer", "subjects": ["user:rea"], "selector": {"sites": ["bari"]}},
    "chief": {"role": "operator", "subjects": ["user:olga"]},
    "tenant": {"role": "member", "subjects": ["user:ten"], "selector": {"namespaces": ["alpha"]}},
}
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, Ask]]:
    at = time.time()
    cloud = SayingCloud(
        things=THINGS,
        facts=facts(
            at,
            endpoints=(endpoint("compute", at, url=f"https://svc:{SECRET}@compute.example.org/?token={SECRET}"),),
            quotas=(QuotaUse(project="p-1", resource="cores", limit=10, used=3),),
        ),
        problems=(f"GET /v2/images: 500 X-Auth-Token: {SECRET}",),
    )
    with federation(Path(tmp_path_factory.mktemp("inventory"))) as fed:
        fed.drivers["saying"] = lambda *_: CloudInstance(cloud)  # type: ignore[arg-type]
        fed.apply("Namespace", "alpha", {"group": "experiments/alpha"})
        for name in ("kim", "rea", "olga", "ten"):
            fed.apply("Account", name, {})
        for name, spec in BINDINGS.items():
            fed.apply("RoleBinding", name, spec)
        fed.apply("Site", "bari", {"driver": "saying"}, labels={"tier": "production"})
        fed.apply("Site", "other", {"driver": "saying"})
        fed.apply("Site", "plain", {"driver": "memory"})
        for name in ("bari", "other", "plain"):
            fed.until_ready("Site", name)
        with TestClient(create_app(backend(fed.runtime))) as client:

            def ask(who: str, path: str, method: str = "GET", **more: Any) -> Any:
                token = fed.runtime.accounts.issue(f"user:{who}").token
                headers = {"authorization": f"Bearer {token}"}
                if method == "PATCH":
                    headers["content-type"] = "application/merge-patch+json"
                return client.request(method, f"/api/v1/sites/{path}", headers=headers, **more)

            yield fed, ask


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["items"]]


def test_who_may_read_the_site_sees_what_is_for_all(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    assert names(ask("rea", "bari/inventory/flavor")) == ["large"]
    assert names(ask("rea", "bari/inventory/image")) == ["debian-12"]
    assert names(ask("rea", "bari/inventory/network")) == ["public"]
    assert names(ask("rea", "bari/inventory/endpoints")) == ["compute"]
    shown = ask("rea", "bari/inventory/network").json()["items"][0]
    assert not {"host", "project", "mark", "fault", "seen"} & set(shown)
    assert names(ask("rea", "bari/inventory")) == ["flavor", "image", "network", "endpoints"]


@pytest.mark.parametrize("type_", ["server", "volume", "hosts", "quotas", "project", "port", "router", "keypair"])
def test_what_is_of_others_is_for_those_who_look_after_the_site(place: tuple[Federation, Ask], type_: str) -> None:
    _, ask = place
    known = type_ not in ("port",)
    assert ask("rea", f"bari/inventory/{type_}").status_code == (403 if known else 404)
    assert ask("kim", f"bari/inventory/{type_}").status_code == (200 if known else 404)
    assert ask("olga", f"bari/inventory/{type_}").status_code == (200 if known else 404)


def test_who_may_not_read_the_site_learns_nothing(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    for who, site in (("ten", "bari"), ("ten", "nowhere"), ("rea", "other"), ("kim", "other"), ("kim", "nowhere")):
        for path in (f"{site}/inventory", f"{site}/inventory/flavor", f"{site}/inventory/server"):
            answer = ask(who, path)
            assert answer.status_code in (403, 404), (who, path)
            assert "items" not in answer.json()
    assert (
        ask("kim", "other/inventory").json()["error"]["reason"]
        == ask("kim", "nowhere/inventory").json()["error"]["reason"]
    )


def test_pages_have_everything_once(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    found: list[str] = []
    proceed, pages = "", 0
    while True:
        answer = ask("kim", "bari/inventory/server", params={"limit": 4} | ({"continue": proceed} if proceed else {}))
        assert answer.status_code == 200
        body = answer.json()
        assert (len(body["items"]) <= 4, body["total"]) == (True, 25)
        found += [item["id"] for item in body["items"]]
        pages += 1
        proceed = body.get("continue", "")
        if not proceed:
            break
    assert pages == 7
    assert sorted(found) == [s.id for s in SERVERS]
    other = ask("kim", "bari/inventory/server", params={"limit": 4}).json()["continue"]
    for wrong in (other + "x", "e30=", "%00"):
        assert ask("kim", "bari/inventory/volume", params={"continue": wrong}).status_code == 422
    assert ask("kim", "bari/inventory/volume", params={"continue": other}).status_code == 422


def test_what_is_told_of_a_thing(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    server = next(s for s in ask("kim", "bari/inventory/server").json()["items"] if s["id"] == "s-0000")
    assert (server["host"], server["project"], server["madeFor"]) == ("h1", "p-2", "Server alpha/web")
    assert server["fields"] == {"flavor": "f-large"}
    quota = ask("kim", "bari/inventory/quotas").json()["items"][0]
    assert {n: quota[n] for n in ("name", "resource", "limit", "used")} == {
        "name": "ground",
        "resource": "cores",
        "limit": 10,
        "used": 3,
    }
    counts = {i["name"]: i["count"] for i in ask("kim", "bari/inventory").json()["items"]}
    assert (counts["server"], counts["hosts"], counts["flavor"]) == (25, 3, 2)


def test_age_and_problems_are_told_and_no_secret_is(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    for path in (
        "bari/inventory",
        *(f"bari/inventory/{t}" for t in ("server", "endpoints", "hosts", "flavor")),
        "bari",
    ):
        answer = ask("kim", path)
        assert answer.status_code == 200
        assert SECRET not in answer.text, path
    body = ask("kim", "bari/inventory/server").json()
    assert body["looked"].startswith("20")
    assert body["answers"] is True
    assert "GET /v2/images: 500" in body["problems"][0]


def test_a_site_that_is_no_cloud_says_so(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    body = ask("olga", "plain/inventory").json()
    assert (body["driver"], body["items"], body["looked"]) == ("memory", [], "")


def test_what_cannot_be_a_type_is_none_at_any_site(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    for site in ("bari", "plain"):
        assert ask("kim", f"{site}/inventory/%C3%97%C3%B8").status_code == 404


def test_an_unknown_type_is_told_what_there_is(place: tuple[Federation, Ask]) -> None:
    _, ask = place
    message = ask("kim", "bari/inventory/flavour").json()["error"]["message"]
    assert 'did you mean "flavor"' in message


# ── who may let a site off ──────────────────────────────────────────────────────────────────────────────────────


def patch(ask: Ask, who: str, body: dict[str, Any]) -> Any:
    return ask(who, "bari", "PATCH", content=json.dumps(body))


@pytest.fixture
def ruled(place: tuple[Federation, Ask]) -> Iterator[tuple[Federation, Ask]]:
    fed, ask = place
    fed.apply("JoinPolicy", "federation", {"selector": "tier=production", "zones": ["moon"]})
    yield fed, ask
    fed.delete("JoinPolicy", "federation")


def test_whoever_looks_after_a_site_may_not_let_it_off(ruled: tuple[Federation, Ask]) -> None:
    fed, ask = ruled
    until = now(time.time() + 3600)
    exception = {"spec": {"joinException": {"reason": "we are fine, really", "until": until}}}
    refused = patch(ask, "kim", exception)
    assert (refused.status_code, "rules of joining" in refused.json()["error"]["message"]) == (403, True)
    left = patch(ask, "kim", {"metadata": {"labels": {"tier": None}}})
    assert (left.status_code, "leaves the rules of federation" in left.json()["error"]["message"]) == (403, True)
    assert patch(ask, "kim", {"metadata": {"labels": {"tier": "production", "rack": "a"}}}).status_code == 200
    assert patch(ask, "kim", {"spec": {"region": "south"}}).status_code == 200
    given = patch(ask, "olga", exception)
    assert given.status_code == 200, given.text
    written = [f for f in fed.runtime._pull(0, 10_000) if f["dataset"] == "audit" and f["name"] == "bari"]
    assert "we are fine, really" in str(written[-1])
    assert written[-1]["subject"] == "user:olga"
    # What somebody else answers for may be kept and taken back by who looks after the site, and not be made longer.
    assert patch(ask, "kim", {"spec": {"region": "north"}}).status_code == 200
    assert patch(ask, "kim", {"spec": {"joinException": {"until": now(time.time() + 7200)}}}).status_code == 403


def test_a_site_is_not_let_in_through_the_api_either(ruled: tuple[Federation, Ask]) -> None:
    fed, ask = ruled
    fed.apply("Site", "bari", {"driver": "saying", "state": "maintenance"}, labels={"tier": "production"})
    fed.until(lambda: fed.ready("Site", "bari", type_="Joined")[0] == "False")
    refused = patch(ask, "kim", {"spec": {"state": "active"}})
    assert refused.status_code == 422
    (problem,) = refused.json()["error"]["problems"]
    assert problem["path"] == "spec.state"
    assert "zone moon: there is nova" in problem["message"]
    assert "ground describe site bari" in problem["remedy"]
    fed.delete("JoinPolicy", "federation")
    assert patch(ask, "kim", {"spec": {"state": "active"}}).status_code == 200
    fed.apply("JoinPolicy", "federation", {"selector": "tier=production", "zones": ["moon"]})
