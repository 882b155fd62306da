"""The helper for PHP, over real pipes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from sdk_driver import SDK, Child

pytestmark = pytest.mark.skipif(not shutil.which("php"), reason="needs php")

WORKER = r"""
<?php
require __DIR__ . '/linepool.php';

use Linepool\Outcome;
use Linepool\Task;

set_error_handler(function (int $level, string $message): bool {
    throw new ErrorException($message);
});

class Missing extends Exception
{
}

$late = null;
$child = new Linepool\Child(objects: true);
$child->task('echo', fn (...$all) => [
    array_filter($all, 'is_int', ARRAY_FILTER_USE_KEY),
    (object) array_filter($all, 'is_string', ARRAY_FILTER_USE_KEY),
]);
$child->task('size', fn (string $text) => strlen($text));
$child->task('big', fn (int $n) => str_repeat('x', $n));
$child->task('noisy', function (): void {
    echo "printed\n";
    file_put_contents('php://stdout', "written\n");
    system('cat; echo from a subprocess');
});
$child->task('exit', function (): void { exit(3); });
$child->task('memory', function (): void {
    ini_set('memory_limit', '16M');
    str_repeat('x', 2 ** 25);
});
$child->task('fail', function (): void {
    throw new Missing('no such row', 0, new RangeException('below zero'));
});
$child->task('latin', function (): void { throw new Exception("\xe9"); });
$child->task('odd', fn () => NAN);
$child->task('bytes', fn () => "\xe9");
$child->task('warn', fn () => [][1]);
$child->task('end', fn (string $kind, ...$args) => throw Outcome::$kind(...$args));
$child->task('about', fn (Task $t) => [$t->id, $t->name, $t->retries, $t->deadline]);
$child->task('report', function (Task $t) use (&$late): void {
    $late = $t;
    $t->progress(['done' => 1]);
    $t->log('half way', 'warning');
});
$child->task('late', function () use (&$late): void { $late->progress(['done' => 2]); });
$child->task('publish', fn (Task $t, ...$o) => $t->publish('other', [1], ['a' => 2], ...$o));
$child->task('wait', function (Task $t): void {
    $t->progress([]);
    while (true) {
        $t->check();
        usleep(5000);
    }
});
$child->task('slow', function (Task $t, int $ms): string {
    $t->progress([]);
    for ($until = hrtime(true) + $ms * 1e6; hrtime(true) < $until;) {
        usleep(1000);
    }
    return 'slept';
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
    assert reply == {"status": "ok", "result": [[value], {"key": value}]}


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
    if channel == "stdio":
        said = {"printed", "written", "from a subprocess"}
        assert said <= set(stderr.split("\n"))


def test_an_error_has_its_cause(child: Child) -> None:
    error = child.ask("fail")
    assert (error["status"], error["type"]) == ("error", "Missing")
    assert error["message"] == "no such row"
    assert "caused by RangeException: below zero" in error["backtrace"]
    assert any("worker.php" in line for line in error["backtrace"])


@pytest.mark.parametrize(
    "task, args, type",
    [
        ("latin", [], "Exception"),
        ("odd", [], "JsonException"),
        ("bytes", [], "JsonException"),
        ("warn", [], "ErrorException"),
        ("nope", [], "BadFunctionCallException"),
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


@pytest.mark.parametrize(
    "task, type, code", [("exit", "Exit", 3), ("memory", "FatalError", 255)]
)
def test_what_ends_php_is_the_error_of_its_task(
    child: Child, task: str, type: str, code: int
) -> None:
    error = child.ask(task)
    assert (error["status"], error["type"]) == ("error", type)
    assert child.end()[:2] == (code, b"")


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


def test_events_come_before_the_reply_only(child: Child) -> None:
    child.request("report")
    progress = {"op": "progress", "id": "an-id", "meta": {"done": 1}}
    log = {"op": "log", "id": "an-id", "level": "warning", "message": "half way"}
    assert [child.read(), child.read()] == [progress, log]
    assert child.read()["status"] == "ok"
    assert child.ask("late", id="another")["status"] == "ok"


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


def test_the_example(tmp_path: Path) -> None:
    for name in ("linepool.php", "example/worker.php"):
        shutil.copy(SDK / name, tmp_path)
    child = Child(["php", str(tmp_path / "worker.php")])
    assert child.ask("example.add", 1.25, 1, digits=1)["result"] == 2.3
    assert child.end() == (0, b"", "")
    child.close()
