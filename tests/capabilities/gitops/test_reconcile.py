"""A Source on a git server in memory: fetching, applying, refusing and telling, through the real store and loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.kernel.errors import Forbidden, Unavailable
from groundcontrol.kernel.resource import Doc, Key
from tests.federation import Federation, federation
from tests.stories.conftest import REPOSITORY, ask, pushed, service, source


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as found:
        found.sites("cnaf")
        yield found


def status(fed: Federation) -> Doc:
    return dict((fed.get("Source", "platform") or {})["status"])


def applied(fed: Federation, commit: str) -> Doc:
    fed.until(lambda: status(fed).get("commit") == commit, "the commit is applied")
    return status(fed)


def idle(name: str, **more: Any) -> str:
    return service(name, replicas=0, **more)


def test_a_push_is_applied_and_a_removal_prunes(fed: Federation) -> None:
    source(fed)
    applied(fed, pushed(fed, {"a.yaml": idle("a"), "b.yaml": idle("b")}))
    doc = fed.get("Service", "a", "alpha") or {}
    assert doc["metadata"]["annotations"] == {"ground/source": "platform", "ground/file": "a.yaml"}
    assert doc["metadata"]["managers"]["spec.replicas"] == "source:platform"
    told = applied(fed, pushed(fed, {}, ("a.yaml",), subject="Remove a"))
    fed.until(lambda: fed.get("Service", "a", "alpha") is None)
    assert told["commits"][0]["subject"] == "Remove a"
    assert fed.get("Service", "b", "alpha") is not None
    assert [e["message"].endswith("Remove a") for e in fed.events("Applied")].count(True) == 1


def test_only_what_changed_is_read_again(fed: Federation) -> None:
    source(fed)
    files = {f"d{n % 7}/s{n:03}.yaml": idle(f"s{n:03}") for n in range(100)}
    applied(fed, pushed(fed, files))
    fed.settled(1.0)
    fed.repositories.reads.clear()
    seen = {e.key: e.seq for e in fed.runtime.store.entries("Service")}
    applied(fed, pushed(fed, {"d0/s007.yaml": idle("s007", version="2")}))
    fed.settled()
    assert len(fed.repositories.reads) == 1
    touched = [e.key.name for e in fed.runtime.store.entries("Service") if seen[e.key] != e.seq]
    assert touched == ["s007"]


def test_a_second_look_at_the_same_commit_writes_nothing(fed: Federation) -> None:
    source(fed)
    applied(fed, pushed(fed, {"a.yaml": idle("a")}))
    fed.settled()
    before = fed.runtime.store.sequence
    ask(fed)
    fed.settled()
    assert fed.runtime.store.sequence == before


def test_a_signature_is_asked_for_when_the_source_says_so(fed: Federation) -> None:
    first = fed.repositories.push(REPOSITORY, {"a.yaml": idle("a")}, signer="ada@example.org")
    source(fed, verify={"signatures": "ssh", "allowedSigners": "ada@example.org ssh-ed25519 AAAA"})
    applied(fed, first)
    pushed(fed, {"a.yaml": idle("a", version="2")}, signer="mallory@example.org")
    fed.until(lambda: fed.ready("Source", "platform")[0] != "True")
    conditions = status(fed)["conditions"]
    assert "allowedSigners" in conditions[0]["message"]
    assert (fed.get("Service", "a", "alpha") or {})["spec"]["env"] == {"VERSION": "1"}
    applied(fed, pushed(fed, {}, signer="ada@example.org"))
    assert (fed.get("Service", "a", "alpha") or {})["spec"]["env"] == {"VERSION": "2"}


def test_what_was_fetched_stays_while_the_server_refuses(fed: Federation) -> None:
    source(fed)
    applied(fed, pushed(fed, {"a.yaml": idle("a")}))
    for error in (Forbidden("refused the credentials"), Unavailable("no answer")):
        fed.repositories.broken[REPOSITORY] = error
        ask(fed)
        fed.until(lambda error=error: error.message in status(fed)["conditions"][0]["message"])
        assert fed.ready("Source", "platform") == ("Unknown", "CannotFetch")
        assert fed.get("Service", "a", "alpha") is not None
    del fed.repositories.broken[REPOSITORY]
    ask(fed)
    fed.until_ready("Source", "platform")


def test_rights_are_judged_when_it_acts_and_refusals_are_told_where_they_stand(fed: Federation) -> None:
    fed.apply("Namespace", "beta", {"group": "experiments/beta"})
    selector = {"namespaces": ["alpha"]}
    source(fed)
    fed.apply("RoleBinding", "platform", {"role": "member", "subjects": ["source:platform"], "selector": selector})
    site = "apiVersion: ground/v1\nkind: Site\nmetadata: {name: stolen}\nspec: {driver: memory}\n"
    pushed(fed, {"a.yaml": idle("a"), "b.yaml": idle("b").replace("alpha", "beta"), "s.yaml": "---\n" + site})
    fed.until(lambda: len(status(fed)["problems"]) == 2)
    told = {p["file"]: p for p in status(fed)["problems"]}
    assert (told["s.yaml"]["line"], told["s.yaml"]["kind"], told["s.yaml"]["name"]) == (2, "Site", "stolen")
    assert "source:platform may not create Site" in told["s.yaml"]["message"]
    assert "there is no Namespace beta" in told["b.yaml"]["message"], "not even that it exists is told"
    assert fed.get("Service", "a", "alpha") is not None
    assert fed.ready("Source", "platform")[0] == "False"
    # Rights that come later count at the next try.
    fed.apply("RoleBinding", "platform", {"role": "admin", "subjects": ["source:platform"]})
    fed.until(lambda: fed.get("Site", "stolen"))
    fed.until(lambda: not status(fed)["problems"])
    fed.until_ready("Source", "platform")


def test_a_suspended_source_leaves_everything(fed: Federation) -> None:
    source(fed)
    applied(fed, pushed(fed, {"a.yaml": idle("a")}))
    source(fed, suspend=True)
    fed.until(lambda: fed.ready("Source", "platform") == ("Unknown", "Suspended"))
    commit = pushed(fed, {"b.yaml": idle("b")}, ("a.yaml",))
    fed.settled()
    assert fed.get("Service", "a", "alpha") is not None
    source(fed)
    applied(fed, commit)
    assert fed.get("Service", "b", "alpha") is not None


def test_a_source_that_is_deleted_leaves_what_it_made(fed: Federation) -> None:
    source(fed)
    applied(fed, pushed(fed, {"a.yaml": idle("a")}))
    fed.delete("Source", "platform")
    fed.until(lambda: fed.get("Source", "platform") is None)
    fed.settled()
    assert fed.get("Service", "a", "alpha") is not None
    assert fed.runtime.store.get(Key("Source", "", "platform")) is None


def test_a_webhook_secret_that_is_not_granted_is_said_on_the_source(fed: Federation) -> None:
    fed.repositories.push(REPOSITORY, {"a.yaml": idle("a")})
    source(fed, webhookSecret="secret:hooks/token")
    fed.until(lambda: fed.ready("Source", "platform", type_="Webhook") == ("False", "NotFound"))
    fed.runtime.vault._named["hooks/token"] = "file:/etc/hostname"
    pushed(fed, {"a.yaml": idle("a", version="2")})
    fed.until(lambda: "Webhook" not in [c["type"] for c in status(fed)["conditions"]])


def test_a_mended_source_is_fetched_at_once(fed: Federation) -> None:
    source(fed, interval=3600)
    applied(fed, pushed(fed, {"a.yaml": idle("a")}))
    later = fed.repositories.push(REPOSITORY, {"b.yaml": idle("b")})
    fed.settled()
    assert status(fed)["commit"] != later
    source(fed, interval=3599)
    applied(fed, later)
