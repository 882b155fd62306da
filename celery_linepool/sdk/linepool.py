"""Serve Celery tasks to a celery-linepool worker, from a virtualenv without Celery.

    import linepool

    @linepool.task("billing.charge")
    def charge(amount, currency="EUR"):
        return {"charged": amount}

    linepool.run(inflight=4)

This file needs Python 3.6 or PyPy and nothing else; copy it. Import it before anything
that may print: it turns stdout into stderr, for subprocesses as well. Tasks run in
threads, so that the main thread hears a cancel, a ping, a signal and the channel's end.
"""

import itertools
import json
import os
import runpy
import select
import signal
import sys
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["task", "run", "Retry", "Throttle", "Reject", "Ignore", "Cancelled"]

if os.environ.get("LINEPOOL_CHANNEL") == "fd":
    _IN, _OUT = 3, 4
    os.set_inheritable(_IN, False)
    os.set_inheritable(_OUT, False)
else:
    _IN, _OUT = os.dup(0), os.dup(1)
    # A subprocess that reads stdin would swallow requests.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
if hasattr(sys.stdout, "reconfigure"):  # from 3.7 on: what is printed is a log now
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
_PROTOCOL = int(os.environ.get("LINEPOOL_PROTOCOL") or 1)
_MAX_LINE = int(os.environ.get("LINEPOOL_MAX_LINE") or 16 * 1024 * 1024)
_PID = os.getpid()
_tasks = {}


def task(name, bind=False):
    """Register a function by name; with `bind` its first argument is the `Context`."""

    def register(function):
        _tasks[name] = function, bind
        return function

    return register


class Outcome(Exception):  # what a task raises to end in another way
    def __init__(self, **reply):
        super().__init__(reply.get("message") or reply["status"])
        self.reply = {name: value for name, value in reply.items() if value is not None}


class Retry(Outcome):
    """Run it again, after so many seconds if they are given, as long as it may be."""

    def __init__(self, message=None, after=None):
        super().__init__(status="retry", message=message, retry_after_secs=after)


class Throttle(Outcome):
    """Run it again later; that uses up no retry."""

    def __init__(self, after=60):
        super().__init__(status="throttled", retry_after_secs=after)


class Reject(Outcome):
    """Reject its message, or have the broker deliver it again."""

    def __init__(self, requeue=False):
        super().__init__(status="rejected", requeue=requeue)


class Ignore(Outcome):
    """Store nothing."""

    def __init__(self):
        super().__init__(status="ignored")


class Cancelled(Outcome):
    """The task gave up because it was cancelled; see `Context.check`."""

    def __init__(self):
        super().__init__(status="cancelled")


class Context:
    """The task that is running. `meta` is all that the worker tells about it."""

    def __init__(self, request):
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
        self._replied = False

    def check(self):
        """Raise `Cancelled` if the task should end: for loops that take long."""
        if self.cancelled:
            raise Cancelled()

    def progress(self, **meta):
        _child.event(self, op="progress", meta=meta)

    def log(self, message, level="info"):
        if _PROTOCOL < 2:
            print(f"{level}: {message}", file=sys.stderr, flush=True)
        _child.event(self, op="log", level=level, message=str(message))

    def publish(self, task, args=(), kwargs=None, on_success=False, **options):
        """Send a task, now or once this one has succeeded. Returns its id."""
        when = "success" if on_success else "now"
        fields = {"task": task, "args": args, "kwargs": kwargs or {}, "when": when}
        return _child.publish(self, dict(fields, op="publish", options=options))


