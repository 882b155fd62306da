"""Calls to the result backend, away from the engine.

A slow or dead backend must not hold up the replies of other tasks. A task that stores
something leaves its greenlet, and a thread here runs Celery's own code for it. Where
the backend is Redis, what many tasks want to read and write at one moment goes out in
one round trip: each call runs in a greenlet that stops where it would wait.
"""

from __future__ import annotations

import logging
import select
import sys
import threading
from functools import partial
from types import MethodType
from typing import Any, Callable, Dict, List, Optional, Protocol, Tuple

from celery.backends.base import DisabledBackend
from celery.exceptions import BackendStoreError
from greenlet import getcurrent, greenlet

from . import compat
from .engine import Engine
from .greenlets import Greenlets
from .job import Waiter
from .mailbox import Mailbox
from .threads import Threads

logger = logging.getLogger(__name__)

#: The calls of Celery's tracer that may wait for the backend's server.
WAITING_CALLS = frozenset(
    ["store_result", "mark_as_done", "mark_as_failure", "mark_as_retry"]
)

Result = Tuple[Any, Optional[BaseException]]


class Away(Protocol):
    """Runs a backend's method somewhere else; `done(value, error)` from there.

    It need not begin before `wake`, and calls its `told` after some `done`: no thread
    is woken for one call while the next one is on its way.
    """

    def submit(
        self, method: str, args: Any, kwargs: Any, done: Callable[[Result], None]
    ) -> None: ...

    def wake(self) -> None: ...


