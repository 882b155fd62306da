"""A worker ends: what runs is finished, what waits goes back, nobody is left."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import celery
import psutil
import pytest
from billiard.exceptions import WorkerLostError
from workers import eventually

CHILDREN = Path(__file__).parent / "children"
GATED = ["ruby", str(CHILDREN / "waits_for_file.rb")]
STUBBORN = ["ruby", str(CHILDREN / "ignores_eof_and_term.rb")]
PICKY = ["ruby", str(CHILDREN / "boots_unless.rb")]

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


def test_what_a_polite_child_leaves_is_ended_too(start_worker):
    child = ["sh", "-c", f"sleep 600 & exec ruby {CHILDREN / 'echo.rb'}"]
    worker = start_worker(command=child, args=("-c", "1"))
    worker.call("any")
    family = worker.children()
    assert len(worker.children("sleep 600")) == 1

    assert worker.stop() == 0
    assert eventually(lambda: not alive(family))


def test_children_that_stop_are_not_forced(start_worker):
    worker = start_worker(command=GATED, args=("-c", "2"))
    worker.call("gate", None, None)

    assert worker.stop() == 0
    assert "SIGTERM" not in worker.log and "SIGKILL" not in worker.log


#: Signals that end a worker at once, its environment and its settings.
COLD = [
    pytest.param([signal.SIGQUIT], {}, {}, id="SIGQUIT"),
    pytest.param([signal.SIGTERM], {"REMAP_SIGTERM": "SIGQUIT"}, {}, id="remapped"),
]
if celery.VERSION >= (5, 5):
    # Before, no pool of Celery hears of a second signal while it drains.
    COLD += [
        pytest.param([signal.SIGINT, signal.SIGINT], {}, {}, id="Ctrl-C twice"),
        pytest.param(
            [signal.SIGQUIT],
            {},
            {"worker_soft_shutdown_timeout": 0.5},
            id="soft, and too long",
        ),
    ]


@pytest.mark.parametrize(("signals", "env", "conf"), COLD)
def test_cold_shutdown_kills_what_runs(start_worker, tmp_path, signals, env, conf):
    """It does not wait for a task; its message goes back under acks_late."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(
        "rabbitmq", GATED, args=("-c", "1"), conf={**CONF, **conf}, env=env
    )
    result = worker.send("gate", str(begun), str(go))
    eventually(lambda: len(lines(begun)) == 1)
    family = worker.children()
    *warm, cold = signals
    for sig in warm:
        # What a terminal does: the signal goes to the whole foreground group.
        os.killpg(worker.pid, sig)
        # Before, Celery talks to the broker, and its handler of a second signal would
        # talk to it in the middle of that: it hangs then, whatever the pool.
        worker.wait_for_log("waiting for 1 tasks")
    os.killpg(worker.pid, cold)

    worker.wait()
    assert alive(family) == []
    assert eventually(lambda: worker.queue_size() == 1)
    go.touch()
    worker.start()
    worker.result(result)
    assert len(lines(begun)) == 2


#: Signals after which what runs is finished, settings, and what is logged of the first.
DRAINS = "waiting for 1 tasks"
PATIENT = [
    pytest.param([signal.SIGTERM, signal.SIGTERM], {}, DRAINS, id="SIGTERM twice"),
    pytest.param([signal.SIGINT], {}, DRAINS, id="Ctrl-C"),
    pytest.param([signal.SIGINT, signal.SIGTERM], {}, DRAINS, id="Ctrl-C, SIGTERM"),
]
if celery.VERSION >= (5, 5):
    # Celery sleeps for the whole of it: time enough for the task, and no more.
    soft = {"worker_soft_shutdown_timeout": 3}
    sleeps = "Initiating Soft Shutdown"
    PATIENT.append(pytest.param([signal.SIGQUIT], soft, sleeps, id="soft, in time"))


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize(("signals", "conf", "says"), PATIENT)
def test_what_runs_is_finished(start_worker, tmp_path, signals, conf, says, broker):
    """Its children are in sessions of their own, where no Ctrl-C reaches them."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(broker, GATED, args=("-c", "1"), conf={**CONF, **conf})
    result = worker.send("gate", str(begun), str(go))
    eventually(lambda: len(lines(begun)) == 1)
    family = worker.children()
    first, *more = signals
    os.killpg(worker.pid, first)
    worker.wait_for_log(says)
    for sig in more:
        seen = len(worker.log)
        os.killpg(worker.pid, sig)
        worker.wait_for_log("Warm shutdown", after=seen)
    go.touch()
    worker.wait()

    assert result.state == "SUCCESS"
    assert worker.queue_size() == 0, "its message was given back"
    assert len(lines(begun)) == 1
    assert alive(family) == []


#: Celery starts itself again by what is in sys.argv. Under ``python -m`` that is a
#: file which cannot be run by itself; the script of that name can.
AS_A_SCRIPT = """
    import os, sys
    sys.argv[0] = os.path.join(os.path.dirname(sys.executable), "celery")
