"""Keeps as many children of one pool as are wanted: birth, replacement, reset.

It knows nothing of tasks but that a member may be in the middle of one. In the
engine's loop, so there are no locks.

There is one rule: `_fill` starts children until as many live as are wanted. Whatever
else happens (a death, a limit, a change of the size) changes what lives or what is
wanted, and calls it.
"""

from __future__ import annotations

import itertools
import logging
import time
from functools import partial
from typing import Any, Callable, FrozenSet, List, Mapping, Optional, Protocol

from .backoff import Backoff
from .child import Child
from .engine import READ, Engine
from .errors import BootError, SpawnError
from .farewell import Farewell
from .figures import Figures
from .guardian import Guardian
from .job import Cause, Loss
from .member import Member, Phase
from .protocol import Handshake
from .recycle import Limits
from .settings import PoolSettings
from .stderr import Drain, Stream
from .timers import Timer
from .voice import Voice, identity

logger = logging.getLogger(__name__)

#: Why a child is retired, besides the limits, which are called as their settings are.
RESET, SHRUNK, ASKED = "reset", "shrunk", "asked to be"
#: In the log: why there is no child.
NO_BOOT = "boot"
#: Seconds that a child must live to count as booted: enough for an interpreter to
#: find that its script is missing or wrong.
START_GRACE = 0.5
#: Seconds after its start in which the death of a child that never answered means that
#: it cannot boot. Rails applications take up to a minute.
BOOT_TIME = 60.0


class Keeper(Protocol):
    """Whom a nursery tells. All called in the engine's loop."""

    def born(self, member: Member) -> None:
        """A child that can be given tasks."""

    def readable(self, member: Member) -> bool:
        """It said something; False if there was nothing."""

    def left(self, member: Member) -> None:
        """It must not be given tasks any more."""

    def offer(self, member: Member) -> None:
        """It may have room for a task, or have it no more."""

    def answer_lost(
        self, member: Member, untouched: FrozenSet[str], tail: List[str]
    ) -> None:
        """It is gone, or given up; its tasks must be told."""

    def failed_to_boot(self, error: BootError) -> None:
        """The pool's children do not start, and never have."""

    def resign(self) -> None:
        """A child is gone, and another one may not come: see `barren`."""


