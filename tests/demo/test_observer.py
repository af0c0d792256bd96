"""The observer is not to be lied to: for every step of the story there is something it must find wrong."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from groundcontrol.demo.observer import Recorder, Unit, Wanted, branch_head, running, until
from tests.demo.conftest import NOW, THEN, Doc, FakeApi, Stage, document

FILE = "message.txt"
WEB = Wanted("alpha/web", "http", 8080, version="1", says="hello")
ECHO = Wanted("beta/echo", "tcp", 7000, version="1")
PAIR = Wanted("alpha/archive", "http", 8080, replicas=2, version="1", says="archive", apart=True)
ONCE = Wanted("beta/ingest", "nothing", version="1", says="done, code 0", once=True)


@pytest.fixture
def web(stage: Stage) -> Unit:
    """One service that runs and of which the API speaks well."""
    stage.say("services", document("Service", WEB.name))
    return stage.start(WEB, "cnaf")


# ------------------------------------------------------------------------------------------------ converge


def test_all_is_well(stage: Stage, web: Unit) -> None:
    stage.say("sites", document("Site", "cnaf"))
    assert stage.observer.converged([WEB], ["cnaf"]) == []


def test_tcp_and_what_runs_once_are_well(stage: Stage) -> None:
    stage.start(ECHO, "bari")
    stage.say("services", document("Service", ECHO.name), document("Service", ONCE.name))
    stage.api.content["namespaces/beta/services/ingest/log"] = "step 1\ndone, code 0\n"
    assert stage.observer.converged([ECHO, ONCE]) == []


def test_ready_while_nothing_runs(stage: Stage, web: Unit) -> None:
    stage.kill(web)
    assert "alpha/web: 0 running, 1 wanted" in stage.observer.converged([WEB])


def test_ready_while_the_socket_is_dead(stage: Stage) -> None:
    stage.say("services", document("Service", WEB.name))
    silent = stage.start(WEB._replace(speaks="nothing"), "cnaf", sample="once")
    (reason,) = stage.observer.converged([WEB])
    assert silent.address in reason
    assert "does not answer" in reason


def test_ready_while_it_says_something_else(stage: Stage) -> None:
    stage.say("services", document("Service", WEB.name))
    stage.start(WEB, "cnaf", pretend="something else")
    assert "does not say 'hello'" in stage.observer.converged([WEB])[0]


def test_ready_while_somebody_else_answers_on_its_address(stage: Stage, web: Unit) -> None:
    """The one process holds the socket; the other says that it is the unit and listens nowhere."""
    impostor = WEB._replace(name="alpha/impostor", speaks="nothing")
    fake = stage.start(impostor, "cnaf", sample="once")
    stage.say("services", document("Service", WEB.name), document("Service", impostor.name))
    observed = web._replace(pid=fake.pid)
    from groundcontrol.demo.observer import answering

    assert f"answered by pid {web.pid}" in answering(WEB, observed)[0]


def test_ready_while_a_duplicate_runs(stage: Stage, web: Unit) -> None:
    stage.start(WEB, "bari")
    assert "alpha/web: 2 running, 1 wanted" in stage.observer.converged([WEB])


def test_a_child_of_a_unit_is_no_duplicate(stage: Stage, web: Unit) -> None:
    environment = {**os.environ, "GROUND_RUN": web.run, "GROUND_DIR": web.directory, "SERVICE": web.service}
    # A shell and its child, as a unit that forks looks like: one tree, one instance.
    shell = subprocess.Popen(["sh", "-c", "sleep 30; true"], env=environment | {"GROUND_RUN": "u9:host.9"})
    stage.processes.append(shell)
    deadline = time.monotonic() + 5
    while not Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()[0])
    try:
        assert sorted(unit.pid for unit in running(stage.sites)) == sorted([web.pid, shell.pid])
    finally:
        os.kill(child, 9)


def test_ready_while_two_replicas_share_a_site(stage: Stage) -> None:
    stage.say("services", document("Service", PAIR.name))
    stage.start(PAIR, "cnaf")
    stage.start(PAIR, "cnaf")
    assert stage.observer.converged([PAIR]) == ["alpha/archive: two replicas share a site"]


def test_ready_while_an_old_version_runs(stage: Stage, web: Unit) -> None:
    assert "still version 1" in stage.observer.converged([WEB._replace(version="2")])[0]


def test_running_while_the_api_does_not_say_ready(stage: Stage, web: Unit) -> None:
    for verdict in ("False", "Unknown"):
        stage.say("services", document("Service", WEB.name, verdict))
        assert "not Ready: Because" in stage.observer.converged([WEB])[0]


def test_ready_of_an_older_generation(stage: Stage, web: Unit) -> None:
    doc = document("Service", WEB.name)
    doc["metadata"]["generation"] = 2
    stage.say("services", doc)
    assert "older generation" in stage.observer.converged([WEB])[0]


def test_what_nobody_declared(stage: Stage, web: Unit) -> None:
    stage.start(ECHO, "bari")
    stage.say("services", document("Service", WEB.name), document("Service", "alpha/extra"))
    reasons = stage.observer.converged([WEB])
    assert "alpha/extra exists and nobody declares it" in reasons
    assert any("runs for beta/echo" in reason for reason in reasons)


def test_run_once_that_did_not(stage: Stage) -> None:
    stage.say("services", document("Service", ONCE.name))
    stage.api.content["namespaces/beta/services/ingest/log"] = "step 1\n"
    assert "its log does not say" in stage.observer.converged([ONCE])[0]
    stage.start(ONCE, "cnaf", sample="once")
    assert "beta/ingest: 1 running, 0 wanted" in stage.observer.converged([ONCE])


def test_a_service_that_does_not_reach_the_one_behind(stage: Stage) -> None:
    stage.say("services", document("Service", WEB.name))
    stage.start(WEB, "cnaf")
    assert "does not reach the service behind it" in stage.observer.converged([WEB._replace(behind="backend")])[0]


def test_a_site_that_is_not_ready(stage: Stage, web: Unit) -> None:
    stage.say("sites", document("Site", "cnaf", "Unknown"))
    assert stage.observer.converged([WEB], ["cnaf", "bari"]) == ["site cnaf is not Ready", "site bari is not Ready"]


def test_an_api_that_does_not_answer_is_no_proof(stage: Stage, web: Unit) -> None:
    del stage.api.content["services"]
    verdict = until(lambda: stage.observer.converged([WEB]), 0.2)
    assert not verdict.ok
    assert "404" in verdict.reasons[0]


# ------------------------------------------------------------------------------------------------ change


@pytest.fixture
def head(stage: Stage, tmp_path: Path) -> str:
    origin = tmp_path / "origin.git"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q", "-b", "main", str(origin)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=origin, check=True)
    # A work tree here, so that a commit can be made; the observer asks a bare repository by its git directory.
    stage.observer._repository = origin / ".git"
    return branch_head(origin / ".git")


def source(commit: str, ready: str = "True") -> Doc:
    doc = document("Source", "platform", ready)
    doc["status"]["commit"] = commit
    return doc


def test_the_source_has_read_the_commit(stage: Stage, head: str) -> None:
    stage.api.content["sources/platform"] = source(head)
    assert stage.observer.read_from_git(head) == []


def test_a_commit_that_was_not_read(stage: Stage, head: str) -> None:
    stage.api.content["sources/platform"] = source("0" * 40)
    assert "has not read commit" in stage.observer.read_from_git(head)[0]
    assert "the branch is at" in stage.observer.read_from_git("1" * 40)[0]


def test_a_source_with_problems(stage: Stage, head: str) -> None:
    stage.api.content["sources/platform"] = source(head, "False")
    assert "Because" in stage.observer.read_from_git(head)[0]


def test_not_live_before_every_replica_says_so(stage: Stage) -> None:
    stage.start(PAIR, "cnaf")
    stage.start(PAIR, "bari", pretend="the old text")
    (reason,) = stage.observer.live(PAIR)
    assert "bari" in reason


# ------------------------------------------------------------------------------------------------ heal


def test_a_killed_process_that_lives(stage: Stage, web: Unit) -> None:
    assert stage.observer.replaced(WEB, web) == ["the killed process still runs"]


def test_a_killed_process_that_nobody_replaced(stage: Stage, web: Unit) -> None:
    stage.kill(web)
    assert stage.observer.replaced(WEB, web) == ["alpha/web: 0 running, 1 wanted"]


def test_replaced(stage: Stage, web: Unit) -> None:
    stage.kill(web)
    stage.start(WEB, "cnaf")
    assert stage.observer.replaced(WEB, web) == []


def incident(phase: str = "Closed", opened: str = NOW, closed: str = NOW, name: str = "web", lines: int = 2) -> Doc:
    doc = document("Incident", "alpha/i1", subject={"kind": "Service", "namespace": "alpha", "name": name})
    entries = [{"time": opened, "text": "it happened"}] * lines
    doc["status"] |= {"phase": phase, "openedAt": opened, "closedAt": closed, "timeline": entries}
    return doc


def test_an_incident_opened_and_closed(stage: Stage) -> None:
    stage.say("incidents", incident())
    assert stage.observer.incident("alpha/web", time.time()) == []


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "no incident"),
        ([incident(name="portal")], "no incident"),
        ([incident(opened=THEN)], "no incident"),
        ([incident(phase="Open", closed="")], "still Open"),
        ([incident(closed=THEN)], "still Closed"),
        ([incident(lines=1)], "does not tell"),
    ],
)
def test_an_incident_that_is_none(stage: Stage, found: list[Doc], reason: str) -> None:
    stage.say("incidents", *found)
    assert reason in stage.observer.incident("alpha/web", time.time())[0]


# ------------------------------------------------------------------------------------------------ drift


def event(seq: int = 9, name: str = "web-0", kind: str = "Warning", text: str = FILE, ns: str = "alpha") -> Doc:
    fields = {f"spec.files.{text}": ["Somebody was here", "hello"]}
    return {"seq": seq, "namespace": ns, "name": name, "type": kind, "reason": "Drift", "message": "", "fields": fields}


def test_drift_is_on_the_timeline(stage: Stage) -> None:
    stage.say("events", event())
    assert stage.observer.on_timeline("alpha/web", 8, ("message.txt", "Somebody was here")) == []


@pytest.mark.parametrize(
    "entry", [event(seq=8), event(name="portal-0"), event(kind="Normal"), event(text="other.txt"), event(ns="beta")]
)
def test_an_entry_that_does_not_report_it(stage: Stage, entry: Doc) -> None:
    stage.say("events", entry)
    assert stage.observer.on_timeline("alpha/web", 8, ("message.txt",)) != []


def test_a_file_that_was_not_put_back(stage: Stage, web: Unit) -> None:
    assert stage.observer.corrected(WEB, web, "message.txt", "hello") == []
    (Path(web.directory) / "message.txt").write_text("Somebody was here.")
    assert "Somebody" in stage.observer.corrected(WEB, web, "message.txt", "hello")[0]


def test_a_file_put_back_by_a_restart(stage: Stage, web: Unit) -> None:
    stage.kill(web)
    stage.start(WEB, "cnaf")
    assert "was replaced to correct a file" in stage.observer.corrected(WEB, web, "message.txt", "hello")[0]


# ------------------------------------------------------------------------------------------------ guard


def plan(*names: str, scope: str = "source:platform", verb: str = "delete", digest: str = "sha256:1") -> Doc:
    changes = [{"verb": verb, "target": {"driver": "store", "type": "Service", "id": name}} for name in names]
    return {"id": scope, "scope": scope, "digest": digest, "changes": changes}


def test_a_plan_that_is_held(stage: Stage) -> None:
    stage.say("plans", plan("alpha/web", "alpha/portal"))
    assert stage.observer.held("source:platform", ["alpha/portal", "alpha/web"]) == []


@pytest.mark.parametrize(
    "found",
    [
        [],
        [plan("alpha/web", "alpha/portal", scope="source:other")],
        [plan("alpha/web")],
        [plan("alpha/web", "alpha/portal", "alpha/archive")],
        [plan("alpha/web", "alpha/portal", verb="update")],
        [plan("alpha/web", "alpha/portal", digest="")],
    ],
)
def test_a_plan_that_is_another(stage: Stage, found: list[Doc]) -> None:
    stage.say("plans", *found)
    assert stage.observer.held("source:platform", ["alpha/portal", "alpha/web"]) != []


def test_untouched(stage: Stage, web: Unit) -> None:
    assert stage.observer.untouched([web], [WEB.name]) == []


def test_touched_although_held(stage: Stage, web: Unit) -> None:
    doc = document("Service", WEB.name)
    doc["metadata"]["deletionTimestamp"] = NOW
    stage.say("services", doc)
    assert stage.observer.untouched([web], [WEB.name]) == ["alpha/web is being deleted"]
    stage.say("services")
    assert stage.observer.untouched([web], [WEB.name]) == ["alpha/web is gone"]
    stage.kill(web)
    assert f"alpha/web: pid {web.pid} is gone" in stage.observer.untouched([web], [])


def test_deleted_for_the_api_only(stage: Stage, web: Unit) -> None:
    stage.say("services")
    reasons = stage.observer.gone([WEB.name], [web], {WEB.name: WEB.port})
    assert reasons == [f"alpha/web: pid {web.pid} still runs", f"alpha/web still answers at {web.address}"]


def test_deleted_for_us_only(stage: Stage, web: Unit) -> None:
    stage.kill(web)
    assert stage.observer.gone([WEB.name], [web], {WEB.name: WEB.port}) == ["alpha/web still exists"]


def test_gone(stage: Stage, web: Unit) -> None:
    stage.kill(web)
    stage.say("services")
    assert stage.observer.gone([WEB.name], [web], {WEB.name: WEB.port}) == []


# ------------------------------------------------------------------------------------------------ cut, return


class Cut:
    """Web only at cnaf, archive at cnaf and bari; cnaf cannot be reached."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.units = [stage.start(WEB, "cnaf"), stage.start(PAIR, "cnaf"), stage.start(PAIR, "bari")]
        self.docs = {
            "site": document("Site", "cnaf", "Unknown", since=NOW),
            "other site": document("Site", "bari"),
            "web": document("Service", WEB.name, "Unknown", since=NOW),
            "archive": document("Service", PAIR.name, "Unknown", since=NOW),
            "web-0": document("Instance", "alpha/web-0", "Unknown", since=NOW, site="cnaf", template={}),
            "archive-1": document("Instance", "alpha/archive-1", site="bari", template={}),
        }
        self.condition("archive", 1)["status"] = "True"

    def condition(self, name: str, number: int = 0) -> Doc:
        found: Doc = self.docs[name]["status"]["conditions"][number]
        return found

    def judged(self) -> list[str]:
        for plural, kind in (("sites", "Site"), ("services", "Service"), ("instances", "Instance")):
            self.stage.say(plural, *(doc for doc in self.docs.values() if doc["kind"] == kind))
        return self.stage.observer.unknown("cnaf", self.units, [WEB, PAIR], time.time())


