"""Every row of the protocol: a real worker, a real broker, real children.

Each child in ``children`` that misbehaves does so in one way. Many of them run in one
worker, each in a pool that has the name of its file, as the task that it serves has.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import uuid
from decimal import Decimal
from pathlib import Path

import celery
import psutil
import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import chain, chord, group
from events import Events
from workers import LINEPOOL, eventually

from celery_linepool import ForeignError
from celery_linepool.errors import RemoteProtocolError, RequestError

CHILDREN = Path(__file__).parent / "children"
PROGRAMS = {".js": "node", ".php": "php", ".pl": "perl", ".rb": "ruby", ".sh": "sh"}
MIB = 1 << 20
#: Of everything that JSON must not change on its way, and more than one of a kind.
STRANGE = 'a"b\\c/\n\r\t\u2028\u2029\u0085 \u00e9 \U0001f600'


def command(child):
    path = CHILDREN / child
    return [PROGRAMS[path.suffix], str(path)]


def pools(*children, **options):
    """``linepool_pools`` with a pool of one child for each of these files."""
    return {
        child: {"command": command(child), "tasks": [child], "size": 1, **options}
        for child in children
    }


class Script:
    """What a scripted child replies at each run of a task, and what it was told."""

    def __init__(self, path, *replies):
        self.path = path
        self.kwargs = {"runs": str(path), "replies": list(replies)}

    @property
    def metas(self):
        """The ``meta`` of every run so far."""
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def told(self, key):
        return [meta.get(key) for meta in self.metas]


@pytest.fixture
def script(tmp_path):
    return lambda *replies: Script(tmp_path / f"runs-{uuid.uuid4().hex}", *replies)


@pytest.fixture
def marks(tmp_path):
    """Gives each name a path; a child that finds a file there behaves well."""

    def mark(name, exists=False):
        path = tmp_path / f"mark-{name}"
        if exists:
            path.touch()
        return str(path)

    return mark


def failure(worker, result, expected):
    """The text of the exception that the caller gets."""
    with pytest.raises(expected) as caught:
        worker.result(result)
    assert type(caught.value) is expected
    return str(caught.value)


def pid_in(text):
    return int(re.search(r"child pid (\d+) of pool", text).group(1))


def grandchild_in(text):
    return int(re.search(r"grandchild (\d+)", text).group(1))


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children_of(worker, pool):
    """What ``inspect stats`` says of the children of a pool."""
    return worker.inspect("stats")["pool"]["pools"][pool]["children"]


def told_pids(worker, pool):
    return [child["pid"] for child in children_of(worker, pool)]


# --- ok


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**53 + 1,
    -(2**63),
    2**64,
    10**40,
    0.1,
    -1.5e300,
    "",
    STRANGE,
    "\u0000",
    [],
    {},
    [[[]], {"": None}, [1, "1", 1.5, None, True]],
    {"ключ": {STRANGE: [{"deep": [[[[{"er": 2**70}]]]]}]}},
]


def test_ok(start_worker):
    children = ["first_argument.rb", "no_result.sh", "no_id.php"]
    worker = start_worker(conf={"linepool_pools": pools(*children)})

    results = [worker.send("first_argument.rb", value) for value in VALUES]
    values = [worker.result(result) for result in results]
    # As text: to Python 1, 1.0 and True are the same.
    assert list(map(json.dumps, values)) == list(map(json.dumps, VALUES))
    assert {result.state for result in results} == {"SUCCESS"}

    result = worker.send("no_result.sh")
    assert worker.result(result) is None
    assert result.state == "SUCCESS"

    # The same child goes on: nothing was wrong.
    assert worker.call("no_id.php") == worker.call("no_id.php")

    for task_id in ('with "quotes"', "with\nnewlines\r\n", STRANGE):
        result = worker.send("first_argument.rb", task_id, task_id=task_id)
        assert result.id == task_id
        assert worker.result(result) == task_id


# --- error


ERRBACK = """
    import json

    @app.task
    def errback(request, exc, traceback):
        said = [request.id, type(exc).__name__, str(exc), str(traceback)]
        with open("errbacks", "a") as file:
            file.write(json.dumps(said) + "\\n")
