"""The helper for PHP, over real pipes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import psutil
import pytest
from sdk_driver import SDK, Child, Line
from workers import eventually

pytestmark = pytest.mark.newest_celery

WORKER = r"""
<?php
require __DIR__ . '/linepool.php';

use Linepool\Outcome;
use Linepool\Task;

$child = new Linepool\Child(objects: true);

// As ill-behaved as they come: it throws even at what is suppressed by @.
set_error_handler(function (int $level, string $message): bool {
    throw new ErrorException($message);
});
getenv('AT_EXIT') && register_shutdown_function(function (): void {
    fwrite(STDERR, "at exit\n");
    getenv('AT_EXIT') === 'exit' && exit(6);
});

class Missing extends Exception
{
}

$late = null;
$child->task('echo', fn (...$all) => [
    array_filter($all, 'is_int', ARRAY_FILTER_USE_KEY),
    (object) array_filter($all, 'is_string', ARRAY_FILTER_USE_KEY),
]);
$child->task('size', fn (string $text) => strlen($text));
$child->task('big', fn (int $n) => str_repeat('x', $n));
$child->task('noisy', function (): void {
    echo "printed\n";
    file_put_contents('php://stdout', "written\n");
    file_put_contents('php://output', "put\n");
    system('cat; echo from a subprocess');
    passthru('echo raw >&1');
});
$child->task('constant', fn () => fwrite(STDOUT, "constant\n"));
$child->task('exit', function (): void {
    exit(3);
});
$child->task('memory', function (): void {
    ini_set('memory_limit', '16M');
    str_repeat('x', 2 ** 25);
});
$child->task('crumbs', function (): void {
    ini_set('memory_limit', '16M');
    for ($list = null;; $list = $next) {
        $next = new stdClass();
        $next->next = $list;
    }
});
$child->task('deep', function (): int {
    ini_set('memory_limit', '16M');
    $deep = function (int $n) use (&$deep): int {
        return $deep($n + 1) + 1;
    };
    return $deep(0);
});
$child->task('huge', function (): string {
    ini_set('memory_limit', '16M');
    return str_repeat('x', 9 * 2 ** 20);
});
$child->task('trigger', function (): void {
    restore_error_handler();
    trigger_error('no good', E_USER_ERROR);
});
$child->task('compile', function (): void {
    eval('class Missing {}');
});
$child->task('fail', function (): void {
    throw new Missing('no such row', 0, new RangeException('below zero'));
});
$child->task('latin', function (): void {
    throw new Exception("\xe9");
});
$child->task('latin log', fn (Task $task) => $task->log("\xe9"));
$child->task('odd', fn () => NAN);
$child->task('bytes', fn () => "\xe9");
$child->task('warn', fn () => [][1]);
$child->task('end', fn (string $kind, ...$args) => throw Outcome::$kind(...$args));
$child->task('about', fn (Task $t) => [$t->id, $t->name, $t->retries, $t->deadline]);
$child->task('meta', fn (Task $t) => $t->meta['queue']);
$child->task('report', function (Task $t) use (&$late): void {
    $late = $t;
    $t->progress(['done' => 1]);
    $t->log('half way', 'warning');
});
$child->task('late', function () use (&$late): void {
    $late->progress(['done' => 2]);
});
$child->task('late publish', function () use (&$late): void {
    $late->publish('other');
});
$child->task('publish', function (Task $t, ...$options) {
    return $t->publish('other', [1], ['a' => 2], ...$options);
});
$child->task('wait', function (Task $t): void {
    $t->progress([]);
    while (true) {
        $t->check();
        usleep(5000);
    }
});
$child->task('reason', fn (Task $t) => $t->cancelled());
$child->task('hold', function (Task $t, string $path): void {
    $t->log('begun');
    while (!file_exists($path)) {
        usleep(5000);
        clearstatcache();
    }
});
$child->task('slow', function (Task $t, int $ms): string {
    $t->progress([]);
    for ($until = hrtime(true) + $ms * 1e6; hrtime(true) < $until;) {
        usleep(1000);
    }
    return 'slept';
});
$child->task('fork', function (): int {
    if ($pid = pcntl_fork()) {
        pcntl_waitpid($pid, $status);
        return pcntl_wexitstatus($status);
    }
    exit(4);
});
$child->task('fork and return', function (): void {
    if ($pid = pcntl_fork()) {
        pcntl_waitpid($pid, $status);
    }
});
$child->run();
"""

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: List[Child] = []
    (tmp_path / "worker.php").write_text(WORKER.lstrip())
    shutil.copy(SDK / "linepool.php", tmp_path)

    def start_one(**options: Any) -> Child:
        children.append(Child(["php", str(tmp_path / "worker.php")], **options))
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
    assert child.hello["language"] == "php"
    assert "echo" in child.hello["tasks"]
    assert sorted(child.hello["features"]) == ["cancel", "stop"]


def test_no_hello_and_no_events_in_the_original_protocol(start: Start) -> None:
    child = start(protocol=1)
    assert child.ask("report") == {"status": "ok", "result": None}
    assert child.ask("publish")["status"] == "error"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    assert "half way" in stderr


@pytest.mark.parametrize(
    "value",
    [{}, [], 2**62, 1.0, None, "\u2028\u2029\u0085", "\U0001f600", "a\nb", {"a": []}],
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
    assert child.ask("size", "é" * 1_000_000)["result"] == 2_000_000
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
    expected = ["printed", "written", "put", "from a subprocess", "raw"]
    assert printed.splitlines() == expected


def test_the_constant_of_stdout(start: Start) -> None:
    child = start()
    assert child.ask("constant")["type"] == "TypeError"
    assert child.end() == (0, b"", "")
    child = start(channel="fd")
    assert child.ask("constant")["result"] == 9
    assert child.end() == (0, b"", "")
    assert child.process.stdout
    assert child.process.stdout.read() == b"constant\n"


def test_an_error_has_its_cause(child: Child) -> None:
    error = child.ask("fail")
    assert (error["status"], error["type"]) == ("error", "Missing")
    assert error["message"] == "no such row"
    assert any("RangeException: below zero" in line for line in error["backtrace"])
    assert any("worker.php" in line for line in error["backtrace"])


@pytest.mark.parametrize(
    "task, args, type",
    [
        ("latin", [], "Exception"),
        ("odd", [], "JsonException"),
        ("bytes", [], "JsonException"),
        ("warn", [], "ErrorException"),
        ("nope", [], "LogicException"),
        ("size", [], "ArgumentCountError"),
        ("size", [[]], "TypeError"),
    ],
)
def test_an_error_ends_its_task_only(
    child: Child, task: str, args: List[Any], type: str
) -> None:
    error = child.ask(task, *args)
    assert (error["status"], error["type"]) == ("error", type)
    assert child.ask("echo")["status"] == "ok"


FATAL = [
    ("exit", "Exit", 3),
    ("memory", "FatalError", 255),
    ("crumbs", "FatalError", 255),
    ("deep", "FatalError", 255),
    ("huge", "FatalError", 255),
    ("trigger", "FatalError", 255),
    ("compile", "FatalError", 255),
]


@pytest.mark.parametrize("task, type, code", FATAL)
def test_what_ends_php_is_the_error_of_its_task(
    child: Child, task: str, type: str, code: int
) -> None:
    error = child.ask(task)
    assert (error["status"], error["type"]) == ("error", type)
    # The worker does not know yet that it goes.
    assert child.ask("size", "x" * 8_000_000) == {"status": "restart"}
    assert child.end()[:2] == (code, b"")


@pytest.mark.parametrize("how", ["eof", "term", "stop"])
def test_what_ends_php_ends_as_ever(child: Child, how: str) -> None:
    child.ask("exit")
    if how == "term":
        child.signal(signal.SIGTERM)
    elif how == "stop":
        child.send({"op": "stop"})
    else:
        child.input.close()
    assert child.end(eof=False) == (3, b"", "")


@pytest.mark.parametrize("task, type, code", FATAL)
def test_what_ends_php_ends_it_in_the_original_protocol(
    start: Start, task: str, type: str, code: int
) -> None:
    child = start(protocol=1)
    assert child.ask(task)["type"] == type
    assert child.end(eof=False)[:2] == (code, b"")


def test_the_application_may_report_what_ends_php(start: Start) -> None:
    child = start(AT_EXIT="report")
    assert child.ask("exit")["type"] == "Exit"
    assert child.process.stderr and child.process.stderr.readline() == b"at exit\n"
    assert child.ask("echo") == {"status": "restart"}
    assert child.end()[:2] == (3, b"")


def test_an_exit_at_exit_loses_no_reply(start: Start) -> None:
    child = start(AT_EXIT="exit")
    assert child.ask("exit")["type"] == "Exit"
    assert child.end(eof=False) == (6, b"", "at exit\n")


def test_a_message_in_another_encoding(child: Child) -> None:
    assert child.ask("latin")["message"] == "\ufffd"
    child.request("latin log")
    assert child.read()["message"] == "\ufffd"


def test_a_fork_does_not_reply(child: Child) -> None:
    assert child.ask("fork")["result"] == 4
    assert child.ask("fork and return")["status"] == "ok"
    assert child.end()[:2] == (0, b"")


@pytest.mark.parametrize(
    "args, reply",
    [
        (["retry", "m"], {"status": "retry", "message": "m"}),
        (
            ["retry", "m", 5],
            {"status": "retry", "message": "m", "retry_after_secs": 5},
        ),
        (["throttle", 7], {"status": "throttled", "retry_after_secs": 7}),
        (["reject", True], {"status": "rejected", "requeue": True}),
        (["ignore"], {"status": "ignored"}),
    ],
)
def test_other_outcomes(child: Child, args: List[Any], reply: Any) -> None:
    assert child.ask("end", *args) == reply


def test_context(child: Child) -> None:
    reply = child.ask("about", id="x", meta={"retries": 2, "deadline": 7.5})
    assert reply["result"] == ["x", "about", 2, 7.5]
    assert child.ask("meta", meta={"queue": "q"})["result"] == "q"


def test_events_come_before_the_reply_only(child: Child) -> None:
    child.request("report")
    progress = {"op": "progress", "id": "an-id", "meta": {"done": 1}}
    log = {"op": "log", "id": "an-id", "level": "warning", "message": "half way"}
    assert [child.read(), child.read()] == [progress, log]
    assert child.read()["status"] == "ok"
    assert child.ask("late", id="another")["status"] == "ok"
    assert child.ask("late publish", id="another")["type"] == "LogicException"


@pytest.mark.parametrize(
    "options", [{}, {"onSuccess": True, "options": {"queue": "q"}}]
)
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


def test_a_late_cancel_is_none_of_the_next_try(child: Child) -> None:
    assert child.ask("reason")["result"] is None
    child.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert child.ask("reason")["result"] is None


def test_ends_with_its_channel_while_idle(child: Child) -> None:
    assert child.end() == (0, b"", "")


def test_sigterm_while_idle(child: Child) -> None:
    child.signal(signal.SIGTERM)
    assert child.end(eof=False) == (0, b"", "")


@pytest.mark.parametrize("how", ["term", "stop", "eof"])
def test_finishes_what_it_has_begun(child: Child, how: str) -> None:
    child.request("slow", 200)
    child.read()
    if how == "term":
        child.signal(signal.SIGTERM)
    elif how == "stop":
        child.send({"op": "stop"})
    else:
        child.input.close()
    assert child.read() == {"id": "an-id", "status": "ok", "result": "slept"}
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
    child.request("echo", id="another")
    (tmp_path / "let-go").touch()
    assert child.read() == {"id": "an-id", "status": "ok", "result": None}
    assert child.read() == {"id": "another", **reply}
    assert child.end(eof=False)[:2] == (0, b"")


def test_no_request_is_lost_to_a_sigterm(child: Child) -> None:
    child.signal(signal.SIGSTOP)
    child.request("echo")
    child.signal(signal.SIGTERM)
    child.signal(signal.SIGCONT)
    assert child.read() == {"id": "an-id", "status": "restart"}
    assert child.end(eof=False)[:2] == (0, b"")


def test_requests_before_stop_are_run(child: Child) -> None:
    child.signal(signal.SIGSTOP)
    child.request("echo")
    child.send({"op": "stop"})
    child.signal(signal.SIGCONT)
    assert child.read()["status"] == "ok"
    assert child.end(eof=False)[:2] == (0, b"")


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


CONTEXT = {"id": "an-id", "retries": 2, "deadline": 7.5}
REJECTED = {"status": "rejected", "requeue": False}
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
        ("fail", ["m"], {}, [error("RuntimeException", "m")], ""),
        ("exit", [3], {}, [error("Exit", "exit in a task")], ""),
        ("end", ["retry", 5], {}, [after("retry", 5)], ""),
        ("end", ["throttled", 0.5], {}, [after("throttled", 0.5)], ""),
        ("end", ["rejected", 5], {}, [REJECTED], ""),
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
    assert checked.end() == (3 if task == "exit" else 0, b"", stderr)


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
    assert eventually(lambda: process.cmdline() == ["sleep", "30"])
    assert process.ppid() == checked.process.pid
    os.kill(pid, signal.SIGKILL)


def test_the_example(start: Start, tmp_path: Path) -> None:
    shutil.copy(SDK / "example" / "worker.php", tmp_path)
    child = start()
    assert child.ask("example.add", 1.25, 1, digits=1)["result"] == 2.3
    assert child.end() == (0, b"", "")
