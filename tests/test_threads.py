"""Threads for what blocks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from localprocess import eventually

from celery_linepool.threads import Threads

PATIENCE = 30.0


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("test", 3)
    yield threads
    threads.stop()


def own_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("linepool-test-")]


def test_as_many_calls_as_the_limit_run_at_once(threads: Threads) -> None:
    together = threading.Barrier(4)
    for _ in range(3):
        threads.submit(together.wait, PATIENCE)
    together.wait(PATIENCE)
    assert len(own_threads()) == 3


def test_what_is_beyond_the_limit_waits_for_its_turn(threads: Threads) -> None:
    running, most = 0, 0
    lock, all_done = threading.Lock(), threading.Semaphore(0)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        all_done.release()

    for _ in range(500):
        threads.submit(work)
    for _ in range(500):
        assert all_done.acquire(timeout=PATIENCE)
    assert most <= 3
    assert len(own_threads()) <= 3


def test_no_thread_is_started_before_there_is_work(threads: Threads) -> None:
    assert own_threads() == []
    done = threading.Event()
    threads.submit(done.set)
    assert done.wait(PATIENCE)
    assert [thread.name for thread in own_threads()] == ["linepool-test-1"]


def test_an_idle_thread_is_used_again(threads: Threads) -> None:
    for _ in range(5):
        done = threading.Event()
        threads.submit(done.set)
        assert done.wait(PATIENCE)
        # It is idle only a moment after that.
        eventually(lambda: threads._idle._value == 1, PATIENCE)
    assert len(own_threads()) == 1


def test_calls_that_need_each_other_do_not_wait_for_ever(threads: Threads) -> None:
    """Each round needs every thread; whoever miscounts the idle ones starts none."""
    for _ in range(200):
        together = threading.Barrier(4)
        for _ in range(3):
            threads.submit(together.wait, PATIENCE)
        together.wait(PATIENCE)


def test_without_a_thread_to_spare_work_waits_for_the_first(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads.start()
    eventually(lambda: threads._idle._value == 1, PATIENCE)
    go, done = threading.Event(), threading.Semaphore(0)
    threads.submit(go.wait)
    with monkeypatch.context() as lack:
        lack.setattr(threading.Thread, "start", no_thread)
        for _ in range(3):
            threads.submit(done.release)
    assert caplog.text.count("waits for one of 1: can't start new thread") == 3
    go.set()
    for _ in range(3):
        assert done.acquire(timeout=PATIENCE)
    # What waited for it has not made it seem idle more often than it is.
    together = threading.Barrier(4)
    for _ in range(3):
        threads.submit(together.wait, PATIENCE)
    together.wait(PATIENCE)


def test_a_call_that_fails_ends_nothing(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()
    for _ in range(10):
        threads.submit(lambda: 1 / 0)
    threads.submit(done.set)
    assert done.wait(PATIENCE)
    threads.stop()
    records = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert len(records) == 10
    assert all("a bug" in record.getMessage() for record in records)


def test_stopping_finishes_what_was_submitted() -> None:
    threads = Threads("test", 2)
    done: list[int] = []
    for number in range(100):
        threads.submit(done.append, number)
    threads.stop()
    assert sorted(done) == list(range(100))
    assert own_threads() == []


def test_stopping_need_not_wait_for_what_hangs() -> None:
    threads = Threads("test", 1)
    hang = threading.Event()
    threads.submit(hang.wait)
    threads.stop(wait=False)
    [thread] = own_threads()
    assert thread.daemon, "the interpreter does not wait for it either"
    hang.set()
    thread.join()


def test_a_thread_forgets_what_it_has_done(threads: Threads) -> None:
    """A task's arguments must not live until the next task comes."""

    class Argument:
        deleted = threading.Event()

        def __del__(self) -> None:
            self.deleted.set()

    threads.submit(id, Argument())
    assert Argument.deleted.wait(PATIENCE)
