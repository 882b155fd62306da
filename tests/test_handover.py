"""A reply, a time limit, a revoke and a cold stop meet, in every order that there is.

The reply is in the pipe already, and the engine does nothing in between: what comes
first decides, the task ends once, and the pool serves on unless it was stopped.
"""

from __future__ import annotations

import itertools
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lone_pool import LonePool, Task, eventually, script

from celery_linepool.job import Loss
from celery_linepool.recycle import Limits
from celery_linepool.settings import PoolSettings

pytestmark = pytest.mark.outer_celerys

EVENTS = ("reply", "limit", "revoke", "stop")
ORDERS = [
    order
    for length in range(len(EVENTS) + 1)
    for order in itertools.permutations(EVENTS, length)
]
#: Tasks that a child has at once; 0 for one of the original protocol.
PROTOCOLS = {"original": 0, "protocol 2": 1, "inflight 8": 8}


class Meeting:
    """One order of events, in a pool of its own."""

    def __init__(self, order: tuple[str, ...], inflight: int, folder: Path) -> None:
        self.order = order
        folder.mkdir()
        self.go, begun = folder / "go", folder / "go.begun"
        settings = PoolSettings(
            "default",
            script("faulty.pl", inflight),
            tasks=("*",),
            inflight=max(1, inflight),
        )
        self.pool = LonePool(settings, Limits())
        try:
            assert self.pool.boot() is None
            if inflight:
                eventually(lambda: self.pool.advertisements)
            task = self.pool.task("hold", str(self.go), limit=600.0)
            eventually(begun.exists)
            self.pool.do(self.meet, task)
            self.seen = self.ended(task)
        finally:
            self.pool.close()

    def meet(self, task: Task) -> None:
        """In the engine, which therefore reads nothing by itself."""
        children, engine = self.pool.children, self.pool.engine
        [member] = children.members()
        self.go.touch()
        select.select([member.child.stdout], [], [])
        for event in self.order:
            if event == "reply":
                children.readable(member)
            elif event == "limit" and task.timer is not None:
                call, args = task.timer.call, task.timer.args
                engine.cancel(task.timer)
                assert call is not None
                call(*args)
            elif event == "revoke":
                children.terminate(task, signal.SIGTERM)
            elif event == "stop":
                children.kill()

    def ended(self, task: Task) -> str:
        answer = task._answer.result(60)
        if "stop" not in self.order:
            assert self.pool.call("pid")
        if isinstance(answer, Loss):
            return answer.cause.value
        return str(answer.fields["status"])


def expected(order: tuple[str, ...], inflight: int) -> str:
    for event in order:
        if event == "revoke":
            return "terminated"
        if event != "stop":
            return "ok"  # a limit looks into the pipe first
        if not inflight:  # it is killed, and what it said is not read any more
            return "terminated" if "revoke" in order else "died"
        # Who knows what a cancel is has a moment to reply.
    return "ok"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_first_decides(protocol, tmp_path, caplog):
    inflight = PROTOCOLS[protocol]

    def see(order: tuple[str, ...]) -> str:
        return Meeting(order, inflight, tmp_path / ("-".join(order) or "none")).seen

    with ThreadPoolExecutor(16) as threads:
        seen = dict(zip(ORDERS, threads.map(see, ORDERS)))
    assert seen == {order: expected(order, inflight) for order in ORDERS}
    # A task that ended twice would be one.
    assert [r.getMessage() for r in caplog.records if r.levelname == "CRITICAL"] == []
