"""What the driver makes of a real cloud that answers late, wrongly, in part, or not at all, and of wrong credentials.

Acceptance: each test has a proxy of its own in front of a cloud of `GROUND_TEST_CLOUDS`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest

from groundcontrol.drivers.openstack.driver import OpenStack, connect
from groundcontrol.kernel.errors import Conflict, GroundError, NotFound, OutcomeUnknown, Refused, Unavailable
from groundcontrol.ports.cloud import Mark
from tests.drivers.openstack.bed import random_name
from tests.drivers.openstack.clouds import administered, entries, opened
from tests.drivers.openstack.proxy import FaultProxy, in_front_of

pytestmark = pytest.mark.acceptance
CLOUDS = administered()[:1] or [pytest.param("", marks=pytest.mark.skip(reason="GROUND_TEST_CLOUDS names no clouds"))]
PATIENCE = 60.0


@pytest.fixture(params=CLOUDS)
def proxy(request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    told = entries()[f"{request.param}-admin"]
    with in_front_of(told["auth"]["auth_url"], told["cacert"]) as found:
        found.entry = f"{request.param}-admin"  # type: ignore[attr-defined]
        yield found


@pytest.fixture
def cloud(proxy: FaultProxy) -> Iterator[OpenStack]:
    yield from _opened(proxy, longestCall="8", lookSeconds="4", pollSeconds="0.5", callsPerMinute="6000")


def _opened(proxy: FaultProxy, **options: str) -> Iterator[OpenStack]:
    found = opened(proxy.entry, endpoint=proxy.endpoint, **options)  # type: ignore[attr-defined]
    made: list[tuple[str, str]] = []
    found.made = made  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        proxy.heal()
        for type, id in made:
            found.delete(type, id)
        found.close()


def mark() -> Mark:
    key = random_name()
    return Mark(installation="i-driver", owner=f"u-{key}", owner_key="Network alpha/lan", change=f"c-{key}")


def make(cloud: OpenStack, with_mark: Mark, type: str = "network", **fields: Any) -> str:
    id = cloud.create(type, "", {"name": random_name(), **fields}, with_mark).id
    cloud.made.append((type, id))  # type: ignore[attr-defined]
    return id


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.2)


# ── creating ────────────────────────────────────────────────────────────────────────────────────────────────────


def found_and_noted(cloud: OpenStack, change: str) -> tuple[tuple[str, str], ...]:
    found = cloud.find(change)
    cloud.made.extend(found)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_an_answer_that_is_lost_after_the_create_is_found_by_its_key(
    cloud: OpenStack, proxy: FaultProxy, kind: Any
) -> None:
    proxy.order(kind, "POST", "/network/v2.0/networks$")
    given = mark()
    with pytest.raises(OutcomeUnknown):
        make(cloud, given)
    assert len(found_and_noted(cloud, given.change)) == 1
    assert proxy.count("POST", "/network/v2.0/networks$") == 1, "it was repeated blindly"


@pytest.mark.parametrize("type", ["server", "volume", "image", "flavor", "project", "security_group"])
def test_every_type_is_found_when_its_answer_was_lost(cloud: OpenStack, proxy: FaultProxy, type: str) -> None:
    needs: dict[str, dict[str, Any]] = {
        "volume": {"size": 1},
        "image": {"format": "raw", "container": "bare", "visibility": "private"},
        "flavor": {"cores": 1, "memory_mb": 64, "disk_gb": 0},
    }
    if type == "server":
        things = cloud.look().things
        image = next(t.id for t in things if t.type == "image" and t.fields["visibility"] == "public")
        flavor = next(t.id for t in things if t.type == "flavor" and t.name == "m1.tiny")
        needs["server"] = {"image": image, "flavor": flavor}
    proxy.order("lost", "POST", "/(servers|volumes|images|flavors|projects|security-groups)$")
    given = mark()
    with pytest.raises(OutcomeUnknown):
        make(cloud, given, type, **needs.get(type, {}))
    ((found, id),) = found_and_noted(cloud, given.change)
    assert found == type
    if type == "server":  # in a cell it is found in another way than before
        until(lambda: cloud.get("server", id).state == "ready")
        assert cloud.find(given.change) == (("server", id),)
    told = cloud.get(type, id).mark
    assert told is not None
    assert (told.installation, told.owner, told.change) == (given.installation, given.owner, given.change)


def test_a_create_that_never_reached_the_cloud_leaves_nothing_and_is_not_known(
    cloud: OpenStack, proxy: FaultProxy
) -> None:
    cloud.look()
    proxy.order("drop", "POST", "/networks$")
    given = mark()
    with pytest.raises(OutcomeUnknown):
        make(cloud, given)
    assert cloud.find(given.change) == ()


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_on_a_create_is_an_unknown_outcome(cloud: OpenStack, proxy: FaultProxy, status: int) -> None:
    proxy.order("status", "POST", "/networks$", status=status)
    with pytest.raises(OutcomeUnknown):
        make(cloud, mark())


@pytest.mark.parametrize(
    ("status", "error", "cause"),
    [
        (400, Refused, "InvalidRequest"),
        (403, Refused, "NotAuthorised"),
        (409, Conflict, ""),
        (413, Refused, "QuotaExceeded"),
        (429, Refused, "Throttled"),
    ],
)
def test_a_refusal_is_named_and_certain(
    cloud: OpenStack, proxy: FaultProxy, status: int, error: type[GroundError], cause: str
) -> None:
    proxy.order("status", "POST", "/networks$", status=status)
    with pytest.raises(error) as caught:
        make(cloud, mark())
    assert not isinstance(caught.value, Unavailable)
    assert getattr(caught.value, "cause", "") == cause


def test_a_create_that_nobody_listens_to_certainly_did_nothing(cloud: OpenStack, proxy: FaultProxy) -> None:
    cloud.look()
    proxy.server.shutdown()
    proxy.server.server_close()
    fresh = opened(proxy.entry, endpoint=proxy.endpoint, longestCall="5")  # type: ignore[attr-defined]
    fresh._connection.own.access = cloud._connection.own.access
    fresh.looking.lister.everywhere = True
    with pytest.raises(Unavailable) as caught:
        fresh.create("network", "", {"name": "never"}, mark())
    assert not isinstance(caught.value, OutcomeUnknown)
    cloud.made.clear()  # type: ignore[attr-defined]


def test_what_follows_a_create_may_fail_and_the_mark_is_kept(cloud: OpenStack, proxy: FaultProxy) -> None:
    proxy.order("status", "PUT", "/networks/")
    given = mark()
    id = make(cloud, given, description="for the lab")
    thing = cloud.get("network", id)
    assert thing.mark == given
    assert thing.fields["description"] == "for the lab"
    assert cloud.find(given.change) == (("network", id),)
    cloud.change("network", id, {"description": ("for the lab", "for all")})
    changed = cloud.get("network", id)
    assert (changed.mark, changed.fields["description"]) == (given, "for all")


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_that_is_over_is_renewed_once(cloud: OpenStack, proxy: FaultProxy) -> None:
    cloud.look()
    signed = proxy.count("POST", "/auth/tokens")
    proxy.order("status", "POST", "/networks$", status=401)
    assert make(cloud, mark())
    assert proxy.count("POST", "/auth/tokens") == signed + 1


def test_a_service_that_always_answers_401_is_asked_twice_and_believed(cloud: OpenStack, proxy: FaultProxy) -> None:
    cloud.look()
    proxy.order("status", "POST", "/networks$", status=401, times=-1)
    with pytest.raises(Refused) as caught:
        make(cloud, mark())
    assert caught.value.cause == "NotAuthenticated"
    assert proxy.count("POST", "/networks$") == 2


def test_keystone_may_be_down_while_the_token_lasts(cloud: OpenStack, proxy: FaultProxy) -> None:
    cloud.look()
    proxy.order("status", path="^/identity", times=-1)
    seen = cloud.look()
    assert any(t.type == "flavor" for t in seen.things)
    assert cloud.get("network", make(cloud, mark()))


def test_keystone_down_at_the_start_is_said(cloud: OpenStack, proxy: FaultProxy) -> None:
    proxy.order("status", path="^/identity", times=-1)
    with pytest.raises(Unavailable, match="sign in"):
        cloud.look()
    proxy.heal()
    assert cloud.look().things


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_service_that_hangs_makes_its_types_partial_and_no_other(cloud: OpenStack, proxy: FaultProxy) -> None:
    proxy.order("hang", path="^/network/", times=-1)

    def types() -> set[str]:
        """Of one look, which says that it is partial."""
        seen = cloud.look()
        assert not seen.complete
        assert any("networks" in p for p in seen.problems)
        found = {t.type for t in seen.things}
        assert not found & {"network", "subnet", "router"}
        return found

    # The network service never answers; a busy cloud may need more than one look for the others.
    assert until(lambda: {"flavor", "image", "project"} <= types())


def test_what_we_changed_is_not_told_as_it_was_before(cloud: OpenStack, proxy: FaultProxy) -> None:
    id = make(cloud, mark())
    assert until(lambda: any(t.id == id for t in cloud.look().things))
    cloud.change("network", id, {"description": ("", "new")})
    fault = proxy.order("hang", "GET", "/networks", times=-1)
    seen = cloud.look()
    assert not seen.complete
    assert all(t.type != "network" for t in seen.things)
    fault.times = 0
    assert until(lambda: any(t.id == id and t.fields["description"] == "new" for t in cloud.look().things))


def test_a_service_that_comes_back_is_told_again(cloud: OpenStack, proxy: FaultProxy) -> None:
    proxy.order("status", path="^/block-storage/.*volumes", times=-1)
    assert not cloud.look().complete
    proxy.heal()
    assert until(lambda: cloud.look().complete)


def test_a_passing_error_of_a_read_is_not_noticed(proxy: FaultProxy) -> None:
    faults = proxy.order("status", "GET", "/networks"), proxy.order("cut", "GET", "/servers/detail")
    for cloud in _opened(proxy, lookSeconds="60"):  # a busy cloud is no error
        assert cloud.look().complete
        assert [fault.times for fault in faults] == [0, 0]


@pytest.mark.parametrize("kind", ["cut", "trickle"])
def test_a_list_that_ends_too_early_is_no_list(cloud: OpenStack, proxy: FaultProxy, kind: Any) -> None:
    proxy.order(kind, "GET", "/networks", times=-1, seconds=0.5)
    seen = until(lambda: found if not (found := cloud.look()).complete else None)
    assert all(t.type != "network" for t in seen.things)


def test_something_else_than_a_list_is_no_list(cloud: OpenStack, proxy: FaultProxy) -> None:
    proxy.order("edit", "GET", "/volumes/detail", times=-1, edit=lambda body: {"unexpected": body})
    seen = cloud.look()
    assert not seen.complete
    assert any("something else than a list" in p for p in seen.problems)


def test_pages_that_go_round_end(cloud: OpenStack, proxy: FaultProxy) -> None:
    def round_and_round(body: dict[str, Any]) -> dict[str, Any]:
        link = {"rel": "next", "href": "http://elsewhere.invalid/v2.0/networks?limit=1000"}
        return {**body, "networks_links": [link]}

    make(cloud, mark())
    proxy.order("edit", "GET", "/networks", times=-1, edit=round_and_round)
    assert until(lambda: any("round in circles" in p for p in cloud.look().problems))


def test_absence_is_not_believed_of_an_error(cloud: OpenStack, proxy: FaultProxy) -> None:
    id = make(cloud, mark())
    for fault in ({"status": 503}, {"status": 500}, {"status": 403}):
        proxy.order("status", "GET", f"/networks/{id}", times=2, **fault)
        with pytest.raises((Unavailable, Refused)) as caught:
            cloud.get("network", id)
        assert not isinstance(caught.value, NotFound)
        proxy.heal()
    proxy.order("status", "GET", "/volumes/detail", times=-1)
    with pytest.raises(Unavailable):
        cloud.find("c-nothing")


def test_what_somebody_else_did_is_noticed_while_waiting(proxy: FaultProxy) -> None:
    other = opened(proxy.entry)  # type: ignore[attr-defined]
    for cloud in _opened(proxy, pollSeconds="0.5", listSeconds="1"):
        sequence = cloud.look().sequence
        assert cloud.wait(sequence, 0.1) >= sequence
        made = other.create("network", "", {"name": random_name()}, mark()).id
        cloud.made.append(("network", made))  # type: ignore[attr-defined]
        deadline = time.monotonic() + PATIENCE
        while (sequence := cloud.wait(sequence, 1.0)) and time.monotonic() < deadline:
            if any(t.id == made for t in cloud.looking._observed().things):
                break
        else:
            pytest.fail("it was not noticed")
    other.close()


def test_a_service_that_asks_for_patience_gets_it(cloud: OpenStack, proxy: FaultProxy) -> None:
    cloud.look()
    proxy.order("status", "GET", "/servers/detail", times=-1, status=429, headers={"Retry-After": "60"})
    before = proxy.count("GET", "/servers/detail")
    for _ in range(4):
        cloud.wait(cloud.looking._sequence, 1.0)
    assert proxy.count("GET", "/servers/detail") <= before + 2


# ── every call ends ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_ends_in_its_time_however_the_service_hangs(cloud: OpenStack, proxy: FaultProxy) -> None:
    cloud.look()
    for kind in ("hang", "trickle"):
        fault = proxy.order(kind, "POST", "/networks$", seconds=3.0)  # type: ignore[arg-type]
        given = mark()
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            make(cloud, given)
        assert time.monotonic() - began < 30
        assert fault.times == 0
        found_and_noted(cloud, given.change)


def test_answers_that_trickle_do_not_use_up_the_calls(proxy: FaultProxy) -> None:
    for cloud in _opened(proxy, longestCall="1.5"):
        id = make(cloud, mark())
        proxy.order("trickle", "GET", f"/networks/{id}", times=-1, seconds=0.5)
        for _ in range(8):
            with pytest.raises(Unavailable):
                cloud.get("network", id)
        proxy.heal()
        deadline = time.monotonic() + PATIENCE
        while not _answers(cloud, id):
            assert time.monotonic() < deadline


def _answers(cloud: OpenStack, id: str) -> bool:
    try:
        return cloud.get("network", id).id == id
    except Unavailable:
        return False


# ── credentials ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", administered()[:1])
def test_an_authority_nobody_trusts_is_said_and_nothing_is_sent(name: str, tmp_path: Path) -> None:
    told = entries()[name]
    auth = dict(told["auth"])
    other = tmp_path / "other.pem"
    other.write_text(Path(certifi.where()).read_text(encoding="utf-8"), encoding="utf-8")
    options = {"region": told["region_name"], "caCert": str(other)}
    cloud = connect("site/other", auth.pop("auth_url"), json.dumps(auth), options, 60.0)
    with pytest.raises(Unavailable, match=r"not trusted: set options\.caCert"):
        cloud.look()
    cloud.close()


@pytest.mark.parametrize("name", administered()[:1])
def test_other_forms_of_credentials_open_the_cloud(name: str) -> None:
    told = entries()[name]
    member = opened(name)
    member.look()
    connection = member._connection
    access = connection.own.told
    options = {"region": told["region_name"], "caCert": told["cacert"]}
    address = told["auth"]["auth_url"]

    def roles(auth: dict[str, str]) -> tuple[str, ...]:
        cloud = connect("site/other", address, json.dumps(auth), options, 60.0)
        try:
            return cloud.look().facts.roles
        finally:
            cloud.close()

    token = {"auth_type": "token", "token": access.auth_token, "project_id": access.project_id}
    assert "member" in roles(token)
    path = f"/users/{access.user_id}/application_credentials"
    body = {"application_credential": {"name": random_name()}}
    made = connection.call("identity", "POST", path, body=body).body["application_credential"]
    try:
        given = {"application_credential_id": made["id"], "application_credential_secret": made["secret"]}
        assert "member" in roles(given)
        with pytest.raises(Refused) as caught:
            roles({**given, "application_credential_secret": "wrong"})
        assert caught.value.cause == "NotAuthenticated"
        assert "wrong" not in str(caught.value)
    finally:
        connection.call("identity", "DELETE", f"{path}/{made['id']}")
        member.close()
