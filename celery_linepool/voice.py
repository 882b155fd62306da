"""What children say for people to read: into the log, safely, and not without end."""

from __future__ import annotations

import logging
import time
from typing import Any, Callable, Dict, Optional

from .errors import escaped

#: Longest text in bytes; a longer one is cut there.
LONGEST = 8 * 1024
#: Lines a second and child that reach the log; the rest is counted. A child in a loop
#: writes some 100 000 a second, which would leave no time for anything else.
RATE = 500

#: Levels as children of any language name them.
LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "critical": logging.CRITICAL,
}


def printable(line: bytes) -> str:
    """A line as text that is safe to show: control characters are escaped."""
    text = line[:LONGEST].decode("utf-8", "backslashreplace").rstrip("\r\n")
    return escaped(text)


def identity(
    pool: Optional[str],
    slot: Optional[int] = None,
    pid: Optional[int] = None,
    task_id: Optional[str] = None,
    cause: Optional[str] = None,
) -> Dict[str, Any]:
    """Whom a line in the log is about: attributes of its record, for formatters."""
    return {
        "linepool_pool": pool,
        "linepool_slot": slot,
        "linepool_pid": pid,
        "linepool_task_id": task_id,
        "linepool_cause": cause,
    }


class Voice:
    """The log of one child, for one thread."""

    def __init__(
        self,
        pool: str,
        slot: int,
        pid: int,
        level: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._slot = slot
        self._pid = pid
        self._level = level
        self._logger = logging.getLogger(f"celery_linepool.child.{pool}")
        self._clock = clock
        self._second = 0
        self._logged = 0
        self._dropped = 0
        self._hinted = False

    def identity(
        self, task_id: Optional[str] = None, cause: Optional[str] = None
    ) -> Dict[str, Any]:
        """For lines about this child that are not its own."""
        return identity(self._pool, self._slot, self._pid, task_id, cause)

    def say(
        self, text: str, task_id: Optional[str], level: Optional[str] = None
    ) -> None:
        """Log one line, unless there were too many in this second.

        Arguments:
            level: as the child calls it; None for that of all its output.
        """
        self._next_second()
        if self._logged >= RATE:
            self._dropped += 1
            return
        self._logged += 1
        number = (
            self._level if level is None else LEVELS.get(level.lower(), logging.INFO)
        )
        self._log(text, task_id, number, level)

    def noise(self, line: bytes, task_id: Optional[str]) -> None:
        """Log a line of its stdout that is no protocol, and once what to do."""
        self.say(printable(line), task_id)
        if not self._hinted:
            self._hinted = True
            self.say(
                "this was on its stdout, which is the protocol: print to stderr, or "
                "set linepool_channel = 'fd'",
                task_id,
                "warning",
            )

    def close(self) -> None:
        """Say how much was left out."""
        dropped, self._dropped = self._dropped, 0
        if dropped:
            text = f"... {dropped} lines did not reach the log"
            self._log(text, None, self._level, None)

    def _next_second(self) -> None:
        second = int(self._clock())
        if second != self._second:
            self.close()
            self._second, self._logged = second, 0

    def _log(
        self, text: str, task_id: Optional[str], number: int, level: Optional[str]
    ) -> None:
        extra = {**self.identity(task_id), "linepool_level": level}
        where = f"[{self._pool} pid {self._pid}]"
        try:
            self._logger.log(number, "%s %s", where, text, extra=extra)
        except Exception:
            # A filter of the user's. The children must be read all the same.
            self._dropped += 1
