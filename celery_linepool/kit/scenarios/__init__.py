"""Every scenario, in the order in which they are played."""

from __future__ import annotations

from typing import List

from ..scenario import Scenario
from . import (
    beginning,
    control,
    ending,
    events,
    load,
    outcomes,
    output,
    requests,
    values,
    watched,
)

#: The simple ones first: what fails there explains what fails later. Those that look
#: back at everything that was said come last.
ALL: List[Scenario] = [
    *beginning.rows,
    *requests.rows,
    *values.rows,
    *output.rows,
    *outcomes.rows,
    *events.rows,
    *control.rows,
    *load.rows,
    *ending.rows,
    *watched.rows,
]

#: Without these no other scenario tells anything.
GATES = ("hello", "replies")
