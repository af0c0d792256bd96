"""`ground import`: what is sent, what is written, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import yaml

HEAD = {"apiVersion": "ground/v1"}
DOCS = [
    HEAD | {"kind": "Network", "metadata": {"name": "lan", "namespace": "ops"}, "spec": {"site": "bari"}},
    HEAD | {"kind": "Server", "metadata": {"name": "web", "namespace": "ops"}, "spec": {"power": "on"}},
]


def test_manifests_are_written_and_what_is_left_out_is_said(api: Any, ground: Any) -> None:
    left = [{"type": "server", "id": "s-1", "name": "broken", "why": "it is failed: boom"}]
    api.inventory["/sites/bari/actions/import"] = [{"documents": DOCS, "leftOut": left}]
    done = ground("import", "bari", "--project", "Old Lab", "-n", "ops")
    assert done.code == 0
    assert list(yaml.safe_load_all(done.out)) == DOCS
    assert "left out: server broken: it is failed: boom" in done.err
    (sent,) = api.sent("POST", "/sites/bari/actions/import")
    assert sent.body == {"project": "Old Lab", "namespace": "ops"}


def test_nothing_to_import_is_said(api: Any, ground: Any) -> None:
    api.inventory["/sites/bari/actions/import"] = [{"documents": [], "leftOut": []}]
    done = ground("import", "site/bari", "--project", "lab", "-n", "ops")
    assert (done.code, done.out) == (0, "")
    assert "nothing in project lab" in done.err
