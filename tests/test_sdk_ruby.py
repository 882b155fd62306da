"""The helper for Ruby, over real pipes."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import psutil
import pytest
from sdk_driver import SDK, Child, Line

pytestmark = pytest.mark.newest_celery

WORKER = r"""
require_relative "linepool"
require "timeout"

LATE = {}
BARRIER = Queue.new

class Missing < StandardError; end

Linepool.task("echo") { |*args, **kwargs| [args, kwargs] }
Linepool.task("size") { |text| return text.size }
Linepool.task("big") { |n| "x" * n }
Linepool.task("noisy") do
  puts "printed"
  STDOUT.write("written\n")
  IO.for_fd(1, autoclose: false).syswrite("raw\n")
  system("cat; echo from a subprocess")
end
Linepool.task("exit") { exit 3 }
Linepool.task("abort") { abort "farewell" }
Linepool.task("interrupt") { raise Interrupt }
Linepool.task("throw") { throw :nowhere }
Linepool.task("kill") { Thread.current.kill }
Linepool.task("fail") do
  Integer("x")
rescue ArgumentError
  raise Missing, "no such row"
end
Linepool.task("bytes") { raise "caf\xE9 \xF0".b }
Linepool.task("deep") do
  deep = ->(n) { deep.call(n) + 1 }
  deep.call(0)
end
Linepool.task("nan") { Float::NAN }
Linepool.task("cycle") { [].tap { |list| list << list } }
Linepool.task("end") { |kind, *args, **options|
  raise Linepool.const_get(kind).new(*args, **options.transform_keys(&:to_sym))
}
Linepool.task("about") do
  [id, name, retries, deadline&.to_f, Linepool.job.equal?(self)]
end
Linepool.task("report") do
  LATE[:job] = self
  progress(done: 1)
  log("half way", level: :warning)
end
Linepool.task("late") { LATE[:job].progress(done: 2) }
Linepool.task("late publish") { LATE[:job].publish("other") }
Linepool.task("publish") { |**o|
  publish("other", args: [1], kwargs: { a: 2 }, **o.transform_keys(&:to_sym))
}
Linepool.task("wait") do
  progress
  loop { check; sleep 0.005 }
end
Linepool.task("hold") do |path|
  log "begun"
  sleep 0.005 until File.exist?(path)
end
Linepool.task("until it stops") do
  progress(stopping: stopping?)
  sleep 0.005 until stopping?
end
Linepool.task("exit in a thread") { Thread.new { exit 5 }; progress; sleep 0.1 }
Linepool.task("slow") { |seconds| progress; sleep seconds; "slept" }
Linepool.task("meet") { BARRIER << 1; Thread.pass until BARRIER.size >= 4 }
Linepool.task("torn") do
  200.times do
    Timeout.timeout(0.002) { loop { log("x" * 60_000) } }
  rescue Timeout::Error
    nil
  end
end
Linepool.task("fork") { Process.wait2(fork { exit 4 })[1].exitstatus }
Linepool.task("terminate a fork") do
  pid = fork { sleep }
  Process.kill("TERM", pid)
  Process.wait2(pid)[1].exitstatus
end
Linepool.task("fork without a block") do
  pid = fork or next "only the parent may reply"
  Process.wait(pid)
end
Linepool.task("method", ->(a, b: 2) { [a, b, Linepool.job.name] })

