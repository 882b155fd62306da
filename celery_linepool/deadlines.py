"""The time that a task has, and how it is ended before it ends by itself.

A child with one task is killed, as prefork kills a process. One that knows what a
cancel is, and has other tasks besides or is only asked to give one up, is asked first:
it gets no new task meanwhile, and is killed after a grace time. In the engine's loop.
"""

from __future__ import annotations

import signal
from typing import Callable, List, Optional, Protocol

from .encoding import encode_op
from .engine import Engine
from .farewell import Farewell
from .job import Call, Cancel, Cause, Job, Loss
from .member import Claim, Member, Phase
from .settings import PoolSettings

#: Seconds that a child has for the signal of ``revoke(terminate=True)``, or for the
#: dump of its stack, before SIGKILL; and for its last replies at a cold shutdown.
SIGNAL_GRACE = 1.0


class Seats(Protocol):
    """What has the tasks. All called in the engine's loop."""

    def readable(self, member: Member) -> bool:
        """Take what a child said."""

    def tell(self, member: Member, line: bytes) -> None:
        """Write a line to a child."""

    def leave(self, member: Member, job: Job) -> None:
        """A job that has not asked its child gives it back."""

    def offer(self, member: Member) -> None:
        """It may have room for a task, or have it no more."""

    def withdraw(self, wanted: Claim, loss: Loss) -> None:
        """Answer a call that stands in line, by itself or for a job."""

    def members(self) -> List[Member]:
        """Every child."""