class SettledBackend:
    """The result backend as a task sees it whose greenlet must not wait."""

    def __init__(self, backend: Any, engine: Engine, away: Away) -> None:
        self.backend = backend
        self._engine = engine
        self._away = away

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.backend, name)
        if name in WAITING_CALLS and not isinstance(self.backend, DisabledBackend):
            attribute = partial(self._call, name, attribute)
        elif not isinstance(attribute, MethodType):
            return attribute
        self.__dict__[name] = attribute  # every task asks for it
        return attribute

    def _call(self, name: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        if not _stores(name, args, kwargs):
            return method(*args, **kwargs)
        waiter = Waiter(self._engine)
        done = partial(self._engine.put, waiter.wake)
        self._away.submit(name, args, kwargs, done)
        if self._engine.is_here():
            # After what else has been read at this moment: one batch.
            self._engine.soon(self._away.wake)
        else:
            self._away.wake()
        value, error = waiter.wait()
        if error is not None:
            raise error
        return value


def _stores(name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether this call reaches the server: not for a task that ignores its result."""
    if name == "mark_as_done":
        given = dict(zip(("task_id", "result", "request", "store_result"), args))
        given.update(kwargs)
        # Celery before 5.7 asks for it, and then looks at the request.
        ignored = getattr(given.get("request"), "ignore_result", False)
        return bool(given.get("store_result", True)) and not ignored
    return bool(kwargs.get("store_result", True))


def _attempt(method: Callable[..., Any], args: Any, kwargs: Any) -> Result:
    try:
        return method(*args, **kwargs), None
    except Exception as exc:
        return None, exc


class ThreadedAway:
    """For any backend: a thread for each call, so that slow ones overlap."""

    def __init__(self, app: Any, threads: Threads, told: Callable[[], None]) -> None:
        self._app = app
        self._threads = threads
        self._told = told

    def submit(
        self, method: str, args: Any, kwargs: Any, done: Callable[[Result], None]
    ) -> None:
        self._threads.submit(self._run, method, args, kwargs, done)

    def _run(
        self, method: str, args: Any, kwargs: Any, done: Callable[[Result], None]
    ) -> None:
        # A backend belongs to the thread that asks the app for it.
        done(_attempt(getattr(self._app.backend, method), args, kwargs))
        self._told()

    def wake(self) -> None:
        """Nothing: each call has begun."""

    def stop(self) -> None:
        """The threads are their owner's."""


# --- Redis ----------------------------------------------------------------------------

#: A call of a pipeline's method: its name and its arguments.
Call = Tuple[str, Tuple[Any, ...], Dict[str, Any]]
#: A command as it goes over the wire.
Command = Tuple[Any, ...]
Gather = Callable[[List[Command]], List[Any]]
#: What Celery calls to store a result, and with how many arguments: these are those of
#: the command. redis-py's own methods take as long as all the rest of it.
PLAIN = {"get": 1, "set": 2, "setex": 3, "publish": 2}


class _Recorder:
    """Stands in for a pipeline: remembers the commands, and sends them with others'.

    Arguments:
        pipeline: makes the real one, for what is not plain.
    """

    def __init__(self, pipeline: Callable[[], Any], gather: Gather) -> None:
        self._pipeline = pipeline
        self._gather = gather
        self._calls: List[Call] = []

    def __enter__(self) -> "_Recorder":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._calls.clear()

    def __getattr__(self, name: str) -> Callable[..., "_Recorder"]:
        def record(*args: Any, **kwargs: Any) -> "_Recorder":
            self._calls.append((name, args, kwargs))
            return self

        return record

    def execute(self) -> List[Any]:
        calls, self._calls = self._calls, []
        if all(PLAIN.get(name) == len(args) and not kw for name, args, kw in calls):
            return self._gather([(name.upper(), *args) for name, args, _ in calls])
        with self._pipeline() as pipe:
            for name, args, kwargs in calls:
                getattr(pipe, name)(*args, **kwargs)
            return list(pipe.execute())


class _GatheringClient:
    """Stands in for a Redis client: what the storing of a result asks is gathered."""

    def __init__(self, client: Any, gather: Gather) -> None:
        self._client = client
        self._gather = gather

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get(self, key: Any) -> Any:
        return self._gather([("GET", key)])[0]

    def pipeline(self, *args: Any, **kwargs: Any) -> _Recorder:
        return _Recorder(partial(self._client.pipeline, *args, **kwargs), self._gather)


def _run(call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception:
        logger.critical("linepool: a bug in the settler, in %r", call, exc_info=True)


class BatchingAway(threading.Thread):
    """For Redis: one thread, and one round trip for what waits at a moment."""

    def __init__(self, app: Any, told: Callable[[], None]) -> None:
        super().__init__(name="linepool-settler", daemon=True)
        self._told = told
        from redis.exceptions import ResponseError  # not everybody has it

        self._refused = ResponseError
        # An instance of its own, also where the app shares one between threads: its
        # client is replaced.
        self._backend = app._get_backend()
        self._client = self._backend.client
        self._backend.__dict__["client"] = _GatheringClient(self._client, self._gather)
        self._inbox = Mailbox()
        self._running = True
        self._greenlets = Greenlets(_run)
        #: Calls that stopped for the next round trip, with what they want of it.
        self._stopped: List[Tuple[greenlet, List[Command]]] = []

    def submit(
        self, method: str, args: Any, kwargs: Any, done: Callable[[Result], None]
    ) -> None:
        self._inbox.put(self._begin, method, args, kwargs, done)

    def wake(self) -> None:
        self._inbox.wake()

    def stop(self) -> None:
        if self.is_alive():
            self._inbox.post(self._halt)
            self.join()
        self._inbox.close()
        self._client.connection_pool.disconnect()

    def run(self) -> None:
        self._greenlets.loop = getcurrent()
        while self._running or self._stopped:
            self._inbox.armed = True
            if not self._inbox and not self._stopped:
                select.select([self._inbox], [], [])
                self._inbox.clear_wakeup()
            self._inbox.armed = False
            for _ in range(len(self._inbox)):
                call, args = self._inbox.take()
                call(*args)
            if self._stopped:
                self._round_trip()
            self._told()
        self._greenlets.close()

    def _halt(self) -> None:
        self._running = False

    def _begin(
        self, method: str, args: Any, kwargs: Any, done: Callable[[Result], None]
    ) -> None:
        bound = getattr(self._backend, method)
        self._greenlets.start(lambda: done(_attempt(bound, args, kwargs)))

    def _gather(self, commands: List[Command]) -> List[Any]:
        """In a call's greenlet: stop until the commands have been sent."""
        self._stopped.append((getcurrent(), commands))
        results, error = self._greenlets.suspend()
        if error is not None:
            raise error
        for result in results:
            if isinstance(result, Exception):
                raise result
        return list(results)

    def _round_trip(self) -> None:
        stopped, self._stopped = self._stopped, []
        commands = [command for _, wanted in stopped for command in wanted]
        # The backend's own policy of reconnecting and retrying, around the batch.
        results, error = _attempt(
            self._backend.ensure, (self._execute, (commands,)), {}
        )
        if error is not None:
            # Not the client's error: each call would go through the policy again.
            error = BackendStoreError(f"the result backend failed: {error!r}")
            results = [None] * len(commands)
        at = 0
        for task, wanted in stopped:
            task.switch((results[at : at + len(wanted)], error))
            at += len(wanted)

    def _execute(self, commands: List[Command]) -> List[Any]:
        pool = self._client.connection_pool
        connection = compat.take_connection(pool)
        try:
            return list(
                connection.retry.call_with_retry(
                    lambda: self._exchange(connection, commands),
                    lambda error: connection.disconnect(),
                )
            )
        finally:
            pool.release(connection)

    def _exchange(self, connection: Any, commands: List[Command]) -> List[Any]:
        """The answers, errors among them.

        Not in a transaction: an error of one task's command is that task's alone. The
        order is kept, so a result is stored before it is announced.
        """
        connection.send_packed_command(connection.pack_commands(commands))
        answers = []
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except self._refused as exc:
                answers.append(exc)
        return answers


def is_redis(backend: Any) -> bool:
    """Whether Celery's Redis backend, or one made from it, stores the results."""
    module = sys.modules.get("celery.backends.redis")
    return module is not None and isinstance(backend, module.RedisBackend)
