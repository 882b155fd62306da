"""When a healthy child has served enough: a policy without clock, process or thread."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Optional

#: A limit is drawn for each child from this part of itself up to the whole, so that
#: children that were started together are not ended together. RoadRunner's 15 %.
JITTER = 0.15


@dataclass(frozen=True)
class Limits:
    """What one child may use before it is recycled; None for no limit."""

    #: Tasks.
    tasks: Optional[int] = None
    #: KiB of its process tree, looked at after a task.
    memory: Optional[int] = None
    #: Seconds since its start.
    lifetime: Optional[float] = None
    #: Seconds without a task.
    idle: Optional[float] = None

    def drawn(
        self, uniform: Callable[[float, float], float] = random.uniform
    ) -> "Limits":
        """These limits for one child: a little less, by chance. Tasks stay above 0."""

        def draw(limit: Optional[float]) -> Optional[float]:
            return None if limit is None else limit * (1 - uniform(0, JITTER))

        tasks = None if self.tasks is None else max(1, round(draw(self.tasks) or 1))
        return Limits(tasks, self.memory, draw(self.lifetime), draw(self.idle))

    def reached(
        self, tasks: int, memory: int, age: float, idle: float
    ) -> Optional[str]:
        """Which limit was reached, in the words of its setting; None if none was."""
        if self.tasks is not None and tasks >= self.tasks:
            return "max_tasks_per_child"
        if self.memory is not None and memory > self.memory:
            return "max_memory_per_child"
        if self.lifetime is not None and age >= self.lifetime:
            return "linepool_max_lifetime"
        if self.idle is not None and idle >= self.idle:
            return "linepool_idle_timeout"
        return None
