"""From `kill -9` of a busy child to the next reply, and how long that child boots."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from typing import List

import psutil

from .contenders import CHILDREN, Case
from .latency import noted
from .measure import Found, Probe
from .site import RAILS_ENV, Site
from .workers import Workers, workers

#: Milliseconds of the task that is killed.
LONG = 60_000


def recovery(case: Case, site: Site) -> Found:
    """A case's tasks are the times that this is done; these are the medians."""
    boots = [_boot(case, site) for _ in range(case.tasks)]
    with workers(case, site, notes=True, losses=True) as running:
        gaps = _kill_and_wait(running)
    boot, gap = statistics.median(boots), statistics.median(gaps)
    return {"boot": boot, "recovery": gap, "over": gap - boot}


RECOVERY = Probe(
    recovery,
    (
        ("boot ms", "boot", 1e3),
        ("kill to reply ms", "recovery", 1e3),
        ("more than boot ms", "over", 1e3),
    ),
    (),
)


def _boot(case: Case, site: Site) -> float:
    """Seconds from the start of the program to its first reply."""
    child = CHILDREN[case.child]
    payload = {"task": "bench.work", "args": [0], "kwargs": {}, "meta": {}}
    begin = time.monotonic()
    with subprocess.Popen(
        child.command,
        cwd=child.folder and site[child.folder],
        env={**os.environ, **RAILS_ENV},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(
            json.dumps({"id": "1", "payload": payload}).encode() + b"\n"
        )
        process.stdin.flush()
        process.stdout.readline()
        found = time.monotonic() - begin
        process.stdin.close()
    return found


def _kill_and_wait(running: Workers) -> List[float]:
    """Three tasks each time: one to warm up, one that is killed, one that waits."""
    case, gaps = running.case, []
    times = case.tasks
    with running.publisher() as publish:
        running.start()
        for number in range(0, 3 * times, 3):
            for offset, milliseconds in enumerate((0, LONG, 0)):
                case.args = [milliseconds]
                publish(number + offset)
                done = number // 3 * 2 + 1
                running.wait(lambda: len(noted(running)), done)
            # The worker has handed the long one over by then.
            time.sleep(0.5)
            [child] = _children(running)
            killed = time.monotonic()
            child.send_signal(signal.SIGKILL)
            running.wait(lambda: len(noted(running)), done + 1)
            gaps.append(noted(running)[number + 2][0] - killed)
    return gaps


def _children(running: Workers) -> List[psutil.Process]:
    """What is of the child's program, and neither a guard nor the worker."""
    program = CHILDREN[running.case.child].command[-1]
    found = psutil.Process(running.pids[0]).children(recursive=True)
    return [process for process in found if program in " ".join(process.cmdline())]