class Nursery:
    """The children of one pool, as processes.

    Arguments:
        settings: the pool's.
        limits: after which a child is recycled.
        log_level: of the children's stderr.
        keeper: who gives them tasks.
        figures: where it counts.
    """

    def __init__(
        self,
        settings: PoolSettings,
        limits: Limits,
        engine: Engine,
        guardian: Guardian,
        drain: Drain,
        log_level: int,
        keeper: Keeper,
        figures: Figures,
    ) -> None:
        self.members: List[Member] = []
        #: Children wanted.
        self.size = settings.size
        self.closed = False
        self.replaced = 0
        self.generation = 0
        #: Why the last reset ended early; None if it did not.
        self.reset_error: Optional[str] = None
        self.backoff = Backoff()
        self._settings = settings
        self._limits = limits
        self._engine = engine
        self._guardian = guardian
        self._drain = drain
        self._log_level = log_level
        self._keeper = keeper
        self._figures = figures
        self.farewell = Farewell(settings, engine, guardian, drain, self)
        #: Whether these children say hello, as far as one of them has shown it.
        self._handshake = settings.handshake
        #: A child of this pool has answered: its command works.
        self._proven = False
        self._resetting = False
        #: When the next child may be started, after one did not come up.
        self._retry: Optional[Timer] = None
        self._ready: Callable[[Optional[BootError]], Any] = _nobody
        self._when_empty: Optional[Callable[[], Any]] = None
        self.lose = self.farewell.lose
        self.says = self.farewell.says

    # --- start and stop ---------------------------------------------------------------

    def start(self, ready: Callable[[Optional[BootError]], Any]) -> None:
        """Start all children; `ready(error)` is called once they live, or do not."""
        self._ready = ready
        self._fill()
        if self._handshake is not Handshake.REQUIRED:
            self._engine.call_later(START_GRACE, self._started, None)

    def _started(self, error: Optional[BootError]) -> None:
        ready, self._ready = self._ready, _nobody
        ready(error)

    def proven(self) -> None:
        """A child has answered."""
        self._proven = True
        self.backoff.succeeded()

    def greeted(self, member: Member) -> None:
        """A child has said hello: it is ready. So its successors will say it, too."""
        if self._handshake is Handshake.AUTO:
            self._handshake = Handshake.REQUIRED
        self._proven = True
        self._started(None)
        member.boot_seconds = time.monotonic() - member.child.born
        self._figures.booted.add(member.boot_seconds)
        self._booted(member)

    def stop(self, empty: Callable[[], Any]) -> None:
        """End all children, politely, then not; `empty()` when all are reaped."""
        self._close()
        self._when_empty = empty
        for member in list(self.members):
            if member.phase in (Phase.IDLE, Phase.BOOTING):
                self.farewell.stop(member)
            elif member.phase not in (Phase.LOST, Phase.STOPPING):
                self.lose(member, Loss(Cause.DIED, self.says(member, "was stopped")))
        self._check_empty()

    def kill(self) -> None:
        """End all children at once."""
        self._close()
        for member in list(self.members):
            if member.phase is Phase.LOST:
                member.child.kill()
            else:
                self.lose(member, Loss(Cause.DIED, self.says(member, "was killed")))

    def _close(self) -> None:
        self.closed = True
        self._stop_waiting()

    def _check_empty(self) -> None:
        if self.closed and not self.members and self._when_empty is not None:
            empty, self._when_empty = self._when_empty, None
            empty()

    # --- as many as are wanted --------------------------------------------------------

    @property
    def barren(self) -> bool:
        """Whether there is no child, and none is sure to come."""
        failing = self.closed or self._retry is not None
        return failing and not self._staying()

    def _staying(self) -> List[Member]:
        return [member for member in self.members if member.stays]

    def _fill(self) -> None:
        """Start children until as many live as are wanted."""
        while not self.closed and self._retry is None:
            staying = self._staying()
            if len(staying) >= self.size + bool(self._old(staying)):
                return
            booting = sum(not member.booted for member in staying)
            if booting >= (self._settings.max_boots or self.size + 1):
                return  # the next starts when one of them has booted, or is gone
            try:
                self._spawn()
            except SpawnError as exc:
                fatal = not self._proven
                self._did_not_boot(self.generation, str(exc), [], fatal)

    def _did_not_boot(
        self, generation: int, what: str, tail: List[str], fatal: bool
    ) -> None:
        """No child for now: at the start that is fatal, later it is tried again."""
        loss = Loss(Cause.DIED, f"{self._setting}: {what}", tail=tail)
        if self._resetting and generation == self.generation:
            self._end_reset(str(loss))
        elif fatal and not self._settings.wait_for_boot:
            self._close()
            error = BootError(str(loss))
            self._keeper.failed_to_boot(error)
            self._started(error)
        elif self._retry is None:
            delay = self.backoff.failed()
            logger.error(
                "linepool: %s; trying again in %.1f s",
                loss,
                delay,
                extra=identity(self._settings.name, cause=NO_BOOT),
            )
            self._retry = self._engine.call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._fill()

    def _stop_waiting(self) -> None:
        if self._retry is not None:
            self._engine.cancel(self._retry)
            self._retry = None

    def resize(self, size: int) -> None:
        """Want more children, or fewer: idle ones go first, others after their task."""
        self.size = size
        surplus = len(self._staying()) - size
        # Whose end costs least goes first.
        order = (Phase.BOOTING, Phase.IDLE, Phase.BUSY)
        by_phase = sorted(
            self._staying(), key=lambda m: (order.index(m.phase), len(m.claims))
        )
        for member in by_phase[: max(0, surplus)]:
            self.retire(member, SHRUNK)
        self._fill()

    # --- recycling --------------------------------------------------------------------

    def retire(self, member: Member, why: str) -> None:
        """End a healthy member: now if it is idle, otherwise after its tasks."""
        if member.retiring is None:
            member.retiring = why
            self._keeper.offer(member)
            if member.phase in (Phase.IDLE, Phase.BOOTING):
                self._bid_farewell(member)

    def released(self, member: Member) -> None:
        """A member has a task less; perhaps it is not to be given another one."""
        self._recycle(member)
        if member.phase is Phase.IDLE:
            member.idle_since = time.monotonic()
            if member.retiring is not None:
                self._bid_farewell(member)

    def _bid_farewell(self, member: Member) -> None:
        logger.info(
            "linepool: pool %r: child pid %s is retired after %d tasks: %s",
            self._settings.name,
            member.child.pid,
            member.served,
            member.retiring,
            extra=member.voice.identity(cause=member.retiring),
        )
        self.farewell.stop(member)
        self._fill()

    def _recycle(self, member: Member) -> None:
        now = time.monotonic()
        age, idle = now - member.child.born, now - member.idle_since
        if member.phase is not Phase.IDLE:
            idle = 0
        why = member.limits.reached(member.served, member.memory, age, idle)
        if why is not None and member.retiring is None:
            member.retiring = why
            # In the middle of other tasks it gets no more, and its successor can boot.
            self._fill()

    def look(self, memory: Mapping[int, int]) -> None:
        """Find members whose time is up, or that use too much memory."""
        limit = self._settings.memory_limit
        ending = (Phase.STOPPING, Phase.LOST, Phase.GONE)
        # Also those that are only waited for: their last task may swell, too.
        for member in [m for m in self.members if m.phase not in ending]:
            member.memory = memory.get(member.child.pid, member.memory)
            if limit is not None and member.memory > limit:
                text = f"used {member.memory} KiB, over linepool_memory_limit = {limit}"
                self.lose(member, Loss(Cause.MEMORY, self.says(member, text)))
            if member.phase is Phase.IDLE:
                self._recycle(member)
                if member.retiring is not None:
                    self._bid_farewell(member)

    # --- reset ------------------------------------------------------------------------

    def reset(self) -> None:
        """Replace all children, one by one, each when its successor has booted."""
        if self.closed:
            return
        self.generation += 1
        self.reset_error = None
        self._resetting = True
        # Who waits after a failed boot need not wait any longer: it may be mended.
        self._stop_waiting()
        self._fill()
        self._reset_on()

    def _old(self, members: List[Member]) -> List[Member]:
        """Those that a reset still has to replace: as long, one more is wanted."""
        if not self._resetting:
            return []
        return [m for m in members if m.generation < self.generation]

    def _reset_on(self) -> None:
        """One step of a reset: called when a child has booted, and when one is gone."""
        if not self._resetting or self.closed:
            return
        staying = self._staying()
        old = self._old(staying)
        if not old:
            self._end_reset(None)
        elif any(m.retiring == RESET for m in self.members) or not all(
            m.booted for m in staying
        ):
            return  # one by one
        elif len(staying) > self.size:
            old.sort(key=lambda m: m.phase is not Phase.IDLE)
            self.retire(old[0], RESET)
        else:
            self._fill()

    def _end_reset(self, error: Optional[str]) -> None:
        self._resetting = False
        self.reset_error = error
        if error is None:
            extra = identity(self._settings.name)
            logger.info("linepool: pool %r was reset", self._settings.name, extra=extra)
        else:
            logger.error(
                "linepool: pool %r was not reset, its children stay: %s",
                self._settings.name,
                error,
                extra=identity(self._settings.name, cause=NO_BOOT),
            )
        self.resize(self.size)

    # --- what the farewell tells ------------------------------------------------------

    def readable(self, member: Member) -> bool:
        return self._keeper.readable(member)

    def left(self, member: Member) -> None:
        self._boot_is_over(member)
        self._keeper.left(member)

    def given_up(self, member: Member) -> None:
        self._keeper.answer_lost(member, frozenset(), [])

    def gone(self, member: Member, untouched: FrozenSet[str], tail: List[str]) -> None:
        self.members.remove(member)
        if not self.closed:
            self._account(member, untouched, tail)
        self._keeper.answer_lost(member, untouched, tail)
        self._reset_on()
        self._fill()
        self._keeper.resign()
        self._check_empty()

    def _account(
        self, member: Member, untouched: FrozenSet[str], tail: List[str]
    ) -> None:
        """Tell a child that cannot boot from one that had bad luck."""
        child = member.child
        cause = member.loss.cause.value if member.loss else member.retiring
        cause = cause or Cause.DIED.value
        self._figures.restarts[cause] += 1
        if member.retiring is not None and member.loss is None:
            return
        self.replaced += 1
        unasked = untouched.issuperset(member.calls)
        ours = member.loss is not None and member.loss.cause is not Cause.VIOLATION
        young = time.monotonic() - child.born < BOOT_TIME or not member.booted
        if young and not member.served and unasked and not ours:
            fatal = not self._proven and not child.ended_from_outside()
            what = member.loss.text if member.loss else child.exit_text()
            self._did_not_boot(member.generation, what, tail, fatal)
        else:
            logger.warning(
                "linepool: pool %r: child pid %s %s after %d tasks; it is replaced",
                self._settings.name,
                child.pid,
                child.exit_text(),
                member.served,
                extra=member.voice.identity(member.only_task, cause),
            )

    # --- the birth of a child ---------------------------------------------------------

    def _spawn(self) -> None:
        slot = self._free_slot()
        env = self._settings.environment(slot, self.generation)
        child = Child(self._settings, env, self._handshake)
        try:
            self._guardian.watch(child.pid)
        except SpawnError:
            child.discard()
            raise
        name, pid = self._settings.name, child.pid
        stream = None
        if child.stderr is not None:
            stream = Stream(child.stderr, name, slot, pid, self._log_level)
            self._drain.add(stream)
        voice = Voice(name, slot, pid, self._log_level)
        limits = self._limits.drawn()
        member = Member(child, stream, voice, limits, self.generation, slot)
        self.members.append(member)
        watch = self._engine.watch
        watch(child.stdout, READ, partial(self._keeper.readable, member))
        if child.exit is not None:
            watch(child.exit, READ, partial(self.farewell.exited, member))
        else:
            self._engine.soon(self.farewell.poll_exit, member)
        self._await_boot(member)

    def _free_slot(self) -> int:
        taken = {member.slot for member in self.members}
        return next(slot for slot in itertools.count(1) if slot not in taken)

    def _await_boot(self, member: Member) -> None:
        later = self._engine.call_later
        if self._handshake is Handshake.REQUIRED:
            seconds = self._settings.boot_timeout
            member.boot_timer = later(seconds, self._no_hello, member)
            return
        member.boot_timer = later(START_GRACE, self._booted, member)
        if not self._resetting:
            # Nothing better can be had: its first task waits while it boots.
            self._keeper.born(member)

    def _no_hello(self, member: Member) -> None:
        if not member.booted and member.phase is Phase.BOOTING:
            text = (
                f"child pid {member.child.pid} said no hello within "
                f"linepool_boot_timeout = {self._settings.boot_timeout:g} s; one of "
                "the original protocol needs linepool_handshake = 'none'"
            )
            self.lose(member, Loss(Cause.VIOLATION, text))

    def _boot_is_over(self, member: Member) -> None:
        # Its timer would keep the child in memory until the time is up.
        if member.boot_timer is not None:
            self._engine.cancel(member.boot_timer)
            member.boot_timer = None

    def _booted(self, member: Member) -> None:
        if member.booted or member.phase in (Phase.LOST, Phase.GONE):
            return
        member.booted = True
        self._boot_is_over(member)
        if member.phase is Phase.BOOTING:
            self._keeper.born(member)
        self._reset_on()
        self._fill()

    # --- for people -------------------------------------------------------------------

    def next_boot_in(self) -> Optional[float]:
        """Seconds until a boot is tried again; None if none has failed."""
        if self._retry is None:
            return None
        return max(0.0, round(self._retry.when - time.monotonic(), 1))

    @property
    def _setting(self) -> str:
        if self._settings.name == "default":
            return "linepool_command"
        return f"linepool_pools[{self._settings.name!r}]['command']"


def _nobody(error: Optional[BootError]) -> None:
    """After the start nobody waits for `ready` any more."""
