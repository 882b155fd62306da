"""The Celery app of every contender; which one it is, the environment says.

The work is the same everywhere: `bench.work` with a number of milliseconds to sleep and
a text that comes back, done by the same child program.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import threading
import time
from typing import Any, Dict, Optional

import orjson
from celery import Celery, bootsteps, signals
from celery.concurrency.base import BasePool
from celery.worker import state

from .notes import Notes

#: Seconds between two looks at how many tasks are done.
LOOK = 0.02

conf: Dict[str, Any] = json.loads(os.environ["BENCH_CONF"])
contender: str = conf["contender"]
#: Where the child runs, and how.
process: Dict[str, Any] = {"cwd": conf["cwd"], "env": {**os.environ, **conf["env"]}}
command = conf["command"]

app = Celery("bench", broker=conf["broker"], backend=conf["backend"])
app.conf.update(
    task_ignore_result=conf["backend"] is None,
    worker_prefetch_multiplier=conf["prefetch"],
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=conf.get("remote_control", False),
    result_expires=600,
    **conf["settings"],
)
if contender == "linepool":
    app.conf.linepool_command = command
    app.conf.linepool_env = conf["env"]
    if conf["cwd"]:
        app.conf.linepool_cwd = conf["cwd"]


class Sampler(bootsteps.StartStopStep):
    """Writes down how many tasks are done, in the worker's main process."""

    def start(self, worker: Any) -> None:
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        with open(conf["samples"], "w") as file:
            while True:
                done = state.all_total_count[0] - len(state.active_requests)
                file.write(f"{time.monotonic()} {done}\n")
                file.flush()
                time.sleep(LOOK)


app.steps["worker"].add(Sampler)


class Null(BasePool):
    """Does nothing at all: the most that Celery itself allows."""

    signal_safe = True

    def on_start(self) -> None:
        pass

    def on_apply(
        self,
        target: Any,
        args: Any = (),
        kwargs: Any = None,
        accept_callback: Any = None,
        callback: Any = None,
        **options: Any,
    ) -> None:
        accept_callback(os.getpid(), time.monotonic())
        callback((0, None, 0.0))


class Pipe:
    """A child process and its pipes, for one thread: what people write by hand.

    The ids of `send` and `hear` are for who watches them (notes.py).
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **process
        )

    def ask(self, id: str, args: Any) -> Any:
        payload = {"task": "bench.work", "args": args, "kwargs": {}, "meta": {}}
        self.send(id, orjson.dumps({"id": id, "payload": payload}) + b"\n")
        return orjson.loads(self.hear(id)).get("result")

    def send(self, id: str, line: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def hear(self, id: str) -> bytes:
        assert self._process.stdout
        return self._process.stdout.readline()


if conf["notes"]:
    # Kept: signals hold their receivers weakly.
    notes = Notes(
        conf["notes"],
        conf.get("stopwatch", False),
        None if contender == "linepool" else Pipe,
    )


_own = threading.local()
_of_process: Optional[Pipe] = None


@signals.worker_process_init.connect
def _start_pipe(**kwargs: Any) -> None:
    global _of_process
    if contender == "prefork":
        _of_process = Pipe()


def by_pipe(id: str, args: Any) -> Any:
    if _of_process is not None:
        return _of_process.ask(id, args)
    if not hasattr(_own, "pipe"):
        _own.pipe = Pipe()
    return _own.pipe.ask(id, args)


def by_process(id: str, args: Any) -> Any:
    payload = {"task": "bench.work", "args": args, "kwargs": {}, "meta": {}}
    line = orjson.dumps({"id": id, "payload": payload}) + b"\n"
    said = subprocess.run(
        command, input=line, stdout=subprocess.PIPE, check=True, **process
    )
    return orjson.loads(said.stdout).get("result")


def by_http(id: str, args: Any) -> Any:
    if not hasattr(_own, "http"):
        _own.http = http.client.HTTPConnection(conf["http"])
    headers = {"Content-Type": "application/json"}
    _own.http.request("POST", "/", orjson.dumps(args), headers)
    response = _own.http.getresponse()
    said = response.read()
    if response.status != 200:
        raise RuntimeError(f"HTTP {response.status}: {said!r}")
    return orjson.loads(said)


WAYS = {
    "threads": by_pipe,
    "prefork": by_pipe,
    "solo": by_pipe,
    "process": by_process,
    "http": by_http,
}

if contender != "linepool":

    @app.task(name="bench.work", bind=True)
    def work(self: Any, *args: Any) -> Any:
        return WAYS[contender](self.request.id, args)
