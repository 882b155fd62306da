"""What is compared with what: each row is one table of `docs/benchmarks/README.md`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from .growth import GROWTH
from .latency import ADDED, LATENCY
from .measure import PINGED, RATE, Probe
from .parts import TRIPS
from .recovery import RECOVERY

#: A text that comes back.
TEXT = "x" * 100_000
#: Values that come back as well.
RECORDS = [
    {
        "id": number,
        "name": f"invoice {number}",
        "amount": number / 7,
        "tags": ["a", "é"],
    }
    for number in range(1200)
]


@dataclass(frozen=True)
class Row:
    """Contenders in one situation; the first one is what the others are compared to."""

    name: str
    title: str
    #: As `contenders.case_of` reads them.
    contenders: Tuple[str, ...]
    #: Fields of a `Case`.
    case: Dict[str, Any] = field(default_factory=dict)
    #: Tasks of contenders that are much slower than the others.
    fewer: Dict[str, int] = field(default_factory=dict)
    probe: Probe = RATE
    #: Tasks are sent at this part of what the slowest contender can do.
    load: Optional[float] = None
    #: What is hoped for, in words.
    aim: str = ""


#: The settings that are for the rate alone.
BOTH = "+one_core=true +buffered_broker=true"
FAST = f"linepool {BOTH}"
PIPES = ("linepool", "threads", "prefork")
REDIS = {"results": "redis"}
FIVE = {"args": [5], "tasks": 3000}
RAILS = {"child": "rails", "args": [5], "tasks": 2000}
#: What else a task of Rails can be: a child for each thread, or threads in one child.
IN_RAILS = ("linepool", "linepool concurrency=1 +inflight=4", "http", "sidekiq", FAST)
#: Solo has nobody to hand a task to: what it adds is Celery's tracer.
ADDERS = ("linepool", "threads", "solo", FAST)


def halves(slots: int) -> str:
    """A worker for each of two cores, with so many slots together."""
    return f"linepool workers=2 concurrency={slots // 2} {BOTH}"


ROWS: List[Row] = [
    Row(
        "rabbitmq",
        "No-op tasks, RabbitMQ, results ignored, concurrency 4",
        (*PIPES, "null", FAST, halves(4)),
        aim="1.3 of threads and of prefork, 0.6 of null",
    ),
    *(
        Row(
            f"rabbitmq-{slots}",
            f"The same at concurrency {slots}",
            (*PIPES, FAST),
            {"concurrency": slots, "tasks": 4000},
        )
        for slots in (1, 16, 64)
    ),
    Row(
        "redis",
        "No-op tasks, Redis, results ignored, concurrency 4",
        (*PIPES, "null", FAST),
        {"broker": "redis"},
        aim="1.15 of threads and of prefork",
    ),
    Row(
        "results",
        "No-op tasks, RabbitMQ, results in Redis, concurrency 4",
        (*PIPES, FAST, halves(4)),
        REDIS,
        aim="1.5 of threads and of prefork",
    ),
    Row(
        "results-16",
        "The same at concurrency 16",
        (*PIPES, FAST, halves(16)),
        {"concurrency": 16, **REDIS},
        aim="1.8 of threads and of prefork",
    ),
    Row(
        "sleep",
        "Tasks of 5 ms, RabbitMQ, results ignored, concurrency 4",
        (*PIPES, FAST),
        FIVE,
    ),
    Row(
        "large",
        "Tasks with 100 KB there and back, RabbitMQ, results ignored, concurrency 4",
        (*PIPES, FAST),
        {"args": [0, TEXT], "tasks": 2000, "child": "node"},
    ),
    Row(
        "records",
        "Tasks with 100 KB of records there and back",
        (*PIPES, FAST),
        {"args": [0, RECORDS], "tasks": 1000, "child": "node"},
    ),
    Row(
        "memory",
        "No-op tasks, RabbitMQ, results ignored, concurrency 8: memory",
        ("linepool", "prefork"),
        {"concurrency": 8, "tasks": 3000},
        aim="at most 0.3 of prefork's Python memory",
    ),
    Row(
        "node",
        "Tasks of 5 ms in Node, a pipe against HTTP, concurrency 4",
        ("linepool", "linepool concurrency=1 +inflight=4", "http", FAST),
        {**FIVE, "child": "node"},
    ),
    Row(
        "node-latency",
        "The same, sent at 70 % of what the slowest of them can do: latency",
        ("linepool", "http", FAST),
        {**FIVE, "child": "node"},
        probe=LATENCY,
        load=0.7,
    ),
    Row(
        "rails",
        "Tasks of 5 ms in Rails: HTTP to Puma, Sidekiq; concurrency 4",
        IN_RAILS,
        RAILS,
        aim="1.15 of HTTP",
    ),
    Row(
        "rails-noop",
        "The same without the 5 ms: a query, and nothing else",
        IN_RAILS,
        {**RAILS, "args": [], "tasks": 4000},
    ),
    Row(
        "rails-latency",
        "Tasks of 5 ms in Rails, sent at 70 % of what the slower one can do: latency",
        ("linepool", "http", FAST),
        RAILS,
        probe=LATENCY,
        load=0.7,
        aim="a p99 that is no worse",
    ),
    Row(
        "process",
        "No-op tasks in Ruby against a process per task, concurrency 4",
        ("linepool", "process"),
        {"child": "ruby"},
        {"process": 100},
        aim="50",
    ),
    Row(
        "process-rails",
        "The same in Rails",
        ("linepool", "process"),
        {"child": "rails"},
        {"process": 8},
        aim="300",
    ),
    Row(
        "slots",
        "No-op tasks, RabbitMQ, results ignored: 64 children against 4",
        (
            "linepool concurrency=64",
            "linepool",
            f"linepool concurrency=64 {BOTH}",
            FAST,
        ),
        aim="0.9",
    ),
    Row(
        "slow-results",
        "Results in a Redis that takes 5 ms for each answer, against 0.2 ms; no-op "
        "tasks, RabbitMQ, concurrency 16, and `inspect ping` meanwhile",
        (
            "linepool results=slow:5",
            "linepool results=slow:0.2",
            "threads results=slow:5",
            f"linepool results=slow:5 {BOTH}",
        ),
        {"concurrency": 16, "ping": True},
        {"threads results=slow:5": 4000},
        probe=PINGED,
        aim="0.8 of the faster Redis, and every ping answered",
    ),
    Row(
        "inflight",
        "Tasks of 50 ms: one Node child with 64 at once, against 64 children",
        (
            "linepool concurrency=1 +inflight=64",
            "linepool concurrency=64",
            f"linepool concurrency=1 +inflight=64 {BOTH}",
        ),
        {"args": [50], "tasks": 6000, "child": "node", "prefetch": 64},
        aim="0.95, at 0.1 of the children's memory",
    ),
    Row(
        "workers",
        "No-op tasks, RabbitMQ, results ignored: two workers against one",
        ("linepool workers=2", "linepool", f"linepool workers=2 {BOTH}", FAST),
        {"tasks": 12000},
        aim="1.6",
    ),
    Row(
        "recovery",
        "From `kill -9` of a busy child to the next reply, against its boot",
        ("linepool child=rails", "linepool child=ruby", f"linepool child=rails {BOTH}"),
        {"concurrency": 1, "prefetch": 1, "tasks": 5},
        probe=RECOVERY,
        aim="at most 50 ms more than the boot",
    ),
    Row(
        "added",
        "What the pool adds to a no-op task, at 70 % of what it can do",
        ("linepool", FAST),
        {"tasks": 6000},
        probe=ADDED,
        load=0.7,
        aim="p50 100 µs, p99 1 ms",
    ),
    *(
        Row(
            f"added-{name}",
            f"What each pool adds to a no-op task, at {load} % of the slowest's rate",
            ADDERS,
            {"tasks": tasks},
            probe=ADDED,
            load=load / 100,
        )
        for name, load, tasks in (("beside", 70, 6000), ("calm", 10, 1500))
    ),
    Row(
        "trips",
        "Round trips without Celery: our child object against a bare write and read; "
        "the child has a core of its own",
        ("child", "bare"),
        {"tasks": 8000},
        probe=TRIPS,
        aim="0.7",
    ),
    Row(
        "trips-one-core",
        "The same, with the child on the same core",
        ("child", "bare"),
        {"tasks": 8000, "apart": False},
        probe=TRIPS,
        aim="0.7",
    ),
    Row(
        "million",
        "A million no-op tasks in one worker: its memory (times the scale)",
        ("linepool",),
        {"tasks": 1_000_000},
        probe=GROWTH,
        aim="at most 2 % more",
    ),
]
