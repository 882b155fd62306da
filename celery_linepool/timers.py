"""Calls due at a time: a heap that forgets cancelled entries. No clock, no thread."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any, Callable, List, Optional, Tuple

#: Cancelled entries are swept out when they are the larger half and at least this
#: many: nearly every time limit is cancelled, so without it 600 s of finished tasks
#: would stay in memory.
SWEEP = 64


class Timer:
    """One call that is due at `when`; `cancel` it through its `Timers`."""

    __slots__ = ("when", "call", "args")

    def __init__(self, when: float, call: Callable[..., Any], args: Tuple[Any, ...]):
        self.when = when
        self.call: Optional[Callable[..., Any]] = call
        self.args = args


class Timers:
    """All timers of one thread."""

    def __init__(self) -> None:
        self._heap: List[Tuple[float, int, Timer]] = []
        self._sequence = count()
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def add(self, when: float, call: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer(when, call, args)
        heapq.heappush(self._heap, (when, next(self._sequence), timer))
        return timer

    def cancel(self, timer: Timer) -> None:
        """Never run it. A timer that ran or was cancelled already is left alone."""
        if timer.call is None:
            return
        timer.call, timer.args = None, ()
        self._cancelled += 1
        if self._cancelled >= SWEEP and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_due(self) -> Optional[float]:
        """When the next timer is due; None without one."""
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Optional[Timer]:
        """The next timer that is due, taken out; None if none is."""
        due = self.next_due()
        if due is None or due > now:
            return None
        timer = heapq.heappop(self._heap)[2]
        return timer
