"""Serve Celery tasks to a celery-linepool worker, from a virtualenv without Celery.

    import linepool

    @linepool.task("billing.charge")
    def charge(amount, currency="EUR"):
        return {"charged": amount}

    linepool.run(inflight=4)

This file needs Python 3.8 and nothing else. Import it before anything that may print:
importing it turns stdout into stderr, for subprocesses as well. Tasks run in threads,
so that the main thread hears a cancel, a ping, a signal and the end of the channel.
"""

import itertools
import json
import os
import select
import signal
import sys
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["task", "run", "Retry", "Throttle", "Reject", "Ignore", "Cancelled"]


def _take_channel():
    if os.environ.get("LINEPOOL_CHANNEL") == "fd":
        channel = 3, 4
        for fd in channel:
            os.set_inheritable(fd, False)
        return channel
    channel = os.dup(0), os.dup(1)
    # A subprocess that reads stdin would swallow requests.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return channel


_IN, _OUT = _take_channel()
_PROTOCOL = int(os.environ.get("LINEPOOL_PROTOCOL") or 1)
_MAX_LINE = int(os.environ.get("LINEPOOL_MAX_LINE") or 16 * 1024 * 1024)
_FEATURES = ["cancel", "ping", "stop"]

_tasks = {}


def task(name, bind=False):
    """Register a function by name; with `bind` its first argument is the `Context`."""

    def register(function):
        _tasks[name] = function, bind
        return function

    return register


class Outcome(Exception):  # what a task raises to end in another way
    def __init__(self, status, **fields):
        super().__init__(fields.get("message") or status)
        given = {name: value for name, value in fields.items() if value is not None}
        self.reply = {"status": status, **given}


class Retry(Outcome):
    """Run it again, after so many seconds if they are given, as long as it may be."""

    def __init__(self, message=None, after=None):
        super().__init__("retry", message=message, retry_after_secs=after)


class Throttle(Outcome):
    """Run it again later; that uses up no retry."""

    def __init__(self, after=60):
        super().__init__("throttled", retry_after_secs=after)


class Reject(Outcome):
    """Reject its message, or have the broker deliver it again."""

    def __init__(self, requeue=False):
        super().__init__("rejected", requeue=requeue)


class Ignore(Outcome):
    """Store nothing."""

    def __init__(self):
        super().__init__("ignored")


class Cancelled(Outcome):
    """The task gave up because it was cancelled; see `Context.check`."""

    def __init__(self):
        super().__init__("cancelled")


class Context:
    """The task that is running. `meta` is all that the worker tells about it."""

    def __init__(self, child, request):
        payload = request["payload"]
        self.id = request["id"]
        self.name = payload["task"]
        self.args, self.kwargs = payload.get("args", []), payload.get("kwargs", {})
        self.meta = payload.get("meta") or {}
        self.retries = self.meta.get("retries", 0)
        #: Seconds since 1970, or None; the child is killed then.
        self.deadline = self.meta.get("deadline")
        #: None, or why to end soon: "soft_time_limit", "revoked" or "shutdown".
        self.cancelled = None
        self._child = child
        self._replied = False

    def check(self):
        """Raise `Cancelled` if the task should end: for loops that take long."""
        if self.cancelled:
            raise Cancelled()

    def progress(self, **meta):
        self._child.event(self, op="progress", meta=meta)

    def log(self, message, level="info"):
        if _PROTOCOL < 2:
            print(f"{level}: {message}", file=sys.stderr, flush=True)
        self._child.event(self, op="log", level=level, message=str(message))

    def publish(self, task, args=(), kwargs=None, on_success=False, **options):
        """Send a task, now or once this one has succeeded. Returns its id."""
        if _PROTOCOL < 2:
            raise RuntimeError("publish needs a worker that speaks protocol 2")
        fields = {"task": task, "args": args, "kwargs": kwargs or {}}
        fields.update(options=options, when="success" if on_success else "now")
        return self._child.publish(self, fields)


