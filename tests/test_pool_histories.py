"""What may happen to the children of a pool, in histories that hypothesis invents.

The children are real; only the clock is the test's, so that hours may pass between two
tasks. A small model knows which tasks are being done and what has to come of them.
"""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lone_pool import PATIENCE, House, LonePool, Task, script

from celery_linepool.job import Cause
from celery_linepool.member import Phase
from celery_linepool.protocol import Handshake
from celery_linepool.recycle import Limits
from celery_linepool.settings import PoolSettings

pytestmark = pytest.mark.newest_celery

LIFETIME = 10_000.0
TASKS = 4


class Clock:
    """The monotonic clock of this process, which can be put forward."""

    def __init__(self) -> None:
        self.real, self._ahead = time.monotonic, 0.0

    def __call__(self) -> float:
        return self.real() + self._ahead

    def forward(self, seconds: float) -> None:
        self._ahead += seconds


class Histories(RuleBasedStateMachine):
    """One pool, and all that its owner, its tasks and the world may do to it."""

    house: House
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self._names = map(str, itertools.count())
        #: Tasks that a child has begun, each with its child and the file that ends it.
        self.held: dict[Task, tuple[int, Path]] = {}
        self.pool: LonePool | None = None

    @initialize(size=st.integers(1, 3), tasks=st.sampled_from([None, TASKS]))
    def begin(self, size: int, tasks: int | None) -> None:
        settings = PoolSettings(
            "default",
            script("faulty.pl", 1),
            tasks=("*",),
            size=size,
            handshake=Handshake.REQUIRED,
            timeout=1e9,
            env={"FAULT_AT_BOOT": str(self.folder / "boot")},
        )
        self.size, self.limit = size, tasks
        limits = Limits(tasks=tasks, lifetime=LIFETIME)
        self.pool = LonePool(settings, limits, self.house)
        assert self.pool.boot() is None
        self.rest()

    # --- what the model says ----------------------------------------------------------

    @property
    def idle(self) -> int:
        return self.size - len(self.held)

    def rest(self) -> None:
        """Until as many children as are wanted are well, or at work."""
        held = {pid for pid, _ in self.held.values()}

        def is_quiet() -> bool:
            found = self.pool.info()["children"]
            idle = [c for c in found if c["state"] == "idle" and not c["retiring"]]
            others = {c["pid"] for c in found if c["state"] != "idle"}
            return len(idle) >= self.idle and others == held

        self.until(is_quiet)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for what should happen; the time until the next boot passes at once."""
        end = self.clock.real() + PATIENCE
        while not (found := condition()):
            assert self.clock.real() < end, self.pool.info()
            if self.pool.info()["next_boot_in"] is not None:
                self.clock.forward(60)
            time.sleep(0.005)
        return found

    # --- what happens -----------------------------------------------------------------

    @precondition(lambda self: self.idle > 0)
    @rule()
    def start(self) -> None:
        go = self.folder / next(self._names)
        begun = go.with_suffix(".begun")
        task = self.pool.task("hold", str(go))
        pid = int(self.until(lambda: begun.exists() and begun.read_text()))
        assert pid not in {p for p, _ in self.held.values()}, "two tasks in one child"
        self.held[task] = pid, go

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        task, (pid, go) = self.take(data)
        go.touch()
        assert task.result() == pid
        self.rest()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def kill_at_work(self, data: st.DataObject) -> None:
        task, (pid, _) = self.take(data)
        os.kill(pid, signal.SIGKILL)
        assert task.loss().cause is Cause.DIED
        self.rest()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        task, _ = self.take(data)
        self.pool.do(self.pool.children.terminate, task, signal.SIGTERM)
        assert task.loss().cause is Cause.TERMINATED
        self.rest()

    @precondition(lambda self: self.idle > 0)
    @rule(boots=st.booleans())
    def kill_idle(self, boots: bool) -> None:
        """Its successor may fail at its boot; after a while the next one does not."""
        if not boots:
            (self.folder / "boot").write_text("exit 1")
        self.kill(min(self.pool.idle_pids()))
        self.until(lambda: not (self.folder / "boot").exists())
        self.rest()

    @precondition(lambda self: self.idle > 0)
    @rule()
    def kill_old(self) -> None:
        """A child that has lived for a while did boot: another one takes its place."""
        failed = self.pool.info()["failed_boots"]
        self.clock.forward(LIFETIME / 100)
        self.kill(min(self.pool.idle_pids()))
        assert self.pool.info()["failed_boots"] == failed
        self.rest()

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: pid not in self.pool.pids())

    @rule(size=st.integers(1, 3))
    def resize(self, size: int) -> None:
        self.size = max(size, len(self.held))
        self.pool.do(self.pool.children.resize, self.size)
        self.rest()

    @precondition(lambda self: not self.held)
    @rule()
    def reset(self) -> None:
        old = self.pool.pids()
        self.pool.do(self.pool.children.reset)
        self.until(lambda: not old & self.pool.pids())
        self.rest()

    @rule()
    def a_day_passes(self) -> None:
        """Who is idle has lived too long; who is at work ends after its task."""
        old = self.pool.idle_pids()
        self.clock.forward(86_400)
        self.pool.look()
        self.until(lambda: not old & self.pool.pids())
        self.rest()

    def take(self, data: st.DataObject) -> Any:
        task = data.draw(st.sampled_from(list(self.held)), "task")
        return task, self.held.pop(task)

    # --- what is always so ------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if self.pool is None:
            return
        members = self.pool.do(self.pool.children.members)
        live = [m for m in members if m.phase is not Phase.GONE]
        assert len({m.slot for m in live}) == len(live), "a slot is taken twice"
        assert self.limit is None or all(m.served <= self.limit for m in members)
        assert not any(task.ended for task in self.held)

    def teardown(self) -> None:
        if self.pool is not None:
            self.pool.close()
            for task in self.held:
                task._answer.result(PATIENCE)  # a reply, or a loss
        self._folder.cleanup()


def test_whatever_happens_the_pool_is_as_it_should_be(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, house = Clock(), House()
    monkeypatch.setattr(time, "monotonic", clock)

    class Here(Histories):
        pass

    Here.clock, Here.house = clock, house
    try:
        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=int(os.environ.get("LINEPOOL_HISTORIES", "15")),
                stateful_step_count=15,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        house.close()
    bugs = [r.getMessage() for r in caplog.records if r.levelname == "CRITICAL"]
    assert bugs == []
