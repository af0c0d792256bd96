"""Lists, tables, names and documents; pages; hostile names; watching through cuts."""

from __future__ import annotations

import json

import pytest
import yaml

from groundcontrol.kernel.manifest import load_documents
from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import Answer, FakeApi, sse


@pytest.fixture(autouse=True)
def _some_resources(api: FakeApi) -> None:
    api.put("Site", "bari", ready="True", spec={"region": "south"})
    api.put("Site", "cnaf", ready="False", spec={"region": "north"})
    api.put(
        "Service", "web", "alpha", ready="True", spec={"image": "nginx", "replicas": 3}, metadata={"labels": {"t": "a"}}
    )
    api.put("Service", "db", "beta", spec={"image": "pg", "replicas": 1})


def columns(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


def test_a_table_has_the_columns_of_the_kind_and_an_age(ground: Ground) -> None:
    found = ground("get", "sites")
    assert found.code == 0
    rows = columns(found.out)
    assert rows[0] == ["NAME", "READY", "AGE"]
    assert [row[:2] for row in rows[1:]] == [["bari", "True"], ["cnaf", "False"]]
    assert rows[1][2].endswith("d")


def test_wide_shows_more(ground: Ground) -> None:
    assert columns(ground("get", "site", "-o", "wide").out)[0] == ["NAME", "READY", "REGION", "AGE"]


def test_every_namespace_has_a_column_for_it_and_one_namespace_has_none(ground: Ground) -> None:
    assert [row[:4] for row in columns(ground("get", "svc", "-A").out)] == [
        ["NAMESPACE", "NAME", "READY", "WANTED"],
        ["alpha", "web", "True", "3"],
        ["beta", "db", "Unknown", "1"],
    ]
    assert [row[0] for row in columns(ground("get", "services", "-n", "beta").out)] == ["NAME", "db"]


def test_selectors_go_to_the_server(ground: Ground, api: FakeApi) -> None:
    assert ground("get", "services", "-A", "-l", "t=a", "-o", "name").out == "service/alpha/web\n"
    assert ground("get", "sites", "--field-selector", "conditions.Ready=False", "-o", "name").out == "site/cnaf\n"
    assert api.requests[-1].query["fieldSelector"] == "conditions.Ready=False"


def test_several_kinds_and_all(ground: Ground) -> None:
    assert ground("get", "sites,services", "-o", "name").out.split() == [
        "site/bari",
        "site/cnaf",
        "service/alpha/web",
        "service/beta/db",
    ]
    assert ground("get", "all", "-n", "alpha", "-o", "name").out == "service/web\n"


def test_names_written_by_us_are_read_by_us(ground: Ground) -> None:
    names = ground("get", "sites,services", "-A", "-o", "name").out.split()
    assert ground("get", *names, "-o", "name").out.split() == names


def test_one_document_and_a_list_as_json_and_yaml(ground: Ground, api: FakeApi) -> None:
    web = api.docs[("Service", "alpha", "web")]
    assert ground("get", "service", "web", "-n", "alpha", "-o", "json").json == web
    assert yaml.safe_load(ground("get", "service/alpha/web", "-o", "yaml").out) == web
    listed = ground("get", "sites", "-o", "json").json
    assert (listed["kind"], len(listed["items"])) == ("List", 2)


def test_yaml_survives_readers_of_yaml_1_2_and_hostile_text(ground: Ground, api: FakeApi) -> None:
    spec = {
        "a": "0o17",
        "b": "017",
        "c": "yes",
        "d": "1e3",
        "e": "two\nlines\n",
        "f": "\x1b[2J\u202e\x9b",
        "g": "",
        "h": "é<<",
    }
    api.put("Site", "odd", spec=spec)
    text = ground("get", "site", "odd", "-o", "yaml").out
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x9b" not in text
    assert load_documents(text, "x")[0].value["spec"] == spec
    assert yaml.safe_load(text)["spec"] == spec


def test_json_is_exact_and_still_harmless(ground: Ground, api: FakeApi) -> None:
    api.put("Site", "odd", spec={"region": "\x1b]0;owned\x07\x9b\u202eé"})
    found = ground("get", "site", "odd", "-o", "json")
    assert found.json["spec"]["region"] == "\x1b]0;owned\x07\x9b\u202eé"
    assert not set(found.out) & set("\x1b\x07\x9b\u202e")
    assert "é" in found.out


@pytest.mark.parametrize("bad", ["\x1b[2J", "\x9b31m", "a\nb", "\u202eevil", "\r", "\u2028"])
def test_hostile_names_cannot_move_the_cursor(ground: Ground, api: FakeApi, bad: str) -> None:
    api.put("Site", f"x{bad}y", spec={"region": bad})
    for output in ("table", "wide", "name"):
        found = ground("get", "sites", "-o", output)
        assert len(found.out.splitlines()) == (3 if output == "name" else 4)
        assert bad not in found.out
        assert "\\" in found.out


def test_what_is_not_there_ends_with_4_and_the_rest_is_printed(ground: Ground) -> None:
    found = ground("get", "sites", "bari", "mars", "-o", "name")
    assert (found.code, found.out) == (4, "site/bari\n")
    assert "no Site mars" in found.err


def test_an_empty_list_says_so_beside_the_output(ground: Ground) -> None:
    found = ground("get", "services", "-n", "gamma")
    assert (found.code, found.out) == (0, "")
    assert "no services in namespace gamma" in found.err


def test_lists_are_read_page_by_page(ground: Ground, api: FakeApi) -> None:
    for number in range(25):
        api.put("Site", f"s{number:02}")
    api.page = 10
    assert len(ground("get", "sites", "-o", "name").out.split()) == 27
    assert [r.query.get("continue") for r in api.sent("GET", "/sites")] == [None, "10", "20"]
    assert len(ground("get", "sites", "--limit", "12", "-o", "name").out.split()) == 12


def test_a_list_that_changed_too_much_under_way_is_read_from_the_start(ground: Ground, api: FakeApi) -> None:
    for number in range(15):
        api.put("Site", f"s{number:02}")
    api.page = 10
    calls: list[object] = []
    original = api.call

    def forget(request: object) -> object:
        if getattr(request, "query", {}).get("continue") and not calls:
            calls.append(request)
            raise Answer(410, "TooOld", "that page is gone")
        return original(request)  # type: ignore[arg-type]

    api.call = forget  # type: ignore[method-assign]
    names = ground("get", "sites", "-o", "name").out.split()
    assert len(names) == len(set(names)) == 17


def test_a_name_without_namespace_is_found_where_it_is_alone(ground: Ground, api: FakeApi) -> None:
    assert ground("get", "service", "web", "-o", "name").out == "service/alpha/web\n"
    api.put("Service", "web", "beta")
    found = ground("get", "service", "web")
    assert found.code == 2
    assert "several namespaces: alpha, beta" in found.err


def test_watching_goes_on_from_the_last_event_through_cuts(ground: Ground, api: FakeApi) -> None:
    site = api.docs[("Site", "", "bari")]
    new = {**site, "metadata": {**site["metadata"], "name": "lecce"}}
    api.streams = [
        sse("ADDED", new, 50) + b": heartbeat\n\n" + b"id: 51\nevent: MODIFIED\nda<cut>",
        sse("BOOKMARK", {"resourceVersion": 60}) + b"<cut>",
        sse("DELETED", new, 61),
    ]
    found = ground("get", "sites", "-w")
    assert [r.query["since"] for r in api.sent("GET", "/watch")] == ["44", "50", "60", "61"]
    assert [row[0] for row in columns(found.out)] == ["NAME", "bari", "cnaf", "lecce", "lecce"]
    assert "(deleted)" in found.out.splitlines()[-1]
    assert (found.code, "the story is over" in found.err) == (5, True)


def test_events_too_old_are_made_up_for_by_a_new_list(ground: Ground, api: FakeApi) -> None:
    bari = api.docs[("Site", "", "bari")]
    new = {**bari, "metadata": {**bari["metadata"], "name": "lecce", "resourceVersion": 90}}
    api.streams = [
        Answer(410, "TooOld", "gone"),
        # Broken off in the middle of the current state: the next one begins it again.
        sse("ADDED", new, 90) + b"<cut>",
        sse("ADDED", bari, 41) + sse("ADDED", new, 90) + sse("BOOKMARK", {"resourceVersion": 91}),
    ]
    found = ground("get", "sites", "-w", "-o", "name")
    assert "cannot go on from event 44 (gone): listing again" in found.err
    # cnaf went while nobody watched; bari did not change and is not news; lecce is told once.
    assert found.out.splitlines()[2:] == ["site/lecce", "site/cnaf deleted"]
    assert [r.query.get("since") for r in api.sent("GET", "/watch")] == ["44", None, None, "91"]


def test_a_stream_that_says_why_it_ends(ground: Ground, api: FakeApi) -> None:
    bari, cnaf = api.docs[("Site", "", "bari")], api.docs[("Site", "", "cnaf")]
    slow = {"error": {"status": 429, "reason": "TooMany", "message": "you read slower than events come"}}
    rights = {"error": {"status": 410, "reason": "TooOld", "message": "what you may see has changed; list again"}}
    name_only = {"kind": "Site", "metadata": {"name": "cnaf", "namespace": "", "resourceVersion": 51}}
    api.streams = [
        sse("DELETED", name_only, 51) + sse("ERROR", slow),
        sse("ERROR", rights),
        sse("ADDED", bari, 41) + sse("ADDED", cnaf, 52) + sse("BOOKMARK", {"resourceVersion": 60}),
    ]
    found = ground("get", "sites", "-w")
    assert "cannot go on from event 51 (what you may see has changed; list again): listing again" in found.err
    assert [row[:2] for row in columns(found.out)[3:]] == [["cnaf", "False"], ["cnaf", "False"]]
    assert [r.query.get("since") for r in api.sent("GET", "/watch")] == ["44", "51", None, "60"]


def test_an_overloaded_server_is_waited_for(ground: Ground, api: FakeApi) -> None:
    api.streams = [
        Answer(503, "Unavailable", "starting"),
        Answer(429, "TooMany", "slow"),
        sse("BOOKMARK", {"resourceVersion": 44}),
    ]
    found = ground("get", "sites", "-w")
    assert "the story is over" in found.err
    assert len(api.sent("GET", "/watch")) == 4


def test_watching_with_a_field_selector_sorts_out_here(ground: Ground, api: FakeApi) -> None:
    bari, cnaf = api.docs[("Site", "", "bari")], api.docs[("Site", "", "cnaf")]
    api.streams = [sse("MODIFIED", bari, 50) + sse("MODIFIED", cnaf, 51)]
    found = ground("get", "sites", "-w", "-o", "name", "--field-selector", "conditions.Ready=False")
    assert found.out.split() == ["site/cnaf", "site/cnaf"]


def test_watch_shows_the_fields_that_changed(ground: Ground, api: FakeApi) -> None:
    web = api.docs[("Service", "alpha", "web")]
    grown = {**web, "spec": {**web["spec"], "replicas": 4}, "metadata": {**web["metadata"], "resourceVersion": 50}}
    api.streams = [sse("MODIFIED", grown, 50)]
    found = ground("watch", "services")
    assert "MODIFIED  Service alpha/web" in found.out
    assert "spec.replicas: 3 → 4" in found.out
    assert "resourceVersion" not in found.out
    api.streams = [sse("MODIFIED", grown, 50)]
    lines = ground("watch", "services", "-o", "json", "--since", "7").out.splitlines()
    assert json.loads(lines[0])["object"] == grown
    assert api.sent("GET", "/watch")[-2].query["since"] == "7"
