"""One installation per file of tests, and a namespace that is empty again after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.installation import Installation, installation, until


@pytest.fixture(scope="module")
def ground() -> Iterator[Installation]:
    """Two sites of four cores each, and the namespace alpha."""
    with installation("cnaf", "bari") as found:
        found.apply(found.document("Namespace", "alpha", {"group": "experiments/alpha"}))
        yield found


@pytest.fixture
def alpha(ground: Installation) -> Iterator[Installation]:
    """The installation, for tests that make services: afterwards there are none, and no process of any is left."""
    yield ground
    for doc in ground.list("services"):
        ground.delete("services", doc["metadata"]["name"], doc["metadata"]["namespace"])
    until(lambda: not ground.list("services") and not ground.running(), "all services are gone", told=str)
