"""Shows a plan as the API answers it: as text for a terminal, and as Markdown for the comment of a merge request.

Names and values come from files anybody may have written. On a terminal nothing unprintable gets through; in Markdown
everything foreign stands in code spans or a fenced block that it cannot leave, so that it is neither markup nor a
mention nor a command of the git server.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

Plan = Mapping[str, Any]
Style = Literal["text", "markdown", "json"]

FOLDED = 20
"""Changes above which Markdown folds them away."""
SHOWN = 500
"""Changes shown at most; the rest is counted."""
_LONGEST = 60_000
"""Characters of a comment; GitHub takes 65,536."""
_WIDEST = 100
"""Characters of one value."""

_SIGNS = {"create": "+", "delete": "-", "update": "~"}
_COLOURS = {"+": "32", "-": "31", "~": "33"}


def render(plan: Plan, style: Style = "text", colour: bool = False) -> str:
    """The plan in the style asked for; `colour` counts for text only. Ends without a newline."""
    if style == "json":
        return json.dumps(plan, indent=2, ensure_ascii=False)
    return markdown(plan) if style == "markdown" else text(plan, colour)


def text(plan: Plan, colour: bool = False) -> str:
    """For a terminal."""

    def paint(line: str, code: str) -> str:
        return f"\x1b[{code}m{line}\x1b[0m" if colour else line

    changes = list(plan.get("changes") or ())
    lines = [paint(_title(plan), "1")]
    lines += [f"  {name}: {_clean(value)}" for name, value in _about(plan)]
    lines += [paint(f"  problem: {_clean(_problem(p))}", "31") for p in plan.get("problems") or ()]
    for change in changes[:SHOWN]:
        sign = _sign(change)
        code = _COLOURS.get(sign, "36")
        lines += ["", paint(f"  {sign} {_headline(change)}", code)]
        lines += [f"      {line}" for line in _field_lines(change)]
    if len(changes) > SHOWN:
        lines += ["", f"  … and {len(changes) - SHOWN:,} more"]
    return "\n".join([*lines, "", paint(f"{counted(changes)}.", "1")])


def markdown(plan: Plan) -> str:
    """For a comment of a merge request: the sum first, then what is wrong, then the changes, folded when many."""
    changes = list(plan.get("changes") or ())
    out = [f"### Ground Control: {counted(changes)}", ""]
    out += [f"- {name}: {code(value)}" for name, value in _about(plan)]
    losses = [change for change in changes if change.get("destructive")]
    if losses:
        named = ", ".join(code(_target(change)) for change in losses[:10])
        more = f" and {len(losses) - 10:,} more" if len(losses) > 10 else ""
        out += ["", f"**Cannot be undone:** {named}{more}"]
    problems = list(plan.get("problems") or ())
    if problems:
        out += ["", f"**Problems ({len(problems):,}), what they concern stays as it is:**", ""]
        out += [f"- {code(_problem(problem), 400)}" for problem in problems[:50]]
        out += [f"- … and {len(problems) - 50:,} more"] if len(problems) > 50 else []
    if changes:
        # `~` for updates is no colour in a diff; `!` is one where diffs are coloured.
        blocks = (_block(change) for change in changes[:SHOWN])
        body, left = _fitting(blocks, _LONGEST - sum(map(len, out)) - 500)
        left += len(changes[SHOWN:])
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
        diff = [f"{fence}diff", body, fence]
        if len(changes) > FOLDED:
            summary = html.escape(f"Show the changes ({len(changes):,})")
            diff = ["<details>", f"<summary>{summary}</summary>", "", *diff, "", "</details>"]
        out += ["", *diff]
        out += ["", f"… and {left:,} more changes"] if left else []
    return "\n".join(out)


def counted(changes: Iterable[Mapping[str, Any]]) -> str:
    """`2 to create, 1 to delete`, or that nothing would change."""
    verbs = Counter(_clean(change.get("verb") or "change", 40) for change in changes)
    order = {"create": 0, "update": 1, "delete": 3}
    parts = [f"{count:,} to {verb}" for verb, count in sorted(verbs.items(), key=lambda v: (order.get(v[0], 2), v[0]))]
    return ", ".join(map(_words, parts)) or "nothing would change"


def code(value: Any, longest: int = _WIDEST) -> str:
    """A Markdown code span that its content cannot leave."""
    shown = _clean(value, longest)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    padding = " " if shown[:1] in ("`", " ") or shown[-1:] in ("`", " ") else ""
    return f"{fence}{padding}{shown or ' '}{padding}{fence}"


def _about(plan: Plan) -> Iterator[tuple[str, str]]:
    for name in ("scope", "state", "reason", "limit", "since", "digest"):
        value = plan.get(name)
        if value:
            yield name, value if isinstance(value, str) else _json(value)
    approval = plan.get("approval")
    if approval:
        yield "approval", _json(approval)


def _title(plan: Plan) -> str:
    name = plan.get("id")
    return f"Plan {_clean(name)}" if name else "Plan"


def _sign(change: Mapping[str, Any]) -> str:
    return _SIGNS.get(str(change.get("verb")), "*")


def _target(change: Mapping[str, Any]) -> str:
    target = change.get("target") or {}
    driver, parts = target.get("driver"), [target.get("type"), target.get("id")]
    return " ".join(str(part) for part in ([*parts] if driver in ("store", None) else [driver, *parts]) if part)


def _headline(change: Mapping[str, Any]) -> str:
    owner = change.get("owner")
    return _clean(f"{change.get('verb')} {_target(change)}{f' (for {owner})' if owner else ''}", 300)


def _field_lines(change: Mapping[str, Any]) -> Iterator[str]:
    for path, pair in (change.get("fields") or {}).items():
        before, after = pair
        if change.get("verb") == "create" and before is None:
            yield f"{_clean(path)}: {_json(after)}"
        else:
            yield f"{_clean(path)}: {_json(before)} → {_json(after)}"


def _block(change: Mapping[str, Any]) -> str:
    """Lines of a diff; each begins with a sign of ours, so that none can end the block."""
    sign = {"~": "!"}.get(_sign(change), _sign(change))
    sign = sign if sign in "+-!" else " "
    return "\n".join([f"{sign} {_headline(change)}", *(f"      {line}" for line in _field_lines(change))])


def _fitting(blocks: Iterable[str], room: int) -> tuple[str, int]:
    """As many blocks as fit, and how many do not."""
    taken: list[str] = []
    left = 0
    for block in blocks:
        room -= len(block) + 1
        if room < 0 and taken:
            left += 1
        else:
            taken.append(block[:_LONGEST])
    return "\n".join(taken), left


def _problem(problem: Any) -> str:
    if not isinstance(problem, Mapping):
        return str(problem)
    file, line = problem.get("file"), problem.get("line")
    place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
    path = f"{problem['path']}: " if problem.get("path") else ""
    remedy = f" ({problem['remedy']})" if problem.get("remedy") else ""
    return f"{place}{path}{problem.get('message', '')}{remedy}"


def _json(value: Any) -> str:
    return _clean(json.dumps(value, ensure_ascii=False)) if value is not None else "none"


def _clean(value: Any, longest: int = 400) -> str:
    """One printable line."""
    shown = "".join(c if c.isprintable() else "�" for c in str(value)[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _words(value: str) -> str:
    """Letters, digits and little else: for headings, where nothing can be quoted."""
    return re.sub(r"[^\w ,.-]", "", value)
