"""The policy of starting again, with the dice in the test's hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_linepool.backoff import CAP, FIRST, JITTER, Backoff


class Dice:
    """A uniform distribution that throws what it is told to."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, low: float, high: float) -> float:
        return low + (high - low) * self.share


def delays(dice: float, count: int) -> list[float]:
    backoff = Backoff(Dice(dice))
    return [backoff.failed() for _ in range(count)]


def test_a_delay_doubles_until_the_cap() -> None:
    found = delays(0.5, 12)
    assert found[0] == FIRST
    for before, after in zip(found, found[1:]):
        assert after == min(CAP, before * 2)
    assert found[-1] == CAP


def test_jitter_goes_both_ways_from_the_delay() -> None:
    assert delays(0.0, 1) == [FIRST * (1 - JITTER)]
    assert delays(1.0, 1) == [FIRST * (1 + JITTER)]


def test_a_success_starts_over() -> None:
    backoff = Backoff(Dice(0.5))
    first = backoff.failed()
    assert backoff.failed() > first
    backoff.succeeded()
    assert backoff.failures == 0
    assert backoff.failed() == first


def test_it_can_fail_for_ever() -> None:
    # 2.0 ** 1024 would be an overflow, two weeks after a broken deploy.
    assert delays(0.5, 5000)[-1] == CAP


@given(failures=st.integers(1, 200), dice=st.floats(0, 1))
def test_a_delay_is_always_within_its_bounds(failures: int, dice: float) -> None:
    for delay in delays(dice, failures):
        assert FIRST * (1 - JITTER) <= delay <= CAP * (1 + JITTER)


def test_real_dice_differ() -> None:
    # Of a hundred children that crash together no two should boot at one moment.
    assert len({Backoff().failed() for _ in range(100)}) > 90
