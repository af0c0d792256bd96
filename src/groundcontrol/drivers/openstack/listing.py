"""Lists of one cloud: page after page, incremental where the service can, each dated and within a budget of calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from groundcontrol.drivers.openstack.session import Answer, Connection, Scope
from groundcontrol.drivers.openstack.table import Row
from groundcontrol.kernel.errors import GroundError, NotFound, Refused, Unavailable

Doc = dict[str, Any]
MARGIN = 20.0
"""Seconds by which "changed since" reaches back: clocks inside a cloud differ, and so do asking and answering."""
MOST_PAGES = 1000
DIRECT = 8
"""So many things that were touched are looked at one by one; more are listed."""


class Budget:
    """So many listing calls a minute to one service, and none while it asks us to wait."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = per_minute / 60.0, float(per_minute), clock
        self._left, self._at = self._most, clock()
        self._closed_until = 0.0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more call fits."""
        with self._lock:
            now = self._clock()
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
            self._at = now
            if now < self._closed_until or self._left < 1:
                return False
            self._left -= 1
            return True

    def pause(self, seconds: float) -> None:
        """The service wants to be left alone."""
        with self._lock:
            self._closed_until = self._clock() + seconds


class OverBudget(Unavailable):
    """This listing has to wait; nothing is wrong with the service."""


class Shelf:
    """What is known of one type, raw, by id."""

    def __init__(self, type: str, row: Row) -> None:
        self.type, self.row = type, row
        self.entries: dict[str, Doc] = {}
        self.looked = 0.0
        """When the last listing that succeeded was begun, seconds since the epoch; 0: never."""
        self.began = 0.0
        """The same of the monotonic clock, for ages."""
        self.whole = 0.0
        """When it was last listed from end to end, of the monotonic clock."""
        self.tried = 0.0
        self.error: GroundError | None = None
        """Why the last try failed."""
        self.touched: dict[str, float] = {}
        """Id (empty: any) to when we changed it; listings begun before know nothing of that."""
        self.since = 0.0
        """The service's own clock when the last listing was begun."""
        self.busy_since: dict[str, float] = {}
        """Id to when it was first seen to be worked on."""
        self.leaving = False
        """Whether something is being deleted."""
        self.version = 0
        """Grows with every difference."""

    def age(self) -> float:
        return time.monotonic() - self.began if self.looked else float("inf")

    def touch(self, id: str) -> None:
        self.touched[id] = time.monotonic()


