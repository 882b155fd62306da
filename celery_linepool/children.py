"""One pool: its children, its line of waiting tasks, and the way between the two.

Everything here runs in the engine's loop, so there are no locks. Rules of residence:
a member serves one call at a time; a member that is not idle is never given a call;
a member that broke a rule or died is lost, and lost is for ever.
"""

from __future__ import annotations

import enum
import logging
import time
from collections import deque
from functools import partial
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    List,
    Mapping,
    Optional,
    Protocol,
    Set,
    Union,
)

from .backoff import Backoff
from .child import Child
from .engine import READ, WRITE, Engine
from .errors import BootError, SpawnError
from .guardian import Guardian
from .job import Answer, Call, Cause, Job, Loss
from .protocol import Reply, Violation, show
from .settings import PoolSettings
from .stderr import Drain, Stream
from .timers import Timer

logger = logging.getLogger(__name__)

#: Seconds that a pool's first children must live before the worker starts: enough for
#: an interpreter to find that its script is missing or wrong.
START_GRACE = 0.5
#: Seconds after its start in which the death of a child that never answered means that
#: it cannot boot. Rails applications take up to a minute.
BOOT_TIME = 60.0
#: Seconds between the end of a child's stdout and SIGKILL, for an exit that is under
#: way and whose status people want to see.
EXIT_GRACE = 0.5
#: Seconds after SIGKILL at which a task stops waiting for the child's end: a process
#: in a system call that cannot be interrupted may take for ever.
KILL_GRACE = 5.0
#: Seconds between looks at a child's exit where the kernel cannot tell it by itself.
EXIT_POLL = 0.05


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
            raise AssertionError(f"{self.child}: {self.phase} -> {phase} is not legal")
        self.phase = phase