"""


def test_hangup_starts_the_worker_anew(start_worker, tmp_path):
    """The same process with new children; the old ones finish what they do."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(command=GATED, args=("-c", "2"), conf=CONF, tasks=AS_A_SCRIPT)
    results = [worker.send("gate", str(begun), str(go)) for _ in range(3)]
    eventually(lambda: len(lines(begun)) == 2)
    family = worker.children()
    seen = len(worker.log)
    worker.send_signal(signal.SIGHUP)
    worker.wait_for_log("finishing 2 tasks", after=seen)
    go.touch()
    worker.wait_for_log(r"ready\.$", after=seen)

    assert alive(family) == []
    for result in results:
        worker.result(result)
    assert len(lines(begun)) == 3
    children = {child.pid for child in worker.children("waits_for_file")}
    assert len(children) == 2
    assert worker.call("gate", None, None) in children
    assert worker.stop() == 0


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_every_process_is_told_to_end_at_once(start_worker, tmp_path, broker):
    """What systemd does: SIGTERM to the whole control group, and to the worker first.

    As often as one likes: a child that ends with its worker is no crash of its task.
    """
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(
        broker,
        GATED,
        args=("-c", "3"),
        conf={**CONF, "task_reject_on_worker_lost": True},
    )
    result = worker.send("gate", str(begun), str(go))
    for runs in (1, 2, 3):
        eventually(lambda: len(lines(begun)) == runs)
        family = worker.children()
        for process in [psutil.Process(worker.pid), *family]:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        assert worker.wait() == 0
        assert alive(family) == []
        assert eventually(lambda: worker.queue_size() == 1)
        worker.start()
    go.touch()

    worker.result(result)
    assert len(lines(begun)) == 4
    assert worker.stop() == 0
    assert worker.queue_size() == 0


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


@pytest.mark.parametrize(
    ("broker", "late", "dies"),
    [
        ("rabbitmq", True, "before"),
        ("redis", True, "meanwhile"),
        ("rabbitmq", False, "meanwhile"),
    ],
)
def test_no_child_boots_any_more(start_worker, tmp_path, broker, late, dies):
    """A task that was in a child's pipe, unread, does not hold up the worker's end."""
    broken = tmp_path / "broken"
    worker = start_worker(
        broker,
        [*PICKY, str(broken)],
        args=("-c", "1"),
        conf={"task_acks_late": late},
    )
    child = psutil.Process(worker.call("any"))
    child.suspend()
    eventually(lambda: child.status() == psutil.STATUS_STOPPED)
    result = worker.send("any")
    eventually(lambda: worker.inspect("active"))
    broken.touch()
    if dies == "before":
        child.kill()
        worker.wait_for_log("trying again in")
    worker.send_signal(signal.SIGTERM)
    worker.wait_for_log("Warm shutdown")
    if dies == "meanwhile":
        worker.wait_for_log("finishing 1 tasks")
        child.kill()

    assert worker.wait() == 0
    if late:
        assert worker.queue_size() == 1
        broken.unlink()
        worker.start()
        assert worker.result(result) in {c.pid for c in worker.children("boots")}
    else:
        assert worker.queue_size() == 0
        with pytest.raises(WorkerLostError, match="no child has begun it"):
            worker.result(result)


@pytest.mark.parametrize(
    ("broker", "late"), [("rabbitmq", True), ("redis", True), ("rabbitmq", False)]
)
def test_no_child_has_ever_booted(start_worker, tmp_path, broker, late):
    """Which is seen late: the worker has taken a task by then, and ends."""
    ends = tmp_path / "ends"
    slow = f"while [ ! -e {ends} ]; do sleep 0.02; done; exit 7"
    worker = start_worker(
        broker, ["sh", "-c", slow], args=("-c", "1"), conf={"task_acks_late": late}
    )
    result = worker.send("any")
    eventually(lambda: worker.inspect("active"))
    ends.touch()

    assert worker.wait() != 0
    assert "exited with status 7" in worker.log
    assert worker.queue_size() == late
    assert result.state == ("PENDING" if late else "FAILURE")


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
