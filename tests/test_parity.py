"""The same task message ends in the same way under prefork and under LinePool.

Each row is run on both pools, on the Celery at hand; what prefork does is what is
expected, so no row says it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from events import Events
from workers import LINEPOOL, eventually

CHILD = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]

#: What a task may be told of its ends, by the first part of its name.
LATE = {"acks_late": True}
RETRIED = {"retry_on_worker_lost": True, "default_retry_delay": 1}
OPTIONS = {
    "early": {},
    "late": LATE,
    "limited": {"time_limit": 1},
    "patient": {"time_limit": 600},
    "unacked": {**LATE, "acks_on_failure_or_timeout": False},
    "requeued": {**LATE, "reject_on_worker_lost": True},
    "early_requeued": {"reject_on_worker_lost": True},
    # Celery has it from 5.7 on. What it does before is nothing, in both pools.
    "retried": RETRIED,
    "late_retried": {**LATE, **RETRIED},
}
FUNCTIONS = ("gate", "crash", "once", "pid")
CONF = {
    "task_time_limit": 600,
    "task_annotations": {
        f"{kind}.{function}": options
        for kind, options in OPTIONS.items()
        for function in FUNCTIONS
    },
}

#: The tasks of the child in Python, for prefork.
PYTHON = f"""
    import os, signal, time

    def begin(begun):
        with open(begun, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        with open(begun) as file:
            return len(file.readlines())

    def gate(begun, go):
        begin(begun)
        while not os.path.exists(go):
            time.sleep(0.01)
        return os.getpid()

    def crash(begun, signame="KILL"):
        begin(begun)
        os.kill(os.getpid(), getattr(signal, "SIG" + signame))
        time.sleep(600)

    def once(begun, signame=None):
        if begin(begun) == 1:
            if signame:
                os.kill(os.getpid(), getattr(signal, "SIG" + signame))
            time.sleep(600)
        return "second"

    def pid():
        return os.getpid()

    for kind in {list(OPTIONS)!r}:
        for function in (gate, crash, once, pid):
            app.task(name=kind + "." + function.__name__)(function)
"""


def lines(path):
    return path.read_text().split() if path.exists() else []


class Row:
    """One task: its files, and who may send it."""

    def __init__(self, worker, folder, kind):
        self.worker, self.kind = worker, kind
        folder.mkdir(parents=True)
        self.begun, self.go = folder / "begun", folder / "go"

    def send(self, function, *args, **options):
        name = f"{self.kind}.{function}"
        return self.worker.send(name, str(self.begun), *args, **options)

    def gate(self, **options):
        return self.send("gate", str(self.go), **options)

    def has_begun(self, result):
        """Its process works on it, and the worker knows which process that is."""
        eventually(lambda: lines(self.begun))
        eventually(
            lambda: any(
                task["id"] == result.id and task["worker_pid"]
                for task in self.worker.inspect("active")
            )
        )


def finished(row):
    row.go.touch()
    return row.gate()


def limit(row):
    return row.gate()


def limit_of_the_call(row):
    return row.gate(time_limit=1)


def revoked_while_it_runs(row):
    result = row.gate()
    row.has_begun(result)
    row.worker.app.control.revoke(result.id, terminate=True)
    return result


def revoked_with_sigkill(row):
    result = row.gate()
    row.has_begun(result)
    row.worker.app.control.revoke(result.id, terminate=True, signal="SIGKILL")
    return result


def terminated_by_a_stamp(row):
    arguments = (str(row.begun), str(row.go))
    signature = row.worker.app.signature(f"{row.kind}.gate", args=arguments)
    signature.stamp(order=row.begun.parent.name)
    result = signature.apply_async()
    row.has_begun(result)
    stamp = {"order": row.begun.parent.name}
    row.worker.app.control.revoke_by_stamped_headers(stamp, terminate=True)
    return result


def revoked_in_the_queue(row):
    """Behind a task that holds the only slot."""
    first = row.gate()
    row.has_begun(first)
    result = row.send("once")
    eventually(lambda: row.worker.inspect("reserved"))
    row.worker.app.control.revoke(result.id)
    eventually(lambda: result.id in row.worker.inspect("revoked"))
    row.go.touch()
    row.worker.result(first)
    return result


def lost(row):
    return row.send("crash")


def lost_by_another_signal(row):
    return row.send("crash", "ABRT")


def lost_once(row):
    return row.send("once", "KILL")


def limit_once(row):
    return row.send("once", time_limit=1)


ROWS = [
    (finished, "early"),
    (finished, "late"),
    (limit, "limited"),
    (limit_of_the_call, "early"),
    (limit_of_the_call, "patient"),
    (limit_of_the_call, "late"),
    (limit_of_the_call, "requeued"),
    (revoked_while_it_runs, "early"),
    (revoked_while_it_runs, "late"),
    (revoked_with_sigkill, "early"),
    (terminated_by_a_stamp, "early"),
    (revoked_in_the_queue, "early"),
    (revoked_in_the_queue, "late"),
    (lost, "early"),
    (lost, "late"),
    (lost, "unacked"),
    (lost_by_another_signal, "early"),
    (lost_once, "requeued"),
    (lost_once, "early_requeued"),
    (lost_once, "retried"),
    (lost_once, "late_retried"),
]

#: The event that ends a task.
LAST = {
    "SUCCESS": "task-succeeded",
    "FAILURE": "task-failed",
    "REVOKED": "task-revoked",
}


def what_is_seen(act, row, events):
    """By the caller, by a monitor, and by whom the task has effects on."""
    result = act(row)
    try:
        value, error = row.worker.result(result), None
    except Exception as exc:
        value, error = None, type(exc).__name__
    events.wait(LAST[result.state], result.id)
    # Another task after it: its slot is free again, and its message is gone.
    assert row.worker.call(f"{row.kind}.pid")
    return {
        "state": result.state,
        "value": value if isinstance(value, str) else type(value),
        "error": error,
        "runs": len(lines(row.begun)),
        "events": sorted(
            {event["type"] for event in events.of_tasks() if event["uuid"] == result.id}
        ),
    }


def table(start_worker, pool, broker, folder):
    worker = start_worker(
        broker,
        command=CHILD if pool == LINEPOOL else None,
        pool=pool,
        args=("-c", "1", "-E"),
        conf=CONF,
        tasks="" if pool == LINEPOOL else PYTHON,
    )
    seen = {}
    with Events(worker.app) as events:
        for act, kind in ROWS:
            name = f"{kind}.{act.__name__}"
            row = Row(worker, folder / name, kind)
            seen[name] = what_is_seen(act, row, events)
    worker.stop()
    seen["left in the queue"] = worker.queue_size()
    return seen


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_every_end_is_that_of_prefork(start_worker, tmp_path, broker):
    prefork, linepool = (
        table(start_worker, pool, broker, tmp_path / pool[:7])
        for pool in ("prefork", LINEPOOL)
    )
    assert linepool == prefork
