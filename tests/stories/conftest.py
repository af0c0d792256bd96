"""The federation of the stories: three sites on twins, one group, and git in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.federation import Federation, federation

REPOSITORY = "https://git.example.org/platform.git"


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as found:
        found.sites("cnaf", "bari", "recas")
        yield found


def source(fed: Federation, **spec: Any) -> None:
    """The platform's Source, with an administrator's rights."""
    fed.apply("RoleBinding", "platform", {"role": "admin", "subjects": ["source:platform"]})
    fed.apply("Source", "platform", {"repository": REPOSITORY, "interval": 5, **spec})


def pushed(fed: Federation, files: dict[str, str], remove: tuple[str, ...] = (), **how: Any) -> str:
    """Somebody pushes, and the Source looks."""
    commit = fed.repositories.push(REPOSITORY, files, remove=remove, **how)
    ask(fed)
    return commit


def ask(fed: Federation) -> None:
    """As a webhook does."""
    from groundcontrol.kernel.resource import Key

    fed.runtime.reconciler("sources").ask("platform")
    fed.runtime.controller.wake_key(Key("Source", "", "platform"))


def service(name: str, *, replicas: int = 1, version: str = "1", **more: str) -> str:
    """A file that declares a web service."""
    lines = ["apiVersion: ground/v1", "kind: Service", f"metadata: {{name: {name}, namespace: alpha}}", "spec:"]
    lines += ["  sample: web", f"  replicas: {replicas}", "  ports: {http: 80}", "  health: {kind: http}"]
    lines += [f'  env: {{VERSION: "{version}"}}', *(f"  {k}: {v}" for k, v in more.items())]
    return "\n".join(lines) + "\n"
