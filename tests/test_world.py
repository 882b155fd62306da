"""The world around the worker fails: its broker's connection, descriptors, backend."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis
from proxy import proxied
from workers import FAST, WorkerContainer, eventually

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


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_broker_that_is_silent_and_slow(start_worker, servers, tmp_path, kind):
    """What runs is finished, nothing runs twice, and afterwards all goes on."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    with proxied(servers, kind) as (url, through, proxy):
        conf = {"broker_url": through, "task_acks_late": True}
        worker = start_worker(kind, LIVES, args=("-c", "2"), conf=conf)
        worker.app.conf.broker_url = url
        gate = worker.send("lives.gate", str(begun), str(go))
        eventually(lambda: lines(begun))
        proxy.hold()
        paths = [tmp_path / f"silent{n}" for n in range(5)]
        silent = [worker.send("lives.work", str(path), 1) for path in paths]
        go.touch()
        assert str(worker.result(gate)) in lines(begun)
        proxy.delay = 0.02
        proxy.let_go()
        slow = [tmp_path / f"slow{n}" for n in range(5)]
        silent += [worker.send("lives.work", str(path), 1) for path in slow]
        assert [worker.result(result) for result in silent] == [1] * 10
        assert worker.inspect("ping") == {"ok": "pong"}
        assert [len(lines(path)) for path in (begun, *paths, *slow)] == [1] * 11
        assert worker.stop() == 0
        assert worker.queue_size() == 0


# --- a result backend that does not do as it should -----------------------------------

IGNORES = """
    from celery_linepool import ForeignTask

    @app.task(base=ForeignTask, name="other.work", ignore_result=True)
    def work(path, value): ...
"""


def test_a_silent_backend_costs_no_heartbeat(start_worker, servers, tmp_path):
    """Nor the tasks of another pool; when it answers again, all is stored."""
    stored, other = tmp_path / "stored", tmp_path / "other"
    with proxied(servers, "redis") as (results, to_results, backend):
        with proxied(servers, "rabbitmq") as (url, through, broker):
            worker = start_worker(
                "rabbitmq",
                args=("-c", "1", "--without-gossip", "--without-heartbeat"),
                conf={
                    "broker_url": through,
                    "broker_heartbeat": 2,
                    "result_backend": to_results,
                    "linepool_pools": {
                        "stored": {"command": LIVES, "tasks": ["stored.*"]},
                        "other": {"command": LIVES, "tasks": ["other.*"]},
                    },
                },
                tasks=IGNORES,
            )
            worker.app.conf.update(broker_url=url, result_backend=results)
            backend.hold()
            sent = [worker.send("stored.work", str(stored), n) for n in range(3)]
            eventually(lambda: lines(stored))
            for number in range(10):
                worker.send("other.work", str(other), number, ignore_result=True)
            eventually(lambda: len(lines(other)) == 10)
            assert worker.inspect("ping") == {"ok": "pong"}
            for _ in range(4):  # it has nothing to say to its broker but that it lives
                heard = broker.passed["up"]
                eventually(lambda: broker.passed["up"] > heard)
            backend.delay = 0.02
            backend.let_go()
            assert [worker.result(result) for result in sent] == [0, 1, 2]
            assert "onnection to broker lost" not in worker.log
            assert worker.stop() == 0


def test_a_backend_that_refuses(start_worker, tmp_path):
    """It costs a task its result, and nobody else anything."""
    done, other = tmp_path / "done", tmp_path / "other"
    worker = start_worker(
        "rabbitmq", LIVES, args=("-c", "1"), tasks=IGNORES, private_backend=True
    )
    pid = worker.call("lives.pid")
    with redis.Redis.from_url(worker.app.conf.result_backend) as client:
        client.config_set("maxmemory", 1)
        refused = worker.send("lives.work", str(done), 1)
        eventually(lambda: lines(done))
        worker.send("other.work", str(other), 1, ignore_result=True)
        eventually(lambda: lines(other))
        assert worker.inspect("ping") == {"ok": "pong"}
        worker.wait_for_log(
            rf"lives.work\[{refused.id}\]: Celery could not settle it, so its result "
            rf"may be missing in redis://.*/\d+, .*(OutOfMemoryError|OOM)"
        )
        client.config_set("maxmemory", 0)
    assert refused.state == "PENDING"
    assert worker.call("lives.pid") == pid
    assert worker.inspect("active") == [] and worker.queue_size() == 0
    assert worker.stop() == 0
    assert "Process <" not in worker.log


# --- what the system has not ----------------------------------------------------------

#: Somebody whose processes can be counted, and who may read what root may.
SOMEBODY, SOMEBODY_ELSE = 54321, 54322


