"""A small web server in the test process: what exporters and SDKs report to."""

from __future__ import annotations

import threading
from collections.abc import Callable

from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

Respond = Callable[[Request], Response]


class Quiet(WSGIRequestHandler):
    def log_request(self, *args: object) -> None:
        """Not among the output of a failed test."""


class WebServer:
    """Answers on a port of its own, each request in a thread, until it is closed."""

    def __init__(self, respond: Respond) -> None:
        self._server = make_server(
            "127.0.0.1",
            0,
            Request.application(respond),
            threaded=True,
            request_handler=Quiet,
        )
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
