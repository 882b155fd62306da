"""Real Celery workers for tests: ``start_worker`` and what it returns."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import atomic_files  # noqa: F401
import psutil
import pytest
from celery import Celery, _state, exceptions
from celery.result import AsyncResult
from kombu import pools
from kombu.transport.filesystem import Transport as FilesystemTransport
from leaks import LeakGuard
from localprocess import (
    BOOT_TIMEOUT,
    FilesystemBroker,
    LocalProcess,
    Servers,
    eventually,
)
from pytest_celery import CeleryWorkerContainer

__all__ = ["LINEPOOL", "Project", "Worker", "WorkerFactory", "eventually", "run_celery"]

LINEPOOL = "celery_linepool:LinePool"

#: An idle worker is gone in a second or two; prefork without a hub takes up to six.
WARM_SHUTDOWN = 10.0
COLD_SHUTDOWN = 30.0

#: What is faster and off by default.
FAST = {"linepool_one_core": True, "linepool_buffered_broker": True}
#: With LINEPOOL_FAST=1 every LinePool of every test has it.
EVERYWHERE = FAST if os.environ.get("LINEPOOL_FAST") == "1" else {}

#: Last in the worker's path: what the generated module imports from here.
TESTS = Path(__file__).parent

APP_MODULE = """\
import atomic_files
import loopback
from celery import Celery

app = Celery("proj")
app.conf.update({conf!r})

{tasks}
"""


class WorkerContainer(CeleryWorkerContainer):
    """pytest-celery's worker, started from this very environment."""

    @classmethod
    def command(
        cls, *args: str, pool: str | None = None, nodename: str = "worker@%h"
    ) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "proj", "worker"),
            *("--loglevel", cls.log_level(), "--hostname", nodename),
            # A second of every start, spent listening for neighbours.
            "--without-mingle",
            *(() if pool is None else ("--pool", pool)),
            *args,
        ]

    def teardown(self) -> None:
        self._container.destroy()


class Project:
    """An application that its workers and the test share: ``proj.py`` in a folder."""

    def __init__(
        self,
        folder: Path,
        conf: Mapping[str, Any],
        tasks: str,
        broker: Any,
        backend: Any,
    ) -> None:
        self.folder = folder
        self.conf = dict(conf)
        #: The server objects, with stop(), start(), crash(), pause(), resume().
        self.broker = broker
        self.backend = backend
        self._module: ModuleType | None = None
        self._write(tasks)
        # A client, not the worker's module: the module may have side effects.
        self.app = Celery("proj", set_as_current=False)
        self.app.conf.update(self.conf)

    def _write(self, tasks: str) -> None:
        try:
            ast.literal_eval(repr(self.conf))
        except (ValueError, SyntaxError):
            raise TypeError(
                "conf is written to proj.py as a literal: what has none"
                " (a kombu Queue, a function) goes into tasks=, as app.conf.x = ..."
            ) from None
        source = APP_MODULE.format(conf=self.conf, tasks=textwrap.dedent(tasks))
        (self.folder / "proj.py").write_text(source)

    @property
    def module(self) -> ModuleType:
        """``proj`` imported into the test process, for ``proj.add.s(1, 2)``."""
        if self._module is None:
            spec = importlib.util.spec_from_file_location(
                "proj", self.folder / "proj.py"
            )
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules["proj"] = module
            current = getattr(_state._tls, "current_app", None)
            try:
                spec.loader.exec_module(module)
            finally:
                # Its app would stay the current one of the tests that follow.
                _state._set_current_app(current)
            self._module = module
        return self._module

    @property
    def queue(self) -> str:
        return str(self.conf["task_default_queue"])

    def close(self) -> None:
        close_app(self.app)
        if self._module is not None:
            close_app(self._module.app)
            sys.modules.pop("proj", None)


