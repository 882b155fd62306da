"""What anybody may put into the queue costs that message, and nothing beside it."""

from __future__ import annotations

import json
import os
import pickle
import sys
import uuid
from pathlib import Path

import pytest
from workers import eventually

CHILDREN = Path(__file__).parent / "children"
ECHO = ["node", str(CHILDREN / "seen.js")]
LOUD = [sys.executable, str(CHILDREN / "fails_loudly.py")]
#: Bytes of the largest argument, and what a line may have.
BODY = int(os.environ.get("LINEPOOL_BODY", 10_000_000))
MAX_LINE = max(BODY, 1 << 24) + 1000


class Message:
    """A message as one might write it who means no good, or knows no better.

    Arguments:
        body: bytes as they are, or a value as JSON.
        type: its content type.
        headers: those that differ from the headers of a good message.
    """

    def __init__(self, body=b"[[], {}, {}]", type="application/json", **headers):
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.type = type
        self.headers = {"task": "any", "id": str(uuid.uuid4()), **headers}
        self.id = self.headers["id"]

    def publish(self, worker):
        connection = worker.app.connection_for_write()
        with connection, connection.Producer() as producer:
            producer.publish(
                self.body,
                routing_key=worker.queue,
                headers=self.headers,
                content_type=self.type,
                content_encoding="utf-8",
            )


class First(Message):
    """The same in Celery's first message protocol, which has no headers."""

    def __init__(self, **fields):
        body = {"task": "any", "id": str(uuid.uuid4()), "args": [], "kwargs": {}}
        super().__init__({**body, **fields})
        self.headers, self.id = {}, {**body, **fields}["id"]


def nested(depth):
    return b"[[" + b"[" * depth + b"]" * depth + b"], {}, {}]"


#: Names and ids.
TEXTS = [
    "".join(map(chr, range(32))) + "\x7f\x9b",
    'one\ntwo\r\n{"id": 1}\n',
    "a\u2028b\u2029c\x85d",
    "../../../etc/passwd",
    "$(touch owned); `touch owned` | touch owned & > owned '\"",
    "\x1b]0;owned\x07\x1b[31m",
    "x" * 10_000,
]
#: What is neither a text nor a number, a list or an object, where that was expected.
WRONG = ["nonsense", -1, [1], {"a": [1]}]

SERVED = [
    Message(nested(500)),
    Message(b'[[], {"a": 1, "a": 2}, {}]'),
    Message([["x" * BODY], {}, {}]),
    First(),
    *[Message(id=text + str(uuid.uuid4())) for text in TEXTS],
    *[Message(task=text) for text in TEXTS],
    *[
        Message(**{header: value})
        for header in ("retries", "root_id", "headers", "linepool_crashes", "lang")
        for value in WRONG
    ],
    *[
        Message(**{header: value})
        for header in ("origin", "argsrepr", "reply_to", "traceparent", "baggage")
        for value in WRONG
    ],
]
FAILED = [
    Message(b"[[1e999], {}, {}]"),
    Message(b"[[NaN], {}, {}]"),
    Message(b'[["\\ud800"], {}, {}]'),
    Message([5, {}, {}]),
    First(args=5),
    Message(task=""),
    Message([[], {}, {"callbacks": 5, "errbacks": 5, "chain": 5, "chord": 5}]),
    Message([["x" * (MAX_LINE + 1)], {}, {}]),
]
REFUSED = [
    Message(b"[" * 100_000),
    Message(nested(100_000)),
    Message(b"[[" + b"9" * 100_000 + b"], {}, {}]"),
    Message(b"\x00\xff{"),
    Message(b""),
    Message(b"5"),
    Message({"a": 1}),
    Message([[], [1], {}]),
    Message(pickle.dumps([[], {}, {}]), type="application/x-python-serialize"),
    Message(type="application/x-yaml"),
    Message(type="application/nonsense"),
    Message(type=None),
    First(kwargs=5),
    *[Message(id=value) for value in (5, None, ["a"], {})],
    *[First(id=value) for value in (5, None, ["a"], {})],
    *[Message(timelimit=value) for value in WRONG],
    *[Message(eta=value) for value in WRONG],
    *[Message(expires=value) for value in WRONG],
]
#: Tasks that nobody can know.
UNKNOWN = [Message(task=value) for value in (5, None, ["a"], {})]

#: What Celery says of them; the last is of its tracer.
LOGGED = (
    "Received invalid task message|Can't decode message body|Received unregistered"
    "|Exception raised outside body"
)


def pool_of(worker):
    return worker.inspect("stats")["pool"]["pools"]["default"]


def pids_of(worker):
    return {child["pid"] for child in pool_of(worker)["children"]}


@pytest.fixture
def worker(start_worker):
    worker = start_worker(
        command=ECHO,
        args=("-c", "2"),
        conf={"linepool_max_line": MAX_LINE},
    )
    children = pids_of(worker)
    yield worker
    # Nobody had to be replaced for it, and nothing of it is left.
    assert pids_of(worker) == children
    eventually(lambda: worker.inspect("active") == [])
    assert worker.queue_size() == 0
    assert "a bug in the engine" not in worker.log
    assert not list(worker.project.folder.rglob("owned*"))


def test_strange_messages_are_served(worker):
    for message in SERVED:
        message.publish(worker)
        found = worker.result(worker.app.AsyncResult(message.id))
        assert found["task"] == message.headers.get("task", "any")
        assert worker.call("good")["task"] == "good"


def test_a_task_that_cannot_be_run_fails_alone(worker):
    for message in FAILED:
        message.publish(worker)
        result = worker.app.AsyncResult(message.id)
        worker.result(result, propagate=False)
        assert result.state == "FAILURE", message.body[:100]
        assert worker.call("good")["task"] == "good"


def test_a_message_that_cannot_be_read_is_refused_alone(worker):
    for message in REFUSED + UNKNOWN:
        seen = len(worker.log)
        message.publish(worker)
        assert worker.call("good")["task"] == "good"
        worker.wait_for_log(LOGGED, after=seen)


def test_nothing_of_a_message_reaches_a_command_or_an_environment(start_worker):
    worker = start_worker(command=LOUD, args=("-c", "1"))
    mark = "MARK" + uuid.uuid4().hex
    extra = {"id": mark, "origin": mark, "lang": mark, "headers": {mark: mark}}
    for name in ("env", mark):
        message = Message([[mark, f"{mark}=1"], {mark: mark}, {}], task=name, **extra)
        message.publish(worker)
    assert worker.call("env")["args"] == LOUD[1:]
    assert mark not in json.dumps(worker.call("env"))
    for process in worker.children():
        assert mark not in json.dumps([process.cmdline(), process.environ()])


def test_what_a_child_says_cannot_steer_a_terminal(start_worker):
    worker = start_worker(command=LOUD, args=("-c", "1"))
    for status in ("error", "retry", "throttled", "rejected", "what"):
        seen = len(worker.log)
        worker.send(status)
        worker.wait_for_log(rf"Task {status}\[.*owned|owned.*{status}\[", after=seen)
    controls = {c for c in worker.log if not c.isprintable() and c not in "\n\t"}
    assert controls == set()