class _Child:
    def __init__(self):
        self._lock = threading.Lock()
        self._running, self._answers = {}, {}
        self._seqs = itertools.count(1)
        self._ending = self._terminated = self._deaf = False
        self._wake_out, self._wake_in = os.pipe()

    def serve(self, inflight):
        # Functions, because SIG_IGN would be inherited by subprocesses.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end(terminated=True))
        # A fork in a thread does not hear its signals on CPython 3.13.
        if hasattr(os, "register_at_fork") and sys.implementation.name == "cpython":
            default = signal.SIGTERM, signal.SIG_DFL
            os.register_at_fork(after_in_child=lambda: signal.signal(*default))
        if _PROTOCOL >= 2:
            hello = {"op": "hello", "protocol": 2, "language": "python"}
            hello.update(tasks=sorted(_tasks), features=["cancel", "ping", "stop"])
            self._write(dict(hello, inflight=inflight))
        with ThreadPoolExecutor(inflight) as threads:
            for message in self._messages():
                self._take(message, threads)
            self._deaf = True  # before the list: whoever comes now looks at it after
            for answer in list(self._answers.values()):
                answer.set_result({"error": "the channel has ended"})

    def _end(self, terminated=False):
        if os.getpid() != _PID:  # as a fork elsewhere does
            os._exit(128 + signal.SIGTERM)
        self._ending, self._terminated = True, self._terminated or terminated
        os.write(self._wake_in, b".")

    def _messages(self):
        """What the worker says, until there is nothing left to wait for."""
        parts = []
        while True:
            # At the end what has come already is still read, to be replied to.
            idle = not self._running and not any(parts)
            timeout = 0 if self._ending and idle else None
            ready, _, _ = select.select([_IN, self._wake_out], [], [], timeout)
            if self._wake_out in ready:
                os.read(self._wake_out, 4096)
            data = os.read(_IN, 65536) if _IN in ready else None
            if data == b"" or not ready:
                return
            *ends, rest = (data or b"").split(b"\n")
            for end in ends:
                parts.append(end)
                yield json.loads(b"".join(parts))
                parts.clear()
            parts.append(rest)

    def _take(self, message, threads):
        op, context = message.get("op"), self._running.get(message.get("id"))
        if op is None:
            context = Context(message)
            self._running[context.id] = context
            threads.submit(self._run, context)
        elif op == "cancel" and context:
            context.cancelled = message.get("reason") or "cancelled"
        elif op == "ping":
            seq = {"seq": message["seq"]} if "seq" in message else {}
            self._write({"op": "pong", **seq})
        elif op == "stop":
            self._end()
        elif op == "answer":
            self._answers.pop(message["seq"], Future()).set_result(message)

    def _run(self, context):
        if self._terminated:  # it has not begun: another child may run it at once
            fields = {"status": "restart"} if _PROTOCOL >= 2 else Throttle(0).reply
        else:
            fields = _call(context)
        # Before the reply: a retry of it may come right after with the same id.
        self._running.pop(context.id, None)
        try:
            self._write(fields, context, last=True)
        except Exception as exc:  # no JSON, or too long
            self._write(_error(exc), context, last=True)
        if self._ending:
            self._end()

    def event(self, context, **fields):
        return _PROTOCOL >= 2 and self._write(fields, context)

    def publish(self, context, fields):
        if _PROTOCOL < 2:
            raise RuntimeError("publish needs a worker that speaks protocol 2")
        seq = fields["seq"] = next(self._seqs)
        answer = self._answers[seq] = Future()
        try:
            if self._deaf or not self._write(fields, context):
                raise RuntimeError("not published: the channel or the task has ended")
            message = answer.result()
        finally:
            self._answers.pop(seq, None)
        if message.get("error"):
            raise RuntimeError(f"not published: {message['error']}")
        return message["task_id"]

    def _write(self, fields, context=None, last=False):
        line = _encode(fields if context is None else {"id": context.id, **fields})
        if os.getpid() != _PID:  # a fork: the lock may be held for ever
            return False
        with self._lock:
            if context and context._replied:  # a thread that the task left behind
                return False
            if last:
                context._replied = True
            try:
                while line:
                    line = line[os.write(_OUT, line) :]
            except BrokenPipeError:
                os._exit(1)  # nobody is left to reply to
        return True


def _call(context):
    code = 0
    try:
        if context.name not in _tasks:
            raise LookupError(f"unknown task {context.name}")
        function, bind = _tasks[context.name]
        args = (context, *context.args) if bind else context.args
        return {"status": "ok", "result": function(*args, **context.kwargs)}
    except Outcome as outcome:
        return outcome.reply
    except BaseException as exc:  # sys.exit() ends the task, and not the child
        code = (exc.code or 0) if isinstance(exc, SystemExit) else 1
        return _error(exc)
    finally:
        if os.getpid() != _PID:  # a fork that came back: its parent replies
            os._exit(code if isinstance(code, int) else 1)


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
    try:
        message = str(exc)
    except Exception:  # the reply must not be lost, whoever wrote the error
        message = "an error that cannot say what it is"
    fields = {"type": prefix + kind.__qualname__, "message": message}
    return {"status": "error", **fields, "backtrace": "".join(text).splitlines()}


def run(inflight=1):
    """Serve tasks, so many at a time, until the worker or SIGTERM ends it."""
    checks = os.environ.get("LINEPOOL_CHECK")
    if checks:  # the folder of the tasks of `celery linepool check`
        sys.modules.setdefault("linepool", sys.modules[__name__])
        runpy.run_path(os.path.join(checks, "check.py"))
    _child.serve(inflight)


_child = _Child()
