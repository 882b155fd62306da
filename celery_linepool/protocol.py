"""The wire, without any I/O: bytes to replies, requests to bytes, and who may speak.

This file knows no process, thread, clock or Celery. Everything that decides whether
a line is the protocol lives here.

Theory of operation: a child is asked one thing at a time. A request makes the
connection BUSY, its reply makes it IDLE again. Whatever else the child says, or says
at another time, makes it BROKEN, and a broken connection is never used again: nobody
can tell which task its next line would belong to.
"""

from __future__ import annotations

import base64
import decimal
import enum
import json
import math
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import orjson

from .errors import LocalProtocolError, RemoteProtocolError, RequestError

#: Longest line in bytes, either way. Large enough for any argument that should
#: travel through a broker (RabbitMQ's own limit for a message is 16 MiB by default
#: since 4.0), small enough that a child in a loop cannot eat the worker's memory.
MAX_LINE = 16 * 1024 * 1024
#: Bytes of a bad line that an error shows.
SHOWN = 200


class State(enum.Enum):
    """What a connection may do next."""

    IDLE = "idle"
    BUSY = "busy"
    BROKEN = "broken"
    CLOSED = "closed"


class Move(enum.Enum):
    """What can happen to a connection."""

    REQUEST = "request"
    REPLY = "reply"
    VIOLATION = "violation"
    EOF = "eof"


#: The whole state machine. A move that is missing is illegal and raises. After a
#: violation the child is being killed: what it still says is not read any more.
MOVES: Mapping[State, Mapping[Move, State]] = {
    State.IDLE: {
        Move.REQUEST: State.BUSY,
        Move.VIOLATION: State.BROKEN,
        Move.EOF: State.CLOSED,
    },
    State.BUSY: {
        Move.REPLY: State.IDLE,
        Move.VIOLATION: State.BROKEN,
        Move.EOF: State.CLOSED,
    },
    State.BROKEN: {Move.EOF: State.CLOSED},
    State.CLOSED: {},
}


class Status(str, enum.Enum):
    """How a child says that a task ended."""

    OK = "ok"
    ERROR = "error"
    THROTTLED = "throttled"
    RETRY = "retry"
    REJECTED = "rejected"
    IGNORED = "ignored"


_STATUSES = {status.value: status for status in Status}


class Reply:
    """One terminal line of a child, checked."""

    __slots__ = ("id", "status", "fields")

    def __init__(self, id: Optional[str], status: Status, fields: Dict[str, Any]):
        self.id = id
        self.status = status
        self.fields = fields

    def __repr__(self) -> str:
        return f"<Reply {self.status.value} to {self.id}>"


class Violation:
    """A child broke the protocol: what was wrong, and what was read."""

    __slots__ = ("reason", "read")

    def __init__(self, reason: str, read: bytes = b""):
        self.reason = reason
        self.read = read

    def __str__(self) -> str:
        return f"{self.reason}; read {show(self.read)}" if self.read else self.reason


Event = Union[Reply, Violation]


def show(line: bytes) -> str:
    """Bytes as an error message may show them: escaped, and cut at `SHOWN`."""
    cut = f" ... ({len(line)} bytes)" if len(line) > SHOWN else ""
    return f"{line[:SHOWN]!r}{cut}"


