"""A child in its pool: what it does, and for whom.

The table says what may follow what; lost is for ever.
"""

from __future__ import annotations

import enum
import time
from typing import Any, Dict, Mapping, Optional, Set, Union

from .child import Child
from .errors import LocalProtocolError
from .job import Call, Job, Loss
from .recycle import Limits
from .stderr import Stream
from .timers import Timer
from .voice import Voice

Claim = Union[Job, Call]


#: Tasks of one child that are shown: `inspect stats` has to fit into one message.
SHOWN = 10


class Phase(enum.Enum):
    """What a member is to its pool."""

    #: Enum's own is a call in Python, and a move makes several.
    __hash__ = object.__hash__

    #: Started a moment ago, and not offered to tasks yet.
    BOOTING = "booting"
    IDLE = "idle"
    #: It serves at least one claim.
    BUSY = "busy"
    #: Asked to end, at the stop of the worker.
    STOPPING = "stopping"
    #: Being killed, or dead; only its end is waited for.
    LOST = "lost"
    GONE = "gone"


MOVES: Mapping[Phase, Set[Phase]] = {
    Phase.BOOTING: {Phase.IDLE, Phase.STOPPING, Phase.LOST},
    Phase.IDLE: {Phase.BUSY, Phase.STOPPING, Phase.LOST},
    Phase.BUSY: {Phase.IDLE, Phase.LOST},
    Phase.STOPPING: {Phase.LOST},
    Phase.LOST: {Phase.GONE},
    Phase.GONE: set(),
}


class Member:
    """A child in its pool: what it does and for whom."""

    def __init__(
        self,
        child: Child,
        stream: Optional[Stream],
        voice: Voice,
        limits: Limits,
        generation: int,
        slot: int,
    ) -> None:
        self.child = child
        self.stream = stream
        #: Logs what it says on its channel.
        self.voice = voice
        #: Its number in the pool, from 1 on; a successor may have it again.
        self.slot = slot
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
        #: From its start to its hello; None if it said none.
        self.boot_seconds: Optional[float] = None
        #: What it serves: jobs that it is reserved for, and calls of nobody's slot.
        self.claims: Dict[Claim, None] = {}
        #: What it has been asked, by the id of the request.
        self.calls: Dict[str, Call] = {}
        #: Tasks in it that are given up: while there is one it gets no other.
        self.condemned = 0
        #: Whether it stands among those that can be given a task.
        self.offered = False
        #: Whether its stdout is not read for now, because it says too much.
        self.paused = False
        self.served = 0
        #: Why it is lost: becomes the answer to its calls.
        self.loss: Optional[Loss] = None
        #: Until its end has to go on.
        self.timer: Optional[Timer] = None
        #: Until it has to have booted, or counts as booted.
        self.boot_timer: Optional[Timer] = None

    @property
    def stays(self) -> bool:
        """Whether it counts among the children that are wanted."""
        ending = (Phase.STOPPING, Phase.LOST, Phase.GONE)
        return self.retiring is None and self.phase not in ending

    @property
    def has_room(self) -> bool:
        """Whether it may be given one claim more."""
        return (
            self.phase in (Phase.IDLE, Phase.BUSY)
            and self.retiring is None
            and not self.condemned
            and len(self.claims) < self.child.connection.inflight
        )

    def take(self, claim: Claim) -> None:
        if self.phase is Phase.IDLE:
            self.move(Phase.BUSY)
        self.claims[claim] = None

    def drop(self, claim: Claim) -> None:
        """It does not serve this any more."""
        del self.claims[claim]
        if not self.claims and self.phase is Phase.BUSY:
            self.move(Phase.IDLE)

    @property
    def only_task(self) -> Optional[str]:
        """The id of what it does, if that is one thing: whose its words are."""
        return next(iter(self.calls)) if len(self.calls) == 1 else None

    def has(self, request_id: str) -> bool:
        """Whether it serves a request of this id, or soon will."""
        return any(claim.id == request_id for claim in self.claims)

    def info(self) -> Dict[str, Any]:
        """For ``celery inspect stats``. From any thread."""
        now = time.monotonic()
        calls = list(self.calls.values())
        return {
            "pid": self.child.pid,
            "slot": self.slot,
            "state": self.phase.value,
            "inflight": len(self.claims),
            "tasks": self.served,
            "generation": self.generation,
            "age_seconds": round(now - self.child.born, 1),
            "boot_seconds": self.boot_seconds and round(self.boot_seconds, 3),
            "doing": [
                {
                    "id": call.id,
                    "task": call.job.name if call.job else None,
                    "seconds": round(now - call.sent, 3),
                }
                for call in calls[:SHOWN]
            ],
            "memory_kib": self.memory,
            "retiring": self.retiring,
        }

    def move(self, phase: Phase) -> None:
        if phase not in MOVES[self.phase]:
            raise LocalProtocolError(
                f"{self.child}: {self.phase.value} -> {phase.value} is not legal"
            )
        self.phase = phase
