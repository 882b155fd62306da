"""The helper for shells, over real pipes."""

from __future__ import annotations

import array
import fcntl
import json
import os
import shutil
import signal
import termios
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from sdk_driver import SDK, Child

pytestmark = pytest.mark.newest_celery

WORKER = r"""
set -eu
. "$(dirname "$0")/linepool.sh"

state=unchanged

show() {
    linepool_return "$(for word; do linepool_string "$word"; done | paste -sd, |
        sed 's/.*/[&]/')"
}
keys() { printf '%s|%s|%s' "${kw_key-none}" "${kw_a1-none}" "${kw_PATH-none}"; }
echo_() { linepool_return "{\"args\":$linepool_args,\"kwargs\":$linepool_kwargs}"; }
size() { echo ${#1}; }
big() { printf "%${1}s" '' | tr ' ' x; }
noisy() {
    echo "to stderr" >&2
    echo "to the old stdout" >&5
    sh -c 'cat; echo from a subprocess'
}
change() { state=changed kw_key=left; }
state() { echo "$state ${kw_key-none}"; }
lines() { printf 'a\n\n"b\\"\t\001\n\n'; }
latin() { printf 'caf\351 \303\251'; }
early() { false; echo 'not reached'; }
unset_() { echo "$no_such_variable"; }
fail() { seq 1 20 >&2; echo 'no such row' >&2; return 3; }
silent() { return 4; }
leave() { echo said; exit "$1"; }
long_error() { printf "%50000s\n" '' | tr ' ' x >&2; return 1; }
killed() { sh -c 'kill -9 $PPID'; }
no_json() { linepool_return "$1"; }
no_outcome() { linepool_throttle "$1"; }
pretty() {
    linepool_return '{
        "a": [1,
              2.5e-3, "x\ny\u00e9\"\\"]
    }'
}
no_event() {
    linepool_progress "$1" || echo "refused"
}
printed_before() { echo before; linepool_return '"after"'; }
in_a_pipe() { echo x | while read -r _; do linepool_retry 5; done; }
about() {
    linepool_return "[$(linepool_string "$linepool_id"),
        $(linepool_string "$linepool_name"),
        $linepool_retries,\"$linepool_deadline\",$linepool_meta]"
}
report() {
    linepool_progress '{"done": 1}'
    linepool_log warning 'half "way"'
}
publish() { linepool_publish "$@"; }
publish_and_tell() {
    one=$(linepool_publish now one)
    two=$(linepool_publish now two)
    echo "$one $two $linepool_retries $linepool_deadline $linepool_name"
}
slow() {
    linepool_progress '{}'
    sleep "$1"
    echo slept
}
hold() {
    : >"$1"
    until [ -e "$2" ]; do sleep 0.02 || :; done
    echo held
}
leave_behind() {
    sleep 1000 >/dev/null 2>&1 3<&- 4>&- &
    echo $!
}
inherited() {
    sh -c 'kill -TERM $$; echo survived' || echo $?
    sh -c 'kill -INT $$; echo survived' || echo $?
}

for command in show keys size big noisy change state lines latin early fail silent \
    leave long_error killed no_json no_outcome pretty no_event printed_before \
    in_a_pipe about report publish publish_and_tell slow hold leave_behind inherited
do
    linepool_task "$command" "$command"
done
linepool_task echo echo_
linepool_task unset unset_
linepool_task 'a "name" é' state
linepool_task command printf
linepool_task retry linepool_retry
linepool_task throttle linepool_throttle
linepool_task reject linepool_reject
linepool_task ignore linepool_ignore
linepool_run
"""

Start = Callable[..., Child]


@pytest.fixture(params=["dash", "bash"])
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(shell: str, tmp_path: Path) -> Iterator[Start]:
    children: List[Child] = []
    (tmp_path / "worker.sh").write_text(WORKER)
    shutil.copy(SDK / "linepool.sh", tmp_path)

    def start_one(**options: Any) -> Child:
        # No shell can trap what was ignored when it began, as in a job of `pytest &`.
        command = ["env", "--default-signal", shell, str(tmp_path / "worker.sh")]
        children.append(Child(command, **options))
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
    assert child.hello["language"] == "sh"
    assert child.hello.get("inflight", 1) == 1
    assert {"echo", 'a "name" é'} <= set(child.hello["tasks"])
    assert not any(name.startswith("linepool.") for name in child.hello["tasks"])
    assert "features" not in child.hello


