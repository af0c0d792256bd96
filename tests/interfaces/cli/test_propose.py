"""apply, edit and diff with `--propose`: what is sent, and what a person sees of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import Answer, FakeApi
from tests.interfaces.cli.test_change import SITE, editor

DIFF = "--- a/bari.yaml\n+++ b/bari.yaml\n@@ -6 +6 @@\n-  region: south\n+  region: north\x1b[2J\n"
PROPOSAL: dict[str, Any] = {
    "source": "platform",
    "repository": "https://git.example.org/platform.git",
    "resources": ["Site bari"],
    "files": ["bari.yaml"],
    "diff": DIFF,
    "branch": "ground/site-bari-0123456789ab",
    "commit": "c" * 40,
    "digest": "sha256:0",
    "state": "pushed",
}


@pytest.fixture
def file(tmp_path: Path, api: FakeApi) -> str:
    api.put("Site", "bari", spec={"region": "south"})
    api.proposal = dict(PROPOSAL)
    path = tmp_path / "bari.yaml"
    path.write_text(SITE.format(name="bari", region="north"))
    return str(path)


def test_apply_proposes_and_changes_nothing(ground: Ground, api: FakeApi, file: str) -> None:
    found = ground("apply", "-f", file, "--propose")
    assert found.code == 0
    assert found.out == DIFF.replace("\x1b", "\\x1b"), "a diff that can be piped on, and nothing else"
    assert found.err == (
        "Site bari: proposed as branch ground/site-bari-0123456789ab of https://git.example.org/platform.git, "
        "commit cccccccccccc\n"
    )
    (sent,) = api.sent("POST", "/propose")
    assert ("dryRun" in sent.query, sent.body["documents"][0]["spec"]) == (False, {"region": "north"})
    assert "whole" not in sent.body
    assert api.sent("POST", "/apply") == []


@pytest.mark.parametrize(
    ("parts", "words", "said"),
    [
        ({"state": "exists"}, (), "proposed already, as branch ground/"),
        ({"state": "unchanged", "diff": "", "branch": ""}, (), "the files of Source platform say so already"),
        ({"state": "diff", "commit": "", "branch": ""}, (), "takes no branches (spec.proposals): pass the diff on"),
        ({"state": "diff", "commit": ""}, ("--dry-run",), "would be branch ground/site-bari-0123456789ab of"),
    ],
)
def test_what_became_of_it_is_said(
    ground: Ground, api: FakeApi, file: str, parts: dict[str, Any], words: tuple[str, ...], said: str
) -> None:
    api.proposal |= parts
    found = ground("apply", "-f", file, "--propose", *words)
    assert said in found.err
    assert api.sent("POST", "/propose")[0].query.get("dryRun", "") == ("true" if words else "")


def test_as_json_or_as_a_branch_s_name(ground: Ground, file: str) -> None:
    assert ground("apply", "-f", file, "--propose", "-o", "json").json == [PROPOSAL]
    assert ground("apply", "-f", file, "--propose", "-o", "name").out == "ground/site-bari-0123456789ab\n"
    assert ground("apply", "-f", file, "--propose", "--manager", "x").code == 2


def test_a_refusal_names_file_and_line(ground: Ground, api: FakeApi, file: str) -> None:
    problem: dict[str, Any] = {"path": "documents.0.spec.region", "message": "is set by user:bob and by no file"}
    api.fail("POST", "/propose", Answer(409, "Conflict", "Site bari: no", problems=[problem]))
    found = ground("apply", "-f", file, "--propose")
    assert found.code == 5
    assert f"{file}:6: spec.region: is set by user:bob and by no file" in found.err


def test_edit_proposes_the_whole_document(
    ground: Ground, api: FakeApi, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, "s/south/north/")
    found = ground("edit", "site", "bari", "--propose")
    assert (found.code, "proposed as branch ground/" in found.err) == (0, True)
    (sent,) = api.sent("POST", "/propose")
    assert sent.body["whole"] is True
    assert sent.body["documents"][0]["spec"] == {"region": "north"}
    assert sent.body["documents"][0]["metadata"]["resourceVersion"], "nobody's change in between is lost"
    assert api.sent("PUT") == []


def test_edit_keeps_what_was_typed_when_it_is_refused(
    ground: Ground, api: FakeApi, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, "s/south/north/")
    api.fail("POST", "/propose", Answer(503, "OutcomeUnknown", "it may have come or not"))
    found = ground("edit", "site", "bari", "--propose")
    assert found.code == 6
    assert "what you typed is kept in" in found.err


def test_diff_of_what_would_be_proposed(ground: Ground, api: FakeApi, file: str) -> None:
    found = ground("diff", "-f", file, "--proposed")
    assert (found.code, found.out.splitlines()[0]) == (2, "--- a/bari.yaml")
    assert api.sent("POST", "/propose")[0].query["dryRun"] == "true"
    api.proposal |= {"state": "unchanged", "diff": ""}
    assert ground("diff", "-f", file, "--proposed").code == 0


def test_diff_of_what_was_changed_by_hand(ground: Ground, api: FakeApi, file: str) -> None:
    found = ground("diff", "--proposed", "instance", "web-0", "-n", "alpha")
    assert (found.code, found.out.splitlines()[0]) == (2, "--- a/bari.yaml")
    (sent,) = api.sent("POST", "/namespaces/alpha/instances/web-0/actions/propose")
    assert sent.body == {"dryRun": True}
    for words in ([], ["instance", "web-0"], ["--proposed", "site", "bari"], ["-f", file, "site", "bari"]):
        assert ground("diff", *words).code == 2
