"""Seals what people set, and drops it. There is nothing to reconcile: a secret is as it was set.

Rows belong to the secret's uid, so that a secret made anew under an old name has none of the old values; what a
deleted secret leaves is swept by housekeeping.
"""

from __future__ import annotations

from typing import Any

from groundcontrol.capabilities.secrets.logic import checked_key, with_key, without_key
from groundcontrol.kernel.errors import Invalid, NotFound, Problem
from groundcontrol.kernel.resource import Key, now
from groundcontrol.kernel.tx import Tx

MAX_VALUE = 64 * 1024
"""Characters of one value."""


def set_key(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Set one value, or replace it: `{"key", "value"}`. Services see it when they are next started."""
    name, value = checked_key(body), body.get("value")
    if not isinstance(value, str) or not value or len(value) > MAX_VALUE:
        raise Invalid(problems=(Problem(f"give the value as text of 1 to {MAX_VALUE} characters", "value"),))

    def act(tx: Tx) -> None:
        runtime.access.require_in(tx, subject, "set", "Secret", namespace=key.namespace, name=key.name)
        doc = tx.need(key)
        uid = doc["metadata"]["uid"]
        runtime.vault.put(tx, key.namespace, f"{key.name}@{uid}", name, value)
        keys = with_key(doc["status"].get("keys", []), name, now(tx.time), subject.name)
        tx.set_status(key, uid, {**doc["status"], "keys": keys})
        tx.audit(subject.name, "set", key, value_of=name)
        tx.event(key, uid, "Set", f"{name} was set by {subject.name}")

    runtime.store.write(act)
    return {"set": f"secret:{key.name}/{name}"}


def unset_key(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Drop one value: `{"key"}`."""
    name = checked_key(body)

    def act(tx: Tx) -> None:
        runtime.access.require_in(tx, subject, "unset", "Secret", namespace=key.namespace, name=key.name)
        doc = tx.need(key)
        uid = doc["metadata"]["uid"]
        if not runtime.vault.drop(tx, key.namespace, f"{key.name}@{uid}", name):
            raise NotFound(f"{key} has no key {name}")
        tx.set_status(key, uid, {**doc["status"], "keys": without_key(doc["status"].get("keys", []), name)})
        tx.audit(subject.name, "unset", key, value_of=name)
        tx.event(key, uid, "Unset", f"{name} was dropped by {subject.name}")

    runtime.store.write(act)
    return {"unset": f"secret:{key.name}/{name}"}
