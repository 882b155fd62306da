"""Celery's signals and events: what prefork sends for a Python task, we send too.

The same cases run in a prefork worker, as Python tasks, and in ours, as foreign ones.
What is expected is what prefork has done, with the Celery at hand.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from events import Events
from workers import LINEPOOL, eventually

TESTS = Path(__file__).parent
CHILD = ["ruby", str(TESTS / "children" / "celery_tasks.rb")]

SIGNALS = [
    *("before_task_publish", "after_task_publish", "task_received", "task_prerun"),
    *("task_postrun", "task_success", "task_retry", "task_failure", "task_revoked"),
    *("task_internal_error", "task_rejected", "task_unknown"),
    *("worker_process_init", "worker_process_shutdown", "worker_init"),
    *("worker_ready", "worker_shutting_down", "worker_shutdown"),
    *("celeryd_init", "celeryd_after_setup"),
]
#: Sent by prefork to each process that it starts. Children are none of Celery's.
NEVER = ["worker_before_create_process"]
#: Those of processes: here there is one of them, the worker itself, as with ``solo``.
ONCE = ("worker_process_init", "worker_process_shutdown")
OF_PROCESSES = (*ONCE, *NEVER)

RECORD = """
import json
from celery import Task, signals

def recorder(signal):
    def record(sender=None, **values):
        values.pop("signal")
        if isinstance(sender, Task):
            sender = sender.name
        elif "request" in values:
            sender = values["request"].name
        elif not isinstance(sender, str) or not signal.startswith(("before", "after")):
            sender = values.get("name")
        line = json.dumps([signal, sender, sorted(values)])
        with open("signals", "a") as file:
            file.write(line + "\\n")
    return record

for name in {signals!r}:
    getattr(signals, name).connect(recorder(name), weak=False)

retries = {{"autoretry_for": (Exception,), "default_retry_delay": 0, "max_retries": 1}}
app.conf.task_annotations = {{
    "retried.flaky": retries,
    # What has been acknowledged cannot be rejected any more.
    "rejected.reply": {{"acks_late": True}},
}}

class Broken:
    def on_failure(self, *args):
        raise RuntimeError("the hook is broken")
"""

FOREIGN = """
from celery_linepool import ForeignTask

class Base(Broken, ForeignTask):
    abstract = True

@app.task(base=Base, name="hook.boom")
def hook(): ...
"""

PYTHON = """
import os
import signal
import time
from celery.exceptions import Ignore, Reject

def echo(value):
    return value

def boom():
    raise ValueError("boom")

def flaky(path, succeeds_at):
    with open(path, "a+") as file:
        file.write("run\\n")
        file.seek(0)
        runs = len(file.readlines())
    if runs < succeeds_at:
        raise IOError(f"run {runs} fails")

