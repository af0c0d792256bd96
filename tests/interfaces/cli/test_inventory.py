"""`ground inventory`: what there is at a site, with its age, over all pages; and ages in `describe`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import Answer, FakeApi


def page(items: list[Any], type_: str, **more: Any) -> dict[str, Any]:
    looked = (datetime.now(UTC) - timedelta(hours=3, seconds=20)).isoformat()
    return {
        "site": "bari", "driver": "openstack", "answers": True, "complete": True, "problems": [], "type": type_,
        "looked": looked, "total": 3, "items": items, **more,
    }  # fmt: skip


@pytest.fixture
def bari(api: FakeApi) -> FakeApi:
    flavors = [
        {"id": f"f{n}", "name": f"m{n}", "fields": {"cores": n, "memory_mb": 1024, "public": True}} for n in (1, 2, 3)
    ]
    looked = (datetime.now(UTC) - timedelta(hours=2, seconds=20)).isoformat()
    counts = [{"id": "flavor", "name": "flavor", "count": 3, "looked": looked}]
    api.inventory = {
        "/sites/bari/inventory": [page(counts, "")],
        "/sites/bari/inventory/flavor": [page(flavors[:2], "flavor", **{"continue": "x"}), page(flavors[2:], "flavor")],
    }
    return api


def test_what_there_is_of_each_type(ground: Ground, bari: FakeApi) -> None:
    found = ground("inventory", "bari")
    assert found.code == 0
    assert [line.split() for line in found.out.splitlines()] == [["NAME", "COUNT", "LOOKED"], ["flavor", "3", "2h"]]
    assert "listed 3h ago" in found.err


def test_all_pages_of_one_type(ground: Ground, bari: FakeApi) -> None:
    found = ground("inventory", "site/bari", "flavor")
    assert [line.split()[:2] for line in found.out.splitlines()] == [
        ["NAME", "CORES"], ["m1", "1"], ["m2", "2"], ["m3", "3"],
    ]  # fmt: skip
    assert [r.query.get("continue") for r in bari.sent("GET", "/sites/bari/inventory/flavor")] == [None, "x"]


def test_no_more_than_asked_for_and_says_that_there_is_more(ground: Ground, bari: FakeApi) -> None:
    found = ground("inventory", "bari", "flavor", "--limit", "2", "--no-headers")
    assert len(found.out.splitlines()) == 2
    assert "1 more" in found.err


def test_as_json(ground: Ground, bari: FakeApi) -> None:
    assert [i["name"] for i in ground("inventory", "bari", "flavor", "-o", "json").json["items"]] == ["m1", "m2", "m3"]


def test_what_is_old_or_missing_or_refused_is_said(ground: Ground, api: FakeApi) -> None:
    hostile = "\x1b[2Jcleared"
    api.inventory = {
        "/sites/bari/inventory/image": [
            page([], "image", answers=False, complete=False, problems=[hostile], looked="2020-01-01T00:00:00Z", total=0)
        ]
    }
    found = ground("inventory", "bari", "image")
    for word in ("nothing known of image", "does not answer now", "not complete", "problem: \\x1b[2Jcleared"):
        assert word in found.err
    api.fail("GET", "/sites/bari/inventory/hosts", Answer(403, "Forbidden", "that is for those who may update it"))
    assert ground("inventory", "bari", "hosts").code == 5


def test_describe_says_how_old_a_time_is(ground: Ground, api: FakeApi) -> None:
    looked = (datetime.now(UTC) - timedelta(hours=5, seconds=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ends = (datetime.now(UTC) + timedelta(days=30, minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    api.put("Site", "bari", status={"looked": {"flavor": looked}, "services": [{"certificateUntil": ends}]})
    found = ground("describe", "site", "bari").out
    assert f"flavor: {looked} (5h ago)" in found.replace("'", "")
    assert f"{ends} (in 30d)" in found
