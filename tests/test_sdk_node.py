"""The helper for Node, over real pipes."""

from __future__ import annotations

import select
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List

import psutil
import pytest
from sdk_driver import SDK, Child
from workers import eventually

pytestmark = pytest.mark.newest_celery

WORKER = """
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import linepool, { run, task } from './linepool.mjs';

const late = {};
class Missing extends Error {}

task('echo', (context, ...all) => all);
task('size', async (context, text) => text.length);
task('big', async (context, n) => 'x'.repeat(n));
task('noisy', async () => {
  console.log('printed');
  process.stdout.write('written\\n');
  fs.writeSync(1, 'raw\\n');
  spawnSync('cat; echo from a subprocess', { shell: true, stdio: 'inherit' });
});
task('exit', async () => { try { process.exit(3); } finally { await sleep(1); } });
task('exitLater', () => new Promise(() => { setTimeout(() => process.exit(3), 1); }));
task('exitCaught', async () => { try { process.exit(3); } catch { return 'caught'; } });
task('fail', async () => {
  throw new Missing('no such row', { cause: new RangeError('below zero') });
});
task('throwLater', () => new Promise(() => {
  setTimeout(() => { throw new TypeError('in a timer'); }, 1);
}));
task('forgotten', () => new Promise(() => {
  (async () => { await sleep(1); throw new TypeError('not awaited'); })();
}));
task('forgottenText', () => new Promise(() => {
  (async () => { await sleep(1); throw 'text'; })();
}));
let bomb = () => {};
setInterval(() => bomb(), 5); // of no task
task('throwOutside', () => new Promise(() => {
  bomb = () => { bomb = () => {}; throw new TypeError('of no task'); };
}));
task('exitOutside', () => new Promise(() => { bomb = () => process.exit(5); }));
task('throwText', async () => { throw 'text'; });
task('throwNull', async () => { throw Object.create(null); });
task('deep', function deep(context) { return deep(context) + 1; });
task('odd', async () => 1n);
task('mute', () => {
  throw Object.defineProperty(new Error(), 'message', { get() { throw this; } });
});
task('hear', async () => { process.on('SIGTERM', () => console.error('heard')); });
task('hold', async (t, path) => {
  t.log('begun');
  while (!fs.existsSync(path)) await sleep(5);
  return 'held';
});
task('end', (context, kind, ...args) => { throw new linepool[kind](...args); });
task('about', async (t) => [t.id, t.name, t.retries, t.deadline]);
task('report', async (t) => {
  late.task = t;
  t.progress({ done: 1 });
  t.log('half way', 'warning');
});
task('late', () => { late.task.progress({ done: 2 }); });
task('publish', (t, options) => t.publish('other', [1], { a: 2 }, options));
task('publishTwice', async (t) => {
  try { await t.publish('other'); } catch { await t.publish('another'); }
});
task('publishLate', async () => {
  try { await late.task.publish('other'); } catch ({ message }) { return message; }
});
task('wait', async (t) => {
  t.progress({});
  for (;;) { t.signal.throwIfAborted(); await sleep(5); }
});
task('sleepLong', async (t) => {
  t.progress({});
  await sleep(1e6, null, { signal: t.signal });
});
task('slow', async (t, ms) => { t.progress({}); await sleep(ms); return 'slept'; });
let arrived = 0;
let open;
const all = new Promise((resolve) => { open = resolve; });
task('meet', async () => {
  arrived += 1;
  if (arrived === 64) open();
  await all;
  return arrived;
});

run({ inflight: 64 });
"""

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: List[Child] = []
    (tmp_path / "worker.mjs").write_text(WORKER)
    for name in ("linepool.cjs", "linepool.mjs"):
        shutil.copy(SDK / name, tmp_path)

    def start_one(*prefix: str, **options: Any) -> Child:
        command = [*prefix, "node", str(tmp_path / "worker.mjs")]
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
    assert child.hello["language"] == "node"
    assert child.hello["inflight"] == 64
    assert "echo" in child.hello["tasks"]
    assert sorted(child.hello["features"]) == ["cancel", "ping", "stop"]


