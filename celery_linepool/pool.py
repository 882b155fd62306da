"""LinePool: what Celery's worker calls. Everything here runs in the main thread.

Request callbacks acknowledge messages, and channels are not thread safe. So whatever
the engine has to say comes through the runtime's outbox, which the worker's event loop
reads; where there is no event loop a thread of ours does, as in Celery's own pools.
"""

from __future__ import annotations

import enum
import os
import select
import threading
import time
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple, Union

from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger, mlevel
from celery.worker import state as worker_state

from . import compat, control, cores, garbage, metrics  # noqa: F401
from .body import accepts_json, trace
from .buffered import Buffered, buffered
from .consumer import MAX_NAMES, LinePoolStep, Strategies
from .errors import Abandoned, BootError
from .fetching import Fetching, fetching
from .job import Job, State
from .prefetch import Prefetch
from .request import CeleryJob
from .router import Router
from .runtime import LOCAL, Runtime
from .scaling import Scaling
from .settings import (
    SettingError,
    buffered_broker,
    metrics_address,
    one_core,
    read,
)
from .tasks import ForeignTask, blocks, has_callbacks, register
from .voice import identity

logger = get_logger(__name__)

#: Seconds between looks at a connection's heartbeat while the pool drains. Brokers
#: close a connection after some tens of seconds without one.
HEARTBEAT = 1.0
#: Seconds between lines in the log while the pool drains.
PATIENCE = 30.0


class Stage(enum.Enum):
    """How far the life of the pool is."""

    NEW = "new"
    RUNNING = "running"
    #: Finishes what has started, takes nothing new.
    CLOSED = "closed"
    #: Its children are killed; what they were doing then is nobody's failure.
    KILLED = "killed"
    STOPPED = "stopped"


MOVES: Mapping[Stage, Set[Stage]] = {
    Stage.NEW: {Stage.RUNNING, Stage.STOPPED},
    Stage.RUNNING: {Stage.CLOSED, Stage.KILLED},
    Stage.CLOSED: {Stage.KILLED, Stage.STOPPED},
    Stage.KILLED: {Stage.STOPPED},
    Stage.STOPPED: set(),
}


