"""The helper for other virtualenvs, over real pipes."""

from __future__ import annotations

import ast
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List

import psutil
import pytest
from sdk_driver import SDK, Child
from workers import eventually

pytestmark = pytest.mark.outer_celerys

WORKER = """
import linepool
import multiprocessing, os, signal, subprocess, sys, threading, time

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

@linepool.task("print and die")
def print_and_die():
    print("caf\\u00e9")
    os.kill(os.getpid(), signal.SIGKILL)

@linepool.task("exit")
def exit_():
    sys.exit(3)

@linepool.task("fork", bind=True)
def fork(context, *code):
    pid = os.fork()
    if pid == 0:
        context.progress(of="the fork")
        if code:
            sys.exit(*code)
        return "the fork must not reply"
    status = os.waitpid(pid, 0)[1]
    return os.WEXITSTATUS(status)

@linepool.task("terminate a process")
def terminate_a_process():
    def target():
        begun.set()
        while True:
            pass

    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    process = fork.Process(target=target)
    process.start()
    begun.wait()
    process.terminate()
    process.join()
    return process.exitcode

@linepool.task("fail")
def fail():
    try:
        1 / 0
    except ZeroDivisionError as exc:
        raise LookupError("no such row") from exc

class Mute(Exception):
    def __str__(self):
        raise self

@linepool.task("mute")
def mute():
    raise Mute

@linepool.task("deep")
def deep(n):
    return deep(n + 1)

@linepool.task("nan")
def nan():
    return float("nan")

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

@linepool.task("publish twice", bind=True)
def publish_twice(context):
    try:
        context.publish("other")
    except RuntimeError:
        context.publish("another")

@linepool.task("inherits")
def inherits():
    return os.system("exec 2>/dev/null; true <&3 || true >&4")

@linepool.task("wait", bind=True)
def wait(context):
    context.progress()
    while True:
        context.check()
        time.sleep(0.005)

@linepool.task("hold", bind=True)
def hold(context, path):
    context.log("begun")
    while not os.path.exists(path):
        time.sleep(0.005)
    return "held"

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

    def start_one(*prefix: str, **options: Any) -> Child:
        command = [*prefix, sys.executable, str(tmp_path / "worker.py")]
        children.append(Child(command, **options))
        return children[-1]

    yield start_one
    for child in children:
        child.close()


@pytest.fixture
def child(start: Start) -> Child:
    return start()


@pytest.fixture
def checked(start: Start) -> Child:
    return start(LINEPOOL_CHECK=str(SDK / "check"))


def test_hello(child: Child) -> None:
    assert child.hello
    assert child.hello["op"] == "hello"
    assert child.hello["protocol"] == 2
    assert child.hello["language"] == "python"
    assert child.hello["inflight"] == 4
    assert "echo" in child.hello["tasks"]
    assert sorted(child.hello["features"]) == ["cancel", "ping", "stop"]


@pytest.mark.parametrize("prefix", [[], ["env", "-u", "LINEPOOL_PROTOCOL"]])
def test_no_hello_and_no_events_in_the_original_protocol(
    start: Start, prefix: List[str]
) -> None:
    child = start(*prefix, protocol=1)
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


def test_replies_at_once_do_not_mix(child: Child) -> None:
    for n in range(20):
        child.request("big", 300_000, id=str(n))
    replies = [child.read() for _ in range(20)]
    assert {reply["id"] for reply in replies} == {str(n) for n in range(20)}
    assert {reply["result"] for reply in replies} == {"x" * 300_000}


def test_a_subprocess_does_not_inherit_the_channel(start: Start) -> None:
    assert start(channel="fd").ask("inherits")["result"] != 0


def test_a_reply_over_the_limit_is_an_error(start: Start) -> None:
    child = start(LINEPOOL_MAX_LINE="10000")
    error = child.ask("big", 10_000)
    assert error["status"] == "error" and "10000" in error["message"]
    assert child.ask("big", 9_000)["status"] == "ok"


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_what_is_printed_is_seen_at_once(start: Start, channel: str) -> None:
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""}
    child = start(channel=channel, **env)
    child.request("print and die")
    log = child.process.stderr if channel == "stdio" else child.process.stdout
    assert log and log.readline() == b"caf\\xe9\n"


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
        ("nan", [], "ValueError"),
        ("odd", [], "TypeError"),
        ("mute", [], "__main__.Mute"),
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


@pytest.mark.parametrize("code, exit", [([], 0), ([None], 0), ([4], 4), (["text"], 1)])
def test_a_fork_that_comes_back_says_nothing(
    child: Child, code: List[Any], exit: int
) -> None:
    assert child.ask("fork", *code) == {"status": "ok", "result": exit}
    assert child.ask("echo")["status"] == "ok"


def test_a_process_of_a_task_can_be_terminated(child: Child) -> None:
    assert child.ask("terminate a process")["result"] == -signal.SIGTERM


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


def test_publish_after_the_end(child: Child) -> None:
    child.request("publish twice")
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


def test_half_a_line_before_the_end(child: Child) -> None:
    child.input.write(b'{"id":')
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


RESTART = {
    1: {"status": "throttled", "retry_after_secs": 0},
    2: {"status": "restart"},
}


@pytest.mark.parametrize("protocol", RESTART)
def test_sigterm_puts_back_what_has_not_begun(
    start: Start, tmp_path: Path, protocol: int
) -> None:
    child = start(protocol=protocol)
    said = child.process.stderr if protocol == 1 else child.output
    assert said
    child.request("hold", str(tmp_path / "go"), id="begun")
    assert b"begun" in said.readline()
    child.signal(signal.SIGTERM)
    child.request("echo", "x" * 1_000_000, id="late")
    (tmp_path / "go").touch()
    replies = {reply.pop("id"): reply for reply in (child.read(), child.read())}
    held = {"status": "ok", "result": "held"}
    assert replies == {"begun": held, "late": RESTART[protocol]}
    assert child.end(eof=False) == (0, b"", "")


def test_sigterm_in_the_middle_of_a_request(child: Child) -> None:
    child.input.write(b'{"id":"half",')
    child.input.flush()
    child.signal(signal.SIGTERM)
    child.input.write(b'"payload":{"task":"echo"}}\n')
    child.input.flush()
    assert child.read() == {"id": "half", "status": "restart"}
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


def test_it_may_be_part_of_a_package(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    shutil.copy(SDK / "linepool.py", tmp_path / "app")
    (tmp_path / "worker.py").write_text("from app import linepool; linepool.run()")
    command = [sys.executable, str(tmp_path / "worker.py")]
    child = Child(command, LINEPOOL_CHECK=str(SDK / "check"))
    assert child.ask("linepool.check.echo")["status"] == "ok"
    assert child.end() == (0, b"", "")
    child.close()


def test_it_is_python_3_6() -> None:
    for path in (SDK / "linepool.py", SDK / "check" / "check.py"):
        ast.parse(path.read_text(), feature_version=(3, 6))


#: (a check task, its arguments, the lines that it says, all but their id)
CHECKS = [
    ("echo", [1, {}], [{"status": "ok", "result": {"args": [1, {}], "kwargs": {}}}]),
    ("sleep", [0.01], [{"status": "ok", "result": 0.01}]),
    ("end", ["retry", 5], [{"status": "retry", "retry_after_secs": 5}]),
    ("end", ["throttled", 5], [{"status": "throttled", "retry_after_secs": 5}]),
    ("end", ["rejected", 5], [{"status": "rejected", "requeue": False}]),
    ("end", ["ignored", 5], [{"status": "ignored"}]),
    ("stderr", [100_000], [{"status": "ok", "result": None}]),
    ("big", [1_000_000], [{"status": "ok", "result": "x" * 1_000_000}]),
    (
        "context",
        [],
        [{"status": "ok", "result": {"id": "an-id", "retries": 0, "deadline": None}}],
    ),
    (
        "events",
        [2],
        [
            {"op": "progress", "meta": {"step": 1}},
            {"op": "progress", "meta": {"step": 2}},
            {"op": "log", "level": "warning", "message": "checked"},
            {"status": "ok", "result": 2},
        ],
    ),
]


@pytest.mark.parametrize("task, args, lines", CHECKS)
def test_check_tasks(
    checked: Child, task: str, args: List[Any], lines: List[Any]
) -> None:
    assert checked.hello and f"linepool.check.{task}" in checked.hello["tasks"]
    checked.request(f"linepool.check.{task}", *args)
    if task == "stderr":
        assert checked.process.stderr
        assert checked.process.stderr.read(100_000) == b"x" * 100_000
    assert [checked.read() for _ in lines] == [
        {"id": "an-id", **line} for line in lines
    ]


def test_check_context(checked: Child) -> None:
    meta = {"retries": 2, "deadline": 7.5}
    reply = checked.ask("linepool.check.context", meta=meta)
    assert reply["result"] == {"id": "an-id", **meta}


def test_check_errors(checked: Child) -> None:
    error = checked.ask("linepool.check.fail", "broken")
    assert (error["status"], error["message"]) == ("error", "broken")
    assert "the cause" in "\n".join(error["backtrace"])
    assert checked.ask("linepool.check.exit", 3)["status"] == "error"
    assert checked.ask("echo")["status"] == "ok"


def test_check_print(checked: Child) -> None:
    assert checked.ask("linepool.check.print", "some text")["status"] == "ok"
    assert checked.end() == (0, b"", "some text\nsome text\n")


def test_check_sleep_is_cancelled(checked: Child) -> None:
    checked.request("linepool.check.sleep", 600)
    checked.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert checked.read() == {"id": "an-id", "status": "cancelled"}


@pytest.mark.parametrize("when", ["now", "success"])
def test_check_publish(checked: Child, when: str) -> None:
    checked.request("linepool.check.publish", "other", when)
    event = checked.read()
    assert (event["task"], event["args"], event["when"]) == ("other", [7], when)
    checked.send({"op": "answer", "id": "an-id", "seq": event["seq"], "task_id": "new"})
    assert checked.read()["result"] == "new"


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_check_spawn(start: Start, channel: str) -> None:
    child = start(channel=channel, LINEPOOL_CHECK=str(SDK / "check"))
    process = psutil.Process(child.ask("linepool.check.spawn")["result"])
    assert process.ppid() == child.process.pid
    assert eventually(lambda: process.cmdline() == ["sleep", "30"])
    # It must not hold the channel.
    child.process.kill()
    assert child.output.read() == b""
    process.kill()