@pytest.mark.parametrize("prefix", [[], ["env", "-u", "LINEPOOL_PROTOCOL"]])
def test_no_hello_and_no_events_in_the_original_protocol(
    start: Start, prefix: List[str]
) -> None:
    child = start(*prefix, protocol=1)
    assert child.ask("report") == {"status": "ok"}
    assert child.ask("publish")["status"] == "error"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    assert "half way" in stderr


@pytest.mark.parametrize(
    "value",
    [{}, [], 2**53, 1.5, None, "\u2028\u2029\u0085", "\U0001f600", "a\nb", {"a": []}],
)
def test_values_come_back_as_they_were(child: Child, value: Any) -> None:
    reply = child.ask("echo", value, key=value)
    assert reply == {"status": "ok", "result": [value, {"key": value}]}


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


NONBLOCKING = (
    "import os, sys; os.set_blocking(4, False); os.execvp(sys.argv[1], sys.argv[1:])"
)


def test_a_channel_that_does_not_block(start: Start) -> None:
    child = start(sys.executable, "-c", NONBLOCKING, channel="fd")
    child.request("big", 1_000_000)
    assert eventually(lambda: select.select([child.output], [], [], 0)[0])
    assert child.read()["result"] == "x" * 1_000_000
    assert child.ask("echo")["status"] == "ok"


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_what_is_printed_is_no_line(start: Start, channel: str) -> None:
    child = start(channel=channel)
    assert child.ask("noisy")["status"] == "ok"
    assert child.ask("echo")["status"] == "ok"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    if channel == "stdio":
        said = {"printed", "written", "raw", "from a subprocess"}
        assert said <= set(stderr.split("\n"))


def test_an_error_has_its_cause(child: Child) -> None:
    error = child.ask("fail")
    assert (error["status"], error["type"]) == ("error", "Missing")
    assert error["message"] == "no such row"
    assert "caused by RangeError: below zero" in error["backtrace"]
    assert any("worker.mjs" in line for line in error["backtrace"])
    assert not any("linepool.cjs" in line for line in error["backtrace"])


@pytest.mark.parametrize(
    "task, type",
    [
        ("exit", "Exit"),
        ("exitLater", "Exit"),
        ("exitCaught", "Exit"),
        ("throwLater", "TypeError"),
        ("forgotten", "TypeError"),
        ("forgottenText", "Error"),
        ("throwText", "Error"),
        ("throwNull", "Error"),
        ("mute", "Error"),
        ("deep", "RangeError"),
        ("odd", "TypeError"),
        ("nope", "ReferenceError"),
    ],
)
def test_an_error_ends_its_task_only(child: Child, task: str, type: str) -> None:
    child.request("wait", id="another")
    child.read()
    error = child.ask(task)
    assert (error["status"], error["type"]) == ("error", type)
    child.send({"op": "cancel", "id": "another", "reason": "revoked"})
    assert child.read() == {"id": "another", "status": "cancelled"}
    assert child.ask("echo")["status"] == "ok"
    assert child.end() == (0, b"", "")


def test_an_error_of_no_task_is_that_of_the_only_one(child: Child) -> None:
    assert child.ask("throwOutside")["type"] == "TypeError"
    assert child.ask("echo")["status"] == "ok"


@pytest.mark.parametrize(
    "task, type, code", [("throwOutside", "TypeError", 1), ("exitOutside", "Exit", 5)]
)
def test_an_end_of_no_task_is_that_of_all(
    child: Child, task: str, type: str, code: int
) -> None:
    child.request("wait", id="another")
    child.read()
    child.request(task)
    replies = [child.read(), child.read()]
    assert {reply["id"] for reply in replies} == {"another", "an-id"}
    assert {reply["type"] for reply in replies} == {type}
    assert child.end(eof=False)[:2] == (code, b"")


