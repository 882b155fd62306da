"""In the worker: writes down when each task has succeeded, and what its pool added."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Optional, Tuple

from celery import signals
from celery.concurrency.base import BasePool


class Notes:
    """A line for each task: its number, when it succeeded; with a stopwatch also the
    seconds from apply to the request's line and from the reply's line to the callback.

    Arguments:
        pipe: the class whose objects speak with a child, where the pool is not ours.
    """

    def __init__(self, path: str, stopwatch: bool, pipe: Optional[type]) -> None:
        # One write for a line: processes share the file.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._begun: Dict[str, float] = {}
        self._before: Dict[str, float] = {}
        self._read: Dict[str, float] = {}
        if not stopwatch:
            signals.task_success.connect(self._succeeded)
            return
        self._watch_pool()
        if pipe is None:
            self._watch_children()
        else:
            self._watch_pipes(pipe)

    def _note(self, id: str, *times: float) -> None:
        line = " ".join([str(int(id[-12:])), *(f"{t:.6f}" for t in times)])
        os.write(self._file, f"{line}\n".encode())

    def _succeeded(self, sender: Any, **kwargs: Any) -> None:
        self._note(sender.request.id, time.monotonic())

    def _written(self, id: str) -> None:
        self._before[id] = time.monotonic() - self._begun.pop(id)

    def _watch_pool(self) -> None:
        """Put ourselves around what Celery hands to any pool, and gets back from it."""
        apply = BasePool.apply_async

        def apply_async(
            pool: Any,
            target: Any,
            args: Tuple[Any, ...],
            callback: Any = None,
            **options: Any,
        ) -> Any:
            def ended(*said: Any) -> None:
                now = time.monotonic()
                callback(*said)
                self._note(id_, now, self._before.pop(id_), now - self._read.pop(id_))

            id_ = args[1]
            self._begun[id_] = time.monotonic()
            return apply(pool, target, args, callback=ended, **options)

        BasePool.apply_async = apply_async

    def _watch_children(self) -> None:
        from celery_linepool.child import Child
        from celery_linepool.messages import Reply

        send, receive = Child.send, Child.receive

        def sent(child: Any, id: str, line: bytes) -> bool:
            written = send(child, id, line)
            self._written(id)
            return written

        def received(child: Any) -> Any:
            now = time.monotonic()
            events = receive(child)
            for event in events or ():
                if isinstance(event, Reply):
                    assert event.id is not None
                    self._read[event.id] = now
            return events

        Child.send, Child.receive = sent, received  # type: ignore[method-assign]

    def _watch_pipes(self, pipe: Any) -> None:
        send, hear = pipe.send, pipe.hear

        def sent(pipe: Any, id: str, line: bytes) -> None:
            send(pipe, id, line)
            self._written(id)

        def heard(pipe: Any, id: str) -> bytes:
            line: bytes = hear(pipe, id)
            self._read[id] = time.monotonic()
            return line

        pipe.send, pipe.hear = sent, heard
