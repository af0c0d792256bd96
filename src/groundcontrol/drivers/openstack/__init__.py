"""Clouds that run OpenStack: one region, reached with one service account.

What it needs comes with the extra `openstack`, and is loaded when a Site needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from groundcontrol.kernel.errors import Invalid

if TYPE_CHECKING:
    from groundcontrol.drivers.openstack.driver import OpenStack

EXTRA = ("keystoneauth1", "requests", "urllib3")
"""What the extra brings and this driver imports."""


def connect(instance: str, endpoint: str, secret: str, options: Mapping[str, Any], longest: float) -> OpenStack:
    """The cloud of one driver instance. Invalid says what of it is wrong, or what is not installed."""
    try:
        from groundcontrol.drivers.openstack import driver
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in EXTRA:
            raise
        message = f"{instance}: the driver openstack is not installed: pip install 'groundcontrol[openstack]'"
        raise Invalid(message) from None
    return driver.connect(instance, endpoint, secret, options, longest)
