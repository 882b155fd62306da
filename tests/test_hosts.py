"""More than one machine: hosts are cut off, lose their power and come back."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import celery
import pytest
from hosts import Network
from localprocess import (
    BOOT_TIMEOUT,
    eventually,
    rabbitmq_env,
    rabbitmq_server,
    server_env,
)
from lone_pool import script
from workers import LINEPOOL, Project

pytestmark = pytest.mark.newest_celery

#: Tasks of a tenth of a second: enough that each host has some at any moment. And those
#: that are sent when all hosts are there again.
TASKS, MORE = 250, 100
#: Seconds between two signs of life; a host that gives none is given up after two.
HEARTBEAT = 3

SEND = """
import sys
from proj import app
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    app.send_task("ledger.enter", task_id=f"task-{number}")
"""
COUNT = """
from proj import app
with app.connection_for_read() as connection:
    queue = app.conf.task_default_queue
    print(connection.default_channel.queue_declare(queue, passive=True).message_count)
"""


class Cluster:
    """A broker's host, three workers' hosts, and the books that they keep."""

    def __init__(self, folder: Path, cleanup: ExitStack) -> None:
        self.network = Network(folder, cleanup)
        self.folder = folder
        self.ledger, self._runs = folder / "ledger", folder / "runs"
        self.ledger.mkdir()
        self._runs.touch()
        self.broker = self.network.host("broker")
        self.workers = [self.network.host(name) for name in ("one", "two", "three")]
        self._boot_broker()
        conf = {
            "broker_url": f"amqp://guest:guest@{self.broker.address}",
            "broker_heartbeat": HEARTBEAT,
            "broker_connection_retry_on_startup": True,
            "broker_transport_options": {"confirm_publish": True},
            "task_default_queue": "ledger",
            "task_default_queue_type": "quorum",
            # Nothing is delayed here, and it makes 28 queues.
            "broker_native_delayed_delivery_queue_type": "classic",
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "task_ignore_result": True,
            "linepool_command": [
                *script("ledger.pl"),
                str(self.ledger),
                str(self._runs),
            ],
        }
        cleanup.callback(Project(folder, conf, "", None, None).close)
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "PYTHONUNBUFFERED": "1",
            "C_FORCE_ROOT": "1",
        }

    def _boot_broker(self) -> None:
        address, folder = self.broker.address, self.folder / "rabbitmq"
        folder.mkdir()
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(
            # Otherwise this user may only come from the same host.
            "loopback_users.guest = false\ndisk_free_limit.absolute = 1MB\n"
        )
        env = rabbitmq_env(folder, 5672, 25672, 4369, address)
        server = self.broker.start(
            rabbitmq_server(),
            log=self.folder / "broker.log",
            env={**server_env(False), **env},
            cwd=folder,
        )
        eventually(lambda: b"Server startup complete" in server.logs(), BOOT_TIMEOUT)

    def boot_worker(self, host):
        log = self.folder / f"worker-{host.name}.log"
        argv = (sys.executable, "-m", "celery", "-A", "proj", "worker", "-P", LINEPOOL)
        options = ("-c", "2", "-l", "info", "-n", host.name, "--without-mingle")
        worker = host.start(*argv, *options, log=log, env=self.env, cwd=self.folder)
        eventually(lambda: b" ready." in worker.logs(), BOOT_TIMEOUT)
        return worker

    def at_the_broker(self, code: str, *arguments: object) -> str:
        """What a Python on the broker's host says."""
        argv = (sys.executable, "-c", code, *map(str, arguments))
        log = self.folder / "client.log"
        log.unlink(missing_ok=True)
        client = self.broker.start(*argv, log=log, env=self.env, cwd=self.folder)
        assert client.wait(100) == 0, client.all_logs()
        return client.all_logs()

    def runs(self) -> Counter[tuple[str, str]]:
        """How often each host has begun each task."""
        lines = self._runs.read_text().splitlines()
        return Counter(tuple(line.split(" ")) for line in lines)

    def begun_by(self, host) -> int:
        return sum(n for (name, _), n in self.runs().items() if name == host.name)

    def entries(self) -> int:
        return len(os.listdir(self.ledger))


if celery.VERSION >= (5, 5):  # before, Celery does not know quorum queues

    @pytest.mark.timeout(300)
    def test_hosts_that_are_cut_off_lose_nothing(tmp_path):
        with ExitStack() as cleanup:
            cluster = Cluster(tmp_path, cleanup)
            cut, dead, steady = cluster.workers
            running = {host.name: cluster.boot_worker(host) for host in cluster.workers}
            cluster.at_the_broker(SEND, 0, TASKS)
            eventually(lambda: all(cluster.begun_by(h) > 5 for h in cluster.workers))
            cut.cut_off()
            dead.lose_power()
            # What those two held goes to the third, once the broker has missed them.
            eventually(lambda: again(cluster, steady))

            before = {host.name: cluster.begun_by(host) for host in (cut, dead)}
            cut.plug_in()
            dead.plug_in()
            running[dead.name] = cluster.boot_worker(dead)
            cluster.at_the_broker(SEND, TASKS, TASKS + MORE)
            for host in (cut, dead):
                eventually(lambda: cluster.begun_by(host) > before[host.name])
            eventually(lambda: cluster.entries() == TASKS + MORE)

            for worker in running.values():
                worker.kill(signal.SIGTERM)
            for worker in running.values():
                assert worker.wait(60) == 0, worker.all_logs()
            # Nothing waits, nor was anything held that nobody acknowledged.
            assert cluster.at_the_broker(COUNT).split()[-1] == "0"


def again(cluster: Cluster, host) -> list[str]:
    """Tasks that another host has begun before."""
    runs = cluster.runs()
    others = {task for name, task in runs if name != host.name}
    return [task for name, task in runs if name == host.name and task in others]
