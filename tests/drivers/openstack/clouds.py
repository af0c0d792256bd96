"""The real clouds of a clouds.yaml, for tests: `GROUND_TEST_CLOUDS` is its path, for example of the test bed's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from groundcontrol.drivers.openstack.driver import OpenStack, connect

NAMED = os.environ.get("GROUND_TEST_CLOUDS", "")


def entries() -> dict[str, Any]:
    """Name of a cloud to its entry; none when no file is named."""
    return dict(yaml.safe_load(Path(NAMED).read_text(encoding="utf-8"))["clouds"]) if NAMED else {}


def administered() -> tuple[str, ...]:
    """Clouds of which the file has an administrator's entry, `NAME-admin`."""
    return tuple(sorted(name.removesuffix("-admin") for name in entries() if name.endswith("-admin")))


def opened(entry: str, *, endpoint: str = "", **options: str) -> OpenStack:
    """A connection with this entry's account; `endpoint` goes instead of its address, for example a proxy's."""
    told = entries()[entry]
    auth = dict(told["auth"])
    given = {"region": told.get("region_name", "")}
    if "cacert" in told:
        given["caCert"] = told["cacert"]
    address = endpoint or auth["auth_url"]
    auth.pop("auth_url")
    return connect(f"site/{entry}", address, json.dumps(auth), given | options, 60.0)
