"""Tables of fields, in Markdown, from the classes that define them: type, default, bounds and the docstring below."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Schema = Mapping[str, Any]
_NAMES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`", "null": ""}
_HEAD = ["| field | type | default | meaning |", "|---|---|---|---|"]


class Row(NamedTuple):
    """One field."""

    path: str
    type: str
    default: str
    about: str

    def __str__(self) -> str:
        cells = (f"`{self.path}`", self.type, self.default, self.about)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table(rows: Iterator[Row]) -> list[str]:
    """The rows with a head above them."""
    found = [str(row) for row in rows]
    return [*_HEAD, *found] if found else ["No fields."]


def rows(
    model: type[BaseModel],
    prefix: str = "",
    *,
    without: frozenset[str] = frozenset(),
    elsewhere: Callable[[type[BaseModel]], str] = lambda model: "",
) -> Iterator[Row]:
    """Every field, those of models inside one another too. `elsewhere` links to where a model has its own table."""
    schema = model.model_json_schema(by_alias=True)
    for name, found in model.model_fields.items():
        if name in without:
            continue
        alias = found.alias or name
        path = f"{prefix}.{alias}" if prefix else alias
        inner, mark = _inside(found)
        link = elsewhere(inner) if inner else ""
        shape = _shape(_resolved(schema["properties"][alias], schema), schema)
        about = " ".join((found.description or "").split())
        yield Row(path, f"{shape}{_bounds(schema['properties'][alias])}", _default(found), f"{about} {link}".strip())
        if inner and not link:
            yield from rows(inner, path + mark, elsewhere=elsewhere)


def _inside(found: FieldInfo) -> tuple[type[BaseModel] | None, str]:
    """The model a field holds, and how one of it is written behind the path: `[]` in a list, `.NAME` in a map."""
    kind = found.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, ""
    mark = {list: "[]", dict: ".NAME"}.get(getattr(kind, "__origin__", None), "")  # type: ignore[arg-type]
    for inner in get_args(kind):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner, mark
    return None, ""


def _resolved(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref", "")
    found: Schema = root["$defs"][reference.rpartition("/")[2]] if reference else schema
    return found


def _shape(schema: Schema, root: Schema) -> str:
    schema = _resolved(schema, root)
    if "enum" in schema or "const" in schema:
        words = [f"`{v}`" if v != "" else "empty" for v in schema.get("enum", [schema.get("const")])]
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if "anyOf" in schema:
        return " or ".join(s for part in schema["anyOf"] if (s := _shape(part, root)))
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_shape(schema['items'], root)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"map of {_shape(values, root)}" if isinstance(values, dict) else "object"
    return _NAMES.get(kind, str(kind))


def _bounds(schema: Schema) -> str:
    """`, 1 to 9`; empty when there are none."""
    found = []
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minProperties", "maxProperties", " entries"),
    ):
        least, most = schema.get(low), schema.get(high)
        if least is not None and most is not None:
            found.append(f"{_plain(least)} to {_plain(most)}{unit}")
        elif least is not None:
            found.append(f"at least {_plain(least)}{unit}")
        elif most is not None:
            found.append(f"at most {_plain(most)}{unit}")
    if (above := schema.get("exclusiveMinimum")) is not None:
        found.append(f"more than {_plain(above)}")
    if pattern := schema.get("pattern"):
        found.append(f"like `{pattern}`")
    return "".join(f", {text}" for text in found)


def _plain(number: float) -> str:
    return f"{number:,.15g}"


def _default(found: FieldInfo) -> str:
    if found.is_required():
        return "**required**"
    value = found.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if value in (None, "", [], {}) and not isinstance(value, bool | int | float):
        return "none" if value is None else "empty"
    if isinstance(value, list) and isinstance(value[0], BaseModel):
        value = [item.model_dump(by_alias=True) for item in value]
        return "<br>".join(f"`{json.dumps(item)}`" for item in value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