class Connection:
    """What has been said to one child and by it.

    Arguments:
        max_line: longest line in bytes that is accepted.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self.state = State.IDLE
        self.request_id: Optional[str] = None
        #: It has replied with an id: then a reply without one is not its own.
        self._says_ids = False
        self._max_line = max_line
        self._buffer = bytearray()
        self._searched = 0

    def move(self, move: Move) -> None:
        """Go where `MOVES` says; `LocalProtocolError` where it says nothing."""
        try:
            self.state = MOVES[self.state][move]
        except KeyError:
            raise LocalProtocolError(
                f"{move.value} is not legal while {self.state.value}"
            ) from None

    def request(self, request_id: str) -> None:
        """A request with this id is being written."""
        self.move(Move.REQUEST)
        self.request_id = request_id

    def receive(self, data: bytes) -> List[Event]:
        """Bytes that the child said; the replies in them, and at most one violation.

        A violation is the last event: nothing behind it is looked at.
        """
        events: List[Event] = []
        if self.state is State.BROKEN:
            return events
        self._buffer += data
        while self._buffer:
            event = self._next_event()
            if event is None:
                break
            events.append(event)
        return events

    def _next_event(self) -> Optional[Event]:
        if self.state is State.IDLE:
            return self._violate("it spoke without being asked")
        line = self._take_line()
        if line is not None:
            return self._reply(line)
        if len(self._buffer) > self._max_line:
            return self._violate(f"a line longer than {self._max_line} bytes")
        return None

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

    def _reply(self, line: bytes) -> Event:
        if len(line) > self._max_line:
            return self._violate(f"a line longer than {self._max_line} bytes", line)
        try:
            reply = parse_reply(line)
        except RemoteProtocolError as exc:
            return self._violate(str(exc), line)
        if reply.id is None and self._says_ids:
            return self._violate("a reply without the id that it used to have", line)
        if reply.id is not None and reply.id != self.request_id:
            return self._violate("a reply to another id than the one asked", line)
        self._says_ids = reply.id is not None
        self.move(Move.REPLY)
        self.request_id = None
        return reply

    def _violate(self, reason: str, line: Optional[bytes] = None) -> Violation:
        self.move(Move.VIOLATION)
        read = bytes(self._buffer) if line is None else line
        self._buffer.clear()
        return Violation(reason, read)


# --- up: a line to a reply ------------------------------------------------------------

# orjson reads an integer beyond 64 bits as a float; the standard library keeps it.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


def parse_reply(line: bytes) -> Reply:
    """One line, without its newline, as a `Reply`.

    Raises:
        RemoteProtocolError: it is none; the message says why.
    """
    fields = _parse_object(line)
    id_ = fields.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise RemoteProtocolError("an id that is no string")
    name = fields.get("status")
    status = _STATUSES.get(name) if isinstance(name, str) else None
    if status is None:
        known = ", ".join(_STATUSES)
        raise RemoteProtocolError(f"a status that is none of {known}: {_short(name)}")
    after = fields.get("retry_after_secs")
    if after is not None and not _is_delay(after):
        raise RemoteProtocolError("a retry_after_secs that is no number of seconds")
    return Reply(id_, status, fields)


def _parse_object(line: bytes) -> Dict[str, Any]:
    try:
        value = orjson.loads(line)
        if _LONG_NUMBER.search(line):
            value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"a line that is no JSON ({exc})") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("a line that is no JSON object")
    return value


def _short(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except RecursionError:
        return "something nested deeply"


def _is_delay(value: Any) -> bool:
    # Longer than ten years is a mistake of units, and overflows a timestamp.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value < 10 * 365 * 86400
    )


# --- down: a request to a line --------------------------------------------------------


def encode_request(
    request_id: str, payload: Dict[str, Any], max_line: int = MAX_LINE
) -> bytes:
    """One request as one line, with its newline.

    Dates and times become ISO 8601 text, UUID and Decimal text, bytes base64 text.

    Raises:
        RequestError: it cannot be written as JSON, or is longer than `max_line`.
    """
    request = {"id": request_id, "payload": payload}
    try:
        line = orjson.dumps(request, default=_plain, option=_OPTIONS)
    except TypeError as exc:
        line = _encode_rest(request, exc)
    # orjson writes NaN and infinities as null, which would be another value.
    if b"null" in line:
        try:
            _refuse_non_finite(request)
        except RecursionError:
            raise RequestError("the task cannot be written as JSON: too deep") from None
    for raw, escaped in _LINE_ENDS:
        if raw in line:
            line = line.replace(raw, escaped)
    if len(line) > max_line + 1:
        raise RequestError(
            f"a request of {len(line)} bytes is longer than "
            f"linepool_max_line = {max_line}"
        )
    return line


#: Where Unicode ends a line and the protocol does not. Many a library for reading lines
#: does, Node's readline and Python's splitlines among them; so they are escaped.
_LINE_ENDS = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATACLASS


def _encode_rest(request: Dict[str, Any], cause: TypeError) -> bytes:
    """What orjson's fast path refuses and JSON can still say.

    That is integers beyond 64 bits and keys that are no strings.
    """
    try:
        text = json.dumps(
            request,
            default=_plain_std,
            allow_nan=False,
            ensure_ascii=False,
            separators=(",", ":"),
        )
        return text.encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as exc:
        reason = cause if isinstance(exc, TypeError) else exc
        raise RequestError(f"the task cannot be written as JSON: {reason}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _plain_std(value: Any) -> Any:
    """`_plain`, and the types that orjson knows by itself."""
    try:
        return _plain(value)
    except TypeError:
        return json.loads(orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS))


def _refuse_non_finite(value: Any, path: Tuple[Any, ...] = ()) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        where = "".join(f"[{key!r}]" for key in path[1:])
        raise RequestError(f"{value} in payload{where} has no form in JSON")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_non_finite(item, (*path, index))