def gate(path):
    start = time.monotonic()
    with open(path + ".started", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while not os.path.exists(path + ".open"):
        time.sleep(0.005)
    return {"pid": os.getpid(), "seconds": time.monotonic() - start}

def reply(reply):
    if reply["status"] == "ignored":
        raise Ignore()
    raise Reject()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

for name in ["good.echo", "revoked.echo", "expired.echo", "bad.boom", "retried.flaky",
             "exhausted.flaky", "blocking.gate", "ignored.reply", "rejected.reply",
             "lost.die", "terminated.gate"]:
    app.task(name=name)(globals()[name.partition(".")[2]])
app.task(name="hook.boom", base=type("Base", (Broken, Task), {}))(boom)
"""

#: Foreign tasks have these names, and no other.
GLOBS = ["good.*", "bad.*", "retried.*", "blocking.*", "ignored.*", "rejected.*"]
GLOBS += ["lost.*", "terminated.*", "revoked.*", "expired.*", "hook.*"]


def start_both(start_worker, broker, *args):
    """A prefork worker with Python tasks and ours with foreign ones."""
    record = RECORD.format(signals=SIGNALS + NEVER)
    prefork = start_worker(
        broker,
        pool="prefork",
        args=("-c", "1", *args),
        tasks=record + PYTHON,
        wait=False,
    )
    linepool = start_worker(
        broker,
        pool=LINEPOOL,
        args=("-c", "1", *args),
        conf={"linepool_pools": {"main": {"command": CHILD, "tasks": GLOBS}}},
        tasks=record + FOREIGN,
        wait=False,
    )
    for worker in (prefork, linepool):
        worker.wait_until_ready()
    return prefork, linepool


class Gate:
    def __init__(self, folder, name):
        self.path = str(folder / name)

    def wait(self):
        eventually(Path(f"{self.path}.started").exists)

    def open(self):
        Path(f"{self.path}.open").touch()


def revoke(worker, id, **options):
    options.update(destination=[worker.nodename], reply=True, limit=1, timeout=30)
    assert worker.app.control.revoke(id, **options)


def revoke_in_line(worker, folder):
    """A task is revoked while another one has the only slot."""
    gate = Gate(folder, "blocking")
    running = worker.send("blocking.gate", gate.path)
    gate.wait()
    revoked = worker.send("revoked.echo", 1)
    eventually(
        lambda: [task["id"] for task in worker.inspect("reserved")] == [revoked.id]
    )
    revoke(worker, revoked.id)
    gate.open()
    assert worker.result(revoked, propagate=False) and revoked.state == "REVOKED"
    return running


def run_cases(worker, broker, folder):
    folder.mkdir()
    states = {}

    def run(name, *args, **options):
        result = worker.send(name, *args, **options)
        worker.result(result, propagate=False)
        states[name] = result.state

    def run_without_result(name, regex, *args):
        result = worker.send(name, *args)
        worker.wait_for_log(rf"Task {name}\[{result.id}\] {regex}")

    run("good.echo", 1)
    run("bad.boom")
    run("retried.flaky", str(folder / "flaky"), 2)
    run("retried.flaky", str(folder / "flakier"), 3)
    run("nobody.knows")
    run("celery.accumulate", 1)
    run_without_result("ignored.reply", "ignored", {"status": "ignored"})
    run_without_result("rejected.reply", "reject", {"status": "rejected"})
    run_without_result("hook.boom", "")
    if broker != "rabbitmq":  # which drops what has expired by itself
        expires = "2001-01-01T00:00:00+00:00"
        result = worker.send("expired.echo", 1, headers={"expires": expires})
        worker.wait_for_log(rf"expired.echo\[{result.id}\]")
    run("lost.die")
    revoke_in_line(worker, folder)
    gate = Gate(folder, "terminated")
    result = worker.send("terminated.gate", gate.path)
    gate.wait()
    eventually(lambda: worker.inspect("active"))
    revoke(worker, result.id, terminate=True, signal="KILL")
    worker.result(result, propagate=False)
    states["terminated.gate"] = result.state
    # A message that is no task.
    with worker.app.connection_for_write() as connection:
        with connection.Producer() as producer:
            producer.publish({"no": "task"}, exchange="", routing_key=worker.queue)
    worker.wait_for_log("Received and deleted unknown message")
    run("good.echo", 2)
    return states


def recorded(worker):
    found = (worker.project.folder / "signals").read_text().splitlines()
    return [tuple(json.loads(line)[:2]) for line in found]


def keywords(worker):
    """The arguments of each signal."""
    found = (worker.project.folder / "signals").read_text().splitlines()
    return {(name, tuple(keys)) for name, _, keys in map(json.loads, found)}


def without_processes(signals):
    return Counter(signal for signal in signals if signal[0] not in OF_PROCESSES)


#: In prefork the process that would send it is dead. Ours lives, and whatever has
#: begun something at task_prerun has to end it.
KILLED = ("lost.die", "terminated.gate")


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_signals_are_those_of_prefork(start_worker, tmp_path, broker):
    prefork, linepool = start_both(start_worker, broker)
    states = run_cases(prefork, broker, tmp_path / "prefork")
    assert run_cases(linepool, broker, tmp_path / "linepool") == states
    for worker in (prefork, linepool):
        assert worker.stop() == 0

    expected = without_processes(recorded(prefork))
    for name in KILLED:
        assert expected["task_prerun", name] == 1
        expected["task_postrun", name] += 1
    assert without_processes(recorded(linepool)) == expected
    ours = {(name, *rest) for name, *rest in keywords(prefork) if name not in NEVER}
    assert keywords(linepool) == ours
    counts = Counter(name for name, _ in recorded(linepool))
    assert [counts[name] for name in ONCE] == [1, 1]
    assert [counts[name] for name in NEVER] == [0]
    assert {name for name, _ in recorded(prefork)} >= set(NEVER)
    # The table is no empty one.
    assert set(SIGNALS) <= {name for name, _ in recorded(linepool)}


@pytest.mark.parametrize("broker", ["redis", "filesystem"])
def test_signals_of_one_task_come_in_order(start_worker, tmp_path, broker):
    worker = start_worker(
        broker, CHILD, tasks=RECORD.format(signals=SIGNALS + NEVER), args=("-c", "1")
    )
    worker.call("good.echo", 1)
    worker.result(worker.send("bad.boom"), propagate=False)
    worker.call("retried.flaky", str(tmp_path / "flaky"), 2)
    assert worker.stop() == 0

    def order(task):
        return [name for name, of in recorded(worker) if of == task]

    start = ["task_received", "task_prerun"]
    assert order("good.echo") == [*start, "task_success", "task_postrun"]
    assert order("bad.boom") == [*start, "task_failure", "task_postrun"]
    again = ["before_task_publish", "after_task_publish", "task_retry", "task_postrun"]
    # The worker may receive the retry before the first run has ended.
    assert [name for name in order("retried.flaky") if name != "task_received"] == [
        *("task_prerun", *again),
        *("task_prerun", "task_success", "task_postrun"),
    ]
    whole = [name for name, of in recorded(worker) if of is None]
    assert whole.index("worker_process_init") < whole.index("worker_ready")


# --- events ---------------------------------------------------------------------------


def events_of_cases(worker, folder):
    folder.mkdir()
    with Events(worker.app) as events:
        events.wait("task-succeeded", worker.send("good.echo", 1).id)
        events.wait("task-failed", worker.send("bad.boom").id)
        flaky = worker.send("retried.flaky", str(folder / "flaky"), 2)
        events.wait("task-retried", flaky.id)
        events.wait("task-succeeded", flaky.id)
        gate = revoke_in_line(worker, folder)
        events.wait("task-succeeded", gate.id)
        events.wait("task-failed", worker.send("lost.die").id)
        rejected = worker.send("rejected.reply", {"status": "rejected"})
        events.wait("task-rejected", rejected.id)
        [runtime] = [
            event["runtime"]
            for event in events.of_tasks()
            if event["type"] == "task-succeeded" and event["uuid"] == gate.id
        ]
        assert runtime >= worker.result(gate)["seconds"]
        return events.of_tasks()


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_events_are_those_of_prefork(start_worker, tmp_path, broker):
    tables = []
    for worker in start_both(start_worker, broker, "-E"):
        events = events_of_cases(worker, tmp_path / worker.nodename)
        assert {event["pid"] for event in events} == {worker.pid}
        assert {event["hostname"] for event in events} == {worker.nodename}
        names = {e["uuid"]: e["name"] for e in events if e["type"] == "task-received"}
        tables.append(
            Counter(
                (names[event["uuid"]], event["type"], tuple(sorted(event)))
                for event in events
            )
        )

    prefork, linepool = tables
    assert linepool == prefork
    types = {type_ for _, type_, _ in linepool}
    assert types == {
        f"task-{what}"
        for what in ("received", "started", "succeeded", "failed", "retried")
        + ("revoked", "rejected")
    }
