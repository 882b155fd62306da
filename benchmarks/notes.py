"""In the worker: writes down when each task has succeeded, and what the pool added."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Tuple

from celery import signals


class Notes:
    """A line for each task: its number, when it succeeded; with a stopwatch also the
    seconds from apply to the request's line and from the reply's line to the callback.
    """

    def __init__(self, path: str, stopwatch: bool) -> None:
        # One write for a line: processes share the file.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._begun: Dict[str, float] = {}
        self._read: Dict[str, Tuple[float, float]] = {}
        if stopwatch:
            self._watch()
        else:
            signals.task_success.connect(self._succeeded)

    def _note(self, id: str, *times: float) -> None:
        line = " ".join([str(int(id[-12:])), *(f"{t:.6f}" for t in times)])
        os.write(self._file, f"{line}\n".encode())

    def _succeeded(self, sender: Any, **kwargs: Any) -> None:
        self._note(sender.request.id, time.monotonic())

    def _watch(self) -> None:
        """Put ourselves around what a task goes through in the pool."""
        from celery_linepool.child import Child
        from celery_linepool.messages import Reply
        from celery_linepool.pool import LinePool

        apply, send = LinePool.on_apply, Child.send
        receive, end = Child.receive, LinePool.ended

        def on_apply(
            pool: Any, target: Any, args: Any = (), *more: Any, **kw: Any
        ) -> Any:
            self._begun[args[1]] = time.monotonic()
            return apply(pool, target, args, *more, **kw)

        def sent(child: Any, id: str, line: bytes) -> bool:
            written = send(child, id, line)
            self._begun[id] = time.monotonic() - self._begun[id]
            return written

        def received(child: Any) -> Any:
            now = time.monotonic()
            events = receive(child)
            for event in events or ():
                if isinstance(event, Reply):
                    assert event.id is not None
                    self._read[event.id] = (self._begun.pop(event.id), now)
            return events

        def ended(pool: Any, job: Any, *outcome: Any) -> None:
            end(pool, job, *outcome)
            before, since = self._read.pop(job.id)
            now = time.monotonic()
            self._note(job.id, now, before, now - since)

        LinePool.on_apply, Child.send = on_apply, sent  # type: ignore[method-assign]
        Child.receive, LinePool.ended = received, ended  # type: ignore[method-assign]
