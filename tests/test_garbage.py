"""The garbage collector does not look at what is there from the start."""

from __future__ import annotations

from typing import Any

from lone_pool import script

LIVES = list(script("lives.rb"))
TASKS = """
    import gc

    @app.task
    def collector():
        gc.collect()
        return gc.get_freeze_count(), len(gc.get_objects())
"""


def test_a_worker_has_little_to_look_at(start_worker: Any) -> None:
    worker = start_worker("redis", LIVES, args=("-c", "1"), tasks=TASKS)
    frozen, others = worker.call("proj.collector")
    assert frozen > 10 * others
    assert worker.stop() == 0
