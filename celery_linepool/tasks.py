"""Tasks that a child runs: the stub, and the tasks that need none.

A stub is an ordinary Celery task whose ``run`` asks a child. Everything else about it,
before and after, is Celery's.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Dict, Optional, Type, cast

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import Task
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.trace import task_has_custom
from celery.exceptions import Reject, Retry

from .errors import Abandoned, ForeignError, LinePoolError
from .job import current_job
from .outcomes import settle
from .poison import HEADER as CRASHES
from .tracing import context_of

if TYPE_CHECKING:
    from celery import Celery

#: What a user may define on a task class and Celery calls while it traces the task.
HOOKS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")

#: The end of a message without callbacks, as kombu's JSON writes it.
_NO_CALLBACKS = b'"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


class ForeignTask(Task):  # type: ignore[misc]
    """A task that a child of a pool runs.

    As the base of a stub it carries Celery's options; the function's signature is
    checked where the task is sent, and its body never runs::

        @app.task(base=ForeignTask, name="billing.charge", autoretry_for=(Exception,))
        def charge(invoice_id): ...
    """

    abstract = True
    #: What a child rejects is no error that ``autoretry_for`` may retry; nor is what
    #: does not come that far in a worker.
    dont_autoretry_for = (Reject, WorkerLostError, TimeLimitExceeded, Terminated)
    #: The pool that serves it; None for the one whose settings name it.
    pool: Optional[str] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("_decorated"):
            # @app.task made the stub's function the ``run`` of this class.
            del cls.run

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Ask a child; what it answers is what the task does."""
        job, request = current_job(), self.request
        if job is None and not request.is_eager:
            raise LinePoolError(
                f"{self.name} is served by a child of a LinePool worker; "
                "send it there with delay() or apply_async(), or run it here with "
                "apply()"
            )
        request_id = request.id or str(uuid.uuid4())
        payload = {
            "task": self.name,
            "args": args,
            "kwargs": kwargs,
            "meta": self._meta(request, None if job is None else job.deadline),
        }
        if job is None:
            from .eager import ask  # who only sends tasks needs none of that

            answer = ask(self, request_id, payload)
        else:
            answer = job.runtime.ask(job, self, request_id, payload)
        try:
            return settle(self, answer)
        except Abandoned as exc:
            if request.is_eager:
                raise exc.reason from None  # there is nobody else to settle it
            raise

    def _meta(self, request: Any, deadline: Optional[float]) -> Dict[str, Any]:
        """What a child may want to know of the task besides its arguments."""
        given = vars(request)
        delivery = request.delivery_info or {}
        meta = {
            "retries": request.retries,
            "max_retries": self.max_retries,
            "queue": delivery.get("routing_key"),
            "redelivered": bool(delivery.get("redelivered")),
            "crashes": given.get(CRASHES) or 0,
        }
        if deadline is not None:
            # Ours is monotonic, a child's is the wall clock of this moment.
            left = deadline - time.monotonic()
            meta["deadline"] = round(time.time() + left, 3)
        for key in ("root_id", "parent_id", "group", "eta", "expires", "headers"):
            value = given.get(key)
            if value is not None:
                meta[key] = value
        meta.update(context_of(request))
        return meta

    # --- run it again -----------------------------------------------------------------

    def retry_later(
        self, error: Optional[ForeignError], seconds: Optional[float]
    ) -> BaseException:
        """The exception of a retry that counts, already sent; Celery's own rules."""
        retry: BaseException = self._aside(
            lambda: self.retry(exc=error, countdown=seconds, throw=False)
        )
        return retry

    def run_again(self, seconds: float, reason: str) -> BaseException:
        """The exception of a run after `seconds` that uses up no retry."""
        request = self.request
        if request.called_directly:
            return ForeignError(f"{reason}; called directly, it cannot run again")
        if request.is_eager:
            # Nothing waits there: what does not count would go on for ever.
            return self.retry_later(ForeignError(reason), seconds)
        signature = self.signature_from_request(
            request, countdown=seconds, retries=request.retries
        )
        message = f"{reason}; again in {seconds:g} s"
        try:
            self._aside(signature.apply_async)
        except Exception as exc:
            # As Celery's own retry does.
            return cast(BaseException, Reject(exc, requeue=False))
        return cast(BaseException, Retry(message, when=seconds, sig=signature))

    def _aside(self, call: Any) -> Any:
        job = current_job()
        return call() if job is None else job.runtime.run_aside(self, call)

    # --- the result backend -----------------------------------------------------------

    @property
    def backend(self) -> Any:
        """The result backend; in a greenlet, one whose calls do not hold it up."""
        job = current_job()
        if job is None or not job.plain or self._backend is not None:
            return Task.backend.fget(self)
        return job.runtime.settled_backend()

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value


def blocks(task: ForeignTask) -> bool:
    """Whether Celery's tracer would call the user's code, or publish, for this task."""
    return bool(
        getattr(task, "autoretry_for", ())
        or task._backend is not None
        or any(task_has_custom(task, hook) for hook in HOOKS)
        # Not task_has_custom: the worker puts a __call__ of its own into Celery's Task.
        or type(task).__call__ is not Task.__call__
        or type(task).run is not ForeignTask.run
        or type(task).update_state is not Task.update_state
    )


def has_callbacks(body: Any) -> bool:
    """Whether a message carries links, a chain or a chord; True if hard to tell."""
    if isinstance(body, tuple):  # message protocol 1, decoded by Celery
        embed = body[2] or {}
        return any(embed.get(k) for k in ("callbacks", "errbacks", "chain", "chord"))
    if isinstance(body, str):
        return not body.endswith(_NO_CALLBACKS.decode())
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body[-len(_NO_CALLBACKS) :]) != _NO_CALLBACKS
    return True


def register(
    app: "Celery", name: str, base: Type[ForeignTask] = ForeignTask
) -> ForeignTask:
    """Make a task of this name known to the app: no Python code of the user needed."""
    # Python takes no NUL and no half a character there, and nobody looks it up by it.
    shown = name.rpartition(".")[2].encode("ascii", "backslashreplace").decode()
    cls = type(
        shown.replace("\0", "") or "unnamed",
        (base,),
        {"name": name, "__module__": __name__, "abstract": False},
    )
    task: ForeignTask = app.register_task(cls())
    # Celery looks for autoretry_for before it applies task_annotations.
    add_autoretry_behaviour(task)
    return task