"""


def errbacks(worker):
    """What the errback was called with, by the id of the task; it may not repeat."""
    path = worker.project.folder / "errbacks"
    lines = path.read_text().splitlines() if path.exists() else []
    calls = {id_: said for id_, *said in map(json.loads, lines)}
    assert len(calls) == len(lines)
    return calls


def failed_event(worker, send):
    """Send a task that fails; its result and the event that Flower would show."""
    with Events(worker.app) as events:
        result = send()
        events.wait("task-failed", result.id)
    [event] = [e for e in events.of_tasks() if e["type"] == "task-failed"]
    return result, event


def test_error(start_worker, script):
    worker = start_worker(
        conf={"linepool_pools": pools("scripted.rb", "scripted.js")},
        tasks=ERRBACK,
        args=["-E"],
    )
    error = {
        "status": "error",
        "message": "no such invoice: 42\nnor 43",
        "type": "Billing::NotFound",
        "backtrace": ["billing.rb:12:in `charge'", "worker.rb:9:in `call'"],
    }
    whole = script(error)
    result, event = failed_event(
        worker,
        lambda: worker.send(
            "scripted.rb",
            kwargs=whole.kwargs,
            link_error=worker.app.signature("proj.errback"),
        ),
    )

    with pytest.raises(ForeignError) as caught:
        worker.result(result)
    assert caught.value.foreign_type == "Billing::NotFound"
    assert caught.value.message == error["message"]
    assert caught.value.backtrace == error["backtrace"]
    assert result.state == "FAILURE"
    assert len(whole.metas) == 1

    logged = worker.wait_for_log(r"Task scripted\.rb\[.*\] raised unexpected")
    called = eventually(lambda: errbacks(worker))
    assert list(called) == [result.id]
    class_, message, traceback = called[result.id]
    assert class_ == "ForeignError"
    for shown in (
        result.traceback,
        worker.log[logged.start() :],
        event["exception"] + event["traceback"],
        message,
        traceback,
    ):
        for part in ("Billing::NotFound", "no such invoice: 42", *error["backtrace"]):
            assert part in shown
    # The headline of Flower's page, without the backtrace.
    assert "Billing::NotFound: no such invoice: 42" in event["exception"]

    for fields, message, type_ in [
        ({}, "the child gave no message", None),
        ({"message": "out of ink"}, "out of ink", None),
        ({"type": "TypeError"}, "no message", "TypeError"),
        ({"message": {"code": 7}}, '{"code":7}', None),
        ({"message": "", "type": None, "backtrace": None}, None, None),
    ]:
        asked = script({"status": "error", **fields})
        with pytest.raises(ForeignError, match=re.escape(message or "no message")) as e:
            worker.call("scripted.js", kwargs=asked.kwargs)
        assert e.value.foreign_type == type_


def test_a_failure_without_a_reply_is_told_once(start_worker, marks):
    failures = {
        "prints.sh": "RemoteProtocolError",
        "half_a_reply.php": "WorkerLostError",
    }
    worker = start_worker(
        conf={"linepool_pools": pools(*failures)}, tasks=ERRBACK, args=["-E"]
    )
    told = {}
    for child, class_ in failures.items():
        path = marks(child)
        result, event = failed_event(
            worker,
            lambda: worker.send(
                child, path, link_error=worker.app.signature("proj.errback")
            ),
        )
        told[result.id] = class_
        assert class_ in event["exception"]
        assert child in event["exception"]
        assert child in event["traceback"]
        assert child in str(worker.result(result, propagate=False))
    assert worker.stop() == 0
    called = {id_: said[0] for id_, said in errbacks(worker).items()}
    assert called == told


# --- throttled


def throttled(seconds):
    return {"status": "throttled", "retry_after_secs": seconds}


def ok(result):
    return {"status": "ok", "result": result}


def test_throttled(start_worker, script):
    worker = start_worker(
        conf={
            "linepool_pools": pools("scripted.rb", "scripted.js", "scripted.pl"),
            "task_annotations": {"*": {"max_retries": 0}},
        }
    )

    # Five times, and not one retry used up.
    often = script(*[throttled(0.01)] * 5, ok("done"))
    result = worker.send("scripted.rb", kwargs=often.kwargs)
    assert worker.result(result) == "done"
    assert often.told("retries") == [0] * 6
    assert often.told("max_retries") == [0] * 6

    # A minute where the child names no time.
    before = datetime.datetime.now(datetime.timezone.utc)
    nameless = script({"status": "throttled"})
    result = worker.send("scripted.pl", kwargs=nameless.kwargs)
    [entry] = eventually(lambda: worker.inspect("scheduled"))
    after = datetime.datetime.now(datetime.timezone.utc)
    minute = datetime.timedelta(seconds=60)
    assert entry["request"]["id"] == result.id
    eta = datetime.datetime.fromisoformat(entry["eta"])
    assert before + minute <= eta <= after + minute
    assert result.state == "RETRY"
    assert len(nameless.metas) == 1

    # Not before the time that it names.
    waiting = script(throttled(0.5), ok("done"))
    before = datetime.datetime.now(datetime.timezone.utc)
    assert worker.call("scripted.js", kwargs=waiting.kwargs) == "done"
    elapsed = datetime.datetime.now(datetime.timezone.utc) - before
    assert elapsed >= datetime.timedelta(seconds=0.5)
    assert waiting.told("retries") == [0, 0]


def test_throttled_inside_of_a_canvas(start_worker, script):
    children = ["scripted.rb", "scripted.js", "scripted.php", "first_argument.rb"]
    worker = start_worker(
        conf={
            "linepool_pools": pools(*children),
            "task_annotations": {"*": {"max_retries": 0}},
        }
    )

    def part(child, result):
        asked = script(throttled(0.01), throttled(0.01), ok(result))
        scripts.append(asked)
        return worker.app.signature(child, kwargs=asked.kwargs)

    def returned():
        return worker.app.signature("first_argument.rb")

    scripts = []
    steps = chain(part("scripted.rb", 1), returned(), part("scripted.js", 2))
    last = steps.apply_async()
    assert worker.result(last) == 2
    assert worker.result(last.parent) == worker.result(last.parent.parent) == 1

    sides = group(part(f"scripted.{x}", x) for x in ("rb", "js", "php"))
    assert worker.result(sides.apply_async()) == ["rb", "js", "php"]

    header = [part(f"scripted.{x}", x) for x in ("rb", "js", "php", "js")]
    assert worker.result(chord(header)(returned())) == ["rb", "js", "php", "js"]

    assert len(scripts) == 9
    assert all(asked.told("retries") == [0, 0, 0] for asked in scripts)


# --- retry, rejected, ignored


def test_retry(start_worker, script):
    worker = start_worker(
        conf={
            "linepool_pools": pools("scripted.php", "scripted.pl"),
            "task_annotations": {"scripted.pl": {"default_retry_delay": 0.01}},
        }
    )
    retry = {"status": "retry", "retry_after_secs": 0.01, "message": "still closed"}

    twice = script(retry, retry, ok("open"))
    result = worker.send("scripted.php", kwargs=twice.kwargs)
    assert worker.result(result) == "open"
    assert twice.told("retries") == [0, 1, 2]
    assert twice.told("max_retries") == [3, 3, 3]

    for_ever = script(retry)
    result = worker.send("scripted.php", kwargs=for_ever.kwargs)
    with pytest.raises(ForeignError, match="^still closed$"):
        worker.result(result)
    assert for_ever.told("retries") == [0, 1, 2, 3]

    # An error that may be tried again, until that is used up too.
    error = {"status": "error", "message": "locked", "type": "Busy", "retry": True}
    error["retry_after_secs"] = 0.01
    once = script(error, ok("unlocked"))
    assert worker.call("scripted.php", kwargs=once.kwargs) == "unlocked"
    assert once.told("retries") == [0, 1]
    for_ever = script(error)
    with pytest.raises(ForeignError, match="^Busy: locked$"):
        worker.call("scripted.php", kwargs=for_ever.kwargs)
    assert for_ever.told("retries") == [0, 1, 2, 3]

    # Celery's own delay where the child names none.
    nameless = script({"status": "retry"}, ok("done"))
    assert worker.call("scripted.pl", kwargs=nameless.kwargs) == "done"
    assert nameless.told("retries") == [0, 1]
    nameless = script({"status": "retry"})
    with pytest.raises(Exception, match="(?i)can't retry scripted.pl"):
        worker.call("scripted.pl", kwargs=nameless.kwargs)
    assert len(nameless.metas) == 4


#: Celery 5.7 stores a failure for what is rejected for good: nobody will run it.
REFUSED = "FAILURE" if celery.__version__ >= "5.7" else "PENDING"


def unacked(worker):
    """Messages that the worker holds, by its Redis broker."""
    with worker.app.connection_for_read() as connection:
        return connection.default_channel.client.hlen("unacked")


def test_rejected_and_ignored(start_worker, script):
    worker = start_worker(
        conf={
            "linepool_pools": pools("scripted.js", "scripted.rb"),
        },
        # What a child rejects is not retried.
        tasks="""
            app.conf.task_annotations = {
                "scripted.js": {"acks_late": True, "autoretry_for": (Exception,)},
                "scripted.rb": {"autoretry_for": (Exception,)},
            }
        """,
    )

    again = script({"status": "rejected", "requeue": True}, ok("done"))
    result = worker.send("scripted.js", kwargs=again.kwargs)
    assert worker.result(result) == "done"
    assert again.told("redelivered") == [False, True]
    assert again.told("retries") == [0, 0]

    for child in ("scripted.js", "scripted.rb"):
        refused = [
            script({"status": "rejected", "message": "not mine"}),
            script({"status": "rejected", "requeue": False}),
            script({"status": "ignored"}),
        ]
        results = [worker.send(child, kwargs=asked.kwargs) for asked in refused]
        for result, word in zip(results, ("not mine", "rejected", "ignored")):
            worker.wait_for_log(rf"{re.escape(child)}\[{result.id}\].*{word}")
        # Its only child has served another since, so nothing of them is under way.
        assert worker.call(child, kwargs=script(ok(1)).kwargs) == 1
        assert [result.state for result in results] == [REFUSED, REFUSED, "PENDING"]
        assert [len(asked.metas) for asked in refused] == [1, 1, 1]

    eventually(lambda: unacked(worker) == 0)
    assert worker.queue_size() == 0


# --- violations


#: What each child does wrong, as the failure calls it, and what it shows of the line.
VIOLATIONS = {
    "wrong_id.rb": ("another id", '"id":"somebody-elses"'),
    "prints.sh": ("no JSON", "DEBUG: loading the cache"),
    "no_object.js": ("no JSON object", '"ok",'),
    "unknown_status.php": ("a status that is none of ok, error", '"status":"done"'),
    "nul_byte.pl": ("no JSON", r"b'\x00{"),
    "bad_utf8.php": ("no JSON", r"caf\xe9"),
    "long_line.rb": ("a line longer than 65536 bytes", "longlong"),
}


def test_violations(start_worker, marks):
    worker = start_worker(
        conf={
            "linepool_pools": pools(*VIOLATIONS),
            "linepool_max_line": 65536,
        }
    )
    results = {child: worker.send(child, marks(child)) for child in VIOLATIONS}

    for child, (reason, shown) in VIOLATIONS.items():
        text = failure(worker, results[child], RemoteProtocolError)
        pid, grandchild = pid_in(text), grandchild_in(text)
        assert f"of pool {child!r} broke the protocol" in text
        assert reason in text
        assert shown in text
        assert len(text) < 600
        assert "\n" not in text.partition("Its last lines on stderr:")[0]
        # The task was not settled before its child was gone.
        assert not psutil.pid_exists(pid)
        eventually(lambda gone=grandchild: not lives(gone))
        successor = worker.call(child, marks(child))
        assert successor != pid
        assert worker.call(child, marks(child)) == successor
        [told] = children_of(worker, child)
        assert (told["pid"], told["tasks"]) == (successor, 2)
        assert results[child].state == "FAILURE"


def test_a_second_line_is_nobodys_reply(start_worker):
    children = ["two_replies.rb", "late_second_reply.js"]
    worker = start_worker(conf={"linepool_pools": pools(*children)})

    results = [worker.send("two_replies.rb", number) for number in range(8)]
    values = [worker.result(result) for result in results]
    assert [number for number, _ in values] == list(range(8))
    # None of them was asked again after its second line.
    assert len({pid for _, pid in values}) == 8
    assert len(re.findall("spoke without being asked", worker.log)) == 8

    first, pid = worker.call("late_second_reply.js", "first")
    assert first == "first"
    second = worker.send("late_second_reply.js", "second")
    text = failure(worker, second, RemoteProtocolError)
    assert "another id" in text and pid_in(text) == pid
    third, successor = worker.call("late_second_reply.js", "third")
    assert (third, successor != pid) == ("third", True)


def test_a_stray_line_without_an_id_is_nobodys_reply_either(start_worker):
    worker = start_worker(conf={"linepool_pools": pools("late_stray_line.rb")})
    results = [worker.send("late_stray_line.rb") for _ in range(6)]
    values = [worker.result(result, propagate=False) for result in results]
    assert "mine" in values and "stray" not in values


# --- the end of a child


def kill(pid):
    """SIGKILL, and its end: the signal alone is but a promise."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not lives(pid), interval=0)


