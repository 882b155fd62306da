"""One task, from Celery's hand-over until it is settled, and its calls to a child.

A job is hosted by a greenlet of the engine, or by a thread where Celery's tracer will
block (it publishes, or runs the user's hooks). The two differ in how they wait, which
is a `Waiter`; nothing else knows.
"""

from __future__ import annotations

import contextvars
import enum
import queue
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    Protocol,
    Set,
    Union,
)

from greenlet import getcurrent

from .errors import LocalProtocolError
from .messages import Reply, Told
from .timers import Timer

if TYPE_CHECKING:
    from .engine import Engine


class State(enum.Enum):
    """How far a job is. Only the thread that is named moves it on."""

    #: Enum's own is a call in Python, and a move makes several.
    __hash__ = object.__hash__

    #: Handed over by Celery, in its lane's line.
    WAITING = "waiting"
    #: Celery was told that it started; it has, or had, a child. (engine)
    RUNNING = "running"
    #: Celery was told how it ended. (main)
    SETTLED = "settled"
    #: Never started: handed back to the broker, revoked or expired. (main)
    DROPPED = "dropped"


MOVES: Mapping[State, Set[State]] = {
    State.WAITING: {State.RUNNING, State.DROPPED},
    State.RUNNING: {State.SETTLED},
    State.SETTLED: set(),
    State.DROPPED: set(),
}


class Cause(enum.Enum):
    """Why a call has no reply."""

    DIED = "died"
    VIOLATION = "violation"
    LIMIT = "limit"
    TERMINATED = "terminated"
    MEMORY = "memory"
    #: Another task in the same child had to be ended with it.
    SIBLING = "sibling"
    #: It gave up at its soft time limit.
    SOFT_LIMIT = "soft limit"
    #: The worker ends, and no child has read it.
    UNREAD = "unread"


@dataclass(frozen=True)
class Loss:
    """A call will have no reply: its child is gone. The text is for people."""

    cause: Cause
    text: str
    #: The time limit in seconds, or the signal's number.
    number: float = 0
    #: The last lines of the child's stderr.
    tail: List[str] = field(default_factory=list)
    #: The request whose fault it is, where that is known.
    of: Optional[str] = None

    def __str__(self) -> str:
        if not self.tail:
            return self.text
        return "\n".join(
            [
                f"{self.text}. Its last lines on stderr:",
                *(f"    {t}" for t in self.tail),
            ]
        )


Answer = Union[Reply, Loss]


class Cancel(str, enum.Enum):
    """Why a child is asked to give up a task; the values are those on the wire."""

    SOFT_LIMIT = "soft_time_limit"
    LIMIT = "time_limit"
    REVOKED = "revoked"
    SHUTDOWN = "shutdown"


class Runtime(Protocol):
    """What a running task may ask of the pool that it runs in."""

    def ask(
        self, job: "Job", task: Any, request_id: str, payload: Dict[str, Any]
    ) -> Answer:
        """One request to a child, and what came of it. Waits."""

    def run_aside(self, task: Any, call: Callable[[], Any]) -> Any:
        """`call()`, where it may block. Waits."""

    def settled_backend(self) -> Any:
        """The app's result backend for a task that must not block."""


