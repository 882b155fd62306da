"""The same task message ends in the same way under prefork and under LinePool.

Each row is run on both pools, on this very Celery; what prefork does is what is
expected, so no row says it. What differs on purpose stands in `DIFFERENT`.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from workers import LINEPOOL, eventually

CHILD = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]

#: The same tasks in Python, for prefork.
PYTHON = """
    import os, signal, time

    def gate(begun, go):
        with open(begun, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(go):
            time.sleep(0.01)
        return os.getpid()

    def crash(begun, signame="KILL"):
        with open(begun, "a") as file:
            file.write(f"{os.getpid()}\\n")
        os.kill(os.getpid(), getattr(signal, "SIG" + signame))
        time.sleep(600)

    def pid():
        return os.getpid()

    for function in (gate, crash, pid):
        app.task(name="lives." + function.__name__)(function)
"""


class Events:
    """The events of one worker's tasks, as a monitor sees them."""

    def __init__(self, app):
        self._app = app
        self.seen = []
        self._ready = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._capture)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *exc_info):
        self._done.set()
        self._thread.join()

    def _capture(self):
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(
                connection, handlers={"*": self.seen.append}
            )
            with receiver.consumer_context():
                self._ready.set()
                while not self._done.is_set():
                    try:
                        connection.drain_events(timeout=0.1)
                    except TimeoutError:
                        pass

    def of(self, task_id):
        return sorted(
            event["type"]
            for event in list(self.seen)
            if event.get("uuid") == task_id and event["type"] != "task-sent"
        )


def lines(path):
    return path.read_text().split() if path.exists() else []


class Row:
    """One task of one row: its files, and what can be seen of it."""

    def __init__(self, worker, folder):
        self.worker = worker
        self.begun, self.go = folder / "begun", folder / "go"

    def gate(self, **options):
        return self.worker.send("lives.gate", str(self.begun), str(self.go), **options)

    def crash(self, *args, **options):
        return self.worker.send("lives.crash", str(self.begun), *args, **options)

    def has_begun(self, times=1):
        return eventually(lambda: len(lines(self.begun)) >= times)


def hard_limit_of_the_call(row):
    return row.gate(time_limit=1)


def hard_limit_of_the_app(row):
    return row.gate()


def hard_limit_loses_to_a_shorter_call(row):
    return row.gate(time_limit=1)


def revoked_while_it_runs(row):
    result = row.gate()
    row.has_begun()
    row.worker.app.control.revoke(result.id, terminate=True)
    return result


def revoked_with_sigkill(row):
    result = row.gate()
    row.has_begun()
    row.worker.app.control.revoke(result.id, terminate=True, signal="SIGKILL")
    return result


def terminated_by_a_stamp(row):
    signature = row.worker.app.signature(
        "lives.gate", args=(str(row.begun), str(row.go))
    )
    signature.stamp(order="7")
    result = signature.apply_async()
    row.has_begun()
    row.worker.app.control.revoke_by_stamped_headers({"order": "7"}, terminate=True)
    return result


def lost(row):
    return row.crash()


def lost_by_another_signal(row):
    return row.crash("ABRT")


def finished(row):
    row.go.touch()
    return row.gate()


LATE = {"task_acks_late": True}
ROWS = [
    pytest.param(finished, {}, id="finished"),
    pytest.param(finished, LATE, id="finished, late"),
    pytest.param(hard_limit_of_the_call, {}, id="limit of the call"),
    pytest.param(hard_limit_of_the_call, LATE, id="limit of the call, late"),
    pytest.param(hard_limit_of_the_app, {"task_time_limit": 1}, id="limit of the app"),
    pytest.param(
        hard_limit_of_the_app,
        {"task_annotations": {"lives.gate": {"time_limit": 1}}},
        id="limit of the task",
    ),
    pytest.param(
        hard_limit_loses_to_a_shorter_call,
        {"task_time_limit": 600},
        id="limit of the call before the app's",
    ),
    pytest.param(revoked_while_it_runs, {}, id="terminate"),
    pytest.param(revoked_while_it_runs, LATE, id="terminate, late"),
    pytest.param(revoked_with_sigkill, {}, id="terminate, SIGKILL"),
    pytest.param(terminated_by_a_stamp, {}, id="terminate by stamp"),
    pytest.param(lost, {}, id="lost"),
    pytest.param(lost, LATE, id="lost, late"),
    pytest.param(
        lost,
        {**LATE, "task_acks_on_failure_or_timeout": False},
        id="lost, late, no ack on failure",
    ),
    pytest.param(lost_by_another_signal, {}, id="lost by SIGABRT"),
]


def outcome(start_worker, folder, pool, act, conf, broker):
    """What a caller, a monitor and the broker see of the row on one pool."""
    folder.mkdir()
    errors = folder / "errors"
    tasks = f"""
    @app.task
    def on_error(request, exc, traceback):
        with open({str(errors)!r}, "a") as file:
            file.write(type(exc).__name__ + "\\n")
    """
    if pool != LINEPOOL:
        tasks += PYTHON
    worker = start_worker(
        broker,
        command=CHILD if pool == LINEPOOL else None,
        pool=pool,
        args=("-c", "1", "-E"),
        conf=conf,
        tasks=tasks,
    )
    row = Row(worker, folder)
    with Events(worker.app) as events:
        result = act(row)
        seen = {}
        try:
            worker.result(result)
            seen["state"] = "SUCCESS"
        except Exception as exc:
            seen["raised"] = type(exc).__name__
            seen["state"] = result.state
        # A second task behind it: when it is done, so is the first, acks and all.
        worker.call("lives.pid")
        eventually(lambda: worker.queue_size() == 0)
        assert eventually(lambda: not worker.inspect("active"))
        assert not worker.inspect("reserved")
        last = {"task-succeeded", "task-failed", "task-revoked", "task-rejected"}
        eventually(lambda: last & set(events.of(result.id)))
        seen["events"] = sorted(set(events.of(result.id)))
        seen["runs"] = len(lines(row.begun))
    worker.stop()
    seen["left in the queue"] = worker.queue_size()
    return seen


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize(("act", "conf"), ROWS)
def test_as_prefork_does(start_worker, tmp_path, act, conf, broker):
    prefork, linepool = (
        outcome(start_worker, tmp_path / pool[:7], pool, act, conf, broker)
        for pool in ("prefork", LINEPOOL)
    )
    assert json.dumps(linepool) == json.dumps(prefork)


def test_the_signal_of_terminate_is_sent_first(start_worker, tmp_path):
    """A child that has a handler for it may use it; SIGKILL comes a moment later."""
    marker = tmp_path / "told"
    begun = tmp_path / "begun"
    script = (
        f'trap("USR1") {{ File.write("{marker}", "x") }}; gets; '
        f'File.write("{begun}", "x"); loop {{ sleep 1 }}'
    )
    worker = start_worker(command=["ruby", "-e", script], args=("-c", "1"))
    result = worker.send("any")
    eventually(begun.exists)
    (child,) = worker.children("ruby")
    worker.app.control.revoke(result.id, terminate=True, signal="USR1")

    eventually(marker.exists)
    assert eventually(lambda: not child.is_running() or child.status() == "zombie")
    assert eventually(lambda: result.state == "REVOKED")
