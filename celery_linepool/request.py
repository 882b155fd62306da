"""A job with Celery's Request: what the worker is told of it, each thing at most once.

All called in the main thread, or by the thread that stands in for the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from . import compat, poison
from .errors import Abandoned, PoisonError
from .job import Cancel, Job, State
from .settings import PoolSettings
from .voice import identity

if TYPE_CHECKING:
    from .runtime import Runtime

logger = get_logger(__name__)


class CeleryJob(Job):
    """A job with Celery's request and callbacks: each is called at most once."""

    def __init__(
        self,
        runtime: "Runtime",
        lane: str,
        pool: Optional[PoolSettings],
        id: str,
        name: str,
        body: Callable[[], Any],
        options: Dict[str, Any],
    ) -> None:
        super().__init__(id, name, runtime, lane, body, self._tell)
        self._runtime = runtime
        self._pool = pool
        self.accept_callback = options.get("accept_callback")
        self.callback = options.get("callback")
        self.error_callback = options.get("error_callback")
        self.timeout_callback = options.get("timeout_callback")
        #: Celery's Request, which the callbacks are methods of.
        self.request = getattr(self.accept_callback, "__self__", None)
        self.late = self.request is not None and bool(self.request.task.acks_late)
        #: The connection that its message came through.
        self.connection = 0
        #: Whether its message counts as held by its lane.
        self.held = False
        self._checked = False

    def _tell(self, job: Job, returned: Any, raised: Optional[BaseException]) -> None:
        self._runtime.ended(self, self.lane, returned, raised)

    def is_suspect(self) -> bool:
        if self._checked or self.request is None:
            return False
        request = self.request
        return bool(
            request.id in worker_state.revoked
            or request.expires
            or (worker_state.revoked_stamps and request.stamped_headers)
        )

    def checked(self) -> None:
        """The request was asked and is wanted."""
        self._checked = True

    def terminate(self, signum: int) -> None:
        """Called by Celery, for ``revoke(terminate=True)`` and a cold shutdown."""
        # Not revoked but cancelled: the worker ends, or has lost its broker.
        cancelled = getattr(self.request, "_already_cancelled", False)
        why = Cancel.SHUTDOWN if cancelled else Cancel.REVOKED
        self._runtime.terminate(self, self.lane, signum, why)

    def report(
        self, returned: Any, raised: Optional[BaseException], ending: bool
    ) -> None:
        """Tell Celery how it ended; `ending` is whether the worker ends, too."""
        try:
            self._report(returned, raised, ending)
        except MemoryError:
            raise
        except Exception as exc:
            # As prefork: it must not end the event loop.
            logger.error(
                "linepool: %s[%s]: Celery could not settle it, so its result may be "
                "missing in %s, and its errbacks may not be called; does the result "
                "backend take results? %r",
                self.name,
                self.id,
                _where(self.request),
                exc,
                exc_info=True,
                extra=self._identity(exc),
            )

    def _report(
        self, returned: Any, raised: Optional[BaseException], ending: bool
    ) -> None:
        if raised is None:
            _call(self.callback, returned)
            return
        if self._is_left(raised):
            logger.warning(
                "linepool: %s[%s] is given back to the broker: %s",
                self.name,
                self.id,
                raised,
                extra=self._identity(raised),
            )
            return
        reason = raised.reason if isinstance(raised, Abandoned) else raised
        if isinstance(raised, Abandoned) and not isinstance(reason, Terminated):
            extra = self._identity(reason)
            logger.error(
                "linepool: %s[%s]: %s", self.name, self.id, reason, extra=extra
            )
        if not isinstance(reason, Exception):
            # Not every Celery can store a SystemExit, and it is the task's alone.
            reason = WorkerLostError(f"the task raised {reason!r}")
        celerys = isinstance(reason, TimeLimitExceeded) and self.limit is not None
        if self._pool is not None and self._pool.dump_signal is not None:
            celerys = False  # Celery's own words have no room for the child's stack
        if celerys and compat.LIMIT_THROUGH_TIMEOUT_CALLBACK:
            _call(self.timeout_callback, False, self.limit)
            return
        if celerys:
            reason = TimeLimitExceeded(self.limit)  # in Celery's words
        # Where the worker ends, its children may have been told to end with it, which
        # says nothing about the task.
        innocent = ending or getattr(raised, "innocent", False)
        if isinstance(reason, WorkerLostError) and not innocent:
            if self._crashed(reason):
                return
        _call(self.error_callback, _einfo(reason))

    def _is_left(self, raised: BaseException) -> bool:
        """Whether nobody has begun it, and the broker will deliver it again."""
        unread = isinstance(raised, Abandoned) and raised.unread
        return unread and self.request is not None and not self.request.acknowledged

    def _crashed(self, reason: WorkerLostError) -> bool:
        """Deal with a task that Celery would give back to the broker without end."""
        request, pool = self.request, self._pool
        if pool is None or request is None or request.acknowledged:
            return False
        if not (request.task.acks_late and request.task.reject_on_worker_lost):
            return False
        if getattr(request.task, "retry_on_worker_lost", False):
            return False  # counted by Celery, as a retry
        crashes = poison.crashes_of(request) + 1
        if crashes < pool.max_crashes:
            return self._send_again(request, crashes)
        text = f"{reason}\nIt has crashed {crashes} children (linepool_max_crashes)"
        logger.error(
            "linepool: %s[%s] is not run again: %s",
            self.name,
            self.id,
            text,
            extra=self._identity(PoisonError()),
        )
        if pool.on_poison == "reject":
            worker_state.task_ready(request)
            request.reject(requeue=False)
        else:
            _call(self.error_callback, _einfo(PoisonError(text)))
        return True

    def _send_again(self, request: Any, crashes: int) -> bool:
        try:
            poison.send_again(request, crashes)
        except Exception as exc:
            # Celery gives the message back as it is: uncounted, but not lost.
            extra = self._identity(exc)
            logger.error(
                "linepool: task %s is not counted: %r", request.id, exc, extra=extra
            )
            return False
        worker_state.task_ready(request)
        return True

    def _identity(self, reason: BaseException) -> Dict[str, Any]:
        pool = None if self._pool is None else self._pool.name
        pid = getattr(self.request, "worker_pid", None)
        return identity(pool, None, pid, self.id, type(reason).__name__)

    def report_soft_limit(self) -> None:
        if self.state is State.RUNNING:
            _call(self.timeout_callback, True, self.soft_limit)


def _call(callback: Optional[Callable[..., Any]], *args: Any) -> None:
    if callback is not None:
        callback(*args)


def _where(request: Any) -> str:
    """The result backend, without its password."""
    return "its backend" if request is None else str(request.task.backend.as_uri())


def _einfo(exc: BaseException) -> ExceptionInfo:
    """The exception as Celery's Request wants it, with the traceback that it has."""
    try:
        raise exc
    except BaseException:
        info = ExceptionInfo()
    # billiard wraps it to carry its traceback between processes; in task events only
    # the wrapper's name would be seen.
    info.exception = exc
    return info