def as_user(uid, command):
    caps = "-all,+dac_override"
    kept = ("--inh-caps", caps, "--ambient-caps", caps)
    return ["setpriv", "--reuid", str(uid), *kept, *command]


@pytest.fixture
def start_as(start_worker, monkeypatch):
    def start(uid, **options):
        command = WorkerContainer.command
        monkeypatch.setattr(
            WorkerContainer, "command", lambda *a, **kw: as_user(uid, command(*a, **kw))
        )
        return start_worker(**options)

    return start


DOUBLE = """
    @app.task(name="proj.double")
    def double(number):
        return 2 * number
"""


def limit_processes(uid, pid, most):
    """Of one process: it is told so by its own user, as root may be nobody here."""
    command = ["prlimit", "--pid", str(pid), f"--nproc={most}:"]
    subprocess.run(as_user(uid, command), check=True)


def processes(uid):
    """As the system counts them: each thread is one, and so is each zombie."""
    found = 0
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if process.uids().real == uid:
                found += process.num_threads()
    return found


def test_no_process_for_a_new_child(start_as):
    """EAGAIN, for threads as well: tasks wait, and the worker goes on."""
    worker = start_as(SOMEBODY, command=LIVES, args=("-c", "2"), tasks=DOUBLE)
    first = worker.call("lives.pid")
    seen = len(worker.log)
    limit_processes(SOMEBODY, worker.pid, 1)
    for child in worker.children("lives.rb"):
        child.kill()
    worker.wait_for_log("Resource temporarily unavailable.*trying again in", after=seen)
    waiting = worker.send("lives.pid")
    doubled = [worker.send("proj.double", n) for n in range(5)]
    assert [worker.result(result) for result in doubled] == [0, 2, 4, 6, 8]
    eventually(lambda: worker.log.count("trying again in") > 1)
    assert waiting.state == "PENDING"
    assert worker.inspect("ping") == {"ok": "pong"}
    limit_processes(SOMEBODY, worker.pid, 10_000)

    assert worker.result(waiting) != first
    assert worker.stop() == 0
    assert "a bug" not in worker.log


def test_no_process_for_a_new_guardian(start_as):
    """The last one is a child's: it is not kept without somebody to end it."""
    worker = start_as(SOMEBODY_ELSE, command=LIVES, args=("-c", "1"))
    first = worker.call("lives.pid")
    assert worker.inspect("ping") == {"ok": "pong"}
    [guardian], [child] = worker.children("guardian.sh"), worker.children("lives.rb")
    before, seen = psutil.Process(worker.pid).num_fds(), len(worker.log)
    limit_processes(SOMEBODY_ELSE, worker.pid, processes(SOMEBODY_ELSE) - 1)
    guardian.kill()
    eventually(lambda: guardian.status() == psutil.STATUS_ZOMBIE)
    child.kill()
    worker.wait_for_log("guardian cannot be started.*trying again in", after=seen)
    waiting = worker.send("lives.pid")
    eventually(lambda: worker.log.count("trying again in") > 1)
    eventually(lambda: not worker.children("lives.rb"))
    assert waiting.state == "PENDING"
    assert worker.inspect("ping") == {"ok": "pong"}
    limit_processes(SOMEBODY_ELSE, worker.pid, 10_000)

    assert worker.result(waiting) != first
    assert eventually(lambda: psutil.Process(worker.pid).num_fds() <= before)
    assert "a bug" not in worker.log
    family = worker.children()
    assert len(family) == 2
    worker.kill()
    eventually(lambda: not any(process.is_running() for process in family))


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_under_the_filesystem_broker(start_worker, tmp_path, small_disk):
    """Whoever sends is told; what is there is served, and afterwards all goes on."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    messages, control = small_disk / "messages", small_disk / "control"
    messages.mkdir()
    folders = dict.fromkeys(("data_folder_in", "data_folder_out"), str(messages))
    folders["control_folder"] = str(control)
    worker = start_worker(
        "filesystem",
        LIVES,
        args=("-c", "1"),
        conf={"broker_transport_options": folders},
    )
    gate = worker.send("lives.gate", str(begun), str(go))
    eventually(lambda: lines(begun))
    waits = worker.send("lives.pid")
    # A message that is taken makes room for another.
    worker.wait_for_log(rf"\[{waits.id}\] received")
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
    with pytest.raises(OSError, match="No space"):
        worker.send("lives.pid")
    go.touch()
    pid = worker.result(gate)
    assert worker.result(waits) == pid and worker.running
    filler.unlink()
    assert worker.call("lives.pid") == pid
    assert worker.inspect("ping") == {"ok": "pong"}
    assert worker.stop() == 0


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
