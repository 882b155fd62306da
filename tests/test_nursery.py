"""Children of one pool, without Celery: replaced, recycled, reset, scaled."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from lone_pool import PATIENCE, LonePool, eventually, script

from celery_linepool.encoding import encode_request
from celery_linepool.job import Call, Cause
from celery_linepool.member import Member
from celery_linepool.recycle import Limits

pytestmark = pytest.mark.outer_celerys

MakePool = Callable[..., LonePool]


LIVES = script("lives.rb")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def hold(pool: LonePool, tmp_path: Path, name: str = "go") -> tuple[Any, Path]:
    """A task that a child has begun, and the file that ends it."""
    begun, go = tmp_path / f"{name}.begun", tmp_path / name
    task = pool.task("x.gate", str(begun), str(go))
    eventually(lambda: lines(begun), PATIENCE)
    return task, go


def end(pool: LonePool, pid: int) -> None:
    """Kill a child. In its last moment the kernel may still read a request for it."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in pool.pids(), PATIENCE)


# --- replaced -------------------------------------------------------------------------


def test_an_idle_child_that_dies_is_replaced(lone_pool: MakePool) -> None:
    pool = lone_pool(LIVES)
    [first] = pool.idle_pids()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pool.idle_pids() not in (set(), {first}), PATIENCE)
    assert pool.call("x.pid") in pool.idle_pids()


def test_nothing_is_kept_of_children_that_are_gone(lone_pool: MakePool) -> None:
    pool = lone_pool(script("faulty.pl", 1), boot_timeout=10 * PATIENCE)
    ends = []
    for _ in range(5):
        [pid] = eventually(pool.idle_pids, PATIENCE)
        ends.append(pid)
        end(pool, pid)

    def kept() -> list[Member]:
        gc.collect()
        found = [thing for thing in gc.get_objects() if isinstance(thing, Member)]
        return [member for member in found if member.child.pid in ends]

    eventually(lambda: not kept(), PATIENCE)


def test_a_stray_line_of_an_idle_child_costs_no_task(lone_pool: MakePool) -> None:
    pool = lone_pool(script("talks_in_its_sleep.rb"))
    first = pool.call("any")
    os.kill(first, signal.SIGUSR1)
    # Whether the line or the task is noticed first: another child answers.
    eventually(lambda: first not in pool.idle_pids(), PATIENCE)
    assert pool.call("any") != first


def test_a_command_that_never_worked_is_fatal(lone_pool: MakePool) -> None:
    pool = lone_pool(("sh", "-c", "echo no such gem >&2; exit 7"), boot=False)
    error = pool.boot()
    assert error is not None and "no such gem" in str(error)
    assert "status 7" in str(error)


