"""The description of the API: OpenAPI 3.1, made from the kinds and the table of operations, without a store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import models_json_schema

from groundcontrol import __version__
from groundcontrol.interfaces.api.derive import ref
from groundcontrol.interfaces.api.operation import Operation
from groundcontrol.interfaces.api.shapes import SHAPES
from groundcontrol.interfaces.api.table import operations
from groundcontrol.kernel.resource import NAME, SERVER_FIELDS, Kinds, Resource

Schema = dict[str, Any]

REFUSALS = {
    401: "No token, or one that is wrong, revoked or expired.",
    403: "Known, but not allowed; the message says who may.",
    404: "Nothing there by that name, or not for you to know.",
    409: "It exists already, changed meanwhile, or a Source sets it.",
    410: "The event asked for is no longer kept: list again.",
    413: "The body is larger than 2 MiB.",
    422: "The input is wrong; `problems` say where.",
    429: "Too many calls; `Retry-After` says when to come back.",
    503: "Something the answer needs is not there, or not now.",
}
ABOUT = "Everything a person or program can do; the command line and the web use nothing else. See docs/guides/api.md."


def openapi(kinds: Kinds) -> Schema:
    """The whole description."""
    paths: dict[str, Schema] = {}
    for operation in operations(kinds):
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ground Control", "version": __version__, "description": ABOUT},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted({**_kinds(kinds), **SHAPES}.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                str(status): {"description": about, "content": _content("application/json", ref("Error"))}
                for status, about in REFUSALS.items()
            },
        },
    }


def _content(media: str, schema: Any) -> Schema:
    return {media: {"schema": schema}}


def _described(operation: Operation) -> Schema:
    found: Schema = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.about,
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation)],
        "responses": {str(status): _answer(operation, status, schema) for status, schema in operation.answers.items()}
        | {str(status): {"$ref": f"#/components/responses/{status}"} for status in _refusals(operation)},
    }
    if operation.verb:
        found["description"] = f"Access rules know it as `{operation.verb}`."
    if operation.public:
        found["security"] = []
    if operation.body is not None:
        found["requestBody"] = {"content": _content(operation.media, operation.body)}
        found["requestBody"]["required"] = bool(operation.body) and not operation.body_optional
    return found


def _refusals(operation: Operation) -> Iterable[int]:
    for status in REFUSALS:
        if status == 401 and operation.public and operation.method == "GET":
            continue
        if status in (409, 413) and operation.method == "GET":
            continue
        if status == 410 and not {"since", "notOlderThan"} & {p.name for p in operation.query}:
            continue
        yield status


def _path_parameters(path: str) -> list[Schema]:
    shapes: dict[str, Schema] = {
        "id": {"type": "string", "minLength": 1, "maxLength": 255},
        "source": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": f"^{NAME.pattern}$"},
    }
    named = {"type": "string", "minLength": 1, "maxLength": 63, "pattern": f"^{NAME.pattern}$"}
    return [
        {"name": name, "in": "path", "required": True, "schema": shapes.get(name, named)}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(operation: Operation) -> list[Schema]:
    return [{"name": p.name, "in": "query", "description": p.about, "schema": p.schema} for p in operation.query]


def _answer(operation: Operation, status: int, schema: Any) -> Schema:
    text = {"type": "string"}
    found: Schema = {
        "description": {200: "Done.", 201: "Created.", 202: "Asked for; it takes its time."}.get(status, "Done."),
        "content": _content(operation.answer_media, text if schema is None else schema),
    }
    if operation.method in ("POST", "PUT", "PATCH", "DELETE"):
        found["headers"] = {
            "X-Ground-Event": {"description": "Number of the event it reached.", "schema": {"type": "integer"}},
            "X-Ground-Dry-Run": {"description": "`true`: nothing was written.", "schema": {"type": "string"}},
        }
    if operation.id.startswith("create") and status == 201 and operation.verb == "create":
        found["links"] = _links(operation)
    return found


def _links(operation: Operation) -> Schema:
    kind = operation.id.removeprefix("create")
    place = {"name": "$response.body#/metadata/name"}
    if "{namespace}" in operation.path:
        place["namespace"] = "$response.body#/metadata/namespace"
    return {
        f"{verb}{kind}": {"operationId": f"{verb}{kind}", "parameters": place}
        for verb in ("get", "replace", "patch", "delete")
    }


def _kinds(kinds: Kinds) -> dict[str, Schema]:
    """Every kind: as it is answered, as it may be sent, and the list of it."""
    classes: list[type[Resource]] = list(kinds)
    template = "#/components/schemas/{model}"
    outputs, top = models_json_schema([(k, "serialization") for k in classes], by_alias=True, ref_template=template)
    inputs, _ = models_json_schema(
        [(k.model_fields["spec"].annotation, "validation") for k in classes],  # type: ignore[misc]
        by_alias=True,
        ref_template="#/components/schemas/{model}Input",
    )
    found: dict[str, Schema] = dict(top.get("$defs", {}))
    found |= {f"{name}Input": schema for name, schema in _.get("$defs", {}).items()}
    for kind in classes:
        name = kind.__name__
        output = outputs[kind, "serialization"]["$ref"].rpartition("/")[2]
        if output != name:
            found[name] = {"$ref": f"#/components/schemas/{output}"}
        found[name]["properties"]["kind"] = {"const": name, "type": "string"}
        found[f"{name}List"] = _listed(name)
        if not kind.info.internal:
            spec = inputs[kind.model_fields["spec"].annotation, "validation"]  # type: ignore[index]
            found[f"{name}Input"] = _input(kind, spec)
    return found


def _listed(name: str) -> Schema:
    return {
        "type": "object",
        "required": ["items", "resourceVersion"],
        "properties": {
            "items": {"type": "array", "items": ref(name)},
            "resourceVersion": {"type": "integer"},
            "continue": {"type": "string"},
        },
    }


def _input(kind: type[Resource], spec: Schema) -> Schema:
    """What may be sent: the path fills kind, apiVersion and the place; what the server sets is passed over."""
    meta: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": f"^{NAME.pattern}$"},
            "labels": {
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": {"type": "string", "maxLength": 63},
                "propertyNames": {"pattern": "^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"},
            },
            "annotations": {"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string"}},
            "resourceVersion": {"type": "integer", "minimum": 0, "description": "Refuse when it is another by now."},
            "uid": {"type": "string", "description": "Refuse when it is another by now."},
            **{name: {} for name in sorted(SERVER_FIELDS - {"resourceVersion", "uid"})},
        },
    }  # fmt: skip
    if kind.info.namespaced:
        meta["properties"]["namespace"] = {"type": "string", "description": "That of the path."}
    return {
        "type": "object",
        "description": kind.__doc__ or "",
        "required": ["metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": kind.version},
            "kind": {"const": kind.__name__},
            "metadata": meta,
            "spec": spec,
            "status": {},
        },
    }
