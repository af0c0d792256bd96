"""What every implementation of the `Web` port does: the twin in memory, and the driver against a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundcontrol.drivers.web.driver import WebClient
from groundcontrol.ports.twins.web import MemoryWeb
from groundcontrol.ports.web import Answered, Web, origin
from tests.drivers.web.server import serving

Sides = tuple[Web, str, str, Callable[[int], None]]
"""The port, an address it may ask, its authority, and what sets the status it answers."""


@pytest.fixture(params=["memory", "web"])
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sides]:
    if request.param == "memory":
        twin, url = MemoryWeb(), "https://localhost:1/health"

        def answers(status: int) -> None:
            twin.answers[url] = Answered(status=status, expires=4_000_000_000.0)

        yield twin, url, "", answers
        return
    with serving(tmp_path) as side:
        url = f"https://localhost:{side.port}/health"
        yield WebClient([origin(url)]), url, side.ca, lambda status: setattr(side, "status", status)


@pytest.mark.parametrize("status", [200, 204, 302, 401, 503])
def test_an_answer_is_its_status_and_the_end_of_the_certificate(sides: Sides, status: int) -> None:
    web, url, ca, answers = sides
    answers(status)
    answer = web.ask(url, ca)
    assert (answer.asked, answer.status, answer.problem) == (True, status, "")
    assert answer.expires > 0


def test_what_may_not_be_asked_is_not_asked_and_says_what_would_allow_it(sides: Sides) -> None:
    web, _, ca, _ = sides
    answer = web.ask("https://elsewhere.example.org/", ca)
    assert (answer.asked, answer.status) == (False, 0)
    assert "joining.origins" in answer.problem


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://Host.example.org/a", "https://host.example.org:443"),
        ("http://h:80", "http://h:80"),
        ("http://h", "http://h:80"),
        ("https://[::1]:8443/x", "https://[::1]:8443"),
    ],
)
def test_an_origin_always_has_its_port(url: str, found: str) -> None:
    assert origin(url) == found


@pytest.mark.parametrize(
    "url", ["", "h", "//h", "ftp://h", "https://", "https:///x", "https://h:x/", "https://ä/", "https://h /"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        origin(url)
