"""Reading and writing pipes that never block, without giving up the interpreter's lock.

`os.read` and `os.write` let other threads run meanwhile, and whoever wants to go on
then waits until another thread gives way: up to 5 ms (`sys.getswitchinterval`), for a
call of some microseconds. The engine makes several for each task while the worker's
main thread is busy with Celery. Only with `O_NONBLOCK`: all threads stand still.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys
import threading
from typing import Union

#: Bytes that a pipe holds when it is made (Linux).
PIPE = 65536
#: Bytes that a pipe is made to hold at the most, and that one call reads. All pipes of
#: a user may have 64 MiB together (`/proc/sys/fs/pipe-user-pages-soft`), beyond which a
#: new one holds 8 KiB: so many are enough for 128 children.
SIZE = 256 * 1024
#: Of fcntl; Python has a name for it from 3.10 on.
_SET_PIPE_SIZE = 1031

_libc = ctypes.PyDLL(None, use_errno=True)
_read, _write = _libc.read, _libc.write
_read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_read.restype = _write.restype = ctypes.c_ssize_t


class Buffer(threading.local):
    """Room for what is read: each thread has its own."""

    def __init__(self) -> None:
        # The kernel gives memory to as much of it as was ever used. Private: a process
        # that was forked must not read into the room of the one that it came from.
        self._view = memoryview(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._view))

    def read(self, fd: int) -> bytes:
        """As `os.read`, of up to `SIZE` bytes.

        Raises:
            OSError: as `os.read`; BlockingIOError if there is nothing to read.
        """
        size = _read(fd, self._address, SIZE)
        if size < 0:
            raise _error()
        return self._view[:size].tobytes()


#: As `os.read`, see `Buffer.read`; with the room of the thread that calls.
read = Buffer().read


def write(fd: int, data: Union[bytes, memoryview]) -> int:
    """As `os.write`; how many bytes were taken. Of a view up to `PIPE`.

    Raises:
        OSError: as `os.write`; BlockingIOError if the pipe is full.
    """
    # A view is copied, and a slow reader takes little of it each time.
    piece = data if isinstance(data, bytes) else bytes(data[:PIPE])
    size: int = _write(fd, piece, len(piece))
    if size < 0:
        raise _error()
    return size


def widen(fd: int, size: int, wanted: int) -> int:
    """Have a pipe of `size` bytes hold as many as are wanted, or `SIZE` of them.

    What it holds then; `sys.maxsize` where it grows no more, and need not be asked to.
    """
    if sys.platform != "linux":
        return sys.maxsize
    try:
        found = fcntl.fcntl(fd, _SET_PIPE_SIZE, min(wanted, SIZE))
    except OSError:
        return sys.maxsize
    return found if found > size else sys.maxsize


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