class Job:
    """One task of one message.

    Arguments:
        id: the task's id. It is not unique: a task may be delivered twice.
        name: the task's name.
        runtime: where it runs.
        lane: the pool that serves it, or the threads of Python tasks.
        body: runs the task, by calling Celery's tracer; what it returns or raises
            goes to `ended`.
        ended: called in the host with (returned, raised), one of them None.
    """

    def __init__(
        self,
        id: str,
        name: str,
        runtime: Runtime,
        lane: str,
        body: Callable[[], Any],
        ended: Callable[["Job", Any, Optional[BaseException]], None],
    ) -> None:
        self.id = id
        self.name = name
        self.runtime = runtime
        self.lane = lane
        self.state = State.WAITING
        #: Seconds until it is killed; None for the pool's own limit.
        self.limit: Optional[float] = None
        #: Seconds until Celery is told that it takes long; None for never.
        self.soft_limit: Optional[float] = None
        self.soft_timer: Optional[Timer] = None
        #: Whether nothing in it blocks, so that a greenlet may host it.
        self.plain = False
        #: Whether its message is acknowledged when it has ended, and not before: it may
        #: be left to another worker.
        self.late = False
        #: The child that is reserved for it, as its pool sees it.
        self.member: Any = None
        #: A child has answered it, or may have worked on it.
        self.begun = False
        #: Its reply came; what is left is to settle it.
        self.settling = False
        #: It lost its child before it asked anything, and must not go on.
        self.doomed: Optional[Loss] = None
        self.timer: Optional[Timer] = None
        #: When it was handed in, by the monotonic clock.
        self.since = 0.0
        #: Why its child was asked to give up.
        self.cancelled: Optional[Cancel] = None
        #: Until its child is killed for not giving up.
        self.grace_timer: Optional[Timer] = None
        #: When it will be killed, by the monotonic clock; None without a limit.
        self.deadline: Optional[float] = None
        self._body = body
        self._ended = ended

    def __repr__(self) -> str:
        return f"<Job {self.name}[{self.id}]: {self.state.value}>"

    def move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise LocalProtocolError(
                f"task {self.id}: {self.state.value} -> {state.value} is not legal"
            )
        self.state = state

    def is_suspect(self) -> bool:
        """Whether it may be unwanted by now: revoked or expired while it waited."""
        return False

    def run(self) -> None:
        """The whole task, in its host."""
        contextvars.copy_context().run(self._run)

    def _run(self) -> None:
        _current.set(self)
        returned, raised = None, None
        try:
            returned = self._body()
        except BaseException as exc:  # the owner tells Celery, whatever it is
            raised = exc
        self._ended(self, returned, raised)


_current: "contextvars.ContextVar[Job]" = contextvars.ContextVar("linepool_job")


def current_job() -> Optional[Job]:
    """The job whose host is running here, if any."""
    return _current.get(None)


class Waiter:
    """How the host of a task waits for what the engine delivers, one thing at a time.

    What comes while the host is busy elsewhere waits for it, in order.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._greenlet = getcurrent() if engine.is_here() else None
        self._values: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
        self._waits = False

    def wait(self) -> Any:
        """The next value that `wake` was given. The engine goes on meanwhile."""
        if self._greenlet is not None and self._values.empty():
            self._waits = True
            self._engine.suspend()
        return self._values.get()

    def wake(self, value: Any) -> None:
        """Deliver a value. Only from the engine's loop."""
        self._values.put(value)
        if self._waits:
            self._waits = False
            assert self._greenlet is not None
            self._engine.resume(self._greenlet, None)


class Call:
    """One request to a child, from its encoded line to its reply or loss."""

    __slots__ = (
        *("id", "line", "job", "member", "timer", "since", "sent"),
        *("answer", "hear", "unheard"),
    )

    def __init__(
        self,
        id: str,
        line: bytes,
        job: Optional[Job],
        answer: Callable[[Answer], None],
        hear: Optional[Callable[[Told], bool]] = None,
    ) -> None:
        self.id = id
        self.line = line
        #: The job in whose slot it runs; None if a Python task asked for it.
        self.job = job
        #: The child that was asked, as its pool sees it.
        self.member: Any = None
        self.timer: Optional[Timer] = None
        #: When it stood in line, and when it was written, by the monotonic clock.
        self.since = self.sent = 0.0
        #: Called once in the engine's loop, with what came of it.
        self.answer = answer
        #: Called in the engine's loop with what the child says before its reply; tells
        #: whether that has to be dealt with, and `Children.heard` called afterwards.
        self.hear = hear
        #: Events that have not been dealt with.
        self.unheard = 0