@pytest.fixture
def cut(stage: Stage) -> Cut:
    return Cut(stage)


def test_unknown_as_it_should_be(cut: Cut) -> None:
    assert cut.judged() == []


@pytest.mark.parametrize("name", ["site", "web", "web-0"])
def test_unknown_called_something_else(cut: Cut, name: str) -> None:
    for verdict in ("True", "False"):
        cut.condition(name)["status"] = verdict
        assert any(f"is Ready={verdict}, not Unknown" in reason for reason in cut.judged())


def test_unknown_without_reason_or_age(cut: Cut) -> None:
    cut.condition("web")["reason"] = ""
    assert cut.judged() == ["alpha/web is Unknown without a reason"]
    cut.condition("web") | {"reason": "Unreachable"}
    cut.condition("web").update(reason="Unreachable", lastTransitionTime="")
    assert cut.judged() == ["alpha/web is Unknown and does not say since when"]


def test_a_service_with_a_replica_elsewhere_must_stay_available(cut: Cut) -> None:
    for verdict in ("Unknown", "False"):
        cut.condition("archive", 1)["status"] = verdict
        assert "alpha/archive has a replica elsewhere and is not Available" in cut.judged()


def test_something_elsewhere_called_failed(cut: Cut) -> None:
    cut.condition("archive-1")["status"] = "False"
    assert cut.judged() == ["alpha/archive-1 is called Ready=False (Because)"]


