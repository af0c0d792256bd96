"""The network that can be cut: what passes, what does not, and that nothing is lost when it is back."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from groundcontrol.demo.place import _is_free
from groundcontrol.demo.proxy import Proxy


class Echo:
    """The far side: sends back what it hears, and counts who came."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.came = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # Only closed, the socket would live on in the thread that waits in accept, and so would its number.
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.came += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(65536):
                connection.sendall(piece)


@pytest.fixture
def echo() -> Iterator[Echo]:
    far = Echo()
    yield far
    far.close()


def free_port() -> int:
    return next(port for port in range(15_000, 19_000) if _is_free(port))


@pytest.fixture
def proxy(echo: Echo) -> Iterator[tuple[Proxy, int]]:
    made, port = Proxy(), free_port()
    made.add("bari", port, echo.port)
    yield made, port
    made.close()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.settimeout(5)
    return connection


def heard(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (piece := connection.recv(65536)):
        got += piece
    return got


def silent(connection: socket.socket, seconds: float = 0.3) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b"never"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)


def test_what_is_said_arrives_both_ways(proxy: tuple[Proxy, int]) -> None:
    with connect(proxy[1]) as connection:
        connection.sendall(b"hello")
        assert heard(connection, 5) == b"hello"


def test_much_arrives_whole_and_in_order(proxy: tuple[Proxy, int]) -> None:
    sent = bytes(range(256)) * 20_000
    with connect(proxy[1]) as connection:
        writer = threading.Thread(target=connection.sendall, args=(sent,))
        writer.start()
        assert heard(connection, len(sent)) == sent
        writer.join()


def test_who_hangs_up_is_hung_up_on(proxy: tuple[Proxy, int]) -> None:
    with connect(proxy[1]) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert heard(connection, 100) == b"last words"


def test_cut_lets_nothing_through_and_closes_nothing(proxy: tuple[Proxy, int]) -> None:
    with connect(proxy[1]) as connection:
        connection.sendall(b"before")
        assert heard(connection, 6) == b"before"
        proxy[0].cut("bari")
        connection.sendall(b"during")
        assert silent(connection)
        proxy[0].restore("bari")
        assert heard(connection, 6) == b"during"


def test_cut_holds_back_answers_too(proxy: tuple[Proxy, int], echo: Echo) -> None:
    """Both directions: what the far side says after the cut stays there until it is back."""
    with connect(proxy[1]) as connection:
        connection.sendall(b"x" * 8)
        assert heard(connection, 8) == b"x" * 8
        proxy[0].cut("bari")
        connection.sendall(b"y" * 100)
        time.sleep(0.1)
        assert silent(connection)
        proxy[0].restore("bari")
        assert heard(connection, 100) == b"y" * 100


def test_new_connections_during_a_cut_lead_nowhere_until_it_is_back(proxy: tuple[Proxy, int], echo: Echo) -> None:
    proxy[0].cut("bari")
    with connect(proxy[1]) as connection:
        connection.sendall(b"anybody there?")
        assert silent(connection)
        assert echo.came == 0
        proxy[0].restore("bari")
        assert heard(connection, 14) == b"anybody there?"


def test_one_site_is_cut_and_another_is_not(proxy: tuple[Proxy, int], echo: Echo) -> None:
    other = next(port for port in range(15_000, 19_000) if port != proxy[1] and _is_free(port))
    proxy[0].add("recas", other, echo.port)
    proxy[0].cut("bari")
    with connect(other) as connection:
        connection.sendall(b"here")
        assert heard(connection, 4) == b"here"


def test_a_site_that_is_down_hangs_up(proxy: tuple[Proxy, int]) -> None:
    other, nobody = (port for port in range(15_000, 19_000) if port != proxy[1] and _is_free(port)), 1
    port = next(other)
    proxy[0].add("recas", port, nobody)
    with connect(port) as connection:
        assert connection.recv(1) == b""


def test_after_close_nobody_listens(echo: Echo) -> None:
    proxy, port = Proxy(), free_port()
    proxy.add("bari", port, echo.port)
    proxy.close()
    with pytest.raises(ConnectionRefusedError):
        connect(port)
