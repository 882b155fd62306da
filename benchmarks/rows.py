"""What is compared with what: each row is one table of `docs/benchmarks/README.md`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

#: Milliseconds of sleep for a task, and the text that comes back.
TEXT = "x" * 100_000


@dataclass(frozen=True)
class Row:
    """Contenders in one situation; the first one is what the others are compared to."""

    name: str
    title: str
    contenders: Tuple[str, ...]
    case: Dict[str, Any] = field(default_factory=dict)
    #: Whether results are stored in Redis.
    results: bool = False
    broker: str = "rabbitmq"
    #: Tasks of contenders that are much slower than the others.
    fewer: Dict[str, int] = field(default_factory=dict)


PIPES = ("linepool", "threads", "prefork")
ROWS: List[Row] = [
    Row(
        "rabbitmq",
        "No-op tasks, RabbitMQ, results ignored, concurrency 4",
        (*PIPES, "null"),
    ),
    Row("redis", "The same with a Redis broker", (*PIPES, "null"), broker="redis"),
    Row(
        "results",
        "No-op tasks, RabbitMQ, results in Redis, concurrency 4",
        PIPES,
        results=True,
    ),
    Row(
        "results-16",
        "The same at concurrency 16",
        PIPES,
        {"concurrency": 16},
        results=True,
    ),
    Row(
        "sleep",
        "Tasks of 5 ms, RabbitMQ, results ignored, concurrency 4",
        PIPES,
        {"args": [5], "tasks": 3000},
    ),
    Row(
        "large",
        "Tasks with 100 KB there and back, RabbitMQ, results ignored, concurrency 4",
        PIPES,
        {"args": [0, TEXT], "tasks": 2000, "child": "node"},
    ),
    Row(
        "http",
        "Tasks of 5 ms in Node, a pipe against HTTP, concurrency 4",
        ("linepool", "http"),
        {"args": [5], "tasks": 3000, "child": "node"},
    ),
    Row(
        "process",
        "No-op tasks in Ruby against a process per task, concurrency 4",
        ("linepool", "process"),
        {"child": "ruby"},
        fewer={"process": 100},
    ),
    Row(
        "inflight",
        "Tasks of 50 ms: one Node child with 64 at once, against 64 children",
        ("linepool inflight", "linepool"),
        {"args": [50], "tasks": 6000, "child": "node", "concurrency": 64},
    ),
]
