"""Fixtures for all tests: real brokers, real workers, and a look for leaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import workers
from celery import _state
from hypothesis import settings
from leaks import LeakGuard, leak_guard
from localprocess import LocalProcess, Servers, Watchdog
from lone_pool import LonePool
from loopback import BEYOND
from webserver import Respond, WebServer

from celery_linepool.recycle import Limits
from celery_linepool.settings import PoolSettings

__all__ = ["leak_guard"]

# How long an example takes is the machine's affair.
settings.register_profile("linepool", deadline=None)
settings.load_profile("linepool")

FACTORY: pytest.StashKey[workers.WorkerFactory] = pytest.StashKey()

#: Enough for the story, not so much that the report cannot be read.
LOG_TAIL = 20_000


@pytest.fixture(scope="session", autouse=True)
def watchdog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watchdog]:
    """Nothing outlives the session, not even when it is killed."""
    watchdog = Watchdog(tmp_path_factory.getbasetemp())
    yield watchdog
    watchdog.close()


@pytest.fixture(scope="session")
def servers(
    watchdog: Watchdog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """The brokers of this session: private ports, data in a temporary folder."""
    servers = Servers(lambda kind: tmp_path_factory.mktemp(kind, numbered=True))
    yield servers
    servers.close()


@pytest.fixture(autouse=True)
def no_shared_tasks() -> Iterator[None]:
    """No task of one test's app is in the apps of the tests that follow.

    Celery gives every ``@app.task`` to each app of the process that is made later.
    """
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)


@pytest.fixture(autouse=True)
def only_this_machine() -> Iterator[None]:
    """Whoever was refused may have gone on without a word."""
    yield
    reached, BEYOND[:] = BEYOND[:], []
    assert reached == [], "the test wanted to reach other machines"


@pytest.fixture
def start_worker(
    request: pytest.FixtureRequest,
    leak_guard: LeakGuard,
    servers: Servers,
    tmp_path: Path,
) -> Iterator[workers.WorkerFactory]:
    """Starts real workers; see ``workers.WorkerFactory``."""
    factory = workers.WorkerFactory(tmp_path, servers, leak_guard)
    request.node.stash[FACTORY] = factory
    yield factory
    factory.close()


@pytest.fixture
def start_beside(
    start_worker: workers.WorkerFactory, tmp_path: Path
) -> Iterator[Callable[..., LocalProcess]]:
    """Starts what people run beside a worker: Flower, an exporter, a browser."""
    with ExitStack() as cleanup:

        def start(
            *argv: str, env: Mapping[str, str] | None = None, name: str = "beside"
        ) -> LocalProcess:
            log = tmp_path / f"{name}.log"
            process = LocalProcess(
                argv, log=log, env={**os.environ, **(env or {})}, cwd=tmp_path
            )
            cleanup.callback(process.destroy)
            start_worker.logs.append((name, process.all_logs))
            return process

        yield start


@pytest.fixture
def serve() -> Iterator[Callable[[Respond], str]]:
    """Starts web servers, each for a function; returns the URL."""
    with ExitStack() as cleanup:

        def start(respond: Respond) -> str:
            server = WebServer(respond)
            cleanup.callback(server.close)
            return server.url

        yield start


@pytest.fixture
def run_celery(
    leak_guard: LeakGuard, tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a ``celery`` command to its end; see ``workers.run_celery``."""
    leak_guard.folders.append(tmp_path)
    yield workers.run_celery


@pytest.fixture
def lone_pool(
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Callable[..., LonePool]]:
    """Opens pools of real children that need no worker; see ``LonePool``."""
    caplog.set_level("INFO")
    opened: list[LonePool] = []

    def open_pool(
        command: Sequence[str],
        limits: Limits | None = None,
        boot: bool = True,
        name: str = "default",
        **options: Any,
    ) -> LonePool:
        settings = PoolSettings(name, tuple(command), tasks=("*",), **options)
        pool = LonePool(settings, limits or Limits())
        opened.append(pool)
        assert not boot or pool.boot() is None
        return pool

    yield open_pool
    for pool in opened:
        pool.close()
    # The engine goes on after a bug of its own. A test does not.
    bugs = [
        r.getMessage() for r in caplog.get_records("call") if r.levelname == "CRITICAL"
    ]
    assert bugs == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the workers of a failed test."""
    report = yield
    factory = item.stash.get(FACTORY, None)
    if report.failed and factory is not None:
        for name, log in factory.logs:
            report.sections.append((f"log of {name}", log()[-LOG_TAIL:]))
    return report
