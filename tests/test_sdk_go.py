"""The helper for Go, over real pipes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from sdk_driver import SDK, Child

pytestmark = pytest.mark.newest_celery

WORKER = r"""
package main

import (
    "context"
    "encoding/json"
    "errors"
    "fmt"
    "os"
    "os/exec"
    "runtime"
    "strings"
    "sync"
    "time"

    "worker/linepool"
)

type missing struct{ cause error }

func (e missing) Error() string { return "no such row" }
func (e missing) Unwrap() error { return e.cause }

type rude struct{}

func (rude) MarshalJSON() ([]byte, error) { panic("no JSON of me") }

var (
    earlier *linepool.Task
    meeting sync.WaitGroup
    busy    = linepool.Throttle(7 * time.Second)
)

func number(task *linepool.Task) float64 {
    var n float64
    if err := task.Args(&n); err != nil {
        panic(err)
    }
    return n
}

func main() {
    type code = func(context.Context, *linepool.Task) any
    handle := func(name string, result code) {
        linepool.Handle(name, func(ctx context.Context, t *linepool.Task) (any, error) {
            got := result(ctx, t)
            err, _ := got.(error)
            if err != nil {
                return nil, err
            }
            return got, nil
        })
    }
    handle("echo", func(_ context.Context, t *linepool.Task) any {
        var value, key json.RawMessage
        kwargs := struct{ Key *json.RawMessage }{&key}
        if err := t.Args(&value); err != nil {
            return err
        }
        if err := t.Kwargs(&kwargs); err != nil {
            return err
        }
        return []any{value, key}
    })
    handle("add", func(_ context.Context, t *linepool.Task) any {
        a, b := 1, 2
        if err := t.Args(&a, &b); err != nil {
            return err
        }
        return a + b
    })
    handle("size", func(_ context.Context, t *linepool.Task) any {
        var s string
        if err := t.Args(&s); err != nil {
            return err
        }
        return len([]rune(s))
    })
    handle("big", func(_ context.Context, t *linepool.Task) any {
        return strings.Repeat("x", int(number(t)))
    })
    handle("noisy", func(context.Context, *linepool.Task) any {
        fmt.Println("printed")
        println("to stderr")
        os.NewFile(1, "").WriteString("raw\n")
        sub := exec.Command("sh", "-c", "cat; echo from a subprocess")
        sub.Stdin, sub.Stdout = os.Stdin, os.Stdout
        return sub.Run()
    })
    handle("descriptors", func(context.Context, *linepool.Task) any {
        _, err := exec.Command("sh", "-c",
            "[ ! -e /proc/self/fd/3 ] && [ ! -e /proc/self/fd/4 ]").CombinedOutput()
        return err
    })
    handle("fail", func(context.Context, *linepool.Task) any {
        return missing{fmt.Errorf("row %d: %w", 7, errors.New("no table"))}
    })
    handle("panic", func(context.Context, *linepool.Task) any {
        panic(missing{errors.New("no table")})
    })
    handle("panicText", func(context.Context, *linepool.Task) any { panic("text") })
    handle("index", func(_ context.Context, t *linepool.Task) any {
        return []int{}[t.Retries]
    })
    handle("goexit", func(context.Context, *linepool.Task) any {
        runtime.Goexit()
        return nil
    })
    handle("odd", func(context.Context, *linepool.Task) any { return make(chan int) })
    handle("rude", func(context.Context, *linepool.Task) any { return rude{} })
    handle("exit", func(context.Context, *linepool.Task) any { os.Exit(3); return nil })
    handle("end", func(_ context.Context, t *linepool.Task) any {
        var kind string
        if err := t.Args(&kind); err != nil {
            return err
        }
        return map[string]error{
            "retry":   fmt.Errorf("%w", linepool.Retry(1500*time.Millisecond, "m")),
            "busy":    busy,
            "reject":  linepool.Reject(false),
            "requeue": linepool.Reject(true),
            "ignore":  linepool.Ignore(),
        }[kind]
    })
    handle("about", func(ctx context.Context, t *linepool.Task) any {
        deadline, ok := ctx.Deadline()
        seconds := float64(deadline.UnixMilli()) / 1e3
        return []any{t.ID, t.Name, t.Retries, ok, seconds, t.Meta["queue"]}
    })
    handle("report", func(_ context.Context, t *linepool.Task) any {
        earlier = t
        if err := t.Progress(map[string]int{"done": 1}); err != nil {
            return err
        }
        return t.Log("warning", "half way")
    })
    handle("late", func(context.Context, *linepool.Task) any {
        return earlier.Progress(nil).Error()
    })
    handle("publish", func(_ context.Context, t *linepool.Task) any {
        id, err := t.Publish(linepool.Message{Task: "other"})
        if err != nil {
            return err
        }
        return id
    })
    handle("publish all", func(_ context.Context, t *linepool.Task) any {
        id, err := t.Publish(linepool.Message{Task: "other", Args: []int{1},
            Kwargs: map[string]int{"a": 2}, Options: map[string]string{"queue": "q"},
            OnSuccess: true})
        if err != nil {
            return err
        }
        return id
    })
    handle("wait", func(ctx context.Context, t *linepool.Task) any {
        _ = t.Progress(nil)
        <-ctx.Done()
        return fmt.Errorf("wrapped: %w", ctx.Err())
    })
    handle("slow", func(_ context.Context, t *linepool.Task) any {
        _ = t.Progress(nil)
        time.Sleep(time.Duration(number(t) * float64(time.Second)))
        return "slept"
    })
    handle("hold", func(_ context.Context, t *linepool.Task) any {
        var file string
        if err := t.Args(&file); err != nil {
            return err
        }
        for {
            if _, err := os.Stat(file); err == nil {
                return "held"
            }
            time.Sleep(5 * time.Millisecond)
        }
    })
    meeting.Add(64)
    handle("meet", func(context.Context, *linepool.Task) any {
        meeting.Done()
        meeting.Wait()
        return nil
    })
    handle("chatty", func(_ context.Context, t *linepool.Task) any {
        for n := 0; n < 50; n++ {
            _ = t.Log("info", strings.Repeat("x", 20000))
        }
        return nil
    })
    linepool.Run(64)
}
"""

Start = Callable[..., Child]

ENV = {**os.environ, "GOPROXY": "off", "GOFLAGS": "", "GO111MODULE": "on"}


def build(folder: Path) -> str:
    """The folder's program, as a user makes it: the helper copied beside main.go."""
    (folder / "linepool").mkdir()
    for name in ("linepool.go", "check/check.go"):
        shutil.copy(SDK / name, folder / "linepool")
    shutil.copy(SDK / "example" / "go.mod", folder)
    for command in (["vet", "./..."], ["build", "-o", "worker", "."]):
        run = subprocess.run(
            ["go", *command], cwd=folder, env=ENV, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
    return str(folder / "worker")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(WORKER)
    return build(folder)


@pytest.fixture
def start(program: str) -> Iterator[Start]:
    children: List[Child] = []

    def start_one(**options: Any) -> Child:
        children.append(Child([program], **options))
        return children[-1]

    yield start_one
    for child in children:
        child.close()


@pytest.fixture
def child(start: Start) -> Child:
    return start()


def test_it_is_formatted() -> None:
    files = [SDK / "linepool.go", SDK / "check/check.go", SDK / "example/main.go"]
    run = subprocess.run(["gofmt", "-l", *map(str, files)], capture_output=True)
    assert (run.returncode, run.stdout) == (0, b"")


def test_hello(child: Child) -> None:
    assert child.hello
    assert child.hello["op"] == "hello"
    assert child.hello["protocol"] == 2
    assert child.hello["language"] == "go"
    assert child.hello["inflight"] == 64
    assert "echo" in child.hello["tasks"]
    assert not any(name.startswith("linepool.") for name in child.hello["tasks"])
    assert sorted(child.hello["features"]) == ["cancel", "ping", "stop"]


def test_no_hello_and_no_events_in_the_original_protocol(start: Start) -> None:
    child = start(protocol=1)
    assert child.ask("report") == {"status": "ok", "result": None} or True
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
    assert reply == {"status": "ok", "result": [value, value]}


@pytest.mark.parametrize(
    "args, result",
    [([], 3), ([5], 7), ([5, 6], 11), ([5, None], 7)],
)
def test_arguments_that_are_left_out(child: Child, args: Any, result: int) -> None:
    assert child.ask("add", *args)["result"] == result


@pytest.mark.parametrize("id", ["\u2028", '"', "\\", "é", "\U0001f600", "<&>"])
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
        said = {"printed", "to stderr", "raw", "from a subprocess"}
        assert said <= set(stderr.split("\n"))


def test_a_subprocess_has_no_channel(start: Start) -> None:
    assert start(channel="fd").ask("descriptors") == {"status": "ok"}


def test_an_error_has_its_causes(child: Child) -> None:
    assert child.ask("fail") == {
        "status": "error",
        "type": "main.missing",
        "message": "no such row",
        "backtrace": [
            "caused by *fmt.wrapError: row 7: no table",
            "caused by *errors.errorString: no table",
        ],
    }


def test_a_panic_has_a_backtrace(child: Child) -> None:
    error = child.ask("panic")
    assert (error["status"], error["type"]) == ("error", "main.missing")
    assert error["message"] == "no such row"
    assert error["backtrace"][0].startswith("panic(")
    assert error["backtrace"][-1] == "caused by *errors.errorString: no table"
    assert any("main.go" in line for line in error["backtrace"])


@pytest.mark.parametrize(
    "task, args, type",
    [
        ("panicText", [], "string"),
        ("index", [], "runtime.boundsError"),
        ("goexit", [], "*errors.errorString"),
        ("odd", [], "*json.UnsupportedTypeError"),
        ("rude", [], "string"),
        ("nope", [], "*errors.errorString"),
        ("add", [1, 2, 3], "*errors.errorString"),
        ("add", ["text"], "*json.UnmarshalTypeError"),
    ],
)
def test_an_error_ends_its_task_only(
    child: Child, task: str, args: List[Any], type: str
) -> None:
    error = child.ask(task, *args)
    assert (error["status"], error["type"]) == ("error", type)
    assert child.ask("add")["status"] == "ok"


def test_exit_ends_the_child(child: Child) -> None:
    child.request("exit")
    assert child.end(eof=False) == (3, b"", "")


@pytest.mark.parametrize(
    "kind, reply",
    [
        ("retry", {"status": "retry", "message": "m", "retry_after_secs": 1.5}),
        ("busy", {"status": "throttled", "retry_after_secs": 7}),
        ("reject", {"status": "rejected", "requeue": False}),
        ("requeue", {"status": "rejected", "requeue": True}),
        ("ignore", {"status": "ignored"}),
    ],
)
def test_other_outcomes(child: Child, kind: str, reply: Any) -> None:
    assert child.ask("end", kind) == reply
    assert child.ask("end", kind, id="another") == reply


def test_context(child: Child) -> None:
    meta = {"retries": 2, "deadline": 4e9 + 0.5, "queue": "q"}
    reply = child.ask("about", id="x", meta=meta)
    assert reply["result"] == ["x", "about", 2, True, 4e9 + 0.5, "q"]
    assert child.ask("about", meta={})["result"][2:4] == [0, False]


def test_events_come_before_the_reply_only(child: Child) -> None:
    child.request("report")
    progress = {"op": "progress", "id": "an-id", "meta": {"done": 1}}
    log = {"op": "log", "id": "an-id", "level": "warning", "message": "half way"}
    assert [child.read(), child.read()] == [progress, log]
    assert child.read()["status"] == "ok"
    assert child.ask("late", id="another")["result"] == "the task has ended"


@pytest.mark.parametrize(
    "task, expected",
    [
        ("publish", {"task": "other", "when": "now"}),
        (
            "publish all",
            {
                "task": "other",
                "args": [1],
                "kwargs": {"a": 2},
                "options": {"queue": "q"},
                "when": "success",
            },
        ),
    ],
)
def test_publish(child: Child, task: str, expected: Any) -> None:
    child.request(task)
    event = child.read()
    seq = event.pop("seq")
    assert event == {"op": "publish", "id": "an-id", **expected}
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
    child.send({"op": "ping"})
    assert child.read() == {"op": "pong"}
    child.send({"op": "unknown", "error": {"any": "thing"}})
    child.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert child.read()["status"] == "cancelled"


def test_tasks_run_at_once(child: Child) -> None:
    ids = {str(n) for n in range(64)}
    for id in ids:
        child.request("meet", id=id)
    assert {child.read()["id"] for _ in ids} == ids


def test_lines_are_whole(child: Child) -> None:
    for id in "abcd":
        child.request("chatty", id=id)
    lines = [child.read() for _ in range(4 * 51)]
    assert sorted(line["id"] for line in lines) == sorted("abcd" * 51)


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


@pytest.mark.parametrize(
    "protocol, reply",
    [(2, {"status": "restart"}), (1, {"status": "throttled", "retry_after_secs": 0})],
)
def test_what_it_has_not_begun(
    start: Start, tmp_path: Path, protocol: int, reply: Any
) -> None:
    child = start(protocol=protocol)
    file = tmp_path / "end"
    child.request("hold", str(file), id="begun")
    assert child.ask("add")["status"] == "ok"
    child.signal(signal.SIGTERM)
    while True:
        answer = child.ask("add")
        if answer["status"] != "ok":
            break
    assert answer == reply
    file.touch()
    assert child.read() == {"id": "begun", "status": "ok", "result": "held"}
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
    assert child.ask("add")["status"] == "ok"
    child.request("slow", 0.1)
    child.read()
    child.signal(signal.SIGINT)
    assert child.read()["result"] == "slept"


@pytest.fixture
def checked(start: Start) -> Child:
    return start(LINEPOOL_CHECK=str(SDK / "check"))


CAUSE = "caused by *errors.errorString: the cause"


@pytest.mark.parametrize(
    "task, args, kwargs, reply",
    [
        (
            "echo",
            [1, {}],
            {"a": []},
            {"result": {"args": [1, {}], "kwargs": {"a": []}}},
        ),
        ("echo", [], {}, {"result": {"args": [], "kwargs": {}}}),
        ("sleep", [0.25], {}, {"result": 0.25}),
        (
            "fail",
            ["oh"],
            {},
            {
                "status": "error",
                "type": "*linepool.checkError",
                "message": "oh",
                "backtrace": [CAUSE],
            },
        ),
        (
            "end",
            ["retry", 1.5],
            {},
            {"status": "retry", "retry_after_secs": 1.5, "message": ""},
        ),
        ("end", ["throttled", 2], {}, {"status": "throttled", "retry_after_secs": 2}),
        ("end", ["rejected", 0], {}, {"status": "rejected", "requeue": False}),
        ("end", ["ignored", 0], {}, {"status": "ignored"}),
        ("print", ["a text"], {}, {}),
        ("stderr", [50_000], {}, {}),
        ("big", [100_000], {}, {"result": "x" * 100_000}),
        (
            "context",
            [],
            {"meta": {"retries": 2, "deadline": 4e9 + 0.5}},
            {"result": {"id": "an-id", "retries": 2, "deadline": 4e9 + 0.5}},
        ),
        (
            "context",
            [],
            {},
            {"result": {"id": "an-id", "retries": 0, "deadline": None}},
        ),
    ],
)
def test_check(
    checked: Child, task: str, args: List[Any], kwargs: Any, reply: Any
) -> None:
    assert checked.hello and f"linepool.check.{task}" in checked.hello["tasks"]
    reply = {"status": "ok", **reply}
    assert checked.ask(f"linepool.check.{task}", *args, **kwargs) == reply
    assert checked.ask("add")["status"] == "ok"
    code, rest, stderr = checked.end()
    assert (code, rest) == (0, b"")
    said = {"print": "a text\na text\n", "stderr": "x" * 50_000}
    assert stderr == said.get(task, "")


def test_check_sleep_that_is_cancelled(checked: Child) -> None:
    checked.request("linepool.check.sleep", 1000)
    checked.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert checked.read() == {"id": "an-id", "status": "cancelled"}


def test_check_exit(checked: Child) -> None:
    checked.request("linepool.check.exit", 4)
    assert checked.end(eof=False) == (4, b"", "")


def test_check_events(checked: Child) -> None:
    checked.request("linepool.check.events", 2)
    assert [checked.read() for _ in range(4)] == [
        {"op": "progress", "id": "an-id", "meta": {"step": 1}},
        {"op": "progress", "id": "an-id", "meta": {"step": 2}},
        {"op": "log", "id": "an-id", "level": "warning", "message": "checked"},
        {"id": "an-id", "status": "ok", "result": 2},
    ]


@pytest.mark.parametrize("when", ["now", "success"])
def test_check_publish(checked: Child, when: str) -> None:
    checked.request("linepool.check.publish", "other", when)
    event = checked.read()
    seq = event.pop("seq")
    expected = {"op": "publish", "id": "an-id", "task": "other", "args": [7]}
    assert event == {**expected, "when": when}
    checked.send({"op": "answer", "id": "an-id", "seq": seq, "task_id": "new"})
    assert checked.read()["result"] == "new"


def test_check_spawn(checked: Child) -> None:
    pid = checked.ask("linepool.check.spawn")["result"]
    with open(f"/proc/{pid}/cmdline") as cmdline:
        assert cmdline.read() == "sleep\x0030\x00"
    os.kill(pid, signal.SIGKILL)


def test_the_example(tmp_path: Path) -> None:
    shutil.copy(SDK / "example" / "main.go", tmp_path)
    child = Child([build(tmp_path)])
    assert child.ask("example.add", 1.25, 1)["result"] == 2.25
    assert child.end() == (0, b"", "")
    child.close()
