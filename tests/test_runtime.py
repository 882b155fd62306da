"""What goes down to the engine and comes up again, and who is woken for it."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.trace import build_tracer
from celery.backends.base import DisabledBackend
from localprocess import eventually

from celery_linepool.pool import LinePool
from celery_linepool.settler import SettledBackend
from celery_linepool.tasks import register

CHILDREN = Path(__file__).parent / "children"
NAME = "any.task"


class Bench:
    """A pool without a worker: the test is its main thread."""

    def __init__(self, command: list[str]) -> None:
        app = Celery(broker="memory://", set_as_current=False)
        app.conf.update(task_ignore_result=True, linepool_command=command)
        app.finalize()
        self.task = register(app, NAME)
        self.tracer = build_tracer(NAME, self.task, app=app)
        self.pool = LinePool(1, app=app, threads=False)
        self.pool.start()
        self.started: list[str] = []
        self.ended: list[str] = []

    def apply(self, id: str, *args: Any) -> None:
        def target(*_: Any) -> Any:
            request = {"id": id, "task": NAME, "ignore_result": True}
            return self.tracer(id, args, {}, request)

        # As Celery writes it: without callbacks a greenlet hosts the task.
        embed = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
        body = f"[[], {{}}, {embed}]".encode()
        self.pool.apply_async(
            target,
            args=(NAME, id, {}, body, "application/json", "utf-8"),
            accept_callback=lambda pid, when: self.started.append(id),
            callback=lambda result: self.ended.append(id),
            error_callback=lambda info: self.ended.append(info.traceback),
        )

    def receive(self) -> None:
        if self.woken(seconds=30):
            self.pool._receive()

    def woken(self, seconds: float = 0) -> bool:
        return bool(select.select([self.pool.runtime.outbox], [], [], seconds)[0])

    def receive_until_ended(self, *ids: str) -> None:
        while len(self.ended) < len(ids):
            self.receive()
        assert self.ended == list(ids)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(["ruby", str(CHILDREN / "waits_for_file.rb")])
    yield bench
    (tmp_path / "go").touch()
    bench.pool.stop()


def test_a_task_for_a_busy_pool_wakes_nobody(bench: Bench, tmp_path: Path) -> None:
    engine = bench.pool.runtime.engine
    bench.apply("first", None, str(tmp_path / "go"))
    while not bench.started:
        bench.receive()
    eventually(lambda: engine.awake_since is None)
    bench.apply("second")
    # It is not even looked at: the engine has nothing to do until a child replies.
    assert len(engine._inbox) == 1 and engine._inbox.armed
    (tmp_path / "go").touch()
    bench.receive_until_ended("first", "second")


def test_a_task_for_an_idle_child_starts_at_once(bench: Bench) -> None:
    eventually(lambda: bench.pool.runtime.engine.awake_since is None)
    bench.apply("first")
    while not bench.started:
        bench.receive()


def test_what_comes_while_letters_are_read_is_read_next(bench: Bench) -> None:
    outbox, order = bench.pool.runtime.outbox, []

    def first() -> None:
        order.append("first")
        outbox.post(order.append, "second")

    outbox.post(first)
    bench.receive()
    assert order == ["first"] and bench.woken()
    bench.receive()
    assert order == ["first", "second"] and not bench.woken()


def test_a_letter_that_fails_keeps_none_from_being_read(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, order = bench.pool.runtime.outbox, []

    def exhausted() -> None:
        raise MemoryError

    outbox.post(lambda: 1 / 0)
    outbox.post(order.append, "second")
    outbox.post(exhausted)
    outbox.post(order.append, "last")
    with pytest.raises(MemoryError):
        bench.receive()
    assert order == ["second"] and "ZeroDivisionError" in caplog.text
    bench.receive()
    assert order == ["second", "last"]
    outbox.post(order.append, "woken again")
    bench.receive()
    assert order[-1] == "woken again"


def test_no_letter_is_lost_between_threads(bench: Bench) -> None:
    found: list[int] = []
    count = 20_000

    def write() -> None:
        for number in range(count):
            bench.pool.runtime.outbox.post(found.append, number)

    writer = threading.Thread(target=write)
    writer.start()
    while len(found) < count:
        bench.receive()
    writer.join()
    assert found == list(range(count))


def test_a_call_that_is_run_aside_has_the_backend_of_its_thread(bench: Bench) -> None:
    """Celery makes one for each thread, and not all of them bear two."""
    runtime, app = bench.pool.runtime, bench.task.app
    there: Future[list[Any]] = Future()

    def engine() -> None:
        both = [runtime.settled_backend(), runtime.settled_backend()]
        there.set_result([*both, app.backend])

    runtime.engine.post(engine)
    first, second, engines = there.result(30)
    assert first is second and first.backend is engines
    assert runtime.settled_backend().backend is app.backend is not engines


def test_a_task_with_a_backend_of_its_own_has_it_wherever_it_is_asked(
    bench: Bench,
) -> None:
    """As a receiver of a signal may ask for it, in the engine, of another task."""
    other = register(bench.task.app, "another.task")
    other.backend = own = DisabledBackend(bench.task.app)
    seen: list[Any] = []

    def receiver(**_: Any) -> None:
        seen.append(other.backend)
        seen.append(bench.task.backend)

    signals.task_prerun.connect(receiver, weak=False)
    try:
        bench.tracer = build_tracer(NAME, bench.task, app=bench.task.app)
        bench.apply("1")
        while not bench.ended:
            bench.receive()
    finally:
        signals.task_prerun.disconnect(receiver)
    assert seen[0] is own
    assert isinstance(seen[1], SettledBackend)
