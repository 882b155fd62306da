"""The garbage collector does not look at what is there from the start."""

from __future__ import annotations

import gc
from typing import Any

from celery import Celery
from celery.contrib.testing import tasks  # noqa: F401  (its ping)
from celery.contrib.testing.worker import start_worker as embedded
from lone_pool import script
from workers import LINEPOOL, close_app

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


def test_the_host_of_a_worker_keeps_its_own() -> None:
    app = Celery("guest", broker="memory://", backend="cache+memory://")
    app.conf.linepool_command = LIVES
    before = gc.get_freeze_count()
    with embedded(app, pool=LINEPOOL, perform_ping_check=False, shutdown_timeout=60):
        assert gc.get_freeze_count() == before
    close_app(app)
