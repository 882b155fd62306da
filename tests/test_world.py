"""The world around the worker fails: its broker's connection, descriptors, backend."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import psutil
import pytest
from proxy import proxied
from workers import FAST, eventually

CHILDREN = Path(__file__).parent / "children"
LIVES = ["ruby", str(CHILDREN / "lives.rb")]
FAULTY = ["perl", str(CHILDREN / "faulty.pl")]


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


# --- a connection that is cut ---------------------------------------------------------


#: Bytes until a cut. Down are messages of some hundred bytes; up is, of a worker that
#: sends no events, little but their acknowledgements of 21 bytes each.
CUTS = {"down": (3, 500), "up": (3, 30)}


@pytest.mark.parametrize("options", [{}, FAST], ids=["plain", "fast"])
@pytest.mark.parametrize("direction", CUTS)
def test_a_connection_is_cut_in_the_middle_of_a_message(
    start_worker, servers, tmp_path, direction, options
):
    with proxied(servers, "rabbitmq") as (url, through, proxy):
        worker = start_worker(
            "rabbitmq",
            LIVES,
            args=("-c", "2", "--without-gossip", "--without-heartbeat"),
            conf={
                "broker_url": through,
                "task_acks_late": True,
                "task_reject_on_worker_lost": True,
                **options,
            },
        )
        worker.app.conf.broker_url = url
        for cut in CUTS[direction]:
            seen = len(worker.log)
            before, sent = proxy.cuts, {}
            proxy.cut_after(direction, cut)
            for number in range(20):
                path = tmp_path / f"{cut}-{number}"
                sent[path] = worker.send("lives.work", str(path), number)
            worker.wait_for_log("onnection to broker lost", after=seen)
            assert proxy.cuts == before + 1
            for number, result in enumerate(sent.values()):
                eventually(result.ready)
                assert result.result == number
            assert all(lines(path) for path in sent), "a late task was lost"
        assert worker.stop() == 0


# --- what the system has not ----------------------------------------------------------


def test_no_descriptor_for_a_new_child(start_worker, tmp_path):
    """EMFILE: the pool tries again, tasks wait, and the worker goes on."""
    worker = start_worker(command=LIVES, args=("-c", "1"))
    first = worker.call("lives.pid")
    used = psutil.Process(worker.pid).num_fds()
    soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    seen = len(worker.log)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (used - 3, hard))
    os.kill(first, signal.SIGKILL)
    worker.wait_for_log("Too many open files.*trying again in", after=seen)
    waiting = worker.send("lives.pid")
    eventually(lambda: worker.log.count("trying again in") > 1)
    assert waiting.state == "PENDING" and worker.running
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (soft, hard))

    assert worker.result(waiting) != first
    assert worker.inspect("ping") == {"ok": "pong"}


# --- the worker ends while its children misbehave -------------------------------------

#: Faults of each kind that matters to a stop, by their name in the child.
AT_THE_STOP = [
    *("hang", "ignores TERM", "signal 19", "signal 9", "exit 1", "garbage"),
    *("flood of stdout", "endless line", "closes stdout", "fork bomb"),
    "grandchild holds pipes",
]


@pytest.mark.parametrize("inflight", [0, 1, 8], ids=["original", "one", "many"])
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_the_worker_ends_whatever_its_children_do(
    start_worker, tmp_path, cold, inflight
):
    """One pool for each fault; all misbehave at once, and meanwhile it answers."""
    pools = {
        f"p{n}": {
            "command": [*FAULTY, str(inflight)],
            "tasks": [f"p{n}.*"],
            "size": 1,
            "inflight": max(1, inflight),
        }
        for n in range(len(AT_THE_STOP))
    }
    worker = start_worker(
        conf={
            "linepool_pools": pools,
            "linepool_stop_timeout": 1,
            "worker_prefetch_multiplier": 100,
        },
        args=("-c", "1"),
    )
    moment = "cancel" if cold else "stop"
    for n, fault in enumerate(AT_THE_STOP):
        worker.call(f"p{n}.arm", str(tmp_path / f"arm{n}"), fault, moment)
        worker.send(f"p{n}.hold", str(tmp_path / f"hold{n}"))
    held = [tmp_path / f"hold{n}.begun" for n in range(len(AT_THE_STOP))]
    eventually(lambda: all(path.exists() for path in held))
    assert worker.inspect("ping") == {"ok": "pong"}
    family = worker.children()
    worker.send_signal(signal.SIGQUIT if cold else signal.SIGTERM)
    if not cold:
        worker.wait_for_log("finishing")
        for n in range(len(AT_THE_STOP)):
            (tmp_path / f"hold{n}").touch()
    worker.wait()
    eventually(lambda: not any(process.is_running() for process in family))
    assert "a bug in the engine" not in worker.log
