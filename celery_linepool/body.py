"""The body of a message, decoded as Celery would, but faster.

The worker decodes it when the message comes, and Celery's tracer when the task runs,
with kombu's JSON, which is the standard library's and a call in Python for each object.
Where orjson gives the same value it is used instead: kombu's message has it already
then, and the tracer is handed what was decoded, as it is for messages of protocol 1.
"""

from __future__ import annotations

from typing import Any, Callable, Tuple

import orjson
from kombu.serialization import prepare_accept_content, registry
from kombu.utils import json

from .messages import may_hold_long_numbers

JSON = "application/json"
#: Bytes up to which it always pays. To search a long text for what has to be left to
#: kombu takes longer than kombu takes to read it; but not where it is full of objects.
LONGEST = 4096
#: Bytes for each object up to which it pays in a longer body.
SPARSE = 512
#: Only one byte of so many is looked at for that.
_NTH = 13
#: How a letter of kombu's mark may begin that is written as an escape.
_ESCAPED = (b"\\u005", b"\\u006", b"\\u007")


def accepts_json(accept_content: Any) -> bool:
    """Whether JSON is accepted, and read by kombu's own decoder."""
    prepare: Any = prepare_accept_content
    accepted = prepare(accept_content)
    return JSON in (accepted or ()) and registry._decoders.get(JSON) is json.loads


def trace(tracer: Callable[..., Any], *args: Any) -> Any:
    """Call Celery's tracer, with the body decoded if that is possible."""
    return tracer(*decoded(args))


def read_ahead(message: Any) -> None:
    """Have kombu's message decoded before Celery asks for it, if that is possible."""
    accepted = message.accept is None or JSON in message.accept
    if accepted and message.content_type == JSON:
        value = _value(message.body)
        if value:  # kombu keeps nothing else
            message._decoded_cache = value


def decoded(args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """The arguments of Celery's tracer with the body decoded, or as they are.

    Not what the message has decoded already: that belongs to the request, which is the
    same after a task has changed its arguments.
    """
    name, id_, request, body, content_type, *rest = args
    value = _value(body) if content_type == JSON else None
    return args if value is None else (name, id_, request, value, None, *rest)


def _value(body: Any) -> Any:
    """What kombu would make of it; None to leave it to kombu, errors and all."""
    try:
        data = body.encode() if isinstance(body, str) else bytes(body)
        if len(data) > LONGEST and _is_sparse(data):
            return None
        # What kombu makes an object of has a mark, such as a date has.
        if b"__type__" in data or _has_escaped_letters(data):
            return None
        return None if may_hold_long_numbers(data) else orjson.loads(data)
    except (TypeError, ValueError):
        return None


def _is_sparse(data: bytes) -> bool:
    # A guess: to count all of them takes half as long as to read a text.
    return data[::_NTH].count(b"{") * _NTH * SPARSE < len(data)


def _has_escaped_letters(data: bytes) -> bool:
    return b"\\u00" in data and any(start in data for start in _ESCAPED)
