"""A worker gets more children, fewer, or others: nothing is lost on the way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from localprocess import FilesystemBroker
from workers import LINEPOOL, eventually

TESTS = Path(__file__).parent
LIVES = ["ruby", str(TESTS / "children" / "lives.rb")]
#: What uses the memory is not the child itself, as under many a wrapper script.
WRAPPED = ["sh", "-c", f"ruby {LIVES[1]}; exit 0"]


class Gate:
    """Tasks that say who runs them, and run until this is opened."""

    def __init__(self, folder: Path) -> None:
        self._begun, self._go = folder / "begun", folder / "go"

    def send(self, worker, times=1, name="lives.gate"):
        args = str(self._begun), str(self._go)
        return [worker.send(name, *args) for _ in range(times)]

    @property
    def pids(self) -> list[int]:
        if not self._begun.exists():
            return []
        return [int(pid) for pid in self._begun.read_text().split()]

    def wait(self, times=1) -> list[int]:
        eventually(lambda: len(self.pids) >= times, message=f"{times} begun")
        return self.pids

    def open(self) -> None:
        self._go.touch()


@pytest.fixture
def gates(start_worker, tmp_path):
    """Makes gates, and opens them all before the workers are told to end."""
    made = []

    def make() -> Gate:
        folder = tmp_path / f"gate{len(made)}"
        folder.mkdir()
        made.append(Gate(folder))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


def pids(worker) -> set[int]:
    return {child.pid for child in worker.children("^ruby .*lives.rb")}


def stats(worker):
    return worker.inspect("stats")


def sizes(worker) -> dict[str, int]:
    pools = stats(worker)["pool"]["pools"]
    return {name: pool["size"] for name, pool in pools.items() if "command" in pool}


def retiring(worker) -> list[int]:
    """Children that are to end after their task."""
    children = stats(worker)["pool"]["pools"]["default"]["children"]
    return [child["pid"] for child in children if child["retiring"]]


def env_of(project):
    path = (str(project.folder), str(TESTS), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}


# --- more and fewer -------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["redis", "filesystem"])
def test_autoscale(start_worker, gates, broker):
    """As many children as there are tasks; with an event loop and without one."""
    worker = start_worker(
        broker,
        LIVES,
        args=("--autoscale=4,1",),
        env={"AUTOSCALE_KEEPALIVE": "0.5"},
    )
    assert len(pids(worker)) == 1
    short, long = gates(), gates()
    results = short.send(worker, 3)
    (last,) = long.send(worker)
    busy = {*short.wait(3), *long.wait()}
    assert len(busy) == 4
    assert stats(worker)["pool"]["max-concurrency"] == 4
    # One task more than there may be children.
    (waiting,) = short.send(worker)
    short.open()
    for result in [*results, waiting]:
        assert worker.result(result) in busy
    assert eventually(lambda: pids(worker) == set(long.pids))
    long.open()
    assert worker.result(last) == long.pids[0]

    changed = worker.control("autoscale", max=3, min=2)
    assert changed == {"ok": "autoscale now max=3 min=2"}
    assert eventually(lambda: len(pids(worker)) == 2)
    if isinstance(worker.broker, FilesystemBroker):
        worker.kill()  # it would take five seconds to end


def pools_of(**options):
    """Pools that serve the tasks whose names begin with theirs."""
    return {
        "linepool_pools": {
            name: {"command": LIVES, "tasks": [f"{name}.*"], **rest}
            for name, rest in options.items()
        }
    }


def test_autoscale_leaves_every_pool_a_child(start_worker, gates):
    """Celery counts tasks and children, and does not know that there are pools.

    It would take a task that waits in an empty pool for one that the children of the
    others can serve.
    """
    worker = start_worker(
        args=("--autoscale=5,1",),
        conf=pools_of(one={}, other={}, fixed={"size": 1}),
        env={"AUTOSCALE_KEEPALIVE": "0.5"},
    )
    for name in ("one", "other"):
        gate = gates()
        results = gate.send(worker, 5, f"{name}.gate")
        eventually(lambda: sizes(worker)[name] > 1)
        gate.open()
        for result in results:
            worker.result(result)
        eventually(lambda: sum(sizes(worker).values()) <= 3)

        assert sizes(worker) == {"one": 1, "other": 1, "fixed": 1}


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_grow_and_shrink(start_worker, gates, broker):
    """The broker hands out as many tasks as there are children; none is cut short."""
    worker = start_worker(
        broker, LIVES, args=("-c", "1"), conf={"worker_prefetch_multiplier": 1}
    )
    gate = gates()
    results = gate.send(worker, 4)
    gate.wait()
    assert stats(worker)["prefetch_count"] == 1

    assert worker.control("pool_grow", n=2) == {"ok": "pool will grow"}
    busy = gate.wait(3)
    assert len(set(busy)) == 3
    assert stats(worker)["prefetch_count"] == 3
    assert stats(worker)["pool"]["max-concurrency"] == 3

    assert worker.control("pool_shrink", n=2) == {"ok": "pool will shrink"}
    assert sizes(worker) == {"default": 1}
    assert pids(worker) == set(busy)
    gate.open()
    # The last one is run by the child that stays.
    served = [worker.result(result) for result in results]
    assert set(served) == set(busy)
    assert eventually(lambda: len(pids(worker)) == 1)
    assert stats(worker)["prefetch_count"] == 1


def test_no_more_children_can_go_than_there_are(start_worker):
    worker = start_worker(command=LIVES, args=("-c", "2"))
    refused = worker.control("pool_shrink", n=3)

    assert "3 children cannot be taken away, at most 2" in refused["error"]
    assert sizes(worker) == {"default": 2}
    # None at all is possible: a pool that is put to sleep.
    assert worker.control("pool_shrink", n=2) == {"ok": "pool will shrink"}
    assert eventually(lambda: not pids(worker))
    result = worker.send("lives.pid")
    eventually(lambda: worker.inspect("reserved"))
    worker.control("pool_grow", n=1)
    assert {worker.result(result)} == pids(worker)


def test_the_pool_where_tasks_wait_grows(start_worker, gates):
    """Unless its size is its own, however many wait there."""
    worker = start_worker(
        args=("-c", "1"),
        conf=pools_of(idle={}, crowded={}, fixed={"size": 1}),
    )
    crowded, fixed = gates(), gates()
    results = crowded.send(worker, 3, "crowded.gate")
    results += fixed.send(worker, 6, "fixed.gate")
    crowded.wait()
    fixed.wait()
    eventually(lambda: len(worker.inspect("reserved")) == 7)

    worker.control("pool_grow", n=1)
    assert sizes(worker) == {"idle": 1, "crowded": 2, "fixed": 1}
    crowded.wait(2)
    # The last child of a pool stays: its next task would wait for ever.
    worker.control("pool_shrink", n=1)
    assert sizes(worker) == {"idle": 1, "crowded": 1, "fixed": 1}
    assert "error" in worker.control("pool_shrink", n=1)
    crowded.open()
    fixed.open()
    for result in results:
        worker.result(result)
    assert len(set(fixed.pids)) == 1


FIXED = pools_of(fixed={"size": 1})


def test_a_pool_with_a_size_of_its_own_is_not_scaled(start_worker):
    worker = start_worker(conf=FIXED)

    for command in ("pool_grow", "pool_shrink"):
        refused = worker.control(command, n=1)
        assert "every pool in linepool_pools has a size of its own" in refused["error"]
    assert sizes(worker) == {"fixed": 1}


def test_autoscale_that_scales_nothing_stops_the_worker(start_worker, run_celery):
    project = start_worker.project(conf=FIXED)
    code, output = run_celery(
        *("-A", "proj", "worker", "-P", LINEPOOL, "--autoscale=4,1"),
        env=env_of(project),
        cwd=project.folder,
    )

    assert code != 0
    (said,) = [line for line in output.splitlines() if "linepool_pools" in line]
    assert "--autoscale has nothing to scale" in said
    assert "Traceback" not in output


# --- others ---------------------------------------------------------------------------


def test_pool_restart(start_worker, gates):
    """All children are others afterwards, and no task has noticed."""
    worker = start_worker(
        command=LIVES, args=("-c", "2"), conf={"worker_pool_restarts": True}
    )
    old = pids(worker)
    gate = gates()
    (running,) = gate.send(worker)
    (busy,) = gate.wait()
    results = [worker.send("lives.pid") for _ in range(20)]
    assert worker.control("pool_restart") == {"ok": "reload started"}
    results += [worker.send("lives.pid") for _ in range(20)]
    for result in results:
        worker.result(result)
    eventually(lambda: retiring(worker) == [busy])
    gate.open()
    assert worker.result(running) == busy

    assert eventually(lambda: len(pids(worker)) == 2 and not pids(worker) & old)
    assert worker.call("lives.pid") in pids(worker)


POOLS = pools_of(one={}, other={})


def test_reset_by_remote_control(start_worker):
    worker = start_worker(args=("-c", "1"), conf=POOLS)

    def children():
        return {name: worker.call(f"{name}.pid") for name in ("one", "other")}

    first = children()
    assert worker.control("linepool_reset", pool="one") == {"ok": "reset started"}
    eventually(lambda: first["one"] not in pids(worker))
    second = children()
    assert second["one"] != first["one"] and second["other"] == first["other"]

    assert worker.control("linepool_reset") == {"ok": "reset started"}
    eventually(lambda: not pids(worker) & set(second.values()))
    assert not set(children().values()) & set(second.values())

    refused = worker.control("linepool_reset", pool="another")
    assert refused == {"error": "no pool 'another'; linepool_pools has one, other"}


def test_reset_by_command_line(start_worker, run_celery):
    worker = start_worker(args=("-c", "1"), conf=POOLS)

    def reset(*args):
        command = ("-A", "proj", "control", "-d", worker.nodename, "-t", "30", "--json")
        return run_celery(*command, "linepool_reset", *args, env=env_of(worker.project))

    code, output = reset("one")
    assert code == 0, output
    answers = json.loads(output[output.index("[") :])
    assert answers == [{worker.nodename: {"ok": "reset started"}}]
    worker.wait_for_log("pool 'one' was reset")
    code, output = reset("another")
    assert "no pool 'another'; linepool_pools has one, other" in output
    assert "pool 'other' is being reset" not in worker.log
    code, output = reset()
    assert code == 0, output
    worker.wait_for_log("pool 'other' was reset")


def test_a_worker_of_another_pool_has_nothing_to_reset(start_worker):
    worker = start_worker(
        pool="threads", tasks="from celery_linepool import ForeignTask"
    )

    no_pool = {"error": "this worker has no LinePool"}
    assert worker.control("linepool_reset") == no_pool
    assert worker.control("linepool_scale", pool="one", n=1) == no_pool
    assert worker.control("linepool_stats") == no_pool


# --- scaled, paused, looked at by name ------------------------------------------------


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_pool_is_scaled_by_its_name(start_worker, broker):
    conf = {**pools_of(one={}, fixed={"size": 1}), "worker_prefetch_multiplier": 1}
    worker = start_worker(broker, args=("-c", "1"), conf=conf)
    assert stats(worker)["prefetch_count"] == 2
    answer = worker.control("linepool_scale", pool="fixed", n=3)
    assert answer == {"ok": "fixed will have 3"}
    assert eventually(lambda: len(pids(worker)) == 4)
    assert sizes(worker) == {"one": 1, "fixed": 3}
    eventually(lambda: stats(worker)["prefetch_count"] == 4)
    worker.control("linepool_scale", pool="fixed", n=0)
    assert eventually(lambda: len(pids(worker)) == 1)
    eventually(lambda: stats(worker)["prefetch_count"] == 1)
    refused = worker.control("linepool_scale", pool="other", n=1)
    assert refused == {"error": "no pool 'other'; there are one, fixed"}
    for n in (-1, "many", True):
        refused = worker.control("linepool_scale", pool="one", n=n)
        assert refused == {"error": f"a pool cannot have {n!r} children"}


def test_growing_fetches_for_every_task_that_a_child_takes_at_once(start_worker):
    talks = ["node", str(TESTS / "children" / "converses.cjs"), "8"]
    conf = {"linepool_inflight": 8, "worker_prefetch_multiplier": 1}
    worker = start_worker(command=talks, args=("-c", "1"), conf=conf)
    assert stats(worker)["prefetch_count"] == 8
    worker.control("pool_grow", n=2)
    eventually(lambda: stats(worker)["prefetch_count"] == 24)
    worker.control("pool_shrink", n=1)
    eventually(lambda: stats(worker)["prefetch_count"] == 16)


def test_a_pool_is_paused_and_resumed(start_worker, gates):
    worker = start_worker(args=("-c", "1"), conf=POOLS)
    gate = gates()
    running = gate.send(worker, 1, "one.gate")
    gate.wait()
    assert worker.control("linepool_pause", pool="one") == {"ok": "paused"}
    waiting = worker.send("one.pid")
    assert worker.call("other.pid"), "the other one goes on"
    gate.open()
    assert worker.result(running[0]), "and what runs, too"
    assert worker.call("other.pid")
    pool = worker.control("linepool_stats")["one"]
    assert pool["paused"] and pool["waiting"] == 1 and pool["waiting_seconds"] > 0
    assert not waiting.ready()
    assert worker.control("linepool_resume") == {"ok": "resumed"}
    assert worker.result(waiting)
    assert "error" in worker.control("linepool_pause", pool="another")


def test_stats_say_what_was_done_and_is_being_done(start_worker, gates):
    worker = start_worker(args=("-c", "1"), conf=pools_of(one={}))
    for _ in range(3):
        pid = worker.call("one.pid")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pids(worker) and pid not in pids(worker))
    gate = gates()
    [running] = gate.send(worker, 1, "one.gate")
    [busy] = gate.wait()

    pool = worker.control("linepool_stats")["one"]
    assert pool["outcomes"] == {"ok": 3}
    assert pool["restarts"] == {"died": 1}
    assert pool["run_seconds"]["count"] == 3
    assert 0 < pool["run_seconds"]["p50"] <= pool["run_seconds"]["p99"]
    assert pool["wait_seconds"]["count"] == 4
    [child] = pool["children"]
    assert child["pid"] == busy and child["age_seconds"] > 0
    [doing] = child["doing"]
    assert (doing["id"], doing["task"]) == (running.id, "one.gate")
    assert doing["seconds"] > 0
    assert stats(worker)["pool"]["pools"]["one"]["outcomes"] == {"ok": 3}
    gate.open()
    assert worker.result(running)


def test_a_child_tells_where_it_hangs(start_worker, gates):
    conf = pools_of(one={"dump_signal": "QUIT"})
    worker = start_worker(args=("-c", "1"), conf=conf)
    gate = gates()
    [running] = gate.send(worker, 1, "one.gate")
    [pid] = gate.wait()
    child = worker.control("linepool_dump", pid=pid)
    assert (child["pool"], child["pid"]) == ("one", pid)
    assert child["doing"][0]["id"] == running.id
    worker.wait_for_log("it hangs here")
    assert "it hangs here" in worker.control("linepool_dump", pid=pid)["stderr"]
    assert "no child has the pid 1;" in worker.control("linepool_dump", pid=1)["error"]
    gate.open()
    assert worker.result(running)


# --- recycled -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "conf"),
    [
        pytest.param(("--max-tasks-per-child=2",), {}, id="command line"),
        pytest.param((), {"worker_max_tasks_per_child": 2}, id="setting"),
    ],
)
def test_max_tasks_per_child(start_worker, args, conf):
    worker = start_worker(command=LIVES, args=("-c", "1", *args), conf=conf)
    results = [worker.send("lives.pid") for _ in range(6)]
    served = [worker.result(result) for result in results]

    assert served[::2] == served[1::2]
    assert len(set(served)) == 3
    assert stats(worker)["pool"]["max-tasks-per-child"] == 2


@pytest.mark.parametrize(
    ("args", "conf"),
    [
        pytest.param(("--max-memory-per-child=80000",), {}, id="command line"),
        pytest.param((), {"worker_max_memory_per_child": 80_000}, id="setting"),
    ],
)
@pytest.mark.parametrize("command", [LIVES, WRAPPED], ids=["child", "grandchild"])
def test_max_memory_per_child(start_worker, gates, command, args, conf):
    """Of all its processes together; it is looked at between two tasks."""
    worker = start_worker(command=command, args=("-c", "2", *args), conf=conf)
    eventually(lambda: len(pids(worker)) == 2)
    before = pids(worker)
    fat = worker.call("lives.grow", 100)

    worker.wait_for_log("retired after 1 tasks: max_memory_per_child")
    assert eventually(lambda: fat not in pids(worker) and len(pids(worker)) == 2)
    assert pids(worker) & before == before - {fat}
    assert worker.call("lives.pid") in pids(worker)
