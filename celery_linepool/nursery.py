"""Keeps the children of one pool alive: birth, death, replacement, the end.

It knows nothing of tasks but that a member may be in the middle of one. In the
engine's loop, so there are no locks.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any, Callable, List, Optional, Protocol

from .backoff import Backoff
from .child import Child
from .engine import READ, Engine
from .errors import BootError, SpawnError
from .guardian import Guardian
from .job import Cause, Loss
from .member import Member, Phase
from .settings import PoolSettings
from .stderr import Drain, Stream

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


class Keeper(Protocol):
    """Whom a nursery tells. All called in the engine's loop."""

    def born(self, member: Member) -> None:
        """A child that can be given tasks."""

    def readable(self, member: Member) -> bool:
        """It said something; False if there was nothing."""

    def left(self, member: Member) -> None:
        """It must not be given tasks any more."""

    def given_up(self, member: Member, tail: List[str]) -> None:
        """Its task is not waited for any longer; `tail` is the end of its stderr."""

    def gone(self, member: Member, untouched: bool, tail: List[str]) -> None:
        """It is reaped. `untouched`: it read nothing of its request."""

    def failed_to_boot(self, error: BootError) -> None:
        """The pool's children do not start, and never have."""


class Nursery:
    """The children of one pool, as processes.

    Arguments:
        settings: the pool's.
        log_level: of the children's stderr.
        keeper: who gives them tasks.
    """

    def __init__(
        self,
        settings: PoolSettings,
        engine: Engine,
        guardian: Guardian,
        drain: Drain,
        log_level: int,
        keeper: Keeper,
    ) -> None:
        self.members: List[Member] = []
        self.replaced = 0
        self.closed = False
        self._settings = settings
        self._engine = engine
        self._guardian = guardian
        self._drain = drain
        self._log_level = log_level
        self._keeper = keeper
        self._backoff = Backoff()
        #: A child of this pool has answered: its command works.
        self._proven = False
        self._ready: Callable[[Optional[BootError]], Any] = _nobody
        self._when_empty: Optional[Callable[[], Any]] = None

    # --- start and stop ---------------------------------------------------------------

    def start(self, ready: Callable[[Optional[BootError]], Any]) -> None:
        """Start all children; `ready(error)` is called once they live, or do not."""
        self._ready = ready
        for _ in range(self._settings.size):
            try:
                self._spawn()
            except SpawnError as exc:
                self._cannot_boot(str(exc), [])
                return
        self._engine.call_later(START_GRACE, self._started, None)

    def _started(self, error: Optional[BootError]) -> None:
        ready, self._ready = self._ready, _nobody
        ready(error)

    def proven(self) -> None:
        """A child has answered."""
        self._proven = True
        self._backoff.succeeded()

    def stop(self, empty: Callable[[], Any]) -> None:
        """End all children, politely, then not; `empty()` when all are reaped."""
        self.closed = True
        self._when_empty = empty
        for member in list(self.members):
            if member.phase is Phase.IDLE:
                self._stop(member)
            elif member.phase is not Phase.LOST:
                self.lose(member, Loss(Cause.DIED, self.says(member, "was stopped")))
        self._check_empty()

    def kill(self) -> None:
        """End all children at once."""
        self.closed = True
        for member in list(self.members):
            if member.phase is Phase.LOST:
                member.child.kill()
            else:
                self.lose(member, Loss(Cause.DIED, self.says(member, "was killed")))

    def _stop(self, member: Member) -> None:
        self._keeper.left(member)
        member.move(Phase.STOPPING)
        member.child.stop()
        half = self._settings.stop_timeout / 2
        member.timer = self._engine.call_later(half, self._firmly, member, half)

    def _firmly(self, member: Member, half: float) -> None:
        logger.warning(
            "linepool: pool %r: child pid %s did not end when its stdin did; SIGTERM",
            self._settings.name,
            member.child.pid,
        )
        member.child.terminate()
        member.timer = self._engine.call_later(half, self._by_force, member)

    def _by_force(self, member: Member) -> None:
        logger.warning(
            "linepool: pool %r: child pid %s outlived linepool_stop_timeout = %g s; "
            "SIGKILL",
            self._settings.name,
            member.child.pid,
            self._settings.stop_timeout,
        )
        self.lose(member, None)

    def _check_empty(self) -> None:
        if self.closed and not self.members and self._when_empty is not None:
            empty, self._when_empty = self._when_empty, None
            empty()

    # --- the end of a child -----------------------------------------------------------

    def lose(self, member: Member, loss: Optional[Loss], grace: float = 0) -> None:
        """A member is no longer to be used: kill it now, or after a grace time.

        Its call is answered when it is gone: the task must not be stored as failed,
        or given back to the broker, while its child may still work on it.
        """
        if member.phase in (Phase.LOST, Phase.GONE):
            return
        if member.phase is not Phase.STOPPING:
            self._keeper.left(member)
        if member.timer is not None:
            self._engine.cancel(member.timer)
        member.move(Phase.LOST)
        member.loss = loss
        self._engine.unwatch(member.child.stdout)
        if member.child.has_exited():
            self._gone(member)
        elif grace:
            member.timer = self._engine.call_later(grace, self._kill_silent, member)
        else:
            self._kill(member)

    def _kill_silent(self, member: Member) -> None:
        if member.loss is None:
            text = self.says(member, "closed its stdout but lived; it was killed")
            member.loss = Loss(Cause.DIED, text)
        self._kill(member)

    def _kill(self, member: Member) -> None:
        member.child.kill()
        member.timer = self._engine.call_later(KILL_GRACE, self._undead, member)

    def _undead(self, member: Member) -> None:
        logger.error(
            "linepool: pool %r: child pid %s does not die from SIGKILL; its task is "
            "given up",
            self._settings.name,
            member.child.pid,
        )
        self._keeper.given_up(member, [])

    def _exited(self, member: Member) -> None:
        """The kernel says so. What it said last is still in the pipe."""
        if not member.child.has_exited():
            return
        if member.phase is not Phase.LOST:
            while self._keeper.readable(member):
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
        self.members.remove(member)
        if member.stream is None:
            self._buried(member, untouched, [])
        else:
            post = self._engine.post
            self._drain.finish(
                member.stream, lambda tail: post(self._buried, member, untouched, tail)
            )

    def _buried(self, member: Member, untouched: bool, tail: List[str]) -> None:
        if not self.closed:
            self._replace(member, untouched, tail)
        self._keeper.gone(member, untouched, tail)
        self._check_empty()

    # --- the birth of a child ---------------------------------------------------------

    def _replace(self, member: Member, untouched: bool, tail: List[str]) -> None:
        """Start another child: at once, or after a pause if they do not come up."""
        name, pid, child = self._settings.name, member.child.pid, member.child
        unasked = member.call is None or untouched
        ours = member.loss is not None and member.loss.cause is not Cause.VIOLATION
        age = time.monotonic() - child.born
        if member.served or ours or not unasked:
            delay = 0.0
        else:
            fatal = not self._proven and age < BOOT_TIME
            if fatal and not child.ended_from_outside():
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
        self.closed = True
        loss = Loss(Cause.DIED, f"{self._setting}: {what}", tail=tail)
        error = BootError(f"{loss}")
        self._keeper.failed_to_boot(error)
        self._started(error)

    def _spawn_later(self, delay: float) -> None:
        self._engine.call_later(delay, self._spawn_again)

    def _spawn_again(self) -> None:
        if self.closed:
            return
        try:
            self._spawn()
        except SpawnError as exc:
            delay = self._backoff.failed()
            logger.error(
                "linepool: %s: %s; trying again in %.1f s", self._setting, exc, delay
            )
            self._spawn_later(delay)

    def _spawn(self) -> None:
        child = Child(self._settings, self._settings.environment())
        self._guardian.watch(child.pid)
        stream = None
        if child.stderr is not None:
            stream = Stream(
                child.stderr, self._settings.name, child.pid, self._log_level
            )
            self._drain.add(stream)
        member = Member(child, stream)
        self.members.append(member)
        self._engine.watch(child.stdout, READ, partial(self._keeper.readable, member))
        if child.exit is not None:
            self._engine.watch(child.exit, READ, partial(self._exited, member))
        else:
            self._engine.call_later(EXIT_POLL, self._poll_exit, member)
        self._keeper.born(member)

    # --- for people -------------------------------------------------------------------

    @property
    def _setting(self) -> str:
        if self._settings.name == "default":
            return "linepool_command"
        return f"linepool_pools[{self._settings.name!r}]['command']"

    def says(self, member: Member, what: str) -> str:
        return f"child pid {member.child.pid} of pool {self._settings.name!r} {what}"


def _nobody(error: Optional[BootError]) -> None:
    """After the start nobody waits for `ready` any more."""