def close_app(app: Celery) -> None:
    """Give back every socket of a client app."""
    backend: Any = getattr(app._local, "backend", None) or getattr(
        app, "_backend_cache", None
    )
    # The server at the other end may be gone, which is not this test's fault.
    consumer: Any = getattr(backend, "result_consumer", None)
    with suppress(Exception):
        if consumer is not None:
            consumer.stop()
    if hasattr(consumer, "_pubsub"):
        # A result that is freed later would connect again to unsubscribe.
        consumer._pubsub = None
        consumer.subscribed_to.clear()
    with suppress(Exception):
        if "client" in vars(backend or object):
            backend.client.connection_pool.disconnect()
    with suppress(Exception):
        pools.reset()
    app.close()
    # kombu closes its sockets but only frees the epoll, and a failed test's traceback
    # holds on to the app: cut the ties between the app and the connections.
    if "amqp" in vars(app):
        app.amqp._producer_pool = None
    for name in ("control", "events"):
        vars(app).pop(name, None)
    # kombu remembers bindings per process, but they are in the folder of one test.
    FilesystemTransport.global_state.clear()


class Worker:
    """One worker process and the means to talk to it."""

    def __init__(
        self,
        project: Project,
        *,
        pool: str | None,
        args: Sequence[str],
        env: Mapping[str, str],
        log: Path,
    ) -> None:
        self.project = project
        self.nodename = f"{log.stem}-{uuid.uuid4().hex[:8]}@localhost"
        path = [str(project.folder), os.environ.get("PYTHONPATH", ""), str(TESTS)]
        process_env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            # Only says that the user is root, as they are in a container.
            "C_FORCE_ROOT": "1",
            **env,
        }
        argv = WorkerContainer.command(*args, pool=pool, nodename=self.nodename)
        self.process = LocalProcess(
            argv, log=log, env=process_env, cwd=project.folder, prefix="worker"
        )
        self.container = WorkerContainer(self.process)

    # What it is made of

    @property
    def app(self) -> Celery:
        """A client of the same broker, backend and settings, in the test process."""
        return self.project.app

    @property
    def module(self) -> ModuleType:
        return self.project.module

    @property
    def broker(self) -> Any:
        return self.project.broker

    @property
    def backend(self) -> Any:
        return self.project.backend

    @property
    def queue(self) -> str:
        return self.project.queue

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """Everything it has written so far, earlier starts included."""
        return self.process.all_logs()

    @property
    def running(self) -> bool:
        return self.process.status == "running"

    def children(self, match: str = "") -> list[psutil.Process]:
        """Its descendants whose command line matches the regular expression."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if re.search(match, " ".join(child.cmdline())):
                        found.append(child)
        return found

    # Talking to it

    def send(self, name: str, *args: Any, **options: Any) -> AsyncResult:
        """``send_task`` with positional task arguments; the rest are its options."""
        return self.app.send_task(name, args=args, **options)

    def result(
        self, result: AsyncResult, timeout: float = 60, propagate: bool = True
    ) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            try:
                # The interval is for backends that poll: the default is half a second.
                return result.get(timeout=5, interval=0.02, propagate=propagate)
            except exceptions.TimeoutError:
                # Celery's client subscribes and reads, each on a connection of its
                # own: Redis may read first, and a result that comes in between is
                # announced to nobody.
                if result.ready():
                    # It has just come, or is the task's own error.
                    return result.get(timeout=5, propagate=propagate)
                if time.monotonic() > deadline:
                    raise

    def call(self, name: str, *args: Any, timeout: float = 60, **options: Any) -> Any:
        """Send a task and return its result, or raise its exception."""
        return self.result(self.send(name, *args, **options), timeout)

    def inspect(self, method: str, *args: Any, timeout: float = 30, **kw: Any) -> Any:
        """This worker's answer to ``celery inspect <method>``; None if none came."""
        inspect = self.app.control.inspect(
            destination=[self.nodename], timeout=timeout, limit=1
        )
        replies = getattr(inspect, method)(*args, **kw) or {}
        return replies.get(self.nodename)

    def control(self, command: str, timeout: float = 30, **arguments: Any) -> Any:
        """This worker's answer to any remote control command; None if none came."""
        replies = self.app.control.broadcast(
            command,
            arguments=arguments,
            destination=[self.nodename],
            reply=True,
            timeout=timeout,
            limit=1,
        )
        return next((r[self.nodename] for r in replies if self.nodename in r), None)

    def queue_size(self, queue: str | None = None) -> int:
        """Messages that no worker has taken yet."""
        with self.app.connection_for_read() as connection:
            try:
                declared = connection.default_channel.queue_declare(
                    queue or self.queue, passive=True
                )
            except connection.channel_errors:
                # For kombu's virtual transports an empty queue does not exist.
                return 0
            return int(declared.message_count)

    def wait_for_log(
        self, regex: str, timeout: float = 60, after: int = 0
    ) -> re.Match[str]:
        """The first match beyond the offset ``after``, e.g. an older ``len(log)``."""
        pattern = re.compile(regex, re.MULTILINE)

        def search() -> re.Match[str] | None:
            was_running = self.running
            if match := pattern.search(self.log, after):
                return match
            if not was_running:
                # Not an AssertionError: there is nothing to wait for any more.
                pytest.fail(
                    f"the worker ended ({self.process.process.returncode}) without"
                    f" logging {regex!r}; its log:\n{self.log}",
                    pytrace=False,
                )
            return None

        found = eventually(search, timeout, message=f"{regex!r} in the worker's log")
        assert found is not None
        return found

    # Its life

    def wait_until_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        ready = re.escape(f"{self.nodename} ready.")
        self.wait_for_log(ready, timeout, after=self._boot_offset())
        assert self.container.ready()

    def _boot_offset(self) -> int:
        boot = self.process.log.read_bytes()[: self.process.boot_offset]
        return len(boot.decode(errors="backslashreplace"))

    def start(self) -> None:
        """Start it again, the same in everything, after stop() or kill()."""
        assert not self.running
        self.process.start()
        self.wait_until_ready()

    def send_signal(self, sig: int) -> None:
        self.process.kill(sig)

    def wait(self, timeout: float = 60) -> int:
        """The exit code once it has ended; negative for a signal."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the worker did not end within {timeout:g} s; its log:\n{self.log}"
            ) from None

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Signal the worker process and return its exit code."""
        self.send_signal(sig)
        return self.wait(timeout)

    def kill(self) -> int:
        """SIGKILL to the worker alone: its children have to notice by themselves."""
        return self.stop(signal.SIGKILL)

    def close(self) -> None:
        """End it as an operator would: warm, then cold. Anything more is a failure."""
        if not self.running:
            return
        with suppress(psutil.NoSuchProcess):
            # A test may have left it frozen.
            psutil.Process(self.pid).resume()
        for sig, grace in (
            (signal.SIGTERM, WARM_SHUTDOWN),
            (signal.SIGQUIT, COLD_SHUTDOWN),
        ):
            self.send_signal(sig)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
                return
        self.container.teardown()
        pytest.fail("the worker had to be killed at the end of the test", pytrace=False)


