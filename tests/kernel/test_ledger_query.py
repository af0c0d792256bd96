"""What may be asked of the ledger, and that nothing else can be."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundcontrol.kernel import ledger_sql as sql
from groundcontrol.kernel.errors import Invalid, Unavailable
from groundcontrol.kernel.ledger import Dataset, Ledger, Query

USAGE = Dataset(
    "usage",
    {"site": "text", "group": "text", "cores": "int", "hours": "float", "idle": "bool", "at": "time", "raw": "json"},
)
JANUARY = 1767225600.0


def fact(n: int) -> dict[str, Any]:
    return {
        "source": "i/1",
        "seq": n,
        "time": JANUARY + n * 3600,
        "site": ("bari", "cnaf")[n % 2],
        "group": f"g{n % 3}" if n % 5 else None,
        "cores": n,
        "hours": n / 4,
        "idle": n % 2 == 0,
        "at": JANUARY + n,
        "raw": {"n": n},
        "flavor": f"m{n % 2}",
        "cost": n * 2,
        "deep": {"er": n % 3},
    }


FACTS = [fact(n) for n in range(1, 241)]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    made = Ledger(tmp_path_factory.mktemp("ledger") / "l.duckdb", [USAGE], memory_mb=64)
    assert made.start(20)
    made.append("usage", FACTS)
    yield made
    made.stop()


def rows(ledger: Ledger, **query: Any) -> list[list[Any]]:
    return ledger.query(sql.parse({"dataset": "usage", **query}))[1]


def test_the_facts_themselves_come_newest_first(ledger: Ledger) -> None:
    columns, found = ledger.query(Query(dataset="usage", limit=2))
    assert columns == ["source", "seq", "time", *USAGE.columns, "data"]
    assert [row[1] for row in found] == [240, 239]
    assert found[0][columns.index("raw")] == {"n": 240}
    assert found[0][-1] == {"flavor": "m0", "cost": 480, "deep": {"er": 0}}


def test_groups_and_measures(ledger: Ledger) -> None:
    found = rows(
        ledger, group=["site"], measure=["count", "sum:cores", "avg:hours", "min:at", "max:site", "sum:data.cost"]
    )
    even, odd = [f for f in FACTS if f["seq"] % 2 == 0], [f for f in FACTS if f["seq"] % 2]
    for row, part, site, first in ((found[0], even, "bari", 2), (found[1], odd, "cnaf", 1)):
        total = sum(f["cores"] for f in part)
        assert row == [site, 120, total, total / 480, f"2026-01-01T00:00:0{first}.000Z", site, total * 2]
    assert rows(ledger, measure=["count"]) == [[240]]
    assert rows(ledger, group=["idle"]) == [[False, 120], [True, 120]]
    assert rows(ledger, group=["data.flavor", "data.deep.er"], where={"seq": [1, 2, 3]}) == [
        ["m0", "2", 1],
        ["m1", "0", 1],
        ["m1", "1", 1],
    ]


def test_times_are_rounded_and_bounded(ledger: Ledger) -> None:
    found = rows(ledger, group=["time:day"], **{"from": "2026-01-02T00:00:00Z", "to": "2026-01-04T01:00:00+01:00"})
    assert found == [["2026-01-02T00:00:00.000Z", 24], ["2026-01-03T00:00:00.000Z", 24]]
    assert rows(ledger, group=["at:month"]) == [["2026-01-01T00:00:00.000Z", 240]]
    assert rows(ledger, measure=["count"], to=JANUARY + 3600) == [[0]]


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ({"site": "bari"}, lambda f: f["site"] == "bari"),
        ({"site": ["bari", "cnaf"]}, lambda f: True),
        ({"site": []}, lambda f: False),
        ({"group": None}, lambda f: f["group"] is None),
        ({"group": [None, "g1"]}, lambda f: f["group"] in (None, "g1")),
        ({"cores": [1, 2, 1000]}, lambda f: f["cores"] in (1, 2)),
        ({"hours": 1}, lambda f: f["hours"] == 1),
        ({"idle": True, "site": "cnaf"}, lambda f: False),
        ({"at": "2026-01-01T00:00:07Z"}, lambda f: f["seq"] == 7),
        ({"data.flavor": "m1"}, lambda f: f["flavor"] == "m1"),
        ({"data.cost": 8}, lambda f: f["cost"] == 8),
        ({"data.deep.er": [0, 1]}, lambda f: f["deep"]["er"] in (0, 1)),
        ({"data.none": None}, lambda f: True),
        ({"data.deep.er": [None, 2], "data.flavor": "m0"}, lambda f: f["deep"]["er"] == 2 and f["flavor"] == "m0"),
    ],
)
def test_conditions(ledger: Ledger, where: dict[str, Any], holds: Any) -> None:
    assert rows(ledger, measure=["count"], where=where) == [[sum(map(holds, FACTS))]]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ({"where": {"sit": "bari"}}, "where.sit"),
        ({"where": {"cores": "1"}}, "where.cores"),
        ({"where": {"cores": 1 << 63}}, "where.cores"),
        ({"where": {"raw": "x"}}, "where.raw"),
        ({"where": {"data": "x"}}, "where.data"),
        ({"where": {"site": {"$ne": 1}}}, "where.site"),
        ({"where": {"site": list(map(str, range(1001)))}}, "where.site"),
        ({"group": ["site:day"]}, "group.0"),
        ({"group": ["time:fortnight"]}, "group.0"),
        ({"group": ["data"]}, "group.0"),
        ({"measure": ["sum:site"]}, "measure.0"),
        ({"measure": ["count", "sum"]}, "measure.1"),
        ({"measure": ["median:cores"]}, "measure.0"),
        ({"measure": ["max:raw"]}, "measure.0"),
        ({"from": "yesterday"}, "from"),
        ({"limit": 0}, "limit"),
        ({"limit": 100_001}, "limit"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 1e9}, "timeout"),
    ],
)
def test_what_is_wrong_with_a_query_is_told(query: dict[str, Any], path: str) -> None:
    with pytest.raises(Invalid) as caught:
        sql.select(USAGE, sql.parse({"dataset": "usage", **query}))
    assert [p.path for p in caught.value.problems] == [path]


@pytest.mark.parametrize("body", [{}, [], {"dataset": 1}, {"dataset": "u", "sql": "x"}, {"dataset": "u", "where": [1]}])
def test_what_is_no_query_is_refused(body: Any) -> None:
    with pytest.raises(Invalid, match="the query is wrong"):
        sql.parse(body)


ATTACKS = [
    "'; DROP TABLE usage; --",
    '"; DROP TABLE usage; --',
    'site" UNION SELECT 1 --',
    "bari' OR '1'='1",
    "data.x\"') OR true --",
    "data.$",
    "time:day') --",
    "site) FROM usage; --",
    "count(*)",
    "sum:cores) + count(*",
    "sum:site;",
    "read_csv('/etc/passwd')",
    "\0",
    "",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_becomes_sql(ledger: Ledger, attack: str) -> None:
    assert rows(ledger, measure=["count"], where={"site": attack}) == [[0]]
    assert rows(ledger, measure=["count"], where={"data.flavor": [attack, None]}) == [[0]]
    for query in ({"group": [attack]}, {"measure": [attack]}, {"where": {attack: "x"}}, {"from": attack or "x"}):
        with pytest.raises(Invalid):
            rows(ledger, **query)
    with pytest.raises(Invalid):
        ledger.query(Query(dataset=attack))
    with pytest.raises(ValueError, match="name"):
        Dataset(attack)
    with pytest.raises(ValueError, match="name"):
        Dataset("x", {attack: "text"})
    assert rows(ledger, measure=["count"]) == [[240]]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_names_outside_the_declaration_never_reach_the_statement(name: str, value: str) -> None:
    query = Query(dataset="usage", where={name: value}, group=[name], measure=[f"max:{name}"])
    try:
        statement = sql.select(USAGE, query)
    except Invalid:
        return
    assert name in USAGE.types or name.startswith(("data.", "time:", "at:"))
    assert value in statement.parameters


def test_names_that_differ_by_case_only_are_one_name() -> None:
    for columns in ({"a": "text", "A": "text"}, {"Seq": "int"}, {"DATA": "text"}, {"a": "varchar"}):
        with pytest.raises(ValueError, match="dataset x"):
            Dataset("x", columns)


def test_a_query_that_takes_too_long_is_ended_and_the_next_one_is_not(ledger: Ledger) -> None:
    child = ledger._child
    assert child is not None
    slow = "SELECT count(*) FROM range(100000) a, range(1000000) b WHERE (a.range * b.range) % 7 = 3"
    began = time.monotonic()
    with pytest.raises(Unavailable, match="too long"):
        child.call("query", [slow, []], 0.5)
    assert time.monotonic() - began < 1.5
    done: list[int] = []

    def slowly() -> None:
        with pytest.raises(Unavailable):
            child.call("query", [slow, []], 2.0)

    thread = threading.Thread(target=slowly)
    thread.start()
    began = time.monotonic()
    while thread.is_alive():
        done.append(ledger.append("usage", FACTS[:1]))
        assert rows(ledger, measure=["count"]) == [[240]]
    assert len(done) > 10, "a slow query held the writer"
    thread.join()


def test_a_query_that_needs_too_much_memory_ends_alone(ledger: Ledger) -> None:
    child = ledger._child
    assert child is not None
    hungry = "SELECT list(a.range::VARCHAR || repeat('x', 1000)) FROM range(2000000) a"
    with pytest.raises(Unavailable, match="64 MiB are not enough"):
        child.call("query", [hungry, []], 60.0)
    assert ledger.status()["starts"] == 1


def test_an_answer_too_large_for_memory_does_not_spoil_what_comes_after(ledger: Ledger) -> None:
    for count in (1000, 50_000):
        child = ledger._child
        assert child is not None
        with pytest.raises((Invalid, Unavailable), match=r"too large|64 MiB are not enough"):
            child.call("query", [f"SELECT repeat('x', 100000) FROM range({count})", []], 60.0)
        end = time.monotonic() + 20
        found: list[list[Any]] = []
        while not found:
            with suppress(Unavailable):  # it may have chosen to start anew
                found = rows(ledger, measure=["count"])
            assert time.monotonic() < end
            time.sleep(0.05)
        assert found == [[240]]
    status = Path(f"/proc/{ledger.status()['pid']}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 700_000