class Deadlines:
    """Time limits and ends of the tasks of one pool."""

    def __init__(
        self,
        settings: PoolSettings,
        engine: Engine,
        farewell: Farewell,
        seats: Seats,
        soft_limit: Callable[[Job], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._lose = farewell.lose
        self._says = farewell.says
        self._seats = seats
        #: Tells the owner that a task exceeded its soft limit.
        self._tell_soft_limit = soft_limit

    # --- how long ---------------------------------------------------------------------

    def begin(self, job: Job) -> None:
        """Its time runs from here."""
        seconds = self._settings.timeout if job.limit is None else job.limit
        job.timer = self._engine.call_later(seconds, self._hard_limit, job, seconds)
        job.deadline = job.timer.when
        if job.soft_limit is not None:
            job.soft_timer = self._engine.call_later(
                job.soft_limit, self._soft_limit, job
            )

    def begin_call(self, call: Call) -> None:
        """The same for a call that is in nobody's slot."""
        call.timer = self._engine.call_later(
            self._settings.timeout, self._call_limit, call
        )

    def replied(self, job: Job, member: Member) -> None:
        """Its child has answered, and need not be killed for it any more."""
        if job.grace_timer is not None:
            self._engine.cancel(job.grace_timer)
            job.grace_timer = None
            member.condemned -= 1
            self._seats.offer(member)

    def end(self, job: Job) -> None:
        """It is through."""
        for timer in (job.timer, job.soft_timer):
            if timer is not None:
                self._engine.cancel(timer)
        job.timer = job.soft_timer = None

    # --- when it is over --------------------------------------------------------------

    def _soft_limit(self, job: Job) -> None:
        job.soft_timer = None
        if job.member is None or job.settling:
            return
        self._tell_soft_limit(job)
        if not self._cancel(job, Cancel.SOFT_LIMIT):
            if self._settings.soft_signal is not None:
                job.member.child.signal(self._settings.soft_signal)

    def _hard_limit(self, job: Job, seconds: float) -> None:
        job.timer = None
        if job.settling or job.doomed is not None:
            return  # it has its reply, or a revoke: the child is not too slow any more
        name = "linepool_timeout" if job.limit is None else "its time limit"
        what = f"exceeded {name} = {seconds:g} s"
        member: Optional[Member] = job.member
        if member is None or _call_of(job) is None:
            self._doom(job, Loss(Cause.LIMIT, f"it {what}", seconds))
            return
        self._seats.readable(member)  # the reply may have come just now
        call = _call_of(job)
        if call is None or member.phase in (Phase.LOST, Phase.GONE):
            return  # something else has ended it
        loss = Loss(Cause.LIMIT, self._says(member, what), seconds, of=call.id)
        self._doom(job, loss)
        # As prefork: at once, unless others in the child would have to go with it.
        alone = len(member.claims) == 1
        if alone or not self._ask_to_give_up(job, Cancel.LIMIT, loss):
            self._kill_after_dump(member, loss)

    def _kill_after_dump(self, member: Member, loss: Loss) -> None:
        """Kill a hung child, but let it say first where it hangs, if it can."""
        if self._settings.dump_signal is None:
            self._lose(member, loss)
        else:
            member.child.signal(self._settings.dump_signal)
            self._lose(member, loss, SIGNAL_GRACE)

    def _call_limit(self, call: Call) -> None:
        call.timer = None
        seconds = self._settings.timeout
        member: Optional[Member] = call.member
        if member is not None and call.id in member.calls:
            what = f"exceeded linepool_timeout = {seconds:g} s"
            loss = Loss(Cause.LIMIT, self._says(member, what), seconds, of=call.id)
            self._lose(member, loss)
        else:
            name = self._settings.name
            text = f"pool {name!r} had no child within linepool_timeout"
            self._seats.withdraw(call, Loss(Cause.LIMIT, text, seconds))

    def terminate(self, job: Job, signum: int, why: Cancel = Cancel.REVOKED) -> None:
        """End a running job; Celery has been told already."""
        call, member = _call_of(job), job.member
        loss = Loss(Cause.TERMINATED, f"it was terminated by signal {signum}", signum)
        if job.settling:
            return
        self._doom(job, loss)
        if call is None or member is None:
            return
        loss = Loss(loss.cause, loss.text, signum, of=call.id)
        # Whoever names another signal does not mean to ask.
        polite = signum == signal.SIGTERM
        if polite and self._ask_to_give_up(job, why, loss):
            return
        member.child.signal_group(signum)
        self._lose(member, loss, SIGNAL_GRACE)

    def _doom(self, job: Job, loss: Loss) -> None:
        """Whatever its child says from now on, this is what becomes of it."""
        job.doomed = loss
        if job.member is None:
            self._seats.withdraw(job, loss)
        elif _call_of(job) is None:
            self._seats.leave(job.member, job)

    # --- asking it to give up ---------------------------------------------------------

    def cancel_all(self) -> bool:
        """At a cold shutdown: ask whoever can be asked; whether there was one."""
        jobs = [j for m in self._seats.members() for j in m.claims]
        return any(
            [self._cancel(j, Cancel.SHUTDOWN) for j in jobs if isinstance(j, Job)]
        )

    def _cancel(self, job: Job, why: Cancel) -> bool:
        """Write a cancel, if it has asked a child that knows what that is."""
        call, member = _call_of(job), job.member
        if call is None or member is None or member.phase is not Phase.BUSY:
            return False
        if not member.child.understands("cancel"):
            return False
        job.cancelled = why
        line = encode_op("cancel", {"id": call.id, "reason": why.value})
        self._seats.tell(member, line)
        return True

    def _ask_to_give_up(self, job: Job, why: Cancel, loss: Loss) -> bool:
        """Cancel it, and kill its child if that has no effect."""
        member: Optional[Member] = job.member
        if member is None or not self._cancel(job, why):
            return False
        if job.grace_timer is None:
            member.condemned += 1
            self._seats.offer(member)
            job.grace_timer = self._engine.call_later(
                self._settings.cancel_grace, self._kill, job, loss
            )
        return True

    def _kill(self, job: Job, loss: Loss) -> None:
        member: Optional[Member] = job.member
        job.grace_timer = None
        if member is not None:
            self._kill_after_dump(member, loss)


def _call_of(job: Job) -> Optional[Call]:
    """What it has asked its child and has no answer to."""
    if job.member is None:
        return None
    calls = job.member.calls.values()
    return next((call for call in calls if call.job is job), None)
