"""Down the wire: requests, and what else a child is told, as lines of JSON."""

from __future__ import annotations

import base64
import decimal
import json
import math
from typing import Any, Dict, Tuple

import orjson

from .errors import RequestError
from .messages import MAX_LINE


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
    if not line.isascii():
        for raw, escaped in _LINE_ENDS:
            line = line.replace(raw, escaped)
    if len(line) > max_line + 1:
        raise RequestError(
            f"a request of {len(line)} bytes is longer than "
            f"linepool_max_line = {max_line}"
        )
    return line


def encode_op(op: str, fields: Dict[str, Any]) -> bytes:
    """One line that is no request, with its newline: a cancel, a stop, an answer."""
    return orjson.dumps({"op": op, **fields}, option=_OPTIONS)


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