Linepool.run(inflight: 4)
"""

PRINTED = ["printed", "written", "raw", "from a subprocess"]

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: List[Child] = []
    (tmp_path / "worker.rb").write_text(WORKER)
    shutil.copy(SDK / "linepool.rb", tmp_path)

    def start_one(**options: Any) -> Child:
        children.append(Child(["ruby", str(tmp_path / "worker.rb")], **options))
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
    assert child.hello["language"] == "ruby"
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
    assert reply["status"] == "ok"
    # The text, since to Python 1.0 is 1.
    assert repr(reply["result"]) == repr([[value], {"key": value}])


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
    assert child.process.stdout
    printed = stderr if channel == "stdio" else child.process.stdout.read().decode()
    assert printed.splitlines() == PRINTED


def test_an_error_has_its_cause(child: Child) -> None:
    error = child.ask("fail")
    assert (error["status"], error["type"]) == ("error", "Missing")
    assert error["message"] == "no such row"
    cause = 'caused by ArgumentError: invalid value for Integer(): "x"'
    assert cause in error["backtrace"]
    assert any("worker.rb" in line for line in error["backtrace"])
    assert not any("linepool.rb" in line for line in error["backtrace"])


@pytest.mark.parametrize(
    "task, args, type",
    [
        ("exit", [], "SystemExit"),
        ("abort", [], "SystemExit"),
        ("interrupt", [], "Interrupt"),
        ("throw", [], "UncaughtThrowError"),
        ("deep", [], "SystemStackError"),
        ("nan", [], "JSON::GeneratorError"),
        ("cycle", [], "SystemStackError"),
        ("nope", [], "KeyError"),
        ("size", [], "ArgumentError"),
    ],
)
def test_an_error_ends_its_task_only(
    child: Child, task: str, args: List[Any], type: str
) -> None:
    error = child.ask(task, *args)
    assert (error["status"], error["type"]) == ("error", type)
    assert child.ask("echo")["status"] == "ok"


@pytest.mark.parametrize(
    "kind, options, reply",
    [
        ("Retry", {}, {"status": "retry"}),
        ("Retry", {"after": 5}, {"status": "retry", "retry_after_secs": 5}),
        ("Throttle", {"after": 7}, {"status": "throttled", "retry_after_secs": 7}),
        ("Throttle", {}, {"status": "throttled"}),
        ("Reject", {}, {"status": "rejected"}),
        ("Reject", {"requeue": True}, {"status": "rejected", "requeue": True}),
        ("Ignore", {}, {"status": "ignored"}),
    ],
)
def test_other_outcomes(child: Child, kind: str, options: Any, reply: Any) -> None:
    assert child.ask("end", kind, **options) == reply


def test_a_retry_has_a_message(child: Child) -> None:
    assert child.ask("end", "Retry", "m") == {"status": "retry", "message": "m"}


def test_context(child: Child) -> None:
    reply = child.ask("about", id="x", meta={"retries": 2, "deadline": 7.5})
    assert reply["result"] == ["x", "about", 2, 7.5, True]


def test_events_come_before_the_reply_only(child: Child) -> None:
    child.request("report")
    progress = {"op": "progress", "id": "an-id", "meta": {"done": 1}}
    log = {"op": "log", "id": "an-id", "level": "warning", "message": "half way"}
    assert [child.read(), child.read()] == [progress, log]
    assert child.read()["status"] == "ok"
    assert child.ask("late", id="another")["status"] == "ok"
    assert "ended" in child.ask("late publish", id="another")["message"]


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


@pytest.mark.parametrize("how", ["term", "stop"])
def test_a_task_knows_that_its_child_is_told_to_end(child: Child, how: str) -> None:
    child.request("until it stops")
    assert child.read()["meta"] == {"stopping": False}
    if how == "term":
        child.signal(signal.SIGTERM)
    else:
        child.send({"op": "stop"})
    assert child.read() == {"id": "an-id", "status": "ok", "result": None}
    assert child.end(eof=False) == (0, b"", "")


@pytest.mark.parametrize(
    "protocol, reply",
    [
        (1, {"status": "throttled", "retry_after_secs": 0}),
        (2, {"status": "restart"}),
    ],
)
def test_requests_after_sigterm(
    start: Start, tmp_path: Path, protocol: int, reply: Line
) -> None:
    child = start(protocol=protocol)
    child.request("hold", str(tmp_path / "let-go"))
    if protocol == 1:
        assert child.process.stderr and b"begun" in child.process.stderr.readline()
    else:
        assert child.read()["op"] == "log"
    child.signal(signal.SIGTERM)
    # Those that come before the signal is noticed are still run.
    ids = (str(n) for n in itertools.count())
    replies = (child.ask("echo", id=id) for id in ids)
    assert next(said for said in replies if said["status"] != "ok") == reply
    (tmp_path / "let-go").touch()
    assert child.read() == {"id": "an-id", "status": "ok", "result": None}
    assert child.end(eof=False)[:2] == (0, b"")


def test_no_request_is_lost_to_a_sigterm(child: Child) -> None:
    child.signal(signal.SIGSTOP)
    for n in range(4):
        child.request("echo", id=str(n))
    child.signal(signal.SIGTERM)
    child.signal(signal.SIGCONT)
    replies = [child.read() for _ in range(4)]
    assert {reply["id"] for reply in replies} == {"0", "1", "2", "3"}
    assert {reply["status"] for reply in replies} <= {"ok", "restart"}
    assert child.end(eof=False)[:2] == (0, b"")


def test_requests_before_stop_are_run(child: Child) -> None:
    child.signal(signal.SIGSTOP)
    for n in range(4):
        child.request("echo", id=str(n))
    child.send({"op": "stop"})
    child.signal(signal.SIGCONT)
    assert {child.read()["status"] for _ in range(4)} == {"ok"}
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


def test_bytes_that_are_no_text(child: Child) -> None:
    assert child.ask("bytes")["message"] == "caf\ufffd \ufffd"


def test_a_task_that_kills_its_thread_takes_none_away(child: Child) -> None:
    for _ in range(8):
        assert child.ask("kill")["status"] == "error"
    for n in range(4):
        child.request("meet", id=str(n))
    assert {child.read()["status"] for _ in range(4)} == {"ok"}


def test_what_is_begun_is_finished_though_a_thread_exits(child: Child) -> None:
    child.request("exit in a thread")
    assert child.read()["op"] == "progress"
    assert child.read()["status"] == "ok"
    assert child.end(eof=False)[:2] == (5, b"")


def test_a_timeout_tears_no_line(child: Child) -> None:
    child.request("torn")
    lines = iter(child.read, {"id": "an-id", "status": "ok", "result": 200})
    assert {line["message"] for line in lines} == {"x" * 60_000}


def test_a_fork_does_not_reply(child: Child) -> None:
    assert child.ask("fork")["result"] == 4
    assert child.ask("fork without a block")["status"] == "ok"
    assert child.ask("terminate a fork")["result"] == 143
    assert child.end() == (0, b"", "")


def test_what_can_be_called(child: Child) -> None:
    assert child.ask("method", 1)["result"] == [1, 2, "method"]


RAILS = """
require_relative "linepool"
require "action_controller/railtie"
require "active_record/railtie"

