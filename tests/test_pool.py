"""The pool between Celery and its children, where no other file has the question."""

from __future__ import annotations

import time
from pathlib import Path

from workers import eventually

CHILDREN = Path(__file__).parent / "children"
ECHO = ["ruby", str(CHILDREN / "echo.rb")]


def seconds_for(worker, count):
    started = time.monotonic()
    for result in [worker.send("any", n) for n in range(count)]:
        worker.result(result)
    return time.monotonic() - started


def test_acks_do_not_wait_for_the_next_message(start_worker):
    """Without an event loop Celery's consumer sleeps up to two seconds at a time.

    With a prefetch count that is used up nothing wakes it, so a task whose ack waits
    for it holds up the next one. Without a prefetch count nothing is held up.
    """
    tight, free = (
        start_worker(
            "filesystem",
            command=ECHO,
            args=("-c", "1"),
            conf={"worker_prefetch_multiplier": multiplier},
        )
        for multiplier in (1, 0)
    )
    for worker in (tight, free):
        worker.call("any")

    assert seconds_for(tight, 10) < 40 * seconds_for(free, 10)


HOSTS = """
    import threading
    from celery import signals
    from celery_linepool import ForeignTask

    @signals.task_prerun.connect
    def prerun(task, **kwargs):
        with open(hosts, "a") as file:
            file.write(f"{task.name} {threading.current_thread().name}\\n")

    @app.task(base=ForeignTask, name="stub.plain")
    def plain(): ...

    @app.task(base=ForeignTask, name="stub.retries", autoretry_for=(OSError,))
    def retries(): ...

    class Hooked(ForeignTask):
        name = "stub.hooked"

        def on_success(self, *args):
            pass

    class Called(ForeignTask):
        name = "stub.called"

        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    app.register_task(Hooked())
    app.register_task(Called())

    @app.task
    def python():
        pass
"""


def test_what_may_block_is_hosted_by_a_thread(start_worker, tmp_path):
    """And everything else by the engine, which is what makes it fast."""
    hosts = tmp_path / "hosts"
    worker = start_worker(command=ECHO, tasks=f"    hosts = {str(hosts)!r}\n" + HOSTS)
    plain = ["any.name", "stub.plain"]
    others = ["stub.retries", "stub.hooked", "stub.called", "proj.python"]
    for name in [*plain, *others]:
        worker.call(name)
    worker.call("linked.name", link=worker.app.signature("stub.plain", immutable=True))
    eventually(lambda: hosts.read_text().count("stub.plain") == 2)

    seen = dict(line.split() for line in hosts.read_text().splitlines())
    assert {name for name, host in seen.items() if host == "linepool-engine"} == {
        *plain
    }
    assert {name for name, host in seen.items() if host[:14] == "linepool-task-"} == {
        *others,
        "linked.name",
    }
