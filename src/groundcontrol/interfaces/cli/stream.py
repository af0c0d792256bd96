"""Server-sent events that go on through cut connections: from the last event number, or a new list when too old."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from groundcontrol.interfaces.cli.client import API, Client, Doc
from groundcontrol.interfaces.cli.failure import Failure, Refused, Unreachable

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0


class Sent(NamedTuple):
    """One server-sent event."""

    id: str
    event: str
    data: str


def parse_events(lines: Iterable[bytes]) -> Iterator[Sent]:
    """The events in a `text/event-stream`; comments (heartbeats) and a last, cut-off event are passed over."""
    id_, event, data = "", "message", list[str]()
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if data:
                yield Sent(id_, event, "\n".join(data))
            id_, event, data = "", "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            id_ = value
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)


class Change(NamedTuple):
    """What happened to one document. `before` is the last one seen, when one was."""

    event: str
    doc: Doc
    before: Doc | None


class Watch:
    """The documents of some kinds, kept up with. Iterate to get Changes; it ends only by an error."""

    def __init__(
        self,
        client: Client,
        kinds: Iterable[str],
        *,
        namespace: str = "",
        labels: str = "",
        since: int | None = None,
        known: Iterable[Doc] = (),
        tell: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._params = {"kinds": ",".join(kinds), "namespace": namespace, "labelSelector": labels}
        self._known = {_key(doc): doc for doc in known}
        self._tell = tell
        self._sleep = sleep
        self._pause = FIRST_PAUSE
        self.since = since
        """The last event number met; None asks for the current state first."""

    def __iter__(self) -> Iterator[Change]:
        while True:
            try:
                yield from self._once()
                self._wait("the server closed the stream")
            except Unreachable as lost:
                self._wait(lost.message)
            except Refused as refused:
                if refused.reason == "TooOld" or refused.status == 410:
                    if self.since is None:
                        self._wait(refused.message)
                    else:
                        self._tell(f"cannot go on from event {self.since} ({refused.message}): listing again")
                    self.since = None
                elif refused.status in (429, 502, 503, 504):
                    self._wait(refused.message)
                else:
                    raise

    def _wait(self, why: str) -> None:
        if self._pause > FIRST_PAUSE:
            self._tell(f"{why}; trying again in {self._pause:g} s, from event {self.since or 'the current state'}")
        self._sleep(self._pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _once(self) -> Iterator[Change]:
        """One connection. While the current state is being replayed the number does not move: half of it is nothing."""
        replayed: set[tuple[str, str, str]] | None = set() if self.since is None else None
        # `since=0` is a number, so it is sent as text.
        params = self._params | ({} if self.since is None else {"since": str(self.since)})
        with self._client.stream(f"{API}/watch", params) as response:
            for sent in parse_events(response):
                self._pause = FIRST_PAUSE
                body = _body(sent)
                if sent.event == "BOOKMARK":
                    if replayed is not None:
                        yield from self._gone(replayed)
                        replayed = None
                    self.since = int(body.get("resourceVersion") or sent.id or self.since or 0)
                    continue
                if sent.event not in ("ADDED", "MODIFIED", "DELETED"):
                    _raise_sent(sent, body)
                    continue
                key = _key(body)
                before = self._known.get(key)
                if replayed is not None:
                    replayed.add(key)
                    if before and _version(before) == _version(body):
                        continue
                elif sent.id.isdigit():
                    self.since = int(sent.id)
                if sent.event == "DELETED":
                    self._known.pop(key, None)
                    if before and "spec" not in body:  # no longer ours to see: only its name is told
                        body = before
                else:
                    self._known[key] = body
                event = "MODIFIED" if before and sent.event == "ADDED" else sent.event
                yield Change(event, body, before)

    def _gone(self, replayed: set[tuple[str, str, str]]) -> Iterator[Change]:
        """What was known and is not in the current state was deleted while we were away."""
        for key in [key for key in self._known if key not in replayed]:
            doc = self._known.pop(key)
            yield Change("DELETED", doc, doc)


def _body(sent: Sent) -> Any:
    try:
        return json.loads(sent.data)
    except ValueError as error:
        raise Failure(f"the server sent an event that is not JSON: {sent.data[:80]!r}") from error


def _raise_sent(sent: Sent, body: Any) -> None:
    error = body.get("error", body) if isinstance(body, dict) else {}
    if sent.event.upper() in ("ERROR", "TOOOLD"):
        reason = str(error.get("reason") or sent.event)
        status = 410 if reason == "TooOld" else int(error.get("status") or 500)
        raise Refused(status, reason, str(error.get("message") or sent.data[:200]), error.get("problems") or ())


def _key(doc: Doc) -> tuple[str, str, str]:
    meta = doc["metadata"]
    return doc["kind"], meta.get("namespace") or "", meta["name"]


def _version(doc: Doc) -> Any:
    return doc["metadata"].get("resourceVersion")