class Owner(Protocol):
    """What a pool tells the one that owns it. All called in the engine's loop."""

    def accepted(self, job: Job, pid: int) -> None:
        """The job has a child."""

    def start_job(self, job: Job) -> None:
        """Run the job in its host."""

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
        log_level: int = logging.WARNING,
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._guardian = guardian
        self._drain = drain
        self._owner = owner
        self._log_level = log_level
        self._backoff = Backoff()
        self._members: List[Member] = []
        self._idle: List[Member] = []
        self._waiting: Deque[Union[Job, Call]] = deque()
        self._settling = 0
        #: Children that will be started after a pause.
        self._to_come = 0
        #: A child of this pool has answered or lived long: its command works.
        self._proven = False
        self._closed = False
        self._when_empty: Optional[Callable[[], Any]] = None
        self.replaced = 0

    # --- start and stop ---------------------------------------------------------------

    def start(self, ready: Callable[[Optional[BootError]], Any]) -> None:
        """Start all children; `ready(error)` is called once they live, or do not."""
        self._ready = ready
        for _ in range(self.settings.size):
            try:
                self._spawn()
            except SpawnError as exc:
                self._cannot_boot(str(exc), [])
                return
        self._engine.call_later(START_GRACE, self._started, None)

    def _started(self, error: Optional[BootError]) -> None:
        ready, self._ready = self._ready, _nobody
        ready(error)

    def flush(self) -> List[Job]:
        """Take all jobs out of the line that have not started."""
        jobs = [claim for claim in self._waiting if isinstance(claim, Job)]
        self._waiting = deque(c for c in self._waiting if isinstance(c, Call))
        return jobs

    def stop(self, empty: Callable[[], Any]) -> None:
        """End all children, politely, then not; `empty()` when all are reaped."""
        self._closed = True
        self._when_empty = empty
        for member in list(self._members):
            if member.phase is Phase.IDLE:
                self._stop(member)
            elif member.phase is not Phase.LOST:
                self.lose(member, Loss(Cause.DIED, self._says(member, "was stopped")))
        self._check_empty()

    def kill(self) -> None:
        """End all children at once."""
        self._closed = True
        for member in list(self._members):
            if member.phase is Phase.LOST:
                member.child.kill()
            else:
                self.lose(member, Loss(Cause.DIED, self._says(member, "was killed")))

    def _stop(self, member: Member) -> None:
        member.move(Phase.STOPPING)
        self._idle.remove(member)
        self._engine.unwatch(member.child.stdin)
        member.child.stop()
        half = self.settings.stop_timeout / 2
        member.timer = self._engine.call_later(half, self._firmly, member, half)

    def _firmly(self, member: Member, half: float) -> None:
        logger.warning(
            "linepool: pool %r: child pid %s did not end when its stdin did; SIGTERM",
            self.settings.name,
            member.child.pid,
        )
        member.child.terminate()
        member.timer = self._engine.call_later(half, self._by_force, member)

    def _by_force(self, member: Member) -> None:
        logger.warning(
            "linepool: pool %r: child pid %s outlived linepool_stop_timeout = %g s; "
            "SIGKILL",
            self.settings.name,
            member.child.pid,
            self.settings.stop_timeout,
        )
        self.lose(member, None)

    def _check_empty(self) -> None:
        if self._closed and not self._members and self._when_empty is not None:
            empty, self._when_empty = self._when_empty, None
            empty()

    # --- tasks to children ------------------------------------------------------------

    def submit(self, claim: Union[Job, Call], first: bool = False) -> None:
        """Stand in line for an idle child."""
        if first:
            self._waiting.appendleft(claim)
        else:
            self._waiting.append(claim)
        self._serve()

    def _serve(self) -> None:
        """Give idle children to those that wait.

        At most `size` tasks may be between their reply and their end, so that a slow
        result backend holds tasks back in the line instead of piling them up here.
        """
        while self._waiting and self._idle and self._settling < self.settings.size:
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
            self._read(member)
            if member.child.fit and not member.child.has_exited():
                return self._idle.pop()
            if member.phase is not Phase.LOST:
                self.lose(member, None)
        return None

    def _begin(self, member: Member, job: Job) -> None:
        member.move(Phase.RESERVED)
        member.job, job.member = job, member
        seconds = self.settings.timeout if job.limit is None else job.limit
        job.timer = self._engine.call_later(seconds, self._job_limit, job, seconds)
        job.deadline = time.time() + seconds
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
            self.lose(member, None)

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
        if member.child.flush():
            self._engine.unwatch(member.child.stdin)

    def settled(self, job: Job) -> None:
        """A job ended: its slot is free."""
        if job.timer is not None:
            self._engine.cancel(job.timer)
            job.timer = None
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
        self._idle.append(member)

    # --- children to tasks ------------------------------------------------------------

    def _read(self, member: Member) -> bool:
        """Take what a child said; False if there was nothing, or nobody to hear it."""
        if member.phase in (Phase.LOST, Phase.GONE):
            return False
        events = member.child.receive()
        answers = []
        for event in events or ():
            if isinstance(event, Violation):
                self._violated(member, event)
            else:
                answers.append((self._replied(member), event))
        if member.child.eof and member.phase is not Phase.LOST:
            # Its exit may follow in a moment, and with it the reason.
            self.lose(member, None, EXIT_GRACE)
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
        self._proven = True
        self._backoff.succeeded()
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
        text = self._says(member, f"broke the protocol: {violation}")
        if member.call is None:
            logger.error("linepool: %s; it is replaced. %s", text, _STDOUT_HINT)
        self.lose(member, Loss(Cause.VIOLATION, text))

    # --- limits -----------------------------------------------------------------------

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
            self._read(member)  # the reply may have come just now
            if member.job is job and member.phase is not Phase.LOST:
                said = self._says(member, f"exceeded {name} = {seconds:g} s")
                job.doomed = Loss(Cause.LIMIT, said, seconds)
                self.lose(member, job.doomed)

    def _withdraw(self, job: Job) -> None:
        for claim in self._waiting:
            if isinstance(claim, Call) and claim.job is job:
                self._waiting.remove(claim)
                self._answer(claim, job.doomed or Loss(Cause.DIED, "it was given up"))
                return

    def _call_limit(self, call: Call) -> None:
        call.timer = None
        seconds = self.settings.timeout
        for member in self._members:
            if member.call is call:
                said = self._says(member, f"exceeded linepool_timeout = {seconds:g} s")
                self.lose(member, Loss(Cause.LIMIT, said, seconds))
                return
        if call in self._waiting:
            self._waiting.remove(call)
            text = f"pool {self.settings.name!r} had no child within linepool_timeout"
            call.answer(Loss(Cause.LIMIT, text, seconds))

    def terminate(self, job: Job, signum: int) -> None:
        """Kill a running job's child; Celery has been told already."""
        loss = Loss(Cause.TERMINATED, f"it was terminated by signal {signum}", signum)
        if job.member is not None:
            job.doomed = loss
            self.lose(job.member, loss)
        elif not job.settling:
            job.doomed = loss
            self._withdraw(job)

    # --- the end of a child -----------------------------------------------------------

    def lose(self, member: Member, loss: Optional[Loss], grace: float = 0) -> None:
        """A member is no longer to be used: kill it now, or after a grace time.

        Its call is answered when it is gone: the task must not be stored as failed,
        or given back to the broker, while its child may still work on it.
        """
        if member.phase in (Phase.LOST, Phase.GONE):
            return
        if member.phase is Phase.IDLE:
            self._idle.remove(member)
        if member.timer is not None:
            self._engine.cancel(member.timer)
        stopping = member.phase is Phase.STOPPING
        member.move(Phase.LOST)
        member.loss = loss
        self._engine.unwatch(member.child.stdout)
        if not stopping:
            self._engine.unwatch(member.child.stdin)
        if member.child.has_exited():
            self._gone(member)
        elif grace:
            member.timer = self._engine.call_later(grace, self._kill_silent, member)
        else:
            self._kill(member)

    def _kill_silent(self, member: Member) -> None:
        if member.loss is None:
            text = self._says(member, "closed its stdout but lived; it was killed")
            member.loss = Loss(Cause.DIED, text)
        self._kill(member)

    def _kill(self, member: Member) -> None:
        member.child.kill()
        member.timer = self._engine.call_later(KILL_GRACE, self._undead, member)

    def _undead(self, member: Member) -> None:
        logger.error(
            "linepool: pool %r: child pid %s does not die from SIGKILL; its task is "
            "given up",
            self.settings.name,
            member.child.pid,
        )
        self._answer_lost(member, [])

    def _exited(self, member: Member) -> None:
        """The kernel says so. What it said last is still in the pipe."""
        if not member.child.has_exited():
            return
        while self._read(member):
            pass
        if member.phase in (Phase.LOST, Phase.GONE):
            self._gone(member)
        else:
            self.lose(member, None)

    def _poll_exit(self, member: Member) -> None:
        self._exited(member)
        if member.phase is not Phase.GONE:
            self._engine.call_later(EXIT_POLL, self._poll_exit, member)

    def _gone(self, member: Member) -> None:
        """It is dead: reap it, take its last words, answer its call, replace it."""
        if member.phase is Phase.GONE:
            return
        member.move(Phase.GONE)
        if member.timer is not None:
            self._engine.cancel(member.timer)
        if member.child.exit is not None:
            self._engine.unwatch(member.child.exit)
        untouched = member.call is not None and member.child.untouched()
        self._guardian.unwatch(member.child.pid)
        member.child.reap()
        self._members.remove(member)
        if member.stream is None:
            self._buried(member, untouched, [])
        else:
            post = self._engine.post
            self._drain.finish(
                member.stream, lambda tail: post(self._buried, member, untouched, tail)
            )

    def _buried(self, member: Member, untouched: bool, tail: List[str]) -> None:
        if not self._closed:
            self._replace(member, untouched, tail)
        if untouched and member.loss is None and not self._closed:
            # Not one byte of the request was read: nothing was begun, nothing is lost.
            assert member.call is not None
            if member.job is not None:
                member.job.member = None
            self.submit(member.call, first=True)
            member.call = None
        self._answer_lost(member, tail)
        self._check_empty()

    def _answer_lost(self, member: Member, tail: List[str]) -> None:
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
            text = self._says(member, f"{member.child.exit_text()}{half}")
            loss = Loss(Cause.DIED, text)
        if tail:
            loss = Loss(loss.cause, loss.text, loss.number, tail)
        self._answer(call, loss)

    def _replace(self, member: Member, untouched: bool, tail: List[str]) -> None:
        """Start another child: at once, or after a pause if they do not come up."""
        name, pid, child = self.settings.name, member.child.pid, member.child
        unasked = member.call is None or untouched
        ours = member.loss is not None and member.loss.cause is not Cause.VIOLATION
        age = time.monotonic() - child.born
        if member.served or ours or (not unasked):
            delay = 0.0
        else:
            if not self._proven and age < BOOT_TIME:
                what = member.loss.text if member.loss else child.exit_text()
                self._cannot_boot(what, tail)
                return
            delay = self._backoff.failed()
        self.replaced += 1
        logger.warning(
            "linepool: pool %r: child pid %s %s after %d tasks; another is started%s",
            name,
            pid,
            child.exit_text(),
            member.served,
            f" in {delay:.1f} s" if delay else "",
        )
        self._spawn_later(delay)

    def _cannot_boot(self, what: str, tail: List[str]) -> None:
        self._closed = True
        loss = Loss(Cause.DIED, f"{self._setting}: {what}", tail=tail)
        error = BootError(f"{loss}")
        self._owner.failed_to_boot(error)
        self._started(error)

    # --- the birth of a child ---------------------------------------------------------

    def _spawn_later(self, delay: float) -> None:
        self._to_come += 1
        self._engine.call_later(delay, self._spawn_again)

    def _spawn_again(self) -> None:
        self._to_come -= 1
        if self._closed:
            return
        try:
            self._spawn()
        except SpawnError as exc:
            delay = self._backoff.failed()
            logger.error(
                "linepool: %s: %s; trying again in %.1f s", self._setting, exc, delay
            )
            self._spawn_later(delay)
        else:
            self._serve()

    def _spawn(self) -> None:
        child = Child(self.settings, self.settings.environment())
        self._guardian.watch(child.pid)
        stream = None
        if child.stderr is not None:
            stream = Stream(
                child.stderr, self.settings.name, child.pid, self._log_level
            )
            self._drain.add(stream)
        member = Member(child, stream)
        self._members.append(member)
        self._idle.insert(0, member)
        self._engine.watch(child.stdout, READ, partial(self._read, member))
        if child.exit is not None:
            self._engine.watch(child.exit, READ, partial(self._exited, member))
        else:
            self._engine.call_later(EXIT_POLL, self._poll_exit, member)

    # --- for people -------------------------------------------------------------------

    @property
    def _setting(self) -> str:
        if self.settings.name == "default":
            return "linepool_command"
        return f"linepool_pools[{self.settings.name!r}]['command']"

    def _says(self, member: Member, what: str) -> str:
        return f"child pid {member.child.pid} of pool {self.settings.name!r} {what}"

    def pids(self) -> List[int]:
        # Read by the main thread: one slice is atomic.
        return [member.child.pid for member in self._members[:]]

    def overdue(self, now: float) -> List[Child]:
        """Children whose job should have been ended by now. From any thread."""
        return [
            member.child
            for member in self._members[:]
            for job in [member.job]
            if job is not None and job.deadline is not None and job.deadline < now
        ]

    def info(self) -> Dict[str, Any]:
        """For ``celery inspect stats``. From any thread."""
        return {
            "command": list(self.settings.command),
            "size": self.settings.size,
            "waiting": len(self._waiting),
            "settling": self._settling,
            "replaced": self.replaced,
            "children": [
                {"pid": m.child.pid, "state": m.phase.value, "tasks": m.served}
                for m in self._members[:]
            ],
        }


_STDOUT_HINT = "Its stdout is the protocol: print to stderr instead"


def _nobody(error: Optional[BootError]) -> None:
    """After the start nobody waits for `ready` any more."""
