"""Pipes that do not block: the same as `os.read` and `os.write`, but for the lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from celery_linepool.syscalls import PIPE, SIZE, Buffer, widen, write

PATIENCE = 30.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass  # the test has closed it


def test_what_is_written_is_read(pipe: tuple[int, int]) -> None:
    data = b"a\0b\n\xff" * 100
    assert write(pipe[1], memoryview(data)) == len(data)
    assert Buffer().read(pipe[0]) == data


def test_what_was_read_stays_what_it_was(pipe: tuple[int, int]) -> None:
    buffer = Buffer()
    os.write(pipe[1], b"first")
    first = buffer.read(pipe[0])
    os.write(pipe[1], b"other")
    assert buffer.read(pipe[0]) == b"other"
    assert first == b"first"


#: In a process without other threads, of which Python lets nobody fork.
FORKS = """
import os
from celery_linepool.syscalls import Buffer, write

buffer, (read_fd, write_fd) = Buffer(), os.pipe()
write(write_fd, b"ours")
assert buffer.read(read_fd) == b"ours"
write(write_fd, b"theirs")
forked = os.fork()
if not forked:
    os._exit(buffer.read(read_fd) != b"theirs")
assert os.waitpid(forked, 0)[1] == 0
assert bytes(buffer._view[:4]) == b"ours", bytes(buffer._view[:6])
"""


def test_a_forked_process_has_room_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=PATIENCE)


def test_of_a_view_no_more_is_copied_than_a_pipe_takes(pipe: tuple[int, int]) -> None:
    assert widen(pipe[1], PIPE, SIZE) == SIZE
    assert write(pipe[1], memoryview(bytes(SIZE))) == PIPE
    assert write(pipe[1], bytes(SIZE)) == SIZE - PIPE


def test_an_empty_pipe_and_a_full_one(pipe: tuple[int, int]) -> None:
    with pytest.raises(BlockingIOError):
        Buffer().read(pipe[0])
    data = memoryview(bytes(SIZE * 100))
    taken = 0
    with pytest.raises(BlockingIOError):
        while True:
            taken += write(pipe[1], data)
    found = 0
    while found < taken:
        found += len(Buffer().read(pipe[0]))
    assert found == taken > 0


def test_ends_that_are_closed(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    assert Buffer().read(pipe[0]) == b""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with pytest.raises(BrokenPipeError):
        write(write_fd, memoryview(b"lost"))
    os.close(write_fd)
    with pytest.raises(OSError) as error:
        write(write_fd, memoryview(b"lost"))
    assert error.value.strerror == "Bad file descriptor"


def test_a_wider_pipe_takes_more_at_once(pipe: tuple[int, int]) -> None:
    assert write(pipe[1], bytes(SIZE)) == PIPE
    assert widen(pipe[1], PIPE, PIPE + 1) == 2 * PIPE
    assert write(pipe[1], bytes(SIZE)) == PIPE
    assert widen(pipe[0], 2 * PIPE, 100 * SIZE) == SIZE
    assert write(pipe[1], bytes(SIZE)) == SIZE - 2 * PIPE
    assert len(Buffer().read(pipe[0])) == SIZE


def test_one_that_grows_no_more_is_not_asked_again(pipe: tuple[int, int]) -> None:
    assert widen(pipe[1], SIZE, 2 * SIZE) == sys.maxsize
    with open(os.devnull) as no_pipe:
        assert widen(no_pipe.fileno(), PIPE, SIZE) == sys.maxsize


def test_nobody_else_runs_meanwhile(pipe: tuple[int, int]) -> None:
    """With a long switch interval only who gives up the lock lets others run."""
    interval, counted, go_on = sys.getswitchinterval(), [0], [True]

    def count() -> None:
        while go_on[0]:
            counted[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    sys.setswitchinterval(100)
    try:
        thread.start()
        while not counted[0]:
            time.sleep(0.001)
        buffer, before = Buffer(), counted[0]
        for _ in range(2000):
            write(pipe[1], memoryview(b"x"))
            buffer.read(pipe[0])
        ours = counted[0] - before
        # And the other one would have counted: a busy machine may take its time.
        end = time.monotonic() + PATIENCE
        while counted[0] == before + ours and time.monotonic() < end:
            os.write(pipe[1], b"x")
            os.read(pipe[0], 1)
        theirs = counted[0] - before - ours
    finally:
        sys.setswitchinterval(interval)
        go_on[0] = False
        thread.join()
    assert ours == 0 < theirs
