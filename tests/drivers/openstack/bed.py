"""A bed of `tests/contracts/test_cloud.py` on a real cloud: what there is to make things of, found by looking."""

from __future__ import annotations

import contextlib
import functools
import http.server
import secrets
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from groundcontrol.drivers.openstack.driver import OpenStack
from groundcontrol.ports.cloud import Thing
from tests.drivers.openstack.clouds import opened

SIZE = 1 << 16


def qcow2() -> bytes:
    """The smallest image Glance takes for one: a header of version 3, and no data."""

    head = b"QFI\xfb" + struct.pack(">LQLLQLLQQLLQ", 3, 0, 0, 16, 1 << 20, 0, 1, 0x30000, 0x10000, 1, 0, 0)
    return (head + struct.pack(">QQQLL", 0, 0, 0, 4, 104)).ljust(SIZE, b"\0")


class _Image(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = qcow2()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Tests say nothing."""


@functools.cache
def image_server() -> str:
    """Where images are fetched from. Glance fetches from ports 80 and 443 only, and since 2026.2 from no loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect(("198.51.100.1", 9))
        except OSError as error:
            pytest.skip(f"this machine has no address of its own: {error}")
        here = unsent.getsockname()[0]
    try:
        server = http.server.ThreadingHTTPServer((here, 80), _Image)
    except OSError as error:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{here}/small.qcow2", timeout=5) as answer:
            if len(answer.read()) == SIZE:  # another run of these tests
                return f"http://{here}/small.qcow2"
        pytest.skip(f"port 80 is not ours to have: {error}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{here}/small.qcow2"


@functools.cache
def cloud_of(name: str) -> OpenStack:
    """One connection for all tests with this cloud."""
    return opened(f"{name}-admin", pollSeconds="0.5", lookSeconds="30", callsPerMinute="6000")


def smallest(things: list[Thing]) -> list[Thing]:
    return sorted(things, key=lambda t: (t.fields["memory_mb"], t.fields["disk_gb"]))


@contextlib.contextmanager
def real(name: str) -> Iterator[dict[str, Any]]:
    """The parts of a bed; two flavors are made when there are not enough small ones."""
    cloud = cloud_of(name)
    seen = cloud.look().things
    image = next(t for t in seen if t.type == "image" and t.state == "ready" and t.fields["visibility"] == "public")
    outside = next(t for t in seen if t.type == "network" and t.fields.get("external"))
    flavors = smallest([t for t in seen if t.type == "flavor" and t.mark is None and t.fields["disk_gb"]])
    yield {
        "cloud": cloud,
        "flavor": flavors[0].id,
        "other_flavor": flavors[1].id,
        "image": image.id,
        "external": outside.id,
        "source": image_server(),
        "patience": 120.0,
    }


def random_name() -> str:
    return f"driver-{secrets.token_hex(4)}"
