"""What a task's child says before it replies, dealt with in the task's own host.

So progress and new tasks go through Celery's own `update_state` and `send_task`, with
the task's request on Celery's stack: parents, roots, priorities and stamps are right.
"""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from .encoding import encode_op
from .errors import LinePoolError
from .job import Answer
from .messages import Op, Reply, Status, Told
from .voice import identity

if TYPE_CHECKING:
    from .tasks import ForeignTask

logger = logging.getLogger(__name__)

#: The state of a task that reports progress; Celery's documentation calls it that.
PROGRESS = "PROGRESS"
#: Tasks that one task may have sent when it succeeds: they are kept in memory.
MAX_KEPT = 1000
#: What a child may say of how a task is sent. Celery knows more, which is the worker's.
OPTIONS = frozenset(
    [
        *("queue", "exchange", "routing_key", "priority", "countdown", "eta"),
        *("expires", "headers", "task_id", "serializer", "compression", "shadow"),
        *("time_limit", "soft_time_limit", "ignore_result", "delivery_mode", "retry"),
        *("retry_policy", "link", "link_error"),
    ]
)


class Conversation:
    """One task and its child, from the request to the reply.

    Arguments:
        task: the task, with its request on Celery's stack.
        aside: runs a call where it may block.
        max_kept: bytes of lines that may be kept for the end.
    """

    def __init__(
        self,
        task: "ForeignTask",
        aside: Callable[[Any, Callable[[], Any]], Any],
        max_kept: int,
    ) -> None:
        self._task = task
        self._aside = aside
        self._max_kept = max_kept
        #: The newest progress that has not been stored; in the engine and the host.
        self._progress: Optional[Told] = None
        self._kept: List[Told] = []
        self._kept_bytes = 0

    def take(self, told: Told) -> bool:
        """Called in the engine; whether `hear` has to be called in the host.

        Of progress that comes faster than it can be stored only the newest counts.
        """
        if told.op is not Op.PROGRESS:
            return told.op is Op.PUBLISH
        waiting, self._progress = self._progress, told
        return waiting is None

    def hear(self, told: Told) -> Optional[bytes]:
        """Deal with an event; the line that the child gets for it, if any."""
        if told.op is Op.PUBLISH:
            return self._publish(told)
        newest, self._progress = self._progress, None
        if newest is not None:
            self._report(newest)
        return None

    def close(self, answer: Answer) -> None:
        """The child has replied, or is lost.

        Raises:
            LinePoolError: it succeeded, and what it left to send cannot be sent.
        """
        succeeded = isinstance(answer, Reply) and answer.status is Status.OK
        kept, self._kept = self._kept, []
        for told in kept if succeeded else ():
            try:
                self._send(told)
            except Exception as exc:
                raise LinePoolError(
                    f"the child succeeded, but {told.fields.get('task')!r} that it "
                    f"published could not be sent: {exc!r}"
                ) from exc

    # --- progress ---------------------------------------------------------------------

    def _report(self, told: Told) -> None:
        try:
            self._task.update_state(state=PROGRESS, meta=told.fields.get("meta"))
        except Exception as exc:
            # It may come to its end all the same.
            logger.warning(
                "linepool: progress of %s[%s] was not stored: %r",
                self._task.name,
                told.id,
                exc,
                extra=identity(None, task_id=told.id, cause="progress"),
            )

    # --- publish ----------------------------------------------------------------------

    def _publish(self, told: Told) -> bytes:
        said: Dict[str, Any] = {"id": told.id, "seq": told.fields.get("seq")}
        try:
            said["task_id"] = self._accept(told)
        except Exception as exc:
            said["error"] = f"{type(exc).__name__}: {exc}"
        return encode_op("answer", said)

    def _accept(self, told: Told) -> str:
        _check(told.fields)
        if told.fields.get("when", "now") == "now":
            return self._send(told)
        self._kept_bytes += told.size
        if len(self._kept) >= MAX_KEPT or self._kept_bytes > self._max_kept:
            raise ValueError(
                f"a task may publish {MAX_KEPT} tasks, of {self._max_kept} bytes "
                "(linepool_max_line) in all, for when it succeeds"
            )
        options = told.fields.setdefault("options", {})
        self._kept.append(told)
        return str(options.setdefault("task_id", str(uuid.uuid4())))

    def _send(self, told: Told) -> str:
        fields = told.fields
        send = self._task.app.send_task
        name, args = fields["task"], fields.get("args") or []
        # PHP has no empty object but [].
        kwargs, options = fields.get("kwargs") or {}, fields.get("options") or {}
        result = self._aside(self._task, lambda: send(name, args, kwargs, **options))
        return str(result.id)


def _check(fields: Dict[str, Any]) -> None:
    """Refuse what cannot be sent, in words for the child."""
    name, options = fields.get("task"), fields.get("options") or {}
    if not isinstance(name, str) or not name:
        raise ValueError("publish needs the name of a task")
    if not isinstance(fields.get("args") or [], list):
        raise ValueError("args must be a list")
    if not isinstance(fields.get("kwargs") or {}, dict):
        raise ValueError("kwargs must be an object")
    if fields.get("when", "now") not in ("now", "success"):
        raise ValueError("when must be now or success")
    if not isinstance(options, dict):
        raise ValueError("options must be an object")
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise ValueError(f"options that are not known: {', '.join(unknown)}")
    fields["options"] = options
