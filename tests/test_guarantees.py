"""What docs/guarantees.md says of brokers and of the worker's end, and its proofs."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path

import celery
import pytest
from celery import states
from workers import FAST, eventually

TESTS = Path(__file__).parent
CHILD = ["ruby", str(TESTS / "children" / "lives.rb")]
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text()
LATE = {"acks_late": True, "reject_on_worker_lost": True}
#: How often the worker is killed under load.
KILLS = int(os.environ.get("LINEPOOL_KILLS", 3))
#: Seconds after which Redis delivers again. A worker looks for that when it starts, and
#: some Celerys a minute or two later again.
VISIBLE = {"visibility_timeout": 1}


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def wait_for_redis():
    taken = time.monotonic()
    eventually(lambda: time.monotonic() > taken + VISIBLE["visibility_timeout"])


def test_every_sentence_names_tests_that_exist():
    named = re.findall(r"\(test: ([^)]*)\)", PAGE)
    names = {name for group in named for name in group.split(", ")}
    defined = {
        name
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert names and names <= defined
    claims = [line for line in PAGE.splitlines() if line.startswith("- ")]
    assert [line for line in claims if "(test: " not in line] == []


QUORUM = """
    from kombu import Queue

    app.conf.task_queues = [
        Queue(app.conf.task_default_queue, queue_arguments={"x-queue-type": "quorum"})
    ]
"""
#: Broker, its options, and code of the application.
BROKERS = [
    pytest.param("redis", VISIBLE, "", id="redis"),
    pytest.param("rabbitmq", {}, "", id="classic"),
]
if celery.VERSION >= (5, 5):  # before, Celery does not know quorum queues
    BROKERS.append(pytest.param("rabbitmq", {}, QUORUM, id="quorum"))


@pytest.mark.parametrize("fast", [{}, FAST], ids=["", "fast"])
@pytest.mark.parametrize(("broker", "options", "tasks"), BROKERS)
def test_a_late_task_of_a_killed_worker_runs_again(
    start_worker, tmp_path, broker, options, tasks, fast
):
    begun, go = tmp_path / "begun", tmp_path / "go"
    conf = {"task_acks_late": True, "broker_transport_options": options, **fast}
    worker = start_worker(broker, CHILD, args=("-c", "1"), conf=conf, tasks=tasks)
    result = worker.module.app.send_task("lives.gate", (str(begun), str(go)))
    eventually(lambda: len(lines(begun)) == 1)
    worker.kill()
    wait_for_redis()
    worker.start()

    eventually(lambda: len(lines(begun)) == 2)
    go.touch()
    assert str(worker.result(result)) == lines(begun)[1]


if celery.VERSION >= (5, 5):

    def test_a_quorum_queue_has_work_for_every_child(start_worker, tmp_path):
        """Its prefetch count cannot be changed any more once the worker consumes."""
        begun, go = tmp_path / "begun", tmp_path / "go"
        conf = {"worker_prefetch_multiplier": 1, "task_acks_late": True}
        worker = start_worker(
            "rabbitmq",
            CHILD,
            args=("-c", "1"),
            conf={**conf, "linepool_size": 3},
            tasks=QUORUM,
        )
        gate = ("lives.gate", (str(begun), str(go)))
        results = [worker.module.app.send_task(*gate) for _ in range(3)]
        eventually(lambda: len(lines(begun)) == 3, timeout=30)
        go.touch()
        assert len({worker.result(result) for result in results}) == 3


def test_the_filesystem_broker_forgets_what_it_has_delivered(start_worker, tmp_path):
    begun, go = tmp_path / "begun", tmp_path / "go"
    worker = start_worker(
        "filesystem", CHILD, args=("-c", "1"), conf={"task_acks_late": True}
    )
    lost = worker.send("lives.gate", str(begun), str(go))
    eventually(lambda: len(lines(begun)) == 1)
    worker.kill()
    go.touch()
    worker.start()

    assert worker.call("lives.pid")
    assert lost.state == states.PENDING
    assert len(lines(begun)) == 1 and worker.queue_size() == 0


@pytest.mark.timeout(120 + 30 * KILLS)
@pytest.mark.parametrize(
    ("broker", "options"),
    [
        pytest.param("rabbitmq", {}, id="rabbitmq"),
        pytest.param("rabbitmq", FAST, id="rabbitmq-fast"),
        # Without, kombu may lose what it has taken and not noted yet.
        pytest.param("redis", FAST, id="redis-fast"),
    ],
)
def test_a_worker_is_killed_again_and_again(start_worker, tmp_path, broker, options):
    """The effect of each task is a line in the file of its own."""
    seed = random.randrange(10**9)
    print("seed", seed)
    chance = random.Random(seed)
    slots = prefetched = 4
    worker = start_worker(
        broker,
        CHILD,
        args=("-c", str(slots)),
        conf={
            "task_annotations": {"some.late": LATE},
            "worker_prefetch_multiplier": 1,
            **options,
            "broker_transport_options": VISIBLE if broker == "redis" else {},
        },
    )
    sent = {}

    def send(count):
        for number in range(len(sent), len(sent) + count):
            path = tmp_path / f"effect{number}"
            name = chance.choice(["some.late", "some.early"])
            sent[path] = name, worker.send(name, str(path))

    for _ in range(KILLS):
        send(100)
        eventually(lambda: len(list(tmp_path.glob("effect*"))) > len(sent) - 90)
        time.sleep(chance.uniform(0, 0.3))
        worker.kill()
        worker.start()
    send(20)
    late = [path for path, (name, _) in sent.items() if name == "some.late"]
    for path in late:
        eventually(sent[path][1].ready)
        assert sent[path][1].state == states.SUCCESS

    eventually(lambda: worker.queue_size() == 0 and not worker.inspect("active"))
    runs = {path: len(lines(path)) for path in sent}
    early = set(sent) - set(late)
    # All that can be open at the moment of a kill: what runs, and what is prefetched.
    most = KILLS * (slots + prefetched)
    assert min(runs[path] for path in late) >= 1, "a late task was lost"
    assert sum(runs[path] == 0 for path in early) <= most
    assert sum(max(0, runs[path] - 1) for path in sent) <= most
