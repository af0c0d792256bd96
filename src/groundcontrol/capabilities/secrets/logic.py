"""Which keys a secret has after one was set or taken away, and what is said of one in a vault: pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from groundcontrol.kernel.errors import Invalid, Problem

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
MOST_KEYS = 64
Keys = list[dict[str, Any]]


def checked_key(body: dict[str, Any]) -> str:
    """The key a request names."""
    key = body.get("key")
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise Invalid(problems=(Problem("name a key of letters, digits, `.`, `_` and `-`", "key"),))
    return key


def with_key(keys: Keys, key: str, at: str, by: str) -> Keys:
    """The keys with one more, or one newer."""
    others = [k for k in keys if k["name"] != key]
    if len(others) >= MOST_KEYS:
        raise Invalid(problems=(Problem(f"a secret has at most {MOST_KEYS} keys", "key", remedy="make another"),))
    return sorted([*others, {"name": key, "setAt": at, "setBy": by}], key=lambda k: str(k["name"]))


def without_key(keys: Keys, key: str) -> Keys:
    """The keys without one."""
    return [k for k in keys if k["name"] != key]


def nameable(keys: Sequence[str]) -> tuple[list[str], str]:
    """The keys of a vault that a resource can name, and words about the others; empty when there are none."""
    good = [key for key in keys if KEY.fullmatch(key)]
    words = []
    if len(good) < len(keys):
        words.append("some keys have names that no resource can give: letters, digits, `.`, `_` and `-` are allowed")
    if len(good) > MOST_KEYS:
        words.append(f"only the first {MOST_KEYS} keys are shown")
    return good[:MOST_KEYS], "; ".join(words)
