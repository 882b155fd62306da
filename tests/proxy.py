"""A connection to a server that a test can cut, in the middle of whatever it says."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit


class Proxy(socketserver.ThreadingTCPServer):
    """Passes bytes on to a server of this machine, until it is told to cut.

    Arguments:
        url: of the server.
    """

    daemon_threads = False
    block_on_close = True
    request_queue_size = 50

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Link)
        self.target = urlsplit(url).port
        #: The server's, as it is reached through this.
        self.url = url.replace(f":{self.target}", f":{self.server_address[1]}")
        self.cuts = 0
        #: Bytes that went through, of a direction.
        self.passed: Counter[str] = Counter()
        #: Seconds for which each piece is kept back.
        self.delay = 0.0
        self._open = threading.Event()
        self._open.set()
        self.links: set[socket.socket] = set()
        #: Of a direction, "up" to the server or "down": bytes until the next cut.
        self.left: dict[str, int] = {}
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    def cut_after(self, direction: str, count: int) -> None:
        self.left[direction] = count

    def hold(self) -> None:
        """Let nothing through, until `let_go`; the connections stay."""
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.let_go()
        self.shutdown()
        self._thread.join()
        for link in list(self.links):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def passes(self, direction: str, data: bytes) -> tuple[bytes, bool]:
        """What of it goes through, and whether the connection goes on. May wait."""
        time.sleep(self.delay)
        self._open.wait()
        self.passed[direction] += len(data)
        left = self.left.get(direction)
        if left is None:
            return data, True
        if len(data) <= left:
            self.left[direction] = left - len(data)
            return data, True
        del self.left[direction]
        self.cuts += 1
        return data[:left], False


class _Link(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.server.target))
        except ConnectionRefusedError:
            return  # there is no server just now, and who asked is told so
        with server:
            self.server.links |= {self.request, server}
            up = threading.Thread(target=self.pump, args=("up", self.request, server))
            up.start()
            self.pump("down", server, self.request)
            up.join()
            self.server.links -= {self.request, server}

    def pump(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            goes_on = True
            while goes_on and (data := source.recv(65536)):
                data, goes_on = self.server.passes(name, data)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(servers: Any, kind: str) -> Iterator[tuple[str, str, Proxy]]:
    """The broker's address, the same through a proxy, and that."""
    lease = servers.shared(kind).lease()
    proxy = Proxy(lease.url)
    try:
        yield lease.url, proxy.url, proxy
    finally:
        proxy.close()
        lease.release()
