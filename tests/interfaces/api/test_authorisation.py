"""Every operation of the published description, by everybody: one table, and it must be complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from groundcontrol.interfaces.api.app import create_app
from groundcontrol.interfaces.api.openapi import openapi
from groundcontrol.kernel.resource import Kinds
from tests.interfaces.api.installation import CLASSES, PASSWORD, Installation, install

PEOPLE = ("root", "olga", "ada", "bob", "vic", "nobody", "ada read-only", "root read-only", "expired", "none")
"""Administrator, operator, member of alpha, member of beta, viewer of alpha, nobody, tokens that only read, an expired
one, and no token."""

# What PEOPLE get, in their order: `.` it is done, 1 Unauthenticated, 3 Forbidden, 4 NotFound.
ANYBODY = ".........."
SIGNED_IN = "........11"
HOOK = "1111111111"  # without the secret of the Source
SOMEWHERE = ".....3..11"  # whoever may see some of it somewhere
READ_ALPHA = "...4.4..11"
WRITE_ALPHA = "...4343311"
READ_PLATFORM = "..33333.11"
WRITE_PLATFORM = "..33333311"
DECIDE = ".333333311"  # administrators only
DESCRIPTION: dict[str, Any] = openapi(Kinds(CLASSES))

ONE = {"namespace": "alpha", "name": "one"}
ALPHA = {"namespace": "alpha"}
NEW_NOTE = {"apiVersion": "ground/v1", "kind": "Note", "metadata": {"name": "new", "namespace": "alpha"}, "spec": {}}

Row = tuple[str, dict[str, str], Any]


def written(kind: str, who: str, spec: Any, *, names: str = "", place: dict[str, str] | None = None) -> dict[str, Row]:
    """The rows of a kind's changes, on one resource."""
    place = place or {}
    one = {**place, "name": names or "one"}
    return {
        f"create{kind}": (who, place, {"metadata": {"name": "new"}, "spec": spec}),
        f"replace{kind}": (who, one, {"metadata": {}, "spec": spec}),
        f"patch{kind}": (who, one, {"metadata": {"labels": {"a": "b"}}}),
        f"delete{kind}": (who, one, None),
    }


# operation → (what PEOPLE get, path values, body)
TABLE: dict[str, Row] = {
    "login": (ANYBODY, {}, {"user": "root", "password": PASSWORD}),
    "whoami": (SIGNED_IN, {}, None),
    "listTokens": (SIGNED_IN, {}, None),
    "createToken": ("......3311", {}, {"description": "ci"}),
    "revokeToken": (".444443311", {"id": "BOT"}, None),
    "setPassword": (DECIDE, {"name": "bot"}, {"password": "another horse"}),
    "listKinds": (SIGNED_IN, {}, None),
    "openapi": (ANYBODY, {}, None),
    "healthz": (ANYBODY, {}, None),
    "readyz": (ANYBODY, {}, None),
    "status": (SIGNED_IN, {}, None),
    "watch": (".....4..11", {}, None),
    "listEvents": (SIGNED_IN, {}, None),
    "listAudit": (SIGNED_IN, {}, None),
    "queryLedger": (SOMEWHERE, {}, {"dataset": "audit"}),
    "listPlans": (SOMEWHERE, {}, None),
    "getPlan": ("...4.3..11", {"id": "p/alpha"}, None),
    "approvePlan": ("..34333311", {"id": "p/alpha"}, {"digest": "sha256:1"}),
    "refusePlan": ("..34333311", {"id": "p/alpha"}, {"reason": "no"}),
    "planTree": (SOMEWHERE, {}, {"files": {}}),
    "gitlabHook": (HOOK, {"source": "tree"}, {}),
    "githubHook": (HOOK, {"source": "tree"}, {}),
    "giteaHook": (HOOK, {"source": "tree"}, {}),
    "propose": (WRITE_ALPHA, {}, {"documents": [{**NEW_NOTE, "metadata": ONE}]}),
    "apply": (WRITE_ALPHA, {}, {"documents": [NEW_NOTE]}),
    # what decides about access
    "listNamespace": (SOMEWHERE, {}, None),
    "getNamespace": ("...4.3..11", {"name": "alpha"}, None),
    **written("Namespace", ".344434311", {"group": "experiments/none"}, names="empty"),
    "createNamespace": (DECIDE, {}, {"metadata": {"name": "new"}, "spec": {"group": "experiments/none"}}),
    "listAccount": (READ_PLATFORM, {}, None),
    "getAccount": (READ_PLATFORM, {"name": "ada"}, None),
    **written("Account", DECIDE, {"robot": True}, names="bot"),
    "listRole": (READ_PLATFORM, {}, None),
    "getRole": (READ_PLATFORM, {"name": "looker"}, None),
    **written("Role", DECIDE, {"rules": []}, names="looker"),
    "listRoleBinding": (READ_PLATFORM, {}, None),
    "getRoleBinding": (READ_PLATFORM, {"name": "lookers"}, None),
    **written("RoleBinding", DECIDE, {"role": "viewer", "subjects": ["user:bob"]}, names="lookers"),
    # what belongs to the whole platform
    "listSite": (READ_PLATFORM, {}, None),
    "getSite": (READ_PLATFORM, {"name": "bari"}, None),
    **written("Site", WRITE_PLATFORM, {"driver": "local"}, names="bari"),
    "summariseInventory": (READ_PLATFORM, {"name": "bari"}, None),
    "listInventory": (READ_PLATFORM, {"name": "bari", "type": "flavor"}, None),
    "confirmLossSite": (WRITE_PLATFORM, {"name": "bari"}, {}),
    "importSite": (WRITE_PLATFORM, {"name": "bari"}, {}),
    "disableHostSite": (WRITE_PLATFORM, {"name": "bari"}, {}),
    "enableHostSite": (WRITE_PLATFORM, {"name": "bari"}, {}),
    "hostIsEmptySite": (WRITE_PLATFORM, {"name": "bari"}, {}),
    "drainHostSite": (WRITE_PLATFORM, {"name": "bari"}, {}),
    "listSource": (READ_PLATFORM, {}, None),
    "getSource": (READ_PLATFORM, {"name": "tree"}, None),
    **written("Source", WRITE_PLATFORM, {"url": "x"}, names="tree"),
    "syncSource": (WRITE_PLATFORM, {"name": "tree"}, {}),
    # what lives in a namespace
    **{f"list{k}Everywhere": (SOMEWHERE, {}, None) for k in ("Service", "Instance", "Incident", "Note")},
    **{f"list{k}": (READ_ALPHA, ALPHA, None) for k in ("Service", "Instance", "Incident", "Note")},
    **{f"get{k}": (READ_ALPHA, ONE, None) for k in ("Service", "Instance", "Incident", "Note")},
    **written("Service", WRITE_ALPHA, {"sample": "web"}, place=ALPHA),
    "restartService": (WRITE_ALPHA, ONE, {}),
    "logService": (READ_ALPHA, ONE, None),
    "logInstance": (READ_ALPHA, ONE, None),
    "proposeInstance": (WRITE_ALPHA, ONE, {}),
    "acknowledgeIncident": (WRITE_ALPHA, ONE, {}),
    **written("Note", WRITE_ALPHA, {"text": "x"}, place=ALPHA),
    "shoutNote": (WRITE_ALPHA, ONE, {}),
}


