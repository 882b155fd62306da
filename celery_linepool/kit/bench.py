"""``celery linepool bench``: how fast a child replies, boots and grows."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

import click

from .command import ForCommand, boot_timeout, company_of, for_child, options_of
from .company import ECHO, Company
from .processes import memory
from .scenario import Failure
from .talk import Talk

#: How often the bar moves.
STEP = 100


@click.command(cls=ForCommand)
@click.option(
    "--tasks",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=2),
    metavar="N",
)
@click.option("--task", default=ECHO, show_default=True, help="The task's name.")
@click.option(
    "--inflight",
    type=click.IntRange(min=1),
    metavar="N",
    help="Requests at once; as many as its hello says by default.",
)
@click.option(
    "--size",
    default=0,
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="Give the task a text of that size; without it there is no argument.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as a JSON document.")
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until a reply.",
)
@boot_timeout
@for_child
def bench(
    tasks: int,
    task: str,
    inflight: Optional[int],
    size: int,
    as_json: bool,
    command: Tuple[str, ...],
    **options: Any,
) -> None:
    """Measure round trips to a child: the pipe, the JSON and the task, no broker."""
    try:
        with company_of(options_of(command, task=task, **options)) as company:
            boot = _boot(company)
            most = _most(company, inflight)
            measured = _measure(company.shared(), task, tasks, most, size)
    except Failure as failure:
        raise click.ClickException(f"expected {failure.expected}") from None
    given = {"boot_seconds": boot, "tasks": tasks, "inflight": most, "size": size}
    found = {**given, **measured}
    click.echo(json.dumps(found, indent=2) if as_json else _lines(found))


def _boot(company: Company) -> float:
    """Seconds until the first line of a child."""
    start = time.monotonic()
    company.meet()
    return (company.met_at or time.monotonic()) - start


def _most(company: Company, inflight: Optional[int]) -> int:
    said = company.hello.inflight if company.hello else 1
    if inflight is not None and inflight > said:
        raise click.UsageError(f"the child takes {said} at once, not {inflight}")
    return inflight or said


def _measure(talk: Talk, task: str, count: int, most: int, size: int) -> Dict[str, Any]:
    args = ["x" * size] if size else []
    talk.ask(task, *args)
    before = memory(talk.child.pid)
    times: List[float] = []
    asked: Deque[Tuple[str, float]] = deque()
    statuses: Dict[str, int] = {}
    with click.progressbar(length=count, label="tasks", file=sys.stderr) as bar:
        start = time.monotonic()
        for n in range(count + most):
            if n >= most or n >= count:
                _take(talk, asked, times, statuses)
            if n < count:
                asked.append((talk.request(task, *args), time.monotonic()))
            if n % STEP == 0:
                talk.child.transcript.clear()
                bar.update(STEP)
        seconds = time.monotonic() - start
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "statuses": statuses,
        "per_second": count / seconds,
        "p50_ms": percentiles[49] * 1000,
        "p99_ms": percentiles[98] * 1000,
        "rss_before": before,
        "rss_after": memory(talk.child.pid),
    }


def _take(
    talk: Talk,
    asked: Deque[Tuple[str, float]],
    times: List[float],
    statuses: Dict[str, int],
) -> None:
    if not asked:
        return
    id, since = asked.popleft()
    status = talk.reply(id).status
    times.append(time.monotonic() - since)
    statuses[status] = statuses.get(status, 0) + 1


def _lines(found: Dict[str, Any]) -> str:
    statuses = ", ".join(f"{n} {name}" for name, n in found["statuses"].items())
    rows = {
        "round trips": f"{found['per_second']:.0f} a second",
        "p50": f"{found['p50_ms']:.3f} ms",
        "p99": f"{found['p99_ms']:.3f} ms",
        "boot": f"{found['boot_seconds']:.2f} s",
        "memory": f"{found['rss_before'] / 1e6:.1f} MB, then "
        f"{found['rss_after'] / 1e6:.1f} MB",
        "replies": f"{statuses}; {found['inflight']} at once",
    }
    return "\n".join(f"{name:12} {text}" for name, text in rows.items())
