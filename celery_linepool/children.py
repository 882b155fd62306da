"""One pool: its line of waiting tasks, and the way between them and its children.

Everything here runs in the engine's loop, so there are no locks. Rules of residence:
a member serves one call at a time, and one that is not idle is never given a call.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Protocol, Union

from .child import Child
from .engine import WRITE, Engine
from .errors import BootError
from .farewell import EXIT_GRACE
from .guardian import Guardian
from .job import Answer, Call, Cause, Job, Loss
from .member import Member, Phase
from .messages import Reply, Violation, show
from .nursery import Nursery
from .recycle import Limits
from .settings import PoolSettings
from .stderr import Drain

logger = logging.getLogger(__name__)

#: Seconds that a child has for the signal of ``revoke(terminate=True)``, or for the
#: dump of its stack, before SIGKILL.
SIGNAL_GRACE = 1.0


class Owner(Protocol):
    """What a pool tells the one that owns it. All called in the engine's loop."""

    def accepted(self, job: Job, pid: int) -> None:
        """The job has a child."""

    def start_job(self, job: Job) -> None:
        """Run the job in its host."""

    def soft_limit(self, job: Job) -> None:
        """The job exceeded its soft time limit."""

    def may_start(self, job: Job) -> bool:
        """Whether a waiting job is still wanted; if not, the owner takes it."""

    def failed_to_boot(self, error: BootError) -> None:
        """The pool's children do not start, and never have."""