class LinePool(BasePool):  # type: ignore[misc]
    """A Celery pool of warm children in other languages."""

    #: Each pool of children has a line of its own, so a slow one does not hold up the
    #: others; Celery's semaphore is one for all.
    uses_semaphore = False
    #: `stop` may drain from inside a signal handler: there is no lock in its way.
    signal_safe = True
    task_join_will_block = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = Stage.NEW
        self.settings = read(self.app.conf, self.limit)
        self.router = Router(self.settings)
        #: Celery's property is a call in Python, and each task asks for it.
        self._tasks = self.app.tasks
        self._check_stubs()
        for name in self.router.literal_names():
            if name not in self._tasks:
                register(self.app, name)
        self.app.steps["consumer"].add(LinePoolStep)
        self._metrics = metrics_address(self.app.conf)
        self._one_core = one_core(self.app.conf)
        self._buffers = buffered_broker(self.app.conf)
        self._broker: Union[Buffered, Fetching, None] = None
        self._stop_metrics: Callable[[], None] = _nothing
        self._threaded = bool(self.options.get("threads", True))
        self._jobs: Set[CeleryJob] = set()
        self._consumer: Any = None
        self._hub: Any = None
        self._connections = 0
        self._courier: Optional[threading.Thread] = None
        self._blocks: Dict[str, bool] = {}
        self._reads_json = accepts_json(self.app.conf.accept_content)
        self._scaling = Scaling(self.settings)
        slots = {n: p.size * p.inflight for n, p in self.settings.items()}
        self._prefetch = Prefetch({**slots, LOCAL: 0})
        level = mlevel(self.app.conf.worker_redirect_stdouts_level)
        self.runtime = Runtime(
            self.app,
            self.settings,
            self.router,
            self.limit,
            level,
            self.options.get("maxtasksperchild"),
            self.options.get("max_memory_per_child"),
            self,
        )

    def _check_stubs(self) -> None:
        for task in self._tasks.values():
            if isinstance(task, ForeignTask) and task.pool is not None:
                if task.pool not in self.settings:
                    raise SettingError(
                        f"{task.name}.pool",
                        f"names {task.pool!r}, which is none of the pools "
                        f"{', '.join(self.settings)}",
                    )

    def _move(self, stage: Stage) -> None:
        assert stage in MOVES[self.stage], f"{self.stage} -> {stage}"
        self.stage = stage

    # --- start ------------------------------------------------------------------------

    def on_start(self) -> None:
        # With an event loop Celery gives its clock a dummy for a lock, as if only the
        # main thread used it. Our threads publish too.
        self.app.clock.mutex = threading.RLock()
        signals.worker_process_init.send(sender=self._hostname)
        cores.narrow(self._one_core)
        try:
            self.runtime.start()
        except BootError as exc:
            self._move(Stage.STOPPED)
            cores.release()
            logger.critical("linepool: the worker does not start: %s", exc)
            raise WorkerShutdown(EX_FAILURE) from None
        self._serve_metrics()
        self._receive()  # what children said that they serve is known from the start
        if self._threaded:
            self._courier = threading.Thread(
                target=self._carry, name="linepool-courier", daemon=True
            )
            self._courier.start()
        if self._hostname is not None:  # of a worker, and not by itself
            garbage.freeze()
        self._move(Stage.RUNNING)

    def _serve_metrics(self) -> None:
        if self._metrics is None:
            return
        try:
            self._stop_metrics = metrics.serve(self.runtime.pools, *self._metrics)
        except (OSError, ImportError) as exc:
            # Tasks are worth more than their figures.
            host, port = self._metrics
            logger.error("linepool: no metrics at %s:%d: %s", host, port, exc)

    @property
    def _hostname(self) -> Any:
        return (self.options.get("initargs") or (None, None))[1]

    def register_with_event_loop(self, hub: Any) -> None:
        """Called at every connection: the event loop forgets its readers in between."""
        self._hub = hub
        hub.add_reader(self.runtime.outbox.fileno(), self._receive)

    def connected(self, consumer: Any) -> None:
        """Called by our consumer step at every connection."""
        self._consumer = consumer
        self._connections += 1
        if self._connections == 1:
            self._check_autoscale(consumer.controller)
            self._prefetch_for_all_slots(consumer)
        self._prefetch.connected(consumer.qos, consumer.prefetch_multiplier)
        self.router.learn_queues(self.app.amqp.queues)
        if self._buffers:
            self._buffer(consumer)

    def _buffer(self, consumer: Any) -> None:
        before = self._broker
        if before is not None:
            before.close()
        channel = consumer.task_consumer.channel
        self._broker = buffered(consumer.connection, consumer.hub, channel)
        if self._broker is None:
            # Then Celery decides before each message; it is a setting since 5.6.
            one_by_one = bool(self.app.conf.get("worker_disable_prefetch"))
            self._broker = fetching(
                consumer.task_consumer, consumer.hub, one_by_one, before
            )
        if self._broker is None and self._connections == 1:
            logger.warning(
                "linepool: linepool_buffered_broker has no effect: it needs RabbitMQ "
                "through py-amqp without TLS, or Redis without Sentinel, and Celery's "
                "event loop"
            )

    def _check_autoscale(self, worker: Any) -> None:
        self._scaling.automatic = bool(worker.autoscale)
        try:
            if worker.autoscale:
                self._scaling.followers()
        except ValueError as exc:
            logger.critical("linepool: --autoscale has nothing to scale: %s", exc)
            worker_state.should_stop = EX_FAILURE

    def _prefetch_for_all_slots(self, consumer: Any) -> None:
        """Celery counted the worker's -c; pools may have other sizes.

        Later connections need nothing: Celery asks `num_processes` then.
        """
        initial = consumer.initial_prefetch_count
        # With --autoscale Celery prefetches for the most that it may become.
        slots = max(self.num_processes, consumer.controller.max_concurrency or 0)
        wanted = slots * consumer.prefetch_multiplier
        if initial and wanted != initial:
            consumer.initial_prefetch_count = wanted
            if wanted > initial:
                consumer.qos.increment_eventually(wanted - initial)
            else:
                consumer.qos.decrement_eventually(initial - wanted)
            # Now, before it consumes: afterwards a quorum queue does not heed it.
            consumer.qos.update()

    # --- tasks ------------------------------------------------------------------------

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Optional[Dict[str, Any]] = None,
        **options: Any,
    ) -> Optional[CeleryJob]:
        """Take a task. Never blocks, never raises: that would end the worker."""
        if self.stage is not Stage.RUNNING:
            return None  # its message stays unacknowledged and is given back
        lane = self._lane(args[0], options)
        pool = self.settings.get(lane)
        if pool is not None and self._reads_json:
            body = partial(trace, target, *args)
        else:
            body = partial(target, *args)
        job = CeleryJob(self.runtime, lane, pool, args[1], args[0], body, options)
        job.limit = options.get("timeout") or self.options.get("timeout")
        job.soft_limit = options.get("soft_timeout") or self.options.get("soft_timeout")
        job.plain = lane != LOCAL and not self._may_block(args[0], args[3])
        job.connection = self._connections
        self._jobs.add(job)
        job.held = True
        self._prefetch.take(lane)
        self.runtime.submit(job, lane)
        return job

    def _lane(self, name: str, options: Dict[str, Any]) -> str:
        task = self._tasks.get(name)
        if not isinstance(task, ForeignTask):
            return LOCAL
        request = getattr(options.get("accept_callback"), "__self__", None)
        delivery = getattr(request, "delivery_info", None)
        # A stub that no pool serves: its run says so, in a thread.
        return self.router.for_task(task, self.router.queue_of(delivery)) or LOCAL

    def _may_block(self, name: str, body: Any) -> bool:
        if name not in self._blocks:
            task = self._tasks[name]
            dedup = self.app.conf.worker_deduplicate_successful_tasks
            self._blocks[name] = blocks(task) or bool(dedup)
        return self._blocks[name] or has_callbacks(body)

    # --- what the runtime says, in the main thread ------------------------------------

    def _receive(self, *args: Any) -> None:
        """Do what is in the outbox."""
        outbox = self.runtime.outbox
        outbox.clear_wakeup()
        if self._broker is not None:
            self._broker.gather()  # acks: Celery has them run when this turn is over
        try:
            for _ in range(len(outbox)):
                self._deliver(*outbox.take())
        finally:
            outbox.armed = True
            outbox.wake()  # what came meanwhile is for the next turn of the event loop

    @staticmethod
    def _deliver(call: Callable[..., Any], values: Tuple[Any, ...]) -> None:
        try:
            call(*values)
        except MemoryError:
            raise
        except Exception as exc:
            # As prefork: a callback that fails must not end the event loop.
            logger.exception("Process %r failed: %r", call, exc)

    def _carry(self) -> None:
        """The thread that stands in for an event loop where there is none."""
        while self.stage is not Stage.STOPPED:
            select.select([self.runtime.outbox], [], [])
            self._receive()
            if compat.ACKS_WAIT_FOR_CONSUMER and self._consumer is not None:
                self._consumer.perform_pending_operations()

    def accepted(self, job: Job, pid: int, when: float) -> None:
        assert isinstance(job, CeleryJob)
        accept, job.accept_callback = job.accept_callback, None
        if accept is not None:
            accept(pid, when)
        elif job.request is not None:
            job.request.worker_pid = pid  # it went on to another child
        if getattr(job.request, "acknowledged", False):
            self._give_back(job)

    def ended(self, job: Job, returned: Any, raised: Optional[BaseException]) -> None:
        assert isinstance(job, CeleryJob)
        job.move(State.SETTLED)
        self._jobs.discard(job)
        try:
            # As prefork: a cold shutdown leaves its tasks as they were, and the broker
            # delivers again what was not acknowledged.
            if self.stage is not Stage.KILLED or not isinstance(raised, Abandoned):
                job.report(returned, raised, self._is_ending())
        finally:
            self._give_back(job)

    def _is_ending(self) -> bool:
        return self.stage is not Stage.RUNNING or worker_state.should_stop is not None

    def soft_limit(self, job: Job) -> None:
        assert isinstance(job, CeleryJob)
        job.report_soft_limit()

    def recheck(self, job: Job) -> None:
        assert isinstance(job, CeleryJob)
        stale = job.connection != self._connections or self.stage is not Stage.RUNNING
        if stale or job.request is None or job.request.revoked():
            self.dropped([job])
        else:
            job.checked()
            self.runtime.submit(job, job.lane, first=True)

    def dropped(self, jobs: List[Job]) -> None:
        for job in jobs:
            assert isinstance(job, CeleryJob)
            job.move(State.DROPPED)
            self._jobs.discard(job)
            self._give_back(job)

    def advertised(self, pool: str, tasks: Tuple[str, ...]) -> None:
        """The children of a pool say what they serve: no message has to come first."""
        strategies = getattr(self._consumer, "strategies", None)
        for name in self.router.learn_tasks(pool, tasks)[:MAX_NAMES]:
            if name in self._tasks:
                continue
            if isinstance(strategies, Strategies):
                strategies[name]  # a missing one is made
            else:
                register(self.app, name)

    def boot_failed(self, error: BootError) -> None:
        if self.stage is Stage.RUNNING:
            logger.critical("linepool: the worker stops: %s", error)
            worker_state.should_stop = EX_FAILURE

    def _give_back(self, job: CeleryJob) -> None:
        if job.held:
            job.held = False
            if job.connection == self._connections:
                self._prefetch.give(job.lane)

    # --- stop -------------------------------------------------------------------------

    def flush(self) -> None:
        """The connection is gone: what has not started will be delivered again."""
        if self.stage is Stage.RUNNING:
            self.runtime.flush()

    def on_close(self) -> None:
        """Start nothing more."""
        if self.stage is Stage.RUNNING:
            self._move(Stage.CLOSED)
            # Counted first: the courier may drop those that wait while we count.
            jobs = list(self._jobs)
            started = sum(job.state is State.RUNNING for job in jobs)
            self.runtime.close()
            logger.info(
                "linepool: finishing %d tasks; %d that wait are given back",
                started,
                len(jobs) - started,
            )

    def on_stop(self) -> None:
        """Finish what has started, then end the children. Waits.

        May run inside a signal handler, in the middle of itself.
        """
        if self.stage is Stage.NEW:
            return
        self.on_close()
        beat = said = float("-inf")
        while self._jobs and self.stage is Stage.CLOSED:
            if time.monotonic() - said > PATIENCE:
                said = time.monotonic()
                logger.info("linepool: waiting for %d tasks", len(self._jobs))
            self._pump(HEARTBEAT / 4)
            if time.monotonic() - beat > HEARTBEAT:
                beat = time.monotonic()
                self._keep_connection()
        self._end(polite=True)

    def on_terminate(self) -> None:
        """End the children, whatever they do."""
        self._end(polite=False)

    def _end(self, polite: bool) -> None:
        if self._has_ended():
            return
        if not polite:
            self._move(Stage.KILLED)
        self.runtime.stop(polite)
        if polite and self._has_ended():
            return  # a signal handler terminated the pool meanwhile
        self._pump(0)
        if self._broker is not None:
            self._broker.close()
        self._stop_metrics()
        self._move(Stage.STOPPED)
        if self._courier is not None:
            self.runtime.outbox.post(_nothing)
            if self._courier is not threading.current_thread():
                self._courier.join()
        if self._hub is not None:
            self._hub.remove(self.runtime.outbox.fileno())
        self.runtime.outbox.close()
        cores.release()
        signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)

    def _has_ended(self) -> bool:
        return self.stage in (Stage.NEW, Stage.KILLED, Stage.STOPPED)

    def _pump(self, seconds: float) -> None:
        """Do what the event loop would do; nobody runs it while the pool drains."""
        if self._courier is not None:
            time.sleep(min(seconds, 0.05))
            return
        select.select([self.runtime.outbox], [], [], seconds)
        self._receive()
        if self._hub is not None:
            compat.run_pending(self._hub)
        if self._broker is not None:
            try:
                self._broker.flush()
            except self._broker.errors as exc:
                logger.warning("linepool: the broker is gone, with acks: %r", exc)

    def _keep_connection(self) -> None:
        """Tell an AMQP broker that we live.

        Otherwise it closes the connection, and the task that finishes after that is
        delivered again.
        """
        connections = [getattr(self._consumer, "connection", None)]
        dispatcher = getattr(self._consumer, "event_dispatcher", None)
        connections.append(getattr(dispatcher, "connection", None))
        for connection in connections:
            try:
                if connection is not None and connection.get_heartbeat_interval():
                    connection.connection.send_heartbeat()
            except Exception as exc:
                logger.warning("linepool: no heartbeat to the broker: %r", exc)

    # --- for Celery and for people ----------------------------------------------------

    def terminate_job(self, pid: int, signal: Optional[int] = None) -> None:
        """Nothing: Celery then calls `terminate` of the job, which knows its task."""

    @property
    def num_processes(self) -> int:
        """Slots of all pools; Celery's prefetch count is a multiple of it."""
        sizes = self._scaling.sizes
        return sum(size * self.settings[name].inflight for name, size in sizes.items())

    def grow(self, n: int = 1) -> None:
        """Called by ``pool_grow`` and ``--autoscale``.

        Raises:
            ValueError: no pool leaves its size to the worker's ``-c``.
        """
        self._resize(self._scaling.grown(n, self.runtime.loads()), n)

    def shrink(self, n: int = 1) -> None:
        """Called by ``pool_shrink`` and ``--autoscale``. Busy children finish first.

        Raises:
            ValueError: so many may not be taken away. None is, then.
        """
        self._resize(self._scaling.shrunk(n, self.runtime.loads()), -n)

    def scale(self, name: str, size: int) -> None:
        """Have so many children in one pool.

        Raises:
            ValueError: there is no such pool, or that is no size.
        """
        self._resize(self._scaling.fixed(name, size), 0)

    def _resize(self, sizes: Dict[str, int], known: int) -> None:
        """Have these sizes; Celery itself fetches for `known` slots more."""
        before = self.num_processes
        for name, size in sizes.items():
            if size != self._scaling.sizes[name]:
                self._scaling.sizes[name] = size
                self._prefetch.resize(name, size * self.settings[name].inflight)
                self.runtime.resize(name, size)
        more = self.num_processes - before - known
        if (
            more
            and self._consumer is not None
            and self._consumer.initial_prefetch_count
        ):
            self._consumer._update_qos_eventually(more)

    def restart(self) -> None:
        """Called by ``pool_restart``."""
        self.reset()

    def reset(self, name: Optional[str] = None) -> None:
        """New children in place of the old, one by one; nothing is lost.

        Raises:
            ValueError: there is no such pool.
        """
        for pool in self._named(name):
            self.runtime.reset(pool)

    def pause(self, name: Optional[str] = None) -> None:
        """Start no more tasks in this pool, or in all; what runs goes on.

        Raises:
            ValueError: there is no such pool.
        """
        for pool in self._named(name):
            logger.warning("linepool: pool %r is paused", pool, extra=identity(pool))
            self.runtime.pause(pool, True)

    def resume(self, name: Optional[str] = None) -> None:
        """Start tasks again.

        Raises:
            ValueError: there is no such pool.
        """
        for pool in self._named(name):
            logger.warning("linepool: pool %r is resumed", pool, extra=identity(pool))
            self.runtime.pause(pool, False)

    def _named(self, name: Optional[str]) -> List[str]:
        if name is None:
            return list(self.settings)
        if name not in self.settings:
            raise ValueError(
                f"no pool {name!r}; linepool_pools has {', '.join(self.settings)}"
            )
        return [name]

    def _get_info(self) -> Dict[str, Any]:
        info: Dict[str, Any] = super()._get_info()
        limits = (self.options.get("soft_timeout"), self.options.get("timeout"))
        info.update(
            {
                "max-concurrency": self.num_processes,
                "processes": self.runtime.pids(),
                "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
                "put-guarded-by-semaphore": False,
                "timeouts": [limit or 0 for limit in limits],
                "pools": self.runtime.info(),
            }
        )
        return info


# Celery's banner shows the last part of the module's name.
LinePool.__module__ = "celery_linepool"


def _nothing() -> None:
    """Wakes a thread, or stands for what there is not."""
