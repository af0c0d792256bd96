"""Somebody raises a quota in the cloud by hand, and opens a port: the one is proposed to git, the other is closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.capabilities.clouds.sky import Sky, sky
from tests.stories.conftest import REPOSITORY, ask, pushed, source

QUOTA = """# How much the laboratory may use; agreed in spring.
apiVersion: ground/v1
kind: Quota
metadata: {name: lab}
spec:
  site: bari
  project: lab
  limits:
    instances: 5   # one for each student
    cores: 20
  drift: propose
"""
GROUP = """apiVersion: ground/v1
kind: SecurityGroup
metadata: {name: web, namespace: alpha}
spec:
  site: bari
  project: lab
  rules:
    - {protocol: tcp, ports: "443"}
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        source(found.fed, proposals={})
        pushed(found.fed, {"quota.yaml": QUOTA, "web.yaml": GROUP})
        found.ready("Quota", "lab", "")
        found.ready("SecurityGroup", "web")
        yield found


def heads(here: Sky) -> dict[str, str]:
    return {n: sha for n, sha in here.fed.repositories.branches[REPOSITORY].items() if n != "main"}


def test_a_raised_quota_becomes_a_branch_and_then_what_is_wanted(here: Sky) -> None:
    project = here.status("Project", "lab", "")["id"]

    def limits() -> Any:
        return here.cloud.get("quota", project).fields

    here.fed.until(lambda: limits()["instances"] == 5 and "instances" in here.status("Quota", "lab", "")["applied"])
    here.cloud.edit("quota", project, instances=9)
    here.fed.until(lambda: here.fed.ready("Quota", "lab", "", "Drift") == ("True", "Proposed"))
    (branch,) = here.fed.until(lambda: heads(here))
    branches = here.fed.repositories.branches[REPOSITORY]
    branches["main"] = branches.pop(branch)
    ask(here.fed)
    here.fed.until(lambda: (here.fed.get("Quota", "lab") or {})["spec"]["limits"]["instances"] == 9)
    here.fed.until(lambda: here.fed.ready("Quota", "lab", "", "Drift")[0] != "True")
    here.fed.settled()
    assert (limits()["instances"], limits()["cores"]) == (9, 20)
    assert heads(here) == {}, "it is proposed once"


def test_an_opened_port_is_closed_whoever_opened_it(here: Sky) -> None:
    here.fed.until(lambda: "rules" in here.status("SecurityGroup", "web")["applied"])
    group = here.only("security_group")
    rule = {"direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "ports": "22", "remote": "0.0.0.0/0"}
    here.cloud.edit("security_group", group.id, rules=[*group.fields["rules"], rule])
    here.fed.until(lambda: here.fed.events("DriftCorrected"))
    here.fed.until(lambda: rule not in here.only("security_group").fields["rules"])
    assert heads(here) == {}
