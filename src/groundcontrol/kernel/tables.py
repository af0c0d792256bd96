"""The tables of the store, the same on SQLite and PostgreSQL. Documents are JSON text, passed through raw."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint

metadata = MetaData()

_Key = String(255)
_Seq = BigInteger().with_variant(Integer, "sqlite")

meta = Table("meta", metadata, Column("key", _Key, primary_key=True), Column("value", String, nullable=False))
"""`sequence` (last event number), `installation`, `incarnation`, `shipped` (last fact in the ledger)."""

resources = Table(
    "resources",
    metadata,
    Column("uid", _Key, primary_key=True),
    Column("kind", _Key, nullable=False),
    Column("namespace", _Key, nullable=False),
    Column("name", _Key, nullable=False),
    Column("seq", _Seq, nullable=False),
    Column("doc", LargeBinary, nullable=False),
    UniqueConstraint("kind", "namespace", "name"),
)

events = Table(
    "events",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=False),
    Column("type", String(16), nullable=False),
    Column("kind", _Key, nullable=False),
    Column("namespace", _Key, nullable=False),
    Column("name", _Key, nullable=False),
    Column("doc", LargeBinary, nullable=False),
)
"""Every change of a resource, numbered without gaps: what watchers resume from. Old ones are dropped."""

facts = Table(
    "facts",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=False),
    Column("dataset", String(32), nullable=False),
    Column("time", Float, nullable=False),
    Column("kind", _Key, nullable=False),
    Column("namespace", _Key, nullable=False),
    Column("name", _Key, nullable=False),
    Column("subject", _Key, nullable=False),
    Column("doc", LargeBinary, nullable=False),
    Index("facts_by_dataset", "dataset", "seq"),
    Index("facts_by_resource", "kind", "namespace", "name", "seq"),
)
"""Audit, timeline and Run journal, written with the act they speak of; the outbox of the ledger, dropped when shipped
and old."""

claims = Table(
    "claims",
    metadata,
    Column("driver", _Key, primary_key=True),
    Column("type", _Key, primary_key=True),
    Column("id", _Key, primary_key=True),
    Column("field", _Key, primary_key=True),
    Column("owner", _Key, nullable=False),
    Column("owner_uid", _Key, nullable=False),
    Column("since", Float, nullable=False),
    Index("claims_by_owner", "owner_uid"),
)

intents = Table(
    "intents",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("driver", _Key, nullable=False),
    Column("type", _Key, nullable=False),
    Column("id", _Key, nullable=False),
    Column("verb", String(32), nullable=False),
    Column("owner", _Key, nullable=False),
    Column("owner_uid", _Key, nullable=False),
    Column("epoch", _Seq, nullable=False),
    Column("opened", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Index("intents_by_owner", "owner_uid"),
)
"""Calls that may be under way: `open` while one is, `unknown` when it ended without an answer."""

held = Table(
    "held",
    metadata,
    Column("owner_uid", _Key, primary_key=True),
    Column("digest", _Key, primary_key=True),
    Column("scope", _Key, nullable=False),
    Column("owner", _Key, nullable=False),
    Column("change", LargeBinary, nullable=False),
    Column("reason", String, nullable=False),
    Column("since", Float, nullable=False),
    Index("held_by_scope", "scope"),
)
"""Changes that wait for a person, as their owner last planned them."""

approvals = Table(
    "approvals",
    metadata,
    Column("id", _Key, primary_key=True),
    Column("scope", _Key, nullable=False),
    Column("digests", LargeBinary, nullable=False),
    Column("verb", String(32), nullable=False),
    Column("remaining", Integer, nullable=False),
    Column("until", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("subject", _Key, nullable=False),
    Column("reason", String, nullable=False),
    Column("at", Float, nullable=False),
    Index("approvals_by_scope", "scope"),
)
"""What people answered: `digests` (a JSON list of change digests) or a bound of `remaining` changes of `verb`."""

spent = Table(
    "spent",
    metadata,
    Column("scope", _Key, primary_key=True),
    Column("digest", _Key, primary_key=True),
    Column("owner_uid", _Key, primary_key=True),
    Column("weight", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Index("spent_by_time", "at"),
    Index("spent_by_owner", "owner_uid"),
)
"""Destructive changes that passed a limit, per scope: the rolling windows. Those about to be judged are counted here
too, in scopes that begin with `gathering:`."""

holds = Table(
    "holds",
    metadata,
    Column("owner_uid", _Key, primary_key=True),
    Column("path", _Key, primary_key=True),
    Column("owner", _Key, nullable=False),
    Column("run", _Key, nullable=False),
    Column("until", Float, nullable=False),
)
"""Fields on which a Run has its hands, until a time."""

journal = Table(
    "journal",
    metadata,
    Column("run_uid", _Key, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("step", _Key, nullable=False),
    Column("state", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("epoch", _Seq, nullable=False),
    Column("doc", LargeBinary, nullable=False),
)
"""Every turn a Run took, in order. `step` is empty for the Run as a whole; `kernel/run_journal.py` has the states."""

leases = Table(
    "leases",
    metadata,
    Column("shard", _Key, primary_key=True),
    Column("holder", _Key, nullable=False),
    Column("epoch", _Seq, nullable=False),
    Column("expires", Float, nullable=False),
)

credentials = Table(
    "credentials",
    metadata,
    Column("subject", _Key, primary_key=True),
    Column("hash", String, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", _Key, primary_key=True),
    Column("hash", _Key, nullable=False, unique=True),
    Column("subject", _Key, nullable=False),
    Column("scope", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("description", String, nullable=False),
)

sealed = Table(
    "sealed",
    metadata,
    Column("namespace", _Key, primary_key=True),
    Column("name", _Key, primary_key=True),
    Column("key", _Key, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
)
