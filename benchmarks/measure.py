"""One contender, once: a real worker that empties a queue that was filled before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import psutil
from celery import Celery

HERE = Path(__file__).parent
CHILDREN = {
    "perl": ("perl", str(HERE / "children" / "work.pl")),
    "ruby": ("ruby", str(HERE / "children" / "work.rb")),
    "node": ("node", str(HERE / "children" / "work.cjs")),
}
#: Which `-P` a contender is; those that are missing are `prefork`.
POOLS = {
    "linepool": "celery_linepool:LinePool",
    "threads": "threads",
    "null": "custom",
    "http": "threads",
    "process": "threads",
}
#: The part of the tasks that is thrown away as warm-up, and where counting ends: at the
#: very end not every slot has a task any more.
FROM, TO = 0.2, 0.95
#: Seconds without a task done after which a worker is taken for hung.
HUNG = 120.0


@dataclass
class Case:
    """What is measured."""

    contender: str
    broker: str
    backend: Optional[str] = None
    concurrency: int = 4
    tasks: int = 8000
    args: List[Any] = field(default_factory=list)
    child: str = "perl"
    settings: Dict[str, Any] = field(default_factory=dict)
    url: Optional[str] = None
    prefetch: int = 8


@dataclass
class Found:
    """What came of it.

    rate: tasks per second. cpu: seconds of processor time of worker and children for a
    task. worker_pss, children_pss: MiB that are their own share, at the end.
    """

    rate: float
    cpu: float
    worker_pss: float
    children_pss: float


def measure(case: Case, queue: str = "bench") -> Found:
    """Fill the queue, start the worker, look at it until all is done, end it."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder, "samples")
        conf = {**asdict(case), "samples": str(samples)}
        conf["command"] = CHILDREN[case.child]
        publish(case, queue)
        log = Path(folder, "log")
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker"),
                    *("-P", POOLS.get(case.contender, "prefork"), "-l", "warning"),
                    *("-c", str(case.concurrency), "-Q", queue),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                ],
                env={
                    **os.environ,
                    "BENCH_CONF": json.dumps(conf),
                    "CELERY_CUSTOM_WORKER_POOL": "benchmarks.app:Null",
                },
                cwd=HERE.parent,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            return _watch(worker, samples, case.tasks)
        except Exception as exc:
            text = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{case} failed: {exc}\n{text}") from exc
        finally:
            _end(worker)


def publish(case: Case, queue: str) -> None:
    """As many messages as a task has; only their ids differ."""
    app = Celery(broker=case.broker, set_as_current=False)
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        target = app.amqp.queues.select_add(queue)
        target(connection.default_channel).declare()
        target(connection.default_channel).purge()
        for number in range(case.tasks):
            id = f"00000000-0000-4000-8000-{number:012}"
            message = app.amqp.as_task_v2(id, "bench.work", tuple(case.args), {})
            producer.publish(
                message.body,
                headers=message.headers,
                routing_key=queue,
                delivery_mode=1,
                **message.properties,
            )


def _watch(worker: "subprocess.Popen[bytes]", path: Path, tasks: int) -> Found:
    begin: Optional[Tuple[float, float, float]] = None
    cpus: List[Tuple[float, float]] = []
    moved = time.monotonic()
    last = -1
    while True:
        if worker.poll() is not None:
            raise RuntimeError(f"the worker ended with {worker.returncode}")
        seen = _samples(path)
        done = seen[-1][1] if seen else 0
        if done != last:
            last, moved = done, time.monotonic()
        if time.monotonic() - moved > HUNG:
            raise RuntimeError(f"nothing more was done after {done} tasks")
        if begin is None and done >= FROM * tasks:
            begin = (*seen[-1], _cpu(worker.pid))
        if begin is not None and done >= TO * tasks:
            cpus.append((_cpu(worker.pid) - begin[2], done - begin[1]))
            break
        time.sleep(0.05)
    own, children = _pss(worker.pid)
    rate = _rate(seen, tasks)
    return Found(rate, cpus[0][0] / cpus[0][1], own, children)


def _samples(path: Path) -> List[Tuple[float, int]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    split = [line.split() for line in lines]
    return [(float(s[0]), int(s[1])) for s in split if len(s) == 2]


def _rate(seen: List[Tuple[float, int]], tasks: int) -> float:
    inside = [s for s in seen if FROM * tasks <= s[1] <= TO * tasks]
    (start, first), (end, last) = inside[0], inside[-1]
    return (last - first) / (end - start)


def _tree(pid: int) -> List[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu(pid: int) -> float:
    total = 0.0
    for process in _tree(pid):
        try:
            times = process.cpu_times()
            total += times.user + times.system
            if process.pid == pid:
                total += times.children_user + times.children_system
        except psutil.NoSuchProcess:
            pass
    return total


def _pss(pid: int) -> Tuple[float, float]:
    """MiB of Python processes, and of everything else in the tree."""
    own = others = 0.0
    for process in _tree(pid):
        try:
            size = process.memory_full_info().pss / 2**20
            if "python" in process.name() or "celery" in process.name():
                own += size
            else:
                others += size
        except psutil.NoSuchProcess:
            pass
    return own, others


def _end(worker: "subprocess.Popen[bytes]") -> None:
    tree = []
    try:
        tree = _tree(worker.pid)
        worker.send_signal(signal.SIGTERM)
        worker.wait(20)
    except (psutil.NoSuchProcess, subprocess.TimeoutExpired):
        pass
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    worker.wait()
