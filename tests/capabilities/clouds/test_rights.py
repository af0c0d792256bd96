"""A member of a group makes servers in its namespace, and nothing of the whole platform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from groundcontrol.interfaces.api.app import create_app
from groundcontrol.kernel.resource import Doc
from groundcontrol.programs.wiring import backend
from tests.capabilities.clouds.sky import Sky, sky

API = "/api/v1"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Sky]:
    with sky(tmp_path) as found:
        yield found


def client(here: Sky, user: str) -> TestClient:
    token = here.fed.runtime.accounts.issue(f"user:{user}", ("read", "write", "approve")).token
    return TestClient(create_app(backend(here.fed.runtime)), headers={"authorization": f"Bearer {token}"})


def manifest(kind: str, name: str, namespace: str = "", **spec: object) -> Doc:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": {"site": "bari", **spec}}


def test_what_a_member_may_and_may_not(here: Sky) -> None:
    here.fed.apply("Namespace", "beta", {"group": "experiments/beta"})
    here.fed.apply("Account", "grace", {})
    where = {"role": "member", "subjects": ["user:grace"], "selector": {"namespaces": ["alpha"]}}
    here.fed.apply("RoleBinding", "grace", where)
    with client(here, "grace") as grace:
        network = manifest("Network", "lan", "alpha", project="lab")
        assert grace.post(f"{API}/namespaces/alpha/networks", json=network).status_code == 201
        here.ready("Network", "lan")
        for plural, doc in (
            ("projects", manifest("Project", "mine", namespaces=["alpha"])),
            ("quotas", manifest("Quota", "lab", project="lab", limits={"instances": 999})),
            ("flavors", manifest("Flavor", "huge", cores=999, memoryMb=1)),
            ("images", manifest("Image", "mine", visibility="public")),
        ):
            assert grace.post(f"{API}/{plural}", json=doc).status_code == 403, plural
        widened = manifest("Project", "lab", namespaces=["alpha", "beta"])
        assert grace.put(f"{API}/projects/lab", json=widened).status_code in (403, 404)
        assert grace.get(f"{API}/orphans").status_code == 403
        asked = {"project": "lab", "namespace": "alpha"}
        assert grace.post(f"{API}/sites/bari/actions/import", json=asked).status_code in (403, 404)
        theirs = manifest("Network", "lan", "beta", project="lab")
        assert grace.post(f"{API}/namespaces/beta/networks", json=theirs).status_code in (403, 404)


def test_an_operator_imports_through_the_api(here: Sky) -> None:
    project = here.cloud.add("project", name="old")
    here.cloud.add("network", project=project, name="lan")
    here.listed("project", project)
    with client(here, "ada") as ada:
        answer = ada.post(f"{API}/sites/bari/actions/import", json={"project": "old", "namespace": "alpha"})
        assert answer.status_code == 200, answer.text
        documents = answer.json()["documents"]
        assert [d["kind"] for d in documents] == ["Project", "Network"]
        seen = ada.post(f"{API}/apply?dryRun=true", json={"documents": documents})
        assert seen.status_code == 200, seen.text
        assert ada.get(f"{API}/orphans").json()["items"] == []
