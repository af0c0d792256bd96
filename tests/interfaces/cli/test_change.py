"""apply, diff, edit, delete and wait: what changes something, and how it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import Answer, FakeApi

SITE = "apiVersion: ground/v1\nkind: Site\nmetadata:\n  name: {name}\nspec:\n  region: {region}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "platform"
    (top / "deep").mkdir(parents=True)
    (top / "a.yaml").write_text(SITE.format(name="bari", region="south"))
    (top / "deep" / "b.yml").write_text(
        SITE.format(name="cnaf", region="north") + "---\n" + SITE.format(name="x", region="y")
    )
    (top / "notes.txt").write_text("not yaml: [")
    return top


def test_apply_says_what_became_of_each(ground: Ground, api: FakeApi, folder: Path) -> None:
    api.put("Site", "bari", spec={"region": "east"})
    api.put("Site", "cnaf", spec={"region": "north"})
    assert ground("apply", "-f", str(folder)).out.splitlines() == [
        "Site bari changed",
        "    spec.region: east → south",
        "Site cnaf unchanged",
        "Site x created",
    ]
    assert api.docs[("Site", "", "x")]["spec"] == {"region": "y"}
    assert len(api.sent("POST", "/apply")) == 1


def test_a_dry_run_changes_nothing(ground: Ground, api: FakeApi, folder: Path) -> None:
    assert "Site bari created (dry run)" in ground("apply", "-f", str(folder), "--dry-run").out
    assert api.docs == {}


def test_diff_ends_with_2_when_something_would_change(ground: Ground, api: FakeApi, folder: Path) -> None:
    found = ground("diff", "-f", str(folder / "a.yaml"))
    assert (found.code, found.out.splitlines()) == (2, ["Site bari created", "    spec.region: (none) → south"])
    ground("apply", "-f", str(folder / "a.yaml"))
    assert ground("diff", "-f", str(folder / "a.yaml")) == (0, "", "")


def test_standard_input_and_the_namespace_of_the_command(ground: Ground, api: FakeApi) -> None:
    text = "apiVersion: ground/v1\nkind: Service\nmetadata: {name: web}\nspec: {image: nginx}\n"
    assert ground("apply", "-f", "-", "-n", "alpha", stdin=text).out == "Service alpha/web created\n"
    assert ground("apply", "-f", "-", stdin="").code == 2


@pytest.mark.parametrize("style", ["documents.{}.spec.regoin", "documents[{}].spec.regoin"])
def test_a_servers_complaint_names_file_and_line(ground: Ground, api: FakeApi, folder: Path, style: str) -> None:
    problems = [
        {"path": style.format(2), "message": "unknown field 'regoin'", "remedy": 'did you mean "region"?'},
        {"path": "documents.0.metadata.name", "message": "too long"},
    ]
    (folder / "deep" / "b.yml").write_text(
        SITE.format(name="cnaf", region="north")
        + "---\n"
        + SITE.format(name="x", region="y").replace("region", "regoin")
    )
    api.fail("POST", "/apply", Answer(422, "Invalid", "2 problems", problems=problems))
    found = ground("apply", "-f", str(folder))
    assert found.code == 1
    assert f"{folder}/deep/b.yml:13: spec.regoin: unknown field 'regoin' (did you mean \"region\"?)" in found.err
    assert f"{folder}/a.yaml:4: metadata.name: too long" in found.err


def test_a_field_of_a_source_is_refused_with_its_file(ground: Ground, api: FakeApi, folder: Path) -> None:
    problem: dict[str, object] = {"path": "documents.1.spec.region", "message": "set by source:platform"}
    problem |= {"file": "infra.git#sites/cnaf.yaml", "line": 7, "remedy": "change it there"}
    api.fail("POST", "/apply", Answer(409, "Conflict", "Site cnaf belongs to a Source", problems=[problem]))
    found = ground("apply", "-f", str(folder))
    assert found.code == 5
    assert found.err.splitlines()[0] == "ground: Site cnaf belongs to a Source"
    said = f"{folder}/deep/b.yml:6: spec.region: set by source:platform [infra.git#sites/cnaf.yaml:7] (change it there)"
    assert said in found.err


def test_a_file_that_is_not_yaml_is_named(ground: Ground, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: Site\nspec:\n\tregion: x\n")
    found = ground("apply", "-f", str(tmp_path / "bad.yaml"))
    assert found.code == 1
    assert f"{tmp_path}/bad.yaml:3: a tab in the indentation" in found.err
    assert ground("apply", "-f", str(tmp_path / "none.yaml")).code == 4
    assert api.sent("POST") == []


# ------------------------------------------------------------------------------------------------ delete


def test_delete_by_name_selector_and_file(ground: Ground, api: FakeApi, folder: Path) -> None:
    ground("apply", "-f", str(folder))
    api.put("Service", "web", "alpha", metadata={"labels": {"tier": "test"}})
    assert ground("delete", "site", "bari", "--dry-run").out == "Site bari would be deleted\n"
    assert ground("delete", "site/bari").out == "Site bari deleted\n"
    assert ground("delete", "services", "-l", "tier=test", "-n", "alpha").out == "Service alpha/web deleted\n"
    found = ground("delete", "-f", str(folder), "--ignore-not-found", "--wait")
    assert found.out == "Site x deleted\nSite cnaf deleted\nSite x gone\nSite cnaf gone\n"
    assert api.docs == {}


def test_delete_never_guesses(ground: Ground, api: FakeApi) -> None:
    api.put("Service", "web", "alpha")
    for words in (["services"], ["service", "web"], ["all", "--all"], [], ["services", "web", "--all"]):
        assert ground("delete", *words).code == 2
    assert api.sent("DELETE") == []
    assert ground("delete", "service", "db", "-n", "alpha").code == 4


def test_delete_asks_when_several_and_somebody_is_there(
    ground: Ground, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        api.put("Site", name)
    asked: list[str] = []
    monkeypatch.setattr("groundcontrol.interfaces.cli.delete.on_terminal", lambda: True)

    def no(text: str) -> bool:
        asked.append(text)
        return False

    monkeypatch.setattr("groundcontrol.interfaces.cli.delete.confirm", no)
    found = ground("delete", "sites", "--all")
    assert (found.code, asked) == (1, ["Delete these 2?"])
    assert "Site a" in found.err
    assert len(api.docs) == 2
    assert ground("delete", "site", "a").code == 0
    assert ground("delete", "sites", "--all", "--yes").code == 0
    assert (len(asked), api.docs) == (1, {})


# ------------------------------------------------------------------------------------------------ wait


def test_wait_for_a_condition_a_field_and_an_absence(ground: Ground, api: FakeApi) -> None:
    doc = api.put("Service", "web", "alpha", ready="True", status={"phase": "Running"})
    assert ground("wait", "service/web", "-n", "alpha").out.startswith("Service alpha/web: Ready is True since ")
    assert ground("wait", "service/alpha/web", "--for=status.phase=Running").code == 0
    assert ground("wait", "service/alpha/web", "--for=jsonpath={.status.phase}=Running").code == 0
    slow = ground("wait", "service/alpha/web", "--for=condition=Ready=False", "--timeout", "0.1s")
    assert slow.code == 1
    assert "Service alpha/web: Ready is True since" in slow.err
    # An answer about an older generation is no answer.
    doc["metadata"]["generation"] = 2
    doc["status"]["observedGeneration"] = 1
    assert ground("wait", "service/alpha/web", "--timeout", "0.1s").code == 1
    assert ground("wait", "service/alpha/web", "--for=delete", "--timeout", "0.1s").code == 1
    del api.docs[("Service", "alpha", "web")]
    assert ground("wait", "service/alpha/web", "--for=delete").out == "Service alpha/web gone\n"
    assert ground("wait", "service/alpha/web").code == 4
    assert ground("wait", "service/alpha/web", "--for=moon").code == 2


# ------------------------------------------------------------------------------------------------ edit


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *scripts: str) -> None:
    """An editor that applies one sed script after the other, and keeps what it was shown."""
    for number, script in enumerate(scripts):
        (tmp_path / f"sed{number}").write_text(script)
    program = tmp_path / "editor"
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\nn=$(ls seen* 2>/dev/null | wc -l)\ncp "$1" seen$n\nsed -i -f sed$n "$1"\n'
    )
    os.chmod(program, 0o755)
    monkeypatch.setenv("EDITOR", str(program))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_edit_sends_what_was_typed(
    ground: Ground, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put("Site", "bari", spec={"region": "south"}, metadata={"managers": {"spec.region": "user:ada"}})
    editor(tmp_path, monkeypatch, "s/south/north/")
    assert ground("edit", "site", "bari").out == "Site bari changed\n"
    assert api.docs[("Site", "", "bari")]["spec"] == {"region": "north"}
    shown = yaml.safe_load((tmp_path / "seen0").read_text())
    assert set(shown) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(shown["metadata"]) == {"name", "resourceVersion"}
    assert list(tmp_path.glob("ground-*")) == []


def test_edit_opens_again_with_what_is_wrong(
    ground: Ground, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put("Site", "bari", spec={"region": "south"})
    editor(tmp_path, monkeypatch, "s/south/[/", "s/\\[/mars/", "s/mars/north/")
    problem = {"path": "spec.region", "message": "no region 'mars'"}
    api.fail("PUT", "/sites/bari", Answer(422, "Invalid", "no", problems=[problem]))
    assert ground("edit", "site/bari").code == 0
    assert "# ! " in (tmp_path / "seen1").read_text()
    assert "spec.region: no region 'mars'" in (tmp_path / "seen2").read_text()
    assert api.docs[("Site", "", "bari")]["spec"] == {"region": "north"}


def test_edit_loses_nothing_when_it_gives_up(
    ground: Ground, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put("Site", "bari", spec={"region": "south"})
    editor(tmp_path, monkeypatch, "s/south/north/")
    api.fail("PUT", "/sites/bari", Answer(409, "Conflict", "bari was changed meanwhile"))
    found = ground("edit", "site/bari")
    assert found.code == 5
    kept = next(tmp_path.glob("ground-site-*"))
    assert f"what you typed is kept in {kept}" in found.err
    assert "region: north" in kept.read_text()


def test_edit_that_changes_nothing_sends_nothing(
    ground: Ground, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put("Site", "bari", spec={"region": "south"})
    editor(tmp_path, monkeypatch, "")
    assert ground("edit", "site/bari").out == "nothing changed\n"
    assert api.sent("PUT") == []
