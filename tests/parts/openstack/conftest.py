"""Two real clouds for the tests below: the test bed, brought up when it is not, and left as it is afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openstack
import pytest
from openstack.connection import Connection

from testbed.openstack.cloud import Running
from testbed.openstack.layout import HERE, Bed, the_bed
from tests.parts.openstack.site import Site

NAMES = ("north", "south")
HERE_BELOW = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """openstacksdk 4 warns of what it does itself, whoever calls it: such warnings are no failures of ours."""
    for item in items:
        if item.path.is_relative_to(HERE_BELOW):
            # The first of them may have to bring up the clouds.
            item.add_marker(pytest.mark.timeout(1800))
            for name in ("OpenStackDeprecationWarning", "_RemovedInSDKWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::openstack.warnings.{name}"))


def connect(bed: Bed, entry: str, **more: object) -> Connection:
    """As somebody in clouds.yaml; nothing of the caller's environment counts."""
    config = openstack.config.OpenStackConfig(
        config_files=[str(bed.clouds_yaml)], secure_files=[], vendor_files=[], load_envvars=False
    )
    return Connection(config=config.get_one(entry, **more))


@pytest.fixture(scope="session")
def bed() -> Bed:
    """Both clouds are up. What of them runs already is left alone."""
    if os.geteuid() != 0 or not os.path.exists("/etc/debian_version"):
        said = "the test bed needs root on Debian"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    command = [sys.executable, "-m", "testbed.openstack", "up"]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return the_bed()


@pytest.fixture(scope="session", params=NAMES)
def site(request: pytest.FixtureRequest, bed: Bed) -> Iterator[Site]:
    """One cloud after the other, as its member and as its administrator."""
    name = request.param
    found = Site(
        Running(bed.cloud(name)), connect(bed, name), connect(bed, f"{name}-admin"), connect(bed, f"{name}-beta")
    )
    yield found
    for connection in (found.member, found.admin, found.other):
        connection.close()
