"""The service with a rate limit that the example applications ask."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest


class Handler(http.server.BaseHTTPRequestHandler):
    server: RatesService

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/USD" and self.server.asked.count("/USD") < 3:
            return self._reply(429)
        if self.path == "/TOGETHER":
            self.server.together.wait()
        if self.path.startswith("/HELD"):
            self.server.let_go.wait(60)
        self._reply(200)

    def _reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(b'{"rate": 1.25}')

    def log_message(self, *args: object) -> None:
        pass


class RatesService(http.server.ThreadingHTTPServer):
    """USD has enough at first; TOGETHER waits for four, HELD for the test."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.together = threading.Barrier(4, timeout=60)
        self.let_go = threading.Event()


@pytest.fixture
def rates() -> Iterator[RatesService]:
    with RatesService() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.let_go.set()
        server.shutdown()
        thread.join()
