"""What a worker leaves behind when it is killed, and who cleans up after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from localprocess import eventually

from celery_linepool.guardian import Guardian

CHILDREN = Path(__file__).with_name("children")
PATIENCE = 30.0


def is_dead(pid: int) -> bool:
    try:
        # An orphan's zombie is init's affair.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_dead(*pids: int) -> None:
    for pid in pids:
        eventually(lambda pid=pid: is_dead(pid), PATIENCE, 0.01, f"end of {pid}")


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    guardian = Guardian()
    guardian.start()
    yield guardian
    guardian.stop()


@pytest.fixture
def start_group() -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


StartGroup = Callable[[], "subprocess.Popen[bytes]"]


def barrier(guardian: Guardian) -> None:
    """Return when the guardian has done all that it was told to; it ends then."""
    guardian._close_pipe()
    assert guardian._process is not None
    assert guardian._process.wait(PATIENCE) == 0


# --- a worker that is gone ------------------------------------------------------------

#: A worker of a few lines: a guardian and a child that nothing but SIGKILL ends, with
#: a grandchild. It tells the pids and waits for its own end.
WORKER = """
    import os, subprocess, sys
    from celery_linepool.guardian import Guardian

    guardian = Guardian()
    guardian.start()
    script = "trap '' HUP INT TERM; sleep 600 & echo $! >&2; exec " + sys.argv[1]
    child = subprocess.Popen(
        ["sh", "-c", script],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )
    guardian.watch(child.pid)
    grandchild = int(child.stderr.readline())
    assert child.stderr.readline() == b"ready\\n"
    print(guardian.pid, child.pid, grandchild, flush=True)
"""


class Worker:
    def __init__(self, more: str = "") -> None:
        script = textwrap.dedent(WORKER) + textwrap.dedent(more)
        child = f"ruby {CHILDREN / 'ignores_eof.rb'}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.guardian, self.child, self.grandchild = map(int, self.line().split())

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_worker() -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(more: str) -> Worker:
        started.append(Worker(more))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


WAIT = "sys.stdin.readline()\n"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_worker_that_is_killed_takes_everything_with_it(
    start_worker: Callable[..., Worker], signum: int
) -> None:
    worker = start_worker(WAIT)
    assert not is_dead(worker.child) and not is_dead(worker.grandchild)
    os.kill(worker.process.pid, signum)
    worker.process.wait()
    wait_until_dead(worker.child, worker.grandchild, worker.guardian)


def test_a_signal_to_the_workers_group_does_not_reach_the_guardian(
    start_worker: Callable[..., Worker],
) -> None:
    worker = start_worker(WAIT)
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    wait_until_dead(worker.child, worker.grandchild, worker.guardian)


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
)
def test_the_guardian_stays_when_everybody_is_told_to_go(
    start_worker: Callable[..., Worker], signum: int
) -> None:
    worker = start_worker(WAIT)
    os.kill(worker.guardian, signum)
    worker.process.kill()
    worker.process.wait()
    wait_until_dead(worker.child, worker.grandchild, worker.guardian)


#: A fork that lives on, as Celery's embedded beat does.
FORK = """
    fork = os.fork()
    if not fork:
        import time
        time.sleep(600)
    print(fork, flush=True)
    sys.stdin.readline()
"""


def test_a_fork_of_the_worker_does_not_keep_its_guardian_waiting(
    start_worker: Callable[..., Worker],
) -> None:
    worker = start_worker(FORK)
    fork = int(worker.line())
    try:
        worker.process.kill()
        worker.process.wait()
        wait_until_dead(worker.child, worker.grandchild, worker.guardian)
        assert not is_dead(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_the_end_of_a_fork_ends_nothing_else(
    start_worker: Callable[..., Worker],
) -> None:
    more = """
        fork = os.fork()
        if not fork:
            sys.exit()
        os.waitpid(fork, 0)
        print("forked", flush=True)
        sys.stdin.readline()
    """
    worker = start_worker(more)
    assert worker.line() == "forked\n"
    assert not is_dead(worker.guardian)
    assert not is_dead(worker.child)


#: Nothing of a killed guardian is noticed before there is something to tell it.
RESTART = """
    sys.stdin.readline()
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    guardian.watch(other.pid)
    print(guardian.pid, other.pid, flush=True)
    sys.stdin.readline()
