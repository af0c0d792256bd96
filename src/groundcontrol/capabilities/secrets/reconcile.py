"""Seals what people set, and drops it; looks what a vault has, without its values.

A sealed secret is as it was set, and there is nothing to reconcile. Its rows belong to the secret's uid, so that a
secret made anew under an old name has none of the old values; what a deleted secret leaves is swept by housekeeping.
A secret in the vault is looked at now and then, for its status only: who uses it reads it when it is used.
"""

from __future__ import annotations

from typing import Any

from groundcontrol.capabilities.secrets.kinds import Secret, SecretKey, SecretStatus
from groundcontrol.capabilities.secrets.logic import checked_key, nameable, with_key, without_key
from groundcontrol.kernel.errors import Invalid, NotFound, Problem, SecretUnavailable
from groundcontrol.kernel.plan import STORE, Plan
from groundcontrol.kernel.reconcile import Answer, Look, Reconciler, Report, conditions
from groundcontrol.kernel.resource import Doc, Key, now
from groundcontrol.kernel.tx import Tx
from groundcontrol.ports.secretstore import SecretStore

MAX_VALUE = 64 * 1024
"""Characters of one value."""


class SecretReconciler(Reconciler[Secret]):
    """Says whether a secret of the vault is there, in which version and with which keys. Changes nothing."""

    name = "secrets"
    kind = Secret

    def __init__(self, outside: SecretStore | None, every: float) -> None:
        self._outside, self._every = outside, every

    def shard(self, resource: Secret) -> str:
        """A shard of its own: a vault that is slow holds up only those who look at it."""
        return "secrets/vault" if resource.spec.store == "vault" else STORE

    def plan(self, resource: Secret, look: Look) -> Plan:
        return Plan()

    def report(self, resource: Secret, plan: Plan, look: Look) -> Report:
        if resource.spec.store != "vault" or resource.deleting:
            return Report(None)
        status = SecretStatus.model_validate(resource.status.model_dump())
        events: tuple[tuple[str, str, bool], ...] = ()
        if self._outside is None:
            ready = Answer(
                "False", "NoVault", "it is to be kept in a vault, and secrets.vault of the settings names none"
            )
            status.keys, status.place, status.version, status.version_at = [], "", 0, ""
        else:
            ready, events = self._look(self._outside, resource, status)
        status.conditions = conditions(Ready=ready)
        return Report(status, again=self._every, events=events)

    @staticmethod
    def _look(
        outside: SecretStore, resource: Secret, status: SecretStatus
    ) -> tuple[Answer, tuple[tuple[str, str, bool], ...]]:
        """What is so, and what happened; fills the status. What is not known leaves what was seen."""
        namespace, name = resource.metadata.namespace, resource.metadata.name
        status.place = outside.place(namespace, name)
        try:
            found = outside.look(namespace, name)
        except SecretUnavailable as error:
            return Answer("Unknown", error.why, error.message), ()
        except NotFound as error:
            status.keys, status.version, status.version_at = [], 0, ""
            return Answer("False", "NotFound", error.message), ()
        keys, words = nameable(found.keys)
        before, status.version, status.version_at = status.version, found.version, found.created
        status.keys = [SecretKey(name=key) for key in keys]
        events: tuple[tuple[str, str, bool], ...] = ()
        if before and before != found.version:
            told = f"version {found.version} is there, {before} was; services get it when they are next started"
            events = (("NewVersion", told, False),)
        return Answer("True", "InVault", words or f"it is at {status.place}"), events


def _kept_here(doc: Doc) -> None:
    if doc["spec"].get("store", "sealed") != "sealed":
        where = (doc.get("status") or {}).get("place") or "the path its status names"
        message = f"{doc['metadata']['name']} is kept in the vault, at {where}"
        raise Invalid(problems=(Problem(message, remedy="change it there, for example with `bao kv patch`"),))


def set_key(runtime: Any, subject: Any, key: Key, body: dict[str, Any]) -> dict[str, Any]:
    """Set one value, or replace it: `{"key", "value"}`. Services see it when they are next started."""
    name, value = checked_key(body), body.get("value")
    if not isinstance(value, str) or not value or len(value) > MAX_VALUE:
        raise Invalid(problems=(Problem(f"give the value as text of 1 to {MAX_VALUE} characters", "value"),))

    def act(tx: Tx) -> None:
        runtime.access.require_in(tx, subject, "set", "Secret", namespace=key.namespace, name=key.name)
        doc = tx.need(key)
        _kept_here(doc)
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
        _kept_here(doc)
        uid = doc["metadata"]["uid"]
        if not runtime.vault.drop(tx, key.namespace, f"{key.name}@{uid}", name):
            raise NotFound(f"{key} has no key {name}")
        tx.set_status(key, uid, {**doc["status"], "keys": without_key(doc["status"].get("keys", []), name)})
        tx.audit(subject.name, "unset", key, value_of=name)
        tx.event(key, uid, "Unset", f"{name} was dropped by {subject.name}")

    runtime.store.write(act)
    return {"unset": f"secret:{key.name}/{name}"}
