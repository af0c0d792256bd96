"""Placement, roll-out, rollback and restart, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from groundcontrol.capabilities.services.kinds import InstanceSpec, ServiceSpec, ServiceStatus
from groundcontrol.capabilities.services.logic import (
    Copy,
    Run,
    SiteView,
    copy_name,
    decide,
    differences,
    drift_name,
    endpoints,
    judge,
    kept_by_hand,
    overdue,
    restart_after,
    revision,
)


def spec(**given: Any) -> ServiceSpec:
    return ServiceSpec.model_validate({"sample": "web", **given})


def site(name: str, **given: Any) -> SiteView:
    fields = {"state": "active", "trusted": True, "matches": True, "rack": name, "free_cores": 8, "free_memory_mb": 999}
    return SiteView(name, **(fields | given))


def copy(wanted: ServiceSpec, index: int, where: str, ready: str = "True", **given: Any) -> Copy:
    target = revision(wanted)
    template = wanted.model_copy(update={"replicas": 1})
    made = InstanceSpec(service="s", index=index, site=where, revision=target, template=template)
    return Copy(copy_name("s", index, target, where), index, where, target, made, ready, **given)  # type: ignore[arg-type]


def steps(decision: Any) -> list[tuple[str, int | None, str | None]]:
    return [(s.verb, s.spec.index if s.spec else None, s.spec.site if s.spec else None) for s in decision.steps]


def run(wanted: ServiceSpec, copies: list[Copy], sites: list[SiteView], **given: Any) -> Any:
    status = given.pop("status", ServiceStatus())
    return decide("s", wanted, status, copies, sites, given.pop("endpoints", {}), **given)


def test_first_copies_go_where_most_is_free() -> None:
    wanted = spec(replicas=2)
    decision = run(wanted, [], [site("a", free_cores=1), site("b", free_cores=5)])
    assert steps(decision) == [("create", 0, "b"), ("create", 1, "a")]


@pytest.mark.parametrize(
    ("sites", "why"),
    [
        ([], "there is no site"),
        ([site("a", matches=False)], "a: not selected"),
        ([site("a", trusted=False)], "a: does not answer"),
        ([site("a", state="maintenance")], "a: is in state maintenance"),
        ([site("a", free_cores=1)], "a: 1 cores free, 2 needed"),
        ([site("a", free_memory_mb=10)], "a: 10 MiB free, 100 needed"),
    ],
    ids=["no site", "selector", "silent", "maintenance", "cores", "memory"],
)
def test_what_cannot_be_placed_says_why(sites: list[SiteView], why: str) -> None:
    decision = run(spec(resources={"cores": 2, "memoryMb": 100}), [], sites)
    assert decision.steps == ()
    assert decision.problems == (f"replica 0 cannot be placed: {why}",)


def test_spread_over_sites_never_doubles_up() -> None:
    wanted = spec(replicas=3, placement={"spread": "site"})
    decision = run(wanted, [], [site("a"), site("b")])
    assert [s[2] for s in steps(decision)] == ["a", "b"]
    assert decision.problems == ("replica 2 cannot be placed: a: has a replica already; b: has a replica already",)


def test_spread_over_racks_counts_racks_not_sites() -> None:
    wanted = spec(replicas=2, placement={"spread": "rack"})
    decision = run(wanted, [], [site("a", rack="R1"), site("b", rack="R1"), site("c", rack="R2")])
    assert [s[2] for s in steps(decision)] == ["a", "c"]


def test_capacity_is_counted_while_placing() -> None:
    wanted = spec(replicas=3, resources={"cores": 2})
    decision = run(wanted, [], [site("a", free_cores=4)])
    assert len(decision.steps) == 2
    assert "0 cores free, 2 needed" in decision.problems[0]


def test_nothing_to_do_when_all_is_there() -> None:
    wanted = spec(replicas=2)
    decision = run(wanted, [copy(wanted, 0, "a"), copy(wanted, 1, "b")], [site("a"), site("b")])
    assert decision.steps == ()


def test_an_unknown_copy_is_kept_and_not_made_elsewhere() -> None:
    wanted = spec()
    decision = run(wanted, [copy(wanted, 0, "a", "Unknown")], [site("a", trusted=False), site("b")])
    assert decision.steps == ()


def test_scaling_down_is_destructive_and_takes_the_highest_index() -> None:
    wanted = spec(replicas=1)
    decision = run(wanted, [copy(wanted, 0, "a"), copy(wanted, 1, "b")], [site("a"), site("b")])
    (step,) = decision.steps
    assert (step.verb, step.destructive, step.name) == ("delete", True, copy(wanted, 1, "b").name)


def test_rolling_makes_one_new_copy_first() -> None:
    old, new = spec(replicas=2, env={"V": "1"}), spec(replicas=2, env={"V": "2"})
    decision = run(new, [copy(old, 0, "a"), copy(old, 1, "b")], [site("a"), site("b")])
    assert steps(decision) == [("create", 0, "a")]


def test_rolling_removes_the_old_copy_only_when_the_new_one_is_healthy() -> None:
    old, new = spec(env={"V": "1"}), spec(env={"V": "2"})
    waiting = run(new, [copy(old, 0, "a"), copy(new, 0, "a", "False")], [site("a")])
    assert waiting.steps == ()
    done = run(new, [copy(old, 0, "a"), copy(new, 0, "a")], [site("a")])
    (step,) = done.steps
    assert (step.verb, step.destructive, step.name) == ("delete", False, copy(old, 0, "a").name)


def test_blue_green_makes_all_then_removes_all() -> None:
    update = {"strategy": "blue-green"}
    old = spec(replicas=2, env={"V": "1"}, update=update)
    new = spec(replicas=2, env={"V": "2"}, update=update)
    olds = [copy(old, 0, "a"), copy(old, 1, "a")]
    assert [s[0] for s in steps(run(new, olds, [site("a")]))] == ["create", "create"]
    half = [*olds, copy(new, 0, "a"), copy(new, 1, "a", "False")]
    assert run(new, half, [site("a")]).steps == ()
    whole = [*olds, copy(new, 0, "a"), copy(new, 1, "a")]
    assert [s[0] for s in steps(run(new, whole, [site("a")]))] == ["delete", "delete"]


def test_a_failed_revision_goes_back_to_the_good_one() -> None:
    old, new = spec(env={"V": "1"}), spec(env={"V": "2"})
    status = ServiceStatus(good_revision=revision(old), failed_revision=revision(new))
    decision = run(new, [copy(old, 0, "a"), copy(new, 0, "a", "False")], [site("a")], status=status)
    assert decision.revision == revision(old)
    assert [(s.verb, s.name) for s in decision.steps] == [("delete", copy(new, 0, "a").name)]


def test_without_rollback_a_failed_revision_stays() -> None:
    update = {"rollback": False}
    old, new = spec(env={"V": "1"}, update=update), spec(env={"V": "2"}, update=update)
    status = ServiceStatus(good_revision=revision(old), failed_revision=revision(new))
    assert run(new, [copy(old, 0, "a"), copy(new, 0, "a", "False")], [site("a")], status=status).revision == revision(
        new
    )


def test_files_are_changed_in_place() -> None:
    old, new = spec(files={"m": "1"}), spec(files={"m": "2"})
    assert revision(old) == revision(new)
    (step,) = run(new, [copy(old, 0, "a")], [site("a")]).steps
    assert step.verb == "update"
    assert step.spec is not None
    assert step.spec.template.files == {"m": "2"}


def test_a_retired_site_is_left_but_only_after_the_new_copy_is_healthy() -> None:
    wanted = spec()
    here = copy(wanted, 0, "a")
    sites = [site("a", state="retired"), site("b")]
    assert steps(run(wanted, [here], sites)) == [("create", 0, "b")]
    (step,) = run(wanted, [here, copy(wanted, 0, "b")], sites).steps
    assert (step.verb, step.name) == ("delete", here.name)


def test_a_wrong_selector_leaves_everything_running() -> None:
    wanted = spec(placement={"siteSelector": "nowhere=true"})
    decision = run(wanted, [copy(wanted, 0, "a")], [site("a", matches=False)])
    assert decision.steps == ()
    assert decision.problems


def test_dependencies_are_waited_for_only_at_the_start() -> None:
    wanted = spec(dependsOn=["db"])
    first = run(wanted, [], [site("a")], missing="it depends on service db, which is not available")
    assert (first.steps, first.waiting) == ((), "it depends on service db, which is not available")
    later = run(wanted, [copy(wanted, 0, "a")], [site("a")], missing="…")
    assert later.waiting == ""


def test_addresses_of_dependencies_are_told_in_place() -> None:
    wanted = spec(dependsOn=["db"])
    (step,) = run(wanted, [copy(wanted, 0, "a")], [site("a")], endpoints={"db": {"sql": ["127.0.0.2:5"]}}).steps
    assert step.verb == "update"
    assert step.spec is not None
    assert step.spec.endpoints == {"db": ["127.0.0.2:5"]}


@pytest.mark.parametrize(
    ("copies", "ready", "available"),
    [
        (["True", "True"], ("True", "Healthy"), "True"),
        (["True", "Unknown"], ("Unknown", "Silent"), "True"),
        (["Unknown", "Unknown"], ("Unknown", "Silent"), "Unknown"),
        (["True", "False"], ("False", "Silent"), "True"),
        (["False", "False"], ("False", "Silent"), "False"),
        (["Unknown", "False"], ("False", "Silent"), "Unknown"),
        (["True"], ("False", "Progressing"), "True"),
    ],
)
def test_what_a_service_says(copies: list[str], ready: tuple[str, str], available: str) -> None:
    wanted = spec(replicas=2)
    found = [copy(wanted, i, "a", r, reason="Silent", message="m") for i, r in enumerate(copies)]
    answers = judge(wanted, run(wanted, found, [site("a"), site("b")]), found)
    assert answers["Ready"][:2] == ready
    assert answers["Available"][0] == available


@pytest.mark.parametrize(
    ("given", "at", "verdict"),
    [
        ({"state": "running"}, 100, "no"),
        ({"state": "stopped"}, 100, "now"),
        ({"state": "lost"}, 100, "now"),
        ({"state": "exited", "started": 0, "exited": 99, "exits": 1, "exit_code": -9}, 99, "now"),
        ({"state": "exited", "started": 98, "exited": 99, "exits": 1, "exit_code": 3}, 99, "later"),
        ({"state": "exited", "started": 98, "exited": 99, "exits": 1, "exit_code": 3}, 99.3, "now"),
        ({"state": "exited", "started": 98, "exited": 99, "exits": 9, "exit_code": 3}, 120, "later"),
    ],
)
def test_when_a_process_is_started_again(given: dict[str, Any], at: float, verdict: str) -> None:
    assert restart_after(spec(), Run(**given), at)[0] == verdict


@pytest.mark.parametrize(
    ("given", "code", "verdict"),
    [
        ({"runOnce": True}, 0, "complete"),
        ({"runOnce": True}, 1, "now"),
        ({"restart": "never"}, 1, "no"),
        ({"restart": "on-failure"}, 0, "no"),
        ({"restart": "on-failure"}, 1, "now"),
        ({"restart": "always"}, 0, "now"),
    ],
)
def test_the_restart_policy(given: dict[str, Any], code: int, verdict: str) -> None:
    ended = Run("exited", started=0, exited=1000, exits=1, exit_code=code)
    assert restart_after(spec(**given), ended, 1000)[0] == verdict


def test_overdue_needs_a_copy_known_to_be_unwell() -> None:
    old, new = spec(env={"V": "1"}), spec(env={"V": "2"})
    status = ServiceStatus(good_revision=revision(old))
    bad = [copy(old, 0, "a"), copy(new, 0, "a", "False")]
    unknown = [copy(old, 0, "a"), copy(new, 0, "a", "Unknown")]
    decision = run(new, bad, [site("a")], status=status)
    assert overdue(status, decision, bad, age=11, deadline=10)
    assert not overdue(status, decision, bad, age=9, deadline=10)
    assert not overdue(status, decision, unknown, age=11, deadline=10)


def test_files_are_compared_one_by_one() -> None:
    wanted = {"files": {"a": "1", "b": "2"}, "env": {}}
    found = {"files": {"a": "1", "b": "x", "c": "3"}, "env": {}}
    assert differences(wanted, found) == {"spec.files[b]": ("x", "2"), "spec.files[c]": ("3", None)}


def test_addresses_of_what_is_not_known_stay_behind_the_good_ones() -> None:
    wanted = spec(replicas=4)
    found = [
        copy(wanted, 0, "a", "Unknown", address="127.0.0.1"),
        copy(wanted, 1, "b", "True", address="127.0.0.2"),
        copy(wanted, 2, "c", "False", address="127.0.0.3"),
        copy(wanted, 3, "d", "Unknown", address="127.0.0.4"),
        copy(wanted, 0, "e", "Unknown", address="127.0.0.5", deleting=True),
    ]
    before = {"http": ["127.0.0.1:80", "127.0.0.3:80", "127.0.0.5:80"]}
    assert endpoints({"http": 80}, found, before) == {"http": ["127.0.0.2:80", "127.0.0.1:80"]}
    assert endpoints({"http": 80}, found, {}) == {"http": ["127.0.0.2:80"]}


@pytest.mark.parametrize(
    ("drift", "kept"),
    [
        ({"spec.files[a.b]": ("2", "1")}, {"files": {"a.b": "2"}}),
        ({"spec.files[a.b]": (None, "1")}, {"files": {}}),
        ({"spec.files[new]": ("x", None)}, {"files": {"a.b": "1", "new": "x"}}),
        ({"spec.resources.memoryMb": (64, 0)}, {"resources": {"cores": 1, "memoryMb": 64}}),
        ({"spec.health.port": (81, 80)}, {"health": {"port": "admin"}}),
        ({"spec.health.command": (("a", "b"), ())}, {"health": {"port": "http", "command": ["a", "b"]}}),
        ({"spec.env": ({"A": "1", "PYTHONPATH": "{dir}"}, {})}, {"env": {"A": "1"}}),
        ({"spec.health.port": (99, 80)}, None),
        ({"spec.command": (("sh",), ("python",))}, None),
        ({"spec.files[.sample/x.py]": ("evil", "good")}, None),
        ({"spec.files[endpoints.json]": ("{}", "")}, None),
        ({"spec.ports": (None, {})}, None),
        ({"spec.resources.cores": (None, 1)}, None),
        ({"metadata.name": ("a", "b")}, None),
    ],
)
def test_what_was_found_becomes_what_is_wanted(drift: dict[str, Any], kept: dict[str, Any] | None) -> None:
    given = {
        "sample": "web",
        "ports": {"http": 80, "admin": 81},
        "files": {"a.b": "1"},
        "resources": {"cores": 1},
        "health": {"port": "http"},
    }
    found = kept_by_hand(given, drift)
    assert found == (None if kept is None else {**given, **kept})
    assert given["files"] == {"a.b": "1"}, "what is given stays as it is"


def test_another_drift_has_another_name() -> None:
    one = {"spec.files[a]": ("x", "1"), "spec.env": ({}, {"A": "1"})}
    assert drift_name(one) == drift_name(dict(reversed(one.items())))
    assert drift_name(one) == drift_name({path: (found, "wanted anew") for path, (found, _) in one.items()})
    assert drift_name(one) != drift_name({**one, "spec.files[a]": ("y", "1")})
