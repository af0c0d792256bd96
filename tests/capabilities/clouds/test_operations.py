"""What people ask of servers and volumes: done once, written down before and after, and in step with the spec."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.capabilities.clouds.acting import ACTIONS
from groundcontrol.capabilities.clouds.operations import OPERATIONS, records
from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, Invalid, OutcomeUnknown, Refused, Unavailable
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from tests.capabilities.clouds.sky import Sky, sky

ADA = Subject.user("ada")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        found.lan()
        found.server()
        found.ready("Server", "web")
        yield found


def act(here: Sky, verb: str, name: str = "web", kind: str = "Server", /, who: Subject = ADA, **body: Any) -> Doc:
    return ACTIONS[kind, verb](here.fed.runtime, who, Key(kind, "alpha", name), body)


def operation(here: Sky, name: str = "web", kind: str = "Server") -> Mapping[str, Any]:
    found: Mapping[str, Any] = here.status(kind, name)["operation"]
    return found


def ended(here: Sky, verb: str, state: str = "Done", name: str = "web", kind: str = "Server") -> Mapping[str, Any]:
    here.fed.until(
        lambda: (operation(here, name, kind)["verb"], operation(here, name, kind)["state"]) == (verb, state),
        f"{verb} is {state}",
    )
    return operation(here, name, kind)


def spec(here: Sky, name: str = "web", kind: str = "Server") -> Doc:
    doc = here.fed.get(kind, name, "alpha")
    assert doc is not None
    found: Doc = doc["spec"]
    return found


def times(here: Sky, verb: str) -> int:
    return len(here.calls(f"act {verb}"))


# ── once, and written down ──────────────────────────────────────────────────────────────────────────────────────


def test_a_reboot_is_asked_once_and_its_progress_is_seen(here: Sky) -> None:
    answer = act(here, "reboot", reason="it hangs")
    assert (answer["operation"], answer["state"]) == ("reboot", "accepted")
    done = ended(here, "reboot")
    assert (done["by"], done["key"]) == ("user:ada", answer["changeKey"])
    here.fed.settled()
    assert times(here, "reboot") == 1
    (event,) = here.fed.events("OperationAccepted")
    assert "reboot by user:ada" in event["message"]


def test_the_same_step_of_a_run_is_done_once_however_often_it_is_asked(here: Sky) -> None:
    first = act(here, "reboot", changeKey="run:step")
    assert act(here, "reboot", changeKey="run:step") == first
    ended(here, "reboot")
    assert act(here, "reboot", changeKey="run:step") == first
    act(here, "reboot", changeKey="run:other")
    assert times(here, "reboot") == 2


def test_one_that_is_being_asked_lets_no_other_in(here: Sky) -> None:
    go = here.cloud.hang("act reboot")
    first = threading.Thread(target=act, args=(here, "reboot"))
    first.start()
    try:
        ended(here, "reboot", "Asked")
        with pytest.raises(Conflict, match="reboot of Server alpha/web is being asked for user:ada"):
            act(here, "shelve")
    finally:
        go.set()
        first.join()
    ended(here, "reboot")
    act(here, "shelve")


def test_a_lost_answer_is_looked_up(here: Sky) -> None:
    here.cloud.fail("act reboot", moment="after")
    assert act(here, "reboot")["state"] == "accepted"
    assert times(here, "reboot") == 1
    assert "no answer came" in ended(here, "reboot")["message"]


def test_what_cannot_be_looked_up_is_said_to_be_unknown_and_not_repeated(here: Sky) -> None:
    here.cloud.fail("act reboot", error=OutcomeUnknown("the line is dead"))
    with pytest.raises(OutcomeUnknown, match="cannot be seen whether it happened: the line is dead"):
        act(here, "reboot", changeKey="k")
    ended(here, "reboot", "Unknown")
    with pytest.raises(OutcomeUnknown):
        act(here, "reboot", changeKey="k")
    assert times(here, "reboot") == 1
    act(here, "reboot")  # a person who has looked may ask anew
    ended(here, "reboot")


def test_a_snapshot_whose_answer_was_lost_is_found_again(here: Sky) -> None:
    here.cloud.fail("act snapshot", moment="after")
    answer = act(here, "snapshot", name="before-upgrade")
    (image,) = [t for t in here.cloud.things("image") if t.name == "before-upgrade"]
    assert answer["image"] == image.id
    assert ended(here, "snapshot")["answer"] == {"image": image.id}


def test_a_server_killed_before_the_answer_leaves_unknown(here: Sky) -> None:
    class Killed(BaseException):
        """Like kill -9: nothing is tidied up."""

    def kill(where: str) -> None:
        if where == "after asked":
            raise Killed

    here.fed.runtime.turns.crash_point = kill
    with pytest.raises(Killed):
        act(here, "reboot", changeKey="k")
    here.fed.runtime.turns.crash_point = lambda where: None
    assert times(here, "reboot") == 0
    here.fed.restart()
    ended(here, "reboot", "Unknown")
    with pytest.raises(OutcomeUnknown, match="server stopped"):
        act(here, "reboot", changeKey="k")
    assert times(here, "reboot") == 0


def test_a_server_killed_after_the_cloud_heard_is_looked_up(here: Sky) -> None:
    class Killed(BaseException):
        """Like kill -9: nothing is tidied up."""

    def kill(where: str) -> None:
        if where == "after act":
            raise Killed

    here.fed.runtime.turns.crash_point = kill
    with pytest.raises(Killed):
        act(here, "shelve", changeKey="k")
    here.fed.restart()
    here.fed.until(lambda: here.cloud.things("server")[0].status == "SHELVED_OFFLOADED")
    ended(here, "shelve", "Unknown")
    assert act(here, "shelve", changeKey="k")["state"] == "accepted"
    ended(here, "shelve")
    assert times(here, "shelve") == 1


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("verb", "body", "words"),
    [
        ("reboot", {"type": "soft"}, "it is stopped, and reboot needs one that is running.*start it first"),
        ("live-migrate", {}, "it is stopped, and live-migrate needs one that is paused or running"),
        ("unshelve", {}, "needs one that is shelved"),
        ("unrescue", {}, "needs one that is in rescue mode"),
        ("confirm-resize", {}, "needs one that is resized"),
        ("reboot", {"type": "softly"}, "type: 'softly' is not one of soft, hard"),
        ("reboot", {"typ": "soft"}, "reboot takes no 'typ'.*\"type\""),
        ("snapshot", {}, "name: snapshot needs name"),
        ("console", {"lines": "many"}, "lines: 'many' is not a number from 1 to 10000"),
        ("rebuild", {"image": "cloud:nothing"}, "there is no image nothing at the site that this project may use"),
        ("resize", {"flavor": "cloud:nothing"}, "there is no flavor nothing at the site that this project may use"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(here: Sky, verb: str, body: Doc, words: str) -> None:
    act(here, "stop")
    ended(here, "stop")
    before = [r.verb for r in records((here.fed.get("Server", "web", "alpha") or {})["metadata"]["annotations"])]
    with pytest.raises(Invalid, match=words):
        act(here, verb, **body)
    assert times(here, verb) == 0
    doc = here.fed.get("Server", "web", "alpha") or {}
    assert [r.verb for r in records(doc["metadata"]["annotations"])] == before


def test_a_hard_reboot_is_for_stopped_ones_too(here: Sky) -> None:
    act(here, "stop")
    ended(here, "stop")
    act(here, "reboot", type="hard")
    assert times(here, "reboot") == 1


def test_what_the_cloud_refuses_is_told_in_words(here: Sky) -> None:
    here.cloud.fail("act migrate", error=Refused("No valid host was found", cause="NoValidHost"))
    with pytest.raises(Refused, match="no host of the cloud has room for it") as caught:
        act(here, "migrate")
    assert caught.value.cause == "NoValidHost"
    assert "no host of the cloud" in ended(here, "migrate", "Refused")["message"]


def test_a_cloud_that_is_not_reached_did_nothing(here: Sky) -> None:
    here.cloud.fail("act reboot", error=Unavailable("no route"))
    with pytest.raises(Unavailable, match="no route"):
        act(here, "reboot")
    ended(here, "reboot", "Refused")


def test_what_is_not_there_yet_cannot_be_acted_on(here: Sky) -> None:
    here.apply("Server", "late", flavor="cloud:small", image="cloud:debian", networks=["nowhere"])
    with pytest.raises(Invalid, match="Server alpha/late is not there yet"):
        act(here, "reboot", "late")


def test_nothing_is_done_in_a_project_that_grants_the_namespace_no_more(here: Sky) -> None:
    here.apply("Project", "lab", "", namespaces=[])
    with pytest.raises(Forbidden):
        act(here, "reboot")
    assert times(here, "reboot") == 0


# ── who may ─────────────────────────────────────────────────────────────────────────────────────────────────────

BELOW = {"migrate", "live-migrate"}


@pytest.mark.parametrize("role", ["viewer", "member", "operator", "admin"])
def test_who_may_do_what(here: Sky, role: str) -> None:
    fed = here.fed
    fed.apply("Account", "bob", {})
    fed.apply("RoleBinding", "bob", {"role": role, "subjects": ["user:bob"], "selector": {"namespaces": ["alpha"]}})
    bob = Subject.user("bob")
    here.apply("Volume", "data", size=1)
    here.ready("Volume", "data")
    may = {}
    for one in OPERATIONS:
        try:
            runtime = fed.runtime
            key = Key(one.kind, "alpha", "web" if one.kind == "Server" else "data")
            runtime.access.require(bob, one.verb, one.kind, namespace="alpha", name=key.name)
            may[one.verb] = True
        except Forbidden:
            may[one.verb] = False
    wanted = {o.verb: role in ("operator", "admin") or (role == "member" and o.verb not in BELOW) for o in OPERATIONS}
    assert may == wanted


def test_a_right_that_was_lost_meanwhile_is_missed_in_the_transaction(here: Sky) -> None:
    here.fed.apply("Account", "bob", {})
    with pytest.raises(GroundError):
        act(here, "reboot", who=Subject.user("bob"))
    with pytest.raises(GroundError):
        act(here, "stop", who=Subject.user("bob"))
    assert times(here, "reboot") == 0
    assert spec(here)["power"] == "on"


def test_a_member_reboots_and_does_not_migrate(here: Sky) -> None:
    here.fed.apply("Account", "bob", {})
    binding = {"role": "member", "subjects": ["user:bob"], "selector": {"namespaces": ["alpha"]}}
    here.fed.apply("RoleBinding", "bob", binding)
    bob = Subject.user("bob")
    act(here, "reboot", who=bob)
    ended(here, "reboot")
    with pytest.raises(Forbidden, match=r"may not live-migrate .*operator"):
        act(here, "live-migrate", who=bob)
    assert times(here, "live-migrate") == 0


# ── in step with the spec ───────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_sets_the_spec_and_is_not_corrected(here: Sky) -> None:
    act(here, "stop")
    ended(here, "stop")
    assert spec(here)["power"] == "off"
    here.fed.settled()
    assert here.only("server").state == "off"
    assert not here.fed.events("DriftCorrected")
    act(here, "start")
    ended(here, "start")
    assert here.only("server").state == "ready"


def test_a_stop_of_one_whose_user_decides_calls_the_cloud(here: Sky) -> None:
    here.server(power="user")
    here.ready("Server", "web")
    act(here, "stop")
    ended(here, "stop")
    assert (spec(here)["power"], here.only("server").state) == ("user", "off")
    assert act(here, "stop")["state"] == "accepted"  # it is stopped already
    assert times(here, "stop") == 1


def test_what_a_source_declares_is_changed_in_its_file(here: Sky) -> None:
    fed, key = here.fed, Key("Server", "alpha", "web")
    fed.apply("Source", "platform", {"repository": "memory:platform", "branch": "main"})

    def declare(tx: Any) -> None:
        doc = tx.need(key)
        tx.replace(doc, "source:platform", given=frozenset({"spec.power", "spec.flavor"}))
        tx.touch(key, {"ground/file": "memory:platform#alpha/web.yaml:7"})

    fed.runtime.store.write(declare)
    given: tuple[tuple[str, Doc], ...] = (("stop", {}), ("resize", {"flavor": "cloud:big"}))
    for verb, body in given:
        with pytest.raises(Conflict, match=r"source:platform, in memory:platform#alpha/web\.yaml:7"):
            act(here, verb, **body)
    act(here, "reboot")  # that is nothing a file says
    assert (spec(here)["power"], here.only("server").state != "off") == ("on", True)


def test_a_resize_waits_for_a_person_who_confirms_or_reverts(here: Sky) -> None:
    act(here, "resize", flavor="cloud:big", confirm="ask")
    ended(here, "resize", "Waiting")
    here.fed.settled()
    assert here.only("server").status == "VERIFY_RESIZE"
    act(here, "revert-resize")
    ended(here, "revert-resize")
    assert (spec(here)["flavor"], here.only("server").fields["flavor"]) == ("cloud:small", "f-small")
    act(here, "resize", flavor="cloud:big", confirm="ask")
    ended(here, "resize", "Waiting")
    act(here, "confirm-resize")
    ended(here, "confirm-resize")
    assert (spec(here)["flavor"], here.only("server").fields["flavor"]) == ("cloud:big", "f-big")
    assert here.only("server").status == "ACTIVE"


def test_a_resize_is_confirmed_at_once_when_nobody_is_to_be_asked(here: Sky) -> None:
    act(here, "resize", flavor="cloud:big")
    ended(here, "resize")
    assert (here.only("server").status, here.only("server").fields["flavor"]) == ("ACTIVE", "f-big")


def test_a_rebuild_from_another_image_sets_the_spec_and_replaces_nothing(here: Sky) -> None:
    here.cloud.add("image", "i-new", name="debian-13", visibility="public", project="p-admin")
    before = here.only("server").id
    here.fed.until(lambda: "image" in here.status("Server", "web")["applied"])
    here.server(replace="allowed")
    here.fed.until(lambda: _seen(here, "i-new"))
    act(here, "rebuild", image="cloud:debian-13")
    ended(here, "rebuild")
    assert spec(here)["image"] == "cloud:debian-13"
    here.fed.settled()
    assert (here.only("server").id, here.only("server").fields["image"]) == (before, "i-new")


def _seen(here: Sky, image: str) -> bool:
    return ("image", image) in here.fed.runtime.world.snapshot("site/bari").items


def test_a_refused_rebuild_leaves_the_spec_as_it_was(here: Sky) -> None:
    here.cloud.add("image", "i-new", name="debian-13", visibility="public", project="p-admin")
    here.fed.until(lambda: _seen(here, "i-new"))
    here.server(replace="allowed")
    before = here.only("server").id
    here.cloud.fail("act rebuild", error=Refused("the image is broken", cause="BadImage"))
    with pytest.raises(Refused):
        act(here, "rebuild", image="cloud:debian-13")
    here.fed.settled()
    assert spec(here)["image"] == "cloud:debian"
    assert here.only("server").id == before


def test_a_rebuild_that_nobody_knows_of_does_not_become_a_replacement(here: Sky) -> None:
    here.cloud.add("image", "i-new", name="debian-13", visibility="public", project="p-admin")
    here.fed.until(lambda: _seen(here, "i-new"))
    here.server(replace="allowed")
    before = here.only("server").id
    here.cloud.fail("act rebuild", error=OutcomeUnknown("the line is dead"))
    with pytest.raises(OutcomeUnknown):
        act(here, "rebuild", image="cloud:debian-13")
    here.fed.until(lambda: here.fed.ready("Server", "web", "alpha") == ("False", "Blocked"))
    here.fed.settled()
    assert here.only("server").id == before
    act(here, "rebuild", image="cloud:debian-13")
    ended(here, "rebuild")
    here.ready("Server", "web")
    assert here.only("server").id == before


@pytest.mark.parametrize(
    ("there", "back", "reason"), [("shelve", "unshelve", "Shelved"), ("rescue", "unrescue", "Rescued")]
)
def test_one_put_aside_is_left_alone_until_it_is_brought_back(here: Sky, there: str, back: str, reason: str) -> None:
    act(here, there)
    ended(here, there)
    assert here.fed.ready("Server", "web", "alpha") == ("False", reason)
    here.fed.settled()
    status = here.only("server").status
    assert status in ("SHELVED_OFFLOADED", "RESCUE")
    with pytest.raises(Invalid, match=back):
        act(here, "reboot")
    act(here, back)
    ended(here, back)
    here.ready("Server", "web")
    assert here.only("server").status == "ACTIVE"


def test_locked_and_unlocked(here: Sky) -> None:
    act(here, "lock")
    ended(here, "lock")
    assert here.only("server").fields["locked"] is True
    act(here, "unlock")
    ended(here, "unlock")
    assert (spec(here)["locked"], here.only("server").fields["locked"]) == (False, False)


def test_moved_to_another_host(here: Sky) -> None:
    act(here, "live-migrate")
    ended(here, "live-migrate")
    assert here.only("server").host == "h2"
    act(here, "migrate", host="h1")
    ended(here, "migrate")
    assert (here.only("server").host, here.only("server").status) == ("h1", "ACTIVE")


def test_the_console_is_read_and_nothing_is_written_down(here: Sky) -> None:
    assert act(here, "console", lines="20") == {"text": "web has started\n"}
    assert operation(here)["verb"] == ""


# ── volumes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def disk(here: Sky) -> Sky:
    here.apply("Volume", "data", size=10, type="slow", replace="allowed")
    here.ready("Volume", "data")
    return here


def test_a_volume_grows_and_never_shrinks(disk: Sky) -> None:
    act(disk, "extend", "data", "Volume", size="20")
    ended(disk, "extend", name="data", kind="Volume")
    assert (spec(disk, "data", "Volume")["size"], disk.only("volume").fields["size"]) == (20, 20)
    with pytest.raises(Invalid, match="it has 20 GiB already and never shrinks"):
        act(disk, "extend", "data", "Volume", size=5)


def test_a_volume_gets_another_type_and_is_not_replaced(disk: Sky) -> None:
    before = disk.only("volume").id
    act(disk, "retype", "data", "Volume", type="fast", migrate="yes")
    ended(disk, "retype", name="data", kind="Volume")
    disk.fed.settled()
    assert (disk.only("volume").id, disk.only("volume").fields["type"]) == (before, "fast")
    assert spec(disk, "data", "Volume")["type"] == "fast"


def test_a_retype_that_the_cloud_took_and_did_not_do_replaces_nothing(disk: Sky) -> None:
    before = disk.only("volume").id
    act(disk, "retype", "data", "Volume", type="fast")
    ended(disk, "retype", name="data", kind="Volume")
    disk.cloud.edit("volume", before, type="slow")  # as Cinder does when the move fails
    disk.fed.until(lambda: disk.fed.ready("Volume", "data", "alpha") == ("False", "Blocked"))
    assert disk.only("volume").id == before


def test_a_snapshot_of_a_volume(disk: Sky) -> None:
    assert act(disk, "snapshot", "data", "Volume", name="evening")["snapshot"].startswith("snapshot-")
    ended(disk, "snapshot", name="data", kind="Volume")
