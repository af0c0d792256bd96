"""A server whose store was taken over by another ends by itself."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path


def test_the_older_of_two_servers_ends(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "ground.yaml"
    config.write_text(f"listen: 127.0.0.1:{port}\nledger: {{enabled: false}}\n")
    command = [sys.executable, "-m", "groundcontrol.programs.serve", "--config", str(config)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        deadline = time.monotonic() + 60
        while "ready" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        # What another server does when it opens the store past the lock.
        with sqlite3.connect(tmp_path / "ground-data" / "ground.db", timeout=10) as other:
            other.execute("UPDATE leases SET epoch = epoch + 1")
        while server.poll() is None and time.monotonic() < deadline:
            try:
                # Any write shows it; a refused sign-in is recorded.
                body = b'{"user": "nobody", "password": "wrong"}'
                with socket.create_connection(("127.0.0.1", port), timeout=2) as caller:
                    caller.sendall(
                        b"POST /api/v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
                    )
                    caller.recv(4096)
            except OSError:
                pass
            time.sleep(0.2)
        assert server.poll() is not None, "it goes on as if nothing were"
        assert "another server took over" in (tmp_path / "log").read_text()
    finally:
        server.kill()
        server.wait()