def test_a_child_that_ends_between_tasks_costs_none(start_worker):
    worker = start_worker(
        conf={"linepool_pools": pools("exits_after_reply.sh", "echo.rb")}
    )

    results = [worker.send("exits_after_reply.sh") for _ in range(30)]
    assert len({worker.result(result) for result in results}) == 30

    pid = worker.call("echo.rb")["pid"]
    for _ in range(5):
        kill(pid)
        dead, pid = pid, worker.call("echo.rb")["pid"]
        assert pid != dead

    # Dead before it was sent anything at all.
    kill(pid)
    newborn = eventually(lambda: set(told_pids(worker, "echo.rb")) - {pid}).pop()
    kill(newborn)
    assert worker.call("echo.rb")["pid"] not in (pid, newborn)


def test_a_child_that_does_not_finish_its_task(start_worker, marks):
    late = {"acks_late": True, "reject_on_worker_lost": True}
    children = {
        **pools("half_a_reply.php", "closes_stdout.pl", "leaves_a_daemon.rb"),
        **pools("silent.js", timeout=3),
        "late": {"command": command("half_a_reply.php"), "tasks": ["late"], "size": 1},
        "kept": {"command": command("half_a_reply.php"), "tasks": ["kept"], "size": 1},
    }
    annotations = {"late": late, "kept": {"acks_late": True}}
    worker = start_worker(
        conf={"linepool_pools": children, "task_annotations": annotations}
    )
    # Booted, whatever that took.
    thinker = worker.call("silent.js", marks("exists", exists=True))
    results = {child: worker.send(child, marks(child)) for child in children}

    text = failure(worker, results["half_a_reply.php"], WorkerLostError)
    pid = pid_in(text)
    assert "of pool 'half_a_reply.php' exited with status 3" in text
    half = f'{{"id":"{results["half_a_reply.php"].id[:20]}'
    assert f"it left half a line: b'{half}" in text
    assert "out of ink" in text
    assert worker.call("half_a_reply.php", marks("half_a_reply.php")) != pid

    failure(worker, results["kept"], WorkerLostError)
    assert isinstance(worker.result(results["late"]), int)
    assert results["late"].state == "SUCCESS"
    assert "it left half a line" in worker.log

    text = failure(worker, results["leaves_a_daemon.rb"], WorkerLostError)
    daemon = grandchild_in(text)
    try:
        # It holds the child's stdout and stderr, and nobody waited for their end.
        assert lives(daemon)
        assert "exited with status 4" in text
        assert worker.call("leaves_a_daemon.rb", marks("leaves_a_daemon.rb"))
    finally:
        os.kill(daemon, signal.SIGKILL)

    text = failure(worker, results["closes_stdout.pl"], WorkerLostError)
    pid = pid_in(text)
    assert "of pool 'closes_stdout.pl' closed its stdin or stdout but lived" in text
    assert not psutil.pid_exists(pid)
    assert worker.call("closes_stdout.pl", marks("closes_stdout.pl")) != pid

    text = failure(worker, results["silent.js"], TimeLimitExceeded)
    assert f"child pid {thinker} of pool 'silent.js'" in text
    assert "exceeded linepool_timeout = 3 s" in text
    assert "thinking" in text
    assert not psutil.pid_exists(thinker)
    assert worker.call("silent.js", marks("silent.js")) != thinker
    eventually(lambda: unacked(worker) == 0)


