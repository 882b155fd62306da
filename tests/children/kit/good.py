"""Does everything right. The other files here are this child with one mistake each."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback

CHECK = "linepool.check."


class Ended(Exception):
    """Raised by a task to end with another status than ok or error."""

    def __init__(self, status, **fields):
        super().__init__(status)
        self.fields = {"status": status, **fields}


class Request:
    def __init__(self, message):
        self.id = message["id"]
        self.payload = message["payload"]
        self.meta = self.payload["meta"]
        self.cancelled = threading.Event()
        self.answered = threading.Event()
        self.answer = None
        self.replied = False


class Child:
    inflight = 64
    features = ("cancel", "ping", "stop")

    def __init__(self):
        self.protocol = int(os.environ.get("LINEPOOL_PROTOCOL") or 1)
        self.max_line = int(os.environ.get("LINEPOOL_MAX_LINE") or 16 * 1024 * 1024)
        self.lock = threading.Lock()
        self.running = {}
        self.leaving = False
        self.wake_out, self.wake_in = os.pipe()
        self.take_channel()

    def take_channel(self):
        if os.environ.get("LINEPOOL_CHANNEL") == "fd":
            self.input, self.output = 3, 4
            os.set_inheritable(3, False)
            os.set_inheritable(4, False)
        else:
            self.input, self.output = os.dup(0), os.dup(1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)

    # --- up ---------------------------------------------------------------------------

    def write(self, fields):
        self.write_line(self.encode(fields))

    def encode(self, fields):
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
        if len(line) > self.max_line:
            raise ValueError(f"a line of {len(line)} bytes")
        return line + b"\n"

    def write_line(self, line):
        with self.lock:
            while line:
                line = line[os.write(self.output, line) :]

    def hello(self):
        tasks = [CHECK + name[3:] for name in dir(self) if name.startswith("do_")]
        return {
            "op": "hello",
            "protocol": 2,
            "language": "python",
            "tasks": tasks,
            "inflight": self.inflight,
            "features": self.features,
        }

    def say_hello(self):
        if self.protocol >= 2:
            self.write(self.hello())

    def event(self, request, op, **fields):
        if self.protocol >= 2 and not request.replied:
            self.write({"op": op, "id": request.id, **fields})

    def reply(self, request, fields):
        try:
            line = self.encode({"id": request.id, **fields})
        except ValueError as exc:
            line = self.encode({"id": request.id, **self.error(exc)})
        request.replied = True
        self.running.pop(request.id, None)
        self.write_line(line)

    def error(self, exc):
        text = traceback.format_exception(type(exc), exc, exc.__traceback__)
        return {
            "status": "error",
            "type": type(exc).__name__,
            "message": str(exc),
            "backtrace": "".join(text).splitlines(),
        }

    # --- down -------------------------------------------------------------------------

    def run(self):
        self.set_signals()
        self.say_hello()
        for message in self.messages():
            if message is not None:
                self.take(message)
            if self.leaving and not self.running:
                break
        self.end()

    def set_signals(self):
        # Or a signal just before a wait would be heard of after it only.
        os.set_blocking(self.wake_in, False)
        signal.set_wakeup_fd(self.wake_in)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.leave())

    def leave(self):
        self.leaving = True
        self.wake()

    def wake(self):
        os.write(self.wake_in, b".")

    def messages(self):
        """What the worker says; None where it is time to look whether to go on."""
        parts = []
        while True:
            ready, _, _ = select.select([self.input, self.wake_out], [], [])
            if self.wake_out in ready:
                os.read(self.wake_out, 100)
                yield None
                continue
            data = os.read(self.input, 65536)
            if not data:
                return
            *ends, rest = data.split(b"\n")
            for end in ends:
                yield self.decode(b"".join([*parts, end]))
                parts.clear()
            parts.append(rest)

    def decode(self, line):
        return json.loads(line)

    def take(self, message):
        take = getattr(self, "take_" + message.get("op", "request"), None)
        if take is not None:
            take(message)

    def take_request(self, message):
        request = Request(message)
        if self.leaving:
            self.reply(request, {"status": "restart"})
        else:
            self.running[request.id] = request
            threading.Thread(target=self.serve, args=(request,)).start()

    def take_cancel(self, message):
        if message["id"] in self.running:
            self.running[message["id"]].cancelled.set()

    def take_ping(self, message):
        self.write({"op": "pong", "seq": message.get("seq")})

    def take_stop(self, message):
        self.leave()

    def take_answer(self, message):
        request = self.running.get(message["id"])
        if request:
            request.answer = message
            request.answered.set()

    def end(self):
        for request in list(self.running.values()):
            request.answered.set()

    # --- tasks ------------------------------------------------------------------------

    def serve(self, request):
        try:
            fields = {"status": "ok", "result": self.call(request)}
        except Ended as ended:
            fields = ended.fields
        except BaseException as exc:
            fields = self.error(exc)
        self.reply(request, fields)
        if self.leaving:
            self.wake()

    def call(self, request):
        name, payload = request.payload["task"], request.payload
        if not name.startswith(CHECK) or not hasattr(self, "do_" + name[len(CHECK) :]):
            raise LookupError(f"no task {name}")
        do = getattr(self, "do_" + name[len(CHECK) :])
        return do(request, *payload["args"], **payload["kwargs"])

    def do_echo(self, request, *args, **kwargs):
        return {"args": args, "kwargs": kwargs}

    def do_sleep(self, request, seconds):
        if request.cancelled.wait(seconds):
            raise Ended("cancelled")
        return seconds

    def do_fail(self, request, message):
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            raise LookupError(message) from cause

    def do_exit(self, request, code):
        sys.exit(code)

    def do_end(self, request, status, seconds):
        after = (
            {"retry_after_secs": seconds} if status in ("retry", "throttled") else {}
        )
        raise Ended(status, **after)

    def do_print(self, request, text):
        print(text, flush=True)
        subprocess.run(["echo", text])

    def do_stderr(self, request, count):
        os.write(2, b"e" * count)

    def do_big(self, request, count):
        return "x" * count

    def do_context(self, request):
        meta = request.meta
        return {
            "id": request.id,
            "retries": meta["retries"],
            "deadline": meta.get("deadline"),
        }

    def do_events(self, request, count):
        for step in range(1, count + 1):
            self.event(request, "progress", meta={"step": step})
        self.event(request, "log", level="warning", message="checked")
        return count

    def do_publish(self, request, task, when):
        self.event(request, "publish", seq=1, task=task, args=[7], when=when)
        request.answered.wait()
        if request.answer is None or "error" in request.answer:
            raise RuntimeError(f"not published: {request.answer}")
        return request.answer["task_id"]

    def do_spawn(self, request):
        return subprocess.Popen(["sleep", "30"], stdin=subprocess.DEVNULL).pid


if __name__ == "__main__":
    Child().run()
