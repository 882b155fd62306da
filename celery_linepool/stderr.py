"""Drains the stderr of all children in one thread, into the log and a short memory.

A stderr that nobody reads stops its child after 64 KiB. A stderr that everybody
shares is made non-blocking by the first Node child, and then the worker's own log
writes fail. So each child has a pipe of its own, and it is always read.
"""

from __future__ import annotations

import os
import selectors
import threading
from collections import deque
from typing import Callable, Deque, List, Optional

from .mailbox import Mailbox
from .voice import LONGEST, Voice, printable

#: Lines of a child that errors show.
REMEMBERED = 20


class Stream:
    """The stderr of one child. `task_id` is what the child does just now."""

    def __init__(self, fd: int, pool: str, slot: int, pid: int, level: int) -> None:
        self.task_id: Optional[str] = None
        self._fd = fd
        self._voice = Voice(pool, slot, pid, level)
        self._partial = b""
        self._tail: Deque[str] = deque(maxlen=REMEMBERED)
        #: Bytes read so far.
        self._taken = 0

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
        self._taken += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(line)
        # A child that never ends its line must not fill the memory.
        if len(self._partial) >= LONGEST:
            self._take(self._partial)
            self._partial = b""
        return True

    def drain(self) -> None:
        """Take what is left in the pipe, which holds 64 KiB, and the open line."""
        for _ in range(16):
            before = self._taken
            if not self.read() or self._taken == before:
                break
        if self._partial:
            self._take(self._partial)
        self._voice.close()
        os.close(self._fd)

    def _take(self, line: bytes) -> None:
        text = printable(line)
        self._tail.append(text)
        self._voice.say(text, self.task_id)


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
