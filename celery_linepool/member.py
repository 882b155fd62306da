"""A child in its pool: what it does, and for whom.

The table says what may follow what; lost is for ever.
"""

from __future__ import annotations

import enum
from typing import Mapping, Optional, Set

from .child import Child
from .errors import LocalProtocolError
from .job import Call, Job, Loss
from .stderr import Stream
from .timers import Timer


class Phase(enum.Enum):
    """What a member is to its pool."""

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
    Phase.IDLE: {Phase.RESERVED, Phase.BUSY, Phase.STOPPING, Phase.LOST},
    Phase.RESERVED: {Phase.IDLE, Phase.BUSY, Phase.LOST},
    Phase.BUSY: {Phase.IDLE, Phase.LOST},
    Phase.STOPPING: {Phase.LOST},
    Phase.LOST: {Phase.GONE},
    Phase.GONE: set(),
}


class Member:
    """A child in its pool: what it does and for whom."""

    def __init__(self, child: Child, stream: Optional[Stream]) -> None:
        self.child = child
        self.stream = stream
        self.phase = Phase.IDLE
        self.job: Optional[Job] = None
        self.call: Optional[Call] = None
        self.served = 0
        #: Why it is lost: becomes the answer to its call.
        self.loss: Optional[Loss] = None
        self.timer: Optional[Timer] = None

    def move(self, phase: Phase) -> None:
        if phase not in MOVES[self.phase]:
            raise LocalProtocolError(
                f"{self.child}: {self.phase.value} -> {phase.value} is not legal"
            )
        self.phase = phase
