"""The body of a message is what Celery would have read, whoever reads it."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message
from kombu.serialization import registry
from kombu.utils import json as kombus

from celery_linepool.body import (
    JSON,
    LONGEST,
    SPARSE,
    accepts_json,
    decoded,
    read_ahead,
    trace,
)
from celery_linepool.consumer import Strategies

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text()
    | st.dates()
    | st.uuids()
    | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def read(body: Any) -> Any:
    """What the tracer gets in the end."""
    args = decoded(("some.task", "id", {}, body, JSON, "utf-8", "more"))
    assert args[:3] == ("some.task", "id", {}) and args[5:] == ("utf-8", "more")
    return args[3] if args[4] is None else kombus.loads(args[3])


def message(
    body: Any, content_type: str = JSON, accept: Any = frozenset([JSON])
) -> Any:
    headers = {"id": "some id", "task": "some.task"}
    return Message(
        body, content_type=content_type, headers=headers, accept=accept, channel=None
    )


def same(one: Any, other: Any) -> bool:
    """Equal, also in their types; not a number is one, here."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


@given(st.lists(VALUES, max_size=4), st.booleans())
def test_it_is_read_as_kombu_reads_what_it_wrote(args: Any, text: bool) -> None:
    written = kombus.dumps([args, {}, {"callbacks": None}])
    body = written if text else written.encode()
    assert same(read(body), kombus.loads(body))
    ahead = message(body)
    read_ahead(ahead)
    assert same(ahead.payload, message(body).payload)


@pytest.mark.parametrize(
    "text",
    [
        '[[{"a": 1, "a": 2}], {}, {}]',
        "[[1e400, -1e400, 1e-400, -0, -0.0, 1E5, 0.1], {}, {}]",
        "[[NaN, Infinity, -Infinity], {}, {}]",
        "[[18446744073709551615, 18446744073709551616, -9223372036854775809], {}, {}]",
        "[[0.12345678901234567890123], {}, {}]",
        r'[["\ud83d\ude00", "\ud83d", "\u00fc"], {}, {}]',
        r'[[{"__type__": "date", "__value__": "2026-01-02"}], {}, {}]',
        r'[[{"\u005f_type__": "date", "__value__": "2026-01-02"}], {}, {}]',
        '[["ü", "\u2028", "\U0001f600"], {}, {}]',
        " [ [ ] , { } , { } ] \n",
        "[" * 100 + "]" * 100,
    ],
)
def test_and_what_others_write(text: str) -> None:
    assert same(read(text.encode()), kombus.loads(text.encode()))
    assert same(read(memoryview(text.encode())), kombus.loads(text.encode()))


@pytest.mark.parametrize(
    "body", [b"", b"[[], {}", b"\xff", b"[1] 2", "\ud800", None, 7, b"[" * 10**5]
)
def test_what_is_broken_is_left_to_celery(body: Any) -> None:
    args = ("some.task", "id", {}, body, JSON, "utf-8")
    assert decoded(args) is args


def is_left(body: bytes) -> bool:
    args = ("some.task", "id", {}, body, JSON, "utf-8")
    return decoded(args) is args


def test_so_is_what_is_long_unless_it_is_full_of_objects() -> None:
    for size, left in ((LONGEST - 20, False), (LONGEST + 1, True)):
        assert is_left(b'[["%s"], [], []]' % (b"x" * size)) == left
    for size, left in ((SPARSE // 8, False), (SPARSE * 8, True)):
        objects = [{"text": "x" * (size + number)} for number in range(200)]
        assert is_left(json.dumps([[objects], {}, {}]).encode()) == left


def test_so_is_what_has_letters_of_a_mark_escaped() -> None:
    for text in (r"\u005F", r"\u0074", r"\u0079", r"\u0070", r"\u0065", "__type__"):
        assert is_left(b'[["%s"], {}, {}]' % text.encode()), text
    # As kombu writes an accent, and what a terminal is told.
    assert not is_left(json.dumps([["\u00e9\u001b\u2028"], {}, {}]).encode())


def test_so_is_what_is_no_json() -> None:
    args = ("some.task", "id", {}, b"[]", "application/x-yaml", "utf-8")
    assert decoded(args) is args
    protocol_1 = ("some.task", "id", {}, ((), {}, {}), None, None)
    assert decoded(protocol_1) is protocol_1


def test_only_where_json_is_accepted_and_kombus_own() -> None:
    app = Celery(set_as_current=False)
    assert accepts_json(app.conf.accept_content)
    assert accepts_json(["application/json", "pickle"])
    assert not accepts_json(["pickle"])
    own = registry._decoders[JSON]
    registry._decoders[JSON] = json.loads
    try:
        assert not accepts_json(["json"])
    finally:
        registry._decoders[JSON] = own


def test_the_tracer_gets_the_rest_as_it_was() -> None:
    def tracer(*args: Any) -> Any:
        return args

    found = trace(tracer, "some.task", "id", {}, b"[[1], {}, {}]", JSON, "utf-8")
    assert found == ("some.task", "id", {}, [[1], {}, {}], None, "utf-8")


def test_a_message_is_read_before_celery_asks() -> None:
    asked = []

    def strategy(message: Any, body: Any, *args: Any) -> None:
        message.body = None  # nobody looks at it again
        asked.append(message.payload)

    app = Celery(set_as_current=False)
    consumer = SimpleNamespace(app=app, strategies={"some.task": strategy})
    read = Strategies(consumer, None)["some.task"]
    read(message(b"[[1], {}, {}]"), None)
    assert asked == [[[1], {}, {}]]
    # Of protocol 1 it is read already.
    read(message(b"[[1], {}, {}]"), {"id": "some id", "args": [2]})
    assert asked[1] is None
    app.conf.accept_content = ["yaml"]
    Strategies(consumer, None)["some.task"](message(b"[[1], {}, {}]"), None)
    assert asked[2] is None


def test_not_one_that_is_refused() -> None:
    for refused in (
        message(b"[[], {}, {}]", accept=frozenset(["application/x-yaml"])),
        message(b"[[], {}, {}]", content_type="application/x-python-serialize"),
    ):
        read_ahead(refused)
        with pytest.raises(ContentDisallowed):
            refused.payload  # noqa: B018
    read_ahead(broken := message(b"[[], {}"))
    with pytest.raises(DecodeError):
        broken.payload  # noqa: B018
