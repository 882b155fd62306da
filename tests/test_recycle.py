"""When a healthy child has served enough."""

from __future__ import annotations

import pytest

from celery_linepool.recycle import JITTER, Limits

ALL = Limits(tasks=10, memory=1000, lifetime=60.0, idle=20.0)


@pytest.mark.parametrize(
    ("used", "why"),
    [
        ((9, 1000, 59.9, 19.9), None),
        ((10, 0, 0, 0), "max_tasks_per_child"),
        ((0, 1001, 0, 0), "max_memory_per_child"),
        ((0, 0, 60.0, 0), "linepool_max_lifetime"),
        ((0, 0, 0, 20.0), "linepool_idle_timeout"),
    ],
)
def test_a_limit_is_named_when_it_is_reached(
    used: tuple[int, int, float, float], why: str | None
) -> None:
    assert ALL.reached(*used) == why


def test_without_limits_a_child_is_kept_for_ever() -> None:
    assert Limits().reached(10**9, 10**9, 1e9, 1e9) is None
    assert Limits().drawn() == Limits()


def test_a_child_gets_a_little_less_by_chance() -> None:
    assert ALL.drawn(lambda low, high: low) == ALL
    least = ALL.drawn(lambda low, high: high)
    assert least.lifetime == pytest.approx(60 * (1 - JITTER))
    assert least.idle == pytest.approx(20 * (1 - JITTER))
    assert least.tasks == round(10 * (1 - JITTER))
    # Memory is a bound, not an age: children that were started together do not
    # reach it together.
    assert least.memory == ALL.memory


def test_every_child_draws_anew() -> None:
    assert len({ALL.drawn().lifetime for _ in range(16)}) > 1


def test_a_child_serves_at_least_one_task() -> None:
    assert Limits(tasks=1).drawn(lambda low, high: high).tasks == 1
