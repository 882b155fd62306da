"""What a monitor such as Flower sees of a worker."""

from __future__ import annotations

import time
from contextlib import closing


class Events:
    """All events of a worker, from when it is entered."""

    def __init__(self, app):
        self.seen = []
        self._app = app

    def __enter__(self):
        self._connection = self._app.connection_for_read()
        handlers = {"*": self.seen.append}
        receiver = self._app.events.Receiver(self._connection, handlers=handlers)
        self._drain = receiver.consume(limit=None, timeout=60, wakeup=True)
        next(self._drain)
        return self

    def __exit__(self, *exc_info):
        with closing(self._connection), closing(self._drain):
            pass

    def wait(self, type_, id):
        deadline = time.monotonic() + 60
        while not any(e["type"] == type_ and e.get("uuid") == id for e in self.seen):
            assert time.monotonic() < deadline, f"no {type_} of {id}: {self.seen}"
            next(self._drain)

    def of_tasks(self):
        return [event for event in self.seen if event["type"].startswith("task-")]
