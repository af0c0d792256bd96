"""Things in a cloud are made, kept, changed, replaced and taken down, through the real store, loop and world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.claims import owners_at
from groundcontrol.kernel.errors import Invalid, OutcomeUnknown, Unavailable
from groundcontrol.kernel.resource import condition
from groundcontrol.kernel.rights import Subject
from groundcontrol.ports.cloud import Mark
from tests.capabilities.clouds.sky import KEY, Sky, declare, sky


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        yield found


def test_a_server_with_all_it_needs_is_made_and_goes(here: Sky) -> None:
    here.server(networks=["lan"], securityGroups=["web"], keypair="ada")
    here.apply("SecurityGroup", "web", rules=[{"protocol": "tcp", "ports": "443"}, {"group": "self"}])
    here.apply("Keypair", "ada", publicKey=KEY)
    here.apply("Network", "lan")
    here.apply("Subnet", "lan", network="lan", cidr="10.1.0.0/24")
    here.apply("Router", "way", externalNetwork="cloud:public", subnets=["lan"])
    here.apply("Volume", "data", size=10, attachedTo="web")
    here.apply("FloatingIP", "front", network="cloud:public", server="web")
    kinds = {"Server": "web", "Volume": "data", "FloatingIP": "front", "Router": "way", "SecurityGroup": "web"}
    for kind, name in kinds.items():
        here.ready(kind, name)
    server, group = here.only("server"), here.only("security_group")
    assert server.mark is not None
    assert server.mark.owner_key == "Server alpha/web"
    assert server.fields["security_groups"] == [group.id]
    assert server.fields["keypair"] == "alpha.ada"
    assert here.only("volume").fields["attached_to"] == server.id
    assert {"remote": f"group:{group.id}", "direction": "ingress"}.items() <= group.fields["rules"][-1].items()
    assert here.status("FloatingIP", "front")["addresses"]
    for kind in ("Server", "Volume", "FloatingIP", "Router", "SecurityGroup"):
        here.fed.delete(kind, kinds[kind], "alpha")
    for kind, name in (("Keypair", "ada"), ("Subnet", "lan"), ("Network", "lan")):
        here.fed.delete(kind, name, "alpha")
    here.fed.delete("Project", "lab")
    here.fed.until(lambda: here.fed.get("Project", "lab") is None)
    assert [t for t in here.cloud.things() if t.mark is not None or t.type == "keypair"] == []


def test_what_others_need_goes_last_and_says_why(here: Sky) -> None:
    here.lan()
    here.fed.delete("Network", "lan", "alpha")
    here.said("Network", "lan", "still used by Subnet alpha/lan")
    here.fed.settled()
    assert here.calls("delete") == []
    here.fed.delete("Subnet", "lan", "alpha")
    here.fed.until(lambda: here.fed.get("Network", "lan", "alpha") is None)
    assert [c[1] for c in here.calls("delete")] == ["subnet", "network"]


# ── drift ───────────────────────────────────────────────────────────────────────────────────────────────────────

OPEN = {"direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "ports": "22", "remote": "0.0.0.0/0"}


def by_hand(here: Sky) -> str:
    """Somebody opens a port."""
    group = here.only("security_group")
    here.cloud.edit("security_group", group.id, rules=[*group.fields["rules"], OPEN])
    return group.id


def group(here: Sky, **spec: Any) -> None:
    here.apply("SecurityGroup", "web", rules=[{"protocol": "tcp", "ports": "443"}], **spec)
    here.ready("SecurityGroup", "web")
    # What is changed by hand before it was once seen as wanted cannot be told from what was not done yet.
    here.fed.until(lambda: "rules" in here.status("SecurityGroup", "web")["applied"])


def test_a_rule_opened_by_hand_is_closed_and_told(here: Sky) -> None:
    group(here)
    by_hand(here)
    (event,) = here.fed.until(lambda: here.fed.events("DriftCorrected"))
    assert event["type"] == "Warning"
    assert OPEN in event["fields"]["spec.rules"][0]
    here.fed.until(lambda: OPEN not in here.only("security_group").fields["rules"])


@pytest.mark.parametrize("how", [{"drift": "report"}, {"driftOf": {"rules": "report"}}])
def test_a_rule_opened_by_hand_may_be_only_reported(here: Sky, how: dict[str, Any]) -> None:
    group(here, **how)
    by_hand(here)
    here.fed.until(lambda: here.fed.ready("SecurityGroup", "web", "alpha", "Drift") == ("True", "ChangedByHand"))
    here.fed.settled()
    assert OPEN in here.only("security_group").fields["rules"]
    assert here.calls("change") == []
    here.apply("SecurityGroup", "web", rules=[{"protocol": "tcp", "ports": "80"}], **how)
    here.fed.until(lambda: OPEN not in here.only("security_group").fields["rules"], "a changed spec is done")


def test_a_quota_raised_by_hand_is_proposed_and_others_are_left_alone(here: Sky) -> None:
    here.apply("Quota", "lab", "", project="lab", limits={"instances": 5}, drift="propose")
    here.ready("Quota", "lab", "")
    project = here.status("Project", "lab", "")["id"]
    here.fed.until(lambda: here.cloud.get("quota", project).fields["instances"] == 5)
    here.fed.until(lambda: "instances" in here.status("Quota", "lab", "")["applied"])
    here.cloud.edit("quota", project, instances=9, cores=77)
    here.fed.until(lambda: here.fed.ready("Quota", "lab", "", "Drift") == ("True", "Proposed"))
    here.fed.settled()
    assert here.cloud.get("quota", project).fields["instances"] == 9
    assert len(here.fed.events("Drift")) == 1
    here.fed.delete("Quota", "lab")
    here.fed.until(lambda: here.fed.get("Quota", "lab") is None)
    assert here.cloud.get("quota", project).fields["instances"] == 9


@pytest.mark.parametrize(("power", "after"), [("on", "ready"), ("user", "off")])
def test_a_server_stopped_by_its_user(here: Sky, power: str, after: str) -> None:
    here.lan()
    here.server(power=power)
    here.ready("Server", "web")
    here.fed.until(lambda: here.status("Server", "web")["applied"])
    here.cloud.act("server", here.only("server").id, "stop", {})
    if power == "on":
        here.fed.until(lambda: here.fed.events("DriftCorrected"))
    else:
        here.fed.until(lambda: here.fed.ready("Server", "web", "alpha") == ("True", "Off"))
    here.fed.settled()
    assert here.only("server").state == after


# ── changes of the spec ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_is_changed_in_place_and_resized(here: Sky) -> None:
    here.lan()
    here.server()
    here.ready("Server", "web")
    first = here.only("server").id
    here.server(metadata={"team": "red"}, flavor="cloud:big", locked=True)
    here.fed.until(lambda: here.only("server").fields["flavor"] == "f-big" and here.only("server").status == "ACTIVE")
    here.fed.until(lambda: here.only("server").fields["locked"] and here.only("server").fields["metadata"])
    here.ready("Server", "web")
    assert here.only("server").id == first
    here.fed.delete("Server", "web", "alpha")
    here.fed.until(lambda: here.fed.get("Server", "web", "alpha") is None, "its lock is taken off first")
    assert here.made("server") == []


def test_a_replacement_waits_for_a_person(here: Sky) -> None:
    here.cloud.add("image", "i-new", name="new", visibility="public", project="p-admin")
    here.lan()
    here.server()
    here.ready("Server", "web")
    first = here.only("server").id
    here.server(image="cloud:new")
    here.fed.until(lambda: here.fed.ready("Server", "web", "alpha", "Held")[0] == "True")
    here.fed.settled()
    assert here.only("server").id == first
    (plan,) = here.fed.runtime.plans.list("held")
    assert plan["changes"][0]["fields"] == {"spec.image": ["i-debian", "i-new"]}
    board = here.fed.runtime.plans
    board.approve(plan["id"], plan["digest"], Subject("user:ada", frozenset(), frozenset({"approve"})), "seen")
    here.fed.until(lambda: [t.fields["image"] for t in here.made("server") if t.state == "ready"] == ["i-new"])
    here.ready("Server", "web")
    assert here.only("server").id != first
    assert len(here.calls("create")) == 5  # project, network, subnet, two servers


def test_a_replacement_that_is_allowed_is_made_once(here: Sky) -> None:
    here.cloud.add("image", "i-new", name="new", visibility="public", project="p-admin")
    here.lan()
    here.server(replace="allowed")
    here.ready("Server", "web")
    first = here.only("server").id
    here.server(replace="allowed", image="cloud:new")
    here.fed.until(lambda: [t.fields["image"] for t in here.made("server") if t.state == "ready"] == ["i-new"])
    here.fed.settled()
    assert len([c for c in here.calls("create") if c[1] == "server"]) == 2
    assert {c[2] for c in here.calls("delete")} == {first}


def test_nothing_moves_to_another_site(here: Sky) -> None:
    here.apply("Network", "lan")
    with pytest.raises(Invalid, match="cannot move"):
        here.apply("Network", "lan", site="cnaf")


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_server_is_made_anew_so_often_and_its_cause_kept(here: Sky) -> None:
    here.lan()
    here.cloud.build("out of disk", "out of disk again", None)
    here.server(retry={"attempts": 3, "delay": 0.05})
    here.ready("Server", "web")
    assert here.only("server").state == "ready"
    assert len([c for c in here.calls("create") if c[1] == "server"]) == 3
    assert here.status("Server", "web")["fault"]["message"] == "out of disk again"
    assert len(here.fed.events("Retried")) == 2


def test_attempts_end_and_the_failed_server_stays_to_be_looked_at(here: Sky) -> None:
    here.lan()
    here.server(flavor="cloud:huge", retry={"attempts": 2, "delay": 0.05})
    here.fed.until(lambda: here.status("Server", "web").get("attempts") == 2)
    here.fed.until(lambda: here.fed.ready("Server", "web", "alpha") == ("False", "NoValidHost"))
    here.fed.settled()
    assert here.only("server").state == "failed"
    assert len([c for c in here.calls("create") if c[1] == "server"]) == 2
    ready = condition(here.ready("Server", "web", status="False"), "Ready")
    assert ready["message"].startswith("no host of the cloud has room for it")


def test_a_server_that_was_ready_once_is_never_thrown_away(here: Sky) -> None:
    here.lan()
    here.server(retry={"attempts": 5, "delay": 0})
    here.ready("Server", "web")
    first = here.only("server").id
    here.cloud.alter("server", first, state="failed", status="ERROR", fault="the host lost its memory")
    here.fed.until(lambda: here.fed.ready("Server", "web", "alpha") == ("False", "Failed"))
    here.fed.settled()
    assert here.only("server").id == first


def test_a_used_up_quota_is_said_in_words_and_heals(here: Sky) -> None:
    project = here.status("Project", "lab", "")["id"]
    here.cloud.edit("quota", project, networks=0)
    here.apply("Network", "lan")
    here.fed.until(lambda: here.fed.ready("Network", "lan", "alpha") == ("False", "QuotaExceeded"))
    said = condition(here.fed.get("Network", "lan", "alpha") or {}, "Ready")["message"]
    assert said == "the project's quota is used up: quota of networks exceeded: 0 of 0 used, 1 asked for"
    here.cloud.edit("quota", project, networks=5)
    here.ready("Network", "lan")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_create_without_an_answer_is_made_once(here: Sky, moment: Any) -> None:
    here.cloud.fail("create", "network", moment=moment, error=OutcomeUnknown("no answer"))
    here.apply("Network", "lan")
    here.ready("Network", "lan")
    assert here.only("network").state == "ready"
    assert len(here.fed.events("FoundAgain")) == (moment == "after")


def test_what_vanished_is_said_and_made_again(here: Sky) -> None:
    here.lan()
    here.server()
    here.ready("Server", "web")
    first = here.only("server").id
    here.cloud.lose("server", first)
    here.fed.until(lambda: here.made("server") and here.only("server").state == "ready")
    here.ready("Server", "web")
    assert here.fed.events("Vanished")[0]["type"] == "Warning"
    assert here.fed.events("Recreated")
    with here.fed.runtime.store.reading() as conn:
        assert ("server", first) not in owners_at(conn, "site/bari"), "the claim on it is let go"


def test_a_cloud_that_does_not_answer_is_unknown_and_nothing_is_made_twice(here: Sky) -> None:
    here.apply("Network", "lan")
    here.ready("Network", "lan")
    hanging = [here.cloud.hang("look"), here.cloud.hang("wait")]
    here.fed.until_ready("Network", "lan", "alpha", status="Unknown")
    for call in hanging:
        call.set()
    here.ready("Network", "lan")
    assert len(here.made("network")) == 1


def test_a_type_that_cannot_be_listed_waits_and_others_go_on(tmp_path: Path) -> None:
    with sky(tmp_path, declare_site=False) as here:
        here.cloud.deny("volume")
        declare(here)
        here.apply("Network", "lan")
        here.apply("Volume", "data", size=1)
        here.ready("Network", "lan")
        here.fed.until(
            lambda: "could not be listed" in condition(here.fed.get("Volume", "data", "alpha"), "Ready")["message"]
        )
        assert here.made("volume") == []
        here.cloud.deny()
        here.ready("Volume", "data")


def test_a_deletion_that_is_accepted_and_never_done_is_asked_for_again(
    here: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundcontrol.capabilities.clouds.reconcile.ASK_AGAIN", 0.5)
    here.apply("Volume", "data", size=1)
    here.ready("Volume", "data")
    here.cloud.stick("delete")
    here.fed.delete("Volume", "data", "alpha")
    here.fed.until(lambda: len(here.calls("delete")) >= 2, "it is asked for again")
    assert here.fed.get("Volume", "data", "alpha") is not None
    here.fed.until(lambda: here.fed.events("DeletedAgain"), "and told")
    here.cloud.stick()
    here.fed.until(lambda: here.fed.get("Volume", "data", "alpha") is None)
    assert here.made("volume") == []


def test_what_is_to_be_kept_stays_when_its_resource_goes(here: Sky) -> None:
    here.apply("Volume", "data", size=1, deletion="keep")
    here.ready("Volume", "data")
    here.fed.delete("Volume", "data", "alpha")
    here.fed.until(lambda: here.fed.get("Volume", "data", "alpha") is None)
    assert here.only("volume").state == "ready"
    assert here.calls("delete") == []
    here.apply("Volume", "data", size=1)
    here.ready("Volume", "data")
    assert len(here.made("volume")) == 1, "the same one is taken over again"


# ── whose it is ─────────────────────────────────────────────────────────────────────────────────────────────────


def lab(here: Sky) -> str:
    return str(here.status("Project", "lab", "")["id"])


def test_what_is_adopted_is_not_touched_until_the_spec_changes(here: Sky) -> None:
    volume = here.cloud.add("volume", project=lab(here), name="old", size=5, description="by hand", type="fast")
    here.apply("Volume", "data", size=7, description="ours", adopt=volume)
    here.ready("Volume", "data")
    here.fed.until(lambda: here.fed.ready("Volume", "data", "alpha", "Drift") == ("True", "LeftAsFound"))
    here.fed.settled()
    assert here.calls("change", "create", "delete") == [("create", "project", "")]
    here.apply("Volume", "data", size=8, description="ours", adopt=volume)
    here.fed.until(lambda: here.cloud.get("volume", volume).fields["size"] == 8)
    here.fed.settled()
    assert here.cloud.get("volume", volume).fields["description"] == "by hand", "only what changed in the spec"
    here.cloud.edit("volume", volume, description="another")
    here.fed.until(lambda: here.cloud.get("volume", volume).fields["description"] == "ours", "drift as any other")


def test_nobody_adopts_what_is_in_another_project_or_belongs_to_another(here: Sky) -> None:
    theirs = here.cloud.add("volume", project="p-own", name="theirs", size=5)
    here.apply("Volume", "thief", size=5, adopt=theirs)
    here.fed.until(lambda: here.fed.ready("Volume", "thief", "alpha") == ("False", "Blocked"))
    ours = here.cloud.add("volume", project=lab(here), name="ours", size=5)
    here.apply("Volume", "first", size=5, adopt=ours)
    here.ready("Volume", "first")
    here.apply("Volume", "second", size=5, adopt=ours)
    here.fed.until(lambda: here.fed.ready("Volume", "second", "alpha") == ("False", "Claimed"))
    here.apply("Volume", "third", size=5, adopt="volume-nothing")
    here.fed.until(lambda: here.fed.ready("Volume", "third", "alpha") == ("False", "Blocked"))


def test_a_mark_of_another_installation_keeps_it_from_being_made_twice(here: Sky) -> None:
    mark = Mark(installation="lost", owner="u1", owner_key="Volume alpha/data", change="c-1")
    volume = here.cloud.add("volume", project=lab(here), name="data", size=5)
    here.cloud.alter("volume", volume, mark=mark)
    here.listed("volume", volume)
    here.apply("Volume", "data", size=5)
    here.fed.until(lambda: here.fed.ready("Volume", "data", "alpha") == ("False", "Blocked"))
    here.fed.settled()
    assert len(here.made("volume")) == 1
    here.apply("Volume", "data", size=5, adopt="new")
    here.ready("Volume", "data")
    assert len(here.made("volume")) == 2


def test_a_mark_in_another_project_is_worth_nothing(here: Sky) -> None:
    other = here.cloud.add("project", name="other")
    mark = Mark(installation=here.fed.runtime.store.installation, owner="u1", owner_key="Volume alpha/data", change="c")
    forged = here.cloud.add("volume", project=other, name="data", size=5)
    here.cloud.alter("volume", forged, mark=mark)
    here.listed("volume", forged)
    here.apply("Volume", "data", size=5)
    here.ready("Volume", "data")
    assert here.status("Volume", "data")["id"] != forged


def test_a_namespace_uses_only_projects_that_grant_it(here: Sky) -> None:
    here.fed.apply("Namespace", "beta", {"group": "experiments/beta"})
    for project in ("lab", "nothing"):
        with pytest.raises(Invalid, match=f"there is no project {project} at site bari for namespace beta"):
            here.apply("Network", "lan", "beta", project=project)
    here.apply("Project", "lab", "", namespaces=["alpha", "beta"])
    here.cloud.fail("create", "network", error=Unavailable("later"))
    here.apply("Network", "lan", "beta")
    here.apply("Project", "lab", "", namespaces=["alpha"])
    here.ready("Network", "lan", "beta", status="False")
    here.fed.settled()
    found = condition(here.fed.get("Network", "lan", "beta") or {}, "References")
    assert found["status"] == "False" or here.made("network")


def test_a_project_does_not_go_from_under_what_is_in_it(here: Sky) -> None:
    stray = here.cloud.add("volume", project=lab(here), name="precious", size=1)
    here.cloud.add("security_group", project=lab(here), name="default", rules=[])
    here.listed("volume", stray)
    here.fed.delete("Project", "lab")
    here.said("Project", "lab", "things that no resource owns are still in it: volume precious", "")
    here.fed.settled()
    assert here.calls("delete") == []
    here.cloud.lose("volume", stray)
    here.fed.until(lambda: here.fed.get("Project", "lab") is None)
    assert here.made("project") == []


def test_references_wait_and_are_never_guessed(here: Sky) -> None:
    here.cloud.add("image", name="twice", visibility="public", project="p-admin")
    here.cloud.add("image", name="twice", visibility="public", project="p-admin")
    here.cloud.add("image", name="secret", visibility="private", project="p-admin")
    for name, image, said in (
        ("a", "cloud:twice", "2 images of the site are called twice"),
        ("b", "cloud:secret", "there is no image secret at the site that this project may use"),
        ("c", "missing", "there is no Image missing"),
    ):
        here.server(name, image=image, networks=["lan"])
        here.said("Server", name, said)
        here.said("Server", name, "networks: there is no Network alpha/lan")
    assert here.made("server") == []


def test_nothing_new_is_made_at_a_site_in_maintenance(here: Sky) -> None:
    here.fed.apply("Site", "bari", {"driver": "memory-cloud", "endpoint": "memory:", "state": "maintenance"})
    here.apply("Network", "lan")
    here.fed.until(lambda: here.fed.ready("Network", "lan", "alpha") == ("False", "Waiting"))
    here.fed.apply("Site", "bari", {"driver": "memory-cloud", "endpoint": "memory:", "state": "active"})
    here.ready("Network", "lan")


def test_a_keypair_of_another_key_is_not_taken(here: Sky) -> None:
    here.cloud.add("keypair", "alpha.ada", name="alpha.ada", public_key="ssh-rsa AAAA other")
    here.apply("Keypair", "ada", publicKey=KEY)
    here.fed.until(lambda: here.fed.ready("Keypair", "ada", "alpha") == ("False", "Blocked"))
    here.cloud.lose("keypair", "alpha.ada")
    here.ready("Keypair", "ada")
    here.fed.delete("Keypair", "ada", "alpha")
    here.fed.until(lambda: here.fed.get("Keypair", "ada", "alpha") is None)
    assert here.cloud.things("keypair") == []
