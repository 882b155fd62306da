"""``celery.contrib.testing``: a worker in a thread of the test, with real children."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.contrib.testing import tasks  # noqa: F401  (its ping)
from celery.contrib.testing.worker import start_worker
from kombu.asynchronous import get_event_loop, set_event_loop
from lone_pool import script
from workers import LINEPOOL, close_app

from celery_linepool import ForeignError, ForeignTask

LIVES = list(script("lives.rb"))
#: For a ping, and for an end; Celery's ten seconds are those of a machine at rest.
PATIENCE = 60


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """An embedded worker sets logging up for the whole process."""
    root = logging.getLogger()
    level, before = root.level, set(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - before:
        root.removeHandler(handler)


def close_event_loop() -> None:
    """That of an embedded worker, which Celery stops and leaves open."""
    hub = get_event_loop()
    if hub is not None:
        hub.close()
        set_event_loop(None)


@pytest.fixture(params=["memory", "redis"])
def app(request: pytest.FixtureRequest, servers: Any) -> Iterator[Celery]:
    lease = servers.shared("redis").lease()
    broker = "memory://" if request.param == "memory" else lease.url
    app = Celery("embedded", broker=broker, backend=lease.url)
    app.conf.linepool_command = LIVES
    app.conf.broker_connection_retry_on_startup = True
    if request.param == "memory":
        # By default it looks once a second.
        app.conf.broker_transport_options = {"polling_interval": 0.05}
    yield app
    close_app(app)
    lease.release()


def test_an_embedded_worker(app: Celery, tmp_path: Path) -> None:
    @app.task(base=ForeignTask, name="lives.crash")
    def crash(path: str) -> None: ...

    @app.task(name="python.crash")
    def crash_inside(path: str) -> str:
        try:
            crash.apply((path,)).get(disable_sync_subtasks=False)
        except WorkerLostError:
            return "lost"
        return "not lost"

    frozen = gc.get_freeze_count()
    # One after the other in one process. Of the broker in memory it takes Celery long.
    for _ in range(1 if app.conf.broker_url.startswith("memory") else 2):
        with start_worker(
            app,
            pool=LINEPOOL,
            concurrency=2,
            ping_task_timeout=PATIENCE,
            shutdown_timeout=PATIENCE,
        ) as worker:
            pid = app.send_task("lives.pid").get(timeout=60)
            assert psutil.Process(pid).parent() == psutil.Process()
            assert pid in worker.stats()["pool"]["processes"]
            with pytest.raises(ForeignError, match="no task lives.unknown"):
                app.send_task("lives.unknown").get(timeout=60)
            file = str(tmp_path / "crashed")
            assert crash_inside.delay(file).get(timeout=60) == "lost"
            assert app.send_task("lives.pid").get(timeout=60)
        # What this process has now may be garbage later: it is not the worker's.
        assert gc.get_freeze_count() == frozen
        close_event_loop()
