"""What a reply, or its loss, is to Celery: a value, or an exception that it knows.

`settle` runs inside the task, under Celery's tracer, which does the rest. What ends a
process under prefork leaves the tracer instead (`Abandoned`), so that Celery's
``Request`` settles it in the same way and at the same place.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional

from billiard.exceptions import (
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.exceptions import Ignore, Reject, Retry

from .errors import Abandoned, ForeignError, RemoteProtocolError, escaped
from .job import Answer, Cause, Loss
from .messages import Reply, Status

if TYPE_CHECKING:
    from .tasks import ForeignTask

#: Seconds until a throttled task runs again if its child names none: the usual window
#: of a rate limit.
THROTTLED_SECS = 60

Fields = Dict[str, Any]


def settle(task: "ForeignTask", answer: Answer) -> Any:
    """The task's value; raises whatever Celery should make of it instead."""
    if isinstance(answer, Reply):
        return REPLIES[answer.status](task, answer.fields)
    raise LOSSES[answer.cause](answer)


# --- replies --------------------------------------------------------------------------


def _ok(task: "ForeignTask", fields: Fields) -> Any:
    return fields.get("result")


def _error(task: "ForeignTask", fields: Fields) -> Any:
    error = foreign_error(fields) or ForeignError("the child gave no message")
    if fields.get("retry") is True:
        raise task.retry_later(error, fields.get("retry_after_secs"))
    raise error


def _throttled(task: "ForeignTask", fields: Fields) -> Any:
    after = fields.get("retry_after_secs")
    seconds = THROTTLED_SECS if after is None else after
    raise task.run_again(seconds, _for_the_log(fields) or "throttled")


def _retry(task: "ForeignTask", fields: Fields) -> Any:
    raise task.retry_later(foreign_error(fields), fields.get("retry_after_secs"))


def _rejected(task: "ForeignTask", fields: Fields) -> Any:
    reason = _for_the_log(fields) or "rejected by the child"
    raise Reject(reason, requeue=fields.get("requeue") is True)


def _ignored(task: "ForeignTask", fields: Fields) -> Any:
    raise Ignore(_for_the_log(fields) or "ignored by the child")


def _cancelled(task: "ForeignTask", fields: Fields) -> Any:
    # Those that we asked to give up do not come here.
    raise ForeignError("the child says that it was cancelled, which nobody did")


REPLIES: Mapping[Status, Callable[["ForeignTask", Fields], Any]] = {
    Status.OK: _ok,
    Status.ERROR: _error,
    Status.THROTTLED: _throttled,
    Status.RETRY: _retry,
    Status.REJECTED: _rejected,
    Status.IGNORED: _ignored,
    Status.CANCELLED: _cancelled,
}
assert set(REPLIES) == set(Status) - {Status.RESTART}  # which another child gets


def foreign_error(fields: Fields) -> Optional[ForeignError]:
    """The error that a reply speaks of; None if it names neither message nor class."""
    message, type_ = _text(fields.get("message")), _text(fields.get("type"))
    if message is None and type_ is None:
        return None
    return ForeignError(message or "no message", type_, _lines(fields.get("backtrace")))


def _for_the_log(fields: Fields) -> str:
    """Its message, where Celery logs it as it is."""
    return escaped(_text(fields.get("message")) or "")


def _text(value: Any) -> Optional[str]:
    """Text as the child meant it, whatever JSON it used."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return "(nested too deeply to be shown)"


def _lines(value: Any) -> List[str]:
    if isinstance(value, str):
        return value.splitlines()
    if isinstance(value, list):
        return [_text(item) or "" for item in value]
    return []


# --- losses ---------------------------------------------------------------------------


def _died(loss: Loss) -> BaseException:
    return Abandoned(WorkerLostError(str(loss)))


def _sibling(loss: Loss) -> BaseException:
    return Abandoned(WorkerLostError(str(loss)), innocent=True)


def _unread(loss: Loss) -> BaseException:
    return Abandoned(WorkerLostError(str(loss)), innocent=True, unread=True)


def _soft_limit(loss: Loss) -> BaseException:
    limit: BaseException = SoftTimeLimitExceeded(loss.number)
    return limit


def _violation(loss: Loss) -> BaseException:
    return RemoteProtocolError(str(loss))


def _limit(loss: Loss) -> BaseException:
    return Abandoned(TimeLimitExceeded(str(loss)))


def _terminated(loss: Loss) -> BaseException:
    return Abandoned(Terminated(int(loss.number)))


LOSSES: Mapping[Cause, Callable[[Loss], BaseException]] = {
    Cause.DIED: _died,
    Cause.VIOLATION: _violation,
    Cause.LIMIT: _limit,
    Cause.TERMINATED: _terminated,
    Cause.MEMORY: _died,
    Cause.SIBLING: _sibling,
    Cause.SOFT_LIMIT: _soft_limit,
    Cause.UNREAD: _unread,
}

__all__ = ("LOSSES", "REPLIES", "Retry", "foreign_error", "settle")
