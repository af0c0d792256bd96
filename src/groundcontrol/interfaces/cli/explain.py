"""`ground explain` and `ground kinds`: the manual of every kind and field, read from the server's own schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from groundcontrol.interfaces.cli.failure import NOT_FOUND, OK, Failure, did_you_mean
from groundcontrol.interfaces.cli.options import completed_by, output_option
from groundcontrol.interfaces.cli.output import as_json, paint, safe, safe_text, say, table
from groundcontrol.interfaces.cli.session import session

Schema = Mapping[str, Any]


@click.command()
@click.argument("what", metavar="KIND[.FIELD…]", shell_complete=completed_by("kind_words"))
@click.option("--recursive", is_flag=True, help="Show the fields inside fields as well.")
def explain(what: str, recursive: bool) -> int:
    """What a kind is for, and what its fields mean.

    \b
    ground explain service
    ground explain service.spec.replicas
    """
    word, *path = what.split(".")
    kind = session().kinds.resolve(word)
    root: Schema = kind.schema
    node, required = root, False
    trail: list[str] = []
    for part in path:
        fields = dict(_fields(node, root))
        found = next((name for name in fields if name.lower() == part.lower()), None)
        if found is None:
            where = ".".join([kind.name, *trail])
            hint = did_you_mean(part, fields) or (f"known: {', '.join(fields)}" if fields else "it has no fields")
            raise Failure(f"{where} has no field {part!r}", hint, code=NOT_FOUND)
        required = found in _resolved(_inner(node, root), root).get("required", ())
        node = fields[found]
        trail.append(found)
    say("\n".join(_page(kind.name, kind.versions, trail, node, root, required=required, recursive=recursive)))
    return OK


def _page(
    kind: str,
    versions: tuple[str, ...],
    trail: list[str],
    node: Schema,
    root: Schema,
    *,
    required: bool,
    recursive: bool,
) -> Iterator[str]:
    yield f"{paint('KIND:', 'bold')}     {safe(kind)}" + (f" ({safe(', '.join(versions))})" if versions else "")
    if trail:
        mark = "  (required)" if required else ""
        yield f"{paint('FIELD:', 'bold')}    {safe('.'.join(trail))} <{_type(node, root)}>{mark}"
    text = node.get("description") or _resolved(node, root).get("description")
    if text:
        yield ""
        yield "\n".join("  " + line if line else "" for line in safe_text(str(text)).splitlines())
    limits = list(_limits(node, root))
    if limits:
        yield ""
        yield from (f"  {line}" for line in limits)
    fields = list(_fields(node, root))
    if fields:
        yield ""
        yield paint("FIELDS:", "bold")
        yield from _list_fields(node, root, recursive=recursive, by=2, seen=())


def _list_fields(node: Schema, root: Schema, *, recursive: bool, by: int, seen: tuple[int, ...]) -> Iterator[str]:
    required = _resolved(_inner(node, root), root).get("required", ())
    for name, field in _fields(node, root):
        mark = " required" if name in required else ""
        yield f"{' ' * by}{paint(safe(name), 'cyan')} <{_type(field, root)}>{mark}"
        text = field.get("description") or _resolved(field, root).get("description") or ""
        if text and not recursive:
            yield f"{' ' * (by + 4)}{safe(str(text).strip().splitlines()[0])}"
        inner = _resolved(_inner(field, root), root)
        if recursive and id(inner) not in seen and by < 40:
            yield from _list_fields(field, root, recursive=True, by=by + 2, seen=(*seen, id(inner)))


def _resolved(node: Schema, root: Schema) -> Schema:
    """The schema a `$ref` points at, and the one real choice of `X or null`."""
    for _ in range(16):
        reference = node.get("$ref")
        choices = [c for c in node.get("anyOf") or node.get("oneOf") or () if c.get("type") != "null"]
        if isinstance(reference, str):
            at: Any = root
            for part in reference.removeprefix("#/").split("/"):
                at = at.get(part, {}) if isinstance(at, Mapping) else {}
            node = at
        elif len(choices) == 1:
            node = choices[0]
        elif len(node.get("allOf") or ()) == 1:
            node = node["allOf"][0]
        else:
            break
    return node


def _inner(node: Schema, root: Schema) -> Schema:
    """What has the fields: the items of a list, the values of a mapping, or the thing itself."""
    node = _resolved(node, root)
    for _ in range(8):
        if node.get("type") == "array" and node.get("items"):
            node = _resolved(node["items"], root)
        elif "properties" not in node and isinstance(node.get("additionalProperties"), Mapping):
            node = _resolved(node["additionalProperties"], root)
        else:
            break
    return node


def _fields(node: Schema, root: Schema) -> Iterator[tuple[str, Schema]]:
    inner = _inner(node, root)
    yield from (inner.get("properties") or {}).items()
    for choice in inner.get("oneOf") or inner.get("anyOf") or ():
        yield from (_resolved(choice, root).get("properties") or {}).items()


def _type(node: Schema, root: Schema) -> str:
    found = _resolved(node, root)
    if found.get("type") == "array":
        return f"list of {_type(found.get('items') or {}, root)}"
    if "properties" not in found and isinstance(found.get("additionalProperties"), Mapping):
        return f"map of {_type(found['additionalProperties'], root)}"
    if found.get("enum"):
        return safe(" | ".join(str(v) for v in found["enum"]))
    if "const" in found:
        return safe(found["const"])
    choices = found.get("anyOf") or found.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(_type(c, root) for c in choices if c.get("type") != "null"))
    return safe(found.get("format") or found.get("type") or "any")


_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
    "minLength": "characters, at least",
    "maxLength": "characters, at most",
    "minItems": "entries, at least",
    "maxItems": "entries, at most",
    "pattern": "matches",
}


def _limits(node: Schema, root: Schema) -> Iterator[str]:
    found = {**_resolved(node, root), **{k: v for k, v in node.items() if k != "$ref"}}
    if "default" in found and found["default"] not in (None, "", [], {}):
        yield f"default: {safe(as_json(found['default'], indent=None))}"
    for name, words in _LIMITS.items():
        if name in found:
            yield f"{words} {safe(found[name])}"


@click.command()
@output_option("table", "name", "json")
def kinds(output: str) -> int:
    """The kinds this server has, with the words that stand for them."""
    found = list(session().kinds)
    if output == "name":
        say("\n".join(safe(kind.plural) for kind in found))
    elif output == "json":
        fields = ("name", "plural", "short", "namespaced", "actions", "internal", "versions")
        say(as_json([{name: getattr(kind, name) for name in fields} for kind in found]))
    else:
        rows = [[k.plural, ",".join(k.short), k.namespaced, k.name, ",".join(k.actions)] for k in found]
        say(table(["Name", "Short", "Namespaced", "Kind", "Actions"], rows))
    return OK
