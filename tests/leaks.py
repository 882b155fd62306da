"""What a test may not leave behind: processes, file descriptors, threads.

Three nets, because each of them has a hole. Children of the test process are found
through the process tree, which an orphan has left. Orphans are found by the
test's id in their environment, which a child started with a scrubbed environment
has lost. Such a child still has its working directory inside the test's folder.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

#: Every process started for a test carries the test's id in this variable.
TEST_ID = "LINEPOOL_TEST_ID"
#: Everything started by one test session, the session's servers too, carries this.
SESSION_ID = "LINEPOOL_TEST_SESSION"

#: A process that was told to end needs a moment, and a slow machine a longer one.
GRACE = 10.0


def marked_processes(
    variable: str, value: str, folders: Iterable[Path] = ()
) -> Iterator[psutil.Process]:
    """Processes anywhere on the machine that carry the mark or live in a folder."""
    needle = f"{variable}={value}".encode()
    roots = [os.path.realpath(folder) for folder in folders]
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError, psutil.NoSuchProcess):
            with open(f"/proc/{name}/environ", "rb") as environ:
                marked = needle in environ.read().split(b"\0")
            if marked or _is_inside(os.readlink(f"/proc/{name}/cwd"), roots):
                yield psutil.Process(int(name))


def _is_inside(path: str, roots: list[str]) -> bool:
    return any(path == root or path.startswith(root + os.sep) for root in roots)


def kill_marked(
    variable: str, value: str, folders: Iterable[Path] = (), timeout: float = 10.0
) -> None:
    """Kill until nothing carries the mark: what is killed may just have forked."""
    deadline = time.monotonic() + timeout
    folders = list(folders)
    while victims := list(_running(marked_processes(variable, value, folders))):
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        # Not psutil's wait: it would reap our own children behind Popen's back.
        time.sleep(0.02)
        if time.monotonic() > deadline:
            raise TimeoutError(f"cannot be killed: {describe(victims)}")


def _running(processes: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    # An orphan's zombie belongs to init: nothing that we could still do about it.
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process


def describe(processes: Iterable[psutil.Process]) -> str:
    lines = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            try:
                command = " ".join(process.cmdline())[:200]
            except psutil.ZombieProcess:
                command = ""
            lines.append(
                f"pid {process.pid} (parent {process.ppid()}, {process.status()}):"
                f" {command or process.name()}"
            )
    return "; ".join(lines)


@dataclass
class Snapshot:
    """What the test process holds at one moment."""

    children: set[psutil.Process]
    fds: Counter[str]
    threads: set[threading.Thread]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(own_children(), open_files(), set(threading.enumerate()))


#: Children that outlive a test on purpose: the session's servers and its watchdog.
session_processes: set[int] = set()


def own_children() -> set[psutil.Process]:
    """All descendants of this process, but for the session's own."""
    found: set[psutil.Process] = set()
    waiting = psutil.Process().children()
    while waiting:
        process = waiting.pop()
        if process.pid in session_processes:
            continue
        found.add(process)
        with suppress(psutil.NoSuchProcess):
            waiting.extend(process.children())
    return found


def open_files() -> Counter[str]:
    targets: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        # The one that lists the folder is gone by now.
        with suppress(FileNotFoundError):
            targets[os.readlink(f"/proc/self/fd/{fd}")] += 1
    return targets


@dataclass
class LeakGuard:
    """Remembers what was there before a test and says what has come to stay."""

    test_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    #: A process whose working directory is in one of these belongs to the test.
    folders: list[Path] = field(default_factory=list)
    before: Snapshot = field(default_factory=Snapshot.take)

    def processes(self) -> list[psutil.Process]:
        """Every live process of the test, however far it has wandered."""
        return list(_running(marked_processes(TEST_ID, self.test_id, self.folders)))

    def leaks(self) -> list[str]:
        """One sentence per leak; empty when the test was tidy."""
        now = Snapshot.take()
        found = []
        if children := now.children - self.before.children:
            if text := describe(children):
                found.append(f"child processes of the test: {text}")
        strays = [p for p in self.processes() if p not in children]
        if text := describe(strays):
            found.append(f"processes with the mark of the test: {text}")
        if fds := now.fds - self.before.fds:
            found.append(f"file descriptors: {', '.join(sorted(fds.elements()))}")
        if threads := now.threads - self.before.threads:
            names = sorted(f"{t.name} ({type(t).__name__})" for t in threads)
            found.append(f"threads: {', '.join(names)}")
        return found

    def settle(self, grace: float = GRACE) -> list[str]:
        """The leaks that are still there after a time of grace."""
        deadline = time.monotonic() + grace
        collected = False
        while found := self.leaks():
            if not collected:
                # Clients keep their sockets in reference cycles.
                gc.collect()
                collected = True
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(0.05)
        return found

    def clean(self) -> None:
        """Kill what was leaked, so that one bad test does not spoil the next."""
        for child in own_children() - self.before.children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        kill_marked(TEST_ID, self.test_id, self.folders)


@pytest.fixture(autouse=True)
def leak_guard() -> Iterator[LeakGuard]:
    """Fails the test that leaves a process, a descriptor or a thread behind."""
    # No fixture is requested here: autouse fixtures come first and so end last,
    # and hypothesis rejects function-scoped ones that an autouse one drags in.
    guard = LeakGuard()
    outer = os.environ.get(TEST_ID)
    os.environ[TEST_ID] = guard.test_id
    try:
        yield guard
    finally:
        if outer is None:
            del os.environ[TEST_ID]
        else:
            os.environ[TEST_ID] = outer
    if found := guard.settle():
        guard.clean()
        pytest.fail("the test leaked " + "\n  and ".join(found), pytrace=False)
