"""The loop: what is posted, what is due, what is readable, and greenlets in between."""

from __future__ import annotations

import contextvars
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from greenlet import getcurrent

from celery_linepool.engine import READ, WRITE, Engine

PATIENCE = 30.0


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    yield read_fd, write_fd
    os.close(read_fd)
    os.close(write_fd)


def ask(engine: Engine, call: Callable[..., Any], *args: Any) -> Any:
    """What `call(*args)` returns in the engine."""
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.post(lambda: answer.put(call(*args)))
    return answer.get(timeout=PATIENCE)


def test_what_is_posted_runs_in_the_engine_in_its_order(engine: Engine) -> None:
    found: list[tuple[int, bool]] = []
    for number in range(100):
        engine.post(lambda n=number: found.append((n, engine.is_here())))
    assert ask(engine, list, found) == [(n, True) for n in range(100)]
    assert not engine.is_here()


def test_many_threads_may_post(engine: Engine) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: [engine.post(found.append, n) for n in range(2000)],
            daemon=True,
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask(engine, len, found) == 8000


def test_soon_is_after_what_runs_now(engine: Engine) -> None:
    order: list[str] = []

    def first() -> None:
        engine.soon(order.append, "soon")
        order.append("now")

    engine.post(first)
    assert ask(engine, lambda: None) is None
    assert ask(engine, list, order) == ["now", "soon"]


def test_a_call_that_fails_ends_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.post(lambda: 1 / 0)
    assert ask(engine, lambda: "alive") == "alive"
    [record] = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert "a bug in the engine" in record.getMessage()
    assert record.exc_info and record.exc_info[0] is ZeroDivisionError


# --- timers ---------------------------------------------------------------------------


def test_timers_run_in_the_order_of_their_times(engine: Engine) -> None:
    order: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start() -> None:
        engine.call_later(0.02, order.put, "later")
        engine.call_later(0.01, order.put, "sooner")
        engine.call_later(0, order.put, "at once")

    engine.post(start)
    found = [order.get(timeout=PATIENCE) for _ in range(3)]
    assert found == ["at once", "sooner", "later"]


def test_a_cancelled_timer_does_not_run(engine: Engine) -> None:
    order: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start() -> None:
        timer = engine.call_later(0, order.put, "cancelled")
        engine.call_later(0.01, order.put, "the other")
        engine.cancel(timer)

    engine.post(start)
    assert order.get(timeout=PATIENCE) == "the other"
    assert order.empty()


def test_a_timer_may_cancel_itself_and_another_of_its_moment(engine: Engine) -> None:
    order: queue.SimpleQueue[str] = queue.SimpleQueue()
    timers: list[Any] = []

    def first() -> None:
        for timer in timers:
            engine.cancel(timer)
        order.put("first")

    def start() -> None:
        timers.append(engine.call_later(0, first))
        timers.append(engine.call_later(0, order.put, "second"))
        engine.call_later(0.01, order.put, "last")

    engine.post(start)
    assert [order.get(timeout=PATIENCE) for _ in range(2)] == ["first", "last"]
    assert order.empty()
    assert ask(engine, lambda: len(engine._timers)) == 0


def test_a_timer_wakes_an_engine_that_has_nothing_to_do(engine: Engine) -> None:
    ran = threading.Event()
    engine.post(engine.call_later, 0.01, ran.set)
    assert ran.wait(PATIENCE)


# --- descriptors ----------------------------------------------------------------------


def test_a_descriptor_is_watched_until_it_is_not(
    engine: Engine, pipe: tuple[int, int]
) -> None:
    read_fd, write_fd = pipe
    found: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    engine.post(engine.watch, read_fd, READ, lambda: found.put(os.read(read_fd, 10)))
    os.write(write_fd, b"one")
    assert found.get(timeout=PATIENCE) == b"one"
    os.write(write_fd, b"two")
    assert found.get(timeout=PATIENCE) == b"two"
    ask(engine, engine.unwatch, read_fd)
    os.write(write_fd, b"three")
    ask(engine, lambda: None)
    assert found.empty()


