"""Calls handed from any thread to one, in batches, with a descriptor to wait on."""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Callable, Deque, Tuple

Letter = Tuple[Callable[..., Any], Tuple[Any, ...]]


class Mailbox:
    """A queue of calls for one reader, who may sleep in ``select`` or ``poll``.

    No lock: ``pool.stop()`` may run inside a signal handler that interrupted `post`.
    A write is made only while the reader may be asleep (`armed`), once for a batch.

    Order matters: a writer appends before it looks at `armed`; the reader sets `armed`
    before it looks at the letters. So one of the two always sees the other.
    """

    def __init__(self) -> None:
        self._letters: Deque[Letter] = deque()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self.armed = True

    def fileno(self) -> int:
        return self._read_fd

    def __len__(self) -> int:
        return len(self._letters)

    def post(self, call: Callable[..., Any], *args: Any) -> None:
        """Have `call(*args)` run by the reader. From any thread."""
        self._letters.append((call, args))
        self.wake()

    def put(self, call: Callable[..., Any], *args: Any) -> None:
        """The same, without waking a reader who sleeps: `wake` has to follow, or
        something else that wakes it."""
        self._letters.append((call, args))

    def wake(self) -> None:
        """Wake the reader if it may be asleep and there is something to read."""
        if self.armed and self._letters:
            self.armed = False
            try:
                os.write(self._write_fd, b"\0")
            except BlockingIOError:
                pass  # the pipe is full of wake-ups: the reader will wake

    def take(self) -> Letter:
        """The oldest letter; `IndexError` if there is none."""
        return self._letters.popleft()

    def clear_wakeup(self) -> None:
        """Forget wake-ups that were written; the reader is awake."""
        try:
            while len(os.read(self._read_fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass  # nobody wrote one

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