@pytest.mark.parametrize(
    "args, reply",
    [
        (["Retry", "m"], {"status": "retry", "message": "m"}),
        (
            ["Retry", "m", {"after": 5}],
            {"status": "retry", "message": "m", "retry_after_secs": 5},
        ),
        (["Throttle", 7], {"status": "throttled", "retry_after_secs": 7}),
        (["Reject", {"requeue": True}], {"status": "rejected", "requeue": True}),
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


@pytest.mark.parametrize("options", [{}, {"onSuccess": True, "queue": "q"}])
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


def test_publish_too_late(child: Child) -> None:
    child.request("report")
    assert [child.read() for _ in range(3)][-1]["status"] == "ok"
    assert "has ended" in child.ask("publishLate")["result"]
    child.request("publishTwice")
    child.read()
    child.input.close()
    assert child.read()["status"] == "error"
    assert child.end()[:2] == (0, b"")


@pytest.mark.parametrize("task", ["wait", "sleepLong"])
def test_cancel(child: Child, task: str) -> None:
    child.send({"op": "cancel", "id": "unknown", "reason": "revoked"})
    child.request(task)
    child.read()
    child.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert child.read() == {"id": "an-id", "status": "cancelled"}


def test_ping_during_a_task(child: Child) -> None:
    child.request("wait")
    child.read()
    child.send({"op": "ping", "seq": 4})
    assert child.read() == {"op": "pong", "seq": 4}
    for op in ("unknown", "__proto__"):
        child.send({"op": op})
    child.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert child.read()["status"] == "cancelled"


def test_tasks_run_at_once(child: Child) -> None:
    ids = {str(n) for n in range(64)}
    for id in ids:
        child.request("meet", id=id)
    replies = [child.read() for _ in ids]
    assert {reply["id"] for reply in replies} == ids
    assert {reply["result"] for reply in replies} == {64}


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
    child.ask("hear")
    child.request("hold", str(tmp_path / "go"), id="begun")
    assert b"begun" in said.readline()
    child.signal(signal.SIGTERM)
    assert child.process.stderr and child.process.stderr.readline() == b"heard\n"
    child.request("echo", "x" * 1_000_000, id="late")
    (tmp_path / "go").touch()
    replies = {reply.pop("id"): reply for reply in (child.read(), child.read())}
    held = {"status": "ok", "result": "held"}
    assert replies == {"begun": held, "late": RESTART[protocol]}
    assert child.end(eof=False) == (0, b"", "")


def test_sigterm_in_the_middle_of_a_request(child: Child) -> None:
    child.ask("hear")
    child.input.write(b'{"id":"half",')
    child.input.flush()
    child.signal(signal.SIGTERM)
    assert child.process.stderr and child.process.stderr.readline() == b"heard\n"
    child.input.write(b'"payload":{"task":"echo"}}\n')
    child.input.flush()
    assert child.read() == {"id": "half", "status": "restart"}
    assert child.end(eof=False) == (0, b"", "")


def test_sigint_is_ignored(child: Child) -> None:
    child.signal(signal.SIGINT)
    assert child.ask("echo")["status"] == "ok"


def test_the_example(tmp_path: Path) -> None:
    for name in ("linepool.cjs", "linepool.mjs", "example/worker.mjs"):
        shutil.copy(SDK / name, tmp_path)
    child = Child(["node", str(tmp_path / "worker.mjs")])
    assert child.ask("example.add", 1.25, 1, digits=1)["result"] in (2.2, 2.3)
    assert child.ask("example.add", 1, 2)["result"] == 3
    assert child.end() == (0, b"", "")
    child.close()


#: (a check task, its arguments, the lines that it says, all but their id)
CHECKS = [
    ("echo", [1, {}], [{"status": "ok", "result": {"args": [1, {}], "kwargs": {}}}]),
    ("sleep", [0.01], [{"status": "ok", "result": 0.01}]),
    ("end", ["retry", 5], [{"status": "retry", "retry_after_secs": 5}]),
    ("end", ["throttled", 5], [{"status": "throttled", "retry_after_secs": 5}]),
    ("end", ["rejected", 5], [{"status": "rejected", "requeue": False}]),
    ("end", ["ignored", 5], [{"status": "ignored"}]),
    ("stderr", [100_000], [{"status": "ok"}]),
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


def test_require(tmp_path: Path) -> None:
    shutil.copy(SDK / "linepool.cjs", tmp_path)
    (tmp_path / "worker.js").write_text(
        "const { run, task } = require('./linepool.cjs');"
        "task('add', async (context, a, b) => a + b);"
        "run();"
    )
    child = Child(["node", str(tmp_path / "worker.js")])
    assert child.hello and child.hello["inflight"] == 1
    assert child.ask("add", 1, 2)["result"] == 3
    assert child.end() == (0, b"", "")
    child.close()
