"""Threads for work that blocks: Python tasks, and whatever would hold up the engine."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any, Callable, Optional, Tuple

logger = logging.getLogger(__name__)


class Threads:
    """Up to `limit` daemon threads, started when there is work for them, then kept.

    The first one is started by `start`: where the system has no thread to spare later,
    there is one at least that comes to all the work.

    `concurrent.futures` waits for its threads when the interpreter ends; a task that
    hangs would keep a worker from stopping, also after a cold shutdown.

    Arguments:
        begin: called in each thread before anything else.
    """

    def __init__(
        self, name: str, limit: int, begin: Callable[[], Any] = lambda: None
    ) -> None:
        self.name = name
        self.limit = limit
        self._begin = begin
        self._work: "queue.SimpleQueue[Optional[Tuple[Callable[..., Any], Any]]]" = (
            queue.SimpleQueue()
        )
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        thread = threading.Thread(
            target=self._run,
            name=f"linepool-{self.name}-{len(self._threads) + 1}",
            daemon=True,
        )
        thread.start()
        self._threads.append(thread)

    def submit(self, call: Callable[..., Any], *args: Any) -> None:
        """Run `call(*args)` in one of the threads, as soon as one is free."""
        self._work.put((call, args))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self.limit:
            try:
                self.start()
            except RuntimeError as exc:
                logger.error(
                    "linepool: no thread for a task, which waits for one of %d: %s "
                    "(the limit of processes?)",
                    len(self._threads),
                    exc,
                )

    def stop(self, wait: bool = True) -> None:
        """End the threads after the work that was submitted."""
        for _ in self._threads:
            self._work.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _next(self) -> Optional[Tuple[Callable[..., Any], Any]]:
        try:
            return self._work.get_nowait()
        except queue.Empty:
            # Idle: whoever comes to work that waited without a thread is not.
            self._idle.release()
            return self._work.get()

    def _run(self) -> None:
        self._begin()
        while True:
            work = self._next()
            if work is None:
                return
            call, args = work
            try:
                call(*args)
            except Exception:
                logger.critical("linepool: a bug, in %r", call, exc_info=True)
            del work, call, args
