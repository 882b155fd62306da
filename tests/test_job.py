"""One task: its states, and how its host waits."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_linepool.engine import Engine
from celery_linepool.errors import Abandoned, LocalProtocolError
from celery_linepool.job import (
    MOVES,
    Cause,
    Job,
    Loss,
    State,
    Waiter,
    current_job,
)

PATIENCE = 30.0


def make(
    body: Callable[[], Any] = lambda: None, ended: Callable[..., None] = lambda *a: None
) -> Job:
    runtime: Any = None
    return Job("id-1", "billing.charge", runtime, "rails", body, ended)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    engine.start()
    yield engine
    engine.stop()


@pytest.mark.parametrize("before, after", list(itertools.product(State, State)))
def test_every_move_is_legal_or_raises(before: State, after: State) -> None:
    job = make()
    job.state = before
    if after in MOVES[before]:
        job.move(after)
        assert job.state is after
    else:
        with pytest.raises(LocalProtocolError, match="id-1.*not legal"):
            job.move(after)
        assert job.state is before


def test_the_table_names_every_state() -> None:
    assert set(MOVES) == set(State)
    ends = {state for state, moves in MOVES.items() if not moves}
    assert ends == {State.SETTLED, State.DROPPED}


class Ended:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, job: Job, returned: Any, raised: Any) -> None:
        self.calls.append((returned, raised))


def test_what_a_job_returns_is_told() -> None:
    ended = Ended()
    make(lambda: 7, ended).run()
    assert ended.calls == [(7, None)]


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), SystemExit(1), Abandoned(ValueError()), KeyboardInterrupt()],
)
def test_what_a_job_raises_is_told_whatever_it_is(error: BaseException) -> None:
    ended = Ended()

    def body() -> None:
        raise error

    make(body, ended).run()
    assert ended.calls == [(None, error)]


def test_a_job_is_the_current_one_while_it_runs_and_until_it_has_ended() -> None:
    found: list[Any] = []
    job = make(
        lambda: found.append(current_job()), lambda *args: found.append(current_job())
    )
    assert current_job() is None
    job.run()
    assert found == [job, job]
    assert current_job() is None


def test_a_job_within_a_job_has_its_own_turn() -> None:
    inner = make(lambda: found.append(current_job()))
    found: list[Any] = []

    def body() -> None:
        inner.run()
        found.append(current_job())

    outer = make(body)
    outer.run()
    assert found == [inner, outer]


def test_greenlets_do_not_take_each_others_job(engine: Engine) -> None:
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    waiters: list[Waiter] = []

    def body() -> None:
        waiters.append(Waiter(engine))
        found.put((current_job(), waiters[-1].wait(), current_job()))

    jobs = [make(body), make(body)]
    for job in jobs:
        engine.post(engine.start_greenlet, job.run)
    for index in (0, 1):
        engine.post(lambda i=index: waiters[i].wake(i))
    for index in (0, 1):
        job = jobs[index]
        assert found.get(timeout=PATIENCE) == (job, index, job)


def test_a_thread_waits_as_a_greenlet_does(engine: Engine) -> None:
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    begun: queue.SimpleQueue[Waiter] = queue.SimpleQueue()

    def host() -> None:
        waiter = Waiter(engine)
        begun.put(waiter)
        found.put(waiter.wait())

    thread = threading.Thread(target=host, daemon=True)
    thread.start()
    engine.post(begun.get(timeout=PATIENCE).wake, {"any": "value"})
    assert found.get(timeout=PATIENCE) == {"any": "value"}
    thread.join()


def test_a_thread_that_is_woken_before_it_waits(engine: Engine) -> None:
    waiter = Waiter(engine)
    engine.post(waiter.wake, 7)
    assert waiter.wait() == 7


def test_a_loss_shows_the_last_words_of_its_child() -> None:
    assert str(Loss(Cause.DIED, "it died")) == "it died"
    loss = Loss(Cause.DIED, "it died", tail=["one", "two"])
    assert str(loss) == "it died. Its last lines on stderr:\n    one\n    two"


def test_a_job_says_what_it_is() -> None:
    assert repr(make()) == "<Job billing.charge[id-1]: waiting>"


def test_only_a_job_that_knows_better_is_suspect() -> None:
    assert make().is_suspect() is False
