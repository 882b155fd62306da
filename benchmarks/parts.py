"""`python -m benchmarks.parts`: what a no-op task costs, part by part, without broker.

Processor time of this process in microseconds for a task, the least of some rounds, and
tasks per second of those that wait for a child.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import click
import orjson
from celery import Celery
from celery.app.trace import build_tracer, fast_trace_task, setup_worker_optimizations

from celery_linepool.child import Child
from celery_linepool.encoding import encode_request
from celery_linepool.messages import Reply
from celery_linepool.pool import LinePool
from celery_linepool.settings import read
from celery_linepool.tasks import register

from .contenders import CHILDREN, Case
from .measure import CHEAPER, FASTER, Found, Probe
from .site import Site

COMMAND = CHILDREN["perl"].command
NAME = "bench.work"
ROUNDS = 5
BODY = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
JSON = ("application/json", "utf-8")
PAYLOAD = {"task": NAME, "args": [], "kwargs": {}, "meta": {}}


def request(id: str) -> Dict[str, Any]:
    """The headers of a message, as a worker hands them to the tracer."""
    return {
        **{"lang": "py", "task": NAME, "id": id, "root_id": id, "parent_id": None},
        **{"eta": None, "expires": None, "group": None, "retries": 0},
        **{"timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}"},
        **{"origin": "gen1@host", "ignore_result": True, "hostname": "w@host"},
        **{"correlation_id": id, "reply_to": "reply", "is_eager": False},
        "delivery_info": {"exchange": "", "routing_key": "bench", "redelivered": False},
    }


def ids(count: int) -> List[str]:
    return [f"00000000-0000-4000-8000-{number:012}" for number in range(count)]


def nothing() -> None:
    """A Python task."""


def tracer_alone(count: int) -> None:
    """Celery's tracer around a Python function that does nothing."""
    for id in ids(count):
        fast_trace_task("bench.python", id, request(id), BODY, *JSON)


def bare_pipe(count: int, core: Optional[int] = None) -> None:
    """Write a line, read a line: the least that any pool of children can do."""
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        for id in ids(count):
            line = orjson.dumps({"id": id, "payload": PAYLOAD}) + b"\n"
            process.stdin.write(line)
            process.stdin.flush()
            assert orjson.loads(process.stdout.readline())["id"] == id
        process.stdin.close()


def child_object(count: int, app: Celery, core: Optional[int] = None) -> None:
    """The same through `Child`: encoded, checked, and matched to its request."""
    child = Child(read(app.conf, 1)["default"], dict(os.environ))
    try:
        if core is not None:
            os.sched_setaffinity(child.pid, {core})
        for id in ids(count):
            child.send(id, encode_request(id, PAYLOAD))
            events = None
            while not events:
                select.select([child.stdout], [], [])
                events = child.receive()
            assert isinstance(events[0], Reply) and events[0].id == id
    finally:
        child.kill()
        while not child.has_exited():
            time.sleep(0.001)
        child.reap()
        if child.stderr is not None:
            os.close(child.stderr)


def whole_pool(count: int, pool: LinePool, most: int = 32) -> None:
    """All of ours, and Celery's tracer; four children, no broker, no messages."""
    ended: List[Any] = []
    waiting = ids(count)[::-1]
    while len(ended) < count:
        while waiting and count - len(waiting) - len(ended) < most:
            id = waiting.pop()
            pool.apply_async(
                fast_trace_task,
                args=(NAME, id, request(id), BODY, *JSON),
                accept_callback=lambda pid, when: None,
                callback=ended.append,
                error_callback=_fail,
            )
        select.select([pool.runtime.outbox], [], [])
        pool._receive()


def _fail(info: Any) -> None:
    raise SystemExit(f"a task failed: {info}")


def timed(call: Callable[..., None], count: int, *args: Any) -> Tuple[float, float]:
    """Microseconds of processor time for a task, and tasks per second."""
    found = []
    for _ in range(ROUNDS):
        cpu, wall = time.process_time(), time.perf_counter()
        call(count, *args)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        found.append((1e6 * cpu / count, count / wall))
    return min(cpu for cpu, _ in found), max(rate for _, rate in found)


def round_trips(case: Case, site: Site) -> Found:
    """A contender of its own kind: a part of this file, without a worker.

    On which core the child runs makes more of a difference than all of the code: to
    wake another core takes ten times as long.
    """
    app = Celery("bench", broker="memory://")
    app.conf.update(linepool_command=COMMAND)
    cores = os.sched_getaffinity(0)
    ours, *others = sorted(cores)
    core = others[0] if case.apart and others else ours
    os.sched_setaffinity(0, {ours})
    begin, cpu = time.perf_counter(), time.process_time()
    try:
        if case.contender == "child":
            child_object(case.tasks, app, core)
        else:
            bare_pipe(case.tasks, core)
    finally:
        os.sched_setaffinity(0, cores)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - begin
    return {"rate": case.tasks / wall, "cpu": cpu / case.tasks}


TRIPS = Probe(
    round_trips,
    (("round trips/s", "rate", 1), ("CPU µs", "cpu", 1e6)),
    (FASTER, CHEAPER),
)


@click.command()
@click.option("--count", default=4000, show_default=True, help="Tasks of a round.")
def main(count: int) -> None:
    """Print a Markdown table."""
    app = Celery("bench", broker="memory://")
    app.conf.update(task_ignore_result=True, linepool_command=COMMAND)
    app.task(name="bench.python")(nothing)
    app.finalize()
    register(app, NAME)
    setup_worker_optimizations(app, "w@host")
    for name in (NAME, "bench.python"):
        app.tasks[name].__trace__ = build_tracer(name, app.tasks[name], app=app)
    pool = LinePool(4, app=app, threads=False)
    pool.start()
    try:
        parts = {
            "Celery's tracer around nothing": timed(tracer_alone, count),
            "a bare pipe": timed(bare_pipe, count),
            "a pipe through `Child`": timed(child_object, count, app),
            "the whole pool, four children": timed(whole_pool, count, pool),
        }
    finally:
        pool.stop()
    click.echo("| | CPU µs/task | tasks/s |\n|---|---|---|")
    for name, (cpu, rate) in parts.items():
        click.echo(f"| {name} | {cpu:.0f} | {rate:.0f} |")


if __name__ == "__main__":
    main()