def test_a_process_at_the_cut_site_that_ended_or_a_new_one_elsewhere(cut: Cut) -> None:
    cut.stage.kill(cut.units[0])
    new = cut.stage.start(WEB, "bari")
    assert cut.judged() == [
        f"alpha/web at cnaf: pid {cut.units[0].pid} is gone",
        f"alpha/web at bari: pid {new.pid} was started",
    ]


def test_a_replica_that_runs_and_does_not_answer(cut: Cut) -> None:
    (Path(cut.units[2].directory) / "message.txt").write_text("no longer")
    assert "does not say 'archive'" in cut.judged()[0]


def test_back_with_another_process(stage: Stage, web: Unit) -> None:
    assert stage.observer.same([web], [WEB]) == []
    stage.kill(web)
    stage.start(WEB, "cnaf")
    assert len(stage.observer.same([web], [WEB])) == 2


# ------------------------------------------------------------------------------------------------ crash


def test_what_was_started_twice_is_found_although_one_is_gone(stage: Stage) -> None:
    with Recorder(stage.sites) as recorder:
        first = stage.start(WEB, "cnaf")
        time.sleep(0.2)
        stage.kill(first)
        stage.start(WEB, "bari")
        time.sleep(0.2)
    assert recorder.doubled([WEB]) == ["alpha/web: 2 starts of version 1, 1 wanted"]
    assert recorder.doubled([WEB._replace(version="2")]) == []


