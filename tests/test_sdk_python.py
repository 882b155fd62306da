"""The helper for other virtualenvs, over real pipes."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from sdk_driver import SDK, Child

WORKER = """
import linepool
import os, subprocess, sys, threading, time

late = {}

@linepool.task("echo")
def echo(*args, **kwargs):
    return [list(args), kwargs]

@linepool.task("size")
def size(text):
    return len(text)

@linepool.task("big")
def big(n):
    return "x" * n

@linepool.task("noisy")
def noisy():
    print("printed", flush=True)
    os.write(1, b"raw\\n")
    subprocess.run("cat; echo from a subprocess", shell=True)

@linepool.task("exit")
def exit_():
    sys.exit(3)

@linepool.task("fail")
def fail():
    try:
        1 / 0
    except ZeroDivisionError as exc:
        raise LookupError("no such row") from exc

@linepool.task("deep")
def deep(n):
    return deep(n + 1)

@linepool.task("odd")
def odd():
    return object()

@linepool.task("end")
def end(kind, *args):
    raise getattr(linepool, kind)(*args)

@linepool.task("about", bind=True)
def about(context):
    return [context.id, context.name, context.retries, context.deadline]

@linepool.task("report", bind=True)
def report(context):
    late["context"] = context
    context.progress(done=1)
    context.log("half way", level="warning")

@linepool.task("late")
def late_():
    late["context"].progress(done=2)

@linepool.task("publish", bind=True)
def publish(context, **options):
    return context.publish("other", [1], {"a": 2}, **options)

@linepool.task("wait", bind=True)
def wait(context):
    context.progress()
    while True:
        context.check()
        time.sleep(0.005)

@linepool.task("slow", bind=True)
def slow(context, seconds):
    context.progress()
    time.sleep(seconds)
    return "slept"

barrier = threading.Barrier(4)

@linepool.task("meet")
def meet():
    barrier.wait()

