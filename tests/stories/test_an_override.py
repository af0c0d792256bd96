"""Somebody needs more copies for an hour: git stays as it is, a Run sets the field, and it goes back by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation import Federation, federation
from tests.stories.conftest import pushed, service, source

OVERRIDE = {
    "steps": [
        {
            "name": "override",
            "act": {
                "set": {"kind": "Service", "name": "web", "fields": {"spec.replicas": 3}},
                "holdFor": 8,
            },
        },
        {"name": "until", "ask": {"question": "Take it back early?", "timeout": 60}},
    ]
}


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as found:
        found.sites("cnaf", "bari")
        yield found


def replicas(fed: Federation) -> int:
    return int((fed.get("Service", "web", "alpha") or {"spec": {"replicas": 0}})["spec"]["replicas"])


def test_an_override_of_what_git_says_expires(fed: Federation) -> None:
    source(fed)
    pushed(fed, {"web.yaml": service("web", replicas=1)})
    fed.until_ready("Service", "web", "alpha")
    fed.apply("Run", "more", OVERRIDE, "alpha")
    fed.until(lambda: replicas(fed) == 3 and len(fed.units()) == 3, "the override holds")
    # The Source looks again meanwhile, also because of a new commit, and leaves the field alone.
    pushed(fed, {"web.yaml": service("web", replicas=1, version="2")})
    fed.until(lambda: (fed.get("Service", "web", "alpha") or {})["spec"]["env"].get("VERSION") == "2")
    assert replicas(fed) == 3
    fed.until(lambda: replicas(fed) == 1 and len(fed.units()) == 1, "it goes back by itself")
    fed.until(lambda: fed.ready("Source", "platform")[0] == "True")
