"""Everything at once: children killed, stopped, reset, grown and shrunk under load.

``LINEPOOL_STORM`` is its length in seconds, a minute if it is not set.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from celery import states
from events import Events
from workers import FAST, eventually

pytestmark = pytest.mark.outer_celerys

SECONDS = float(os.environ.get("LINEPOOL_STORM", 60))
CHILDREN = Path(__file__).parent / "children"
ONE = ["ruby", str(CHILDREN / "lives.rb")]
MANY = ["node", str(CHILDREN / "lives_many.cjs")]
#: Tasks that are under way at a time: more than there are slots.
AT_ONCE = 60
#: Kinds of tasks: those that the broker may give out again, and those that it may not.
LATE = ("left.late", "right.late")
EARLY = ("left.early", "right.early")

CONF = {
    "linepool_pools": {
        "left": {"command": ONE, "tasks": ["left.*"]},
        # Several tasks are lost with each of these, most of them for another's fault.
        "right": {"command": MANY, "tasks": ["right.*"], "inflight": 4},
    },
    # A child that was stopped is found by it; no task here takes so long by itself.
    "linepool_timeout": 5,
    # Here it is never the task's fault.
    "linepool_max_crashes": 1000,
    "task_annotations": {
        name: {"acks_late": True, "reject_on_worker_lost": True} for name in LATE
    },
    "worker_prefetch_multiplier": 4,
}


class Watch(threading.Thread):
    """Sees the worker's events, for as long as the storm lasts."""

    def __init__(self, app):
        super().__init__()
        self._app = app
        self._over = threading.Event()
        self.listens = threading.Event()
        self.ends = Counter()

    def run(self):
        with Events(self._app) as events:
            self.listens.set()
            while not self._over.is_set():
                events.next()  # there is a heartbeat every two seconds
            self.ends = Counter(
                event["uuid"]
                for event in events.of_tasks()
                if event["type"] in ("task-succeeded", "task-failed")
            )

    def stop(self):
        self._over.set()
        self.join()


class Storm:
    """What happens to the children."""

    def __init__(self, worker, seed):
        self.worker = worker
        self.random = random.Random(seed)
        self.done = Counter()
        #: What happens at least once, however short the storm is.
        self.first = [self.kill, self.halt, self.reset, self.grow]

    def blow(self):
        actions = (self.kill, self.kill, self.kill, self.halt, self.reset)
        act = self.random.choice((*actions, self.grow, self.shrink, self.ping))
        if self.first:
            act = self.first.pop()
        act()
        self.done[act.__name__] += 1
        time.sleep(self.random.uniform(0, 0.4))

    def _signal_a_child(self, number):
        children = self.worker.children("children/lives")
        if children:
            with suppress(psutil.NoSuchProcess):
                self.random.choice(children).send_signal(number)

    def kill(self):
        self._signal_a_child(signal.SIGKILL)

    def halt(self):
        self._signal_a_child(signal.SIGSTOP)

    def reset(self):
        assert "ok" in self.worker.control("linepool_reset")

    def grow(self):
        if self.size() < 12:
            assert "ok" in self.worker.control("pool_grow", n=1)

    def shrink(self):
        if self.size() > 4:
            assert "ok" in self.worker.control("pool_shrink", n=1)

    def ping(self):
        assert self.worker.inspect("ping") == {"ok": "pong"}

    def size(self):
        return sum(pool["size"] for pool in self.pools())

    def pools(self):
        pools = self.worker.inspect("stats")["pool"]["pools"]
        return [pools["left"], pools["right"]]

    def calm(self):
        """As many children as in the beginning, all of them ready."""
        size = self.size()
        if size < 8:
            self.worker.control("pool_grow", n=8 - size)
        elif size > 8:
            self.worker.control("pool_shrink", n=size - 8)
        eventually(self._is_calm)

    def _is_calm(self):
        left, right = self.pools()
        children = left["children"] + right["children"]
        return [child["state"] for child in children] == ["idle"] * 8


class Load:
    """Tasks that each leave a line in a file of their own when they work."""

    def __init__(self, worker, folder, seed):
        self.worker = worker
        self.folder = folder
        self.random = random.Random(seed)
        self.sent = {}
        self.open = []

    def keep_up(self):
        self.open = [result for result in self.open if not result.ready()]
        for _ in range(AT_ONCE - len(self.open)):
            name = self.random.choice(LATE + EARLY)
            path = self.folder / f"{len(self.sent)}"
            result = self.worker.send(name, str(path))
            self.sent[result.id] = (name, path, result)
            self.open.append(result)

    def finish(self):
        for name, _, result in self.sent.values():
            eventually(result.ready, timeout=120, message=f"{name}[{result.id}]")


@pytest.mark.timeout(SECONDS + 400)
@pytest.mark.parametrize(
    ("broker", "options", "seconds"),
    [
        pytest.param("redis", {}, SECONDS, id="redis"),
        pytest.param("rabbitmq", {}, SECONDS, id="rabbitmq"),
        pytest.param("rabbitmq", FAST, SECONDS / 2, id="rabbitmq-fast"),
    ],
)
def test_storm(start_worker, tmp_path, broker, options, seconds):
    seed = random.randrange(10**9)
    print("seed", seed)
    work = tmp_path / "work"
    work.mkdir()
    worker = start_worker(broker, args=("-c", "4", "-E"), conf={**CONF, **options})
    storm, load = Storm(worker, seed), Load(worker, work, seed)
    storm.calm()
    process = psutil.Process(worker.pid)
    fds = process.num_fds()

    watch = Watch(worker.app)
    watch.start()
    assert watch.listens.wait(60)
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            load.keep_up()
            storm.blow()
        load.finish()
    finally:
        watch.stop()

    lines = {id_: effects(path) for id_, (_, path, _) in load.sent.items()}
    for id_, (name, _, result) in load.sent.items():
        check(name, result, lines[id_])
        assert watch.ends[id_] == 1, f"{name}[{id_}] ended {watch.ends[id_]} times"
    # The storm was one, and it did not only destroy.
    assert min(storm.done[what] for what in ("kill", "halt", "reset", "grow")) > 0
    succeeded = sum(
        result.state == states.SUCCESS for _, _, result in load.sent.values()
    )
    assert succeeded > len(load.sent) / 2

    storm.calm()
    assert process.num_fds() <= fds + 5, "a child left a descriptor behind"
    assert worker.stop() == 0
    assert worker.queue_size() == 0


def effects(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def check(name, result, effects):
    """What the acknowledgement of a task promises for its side effects."""
    story = f"{name}[{result.id}] is {result.state} ({result.result!r}), ran {effects}x"
    if result.state == states.SUCCESS:
        assert effects == 1 if name in EARLY else effects >= 1, story
    else:
        error = type(result.result).__name__
        # Late ones are given out again when their child dies, but not when they hang.
        lost = ("TimeLimitExceeded",) + (("WorkerLostError",) if name in EARLY else ())
        assert error in lost, story
        assert effects <= 1 or name in LATE, story