def test_a_pool_may_wait_for_its_first_boot(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    pool = lone_pool(
        script("boots_when_marked.sh", mark, *LIVES), boot=False, wait_for_boot=True
    )
    assert pool.boot() is None
    task = pool.task("x.pid")
    eventually(lambda: pool.info()["failed_boots"] > 1, PATIENCE)
    eventually(lambda: pool.info()["next_boot_in"] is not None, PATIENCE)
    mark.touch()
    assert task.result()
    assert (pool.info()["failed_boots"], pool.info()["next_boot_in"]) == (0, None)


def test_boots_that_fail_later_are_tried_again(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    pool = lone_pool(script("boots_when_marked.sh", mark, *LIVES))
    first = pool.call("x.pid")
    mark.unlink()
    end(pool, first)
    waits = pool.task("x.pid")
    eventually(lambda: pool.info()["failed_boots"] > 1, PATIENCE)
    assert not waits.ended
    mark.touch()
    assert waits.result() != first


def given_unread(pool: LonePool) -> tuple[Any, int]:
    """A task in the pipe of an idle child that stands still, and the child."""
    pid = pool.idle_pids().pop()
    os.kill(pid, signal.SIGSTOP)
    # Before it stands still the kernel would read for it.
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    task = pool.task("x.pid")
    eventually(lambda: pool.member(pid)["doing"], PATIENCE)
    return task, pid


def test_at_the_end_of_the_worker_nobody_waits_in_vain(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    """While a child lives it serves what others have not read; then nobody does."""
    mark = tmp_path / "mark"
    mark.touch()
    pool = lone_pool(script("boots_when_marked.sh", mark, *LIVES), size=2)
    pool.call("x.pid")  # so a boot that fails later is not the end of all
    busy, go = hold(pool, tmp_path)
    waits, first = given_unread(pool)
    pool.do(pool.children.close)
    mark.unlink()
    end(pool, first)
    eventually(lambda: pool.info()["failed_boots"] > 1, PATIENCE)
    assert not waits.ended
    go.touch()
    assert waits.result() == busy.result()

    lost, last = given_unread(pool)
    end(pool, last)
    assert lost.loss().cause is Cause.UNREAD
    answer: Future[Any] = Future()  # of a Python task that asks for itself
    line = encode_request("other", {"task": "x.pid", "args": []})
    pool.do(pool.children.send, Call("other", line, None, answer.set_result))
    assert answer.result(PATIENCE).cause is Cause.DIED


def test_at_the_end_of_the_worker_what_is_late_waits_for_nobody(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    pool = lone_pool(LIVES, size=2)
    busy, go = hold(pool, tmp_path)
    late, pid = given_unread(pool)
    late.late = True
    pool.do(pool.children.close)
    os.kill(pid, signal.SIGKILL)
    assert late.loss().cause is Cause.UNREAD
    go.touch()
    assert busy.result()


def test_only_so_many_boot_at_once(lone_pool: MakePool) -> None:
    pool = lone_pool(LIVES, size=4, max_boots=1)
    born = eventually(lambda: len(pool.idle_pids()) == 4, PATIENCE) and sorted(
        psutil.Process(pid).create_time() for pid in pool.pids()
    )
    # Each waits until the one before it is believed in, which takes half a second.
    assert all(later - earlier > 0.4 for earlier, later in zip(born, born[1:]))


# --- recycled -------------------------------------------------------------------------


def test_a_child_is_retired_after_its_tasks(lone_pool: MakePool) -> None:
    pool = lone_pool(LIVES, limits=Limits(tasks=2))
    pids = [pool.call("x.pid") for _ in range(6)]
    assert pids == [pid for pid in pids[::2] for _ in range(2)]
    assert len(set(pids)) == 3


@pytest.mark.parametrize("limits", [Limits(lifetime=0.2), Limits(idle=0.2)])
def test_a_child_is_retired_between_two_tasks_when_its_time_is_up(
    lone_pool: MakePool, tmp_path: Path, limits: Limits
) -> None:
    pool = lone_pool(LIVES, limits=limits)
    task, go = hold(pool, tmp_path)
    [busy] = pool.pids()
    eventually(lambda: psutil.Process(busy).create_time() + 1 < time.time(), PATIENCE)
    pool.look()
    assert pool.pids() == {busy}
    go.touch()
    assert task.result() == busy
    pool.look_until(lambda: busy not in pool.pids())


def test_one_that_used_much_memory_is_retired_after_its_task(
    lone_pool: MakePool,
) -> None:
    pool = lone_pool(LIVES, limits=Limits(memory=100 * 1024))
    modest = pool.call("x.pid")
    pool.look()
    assert pool.call("x.pid") == modest
    assert pool.call("x.grow", 150) == modest
    pool.look_until(lambda: modest not in pool.pids())
    assert pool.call("x.pid") != modest


def test_one_that_uses_too_much_is_killed_in_its_task(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    pool = lone_pool(LIVES, size=2, memory_limit=100 * 1024)
    other, go = hold(pool, tmp_path)
    hungry = pool.task("x.swallow", 150)
    pool.look_until(lambda: hungry.ended)
    loss = hungry.loss()
    assert loss.cause is Cause.MEMORY
    assert "over linepool_memory_limit = 102400" in str(loss)
    go.touch()
    assert other.result()


# --- reset ----------------------------------------------------------------------------


def test_a_reset_goes_from_one_child_to_the_next(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    pool = lone_pool(script("keeps_a_diary.pl", diary), size=3)
    old = pool.idle_pids()
    pool.do(pool.children.reset)
    eventually(lambda: pool.idle_pids() and pool.idle_pids().isdisjoint(old), PATIENCE)
    eventually(lambda: len(pool.pids()) == 3, PATIENCE)
    assert pool.info()["generation"] == 1

    # A successor is there before the next one has to go.
    story = [line.split()[0] for line in lines(diary) if "ended" not in line]
    assert story == ["born"] * 3 + ["born", "asked"] * 3


def test_a_reset_waits_for_a_busy_child(lone_pool: MakePool, tmp_path: Path) -> None:
    pool = lone_pool(LIVES, size=2)
    task, go = hold(pool, tmp_path)
    [busy] = pool.pids() - pool.idle_pids()
    pool.do(pool.children.reset)
    eventually(lambda: pool.member(busy)["retiring"], PATIENCE)
    assert pool.call("x.pid") != busy
    go.touch()
    assert task.result() == busy
    eventually(lambda: len(pool.idle_pids()) == 2, PATIENCE)
    assert busy not in pool.idle_pids()


def test_a_reset_that_cannot_boot_changes_nothing(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    pool = lone_pool(script("boots_when_marked.sh", mark, *LIVES), size=2)
    old = pool.idle_pids()
    mark.unlink()
    pool.do(pool.children.reset)
    error = eventually(lambda: pool.info()["reset_error"], PATIENCE)
    assert f"{mark} is missing" in error
    assert pool.idle_pids() == old and pool.call("x.pid") in old

    mark.touch()
    pool.do(pool.children.reset)
    eventually(
        lambda: len(pool.idle_pids()) == 2 and pool.idle_pids().isdisjoint(old),
        PATIENCE,
    )
    assert pool.info()["reset_error"] is None


def test_a_reset_ends_the_wait_after_boots_that_failed(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    pool = lone_pool(script("boots_when_marked.sh", mark, *LIVES))
    mark.unlink()
    end(pool, pool.call("x.pid"))
    waits = pool.task("x.pid")
    # From here on it would wait for several seconds.
    eventually(lambda: (pool.info()["next_boot_in"] or 0) > 2, PATIENCE)
    failed = pool.info()["failed_boots"]
    mark.touch()
    pool.do(pool.children.reset)
    assert pool.info()["next_boot_in"] is None
    assert waits.result()
    assert failed > 1


def test_an_empty_pool_is_reset_at_once(lone_pool: MakePool) -> None:
    pool = lone_pool(LIVES)
    pool.do(pool.children.resize, 0)
    eventually(lambda: not pool.pids(), PATIENCE)
    pool.do(pool.children.reset)
    pool.do(pool.children.resize, 1)
    assert pool.call("x.pid")
    assert len(pool.pids()) == 1


# --- more and fewer -------------------------------------------------------------------


def test_more_children_serve_more_tasks_at_once(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    pool = lone_pool(LIVES)
    first, go_first = hold(pool, tmp_path, "first")
    pool.do(pool.children.resize, 2)
    second, go_second = hold(pool, tmp_path, "second")
    go_first.touch()
    go_second.touch()
    assert first.result() != second.result()


def test_idle_children_go_first_and_busy_ones_after_their_task(
    lone_pool: MakePool, tmp_path: Path
) -> None:
    pool = lone_pool(LIVES, size=3)
    task, go = hold(pool, tmp_path)
    [busy] = pool.pids() - pool.idle_pids()
    pool.do(pool.children.resize, 1)
    eventually(lambda: pool.pids() == {busy}, PATIENCE)
    pool.do(pool.children.resize, 0)
    assert pool.pids() == {busy}
    waits = pool.task("x.pid")
    go.touch()
    assert task.result() == busy
    eventually(lambda: not pool.pids(), PATIENCE)
    assert not waits.ended
    pool.do(pool.children.resize, 1)
    assert waits.result() != busy


# --- signals --------------------------------------------------------------------------


def test_a_soft_limit_is_told_and_signalled(lone_pool: MakePool) -> None:
    pool = lone_pool(script("reacts_to_signals.rb"), soft_signal=signal.SIGUSR1)
    pool.call("pid")  # it has set its traps
    task = pool.task("hang", soft_limit=0.2)
    assert task.result() in pool.pids()
    assert pool.late == [task.id]


def test_a_hung_child_says_where_before_it_is_killed(lone_pool: MakePool) -> None:
    pool = lone_pool(script("reacts_to_signals.rb"), dump_signal=signal.SIGQUIT)
    pool.call("pid")  # it has set its traps
    loss = pool.task("hang", limit=0.2).loss()
    assert loss.cause is Cause.LIMIT
    assert any("it hangs in" in line for line in loss.tail)


def test_who_is_terminated_gets_the_signal_first(lone_pool: MakePool) -> None:
    pool = lone_pool(script("reacts_to_signals.rb"))
    pool.call("pid")  # it has set its traps
    task = pool.task("hang")
    eventually(lambda: not pool.idle_pids(), PATIENCE)
    pool.do(pool.children.terminate, task, signal.SIGTERM)
    loss = task.loss()
    assert (loss.cause, loss.number) == (Cause.TERMINATED, signal.SIGTERM)
    assert "TERM came" in loss.tail