def test_no_hello_and_no_events_in_the_original_protocol(start: Start) -> None:
    child = start(protocol=1)
    assert child.ask("report") == {"status": "ok"}
    assert child.ask("publish", "now", "other")["status"] == "error"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    assert "warning: half" in stderr


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        2**80,
        -1.5e300,
        1.0,
        None,
        True,
        "",
        "\u2028\u2029\u0085",
        "\U0001f600",
        "a\nb",
        "\\\"'`$x\t\x01",
        {"a": [], 'b"\\': "c\\"},
        [[1, [2, ["]", "}"]]], {"": {"": {"": 0}}}],
    ],
)
def test_values_come_back_as_they_were(child: Child, value: Any) -> None:
    reply = child.ask("echo", value, key=value)
    assert reply["result"] == {"args": [value], "kwargs": {"key": value}}


@pytest.mark.parametrize(
    "value, seen",
    [
        ("a string", "a string"),
        ("", ""),
        ("it's '\" $x `ls` \\ \\\\ \\n *", "it's '\" $x `ls` \\ \\\\ \\n *"),
        ("a\n\tb\r\b\f\x1f\x7f", "a\n\tb\r\b\f\x1f\x7f"),
        ("é\u2028\u0085\ud7ff\ue000\uffff", "é\u2028\u0085\ud7ff\ue000\uffff"),
        ("\U0001f600\U0010ffff", "\U0001f600\U0010ffff"),
        ("a\n\n", "a\n\n"),
        ("NUL\0.", "NUL."),
        (42, "42"),
        (2**80, str(2**80)),
        (True, "true"),
        (None, "null"),
        ({"a": [1, "b c"]}, '{"a": [1, "b c"]}'),
    ],
)
def test_parameters(child: Child, value: Any, seen: str) -> None:
    assert child.ask("show", value, "next")["result"] == [seen, "next"]


def test_escapes(child: Child) -> None:
    """Every way to write a character."""
    child.input.write(
        rb'{"id": "\u0061n-id", "payload": {"task": "sh\u006fw", "kwargs": {}, "args":'
        rb' ["\u00e9\u20AC\ud83d\uDE00", "\/\"\\u\\\\\u0041", "\ud83dx", "\uDE00"]}}'
        b"\r\n"
    )
    child.input.flush()
    result = ["é€\U0001f600", '/"\\u\\\\A', "\ufffdx", "\ufffd"]
    assert child.read() == {"id": "an-id", "status": "ok", "result": result}


def test_keyword_arguments(child: Child) -> None:
    reply = child.ask("keys", key="it's", a1=[1], PATH="/", **{"no-name": 1, "a/b": 2})
    assert reply["result"] == "it's|[1]|/"
    assert child.ask("keys")["result"] == "none|none|none"


def test_what_a_task_sets_is_gone_when_it_ends(child: Child) -> None:
    assert child.ask("change", key="x") == {"status": "ok"}
    assert child.ask("state")["result"] == "unchanged none"
    assert child.ask('a "name" é')["result"] == "unchanged none"


def test_results(child: Child) -> None:
    assert child.ask("lines")["result"] == 'a\n\n"b\\"\t\x01'
    assert child.ask("latin")["result"] == "caf\xe9 \xc3\xa9"
    assert child.ask("pretty")["result"] == {"a": [1, 0.0025, 'x\nyé"\\']}
    assert child.ask("printed_before")["result"] == "after"
    assert child.ask("command", "%s-%s", 1, "b")["result"] == "1-b"


@pytest.mark.parametrize("id", ["\u2028", '"', "\\", "é", "\U0001f600", "'", "\0\n"])
def test_any_id(child: Child, id: str) -> None:
    assert child.ask("echo", id=id)["status"] == "ok"


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_long_lines(start: Start, channel: str) -> None:
    child = start(channel=channel)
    assert child.ask("size", "x" * 300_000)["result"] == "300000"
    assert len(child.ask("show", "é\n" * 50_000)["result"][0]) == 100_000
    child.request("big", 300_000)
    child.input.close()
    assert child.read()["result"] == "x" * 300_000
    assert child.end()[:2] == (0, b"")


