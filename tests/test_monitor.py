"""Who holds up the engine, and limits that hold even so."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from localprocess import eventually

from celery_linepool.child import Child, State
from celery_linepool.engine import Engine
from celery_linepool.monitor import BLOCKED, Monitor
from celery_linepool.settings import PoolSettings

PATIENCE = 30.0


def nothing() -> None:
    """There is nothing else to look after."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def child() -> Iterator[Child]:
    settings = PoolSettings(name="test", command=("sleep", "600"), stderr="inherit")
    child = Child(settings, dict(os.environ))
    yield child
    if child.state is not State.REAPED:
        child.kill()
        eventually(child.has_exited, PATIENCE)
        child.reap()


class Receiver:
    """A signal receiver of the user's that takes its time."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def dawdle(self) -> None:
        self.entered.set()
        self.leave.wait(PATIENCE)


@pytest.fixture
def receiver(engine: Engine) -> Iterator[Receiver]:
    """The engine is held up by it during the test."""
    receiver = Receiver()
    engine.post(receiver.dawdle)
    assert receiver.entered.wait(PATIENCE)
    yield receiver
    receiver.leave.set()


def later(engine: Engine, seconds: float) -> float:
    assert engine.awake_since is not None
    return engine.awake_since + seconds


def test_an_engine_that_waits_for_work_is_left_alone(
    engine: Engine, child: Child, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(engine, lambda now: [child], nothing)
    eventually(lambda: engine.awake_since is None, PATIENCE)
    monitor.check_engine(time.monotonic() + 3600)
    assert not caplog.records
    assert not child.has_exited()


def test_a_short_turn_is_left_alone(
    engine: Engine,
    receiver: Receiver,
    child: Child,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Monitor(engine, lambda now: [child], nothing).check_engine(
        later(engine, BLOCKED * 0.99)
    )
    assert not caplog.records
    assert not child.has_exited()


def test_who_holds_up_the_engine_is_named_once(
    engine: Engine, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(engine, lambda now: [], nothing)
    for seconds in (2, 3, 4):
        monitor.check_engine(later(engine, seconds))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert "held up for 2.0 s" in text
    assert "in dawdle" in text and __file__ in text


def test_each_time_is_worth_a_warning(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(engine, lambda now: [], nothing)
    for _ in range(2):
        receiver = Receiver()
        engine.post(receiver.dawdle)
        assert receiver.entered.wait(PATIENCE)
        monitor.check_engine(later(engine, 2))
        receiver.leave.set()
        eventually(lambda: engine.awake_since is None, PATIENCE)
    assert len(caplog.records) == 2


def test_a_child_whose_time_is_up_is_killed_by_the_monitor(
    engine: Engine, receiver: Receiver, child: Child
) -> None:
    asked: list[float] = []

    def overdue(now: float) -> list[Child]:
        asked.append(now)
        return [child]

    Monitor(engine, overdue, nothing).check_engine(later(engine, 2))
    eventually(child.has_exited, PATIENCE)
    assert asked == [later(engine, 2)]
    child.reap()
    assert child.exit_text() == f"was killed by {signal.SIGKILL.name}"


def test_it_looks_by_itself(
    engine: Engine, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(engine, lambda now: [], nothing)
    monitor.start()
    try:
        eventually(lambda: "held up" in caplog.text, PATIENCE)
    finally:
        monitor.stop()
    assert not monitor.is_alive()


def test_one_that_never_started_can_be_stopped(engine: Engine) -> None:
    Monitor(engine, lambda now: [], nothing).stop()
