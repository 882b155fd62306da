"""What children write to stderr: always read, never kept whole, safe to show."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from localprocess import eventually

from celery_linepool.stderr import REMEMBERED, Drain, Stream
from celery_linepool.voice import LONGEST, RATE, printable

pytestmark = pytest.mark.outer_celerys

CHILDREN = Path(__file__).with_name("children")
PATIENCE = 30.0
LOGGER = "celery_linepool.child.pool"


@pytest.fixture
def drain() -> Iterator[Drain]:
    drain = Drain()
    drain.start()
    yield drain
    drain.stop()


@pytest.fixture
def stream() -> Iterator[tuple[Stream, int]]:
    """A stream, and the end that its child would write to."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    yield Stream(read_fd, "pool", 3, 4711, logging.INFO), write_fd
    for fd in (read_fd, write_fd):
        with suppress(OSError):  # the test may have closed it
            os.close(fd)


class Run:
    """A child whose stderr a `Drain` reads."""

    def __init__(self, drain: Drain, argv: list[str]) -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=-1
        )
        assert self.process.stderr is not None
        fd = os.dup(self.process.stderr.fileno())
        self.process.stderr.close()
        self.stream = Stream(fd, "pool", 3, self.process.pid, logging.INFO)
        self._drain = drain
        drain.add(self.stream)

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def tail(self) -> list[str]:
        """Its last lines, once it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        last: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._drain.finish(self.stream, last.put)
        return last.get(timeout=PATIENCE)


Start = Callable[..., Run]


@pytest.fixture
def start(drain: Drain) -> Iterator[Start]:
    runs: list[Run] = []

    def start(*argv: str) -> Run:
        runs.append(Run(drain, list(argv)))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
        assert run.process.stdin is not None
        run.process.stdin.close()


# --- one line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, text",
    [
        (b"plain", "plain"),
        (b"windows\r", "windows"),
        (b"", ""),
        ("Zoë \u2603".encode(), "Zoë \u2603"),
        (b"\xff\xfe bytes", "\\xff\\xfe bytes"),
        (b"cut \xc3", "cut \\xc3"),
        (b"a\tb", "a\tb"),
        (b"\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        (b"back\x08space \x07 \x00", "back\\x08space \\x07 \\x00"),
        (b"over\rwritten", "over\\x0dwritten"),
        (b"\x7f", "\\x7f"),
        # One character that some terminals take for an escape.
        ("\x9b31m".encode(), "\\x9b31m"),
    ],
)
def test_a_line_is_safe_to_show(line: bytes, text: str) -> None:
    assert printable(line) == text


def test_no_byte_at_all_reaches_a_terminal_as_a_control() -> None:
    text = printable(bytes(range(256)) + "".join(map(chr, range(256))).encode())
    assert [c for c in text if not c.isprintable() and c not in "\t\xa0\xad"] == []


# --- one stream -----------------------------------------------------------------------


def test_lines_are_put_together_from_pieces(stream: tuple[Stream, int]) -> None:
    reader, fd = stream
    for piece in (b"on", b"e\ntw", b"o\n", b"thr"):
        os.write(fd, piece)
        assert reader.read() is True
    assert reader.tail() == ["one", "two"]
    os.close(fd)
    assert reader.read() is False
    reader.drain()
    assert reader.tail() == ["one", "two", "thr"]


def test_reading_never_waits(stream: tuple[Stream, int]) -> None:
    reader, _ = stream
    assert reader.read() is True
    assert reader.tail() == []


def test_only_the_last_lines_are_remembered(stream: tuple[Stream, int]) -> None:
    reader, fd = stream
    os.write(fd, b"".join(b"%d\n" % number for number in range(100)))
    reader.read()
    assert reader.tail() == [str(n) for n in range(100 - REMEMBERED, 100)]


def test_a_line_without_an_end_is_cut(stream: tuple[Stream, int]) -> None:
    reader, fd = stream
    for _ in range(10):
        os.write(fd, b"x" * 5000)
        reader.read()
        assert len(reader._partial) < LONGEST
    assert max(map(len, reader.tail())) == LONGEST


def test_draining_does_not_wait_for_whoever_holds_the_pipe(
    stream: tuple[Stream, int],
) -> None:
    reader, fd = stream
    os.write(fd, b"the last words")
    reader.drain()
    assert reader.tail() == ["the last words"]
    with pytest.raises(BrokenPipeError):
        os.write(fd, b"x")


def test_draining_takes_all_that_a_pipe_holds(stream: tuple[Stream, int]) -> None:
    reader, fd = stream
    os.set_blocking(fd, False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            os.write(fd, b"%04d\n" % count)
            count += 1
    reader.drain()
    assert reader.tail() == [f"{n:04d}" for n in range(count - REMEMBERED, count)]


def test_a_record_says_where_it_comes_from(
    stream: tuple[Stream, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, fd = stream
    caplog.set_level(logging.INFO, LOGGER)
    os.write(fd, b"idle\n")
    reader.read()
    reader.task_id = "task-1"
    os.write(fd, b"100 % busy\n")
    reader.read()
    idle, busy = caplog.records
    assert idle.name == LOGGER and idle.levelno == logging.INFO
    assert busy.getMessage() == "[pool pid 4711] 100 % busy"
    for record, task_id in ((idle, None), (busy, "task-1")):
        fields = vars(record)
        assert fields["linepool_pool"] == "pool"
        assert fields["linepool_slot"] == 3
        assert fields["linepool_pid"] == 4711
        assert fields["linepool_task_id"] == task_id


def test_what_is_too_fast_for_the_log_is_counted(
    stream: tuple[Stream, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, fd = stream
    caplog.set_level(logging.INFO, LOGGER)
    lines = 10 * RATE
    os.write(fd, b"x\n" * lines)
    reader.read()
    reader.drain()
    texts = [record.getMessage().rpartition("] ")[2] for record in caplog.records]
    reports = [text for text in texts if "did not reach" in text]
    dropped = sum(int(text.split()[1]) for text in reports)
    assert dropped and len(texts) - len(reports) + dropped == lines
    # Reading may have gone on into another second, not into many.
    assert len(texts) <= 3 * (RATE + 1)


# --- real children --------------------------------------------------------------------


def test_the_last_lines_of_a_dying_child(start: Start) -> None:
    run = start("sh", "-c", "echo one >&2; echo two >&2; printf three >&2; exit 1")
    assert run.tail() == ["one", "two", "three"]


def test_a_child_that_is_killed_while_it_writes(start: Start) -> None:
    run = start("sh", "-c", "echo before >&2; kill -9 $$")
    assert run.tail() == ["before"]
    assert run.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "argv, last",
    [
        (["ruby", str(CHILDREN / "floods_stderr.rb")], "the last line"),
        (["perl", str(CHILDREN / "endless_line.pl")], "x"),
    ],
    ids=["lines", "one line"],
)
def test_a_flood_is_read_in_bounded_memory(
    start: Start, argv: list[str], last: str
) -> None:
    logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
    tracemalloc.start()
    try:
        tail = start(*argv).tail()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        logging.getLogger(LOGGER).setLevel(logging.NOTSET)
    assert tail[-1].endswith(last)
    assert len(tail) <= REMEMBERED
    # 24 MB went through.
    assert peak < 4_000_000


def test_a_flood_does_not_hold_up_the_others(start: Start) -> None:
    logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
    try:
        flood = start("sh", "-c", "while :; do echo flood >&2; done")
        eventually(lambda: flood.stream.tail(), PATIENCE)
        quiet = start("sh", "-c", "read -r x; echo quiet >&2")
        quiet.tell(b"\n")
        assert quiet.tail() == ["quiet"]
        flood.process.kill()
        assert set(flood.tail()) <= {"flood", "floo", "flo", "fl", "f"}
    finally:
        logging.getLogger(LOGGER).setLevel(logging.NOTSET)


def test_a_stream_that_ended_before_its_child(start: Start) -> None:
    run = start("sh", "-c", "echo closing >&2; exec 2>&-; read -r x")
    eventually(lambda: run.stream.tail() == ["closing"], PATIENCE)
    assert run.tail() == ["closing"]


def test_a_grandchild_that_holds_the_pipe_does_not_hold_up_the_end(
    start: Start,
) -> None:
    run = start(sys.executable, str(CHILDREN / "escapes_with_stderr.py"))
    run.tell(b"\n")
    [pid] = run.tail()
    os.kill(int(pid), signal.SIGKILL)


def test_nothing_stays_open(drain: Drain) -> None:
    def targets() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    before = targets()
    runs = [Run(drain, ["sh", "-c", "echo x >&2"]) for _ in range(10)]
    assert [run.tail() for run in runs] == [["x"]] * 10
    assert targets() == before


def test_a_log_handler_that_fails_does_not_stop_the_reading(
    start: Start, drain: Drain
) -> None:
    """The user's logging is the user's; a child must not be stopped by it."""

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("a filter of the user's")

    broken = Broken()
    logger = logging.getLogger(LOGGER)
    logger.addFilter(broken)
    logger.setLevel(logging.INFO)
    try:
        first = start("sh", "-c", "echo one >&2")
        assert first.tail() == ["one"]
        assert drain.is_alive()
    finally:
        logger.removeFilter(broken)
        logger.setLevel(logging.NOTSET)
