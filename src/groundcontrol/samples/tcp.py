"""A TCP service that echoes lines: for checks of kind `tcp`, and for what speaks no HTTP."""

import os
import socket
import threading

from groundcontrol.samples.web import end_on_sigterm


def _echo(connection: socket.socket) -> None:
    try:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(line)
    except OSError:
        return


if __name__ == "__main__":
    end_on_sigterm()
    address, port = os.environ.get("GROUND_ADDRESS", "127.0.0.1"), int(os.environ.get("GROUND_PORT_TCP", "7000"))
    listener = socket.create_server((address, port), backlog=128)
    print(f"tcp listens on {address}:{port}", flush=True)
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=_echo, args=(accepted,), daemon=True).start()
