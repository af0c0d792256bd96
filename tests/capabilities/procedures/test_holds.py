"""While a Run has its hands on a field nobody else's reconciler touches it; and the hold ends."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundcontrol.kernel.plan import Plan
from groundcontrol.kernel.reconcile import Look, Reconciler, Report, StoreWrite, conditions, store_change
from groundcontrol.kernel.resource import condition
from tests.capabilities.procedures.workshop import MACHINE, Machine, Workshop, call, setting, workshop
from tests.federation import federation

ASK = {"name": "ask", "ask": {"question": "go on?"}}
GROW = {"name": "grow", "act": setting(slots=9)}


class Scaler(Reconciler[Machine]):
    """Wants every machine to have two slots, and no notes."""

    name = "scaler"
    kind = Machine
    manager = "scaler"

    def plan(self, resource: Machine, look: Look) -> Plan:
        changes = []
        doc = resource.as_doc()
        for name, wanted in (("slots", 2), ("notes", {})):
            if doc["spec"][name] != wanted:
                fixed = {**doc, "spec": {**doc["spec"], name: wanted}, "status": {}}
                fixed["metadata"] = {**doc["metadata"], "resourceVersion": 0}
                write = StoreWrite(fixed, frozenset({"spec.slots", "spec.notes"}), resource.metadata.uid)
                fields = {f"spec.{name}": (doc["spec"][name], wanted)}
                changes.append(store_change("update", resource.key, write, fields=fields))
        return Plan(tuple(changes[:1]), again=0.2)

    def report(self, resource: Machine, plan: Plan, look: Look) -> Report:
        status = resource.status.model_copy()
        status.conditions = conditions(Ready=("True", "Scaled", ""))
        return Report(status)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path, (Scaler(),)) as found:
        yield found


def slots(shop: Workshop) -> int:
    return int(shop.get("Machine", "m1")["spec"]["slots"])


def test_a_reconciler_keeps_its_hands_off_until_the_run_is_over(shop: Workshop) -> None:
    shop.until(lambda: slots(shop) == 2)
    shop.run("r", steps=[GROW, ASK])
    shop.until_phase("r", "Waiting")
    assert slots(shop) == 9
    shop.until(lambda: condition(shop.get("Machine", "m1"), "HeldByRun")["status"] == "True")
    assert "ops/r" in condition(shop.get("Machine", "m1"), "HeldByRun")["message"]
    shop.patch("m1", notes={"a": "b"})
    time.sleep(0.6)
    assert slots(shop) == 9
    shop.ask("approve", "r")
    shop.until_phase("r", "Succeeded")
    shop.until(lambda: slots(shop) == 2)
    assert shop.get("Machine", "m1")["metadata"]["managers"]["spec.slots"] == "scaler"


def test_a_hold_ends_by_itself(shop: Workshop) -> None:
    shop.until(lambda: slots(shop) == 2)
    shop.run("r", steps=[{"name": "grow", "act": setting(1.0, slots=9)}, ASK])
    shop.until_phase("r", "Waiting")
    began = time.monotonic()
    shop.until(lambda: slots(shop) == 2)
    assert time.monotonic() - began > 0.5
    assert shop.status("r")["phase"] == "Waiting"
    shop.until(lambda: [f for f in shop.facts("journal") if f["state"] == "released"])


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as found:
        yield found


def test_two_runs_do_not_pull_at_one_field(plain: Workshop) -> None:
    plain.run("first", steps=[GROW, ASK])
    plain.until_phase("first", "Waiting")
    plain.run("second", steps=[{"name": "grow", "act": setting(slots=3)}])
    assert "is held by run ops/first" in plain.until_phase("second", "Failed")["message"]
    assert slots(plain) == 9
    plain.run("third", steps=[{"name": "off", "act": setting(power="off")}])
    plain.until_phase("third", "Succeeded")


def test_who_managed_a_field_does_so_again(plain: Workshop) -> None:
    plain.apply("Machine", "m1", {"slots": 3, "power": "on"}, "ops", "source:platform")
    plain.run("r", steps=[GROW, {"name": "more", "act": setting(slots=10)}, ASK])
    plain.until_phase("r", "Waiting")
    managers = {"spec.slots": "run:ops/r", "spec.power": "source:platform"}
    assert plain.get("Machine", "m1")["metadata"]["managers"] == managers
    plain.ask("approve", "r")
    plain.until_phase("r", "Succeeded")
    managers["spec.slots"] = "source:platform"
    assert plain.get("Machine", "m1")["metadata"]["managers"] == managers
    assert slots(plain) == 10


def test_at_the_expiry_too(plain: Workshop) -> None:
    plain.apply("Machine", "m1", {"slots": 3}, "ops", "source:platform")
    plain.run("r", steps=[{"name": "grow", "act": setting(1.0, slots=9)}, ASK])
    plain.until_phase("r", "Waiting")
    plain.restart()
    plain.until(lambda: plain.get("Machine", "m1")["metadata"]["managers"] == {"spec.slots": "source:platform"})
    assert plain.status("r")["phase"] == "Waiting"


def test_what_a_person_took_over_stays_theirs(plain: Workshop) -> None:
    plain.apply("Machine", "m1", {"slots": 3}, "ops", "source:platform")
    plain.run("r", steps=[GROW, ASK])
    plain.until_phase("r", "Waiting")
    plain.apply("Machine", "m1", {"slots": 5}, "ops", "user:bob")
    plain.ask("approve", "r")
    plain.until_phase("r", "Succeeded")
    assert plain.get("Machine", "m1")["metadata"]["managers"] == {"spec.slots": "user:bob"}
    assert slots(plain) == 5


@pytest.mark.parametrize("way", ["done", "failed", "cancelled"])
def test_no_hold_outlives_its_run(plain: Workshop, way: str) -> None:
    last = {"name": "last", "act": call("fail" if way == "failed" else "count"), "onUnknown": "ask"}
    plain.run("r", steps=[GROW, ASK, last])
    plain.until_phase("r", "Waiting")
    plain.ask("cancel" if way == "cancelled" else "approve", "r")
    plain.until_phase("r", "Succeeded", "Failed", "Cancelled")
    with sqlite3.connect(plain.data / "ground.db") as conn:
        assert conn.execute("select count(*) from holds").fetchone() == (0,)


def test_a_service_follows_while_its_field_is_held(tmp_path: Path) -> None:
    """The hold keeps others from the field; making it true is what the Run waits for."""
    with federation(tmp_path) as fed:
        fed.sites("a", "b")
        fed.apply("Account", "ada", {"groups": []})
        fed.apply("RoleBinding", "ada", {"role": "operator", "subjects": ["user:ada"]})
        fed.service("web")
        fed.until_ready("Service", "web", "alpha")
        grow = {"set": {"kind": "Service", "name": "web", "fields": {"spec.replicas": 3}}}
        grown = {"kind": "Service", "name": "web", "until": "resource.status.ready == 3"}
        steps = [{"name": "grow", "act": grow}, {"name": "grown", "wait": grown}, ASK]
        fed.apply("Run", "r", {"steps": steps}, "alpha")
        fed.until(lambda: (fed.get("Run", "r", "alpha") or {})["status"].get("phase") == "Waiting")
        unit = fed.units()[0]
        fed.host(next(n for n in fed.hosts if any(u.id == unit.id for u in fed.units(n)))).kill(unit.id)
        fed.until(lambda: fed.hosts_unit(unit.id).state == "running" and fed.hosts_unit(unit.id).starts > unit.starts)
        assert len(fed.units()) == 3


def test_nor_is_it_removed_by_its_maker(tmp_path: Path) -> None:
    """A reconciler that wants the whole resource gone waits as well."""

    class Remover(Scaler):
        """Wants machines gone that have nine slots."""

        def plan(self, resource: Machine, look: Look) -> Plan:
            if resource.spec.slots != 9:
                return Plan()
            write = StoreWrite(uid=resource.metadata.uid)
            return Plan((store_change("delete", resource.key, write, destructive=True),))

    with workshop(tmp_path, (Remover(),)) as shop:
        shop.run("r", steps=[GROW, ASK])
        shop.until_phase("r", "Waiting")
        shop.until(lambda: condition(shop.get("Machine", "m1"), "HeldByRun")["status"] == "True")
        shop.ask("approve", "r")
        shop.until_phase("r", "Succeeded")
        shop.until(lambda: shop.runtime.store.get(MACHINE) is None)
