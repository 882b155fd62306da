"""Foreign errors in Sentry: under the foreign class, with the foreign frames.

    sentry_sdk.init(dsn, integrations=[CeleryIntegration(), LinePoolIntegration()])

Without it they are there too, but all as `ForeignError`, with the frames of the worker.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Tuple

from sentry_sdk.integrations import Integration
from sentry_sdk.scope import add_global_event_processor

from .errors import ForeignError

#: One frame as languages write it: Ruby, Node, PHP, Python, Java, Go.
_FRAMES = [
    re.compile(r"(?P<file>.+?):(?P<line>\d+):in [`'](?P<function>.+)'"),
    re.compile(
        r"at (?:async )?(?:(?P<function>.+?) \()?(?:file://)?"
        r"(?P<file>[^()]+?):(?P<line>\d+):\d+\)?"
    ),
    re.compile(r"#\d+ (?P<file>.+?)\((?P<line>\d+)\): (?P<function>[^(]+).*"),
    re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+)(?:, in (?P<function>.+))?'),
    re.compile(r"at (?P<function>[^()]+)\((?P<file>[^():]+):(?P<line>\d+)\)"),
    re.compile(r"(?P<file>/[^:]+):(?P<line>\d+)(?: \+0x[0-9a-f]+)?"),
]
#: Python says the newest frame last, as Sentry wants them.
_NEWEST_LAST = _FRAMES[3]
#: PHP says where it was thrown before its frames.
_THROWN = re.compile(r".* in (?P<file>.+):(?P<line>\d+)")
#: What PHP and Python say before the frames of an exception; its cause comes earlier.
_BEGIN = re.compile(r"Stack trace:|Traceback \(most recent call last\):")
#: What the helper libraries say before the frames of a cause.
_CAUSE = re.compile(r"caused by (?P<type>[^\s:]+(?:::[^\s:]+)*): (?P<message>.*)")
#: Files of libraries, as package managers place them.
_LIBRARY = re.compile(
    r"/gems/|/node_modules/|/vendor/|/site-packages/|^/usr/|^node:|^<internal:|/go/pkg/"
)

Error = Tuple[Optional[str], str, List[str]]


class LinePoolIntegration(Integration):
    """An integration for ``sentry_sdk.init``, in the worker."""

    identifier = "celery_linepool"

    @staticmethod
    def setup_once() -> None:
        add_global_event_processor(_process)


def _process(event: Any, hint: Any) -> Any:
    error = (hint.get("exc_info") or (None, None))[1]
    if isinstance(error, ForeignError):
        values = event.get("exception", {}).get("values", [])
        if values and values[-1].get("type") == ForeignError.__name__:
            values[-1:] = _exceptions(error, values[-1].get("mechanism"))
    return event


def _exceptions(error: ForeignError, mechanism: Any) -> List[Dict[str, Any]]:
    """The error after its causes, as Sentry orders them."""
    errors: List[Error] = [(error.foreign_type, error.message, [])]
    for line in error.backtrace:
        cause = _CAUSE.fullmatch(line)
        if cause:
            errors.append((cause["type"], cause["message"], []))
        else:
            errors[-1][2].append(line)
    found = []
    for type_, message, lines in reversed(errors):
        value: Dict[str, Any] = {"type": type_ or "ForeignError", "value": message}
        frames = frames_of(lines)
        if frames:
            value["stacktrace"] = {"frames": frames}
        found.append({**value, "module": None, "mechanism": mechanism})
    return found


def frames_of(backtrace: List[str]) -> List[Dict[str, Any]]:
    """Sentry's frames, the newest last, of lines as one of many languages has them.

    A line that is no frame may name the function of the next one, as in Go; else it is
    left out.
    """
    frames: List[Dict[str, Any]] = []
    newest_last, before = False, ""
    for line in backtrace:
        match = _match(line)
        if match:
            newest_last = match.re is _NEWEST_LAST
            frames.append(_frame(match, before))
        elif _BEGIN.fullmatch(line):
            thrown = _THROWN.fullmatch(before)
            frames = [_frame(thrown, "")] if thrown else []
        before = line
    return frames if newest_last else frames[::-1]


def _match(line: str) -> Optional["re.Match[str]"]:
    return next(filter(None, (frame.fullmatch(line) for frame in _FRAMES)), None)


def _frame(match: "re.Match[str]", before: str) -> Dict[str, Any]:
    named = match.groupdict()
    function = named.get("function")
    if match.re is _FRAMES[-1]:
        function = before.rpartition("(")[0] or None
    return {
        "filename": named["file"],
        "abs_path": named["file"],
        "lineno": int(named["line"]),
        "function": function or "?",
        "in_app": _LIBRARY.search(named["file"]) is None,
    }
