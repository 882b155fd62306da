"""One pool of real children on a real engine, without Celery: see ``LonePool``."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from localprocess import eventually

from celery_linepool.children import Children
from celery_linepool.encoding import encode_request
from celery_linepool.engine import Engine
from celery_linepool.errors import BootError
from celery_linepool.guardian import Guardian
from celery_linepool.job import Answer, Call, Job, Loss, Waiter
from celery_linepool.memory import tree_sizes
from celery_linepool.messages import Reply
from celery_linepool.recycle import Limits
from celery_linepool.settings import PoolSettings
from celery_linepool.stderr import Drain

__all__ = ["PATIENCE", "LonePool", "Task", "eventually", "script"]

#: Only a bug takes this long.
PATIENCE = 60.0

CHILDREN = Path(__file__).with_name("children")
INTERPRETERS = {
    ".cjs": "node",
    ".rb": "ruby",
    ".pl": "perl",
    ".sh": "sh",
    ".py": sys.executable,
}


def script(name: str, *args: Any) -> tuple[str, ...]:
    """The command that runs one of ``tests/children``."""
    path = CHILDREN / name
    return (INTERPRETERS[path.suffix], str(path), *map(str, args))


class Task(Job):
    """A task whose whole body is one request to a child."""

    def __init__(self, pool: LonePool, id_: str, name: str, args: tuple[Any, ...]):
        runtime: Any = pool
        super().__init__(id_, name, runtime, "lone", self._ask, self._tell)
        self._pool = pool
        self._line = encode_request(id_, {"task": name, "args": args})
        self._answer: Future[Answer] = Future()

    def _ask(self) -> Any:
        waiter = Waiter(self._pool.engine)
        self._pool.children.send(Call(self.id, self._line, self, waiter.wake))
        return waiter.wait()

    def _tell(self, job: Job, answer: Any, raised: BaseException | None) -> None:
        self._pool.engine.soon(self._pool.children.settled, self)
        if raised is None:
            self._answer.set_result(answer)
        else:
            self._answer.set_exception(raised)

    @property
    def ended(self) -> bool:
        return self._answer.done()

    def result(self) -> Any:
        """What the child returned; fails if it was lost instead."""
        answer = self._answer.result(PATIENCE)
        assert isinstance(answer, Reply), f"{self!r}: {answer}"
        assert answer.fields["status"] == "ok", answer.fields
        return answer.fields["result"]

    def loss(self) -> Loss:
        """How its child was lost; fails if it was not."""
        answer = self._answer.result(PATIENCE)
        assert isinstance(answer, Loss), f"{self!r}: {answer!r}"
        return answer


class House:
    """What the pools of one worker share."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.guardian = Guardian()
        self.drain = Drain()
        self.guardian.start()
        self.drain.start()
        self.engine.start()

    def close(self) -> None:
        self.engine.stop()
        self.drain.stop()
        self.guardian.stop()


class LonePool:
    """A pool, and all that a worker has around it but Celery.

    The monitor is not there either: `look` is called by the test. A pool has a house of
    its own, unless it gets one.
    """

    def __init__(
        self, settings: PoolSettings, limits: Limits, house: House | None = None
    ) -> None:
        self._own = None if house else House()
        house = house or self._own
        assert house is not None
        self.engine = house.engine
        self.children = Children(
            settings, self.engine, house.guardian, house.drain, self, limits
        )
        self.boot_errors: list[BootError] = []
        #: What children said that they serve.
        self.advertisements: list[tuple[str, ...]] = []
        #: Ids of tasks that exceeded their soft time limit.
        self.late: list[str] = []
        self._ids = map(str, itertools.count(1))

    def boot(self) -> BootError | None:
        """Start the children; why they do not start, if so."""
        ready: queue.SimpleQueue[BootError | None] = queue.SimpleQueue()
        self.engine.post(self.children.start, ready.put)
        return ready.get(timeout=PATIENCE)

    def stop(self) -> None:
        """End the children politely; returns when they are gone."""
        empty = threading.Event()
        self.engine.post(self.children.stop, empty.set)
        assert empty.wait(PATIENCE), f"these do not end: {self.info()['children']}"

    def close(self) -> None:
        self.engine.post(self.children.kill)
        self.stop()
        if self._own is not None:
            self._own.close()

    # --- for tests --------------------------------------------------------------------

    def do(self, call: Callable[..., Any], *args: Any) -> Any:
        """What `call(*args)` returns in the engine."""
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                answer.set_result(call(*args))
            except BaseException as exc:
                answer.set_exception(exc)

        self.engine.post(run)
        return answer.result(PATIENCE)

    def task(
        self,
        name: str,
        *args: Any,
        limit: float | None = None,
        soft_limit: float | None = None,
    ) -> Task:
        """Hand in a task."""
        task = Task(self, next(self._ids), name, args)
        task.limit, task.soft_limit = limit, soft_limit
        self.engine.post(self.children.submit, task)
        return task

    def call(self, name: str, *args: Any) -> Any:
        """Hand in a task and wait for its result."""
        return self.task(name, *args).result()

    def info(self) -> dict[str, Any]:
        return dict(self.do(self.children.info))

    def member(self, pid: int) -> dict[str, Any]:
        """What the pool says of one child."""
        [found] = [child for child in self.info()["children"] if child["pid"] == pid]
        return dict(found)

    def pids(self) -> set[int]:
        return set(self.do(self.children.pids))

    def idle_pids(self) -> set[int]:
        """Children that wait for a task."""
        found = self.info()["children"]
        return {child["pid"] for child in found if child["state"] == "idle"}

    def look(self) -> None:
        """What the monitor does now and then."""
        self.do(self.children.look, tree_sizes(self.pids()))

    def look_until(self, condition: Callable[[], Any]) -> Any:
        def look_and_ask() -> Any:
            self.look()
            return condition()

        return eventually(look_and_ask, PATIENCE)

    # --- what the pool tells its owner ------------------------------------------------

    def accepted(self, job: Job, pid: int) -> None:
        """Nobody waits for that here."""

    def start_job(self, job: Job) -> None:
        self.engine.start_greenlet(job.run)

    def holds_thread(self, job: Job) -> bool:
        return False

    def soft_limit(self, job: Job) -> None:
        self.late.append(job.id)

    def may_start(self, job: Job) -> bool:
        return True

    def advertised(self, pool: str, tasks: tuple[str, ...]) -> None:
        self.advertisements.append(tasks)

    def failed_to_boot(self, error: BootError) -> None:
        self.boot_errors.append(error)