def test_what_is_watched_may_be_replaced(engine: Engine, pipe: tuple[int, int]) -> None:
    _, write_fd = pipe
    found: queue.SimpleQueue[str] = queue.SimpleQueue()

    def second() -> None:
        engine.unwatch(write_fd)
        found.put("second")

    def start() -> None:
        engine.watch(write_fd, WRITE, lambda: found.put("first"))
        engine.watch(write_fd, WRITE, second)

    engine.post(start)
    assert found.get(timeout=PATIENCE) == "second"
    assert found.empty()


def test_what_was_never_watched_may_be_unwatched(
    engine: Engine, pipe: tuple[int, int]
) -> None:
    assert ask(engine, engine.unwatch, pipe[0]) is None


# --- greenlets ------------------------------------------------------------------------


def test_a_greenlet_waits_and_the_engine_does_not(engine: Engine) -> None:
    tasks: list[Any] = []
    order: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def task() -> None:
        tasks.append(getcurrent())
        order.put("begun")
        order.put(engine.suspend())
        order.put(engine.suspend())

    engine.post(engine.start_greenlet, task)
    assert order.get(timeout=PATIENCE) == "begun"
    assert ask(engine, lambda: "the engine goes on") == "the engine goes on"
    for value in ({"any": "value"}, None):
        engine.post(engine.resume, tasks[0], value)
        assert order.get(timeout=PATIENCE) == value
    assert not ask(engine, lambda: tasks[0].dead)  # it is kept for the next one


def test_a_greenlet_is_used_again_when_its_task_has_ended() -> None:
    engine = Engine()
    engine.start()
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def task(waits: bool) -> None:
        seen.put(getcurrent())
        if waits:
            engine.suspend()

    for waits in (False, True, False, False):
        engine.post(engine.start_greenlet, lambda waits=waits: task(waits))
    first, waiting, other, again = [seen.get(timeout=PATIENCE) for _ in range(4)]
    assert first is waiting  # it had ended
    assert other is not waiting and again is other
    engine.post(engine.resume, waiting, None)
    engine.stop()
    assert first.dead and other.dead


