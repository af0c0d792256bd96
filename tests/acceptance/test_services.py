"""Services as processes: they run, are checked, restarted, corrected, and kept apart."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.installation import Installation, until

pytestmark = pytest.mark.acceptance


def ask(endpoint: str, path: str = "/") -> str:
    """What a service answers, as one of its users sees it."""
    connection = http.client.HTTPConnection(endpoint, timeout=3)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200, f"{endpoint}{path}: {answer.status}"
        return answer.read().decode()
    finally:
        connection.close()


def test_a_service_runs_where_the_api_says(alpha: Installation) -> None:
    alpha.service("web", replicas=2, placement={"spread": "site"}, files={"message.txt": "hello there"})
    alpha.until_ready("services", "web", "alpha")
    units = alpha.units("web")
    assert {u.site for u in units} == {"cnaf", "bari"}
    assert len(units) == len(alpha.running()) == 2
    assert [ask(e) for e in alpha.endpoints("web")] == ["hello there"] * 2
    assert {u.env["GROUND_ADDRESS"] for u in units} == {e.split(":")[0] for e in alpha.endpoints("web")}
    assert not any("SECRET" in n or n.startswith("ACCEPTANCE") for u in units for n in u.env), "nothing is inherited"


def test_kill_9_heals_and_is_told(alpha: Installation) -> None:
    alpha.service("web", replicas=2)
    alpha.until_ready("services", "web", "alpha")
    before = {u.unit: u.pid for u in alpha.units("web")}
    victim = min(before)
    os.kill(before[victim], signal.SIGKILL)

    def healed() -> bool:
        now = {u.unit: u.pid for u in alpha.units("web")}
        return now.keys() == before.keys() and now[victim] != before[victim]

    until(healed, "the killed process is there again")
    alpha.until_ready("services", "web", "alpha")
    assert len(alpha.running()) == 2
    others = set(before) - {victim}
    assert {u.unit: u.pid for u in alpha.units("web") if u.unit in others} == {n: before[n] for n in others}
    failure = alpha.need("services", "web", "alpha")["status"]["lastFailure"]
    assert failure["message"] == "its process was killed by signal 9"
    until(
        lambda: [d["status"]["phase"] for d in alpha.list("incidents", "alpha")] == ["Closed"],
        "one incident, opened and closed",
        told=lambda: str(alpha.list("incidents", "alpha")),
    )


def test_a_tcp_check_and_a_command_check_decide(alpha: Installation) -> None:
    tcp = {"kind": "tcp", "interval": 0.2}
    alpha.service("echo", sample="tcp", ports={"tcp": 7000}, health=tcp)
    script = "sleep 0.7; touch ok; exec sleep 1000"
    check = {"kind": "command", "command": ["/usr/bin/test", "-e", "{dir}/ok"], "interval": 0.2, "failures": 2}
    alpha.service("job", command=["/bin/sh", "-c", script], ports={}, health=check, stopGrace=0)
    assert alpha.until_ready("services", "job", "alpha", status="False", reason="Starting")
    alpha.until_ready("services", "echo", "alpha")
    alpha.until_ready("services", "job", "alpha")
    (unit,) = alpha.units("job")
    (unit.directory / "ok").unlink()
    alpha.until_ready("services", "job", "alpha", status="False", reason="Unhealthy")
    (unit.directory / "ok").touch()
    alpha.until_ready("services", "job", "alpha")
    (echo,) = alpha.units("echo")
    os.kill(echo.pid, signal.SIGSTOP)
    try:
        said = alpha.until_ready("services", "echo", "alpha", status="False")
        assert "stopped" in said["message"], said
    finally:
        os.kill(echo.pid, signal.SIGCONT)
    alpha.until_ready("services", "echo", "alpha")


def test_what_runs_once_completes_and_is_left_alone(alpha: Installation) -> None:
    once = {"sample": "once", "runOnce": True, "restart": "never", "ports": {}, "health": {"kind": "none"}}
    alpha.service("good", **once, env={"SECONDS": "0.3"})
    alpha.service("bad", **once, env={"SECONDS": "0.1", "CODE": "4"})
    alpha.until_ready("services", "good", "alpha", reason="Completed")
    assert "code 4" in alpha.until_ready("services", "bad", "alpha", status="False", reason="Died")["message"]
    time.sleep(1.0)
    assert alpha.running() == []
    for name in ("good", "bad"):
        (instance,) = alpha.instances(name)
        assert instance["status"]["starts"] == 1, name
    assert "done, code 0" in alpha.ground("logs", "good", "-n", "alpha").stdout


def test_a_crash_loop_waits_longer_each_time(alpha: Installation) -> None:
    alpha.service("crash", sample="crash", env={"SECONDS": "0.05"}, ports={}, health={"kind": "none"})
    alpha.service("web")
    alpha.until_ready("services", "web", "alpha")

    def starts() -> int:
        return max((int(i["status"].get("starts", 0)) for i in alpha.instances("crash")), default=0)

    until(lambda: starts() >= 3, "it was restarted twice")
    when = []
    for count in (4, 5, 6):
        until(lambda count=count: starts() >= count, f"start {count}")
        when.append(time.monotonic())
    first, second = when[1] - when[0], when[2] - when[1]
    assert second > 1.3 * first > 1.3, f"waits {first:.1f} s, then {second:.1f} s"
    assert alpha.condition("services", "crash", "alpha")["status"] == "False"
    assert "code 3" in alpha.need("services", "crash", "alpha")["status"]["lastFailure"]["message"]
    assert alpha.condition("services", "web", "alpha")["status"] == "True"


def test_a_slow_start_is_waited_for_and_is_no_incident(alpha: Installation) -> None:
    check = {"kind": "http", "path": "/healthz", "interval": 0.2, "failures": 2, "startPeriod": 20}
    alpha.service("slow", sample="slow", env={"DELAY": "1.5"}, health=check)
    alpha.until_ready("services", "slow", "alpha", status="False", reason="Starting")
    assert alpha.endpoints("slow") == []
    alpha.until_ready("services", "slow", "alpha")
    assert [i["status"]["starts"] for i in alpha.instances("slow")] == [1]
    assert not [d for d in alpha.list("incidents", "alpha") if d["spec"]["subject"]["name"] == "slow"]


def test_a_dependency_comes_first_and_its_addresses_follow(alpha: Installation) -> None:
    alpha.service("portal", dependsOn=["db"])
    said = alpha.until_ready("services", "portal", "alpha", status="False", reason="Progressing")
    assert "db" in said["message"]
    alpha.service("db", files={"message.txt": "from the database"}, placement={"sites": ["cnaf"]})
    alpha.until_ready("services", "portal", "alpha")
    (portal,) = alpha.endpoints("portal")

    def answered() -> str:
        try:
            return ask(portal, "/backend/db")
        except (AssertionError, OSError):
            return ""

    until(lambda: answered().endswith("from the database"), "the portal reaches the database")
    (old,) = alpha.endpoints("db")
    alpha.patch("services", "db", "alpha", placement={"sites": ["bari"]})
    alpha.until_ready("services", "db", "alpha")
    (new,) = until(lambda: alpha.endpoints("db") if alpha.endpoints("db") != [old] else None, "it moved")
    until(lambda: answered() == f"{new}: from the database", "the portal follows the database", told=answered)
    assert len(alpha.units("portal")) == 1
    assert [i["status"]["starts"] for i in alpha.instances("portal")] == [1], "told in place, without a restart"


def test_a_site_is_not_filled_beyond_its_capacity(alpha: Installation) -> None:
    alpha.service("big", replicas=3, resources={"cores": 3})
    said = alpha.until_ready("services", "big", "alpha", status="False", reason="Unplaceable")
    assert "1 cores free, 3 needed" in said["message"], said
    until(lambda: len(alpha.units("big")) == 2)
    alpha.service("small", resources={"cores": 1})
    alpha.until_ready("services", "small", "alpha")
    alpha.patch("services", "big", "alpha", replicas=2)
    alpha.until_ready("services", "big", "alpha")
    assert len(alpha.running()) == 3


def test_a_file_changed_by_hand_is_put_back_and_named(alpha: Installation) -> None:
    alpha.service("web", files={"message.txt": "as declared"})
    alpha.until_ready("services", "web", "alpha")
    (unit,) = alpha.units("web")
    (unit.directory / "message.txt").write_text("by hand")
    until(lambda: (unit.directory / "message.txt").read_text() == "as declared", "it is put back")
    (instance,) = alpha.instances("web")
    (event,) = until(
        lambda: alpha.events("Instance", instance["metadata"]["name"], "alpha", "DriftCorrected"), "it is told"
    )
    assert event["fields"] == {"spec.files[message.txt]": ["by hand", "as declared"]}
    assert event["type"] == "Warning"
    assert [u.pid for u in alpha.units("web")] == [unit.pid], "corrected in place"


def test_a_limit_changed_by_hand_is_put_back_and_named(alpha: Installation) -> None:
    alpha.service("limited", resources={"cores": 0.1, "openFiles": 256})
    alpha.until_ready("services", "limited", "alpha")
    (unit,) = alpha.units("limited")

    def held() -> str:
        lines = Path(f"/proc/{unit.pid}/limits").read_text().splitlines()
        return next(line.split()[3] for line in lines if line.startswith("Max open files"))

    assert held() == "256"
    # As the tenant: root may do it only where the machine leaves it CAP_SYS_RESOURCE.
    tenant = {"user": unit.uid, "group": os.stat(f"/proc/{unit.pid}").st_gid, "extra_groups": []}
    command = ["prlimit", f"--pid={unit.pid}", "--nofile=128:256"]
    subprocess.run(command, check=True, **(tenant if os.geteuid() == 0 else {}))
    until(lambda: held() == "256", "it is put back")
    (instance,) = alpha.instances("limited")
    (event,) = until(
        lambda: alpha.events("Instance", instance["metadata"]["name"], "alpha", "DriftCorrected"), "it is told"
    )
    ((path, (found, wanted)),) = event["fields"].items()
    assert (path, found, wanted) == ("spec.resources.openFiles", 128, 256)
    assert "openFiles" in event["message"]


def test_drift_is_only_reported_when_that_is_wanted(alpha: Installation) -> None:
    alpha.service("web", files={"message.txt": "as declared"}, drift="report")
    alpha.until_ready("services", "web", "alpha")
    (unit,) = alpha.units("web")
    (unit.directory / "message.txt").write_text("by hand")
    (instance,) = alpha.instances("web")
    name = instance["metadata"]["name"]
    until(lambda: alpha.condition("instances", name, "alpha", "Drift")["status"] == "True", "it is reported")
    assert "message.txt" in alpha.condition("instances", name, "alpha", "Drift")["message"]
    time.sleep(1.0)
    assert (unit.directory / "message.txt").read_text() == "by hand"
    assert alpha.condition("services", "web", "alpha", "Drift")["status"] == "True", "the service says it too"
    alpha.patch("services", "web", "alpha", drift="correct")
    until(lambda: (unit.directory / "message.txt").read_text() == "as declared", "it is put back now")
    until(lambda: alpha.condition("services", "web", "alpha", "Drift")["status"] != "True", "and no longer told")


def test_the_restart_action_makes_new_processes(alpha: Installation) -> None:
    alpha.service("web", replicas=2)
    alpha.until_ready("services", "web", "alpha")
    before = {u.pid for u in alpha.units("web")}
    alpha.ok("POST", alpha.path("services", "web", "alpha") + "/actions/restart", {"reason": "memory leak"})
    until(lambda: len(now := {u.pid for u in alpha.running()}) == 2 and not now & before, "both are new")
    alpha.until_ready("services", "web", "alpha")
    audit = alpha.ok("GET", "/api/v1/audit?verb=restart&kind=Service&name=web")["items"]
    assert [(a["subject"], a["outcome"]) for a in audit] == [("user:admin", "asked"), ("user:admin", "done")]


def test_a_tenant_reads_their_own_logs_only(alpha: Installation) -> None:
    ada = alpha.person("ada", "experiments/alpha", "alpha")
    bruno = alpha.person("bruno", "experiments/beta", "beta")
    alpha.service("talk", command=["/bin/sh", "-c", "echo a word of alpha; exec sleep 1000"], ports={}, health={})
    alpha.until_ready("services", "talk", "alpha")
    said = alpha.ground("logs", "talk", "-n", "alpha", token=ada)
    assert (said.returncode, said.stdout) == (0, "a word of alpha\n"), said.stderr
    said = alpha.ground("logs", "talk", "-n", "alpha", token=bruno)
    assert said.returncode == 4, said.stderr
    assert "word" not in said.stdout
    assert alpha.call("GET", alpha.path("services", "talk", "alpha") + "/log", token=bruno).status == 404


@pytest.mark.skipif(os.geteuid() != 0, reason="without root there is one user id, and a second tenant is refused")
def test_two_tenants_cannot_reach_into_each_other(alpha: Installation) -> None:
    alpha.apply(alpha.document("Namespace", "beta", {"group": "experiments/beta"}))
    given = {"ports": {}, "health": {}, "placement": {"sites": ["cnaf"]}, "stopGrace": 0}
    alpha.service("vault", command=["/bin/sleep", "1000"], files={"secret.txt": "of alpha"}, **given)
    alpha.until_ready("services", "vault", "alpha")
    (vault,) = alpha.units("vault")
    tries = (
        f"cat {vault.directory}/secret.txt; ls {vault.directory}; cat /proc/{vault.pid}/environ; "
        f"ls {vault.directory.parent.parent}; cat {alpha.etc}/admin.password; cat {alpha.data}/ground.db | head -c 9; "
        f"cat {alpha.root}/cnaf.token; kill -9 {vault.pid}; echo tried as $(id -u); exec sleep 1000"
    )
    alpha.service("thief", "beta", command=["/bin/sh", "-c", tries], **given)
    alpha.until_ready("services", "thief", "beta")
    log = until(lambda: log if "tried as" in (log := alpha.ground("logs", "thief", "-n", "beta").stdout) else "")
    (thief,) = alpha.units("thief", "beta")
    assert f"tried as {thief.uid}" in log
    assert thief.uid not in (0, vault.uid)
    assert vault.uid != 0
    denied = [line for line in log.splitlines() if "denied" in line.lower() or "not permitted" in line.lower()]
    assert len(denied) == 8, log
    assert "of alpha" not in log
    assert "SQLite" not in log
    assert Path(f"/proc/{vault.pid}").exists()


def test_maintenance_leaves_what_runs_and_retirement_moves_it(alpha: Installation) -> None:
    alpha.service("web", placement={"sites": ["cnaf"]})
    alpha.until_ready("services", "web", "alpha")
    pid = [u.pid for u in alpha.units("web")]
    alpha.patch("sites", "cnaf", state="maintenance")
    alpha.service("late", placement={"sites": ["cnaf"]})
    said = alpha.until_ready("services", "late", "alpha", status="False", reason="Unplaceable")
    assert "maintenance" in said["message"]
    assert [u.pid for u in alpha.running()] == pid
    os.kill(pid[0], signal.SIGKILL)
    until(lambda: alpha.units("web") and [u.pid for u in alpha.units("web")] != pid, "what runs there is still healed")
    alpha.patch("sites", "cnaf", state="active")
    alpha.until_ready("services", "late", "alpha")
    alpha.service("web", placement={})
    alpha.delete("services", "late", "alpha")
    alpha.patch("sites", "cnaf", state="retired")
    until(lambda: [u.site for u in alpha.running()] == ["bari"], "everything moved away")
    alpha.until_ready("services", "web", "alpha")
    refused = alpha.call("PATCH", alpha.path("sites", "cnaf"), {"spec": {"state": "active"}})
    assert refused.status == 422, refused.message
    assert "candidate" in refused.message
    alpha.patch("sites", "cnaf", state="candidate")
    alpha.patch("sites", "cnaf", state="active")
