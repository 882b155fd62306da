"""Every exception of this package: one class per reaction, not per cause.

Those that end up in a result backend carry only JSON values in ``args``, because
Celery rebuilds an exception from its class and its ``args``.
"""

from __future__ import annotations

import re
from typing import List, Optional, Sequence


class LinePoolError(Exception):
    """Base of all errors of this package."""


class LocalProtocolError(LinePoolError):
    """We broke our own rules: a bug here, never the child's fault."""


class RemoteProtocolError(LinePoolError):
    """A child said something that is not the protocol.

    The child is killed and replaced; the task in flight fails with this error.
    """


class RequestError(LinePoolError):
    """A task cannot be written as one JSON line. No child was touched."""


class SpawnError(LinePoolError):
    """A child could not be started: not found, not executable, no process left."""


class BootError(LinePoolError):
    """A pool's children do not start; the worker does not start either."""


class ForeignError(LinePoolError):
    """The task failed in the child: the foreign class, message and backtrace.

    All of it is one text in ``args``, so that it can be read wherever a result is,
    also by a caller that does not have this package. Where it is, `foreign_type`,
    `message` and `backtrace` are taken from that text again.

    Arguments:
        text: the message, or the whole text of another `ForeignError`.
        foreign_type: the class in the foreign language, such as ``RuntimeError``.
        backtrace: the foreign stack, innermost first, as the child sent it.
    """

    def __init__(
        self,
        text: str,
        foreign_type: Optional[str] = None,
        backtrace: Sequence[str] = (),
    ) -> None:
        if foreign_type:
            text = f"{foreign_type}: {text}"
        if backtrace:
            text = "\n    ".join([f"{text}{_BACKTRACE}", *backtrace])
        super().__init__(text)

    @property
    def headline(self) -> str:
        """Class and message."""
        return str(self.args[0]).partition(_BACKTRACE)[0]

    @property
    def foreign_type(self) -> Optional[str]:
        found = _TYPE.match(self.headline)
        return found.group(1) if found else None

    @property
    def message(self) -> str:
        found = _TYPE.match(self.headline)
        return self.headline[found.end() :] if found else self.headline

    @property
    def backtrace(self) -> List[str]:
        return [
            line.strip()
            for line in str(self.args[0]).partition(_BACKTRACE)[2].splitlines()
            if line.strip()
        ]

    def __str__(self) -> str:
        # Of a traceback in a log that is read in a terminal, which must not obey it.
        return escaped(str(self.args[0]), keep="\t\n")

    def __repr__(self) -> str:
        return f"ForeignError({self.headline!r})"


def escaped(text: str, keep: str = "\t") -> str:
    """Text with its control characters spelled out, but for those to keep.

    So are the marks that turn the direction of writing, and Unicode's ends of lines: a
    line must not look like another one.
    """
    return _STEERS.sub(lambda m: m[0] if m[0] in keep else _spelled(m[0]), text)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


_STEERS = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_BACKTRACE = "\nForeign backtrace:"
#: A class as Ruby, PHP, Java, Go, Python or JavaScript spell one.
_TYPE = re.compile(r"([A-Za-z_*][\w.:\\$*]*): ")


class PoisonError(LinePoolError):
    """A task has crashed too many children and is not run again."""


class Abandoned(BaseException):
    """Leaves Celery's tracer without a word, as a dying prefork process would.

    Never seen by users: the job's owner catches it and settles the task through
    Celery's ``Request``, which knows acks_late, reject_on_worker_lost and the rest.
    It is no ``Exception``, so that ``autoretry_for = (Exception,)`` does not retry
    what Celery itself would not.
    """

    def __init__(
        self, reason: BaseException, innocent: bool = False, unread: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        #: Another task's fault: it does not count as a crash of this one.
        self.innocent = innocent
        #: No child has begun it: it may be left to another worker.
        self.unread = unread
