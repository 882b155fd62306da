"""The heap of timers; the times are made up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_linepool.timers import SWEEP, Timer, Timers


def nothing(*args: object) -> None:
    """What the timers of a test would call."""


def drain(timers: Timers, now: float) -> list[Timer]:
    due = []
    while True:
        timer = timers.pop_due(now)
        if timer is None:
            return due
        due.append(timer)


def test_timers_are_due_in_their_order() -> None:
    timers = Timers()
    late, early, middle = (timers.add(when, nothing) for when in (30, 10, 20))
    assert timers.next_due() == 10
    assert timers.pop_due(9.99) is None
    assert drain(timers, 20) == [early, middle]
    assert timers.next_due() == 30
    assert drain(timers, 1000) == [late]
    assert timers.next_due() is None


def test_timers_of_one_moment_keep_the_order_they_were_added_in() -> None:
    timers = Timers()
    added = [timers.add(1, nothing, number) for number in range(50)]
    assert drain(timers, 1) == added


def test_a_timer_carries_its_call() -> None:
    timers = Timers()
    timers.add(1, nothing, "a", 2)
    timer = timers.pop_due(1)
    assert timer is not None
    assert (timer.call, timer.args, timer.when) == (nothing, ("a", 2), 1)


def test_a_cancelled_timer_is_never_due() -> None:
    timers = Timers()
    first, second = timers.add(1, nothing), timers.add(2, nothing)
    timers.cancel(first)
    assert len(timers) == 1
    assert timers.next_due() == 2
    assert drain(timers, 5) == [second]


def test_cancelling_twice_counts_once() -> None:
    timers = Timers()
    timer, _ = timers.add(1, nothing), timers.add(2, nothing)
    timers.cancel(timer)
    timers.cancel(timer)
    assert len(timers) == 1


def test_a_timer_that_ran_may_be_cancelled() -> None:
    """As happens whenever a reply and its time limit come together."""
    timers = Timers()
    timer = timers.add(1, nothing)
    ran = timers.pop_due(1)
    assert ran is timer
    ran.call = None  # as the engine marks it before it calls
    timers.cancel(timer)
    assert len(timers) == 0


def test_a_cancelled_timer_lets_go_of_what_it_held() -> None:
    timers = Timers()
    timer = timers.add(1, nothing, object())
    timers.cancel(timer)
    assert timer.call is None and timer.args == ()


def test_memory_is_bounded_by_the_timers_that_are_alive() -> None:
    """A time limit of ten minutes, set and cancelled by every task."""
    timers = Timers()
    largest = 0
    for number in range(20 * SWEEP):
        timers.cancel(timers.add(600 + number, nothing))
        largest = max(largest, len(timers._heap))
    assert largest <= 2 * SWEEP


def test_sweeping_keeps_what_is_alive() -> None:
    timers = Timers()
    alive = [timers.add(number, nothing) for number in range(100)]
    for _ in range(3):
        for timer in [timers.add(0.5, nothing) for _ in range(10 * SWEEP)]:
            timers.cancel(timer)
    assert len(timers) == len(alive)
    assert len(timers._heap) <= 2 * (len(alive) + SWEEP)
    assert drain(timers, 100) == alive


#: (when it is due, whether it is cancelled before anything is due)
PLANS = st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=300)


@given(plan=PLANS, now=st.integers(0, 20))
def test_whatever_is_cancelled_the_rest_comes_in_order(
    plan: list[tuple[int, bool]], now: int
) -> None:
    timers = Timers()
    added = [(timers.add(when, nothing), gone) for when, gone in plan]
    for timer, gone in added:
        if gone:
            timers.cancel(timer)
    alive = [timer for timer, gone in added if not gone]
    assert len(timers) == len(alive)
    due = [timer for timer in alive if timer.when <= now]
    assert drain(timers, now) == sorted(due, key=lambda timer: timer.when)
    assert len(timers) == len(alive) - len(due)
