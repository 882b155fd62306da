"""Up the wire, without any I/O: bytes to replies and events, and who may speak.

This file knows no process, thread, clock or Celery. Everything that decides whether
a line is the protocol lives here; docs/protocol.md says the same in words.

Theory of operation: a request makes the connection BUSY, the reply to the last one in
flight makes it IDLE again. A child of the original protocol is asked one thing at a
time, and whatever else it says makes the connection BROKEN: nobody could tell which
task its next line belongs to, so a broken connection is never used again. A child that
said hello may be asked more at once, may speak of a request before it replies, and may
be talkative: what is no JSON object is noise.
"""

from __future__ import annotations

import enum
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .errors import LocalProtocolError, RemoteProtocolError
from .messages import (
    MAX_LINE,
    Event,
    Hello,
    Noise,
    Told,
    Violation,
    hello_of,
    parse_object,
    reply_of,
    told_of,
)


class Handshake(enum.Enum):
    """Whether a child says hello."""

    #: It may, as its first line, also while it has a request already.
    AUTO = "auto"
    #: It must, before it has any.
    REQUIRED = "required"
    #: It must not: the original protocol.
    NONE = "none"


class Stray(enum.Enum):
    """What becomes of a line that is no JSON object."""

    #: Noise after a hello, and before one as long as nothing has been asked.
    AUTO = "auto"
    #: Always a violation, as in the original protocol.
    STRICT = "strict"
    #: Noise until a child has shown by its first reply that it says no hello.
    LOG = "log"


class State(enum.Enum):
    """What a connection may do next."""

    #: Enum's own is a call in Python, and a move makes several.
    __hash__ = object.__hash__

    #: Its hello is waited for.
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    BROKEN = "broken"
    CLOSED = "closed"


class Move(enum.Enum):
    """What can happen to a connection."""

    __hash__ = object.__hash__

    HELLO = "hello"
    REQUEST = "request"
    #: While other requests are in flight.
    REPLY = "reply"
    LAST_REPLY = "last reply"
    VIOLATION = "violation"
    EOF = "eof"


#: The whole state machine. A move that is missing is illegal and raises. After a
#: violation the child is being killed: what it still says is not read any more.
MOVES: Mapping[State, Mapping[Move, State]] = {
    State.STARTING: {
        Move.HELLO: State.IDLE,
        Move.VIOLATION: State.BROKEN,
        Move.EOF: State.CLOSED,
    },
    State.IDLE: {
        Move.HELLO: State.IDLE,
        Move.REQUEST: State.BUSY,
        Move.VIOLATION: State.BROKEN,
        Move.EOF: State.CLOSED,
    },
    State.BUSY: {
        Move.HELLO: State.BUSY,
        Move.REQUEST: State.BUSY,
        Move.REPLY: State.BUSY,
        Move.LAST_REPLY: State.IDLE,
        Move.VIOLATION: State.BROKEN,
        Move.EOF: State.CLOSED,
    },
    State.BROKEN: {Move.EOF: State.CLOSED},
    State.CLOSED: {},
}


