"""Local processes in the place of containers, and the brokers that run in them.

pytest-celery talks to a docker container through a handful of attributes and
methods. ``LocalProcess`` has the same ones, so pytest-celery's own container classes
work on top of it and no docker daemon is needed.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from leaks import (
    SESSION_ID,
    TEST_ID,
    kill_marked,
    marked_processes,
    session_processes,
)
from pytest_celery import RabbitMQContainer, RedisContainer

T = TypeVar("T")

#: Generous, because it only costs time when something is wrong.
BOOT_TIMEOUT = 100.0

PROCESS_ID = "LINEPOOL_PROCESS_ID"


def eventually(
    fn: Callable[[], T], timeout: float = 60, interval: float = 0.02, message: str = ""
) -> T:
    """Poll ``fn`` until it returns something true, and return that.

    An AssertionError of ``fn`` means "not yet"; the last one is shown at the deadline.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            if result := fn():
                return result
            last = result
        except AssertionError as exc:
            last = exc
        if time.monotonic() > deadline:
            what = message or getattr(fn, "__name__", repr(fn))
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {last!r})")
        time.sleep(interval)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on; all held at once so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class LocalProcess:
    """Quacks like ``docker.models.containers.Container``, runs a local command.

    The process is the leader of its own session and writes stdout and stderr to
    ``log``. No descriptor of it stays open here.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ports: Mapping[str, int] | None = None,
        prefix: str = "local",
    ) -> None:
        self.argv = list(argv)
        self.id = uuid.uuid4().hex
        self.name = f"{prefix}-{self.id[:8]}"
        self.log = log
        self.cwd = cwd
        self.env = {**(os.environ if env is None else env), PROCESS_ID: self.id}
        self.boot_offset = 0
        self.attrs: dict[str, Any] = {
            "Config": {
                "Hostname": "localhost",
                "Env": [f"{key}={value}" for key, value in self.env.items()],
            },
            "HostConfig": {"PortBindings": None},
            "NetworkSettings": {
                "Networks": {"host": {"IPAddress": "127.0.0.1"}},
                "Ports": {
                    name: [{"HostPort": str(port)}]
                    for name, port in (ports or {}).items()
                },
            },
        }
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.boot_offset = log.tell()
            self.process = subprocess.Popen(
                self.argv,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # What pytest-celery and pytest-docker-tools use of a container

    @property
    def status(self) -> str:
        return "running" if self.process.poll() is None else "exited"

    def reload(self) -> None:
        self.process.poll()

    def logs(self) -> bytes:
        """The log since the last start, so that "ready" means this boot's ready."""
        with open(self.log, "rb") as log:
            log.seek(self.boot_offset)
            return log.read()

    def all_logs(self) -> str:
        return self.log.read_bytes().decode(errors="backslashreplace")

    def kill(self, signal: str | int | None = None) -> None:  # noqa: A002
        """Signal the process alone, as docker does; SIGKILL if none is named."""
        self.process.send_signal(_signal_number(signal or "SIGKILL"))

    def restart(self, timeout: float = 10) -> None:
        self.stop(timeout)
        self.start()

    def exec_run(self, cmd: str | Sequence[str]) -> tuple[int, bytes]:
        argv = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
        done = subprocess.run(
            argv,
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    # The rest is ours

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def stop(self, timeout: float = 10) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.destroy()

    def tree(self) -> list[psutil.Process]:
        """The process and all that came out of it, daemons included."""
        return list(marked_processes(PROCESS_ID, self.id))

    def destroy(self) -> None:
        """Nothing of it survives, not even what has left the process tree."""
        if self.process.poll() is None:
            # Not reaped yet, so the number is still that of its own group.
            os.killpg(self.process.pid, signal.SIGKILL)
        kill_marked(PROCESS_ID, self.id)
        self.process.wait(10)


def _signal_number(value: str | int) -> int:
    return signal.Signals[value].value if isinstance(value, str) else int(value)


#: Reads until the session's end, then kills what carries the session's mark. On
#: its own rather than an import of ours: it starts before every session.
WATCHDOG = """
import os, signal, sys, time
mark, folder = sys.argv[1].encode(), sys.argv[2] + "/"
sys.stdin.buffer.read()
for attempt in range(50):
    victims = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ:
                marked = mark in environ.read().split(b"\\0")
            if marked or os.readlink(f"/proc/{pid}/cwd").startswith(folder):
                os.kill(int(pid), signal.SIGKILL)
                victims += 1
        except OSError:
            pass
    if not victims:
        break
    time.sleep(0.1)
"""


class Watchdog:
    """Kills everything the session has started once the session is gone.

    A helper process waits for the end of a pipe that only this process holds, so it
    works however the session ends. A "parent death" signal would only reach direct
    children, and needs a preexec_fn.
    """

    def __init__(self, folder: Path) -> None:
        # Not in its own environment: it would be its own last victim.
        self.session_id = uuid.uuid4().hex
        mark = f"{SESSION_ID}={self.session_id}"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", WATCHDOG, mark, os.path.realpath(folder)],
            cwd="/",
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        session_processes.add(self.process.pid)
        os.environ[SESSION_ID] = self.session_id

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        os.environ.pop(SESSION_ID, None)


# --- the brokers


def need(binary: str | None, name: str, package: str) -> str:
    if binary is None:
        # Not a skip: a suite that skips its brokers is green and proves nothing.
        pytest.fail(f"{name} is not installed (apt install {package})", pytrace=False)
    return binary


class Server:
    """The part of a broker that tests use: take it away, bring it back.

    Mixed into pytest-celery's container classes. A shared server, one that other
    tests use as well, refuses to be taken away.
    """

    _container: LocalProcess
    shared: bool
    folder: Path
    # These are the container's.
    port: int
    ready_prompt: str
    logs: Callable[[], str]

    def start(self) -> None:
        self._own()
        self._container.start()
        self.wait_until_ready()

    def stop(self, timeout: float = 30) -> None:
        """End it politely; what it had on disk is there again after ``start``.

        What does not end then is killed, as a service manager would: a RabbitMQ that is
        told to stop right after its boot has been seen to hang.
        """
        self._own()
        with suppress(psutil.NoSuchProcess):
            self._main_process().terminate()
        try:
            self._container.wait(timeout)
        except subprocess.TimeoutExpired:
            self._container.destroy()

    def crash(self) -> None:
        """End it without a word."""
        self._own()
        self._container.destroy()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self._own()
        self._main_process().suspend()

    def resume(self) -> None:
        self._own()
        self._main_process().resume()

    def lease(self) -> Lease:
        raise NotImplementedError

    def teardown(self) -> None:
        self._container.destroy()
        session_processes.discard(self._container.pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self._container.status == "running", self._container.all_logs()
            return self._port_is_open() and self.ready_prompt in self.logs()

        try:
            eventually(ready, BOOT_TIMEOUT, message=f"boot of {self._container.name}")
            # pytest-celery's own check polls once a second: ask it when it is sure.
            assert super().ready()  # type: ignore[misc]
        except BaseException:
            self._container.destroy()
            raise
        if self.shared:
            session_processes.add(self._container.pid)

    def log(self) -> str:
        return self._container.all_logs()

    def _main_process(self) -> psutil.Process:
        return psutil.Process(self._container.pid)

    def _port_is_open(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def _own(self) -> None:
        if self.shared:
            raise RuntimeError(
                f"{self._container.name} is shared with other tests:"
                " start_worker(..., private_broker=True) gives one of your own"
            )


class Lease:
    """One test's corner of a server."""

    def __init__(self, url: str, release: Callable[[], None]) -> None:
        self.url = url
        self.release = release


def server_env(shared: bool) -> dict[str, str]:
    env = dict(os.environ)
    if shared:
        # It is started by the first test that wants it and outlives that test.
        env.pop(TEST_ID, None)
    return env


class RedisServer(Server, RedisContainer):
    DATABASES = 4096

    def __init__(self, folder: Path, *, shared: bool) -> None:
        binary = need(shutil.which("redis-server"), "redis-server", "redis-server")
        self.folder = folder
        self.shared = shared
        [self._port] = free_ports(1)
        self._numbers = itertools.count(1)
        argv = self.command(
            *("--port", str(self._port), "--bind", "127.0.0.1"),
            *("--databases", str(self.DATABASES), "--dir", str(folder)),
            # A new title would overwrite the environment that we know it by.
            *("--set-proc-title", "no"),
            # By default who waits for a result over 32 MB may be cut off.
            *("--client-output-buffer-limit", "pubsub 0 0 0"),
            # A private one is there to be restarted: it must not forget then.
            *(() if shared else ("--appendonly", "yes", "--appendfsync", "always")),
        )
        super().__init__(
            LocalProcess(
                [binary, *argv[1:]],
                log=folder / "redis.log",
                env=server_env(shared),
                cwd=folder,
                ports={f"{self._port}/tcp": self._port},
                prefix="redis",
            )
        )
        self.wait_until_ready()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        # The worker is in the same network as the test.
        return self.host_url

    def lease(self) -> Lease:
        """A database of its own: kombu's fanout keys carry its number as well."""
        number = next(self._numbers)
        assert number < self.DATABASES, "one session has used up every redis database"
        url = f"redis://127.0.0.1:{self._port}/{number}"
        return Lease(url, lambda: self._flush(number))

    def _flush(self, number: int) -> None:
        if not self.shared or self._container.status != "running":
            return
        # By hand: two commands are not worth a client whose pool has to be closed.
        with socket.create_connection(("127.0.0.1", self._port), timeout=10) as sock:
            sock.sendall(b"SELECT %d\r\nFLUSHDB ASYNC\r\n" % number)
            with sock.makefile("rb") as replies:
                assert [replies.readline() for _ in range(2)] == [b"+OK\r\n"] * 2


#: Debian's rabbitmq-server in PATH is a wrapper that switches user; these are not.
RABBITMQ_SCRIPTS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
    "/opt/homebrew/sbin/rabbitmq-server",
)


def rabbitmq_server() -> str:
    found = next((s for s in RABBITMQ_SCRIPTS if os.path.exists(s)), None)
    found = found or shutil.which("rabbitmq-server")
    return need(found, "rabbitmq-server", "rabbitmq-server")


def rabbitmq_env(
    folder: Path, port: int, dist: int, epmd: int, address: str = "127.0.0.1"
) -> dict[str, str]:
    """Where a RabbitMQ listens and what it writes, all in one folder."""
    return {
        "HOME": str(folder),  # the Erlang cookie
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"linepool{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODE_IP_ADDRESS": address,
        "RABBITMQ_DIST_PORT": str(dist),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
        "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_LOGS": "-",
        # Idle schedulers spin by default, at the cost of the tests' own time.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none",
    }


class RabbitMQServer(Server, RabbitMQContainer):
    def __init__(self, folder: Path, *, shared: bool) -> None:
        binary = rabbitmq_server()
        self.folder = folder
        self.shared = shared
        self._port, self._http_port, dist, epmd = free_ports(4)
        self._write_config()
        super().__init__(
            LocalProcess(
                [binary],
                log=folder / "rabbitmq.log",
                env={
                    **server_env(shared),
                    **rabbitmq_env(folder, self._port, dist, epmd),
                },
                cwd=folder,
                ports={f"{self._port}/tcp": self._port},
                prefix="rabbitmq",
            )
        )
        self.wait_until_ready()

    def _write_config(self) -> None:
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self._http_port}\n"
            # The plugin is there to make vhosts, not to watch.
            f"management_agent.disable_metrics_collector = true\n"
            # By default a nearly full disk blocks every publisher for ever.
            f"disk_free_limit.absolute = 1MB\n"
        )

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return self.host_url

    def _main_process(self) -> psutil.Process:
        # The start script waits for the Erlang machine and does not pass signals on.
        for process in self._container.tree():
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("beam"):
                    return process
        raise psutil.NoSuchProcess(self._container.pid)

    def stop(self, timeout: float = 30) -> None:
        super().stop(timeout)
        # epmd is a daemon and would stay.
        self._container.destroy()

    def lease(self) -> Lease:
        """A vhost of its own, with everything in it gone afterwards."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self._http("PUT", f"vhosts/{name}", {})
        access = {"configure": ".*", "write": ".*", "read": ".*"}
        self._http("PUT", f"permissions/{name}/guest", access)
        url = f"amqp://guest:guest@127.0.0.1:{self._port}/{name}"
        return Lease(url, lambda: self._release(name))

    def _release(self, name: str) -> None:
        if self.shared and self._container.status == "running":
            self._http("DELETE", f"vhosts/{name}")

    def _http(self, method: str, path: str, body: object = None) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._http_port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )
        # No proxy from the environment between us and our own port.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            response.read()


class FilesystemBroker:
    """Not a server at all: a folder that both sides read and write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("messages", "control"):
            (folder / name).mkdir(parents=True)

    @property
    def transport_options(self) -> dict[str, Any]:
        return {
            "data_folder_in": str(self.folder / "messages"),
            "data_folder_out": str(self.folder / "messages"),
            "control_folder": str(self.folder / "control"),
            "polling_interval": 0.02,
        }

    def lease(self) -> Lease:
        return Lease("filesystem://", lambda: None)

    def log(self) -> str:
        return ""


class Servers:
    """The servers of a session, each started when the first test asks for it."""

    KINDS: dict[str, type[Any]] = {"redis": RedisServer, "rabbitmq": RabbitMQServer}

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._running: dict[str, Any] = {}

    def shared(self, kind: str) -> Any:
        if kind not in self._running:
            self._running[kind] = self._start(kind, shared=True)
        return self._running[kind]

    def private(self, kind: str) -> Any:
        return self._start(kind, shared=False)

    def _start(self, kind: str, *, shared: bool) -> Any:
        return self.KINDS[kind](self._make_folder(kind), shared=shared)

    def close(self) -> None:
        while self._running:
            _, server = self._running.popitem()
            server.teardown()