class WorkerFactory:
    """What the fixture ``start_worker`` returns; one per test."""

    def __init__(self, folder: Path, servers: Servers, guard: LeakGuard) -> None:
        self._folder = folder
        self._servers = servers
        self._cleanup = ExitStack()
        self._numbers = itertools.count()
        #: Name and text of every log, for the report of a failed test.
        self.logs: list[tuple[str, Callable[[], str]]] = []
        guard.folders.append(folder)

    def __call__(
        self,
        broker: str = "redis",
        command: Sequence[str] | None = None,
        pool: str | None = LINEPOOL,
        args: Sequence[str] = (),
        conf: Mapping[str, Any] | None = None,
        tasks: str = "",
        *,
        backend: str | None = "auto",
        private_broker: bool = False,
        private_backend: bool = False,
        env: Mapping[str, str] | None = None,
        project: Project | None = None,
        wait: bool = True,
    ) -> Worker:
        """Start a worker and wait until it is ready.

        ``backend`` is "redis", "file", a URL, or None for no results at all; "auto" is
        "file" for the filesystem broker and "redis" for the others. ``project``
        is that of another worker: a second worker for the same queues.
        ``pool=None`` leaves the choice to ``conf`` and ``env``.
        """
        if project is None:
            project = self.project(
                broker,
                command,
                conf,
                tasks,
                backend=backend,
                private_broker=private_broker,
                private_backend=private_backend,
            )
        worker = Worker(
            project,
            pool=pool,
            args=args,
            env=env or {},
            log=project.folder / f"worker{next(self._numbers)}.log",
        )
        self._cleanup.callback(worker.close)
        self._keep_log(worker.nodename, lambda: worker.log)
        if wait:
            worker.wait_until_ready()
        return worker

    def project(
        self,
        broker: str = "redis",
        command: Sequence[str] | None = None,
        conf: Mapping[str, Any] | None = None,
        tasks: str = "",
        *,
        backend: str | None = "auto",
        private_broker: bool = False,
        private_backend: bool = False,
    ) -> Project:
        """The application alone, to send tasks before any worker runs."""
        folder = self._folder / f"project{next(self._numbers)}"
        folder.mkdir()
        broker_server = self._broker(broker, folder, private_broker)
        settings: dict[str, Any] = {
            "broker_url": self._lease(broker_server),
            # Otherwise every worker says that it will change in Celery 6.
            "broker_connection_retry_on_startup": True,
            "task_default_queue": f"q-{uuid.uuid4().hex[:12]}",
        }
        if isinstance(broker_server, FilesystemBroker):
            options = broker_server.transport_options
            settings["broker_transport_options"] = options
        if backend == "auto":
            backend = "file" if broker == "filesystem" else "redis"
        url, backend_server = self._backend(backend, folder, private_backend)
        if url is not None:
            settings["result_backend"] = url
        if command is not None:
            settings["linepool_command"] = list(command)
        for key, value in {**EVERYWHERE, **(conf or {})}.items():
            if key == "broker_transport_options":
                value = {**settings.get(key, {}), **value}
            settings[key] = value
        project = Project(folder, settings, tasks, broker_server, backend_server)
        self._cleanup.callback(project.close)
        return project

    def _broker(self, kind: str, folder: Path, private: bool) -> Any:
        if kind == "filesystem":
            return FilesystemBroker(folder / "broker")
        return self._server(kind, private)

    def _backend(
        self, kind: str | None, folder: Path, private: bool
    ) -> tuple[str | None, Any]:
        if kind == "redis":
            server = self._server("redis", private)
            return self._lease(server), server
        if kind == "file":
            results = folder / "results"
            results.mkdir()
            return f"file://{results}", None
        return kind, None

    def _server(self, kind: str, private: bool) -> Any:
        if not private:
            return self._servers.shared(kind)
        server = self._servers.private(kind)
        self._cleanup.callback(server.teardown)
        text = ""

        def log() -> str:
            nonlocal text
            # The folder goes with the server; the report may be written later.
            with suppress(OSError):
                text = server.log()
            return text

        self._keep_log(server.name, log)
        return server

    def _lease(self, server: Any) -> str:
        lease = server.lease()
        self._cleanup.callback(lease.release)
        return str(lease.url)

    def _keep_log(self, name: str, log: Callable[[], str]) -> None:
        self.logs.append((name, log))

    def close(self) -> None:
        self._cleanup.close()


def run_celery(
    *argv: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 100,
    stdin: str = "",
) -> tuple[int, str]:
    """Run a real ``celery ...`` to its end: exit code, stdout and stderr together."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", *argv],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "C_FORCE_ROOT": "1", **(env or {})},
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(stdin, timeout)
    except BaseException as exc:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if isinstance(exc, subprocess.TimeoutExpired):
            raise AssertionError(
                f"celery {' '.join(argv)} took over {timeout:g} s:\n{output}"
            ) from None
        raise
    return process.returncode, output
