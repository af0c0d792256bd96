"""The reference pages: what the kinds, settings, errors and commands say of themselves, as files. Always the same for
the same sources, so that a page that is not fresh is found by writing it again."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from groundcontrol.assembly import CAPABILITIES, kinds
from groundcontrol.interfaces.api.openapi import openapi
from groundcontrol.kernel.errors import GroundError
from groundcontrol.kernel.reconcile import Reconciler
from groundcontrol.kernel.resource import Kinds, Meta, Resource, Status
from groundcontrol.kernel.settings import Settings
from groundcontrol.programs.commands import commands_page
from groundcontrol.programs.fields import rows, table

MADE = "<!-- Written by `make docs`; what is changed here is lost. -->"
RETRY = {
    "stop": "no: it fails again",
    "again": "yes: read, decide, try again",
    "later": "yes, after a while",
    "ask": "not blindly: look first whether it happened",
}
EVERYWHERE = {
    "Ready": "The answer in one word. `Unknown` means that nobody could look.",
    "Held": "A part of what it plans is over a limit and waits for a person.",
    "HeldByRun": "A Run has its hands on a field; the reconciler leaves it alone until the hold ends.",
    "Duplicate": "A call that was not answered made a second thing; a person has to remove it.",
}


def pages(examples: Path) -> dict[str, str]:
    """Every page: path below the reference's directory to text. `examples` holds manifests, `<kind>.yaml`."""
    known = kinds()
    found = {"openapi.json": openapi_text(known), "kinds.md": _index(known)}
    for kind in known:
        found[_page(kind)] = _kind(kind, known, _example(kind, examples))
    found |= {"settings.md": _settings(), "errors.md": _errors(), "cli.md": commands_page(MADE)}
    return found


def write(directory: Path, texts: Mapping[str, str]) -> list[Path]:
    """Make the directory hold these pages and no others; the paths that changed."""
    changed = []
    for name, text in texts.items():
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    for path in sorted(directory.rglob("*")):
        ours = path.suffix == ".md" and MADE in path.read_text(encoding="utf-8")
        if ours and path.relative_to(directory).as_posix() not in texts:
            path.unlink()
            changed.append(path)
    return changed


def openapi_text(known: Kinds) -> str:
    """The description of the API as the file has it."""
    return json.dumps(openapi(known), indent=1, ensure_ascii=False) + "\n"


def _text(*lines: str) -> str:
    return "\n".join([MADE, *lines]).rstrip() + "\n"


def _page(kind: type[Resource]) -> str:
    return f"kinds/{kind.__name__.lower()}.md"


def _about(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split())


