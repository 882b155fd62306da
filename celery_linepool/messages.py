"""What a child may say: the kinds of lines, and how each is read. Sans-IO.

docs/protocol.md says the same in words.
"""

from __future__ import annotations

import enum
import json
import re
from typing import Any, Dict, FrozenSet, List, Optional, Tuple, Union

import orjson

from .errors import RemoteProtocolError

#: Longest line in bytes, either way. Large enough for any argument that should
#: travel through a broker (RabbitMQ's own limit for a message is 16 MiB by default
#: since 4.0), small enough that a child in a loop cannot eat the worker's memory.
MAX_LINE = 16 * 1024 * 1024
#: The highest protocol that is spoken here.
PROTOCOL = 2
#: Bytes of a bad line that an error shows.
SHOWN = 200


class Status(str, enum.Enum):
    """How a child says that a task ended."""

    OK = "ok"
    ERROR = "error"
    THROTTLED = "throttled"
    RETRY = "retry"
    REJECTED = "rejected"
    IGNORED = "ignored"
    #: It was cancelled. Only of a child that said hello.
    CANCELLED = "cancelled"
    #: It was not begun; the child wants to be replaced. Only of one that said hello.
    RESTART = "restart"


_STATUSES = {status.value: status for status in Status}
_ORIGINAL_STATUSES = {
    name: status
    for name, status in _STATUSES.items()
    if status not in (Status.CANCELLED, Status.RESTART)
}


class Op(str, enum.Enum):
    """What a child says of a request before it replies to it, or of itself."""

    PROGRESS = "progress"
    LOG = "log"
    PUBLISH = "publish"
    PONG = "pong"


_OPS = {op.value: op for op in Op}
#: Those that may be of no request.
_OF_NONE = frozenset({Op.LOG, Op.PONG})


class Hello:
    """A child has booted, and says what it can do."""

    __slots__ = ("tasks", "inflight", "features", "language", "name")

    def __init__(
        self,
        tasks: Tuple[str, ...] = (),
        inflight: int = 1,
        features: FrozenSet[str] = frozenset(),
        language: str = "",
        name: str = "",
    ) -> None:
        self.tasks = tasks
        self.inflight = inflight
        self.features = features
        self.language = language
        self.name = name


class Told:
    """An event of a child, about one of its requests or about itself."""

    __slots__ = ("op", "id", "fields", "size")

    def __init__(
        self, op: Op, id: Optional[str], fields: Dict[str, Any], size: int = 0
    ) -> None:
        self.op = op
        self.id = id
        self.fields = fields
        #: Bytes of its line.
        self.size = size


class Noise:
    """A line that is not meant for us."""

    __slots__ = ("line",)

    def __init__(self, line: bytes):
        self.line = line


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

    __slots__ = ("reason", "read", "id")

    def __init__(self, reason: str, read: bytes = b"", id: Optional[str] = None):
        self.reason = reason
        self.read = read
        #: The request in flight whose reply it was meant to be, if it says so.
        self.id = id

    def __str__(self) -> str:
        return f"{self.reason}; read {show(self.read)}" if self.read else self.reason


Event = Union[Hello, Reply, Told, Noise, Violation]


def show(line: bytes) -> str:
    """Bytes as an error message may show them: escaped, and cut at `SHOWN`."""
    cut = f" ... ({len(line)} bytes)" if len(line) > SHOWN else ""
    return f"{line[:SHOWN]!r}{cut}"


#: Every digit becomes a 0, and everything else none.
_DIGITS = bytes(ord("0") if chr(n) in "0123456789" else 0 for n in range(256))
_LONG_NUMBER = b"0" * 19
#: Bytes from which on it pays to look at every ninth of them before looking at all.
_LONG_LINE = 4096


def may_hold_long_numbers(line: bytes) -> bool:
    """Whether orjson may not read it right.

    It reads an integer beyond 64 bits as a float; the standard library keeps it. A
    regular expression would take twenty times as long.
    """
    # Of nineteen digits in a row at least two are looked at.
    if len(line) > _LONG_LINE and b"00" not in line[8::9].translate(_DIGITS):
        return False
    return len(line) >= 19 and _LONG_NUMBER in line.translate(_DIGITS)


def parse_reply(line: bytes) -> Reply:
    """One line of the original protocol, without its newline, as a `Reply`.

    Raises:
        RemoteProtocolError: it is none; the message says why.
    """
    return reply_of(parse_object(line), False)


def reply_of(fields: Dict[str, Any], greeted: bool) -> Reply:
    """The fields of a line as a `Reply`; of a child that said hello, or did not.

    Raises:
        RemoteProtocolError: it is none; the message says why.
    """
    id_ = fields.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise RemoteProtocolError("an id that is no string")
    name = fields.get("status")
    statuses = _STATUSES if greeted else _ORIGINAL_STATUSES
    status = statuses.get(name) if isinstance(name, str) else None
    if status is None:
        known = ", ".join(statuses)
        raise RemoteProtocolError(f"a status that is none of {known}: {_short(name)}")
    after = fields.get("retry_after_secs")
    if after is not None and not _is_delay(after):
        raise RemoteProtocolError("a retry_after_secs that is no number of seconds")
    return Reply(id_, status, fields)


def hello_of(fields: Dict[str, Any]) -> Hello:
    """The fields of a hello.

    Raises:
        RemoteProtocolError: one of them is none of its kind.
    """
    if fields.get("protocol") != PROTOCOL:
        raise RemoteProtocolError(
            f"a hello for protocol {_short(fields.get('protocol'))}, not {PROTOCOL}"
        )
    inflight = fields.get("inflight", 1)
    if isinstance(inflight, bool) or not isinstance(inflight, int) or inflight < 1:
        raise RemoteProtocolError("a hello whose inflight is no number from 1 on")
    return Hello(
        tuple(_texts(fields, "tasks")),
        inflight,
        frozenset(_texts(fields, "features")),
        _text(fields.get("language")),
        _text(fields.get("name")),
    )


def told_of(fields: Dict[str, Any]) -> Optional[Told]:
    """The fields of an event; None if it is one that we do not know."""
    op, id_ = _OPS.get(_text(fields.get("op"))), fields.get("id")
    if op is None or not (isinstance(id_, str) or (id_ is None and op in _OF_NONE)):
        return None
    return Told(op, id_, fields)


def _texts(fields: Dict[str, Any], name: str) -> List[str]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RemoteProtocolError(f"a hello whose {name} are no list of strings")
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def parse_object(line: bytes) -> Dict[str, Any]:
    """One line as a JSON object.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        value = orjson.loads(line)
        if may_hold_long_numbers(line):
            value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        value = _with_half_characters(line)
        if value is None:
            raise RemoteProtocolError(f"a line that is no JSON ({exc})") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("a line that is no JSON object")
    return value


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _with_half_characters(line: bytes) -> Any:
    """A line with half an emoji in it, as JavaScript and Python cut texts; or None.

    Those halves have no form in UTF-8: each becomes U+FFFD, as everywhere else.
    """
    if not _SURROGATE.search(line):
        return None
    try:
        return _replaced(json.loads(line, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replaced(item) for item in value]
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}
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
