"""What one person deletes by hand is bounded, counted once, and can be allowed by a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from groundcontrol.kernel.guard import approve_bound
from groundcontrol.kernel.plan import Limit
from tests.interfaces.api.installation import Installation

NOTES = "/api/v1/namespaces/alpha/notes"


@pytest.fixture
def bounded(here: Installation, root: TestClient) -> TestClient:
    """Three deletions in ten minutes, whoever it is; and twelve notes."""
    here.backend.limits = (Limit(scope="subject", count=3),)
    for number in range(12):
        body: dict[str, Any] = {"metadata": {"name": f"n{number}"}, "spec": {"text": "x"}}
        made = root.post(NOTES, json={"apiVersion": "ground/v1", "kind": "Note", **body})
        assert made.status_code == 201, made.text
    return root


def delete(client: TestClient, *numbers: int) -> list[int]:
    return [client.delete(f"{NOTES}/n{number}").status_code for number in numbers]


def test_the_budget_of_one_person_ends(bounded: TestClient) -> None:
    assert delete(bounded, 0, 1, 2) == [200, 200, 200]
    refused = bounded.delete(f"{NOTES}/n3")
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "600"
    told = refused.json()["error"]["message"]
    assert "4 deletions in subject user:root within 10 minutes, 3 allowed" in told
    assert "ground approve subject:user:root" in told
    assert bounded.get(f"{NOTES}/n3").status_code == 200


def test_everybody_has_their_own(bounded: TestClient, sign_in: Callable[..., TestClient]) -> None:
    assert delete(bounded, 0, 1, 2, 3) == [200, 200, 200, 429]
    assert delete(sign_in("ada"), 3) == [200]


def test_a_dry_run_costs_nothing(bounded: TestClient) -> None:
    for _ in range(5):
        assert bounded.delete(f"{NOTES}/n0?dryRun=true").status_code == 200
    assert delete(bounded, 0, 1, 2) == [200, 200, 200]


def test_a_bound_lets_more_pass_and_no_more_than_it_says(bounded: TestClient, here: Installation) -> None:
    assert delete(bounded, 0, 1, 2, 3) == [200, 200, 200, 429]
    until = here.store.clock() + 60
    here.store.write(lambda tx: approve_bound(tx, "subject:user:root", "delete", 2, until, "user:olga", "moving out"))
    assert delete(bounded, 3, 4, 5) == [200, 200, 429]
