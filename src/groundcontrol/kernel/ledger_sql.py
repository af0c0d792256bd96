"""What the ledger holds and what may be asked of it, as values; SQL is built here, from declared names only.

Names of datasets and columns come from `Dataset` values of ours, everything a caller sends is a parameter. A dataset
is one table: `source`, `seq`, `time` (UTC), the declared columns, and `data` with whatever else a fact carries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import did_you_mean

TYPES = {"text": "VARCHAR", "int": "BIGINT", "float": "DOUBLE", "bool": "BOOLEAN", "time": "TIMESTAMP", "json": "JSON"}
_OWN = {"source": "text", "seq": "int", "time": "time"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_DATA = re.compile(r"data((?:\.[A-Za-z0-9_-]+)+)")
_BUCKET = re.compile(r"([A-Za-z][A-Za-z0-9_]*):(minute|hour|day|week|month)")
MAX_ROWS = 100_000
MAX_SECONDS = 300.0
MAX_VALUES = 1000
WATERMARKS = "ground_watermarks"


class Dataset(msgspec.Struct, frozen=True):
    """One stream of facts. `columns` maps a name to `text`, `int`, `float`, `bool`, `time` or `json`."""

    name: str
    columns: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        seen = {"data", *_OWN}
        if not _NAME.fullmatch(self.name) or self.name.lower().startswith("ground_"):
            raise ValueError(f"{self.name!r} is not a name for a dataset: letters, digits and _")
        for column, type_ in self.columns.items():
            if not _NAME.fullmatch(column) or column.lower() in seen:
                raise ValueError(f"dataset {self.name}: {column!r} is no name for a column, or taken")
            if type_ not in TYPES:
                raise ValueError(f"dataset {self.name}: column {column} is {type_!r}, known: {', '.join(TYPES)}")
            seen.add(column.lower())  # DuckDB does not tell names apart by case

    @property
    def types(self) -> dict[str, str]:
        """Every column of the table with its type."""
        return {**_OWN, **self.columns, "data": "json"}


REJECTED = Dataset("rejected", {"dataset": "text", "reason": "text"})
"""Facts that fit no dataset, kept whole: a fact that can never be stored must not stop those behind it."""

# ------------------------------------------------------------------------------------------------ writing


def create(dataset: Dataset) -> str:
    columns = ", ".join(f'"{n}" {TYPES[t]}{" NOT NULL" if n in _OWN else ""}' for n, t in dataset.types.items())
    return f'CREATE TABLE IF NOT EXISTS "{dataset.name}" ({columns}, PRIMARY KEY (source, seq))'


def insert(dataset: Dataset) -> str:
    """Stores a JSON list of rows, given as the one parameter; a row that is there already is left as it is."""
    names = ", ".join(f'"{n}"' for n in dataset.types)
    shape = msgspec.json.encode([{n: TYPES[t] for n, t in dataset.types.items()}]).decode()
    # The lenient reading, since a row leaves out what it does not have; `batch` has checked every type.
    rows = f"SELECT unnest(from_json(CAST(? AS JSON), '{shape}'), recursive := true)"
    return f'INSERT INTO "{dataset.name}" ({names}) SELECT {names} FROM ({rows}) ON CONFLICT DO NOTHING'


class Batch(NamedTuple):
    """Facts of one dataset as they go to the ledger."""

    rows: bytes
    """A JSON list of rows."""
    highest: dict[str, int]
    """Source to the highest seq in it."""


def batch(dataset: Dataset, facts: Iterable[Mapping[str, Any]]) -> Batch:
    """Check and encode facts. Raises Invalid with every fact that does not fit (the first 20 of them)."""
    rows: list[dict[str, Any]] = []
    highest: dict[str, int] = {}
    problems: list[Problem] = []
    for index, fact in enumerate(facts):
        found = len(problems)
        row = _row(dataset, fact, f"{dataset.name}.{index}", problems)
        if len(problems) == found:
            rows.append(row)
            highest[row["source"]] = max(row["seq"], highest.get(row["source"], 0))
        elif len(problems) >= 20:
            break
    if not problems:
        try:
            return Batch(msgspec.json.encode(rows, enc_hook=str), highest)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            problems.append(Problem(f"cannot be written as JSON: {error}", dataset.name))
    raise Invalid(problems=tuple(problems))


def _row(dataset: Dataset, fact: Mapping[str, Any], path: str, problems: list[Problem]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    columns = dataset.columns
    for name, value in fact.items():
        type_ = columns.get(name) or _OWN.get(name)
        if type_ is not None:
            if value is not None:
                row[name] = _value(type_, value, f"{path}.{name}", problems)
        elif name == "data" and isinstance(value, Mapping):
            rest.update(value)
        elif name != "dataset":
            rest[name] = value
    problems.extend(
        Problem(f"{name} is missing", path, remedy="add it") for name in _OWN if row.get(name) in (None, "")
    )
    if rest:
        row["data"] = rest
    return row


def _value(type_: str, value: Any, path: str, problems: list[Problem]) -> Any:
    """The value as the column takes it; a problem is added when it does not fit."""
    match type_:
        case "text":
            fits = isinstance(value, str)
        case "int":
            fits = type(value) is int and -(1 << 63) <= value < 1 << 63
        case "float":
            fits = type(value) in (int, float) and math.isfinite(value)
        case "bool":
            fits = isinstance(value, bool)
        case "time":
            moment = stamp(value)
            fits = moment is not None
            value = moment if fits else value
        case _:
            fits = True
    if not fits:
        problems.append(Problem(f"expected {type_}, found {type(value).__name__}", path))
    return value


def stamp(value: Any) -> str | None:
    """RFC 3339 or seconds since the epoch as UTC without a zone, which is how DuckDB stores it; None when neither."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        elif type(value) in (int, float):
            moment = datetime.fromtimestamp(value, UTC)
        else:
            return None
        return moment.replace(tzinfo=None).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


