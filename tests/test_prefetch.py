"""The prefetch count of the worker, while its lanes hold different numbers of tasks."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.common import QoS

from celery_linepool.prefetch import MAX_BORROWED, Prefetch

SLOTS = {"slow": 1, "fast": 2}
MULTIPLIER = 2
SHARES = {"slow": 2, "fast": 4}
INITIAL = 6


def connected(prefetch: Prefetch, multiplier: int = MULTIPLIER) -> QoS:
    qos = QoS(lambda prefetch_count: None, INITIAL)
    prefetch.connected(qos, multiplier)
    return qos


@pytest.fixture
def prefetch() -> Prefetch:
    return Prefetch(SLOTS)


def test_a_lane_within_its_share_changes_nothing(prefetch: Prefetch) -> None:
    qos = connected(prefetch)
    for lane, share in SHARES.items():
        for _ in range(share):
            prefetch.take(lane)
    assert qos.value == INITIAL


def test_twice_what_one_lane_holds_beyond_its_share_is_added(
    prefetch: Prefetch,
) -> None:
    qos = connected(prefetch)
    seen = []
    for _ in range(7):
        prefetch.take("slow")
        seen.append(qos.value - INITIAL)
    # In steps, so that the broker does not hear of every message.
    assert seen == [0, 0, 2, 2, 6, 6, 6]


def test_and_is_taken_back(prefetch: Prefetch) -> None:
    qos = connected(prefetch)
    for _ in range(5):
        prefetch.take("slow")
    seen = []
    for _ in range(5):
        prefetch.give("slow")
        seen.append(qos.value - INITIAL)
    assert seen == [6, 2, 0, 0, 0]


def test_a_share_is_what_the_connections_multiplier_makes_of_the_slots(
    prefetch: Prefetch,
) -> None:
    for multiplier in (1, 4):
        qos = connected(prefetch, multiplier)
        for _ in range(multiplier * SLOTS["slow"]):
            prefetch.take("slow")
        assert qos.value == INITIAL
        prefetch.take("slow")
        assert qos.value == INITIAL + 2


def test_no_lane_borrows_without_end(prefetch: Prefetch) -> None:
    qos = connected(prefetch)
    for _ in range(2 * MAX_BORROWED):
        prefetch.take("slow")
    assert qos.value == INITIAL + MAX_BORROWED


def test_a_new_connection_starts_over(prefetch: Prefetch) -> None:
    first = connected(prefetch)
    for _ in range(3):
        prefetch.take("slow")
    second = connected(prefetch)
    assert second.value == INITIAL
    for _ in range(3):
        prefetch.take("slow")
    assert second.value == INITIAL + 2
    assert first.value == INITIAL + 2, "nobody uses it any more"


def test_a_lane_that_grew_holds_more_of_its_own(prefetch: Prefetch) -> None:
    qos = connected(prefetch)
    prefetch.resize("slow", 3)
    for _ in range(3 * MULTIPLIER):
        prefetch.take("slow")
    assert qos.value == INITIAL
    prefetch.take("slow")
    assert qos.value > INITIAL


def test_before_the_first_connection_nothing_is_counted(prefetch: Prefetch) -> None:
    prefetch.take("slow")
    prefetch.give("slow")
    qos = connected(prefetch)
    assert qos.value == INITIAL


def test_threads_do_not_lose_a_message(prefetch: Prefetch) -> None:
    qos = connected(prefetch)

    def work() -> None:
        for _ in range(500):
            prefetch.take("slow")
            prefetch.take("fast")
            prefetch.give("slow")
            prefetch.give("fast")

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert qos.value == INITIAL


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(SHARES)), st.booleans()), max_size=200
    )
)
def test_the_count_has_always_room_for_the_other_lanes(
    steps: list[tuple[str, bool]],
) -> None:
    prefetch = Prefetch(SLOTS)
    qos = connected(prefetch)
    held = dict.fromkeys(SHARES, 0)
    for lane, taken in steps:
        if taken:
            prefetch.take(lane)
            held[lane] += 1
        elif held[lane]:
            prefetch.give(lane)
            held[lane] -= 1
        excess = sum(max(0, held[lane] - SHARES[lane]) for lane in SHARES)
        assert excess <= qos.value - INITIAL <= 4 * excess
