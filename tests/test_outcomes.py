"""What each reply, and each loss, is to Celery: the table, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from workers import close_app

from celery_linepool.errors import Abandoned, ForeignError, RemoteProtocolError
from celery_linepool.job import Cause, Loss
from celery_linepool.messages import Reply, Status
from celery_linepool.outcomes import (
    LOSSES,
    REPLIES,
    THROTTLED_SECS,
    foreign_error,
    settle,
)
from celery_linepool.tasks import ForeignTask, register


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("outcomes", set_as_current=False, broker="memory://")
    yield app
    close_app(app)


def sent(app: Celery) -> list[dict[str, Any]]:
    """The messages that were sent: their headers."""
    found = []
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        while message := channel.basic_get("celery", no_ack=True):
            found.append(message.headers)
    return found


@pytest.fixture
def task(app: Celery) -> Iterator[ForeignTask]:
    """A task as a worker runs it: it may be sent again, to a broker in memory."""
    task = register(app, "billing.charge")
    task.push_request(
        id="id-1",
        args=[1],
        kwargs={"a": 2},
        retries=1,
        called_directly=False,
        is_eager=False,
        delivery_info={"exchange": "", "routing_key": "celery"},
    )
    yield task
    task.pop_request()
    # All apps of a process share one broker in memory.
    sent(app)


def reply(task: ForeignTask, status: Status, **fields: Any) -> Any:
    return settle(task, Reply("id-1", status, {"status": status.value, **fields}))


def test_the_tables_are_whole() -> None:
    assert set(REPLIES) == set(Status) - {Status.RESTART}
    assert set(LOSSES) == set(Cause)


# --- replies --------------------------------------------------------------------------


@pytest.mark.parametrize("result", [7, None, "", [], {}, {"a": [2**70]}, False])
def test_ok_is_its_result(task: ForeignTask, result: Any) -> None:
    assert reply(task, Status.OK, result=result) == result


def test_ok_without_a_result_is_none(task: ForeignTask) -> None:
    assert reply(task, Status.OK) is None


@pytest.mark.parametrize(
    "fields, text",
    [
        ({}, "the child gave no message"),
        ({"message": ""}, "the child gave no message"),
        ({"message": None, "type": None}, "the child gave no message"),
        ({"message": "boom"}, "boom"),
        ({"message": "boom", "type": "E"}, "E: boom"),
        ({"type": "E"}, "E: no message"),
        ({"message": {"a": [1]}}, '{"a":[1]}'),
        ({"message": False}, "false"),
        ({"message": "m", "backtrace": ["x", "y"]}, "m\nForeign backtrace:\n    x"),
        ({"message": "m", "backtrace": "x\ny"}, "m\nForeign backtrace:\n    x\n    y"),
        (
            {"message": "m", "backtrace": [1, None, {"f": 2}]},
            '    1\n    \n    {"f":2}',
        ),
        ({"message": "m", "backtrace": 7}, "m"),
        ({"message": "m", "retry": False}, "m"),
        ({"message": "m", "retry": "yes"}, "m"),
    ],
)
def test_an_error_is_a_foreign_error(
    task: ForeignTask, app: Celery, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(ForeignError) as caught:
        reply(task, Status.ERROR, **fields)
    assert text in str(caught.value)
    assert sent(app) == []


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [2**70, {"n": -(2**70)}, deep(300), deep(600)])
@pytest.mark.parametrize("field", ["message", "type"])
def test_a_message_may_be_any_json(task: ForeignTask, field: str, value: Any) -> None:
    """Whatever a reply may hold, the failure is the child's, never one of ours."""
    with pytest.raises(ForeignError):
        reply(task, Status.ERROR, **{field: value, "backtrace": [value]})


def test_an_error_that_wants_a_retry_is_one(task: ForeignTask, app: Celery) -> None:
    with pytest.raises(Retry) as caught:
        reply(task, Status.ERROR, message="m", type="E", retry=True, retry_after_secs=5)
    assert caught.value.when == 5
    assert str(caught.value.exc) == "E: m"
    [headers] = sent(app)
    assert (headers["id"], headers["retries"]) == ("id-1", 2)


