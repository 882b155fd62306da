"""A worker ends: what runs is finished, what waits goes back, nobody is left."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from workers import eventually

CHILDREN = Path(__file__).parent / "children"
GATED = ["ruby", str(CHILDREN / "waits_for_file.rb")]
STUBBORN = ["ruby", str(CHILDREN / "ignores_eof_and_term.rb")]

#: Prefetch only what the slots need, and a few that have to wait in our own line.
CONF = {"worker_prefetch_multiplier": 4, "task_acks_late": True}


def alive(family):
    """Those that still run; a zombie is dead, its reaping is the system's affair."""
    found = []
    for process in family:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def lines(path):
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("late", [True, False], ids=["acks_late", "acks_early"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "filesystem"])
def test_warm_shutdown(start_worker, tmp_path, broker, late):
    """What has started is finished and stored; what waits goes back to the broker."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(
        broker,
        command=GATED,
        args=("-c", "2"),
        conf={**CONF, "task_acks_late": late},
    )
    results = [worker.send("gate", str(begun), str(go)) for _ in range(6)]
    eventually(lambda: len(lines(begun)) == 2)
    eventually(lambda: len(worker.inspect("reserved")) >= 1)
    worker.send_signal(signal.SIGTERM)
    worker.wait_for_log("finishing 2 tasks; [1-4] that wait are given back")
    go.touch()

    assert worker.wait() == 0
    assert len(lines(begun)) == 2, "a waiting task was started"
    finished = [r for r in results if r.state == "SUCCESS"]
    assert len(finished) == 2
    assert {str(r.get()) for r in finished} == set(lines(begun))
    if broker != "filesystem":  # which forgets a message when it is delivered
        assert worker.queue_size() == 4
        worker.start()
        for result in results:
            worker.result(result)
        assert len(lines(begun)) == 6


@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "filesystem"])
def test_no_process_outlives_a_killed_worker(start_worker, tmp_path, broker):
    """Not even children that are busy and ignore the end of stdin, nor theirs."""
    worker = start_worker(broker, command=STUBBORN, args=("-c", "2"))
    worker.send("hang")
    worker.call("answer")
    eventually(lambda: len(worker.children("sleep 600")) == 2)
    family = worker.children()
    assert len(worker.children("ignores_eof")) == 2
    worker.kill()

    assert eventually(lambda: not alive(family))


def test_children_that_do_not_stop_are_made_to(start_worker):
    worker = start_worker(
        command=STUBBORN, args=("-c", "2"), conf={"linepool_stop_timeout": 0.5}
    )
    worker.call("answer")
    family = worker.children()

    assert worker.stop() == 0
    assert "did not end when its stdin did; SIGTERM" in worker.log
    assert "outlived linepool_stop_timeout = 0.5 s; SIGKILL" in worker.log
    assert alive(family) == []


def test_children_that_stop_are_not_forced(start_worker):
    worker = start_worker(command=GATED, args=("-c", "2"))
    worker.call("gate", None, None)

    assert worker.stop() == 0
    assert "SIGTERM" not in worker.log and "SIGKILL" not in worker.log


def test_cold_shutdown_kills_what_runs(start_worker, tmp_path):
    """SIGQUIT does not wait for a task; its message goes back under acks_late."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker("rabbitmq", command=GATED, args=("-c", "1"), conf=CONF)
    result = worker.send("gate", str(begun), str(go))
    eventually(lambda: len(lines(begun)) == 1)
    family = worker.children()
    worker.stop(signal.SIGQUIT)

    assert alive(family) == []
    go.touch()
    worker.start()
    worker.result(result)
    assert len(lines(begun)) == 2


def test_ctrl_c_does_not_reach_the_children(start_worker, tmp_path):
    """They are in sessions of their own, so a task survives it."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(command=GATED, args=("-c", "1"))
    result = worker.send("gate", str(begun), str(go))
    eventually(lambda: len(lines(begun)) == 1)
    # What a terminal does: the signal goes to the whole foreground group.
    worker.process.kill(signal.SIGINT)
    worker.wait_for_log("Warm shutdown|Hitting Ctrl")
    go.touch()
    worker.wait()

    assert result.state == "SUCCESS"


def test_a_worker_drains_longer_than_a_heartbeat(start_worker, tmp_path):
    """The broker must not give a task away that is being finished.

    The task outlasts twice the heartbeat, after which RabbitMQ closes a connection
    that is silent.
    """
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(
        "rabbitmq",
        command=GATED,
        args=("-c", "1"),
        conf={**CONF, "broker_heartbeat": 2},
    )
    result = worker.send("gate", str(begun), str(go))
    eventually(lambda: len(lines(begun)) == 1)
    worker.send_signal(signal.SIGTERM)
    worker.wait_for_log("Warm shutdown")
    with pytest.raises(AssertionError):
        # Nothing to see but time that passes on the broker's clock.
        eventually(lambda: not worker.running, timeout=8)
    go.touch()

    assert worker.wait() == 0
    assert result.state == "SUCCESS"
    assert worker.queue_size() == 0, "its message was given back"


def test_the_guardian_is_replaced(start_worker):
    """Somebody kills it: the worker starts another that knows the same children."""
    worker = start_worker(command=STUBBORN, args=("-c", "1"))
    (guardian,) = worker.children("guardian.sh")
    guardian.kill()
    eventually(lambda: guardian.status() == psutil.STATUS_ZOMBIE)
    (child,) = worker.children("ignores_eof")
    child.kill()  # its successor has to be made known
    worker.wait_for_log("guardian .* was killed; starting another")
    eventually(lambda: worker.children("ignores_eof"))
    worker.call("answer")
    family = worker.children()
    worker.kill()

    assert eventually(lambda: not alive(family))
