"""How many tasks of a pool may have their reply, and not their end yet."""

from __future__ import annotations

from typing import Callable

from .job import Job

#: For each slot; as many as a worker fetches for it by default. In batches a backend
#: that is 5 ms away then holds up little (docs/benchmarks/costs.md).
PER_SLOT = 4


class Unsettled:
    """Counts them, so that a slow result backend holds tasks back in the line.

    Piled up here, each would be a result that a worker which is killed takes with it.

    Arguments:
        holds_thread: whether a thread is busy with a job until it is settled. There is
            one for each slot.
    """

    def __init__(self, holds_thread: Callable[[Job], bool]) -> None:
        self._holds_thread = holds_thread
        self._threads = 0
        self.count = 0

    def add(self, job: Job) -> None:
        """Its reply came."""
        job.settling = True
        self._count(job, 1)

    def drop(self, job: Job) -> None:
        """It ended, or asks its child again."""
        job.settling = False
        self._count(job, -1)

    def _count(self, job: Job, one: int) -> None:
        self.count += one
        if self._holds_thread(job):
            self._threads += one

    def is_full(self, slots: int) -> bool:
        """Whether no task is to be started until one of these has ended."""
        return self.count >= PER_SLOT * slots or self._threads >= slots