def test_a_retry_counts(task: ForeignTask, app: Celery) -> None:
    with pytest.raises(Retry) as caught:
        reply(task, Status.RETRY, retry_after_secs=0, message="not yet")
    assert caught.value.when == 0
    [headers] = sent(app)
    assert headers["retries"] == 2


def test_a_retry_without_a_time_takes_the_tasks_own(task: ForeignTask) -> None:
    task.default_retry_delay = 17
    with pytest.raises(Retry) as caught:
        reply(task, Status.RETRY)
    assert caught.value.when == 17


def test_the_last_retry_fails_with_the_childs_error(
    task: ForeignTask, app: Celery
) -> None:
    task.max_retries = 1
    with pytest.raises(ForeignError, match="E: m"):
        reply(task, Status.RETRY, message="m", type="E")
    with pytest.raises(MaxRetriesExceededError):
        reply(task, Status.RETRY)
    assert sent(app) == []


def test_throttled_uses_up_no_retry(task: ForeignTask, app: Celery) -> None:
    task.max_retries = 1
    for after, expected in ((None, THROTTLED_SECS), (0, 0), (2.5, 2.5)):
        with pytest.raises(Retry) as caught:
            reply(task, Status.THROTTLED, retry_after_secs=after)
        assert caught.value.when == expected
        [headers] = sent(app)
        assert (headers["id"], headers["retries"]) == ("id-1", 1)
        assert (headers["eta"] is not None) == bool(expected)


def test_throttled_says_why(task: ForeignTask) -> None:
    with pytest.raises(Retry, match="api limit; again in 3 s"):
        reply(task, Status.THROTTLED, retry_after_secs=3, message="api limit")


@pytest.mark.parametrize(
    "fields, requeue",
    [({}, False), ({"requeue": False}, False), ({"requeue": True}, True)],
)
def test_rejected(task: ForeignTask, fields: dict[str, Any], requeue: bool) -> None:
    with pytest.raises(Reject) as caught:
        reply(task, Status.REJECTED, **fields)
    assert caught.value.requeue is requeue
    assert caught.value.reason == "rejected by the child"


@pytest.mark.parametrize("requeue", [1, "true", None, []])
def test_only_true_is_true(task: ForeignTask, requeue: Any) -> None:
    """A message that is requeued for ever by mistake stops the queue."""
    with pytest.raises(Reject) as caught:
        reply(task, Status.REJECTED, requeue=requeue, message="broken")
    assert caught.value.requeue is False
    assert caught.value.reason == "broken"


def test_ignored(task: ForeignTask) -> None:
    with pytest.raises(Ignore, match="ignored by the child"):
        reply(task, Status.IGNORED)
    with pytest.raises(Ignore, match="nothing to do"):
        reply(task, Status.IGNORED, message="nothing to do")


def test_a_reply_that_names_no_error_has_none() -> None:
    assert foreign_error({"status": "retry"}) is None


# --- losses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss, expected, text",
    [
        (Loss(Cause.DIED, "it died"), WorkerLostError, "it died"),
        (
            Loss(Cause.DIED, "it died", tail=["last words"]),
            WorkerLostError,
            "last words",
        ),
        (Loss(Cause.LIMIT, "too long", 30), TimeLimitExceeded, "too long"),
        (Loss(Cause.TERMINATED, "by signal 15", 15), Terminated, "15"),
    ],
)
def test_a_loss_leaves_celerys_tracer(
    task: ForeignTask, loss: Loss, expected: type, text: str
) -> None:
    with pytest.raises(Abandoned) as caught:
        settle(task, loss)
    assert type(caught.value.reason) is expected
    assert text in str(caught.value.reason)


def test_a_violation_is_the_tasks_failure(task: ForeignTask) -> None:
    with pytest.raises(RemoteProtocolError, match="it said b'x'"):
        settle(task, Loss(Cause.VIOLATION, "it said b'x'"))
