"""Several tasks in one child: order, limits, and what becomes of siblings."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from lone_pool import LonePool, eventually, script

from celery_linepool.job import Cause
from celery_linepool.protocol import Stray
from celery_linepool.recycle import Limits

pytestmark = pytest.mark.outer_celerys

Open = Callable[..., LonePool]


def talker(inflight: int, features: str = "cancel,ping,stop") -> tuple[str, ...]:
    return script("converses.cjs", inflight, features)


def open_one(lone_pool: Open, inflight: int = 8, **options: Any) -> LonePool:
    """A pool of one child that takes so many tasks."""
    options.setdefault("cancel_grace", 60.0)
    command = options.pop("command", talker(inflight))
    pool = lone_pool(command, inflight=inflight, size=1, boot=False, **options)
    assert pool.boot() is None
    eventually(lambda: pool.advertisements)
    return pool


def read_by_its_child(pool: LonePool) -> None:
    """Whatever was handed in before: what is not read yet may go to another child."""
    assert pool.call("talk.sleep", 1) == 1


def busy(pool: LonePool) -> int:
    return sum(child["inflight"] for child in pool.info()["children"])


# --- order ----------------------------------------------------------------------------


def test_sixty_four_sleeps_in_one_child_take_little_more_than_one(lone_pool: Open):
    pool = open_one(lone_pool, 64)
    pool.call("talk.sleep", 50)

    def seconds(count: int) -> float:
        start = time.monotonic()
        tasks = [pool.task("talk.sleep", 50) for _ in range(count)]
        assert [task.result() for task in tasks] == [50] * count
        return time.monotonic() - start

    # One after the other they would take 64 times as long.
    ratios = [seconds(64) / seconds(1) for _ in range(5)]
    assert min(ratios) < 4, ratios


def test_replies_come_in_any_order(lone_pool: Open):
    pool = open_one(lone_pool)
    slow, fast = pool.task("talk.sleep", 300), pool.task("talk.sleep", 1)
    assert fast.result() == 1
    assert not slow.ended
    assert slow.result() == 300


def test_a_child_gets_no_more_than_it_declares(lone_pool: Open, caplog):
    pool = open_one(lone_pool, 8, command=talker(2))
    tasks = [pool.task("talk.sleep", 100) for _ in range(5)]
    eventually(lambda: busy(pool) == 2)
    assert pool.info()["waiting"] == 3
    assert [task.result() for task in tasks] == [100] * 5
    assert "serves 2 tasks at once, not linepool_inflight = 8" in caplog.text


def test_a_child_gets_no_more_than_the_setting(lone_pool: Open):
    pool = open_one(lone_pool, 2, command=talker(8))
    tasks = [pool.task("talk.sleep", 50) for _ in range(5)]
    eventually(lambda: busy(pool) == 2)
    assert [task.result() for task in tasks] == [50] * 5


def test_idle_children_come_before_busy_ones(lone_pool: Open):
    pool = lone_pool(talker(4), inflight=4, size=3)
    eventually(lambda: len(pool.advertisements) == 3)
    tasks = [pool.task("talk.sleep", 300) for _ in range(6)]
    eventually(lambda: busy(pool) == 6)
    assert [child["inflight"] for child in pool.info()["children"]] == [2, 2, 2]
    assert [task.result() for task in tasks] == [300] * 6


def test_twins_are_not_in_one_child_at_once(lone_pool: Open, tmp_path: Path):
    pool = open_one(lone_pool)
    mark = tmp_path / "mark"
    first = pool.task("talk.wait", str(mark))
    eventually(lambda: busy(pool) == 1)
    pool._ids = iter([first.id, "other"])
    twin, other = pool.task("talk.pid"), pool.task("talk.pid")
    pid = other.result()  # is not held up by the twin
    assert not twin.ended
    mark.touch()
    assert first.result() == "seen"
    assert twin.result() == pid


# --- one task is ended, and the others ------------------------------------------------


def test_a_limit_cancels_the_task_and_leaves_the_others(lone_pool: Open):
    pool = open_one(lone_pool)
    late = pool.task("talk.sleep", 60_000, limit=0.3)
    sibling = pool.task("talk.sleep", 1_000)
    loss = late.loss()
    assert (loss.cause, loss.number) == (Cause.LIMIT, 0.3)
    assert sibling.result() == 1_000
    assert pool.info()["replaced"] == 0
    assert pool.call("talk.sleep", 1) == 1, "the child serves on"


def test_what_it_says_after_its_limit_does_not_count(lone_pool: Open):
    pool = open_one(lone_pool)
    late = pool.task("talk.finish", limit=0.2)  # replies "ok" to the cancel
    sibling = pool.task("talk.sleep", 500)
    assert late.loss().cause is Cause.LIMIT
    assert sibling.result() == 500


def test_a_task_alone_in_its_child_is_killed_at_its_limit(lone_pool: Open):
    pool = open_one(lone_pool)
    pid = pool.call("talk.pid")
    assert pool.task("talk.stubborn", limit=0.2).loss().cause is Cause.LIMIT
    assert pool.call("talk.pid") != pid


def test_who_does_not_give_up_takes_its_siblings_along(lone_pool: Open):
    pool = open_one(lone_pool, cancel_grace=0.5)
    pid = pool.call("talk.pid")
    hung = pool.task("talk.stubborn", limit=1.0)
    sibling = pool.task("talk.sleep", 60_000)
    read_by_its_child(pool)
    assert hung.loss().cause is Cause.LIMIT
    loss = sibling.loss()
    assert loss.cause is Cause.SIBLING
    assert f"another task in it, {hung.id}" in str(loss) and "exceeded" in str(loss)
    assert pool.call("talk.pid") != pid


def test_while_one_gives_up_no_other_task_is_given(lone_pool: Open, tmp_path: Path):
    pool = open_one(lone_pool, cancel_grace=60.0)
    mark = tmp_path / "mark"
    sibling = pool.task("talk.wait", str(mark))
    stubborn = pool.task("talk.stubborn", limit=0.2)
    eventually(lambda: pool.do(lambda: pool.children.members()[0].condemned) == 1)
    waiting = pool.task("talk.pid")
    eventually(lambda: pool.info()["waiting"] == 1)
    mark.touch()
    assert sibling.result() == "seen"
    assert not waiting.ended and not stubborn.ended
    pool.do(pool.children.members()[0].child.kill)
    assert stubborn.loss().cause is Cause.LIMIT
    assert waiting.result()


def test_a_child_that_cannot_cancel_is_killed_at_once(lone_pool: Open):
    pool = open_one(lone_pool, command=talker(8, "stop"))
    late = pool.task("talk.stubborn", limit=1.0)
    sibling = pool.task("talk.sleep", 60_000)
    read_by_its_child(pool)
    assert late.loss().cause is Cause.LIMIT
    assert sibling.loss().cause is Cause.SIBLING


def test_a_revoked_task_gives_up_and_the_others_go_on(lone_pool: Open):
    pool = open_one(lone_pool)
    task, sibling = pool.task("talk.sleep", 60_000), pool.task("talk.sleep", 500)
    read_by_its_child(pool)
    pool.do(pool.children.terminate, task, signal.SIGTERM)
    loss = task.loss()
    assert (loss.cause, loss.number) == (Cause.TERMINATED, signal.SIGTERM)
    assert sibling.result() == 500
    assert pool.info()["replaced"] == 0


def test_another_signal_than_term_does_not_ask(lone_pool: Open):
    pool = open_one(lone_pool)
    task, sibling = pool.task("talk.sleep", 60_000), pool.task("talk.sleep", 60_000)
    read_by_its_child(pool)
    pool.do(pool.children.terminate, task, signal.SIGKILL)
    assert task.loss().cause is Cause.TERMINATED
    assert sibling.loss().cause is Cause.SIBLING


def test_a_bad_reply_is_that_of_its_task(lone_pool: Open):
    pool = open_one(lone_pool)
    sibling = pool.task("talk.sleep", 60_000)
    eventually(lambda: busy(pool) == 1)
    loss = pool.task("talk.bad").loss()
    assert loss.cause is Cause.VIOLATION and "'fine'" in str(loss)
    assert sibling.loss().cause is Cause.SIBLING


def test_a_bad_line_of_nobody_loses_all(lone_pool: Open):
    pool = open_one(lone_pool, stdout=Stray.STRICT)
    sibling = pool.task("talk.sleep", 60_000)
    eventually(lambda: busy(pool) == 1)
    garbled = pool.task("talk.garbled")
    for task in (sibling, garbled):
        assert task.loss().cause is Cause.SIBLING
        assert "broke the protocol" in str(task.loss())


def test_a_child_that_dies_loses_all_its_tasks(lone_pool: Open):
    pool = open_one(lone_pool)
    sibling = pool.task("talk.sleep", 60_000)
    eventually(lambda: busy(pool) == 1)
    dead = pool.task("talk.die")
    for task in (dead, sibling):
        assert task.loss().cause is Cause.DIED
        assert "status 3" in str(task.loss())


def test_what_a_dead_child_had_not_read_goes_to_another(lone_pool: Open, tmp_path):
    pool = open_one(lone_pool)
    pid = pool.call("talk.pid")
    sibling = pool.task("talk.sleep", 60_000)
    read_by_its_child(pool)
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    unread = pool.task("talk.pid")
    eventually(lambda: busy(pool) == 2)
    os.kill(pid, signal.SIGKILL)
    assert sibling.loss().cause is Cause.DIED
    assert unread.result() != pid


# --- cancel ---------------------------------------------------------------------------


def test_a_soft_limit_is_a_cancel(lone_pool: Open):
    pool = open_one(lone_pool, 1)
    loss = pool.task("talk.sleep", 60_000, soft_limit=0.2).loss()
    assert (loss.cause, loss.number) == (Cause.SOFT_LIMIT, 0.2)
    assert pool.task("talk.finish", soft_limit=0.2).result() == "soft_time_limit"
    assert pool.info()["replaced"] == 0


def test_a_cold_stop_is_a_cancel_with_time_for_a_reply(lone_pool: Open):
    pool = open_one(lone_pool)
    finishes, gives_up = pool.task("talk.finish"), pool.task("talk.sleep", 60_000)
    stubborn = pool.task("talk.stubborn")
    eventually(lambda: busy(pool) == 3)
    pool.engine.post(pool.children.kill)
    assert finishes.result() == "shutdown"
    assert gives_up.loss().cause is Cause.SIBLING
    assert stubborn.loss().cause is Cause.DIED


# --- recycling and restart ------------------------------------------------------------


def test_a_child_that_is_never_idle_is_recycled_all_the_same(lone_pool: Open):
    pool = lone_pool(talker(4), Limits(tasks=10), inflight=4, size=1)
    eventually(lambda: pool.advertisements)
    tasks = [pool.task("talk.pid") for _ in range(100)]
    pids = [task.result() for task in tasks]
    assert len(set(pids)) >= 5
    assert max(map(pids.count, set(pids))) < 10 + 4


def test_a_child_that_wants_to_be_replaced_loses_nothing(lone_pool: Open):
    pool = open_one(lone_pool, 1, command=script("restarts_once.cjs"))
    pid = pool.call("once.pid")
    assert pool.call("once.restart") != pid
    assert pool.info()["replaced"] == 0


def test_children_that_never_begin_anything_back_off(lone_pool: Open, caplog):
    pool = open_one(lone_pool, 1)
    task = pool.task("talk.restart")
    eventually(lambda: pool.info()["failed_boots"] > 1)
    assert not task.ended
    assert "asked to be replaced at its first task" in caplog.text


def test_the_stop_line_comes_before_the_end_of_stdin(lone_pool: Open, tmp_path: Path):
    diary = tmp_path / "diary"
    pool = open_one(lone_pool, 1, env={"STOPPED": str(diary)})
    pool.stop()
    assert diary.read_text() == "stop\n"
