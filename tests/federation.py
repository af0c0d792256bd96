"""A whole installation on twins, for capabilities and stories: real store and loop, sites and git in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundcontrol.assembly import CAPABILITIES
from groundcontrol.kernel.accounts import ensure_admin
from groundcontrol.kernel.resource import Doc, Key, condition
from groundcontrol.kernel.runtime import Connect, Runtime
from groundcontrol.kernel.settings import Settings
from groundcontrol.ports.cloud import CloudInstance
from groundcontrol.ports.hosts import HostInstance
from groundcontrol.ports.processes import UnitObserved
from groundcontrol.ports.secretstore import SecretStore
from groundcontrol.ports.twins.cloud import MemoryCloud
from groundcontrol.ports.twins.processes import MemoryHost
from groundcontrol.ports.twins.repository import TwinRepositories
from groundcontrol.ports.twins.web import MemoryWeb

PATIENCE = 60.0
"""Seconds a test waits for what must come; a bound against hanging, not a measure."""


class Federation:
    """An installation whose sites are `MemoryHost`s and whose repositories are in memory."""

    def __init__(self, data: Path, secret_store: SecretStore | None = None, **settings: Any) -> None:
        observe = {"wait_seconds": 0.5, "stale_after_seconds": 1.0, "vanished_share": 0.5}
        loop = {"backoff_first_seconds": 0.05, "backoff_max_seconds": 0.5}
        given = {"ledger": {"enabled": False}, "observe": observe, "loop": loop} | settings
        self.settings = Settings.model_validate({"data": str(data), **given})
        self.hosts: dict[str, MemoryHost] = {}
        self.clouds: dict[str, MemoryCloud] = {}
        self.drivers: dict[str, Connect] = {"memory": self._connect, "memory-cloud": self._connect_cloud}
        """A test may put another one in."""
        self.repositories = TwinRepositories()
        self.secret_store = secret_store
        self.web = MemoryWeb()
        self.runtime = self._build()

    def _build(self) -> Runtime:
        repositories, store = (lambda _: self.repositories), (lambda _: self.secret_store)
        return Runtime(self.settings, CAPABILITIES, self.drivers, repositories, store, lambda _: self.web)

    def _connect(self, name: str, *_: Any) -> HostInstance:
        return HostInstance(self.host(name))

    def host(self, name: str) -> MemoryHost:
        """The host behind a site; it outlives the installation's restarts."""
        return self.hosts.setdefault(name, MemoryHost())

    def _connect_cloud(self, name: str, *_: Any) -> CloudInstance:
        return CloudInstance(self.cloud(name))

    def cloud(self, name: str) -> MemoryCloud:
        """The cloud behind a site with the driver `memory-cloud`; it outlives the installation's restarts, too."""
        return self.clouds.setdefault(name, MemoryCloud())

    def open(self) -> Federation:
        """With one person, ada, who may do everything."""
        self.runtime.open()
        ensure_admin(self.runtime.store, "ada", "long enough", work=4)
        return self

    def restart(self) -> None:
        """Stop in order and start again on the same store and hosts."""
        self.runtime.close()
        self.runtime = self._build()
        self.runtime.open()

    def close(self) -> None:
        self.runtime.close()

    # ── resources ───────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, kind: str, name: str, spec: Doc, namespace: str = "", **meta: Any) -> Doc:
        """Create it, or replace its spec, as a person would."""
        doc = self.runtime.kinds.parse(
            {
                "apiVersion": "ground/v1",
                "kind": kind,
                "metadata": {"name": name, **({"namespace": namespace} if namespace else {}), **meta},
                "spec": spec,
            }
        )
        key = Key(kind, namespace, name)

        def act(tx: Any) -> Doc:
            return tx.create(doc, "user:ada") if tx.get(key) is None else tx.replace(doc, "user:ada").doc

        return self.runtime.store.write(act)

    def sites(self, *names: str, **spec: Any) -> None:
        """Sites with the in-memory driver, once they answer; and the namespace alpha."""
        if self.get("Namespace", "alpha") is None:
            self.apply("Namespace", "alpha", {"group": "experiments/alpha"})
        for name in names:
            self.apply("Site", name, {"driver": "memory", **spec})
        for name in names:
            self.until_ready("Site", name)

    def service(self, name: str, **spec: Any) -> None:
        given = {"sample": "web", "ports": {"http": 80}, "health": {"kind": "http"}} | spec
        self.apply("Service", name, given, "alpha")

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        self.runtime.store.write(lambda tx: tx.delete(Key(kind, namespace, name)))

    def get(self, kind: str, name: str, namespace: str = "") -> Doc | None:
        return self.runtime.store.get(Key(kind, namespace, name))

    def all(self, kind: str) -> list[Doc]:
        return [e.doc for e in self.runtime.store.entries(kind)]

    def ready(self, kind: str, name: str, namespace: str = "", type_: str = "Ready") -> tuple[str, str]:
        """(status, reason) of a condition; ("", "") when the resource is not there."""
        doc = self.get(kind, name, namespace)
        if doc is None:
            return "", ""
        found = condition(doc, type_)
        current = doc["status"].get("observedGeneration") == doc["metadata"]["generation"]
        return (found["status"], found["reason"]) if current else ("Unknown", "Outdated")

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def until(self, holds: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
        """Wait until `holds()` is true and return it; tell what is there when it never is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := holds():
                return found
            time.sleep(0.01)
        raise AssertionError(f"never: {what or holds}\n{self.told()}")

    def until_ready(self, kind: str, name: str, namespace: str = "", status: str = "True") -> None:
        self.until(lambda: self.ready(kind, name, namespace)[0] == status, f"{kind} {name} Ready={status}")

    def settled(self, quiet: float = 0.3, seconds: float = PATIENCE) -> None:
        """Wait until nothing happened for a while: for tests that nothing more happens."""
        deadline, since, last = time.monotonic() + seconds, time.monotonic(), -1
        while time.monotonic() < deadline:
            if self.runtime.store.sequence != last:
                last, since = self.runtime.store.sequence, time.monotonic()
            if time.monotonic() - since > quiet:
                return
            time.sleep(0.01)
        raise AssertionError(f"it never came to rest\n{self.told()}")

    def told(self) -> str:
        """Everything with its Ready, for a failed test."""
        lines = []
        for kind in self.runtime.kinds:
            for doc in self.all(kind.__name__):
                ready = condition(doc, "Ready")
                lines.append(f"{doc['kind']} {doc['metadata']['name']}: {ready['status']} {ready['message']}")
        return "\n".join(lines)

    # ── the world ───────────────────────────────────────────────────────────────────────────────────────────────

    def units(self, *sites: str) -> list[UnitObserved]:
        """What is at the hosts, by direct look."""
        return [u for name in sites or tuple(self.hosts) for u in self.hosts[name].look().units]

    def hosts_unit(self, unit_id: str) -> UnitObserved:
        """One unit, wherever it is."""
        return next(u for u in self.units() if u.id == unit_id)

    def instances(self, service: str) -> list[Doc]:
        return [d for d in self.all("Instance") if d["spec"]["service"] == service]

    def events(self, reason: str) -> list[Doc]:
        """Timeline entries with that reason, oldest first."""
        return [f for f in self.runtime._pull(0, 10_000) if f["dataset"] == "events" and f["reason"] == reason]


@contextmanager
def federation(data: Path, **settings: Any) -> Iterator[Federation]:
    """An open installation for the length of a test."""
    found = Federation(data, **settings).open()
    try:
        yield found
    finally:
        found.close()
