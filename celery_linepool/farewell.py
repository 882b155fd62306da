"""The end of a child: asked, told, killed; noticed, reaped, its last words taken.

A member is lost at once and gone later. Between the two nobody may believe that its
task has ended. In the engine's loop, so there are no locks.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, FrozenSet, List, Optional, Protocol

from .engine import Engine
from .guardian import Guardian
from .job import Cause, Loss
from .member import Member, Phase
from .settings import PoolSettings
from .stderr import Drain

logger = logging.getLogger(__name__)

#: Seconds between the end of a child's stdout and SIGKILL, for an exit that is under
#: way and whose status people want to see.
EXIT_GRACE = 0.5
#: Seconds after SIGKILL at which a task stops waiting for the child's end: a process
#: in a system call that cannot be interrupted may take for ever.
KILL_GRACE = 5.0
#: Seconds between looks at a child's exit where the kernel cannot tell it by itself.
EXIT_POLL = 0.05
#: Reads of what a dead child has left in its pipe, which holds a megabyte at the most.
LAST_READS = 20


class Mourner(Protocol):
    """Whom a farewell tells. All called in the engine's loop."""

    def readable(self, member: Member) -> bool:
        """It said something; False if there was nothing."""

    def left(self, member: Member) -> None:
        """It must not be given tasks any more."""

    def given_up(self, member: Member) -> None:
        """It does not die: its task is not waited for any longer."""

    def gone(self, member: Member, untouched: FrozenSet[str], tail: List[str]) -> None:
        """It is reaped. `untouched`: requests of which it has not read a byte."""


class Farewell:
    """Ends the children of one pool."""

    def __init__(
        self,
        settings: PoolSettings,
        engine: Engine,
        guardian: Guardian,
        drain: Drain,
        mourner: Mourner,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._guardian = guardian
        self._drain = drain
        self._mourner = mourner

    # --- politely ---------------------------------------------------------------------

    def stop(self, member: Member) -> None:
        """Close an idle child's stdin; if it ignores that, SIGTERM and SIGKILL."""
        self._mourner.left(member)
        member.move(Phase.STOPPING)
        member.child.stop()
        half = self._settings.stop_timeout / 2
        self._after(member, half, self._firmly)

    def _firmly(self, member: Member) -> None:
        logger.warning(
            "linepool: pool %r: child pid %s did not end when its stdin did; SIGTERM",
            self._settings.name,
            member.child.pid,
            extra=member.voice.identity(cause="stdin"),
        )
        member.child.terminate()
        self._after(member, self._settings.stop_timeout / 2, self._by_force)

    def _by_force(self, member: Member) -> None:
        logger.warning(
            "linepool: pool %r: child pid %s outlived linepool_stop_timeout = %g s; "
            "SIGKILL",
            self._settings.name,
            member.child.pid,
            self._settings.stop_timeout,
            extra=member.voice.identity(cause="stop_timeout"),
        )
        self.lose(member, None)

    # --- at once ----------------------------------------------------------------------

    def lose(self, member: Member, loss: Optional[Loss], grace: float = 0) -> None:
        """A member is no longer to be used: kill it now, or after a grace time.

        Its call is answered when it is gone: the task must not be stored as failed,
        or given back to the broker, while its child may still work on it.
        """
        if member.phase in (Phase.LOST, Phase.GONE):
            return
        if member.phase is not Phase.STOPPING:
            self._mourner.left(member)
        self._cancel(member)
        member.move(Phase.LOST)
        member.loss = loss
        self._engine.unwatch(member.child.stdout)
        if member.child.has_exited():
            self._gone(member)
        elif grace:
            self._after(member, grace, self._kill_silent)
        else:
            self._kill(member)

    def _kill_silent(self, member: Member) -> None:
        if member.loss is None:
            text = self.says(
                member, "closed its stdin or stdout but lived; it was killed"
            )
            member.loss = Loss(Cause.DIED, text)
        self._kill(member)

    def _kill(self, member: Member) -> None:
        member.child.kill()
        self._after(member, KILL_GRACE, self._undead)

    def _undead(self, member: Member) -> None:
        logger.error(
            "linepool: pool %r: child pid %s does not die from SIGKILL; its task is "
            "given up",
            self._settings.name,
            member.child.pid,
            extra=member.voice.identity(member.only_task, "undead"),
        )
        self._mourner.given_up(member)

    # --- the end ----------------------------------------------------------------------

    def exited(self, member: Member) -> None:
        """The kernel says that it may have. What it said last is still in the pipe."""
        if not member.child.has_exited():
            return
        if member.phase is not Phase.LOST:
            # Somebody else may hold the pipe, and go on writing.
            for _ in range(LAST_READS):
                if not self._mourner.readable(member):
                    break
        if member.phase in (Phase.LOST, Phase.GONE):
            self._gone(member)
        else:
            self.lose(member, None)

    def poll_exit(self, member: Member) -> None:
        """Where the kernel does not say it."""
        self.exited(member)
        if member.phase is not Phase.GONE:
            self._engine.call_later(EXIT_POLL, self.poll_exit, member)

    def _gone(self, member: Member) -> None:
        """It is dead: reap it, and take its last words."""
        if member.phase is Phase.GONE:
            return
        member.move(Phase.GONE)
        self._cancel(member)
        if member.child.exit is not None:
            self._engine.unwatch(member.child.exit)
        untouched = frozenset(id for id in member.calls if member.child.untouched(id))
        self._guardian.unwatch(member.child.pid)
        member.child.reap()
        if member.stream is None:
            self._mourner.gone(member, untouched, [])
        else:
            post, gone = self._engine.post, self._mourner.gone
            self._drain.finish(
                member.stream, lambda tail: post(gone, member, untouched, tail)
            )

    def _after(
        self, member: Member, seconds: float, call: Callable[[Member], Any]
    ) -> None:
        self._cancel(member)
        member.timer = self._engine.call_later(seconds, call, member)

    def _cancel(self, member: Member) -> None:
        if member.timer is not None:
            self._engine.cancel(member.timer)
            member.timer = None

    def says(self, member: Member, what: str) -> str:
        return f"child pid {member.child.pid} of pool {self._settings.name!r} {what}"
