"""Whether the worker's memory grows with the number of tasks that it has done."""

from __future__ import annotations

from typing import List, Tuple

import psutil

from .contenders import Case
from .measure import Found, Probe
from .site import Site
from .workers import workers

#: The first part of the tasks, in which caches and free lists fill.
SETTLED = 0.05
#: Looks at the memory after that.
LOOKS = 60
#: Tasks that wait in the queue at the most: a million would be a gigabyte of broker.
AHEAD = 20_000


def growth(case: Case, site: Site) -> Found:
    series: List[Tuple[int, float]] = []
    first = int(SETTLED * case.tasks)
    step = max(1, (case.tasks - first) // LOOKS)
    with workers(case, site) as running, running.publisher() as publish:
        sent = 0
        running.start()
        for goal in range(first, case.tasks + 1, step):
            while sent < min(case.tasks, goal + AHEAD):
                publish(sent)
                sent += 1
            running.wait(running.done, goal)
            info = psutil.Process(running.pids[0]).memory_full_info()
            series.append((goal, info.uss / 2**20))
        begin, end = series[0][1], series[-1][1]
    return {"begin": begin, "end": end, "growth": end / begin - 1, "series": series}


GROWTH = Probe(
    growth,
    (
        ("MiB after 5 %", "begin", 1),
        ("MiB at the end", "end", 1),
        ("growth %", "growth", 100),
    ),
    (("times less", "end", False),),
)
