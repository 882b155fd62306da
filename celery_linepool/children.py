"""One pool: its line of waiting tasks, and the way between them and its children.

Everything here runs in the engine's loop, so there are no locks. Rules of residence:
a member serves no more claims than it has room for, and one that is not well is never
given a claim.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    FrozenSet,
    List,
    Mapping,
    Optional,
    Protocol,
    Tuple,
)

from .child import Child
from .deadlines import SIGNAL_GRACE, Deadlines
from .engine import WRITE, Engine
from .errors import BootError
from .farewell import EXIT_GRACE
from .figures import Figures
from .guardian import Guardian
from .hearing import Hearing
from .job import Call, Cause, Job, Loss
from .member import Claim, Member, Phase
from .messages import show
from .nursery import Nursery
from .recycle import Limits
from .settings import PoolSettings
from .stderr import Drain
from .unsettled import Unsettled

logger = logging.getLogger(__name__)


class Owner(Protocol):
    """What a pool tells the one that owns it. All called in the engine's loop."""

    def accepted(self, job: Job, pid: int) -> None:
        """The job has a child."""

    def start_job(self, job: Job) -> None:
        """Run the job in its host."""

    def holds_thread(self, job: Job) -> bool:
        """Whether a thread is busy with the job until it is settled."""

    def soft_limit(self, job: Job) -> None:
        """The job exceeded its soft time limit."""

    def may_start(self, job: Job) -> bool:
        """Whether a waiting job is still wanted; if not, the owner takes it."""

    def advertised(self, pool: str, tasks: Tuple[str, ...]) -> None:
        """A child says that it serves these."""

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
        self.figures = Figures()
        self._nursery = Nursery(
            settings, limits, engine, guardian, drain, log_level, self, self.figures
        )
        self._deadlines = Deadlines(
            settings, engine, self._nursery.farewell, self, owner.soft_limit
        )
        self.terminate = self._deadlines.terminate
        self._hearing = Hearing(
            settings,
            engine,
            self._nursery,
            self._deadlines,
            self,
            self.figures,
            owner.advertised,
        )
        self.readable = self._hearing.readable
        self.heard = self._hearing.heard
        #: Members that have room; the last one has been idle for the shortest time.
        self._free: List[Member] = []
        self._waiting: Deque[Claim] = deque()
        self._unsettled = Unsettled(owner.holds_thread)
        self.settling = self._unsettled.add
        self._killing = False
        #: The worker ends: what is not begun is better left to another one.
        self._closing = False
        #: Whether no task is to be started.
        self.paused = False

    def start(self, ready: Callable[[Optional[BootError]], Any]) -> None:
        """Start all children; `ready(error)` is called once they live, or do not."""
        self._nursery.start(ready)

    def close(self) -> None:
        """The worker ends when what has begun is finished."""
        self._closing = True
        self.resign()

    def stop(self, empty: Callable[[], Any]) -> None:
        """End all children, politely, then not; `empty()` when all are reaped."""
        if self._killing:
            self._engine.call_later(SIGNAL_GRACE, self._nursery.stop, empty)
        else:
            self._nursery.stop(empty)

    def kill(self) -> None:
        """End all children at once; whoever can be told has a moment to reply."""
        if self._deadlines.cancel_all():
            self._killing = True
            self._engine.call_later(SIGNAL_GRACE, self._nursery.kill)
        else:
            self._nursery.kill()

    # --- more, fewer, others ----------------------------------------------------------

    @property
    def size(self) -> int:
        """Children wanted. From any thread."""
        return self._nursery.size

    @property
    def load(self) -> int:
        """Tasks that wait, or are served. From any thread."""
        return len(self._waiting) + sum(len(m.claims) for m in self.members())

    @property
    def has_room(self) -> bool:
        """Whether a task would start at once. From any thread."""
        return bool(self._free)

    @property
    def waiting(self) -> int:
        """Tasks that wait for a child. From any thread."""
        return len(self._waiting)

    @property
    def failed_boots(self) -> int:
        """Boots that failed since the last one that did not. From any thread."""
        return self._nursery.backoff.failures

    @property
    def next_boot_in(self) -> Optional[float]:
        """Seconds until a boot is tried again; None if none has failed."""
        return self._nursery.next_boot_in()

    def members(self) -> List[Member]:
        """Every child, also those that end. From any thread: one slice is atomic."""
        return self._nursery.members[:]

    def resize(self, size: int) -> None:
        self._nursery.resize(size)
        self.serve()

    def pause(self, paused: bool) -> None:
        """Start no more tasks, or start them again; what runs goes on."""
        self.paused = paused
        self.serve()

    def look(self, memory: Mapping[int, int]) -> None:
        """Called now and then, with the KiB that children's trees use, by pid."""
        self._nursery.look(memory)

    def reset(self) -> None:
        """Replace all children by new ones, one by one, without losing a task."""
        self._nursery.reset()

    # --- tasks to children ------------------------------------------------------------

    def submit(self, claim: Claim, first: bool = False) -> None:
        """Stand in line for a child."""
        claim.since = claim.since or time.monotonic()
        if first:
            self._waiting.appendleft(claim)
        else:
            self._waiting.append(claim)
        self.serve()
        self.resign()

    def flush(self) -> List[Job]:
        """Take all jobs out of the line that have not started."""
        jobs = [claim for claim in self._waiting if isinstance(claim, Job)]
        self._waiting = deque(c for c in self._waiting if isinstance(c, Call))
        return jobs

    def resign(self) -> None:
        """At the end of the worker nobody stands in line without need, or in vain.

        These have lost their child before it read them. Whoever may be left to another
        worker is, and nobody waits for a child that does not boot.
        """
        if not self._closing and not self._nursery.closed:
            return
        barren = self._nursery.barren
        for call in [c for c in self._waiting if isinstance(c, Call)]:
            job = call.job
            if barren or (job is not None and job.late and not job.begun):
                self._waiting.remove(call)
                self._hearing.answer(call, self._unread(call))

    def _unread(self, call: Call) -> Loss:
        text = (
            f"the worker ends, pool {self.settings.name!r} has no child for it, and no "
            "child has begun it"
        )
        begun = call.job is None or call.job.begun
        return Loss(Cause.DIED if begun else Cause.UNREAD, text)

    def serve(self, heard: Optional[Member] = None) -> None:
        """Give children that have room to those that wait.

        `heard` is one whose words were all taken a moment ago.
        """
        if not self._waiting or not self._free:
            return
        slots = self.size * self.settings.inflight
        twins = []
        while self._waiting and self._free and not self._unsettled.is_full(slots):
            if self.paused and isinstance(self._waiting[0], Job):
                break
            claim = self._waiting.popleft()
            if isinstance(claim, Job) and not self._owner.may_start(claim):
                continue
            member = self._find(claim, heard)
            if member is None:
                twins.append(claim)
            elif isinstance(claim, Call):
                self._resend(member, claim)
            else:
                self._begin(member, claim)
        self._waiting.extendleft(reversed(twins))

    def _find(self, claim: Claim, heard: Optional[Member]) -> Optional[Member]:
        """A child that is found well; those that are not are replaced.

        None if there is none just now that is not busy with a request of the same id:
        a task may be delivered twice, and two replies could not be told apart.
        """
        while self._free:
            member = self._free[-1]
            if member.claims:
                others = [m for m in reversed(self._free) if not m.has(claim.id)]
                if not others:
                    return None
                member = min(others, key=lambda m: len(m.claims))
            if not member.claims and member is not heard:
                self.readable(member)  # what it said while it was idle
            if not member.has_room:
                self.offer(member)
            elif member.child.fit and not self._is_dead(member):
                return member
            else:
                self._nursery.lose(member, None)
        return None

    @staticmethod
    def _is_dead(member: Member) -> bool:
        # Where its exit wakes the engine, asking again costs a task more than it saves:
        # what a dead child has not read goes to another one.
        return member.child.exit is None and member.child.has_exited()

    def _begin(self, member: Member, job: Job) -> None:
        self._take(member, job)
        job.member = member
        self.figures.waited.add(time.monotonic() - job.since)
        self._deadlines.begin(job)
        self._owner.accepted(job, member.child.pid)
        self._owner.start_job(job)

    def _resend(self, member: Member, call: Call) -> None:
        """A call that stood in line by itself: its first child was lost unread."""
        self._take(member, call.job or call)
        if call.job is not None:
            call.job.member = member
            self._owner.accepted(call.job, member.child.pid)
        self._write(member, call)

    def _take(self, member: Member, claim: Claim) -> None:
        member.take(claim)
        self.offer(member)

    def offer(self, member: Member) -> None:
        """Have a member among those that are offered if it has room, and not else."""
        if member.has_room == member.offered:
            return
        member.offered = not member.offered
        if member.offered:
            self._free.append(member)
        elif self._free[-1] is member:
            self._free.pop()
        else:
            self._free.remove(member)

    def send(self, call: Call) -> None:
        """Ask the child that is reserved for the call's job, or the next free one."""
        job = call.job
        if job is None:
            self._deadlines.begin_call(call)
            self._engine.soon(self.submit, call)
        elif job.doomed is not None:
            self._engine.soon(self._hearing.answer, call, job.doomed)
        elif job.member is not None and job.member.child.fit:
            self._write(job.member, call)
        else:
            self._again(job)
            self._engine.soon(self.submit, call, True)

    def _again(self, job: Job) -> None:
        """A task that asks twice, or whose child died since it was reserved."""
        if job.settling:
            self._unsettled.drop(job)
        if job.member is not None:
            member, job.member = job.member, None
            member.drop(job)
            self._nursery.lose(member, None)

    def _write(self, member: Member, call: Call) -> None:
        call.member, call.sent = member, time.monotonic()
        member.calls[call.id] = call
        self._name_task(member)
        self._flow(member, member.child.send(call.id, call.line))
        if member.child.deaf:
            self._leave_deaf(member)

    def _leave_deaf(self, member: Member) -> None:
        """It closed its stdin: it may finish what it has read, and gets no more.

        What it cannot read goes to another when it is gone.
        """
        if member.phase is Phase.BUSY:
            member.condemned += 1
            self.offer(member)
            if all(map(member.child.untouched, member.calls)):
                self._nursery.lose(member, None, EXIT_GRACE)

    def _name_task(self, member: Member) -> None:
        """What it says on stderr belongs to its task, if it has a single one."""
        if member.stream is not None:
            member.stream.task_id = member.only_task

    def tell(self, member: Member, line: bytes) -> None:
        """Write a line that is no request."""
        if member.phase in (Phase.IDLE, Phase.BUSY):
            self._flow(member, member.child.tell(line))

    def _flow(self, member: Member, written: bool) -> None:
        if not written:
            writable = partial(self._writable, member)
            self._engine.watch(member.child.stdin, WRITE, writable)

    def _writable(self, member: Member) -> None:
        if member.phase is not Phase.BUSY or member.child.flush():
            self._engine.unwatch(member.child.stdin)
            if member.child.deaf:
                self._leave_deaf(member)

    def settled(self, job: Job) -> None:
        """A job ended: its slot is free."""
        self._deadlines.end(job)
        if job.settling:
            self._unsettled.drop(job)
        elif job.member is not None and job in job.member.claims:
            self.leave(job.member, job)  # it ended without asking anything
        self.serve()

    def leave(self, member: Member, job: Job) -> None:
        """A job gives back a child that it has not asked."""
        job.member = None
        self.release(member, job)

    def release(self, member: Member, claim: Claim) -> None:
        member.drop(claim)
        self._name_task(member)
        if member.child.deaf:
            self._leave_deaf(member)
        self._nursery.released(member)
        self.offer(member)

    # --- what the nursery tells -------------------------------------------------------

    def born(self, member: Member) -> None:
        member.move(Phase.IDLE)
        self.offer(member)
        if member.offered:
            self._free.insert(0, self._free.pop())  # those that are warm come first
        self.serve()

    def left(self, member: Member) -> None:
        if member.offered:
            member.offered = False
            self._free.remove(member)
        self._engine.unwatch(member.child.stdin)

    def failed_to_boot(self, error: BootError) -> None:
        self._owner.failed_to_boot(error)

    def answer_lost(
        self, member: Member, untouched: FrozenSet[str], tail: List[str]
    ) -> None:
        calls, member.calls = member.calls, {}
        for claim in member.claims:
            if isinstance(claim, Job):
                claim.member = None
        member.claims.clear()
        for call in calls.values():
            loss = self._loss(member, call, tail)
            free = call.id in untouched and (call.job is None or not call.job.doomed)
            if free and loss.cause in (Cause.DIED, Cause.SIBLING):
                # Not one byte of it was read: nothing was begun, nothing is lost.
                self.submit(call, first=True)
            else:
                self._hearing.answer(call, loss)

    def _loss(self, member: Member, call: Call, tail: List[str]) -> Loss:
        """What a call is told that its child left without an answer."""
        loss = member.loss
        if call.job is not None and call.job.doomed is not None:
            loss = call.job.doomed
        elif loss is None:
            half = ""
            if member.child.leftover:
                half = f"; it left half a line: {show(member.child.leftover)}"
            text = self._nursery.says(member, f"{member.child.exit_text()}{half}")
            loss = Loss(Cause.DIED, text)
        elif loss.of not in (None, call.id):
            text = f"its child had to end with another task in it, {loss.of}"
            return Loss(Cause.SIBLING, f"{text}: {loss.text}")
        return Loss(loss.cause, loss.text, loss.number, tail) if tail else loss

    def withdraw(self, wanted: Claim, loss: Loss) -> None:
        """Answer a call that stands in line, by itself or for a job."""
        for claim in self._waiting:
            if isinstance(claim, Call) and wanted in (claim, claim.job):
                self._waiting.remove(claim)
                self._hearing.answer(claim, loss)
                return

    # --- for people -------------------------------------------------------------------

    def pids(self) -> List[int]:
        return [member.child.pid for member in self.members()]

    def overdue(self, now: float) -> List[Child]:
        """Children whose job should have been ended by now. From any thread."""
        grace = self.settings.cancel_grace
        return [
            member.child
            for member in self.members()
            for job in list(member.claims)
            if isinstance(job, Job) and job.deadline is not None
            if job.deadline + (grace if len(member.claims) > 1 else 0) < now
        ]

    def _waiting_seconds(self) -> float:
        """How long the first in line has been waiting."""
        try:
            return round(time.monotonic() - self._waiting[0].since, 3)
        except IndexError:
            return 0.0

    def info(self) -> Dict[str, Any]:
        """For ``celery inspect stats``. From any thread."""
        return {
            "command": list(self.settings.command),
            "size": self.size,
            "paused": self.paused,
            "inflight": self.settings.inflight,
            "generation": self._nursery.generation,
            "reset_error": self._nursery.reset_error,
            "failed_boots": self.failed_boots,
            "next_boot_in": self.next_boot_in,
            "waiting": self.waiting,
            "waiting_seconds": self._waiting_seconds(),
            "settling": self._unsettled.count,
            "replaced": self._nursery.replaced,
            **self.figures.info(),
            "children": [member.info() for member in self.members()],
        }
