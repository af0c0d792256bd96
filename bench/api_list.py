"""W15, first half: list 100 of 100,000 resources through the API, and how many watch events a CPU-second carries.

The server is a process of its own under uvicorn; what it spends is read from the kernel's accounting, so that the
clients beside it do not count. `python -m bench.api_list [--resources N] [--clients N] [--changes N]`
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn

from groundcontrol.capabilities.services.kinds import Service
from groundcontrol.interfaces.api.app import create_app
from groundcontrol.interfaces.api.backend import Backend
from groundcontrol.kernel.access import KINDS, Access
from groundcontrol.kernel.accounts import Accounts, ensure_admin
from groundcontrol.kernel.resource import API_VERSION, Doc, Key, Kinds
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx

NAMESPACES = 100
MEMBERS = 10
"""People who watch; one person may have 50 watches."""


def made(kinds: Kinds, store: Store, count: int) -> None:
    """`count` services of about 2 KB in 100 namespaces, one of which belongs to a member."""

    def parsed(kind: str, name: str, namespace: str = "", **spec: Any) -> Doc:
        meta = {"name": name, "namespace": namespace, "labels": {"tier": "test"}}
        return kinds.parse({"apiVersion": API_VERSION, "kind": kind, "metadata": meta, "spec": spec})

    def places(tx: Tx) -> None:
        for number in range(NAMESPACES):
            tx.create(parsed("Namespace", f"ns{number:03}", group=f"experiments/g{number}"))
        for number in range(MEMBERS):
            tx.create(parsed("Account", f"member{number}", groups=["experiments/g50"]))
        where = {"groups": ["experiments/g50"]}
        spec: Any = {"role": "member", "subjects": ["group:experiments/g50"], "selector": where}
        tx.create(parsed("RoleBinding", "g50", **spec))

    store.write(places)
    doc = parsed("Service", "x", "ns000", sample="web", env={f"SETTING_{n}": "x" * 40 for n in range(12)})

    def some(first: int, last: int) -> Any:
        def act(tx: Tx) -> None:
            for n in range(first, last):
                tx.create(
                    {**doc, "metadata": {**doc["metadata"], "name": f"s{n:06}", "namespace": f"ns{n % NAMESPACES:03}"}}
                )

        return act

    for first in range(0, count, 2000):
        store.write(some(first, min(first + 2000, count)), timeout=300)


def serve(folder: str, count: int, pipe: Connection) -> None:
    """The server: tells its port and tokens, then makes as many changes as it is told, and says how long it took."""
    kinds = Kinds([*KINDS, Service])
    store = Store(f"sqlite:///{folder}/ground.db", kinds).open()
    ensure_admin(store, "root", "correct horse", work=4)
    made(kinds, store, count)
    accounts = Accounts(store, work=4)
    app = create_app(Backend(store, kinds, Access(store), accounts))
    listening = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio turns Nagle off only then
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    members = [accounts.issue(f"user:member{number}").token for number in range(MEMBERS)]
    pipe.send((listening.getsockname()[1], accounts.issue("user:root").token, members))
    while (changes := pipe.recv()) is not None:
        begun, spent = time.monotonic(), time.process_time()
        for number in range(changes):
            change(store, number)
            # The same rate at every size: what is measured is the cost of an event, not of a storm.
            time.sleep(max(0.0, begun + (number + 1) * 0.02 - time.monotonic()))
        pipe.send((time.process_time() - spent, time.monotonic() - begun))
    os._exit(0)


def change(store: Store, number: int) -> None:
    def act(tx: Tx) -> None:
        doc = tx.need(Key("Service", "ns050", "s000050"))
        doc["spec"]["replicas"] = number % 900 + 1
        tx.replace(doc)

    store.write(act)


def listing(port: int, token: str, path: str, calls: int) -> list[float]:
    """Milliseconds of each call, one after the other over one connection, from places all over the list."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers, proceed, times = {"authorization": f"Bearer {token}"}, "", list[float]()
    for _ in range(calls):
        begun = time.perf_counter()
        connection.request("GET", f"{path}limit=100&continue={proceed}", headers=headers)
        raw = connection.getresponse().read()
        times.append((time.perf_counter() - begun) * 1000)
        answer = json.loads(raw)
        assert len(answer["items"]) == 100, answer
        proceed = answer.get("continue", "") if random.random() < 0.9 else ""
    connection.close()
    return times


def reader(port: int, tokens: list[str], clients: int, expected: int, pipe: Connection) -> None:
    """A process full of watching clients; it tells how many events came."""
    import selectors

    selector = selectors.DefaultSelector()
    path = f"/api/v1/watch?kinds=services&namespace=ns050&since={pipe.recv()}"
    for number in range(clients):
        connection = socket.create_connection(("127.0.0.1", port))
        token = tokens[number % len(tokens)]
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
    time.sleep(2)
    pipe.send("ready")
    seen, deadline = 0, time.monotonic() + 120
    while seen < expected and time.monotonic() < deadline:
        for key, _ in selector.select(1):
            seen += key.fileobj.recv(1 << 20).count(b"event: MODIFIED")  # type: ignore[union-attr]
    pipe.send(seen)


def quantiles(times: list[float]) -> str:
    cut = statistics.quantiles(times, n=100)
    return f"p50 {cut[49]:6.2f} ms   p99 {cut[98]:6.2f} ms"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--resources", type=int, default=100_000)
    options.add_argument("--calls", type=int, default=2000)
    options.add_argument("--clients", type=int, default=300)
    options.add_argument("--changes", type=int, default=500)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here, there = multiprocessing.Pipe()
        begun = time.monotonic()
        process = multiprocessing.Process(target=serve, args=(str(Path(folder)), given.resources, there), daemon=True)
        process.start()
        port, root, members = here.recv()
        member = members[0]
        print(f"{given.resources} resources, made and served after {time.monotonic() - begun:.0f} s")
        for name, token, path in (
            ("all namespaces, administrator", root, "/api/v1/services?"),
            ("all namespaces, member of one", member, "/api/v1/services?"),
            ("one namespace, member of it", member, "/api/v1/namespaces/ns050/services?"),
        ):
            listing(port, token, path, 50)
            print(f"W15 list 100 of {given.resources}, {name:30} {quantiles(listing(port, token, path, given.calls))}")
        slow = listing(port, root, "/api/v1/services?labelSelector=tier%3Dtest&", given.calls // 10)
        print(f"W15 with a label selector                              {quantiles(slow)}")
        fan_out(here, port, members, given.clients, given.changes)
        here.send(None)
        process.join(10)


def fan_out(server: Connection, port: int, tokens: list[str], clients: int, changes: int) -> None:
    """Changes alone, then with everybody watching; the difference is what watching costs."""
    server.send(changes)
    alone, _ = server.recv()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/api/v1/services?limit=1", headers={"authorization": f"Bearer {tokens[0]}"})
    since = json.loads(connection.getresponse().read())["resourceVersion"]
    here, there = multiprocessing.Pipe()
    watching = multiprocessing.Process(
        target=reader, args=(port, tokens, clients, clients * changes, there), daemon=True
    )
    watching.start()
    here.send(since)
    here.recv()
    server.send(changes)
    spent, lasted = server.recv()
    seen = here.recv()
    print(
        f"watch: {seen} of {clients * changes} events to {clients} clients in {lasted:.1f} s: {seen / spent:,.0f} per "
        f"CPU-second of the server ({seen / max(spent - alone, 0.001):,.0f} without what the changes alone cost)"
    )


if __name__ == "__main__":
    main()