def peak_memory(worker):
    """The most that the worker process has ever held, in bytes."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def test_a_flood_is_neither_kept_nor_waited_for(start_worker, marks):
    children = {
        **pools("floods_stderr.pl", "echo.rb"),
        **pools("floods_stdout.pl", max_line=MIB),
    }
    worker = start_worker(conf={"linepool_pools": children})
    worker.call("echo.rb")
    before = peak_memory(worker)

    noisy = worker.send("floods_stderr.pl")
    endless = worker.send("floods_stdout.pl", marks("floods_stdout.pl"))
    text = failure(worker, endless, RemoteProtocolError)
    assert f"a line longer than {MIB} bytes" in text
    assert len(text) < 600
    assert worker.call("floods_stdout.pl", marks("floods_stdout.pl")) != pid_in(text)

    pid = worker.result(noisy)
    assert worker.call("floods_stderr.pl") == pid
    # They wrote more than 200 MB.
    assert peak_memory(worker) - before < 50 * MIB
    # What was left out of the log is counted when the next line comes, or the end.
    assert worker.stop() == 0
    assert "lines did not reach the log" in worker.log


# --- which child


def test_children_are_reused_and_idle_ones_taken_first(start_worker, tmp_path):
    many = {"command": command("barrier.pl"), "tasks": ["barrier.pl"]}
    children = {
        **pools("echo.rb"),
        **pools("waits_for_file.sh", size=2),
        "barrier.pl": many,
    }
    worker = start_worker(conf={"linepool_pools": children}, args=["-c", "4"])

    results = [worker.send("echo.rb", number) for number in range(50)]
    echoed = [worker.result(result) for result in results]
    assert [reply["args"] for reply in echoed] == [[number] for number in range(50)]
    assert len({reply["pid"] for reply in echoed}) == 1

    # Each of them needs all the others to run at the same time.
    folder = tmp_path / "barrier"
    folder.mkdir()
    results = [worker.send("barrier.pl", str(folder), 4) for _ in range(4)]
    assert len({worker.result(result) for result in results}) == 4

    # One child is busy: the other serves all that comes.
    gate, open_gate = tmp_path / "gate", tmp_path / "open"
    open_gate.touch()
    blocked = worker.send("waits_for_file.sh", str(gate))
    eventually((tmp_path / "gate.started").exists)
    results = [worker.send("waits_for_file.sh", str(open_gate)) for _ in range(10)]
    [other] = {worker.result(result) for result in results}
    assert blocked.state in ("PENDING", "STARTED")
    gate.touch()
    assert worker.result(blocked) != other


# --- arguments


#: What Python sends, and what the README says that a child gets.
PLAIN = [
    (
        datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc),
        "2026-01-31T12:00:00+00:00",
    ),
    (datetime.datetime(2026, 1, 31, 12, 0, 0, 5), "2026-01-31T12:00:00.000005"),
    (datetime.date(2026, 1, 31), "2026-01-31"),
    (datetime.time(12, 30), "12:30:00"),
    (
        uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "12345678-1234-5678-1234-567812345678",
    ),
    (Decimal("1.10"), "1.10"),
    (b"\x00\xff\x80", "AP+A"),
    (b"text", "dGV4dA=="),
    ((1, (2, 3)), [1, [2, 3]]),
    (STRANGE, STRANGE),
]


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_arguments(start_worker, serializer):
    worker = start_worker(
        conf={
            "linepool_pools": pools("echo.rb", "seen.js"),
            "task_serializer": serializer,
            "accept_content": ["json", "pickle"],
            "result_accept_content": ["json"],
        }
    )
    sent = [python for python, _ in PLAIN] + [2**70, -(2**64)]
    expected = [plain for _, plain in PLAIN]
    kwargs = {"when": sent[0], STRANGE: {"nested": [sent[4]]}}
    expected_kwargs = {"when": expected[0], STRANGE: {"nested": [expected[4]]}}

    seen = worker.call("echo.rb", *sent, kwargs=kwargs)
    assert seen["args"] == expected + [2**70, -(2**64)]
    assert seen["kwargs"] == expected_kwargs
    pid = seen["pid"]

    seen = worker.call("seen.js", *sent, kwargs=kwargs)
    assert seen["args"][:-2] == expected
    assert seen["kwargs"] == expected_kwargs
    objects = {8: "object", 10: "number", 11: "number"}
    types = [objects.get(index, "string") for index in range(len(sent))]
    assert seen["types"] == types

    nan = float("nan")
    unsendable = [
        ([nan], r"nan in payload\['args'\]\[0\] has no form in JSON"),
        ([[{"deep": -float("inf")}]], r"-inf in payload.*\['deep'\] has no form"),
        (["\ud800"], "cannot be written as JSON: .*surrogate"),
        (
            ["x" * 50_000_000],
            r"request of 500\d+ bytes is longer than linepool_max_line = 16777216",
        ),
    ]
    if serializer == "pickle":
        unsendable += [
            ([complex(1, 2)], "cannot be written as JSON: .*complex"),
            ([{"key": {1, 2}}], "cannot be written as JSON: .*set"),
            ([ValueError("a"), object()], "cannot be written as JSON: .*ValueError"),
            ([{(1, 2): 3}], "cannot be written as JSON: "),
        ]
    for args, message in unsendable:
        with pytest.raises(RequestError, match=message):
            worker.call("echo.rb", *args)
    # No child was asked, none was harmed.
    assert worker.call("echo.rb")["pid"] == pid
    [told] = children_of(worker, "echo.rb")
    assert (told["pid"], told["tasks"]) == (pid, 2)


def test_an_argument_as_large_as_the_line(start_worker):
    worker = start_worker(
        conf={
            "linepool_pools": pools("echo.rb"),
            "linepool_max_line": 64 * 1024 * 1024,
        }
    )
    text = "x" * 50_000_000
    assert worker.call("echo.rb", text)["args"] == [text]


def test_arguments_in_yaml(start_worker):
    """Celery reads objects out of it that its sender never named."""
    worker = start_worker(
        conf={
            "linepool_pools": pools("echo.rb"),
            "task_serializer": "yaml",
            "accept_content": ["json", "yaml"],
            "result_accept_content": ["json"],
        }
    )
    when = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.timezone.utc)

    seen = worker.call("echo.rb", when, when.date(), b"text", STRANGE)
    assert seen["args"] == [when.isoformat(), "2026-01-31", "dGV4dA==", STRANGE]
    for unsendable in ({1, 2}, float("nan")):
        with pytest.raises(RequestError):
            worker.call("echo.rb", unsendable)
    assert worker.call("echo.rb")["pid"] == seen["pid"]


# --- children that do not boot


@pytest.mark.parametrize("broker", ["redis", "filesystem"])
def test_a_boot_that_fails_late_ends_the_worker_too(start_worker, broker):
    child = ["sh", "-c", "sleep 2; echo no db >&2; exit 1"]
    worker = start_worker(broker, command=child, wait=False)
    assert worker.wait() != 0
    assert re.search(r"linepool_command: exited with status 1.*\n +no db", worker.log)
    assert "Traceback" not in worker.log


NOT_BOOTING = {
    "none": ({}, "linepool_command: is not set"),
    "empty": ({"linepool_command": []}, "linepool_command: is empty"),
    "a string": (
        {"linepool_command": "ruby worker.rb"},
        r"linepool_command: must be a list, .*\['ruby', 'worker.rb'\]",
    ),
    "not found": (
        {"linepool_command": ["no-such-program", "worker.rb"]},
        "linepool_command: the command 'no-such-program' was not found",
    ),
    "not executable": (
        {"linepool_command": [str(CHILDREN / "echo.rb")]},
        "linepool_command: the command '.*echo.rb' may not be executed",
    ),
    "dies at once": (
        {"linepool_command": command("cannot_boot.rb")},
        r"linepool_command: exited with status 1.*\n +config/database.yml is missing",
    ),
    "one of several dies": (
        {"linepool_pools": pools("echo.rb", "cannot_boot.rb")},
        r"linepool_pools\['cannot_boot.rb'\]\['command'\]: exited with status 1.*\n"
        " +config/database.yml is missing",
    ),
    "misspelt": (
        {"linepool_command": command("echo.rb"), "linepool_timout": 3},
        "linepool_timout: is no setting.*did you mean linepool_timeout",
    ),
    "misspelt in a pool": (
        {"linepool_pools": {"a": {"comand": ["ruby"]}}},
        r"linepool_pools\['a'\]\['comand'\]: is no setting.*did you mean command",
    ),
    "a bad number": (
        {"linepool_command": command("echo.rb"), "linepool_max_line": "16 MiB"},
        "linepool_max_line: must be a whole number of 1 or more, not '16 MiB'",
    ),
    "several bad values": (
        {"linepool_pools": pools("echo.rb", timeout=-1, size=0)},
        r"linepool_pools\['echo.rb'\]\['(timeout|size)'\]: must be a .* number",
    ),
    "a bad folder": (
        {"linepool_command": command("echo.rb"), "linepool_cwd": "no/such/folder"},
        "linepool_command: its cwd '.*no/such/folder' is no folder",
    ),
}


@pytest.mark.parametrize("reason", NOT_BOOTING)
def test_the_worker_does_not_start(start_worker, run_celery, reason):
    conf, sentence = NOT_BOOTING[reason]
    project = start_worker.project("filesystem", conf=conf)
    path = os.pathsep.join([str(CHILDREN.parent), os.environ.get("PYTHONPATH", "")])
    code, output = run_celery(
        *("-A", "proj", "worker", "-P", LINEPOOL),
        cwd=project.folder,
        env={"PYTHONPATH": path},
    )

    assert code != 0
    assert re.search(sentence, output), output
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if "linepool_" in line]


# --- the same on every broker


BROKERS = ["redis", "rabbitmq", "filesystem"]


@pytest.mark.parametrize("broker", BROKERS)
def test_every_broker(start_worker, script, marks, broker):
    late = {"acks_late": True, "reject_on_worker_lost": True}
    redelivers = broker != "filesystem"
    worker = start_worker(
        broker,
        conf={
            "linepool_pools": pools(
                "echo.rb", "prints.sh", "scripted.pl", "half_a_reply.php"
            ),
            "task_annotations": {"half_a_reply.php": late if redelivers else {}},
        },
    )

    echoed = worker.call("echo.rb", 1, [2], kwargs={"three": STRANGE})
    assert echoed["args"] == [1, [2]]
    assert echoed["kwargs"] == {"three": STRANGE}

    error = script({"status": "error", "message": "boom", "type": "Oops"})
    with pytest.raises(ForeignError, match="^Oops: boom$"):
        worker.call("scripted.pl", kwargs=error.kwargs)

    again = script(throttled(0.1), ok("done"))
    assert worker.call("scripted.pl", kwargs=again.kwargs) == "done"
    assert again.told("retries") == [0, 0]

    violation = worker.send("prints.sh", marks("prints.sh"))
    text = failure(worker, violation, RemoteProtocolError)
    assert "DEBUG: loading the cache" in text
    eventually(lambda: not lives(grandchild_in(text)))
    assert worker.call("prints.sh", marks("prints.sh")) != pid_in(text)

    died = worker.send("half_a_reply.php", marks("half_a_reply.php"))
    if redelivers:
        assert isinstance(worker.result(died), int)
    else:
        failure(worker, died, WorkerLostError)
    assert "it left half a line" in worker.log

    assert worker.queue_size() == 0
    assert worker.stop() == 0