class Children:
    """A pool of warm children."""

    def __init__(
        self,
        settings: PoolSettings,
        engine: Engine,
        guardian: Guardian,
        drain: Drain,
        owner: Owner,
        limits: Limits,
        log_level: int = logging.WARNING,
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._owner = owner
        self._nursery = Nursery(
            settings, limits, engine, guardian, drain, log_level, self
        )
        self._idle: List[Member] = []
        self._waiting: Deque[Union[Job, Call]] = deque()
        self._settling = 0

    def start(self, ready: Callable[[Optional[BootError]], Any]) -> None:
        """Start all children; `ready(error)` is called once they live, or do not."""
        self._nursery.start(ready)

    def stop(self, empty: Callable[[], Any]) -> None:
        """End all children, politely, then not; `empty()` when all are reaped."""
        self._nursery.stop(empty)

    def kill(self) -> None:
        """End all children at once."""
        self._nursery.kill()

    # --- more, fewer, others ----------------------------------------------------------

    @property
    def size(self) -> int:
        """Children wanted. From any thread."""
        return self._nursery.size

    @property
    def load(self) -> int:
        """Tasks that wait, or are served. From any thread."""
        return len(self._waiting) + len(self._nursery.members) - len(self._idle)

    def resize(self, size: int) -> None:
        self._nursery.resize(size)
        self._serve()

    def look(self, memory: Mapping[int, int]) -> None:
        """Called now and then, with the KiB that children's trees use, by pid."""
        self._nursery.look(memory)

    def reset(self) -> None:
        """Replace all children by new ones, one by one, without losing a task."""
        self._nursery.reset()

    # --- tasks to children ------------------------------------------------------------

    def submit(self, claim: Union[Job, Call], first: bool = False) -> None:
        """Stand in line for an idle child."""
        if first:
            self._waiting.appendleft(claim)
        else:
            self._waiting.append(claim)
        self._serve()

    def flush(self) -> List[Job]:
        """Take all jobs out of the line that have not started."""
        jobs = [claim for claim in self._waiting if isinstance(claim, Job)]
        self._waiting = deque(c for c in self._waiting if isinstance(c, Call))
        return jobs

    def _serve(self) -> None:
        """Give idle children to those that wait.

        At most `size` tasks may be between their reply and their end, so that a slow
        result backend holds tasks back in the line instead of piling them up here.
        """
        while self._waiting and self._idle and self._settling < self.size:
            claim = self._waiting.popleft()
            if isinstance(claim, Job) and not self._owner.may_start(claim):
                continue
            member = self._take_idle()
            if member is None:
                self._waiting.appendleft(claim)
                return
            if isinstance(claim, Call):
                self._resend(member, claim)
            else:
                self._begin(member, claim)

    def _take_idle(self) -> Optional[Member]:
        """An idle child that is found well; those that are not are replaced."""
        while self._idle:
            member = self._idle[-1]
            self.readable(member)
            if member.child.fit and not member.child.has_exited():
                return self._idle.pop()
            if member.phase is not Phase.LOST:
                self._nursery.lose(member, None)
        return None

    def _begin(self, member: Member, job: Job) -> None:
        member.move(Phase.RESERVED)
        member.job, job.member = job, member
        seconds = self.settings.timeout if job.limit is None else job.limit
        job.timer = self._engine.call_later(seconds, self._job_limit, job, seconds)
        job.deadline = time.time() + seconds
        if job.soft_limit is not None:
            job.soft_timer = self._engine.call_later(
                job.soft_limit, self._soft_limit, job
            )
        self._owner.accepted(job, member.child.pid)
        self._owner.start_job(job)

    def _resend(self, member: Member, call: Call) -> None:
        """A call that stood in line by itself: its first child was lost unread."""
        if call.job is not None:
            member.job, call.job.member = call.job, member
            self._owner.accepted(call.job, member.child.pid)
        self._write(member, call)

    def send(self, call: Call) -> None:
        """Ask the child that is reserved for the call's job, or the next idle one."""
        job = call.job
        if job is None:
            call.timer = self._engine.call_later(
                self.settings.timeout, self._call_limit, call
            )
            self._engine.soon(self.submit, call)
        elif job.doomed is not None:
            self._engine.soon(call.answer, job.doomed)
        elif job.member is not None and job.member.child.fit:
            self._write(job.member, call)
        else:
            self._again(job)
            self._engine.soon(self.submit, call, True)

    def _again(self, job: Job) -> None:
        """A task that asks twice, or whose child died since it was reserved."""
        if job.settling:
            job.settling = False
            self._settling -= 1
        if job.member is not None:
            member, job.member = job.member, None
            member.job = None
            self._nursery.lose(member, None)

    def _write(self, member: Member, call: Call) -> None:
        member.move(Phase.BUSY)
        member.call = call
        if member.stream is not None:
            member.stream.task_id = call.id
        if not member.child.send(call.id, call.line):
            self._engine.watch(
                member.child.stdin, WRITE, partial(self._writable, member)
            )

    def _writable(self, member: Member) -> None:
        if member.phase is not Phase.BUSY or member.child.flush():
            self._engine.unwatch(member.child.stdin)

    def settled(self, job: Job) -> None:
        """A job ended: its slot is free."""
        for timer in (job.timer, job.soft_timer):
            if timer is not None:
                self._engine.cancel(timer)
        job.timer = job.soft_timer = None
        if job.settling:
            job.settling = False
            self._settling -= 1
        elif job.member is not None and job.member.phase is Phase.RESERVED:
            # It ended without asking anything.
            self._release(job.member)
        self._serve()

    def _release(self, member: Member) -> None:
        member.move(Phase.IDLE)
        if member.job is not None:
            member.job.member = None
        member.job = member.call = None
        if member.stream is not None:
            member.stream.task_id = None
        if self._nursery.idle(member):
            self._idle.append(member)

    # --- children to tasks ------------------------------------------------------------

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
            if isinstance(event, Violation):
                self._violated(member, event)
            elif isinstance(event, Reply):
                answers.append((self._replied(member), event))
        if member.child.eof:
            # Its exit may follow in a moment, and with it the reason.
            self._nursery.lose(member, None, EXIT_GRACE)
        if answers:
            # The child takes its next job before the last one is settled.
            self._serve()
            for call, reply in answers:
                self._answer(call, reply)
        return events is not None

    def _replied(self, member: Member) -> Call:
        call = member.call
        assert call is not None  # the connection refuses a reply without a request
        member.served += 1
        self._nursery.proven()
        self._release(member)
        if call.job is not None:
            call.job.settling = True
            self._settling += 1
        return call

    def _answer(self, call: Call, answer: Answer) -> None:
        if call.timer is not None:
            self._engine.cancel(call.timer)
        call.answer(answer)

    def _violated(self, member: Member, violation: Violation) -> None:
        text = self._nursery.says(member, f"broke the protocol: {violation}")
        if member.call is None:
            logger.error("linepool: %s; it is killed. %s", text, _STDOUT_HINT)
        self._nursery.lose(member, Loss(Cause.VIOLATION, text))

    # --- limits -----------------------------------------------------------------------

    def _soft_limit(self, job: Job) -> None:
        job.soft_timer = None
        if job.member is None or job.settling:
            return
        self._owner.soft_limit(job)
        if self.settings.soft_signal is not None:
            job.member.child.signal(self.settings.soft_signal)

    def _job_limit(self, job: Job, seconds: float) -> None:
        job.timer = None
        ours = job.limit is None
        if job.settling:
            return  # it has its reply; what is slow now is not the child
        member = job.member
        name = "linepool_timeout" if ours else "its time limit"
        if member is None:
            job.doomed = Loss(Cause.LIMIT, f"it exceeded {name}", seconds)
            self._withdraw(job)
        elif member.phase in (Phase.RESERVED, Phase.BUSY):
            self.readable(member)  # the reply may have come just now
            if member.job is job and member.phase is not Phase.LOST:
                said = self._nursery.says(member, f"exceeded {name} = {seconds:g} s")
                job.doomed = Loss(Cause.LIMIT, said, seconds)
                self._lose_after_dump(member, job.doomed)

    def _lose_after_dump(self, member: Member, loss: Loss) -> None:
        """Kill a hung child, but let it say first where it hangs, if it can."""
        if self.settings.dump_signal is None:
            self._nursery.lose(member, loss)
        else:
            member.child.signal(self.settings.dump_signal)
            self._nursery.lose(member, loss, SIGNAL_GRACE)

    def _withdraw(self, job: Job) -> None:
        for claim in self._waiting:
            if isinstance(claim, Call) and claim.job is job:
                self._waiting.remove(claim)
                self._answer(claim, job.doomed or Loss(Cause.DIED, "it was given up"))
                return

    def _call_limit(self, call: Call) -> None:
        call.timer = None
        seconds = self.settings.timeout
        for member in self._nursery.members:
            if member.call is call:
                said = self._nursery.says(
                    member, f"exceeded linepool_timeout = {seconds:g} s"
                )
                self._nursery.lose(member, Loss(Cause.LIMIT, said, seconds))
                return
        if call in self._waiting:
            self._waiting.remove(call)
            text = f"pool {self.settings.name!r} had no child within linepool_timeout"
            call.answer(Loss(Cause.LIMIT, text, seconds))

    def terminate(self, job: Job, signum: int) -> None:
        """Signal a running job's child, then kill it; Celery has been told already."""
        loss = Loss(Cause.TERMINATED, f"it was terminated by signal {signum}", signum)
        if job.member is not None:
            job.doomed = loss
            job.member.child.signal_group(signum)
            self._nursery.lose(job.member, loss, SIGNAL_GRACE)
        elif not job.settling:
            job.doomed = loss
            self._withdraw(job)

    # --- what the nursery tells -------------------------------------------------------

    def born(self, member: Member) -> None:
        member.move(Phase.IDLE)
        self._idle.insert(0, member)
        self._serve()

    def left(self, member: Member) -> None:
        if member in self._idle:
            self._idle.remove(member)
        self._engine.unwatch(member.child.stdin)

    def failed_to_boot(self, error: BootError) -> None:
        self._owner.failed_to_boot(error)

    def answer_lost(self, member: Member, untouched: bool, tail: List[str]) -> None:
        if untouched and member.loss is None and not self._nursery.closed:
            # Not one byte of the request was read: nothing was begun, nothing is lost.
            call, member.call = member.call, None
            if member.job is not None:
                member.job.member = None
            if call is not None:
                self.submit(call, first=True)
        self._lost(member, tail)

    def _lost(self, member: Member, tail: List[str]) -> None:
        call, member.call = member.call, None
        if member.job is not None:
            member.job.member = None
        if call is None:
            return
        loss = member.loss
        if loss is None:
            half = ""
            if member.child.leftover:
                half = f"; it left half a line: {show(member.child.leftover)}"
            text = self._nursery.says(member, f"{member.child.exit_text()}{half}")
            loss = Loss(Cause.DIED, text)
        if tail:
            loss = Loss(loss.cause, loss.text, loss.number, tail)
        self._answer(call, loss)

    # --- for people -------------------------------------------------------------------

    def pids(self) -> List[int]:
        # Read by the main thread: one slice is atomic.
        return [member.child.pid for member in self._nursery.members[:]]

    def overdue(self, now: float) -> List[Child]:
        """Children whose job should have been ended by now. From any thread."""
        return [
            member.child
            for member in self._nursery.members[:]
            for job in [member.job]
            if job is not None and job.deadline is not None and job.deadline < now
        ]

    def info(self) -> Dict[str, Any]:
        """For ``celery inspect stats``. From any thread."""
        return {
            "command": list(self.settings.command),
            "size": self.size,
            "generation": self._nursery.generation,
            "reset_error": self._nursery.reset_error,
            "failed_boots": self._nursery.backoff.failures,
            "next_boot_in": self._nursery.next_boot_in(),
            "waiting": len(self._waiting),
            "settling": self._settling,
            "replaced": self._nursery.replaced,
            "children": [member.info() for member in self._nursery.members[:]],
        }


_STDOUT_HINT = "Its stdout is the protocol: print to stderr instead"
