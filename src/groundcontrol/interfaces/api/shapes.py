"""JSON schemas of what is not a resource: errors, tokens, plans, history. Referenced by the table of operations."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer"}
TIME: Schema = {"type": "string", "description": "RFC 3339 in UTC."}
SCOPE: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "enum": ["admin", "approve", "read", "write"]},
}


def _object(required: str = "", /, *, open_: bool = False, **properties: Schema) -> Schema:
    named = {name.removesuffix("_"): schema for name, schema in properties.items()}
    found: Schema = {"type": "object", "properties": named}
    if required:
        found["required"] = required.split()
    if not open_:
        found["additionalProperties"] = False
    return found


def _items(schema: Schema) -> Schema:
    return _object("items", items={"type": "array", "items": schema})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(longest: int, least: int = 0) -> Schema:
    return {"type": "string", "maxLength": longest, **({"minLength": least} if least else {})}


FIELDS: Schema = {
    "type": "object",
    "description": "Path to [before, after].",
    "additionalProperties": {"type": "array", "minItems": 2, "maxItems": 2},
}
EXPIRES: Schema = {"type": "number", "minimum": 60, "maximum": 7776000, "description": "Seconds from now."}
_WHAT = {"seq": NUMBER, "time": TIME, "kind": TEXT, "namespace": TEXT, "name": TEXT}
_PLACE = "seq time kind namespace name"

SHAPES: dict[str, Schema] = {
    "Problem": _object("message", message=TEXT, path=TEXT, file=TEXT, line=NUMBER, remedy=TEXT),
    "Error": _object(
        "error",
        error=_object(
            "status reason message problems",
            status=NUMBER,
            reason={"type": "string", "description": "A stable word for programs."},
            message=TEXT,
            problems={"type": "array", "items": _ref("Problem")},
            retryAfter={"type": "number", "description": "Seconds."},
        ),
    ),
    "LoginInput": _object(
        "user password",
        user=_text(63, 1),
        password=_text(1024, 1),
        expires=EXPIRES,
        scope=SCOPE,
        description=_text(200),
    ),
    "NewToken": _object("token expires id", token=TEXT, expires=TIME, id=TEXT),
    "TokenInput": _object(
        description=_text(200),
        expires=EXPIRES,
        scope=SCOPE,
        account={**_text(63), "description": "A robot to make it for, instead of for yourself."},
    ),
    "Token": _object(
        "id description scope created expires lastFour current",
        id=TEXT,
        description=TEXT,
        scope={"type": "array", "items": TEXT},
        created=TIME,
        expires=TIME,
        lastFour=TEXT,
        current={"type": "boolean", "description": "The one you ask with."},
    ),
    "TokenList": _items(_ref("Token")),
    "Revoked": _object("revoked", revoked={"type": "array", "items": TEXT}),
    "PasswordInput": _object("password", password=_text(1024, 8), old=_text(1024)),
    "Whoami": _object(
        "subject groups scope expires",
        subject=TEXT,
        groups={"type": "array", "items": TEXT},
        scope={"type": "array", "items": TEXT},
        expires=TIME,
    ),
    "Column": _object("title path wide", title=TEXT, path=TEXT, wide={"type": "boolean"}),
    "Kind": _object(
        "name plural short namespaced internal columns actions versions schema",
        name=TEXT,
        plural=TEXT,
        short={"type": "array", "items": TEXT},
        namespaced={"type": "boolean"},
        internal={"type": "boolean", "description": "Made by the server only."},
        columns={"type": "array", "items": _ref("Column")},
        actions={"type": "array", "items": TEXT},
        versions={"type": "array", "items": TEXT},
        schema={"type": "object", "description": "JSON schema of the kind."},
    ),
    "KindList": _items(_ref("Kind")),
    "MergePatch": _object(
        apiVersion=TEXT,
        kind=TEXT,
        metadata={
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "name": TEXT,
                "namespace": TEXT,
                "labels": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}},
                "annotations": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}},
                "resourceVersion": {"type": "integer", "minimum": 0},
                "uid": TEXT,
            },
        },
        spec={"type": "object", "description": "RFC 7396: null removes."},
    ),
    "ApplyInput": _object(
        "documents",
        documents={"type": "array", "minItems": 1, "maxItems": 1000, "items": {"type": "object"}},
        manager={**_text(63), "description": "Set the fields in this name instead of your own."},
    ),
    "ApplyResult": _object(
        "results",
        results={
            "type": "array",
            "items": _object(
                "key result fields resourceVersion",
                key=TEXT,
                result={"type": "string", "enum": ["created", "changed", "unchanged"]},
                fields=FIELDS,
                resourceVersion=NUMBER,
            ),
        },
    ),
    "ProposeInput": _object(
        "documents",
        documents={"type": "array", "minItems": 1, "maxItems": 100, "items": {"type": "object"}},
        whole={
            "type": "boolean",
            "description": "What a document leaves out returns to its default, as with PUT; else it stays.",
        },
    ),
    "Proposal": _object(
        "source repository resources files diff base branch commit digest state",
        source=TEXT,
        repository=TEXT,
        resources={"type": "array", "items": TEXT},
        files={"type": "array", "items": TEXT, "description": "Paths of the files that would change."},
        diff={"type": "string", "description": "Unified; without lines of documents that you may not read."},
        base={"type": "string", "description": "The commit it is built upon."},
        branch={"type": "string", "description": "The branch it is, or would be; empty when the Source takes none."},
        commit={"type": "string", "description": "What was pushed, or found there; else empty."},
        digest={"type": "string", "description": "Of the change: the same one twice is one proposal."},
        state={
            "type": "string",
            "enum": ["unchanged", "diff", "pushed", "exists"],
            "description": "unchanged: the files say so already; diff: nothing is pushed; exists: it was there before.",
        },
    ),
    "ProposalList": _object("proposals", proposals={"type": "array", "items": _ref("Proposal")}),
    "Inventory": _object(
        "site driver answers complete problems type looked items",
        site=TEXT,
        driver=TEXT,
        answers={"type": "boolean", "description": "Whether the site answers now; else this is what it was."},
        complete={"type": "boolean", "description": "Whether the last listing had everything."},
        problems={"type": "array", "items": TEXT},
        type=TEXT,
        looked={"type": "string", "description": "When this was listed, RFC 3339; empty: never."},
        total={"type": "integer", "description": "Of all pages, as far as you may see them."},
        items={
            "type": "array",
            "items": _object("id name", open_=True, id=TEXT, name=TEXT),
            "description": "Things, or one entry for each type with its `count` and when it was listed (`looked`).",
        },
        continue_={"type": "string", "description": "Where the next page begins; missing on the last one."},
    ),
    "ActionInput": {"type": "object", "description": "What the action needs; often nothing."},
    "Change": _object(
        "target verb",
        open_=True,
        target=_object("driver type id", driver=TEXT, type=TEXT, id=TEXT),
        verb=TEXT,
        fields=FIELDS,
        owner=TEXT,
        destructive={"type": "boolean"},
    ),
    "Plan": _object(
        "id",
        open_=True,
        id=TEXT,
        scope=TEXT,
        state=TEXT,
        digest=TEXT,
        reason=TEXT,
        changes={"type": "array", "items": _ref("Change")},
    ),
    "PlanList": _items(_ref("Plan")),
    "Approval": _object(
        digest=_text(200),
        bound=_object(
            "verb count until",
            verb=_text(32, 1),
            count={"type": "integer", "minimum": 1, "maximum": 1000000},
            until={**_text(40, 1), "format": "date-time"},
        ),
        reason=_text(1000),
    ),
    "Refusal": _object("reason", reason=_text(1000, 1)),
    "Tree": _object(
        "files",
        source=_text(63),
        files={"type": "object", "additionalProperties": TEXT},
        against={"type": ["object", "null"], "additionalProperties": TEXT},
    ),
    "Accepted": _object("accepted", accepted={"type": "boolean"}),
    "Event": _object(
        f"{_PLACE} type reason message",
        open_=True,
        **_WHAT,
        uid=TEXT,
        type=TEXT,
        reason=TEXT,
        message=TEXT,
        fields=FIELDS,
    ),
    "EventList": _items(_ref("Event")),
    "Audit": _object(
        f"{_PLACE} subject verb outcome detail",
        open_=True,
        **_WHAT,
        subject=TEXT,
        verb=TEXT,
        outcome=TEXT,
        detail={"type": "object"},
    ),
    "AuditList": _items(_ref("Audit")),
    "LedgerQuery": _object(
        "dataset",
        dataset=_text(64, 1),
        from_=TEXT,
        to=TEXT,
        where={"type": "object"},
        group={"type": "array", "items": TEXT},
        measure={"type": "array", "items": TEXT},
        limit={"type": "integer", "minimum": 1},
    ),
}
