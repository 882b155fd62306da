"""The pool between Celery and its children, where no other file has the question."""

from __future__ import annotations

import time
from pathlib import Path

CHILDREN = Path(__file__).parent / "children"
ECHO = ["ruby", str(CHILDREN / "echo.rb")]


def seconds_for(worker, count):
    started = time.monotonic()
    for result in [worker.send("any", n) for n in range(count)]:
        worker.result(result)
    return time.monotonic() - started


def test_acks_do_not_wait_for_the_next_message(start_worker):
    """Without an event loop Celery's consumer sleeps up to two seconds at a time.

    With a prefetch count that is used up nothing wakes it, so a task whose ack waits
    for it holds up the next one. Without a prefetch count nothing is held up.
    """
    tight, free = (
        start_worker(
            "filesystem",
            command=ECHO,
            args=("-c", "1"),
            conf={"worker_prefetch_multiplier": multiplier},
        )
        for multiplier in (1, 0)
    )
    for worker in (tight, free):
        worker.call("any")

    assert seconds_for(tight, 10) < 40 * seconds_for(free, 10)
