"""The step that joins a pool to Celery's consumer, anew at every connection.

It teaches the consumer the tasks that need no Python code, and keeps hold of what the
pool needs of a connection: its prefetch count and its heartbeats.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Dict, Optional, Type

from celery import bootsteps
from celery.app import trace
from celery.exceptions import InvalidTaskError
from celery.worker.consumer.tasks import Tasks
from celery.worker.strategy import default as default_strategy

from .body import accepts_json, read_ahead
from .tasks import ForeignTask, register

if TYPE_CHECKING:
    from .router import Router

logger = logging.getLogger(__name__)

#: What Celery's reading of a message raises that is not as a producer writes one: a
#: body that is no list, limits that are no numbers, and so on.
MISREAD = (TypeError, ValueError, LookupError, AttributeError, RecursionError)
#: Task names without Python code that one worker remembers. Each costs some kilobytes
#: for good; more than this are not names but data.
MAX_NAMES = 10_000


class LinePoolStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells a LinePool of each connection. Does nothing for other pools."""

    requires = (Tasks,)
    label = "LinePool"

    def include_if(self, c: Any) -> bool:
        return hasattr(c.pool, "connected")

    def start(self, c: Any) -> None:
        if not isinstance(c.strategies, Strategies):
            c.strategies = Strategies(c, c.pool.router)
            c.update_strategies()
        c.pool.connected(c)

    def stop(self, c: Any) -> None:
        """Nothing: what waits is flushed by Celery itself."""

    terminate = shutdown = stop


class Strategies(Dict[str, Any]):
    """Celery's table of what to do with a message, by its task's name.

    A name that is not in it is looked up in the pools' globs, once. A message that
    Celery cannot read is refused: by itself Celery would end the worker, and the next
    one, which gets the message again.
    """

    def __init__(self, consumer: Any, router: "Router") -> None:
        super().__init__()
        self._reads_json = accepts_json(consumer.app.conf.accept_content)
        for name, strategy in consumer.strategies.items():
            self[name] = strategy
        self._consumer = consumer
        self._router = router
        self._added = 0

    def __setitem__(self, name: str, strategy: Any) -> None:
        super().__setitem__(name, _refusing(strategy, self._reads_json))

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str):  # a list has no hash
            raise KeyError(repr(name))
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        if self._added >= MAX_NAMES:
            logger.error("linepool: %r is one task name too many; it is refused", name)
            raise KeyError(name)
        if self._router.for_name(name) is not None:
            return self._add(name)
        if self._router.knows_queues and not name.startswith("celery."):
            return self._by_queue(name)
        hint(name, None)
        raise KeyError(name)

    def _add(self, name: str, base: Type[ForeignTask] = ForeignTask) -> Any:
        c, app = self._consumer, self._consumer.app
        task = register(app, name, base)
        self._added += 1
        self[name] = task.start_strategy(app, c)
        # Through the module: Sentry and others replace it there.
        task.__trace__ = trace.build_tracer(name, task, app.loader, c.hostname, app=app)
        c.task_buckets[name] = c.bucket_for_task(task)
        return self[name]

    def _by_queue(self, name: str) -> Any:
        """Decide when the message is at hand, by the queue that it came from."""

        def strategy(message: Any, body: Any, *args: Any) -> Any:
            if not _came_by_a_served_queue(self._consumer, name, body, message):
                return None
            return self._add(name, QueuedTask)(message, body, *args)

        return strategy


def _refusing(strategy: Any, reads_json: bool) -> Any:
    """A strategy that reads a message, and tells Celery if it cannot be read."""

    def refusing(message: Any, body: Any, *args: Any) -> Any:
        fields = message.headers if body is None else body
        if not isinstance(fields.get("id"), str):
            raise InvalidTaskError(f"its id is no text: {fields.get('id')!r:.100}")
        if reads_json and body is None:
            read_ahead(message)
        try:
            return strategy(message, body, *args)
        except MISREAD as exc:
            raise InvalidTaskError(f"it cannot be read: {exc!r:.500}") from exc

    return refusing


class QueuedTask(ForeignTask):
    """A task that is known by the queue of its message, and in no other queue."""

    abstract = True
    Strategy = "celery_linepool.consumer:queued_strategy"


def queued_strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Any:
    """Celery's strategy for messages from the queues of a pool; none for others."""
    strategy = default_strategy(task, app, consumer, **options)

    def queued(message: Any, body: Any, *args: Any) -> Any:
        if _came_by_a_served_queue(consumer, task.name, body, message):
            return strategy(message, body, *args)
        return None

    return queued


def _came_by_a_served_queue(c: Any, name: str, body: Any, message: Any) -> bool:
    router: "Router" = c.pool.router
    queue = router.queue_of(message.delivery_info)
    if router.for_queue(queue) is not None:
        return True
    hint(name, queue)
    c.on_unknown_task(body, message, KeyError(name))
    return False


def hint(name: str, queue: Optional[str]) -> None:
    """Say what Celery's "unregistered task" cannot know."""
    came = f" from queue {queue!r}" if queue else ""
    logger.error(
        "linepool: no pool serves the task %r%s, and no Python task has that name; "
        "add it to the tasks of a pool in linepool_pools",
        name,
        came,
    )
