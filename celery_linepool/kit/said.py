"""What a child may say, and how it may be odd."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional

from .scenario import Failure


class Oddity(enum.Enum):
    NOISE_BEFORE_HELLO = "a line that is no protocol, before the hello"
    NOISE = "a line that is no protocol"
    LATE_HELLO = "a hello after another line"
    SECOND_HELLO = "a second hello"
    SECOND_REPLY = "a second reply to one request"
    UNASKED = "a line without a request"
    NO_ID = "a reply without an id"
    STRAY_EVENT = "an event of no request in flight"
    FIELDS = "a reply with a field of a wrong type"
    UTF8 = "bytes that are no UTF-8"
    NUMBER = "NaN or Infinity, which JSON has not"
    TOO_LONG = "a line over the limit"


@dataclass(frozen=True)
class Odd:
    """Something odd that was read, and in which scenario."""

    kind: Oddity
    line: bytes
    scenario: str


@dataclass(frozen=True)
class Said:
    """A reply or an event."""

    id: Optional[str]
    fields: Dict[str, Any]
    line: bytes

    @property
    def op(self) -> str:
        return str(self.fields.get("op", ""))

    @property
    def status(self) -> str:
        return str(self.fields.get("status", ""))

    @property
    def result(self) -> Any:
        return self.fields.get("result")

    def expect(self, *statuses: str) -> "Said":
        """Itself, if it is a reply with one of these statuses."""
        if self.status not in statuses:
            raise Failure(f"a reply with status {' or '.join(statuses)}", self.line)
        return self


def encode(fields: Mapping[str, Any]) -> bytes:
    """One line, with its end, and nothing in it escaped that need not be."""
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def types_are_right(fields: Dict[str, Any]) -> bool:
    """Whether what a reply may have is of the type that it should be."""
    texts = [fields[name] for name in ("message", "type") if name in fields]
    switches = [fields[name] for name in ("retry", "requeue") if name in fields]
    backtrace = fields.get("backtrace", [])
    return (
        all(isinstance(text, str) or text is None for text in texts)
        and all(isinstance(switch, bool) or switch is None for switch in switches)
        and (backtrace is None or isinstance(backtrace, list))
        and all(isinstance(line, str) for line in backtrace or ())
    )
