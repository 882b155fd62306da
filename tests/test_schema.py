"""docs/protocol.schema.json: what is a line is valid, and what is none is not."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from typing import Any, Iterator, List, Tuple

import pytest
from jsonschema import Draft202012Validator
from sdk_driver import Line
from transcripts import SCHEMA, TRANSCRIPTS, Transcript, encode, fill, validator

from celery_linepool.encoding import encode_op, encode_request
from celery_linepool.messages import Op, Status, hello_of, reply_of, told_of

pytestmark = pytest.mark.newest_celery


def is_valid(definition: str, line: Any) -> bool:
    return bool(validator(definition).is_valid(line))


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("name", SCHEMA["$defs"])
def test_every_definition_says_what_it_is(name: str) -> None:
    assert SCHEMA["$defs"][name]["title"]
    assert SCHEMA["$defs"][name]["description"]


def test_every_line_that_we_read_is_defined() -> None:
    said = {*(status.value for status in Status), *(op.value for op in Op), "hello"}
    assert said <= set(SCHEMA["$defs"])


# --- lines ----------------------------------------------------------------------------


def lines_of(transcript: Transcript) -> Iterator[Tuple[str, Line]]:
    """Each line, with the definition that it is of."""
    names: Line = {}
    for step in transcript.steps:
        [(kind, value)] = step.items()
        if kind == "down":
            yield "down", json.loads(encode(fill(value, names)))
        elif kind == "any_order":
            yield from ((transcript.up, fill(line, names)) for line in value)
        elif kind == "up" or isinstance(value, dict):
            yield transcript.up, fill(value, names)


@pytest.mark.parametrize(
    "transcript", [pytest.param(each, id=each.name) for each in TRANSCRIPTS]
)
def test_every_line_of_the_transcripts_is_valid(transcript: Transcript) -> None:
    lines = list(lines_of(transcript))
    assert lines
    for definition, line in lines:
        validator(definition).validate(line)
        Draft202012Validator(SCHEMA).validate(line)


PAYLOAD = {"task": "t", "args": [], "kwargs": {}, "meta": {}}

#: (the definition, a line of it)
GOOD: List[Tuple[str, Any]] = [
    ("down", {"id": "", "payload": PAYLOAD}),
    ("down", {"id": "1", "payload": {**PAYLOAD, "later": 1}, "later": 1}),
    ("down", {"op": "ping"}),
    ("down", {"op": "cancel", "id": "1", "reason": "a later reason"}),
    ("down", {"op": "answer", "id": "1", "seq": 1, "error": "no broker", "later": 1}),
    ("down", {"op": "later"}),
    ("up", {"op": "hello", "protocol": 2}),
    ("up", {"op": "hello", "protocol": 2, "inflight": 9, "tasks": ["a"], "later": 1}),
    ("up", {"op": "log", "level": "debug", "message": ""}),
    ("up", {"op": "publish", "id": "1", "seq": 0.5, "task": "t"}),
    ("up", {"op": "publish", "id": "1", "seq": 1, "task": "t", "kwargs": []}),
    ("up", {"op": "pong"}),
    ("up", {"op": "later", "level": 1}),
    ("up", {"id": "1", "status": "ok"}),
    ("up", {"id": "1", "status": "ok", "result": None, "later": 1}),
    ("up", {"id": "1", "status": "error"}),
    ("up", {"id": "1", "status": "error", "retry": True, "retry_after_secs": 0.5}),
    ("up", {"id": "1", "status": "throttled"}),
    ("up", {"id": "1", "status": "retry", "retry_after_secs": None, "message": ""}),
    ("up", {"id": "1", "status": "cancelled"}),
    ("up", {"id": "1", "status": "restart"}),
    ("original_up", {"status": "ok"}),
    ("original_up", {"id": "1", "status": "rejected", "requeue": True}),
]


@pytest.mark.parametrize("definition, line", GOOD)
def test_what_is_a_line(definition: str, line: Any) -> None:
    assert is_valid(definition, line)


#: (the definition, what is no line of it)
BROKEN: List[Tuple[str, Any]] = [
    ("down", []),
    ("down", {}),
    ("down", {"payload": PAYLOAD}),
    ("down", {"id": 1, "payload": PAYLOAD}),
    ("down", {"id": "1"}),
    ("down", {"id": "1", "payload": {**PAYLOAD, "task": 1}}),
    ("down", {"id": "1", "payload": {**PAYLOAD, "args": {}}}),
    ("down", {"id": "1", "payload": {**PAYLOAD, "kwargs": []}}),
    ("down", {"id": "1", "payload": {**PAYLOAD, "meta": {"retries": -1}}}),
    ("down", {"id": "1", "payload": {**PAYLOAD, "meta": {"deadline": "soon"}}}),
    ("down", {"op": "cancel", "reason": "revoked"}),
    ("down", {"op": "cancel", "id": "1"}),
    ("down", {"op": "cancel", "id": "1", "reason": None}),
    ("down", {"op": "ping", "seq": "1"}),
    ("down", {"op": "answer", "id": "1", "seq": 1}),
    ("down", {"op": "answer", "id": "1", "seq": 1, "task_id": "a", "error": "b"}),
    ("down", {"op": "answer", "id": "1", "task_id": "a"}),
    ("down", {"op": 1}),
    ("request", {"op": "later", "id": "1", "payload": PAYLOAD}),
    ("up", "text"),
    ("up", {}),
    ("up", {"id": "1"}),
    ("up", {"status": "ok"}),
    ("up", {"id": None, "status": "ok"}),
    ("up", {"id": 1, "status": "ok"}),
    ("up", {"id": "1", "status": "done"}),
    ("up", {"id": "1", "status": ["ok"]}),
    ("up", {"id": "1", "status": "error", "message": {}}),
    ("up", {"id": "1", "status": "error", "backtrace": "one line"}),
    ("up", {"id": "1", "status": "error", "retry": 1}),
    ("up", {"id": "1", "status": "throttled", "retry_after_secs": -1}),
    ("up", {"id": "1", "status": "throttled", "retry_after_secs": "60"}),
    ("up", {"id": "1", "status": "retry", "retry_after_secs": 1e9}),
    ("up", {"id": "1", "status": "rejected", "requeue": "yes"}),
    ("up", {"op": "hello"}),
    ("up", {"op": "hello", "protocol": 1}),
    ("up", {"op": "hello", "protocol": 2, "inflight": 0}),
    ("up", {"op": "hello", "protocol": 2, "inflight": True}),
    ("up", {"op": "hello", "protocol": 2, "tasks": "a"}),
    ("up", {"op": "hello", "protocol": 2, "features": [1]}),
    ("up", {"op": "progress", "meta": {}}),
    ("up", {"op": "progress", "id": "1"}),
    ("up", {"op": "progress", "id": "1", "meta": 1}),
    ("up", {"op": "log", "level": "loud", "message": ""}),
    ("up", {"op": "log", "level": "info"}),
    ("up", {"op": "publish", "id": "1", "task": "t"}),
    ("up", {"op": "publish", "id": "1", "seq": 1}),
    ("up", {"op": "publish", "id": "1", "seq": 1, "task": "t", "args": {}}),
    ("up", {"op": "publish", "id": "1", "seq": 1, "task": "t", "kwargs": [1]}),
    ("up", {"op": "publish", "id": "1", "seq": 1, "task": "t", "when": "later"}),
    ("original_up", {"op": "hello", "protocol": 2}),
    ("original_up", {"op": "log", "level": "info", "message": ""}),
    ("original_up", {"id": "1", "status": "cancelled"}),
    ("original_up", {"id": "1", "status": "restart"}),
]


@pytest.mark.parametrize("definition, line", BROKEN)
def test_what_is_no_line(definition: str, line: Any) -> None:
    assert not is_valid(definition, line)


# --- our own side ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [line for definition, line in GOOD if definition == "up"]
)
def test_what_is_valid_is_read(line: Line) -> None:
    if line.get("op") == "hello":
        assert hello_of(line)
    elif "op" in line:
        assert told_of(line) or line["op"] not in [op.value for op in Op]
    else:
        assert reply_of(line, greeted=True)


@pytest.mark.parametrize(
    "args",
    [
        [],
        [None, True, 1.5, 2**80, "\u2028", {"a": {}}],
        [datetime.datetime(2026, 11, 21), uuid.uuid4(), decimal.Decimal(1), b"bytes"],
    ],
)
def test_what_we_write_is_valid(args: List[Any]) -> None:
    meta = {"retries": 0, "max_retries": None, "queue": "q", "deadline": 1.5}
    payload = {"task": "t", "args": args, "kwargs": {"a": args}, "meta": meta}
    validator("request").validate(json.loads(encode_request("an id", payload)))


@pytest.mark.parametrize(
    "op, fields",
    [
        ("cancel", {"id": "1", "reason": "soft_time_limit"}),
        ("ping", {"seq": 1}),
        ("stop", {}),
        ("answer", {"id": "1", "seq": 1, "task_id": "2"}),
    ],
)
def test_what_else_we_write_is_valid(op: str, fields: Line) -> None:
    line = json.loads(encode_op(op, fields))
    validator(op).validate(line)
    validator("down").validate(line)
