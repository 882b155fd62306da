"""The protocol against a small model of it, in histories that hypothesis invents.

The model reads no JSON: it is told what kind of line a child says, and says what has
to come of it. docs/protocol.md is where it has that from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from celery_linepool.errors import LocalProtocolError
from celery_linepool.messages import Event, Hello, Noise, Reply, Told
from celery_linepool.protocol import Connection, Handshake, State, Stray

pytestmark = pytest.mark.outer_celerys

IDS = ("a", "b", "c", "d")
MAX_LINE = 120


class Line(NamedTuple):
    """What a child says: the kind, and which request or how many it is about."""

    kind: str
    about: Any
    text: bytes


def hello(inflight: int) -> Line:
    text = b'{"op":"hello","protocol":2,"inflight":%d}' % inflight
    return Line("hello", inflight, text)


def reply(id_: str) -> Line:
    return Line("reply", id_, b'{"id":"%s","status":"ok"}' % id_.encode())


def cancelled(id_: str) -> Line:
    return Line("cancelled", id_, b'{"id":"%s","status":"cancelled"}' % id_.encode())


def half(id_: str) -> Line:
    return Line("half", id_, b'{"id":"%s","status":"ok","res' % id_.encode())


def progress(id_: str) -> Line:
    return Line("event", id_, b'{"op":"progress","id":"%s"}' % id_.encode())


LINES = st.one_of(
    st.integers(1, 4).map(hello),
    *(st.sampled_from(IDS).map(make) for make in (reply, cancelled, half, progress)),
    st.sampled_from(
        [
            Line("reply", None, b'{"status":"error","message":"no id"}'),
            Line("bad hello", None, b'{"op":"hello","protocol":3}'),
            Line("event", None, b'{"op":"log","message":"bored"}'),
            Line("unknown", None, b'{"op":"from the future","id":"a"}'),
            Line("nothing", None, b'{"severity":"INFO"}'),
            Line("noise", None, b"Loading config..."),
            Line("noise", None, b""),
            Line("noise", None, b"[1]"),
            Line("too long", None, b"x" * (MAX_LINE + 1)),
        ]
    ),
)


class Model:
    """What one connection owes to its two sides."""

    def __init__(self, handshake: Handshake, most: int, stray: Stray) -> None:
        self.handshake, self.most, self.stray = handshake, most, stray
        self.greeted: int | None = None
        self.replied = self.last_had_id = False
        self.requests: list[str] = []
        self.broken = self.closed = False
        #: What has been said and not been read: half a line at the most.
        self.rest: Line | None = None

    @property
    def may_greet(self) -> bool:
        never = self.handshake is Handshake.NONE or self.replied
        return not never and self.greeted is None

    @property
    def awaits_hello(self) -> bool:
        return self.handshake is Handshake.REQUIRED and self.greeted is None

    @property
    def usable(self) -> bool:
        return not (self.broken or self.closed or self.awaits_hello)

    @property
    def room(self) -> int:
        return 1 if self.greeted is None else min(self.most, self.greeted)

    @property
    def state(self) -> State:
        if self.closed or self.broken:
            return State.CLOSED if self.closed else State.BROKEN
        if self.awaits_hello:
            return State.STARTING
        return State.BUSY if self.requests else State.IDLE

    @property
    def mute(self) -> bool:
        """Nobody has asked it, and it cannot be a hello."""
        return self.greeted is None and not self.may_greet and not self.requests

    def hears(self, line: Line) -> Any:
        """What one whole line is; None if it counts for nothing."""
        if self.mute or line.kind == "too long":
            return self.violated()
        if line.kind == "hello" and self.may_greet:
            self.greeted = line.about
            return ("hello", line.about)
        if self.greeted is None:
            return self.hears_original(line)
        if line.kind == "event":
            known = line.about is None or line.about in self.requests
            return ("event", line.about) if known else None
        if line.kind in ("hello", "bad hello", "unknown"):
            return None
        if line.kind in ("reply", "cancelled") and line.about is not None:
            return self.replies(line.about)
        return self.no_protocol(line)

    def hears_original(self, line: Line) -> Any:
        if line.kind in ("noise", "half"):
            return self.no_protocol(line)
        if line.kind != "reply" or self.awaits_hello:
            return self.violated(line.about)
        if line.about is None and self.last_had_id:
            return self.violated()
        return self.replies(line.about)

    def replies(self, id_: str | None) -> Any:
        whose = self.requests[0] if id_ is None and self.requests else id_
        if whose not in self.requests:
            return self.violated()
        self.last_had_id, self.replied = id_ is not None, True
        self.requests.remove(whose)
        return ("reply", whose)

    def no_protocol(self, line: Line) -> Any:
        if line.kind == "half" and line.about in self.requests:
            return self.violated(line.about)
        may_chatter = self.greeted is not None or (
            self.may_greet and (not self.requests or self.stray is Stray.LOG)
        )
        if self.stray is Stray.STRICT or not may_chatter:
            return self.violated()
        return ("noise", line.text)

    def violated(self, id_: Any = None) -> Any:
        self.broken = True
        return ("violation", id_ if id_ in self.requests else None)

    def hears_all(self, lines: list[Line], cut: bool) -> Iterator[Any]:
        """What these lines are, the last one perhaps without its end."""
        for line in lines[: len(lines) - cut]:
            if not self.broken and (event := self.hears(line)) is not None:
                yield event
        if not self.broken and cut:
            self.rest = lines[-1]
            if self.mute or self.rest.kind == "too long":
                yield self.violated()


def seen(event: Event) -> Any:
    """An event as the model says it."""
    if isinstance(event, Hello):
        return ("hello", event.inflight)
    if isinstance(event, Told):
        return ("event", event.id)
    if isinstance(event, Noise):
        return ("noise", event.line)
    name = "reply" if isinstance(event, Reply) else "violation"
    return (name, event.id)


class Histories(RuleBasedStateMachine):
    """A worker that asks, and a child that says anything at all, in any pieces."""

    @initialize(
        handshake=st.sampled_from(Handshake),
        most=st.integers(1, 3),
        stray=st.sampled_from(Stray),
    )
    def begin(self, handshake: Handshake, most: int, stray: Stray) -> None:
        self.connection = Connection(MAX_LINE, handshake, most, stray)
        self.model = Model(handshake, most, stray)

    @rule(id_=st.sampled_from(IDS))
    def ask(self, id_: str) -> None:
        model = self.model
        full = len(model.requests) >= model.room
        if not model.usable or full or id_ in model.requests:
            with pytest.raises(LocalProtocolError):
                self.connection.request(id_)
        else:
            self.connection.request(id_)
            model.requests.append(id_)

    @precondition(lambda self: not self.model.closed)
    @rule(
        lines=st.lists(LINES, min_size=1, max_size=4), cut=st.booleans(), data=st.data()
    )
    def say(self, lines: list[Line], cut: bool, data: st.DataObject) -> None:
        said, model = b"\n".join(line.text for line in lines), self.model
        if model.rest is not None:
            # It goes on where it stopped: the end of that line comes first.
            lines, model.rest = [model.rest, *lines], None
            said = b"\n" + said
        if not cut or not lines[-1].text:
            said, cut = said + b"\n", False
        expected = list(model.hears_all(lines, cut))
        sizes = data.draw(st.lists(st.integers(1, len(said)), max_size=5), "pieces")
        found: list[Event] = []
        for size in [*sizes, len(said)]:
            piece, said = said[:size], said[size:]
            found += self.connection.receive(piece)
        assert [seen(event) for event in found] == expected

    @precondition(lambda self: not self.model.closed)
    @rule()
    def end(self) -> None:
        rest, self.model.closed = self.model.rest, True
        left = None if rest is None or self.model.broken else rest.text
        assert self.connection.receive_eof() == left

    @invariant()
    def agrees(self) -> None:
        connection, model = self.connection, self.model
        assert connection.state is model.state
        assert list(connection.requests) == model.requests
        assert connection.inflight == model.room
        assert connection.has_room == (
            model.usable and len(model.requests) < model.room
        )


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=25)
