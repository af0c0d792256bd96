"""Watches over a real connection: state first, resuming, rights, slow readers, and how a stream ends."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from groundcontrol.interfaces.api import happened, watch
from groundcontrol.kernel.resource import Doc, Key
from tests.interfaces.api.installation import Installation


class Frame(NamedTuple):
    id: int
    event: str
    data: Doc

    @property
    def name(self) -> str:
        return str(self.data.get("metadata", {}).get("name", ""))


class Stream:
    """One watch."""

    def __init__(self, port: int, token: str, query: str = "", headers: Any = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        given = {"authorization": f"Bearer {token}", **(headers or {})}
        self.connection.request("GET", f"/api/v1/watch?{query}", headers=given)
        self.answer = self.connection.getresponse()

    def __iter__(self) -> Iterator[Frame]:
        fields: dict[str, str] = {}
        for raw in self.answer:
            line = raw.decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                yield Frame(int(fields.get("id", 0)), fields["event"], json.loads(fields["data"]))
                fields = {}

    def until(self, stop: Callable[[Frame], bool]) -> list[Frame]:
        found = []
        for frame in self:
            found.append(frame)
            if stop(frame):
                return found
        return found

    def state(self) -> list[Frame]:
        """The current state, up to its BOOKMARK."""
        *first, last = self.until(lambda f: f.event in ("BOOKMARK", "ERROR"))
        assert last.event == "BOOKMARK"
        return first

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.fixture
def stream(here: Installation, port: int) -> Iterator[Callable[..., Stream]]:
    opened: list[Stream] = []

    def open_(name: str, query: str = "", **headers: str) -> Stream:
        opened.append(Stream(port, here.token(name), query, headers))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def change(here: Installation, name: str, namespace: str = "alpha", labels: Any = None, **spec: Any) -> int:
    def act(tx: Any) -> int:
        doc = tx.need(Key("Note", namespace, name))
        doc["spec"] |= spec
        doc["metadata"]["labels"] = labels if labels is not None else doc["metadata"]["labels"]
        return int(tx.replace(doc).doc["metadata"]["resourceVersion"])

    return here.store.write(act)


def last(here: Installation, name: str = "last", namespace: str = "alpha") -> Callable[[Frame], bool]:
    """Makes something, and knows when it has come."""
    here.make("Note", name, namespace)
    return lambda frame: frame.name == name or frame.event == "ERROR"


def test_state_then_changes(here: Installation, stream: Callable[..., Stream]) -> None:
    here.make("Note", "a", "alpha", size=1)
    watching = stream("ada", "kinds=notes")
    assert [(f.event, f.name) for f in watching.state()] == [("ADDED", "a")]
    number = change(here, "a", size=2)
    here.remove("Note", "a", "alpha")
    found = watching.until(last(here))
    assert [(f.event, f.name) for f in found] == [("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "last")]
    assert found[0].id == number == found[0].data["metadata"]["resourceVersion"]
    assert found[0].data["spec"]["size"] == 2


def test_it_goes_on_from_a_number(here: Installation, stream: Callable[..., Stream]) -> None:
    since = here.make("Note", "a", "alpha")["metadata"]["resourceVersion"]
    change(here, "a", size=1)
    here.make("Note", "hidden", "beta")
    expected = [("MODIFIED", "a"), ("ADDED", "last")]
    stop = last(here)
    for watching in (
        stream("ada", f"kinds=notes&since={since}"),
        stream("ada", "kinds=notes", **{"Last-Event-ID": str(since)}),
    ):
        assert [(f.event, f.name) for f in watching.until(stop)] == expected
    changed = change(here, "a", size=9)
    assert stream("ada", f"kinds=notes&since={changed - 1}").until(lambda f: True)[0].data["spec"]["size"] == 9


def test_every_change_comes_once_and_in_order_however_the_stream_is_cut(
    here: Installation, stream: Callable[..., Stream]
) -> None:
    here.make("Note", "a", "alpha")
    watching, since, seen = stream("ada", "kinds=notes"), 0, []
    watching.state()
    for size in range(1, 200):
        change(here, "a", size=size)
        if size % 20 == 0:
            upto = size - size % 3
            for frame in watching:
                seen.append(frame.data["spec"]["size"])
                since = frame.id
                if seen[-1] >= upto:
                    break
            watching.close()
            watching = stream("ada", f"kinds=notes&since={since}")
    seen += [f.data["spec"]["size"] for f in watching.until(lambda f: f.data["spec"]["size"] == 199)]
    assert seen == list(range(1, 200))


def test_too_old_is_said(here: Installation, stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = stream("ada", "since=99999")
    assert ahead.answer.status == 410
    assert json.load(ahead.answer)["error"]["reason"] == "TooOld"
    assert stream("ada", "", **{"Last-Event-ID": "x"}).answer.status == 422
    monkeypatch.setattr(here.store, "_keep", 10)
    monkeypatch.setattr(here.store, "_next_trim", 0)
    here.make("Note", "a", "alpha")
    for size in range(40):
        change(here, "a", size=size + 1)
    here.store._ring.clear()  # what is no longer in memory comes from the database, as long as it is there
    assert stream("ada", "since=1").answer.status == 410
    kept = stream("ada", f"kinds=notes&since={here.store.sequence - 5}")
    assert kept.until(lambda f: f.data["spec"]["size"] == 40)[0].data["spec"]["size"] == 36


class TestRights:
    def test_nobody_sees_what_they_may_not_read(self, here: Installation, stream: Callable[..., Stream]) -> None:
        here.make("Note", "secret", "beta", text="of beta")
        ada, bob, root = stream("ada"), stream("bob"), stream("root", "kinds=notes")
        assert "secret" not in {f.name for f in ada.state()}
        assert "secret" in {f.name for f in bob.state()}
        root.state()
        change(here, "secret", "beta", size=1)
        here.make("Note", "mine", "alpha")
        here.remove("Note", "secret", "beta")
        here.make("Site", "bari", driver="local")
        here.make("Note", "last", "beta")
        stop = last(here, "end")
        assert [f.name for f in ada.until(stop)] == ["mine", "end"]
        assert {f.name for f in root.until(stop)} == {"secret", "mine", "last", "end"}
        assert [f.name for f in bob.until(lambda f: f.name == "last")] == ["secret", "secret", "last"]

    def test_the_past_is_judged_too(self, here: Installation, stream: Callable[..., Stream]) -> None:
        since = here.store.sequence
        here.make("Note", "secret", "beta")
        stop = last(here)
        assert [f.name for f in stream("ada", f"since={since}").until(stop)] == ["last"]

    def test_a_kind_or_place_that_may_not_be_watched(self, here: Installation, stream: Callable[..., Stream]) -> None:
        assert stream("ada", "kinds=sites").answer.status == 403
        assert stream("ada", "namespace=beta").answer.status == 404
        assert stream("ada", "namespace=atlantis").answer.status == 404
        assert stream("ada", "kinds=notez").answer.status == 422
        assert stream("nobody").answer.status == 404

    def test_a_change_of_rights_ends_the_stream(self, here: Installation, stream: Callable[..., Stream]) -> None:
        ada, root = stream("ada", "kinds=notes"), stream("root", "kinds=notes")
        ada.state()
        root.state()
        here.remove("RoleBinding", "alpha")
        end = ada.until(lambda f: f.event == "ERROR")[-1]
        assert end.data["error"]["reason"] == "TooOld"
        assert root.until(last(here))[-1].name == "last", "others go on"

    def test_nothing_comes_between_the_change_and_the_end(
        self, here: Installation, stream: Callable[..., Stream]
    ) -> None:
        ada = stream("ada", "kinds=notes")
        ada.state()

        def act(tx: Any) -> None:
            tx.delete(Key("RoleBinding", "", "alpha"))
            doc = {
                "apiVersion": "ground/v1",
                "kind": "Note",
                "metadata": {"name": "after", "namespace": "alpha"},
                "spec": {},
            }
            tx.create(here.store.kinds.parse(doc))

        here.store.write(act)
        found = ada.until(lambda f: f.event == "ERROR")
        assert "after" not in {f.name for f in found}

    @pytest.mark.parametrize("how", ["revoked", "disabled", "left the group"])
    def test_a_token_that_ends_ends_its_streams(
        self, here: Installation, stream: Callable[..., Stream], how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "HEARTBEAT", 0.2)
        ada = stream("ada", "kinds=notes")
        ada.state()

        def spec(**changes: Any) -> None:
            def act(tx: Any) -> None:
                doc = tx.need(Key("Account", "", "ada"))
                doc["spec"] |= changes
                tx.replace(doc)

            here.store.write(act)

        if how == "revoked":
            here.backend.accounts.revoke(here.backend.accounts.tokens("user:ada")[0].id)
            time.sleep(0.5)
        elif how == "disabled":
            spec(disabled=True)
        else:
            spec(groups=[])
        end = ada.until(lambda f: f.event == "ERROR")[-1]
        assert end.data["error"]["reason"] == "Unauthenticated"

    def test_labels_that_lead_out_of_sight(self, here: Installation, stream: Callable[..., Stream]) -> None:
        where = {"namespaces": ["alpha"], "labels": "team=red"}
        here.make("RoleBinding", "narrow", role="viewer", subjects=["user:nobody"], selector=where)
        here.make("Note", "a", "alpha", {"team": "red"}, text="red")
        here.make("Note", "b", "alpha", {"team": "blue"}, text="blue")
        watching = stream("nobody", "kinds=notes")
        assert [f.name for f in watching.state()] == ["a"]
        change(here, "a", labels={"team": "blue"}, text="now blue")
        change(here, "a", text="still blue")
        change(here, "b", labels={"team": "red"})
        here.remove("Note", "a", "alpha")
        here.make("Note", "last", "alpha", {"team": "red"})
        found = watching.until(lambda f: f.name == "last")
        assert [(f.event, f.name) for f in found] == [("DELETED", "a"), ("ADDED", "b"), ("ADDED", "last")]
        assert "blue" not in json.dumps(found[0].data), "what it has become is not shown"


def test_a_label_selector_adds_and_removes(here: Installation, stream: Callable[..., Stream]) -> None:
    here.make("Note", "a", "alpha", {"tier": "test"})
    here.make("Note", "b", "alpha")
    watching = stream("ada", "kinds=notes&labelSelector=tier%3Dtest")
    assert [f.name for f in watching.state()] == ["a"]
    change(here, "a", size=1)
    change(here, "a", labels={})
    change(here, "a", size=2)
    change(here, "b", labels={"tier": "test"})
    here.remove("Note", "a", "alpha")
    here.make("Note", "last", "alpha", {"tier": "test"})
    found = watching.until(lambda f: f.name == "last")
    expected = [("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b"), ("ADDED", "last")]
    assert [(f.event, f.name) for f in found] == expected


def test_silence_is_broken_by_bookmarks(
    here: Installation, stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "HEARTBEAT", 0.1)
    watching = stream("ada", "kinds=notes")
    watching.state()
    here.make("Note", "hidden", "beta")
    assert watching.until(lambda f: f.id == here.store.sequence)[-1].event == "BOOKMARK", "it moves on without telling"


def test_a_slow_reader_is_cut_and_told_and_others_are_not_held_up(
    here: Installation, port: int, stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BEHIND", 1 << 20)
    here.make("Note", "a", "alpha")
    quick = stream("root", "kinds=notes")
    quick.state()
    slow = socket.create_connection(("127.0.0.1", port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    head = f"GET /api/v1/watch?kinds=notes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {here.token('ada')}\r\n\r\n"
    slow.sendall(head.encode())
    slow.settimeout(10)
    assert slow.recv(2000)
    for size in range(1, 400):
        change(here, "a", text=f"{size}" + "x" * 40_000, size=size)
        assert next(iter(quick)).data["spec"]["size"] == size
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        piece = slow.recv(1 << 20)
        assert piece, received[-300:]
        received += piece
    slow.close()
    assert b'"reason":"TooMany"' in received[-1000:]
    assert len(received) < 12_000_000, "what it did not read was not kept for it"
    numbers = [int(line[4:]) for line in received.split(b"\n") if line.startswith(b"id: ")]
    again = stream("ada", f"kinds=notes&since={numbers[-1]}")
    assert again.until(lambda f: f.data["spec"]["size"] == 399)[0].id == numbers[-1] + 1, "nothing is lost"


def test_a_reader_that_takes_nothing_is_let_go(here: Installation, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happened, "STALLED", 0.3)
    here.make("Note", "a", "alpha", text="x" * 100_000)
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        head = f"GET /api/v1/watch?kinds=notes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {here.token('ada')}\r\n\r\n"
        slow.sendall(head.encode())
        for size in range(100):
            change(here, "a", text=f"{size}" + "y" * 100_000)
        deadline = time.monotonic() + 10
        while here.backend.store._subscriptions and time.monotonic() < deadline:
            time.sleep(0.1)
            if not list(_hub(here).clients):
                break
    assert not list(_hub(here).clients)


def _hub(here: Installation) -> watch.Hub:
    hooks = [s.on_event for s in here.store._subscriptions if s.on_event]
    return next(h.__self__ for h in hooks if isinstance(getattr(h, "__self__", None), watch.Hub))


def test_a_reader_that_goes_is_forgotten(here: Installation, stream: Callable[..., Stream]) -> None:
    for _ in range(5):
        watching = stream("ada", "kinds=notes")
        watching.state()
        watching.close()
    deadline = time.monotonic() + 10
    while list(_hub(here).clients) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(_hub(here).clients)
    assert not _hub(here)._views


def test_watches_of_one_person_are_bounded(
    here: Installation, stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CLIENTS_EACH", 2)
    assert [stream("ada", "kinds=notes").answer.status for _ in range(3)] == [200, 200, 429]
    assert stream("bob", "kinds=notes").answer.status == 200


def test_an_event_is_judged_and_encoded_once_for_all_alike(
    here: Installation, stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [stream("ada", "kinds=notes") for _ in range(10)]
    for watching in many:
        watching.state()
    calls: list[str] = []
    real = watch.frame
    monkeypatch.setattr(watch, "frame", lambda type_, number, data: calls.append(type_) or real(type_, number, data))
    stop = last(here)
    for watching in many:
        assert watching.until(stop)[-1].name == "last"
    assert calls.count("ADDED") == 1


@pytest.mark.parametrize("begins", ["with the state", "from a number"])
def test_what_happens_while_a_watch_begins_comes_once(
    here: Installation, stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    since = here.make("Note", "first", "alpha")["metadata"]["resourceVersion"] - 1

    def slow(real: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*given: Any) -> Any:
            here.make("Note", "before", "alpha")
            found = real(*given)
            for name in ("between-1", "between-2"):
                here.make("Note", name, "alpha")
            time.sleep(0.2)  # the hub has passed them on meanwhile
            return found

        return reading

    monkeypatch.setattr(here.store, "snapshot", slow(here.store.snapshot))
    monkeypatch.setattr(watch.Hub, "_events_after", slow(watch.Hub._events_after))
    watching = stream("ada", "kinds=notes" + (f"&since={since}" if begins == "from a number" else ""))
    names = [f.name for f in watching.until(lambda f: f.name == "between-2") if f.event != "BOOKMARK"]
    assert sorted(names) == ["before", "between-1", "between-2", "first"]
