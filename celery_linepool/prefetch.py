"""How many messages the broker may hand us: enough for every slot of every pool.

Celery's prefetch count is one number for the whole worker. Without this, a pool that
is slow would fill it with messages that wait for it, and the other pools would see no
more. So twice of what a lane holds beyond its own share is added to the count, up to a
limit, and taken back when the lane has less.
"""

from __future__ import annotations

import threading
from typing import Any, Dict, Mapping

#: Messages beyond its share that one lane may hold at the most: they are kept in
#: memory, and another worker that has a free slot cannot have them.
MAX_BORROWED = 1000


class Prefetch:
    """Counts the unacknowledged messages of each lane.

    Arguments:
        slots: of each lane; its share is this many times the prefetch multiplier.
    """

    def __init__(self, slots: Mapping[str, int]) -> None:
        self._slots = dict(slots)
        self._multiplier = 1
        self._shares: Dict[str, int] = {}
        # ETA tasks come from Celery's timer thread where there is no event loop.
        # An RLock, because a signal handler may interrupt its holder.
        self._lock = threading.RLock()
        self._qos: Any = None
        self._held: Dict[str, int] = {}
        self._borrowed: Dict[str, int] = {}

    def connected(self, qos: Any, multiplier: int) -> None:
        """A new connection: what was held belongs to the last one."""
        with self._lock:
            self._qos = qos
            self._multiplier = multiplier
            self._shares = {k: slots * multiplier for k, slots in self._slots.items()}
            self._held = dict.fromkeys(self._slots, 0)
            self._borrowed = dict.fromkeys(self._slots, 0)

    def resize(self, lane: str, slots: int) -> None:
        """A lane has more slots, or fewer; Celery changes the count itself."""
        with self._lock:
            self._slots[lane] = slots
            self._shares[lane] = slots * self._multiplier

    def take(self, lane: str) -> None:
        """A message for this lane came."""
        self._change(lane, 1)

    def give(self, lane: str) -> None:
        """A message of this lane was acknowledged."""
        self._change(lane, -1)

    @staticmethod
    def _loan(excess: int, current: int) -> int:
        """What a lane borrows: twice its excess, changed in large steps.

        One at a time would be a word to the broker for every message.
        """
        if excess <= current and excess * 4 > current:
            return current
        return min(2 * excess, MAX_BORROWED)

    def _change(self, lane: str, by: int) -> None:
        with self._lock:
            if self._qos is None:
                return
            self._held[lane] += by
            excess = max(0, self._held[lane] - self._shares[lane])
            if not excess and not self._borrowed[lane]:
                return
            borrowed = self._loan(excess, self._borrowed[lane])
            more, self._borrowed[lane] = borrowed - self._borrowed[lane], borrowed
            if more > 0:
                self._qos.increment_eventually(more)
            elif more < 0:
                self._qos.decrement_eventually(-more)