def test_a_reply_over_the_limit_is_an_error(start: Start) -> None:
    child = start(LINEPOOL_MAX_LINE="20000")
    error = child.ask("big", 20_000)
    assert error["status"] == "error" and "20000" in error["message"]
    assert child.ask("big", 19_000)["status"] == "ok"
    error = child.ask("long_error")
    assert error["status"] == "error" and set(error["message"]) == {"x"}


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_what_is_printed_is_no_line(start: Start, tmp_path: Path, channel: str) -> None:
    worker = tmp_path / "worker.sh"
    worker.write_text(
        worker.read_text().replace("state=un", "exec 5>&1\necho loud\nstate=un")
    )
    child = start(channel=channel)
    assert child.ask("noisy")["result"] == "from a subprocess"
    assert child.ask("state")["status"] == "ok"
    code, rest, stderr = child.end()
    assert (code, rest) == (0, b"")
    if channel == "stdio":
        said = ["loud", "to stderr", "to the old stdout"]
        assert sorted(stderr.splitlines()) == sorted(said)


@pytest.mark.parametrize(
    "task, args, type, message",
    [
        ("fail", [], "exit 3", "\n".join(map(str, range(13, 21))) + "\nno such row"),
        ("silent", [], "exit 4", "exit 4"),
        ("leave", [5], "exit 5", "exit 5"),
        ("early", [], "exit 1", "exit 1"),
        ("unset", [], None, "no_such_variable"),
        ("killed", [], "exit 137", ""),
        ("nope", [], None, "unknown task nope"),
        ("no_json", ["{"], None, "no JSON"),
        ("no_json", ['{"a" 1}'], None, "no JSON"),
        ("no_json", ["[1,]"], None, "no JSON"),
        ("no_json", ["01"], None, "no JSON"),
        ("no_json", ['"\\x"'], None, "no JSON"),
        ("no_json", ['"a'], None, "no JSON"),
        ("no_json", ["1},{"], None, "no JSON"),
        ("no_json", ["nul"], None, "no JSON"),
        ("no_json", [""], None, "no JSON"),
        ("no_outcome", ["soon"], None, "no JSON"),
    ],
)
def test_an_error_ends_its_task_only(
    child: Child, task: str, args: List[Any], type: Any, message: str
) -> None:
    error = child.ask(task, *args)
    assert error["status"] == "error" and error["type"].startswith("exit ")
    assert type in (None, error["type"])
    assert message in error["message"]
    if task == "fail":
        assert error["message"] == message
    assert child.ask("state")["status"] == "ok"


def test_an_exit_with_0_is_a_result(child: Child) -> None:
    assert child.ask("leave", 0) == {"status": "ok", "result": "said"}


@pytest.mark.parametrize(
    "kind, args, reply",
    [
        ("retry", [], {"status": "retry", "retry_after_secs": None, "message": ""}),
        (
            "retry",
            [1.5, 'a "b"'],
            {"status": "retry", "retry_after_secs": 1.5, "message": 'a "b"'},
        ),
        (
            "in_a_pipe",
            [],
            {"status": "retry", "retry_after_secs": 5, "message": ""},
        ),
        ("throttle", [], {"status": "throttled", "retry_after_secs": 60}),
        ("throttle", [7], {"status": "throttled", "retry_after_secs": 7}),
        ("reject", [], {"status": "rejected", "requeue": False}),
        ("reject", [True], {"status": "rejected", "requeue": True}),
        ("ignore", [], {"status": "ignored"}),
    ],
)
def test_other_outcomes(child: Child, kind: str, args: List[Any], reply: Any) -> None:
    assert child.ask(kind, *args) == reply


def test_context(child: Child) -> None:
    meta = {"retries": 2, "deadline": 7.5, "queue": "q"}
    reply = child.ask("about", id="x", meta=meta)
    assert reply["result"] == ["x", "about", 2, "7.5", meta]
    assert child.ask("about", meta={})["result"][2:] == [0, "", {}]


