"""One process: spawn, send, receive, stop, terminate, kill, reap.

One object owns one child and its file descriptors. It never blocks, never waits and
starts no thread; its owner waits on `stdout`, `stdin` and `exit` and calls it.
"""

from __future__ import annotations

import array
import enum
import fcntl
import os
import resource
import signal
import subprocess
import sys
import termios
import time
from collections import deque
from typing import IO, TYPE_CHECKING, Any, Deque, Dict, List, Mapping, Optional, Union

from .accounts import account_of
from .cores import wide
from .encoding import encode_op
from .errors import SpawnError
from .messages import Event
from .protocol import Connection, Handshake
from .syscalls import PIPE, read, widen, write

if TYPE_CHECKING:
    from .settings import PoolSettings

STOP = encode_op("stop", {})
#: Moves the protocol from stdin and stdout to the descriptors 3 and 4. What the program
#: prints goes to stderr then. The shell replaces itself: the pid is the child's.
ON_OTHER_FDS = 'exec "$@" 3<&0 4>&1 </dev/null >&2'
#: Of 1000; what systemd gives to the processes that may go first.
OOM_SCORE = "500"


class State(enum.Enum):
    """How far the life of the process is."""

    ALIVE = "alive"
    #: It exited and is a zombie: its pid and its group are still ours.
    EXITED = "exited"
    REAPED = "reaped"


