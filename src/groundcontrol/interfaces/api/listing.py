"""Lists straight from the cache: bytes as they were stored are joined, and decoded only for a field selector.

A list continues behind the last (namespace, name) it gave. That place stays meaningful whatever changes meanwhile:
nothing that stood all the time is missed or comes twice.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from groundcontrol.kernel.access import Access
from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import NAME, selector
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Entry, Store

STEP = 500
"""Entries taken from the cache at once."""
MANY = 2000
"""A list that may have to look at more entries than this is made on a thread."""


class Question(NamedTuple):
    """What is to be listed."""

    kind: str
    namespace: str
    labels: str
    fields: str
    limit: int
    proceed: str
    """The `continue` token."""


def _where_from(question: Question) -> tuple[str, str]:
    """(namespace, name) to continue behind."""
    if not question.proceed:
        return question.namespace, ""
    try:
        text = base64.urlsafe_b64decode(question.proceed.encode("ascii"))
        kind, scope, labels, fields, namespace, name = msgspec.json.decode(text, type=list[str])
    except (ValueError, binascii.Error, UnicodeError, msgspec.MsgspecError):
        kind, scope, labels, fields, namespace, name = "", "", "", "", "", ""
    good = (kind, scope, labels, fields) == question[:4] and NAME.fullmatch(name)
    if not good or (question.namespace and namespace != question.namespace):
        raise Invalid(
            problems=(Problem("it belongs to another list", "continue", remedy="begin again without it"),),
        )
    return namespace, name


def _proceed(question: Question, last: Entry) -> str:
    parts = [*question[:4], last.key.namespace, last.key.name]
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode()


def selection(labels: str, fields: str) -> Callable[[dict[str, str], Callable[[], Any]], bool] | None:
    """A test of (labels, a function that decodes the document); None when everything is selected."""
    by_label = selector(labels) if labels else None
    by_field = selector(fields, fields=True) if fields else None
    if by_label is None and by_field is None:
        return None

    def matches(given: dict[str, str], decode: Callable[[], Any]) -> bool:
        if by_label and not by_label({"metadata": {"labels": given}}):
            return False
        return by_field is None or by_field(decode())

    return matches


def is_long(store: Store, access: Access, subject: Subject, question: Question) -> bool:
    """Whether making it may hold up the event loop."""
    if store.count(question.kind) <= MANY:
        return False
    return bool(question.labels or question.fields or access.namespaces(subject, "list", question.kind) is not None)


def listed(store: Store, access: Access, subject: Subject, question: Question) -> bytes:
    """The answer, encoded."""
    select = selection(question.labels, question.fields)
    sees = access.visible(subject, question.kind, "list")
    # The number first: what changes while we read is then in the watch that begins there.
    sequence = store.sequence
    place = _where_from(question)
    only = access.namespaces(subject, "list", question.kind)
    if only is not None and not store.kinds.get(question.kind).info.namespaced:
        only = None
    step = min(STEP, question.limit + 1) if select is None else STEP
    found: list[Entry] = []
    going = True
    while going and len(found) <= question.limit:
        entries = store.after(question.kind, place, step)
        going = len(entries) == step
        for entry in entries:
            place = entry.key[1:]
            if question.namespace and place[0] != question.namespace:
                going = False
                break
            if only is not None and place[0] not in only:
                # On to the next namespace that may be seen, without looking at what is between.
                following = min((n for n in only if n > place[0]), default="")
                place, going = (following, ""), bool(following)
                break
            if sees(entry) and (select is None or select(entry.labels, lambda e=entry: e.doc)):  # type: ignore[misc]
                found.append(entry)
                if len(found) > question.limit:
                    break
    more = len(found) > question.limit
    del found[question.limit :]
    parts = [b'{"items":[', b",".join([e.raw for e in found]), b'],"resourceVersion":', str(sequence).encode()]
    if more:
        parts += [b',"continue":', msgspec.json.encode(_proceed(question, found[-1]))]
    parts.append(b"}")
    return b"".join(parts)
