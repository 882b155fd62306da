"""Drains the stderr of all children in one thread, into the log and a short memory.

A stderr that nobody reads stops its child after 64 KiB. A stderr that everybody
shares is made non-blocking by the first Node child, and then the worker's own log
writes fail. So each child has a pipe of its own, and it is always read.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections import deque
from typing import Callable, Deque, List, Optional

from .mailbox import Mailbox

#: Lines of a child that errors show.
REMEMBERED = 20
#: Longest line in bytes; a longer one is cut there, so that a child that never ends
#: its line cannot fill the memory.
MAX_LINE = 8 * 1024
#: Lines a second and child that reach the log; the rest is counted. A child in a loop
#: writes some 100 000 a second, which would leave no time for anything else.
LOG_RATE = 500

# A terminal must not obey what a child writes: controls but the tab are spelled out.
_CONTROLS = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)]}
del _CONTROLS[ord("\t")]


def printable(line: bytes) -> str:
    """A line as text that is safe to show: control characters are escaped."""
    text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
    return text.translate(_CONTROLS)


class Stream:
    """The stderr of one child. `task_id` is what the child does just now."""

    def __init__(self, fd: int, pool: str, pid: int, level: int) -> None:
        self.task_id: Optional[str] = None
        self._fd = fd
        self._pool = pool
        self._pid = pid
        self._level = level
        self._logger = logging.getLogger(f"celery_linepool.child.{pool}")
        self._partial = b""
        self._tail: Deque[str] = deque(maxlen=REMEMBERED)
        self._second = 0
        self._logged = 0
        self._dropped = 0

    def fileno(self) -> int:
        return self._fd

    def tail(self) -> List[str]:
        """The last lines, oldest first."""
        return list(self._tail)

    def read(self) -> bool:
        """Take what is there; False at its end. Never blocks."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._partial) >= MAX_LINE:
            self._take(self._partial)
            self._partial = b""
        return True

    def drain(self) -> None:
        """Take what is left in the pipe, which holds 64 KiB, and the open line."""
        for _ in range(16):
            before = (self._partial, len(self._tail), self._logged, self._dropped)
            if not self.read():
                break
            after = (self._partial, len(self._tail), self._logged, self._dropped)
            if before == after:
                break
        if self._partial:
            self._take(self._partial)
        self._report_dropped()
        os.close(self._fd)

    def _take(self, line: bytes) -> None:
        text = printable(line[:MAX_LINE])
        self._tail.append(text)
        second = int(time.monotonic())
        if second != self._second:
            self._report_dropped()
            self._second, self._logged = second, 0
        if self._logged < LOG_RATE:
            self._logged += 1
            self._log(text)
        else:
            self._dropped += 1

    def _report_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._log(f"... {dropped} lines did not reach the log")

    def _log(self, text: str) -> None:
        identity = {
            "linepool_pool": self._pool,
            "linepool_pid": self._pid,
            "linepool_task_id": self.task_id,
        }
        try:
            self._logger.log(
                self._level,
                "[%s pid %s] %s",
                self._pool,
                self._pid,
                text,
                extra=identity,
            )
        except Exception:
            # A filter of the user's. The children must be read all the same.
            self._dropped += 1


class Drain(threading.Thread):
    """The thread that reads every child's stderr."""

    def __init__(self) -> None:
        super().__init__(name="linepool-stderr", daemon=True)
        self._inbox = Mailbox()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox, selectors.EVENT_READ)
        self._running = True

    def add(self, stream: Stream) -> None:
        self._inbox.post(self._add, stream)

    def finish(self, stream: Stream, done: Callable[[List[str]], None]) -> None:
        """Read the rest, close it, and call `done(last lines)` in this thread."""
        self._inbox.post(self._finish, stream, done)

    def stop(self) -> None:
        self._inbox.post(self._stop)
        self.join()
        self._selector.close()
        self._inbox.close()

    def run(self) -> None:
        while self._running:
            for key, _ in self._selector.select():
                if isinstance(key.fileobj, Stream):
                    if not key.fileobj.read():
                        self._selector.unregister(key.fileobj)
            self._inbox.clear_wakeup()
            self._inbox.armed = True
            while self._inbox:
                call, args = self._inbox.take()
                call(*args)

    def _stop(self) -> None:
        self._running = False

    def _add(self, stream: Stream) -> None:
        os.set_blocking(stream.fileno(), False)
        self._selector.register(stream, selectors.EVENT_READ)

    def _finish(self, stream: Stream, done: Callable[[List[str]], None]) -> None:
        try:
            self._selector.unregister(stream)
        except KeyError:
            pass  # it had ended before its child did
        stream.drain()
        done(stream.tail())
