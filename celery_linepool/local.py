"""The app's Python tasks and Celery's own: in threads, without a child.

They have a line of their own and never hold a child's slot: ``celery.starmap`` over a
foreign task waits for children, and would wait for ever if it held the last one.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Any, Deque, Dict, List

from .children import Owner
from .job import Cancel, Job

logger = logging.getLogger(__name__)


class Local:
    """A lane like a pool of children, of `size` threads. In the engine's loop."""

    def __init__(self, size: int, owner: Owner) -> None:
        self.size = size
        self._owner = owner
        self._waiting: Deque[Job] = deque()
        self._running = 0

    def submit(self, job: Job, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(job)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._running < self.size:
            job = self._waiting.popleft()
            if self._owner.may_start(job):
                self._running += 1
                self._owner.accepted(job, os.getpid())
                self._owner.start_job(job)

    @property
    def has_room(self) -> bool:
        """Whether a task would start at once. From any thread."""
        return self._running < self.size

    def settled(self, job: Job) -> None:
        self._running -= 1
        self._serve()

    def flush(self) -> List[Job]:
        jobs, self._waiting = list(self._waiting), deque()
        return jobs

    def terminate(self, job: Job, signum: int, why: Cancel) -> None:
        logger.warning(
            "linepool: %s[%s] is a Python task in a thread of the worker and cannot "
            "be terminated; it goes on",
            job.name,
            job.id,
        )

    def info(self) -> Dict[str, Any]:
        return {
            "size": self.size,
            "running": self._running,
            "waiting": len(self._waiting),
        }
