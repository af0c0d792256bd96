"""What every test gets: a place of its own and no settings of the person who runs it."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GROUND_… variable in somebody's shell must not decide whether a test passes; acceptance tests may want one."""
    if request.node.get_closest_marker("acceptance"):
        return
    for name in [name for name in os.environ if name.startswith("GROUND_")]:
        monkeypatch.delenv(name)