# ── kinds ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _index(known: Kinds) -> str:
    lines = ["# Kinds", "", "Every kind there is. `ground explain KIND.spec` shows the same on a terminal.", ""]
    lines += ["| kind | names | where | what |", "|---|---|---|---|"]
    for kind in known:
        names = ", ".join(f"`{n}`" for n in (kind.info.plural, *kind.info.short))
        where = "namespace" if kind.info.namespaced else "platform"
        made = " (made by the server)" if kind.info.internal else ""
        lines.append(f"| [{kind.__name__}]({_page(kind)}) | {names} | {where} | {_about(kind)}{made} |")
    lines += [
        "",
        "## What every resource has",
        "",
        f"`apiVersion` is `{Resource.version}`; `kind` is the kind's name.",
        "",
    ]
    lines += table(rows(Meta, "metadata"))
    lines += ["", "## What every status has", "", *table(rows(Status, "status"))]
    lines += ["", "## Conditions of every kind", "", "| type | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, about in EVERYWHERE.items()]
    return _text(*lines)


def _kind(kind: type[Resource], known: Kinds, example: str) -> str:
    info, name = kind.info, kind.__name__
    place = "a namespace" if info.namespaced else "the whole platform"
    lines = [f"# {name}", "", _about(kind), ""]
    lines += [f"* Lives in {place}; apiVersion `{kind.version}`."]
    lines += [f"* Answers to `{name}`, {', '.join(f'`{n}`' for n in (info.plural, *info.short))}."]
    if info.internal:
        lines.append("* Made by the server: it can be read and not written.")
    if example:
        lines += ["", "## Example", "", "```yaml", example.rstrip(), "```"]
    specs = {k.model_fields["spec"].annotation: k.__name__ for k in known if k is not kind}

    def elsewhere(model: type[BaseModel]) -> str:
        other = specs.get(model)
        return f"As the spec of [{other}]({other.lower()}.md)." if other else ""

    for part in ("spec", "status"):
        model = kind.model_fields[part].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        shared = frozenset(Status.model_fields) if part == "status" else frozenset[str]()
        lines += ["", f"## {part.title()}", ""]
        own = list(rows(model, part, without=shared, elsewhere=elsewhere))
        lines += table(iter(own)) if own else ["Nothing of its own." if part == "status" else "No fields."]
        if part == "status":
            lines += ["", "And [what every status has](../kinds.md#what-every-status-has)."]
    lines += _conditions(kind)
    if info.columns:
        lines += ["", "## Columns", "", "| column | path | shown |", "|---|---|---|"]
        lines += [f"| {c.title} | `{c.path}` | {'with `-o wide`' if c.wide else 'always'} |" for c in info.columns]
    return _text(*lines, *_actions(kind))


def _conditions(kind: type[Resource]) -> list[str]:
    types, reasons = said_by(kind)
    types = [t for t in types if t not in EVERYWHERE]
    if not (types or reasons):
        return []
    lines = ["", "## Conditions", ""]
    own = f", and {', '.join(f'`{t}`' for t in types)}" if types else ""
    lines.append(f"[Those of every kind](../kinds.md#conditions-of-every-kind){own}.")
    if reasons:
        lines += ["", f"Reasons they give: {', '.join(f'`{r}`' for r in reasons)}."]
    return lines


def _actions(kind: type[Resource]) -> list[str]:
    info, name = kind.info, kind.__name__
    if not info.actions:
        return []
    acts = {verb: act for c in CAPABILITIES for (of, verb), act in c.actions.items() if of == name}
    lines = ["", "## Actions", "", "Verbs that access rules may name besides those of every kind.", ""]
    lines += ["| verb | call | what |", "|---|---|---|"]
    where = f"/api/v1/{'namespaces/{namespace}/' if info.namespaced else ''}{info.plural}/{{name}}"
    for verb in info.actions:
        act = acts.get(verb)
        call = f"POST {where}/actions/{verb}" if act else f"GET {where}/log"
        lines.append(f"| `{verb}` | `{call}` | {_about(act) if act else 'Read what it wrote.'} |")
    return lines


def _example(kind: type[Resource], examples: Path) -> str:
    """The manifest that people wrote, or else the least that the fields allow; empty for what the server makes."""
    if kind.info.internal:
        return ""
    written = examples / f"{kind.__name__.lower()}.yaml"
    if written.exists():
        return written.read_text(encoding="utf-8")
    spec = kind.model_fields["spec"].annotation
    meta = {"name": "example"} | ({"namespace": "alpha"} if kind.info.namespaced else {})
    doc = {"apiVersion": kind.version, "kind": kind.__name__, "metadata": meta, "spec": _least(spec)}
    return yaml.safe_dump(doc, sort_keys=False)


def _least(model: Any) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True)
    empty: dict[str, Any] = {"string": "example", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
    found = {}
    for name in schema.get("required", ()):
        field = schema["properties"][name]
        found[name] = (field.get("examples") or field.get("enum") or [empty.get(field.get("type", ""), {})])[0]
    return found


# ── what reconcilers say ────────────────────────────────────────────────────────────────────────────────────────


def said_by(kind: type[Resource]) -> tuple[list[str], list[str]]:
    """(condition types, reasons) that the reconcilers of a kind write, read from their sources."""
    types: set[str] = set()
    reasons: set[str] = set()
    for reconciler in _below(Reconciler):
        if getattr(reconciler, "kind", None) is kind and reconciler.reports:
            # One that is made for several kinds has its code above.
            code = next(c for c in reconciler.__mro__ if "report" in vars(c))
            for node in _walked(code):
                _note(node, types, reasons)
    return sorted(types), sorted(reasons)


def _below(thing: type[Any]) -> Iterator[type[Any]]:
    """All subclasses, and theirs."""
    for inner in thing.__subclasses__():
        yield inner
        yield from _below(inner)


def _walked(thing: Any) -> Iterator[ast.AST]:
    """The code of a class, and of the functions of capabilities it calls, and so on."""
    waiting, seen = [thing], {thing}
    while waiting:
        current = waiting.pop()
        scope = vars(sys.modules[current.__module__])
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(current)))):
            yield node
            found = scope.get(node.id) if isinstance(node, ast.Name) else None
            ours = inspect.isfunction(found) and found.__module__.startswith("groundcontrol.capabilities.")
            if ours and found not in seen:
                seen.add(found)
                waiting.append(found)


def _note(node: ast.AST, types: set[str], reasons: set[str]) -> None:
    match node:
        case ast.Call(func=ast.Name(id="conditions"), keywords=keywords):
            types.update(k.arg for k in keywords if k.arg)
        case ast.Subscript(value=ast.Name(id="answers"), slice=ast.Constant(value=str(name)), ctx=ast.Store()):
            types.add(name)
        case ast.Tuple(elts=[ast.Constant(value="True" | "False" | "Unknown"), ast.Constant(value=str(reason)), _]):
            reasons.add(reason)


# ── settings and errors ─────────────────────────────────────────────────────────────────────────────────────────


def _settings() -> str:
    lines = [
        "# Settings",
        "",
        "One file, `ground.yaml`; `ground init` writes it with these texts as comments. Everything",
    ]
    lines += ["may be left out. Unknown names and wrong types are refused with file, line and remedy.", ""]
    lines += table(rows(Settings))
    return _text(*lines)


def _errors() -> str:
    lines = [
        "# Errors",
        "",
        "The class decides the HTTP status and whether to try again. `reason` in an answer of the API",
    ]
    lines += ["and in a condition is the name of the class.", "", "| reason | status | try again | meaning |"]
    lines += ["|---|---|---|---|", *_error(GroundError, 0)]
    lines += ["", "`retryAfter` in the answer says how many seconds to wait, when that is known."]
    return _text(*lines)


def _error(error: type[GroundError], depth: int) -> Iterator[str]:
    yield f"| {'&nbsp;&nbsp;' * depth}`{error.__name__}` | {error.status} | {RETRY[error.retry]} | {_about(error)} |"
    for below in error.__subclasses__():
        if below.__module__ == error.__module__:
            yield from _error(below, depth + 1)
