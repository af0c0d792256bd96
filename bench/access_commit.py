"""Thousands of Roles, Namespaces, Accounts and RoleBindings in one commit, each judged before it is written."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

from groundcontrol.kernel.access import KINDS, Access
from groundcontrol.kernel.resource import Doc, Key, Kinds
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Store

READS = {"rules": [{"kinds": ["Namespace"], "verbs": ["get"]}]}
SPECS: dict[str, Callable[[int], Doc]] = {
    "Role": lambda n: READS,
    "Namespace": lambda n: {"group": f"experiments/e{n % 500}"},
    "Account": lambda n: {"groups": [f"experiments/e{n % 500}"]},
    "RoleBinding": lambda n: {"role": "viewer", "subjects": [f"user:u{n}"], "selector": {"groups": ["experiments/e1"]}},
}
WHO = {"everywhere": {}, "in-groups": {"selector": {"groups": ["experiments/**"]}}}
"""Where the one who writes holds the role `admin`, beside what lets him write at all."""


def document(kinds: Kinds, kind: str, name: str, spec: Doc) -> Doc:
    return kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def filled(directory: str, where: Doc) -> tuple[Store, Access]:
    store = Store(f"sqlite:///{directory}/ground.db", Kinds(list(KINDS))).open()
    decides = {"rules": [{"kinds": list(SPECS), "verbs": ["*"]}]}

    def begin(tx: Any) -> None:
        tx.create(document(store.kinds, "Account", "me", {"groups": []}))
        tx.create(document(store.kinds, "Role", "decides", decides))
        for name, role, selector in (("writes", "decides", {}), ("holds", "admin", where.get("selector", {}))):
            spec = {"role": role, "subjects": ["user:me"], "selector": selector}
            tx.create(document(store.kinds, "RoleBinding", name, spec))

    store.write(begin)
    return store, Access(store)


def one_commit(kind: str, count: int, who: str) -> float:
    """Seconds for `count` of a kind in one commit, as a Source writes them."""
    with tempfile.TemporaryDirectory() as directory:
        store, access = filled(directory, WHO[who])
        subject = Subject.user("me")
        docs = [document(store.kinds, kind, f"x{n}", SPECS[kind](n)) for n in range(count)]

        def write(tx: Any, doc: Doc) -> None:
            key = Key(kind, "", doc["metadata"]["name"])
            access.admit(tx, subject, "create", key, None, doc)
            tx.create(doc)

        def act(tx: Any) -> None:
            for doc in docs:
                tx.attempt(lambda tx, doc=doc: write(tx, doc))

        began = time.perf_counter()
        store.write(act, timeout=3600.0)
        took = time.perf_counter() - began
        access.close()
        store.close()
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--kinds", default=",".join(SPECS))
    options = parser.parse_args()
    for kind in options.kinds.split(","):
        for who in WHO:
            half, whole = (one_commit(kind, n, who) for n in (options.count // 2, options.count))
            told = {"workload": "access_commit", "kind": kind, "rights": who, "count": options.count}
            # Twice as many should take twice as long; four times is what a square costs.
            print(
                json.dumps(
                    {**told, "seconds": round(whole, 2), "ofHalf": round(half, 2), "ratio": round(whole / half, 1)}
                )
            )


if __name__ == "__main__":
    main()
