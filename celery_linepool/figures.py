"""What a pool counts and measures, for whoever looks at it. No threads, no clock.

One thread writes, the engine; any thread may read: a number is whole at any moment,
and two of them need not belong together.
"""

from __future__ import annotations

import bisect
from collections import Counter
from typing import Any, Dict, List, Optional, Sequence

#: Upper bounds in seconds. From what an idle child needs for nothing (some 100 us) to
#: the default time limit (600 s); steps of about two and a half, as Prometheus's own.
BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class Histogram:
    """How long something took, in seconds, by ranges."""

    def __init__(self, bounds: Sequence[float] = BOUNDS) -> None:
        self.bounds = tuple(bounds)
        #: How many in each range; the last one is open upwards.
        self.counts: List[int] = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, part: float) -> Optional[float]:
        """The value that this part of all is not above; None of nothing.

        As exact as the ranges: it is taken to grow evenly within one. What is above the
        last bound counts as that bound.
        """
        counts = self.counts[:]
        rank, below = part * sum(counts), 0
        if not any(counts):
            return None
        for index, count in enumerate(counts):
            if count and below + count >= rank:
                if index == len(self.bounds):
                    break
                low = self.bounds[index - 1] if index else 0.0
                high = self.bounds[index]
                return low + (high - low) * (rank - below) / count
            below += count
        return self.bounds[-1]

    def info(self) -> Dict[str, Any]:
        """For people: how many, and what most and nearly all took."""
        found = {"p50": self.quantile(0.5), "p99": self.quantile(0.99)}
        rounded = {k: None if v is None else round(v, 6) for k, v in found.items()}
        return {"count": self.count, **rounded}


class Figures:
    """Everything that one pool counts since the start of its worker."""

    def __init__(self) -> None:
        #: Tasks by what their child said, or why it said nothing.
        self.outcomes: Counter[str] = Counter()
        #: Children that ended, by the cause.
        self.restarts: Counter[str] = Counter()
        #: From the hand-over of a task to the moment that it has a child.
        self.waited = Histogram()
        #: From a request to its reply.
        self.ran = Histogram()
        #: From the start of a child to its hello.
        self.booted = Histogram()

    def info(self) -> Dict[str, Any]:
        """For ``celery inspect stats``."""
        return {
            "outcomes": dict(self.outcomes),
            "restarts": dict(self.restarts),
            "wait_seconds": self.waited.info(),
            "run_seconds": self.ran.info(),
            "boot_seconds": self.booted.info(),
        }
