"""What the children of one pool say, and whom it is for. In the engine's loop.

A reply frees its child before its task is settled; an event goes to the host of its
task; everything else is the child's own affair.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any, Callable, List, Optional, Protocol, Tuple

from .deadlines import Deadlines
from .engine import READ, Engine
from .farewell import EXIT_GRACE
from .figures import Figures
from .job import Answer, Call, Cancel, Cause, Job, Loss
from .member import Claim, Member, Phase
from .messages import Hello, Noise, Op, Reply, Status, Told, Violation
from .nursery import ASKED, Nursery
from .settings import PoolSettings
from .voice import printable

logger = logging.getLogger(__name__)

#: Events of one task that wait to be dealt with; with more its child is not read.
MAX_UNHEARD = 100


class Line(Protocol):
    """Where the tasks come from."""

    def tell(self, member: Member, line: bytes) -> None:
        """Write a line that is no request."""

    def offer(self, member: Member) -> None:
        """It may have room for a task, or have it no more."""

    def release(self, member: Member, claim: Claim) -> None:
        """It has served this."""

    def settling(self, job: Job) -> None:
        """A job has its answer; what is left is to settle it."""

    def submit(self, claim: Claim, first: bool = False) -> None:
        """Stand in line for a child."""

    def serve(self, heard: Optional[Member] = None) -> None:
        """Give children that have room to those that wait; one was just heard."""


class Hearing:
    """Listens to the children of one pool.

    Arguments:
        advertised: told of the pool's name and the tasks in a child's hello.
    """

    def __init__(
        self,
        settings: PoolSettings,
        engine: Engine,
        nursery: Nursery,
        deadlines: Deadlines,
        line: Line,
        figures: Figures,
        advertised: Callable[[str, Tuple[str, ...]], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._nursery = nursery
        self._deadlines = deadlines
        self._line = line
        self._figures = figures
        self._advertised = advertised

    def readable(self, member: Member) -> bool:
        """Take what a child said; False if there was nothing, or nobody to hear it."""
        if member.phase in (Phase.LOST, Phase.GONE):
            return False
        events = member.child.receive()
        if member.phase is Phase.STOPPING:
            # Nobody is asked any more, so nothing it says can be mistaken.
            if member.child.eof:
                self._engine.unwatch(member.child.stdout)
            return events is not None
        answers = []
        for event in events or ():
            if isinstance(event, Reply):
                answers += self._replied(member, event)
            else:
                self._heard(member, event)
        if member.child.eof:
            # Its exit may follow in a moment, and with it the reason.
            self._nursery.lose(member, None, EXIT_GRACE)
        if answers:
            # The child takes its next job before the last one is settled.
            self._line.serve(member)
            for call, answer in answers:
                self.answer(call, answer)
        return events is not None

    def _replied(self, member: Member, reply: Reply) -> List[Tuple[Call, Answer]]:
        assert reply.id is not None  # the connection knows whose it is
        call = member.calls.pop(reply.id)
        job = call.job
        if job is not None:
            job.member = None
            self._deadlines.replied(job, member)
        if reply.status is Status.RESTART and (job is None or job.doomed is None):
            self._go_elsewhere(member, call)
            return []
        member.served += 1
        self._figures.ran.add(time.monotonic() - call.sent)
        self._nursery.proven()
        self._line.release(member, job or call)
        if job is not None:
            self._line.settling(job)
        return [(call, self._answer_of(member, call, reply))]

    def _answer_of(self, member: Member, call: Call, reply: Reply) -> Answer:
        """What a reply means to a task that may have been told to give up."""
        job = call.job
        if job is None or reply.status is not Status.CANCELLED:
            return reply if job is None or job.doomed is None else job.doomed
        if job.doomed is not None:
            return job.doomed
        if job.cancelled is Cancel.SOFT_LIMIT:
            text = self._nursery.says(member, "gave up at the soft time limit")
            return Loss(Cause.SOFT_LIMIT, text, job.soft_limit or 0)
        if job.cancelled is Cancel.SHUTDOWN:
            text = self._nursery.says(member, "gave up because the worker ends")
            return Loss(Cause.SIBLING, text)
        return reply

    def _go_elsewhere(self, member: Member, call: Call) -> None:
        """A child has not begun a task and wants to be replaced."""
        if member.served:
            self._nursery.retire(member, ASKED)
        self._line.release(member, call.job or call)
        if not member.served:
            # Nor would its successor begin one, as far as we know: not at full speed.
            text = self._nursery.says(member, "asked to be replaced at its first task")
            self._nursery.lose(member, Loss(Cause.VIOLATION, text, of=call.id))
        self._line.submit(call, first=True)

    def answer(self, call: Call, answer: Answer) -> None:
        """Tell a call what came of it."""
        if call.timer is not None:
            self._engine.cancel(call.timer)
        came = answer.status if isinstance(answer, Reply) else answer.cause
        if call.job is not None:
            call.job.begun = True
        self._figures.outcomes[came.value] += 1
        call.answer(answer)

    # --- what else they say -----------------------------------------------------------

    def _heard(self, member: Member, event: Any) -> None:
        if isinstance(event, Violation):
            self._violated(member, event)
        elif isinstance(event, Told):
            self._told(member, event)
        elif isinstance(event, Noise):
            member.voice.noise(event.line, member.only_task)
        elif isinstance(event, Hello):
            self._greeted(member, event)

    def _violated(self, member: Member, violation: Violation) -> None:
        text = self._nursery.says(member, f"broke the protocol: {violation}")
        if not member.calls:
            extra = member.voice.identity(cause=Cause.VIOLATION.value)
            hint = _STDOUT_HINT
            logger.error("linepool: %s; it is killed. %s", text, hint, extra=extra)
        one = next(iter(member.calls)) if len(member.calls) == 1 else violation.id
        loss = Loss(Cause.VIOLATION, text, of=one)
        if one is None and member.calls:
            loss = Loss(Cause.SIBLING, text)  # whose line it was, nobody can tell
        self._nursery.lose(member, loss)

    def _greeted(self, member: Member, hello: Hello) -> None:
        if hello.inflight < self._settings.inflight:
            logger.warning(
                "linepool: pool %r: child pid %s serves %d tasks at once, not "
                "linepool_inflight = %d",
                self._settings.name,
                member.child.pid,
                hello.inflight,
                self._settings.inflight,
                extra=member.voice.identity(cause="inflight"),
            )
        self._advertised(self._settings.name, hello.tasks)
        self._nursery.greeted(member)
        self._line.offer(member)
        self._line.serve()

    def _told(self, member: Member, told: Told) -> None:
        if told.op is Op.LOG:
            level, message = told.fields.get("level"), told.fields.get("message")
            text = printable(str(message).encode("utf-8", "surrogatepass"))
            name = level if isinstance(level, str) else "info"
            member.voice.say(text, told.id, name)
            return
        call = member.calls.get(told.id or "")
        if call is not None and call.hear is not None and call.hear(told):
            call.unheard += 1
            if call.unheard >= MAX_UNHEARD and not member.paused:
                member.paused = True
                self._engine.unwatch(member.child.stdout)

    def heard(self, call: Call, answer: Optional[bytes]) -> None:
        """An event has been dealt with; `answer` is the line that the child gets."""
        call.unheard -= 1
        member = call.member
        if answer is not None and call.id in member.calls:
            self._line.tell(member, answer)
        if member.paused and call.unheard < MAX_UNHEARD:
            member.paused = False
            if member.phase in (Phase.IDLE, Phase.BUSY):
                readable = partial(self.readable, member)
                self._engine.watch(member.child.stdout, READ, readable)


_STDOUT_HINT = "Its stdout is the protocol: print to stderr instead"