"""


def test_a_guardian_that_was_killed_is_replaced_and_knows_every_group(
    start_worker: Callable[..., Worker],
) -> None:
    worker = start_worker(RESTART)
    os.kill(worker.guardian, signal.SIGKILL)
    wait_until_dead(worker.guardian)
    worker.say()
    guardian, other = map(int, worker.line().split())
    assert guardian != worker.guardian
    worker.process.kill()
    worker.process.wait()
    wait_until_dead(worker.child, worker.grandchild, other, guardian)


# --- what it knows --------------------------------------------------------------------


@pytest.mark.parametrize("forgotten", [[0], [1], [2], [0, 2], [2, 1], [0, 1, 2]])
def test_a_group_that_was_given_up_is_left_alone(
    guardian: Guardian, start_group: StartGroup, forgotten: list[int]
) -> None:
    groups = [start_group() for _ in range(3)]
    for group in groups:
        guardian.watch(group.pid)
    for index in forgotten:
        guardian.unwatch(groups[index].pid)
    barrier(guardian)
    for index, group in enumerate(groups):
        if index in forgotten:
            assert group.poll() is None
        else:
            assert group.wait(PATIENCE) == -signal.SIGKILL


def test_a_group_is_not_taken_for_another_whose_number_it_is_part_of(
    guardian: Guardian, start_group: StartGroup
) -> None:
    group = start_group()
    guardian.watch(group.pid)
    for other in (group.pid * 10, int(f"1{group.pid}"), int(str(group.pid)[1:] or 0)):
        guardian._tell(f"- {other}\n")
    barrier(guardian)
    assert group.wait(PATIENCE) == -signal.SIGKILL


def test_a_group_may_be_given_up_that_was_never_watched(
    guardian: Guardian, start_group: StartGroup
) -> None:
    group = start_group()
    guardian.unwatch(group.pid)
    guardian.watch(group.pid)
    guardian.unwatch(group.pid)
    barrier(guardian)
    assert group.poll() is None


def test_many_groups_come_and_go(guardian: Guardian, start_group: StartGroup) -> None:
    kept, given_up = start_group(), start_group()
    guardian.watch(kept.pid)
    guardian.watch(given_up.pid)
    for number in range(1, 2000):
        # No process can have these numbers.
        guardian._tell(f"+ {2**30 + number}\n- {2**30 + number}\n")
    guardian.unwatch(given_up.pid)
    barrier(guardian)
    assert kept.wait(PATIENCE) == -signal.SIGKILL
    assert given_up.poll() is None


# --- start and stop -------------------------------------------------------------------


def test_a_clean_stop_kills_nothing(start_group: StartGroup) -> None:
    guardian = Guardian()
    guardian.start()
    group = start_group()
    guardian.watch(group.pid)
    guardian.unwatch(group.pid)
    guardian.stop()
    assert group.poll() is None
    assert guardian.pid is None


def test_stopping_twice_and_stopping_what_never_started() -> None:
    guardian = Guardian()
    guardian.stop()
    guardian.start()
    guardian.stop()
    guardian.stop()


def test_a_guardian_that_was_killed_can_be_stopped() -> None:
    guardian = Guardian()
    guardian.start()
    assert guardian.pid is not None
    os.kill(guardian.pid, signal.SIGKILL)
    guardian.stop()


def test_nothing_stays_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    guardian = Guardian()
    guardian.start()
    guardian.stop()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_guardian_that_was_killed_is_spoken_of(
    guardian: Guardian, start_group: StartGroup, caplog: pytest.LogCaptureFixture
) -> None:
    old = guardian.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    wait_until_dead(old)
    group = start_group()
    guardian.watch(group.pid)
    assert f"guardian (pid {old}) was killed" in caplog.text
    guardian.unwatch(group.pid)


def test_it_stands_in_nobodys_way(guardian: Guardian) -> None:
    assert guardian.pid is not None
    process = psutil.Process(guardian.pid)
    # A folder that is in use could not be unmounted.
    assert process.cwd() == "/"
    assert os.getsid(guardian.pid) == guardian.pid
