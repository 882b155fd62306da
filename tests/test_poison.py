"""The count of crashes that travels with a task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_linepool.poison import HEADER, crashes_of


@pytest.mark.parametrize(
    ("headers", "crashes"),
    [
        ({}, 0),
        ({HEADER: 2}, 2),
        ({HEADER: "2"}, 2),
        ({HEADER: None}, 0),
        # Somebody else's header of the same name harms nobody.
        ({HEADER: "many"}, 0),
        ({HEADER: [1]}, 0),
    ],
)
def test_the_count_is_in_a_header(headers: dict[str, Any], crashes: int) -> None:
    assert crashes_of(SimpleNamespace(request_dict=headers)) == crashes
