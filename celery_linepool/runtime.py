"""What a worker runs between Celery and the pools: engine, lanes, hosts, settler.

The pool hands jobs in from the main thread; what comes back goes through one outbox.
Everything else here runs in the engine, or in the host of a task.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import queue
import time
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Protocol,
    Tuple,
    Union,
    cast,
)

from celery import Celery
from celery._state import _task_stack

from . import cores
from .child import Child
from .children import Children
from .conversation import Conversation
from .encoding import encode_request
from .engine import Engine
from .errors import BootError
from .guardian import Guardian
from .job import Answer, Call, Cancel, Job, State, Waiter
from .local import Local
from .mailbox import Mailbox
from .memory import tree_sizes
from .messages import Told
from .monitor import Monitor
from .recycle import Limits
from .router import Router
from .settings import PoolSettings
from .settler import BatchingAway, SettledBackend, ThreadedAway, is_redis
from .stderr import Drain
from .threads import Threads
from .voice import identity
from .watch import Watch

logger = logging.getLogger(__name__)

Lane = Union[Children, Local]
#: The lane of the app's Python tasks. No pool can have this name.
LOCAL = "(python)"
#: Jobs that a slot may have in threads at once: one that runs, one that is being
#: settled, and one call that one of them made aside.
THREADS_PER_SLOT = 3
#: Looks of the monitor at which memory is measured, where no limit depends on it.
FOR_PEOPLE = 10


class Front(Protocol):
    """The side that speaks to Celery. All called by whoever reads the outbox."""

    def accepted(self, job: Job, pid: int, when: float) -> None: ...

    def ended(
        self, job: Job, returned: Any, raised: Optional[BaseException]
    ) -> None: ...

    def recheck(self, job: Job) -> None:
        """The job may have been revoked, or expired, while it waited."""

    def dropped(self, jobs: List[Job]) -> None:
        """These did not start, and will not."""

    def soft_limit(self, job: Job) -> None: ...

    def advertised(self, pool: str, tasks: Tuple[str, ...]) -> None:
        """The children of a pool say that they serve these."""

    def boot_failed(self, error: BootError) -> None: ...


class Runtime:
    """Everything that runs; owned by the pool."""

    def __init__(
        self,
        app: Celery,
        pools: Mapping[str, PoolSettings],
        router: Router,
        local_size: int,
        log_level: int,
        tasks: Optional[int],
        memory: Optional[int],
        front: Front,
    ) -> None:
        self.outbox = Mailbox()
        self.engine = Engine(self.outbox.wake)
        self._app = app
        self._router = router
        self._front = front
        self._closing = False
        self._guardian = Guardian()
        self._drain = Drain()
        slots = sum(pool.size * pool.inflight for pool in pools.values())
        most = local_size + THREADS_PER_SLOT * slots
        self._threads = Threads("task", most, cores.widen)
        self._away: Union[BatchingAway, ThreadedAway, None] = None
        self._settled: Optional[SettledBackend] = None
        self._monitor = Monitor(self.engine, self._overdue, self._look)
        self.pools: Dict[str, Children] = {
            name: Children(
                pool,
                self.engine,
                self._guardian,
                self._drain,
                self,
                Limits(tasks, memory, pool.max_lifetime, pool.idle_timeout),
                log_level,
            )
            for name, pool in pools.items()
        }
        self._looks = itertools.count()
        limited = memory is not None or any(
            pool.memory_limit is not None for pool in pools.values()
        )
        self._measure_every = 1 if limited else FOR_PEOPLE
        #: What the children of a pool said last that they serve.
        self._advertised: Dict[str, Tuple[str, ...]] = {}
        self._watches = {n: Watch(p.watched, p.cwd) for n, p in pools.items()}
        self.local = Local(local_size, self)
        self._jobs_lane: Dict[str, Lane] = {**self.pools, LOCAL: self.local}

    # --- start and stop: main thread --------------------------------------------------

    def start(self) -> None:
        """Start everything; returns when the children live.

        Raises:
            BootError: those of a pool do not. Everything has been stopped again.
        """
        self._away = self._make_away()
        self._guardian.start()
        self._drain.start()
        self.engine.start()
        self._monitor.start()
        self._threads.start()
        started: "queue.SimpleQueue[Optional[BootError]]" = queue.SimpleQueue()
        for pool in self.pools.values():
            self.engine.post(pool.start, started.put)
        errors = [started.get() for _ in self.pools]
        for error in errors:
            if error is not None:
                self.stop(polite=False)
                raise error

    def _make_away(self) -> Union[BatchingAway, ThreadedAway]:
        if is_redis(self._app.backend):
            away = BatchingAway(self._app, self.engine.wake)
            away.start()
            return away
        return ThreadedAway(self._app, self._threads, self.engine.wake)

    def flush(self) -> None:
        """Take every job that has not started out of its line."""
        self.engine.post(self._flush)

    def close(self) -> None:
        """Start nothing more, from this moment on."""
        self._closing = True
        self.flush()
        for pool in self.pools.values():
            self.engine.post(pool.close)

    def _flush(self) -> None:
        for lane in self._jobs_lane.values():
            jobs = lane.flush()
            if jobs:
                self.outbox.put(self._front.dropped, jobs)

    def stop(self, polite: bool) -> None:
        """End the children, then everything else. Waits."""
        empty: "queue.SimpleQueue[None]" = queue.SimpleQueue()
        for pool in self.pools.values():
            if not polite:
                self.engine.post(pool.kill)
            self.engine.post(pool.stop, lambda: empty.put(None))
        longest = max(pool.settings.stop_timeout for pool in self.pools.values())
        until = time.monotonic() + longest + 10
        for _ in self.pools:
            try:
                empty.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                logger.error("linepool: some children do not end; they are left behind")
                break
        self._monitor.stop()
        self.engine.stop()
        self._threads.stop(wait=polite)
        if self._away is not None:
            self._away.stop()
        self._drain.stop()
        self._guardian.stop()

    # --- jobs: any thread -------------------------------------------------------------

    def submit(self, job: Job, lane: str, first: bool = False) -> None:
        """Have a job run by a pool, or by `LOCAL`."""
        where = self._jobs_lane[lane]
        # A lane without room looks again when it has some: nobody has to be woken. Put
        # before it is asked, so that one of the two sees the other.
        self.engine.put(where.submit, job, first)
        if where.has_room:
            self.engine.wake()

    def terminate(self, job: Job, lane: str, signum: int, why: Cancel) -> None:
        self.engine.post(self._jobs_lane[lane].terminate, job, signum, why)

    # --- the size of pools: any thread ------------------------------------------------

    def resize(self, name: str, size: int) -> None:
        self.engine.post(self.pools[name].resize, size)

    def pause(self, name: str, paused: bool) -> None:
        self.engine.post(self.pools[name].pause, paused)

    def dump(self, pid: int) -> Dict[str, Any]:
        """What is known of one child, whose stack is asked for if it can tell it.

        Raises:
            ValueError: there is no child with this pid.
        """
        for name, pool in self.pools.items():
            for member in pool.members():
                if member.child.pid == pid:
                    signum = pool.settings.dump_signal
                    if signum is not None:
                        self.engine.post(member.child.signal, signum)
                    stderr = member.stream.tail() if member.stream else []
                    return {"pool": name, **member.info(), "stderr": stderr}
        raise ValueError(f"no child has the pid {pid}; linepool_stats lists them")

    def loads(self) -> Dict[str, int]:
        """How many tasks each pool has. A guess, a moment old."""
        return {name: pool.load for name, pool in self.pools.items()}

    def reset(self, name: str, why: str = "by hand") -> None:
        """Replace a pool's children, one by one."""
        extra = identity(name)
        logger.info("linepool: pool %r is being reset: %s", name, why, extra=extra)
        self.engine.post(self.pools[name].reset)

    # --- what lanes tell: the engine, which wakes the main thread once a turn ---------

    def may_start(self, job: Job) -> bool:
        if job.state is not State.WAITING:
            return False
        if self._closing:
            self.outbox.put(self._front.dropped, [job])
            return False
        if job.is_suspect():
            self.outbox.put(self._front.recheck, job)
            return False
        return True

    def accepted(self, job: Job, pid: int) -> None:
        if job.state is State.WAITING:
            job.move(State.RUNNING)
        self.outbox.put(self._front.accepted, job, pid, time.monotonic())

    def start_job(self, job: Job) -> None:
        if job.plain:
            self.engine.start_greenlet(job.run)
        else:
            self._threads.submit(job.run)

    def holds_thread(self, job: Job) -> bool:
        return not (job.plain and isinstance(self._away, BatchingAway))

    def soft_limit(self, job: Job) -> None:
        self.outbox.put(self._front.soft_limit, job)

    def advertised(self, pool: str, tasks: Tuple[str, ...]) -> None:
        if self._advertised.get(pool) != tasks:
            self._advertised[pool] = tasks
            self.outbox.put(self._front.advertised, pool, tasks)

    def failed_to_boot(self, error: BootError) -> None:
        self.outbox.put(self._front.boot_failed, error)

    # --- what a task does: its host ---------------------------------------------------

    def ended(
        self, job: Job, lane: str, returned: Any, raised: Optional[BaseException]
    ) -> None:
        """A job is through with Celery's tracer."""
        settled = self._jobs_lane[lane].settled
        if self.engine.is_here():
            self.outbox.put(self._front.ended, job, returned, raised)
            # From a greenlet this must not run at once: it would start the next job's
            # greenlet from this one, which is not the loop.
            self.engine.soon(settled, job)
        else:
            self.outbox.post(self._front.ended, job, returned, raised)
            self.engine.post(settled, job)

    def ask(
        self, job: Job, task: Any, request_id: str, payload: Dict[str, Any]
    ) -> Answer:
        own = request_id == job.id and job.lane in self.pools
        name = job.lane if own else self._router.for_task(task, None)
        if name is None:
            raise LookupError(f"no pool serves {task.name}")
        pool = self.pools[name]
        line = encode_request(request_id, payload, pool.settings.max_line)
        waiter = Waiter(self.engine)
        talk = Conversation(task, self.run_aside, pool.settings.max_line)
        call = Call(request_id, line, job if own else None, waiter.wake)

        def hear(told: Told) -> bool:
            wanted = talk.take(told)
            if wanted:
                waiter.wake(told)
            return wanted

        call.hear = hear
        here = self.engine.is_here()
        if here:
            pool.send(call)
        else:
            self.engine.post(pool.send, call)
        while True:
            said = waiter.wait()
            if not isinstance(said, Told):
                talk.close(said)
                return cast(Answer, said)
            answer = talk.hear(said)
            # Not at once: from a greenlet that would not be the loop.
            tell = self.engine.soon if here else self.engine.post
            tell(pool.heard, call, answer)

    def run_aside(self, task: Any, call: Callable[[], Any]) -> Any:
        if not self.engine.is_here():
            return call()
        waiter = Waiter(self.engine)
        context = contextvars.copy_context()

        def work() -> None:
            result, error = None, None
            # Celery keeps these for each greenlet; the call belongs to this task.
            _task_stack.push(task)
            task.request_stack.push(request)
            try:
                result = context.run(call)
            except Exception as exc:
                error = exc
            finally:
                task.request_stack.pop()
                _task_stack.pop()
            self.engine.post(waiter.wake, (result, error))

        request = task.request_stack.top
        self._threads.submit(work)
        result, error = waiter.wait()
        if error is not None:
            raise error
        return result

    def settled_backend(self) -> Any:
        assert self._away is not None
        if not self.engine.is_here():
            # A call that is run aside: the thread has a backend of its own.
            return SettledBackend(self._app.backend, self.engine, self._away)
        if self._settled is None:
            self._settled = SettledBackend(self._app.backend, self.engine, self._away)
        return self._settled

    # --- for the monitor and for people -----------------------------------------------

    def _look(self) -> None:
        measure = next(self._looks) % self._measure_every == 0
        sizes = tree_sizes(self.pids()) if measure else {}
        for name, pool in self.pools.items():
            self.engine.post(pool.look, sizes)
            changed = self._watches[name].changed()
            if changed is not None:
                self.reset(name, f"{changed!r} has changed")

    def _overdue(self, now: float) -> Iterable[Child]:
        return [child for pool in self.pools.values() for child in pool.overdue(now)]

    def pids(self) -> List[int]:
        return [pid for pool in self.pools.values() for pid in pool.pids()]

    def info(self) -> Dict[str, Any]:
        return {name: lane.info() for name, lane in self._jobs_lane.items()}