class Child:
    """A child process with a pipe to each of its standard streams.

    Arguments:
        settings: the pool's settings; the process is started at once.
        env: its whole environment.
        handshake: whether it says hello; None for what the settings say.

    Raises:
        SpawnError: it could not be started.
    """

    def __init__(
        self,
        settings: "PoolSettings",
        env: Mapping[str, str],
        handshake: Optional[Handshake] = None,
    ) -> None:
        self.connection = Connection(
            settings.max_line,
            handshake or settings.handshake,
            settings.inflight,
            settings.stdout,
        )
        self.state = State.ALIVE
        self.born = time.monotonic()
        self.eof = False
        #: Whether it closed its stdin: what is written from then on it cannot read.
        self.deaf = False
        self.leftover: Optional[bytes] = None
        self._pool = settings.name
        self._killed = False
        #: Lines that the pipe did not take yet. Of one that it took a part of, a view:
        #: what a slow reader takes piece by piece is not copied each time.
        self._unsent: Deque[Union[bytes, memoryview]] = deque()
        #: Bytes handed to `send` and `tell` so far.
        self._total = 0
        #: Bytes that its pipes hold.
        self._stdin_size = self._stdout_size = PIPE
        self._process = self._spawn(settings, env)
        self.pid = self._process.pid
        # The parent keeps only its own ends (subprocess closes the child's), so that
        # the end of the child is the end of its stdout.
        assert self._process.stdin and self._process.stdout
        self.stdin = self._process.stdin.fileno()
        self.stdout = self._process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        #: Its stderr, for whoever drains and closes it from now on.
        self.stderr = _detach(self._process.stderr)
        self.exit = _exit_fd(self.pid)
        try:
            self._place(settings)
        except SpawnError:
            self.discard()
            raise

    @staticmethod
    def _spawn(
        settings: "PoolSettings", env: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        try:
            user, group, further = account_of(settings)
            command = list(settings.command)
            if settings.channel == "fd":
                command = ["/bin/sh", "-c", ON_OTHER_FDS, "sh", *command]
            with wide():
                return subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE if settings.stderr == "log" else None,
                    bufsize=0,
                    cwd=settings.cwd,
                    env=dict(env),
                    **_apart(),
                    user=user,
                    group=group,
                    extra_groups=further,
                    umask=-1 if settings.umask is None else settings.umask,
                )
        except (OSError, LookupError, ValueError, OverflowError) as exc:
            # The last three: a user or group that does not exist, and a NUL or a
            # surrogate in the environment.
            raise SpawnError(_why_not(settings, exc)) from exc
        except subprocess.SubprocessError as exc:
            raise SpawnError(_why_not(settings, exc)) from exc

    def _place(self, settings: "PoolSettings") -> None:
        """What is set from outside, a moment after its start.

        Between fork and exec only one thread lives, and a lock that another one held
        is held for ever: no code of ours may run there.
        """
        try:
            if settings.nice is not None:
                os.setpriority(os.PRIO_PROCESS, self.pid, settings.nice)
            if hasattr(resource, "prlimit"):
                for number, limit in settings.rlimits.items():
                    resource.prlimit(self.pid, number, limit)
        except (OSError, ValueError) as exc:
            raise SpawnError(f"its nice or rlimits cannot be set: {exc}") from exc
        try:
            # If memory runs out, the kernel takes a child and not the worker.
            with open(f"/proc/{self.pid}/oom_score_adj", "w") as file:
                file.write(OOM_SCORE)
        except OSError:
            pass  # not Linux, or it runs as another user: the kernel decides

    def __repr__(self) -> str:
        doing = (
            self.connection.state.value
            if self.state is State.ALIVE
            else self.exit_text() or self.state.value
        )
        return f"<Child {self._pool}: pid {self.pid}, {doing}>"

    # --- the conversation -------------------------------------------------------------

    @property
    def fit(self) -> bool:
        """Whether it can take a request: alive, not stopped, and with room for it."""
        stdin = self._process.stdin
        return (
            self.state is State.ALIVE
            and stdin is not None
            and not stdin.closed
            and not self.eof
            and self.connection.has_room
        )

    def send(self, request_id: str, line: bytes) -> bool:
        """Begin to write a request; False while part of it waits for `flush`."""
        self.connection.request(request_id, self._total)
        return self.tell(line)

    def tell(self, line: bytes) -> bool:
        """Begin to write a line that is no request; False as `send`."""
        self._total += len(line)
        if len(line) > self._stdin_size:
            # Then it goes out in one piece, and wakes its reader once.
            self._stdin_size = widen(self.stdin, self._stdin_size, len(line))
        self._unsent.append(line)
        return len(self._unsent) == 1 and self.flush()

    def flush(self) -> bool:
        """Write what the pipe takes; True when all is written.

        A child that closed its stdin is not an error here: `deaf` is set, and its owner
        decides.
        """
        while self._unsent:
            piece = self._unsent[0]
            try:
                written = write(self.stdin, piece)
            except BlockingIOError:
                return False
            except BrokenPipeError:
                self.deaf = True
                break
            if written == len(piece):
                self._unsent.popleft()
            else:
                self._unsent[0] = memoryview(piece)[written:]
        return True

    def untouched(self, request_id: str) -> bool:
        """Whether not one byte of it was read. Ask when it is `deaf`, or has exited.

        Then the request may go to another child: it cannot have been begun. What was
        written and not read is still in the pipe, whose other end is gone.
        """
        unread = array.array("i", [0])
        try:
            fcntl.ioctl(self.stdin, termios.FIONREAD, unread)
        except OSError:
            return False
        read = self._total - unread[0] - sum(map(len, self._unsent))
        return read <= self.connection.requests[request_id]

    def receive(self) -> Optional[List[Event]]:
        """What it said since, without waiting; None if it said nothing.

        `eof` is set at the end of its stdout.
        """
        if self.eof:
            return None
        try:
            data = read(self.stdout)
        except BlockingIOError:
            return None
        if len(data) >= self._stdout_size:
            # It was full, so its writer waits.
            size = self._stdout_size
            self._stdout_size = widen(self.stdout, size, 2 * size)
        if not data:
            self.eof = True
            self.leftover = self.connection.receive_eof()
            return []
        return self.connection.receive(data)

    # --- the process ------------------------------------------------------------------

    def stop(self) -> None:
        """Ask politely: a line to those that know it, and the end of its stdin."""
        assert self._process.stdin
        if self.understands("stop") and not self._unsent:
            self.tell(STOP)
        self._process.stdin.close()
        self._unsent.clear()

    def understands(self, op: str) -> bool:
        """Whether its hello says that it knows this line."""
        hello = self.connection.hello
        return hello is not None and op in hello.features

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def signal_group(self, signum: int) -> None:
        """Any signal to the whole group."""
        self._signal(signum)

    def signal(self, signum: int) -> None:
        """Any signal to the child alone, which decides what it means."""
        if self.state is State.ALIVE:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL to the whole group: grandchildren would hold the pipes open."""
        self._killed = self._killed or self.state is State.ALIVE
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        # After it was reaped the number may be somebody else's.
        if self.state is not State.REAPED:
            try:
                os.killpg(self.pid, signum)
            except ProcessLookupError:
                pass  # nobody is left in the group
            except PermissionError:
                # A group of zombies on macOS, or a child that changed its user.
                pass

    def has_exited(self) -> bool:
        """Whether the process ended. Does not reap it where that can be avoided."""
        if self.state is State.ALIVE:
            if hasattr(os, "waitid"):
                options = os.WEXITED | os.WNOHANG | os.WNOWAIT
                if _waitable(self.pid, options):
                    self.state = State.EXITED
            elif self._process.poll() is not None:
                self.state = State.EXITED
        return self.state is not State.ALIVE

    def reap(self) -> None:
        """Kill what is left of its group, collect it, close our ends. Never waits."""
        assert self.state is State.EXITED
        self.kill()
        self._process.wait()
        self.state = State.REAPED
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        if self.exit is not None:
            os.close(self.exit)
            self.exit = None

    def discard(self) -> None:
        """Undo its start: nobody has it yet. Waits for the end of a killed process."""
        self.kill()
        self._process.wait()
        self.state = State.EXITED
        self.reap()
        if self.stderr is not None:
            os.close(self.stderr)

    def ended_from_outside(self) -> bool:
        """Whether somebody else sent it SIGKILL or SIGTERM; known once it is reaped."""
        signals = (-signal.SIGKILL, -signal.SIGTERM)
        return not self._killed and self._process.returncode in signals

    def exit_text(self) -> str:
        """How it ended, for people: the status, or the signal by its name."""
        code = self._process.returncode
        if code is None:
            return ""
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        oom = -code == signal.SIGKILL and not self._killed
        hint = " (out of memory?)" if oom else ""
        return f"was killed by {name}{hint}"


def _apart() -> Dict[str, Any]:
    """What makes a child lead a group of its own: its grandchildren end with it.

    Where there is a terminal, also a session of its own: neither its keys nor its end
    reach the child, and the child cannot ask there for a password. Elsewhere a session
    means nothing but a scheduling group of its own (autogroup(7)), and each hand-over
    from the worker to the child and back is one between groups.
    """
    if sys.version_info < (3, 11) or _has_terminal():
        return {"start_new_session": True}
    return {"process_group": 0}


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _waitable(pid: int, options: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, options) is not None
    except ChildProcessError:
        return True  # somebody else waited for all children of the process


def _detach(stream: "Optional[IO[bytes]]") -> Optional[int]:
    if stream is None:
        return None
    fd = os.dup(stream.fileno())
    stream.close()
    return fd


def _exit_fd(pid: int) -> Optional[int]:
    """A descriptor that becomes readable when the process ends; Linux only."""
    pidfd_open = getattr(os, "pidfd_open", None)
    if pidfd_open is None:
        return None
    try:
        fd: int = pidfd_open(pid)
    except OSError:
        return None  # a kernel before 5.3, or a sandbox without it
    return fd


def _why_not(settings: "PoolSettings", exc: BaseException) -> str:
    command = settings.command[0]
    if isinstance(exc, (FileNotFoundError, NotADirectoryError)):
        if settings.cwd is not None and not os.path.isdir(settings.cwd):
            return f"its cwd {settings.cwd!r} is no folder"
        return f"the command {command!r} was not found"
    if isinstance(exc, PermissionError):
        return f"the command {command!r} may not be executed ({exc.strerror})"
    return f"the command {command!r} could not be started: {exc}"
