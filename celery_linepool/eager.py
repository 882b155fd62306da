"""Foreign tasks without a worker: ``task.apply()`` and ``task_always_eager``.

The first task of a pool starts one child of it in the calling process. It serves the
tasks that follow, too, and ends with the process.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from .errors import BootError, LinePoolError
from .job import Answer, Job
from .router import Router
from .runtime import LOCAL, Runtime
from .settings import read

if TYPE_CHECKING:
    from celery import Celery

    from .tasks import ForeignTask


class _Nobody:
    """Where there is no worker, nobody has to be told what a pool says of itself."""

    def _heard(self, *what: Any) -> None:
        pass

    accepted = ended = recheck = dropped = _heard
    soft_limit = advertised = boot_failed = _heard


class _Pools:
    """The pools of one app in this process, each with one child once it is needed."""

    def __init__(self, app: "Celery") -> None:
        self._app = app
        self._settings = read(app.conf, 1)
        self._router = Router(self._settings)
        self._runtimes: Dict[str, Runtime] = {}
        self._lock = threading.Lock()

    def runtime_for(self, task: "ForeignTask") -> Runtime:
        name = self._router.for_task(task, _queue_of(task))
        if name is None:
            raise LinePoolError(
                f"no pool serves {task.name}: name it in the tasks of one of "
                f"{', '.join(self._settings)}, or give its stub a pool="
            )
        with self._lock:
            if name not in self._runtimes:
                self._runtimes[name] = self._start(name)
            return self._runtimes[name]

    def _start(self, name: str) -> Runtime:
        conf = self._app.conf
        alone = {name: replace(self._settings[name], size=1)}
        runtime = Runtime(
            self._app,
            alone,
            Router(alone),
            1,
            logging.WARNING,
            conf.worker_max_tasks_per_child,
            conf.worker_max_memory_per_child,
            _Nobody(),
        )
        try:
            runtime.start()
        except BootError:
            runtime.outbox.close()
            raise
        return runtime

    def close(self) -> None:
        with self._lock:
            while self._runtimes:
                _, runtime = self._runtimes.popitem()
                runtime.stop(polite=True)
                runtime.outbox.close()


def _queue_of(task: "ForeignTask") -> Optional[str]:
    """Where the task would be sent: Celery's eager mode does not ask."""
    queue = task.app.amqp.router.route({}, task.name).get("queue")
    return getattr(queue, "name", None)


_all: Dict["Celery", _Pools] = {}
_lock = threading.Lock()
#: Those of the process that this one was forked from.
_inherited: List[Any] = []


def ask(task: "ForeignTask", request_id: str, payload: Dict[str, Any]) -> Answer:
    """What a child of this process says to a request. Waits.

    Raises:
        LinePoolError: no pool serves the task, or its child does not start.
        SettingError: a setting is wrong.
    """
    with _lock:
        if task.app not in _all:
            _all[task.app] = _Pools(task.app)
        pools = _all[task.app]
    runtime = pools.runtime_for(task)
    answer: "Future[Answer]" = Future()

    def ended(job: Job, returned: Any, raised: Optional[BaseException]) -> None:
        if raised is None:
            answer.set_result(returned)
        else:
            answer.set_exception(raised)

    # As a Python task in a worker asks for it: in no slot, with the pool's own limit.
    body = lambda: runtime.ask(job, task, request_id, payload)  # noqa: E731
    job: Job = Job(request_id, task.name, runtime, LOCAL, body, ended)
    job.run()
    return answer.result()


def close() -> None:
    """End all children that were started here; the next task starts new ones."""
    with _lock:
        while _all:
            _all.popitem()[1].close()


def _forget() -> None:
    # A fork has its parent's descriptors but not its threads. What belongs to them is
    # kept as it is: ending it is the parent's affair.
    global _all, _lock
    _inherited.append(_all)
    _all, _lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_forget)
atexit.register(close)