# ------------------------------------------------------------------------------------------------ asking


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A question. Without `group` and `measure` the facts themselves, newest first."""

    dataset: str
    from_: str | float = ""
    """RFC 3339 or seconds since the epoch, inclusive; empty: from the first."""
    to: str | float = ""
    """The same, exclusive; empty: to the last."""
    where: dict[str, Any] = {}
    """Field to the value it has, or a list of them; null: it has none."""
    group: list[str] = []
    """Fields; `time:minute|hour|day|week|month` rounds a time down."""
    measure: list[str] = []
    """`count`, `sum:field`, `min:field`, `max:field`, `avg:field`; with a group and no measure, `count`."""
    limit: int = 1000
    """Most rows of the answer."""
    timeout: float = 10.0
    """Seconds."""


msgspec.json.Decoder(Query)  # described on the thread that imports: see ports/processes.py


def parse(body: Any) -> Query:
    """A Query from what the API was sent. Raises Invalid."""
    try:
        return msgspec.convert(body, Query)
    except msgspec.ValidationError as error:
        raise Invalid(f"the query is wrong: {error}") from None


class Statement(NamedTuple):
    """SQL with its parameters; `json` are the positions of columns that hold JSON text."""

    sql: str
    parameters: list[Any]
    columns: list[str]
    json: list[int]


def select(dataset: Dataset, query: Query) -> Statement:
    """The statement for a query. Raises Invalid with everything that is wrong in it."""
    return _Builder(dataset, query).build()


class _Builder:
    def __init__(self, dataset: Dataset, query: Query) -> None:
        self.dataset, self.query = dataset, query
        self.types = dataset.types
        self.problems: list[Problem] = []
        self.parameters: list[Any] = []

    def build(self) -> Statement:
        query = self.query
        measures = query.measure or (["count"] if query.group else [])
        if query.group or measures:
            columns = [*query.group, *measures]
            shown = [self.group(f, i) for i, f in enumerate(query.group)]
            shown += [self.measure(m, i) for i, m in enumerate(measures)]
            ordinals = ", ".join(str(n + 1) for n in range(len(query.group)))
            tail = f" GROUP BY {ordinals} ORDER BY {ordinals}" if ordinals else ""
            json: list[int] = []
        else:
            columns = list(self.types)
            shown = [_shown(f'"{name}"', type_) for name, type_ in self.types.items()]
            tail = ' ORDER BY "time" DESC, "seq" DESC'
            json = [i for i, type_ in enumerate(self.types.values()) if type_ == "json"]
        tests = [*self.period(), *(self.test(f, v) for f, v in query.where.items())]
        self.bounds()
        if self.problems:
            raise Invalid(problems=tuple(self.problems))
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        sql = f'SELECT {", ".join(shown)} FROM "{self.dataset.name}"{where}{tail} LIMIT {query.limit}'
        return Statement(sql, self.parameters, columns, json)

    def wrong(self, message: str, path: str, remedy: str = "") -> str:
        self.problems.append(Problem(message, path, remedy=remedy))
        return "NULL"

    def bounds(self) -> None:
        if not 1 <= self.query.limit <= MAX_ROWS:
            self.wrong(f"limit is {self.query.limit}", "limit", f"1 to {MAX_ROWS}")
        if not 0 < self.query.timeout <= MAX_SECONDS:
            self.wrong(f"timeout is {self.query.timeout}", "timeout", f"up to {MAX_SECONDS:g} seconds")

    def field(self, name: str, path: str) -> tuple[str, str]:
        """(expression, type) of a field; text for what lies in `data`."""
        if name in self.types and name != "data":
            return f'"{name}"', self.types[name]
        if found := _DATA.fullmatch(name):
            self.parameters.append("$" + "".join(f'."{part}"' for part in found[1][1:].split(".")))
            return 'json_extract_string("data", ?)', "data"
        known = [n for n in self.types if n != "data"]
        remedy = did_you_mean(name, known).strip(" ;") or f"known: {', '.join(known)}, data.<name>"
        return self.wrong(f"{self.dataset.name} has no field {name!r}", path, remedy), ""

    def group(self, name: str, index: int) -> str:
        path = f"group.{index}"
        if found := _BUCKET.fullmatch(name):
            expression, type_ = self.field(found[1], path)
            if type_ not in ("time", ""):
                return self.wrong(f"{found[1]} is no time", path)
            return _shown(f"date_trunc('{found[2]}', {expression})", "time")
        expression, type_ = self.field(name, path)
        return _shown(expression, type_)

    def measure(self, name: str, index: int) -> str:
        path = f"measure.{index}"
        if name == "count":
            return "count(*)"
        function, _, field = name.partition(":")
        if function not in ("sum", "min", "max", "avg") or not field:
            return self.wrong(f"unknown measure {name!r}", path, "count, sum:field, min:field, max:field or avg:field")
        expression, type_ = self.field(field, path)
        if type_ == "data":
            expression = f"TRY_CAST({expression} AS DOUBLE)"
        elif type_ in ("json", "bool") or (function in ("sum", "avg") and type_ not in ("int", "float", "")):
            return self.wrong(f"{field} is {type_} and has no {function}", path)
        return _shown(f"{function}({expression})", type_)

    def period(self) -> Iterable[str]:
        for name, value, operator in (("from", self.query.from_, ">="), ("to", self.query.to, "<")):
            if value != "":
                moment = stamp(value)
                if moment is None:
                    self.wrong(f"{name} is no time", name, "write 2026-01-31T12:00:00Z")
                self.parameters.append(moment)
                yield f'"time" {operator} CAST(? AS TIMESTAMP)'

    def test(self, name: str, value: Any) -> str:
        path = f"where.{name}"
        values = value if isinstance(value, list) else [value]
        if len(values) > MAX_VALUES:
            return self.wrong(f"{len(values)} values", path, f"up to {MAX_VALUES}")
        if not values:
            return "false"
        if all(v is None for v in values):
            return f"{self.field(name, path)[0]} IS NULL"
        expression, type_ = self.field(name, path)
        if type_ == "json":
            return self.wrong(f"{name} is JSON and is not compared", path)
        given: list[Any] = [v for v in values if v is not None]
        if type_ == "data":
            given = [v if isinstance(v, str) else msgspec.json.encode(v, enc_hook=str).decode() for v in given]
        elif type_:
            given = [_value(type_, v, path, self.problems) for v in given]
        self.parameters.extend(given)
        marks = ", ".join(f"CAST(? AS {TYPES.get(type_, 'VARCHAR')})" for _ in given)
        found = f"{expression} IN ({marks})"
        if len(given) == len(values):
            return found
        return f"({found} OR {self.field(name, path)[0]} IS NULL)"


def _shown(expression: str, type_: str) -> str:
    return f"strftime({expression}, '%Y-%m-%dT%H:%M:%S.%gZ')" if type_ == "time" else expression


# ------------------------------------------------------------------------------------------------ months and ages

_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


def months(dataset: Dataset) -> str:
    return f"""SELECT DISTINCT strftime("time", '%Y-%m') FROM "{dataset.name}" ORDER BY 1"""


def month(dataset: Dataset, text: str) -> tuple[str, list[str]]:
    """The facts of a month `2026-01`, in the order they are exported. Raises Invalid."""
    found = _MONTH.fullmatch(text)
    if not found or not 1 <= int(found[1]) <= 9998:
        raise Invalid(f"{text!r} is no month; write 2026-01")
    year, number = int(found[1]), int(found[2])
    after = f"{year + number // 12:04}-{number % 12 + 1:02}-01"
    sql = f'SELECT * FROM "{dataset.name}" WHERE "time" >= CAST(? AS TIMESTAMP) AND "time" < CAST(? AS TIMESTAMP)'
    return f'{sql} ORDER BY "time", source, seq', [f"{text}-01", after]


def quoted(text: str) -> str:
    """A text literal."""
    return "'" + text.replace("'", "''") + "'"


def drop_before(dataset: Dataset) -> str:
    return f'DELETE FROM "{dataset.name}" WHERE "time" < CAST(? AS TIMESTAMP)'


def missing_columns(dataset: Dataset, present: Sequence[tuple[str, str]]) -> list[str]:
    """The statements that bring a table up to its declaration. Raises Invalid when a column has another type."""
    stored = {name.lower(): type_ for name, type_ in present}
    out: list[str] = []
    for name, type_ in dataset.types.items():
        if name.lower() not in stored:
            out.append(f'ALTER TABLE "{dataset.name}" ADD COLUMN "{name}" {TYPES[type_]}')
        elif stored[name.lower()] != TYPES[type_]:
            message = f"dataset {dataset.name}: column {name} is stored as {stored[name.lower()]}, declared {type_}"
            raise Invalid(f"{message}; give the new one another name")
    return out