class _Child:
    def __init__(self):
        self._lock = threading.Lock()
        self._running = {}
        self._answers = {}
        self._seqs = itertools.count(1)
        self._leaving = self._deaf = False
        self._wake_out, self._wake_in = os.pipe()

    def serve(self, inflight):
        # Functions, because SIG_IGN would be inherited by subprocesses.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        if _PROTOCOL >= 2:
            hello = {"op": "hello", "protocol": 2, "language": "python"}
            hello.update(tasks=sorted(_tasks), inflight=inflight, features=_FEATURES)
            self._write(_encode(hello))
        with ThreadPoolExecutor(inflight) as threads:
            for message in self._messages():
                if message:
                    self._take(message, threads)
                if self._leaving and not self._running:
                    break
            self._lose_answers()

    def _leave(self):
        self._leaving = True
        os.write(self._wake_in, b".")

    def _messages(self):
        """What the worker says; None when it is time to look whether to go on."""
        parts = []
        while True:
            ready, _, _ = select.select([_IN, self._wake_out], [], [])
            if self._wake_out in ready:
                os.read(self._wake_out, 4096)
                yield None
                continue
            data = os.read(_IN, 65536)
            if not data:
                return
            *ends, rest = data.split(b"\n")
            for end in ends:
                parts.append(end)
                yield json.loads(b"".join(parts))
                parts.clear()
            parts.append(rest)

    def _take(self, message, threads):
        op = message.get("op")
        if op is None:
            context = Context(self, message)
            if self._leaving:  # it has not begun: another child may run it at once
                return self._reply(context, Throttle(0).reply)
            self._running[context.id] = context
            threads.submit(self._run, context)
        elif op == "cancel" and message["id"] in self._running:
            self._running[message["id"]].cancelled = message.get("reason", "cancelled")
        elif op == "ping":
            self._write(_encode({**message, "op": "pong"}))
        elif op == "stop":
            self._leave()
        elif op == "answer":
            answer = self._answers.pop((message["id"], message["seq"]), None)
            if answer:
                answer.set_result(message)

    def _lose_answers(self):
        self._deaf = True  # before the list: whoever comes now looks at it after
        for answer in list(self._answers.values()):
            answer.set_result({"error": "the channel has ended"})

    def _run(self, context):
        try:
            if context.name not in _tasks:
                raise LookupError(f"unknown task {context.name}")
            function, bind = _tasks[context.name]
            args = (context, *context.args) if bind else context.args
            fields = {"status": "ok", "result": function(*args, **context.kwargs)}
        except Outcome as outcome:
            fields = outcome.reply
        except BaseException as exc:  # sys.exit() ends the task, and not the child
            fields = _error(exc)
        # Before the reply: a retry of it may come right after with the same id.
        self._running.pop(context.id, None)
        self._reply(context, fields)
        if self._leaving:
            self._leave()

    def _reply(self, context, fields):
        try:
            line = _encode({"id": context.id, **fields})
        except Exception as exc:  # no JSON, or too long
            line = _encode({"id": context.id, **_error(exc)})
        with self._lock:
            context._replied = True
            self._write_locked(line)

    def event(self, context, **fields):
        return _PROTOCOL >= 2 and self._write(
            _encode({**fields, "id": context.id}), context
        )

    def publish(self, context, fields):
        key = context.id, next(self._seqs)
        answer = self._answers[key] = Future()
        try:
            if self._deaf:
                raise ConnectionError("not published: the channel has ended")
            if not self.event(context, op="publish", seq=key[1], **fields):
                raise RuntimeError("a task that has ended cannot publish")
            message = answer.result()
        finally:
            self._answers.pop(key, None)
        if "error" in message:
            raise RuntimeError(f"not published: {message['error']}")
        return message["task_id"]

    def _write(self, line, context=None):
        with self._lock:
            # A thread that a task left behind may still report on it.
            if context is not None and context._replied:
                return False
            self._write_locked(line)
            return True

    def _write_locked(self, line):
        try:
            while line:
                line = line[os.write(_OUT, line) :]
        except BrokenPipeError:
            os._exit(1)  # nobody is left to reply to


def _encode(fields):
    # The default, ASCII only, is right even for half a surrogate pair.
    line = json.dumps(fields, allow_nan=False, separators=(",", ":")).encode()
    if len(line) > _MAX_LINE:
        raise ValueError(f"a line of {len(line)} bytes, the limit is {_MAX_LINE}")
    return line + b"\n"


def _error(exc):
    kind = type(exc)
    prefix = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    # The first frame is our own. Causes come along, as Python shows them.
    text = traceback.format_exception(kind, exc, exc.__traceback__.tb_next)
    fields = {"type": prefix + kind.__qualname__, "message": str(exc)}
    return {"status": "error", **fields, "backtrace": "".join(text).splitlines()}


def run(inflight=1):
    """Serve tasks, so many at a time, until the worker or SIGTERM ends it."""
    _child.serve(inflight if _PROTOCOL >= 2 else 1)


_child = _Child()
