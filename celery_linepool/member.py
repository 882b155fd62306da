"""A child in its pool: what it does, and for whom.

The table says what may follow what; lost is for ever.
"""

from __future__ import annotations

import enum
from typing import Any, Dict, Mapping, Optional, Set

from .child import Child
from .errors import LocalProtocolError
from .job import Call, Job, Loss
from .recycle import Limits
from .stderr import Stream
from .timers import Timer


class Phase(enum.Enum):
    """What a member is to its pool."""

    #: Started a moment ago, and not offered to tasks yet.
    BOOTING = "booting"
    IDLE = "idle"
    #: Reserved for a job that has not asked it yet.
    RESERVED = "reserved"
    BUSY = "busy"
    #: Asked to end, at the stop of the worker.
    STOPPING = "stopping"
    #: Being killed, or dead; only its end is waited for.
    LOST = "lost"
    GONE = "gone"


MOVES: Mapping[Phase, Set[Phase]] = {
    Phase.BOOTING: {Phase.IDLE, Phase.STOPPING, Phase.LOST},
    Phase.IDLE: {Phase.RESERVED, Phase.BUSY, Phase.STOPPING, Phase.LOST},
    Phase.RESERVED: {Phase.IDLE, Phase.BUSY, Phase.LOST},
    Phase.BUSY: {Phase.IDLE, Phase.LOST},
    Phase.STOPPING: {Phase.LOST},
    Phase.LOST: {Phase.GONE},
    Phase.GONE: set(),
}


class Member:
    """A child in its pool: what it does and for whom."""

    def __init__(
        self, child: Child, stream: Optional[Stream], limits: Limits, generation: int
    ) -> None:
        self.child = child
        self.stream = stream
        #: After which it is recycled.
        self.limits = limits
        self.generation = generation
        self.phase = Phase.BOOTING
        #: It lived long enough to be believed in.
        self.booted = False
        #: Why it is not to be given another task; None while it is.
        self.retiring: Optional[str] = None
        #: KiB of its process tree when it was last looked at.
        self.memory = 0
        self.idle_since = child.born
        self.job: Optional[Job] = None
        self.call: Optional[Call] = None
        self.served = 0
        #: Why it is lost: becomes the answer to its call.
        self.loss: Optional[Loss] = None
        self.timer: Optional[Timer] = None

    @property
    def stays(self) -> bool:
        """Whether it counts among the children that are wanted."""
        ending = (Phase.STOPPING, Phase.LOST, Phase.GONE)
        return self.retiring is None and self.phase not in ending

    def info(self) -> Dict[str, Any]:
        """For ``celery inspect stats``. From any thread."""
        return {
            "pid": self.child.pid,
            "state": self.phase.value,
            "tasks": self.served,
            "generation": self.generation,
            "memory_kib": self.memory,
            "retiring": self.retiring,
        }

    def move(self, phase: Phase) -> None:
        if phase not in MOVES[self.phase]:
            raise LocalProtocolError(
                f"{self.child}: {self.phase.value} -> {phase.value} is not legal"
            )
        self.phase = phase
