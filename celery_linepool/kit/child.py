"""One child and its pipes, for a single thread that waits for it.

Unlike the worker's own child it may be waited for, remembers every byte, and says when
it ended. All of its pipes are drained while any of them is waited for.
"""

from __future__ import annotations

import array
import fcntl
import math
import os
import selectors
import signal
import subprocess
import termios
import threading
import time
from collections import deque
from typing import Callable, Deque, List, Mapping, NamedTuple, Optional, Sequence

import psutil

from . import processes

READ_SIZE = 65536
#: Seconds between two looks into a pipe.
LOOK_AGAIN = 0.001
#: Bytes of its stderr that are kept.
STDERR_KEPT = 65536
#: Makes its two pipes the descriptors 3 and 4. What it prints is its stderr then.
AS_3_AND_4 = 'exec "$@" 3<&0 4>&1 </dev/null >&2'


class NotStarted(Exception):
    """The command cannot be run."""


class Late(Exception):
    """What was waited for did not happen in time."""


class Piece(NamedTuple):
    """What went through a pipe at once."""

    down: bool
    data: bytes


class Child:
    """A running command, with a pipe to each of its streams."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Optional[str] = None,
        channel: str = "stdio",
    ) -> None:
        #: Whole lines that it said and nobody took yet, without their ends.
        self.lines: Deque[bytes] = deque()
        #: What it said after its last whole line.
        self.rest = b""
        self.eof = False
        self.transcript: Deque[Piece] = deque(maxlen=1000)
        self.stderr = bytearray()
        self.stderr_bytes = 0
        #: Is given what it writes to stderr, when it does.
        self.on_stderr: Callable[[bytes], object] = len
        self.started_at = time.monotonic()
        self.ended_at: Optional[float] = None
        self.exit_code: Optional[int] = None
        self._parts: List[bytes] = []
        self._process = _spawn(command, env, cwd, channel)
        self.pid = self._process.pid
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in = self._process.stdin
        self._out = self._process.stdout.fileno()
        self._err = self._process.stderr.fileno()
        self._exit, self._exit_writer = os.pipe()
        self._selector = selectors.DefaultSelector()
        for fd in (self._out, self._err, self._exit):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)
        os.set_blocking(self._in.fileno(), False)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        # Not reaped yet: until `close` its number and its group are nobody else's.
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        os.close(self._exit_writer)

    # --- waiting ----------------------------------------------------------------------

    def pump(self, deadline: float) -> None:
        """Wait until something happens, and take note of it.

        Raises:
            Late: nothing did.
        """
        wait = max(0.0, deadline - time.monotonic())
        ready = self._selector.select(None if wait == math.inf else wait)
        if not ready:
            raise Late
        # Its end comes last: by then everything that it said is in the pipes.
        for key, _ in sorted(ready, key=lambda item: item[0].fd == self._exit):
            if key.fd == self._out:
                self._hear()
            elif key.fd == self._err:
                self._read_stderr()
            elif key.fd == self._exit:
                self._note_end()

    def take_line(self, deadline: float) -> Optional[bytes]:
        """The next line, without its end; None if there will be none.

        Raises:
            Late: it said none.
        """
        while not self.lines:
            # A process that it left behind may hold the pipe open for ever.
            if self.eof or self.ended_at is not None:
                return None
            self.pump(deadline)
        return self.lines.popleft()

    def wait_end(self, deadline: float) -> int:
        """Its exit code, negative for a signal.

        Raises:
            Late: it is still running.
        """
        while self.ended_at is None:
            self.pump(deadline)
        assert self.exit_code is not None
        return self.exit_code

    def wait_eof(self, deadline: float) -> None:
        """Wait until nobody can write to its channel any more.

        Raises:
            Late: somebody still could.
        """
        while not self.eof:
            self.pump(deadline)

    def write(self, data: bytes, deadline: float) -> bool:
        """Write all of it; False if nobody will read it.

        Raises:
            Late: it does not read.
        """
        self.transcript.append(Piece(True, data))
        left = memoryview(data)
        fd = self._in.fileno()
        while left:
            try:
                left = left[os.write(fd, left) :]
            except BrokenPipeError:
                return False
            except BlockingIOError:
                self._selector.register(fd, selectors.EVENT_WRITE)
                try:
                    self.pump(deadline)
                finally:
                    self._selector.unregister(fd)
        return True

    def wait_read(self, deadline: float) -> None:
        """Wait until it has read what was written, or has ended.

        Raises:
            Late: it does not read.
        """
        while self._unread() and self.ended_at is None:
            try:
                # Nobody tells when a pipe is empty.
                self.pump(time.monotonic() + LOOK_AGAIN)
            except Late:
                if time.monotonic() > deadline:
                    raise

    def _unread(self) -> int:
        unread = array.array("i", [0])
        try:
            fcntl.ioctl(self._in.fileno(), termios.FIONREAD, unread)
        except OSError:
            return 0  # a system that tells it to the reader only
        return unread[0]

    def close_input(self) -> None:
        self._in.close()

    def _hear(self) -> None:
        data = _read(self._out)
        if data is None:
            return
        if not data:
            self._selector.unregister(self._out)
            self.eof = True
            self.rest = b"".join(self._parts)
            return
        self.transcript.append(Piece(False, data))
        *ends, rest = data.split(b"\n")
        for end in ends:
            self.lines.append(b"".join([*self._parts, end]))
            self._parts.clear()
        if rest:
            self._parts.append(rest)

    def _read_stderr(self) -> None:
        data = _read(self._err)
        if data == b"":
            self._selector.unregister(self._err)
        elif data:
            self.stderr_bytes += len(data)
            self.on_stderr(data)
            self.stderr += data
            del self.stderr[:-STDERR_KEPT]

    def _note_end(self) -> None:
        self._selector.unregister(self._exit)
        self.ended_at = time.monotonic()
        if hasattr(os, "waitid"):
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            assert found is not None
            by_itself = found.si_code == os.CLD_EXITED
            self.exit_code = found.si_status if by_itself else -found.si_status
        else:
            self.exit_code = self._process.returncode
        while not self.eof and self._waits(self._out):
            self._hear()
        while self._err in self._selector.get_map() and self._waits(self._err):
            self._read_stderr()
        self.rest = b"".join(self._parts)

    @staticmethod
    def _waits(fd: int) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            return bool(selector.select(0))

    # --- the process ------------------------------------------------------------------

    def signal(self, signum: int) -> None:
        """A signal to its process group, as the worker sends it."""
        if self.ended_at is None:
            os.killpg(self.pid, signum)

    def family(self) -> List[psutil.Process]:
        """What it has started and what these have started, as far as that runs."""
        return processes.descendants(self.pid)

    def close(self) -> None:
        """Kill whatever is left, and collect it."""
        family = self.family()
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left in its group, or it runs as another user
        for process in family:
            processes.kill(process)
        self._watcher.join()
        self._process.wait()
        self._selector.close()
        os.close(self._exit)
        for stream in (self._in, self._process.stdout, self._process.stderr):
            assert stream
            stream.close()


def _spawn(
    command: Sequence[str], env: Mapping[str, str], cwd: Optional[str], channel: str
) -> "subprocess.Popen[bytes]":
    if channel == "fd":
        command = ["sh", "-c", AS_3_AND_4, "sh", *command]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        raise NotStarted(f"{command[0]}: {exc}") from exc


def _read(fd: int) -> Optional[bytes]:
    """What there is; nothing at its end, and None if there is nothing yet."""
    try:
        return os.read(fd, READ_SIZE)
    except BlockingIOError:
        return None
