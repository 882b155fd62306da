"""How long a task takes at a steady pace, and how much of that is the pool's."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Dict, List

from .contenders import Case
from .measure import FROM, Found, Probe
from .site import Site
from .workers import Workers, workers


def latency(case: Case, site: Site) -> Found:
    """From just before a task is sent until it has succeeded, in the worker."""
    with workers(case, site, notes=True) as running:
        sent = _pace(running)
        ended = {number: note[0] for number, note in noted(running).items()}
        return _quantiles([ended[n] - sent[n] for n in _counted(case)])


def added(case: Case, site: Site) -> Found:
    """What the pool adds: up to the request's line, and from the reply's line."""
    with workers(case, site, notes=True, stopwatch=True) as running:
        _pace(running)
        notes = noted(running)
        found = [notes[number] for number in _counted(case)]
        parts = {"before": [note[1] for note in found], "after": [n[2] for n in found]}
        medians = {name: statistics.median(all_) for name, all_ in parts.items()}
        return {**_quantiles([sum(note[1:]) for note in found]), **medians}


LATENCY = Probe(
    latency,
    (("p50 ms", "p50", 1e3), ("p99 ms", "p99", 1e3)),
    (("times lower p50", "p50", False), ("times lower p99", "p99", False)),
)
ADDED = Probe(
    added,
    (
        ("p50 µs", "p50", 1e6),
        ("p99 µs", "p99", 1e6),
        ("apply to request, p50 µs", "before", 1e6),
        ("reply to callback, p50 µs", "after", 1e6),
    ),
    (("times lower p50", "p50", False),),
)


def _counted(case: Case) -> range:
    return range(int(FROM * case.tasks), case.tasks)


def _pace(running: Workers) -> List[float]:
    """Send all tasks, one after the other at the case's pace; when each was sent."""
    case = running.case
    assert case.pace is not None
    sent = []
    with running.publisher() as publish:
        running.start()
        warm = 4 * case.concurrency
        for number in range(case.tasks, case.tasks + warm):
            publish(number)
        running.wait(lambda: len(noted(running)), warm)
        begin = time.monotonic()
        for number in range(case.tasks):
            time.sleep(max(0.0, begin + number / case.pace - time.monotonic()))
            sent.append(time.monotonic())
            publish(number)
        running.wait(lambda: len(noted(running)), warm + case.tasks)
    return sent


def noted(running: Workers) -> Dict[int, List[float]]:
    """What the workers have noted of each task (see notes.py)."""
    path = Path(running.folder, "notes")
    lines = path.read_text().splitlines() if path.exists() else []
    split = [line.split() for line in lines]
    return {int(number): list(map(float, times)) for number, *times in split}


def _quantiles(seconds: List[float]) -> Found:
    found = sorted(seconds)
    return {"p50": statistics.median(found), "p99": found[int(0.99 * len(found))]}
