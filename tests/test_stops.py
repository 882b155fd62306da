"""How a worker ends, and what becomes of the tasks whose children misbehave meanwhile.

Generated: each stop meets each fault, in the original protocol and in protocol 2. All
tasks are acknowledged late, so that one which has not ended goes back to the broker.
"""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import celery
import psutil
import pytest
from workers import eventually

pytestmark = pytest.mark.outer_celerys

FAULTY = ["perl", str(Path(__file__).parent / "children" / "faulty.pl")]
#: Tasks that a child has at once; 0 for one that says no hello.
PROTOCOLS = (0, 1)

#: What SIGTERM means, by settings and environment; and what is logged when it is heard.
REMAPPED = {"REMAP_SIGTERM": "SIGQUIT"}
SOFT = {"worker_soft_shutdown_timeout": 5}
STOPS = {"warm": ({}, {}, "finishing"), "cold": ({}, REMAPPED, "")}
if celery.VERSION >= (5, 5):
    STOPS["soft"] = (SOFT, REMAPPED, "Initiating Soft Shutdown")

#: At its boot, and not in its task.
NEVER_BOOTS = "never boots"
HANGS = ("hang", "ignores TERM", NEVER_BOOTS)
FAULTS = (*HANGS, "flood of stdout", "closes stdout", "grandchild holds pipes")
AGAIN = "is delivered again"


def expected(stop: str, fault: str, protocol: int) -> set[str]:
    """The states that the task may have, or that it goes back."""
    if fault == NEVER_BOOTS and protocol:
        return {AGAIN}  # nobody has it
    if fault in HANGS:
        return {"TimeLimitExceeded"} if stop == "warm" else {AGAIN}
    if fault == "flood of stdout":
        return {"SUCCESS"} if protocol else {"RemoteProtocolError"}
    # Celery sleeps while it waits: it may hear of a lost child before it stops for
    # good, or not.
    return {"WorkerLostError"} | ({AGAIN} if stop == "soft" else set())


@pytest.mark.parametrize("stop", STOPS)
def test_what_becomes_of_a_task(start_worker, tmp_path, stop):
    conf, env, heard = STOPS[stop]
    cells = dict(enumerate(itertools.product(FAULTS, PROTOCOLS)))
    worker = start_worker(
        "rabbitmq",
        args=("-c", "1"),
        conf={
            "linepool_pools": {
                f"p{n}": {
                    "command": [*FAULTY, str(protocol)],
                    "tasks": [f"p{n}.*"],
                    "timeout": 3 if stop == "warm" and fault in HANGS else 600,
                    "env": {"FAULT_AT_BOOT": str(tmp_path / f"boot{n}")},
                }
                for n, (fault, protocol) in cells.items()
            },
            "linepool_stop_timeout": 1,
            "task_acks_late": True,
            "worker_prefetch_multiplier": 10,
            **conf,
        },
        env=env,
    )
    sent = {}
    for n, (fault, _) in cells.items():
        if fault == NEVER_BOOTS:
            pid = worker.call(f"p{n}.pid")
            (tmp_path / f"boot{n}").write_text("hang")
            os.kill(pid, signal.SIGKILL)
            sent[n] = worker.send(f"p{n}.pid")
            signed(tmp_path / f"boot{n}.doing")
        else:
            sent[n] = worker.send(f"p{n}.fault", str(tmp_path / f"task{n}"), fault)
            signed(tmp_path / f"task{n}.begun")
    assert worker.inspect("ping") == {"ok": "pong"}
    family = worker.children()
    if stop != "cold":
        worker.send_signal(signal.SIGTERM)
        worker.wait_for_log(heard)
    tasks = [n for n, (fault, _) in cells.items() if fault != NEVER_BOOTS]
    for n in tasks:
        (tmp_path / f"task{n}").touch()
    for n in tasks:
        signed(tmp_path / f"task{n}.doing")
    if stop == "cold":
        ends = [n for n in tasks if expected(stop, *cells[n]) != {AGAIN}]
        eventually(lambda: all(sent[n].ready() for n in ends))
        family += worker.children()
        worker.send_signal(signal.SIGTERM)
    worker.wait()

    eventually(lambda: not any(map(runs, family)))
    given_back = ids_in_queue(worker)
    seen = {}
    for n, cell in cells.items():
        state = sent[n].state
        if state == "FAILURE":
            state = type(sent[n].result).__name__
        seen[cell] = AGAIN if sent[n].id in given_back else state
    wrong = {c: seen[c] for c in seen if seen[c] not in expected(stop, *c)}
    assert wrong == {}
    assert len(given_back) == list(seen.values()).count(AGAIN)
    assert "a bug" not in worker.log


def signed(path: Path) -> None:
    eventually(path.exists, message=path.name)


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ids_in_queue(worker) -> list[str]:
    found = []
    with worker.app.connection_for_read() as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(worker.queue)) is not None:
            found.append(message.headers["id"])
    return found
