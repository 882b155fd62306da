"""How many tasks a second, at what cost: a queue that was filled before is emptied."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Tuple

from celery import Celery
from kombu import pools

from .contenders import Case
from .site import Site
from .workers import Samples, Workers, workers

FASTER = ("times the rate", "rate", True)
CHEAPER = ("times less CPU", "cpu", False)

#: The part of the tasks that is thrown away as warm-up, and where counting ends: at the
#: very end not every slot has a task any more.
FROM, TO = 0.2, 0.95

#: Figures by name. `rate`: tasks per second. `cpu`: seconds of processor time of worker
#: and children for a task. `worker_pss`, `children_pss`: MiB at the end.
Found = Dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """What is measured of each contender, and how a table shows it."""

    run: Callable[[Case, Site], Found]
    #: Heading, figure, times what.
    columns: Tuple[Tuple[str, str, float], ...]
    #: The figures that are compared: heading, figure, whether more of it is better.
    compared: Tuple[Tuple[str, str, bool], ...]


def measure(case: Case, site: Site) -> Found:
    """Fill the queue, start the workers, look at them until all is done, end them."""
    extra = {"remote_control": case.ping}
    with workers(case, site, **extra) as running:
        running.fill(range(case.tasks))
        running.start()
        running.wait(running.done, int(FROM * case.tasks))
        cpu, first = running.cpu(), running.done()
        with pinging(running) as answers:
            running.wait(running.done, int(TO * case.tasks))
        cpu, done = running.cpu() - cpu, running.done() - first
        if not done:
            raise RuntimeError(f"{case}: too few tasks to count; raise --scale")
        own, children = running.memory()
        found = {
            "rate": _rate(running.samples(), case.tasks),
            "cpu": cpu / done,
            "worker_pss": own,
            "children_pss": children,
        }
        if case.ping:
            found["ping"] = max(answers)
        return found


RATE = Probe(
    measure,
    (
        ("tasks/s", "rate", 1),
        ("CPU µs/task", "cpu", 1e6),
        ("Python MiB", "worker_pss", 1),
        ("children MiB", "children_pss", 1),
    ),
    (FASTER, CHEAPER),
)
PINGED = Probe(
    measure,
    (
        ("tasks/s", "rate", 1),
        ("CPU µs/task", "cpu", 1e6),
        ("longest ping ms", "ping", 1e3),
    ),
    (FASTER, CHEAPER),
)


def _rate(samples: Samples, tasks: int) -> float:
    inside = [s for s in samples if FROM * tasks <= s[1] <= TO * tasks]
    (start, first), (end, last) = inside[0], inside[-1]
    return (last - first) / (end - start)


@contextmanager
def pinging(running: Workers) -> Iterator[List[float]]:
    """`inspect ping` again and again, if that is asked for; seconds of each answer."""
    answers: List[float] = []
    silent: List[float] = []
    ended = threading.Event()

    def ping() -> None:
        app = Celery(broker=running.site[running.case.broker], set_as_current=False)
        while not (answers or silent) or not ended.wait(0.2):
            begin = time.monotonic()
            replies = app.control.inspect(timeout=10, limit=1).ping()
            (answers if replies else silent).append(time.monotonic() - begin)
        pools.reset()  # app.close lets go of its connections, and closes none
        app.close()

    thread = threading.Thread(target=ping)
    if running.case.ping:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        if running.case.ping:
            thread.join()
    if silent:
        raise RuntimeError(f"{running.case}: {len(silent)} pings were not answered")