class Connection:
    """What has been said to one child and by it.

    Arguments:
        max_line: longest line in bytes that is accepted.
        inflight: requests that it may have at once, if its hello says as much.
        stray: what a line is that is no JSON object.
    """

    def __init__(
        self,
        max_line: int = MAX_LINE,
        handshake: Handshake = Handshake.NONE,
        inflight: int = 1,
        stray: Stray = Stray.AUTO,
    ) -> None:
        required = handshake is Handshake.REQUIRED
        self.state = State.STARTING if required else State.IDLE
        #: What it said of itself; None for a child of the original protocol.
        self.hello: Optional[Hello] = None
        #: Requests that it has not replied to, the oldest first: the id, and how many
        #: bytes were written before it.
        self.requests: Dict[str, int] = {}
        #: Requests that it may have at once.
        self.inflight = 1
        self._may_greet = handshake is not Handshake.NONE
        #: It has replied with an id: then a reply without one is not its own.
        self._says_ids = False
        self._max_line = max_line
        self._most = inflight
        self._stray = stray
        self._buffer = bytearray()
        self._searched = 0

    @property
    def has_room(self) -> bool:
        """Whether it may be asked."""
        return (
            self.state in (State.IDLE, State.BUSY)
            and len(self.requests) < self.inflight
        )

    def move(self, move: Move) -> None:
        """Go where `MOVES` says; `LocalProtocolError` where it says nothing."""
        try:
            self.state = MOVES[self.state][move]
        except KeyError:
            raise LocalProtocolError(
                f"{move.value} is not legal while {self.state.value}"
            ) from None

    def request(self, request_id: str, before: int = 0) -> None:
        """A request with this id is being written, after so many other bytes."""
        if self.state is State.BUSY and not self.has_room:
            raise LocalProtocolError(f"a request more than inflight = {self.inflight}")
        if request_id in self.requests:
            raise LocalProtocolError("a request with the id of one in flight")
        self.move(Move.REQUEST)
        self.requests[request_id] = before

    def receive(self, data: bytes) -> List[Event]:
        """Bytes that the child said; the events in them, and at most one violation.

        A violation is the last event: nothing behind it is looked at.
        """
        events: List[Event] = []
        if self.state is State.BROKEN:
            return events
        self._buffer += data
        while self._buffer:
            event, more = self._next_event()
            if event is not None:
                events.append(event)
            if not more:
                break
        return events

    def _next_event(self) -> Tuple[Optional[Event], bool]:
        """The next event, if there is one, and whether to look for another."""
        if self._is_mute():
            return self._violate("it spoke without being asked"), False
        line = self._take_line()
        if line is None:
            if len(self._buffer) > self._max_line:
                too_long = f"a line longer than {self._max_line} bytes"
                return self._violate(too_long), False
            return None, False
        event = self._event(line)
        return event, not isinstance(event, Violation)

    def _is_mute(self) -> bool:
        """Whether nothing that it might say would be right."""
        return self.state is State.IDLE and self.hello is None and not self._may_greet

    def _may_chatter(self) -> bool:
        """Whether a line that is no JSON object is noise just now."""
        if self._stray is Stray.STRICT:
            return False
        if self.hello is not None:
            return True
        unasked = not self.requests or self._stray is Stray.LOG
        return self._may_greet and unasked

    def receive_eof(self) -> Optional[bytes]:
        """The child's stdout ended; the unfinished line it left behind, if any."""
        self.move(Move.EOF)
        return bytes(self._buffer) or None

    def _take_line(self) -> Optional[bytes]:
        # Splits on 0x0A only, and never looks at a byte twice.
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def _event(self, line: bytes) -> Optional[Event]:
        """What a line says; None if it says nothing that counts."""
        if len(line) > self._max_line:
            return self._violate(f"a line longer than {self._max_line} bytes", line)
        try:
            fields = parse_object(line)
        except RemoteProtocolError as exc:
            return self._no_object(line, str(exc))
        try:
            if self._may_greet and fields.get("op") == "hello":
                return self._greeted(hello_of(fields))
            if self.hello is not None and "op" in fields:
                return self._told(fields, len(line))
            if self.hello is not None and fields.get("id") is None:
                return self._no_object(line, "a line without op or id")
            return self._reply(fields, line)
        except RemoteProtocolError as exc:
            return self._violate(str(exc), line, fields.get("id"))

    def _no_object(self, line: bytes, reason: str) -> Event:
        for id_ in self.requests:
            # A reply that failed: were it noise, its task would wait for ever.
            text = f'"{id_}"'.encode("utf-8", "surrogatepass")
            if line[:1] == b"{" and text in line:
                return self._violate(reason, line, id_)
        return Noise(line) if self._may_chatter() else self._violate(reason, line)

    def _greeted(self, hello: Hello) -> Hello:
        self.move(Move.HELLO)
        self._may_greet = False
        self.hello = hello
        self.inflight = min(self._most, hello.inflight)
        return hello

    def _told(self, fields: Dict[str, Any], size: int) -> Optional[Told]:
        """An event, unless it is unknown to us, or comes too late."""
        told = told_of(fields)
        if told is None or (told.id is not None and told.id not in self.requests):
            return None
        told.size = size
        return told

    def _reply(self, fields: Dict[str, Any], line: bytes) -> Event:
        if self.state is State.STARTING:
            raise RemoteProtocolError("it spoke before its hello")
        if not self.requests:
            raise RemoteProtocolError("it spoke without being asked")
        reply = reply_of(fields, self.hello is not None)
        if reply.id is None and self._says_ids:
            raise RemoteProtocolError("a reply without the id that it used to have")
        self._says_ids = reply.id is not None
        if reply.id is None:
            reply.id = next(iter(self.requests))  # of the original protocol: the one
        if reply.id not in self.requests:
            raise RemoteProtocolError("a reply to another id than the one asked")
        self._may_greet = False
        del self.requests[reply.id]
        self.move(Move.REPLY if self.requests else Move.LAST_REPLY)
        return reply

    def _violate(
        self, reason: str, line: Optional[bytes] = None, id: Any = None
    ) -> Violation:
        self.move(Move.VIOLATION)
        read = bytes(self._buffer) if line is None else line
        self._buffer.clear()
        known = isinstance(id, str) and id in self.requests
        return Violation(reason, read, id if known else None)