def test_a_task_that_raises_costs_no_greenlet(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def broken() -> None:
        seen.put(getcurrent())
        raise ValueError("a mistake")

    engine.post(engine.start_greenlet, broken)
    engine.post(engine.start_greenlet, lambda: seen.put(getcurrent()))
    first, second = [seen.get(timeout=PATIENCE) for _ in range(2)]
    assert first is second
    assert "a mistake" in caplog.text


def test_the_end_of_a_turn_comes_after_all_of_it() -> None:
    """Whoever was told something is woken once for all of it."""
    order: queue.SimpleQueue[str] = queue.SimpleQueue()
    engine = Engine(lambda: order.put("turned"))
    engine.put(order.put, "first")
    engine.put(engine.soon, order.put, "soon")
    engine.put(order.put, "second")
    engine.start()
    engine.stop()
    found = []
    while not order.empty():
        found.append(order.get())
    assert found[:4] == ["first", "second", "soon", "turned"]


def test_what_is_put_waits_for_a_reason_to_wake(engine: Engine) -> None:
    order: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert ask(engine, lambda: True)
    engine.put(order.put, "put")
    engine.wake()
    assert order.get(timeout=PATIENCE) == "put"


def test_many_greenlets_are_resumed_in_any_order(engine: Engine) -> None:
    tasks: dict[int, Any] = {}
    ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def task(number: int) -> None:
        tasks[number] = getcurrent()
        ended.put((number, engine.suspend()))

    for number in range(100):
        engine.post(engine.start_greenlet, lambda n=number: task(n))
    for number in reversed(range(100)):
        engine.post(lambda n=number: engine.resume(tasks[n], n * 2))
    found = [ended.get(timeout=PATIENCE) for _ in range(100)]
    assert found == [(n, n * 2) for n in reversed(range(100))]


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")


def test_each_greenlet_has_a_context_of_its_own(engine: Engine) -> None:
    found: queue.SimpleQueue[str] = queue.SimpleQueue()
    tasks: list[Any] = []

    def task(name: str) -> None:
        VARIABLE.set(name)
        tasks.append(getcurrent())
        engine.suspend()
        found.put(VARIABLE.get())

    for name in ("a", "b"):
        engine.post(engine.start_greenlet, lambda n=name: task(n))
    for index in (0, 1):
        engine.post(lambda i=index: engine.resume(tasks[i], None))
    assert [found.get(timeout=PATIENCE) for _ in range(2)] == ["a", "b"]
    assert ask(engine, VARIABLE.get, "unset") == "unset"


def test_a_greenlet_starts_with_a_copy_of_the_loops_context(engine: Engine) -> None:
    found: queue.SimpleQueue[str] = queue.SimpleQueue()

    def task() -> None:
        found.put(VARIABLE.get("unset"))
        VARIABLE.set("the greenlet's")

    ask(engine, VARIABLE.set, "the loop's")
    engine.post(engine.start_greenlet, task)
    assert found.get(timeout=PATIENCE) == "the loop's"
    assert ask(engine, VARIABLE.get) == "the loop's"


def test_a_greenlet_that_fails_does_not_end_the_loop(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.post(engine.start_greenlet, lambda: 1 / 0)
    assert ask(engine, lambda: "alive") == "alive"
    assert "a bug in the engine" in caplog.text


def test_the_loop_itself_may_not_wait(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.post(engine.suspend)
    assert ask(engine, lambda: "alive") == "alive"
    assert "AssertionError" in caplog.text


# --- for the monitor, and the end -----------------------------------------------------


def test_it_says_since_when_it_is_awake(engine: Engine) -> None:
    assert ask(engine, lambda: engine.awake_since) is not None
    entered, leave = threading.Event(), threading.Event()

    def hold_up() -> None:
        entered.set()
        leave.wait(PATIENCE)

    engine.post(hold_up)
    assert entered.wait(PATIENCE)
    since = engine.awake_since
    assert since is not None and engine.awake_since == since
    leave.set()


def test_stopping_runs_what_was_posted_before() -> None:
    engine = Engine()
    engine.start()
    found: list[int] = []
    for number in range(10):
        engine.post(found.append, number)
    engine.stop()
    assert found == list(range(10))
    assert not engine.is_alive()


def test_what_is_posted_to_a_stopped_engine_is_no_error() -> None:
    """A thread of a hanging Python task may come back after a cold shutdown."""
    engine = Engine()
    engine.start()
    engine.stop()
    engine.post(print, "never")


def test_a_timer_may_be_years_away(engine: Engine) -> None:
    # Nothing else is due, so the engine would sleep as long.
    timer = ask(engine, engine.call_later, 1e9, print)
    assert ask(engine, engine.is_here)
    ask(engine, engine.cancel, timer)


FROZEN = """
import gc
import sys
import threading
from greenlet import getcurrent
from celery_linepool.greenlets import Greenlets

greenlets = Greenlets(lambda run: run())

def run():
    greenlets.loop = getcurrent()
    greenlets.start(lambda: None)
    greenlets.close()
    gc.freeze()  # as if the collector were about to collect all of them

thread = threading.Thread(target=run)
thread.start()
thread.join()
gc.unfreeze()
assert sys.getrefcount(greenlets.loop) > 1
del greenlets
gc.collect()
"""


def test_the_loop_of_a_thread_that_has_ended_is_not_freed_too_early() -> None:
    """It was: whoever looked at it afterwards, such as the collector, crashed."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FROZEN],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