def operations() -> list[tuple[str, str, str]]:
    """(id, method, path) of everything that is published."""
    paths = DESCRIPTION["paths"].items()
    return [(op["operationId"], method.upper(), path) for path, methods in paths for method, op in methods.items()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, TestClient, dict[str, str]]]:
    here = install(Path(tmp_path_factory.mktemp("installation")))
    tokens = {name: here.token(name) for name in ("root", "olga", "ada", "bob", "vic", "nobody")}
    tokens |= {f"{name} read-only": here.token(name, ("read",)) for name in ("ada", "root")}
    tokens["expired"] = here.token("root", expires=-1.0)
    with TestClient(create_app(here.backend)) as client:
        yield here, client, tokens
    here.close()


def prepare(here: Installation) -> None:
    """What the calls speak of, made anew."""
    template = {"service": "one", "site": "bari", "revision": "1", "template": {"sample": "web"}}
    wanted: dict[tuple[str, str, str], Any] = {
        ("Namespace", "", "empty"): {"group": "experiments/none"},
        ("Account", "", "bot"): {"robot": True},
        ("Role", "", "looker"): {"rules": [{"kinds": ["Site"], "verbs": ["get"]}]},
        ("RoleBinding", "", "lookers"): {"role": "viewer", "subjects": ["user:ghost"]},
        ("Site", "", "bari"): {"driver": "local"},
        ("Source", "", "tree"): {},
        ("Service", "alpha", "one"): {"sample": "web"},
        ("Instance", "alpha", "one"): template,
        ("Incident", "alpha", "one"): {"subject": {"kind": "Site", "name": "bari"}, "title": "t"},
        ("Note", "alpha", "one"): {},
    }
    for kind in here.store.kinds:
        for entry in here.store.entries(kind.__name__):
            if entry.key.name == "new" or entry.key in wanted:
                here.remove(*entry.key[::2], entry.key.namespace)
    for (kind_name, namespace, name), spec in wanted.items():
        here.make(kind_name, name, namespace, **spec)


def test_the_table_has_every_operation_and_no_other() -> None:
    assert set(TABLE) == {identity for identity, _, _ in operations()}
    assert all(len(expected) == len(PEOPLE) for expected, _, _ in TABLE.values())


@pytest.mark.parametrize(("identity", "method", "path"), operations(), ids=lambda v: v if "/" not in v else "")
def test_everybody_gets_what_the_table_says(
    world: tuple[Installation, TestClient, dict[str, str]], identity: str, method: str, path: str
) -> None:
    here, client, tokens = world
    expected, values, body = TABLE[identity]
    answers = ""
    for person in PEOPLE:
        prepare(here)
        given = dict(values)
        if given.get("id") == "BOT":
            given["id"] = here.backend.accounts.issue("user:bot").id
        headers = {"authorization": f"Bearer {tokens[person]}"} if person in tokens else {}
        url = path.format(**given)
        if identity == "watch":
            url += "?since=999999999"  # an answer that ends: there is no such event
        answer = client.request(method, url, json=body, headers=headers)
        status = answer.status_code
        if identity == "watch" and status == 410:
            status = 200
        answers += "." if status < 300 else str(status)[2] if status in (401, 403, 404) else f"<{status}>"
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error"}, "every failure has the one shape"
    assert answers == expected, dict(zip(PEOPLE, answers, strict=False))
