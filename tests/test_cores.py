"""Which threads and processes of a worker share a core, and which do not."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from workers import eventually

from celery_linepool import cores

LIVES = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]
ALL = os.sched_getaffinity(0)
TASKS = """
    import os, threading

    @app.task
    def where():
        return sorted(os.sched_getaffinity(0)), threading.current_thread().name
"""


@pytest.fixture
def whole():
    yield
    cores.release()
    assert os.sched_getaffinity(0) == ALL


def affinities(pid):
    """Of each thread of a process, by its number; the main thread's is the pid."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        status = (thread / "status").read_text()
        [listed] = re.findall(r"^Cpus_allowed_list:\t(.*)$", status, re.M)
        found[int(thread.name)] = listed
    return found


def test_a_worker_on_one_core_and_its_children_on_all(start_worker):
    worker = start_worker(
        "redis", LIVES, args=("-c", "2"), conf={"linepool_one_core": True}, tasks=TASKS
    )
    pid = worker.call("lives.pid")
    everywhere = affinities(os.getpid())[os.getpid()]
    main = affinities(worker.pid)[worker.pid]
    assert main.isdigit() and int(main) in ALL
    # Engine, monitor and the drain of stderr are with it.
    assert list(affinities(worker.pid).values()).count(main) >= 4
    assert set(affinities(pid).values()) == {everywhere}
    assert set(affinities(worker.pid).values()) <= {main, everywhere}

    seen, thread = worker.call("proj.where")
    assert set(seen) == ALL and thread.startswith("linepool-task")

    psutil.Process(pid).kill()
    eventually(lambda: worker.children("lives") and pid not in pids(worker))
    assert {c for p in pids(worker) for c in affinities(p).values()} == {everywhere}
    assert worker.stop() == 0


def test_the_embedded_beat_has_all_cores(start_worker, tmp_path):
    """It is a fork of the worker, and shares no interpreter with it."""
    worker = start_worker(
        "redis",
        LIVES,
        args=("-c", "1", "-B", "-s", str(tmp_path / "schedule")),
        conf={"linepool_one_core": True},
    )
    worker.wait_for_log("beat: Starting")
    [beat] = worker.children(r" worker |beat")
    everywhere = affinities(os.getpid())[os.getpid()]
    assert set(affinities(beat.pid).values()) == {everywhere}
    assert affinities(worker.pid)[worker.pid].isdigit()
    assert worker.stop() == 0


def pids(worker):
    return [child.pid for child in worker.children("lives")]


def test_a_worker_on_a_core_that_is_named(start_worker):
    core = max(ALL)
    conf = {"linepool_one_core": core}
    worker = start_worker("redis", LIVES, args=("-c", "1"), conf=conf)
    assert affinities(worker.pid)[worker.pid] == str(core)


def test_it_is_off_by_default(start_worker):
    worker = start_worker(
        "redis", LIVES, args=("-c", "1"), conf={"linepool_one_core": False}
    )
    everywhere = affinities(os.getpid())[os.getpid()]
    assert set(affinities(worker.pid).values()) == {everywhere}


def test_a_core_that_is_not_there_keeps_a_worker_from_starting(start_worker):
    conf = {"linepool_one_core": 100_000}
    worker = start_worker("redis", LIVES, conf=conf, wait=False)
    assert worker.wait() != 0
    assert "linepool_one_core: must be True, False or one of the cores" in worker.log


def test_a_core_that_another_worker_has_is_not_taken(whole):
    """Others may have claimed some already: the tests of other programs run, too."""
    claims = []
    try:
        for core in ALL - {min(ALL)}:
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            claims.append(claim)
            with suppress(OSError):
                claim.bind(f"\0celery-linepool-core-{core}")
        free = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        claims.append(free)
        try:
            free.bind(f"\0celery-linepool-core-{min(ALL)}")
        except OSError:
            expected = ALL  # none is free: any will do
        else:
            free.close()
            expected = {min(ALL)}
        cores.narrow(True)
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) <= expected
    finally:
        for claim in claims:
            claim.close()


def test_what_is_released_is_as_before(whole):
    cores.narrow(min(ALL))
    assert os.sched_getaffinity(0) == {min(ALL)}
    with cores.wide():
        assert os.sched_getaffinity(0) == ALL
    assert os.sched_getaffinity(0) == {min(ALL)}
    cores.widen()
    assert os.sched_getaffinity(0) == ALL
