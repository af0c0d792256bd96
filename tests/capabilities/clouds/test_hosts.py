"""A host is closed, emptied by a Run with a choice for each server, seen to be empty, and handed back by a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.capabilities.clouds.procedures import ACTIONS
from groundcontrol.capabilities.procedures import CAPABILITY
from groundcontrol.kernel.errors import Conflict, Forbidden, GroundError, Invalid, NotFound, Refused
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from tests.capabilities.clouds.sky import Sky, sky

ADA = Subject.user("ada")
BARI = Key("Site", "", "bari")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        found.fed.apply("Namespace", "ops", {"group": "ops"})
        found.lan()
        for name in ("live", "cold", "halt"):
            found.server(name)
        for name in ("live", "cold", "halt"):
            found.ready("Server", name)
        yield found


def act(here: Sky, verb: str, /, who: Subject = ADA, **body: Any) -> Doc:
    return ACTIONS["Site", verb](here.fed.runtime, who, BARI, {"host": "h1", **body})


def open_(here: Sky) -> bool:
    return here.cloud.hosts.told()[0].enabled


def test_a_host_is_drained_and_handed_back(here: Sky) -> None:
    fed = here.fed
    with pytest.raises(Conflict, match="3 still run on h1: Server alpha/cold"):
        fed.until(lambda: _asked(here), "looked at anew")
    answer = act(here, "drain-host", namespace="ops", cold="alpha/cold", stop="alpha/halt")
    assert (answer["run"], answer["servers"]) == ("ops/drain-h1-1", 3)
    fed.until(lambda: here.status("Run", "drain-h1-1", "ops").get("phase") in ("Waiting", "Failed"), "waits", 60)
    assert here.status("Run", "drain-h1-1", "ops")["phase"] == "Waiting"
    assert not open_(here)
    placed = {t.name: (t.host, t.state) for t in here.made("server")}
    assert placed == {"live": ("h2", "ready"), "cold": ("h2", "ready"), "halt": ("h1", "off")}
    assert len(here.calls("act live-migrate")) == len(here.calls("act migrate")) == 1
    _approve(here)
    fed.until(lambda: here.status("Run", "drain-h1-1", "ops")["phase"] == "Succeeded", "succeeded", 60)
    assert open_(here)
    fed.until(lambda: all(t.state == "ready" for t in here.made("server")), "started again")


def _asked(here: Sky) -> bool:
    """True never: raises what `host-is-empty` says once it was looked."""
    try:
        act(here, "host-is-empty")
    except Conflict as error:
        if "looked at" not in error.message:
            raise
    return False


def _approve(here: Sky) -> None:
    answer = CAPABILITY.actions["Run", "approve"]
    answer(here.fed.runtime, ADA, Key("Run", "ops", "drain-h1-1"), {"reason": "the disk is new"})


def test_one_that_cannot_be_moved_keeps_the_host_from_being_handed_back(here: Sky) -> None:
    here.cloud.fail("act live-migrate", error=Refused("No valid host was found", cause="NoValidHost"))
    act(here, "drain-host", namespace="ops")
    here.fed.until(lambda: len(here.calls("act live-migrate")) == 3, "all were tried", 60)
    here.fed.until(lambda: sorted(t.host for t in here.made("server")) == ["h1", "h2", "h2"], "two are moved", 60)
    with pytest.raises(Conflict, match="1 still run on h1"):
        here.fed.until(lambda: _asked(here))
    assert here.status("Run", "drain-h1-1", "ops")["phase"] == "Running"
    assert not open_(here)


def test_wrong_inputs_are_told(here: Sky) -> None:
    wrong: tuple[tuple[Doc, str], ...] = (
        ({"host": "h9"}, "no host 'h9'.*known: h1, h2"),
        ({}, "needs the namespace"),
        ({"namespace": "ops", "how": "fast"}, "how: 'fast' is not one of live, cold, stop"),
        ({"namespace": "ops", "stop": "alpha/nobody"}, "stop: not on this host: alpha/nobody"),
    )
    for body, words in wrong:
        with pytest.raises(Invalid, match=words):
            act(here, "drain-host", **body)
    assert open_(here)


@pytest.mark.parametrize("verb", sorted(verb for _, verb in ACTIONS))
def test_hosts_are_not_for_members(here: Sky, verb: str) -> None:
    fed = here.fed
    fed.apply("Account", "bob", {})
    fed.apply("RoleBinding", "bob", {"role": "member", "subjects": ["user:bob"]})  # everywhere
    bob = Subject.user("bob")
    with pytest.raises((Forbidden, NotFound)):
        fed.runtime.access.require(bob, verb, "Site", name="bari")
    if verb != "host-is-empty":  # (which only looks, and is judged by the API and the Run that ask it)
        with pytest.raises(GroundError, match="may not"):
            act(here, verb, who=bob, namespace="ops")
    assert open_(here)


def test_what_is_nobodys_is_named_and_left(here: Sky) -> None:
    here.cloud.add("server", "s-stray", name="stray", power="on")
    here.cloud.alter("server", "s-stray", host="h1")
    world = here.fed.runtime.world
    here.fed.until(lambda: getattr(world.snapshot("site/bari").items.get(("server", "s-stray")), "host", "") == "h1")
    answer = act(here, "drain-host", namespace="ops")
    assert (answer["servers"], answer["notOurs"]) == (3, "s-stray")
