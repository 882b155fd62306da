"""What a child says, invented by a fuzzer that sees which code it reaches.

    python tests/fuzz/lines.py -runs=100000 tests/fuzz/corpus

`tox -e fuzz` runs it. The first byte of an input chooses who listens, the second how
much is read at a time; the rest is what the child says. An input that fails is printed
and kept, and `python tests/fuzz/lines.py FILE` runs it again.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["celery_linepool"]):
    from celery_linepool.errors import RemoteProtocolError
    from celery_linepool.messages import (
        Event,
        Hello,
        Noise,
        Reply,
        Status,
        Told,
        Violation,
        parse_object,
    )
    from celery_linepool.protocol import Connection, Handshake, State, Stray

MAX_LINE = 512
ASKED = ("1", "2", "3")
LISTENERS = [(shake, stray) for shake in Handshake for stray in Stray]


def listener(number: int) -> Connection:
    handshake, stray = LISTENERS[number % len(LISTENERS)]
    connection = Connection(MAX_LINE, handshake, inflight=3, stray=stray)
    ask(connection)
    return connection


def ask(connection: Connection) -> None:
    """As many requests as it may have."""
    for id_ in ASKED:
        if connection.has_room and id_ not in connection.requests:
            connection.request(id_)


def hear(connection: Connection, said: bytes, size: int) -> list[Event]:
    """All of it, in pieces of a size; asked again only between such conversations."""
    events: list[Event] = []
    for start in range(0, len(said), size):
        events += connection.receive(said[start : start + size])
    return events


def shown(event: Event) -> tuple[Any, ...]:
    """An event so that two of them can be compared."""
    fields = [getattr(event, name) for name in type(event).__slots__]
    if isinstance(event, Violation):
        # What was behind the violation depends on how much had been read.
        fields = [event.reason, event.id]
    return (type(event).__name__, *map(repr, fields))


def check_events(connection: Connection, events: list[Event]) -> None:
    for event in events:
        assert isinstance(event, (Hello, Told, Noise, Reply, Violation)), event
        if isinstance(event, Reply):
            assert event.id in ASKED and isinstance(event.status, Status)
    violations = [event for event in events if isinstance(event, Violation)]
    assert violations == (events[-1:] if violations else [])
    assert bool(violations) == (connection.state is State.BROKEN)
    answered = [event.id for event in events if isinstance(event, Reply)]
    assert not set(answered) & set(connection.requests), "answered, and still open"
    assert len(answered) == len(set(answered)), "answered twice"
    assert len(connection.requests) <= connection.inflight


def check_against_json(line: bytes) -> None:
    """What is read as an object is what the standard library reads."""
    try:
        fields = parse_object(line)
    except RemoteProtocolError:
        return
    try:
        again = json.loads(line)
    except RecursionError:
        return
    # Halves of characters become U+FFFD with us.
    if "\\ud" not in line.decode("utf-8", "replace").lower():
        assert repr(fields) == repr(again), (fields, again)


def one_input(data: bytes) -> None:
    who, size, said = data[:1], data[1:2], data[2:]
    number, step = (who or b"\0")[0], max(1, (size or b"\1")[0])
    whole, pieces = listener(number), listener(number)
    events = hear(whole, said, len(said) or 1)
    assert [*map(shown, events)] == [*map(shown, hear(pieces, said, step))]
    assert whole.state is pieces.state
    for connection in (whole, pieces):
        check_events(connection, events)
    for line in said.split(b"\n"):
        check_against_json(line)
    if whole.state is not State.BROKEN:
        whole.receive_eof()
        assert whole.state is State.CLOSED


def reported(data: bytes) -> None:
    """The input of a failure, in words, before the fuzzer's own report."""
    try:
        one_input(data)
    except Exception:
        print(f"\nFAILED with the input {data!r}", file=sys.stderr, flush=True)
        raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, reported)
    atheris.Fuzz()
