"""The ledger's child is killed, stopped, starved and locked out; what was promised is there, once."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

from groundcontrol.kernel.errors import Invalid, NotFound, TooLarge, Unavailable
from groundcontrol.kernel.ledger import Dataset, Ledger, Query

AUDIT = Dataset("audit", {"subject": "text", "verb": "text", "n": "int", "share": "float", "fields": "json"})
DAY = 86400.0
JANUARY = 1767225600.0  # 2026-01-01T00:00:00Z

Make = Callable[..., Ledger]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Ledger] = []

    def build(path: Path | None = None, *datasets: Dataset, start: bool = True, **options: Any) -> Ledger:
        options = {"memory_mb": 64, "call_seconds": 5.0, "longest_wait": 0.5, **options}
        ledger = Ledger(path or tmp_path / "ledger.duckdb", datasets or (AUDIT,), **options)
        made.append(ledger)
        if start:
            assert ledger.start(20), ledger.status()
        return ledger

    yield build
    for ledger in made:
        ledger.stop()


def facts(first: int, count: int, source: str = "i/1", **more: Any) -> list[dict[str, Any]]:
    return [{"source": source, "seq": n, "time": JANUARY + n, "n": n, **more} for n in range(first, first + count)]


def stored(ledger: Ledger, source: str = "i/1") -> list[int]:
    """Every seq stored, duplicates included."""
    _, rows = ledger.query(Query(dataset="audit", where={"source": source}, limit=100_000))
    return sorted(row[1] for row in rows)


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def insist(ledger: Ledger, batch: list[dict[str, Any]], seconds: float = 30.0) -> int:
    end = time.monotonic() + seconds
    while True:
        try:
            return ledger.append("audit", batch)
        except Unavailable:
            assert time.monotonic() < end, ledger.status()
            time.sleep(0.02)


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


# ------------------------------------------------------------------------------------------------ once, and for good


def test_a_batch_sent_twice_is_stored_once(make: Make) -> None:
    ledger = make()
    assert ledger.append("audit", facts(1, 100)) == 100
    assert ledger.append("audit", facts(1, 100)) == 100
    assert ledger.append("audit", facts(51, 100)) == 150
    assert ledger.append("audit", facts(151, 1) * 3) == 151
    assert stored(ledger) == list(range(1, 152))
    assert ledger.watermark("i/1", "audit") == 151
    assert ledger.watermark("i/2", "audit") == 0
    assert ledger.append("audit", []) == 0


def test_sources_do_not_disturb_one_another_and_late_facts_are_stored(make: Make) -> None:
    ledger = make()
    ledger.append("audit", [*facts(10, 5), *facts(1, 3, "i/2")])
    ledger.append("audit", facts(1, 5))
    assert stored(ledger) == [1, 2, 3, 4, 5, 10, 11, 12, 13, 14]
    assert stored(ledger, "i/2") == [1, 2, 3]
    assert (ledger.watermark("i/1", "audit"), ledger.watermark("i/2", "audit")) == (14, 3)


def test_the_first_of_two_facts_with_one_number_stays(make: Make) -> None:
    ledger = make()
    ledger.append("audit", facts(1, 1, verb="first"))
    ledger.append("audit", facts(1, 1, verb="second"))
    assert ledger.query(Query(dataset="audit", group=["verb"]))[1] == [["first", 1]]


def test_what_was_stored_is_there_after_a_restart(make: Make) -> None:

    first = make()
    first.append("audit", facts(1, 10))
    first.stop()
    with pytest.raises(Unavailable, match="stopped"):
        first.append("audit", facts(11, 1))
    second = make()
    assert stored(second) == list(range(1, 11))
    assert second.watermark("i/1", "audit") == 10


def test_every_kind_of_value_comes_back(make: Make) -> None:
    ledger = make(None, Dataset("all", {"t": "text", "i": "int", "f": "float", "b": "bool", "m": "time", "j": "json"}))
    fact = {
        "source": "i/1",
        "seq": 1,
        "time": "2026-01-01T02:00:00.5+01:00",
        "t": "ä\0'\"\n;--",
        "i": -(1 << 63),
        "f": 0.1,
        "b": True,
        "m": 0,
        "j": {"a.b": [1, None, {"c": "d"}]},
        "else": "where",
        "data": {"more": [1]},
    }
    ledger.append("all", [fact, {"source": "i/1", "seq": 2, "time": 0.0}])
    columns, rows = ledger.query(Query(dataset="all", where={"seq": 1}))
    assert dict(zip(columns, rows[0], strict=True)) == {
        **{k: fact[k] for k in ("source", "seq", "t", "i", "f", "b", "j")},
        "time": "2026-01-01T01:00:00.500Z",
        "m": "1970-01-01T00:00:00.000Z",
        "data": {"else": "where", "more": [1]},
    }
    assert ledger.query(Query(dataset="all", where={"seq": 2}))[1][0][3:] == [None] * 7


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"seq": "1"}, "audit.0.seq"),
        ({"seq": 1 << 63}, "audit.0.seq"),
        ({"seq": True}, "audit.0.seq"),
        ({"source": None}, "audit.0"),
        ({"source": ""}, "audit.0"),
        ({"time": "yesterday"}, "audit.0.time"),
        ({"time": None}, "audit.0"),
        ({"time": 1e30}, "audit.0.time"),
        ({"n": 1.5}, "audit.0.n"),
        ({"share": float("nan")}, "audit.0.share"),
        ({"subject": ["ada"]}, "audit.0.subject"),
        ({"subject": "\ud800"}, "audit"),
    ],
)
def test_a_fact_that_does_not_fit_stores_nothing(make: Make, wrong: dict[str, Any], path: str) -> None:
    ledger = make(start=False)
    with pytest.raises(Invalid) as caught:
        ledger.append("audit", [{**facts(1, 1)[0], **wrong}])
    assert caught.value.problems[0].path == path


def test_an_unknown_dataset_and_too_much_at_once_are_refused(make: Make) -> None:
    ledger = make(start=False)
    with pytest.raises(Invalid, match='did you mean "audit"'):
        ledger.append("audti", facts(1, 1))
    with pytest.raises(TooLarge, match="send fewer"):
        ledger.append("audit", facts(1, 1, verb="x" * ledger.largest))


def test_the_largest_batch_fits_the_smallest_memory(make: Make) -> None:
    ledger = make(call_seconds=30.0)
    batch = facts(1, 1, verb="x" * (ledger.largest - 300))
    small = facts(2, ledger.largest // 160, subject="somebody", verb="get", fields={"a": [1, 2]}, other={"x": "y" * 10})
    assert ledger.append("audit", batch) == 1
    assert ledger.append("audit", small) == len(small) + 1


# ------------------------------------------------------------------------------------------------ faults


def test_killed_at_random_moments_it_keeps_its_promises(make: Make) -> None:
    ledger = make()
    random.seed(7)
    promised: dict[str, int] = {}
    done = threading.Event()

    def write(source: str) -> None:
        first = 1
        while not done.is_set() or first < 4000:
            size = random.randrange(1, 400)
            batch = facts(first, size, source)
            with suppress(Unavailable):
                promised[source] = ledger.append("audit", batch)
                first += size
                continue
            time.sleep(0.01)

    threads = [threading.Thread(target=write, args=(f"i/{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    kills = 0
    while kills < 8:
        time.sleep(random.uniform(0.0, 0.3))
        pid = ledger.status()["pid"]
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            kills += 1
            until(lambda pid=pid: ledger.status()["pid"] not in (0, pid))  # type: ignore[misc]
    done.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    until(lambda: ledger.status()["state"] == "up")
    assert ledger.status()["starts"] >= 5
    for source, last in promised.items():
        # More than was promised may be there: a batch whose answer was lost.
        there = ledger.watermark(source, "audit")
        assert there >= last
        rows = ledger.query(Query(dataset="audit", where={"source": source}, measure=["count", "min:seq", "max:seq"]))[
            1
        ]
        assert rows == [[there, 1, there]]


def test_a_child_that_hangs_holds_nobody_and_is_replaced(make: Make) -> None:
    ledger = make(call_seconds=0.5, hang_seconds=1.0)
    ledger.append("audit", facts(1, 10))
    pid = ledger.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    for call in (
        lambda: ledger.append("audit", facts(11, 10)),
        lambda: ledger.append("audit", facts(11, 20000)),  # more than the socket takes
        lambda: ledger.query(Query(dataset="audit", timeout=0.5)),
        lambda: ledger.watermark("i/1", "audit"),
    ):
        began = time.monotonic()
        with pytest.raises(Unavailable):
            call()
        assert time.monotonic() - began < 1.5
    began = time.monotonic()
    assert ledger.status()["error"]
    assert time.monotonic() - began < 1.5
    assert insist(ledger, facts(11, 10)) == 20
    assert not alive(pid)
    assert stored(ledger)[:20] == list(range(1, 21))


def test_a_dead_child_is_told_at_once_and_started_again(make: Make) -> None:
    ledger = make()
    pid = ledger.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: ledger.status()["state"] == "down" or ledger.status()["pid"] not in (0, pid))
    began = time.monotonic()
    with suppress(Unavailable):
        ledger.append("audit", facts(1, 1))
    assert time.monotonic() - began < 1.0
    until(lambda: ledger.status()["state"] == "up")
    assert insist(ledger, facts(1, 1)) == 1


def test_a_call_under_way_is_told_when_the_child_dies(make: Make) -> None:
    ledger = make()
    pid = ledger.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="ended before it answered"):
        ledger.append("audit", facts(1, 1))
    assert time.monotonic() - began < 2.0


def test_the_child_ends_with_its_parent_even_when_stopped(tmp_path: Path) -> None:
    program = f"""if True:
        import time
        from groundcontrol.kernel.ledger import *
        ledger = Ledger({str(tmp_path / "l.duckdb")!r}, [Dataset("audit")])
        assert ledger.start(20)
        print(ledger.status()["pid"], flush=True)
        time.sleep(60)
    """
    for stop in (False, True):
        parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert parent.stdout
        pid = int(parent.stdout.readline())
        if stop:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.communicate()
        until(lambda pid=pid: not alive(pid), 5)  # type: ignore[misc]


def test_the_child_has_none_of_our_credentials(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUND_ADMIN_PASSWORD", "hunter2")
    environ = Path(f"/proc/{make().status()['pid']}/environ").read_bytes()
    assert b"hunter2" not in environ


def test_the_parent_never_imports_duckdb() -> None:
    check = "import sys, groundcontrol.kernel.ledger_shipper; assert not {'duckdb', '_duckdb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def fill(ledger: Ledger) -> int:
    """Append until there is no room; the highest number promised."""
    promised = 0
    for first in range(1, 2_000_000, 500):
        noise = [{**f, "verb": random.randbytes(200).hex()} for f in facts(first, 500)]
        try:
            promised = ledger.append("audit", noise)
        except Unavailable as error:
            if "free space there" not in error.message:
                raise
            return promised
    raise AssertionError("there was always room")


def test_beyond_a_file_size_limit_nothing_promised_is_lost(make: Make) -> None:
    ledger = make()
    resource.prlimit(ledger.status()["pid"], resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    promised = fill(ledger)
    until(lambda: ledger.status()["state"] == "up" and ledger.status()["starts"] == 2)
    assert stored(ledger) == list(range(1, promised + 1))
    assert insist(ledger, facts(promised + 1, 500)) == promised + 500
    assert stored(ledger) == list(range(1, promised + 501))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_on_a_full_disk_nothing_promised_is_lost(make: Make, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "ground-test", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a disk")
    try:
        (disk / "ballast").write_bytes(bytes(2 << 20))
        ledger = make(disk / "ledger.duckdb")
        promised = fill(ledger)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            ledger.append("audit", [{**f, "verb": "x" * 2000} for f in facts(promised + 1, 1500)])
        assert time.monotonic() - began < 6
        (disk / "ballast").unlink()
        assert insist(ledger, facts(promised + 1, 500)) == promised + 500
        assert stored(ledger) == list(range(1, promised + 501))
        ledger.stop()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_file_in_use_is_told_with_the_process_that_has_it(make: Make, tmp_path: Path) -> None:
    first = make()
    second = make(start=False)
    assert not second.start(0)
    until(lambda: "in use" in second.status()["error"])
    with pytest.raises(Unavailable, match=rf"in use by process {first.status()['pid']}; stop it, or") as caught:
        second.append("audit", facts(1, 1))
    assert caught.value.retry_after
    first.stop()
    assert insist(second, facts(1, 1)) == 1


@pytest.mark.parametrize("damage", ["text", "head", "body"])
def test_a_damaged_file_is_told_with_what_to_do(make: Make, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ledger.duckdb"
    if damage == "text":
        path.write_text("this is not a database" * 1000)
    else:
        ledger = make()
        ledger.append("audit", facts(1, 5000))
        ledger.stop()
        raw = bytearray(path.read_bytes())
        raw[4096 * 3 : 4096 * 3 + 8192] = b"\xff" * 8192
        if damage == "head":
            raw[: 4096 * 3] = b"\xff" * 4096 * 3
        path.write_bytes(raw)
    ledger = make(start=False)
    assert not ledger.start(0)
    until(lambda: "damaged" in ledger.status()["error"])
    assert "restore it from a backup, or move it" in ledger.status()["error"]
    path.rename(tmp_path / "aside")
    (tmp_path / "ledger.duckdb.wal").unlink(missing_ok=True)
    assert insist(ledger, facts(1, 1)) == 1


def test_stopping_while_it_cannot_start_is_quick(make: Make, tmp_path: Path) -> None:
    (tmp_path / "ledger.duckdb").mkdir()
    ledger = make(start=False)
    assert not ledger.start(1)
    began = time.monotonic()
    ledger.stop()
    assert time.monotonic() - began < 3
    assert ledger.status()["state"] == "stopped"


# ------------------------------------------------------------------------------------------------ shape, age, export


def test_new_columns_are_added_and_another_type_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "l.duckdb"
    first = make(path, Dataset("audit", {"verb": "text"}))
    first.append("audit", facts(1, 3, verb="get", site="bari"))
    first.stop()
    second = make(path, Dataset("audit", {"verb": "text", "site": "text"}), Dataset("probes", {"ok": "bool"}))
    second.append("audit", facts(4, 1, verb="get", site="cnaf"))
    second.append("audit", facts(1, 4))
    assert second.query(Query(dataset="audit", group=["site", "data.site"]))[1] == [
        ["cnaf", None, 1],
        [None, "bari", 3],
    ]
    second.stop()
    third = make(path, Dataset("audit", {"verb": "int"}), start=False)
    assert not third.start(0)
    until(lambda: "VARCHAR" in third.status()["error"])
    assert "column verb is stored as VARCHAR, declared int; give the new one another name" in third.status()["error"]
    third.stop()
    older = make(path, Dataset("audit", {}))
    assert older.append("audit", facts(5, 1, verb="put")) == 5


def test_facts_are_kept_for_their_days(make: Make) -> None:
    ledger = make(None, AUDIT, Dataset("probes"))
    for name in ("audit", "probes"):
        ledger.append(name, [{"source": "i/1", "seq": n, "time": JANUARY + n * DAY} for n in range(100)])
    assert ledger.retain({"audit": 30, "probes": 0}, at=JANUARY + 100 * DAY) == {"audit": 70}
    assert stored(ledger) == list(range(70, 100))
    assert ledger.status()["rows"] == {"audit": 30, "probes": 100, "rejected": 0}
    assert ledger.watermark("i/1", "audit") == 99
    with pytest.raises(Invalid):
        ledger.retain({"nothing": 1})


def test_months_are_exported_as_parquet_and_read_back(make: Make, tmp_path: Path) -> None:
    ledger = make()
    days = [{"source": "i/1", "seq": n + 1, "time": JANUARY + n * DAY, "n": n, "x": "y"} for n in range(60)]
    ledger.append("audit", days)
    assert ledger.months("audit") == ["2026-01", "2026-02", "2026-03"]
    out = tmp_path / 'it\'s "out"'
    paths = ledger.export_all("audit", out)
    assert sorted(os.listdir(out)) == ["audit-2026-01.parquet", "audit-2026-02.parquet", "audit-2026-03.parquet"]
    counts = [
        duckdb.execute("SELECT count(*), min(n), max(n) FROM read_parquet(?)", [str(p)]).fetchone() for p in paths
    ]
    assert counts == [(31, 0, 30), (28, 31, 58), (1, 59, 59)]
    row = duckdb.execute("SELECT source, seq, data FROM read_parquet(?) ORDER BY seq", [str(paths[0])]).fetchone()
    assert row is not None
    assert (row[0], row[1], json.loads(row[2])) == ("i/1", 1, {"x": "y"})
    assert ledger.export("audit", out, "2026-01") == paths[0]
    with pytest.raises(NotFound):
        ledger.export("audit", out, "2025-01")
    for month in ("2026-13", "2026-1", "../../etc", "2026-01'", ""):
        with pytest.raises(Invalid):
            ledger.export("audit", out, month)
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        ledger.export("audit", tmp_path / "file", "2026-01")
    assert not os.listdir(tmp_path / "ledger.duckdb.export")
    assert len(os.listdir(out)) == 3
    shutil.rmtree(out)


def test_the_child_itself_reaches_no_other_file(make: Make, tmp_path: Path) -> None:
    ledger = make()
    (tmp_path / "other.csv").write_text("secret\n1\n")
    child = ledger._child
    assert child is not None
    for statement in (
        f"SELECT * FROM read_csv('{tmp_path}/other.csv')",
        f"COPY audit TO '{tmp_path}/x.parquet' (FORMAT parquet)",
        f"ATTACH '{tmp_path}/y.duckdb'",
        "SET enable_external_access = true",
    ):
        with pytest.raises(Unavailable, match=r"Permission|locked|disabled|Cannot"):
            child.call("query", [statement, []], 5.0)
