"""The tasks of section 10 of docs/protocol.md; `linepool.py` loads this file."""

import os
import subprocess
import sys
import time

import linepool


@linepool.task("linepool.check.echo")
def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


@linepool.task("linepool.check.sleep", bind=True)
def sleep(context, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        context.check()
        time.sleep(min(0.01, seconds))
    return seconds


@linepool.task("linepool.check.fail")
def fail(message):
    try:
        raise ValueError("the cause")
    except ValueError as cause:
        raise RuntimeError(message) from cause


@linepool.task("linepool.check.exit")
def exit_(code):
    sys.exit(code)


@linepool.task("linepool.check.end")
def end(status, seconds):
    raise {
        "retry": linepool.Retry(after=seconds),
        "throttled": linepool.Throttle(after=seconds),
        "rejected": linepool.Reject(),
        "ignored": linepool.Ignore(),
    }[status]


@linepool.task("linepool.check.print")
def print_(text):
    print(text)
    subprocess.check_call(["echo", text.encode()])


@linepool.task("linepool.check.stderr")
def stderr(count):
    os.write(2, b"x" * count)


@linepool.task("linepool.check.big")
def big(count):
    return "x" * count


@linepool.task("linepool.check.context", bind=True)
def context(context):
    return {name: getattr(context, name) for name in ("id", "retries", "deadline")}


@linepool.task("linepool.check.events", bind=True)
def events(context, count):
    for step in range(1, count + 1):
        context.progress(step=step)
    context.log("checked", level="warning")
    return count


@linepool.task("linepool.check.publish", bind=True)
def publish(context, task, when):
    return context.publish(task, [7], on_success=when == "success")


@linepool.task("linepool.check.spawn")
def spawn():
    return subprocess.Popen(["sleep", "30"]).pid
