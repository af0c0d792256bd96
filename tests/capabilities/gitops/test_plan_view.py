"""How `ground plan` shows a plan: readable, bounded, and deaf to what names and values try to say."""

import json
import re
from typing import Any

import pytest

from groundcontrol.interfaces.cli.plan_view import FOLDED, SHOWN, code, counted, markdown, render, text

EVIL = "x`*_<script>alert(1)</script>|[a](http://evil)\n/close @all\n```\n</details>\x1b[31m\u202e"


def change(verb: str, name: str, fields: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    target = {"driver": "store", "type": "Service", "id": f"alpha/{name}"}
    return {"target": target, "verb": verb, "fields": fields or {}, "destructive": verb == "delete", **more}


def plan(*changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "p-7", "scope": "source:platform", "state": "held", "digest": "sha256:ab", "changes": changes, **more}


SMALL = plan(
    change("create", "web", {"spec.replicas": [None, 3]}),
    change("update", "db", {"spec.memoryMb": [512, 1024]}, owner="Source platform"),
    change("delete", "old"),
    problems=[
        {"file": "a.yaml", "line": 7, "path": "spec.x", "message": "unknown field", "remedy": "remove it"},
        "plain",
    ],
)


def test_text() -> None:
    shown = render(SMALL, "text")
    for line in (
        "Plan p-7",
        "  scope: source:platform",
        "  problem: a.yaml:7: spec.x: unknown field (remove it)",
        "  problem: plain",
        "  + create Service alpha/web",
        "      spec.replicas: 3",
        "  ~ update Service alpha/db (for Source platform)",
        "      spec.memoryMb: 512 → 1024",
        "  - delete Service alpha/old",
        "1 to create, 1 to update, 1 to delete.",
    ):
        assert line in shown.splitlines()
    assert "\x1b" not in shown
    coloured = text(SMALL, colour=True)
    assert "\x1b[32m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == shown


def test_markdown() -> None:
    shown = render(SMALL, "markdown")
    assert shown.startswith("### Ground Control: 1 to create, 1 to update, 1 to delete\n")
    assert "**Cannot be undone:** `Service alpha/old`" in shown
    assert "- `a.yaml:7: spec.x: unknown field (remove it)`" in shown
    assert "```diff\n+ create Service alpha/web\n      spec.replicas: 3\n! update Service alpha/db" in shown
    assert "<details>" not in shown


def test_json_is_the_plan() -> None:
    assert json.loads(render({"id": "p", "changes": []}, "json")) == {"id": "p", "changes": []}


def test_an_empty_plan_says_so() -> None:
    assert "nothing would change." in text({"changes": []})
    assert markdown({}) == "### Ground Control: nothing would change\n"
    assert counted([change("restart", "a"), change("create", "b")]) == "1 to create, 1 to restart"


def test_long_plans_are_folded_and_longer_ones_cut() -> None:
    many = plan(*(change("create", f"s{n}") for n in range(FOLDED + 1)))
    shown = markdown(many)
    assert f"<summary>Show the changes ({FOLDED + 1})</summary>" in shown
    assert shown.endswith("</details>")
    fields = {f"spec.f{n}": [None, "x" * 90] for n in range(20)}
    huge = plan(*(change("create", f"s{n}", fields) for n in range(SHOWN + 300)))
    shown = markdown(huge)
    assert len(shown) < 65_000
    cut = re.search(r"… and (\d+) more changes", shown)
    assert cut is not None
    assert shown.count("+ create") + int(cut[1]) == SHOWN + 300
    assert "… and 300 more" in text(huge)


def evil_plans() -> list[dict[str, Any]]:
    target = {"driver": EVIL, "type": EVIL, "id": EVIL}
    bad = {"target": target, "verb": EVIL, "fields": {EVIL: [EVIL, EVIL]}, "destructive": True, "owner": EVIL}
    problems = [EVIL, {"file": EVIL, "line": 1, "path": EVIL, "message": EVIL, "remedy": EVIL}]
    about = {"id": EVIL, "scope": EVIL, "reason": EVIL, "limit": {EVIL: EVIL}, "problems": problems}
    return [{**about, "changes": [bad] * count} for count in (1, FOLDED + 5)]


@pytest.mark.parametrize("evil", evil_plans())
def test_nothing_foreign_becomes_markup(evil: dict[str, Any]) -> None:
    shown = markdown(evil)
    fence = re.search(r"^(`{3,})diff$", shown, re.MULTILINE)
    assert fence is not None
    before, _, rest = shown.partition(fence[0])
    inside, _, after = f"{rest}\n".partition(f"\n{fence[1]}\n")
    assert fence[1] not in inside
    # Outside the block and the code spans there is nothing but our own words.
    spans = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", before + after)
    assert "<script" not in spans
    assert "evil" not in spans
    assert "@all" not in spans
    assert not re.search(r"^\s*/close", shown, re.MULTILINE)
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_nothing_foreign_moves_the_cursor() -> None:
    shown = text(evil_plans()[0])
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert not re.search(r"^/close", shown, re.MULTILINE)


@pytest.mark.parametrize("value", ["a`b", "``", "`", "a``b`c", "", " x ", "a\nb"])
def test_a_code_span_holds_anything(value: str) -> None:
    shown = code(value)
    fence = re.match("`+", shown)
    assert fence is not None
    inside = shown[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inside)
    assert "\n" not in shown
