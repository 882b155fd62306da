"""`os.read` and `os.write` for descriptors that never block, without giving up the GIL.

Python lets other threads run around each system call, and a thread that wants to go on
afterwards waits until another one gives way: up to 5 ms (`sys.getswitchinterval`), for a
call that takes some microseconds. The engine makes several of them for each task while
the worker's main thread is busy, so this is what its time went into.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.read.restype = ctypes.c_ssize_t
_libc.write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_libc.write.restype = ctypes.c_ssize_t

SIZE = 65536
_buffer = ctypes.create_string_buffer(SIZE)
_view = memoryview(_buffer)


def read(fd: int) -> bytes:
    size = _libc.read(fd, _buffer, SIZE)
    if size < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return _view[:size].tobytes()


def write(fd: int, data: bytes) -> int:
    size = _libc.write(fd, data, len(data))
    if size < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return size
