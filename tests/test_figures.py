"""Counts and measures, without a pool."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_linepool.figures import BOUNDS, Figures, Histogram


def histogram(*values: float) -> Histogram:
    found = Histogram()
    for value in values:
        found.add(value)
    return found


def test_of_nothing_there_is_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None
    assert Histogram().info() == {"count": 0, "p50": None, "p99": None}


def test_a_bound_belongs_to_the_range_below_it() -> None:
    found = histogram(0.001, 0.0011)
    assert found.counts[BOUNDS.index(0.001)] == 1
    assert found.counts[BOUNDS.index(0.001) + 1] == 1


@pytest.mark.parametrize(
    ("values", "part", "low", "high"),
    [
        ([0.02] * 100, 0.5, 0.01, 0.025),
        ([0.0001] * 99 + [5.5], 0.5, 0.0, 0.0005),
        ([0.0001] * 98 + [5.5, 5.5], 0.99, 5.0, 10.0),
        ([7000.0], 0.99, 600.0, 600.0),
    ],
)
def test_a_quantile_is_in_the_range_of_its_value(
    values: list[float], part: float, low: float, high: float
) -> None:
    found = histogram(*values).quantile(part)
    assert found is not None and low <= found <= high


@given(st.lists(st.floats(0, 600), min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_part_has_no_smaller_quantile(
    values: list[float], one: float, other: float
) -> None:
    found = histogram(*values)
    low, high = (found.quantile(part) for part in sorted((one, other)))
    assert low is not None and high is not None and low <= high
    assert found.count == len(values)
    assert found.sum == pytest.approx(sum(values))


def test_what_people_see_is_json() -> None:
    figures = Figures()
    figures.outcomes["ok"] += 2
    figures.ran.add(0.1)
    assert json.loads(json.dumps(figures.info()))["outcomes"] == {"ok": 2}
