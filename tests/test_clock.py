"""Somebody sets the clock while the worker runs: a day on, and a day back.

What takes long goes by the monotonic clock; what expires goes by the wall clock.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from workers import eventually

SOURCE = Path(__file__).parent / "children" / "clock.c"
CHILD = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]
#: Runs in the engine's thread, and holds it up while a file is there.
HOLDS_UP = """
    import os, time
    from celery.signals import task_prerun

    @task_prerun.connect(weak=False)
    def hold_up(task_id, **kwargs):
        while os.path.exists(task_id):
            time.sleep(0.01)
"""


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


class Clock:
    """What a process with its environment takes for the time of day."""

    def __init__(self, folder):
        library = folder / "clock.so"
        compile_ = ["cc", "-shared", "-fPIC", "-O", "-o", str(library), str(SOURCE)]
        subprocess.run(compile_, check=True)
        self._file = folder / "clock"
        self._file.write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(library), "CLOCK": str(self._file)}

    def set(self, seconds):
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", seconds))


DAY = 24 * 60 * 60


def test_the_clock_is_set(start_worker, tmp_path):
    clock = Clock(tmp_path)
    worker = start_worker(
        "rabbitmq", CHILD, args=("-c", "3"), env=clock.env, tasks=HOLDS_UP
    )
    for number, jump in enumerate((-DAY, DAY)):
        begun, go, hangs, hold = (
            tmp_path / f"{name}{number}" for name in ("begun", "go", "hangs", "hold")
        )
        args = str(begun), str(go)
        gates = [worker.send("some.gate", *args, time_limit=3600) for _ in range(2)]
        hung = worker.send("some.once", str(hangs), time_limit=4)
        eventually(lambda: len(lines(begun)) == 2 and lines(hangs))
        # Every child is busy: it waits, and is looked at again before it starts.
        expires = worker.send("some.pid", expires=3600)
        worker.wait_for_log(rf"\[{expires.id}\] received")
        clock.set(jump)

        # No limit is lost: a child is free again.
        with pytest.raises(TimeLimitExceeded):
            worker.result(hung)
        if jump > 0:
            with pytest.raises(TaskRevokedError):
                worker.result(expires)
        else:
            assert worker.result(expires)
        assert worker.inspect("ping") == {"ok": "pong"}
        # No limit comes early, whoever looks: the monitor does if the engine cannot.
        hold.touch()
        seen = len(worker.log)
        held = worker.send("some.pid", task_id=str(hold))
        worker.wait_for_log("has been held up", after=seen)
        hold.unlink()
        assert worker.result(held)
        go.touch()
        assert sorted(str(worker.result(g)) for g in gates) == sorted(lines(begun))
    assert worker.stop() == 0