def test_the_record_must_not_lose_or_change_anything(stage: Stage) -> None:
    stage.say("audit", {"seq": 1, "verb": "a", "outcome": "done"}, {"seq": 3, "verb": "b", "outcome": "done"})
    stage.say("events", {"seq": 2, "type": "Normal"})
    before = stage.observer.on_record()
    assert stage.observer.kept(before) == []
    stage.say("audit", {"seq": 1, "verb": "a", "outcome": "done"})
    assert "1 entries on record are lost" in stage.observer.kept(before)[0]
    stage.say("audit", {"seq": 1, "verb": "a", "outcome": "done"}, {"seq": 3, "verb": "c", "outcome": "done"})
    assert "1 entries on record are lost or changed" in stage.observer.kept(before)[0]


def test_the_recorder_keeps_what_was_last_acknowledged(stage: Stage) -> None:
    stage.say("audit", {"seq": 1})
    with Recorder(stage.sites, stage.observer.on_record) as recorder:
        time.sleep(0.3)
        stage.say("audit")
        time.sleep(0.3)
    assert recorder.facts == {1: {"seq": 1}}


def test_what_was_done_twice(stage: Stage) -> None:
    made = {
        "verb": "create",
        "outcome": "done",
        "detail": {"target": {"driver": "site/bari", "type": "unit", "id": "u"}},
    }
    failed = made | {"outcome": "failed"}
    instance = document("Instance", "alpha/web-0")
    instance["status"]["starts"] = 1
    stage.say("instances", instance)
    stage.say("audit", {"seq": 1, **failed}, {"seq": 2, **made})
    assert stage.observer.done_once() == []
    stage.say("audit", {"seq": 1, **made}, {"seq": 2, **made})
    instance["status"]["starts"] = 2
    stage.say("instances", instance)
    assert stage.observer.done_once() == [
        "alpha/web-0 was started 2 times",
        "the audit has 2 creations of unit u",
    ]


# ------------------------------------------------------------------------------------------------ waiting


def test_until_wants_it_to_last() -> None:
    answers = iter([["no"], [], ["no again"], [], [], [], [], [], [], []])
    verdict = until(lambda: next(answers, []), 5, pause=0.02, stay=0.05)
    assert verdict.ok
    assert next(answers, None) is not None or verdict.seconds < 1


def test_until_gives_up_and_says_why() -> None:
    verdict = until(lambda: ["never"], 0.1, pause=0.01)
    assert (verdict.ok, verdict.reasons) == (False, ["never"])


def test_the_observer_asks_with_its_token(stage: Stage, api: FakeApi) -> None:
    stage.observer.listed("services")
    assert api.asked == ["/api/v1/services?limit=500"]