linepool.run(inflight=4)
"""

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: List[Child] = []
    (tmp_path / "worker.py").write_text(WORKER)
    shutil.copy(SDK / "linepool.py", tmp_path)

    def start_one(**options: Any) -> Child:
        children.append(Child([sys.executable, str(tmp_path / "worker.py")], **options))
        return children[-1]

    yield start_one
    for child in children:
        child.close()


@pytest.fixture
def child(start: Start) -> Child:
    return start()


def test_hello(child: Child) -> None:
    assert child.hello
    assert child.hello["op"] == "hello"
    assert child.hello["protocol"] == 2
    assert child.hello["language"] == "python"
    assert child.hello["inflight"] == 4
    assert "echo" in child.hello["tasks"]
    assert sorted(child.hello["features"]) == ["cancel", "ping", "stop"]


def test_no_hello_and_no_events_in_the_original_protocol(start: Start) -> None:
    child = start(protocol=1)
    assert child.ask("report") == {"status": "ok", "result": None}
    assert child.ask("publish")["status"] == "error"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    assert "half way" in stderr


@pytest.mark.parametrize(
    "value",
    [{}, [], 2**80, 1.0, None, "\u2028\u2029\u0085", "\U0001f600", "a\nb", {"a": []}],
)
def test_values_come_back_as_they_were(child: Child, value: Any) -> None:
    reply = child.ask("echo", value, key=value)
    assert reply == {"status": "ok", "result": [[value], {"key": value}]}


@pytest.mark.parametrize("id", ["\u2028", '"', "\\", "é", "\U0001f600"])
def test_any_id(child: Child, id: str) -> None:
    assert child.ask("echo", id=id)["status"] == "ok"


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_long_lines(start: Start, channel: str) -> None:
    child = start(channel=channel)
    assert child.ask("size", "é" * 1_000_000)["result"] == 1_000_000
    child.request("big", 1_000_000)
    child.input.close()
    assert child.read()["result"] == "x" * 1_000_000
    assert child.end()[:2] == (0, b"")


def test_a_reply_over_the_limit_is_an_error(start: Start) -> None:
    child = start(LINEPOOL_MAX_LINE="10000")
    error = child.ask("big", 10_000)
    assert error["status"] == "error" and "10000" in error["message"]
    assert child.ask("big", 9_000)["status"] == "ok"


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_what_is_printed_is_no_line(start: Start, channel: str) -> None:
    child = start(channel=channel)
    assert child.ask("noisy")["status"] == "ok"
    assert child.ask("echo")["status"] == "ok"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    if channel == "stdio":
        assert {"printed", "raw", "from a subprocess"} <= set(stderr.split("\n"))


def test_an_error_has_its_cause(child: Child) -> None:
    error = child.ask("fail")
    assert (error["status"], error["type"]) == ("error", "LookupError")
    assert error["message"] == "no such row"
    assert "ZeroDivisionError: division by zero" in error["backtrace"]
    assert any("worker.py" in line for line in error["backtrace"])
    assert not any("linepool.py" in line for line in error["backtrace"])


@pytest.mark.parametrize(
    "task, args, type",
    [
        ("exit", [], "SystemExit"),
        ("deep", [0], "RecursionError"),
        ("odd", [], "TypeError"),
        ("nope", [], "LookupError"),
        ("size", [], "TypeError"),
    ],
)
def test_an_error_ends_its_task_only(
    child: Child, task: str, args: List[Any], type: str
) -> None:
    error = child.ask(task, *args)
    assert (error["status"], error["type"]) == ("error", type)
    assert child.ask("echo")["status"] == "ok"


@pytest.mark.parametrize(
    "args, reply",
    [
        (["Retry"], {"status": "retry"}),
        (
            ["Retry", "m", 5],
            {"status": "retry", "message": "m", "retry_after_secs": 5},
        ),
        (["Throttle", 7], {"status": "throttled", "retry_after_secs": 7}),
        (["Reject"], {"status": "rejected", "requeue": False}),
        (["Reject", True], {"status": "rejected", "requeue": True}),
        (["Ignore"], {"status": "ignored"}),
    ],
)
def test_other_outcomes(child: Child, args: List[Any], reply: Any) -> None:
    assert child.ask("end", *args) == reply


def test_context(child: Child) -> None:
    reply = child.ask("about", id="x", meta={"retries": 2, "deadline": 7.5})
    assert reply["result"] == ["x", "about", 2, 7.5]


def test_events_come_before_the_reply_only(child: Child) -> None:
    child.request("report")
    progress = {"op": "progress", "id": "an-id", "meta": {"done": 1}}
    log = {"op": "log", "id": "an-id", "level": "warning", "message": "half way"}
    assert [child.read(), child.read()] == [progress, log]
    assert child.read()["status"] == "ok"
    assert child.ask("late", id="another")["status"] == "ok"


@pytest.mark.parametrize("options", [{}, {"on_success": True, "queue": "q"}])
def test_publish(child: Child, options: Any) -> None:
    child.request("publish", **options)
    event = child.read()
    assert event.pop("op") == "publish" and event.pop("id") == "an-id"
    seq = event.pop("seq")
    when = "success" if options else "now"
    options = {"queue": "q"} if options else {}
    expected = {"task": "other", "args": [1], "kwargs": {"a": 2}}
    assert event == {**expected, "options": options, "when": when}
    child.send({"op": "answer", "id": "an-id", "seq": seq, "task_id": "new"})
    assert child.read() == {"id": "an-id", "status": "ok", "result": "new"}


def test_publish_that_fails(child: Child) -> None:
    child.request("publish")
    seq = child.read()["seq"]
    child.send({"op": "answer", "id": "an-id", "seq": seq, "error": "no broker"})
    assert "no broker" in child.read()["message"]
    child.request("publish")
    child.read()
    child.input.close()
    assert child.read()["status"] == "error"
    assert child.end()[:2] == (0, b"")


def test_cancel(child: Child) -> None:
    child.send({"op": "cancel", "id": "unknown", "reason": "revoked"})
    child.request("wait")
    child.read()
    child.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert child.read() == {"id": "an-id", "status": "cancelled"}


def test_ping_during_a_task(child: Child) -> None:
    child.request("wait")
    child.read()
    child.send({"op": "ping", "seq": 4})
    assert child.read() == {"op": "pong", "seq": 4}
    child.send({"op": "unknown"})
    child.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert child.read()["status"] == "cancelled"


def test_tasks_run_at_once(child: Child) -> None:
    for n in range(4):
        child.request("meet", id=str(n))
    assert {child.read()["id"] for _ in range(4)} == {"0", "1", "2", "3"}


def test_ends_with_its_channel_while_idle(child: Child) -> None:
    assert child.end() == (0, b"", "")


def test_sigterm_while_idle(child: Child) -> None:
    child.signal(signal.SIGTERM)
    assert child.end(eof=False) == (0, b"", "")


@pytest.mark.parametrize("how", ["term", "stop", "eof"])
def test_finishes_what_it_has_begun(child: Child, how: str) -> None:
    child.request("slow", 0.2)
    child.read()
    if how == "term":
        child.signal(signal.SIGTERM)
    elif how == "stop":
        child.send({"op": "stop"})
    else:
        child.input.close()
    assert child.read() == {"id": "an-id", "status": "ok", "result": "slept"}
    assert child.end(eof=False) == (0, b"", "")


def test_answers_are_heard_after_sigterm(child: Child) -> None:
    child.request("publish")
    seq = child.read()["seq"]
    child.signal(signal.SIGTERM)
    child.send({"op": "answer", "id": "an-id", "seq": seq, "task_id": "new"})
    assert child.read()["result"] == "new"
    assert child.end(eof=False) == (0, b"", "")


def test_sigint_is_ignored(child: Child) -> None:
    child.signal(signal.SIGINT)
    assert child.ask("echo")["status"] == "ok"
    child.request("slow", 0.1)
    child.read()
    child.signal(signal.SIGINT)
    assert child.read()["result"] == "slept"


def test_the_example(tmp_path: Path) -> None:
    shutil.copy(SDK / "linepool.py", tmp_path)
    shutil.copy(SDK / "example" / "worker.py", tmp_path)
    child = Child([sys.executable, str(tmp_path / "worker.py")])
    assert child.ask("example.add", 1.25, 1, round_to=1)["result"] == 2.2
    assert child.end() == (0, b"", "")
    child.close()
