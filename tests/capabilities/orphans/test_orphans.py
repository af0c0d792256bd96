"""What nobody wants is found at every kind of site, told with its cost, and deleted only when a person approves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.capabilities.orphans.kinds import OrphanSpec
from groundcontrol.capabilities.orphans.logic import found_at, key_in, sentence
from groundcontrol.kernel.claims import owners_at
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Store
from groundcontrol.ports.cloud import Mark, Thing
from groundcontrol.ports.marks import Whose
from tests.capabilities.clouds.sky import Sky, sky
from tests.federation import Federation, federation

ADA = Subject("user:ada", frozenset(), frozenset({"read", "write", "approve"}))


def hasten(fed: Federation) -> None:
    finder = fed.runtime.reconciler("orphan-finder")
    finder.every, finder.grace = 0.05, 0.3


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        hasten(found.fed)
        yield found


def records(fed: Federation, sort: str = "orphan") -> list[Doc]:
    return [d for d in fed.all("Orphan") if d["spec"]["sort"] == sort]


def plan(fed: Federation) -> dict[str, Any] | None:
    return next((p for p in fed.runtime.plans.list("held") if p["id"] == "orphans:bari"), None)


def leave_behind(here: Sky, name: str = "data", size: int = 7) -> str:
    """A volume that its resource left behind."""
    here.apply("Volume", name, size=size, deletion="keep")
    here.ready("Volume", name)
    id = str(here.status("Volume", name)["id"])
    here.cloud.alter("volume", id, created=here.cloud.clock() - 50 * 3600)
    here.listed("volume", id)
    here.fed.delete("Volume", name, "alpha")
    here.fed.until(lambda: here.fed.get("Volume", name, "alpha") is None)
    return id


def test_what_was_left_behind_is_told_with_its_cost_and_swept_when_approved(here: Sky) -> None:
    id = leave_behind(here)
    (record,) = here.fed.until(lambda: records(here.fed))
    assert (record["spec"]["id"], record["spec"]["owner"]) == (id, "Volume alpha/data")
    here.fed.until(lambda: records(here.fed)[0]["status"]["gibHours"] == 350)
    line = "volume data: made for Volume alpha/data, which is gone, for 2 days"
    here.fed.until(lambda: here.fed.get("Site", "bari")["status"]["strays"] == [line])
    held = here.fed.until(lambda: plan(here.fed))
    assert [c["target"]["id"] for c in held["changes"]] == [id]
    here.fed.settled()
    assert here.calls("delete") == []
    here.fed.runtime.plans.approve_bound(
        "orphans:bari", "delete", 5, here.cloud.clock() + 600, ADA, "a bound is no look"
    )
    here.fed.settled()
    assert here.calls("delete") == []
    here.fed.runtime.plans.approve(held["id"], plan(here.fed)["digest"], ADA, "looked at it")
    here.fed.until(lambda: here.made("volume") == [])
    here.fed.until(lambda: records(here.fed) == [])
    assert [c[2] for c in here.calls("delete")] == [id]
    with here.fed.runtime.store.reading() as conn:
        assert ("volume", id) not in owners_at(conn, "site/bari")


def test_what_is_wanted_again_is_no_orphan_and_is_not_swept(here: Sky) -> None:
    id = leave_behind(here)
    held = here.fed.until(lambda: plan(here.fed))
    here.apply("Volume", "data", size=7)
    here.ready("Volume", "data")
    assert here.status("Volume", "data")["id"] == id
    here.fed.until(lambda: records(here.fed) == [] and plan(here.fed) is None)
    with pytest.raises(Exception, match="no plan"):
        here.fed.runtime.plans.approve(held["id"], held["digest"], ADA, "too late")
    here.fed.settled()
    assert here.only("volume").id == id


def test_an_approval_does_not_sweep_what_was_taken_over_meanwhile(here: Sky) -> None:
    id = leave_behind(here)
    held = here.fed.until(lambda: plan(here.fed))
    release = here.cloud.hang("look")
    here.fed.runtime.plans.approve(held["id"], held["digest"], ADA, "looked at it")
    here.apply("Volume", "data", size=7)
    release.set()
    here.ready("Volume", "data")
    here.fed.settled()
    found = here.status("Volume", "data")["id"]
    assert [t.id for t in here.made("volume")] == [found]
    assert found == id or here.calls("delete")


def test_a_mark_of_a_lost_incarnation_is_an_orphan_when_its_resource_has_another_thing(here: Sky) -> None:
    here.apply("Volume", "data", size=1)
    here.ready("Volume", "data")
    mark = Mark(
        installation=here.fed.runtime.store.installation, owner="old", owner_key="Volume alpha/data", change="c"
    )
    old = here.cloud.add("volume", project=here.status("Project", "lab", "")["id"], name="data", size=1)
    here.cloud.alter("volume", old, mark=mark)
    here.fed.until(lambda: [d["spec"]["id"] for d in records(here.fed)] == [old])


def test_strays_of_our_projects_are_told_and_never_planned(here: Sky) -> None:
    project = here.status("Project", "lab", "")["id"]
    stray = here.cloud.add("server", project=project, name="miner", flavor="f-big", power="on")
    here.cloud.add("server", project="p-own", name="not ours to judge", flavor="f-big", power="on")
    here.cloud.add("security_group", project=project, name="default", rules=[])
    (record,) = here.fed.until(lambda: records(here.fed, "stray"))
    assert record["spec"]["id"] == stray
    here.fed.until(lambda: records(here.fed, "stray")[0]["status"].get("cores") == 4)
    here.fed.settled()
    assert len(records(here.fed, "stray")) == 1
    assert plan(here.fed) is None
    here.cloud.lose("server", stray)
    here.fed.until(lambda: records(here.fed, "stray") == [])


def test_a_partial_listing_forgets_nothing_and_finds_what_it_names(here: Sky) -> None:
    leave_behind(here)
    here.fed.until(lambda: records(here.fed))
    here.cloud.deny("volume")
    project = here.status("Project", "lab", "")["id"]
    here.cloud.add("server", project=project, name="miner", flavor="f-big", power="on")
    here.fed.until(lambda: records(here.fed, "stray"))
    here.fed.settled()
    assert len(records(here.fed)) == 1


def test_what_a_living_resource_could_still_take_over_is_no_orphan(here: Sky) -> None:
    leave_behind(here)
    here.fed.until(lambda: records(here.fed))
    here.apply("Volume", "data", size=7, adopt="volume-nothing")
    here.fed.until(lambda: here.fed.ready("Volume", "data", "alpha") == ("False", "Blocked"))
    here.fed.until(lambda: records(here.fed) == [])
    here.fed.settled(0.6)
    assert records(here.fed) == []
    assert plan(here.fed) is None


def test_the_plan_of_a_restored_database_does_not_sweep(here: Sky) -> None:
    id = leave_behind(here)
    here.fed.until(lambda: plan(here.fed))
    fed = here.fed
    fed.runtime.close()
    store = Store(f"sqlite:///{fed.runtime.data / 'ground.db'}", fed.runtime.kinds, restored="rolled back")
    store.open()
    store.close()
    fed.runtime = fed._build()
    fed.runtime.open()
    hasten(fed)
    fed.until(lambda: records(fed))
    fed.settled(0.6)
    (held,) = fed.runtime.plans.list("held")
    assert (held["id"].split(":")[0], held["changes"]) == ("restore", [])
    fed.runtime.plans.approve(held["id"], held["digest"], ADA, "act again")
    fed.until(lambda: plan(fed))
    fed.settled()
    assert [t.id for t in here.made("volume")] == [id]


def test_orphans_on_hosts_are_swept_the_same_way(tmp_path: Path) -> None:
    with federation(tmp_path) as fed:
        fed.sites("bari")
        hasten(fed)
        fed.service("web")
        fed.until_ready("Service", "web", "alpha")
        (unit,) = fed.units()
        tags = {"installation": fed.runtime.store.installation, "owner": "gone", "owner_key": "alpha/old"}
        fed.host("bari").create("left", unit.spec, tags, epoch=99)
        held = fed.until(lambda: plan(fed))
        fed.host("bari")._epoch = 0
        fed.runtime.plans.approve(held["id"], held["digest"], ADA, "looked at it")
        fed.until(lambda: [u.id for u in fed.units()] == [unit.id])
        fed.until(lambda: fed.all("Orphan") == [])


def test_a_site_waits_for_what_belongs_to_resources(here: Sky) -> None:
    here.fed.delete("Site", "bari")
    here.fed.settled()
    assert here.fed.get("Site", "bari") is not None
    here.fed.delete("Project", "lab")
    here.fed.until(lambda: here.fed.get("Site", "bari") is None)
    assert here.made("project") == []


def test_the_records_go_with_their_site(here: Sky) -> None:
    leave_behind(here)
    here.fed.until(lambda: records(here.fed))
    here.apply("Project", "lab", "", namespaces=["alpha"], deletion="keep")
    here.fed.delete("Project", "lab")
    here.fed.until(lambda: here.fed.get("Project", "lab") is None)
    here.fed.delete("Site", "bari")
    here.fed.until(lambda: here.fed.get("Site", "bari") is None)
    here.fed.until(lambda: here.fed.all("Orphan") == [])
    assert len(here.made("volume")) == 1


# ── pure ────────────────────────────────────────────────────────────────────────────────────────────────────────


def volume(id: str, installation: str = "", project: str = "p", **parts: Any) -> Thing:
    mark = Mark(installation=installation, owner="u", owner_key=f"Volume a/{id}", change="c") if installation else None
    return Thing(type="volume", id=id, project=project, mark=mark, **parts)


def test_what_is_nobodys() -> None:
    items = {
        ("volume", t.id): t
        for t in (
            volume("claimed", "i"), volume("awaited", "i"), volume("orphan", "i", "elsewhere"), volume("stray"),
            volume("stranger", "other"), volume("theirs", project="q"), volume("leaving", "i", state="leaving"),
        )
    }  # fmt: skip

    def awaited(mark: Whose, type_: str) -> bool:
        return mark.owner_key == "Volume a/awaited" and type_ == "volume"

    found = found_at("s", items, "i", {("volume", "claimed")}, awaited, {"p"})
    assert [(f.id, f.sort) for f in found] == [("orphan", "orphan"), ("stranger", "stray"), ("stray", "stray")]
    assert found[1].owner == "Volume a/stranger of installation other"


def test_words() -> None:
    spec = OrphanSpec(site="s", type="unit", id="u-1", sort="stray", owner="alpha/x of installation other")
    assert sentence(spec, 0, 0) == "u-1: not of this installation (of other)"
    assert sentence(spec.model_copy(update={"sort": "orphan", "owner": "alpha/x"}), 5, 20) == (
        "u-1: made for alpha/x, which is gone, for 5 hours, 20 core-hours"
    )
    assert key_in("Server alpha/web") == Key("Server", "alpha", "web")
    assert key_in("Project lab") == Key("Project", "", "lab")
    assert key_in("alpha/web") is None
