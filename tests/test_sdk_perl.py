"""The helper for Perl, over real pipes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from sdk_driver import SDK, Child

pytestmark = pytest.mark.newest_celery

# It is loaded before the helper: its `exit` is the real one.
EARLY = r"""
package Early;
sub leave { exit 5 }
1;
"""

WORKER = r"""
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Early;
use Linepool;
use List::Util qw(first);
use Time::HiRes qw(sleep time);

package Missing {
    sub new { my ($class, %self) = @_; return bless {%self}, $class }
    sub message { $_[0]{message} }
    sub previous_exception { $_[0]{previous} }
}

package Shown {
    use overload '""' => sub { "shown\n" };
}

my $late;

sub deeper { die "no such row\n" }

my %tasks = (
    echo => sub { [$_[0]->args, $_[0]->kwargs] },
    join => sub { my ($job, @all) = @_; join ' ', @all },
    size => sub { length $_[1] },
    big => sub { 'x' x $_[1] },
    nothing => sub { return },
    list => sub { return (1, 2) },
    noisy => sub {
        print "printed\n";
        syswrite STDOUT, "written\n";
        system 'cat; echo from a subprocess';
        return;
    },
    descriptors => sub {
        system 'test ! -e /proc/self/fd/3 && test ! -e /proc/self/fd/4';
    },
    exit => sub { exit 3 },
    'exit caught' => sub { eval { exit }; 'caught' },
    'exit in a callback' => sub { my @x = sort { exit } 2, 1; 'sorted' },
    'exit first' => sub { first { exit } 1 },
    'exit early' => sub { Early::leave() },
    'leave a loop' => sub { no warnings 'exiting'; last },
    die => sub { deeper() },
    'die here' => sub { die 'no such row' },
    object => sub { die bless {}, 'Shown' },
    hash => sub { die {} },
    fail => sub {
        eval { die "no table\n" };
        die Missing->new(
            message  => 'no such row',
            previous => Missing->new(message => 'below zero', previous => $@),
        );
    },
    odd => sub { sub { } },
    nan => sub { [9**9**9 / 9**9**9] },
    infinite => sub { { a => -9**9**9 } },
    'nan text' => sub { [':nan', '[inf,'] },
    'long error' => sub { die 'x' x 1_000_000 },
    end => sub {
        my ($job, $kind, @rest) = @_;
        eval { 1 };
        Linepool->job->$kind(@rest);
    },
    about => sub {
        my ($job) = @_;
        [$job->id, $job->name, $job->retries, $job->deadline, $job->meta->{queue}];
    },
    report => sub {
        my ($job) = @_;
        $late = $job;
        $job->progress(done => 1);
        $job->log('half way', 'warning');
        return;
    },
    late => sub { $late->progress(done => 2); return },
    'late publish' => sub { $late->publish('other') },
    publish => sub {
        my ($job, %options) = @_;
        $job->publish('other', args => [1], kwargs => { a => 2 }, %options);
    },
    wait => sub {
        my ($job) = @_;
        $job->progress;
        while (1) { $job->check; sleep 0.005 }
    },
    reason => sub {
        my ($job) = @_;
        $job->progress;
        sleep 0.005 until $job->cancelled;
        return $job->cancelled;
    },
    hold => sub {
        my ($job, $begun, $end) = @_;
        mkdir $begun;
        until (-e $end) { $job->cancelled; sleep 0.005 }
        return 'held';
    },
    slow => sub {
        my ($job, $seconds) = @_;
        $job->progress;
        for (my $end = time + $seconds; time < $end; sleep 0.01) { }
        return 'slept';
    },
    fork => sub {
        my $pid = fork // die;
        exit 4 if !$pid;
        waitpid $pid, 0;
        return $? >> 8;
    },
    'fork and return' => sub {
        my $pid = fork // die;
        return 'only the parent may reply' if !$pid;
        waitpid $pid, 0;
        return $? >> 8;
    },
    'fork and die' => sub {
        my $pid = fork // die;
        die "in the fork\n" if !$pid;
        waitpid $pid, 0;
        return $? >> 8;
    },
);
Linepool->task($_ => $tasks{$_}) for keys %tasks;
Linepool->run;
"""

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: List[Child] = []
    (tmp_path / "worker.pl").write_text(WORKER)
    (tmp_path / "Early.pm").write_text(EARLY)
    shutil.copy(SDK / "Linepool.pm", tmp_path)

    def start_one(**options: Any) -> Child:
        children.append(Child(["perl", str(tmp_path / "worker.pl")], **options))
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
    assert child.hello["language"] == "perl"
    assert child.hello.get("inflight", 1) == 1
    assert "echo" in child.hello["tasks"]
    assert not any(name.startswith("linepool.") for name in child.hello["tasks"])
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
    [
        {},
        [],
        2**63,
        2**80,
        -(2**80),
        1.0,
        0.1,
        True,
        None,
        "",
        "10",
        "\u2028\u2029\u0085",
        "\U0001f600",
        "a\nb",
        {"a": []},
    ],
)
def test_values_come_back_as_they_were(child: Child, value: Any) -> None:
    reply = child.ask("echo", value, key=value)
    assert reply == {"status": "ok", "result": [[value], {"key": value}]}
    assert type(reply["result"][0][0]) is type(value) or value == 1.0


def test_deep_values(child: Child) -> None:
    value: Any = []
    for _ in range(400):
        value = [value]
    assert child.ask("echo", value)["result"] == [[value], {}]
    assert child.end()[2] == ""


def test_keyword_arguments_come_behind(child: Child) -> None:
    assert child.ask("join", 1, "b", c="d")["result"] == "1 b c d"


def test_a_task_is_called_in_scalar_context(child: Child) -> None:
    assert child.ask("nothing")["result"] is None
    assert child.ask("list")["result"] == 2


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
    child = start(LINEPOOL_MAX_LINE="100000")
    error = child.ask("big", 100_000)
    assert error["status"] == "error" and "100000" in error["message"]
    assert child.ask("big", 99_000)["status"] == "ok"
    error = child.ask("long error")
    assert error["status"] == "error" and len(error["message"]) == 65_536


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_what_is_printed_is_no_line(start: Start, channel: str) -> None:
    child = start(channel=channel)
    assert child.ask("noisy")["status"] == "ok"
    assert child.ask("echo")["status"] == "ok"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    if channel == "stdio":
        assert stderr == "printed\nwritten\nfrom a subprocess\n"


def test_a_subprocess_has_no_channel(start: Start) -> None:
    assert start(channel="fd").ask("descriptors")["result"] == 0


def test_an_error_has_its_causes(child: Child) -> None:
    error = child.ask("fail")
    assert (error["status"], error["type"]) == ("error", "Missing")
    assert error["message"] == "no such row"
    assert error["backtrace"][-2:] == [
        "caused by Missing: below zero",
        "caused by die: no table",
    ]


def test_an_error_has_a_backtrace(child: Child) -> None:
    error = child.ask("die")
    assert (error["type"], error["message"]) == ("die", "no such row")
    assert error["backtrace"][0].startswith("died at ")
    assert error["backtrace"][1].startswith("main::deeper called at ")
    assert not any("Linepool.pm" in line for line in error["backtrace"])
    error = child.ask("die here")
    assert error["message"].startswith("no such row at ")


@pytest.mark.parametrize(
    "task, type, message",
    [
        ("exit", "exit", "exit(3) in a task"),
        ("exit caught", "exit", "exit(0) in a task"),
        ("exit in a callback", "die", "exit(0) in a task, and in a callback"),
        ("exit first", "die", "exit(0) in a task, and in a callback"),
        ("leave a loop", "exit", "a loop control left the task"),
        ("object", "Shown", "shown"),
        ("hash", "HASH", "HASH"),
        ("odd", "die", "CODE"),
        ("nan", "die", ""),
        ("infinite", "die", ""),
        ("nope", "die", "unknown task nope"),
    ],
)
def test_an_error_ends_its_task_only(
    child: Child, task: str, type: str, message: str
) -> None:
    error = child.ask(task)
    assert (error["status"], error["type"]) == ("error", type)
    assert message in error["message"]
    assert child.ask("echo")["status"] == "ok"


def test_what_looks_like_nan(child: Child) -> None:
    assert child.ask("nan text")["result"] == [":nan", "[inf,"]


def test_an_exit_that_cannot_be_caught_loses_no_reply(child: Child) -> None:
    assert child.ask("exit early")["type"] == "exit"
    assert child.end(eof=False) == (5, b"", "")


@pytest.mark.parametrize(
    "args, reply",
    [
        (["retry"], {"status": "retry"}),
        (["retry", "m"], {"status": "retry", "message": "m"}),
        (["retry", None, "after", "5"], {"status": "retry", "retry_after_secs": 5}),
        (["throttle"], {"status": "throttled", "retry_after_secs": 60}),
        (["throttle", 0.5], {"status": "throttled", "retry_after_secs": 0.5}),
        (["reject"], {"status": "rejected", "requeue": False}),
        (["reject", "requeue", 1], {"status": "rejected", "requeue": True}),
        (["ignore"], {"status": "ignored"}),
    ],
)
def test_other_outcomes(child: Child, args: List[Any], reply: Any) -> None:
    assert child.ask("end", *args) == reply


def test_context(child: Child) -> None:
    meta = {"retries": 2, "deadline": 7.5, "queue": "q"}
    reply = child.ask("about", id="x", meta=meta)
    assert reply["result"] == ["x", "about", 2, 7.5, "q"]
    assert child.ask("about", meta={})["result"][2:] == [0, None, None]


def test_events_come_before_the_reply_only(child: Child) -> None:
    child.request("report")
    progress = {"op": "progress", "id": "an-id", "meta": {"done": 1}}
    log = {"op": "log", "id": "an-id", "level": "warning", "message": "half way"}
    assert [child.read(), child.read()] == [progress, log]
    assert child.read()["status"] == "ok"
    assert child.ask("late", id="another")["status"] == "ok"
    assert "not published" in child.ask("late publish", id="another")["message"]


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
    assert child.read()["message"] == "not published: no broker"
    child.request("publish")
    child.read()
    child.input.close()
    assert child.read()["status"] == "error"
    assert child.end()[:2] == (0, b"")


def test_cancel(child: Child) -> None:
    child.send({"op": "cancel", "id": "unknown", "reason": "revoked"})
    child.request("wait")
    child.read()
    child.send({"op": "unknown"})
    child.send({"op": "cancel", "id": "another", "reason": "revoked"})
    child.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert child.read() == {"id": "an-id", "status": "cancelled"}
    child.request("reason")
    child.read()
    child.send({"op": "cancel", "id": "an-id", "reason": "shutdown"})
    assert child.read()["result"] == "shutdown"


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
    begun, end = tmp_path / "begun", tmp_path / "end"
    child.request("hold", str(begun), str(end), id="begun")
    while not begun.exists():
        time.sleep(0.01)
    for id in ("not begun", "nor this"):
        child.request("nothing", id=id)
    child.signal(signal.SIGTERM)
    end.touch()
    assert child.read() == {"id": "begun", "status": "ok", "result": "held"}
    assert child.read() == {"id": "not begun", **reply}
    assert child.read() == {"id": "nor this", **reply}
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


def test_a_fork_does_not_reply(child: Child) -> None:
    assert child.ask("fork")["result"] == 4
    assert child.ask("fork and return")["result"] == 0
    assert child.ask("fork and die")["result"] == 1
    assert child.end() == (0, b"", "in the fork\n")


@pytest.fixture
def checked(start: Start) -> Child:
    return start(LINEPOOL_CHECK=str(SDK / "check"))


META = {"retries": 2, "deadline": 4e9 + 0.5}


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
        ("exit", [4], {}, {"status": "error", "type": "exit"}),
        ("end", ["retry", 1.5], {}, {"status": "retry", "retry_after_secs": 1.5}),
        ("end", ["throttled", 2], {}, {"status": "throttled", "retry_after_secs": 2}),
        ("end", ["rejected", 0], {}, {"status": "rejected", "requeue": False}),
        ("end", ["ignored", 0], {}, {"status": "ignored"}),
        ("print", ["a téxt"], {}, {"result": None}),
        ("stderr", [50_000], {}, {"result": None}),
        ("big", [100_000], {}, {"result": "x" * 100_000}),
        (
            "context",
            [],
            {"meta": META},
            {"result": {"id": "an-id", **META}},
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
    got = checked.ask(f"linepool.check.{task}", *args, **kwargs)
    if task == "exit":
        assert got.pop("message") and not got.pop("backtrace", None)
    assert got == {"status": "ok", **reply}
    assert checked.ask("echo")["status"] == "ok"
    code, rest, stderr = checked.end()
    assert (code, rest) == (0, b"")
    said = {"print": "a téxt\na téxt\n", "stderr": "x" * 50_000}
    assert stderr == said.get(task, "")


def test_check_fail(checked: Child) -> None:
    error = checked.ask("linepool.check.fail", "oh")
    assert error.pop("backtrace")[-1] == "caused by Linepool::Check::Error: the cause"
    expected = {"status": "error", "type": "Linepool::Check::Error", "message": "oh"}
    assert error == expected


def test_check_sleep_that_is_cancelled(checked: Child) -> None:
    checked.request("linepool.check.sleep", 1000)
    checked.send({"op": "cancel", "id": "an-id", "reason": "revoked"})
    assert checked.read() == {"id": "an-id", "status": "cancelled"}


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
    assert event == {**expected, "kwargs": {}, "options": {}, "when": when}
    checked.send({"op": "answer", "id": "an-id", "seq": seq, "task_id": "new"})
    assert checked.read()["result"] == "new"


def test_check_spawn(checked: Child) -> None:
    pid = checked.ask("linepool.check.spawn")["result"]
    child_of = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    assert int(child_of) == checked.process.pid
    os.kill(pid, signal.SIGKILL)


def test_the_example(tmp_path: Path) -> None:
    for name in ("Linepool.pm", "example/worker.pl"):
        shutil.copy(SDK / name, tmp_path)
    child = Child(["perl", str(tmp_path / "worker.pl")])
    assert child.ask("example.add", 1.25, 1, round_to=1)["result"] == 2.2
    assert child.ask("example.add", 1, 2)["result"] == 3
    assert child.end() == (0, b"", "")
    child.close()
