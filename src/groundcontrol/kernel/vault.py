"""Who may have which secret, and where it lies: rows of the table `sealed` opened only to be used, or a server outside.

Nothing of this is Vault or OpenBao; those are a driver, and come in here as `outside`.
"""

from __future__ import annotations

import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import NotFound
from groundcontrol.kernel.resource import Key
from groundcontrol.kernel.secrets import Lookup, Resolver, Sealed, Secret
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx

_s = tables.sealed
SEALED = "sealed"
"""`spec.store` of a Secret whose values are kept here."""


class Vault:
    """The secrets of all namespaces. `named` are those the operator's settings grant to the platform; `outside` reads
    those that are not kept here."""

    def __init__(
        self, store: Store, sealed: Sealed, platform: str, named: dict[str, str], outside: Lookup | None = None
    ) -> None:
        self._store, self._sealed, self._platform, self._named = store, sealed, platform, named
        self._outside = outside

    def reveal(self, namespace: str, reference: str) -> str:
        """The value of a reference in a resource of that namespace."""
        return Resolver(namespace, self._lookup).resolve(reference).reveal()

    def _lookup(self, namespace: str, name: str, key: str) -> Secret:
        if namespace == self._platform and f"{name}/{key}" in self._named:
            return Resolver(None).resolve(self._named[f"{name}/{key}"])
        entry = self._store.entry(Key("Secret", namespace, name))
        if entry and entry.doc["spec"].get("store", SEALED) != SEALED:
            if self._outside is None:
                raise NotFound(f"secret {name} is kept in a vault, and secrets.vault of the settings names none")
            return self._outside(namespace, name, key)
        # A Secret's rows carry its uid; those the operator put in by hand carry the name alone.
        for row_name in ([f"{name}@{entry.uid}"] if entry else []) + [name]:
            with self._store.reading() as conn:
                where = (_s.c.namespace == namespace, _s.c.name == row_name, _s.c.key == key)
                row = conn.execute(sa.select(_s.c.ciphertext).where(*where)).first()
            if row is not None:
                return self._sealed.unseal(namespace, row_name, key, bytes(row.ciphertext).decode())
        raise NotFound(f"no secret {name}/{key} is granted to namespace {namespace}; `ground act set secret` sets one")

    def put(self, tx: Tx, namespace: str, name: str, key: str, value: str) -> None:
        """Seal a value, or replace it."""
        self.drop(tx, namespace, name, key)
        ciphertext = self._sealed.seal(namespace, name, key, value).encode()
        tx.conn.execute(sa.insert(_s).values(namespace=namespace, name=name, key=key, ciphertext=ciphertext))

    def drop(self, tx: Tx, namespace: str, name: str, key: str) -> bool:
        """Forget a value; False when there was none."""
        where = (_s.c.namespace == namespace, _s.c.name == name, _s.c.key == key)
        return bool(tx.conn.execute(sa.delete(_s).where(*where)).rowcount)

    def sweep(self, tx: Tx) -> None:
        """Forget what deleted Secrets left."""
        for row in tx.conn.execute(sa.select(_s.c.name).distinct()).all():
            _, at, uid = row.name.partition("@")
            if at and self._store.by_uid(uid) is None:
                tx.conn.execute(sa.delete(_s).where(_s.c.name == row.name))