def test_events_come_before_the_reply(child: Child) -> None:
    child.request("report")
    progress = {"op": "progress", "id": "an-id", "meta": {"done": 1}}
    log = {"op": "log", "id": "an-id", "level": "warning", "message": 'half "way"'}
    assert [child.read(), child.read()] == [progress, log]
    assert child.read()["status"] == "ok"


def test_an_event_that_is_no_json_is_refused(child: Child) -> None:
    assert child.ask("no_event", '{"done": }')["result"] == "refused"


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ([], {"args": [], "kwargs": {}, "options": {}}),
        (
            ["[1]", '{"a": 2}', '{"queue": "q"}'],
            {"args": [1], "kwargs": {"a": 2}, "options": {"queue": "q"}},
        ),
    ],
)
@pytest.mark.parametrize("when", ["now", "success"])
def test_publish(child: Child, when: str, args: List[str], kwargs: Any) -> None:
    child.request("publish", when, "other", *args)
    event = child.read()
    seq = event.pop("seq")
    expected = {"op": "publish", "id": "an-id", "task": "other", "when": when}
    assert event == {**expected, **kwargs}
    child.send({"op": "answer", "id": "an-id", "seq": seq + 1, "task_id": "stale"})
    child.send({"op": "answer", "id": "an-id", "seq": seq, "task_id": "new"})
    assert child.read() == {"id": "an-id", "status": "ok", "result": "new"}


def test_two_publishes(child: Child) -> None:
    child.request("publish_and_tell", meta={"retries": 2, "deadline": 7.5})
    seqs = []
    for id in ("first", "second"):
        seqs.append(child.read()["seq"])
        child.send({"op": "answer", "id": "an-id", "seq": seqs[-1], "task_id": id})
    assert child.read()["result"] == "first second 2 7.5 publish_and_tell"
    assert seqs[0] != seqs[1]


def test_publish_that_fails(child: Child) -> None:
    child.request("publish", "now", "other")
    seq = child.read()["seq"]
    child.send({"op": "answer", "id": "an-id", "seq": seq, "error": "no broker"})
    assert child.read()["message"] == "not published: no broker"
    child.request("publish", "now", "other")
    seq = child.read()["seq"]
    child.send({"op": "answer", "id": "an-id", "seq": seq + 1, "task_id": "stale"})
    child.input.close()
    assert child.read()["message"] == "not published: the channel has ended"
    assert child.end()[:2] == (0, b"")


def test_what_it_does_not_know(child: Child) -> None:
    child.send({"op": "unknown", "id": "an-id"})
    child.input.write(b"{no JSON}\n")
    child.send({"op": "answer", "id": "an-id", "seq": 7, "task_id": "stray"})
    assert child.ask("state")["status"] == "ok"


def test_ends_with_its_channel_while_idle(child: Child) -> None:
    assert child.end() == (0, b"", "")


def test_sigterm_while_idle(child: Child) -> None:
    while child.process.poll() is None:  # it may miss one, right before it reads
        child.signal(signal.SIGTERM)
        time.sleep(0.05)
    assert child.end(eof=False) == (0, b"", "")


@pytest.mark.parametrize("how", ["term", "term the group", "int the group", "eof"])
def test_finishes_what_it_has_begun(child: Child, tmp_path: Path, how: str) -> None:
    begun, end = tmp_path / "begun", tmp_path / "end"
    child.request("hold", str(begun), str(end))
    wait_for(begun)
    if how == "term":
        child.signal(signal.SIGTERM)
    elif how == "term the group":
        os.killpg(child.process.pid, signal.SIGTERM)
    elif how == "int the group":
        os.killpg(child.process.pid, signal.SIGINT)
        child.input.close()
    else:
        child.input.close()
    end.touch()
    assert child.read() == {"id": "an-id", "status": "ok", "result": "held"}
    assert child.end(eof=False)[:2] == (0, b"")


AWK = """
#!/bin/sh
case "$*" in *mode=parse*)
    if mkdir "$FOLDER/parsing"; then
        until [ -e "$FOLDER/go-on" ]; do sleep 0.02; done
    fi 2>/dev/null
esac
exec "$AWK" "$@"
"""