class Shop < Rails::Application
  config.load_defaults 6.1
  config.root = __dir__
  config.eager_load = false
  config.cache_classes = ENV["RELOAD"].nil?
  config.logger = Logger.new(File::NULL)
end

ENV["DATABASE_URL"] = "sqlite3::memory:"
Rails.application.initialize!
Rails.application.executor.to_run { warn "wrapped" }

Linepool.task("count") do
  Rails.logger.info("logged")
  ActiveRecord::Base.connection.select_value("select 2")
end
Linepool.task("busy") { ActiveRecord::Base.connection_pool.stat[:busy] }
DATE = { at: Date.new(2026, 11, 21), "wait" => 5.minutes }
Linepool.task("date") do
  progress(**DATE)
  DATE
end
Linepool.task("retry") { raise Linepool::Retry.new(after: 5.minutes) }
Linepool.task("bill") { Bill::NUMBER }
Linepool.run
"""


def test_rails(start: Start, tmp_path: Path) -> None:
    (tmp_path / "app" / "models").mkdir(parents=True)
    (tmp_path / "app" / "models" / "bill.rb").write_text("class Bill; warn 'read'; end")
    (tmp_path / "worker.rb").write_text(RAILS)
    child = start()
    assert child.ask("count") == {"status": "ok", "result": 2}
    assert child.ask("busy")["result"] == 0
    date = {"at": "2026-11-21", "wait": 300}
    child.request("date")
    assert child.read()["meta"] == date
    assert child.read()["result"] == date
    assert child.ask("retry") == {"status": "retry", "retry_after_secs": 300}
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    assert stderr.count("wrapped") == 4
    assert "logged" in stderr and stderr.startswith("read")


def test_rails_reloads_code(start: Start, tmp_path: Path) -> None:
    (tmp_path / "app" / "models").mkdir(parents=True)
    model = tmp_path / "app" / "models" / "bill.rb"
    model.write_text("class Bill; NUMBER = 1; end")
    os.utime(model, (0, 0))
    (tmp_path / "worker.rb").write_text(RAILS)
    child = start(RELOAD="1")
    assert child.ask("bill")["result"] == 1
    model.write_text("class Bill; NUMBER = 2; end")
    assert child.ask("bill")["result"] == 2


CONTEXT = {"id": "an-id", "retries": 2, "deadline": 7.5}
CHECKED = {"op": "log", "level": "warning", "message": "checked"}


def ok(result: Any) -> Line:
    return {"status": "ok", "result": result}


def error(type: str, message: str) -> Line:
    return {"status": "error", "type": type, "message": message}


def after(status: str, seconds: float) -> Line:
    return {"status": status, "retry_after_secs": seconds}


def step(n: int) -> Line:
    return {"op": "progress", "meta": {"step": n}}


def published(when: str) -> Line:
    empty: Line = {"kwargs": {}, "options": {}}
    return {"op": "publish", "task": "t", "args": [7], **empty, "when": when}


@pytest.fixture
def checked(start: Start) -> Child:
    return start(LINEPOOL_CHECK=str(SDK / "check"))


@pytest.mark.parametrize(
    "task, args, kwargs, lines, stderr",
    [
        ("echo", [], {}, [ok({"args": [], "kwargs": {}})], ""),
        ("echo", [1], {"k": [2]}, [ok({"args": [1], "kwargs": {"k": [2]}})], ""),
        ("sleep", [0.01], {}, [ok(0.01)], ""),
        ("sleep", [0], {}, [ok(0)], ""),
        ("fail", ["m"], {}, [error("RuntimeError", "m")], ""),
        ("exit", [3], {}, [error("SystemExit", "exit")], ""),
        ("end", ["retry", 5], {}, [after("retry", 5)], ""),
        ("end", ["throttled", 0.5], {}, [after("throttled", 0.5)], ""),
        ("end", ["rejected", 5], {}, [{"status": "rejected"}], ""),
        ("end", ["ignored", 5], {}, [{"status": "ignored"}], ""),
        ("print", ["é"], {}, [ok(None)], "é\né\n"),
        ("stderr", [9], {}, [ok(None)], "x" * 9),
        ("big", [9], {}, [ok("x" * 9)], ""),
        ("context", [], {}, [ok(CONTEXT)], ""),
        ("events", [0], {}, [CHECKED, ok(0)], ""),
        ("events", [2], {}, [step(1), step(2), CHECKED, ok(2)], ""),
        ("publish", ["t", "now"], {}, [published("now"), ok("new")], ""),
        ("publish", ["t", "success"], {}, [published("success"), ok("new")], ""),
    ],
)
def test_check_tasks(
    checked: Child,
    task: str,
    args: List[Any],
    kwargs: Dict[str, Any],
    lines: List[Line],
    stderr: str,
) -> None:
    meta = {"retries": 2, "deadline": 7.5}
    checked.request(f"linepool.check.{task}", *args, **kwargs, meta=meta)
    for expected in lines:
        line = checked.read()
        assert line.pop("id") == "an-id"
        line.pop("backtrace", None)
        if "seq" in line:
            answer = {"op": "answer", "id": "an-id", "seq": line.pop("seq")}
            checked.send({**answer, "task_id": "new"})
        assert line == expected
    assert checked.end() == (0, b"", stderr)


def test_check_fail_has_a_cause(checked: Child) -> None:
    backtrace = checked.ask("linepool.check.fail", "m")["backtrace"]
    assert any("the cause" in line for line in backtrace)


def test_check_sleep_can_be_cancelled(checked: Child) -> None:
    checked.request("linepool.check.sleep", 600)
    checked.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert checked.read() == {"id": "an-id", "status": "cancelled"}


def test_check_spawn(checked: Child) -> None:
    pid = checked.ask("linepool.check.spawn")["result"]
    process = psutil.Process(pid)
    assert process.cmdline() == ["sleep", "30"]
    assert process.ppid() == checked.process.pid
    os.kill(pid, signal.SIGKILL)


def test_the_example(start: Start, tmp_path: Path) -> None:
    shutil.copy(SDK / "example" / "worker.rb", tmp_path)
    child = start()
    assert child.ask("example.add", 1.25, 1, round_to=1)["result"] == 2.3
    assert child.end() == (0, b"", "")
