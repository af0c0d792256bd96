"""Translations of what a real cloud answered (`bodies/`, captured from 2026.2): JSON to things, errors and facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.drivers.openstack import facts, failures, making, marks, things
from groundcontrol.drivers.openstack.table import TABLE
from groundcontrol.kernel.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from groundcontrol.ports.cloud import FIELDS, IN_PLACE, UNMARKED, VERBS, Mark, Thing

BODIES = Path(__file__).parent / "bodies"


def body(name: str) -> Any:
    return json.loads((BODIES / f"{name}.json").read_text(encoding="utf-8"))


def told(type: str, around: things.Around | None = None) -> Thing:
    translate = TABLE[type].translate
    assert translate is not None
    return translate(body(type), around or things.Around())


def mark(type: str) -> Mark:
    return Mark(
        installation="i-1",
        owner="u-0123456789abcdef0123456789abcdef",
        owner_key=f"{type} alpha/web",
        change="c-0123456789abcdef01234567",
    )


def ports(of: str) -> things.Around:
    found = tuple(body(f"ports-of-{of}"))
    return things.Around(ports={body(of)["id"]: found}, port_by_id={p["id"]: p for p in found})


# ── things ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("type", sorted(FIELDS.keys() - {"quota"}))
def test_every_type_tells_its_name_project_and_mark(type: str) -> None:
    thing = told(type)
    assert thing.type == type
    assert thing.id
    if type not in UNMARKED | {"image"}:  # the image is one that the test bed made
        assert thing.mark == mark(type)
    if type not in ("flavor", "keypair", "project"):
        assert thing.project == body("volume")["os-vol-tenant-attr:tenant_id"]
    also = {"server": {"volumes"}}.get(type, set())
    assert thing.fields.keys() <= FIELDS[type] | also


def test_a_server() -> None:
    thing = told("server", ports("server"))
    group, network = body("security_group")["id"], body("network")["id"]
    assert (thing.state, thing.status, thing.task, thing.fault) == ("ready", "ACTIVE", "", "")
    assert thing.host.startswith("south-hv")
    assert thing.created > 1_700_000_000
    assert thing.fields == {
        "name": "web",
        "flavor": body("server")["flavor"]["id"],
        "image": body("image")["id"],
        "networks": [network],
        "security_groups": [group],
        "addresses": {network: [body("ports-of-server")[0]["fixed_ips"][0]["ip_address"]]},
        "keypair": "driver-key",
        "zone": "nova",
        "metadata": {"team": "red"},
        "power": "on",
        "locked": False,
        "volumes": [body("volume")["id"]],
    }


def test_what_a_server_does_not_tell_is_left_out() -> None:
    assert not {"networks", "security_groups", "addresses", "user_data", "boot_volume"} & told("server").fields.keys()


def test_a_server_that_failed_says_why() -> None:
    thing = things.server(body("server-failed"), things.Around())
    assert (thing.state, thing.cause) == ("failed", "NoValidHost")
    assert "No valid host" in thing.fault


@pytest.mark.parametrize(
    ("status", "task", "state", "power"),
    [
        ("ACTIVE", None, "ready", "on"),
        ("ACTIVE", "powering-off", "busy", "on"),
        ("ACTIVE", "deleting", "leaving", "on"),
        ("SHUTOFF", None, "off", "off"),
        ("SUSPENDED", None, "off", "off"),
        ("SHELVED_OFFLOADED", None, "off", "off"),
        ("VERIFY_RESIZE", None, "ready", "on"),
        ("RESIZE", "resize_migrating", "busy", None),
        ("BUILD", "spawning", "busy", "on"),
        ("BUILD", "deleting", "leaving", "on"),
        ("ERROR", None, "failed", None),
        ("DELETED", None, "leaving", None),
        ("SOMETHING_NEW", None, "busy", None),
    ],
)
def test_the_states_of_a_server(status: str, task: str | None, state: str, power: str | None) -> None:
    doc = {**body("server"), "status": status, "OS-EXT-STS:task_state": task}
    thing = things.server(doc, things.Around())
    assert (thing.state, thing.fields.get("power")) == (state, power)


def test_a_server_that_boots_from_a_volume_tells_its_image_and_volume() -> None:
    volume = {**body("volume"), "volume_image_metadata": {"image_id": "i1"}}
    volume["attachments"] = [{**volume["attachments"][0], "device": "/dev/vda"}]
    doc = {**body("server"), "image": ""}
    thing = things.server(doc, things.Around(volumes={volume["id"]: volume}))
    assert thing.fields["image"] == "i1"
    assert thing.fields["boot_volume"] == {"size": 1, "type": "standard"}


def test_a_volume() -> None:
    thing = told("volume")
    assert (thing.state, thing.status) == ("ready", "in-use")
    assert thing.fields["attached_to"] == body("server")["id"]
    assert (thing.fields["size"], thing.fields["type"], thing.fields["bootable"]) == (1, "standard", False)
    assert thing.fields["metadata"] == {"team": "red"}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("available", "ready"),
        ("creating", "busy"),
        ("detaching", "busy"),
        ("deleting", "leaving"),
        ("error", "failed"),
        ("error_deleting", "failed"),
    ],
)
def test_the_states_of_a_volume(status: str, state: str) -> None:
    assert things.volume({**body("volume"), "status": status}, things.Around()).state == state


def test_networks() -> None:
    lan, subnet = told("network").fields, told("subnet").fields
    assert (lan["description"], lan["shared"], lan["external"]) == ("inside", False, False)
    assert subnet["network"] == body("network")["id"]
    assert (subnet["cidr"], subnet["gateway"], subnet["dns"]) == ("10.77.0.0/24", "10.77.0.1", ["192.0.2.53"])
    assert subnet["pools"] == [{"start": "10.77.0.2", "end": "10.77.0.254"}]
    assert subnet["host_routes"] == [{"destination": "10.9.0.0/16", "nexthop": "10.77.0.9"}]
    assert told("router", ports("router")).fields["subnets"] == [body("subnet")["id"]]
    assert "subnets" not in told("router").fields
    assert told("floating_ip", ports("server")).fields["server"] == body("server")["id"]
    assert told("floating_ip").fields["server"] == body("server")["id"], "the port's own words tell it, too"


def test_the_rules_of_a_group_go_there_and_back() -> None:
    rules = told("security_group").fields["rules"]
    plain = {"direction": "ingress", "ethertype": "IPv4", "protocol": "tcp"}
    assert {**plain, "ports": "80", "remote": "0.0.0.0/0"} in rules
    assert {**plain, "ports": "8000-8080", "remote": ""} in rules
    grouped = {**plain, "ports": "", "remote": "group:g1"}
    for rule in (*rules, grouped):
        assert things.rule(making.rule("g", rule)) == rule


def test_an_image_whose_bytes_could_not_be_had_has_failed() -> None:
    doc = {**body("image"), "status": "queued", "os_glance_failed_import": "files"}
    thing = things.image(doc, things.Around())
    assert (thing.state, thing.cause) == ("failed", "BadImage")
    assert "could not fetch" in thing.fault
    assert things.image({**doc, "status": "active"}, things.Around()).state == "ready"


def test_the_properties_of_an_image_are_its_own() -> None:
    assert told("image").fields["properties"] == {}
    doc = {**body("image"), "hw_disk_bus": "virtio", "ground:owner": "u", "owner_user_name": "alice"}
    assert things.image(doc, things.Around()).fields["properties"] == {"hw_disk_bus": "virtio"}


def test_the_rest() -> None:
    assert told("flavor").fields["properties"] == {"hw:cpu_policy": "shared"}
    assert told("flavor").fields["cores"] == 100
    assert told("project").fields["description"] == "of alpha"
    assert told("keypair").id == "driver-key"
    limits = facts.quota_thing("p", body("quota")).fields
    assert limits.keys() == FIELDS["quota"]
    used = {u.resource: u.used for u in facts.uses("p", body("quota"))}
    assert used["instances"] == 2


def test_facts() -> None:
    (host,) = facts.hosts(
        body("hypervisors"), body("services"), [{"name": "ssd", "hosts": [body("services")[0]["host"]]}]
    )
    assert (host.up, host.enabled, host.zone, host.aggregates) == (True, True, "nova", ("ssd",))
    assert host.cores > 0
    assert facts.zones(body("zones")) == ("nova",)
    assert facts.versions(body("versions-compute")) == ("2.104", "2.1")
    assert facts.versions(body("versions-identity"))[0] == "3.14"
    assert facts.versions(body("versions-image"))[0] == "2.17"
    assert facts.versions(body("versions-block-storage")) == ("3.71", "3.0")
    assert facts.versions("<html>") == ("", "")


# ── marks ───────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = Mark(installation="i" * 40, owner="u" * 40, owner_key=f"Server {'n' * 63}/{'m' * 200}", change="c-" + "f" * 24)
ODD = Mark(installation="i,1", owner="u/2", owner_key="Server a-b/c.d [x] ä", change="c=3")


@pytest.mark.parametrize("given", [LONG, ODD, mark("Server")])
def test_a_mark_goes_there_and_back(given: Mark) -> None:
    assert marks.from_metadata(marks.metadata(given)) == given or given is LONG
    tags = marks.tags(given)
    assert marks.from_tags(["other", *reversed(tags)]) == given
    assert all(len(tag) <= marks.LONGEST_TAG and not {"/", ","} & set(tag) for tag in tags)
    text = marks.text(given, "what it is for", longest=60_000)
    assert (marks.from_text(text), marks.without_text(text)) == (given, "what it is for")


def test_a_short_text_holds_the_key_of_the_change_first() -> None:
    text = marks.text(LONG, "x" * 150, longest=255)
    assert len(text) <= 255
    found = marks.from_text(text)
    assert found is not None
    assert found.change == LONG.change


def test_what_is_not_ours_has_no_mark() -> None:
    assert marks.from_tags(["ground", "ground:x=1", "c=2"]) is None
    assert marks.from_metadata({"ground": "i"}) is None
    assert marks.from_text("made by hand [ground]") is None


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────

MEANT = [
    (Refused, "BadFlavor"),
    (Refused, "BadImage"),
    (Refused, "QuotaExceeded"),
    (Refused, "InvalidRequest"),
    (NotFound, ""),
    (Conflict, ""),
    (Refused, "InUse"),
    (Refused, "QuotaExceeded"),
    (NotFound, ""),
    (Refused, "InUse"),
    (Refused, "InUse"),
    (Refused, "InvalidRequest"),
    (Refused, "InUse"),
    (Refused, "InvalidRequest"),
    (NotFound, ""),
    (Refused, "InvalidRequest"),
    (AlreadyExists, ""),
    (NotFound, ""),
    (Refused, "InvalidRequest"),
]
"""What each of `bodies/errors.json` means."""


@pytest.mark.parametrize("number", range(len(MEANT)))
def test_what_a_real_cloud_refuses_is_understood(number: int) -> None:
    given = body("errors")[number]
    error = failures.failed("make it", given["method"], given["status"], given["body"], {})
    assert (type(error), getattr(error, "cause", "")) == MEANT[number], given
    assert error.message.startswith("make it: ")
    assert "no reason given" not in error.message


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_of_a_change_leaves_its_outcome_open(method: str, status: int) -> None:
    assert isinstance(failures.failed("x", method, status, {}, {}), OutcomeUnknown)


def test_a_policy_about_quotas_is_no_used_up_quota() -> None:
    said = {"NeutronError": {"type": "PolicyNotAuthorized", "message": "rule:get_quota is disallowed by policy"}}
    error = failures.failed("x", "GET", 403, said, {})
    assert isinstance(error, Refused)
    assert error.cause == "NotAuthorised"


def test_a_server_error_of_a_read_changes_nothing() -> None:
    bug = failures.failed("x", "GET", 500, {}, {})
    assert isinstance(bug, Refused)
    assert bug.cause == "RemoteBug"
    away = failures.failed("x", "GET", 503, {}, {"Retry-After": "7"})
    assert isinstance(away, Unavailable)
    assert not isinstance(away, OutcomeUnknown)
    assert away.retry_after == 7


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("No valid host was found. There are not enough hosts available.", "NoValidHost"),
        (
            "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures",
            "NoValidHost",
        ),
        ("Maximum number of ports exceeded", "QuotaExceeded"),
        ("Image 1234 is unacceptable: Unable to convert image to raw", "BadImage"),
        ("Flavor's disk is too small for requested image.", "BadFlavor"),
        ("Build of instance 1 aborted: something", "RemoteBug"),
        ("", "RemoteBug"),
    ],
)
def test_the_words_of_a_fault_are_sorted(text: str, cause: str) -> None:
    assert failures.fault_cause(text) == cause


def test_silence() -> None:
    assert isinstance(failures.lost("x", "POST", True, "no answer came"), OutcomeUnknown)
    assert not isinstance(failures.lost("x", "POST", False, "nobody listens"), OutcomeUnknown)
    assert not isinstance(failures.lost("x", "GET", True, "no answer came"), OutcomeUnknown)


def test_what_others_write_into_an_error_is_bounded_and_printable() -> None:
    said = failures.words({"badRequest": {"message": "a\x1b[31m\n<script>x</script> " + "y" * 5000}})
    assert len(said) <= failures.LONGEST_TEXT
    assert said.isprintable()
    assert "<script>" not in said


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_type_and_verb_of_the_port_is_there() -> None:
    from groundcontrol.drivers.openstack import acting
    from groundcontrol.drivers.openstack.changing import Changes

    assert TABLE.keys() | {"quota"} == FIELDS.keys() | {"port"}
    assert making.REQUESTS.keys() | {"quota"} == FIELDS.keys()
    changeable = {type for type, fields in IN_PLACE.items() if fields}
    assert {type for type in changeable if not hasattr(Changes, f"_{type}")} == set()
    assert acting.SERVER.keys() | {"attach-volume", "detach-volume"} == VERBS["server"]
    assert acting.VOLUME.keys() | {"snapshot"} == VERBS["volume"]
    assert acting.HOST.keys() == VERBS["host"]
