"""The body of a message, decoded as Celery would, but faster.

Celery's tracer decodes it with kombu's JSON, which is the standard library's and a call
in Python for each object. Where orjson gives the same value it is used instead, and the
tracer is handed what was decoded, as it is for messages of protocol 1.
"""

from __future__ import annotations

from typing import Any, Callable, Tuple

import orjson
from kombu.serialization import prepare_accept_content, registry
from kombu.utils import json

from .messages import may_hold_long_numbers

JSON = "application/json"
#: Bytes up to which it pays: to search a long text for what has to be left to kombu
#: takes longer than kombu takes to read it.
LONGEST = 4096


def accepts_json(accept_content: Any) -> bool:
    """Whether JSON is accepted, and read by kombu's own decoder."""
    prepare: Any = prepare_accept_content
    accepted = prepare(accept_content)
    return JSON in (accepted or ()) and registry._decoders.get(JSON) is json.loads


def trace(tracer: Callable[..., Any], *args: Any) -> Any:
    """Call Celery's tracer, with the body decoded if that is possible."""
    return tracer(*decoded(args))


def decoded(args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """The arguments of Celery's tracer with the body decoded, or as they are.

    Whatever is wrong with it, the tracer finds by itself.
    """
    name, id_, request, body, content_type, *rest = args
    if content_type != JSON:
        return args
    try:
        if len(body) > LONGEST:
            return args
        data = body.encode() if isinstance(body, str) else bytes(body)
        # The mark of what kombu makes an object of, such as a date; as it is, or with
        # letters of it escaped.
        if b"__type__" in data or b"\\u00" in data or may_hold_long_numbers(data):
            return args
        value = orjson.loads(data)
    except (TypeError, ValueError):
        return args
    return (name, id_, request, value, None, *rest)