@pytest.mark.parametrize(
    "protocol, reply",
    [(2, {"status": "restart"}), (1, {"status": "throttled", "retry_after_secs": 0})],
)
def test_what_it_has_not_begun(
    start: Start, tmp_path: Path, protocol: int, reply: Any
) -> None:
    """SIGTERM comes while it looks at what it has read."""
    awk = tmp_path / "awk"
    awk.write_text(AWK.lstrip())
    awk.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path)}
    child = start(protocol=protocol, AWK=str(shutil.which("awk")), **env)
    child.request("state")
    wait_for(tmp_path / "parsing")
    child.signal(signal.SIGTERM)
    (tmp_path / "go-on").touch()
    assert child.read() == {"id": "an-id", **reply}
    assert child.end(eof=False) == (0, b"", "")


def test_a_line_that_comes_in_two(child: Child) -> None:
    """A signal in between tears nothing."""
    line = json.dumps({"id": "an-id", "payload": {"task": "state", "meta": {}}})
    child.input.write(line[:20].encode())
    child.input.flush()
    while unread(child):
        time.sleep(0.01)
    child.signal(signal.SIGINT)
    child.input.write(f"{line[20:]}\n".encode())
    child.input.flush()
    assert child.read()["status"] == "ok"


def unread(child: Child) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(child.input.fileno(), termios.FIONREAD, size)
    return size[0]


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def test_answers_are_heard_after_sigterm(child: Child) -> None:
    child.request("publish", "now", "other")
    seq = child.read()["seq"]
    child.signal(signal.SIGTERM)
    child.send({"op": "answer", "id": "an-id", "seq": seq, "task_id": "new"})
    assert child.read()["result"] == "new"
    assert child.end(eof=False) == (0, b"", "")


def test_sigint_is_ignored(child: Child) -> None:
    child.signal(signal.SIGINT)
    assert child.ask("state")["status"] == "ok"
    child.request("slow", 0.1)
    child.read()
    child.signal(signal.SIGINT)
    assert child.read()["result"] == "slept"


def test_commands_do_not_ignore_signals(child: Child) -> None:
    assert child.ask("inherited")["result"] == "143\n130"


def test_what_a_task_leaves_behind(child: Child) -> None:
    pid = int(child.ask("leave_behind")["result"])
    assert child.ask("state")["status"] == "ok"
    assert child.end() == (0, b"", "")
    os.kill(pid, signal.SIGKILL)


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
        (
            "fail",
            ["oh"],
            {},
            {"status": "error", "type": "exit 1", "message": "the cause\noh"},
        ),
        (
            "exit",
            [4],
            {},
            {"status": "error", "type": "exit 4", "message": "exit 4"},
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
        ("print", ["a téxt"], {}, {"result": "a téxt\na téxt"}),
        ("stderr", [50_000], {}, {}),
        ("big", [100_000], {}, {"result": "x" * 100_000}),
        ("context", [], {"meta": META}, {"result": {"id": "an-id", **META}}),
        (
            "context",
            [],
            {"meta": {}},
            {"result": {"id": "an-id", "retries": 0, "deadline": None}},
        ),
    ],
)
def test_check(
    checked: Child, task: str, args: List[Any], kwargs: Any, reply: Any
) -> None:
    assert checked.hello and f"linepool.check.{task}" in checked.hello["tasks"]
    got = checked.ask(f"linepool.check.{task}", *args, **kwargs)
    assert got == {"status": "ok", **reply}
    assert checked.ask("state")["status"] == "ok"
    code, rest, stderr = checked.end()
    assert (code, rest) == (0, b"")
    said = {"fail": "the cause\noh\n", "stderr": "x" * 50_000}
    assert stderr == said.get(task, "")


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
    with open(f"/proc/{pid}/cmdline") as cmdline:
        assert cmdline.read() == "sleep\x0030\x00"
    os.kill(pid, signal.SIGKILL)


def test_the_example(shell: str, tmp_path: Path) -> None:
    for name in ("linepool.sh", "example/worker.sh"):
        shutil.copy(SDK / name, tmp_path)
    child = Child([shell, str(tmp_path / "worker.sh")])
    assert child.ask("example.add", 1, 2)["result"] == "3"
    assert child.ask("example.add", 1, 2, times=7)["result"] == "21"
    assert child.end() == (0, b"", "")
    child.close()
