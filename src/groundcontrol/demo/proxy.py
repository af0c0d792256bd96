"""A network that can be cut, without root: a TCP proxy in front of each site agent, all served by one thread.

Cut, it reads nothing and closes nothing, and new connections are taken and left alone, as if the cable were out: who
talks to the site hears nothing at all. Back, what was waiting goes through.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable

CHUNK = 1 << 16
BACKLOG_BYTES = 1 << 20
"""What is kept for a reader that is slower than its writer, per direction."""


class _Flow:
    """One direction of one connection: what was read from `source` and not yet written to `target`."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.waiting = bytearray()
        self.ended = False
        """The source said that it is done."""
        self.passed_on = False
        """The target was told so."""

    def read(self) -> bool:
        """Take what is there; False when the connection broke."""
        try:
            piece = self.source.recv(CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.ended = not piece
        self.waiting += piece
        return self.write()

    def write(self) -> bool:
        """Hand on what can be handed on; False when the connection broke."""
        try:
            while self.waiting:
                del self.waiting[: self.target.send(self.waiting)]
            if self.ended and not self.passed_on:
                self.passed_on = True
                self.target.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


class _Link:
    """The way to one site: its listening socket, its connections and whether it is cut."""

    def __init__(self, name: str, listener: socket.socket, agent: tuple[str, int]) -> None:
        self.name, self.listener, self.agent = name, listener, agent
        self.cut = False
        self.flows: dict[socket.socket, tuple[_Flow, _Flow]] = {}
        """By socket: (the flow that reads from it, the flow that writes to it)."""
        self.stranded: list[socket.socket] = []
        """Connections taken while cut, to be connected when it is back."""


class Proxy:
    """The network of the demonstration. `cut` and `restore` return when it is so."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._links: dict[str, _Link] = {}
        self._orders: list[tuple[Callable[[], None], threading.Event]] = []
        self._ordered = threading.Lock()
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._running = True
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._thread.start()

    def add(self, name: str, port: int, agent_port: int, host: str = "127.0.0.1") -> None:
        """Listen on `port` and forward to `agent_port`."""
        listener = socket.create_server((host, port), backlog=128)
        listener.setblocking(False)
        link = _Link(name, listener, (host, agent_port))

        def add() -> None:
            self._links[name] = link
            self._selector.register(listener, selectors.EVENT_READ, link)

        self._order(add)

    def cut(self, name: str) -> None:
        """Forward nothing to or from this site from now on."""
        self._order(lambda: self._cut(self._links[name]))

    def restore(self, name: str) -> None:
        """Forward again, beginning with what was waiting."""
        self._order(lambda: self._restore(self._links[name]))

    def knows(self, name: str) -> bool:
        return name in self._links

    def is_cut(self, name: str) -> bool:
        return self._links[name].cut

    def close(self) -> None:
        """Close every connection and end the thread."""
        if self._running:
            self._order(self._end)
            self._thread.join(5)

    # ------------------------------------------------------------------------------------------ in the thread

    def _order(self, act: Callable[[], None]) -> None:
        done = threading.Event()
        with self._ordered:
            self._orders.append((act, done))
            # Inside: once the thread has the order it may be the last one, and the pipe is closed.
            os.write(self._wake_in, b"!")
        if not done.wait(10):
            raise RuntimeError("the proxy thread does not answer")

    def _serve(self) -> None:
        while self._running:
            for key, mask in self._selector.select():
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
                else:
                    self._ready(key.data, key.fileobj, mask)
            with self._ordered:
                orders, self._orders = self._orders, []
            for act, done in orders:
                act()
                done.set()

    def _ready(self, link: _Link, sock: object, mask: int) -> None:
        if sock is link.listener:
            self._accept(link)
            return
        if not isinstance(sock, socket.socket) or sock not in link.flows:
            return
        outward, inward = link.flows[sock]
        good = (not mask & selectors.EVENT_READ or outward.read()) and (
            not mask & selectors.EVENT_WRITE or inward.write()
        )
        if not good or (outward.passed_on and inward.passed_on):
            self._drop(link, sock)
        else:
            self._listen_for(link, sock)
            self._listen_for(link, outward.target)

    def _accept(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            client, _ = link.listener.accept()
            client.setblocking(False)
            if link.cut:
                link.stranded.append(client)
            else:
                self._connect(link, client)

    def _connect(self, link: _Link, client: socket.socket) -> None:
        try:
            agent = socket.create_connection(link.agent, timeout=2)
        except OSError:
            client.close()  # As the agent's own machine would: nobody listens there.
            return
        agent.setblocking(False)
        for sock in (client, agent):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there, back = _Flow(client, agent), _Flow(agent, client)
        link.flows[client], link.flows[agent] = (there, back), (back, there)
        for sock in (client, agent):
            self._listen_for(link, sock)

    def _listen_for(self, link: _Link, sock: socket.socket) -> None:
        outward, inward = link.flows[sock]
        wanted = 0
        if not outward.ended and len(outward.waiting) < BACKLOG_BYTES:
            wanted |= selectors.EVENT_READ
        if inward.waiting:
            wanted |= selectors.EVENT_WRITE
        registered = sock in self._selector.get_map()
        if not wanted or link.cut:
            if registered:
                self._selector.unregister(sock)
        elif registered:
            self._selector.modify(sock, wanted, link)
        else:
            self._selector.register(sock, wanted, link)

    def _drop(self, link: _Link, sock: socket.socket) -> None:
        outward, _ = link.flows[sock]
        for end in (outward.source, outward.target):
            link.flows.pop(end, None)
            if end in self._selector.get_map():
                self._selector.unregister(end)
            end.close()

    def _cut(self, link: _Link) -> None:
        link.cut = True
        for sock in link.flows:
            self._listen_for(link, sock)

    def _restore(self, link: _Link) -> None:
        link.cut = False
        for sock in list(link.flows):
            self._listen_for(link, sock)
        stranded, link.stranded = link.stranded, []
        for client in stranded:
            self._connect(link, client)

    def _end(self) -> None:
        self._running = False
        for link in self._links.values():
            for sock in [link.listener, *link.flows, *link.stranded]:
                sock.close()
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)
