"""Decisions about sites, as pure functions of what was seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from groundcontrol.capabilities.inventory.kinds import SiteSpec


def identity(spec: SiteSpec) -> str:
    """What makes a connection another one."""
    parts = [spec.driver, spec.endpoint, spec.credentials or "", *(f"{k}={v}" for k, v in sorted(spec.options.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def strays(tags_by_unit: Iterable[tuple[str, dict[str, str]]], installation: str, wanted: set[str]) -> list[str]:
    """What is at a site and not ours, or ours and wanted by nobody; one sentence each."""
    found = []
    for unit, tags in tags_by_unit:
        if tags.get("installation") != installation:
            found.append(f"{unit}: not of this installation (of {tags.get('installation') or 'nobody'})")
        elif tags.get("owner", "") not in wanted:
            found.append(f"{unit}: made for {tags.get('owner_key') or 'something'}, which is gone")
    return sorted(found)
