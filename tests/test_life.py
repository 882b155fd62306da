"""What this pool does for children and tasks that prefork cannot, in a real worker."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from celery.exceptions import TimeLimitExceeded
from workers import eventually

from celery_linepool.errors import ForeignError, PoisonError

CHILDREN = Path(__file__).parent / "children"
LIVES = ["ruby", str(CHILDREN / "lives.rb")]
PICKY = ["ruby", str(CHILDREN / "boots_unless.rb")]

REQUEUED = {"task_acks_late": True, "task_reject_on_worker_lost": True}


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def pool_of(worker, name="default"):
    """What ``inspect stats`` says of one pool."""
    return worker.inspect("stats")["pool"]["pools"][name]


def pids(worker, name="default"):
    return {
        child["pid"]
        for child in pool_of(worker, name)["children"]
        if child["state"] in ("idle", "reserved", "busy")
    }


# --- reset ----------------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_reset_under_full_load_loses_nothing(start_worker, tmp_path, broker):
    diary = tmp_path / "diary"
    worker = start_worker(broker, command=LIVES, args=("-c", "3"))
    old = pids(worker)

    results = [worker.send("lives.work", str(diary), n) for n in range(300)]
    eventually(lambda: len(lines(diary)) > 30)
    assert worker.control("linepool_reset") == {"ok": "reset started"}
    worker.wait_for_log("pool 'default' was reset")
    seen = len(lines(diary))
    results += [worker.send("lives.work", str(diary), n) for n in range(300, 330)]

    assert [worker.result(result) for result in results] == list(range(330))
    assert sorted(int(line.split()[0]) for line in lines(diary)) == list(range(330))
    assert seen > 60, "no task was served during the reset"
    assert {int(line.split()[1]) for line in lines(diary)[-30:]}.isdisjoint(old)
    assert len(pids(worker)) == 3 and pids(worker).isdisjoint(old)
    assert pool_of(worker)["generation"] == 1


def test_a_reset_that_cannot_boot_keeps_what_works(start_worker, tmp_path):
    broken, touched = tmp_path / "broken", tmp_path / "touched"
    worker = start_worker(
        # Who says no hello has booted after half a second, which is short for a Ruby
        # on a busy machine that is about to fail.
        command=[*PICKY, str(broken), "hello"],
        args=("-c", "2"),
        conf={"linepool_reset_file": str(touched)},
    )
    assert worker.call("any")
    old = pids(worker)
    broken.touch()
    worker.control("linepool_reset", pool="default")
    worker.wait_for_log("pool 'default' was not reset, its children stay")

    assert pids(worker) == old
    assert "no such gem: invoices" in pool_of(worker)["reset_error"]
    assert worker.call("any") in old
    broken.unlink()
    touched.touch()
    worker.wait_for_log("pool 'default' was reset")
    assert len(pids(worker)) == 2 and pids(worker).isdisjoint(old)
    assert pool_of(worker)["reset_error"] is None
    assert worker.call("any") not in old


# --- crash loops ----------------------------------------------------------------------


def test_a_pool_that_cannot_boot_costs_no_task(start_worker, tmp_path):
    broken = tmp_path / "broken"
    worker = start_worker(
        conf={
            "linepool_pools": {
                "bad": {"command": [*PICKY, str(broken)], "tasks": ["bad.*"]},
                "good": {"command": LIVES, "tasks": ["good.*"]},
            }
        },
        args=("-c", "2"),
    )
    assert worker.call("bad.any")
    broken.touch()
    for pid in pids(worker, "bad"):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: pool_of(worker, "bad")["failed_boots"] >= 2)

    waiting = [worker.send("bad.any") for _ in range(10)]
    assert worker.call("good.pid") in pids(worker, "good")
    eventually(lambda: pool_of(worker, "bad")["next_boot_in"] is not None)
    assert "trying again in" in worker.log and "no such gem: invoices" in worker.log
    assert [result.state for result in waiting] == ["PENDING"] * 10
    broken.unlink()
    assert all(worker.result(result) for result in waiting)


def test_a_worker_may_wait_for_the_first_boot(start_worker, tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    worker = start_worker(
        command=[*PICKY, str(broken)], conf={"linepool_wait_for_boot": True}
    )
    result = worker.send("any")
    worker.wait_for_log("trying again in")
    broken.unlink()

    assert worker.result(result)


def test_an_idle_child_that_died_is_replaced_before_it_is_needed(start_worker):
    worker = start_worker(command=LIVES, args=("-c", "1"))
    first = worker.call("lives.pid")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pids(worker) and first not in pids(worker))

    assert {worker.call("lives.pid")} == pids(worker)
    assert pool_of(worker)["replaced"] == 1


# --- poison ---------------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_poison_task_is_stopped(start_worker, tmp_path, broker):
    diary = tmp_path / "diary"
    worker = start_worker(broker, command=LIVES, conf=REQUEUED)
    result = worker.send("lives.die", str(diary))

    with pytest.raises(PoisonError, match="linepool_max_crashes") as caught:
        worker.result(result)
    assert "3 children" in str(caught.value)
    assert "SIGKILL" in str(caught.value) and "about to die" in str(caught.value)
    # What a child is told; the next task is not its victim.
    assert [json.loads(line)["crashes"] for line in lines(diary)] == [0, 1, 2]
    assert worker.call("lives.pid")
    assert worker.stop() == 0
    assert worker.queue_size() == 0


def test_crashes_are_counted_across_workers(start_worker, tmp_path):
    """The count travels with the message, so a second worker knows of the first."""
    diary, go = tmp_path / "diary", tmp_path / "go"
    worker = start_worker("rabbitmq", command=LIVES, args=("-c", "1"), conf=REQUEUED)
    result = worker.send("lives.die", str(diary), str(go))
    eventually(lambda: lines(diary))
    worker.control("cancel_consumer", queue=worker.project.queue)
    go.touch()
    eventually(lambda: worker.queue_size() == 1)
    assert worker.stop() == 0
    worker.start()

    with pytest.raises(PoisonError):
        worker.result(result)
    assert [json.loads(line)["crashes"] for line in lines(diary)] == [0, 1, 2]


def test_a_poison_task_may_go_to_a_dead_letter_queue(start_worker, tmp_path):
    diary = tmp_path / "diary"
    queues = """
    from kombu import Exchange, Queue

    name = app.conf.task_default_queue
    dead = Exchange("dead-" + name, type="fanout")
    app.conf.task_queues = [
        Queue(name, queue_arguments={"x-dead-letter-exchange": dead.name})
    ]
    with app.connection_for_write() as connection:
        Queue("dead-" + name, dead)(connection.default_channel).declare()
    """
    worker = start_worker(
        "rabbitmq",
        command=LIVES,
        conf={**REQUEUED, "linepool_on_poison": "reject", "linepool_max_crashes": 2},
        tasks=queues,
    )
    result = worker.module.app.send_task("lives.die", args=[str(diary)])
    dead = "dead-" + worker.project.queue

    def message():
        with worker.app.connection_for_read() as connection:
            return connection.default_channel.basic_get(dead)

    assert eventually(message).headers["id"] == result.id
    assert len(lines(diary)) == 2


# --- limits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "args"),
    [({"task_time_limit": 1}, ()), ({}, ("--time-limit", "1"))],
    ids=["setting", "option"],
)
def test_the_limit_of_the_app_is_for_tasks_that_have_none(
    start_worker, tmp_path, conf, args
):
    worker = start_worker(command=LIVES, args=("-c", "2", *args), conf=conf)
    begun, go = str(tmp_path / "begun"), tmp_path / "go"
    patient = worker.send("lives.gate", begun, str(go), time_limit=600)
    limited = worker.send("lives.gate", begun, str(go))

    with pytest.raises(TimeLimitExceeded):
        worker.result(limited)
    go.touch()
    assert worker.result(patient)


def test_a_soft_limit_is_a_signal_or_a_line_in_the_log(start_worker, tmp_path):
    go = tmp_path / "go"
    pools = {
        "told": {"command": LIVES, "tasks": ["told.*"], "soft_signal": "USR1"},
        "deaf": {"command": LIVES, "tasks": ["deaf.*"]},
    }
    worker = start_worker(conf={"linepool_pools": pools}, args=("-c", "1"))
    begun = str(tmp_path / "begun")
    told = worker.send("told.gate", begun, str(go), soft_time_limit=0.5)
    deaf = worker.send("deaf.gate", begun, str(go), soft_time_limit=0.5)

    with pytest.raises(ForeignError, match="told to hurry"):
        worker.result(told)
    for id_ in (told.id, deaf.id):
        worker.wait_for_log(rf"Soft time limit \(0.5s\) exceeded for .*{id_}")
    go.touch()
    assert worker.result(deaf)


def test_a_child_says_where_it_hangs_before_it_is_killed(start_worker, tmp_path):
    worker = start_worker(command=LIVES, conf={"linepool_dump_signal": "QUIT"})
    begun = str(tmp_path / "begun")
    result = worker.send("lives.gate", begun, str(tmp_path / "never"), time_limit=1)

    with pytest.raises(TimeLimitExceeded) as caught:
        worker.result(result)
    assert "it hangs here" in str(caught.value) and "lives.rb:" in str(caught.value)


def test_one_hungry_child_is_killed_and_no_other(start_worker, tmp_path):
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(
        command=LIVES,
        args=("-c", "2"),
        conf={"linepool_memory_limit": 200 * 1024},
    )
    healthy = worker.send("lives.gate", str(begun), str(go))
    eventually(lambda: lines(begun))
    hungry = worker.send("lives.swallow", 300)

    with pytest.raises(Exception, match="over linepool_memory_limit = 204800"):
        worker.result(hungry)
    go.touch()
    assert str(worker.result(healthy)) == lines(begun)[0]


def test_a_lost_connection_cancels_what_runs(start_worker, tmp_path):
    """As prefork does where it is asked to: the task is started anew by the broker."""
    begun = tmp_path / "begun"
    worker = start_worker(
        "rabbitmq",
        command=LIVES,
        args=("-c", "1"),
        conf={
            "task_acks_late": True,
            "worker_cancel_long_running_tasks_on_connection_loss": True,
            # A message that was not confirmed may be lost with the broker.
            "broker_transport_options": {"confirm_publish": True},
        },
        private_broker=True,
    )
    result = worker.send("lives.once", str(begun))
    [first] = eventually(lambda: lines(begun))
    worker.broker.crash()
    worker.wait_for_log("Cannot connect to amqp")
    eventually(lambda: not Path(f"/proc/{first}").exists())
    worker.broker.start()

    assert worker.result(result) == "second"
    assert len(lines(begun)) == 2


def test_the_kernel_takes_a_child_before_the_worker(start_worker):
    worker = start_worker(command=LIVES, args=("-c", "1"))

    def score(pid):
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert score(worker.call("lives.pid")) > score(worker.pid)