class Lister:
    """Fills shelves. One call at a time for each shelf."""

    def __init__(self, connection: Connection, scopes: Callable[[], Sequence[Scope]]) -> None:
        self._connection, self._scopes = connection, scopes
        self._budgets: dict[str, Budget] = {}
        self.everywhere: bool | None = None
        """Whether our account may see the things of every project; None: not known yet."""

    def budget(self, service: str) -> Budget:
        """Of one service."""
        return self._budgets.setdefault(service, Budget(self._connection.options.calls))

    def refresh(self, shelf: Shelf, whole: bool) -> None:
        """Bring a shelf up to date. What fails is kept as its error, and what it held stays."""
        began, at = time.monotonic(), time.time()
        shelf.tried = began
        touched = dict(shelf.touched)
        try:
            if not whole and shelf.whole and touched and "" not in touched and len(touched) <= DIRECT:
                self._directly(shelf, touched)
                if not shelf.row.tells_deleted:
                    self._settle(shelf, touched, began)
                    shelf.error = None
                    return
            whole = whole or not shelf.whole or "" in touched or len(touched) > DIRECT
            self._listed(shelf, whole)
        except GroundError as error:
            if isinstance(error, Refused) and error.cause == "Throttled":
                self.budget(shelf.row.service).pause(error.retry_after or 10.0)
            if not isinstance(error, OverBudget):
                shelf.error = error
            return
        shelf.looked, shelf.began, shelf.error = at, began, None
        if whole:
            shelf.whole = began
        self._settle(shelf, touched, began)

    def _settle(self, shelf: Shelf, touched: Mapping[str, float], began: float) -> None:
        for id, when in touched.items():
            if shelf.touched.get(id) == when and when <= began:
                shelf.touched.pop(id, None)

    def _directly(self, shelf: Shelf, ids: Mapping[str, float]) -> None:
        for id in ids:
            if not self.budget(shelf.row.service).take():
                raise OverBudget("the budget of calls is used up")
            try:
                doc = self.one(shelf.row, id)
            except NotFound:
                self._drop(shelf, id)
            else:
                self._put(shelf, id, doc)

    def _listed(self, shelf: Shelf, whole: bool) -> None:
        row, found, clock = shelf.row, {}, 0.0
        query: dict[str, str] = {}
        if not whole and row.since:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(shelf.since - MARGIN))
            query[row.since] = row.since_form.format(moment.rstrip("Z") if row.service == "block-storage" else moment)
        elif not whole:
            whole = True
        for scope in self._scopes() if row.belongs and not self.everywhere else (self._connection.own,):
            for answer, docs in self._pages(row, scope, query):
                clock = clock or _clock(answer)
                for doc in docs:
                    found[str(_inner(row, doc)["id" if row.path != "/os-keypairs" else "name"])] = doc
        shelf.since = clock or time.time()
        for id, doc in found.items():
            if str(doc.get("status")) == "DELETED":
                self._drop(shelf, id)
            else:
                self._put(shelf, id, doc)
        if whole:
            for id in shelf.entries.keys() - found.keys():
                self._drop(shelf, id)

    def _pages(self, row: Row, scope: Scope, query: Mapping[str, str]) -> Iterator[tuple[Answer, list[Doc]]]:
        asked = {**row.query, **query}
        if row.page:
            asked["limit"] = str(row.page)
        if row.everywhere and self.everywhere:
            asked |= row.everywhere
        seen: set[str] = set()
        for _ in range(MOST_PAGES):
            if not self.budget(row.service).take():
                raise OverBudget("the budget of calls is used up")
            answer = self._page(row, scope, asked)
            docs = answer.body.get(row.many) if isinstance(answer.body, dict) else None
            if not isinstance(docs, list):
                raise Unavailable(f"{self._connection.name}: {row.service} answered something else than a list")
            yield answer, docs
            following = _next(answer.body, row.many)
            if not following or not docs:
                return
            asked = dict(parse_qsl(urlsplit(following).query))
            if (marker := asked.get("marker", following)) in seen:
                raise Unavailable(f"{self._connection.name}: pages of {row.many} go round in circles")
            seen.add(marker)
        raise Unavailable(f"{self._connection.name}: {row.many} have more than {MOST_PAGES} pages")

    def _page(self, row: Row, scope: Scope, asked: dict[str, str]) -> Answer:
        return self._connection.call(
            row.service,
            "GET",
            row.own_path if row.own_path and not self.everywhere else row.list_path or row.path,
            scope=scope,
            query=asked,
            version=row.version,
            what=f"list {row.many.replace('_', ' ')}",
        )

    def learn(self) -> None:
        """Find out whether our account may see every project; asks once."""
        if self.everywhere is not None:
            return
        query = {"all_tenants": "1", "limit": "1"}
        try:
            self._connection.call("compute", "GET", "/servers", query=query, what="list the servers of every project")
        except Refused as error:
            if error.cause != "NotAuthorised":
                raise
            self.everywhere = False
        else:
            self.everywhere = True

    def _put(self, shelf: Shelf, id: str, doc: Doc) -> None:
        if shelf.entries.get(id) != doc:
            shelf.entries[id] = doc
            shelf.version += 1

    def _drop(self, shelf: Shelf, id: str) -> None:
        if shelf.entries.pop(id, None) is not None:
            shelf.version += 1

    def one(self, row: Row, id: str) -> Doc:
        """One thing, looked at directly, in whichever of our projects it is. NotFound is proof of absence."""
        missing: NotFound | None = None
        for scope in self._scopes() if row.belongs and not self.everywhere else (self._connection.own,):
            try:
                answer = self._connection.call(
                    row.service, "GET", f"{row.path}/{id}", scope=scope, version=row.version,
                    what=f"look at {(row.one or 'image').replace('_', ' ')} {id}",
                )  # fmt: skip
            except NotFound as error:
                missing = error
                continue
            return _inner(row, answer.body)
        raise missing or NotFound(f"{self._connection.name}: there is no project to look in")

    def found(self, row: Row, query: Mapping[str, str], version: str = "") -> list[Doc]:
        """What a query lists now, in all our projects. Not bounded by the budget: somebody waits for it."""
        docs: dict[str, Doc] = {}
        for scope in self._scopes() if row.belongs and not self.everywhere else (self._connection.own,):
            asked = {**row.query, **query}
            if row.everywhere and self.everywhere:
                asked |= row.everywhere
            following: str | None = ""
            for _ in range(MOST_PAGES):
                if following:
                    asked = dict(parse_qsl(urlsplit(following).query))
                answer = self._page(row, scope, asked)
                for doc in answer.body.get(row.many) or ():
                    docs[str(_inner(row, doc).get("id"))] = doc
                following = _next(answer.body, row.many)
                if not following:
                    break
        return list(docs.values())


def _inner(row: Row, doc: Any) -> Doc:
    if not isinstance(doc, dict):
        raise Unavailable(f"{row.service} answered something else than a {row.one or 'thing'}")
    inner = doc.get(row.one) if row.one else None
    return inner if isinstance(inner, dict) else doc


def _next(body: Mapping[str, Any], many: str) -> str:
    """Address of the next page; empty at the end."""
    for link in body.get(f"{many}_links") or ():
        if isinstance(link, dict) and link.get("rel") == "next":
            return str(link.get("href", ""))
    links = body.get("links")
    if isinstance(links, dict) and links.get("next"):
        return str(links["next"])
    return str(body.get("next") or "")


def _clock(answer: Answer) -> float:
    """The service's clock, by its answer; 0 when it does not say."""
    try:
        return parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except (TypeError, ValueError):
        return 0.0
