"""A reply, a time limit, a revoke and a cold stop meet, in every order that there is.

A small model says what has to come of each order. In the real thing the child stands
still except where the order lets it write, and the engine does nothing but what the
order says: so nothing depends on who is quicker. Afterwards both go on by themselves;
the task must end once, as the model says, and the pool serves on unless it was stopped.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from lone_pool import House, LonePool, Task, eventually, script

from celery_linepool.job import Loss
from celery_linepool.member import Phase
from celery_linepool.recycle import Limits
from celery_linepool.settings import PoolSettings

pytestmark = pytest.mark.outer_celerys

#: What may happen: the child writes its reply, the engine reads it, and the three that
#: want an end of the task.
WRITE, READ, LIMIT, REVOKE, STOP = "write", "read", "limit", "revoke", "stop"
#: Tasks that a child has at once; 0 for one of the original protocol.
PROTOCOLS = {"original": 0, "protocol 2": 1, "inflight 8": 8}

Order = tuple[str, ...]


def orders() -> Iterator[Order]:
    """All of them. A reply that is never written needs another end."""
    for length in range(1, 6):
        for order in itertools.permutations((WRITE, READ, LIMIT, REVOKE, STOP), length):
            if READ in order and WRITE not in order[: order.index(READ)]:
                continue  # there is nothing to be read
            yield order


# --- the model ------------------------------------------------------------------------


def expected(order: Order, greeted: bool) -> str:
    """What becomes of the task. `greeted`: its child knows what a cancel is."""
    written = ended = False
    verdict = ""
    for event in order:
        if event == REVOKE:
            # Celery has stored it as revoked by now: nothing that follows may overrule.
            verdict, ended = "terminated", ended or not greeted
        elif ended:
            continue  # its child is being killed: it is not heard, nor killed again
        elif event == WRITE:
            written = True
        elif written and event in (READ, LIMIT):
            return verdict or "ok"  # a limit looks into the pipe first
        elif event == LIMIT or (event == STOP and not greeted):
            verdict = verdict or {LIMIT: "limit", STOP: "died"}[event]
            ended = verdict != "terminated"
    # Nobody killed it: it was asked to give up, if at all, and may still reply.
    return verdict or ("ok" if written else "died")


# --- the real thing -------------------------------------------------------------------


class Meeting:
    """One order of events, in a pool of its own."""

    def __init__(self, order: Order, inflight: int, folder: Path, house: House):
        self.order = order
        folder.mkdir()
        self.go, begun = folder / "go", folder / "go.begun"
        settings = PoolSettings(
            "default",
            script("faulty.pl", inflight),
            tasks=("*",),
            inflight=max(1, inflight),
            cancel_grace=0.1,
        )
        self.pool = LonePool(settings, Limits(), house)
        try:
            assert self.pool.boot() is None
            if inflight:
                eventually(lambda: self.pool.advertisements)
            task = self.pool.task("hold", str(self.go), limit=600.0)
            eventually(begun.exists)
            [self.member] = self.pool.children.members()
            self.pool.do(self.meet, task)
            self.seen = self.ended(task)
        finally:
            self.pool.close()

    def meet(self, task: Task) -> None:
        """In the engine, which therefore does nothing by itself."""
        children, engine = self.pool.children, self.pool.engine
        os.kill(self.member.child.pid, signal.SIGSTOP)
        for event in self.order:
            if event == WRITE:
                self.write()
            elif event == READ:
                children.readable(self.member)
            elif event == LIMIT and task.timer is not None:
                call, args = task.timer.call, task.timer.args
                engine.cancel(task.timer)
                assert call is not None
                call(*args)
            elif event == REVOKE:
                children.terminate(task, signal.SIGTERM)
            elif event == STOP:
                children.kill()

    def write(self) -> None:
        """Let it write its reply, unless it is being killed; then it is over."""
        self.go.touch()
        child = self.member.child
        if self.member.phase is not Phase.GONE:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)
            select.select([child.stdout], [], [])

    def ended(self, task: Task) -> str:
        answer = task._answer.result(60)
        if STOP not in self.order:
            assert self.pool.call("pid")
        if isinstance(answer, Loss):
            return answer.cause.value
        return str(answer.fields["status"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_order_has_its_end(protocol, tmp_path, caplog):
    inflight, every = PROTOCOLS[protocol], list(orders())

    def see(order: Order) -> str:
        return Meeting(order, inflight, tmp_path / "-".join(order), house).seen

    house = House()
    try:
        with ThreadPoolExecutor(16) as threads:
            seen = dict(zip(every, threads.map(see, every)))
    finally:
        house.close()
    assert seen == {order: expected(order, bool(inflight)) for order in every}
    # A task that ended twice would be one.
    assert [r.getMessage() for r in caplog.records if r.levelname == "CRITICAL"] == []
