"""What a child of protocol 2 may do in a real worker: say hello, report, send."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from workers import eventually

from celery_linepool.conversation import MAX_KEPT, _check
from celery_linepool.errors import ForeignError, LinePoolError

CHILDREN = Path(__file__).parent / "children"
TALKS = ["node", str(CHILDREN / "converses.cjs")]
ECHO = """
@app.task(name="python.add")
def add(a, b=0):
    return a + b

@app.task(name="python.family", bind=True)
def family(self):
    return [self.request.parent_id, self.request.root_id]
"""

brokers = pytest.mark.parametrize("broker", ["redis", "rabbitmq"])


@pytest.fixture
def talk(start_worker):
    def start(broker="redis", inflight=8, tasks=ECHO, conf=None, **options):
        conf = {"linepool_inflight": inflight, **(conf or {})}
        command = [*TALKS, str(inflight)]
        options.setdefault("args", ("-c", "1"))
        return start_worker(broker, command=command, tasks=tasks, conf=conf, **options)

    return start


# --- hello ----------------------------------------------------------------------------


@brokers
def test_tasks_that_a_child_advertises_need_no_glob(start_worker, broker):
    pools = {"js": {"command": [*TALKS, "4"], "inflight": 4, "size": 1}}
    worker = start_worker(broker, conf={"linepool_pools": pools})
    assert {"talk.pid", "talk.sleep"} <= {
        name.split()[0] for name in worker.inspect("registered")
    }
    assert worker.call("talk.sleep", 1) == 1
    worker.send("talk.unknown")
    worker.wait_for_log("no pool serves the task 'talk.unknown'")


def test_a_child_is_told_who_it_is(talk):
    worker = talk(args=("-c", "2"), conf={"linepool_max_line": 100_000})
    env = worker.call("talk.env")
    assert env["LINEPOOL_PROTOCOL"] == "2"
    assert env["LINEPOOL_POOL"] == "default"
    assert env["LINEPOOL_SLOT"] in ("1", "2")
    assert env["LINEPOOL_GENERATION"] == "0"
    assert env["LINEPOOL_MAX_LINE"] == "100000"
    assert env["LINEPOOL_CHANNEL"] == "stdio"


def test_a_child_is_told_when_its_task_has_to_be_done(talk):
    worker = talk()
    before = time.time()
    deadline = worker.call("talk.meta", time_limit=50)["deadline"]
    assert before + 50 <= deadline <= time.time() + 50


def test_a_child_that_says_no_hello_in_time_is_told_so(start_worker):
    conf = {"linepool_handshake": "required", "linepool_boot_timeout": 0.5}
    worker = start_worker(command=["sleep", "60"], conf=conf, wait=False)
    assert worker.wait() != 0
    assert "said no hello within linepool_boot_timeout = 0.5 s" in worker.log
    assert "linepool_handshake = 'none'" in worker.log


def test_a_worker_with_slow_children_is_ready_when_they_are(start_worker, tmp_path):
    mark = tmp_path / "mark"
    boots = f'until [ -e "{mark}" ]; do sleep 0.05; done; exec {" ".join(TALKS)}'
    conf = {"linepool_handshake": "required"}
    worker = start_worker(command=["sh", "-c", boots], conf=conf, wait=False)
    worker.wait_for_log("concurrency:")
    result = worker.send("talk.sleep", 1)
    assert "ready." not in worker.log
    mark.touch()
    assert worker.result(result) == 1


def test_after_a_reset_tasks_go_to_children_that_have_booted(start_worker, tmp_path):
    """Not to one that boots still: its hello says when it is ready."""
    mark = tmp_path / "mark"
    boots = (
        'if [ "$LINEPOOL_GENERATION" != 0 ]; then '
        f'until [ -e "{mark}" ]; do sleep 0.05; done; fi; exec {" ".join(TALKS)}'
    )
    worker = start_worker(command=["sh", "-c", boots], args=("-c", "1"))
    old = worker.call("talk.pid")
    worker.control("linepool_reset")
    pool = lambda: worker.inspect("stats")["pool"]["pools"]["default"]  # noqa: E731
    eventually(lambda: len(pool()["children"]) == 2)
    assert [worker.call("talk.pid") for _ in range(5)] == [old] * 5
    mark.touch()
    worker.wait_for_log("pool 'default' was reset")
    assert worker.call("talk.pid") != old


@pytest.mark.parametrize("channel", ["stdio", "fd"])
def test_what_is_printed_disturbs_nobody(talk, channel):
    worker = talk(inflight=1, conf={"linepool_channel": channel})
    assert worker.call("talk.noise", "some noise") is True
    assert worker.call("talk.noise", "{} more") is True
    worker.wait_for_log(r"\[default pid \d+\] some noise")
    hints = worker.log.count("this was on its stdout, which is the protocol")
    assert hints == (1 if channel == "stdio" else 0)
    assert worker.call("talk.env")["LINEPOOL_CHANNEL"] == channel


def test_printing_may_be_forbidden(talk):
    worker = talk(inflight=1, conf={"linepool_stdout": "strict"})
    with pytest.raises(Exception, match="some noise"):
        worker.call("talk.noise", "some noise")


# --- progress -------------------------------------------------------------------------


@brokers
def test_progress_is_seen_while_the_task_runs(talk, tmp_path, broker):
    worker = talk(broker)
    mark = tmp_path / "mark"
    result = worker.send("talk.progress", 3, str(mark))
    eventually(lambda: result.state == "PROGRESS" and result.info == {"step": 3})
    mark.touch()
    assert worker.result(result) == 3
    assert result.state == "SUCCESS"


def test_a_flood_of_progress_ends_as_the_result(talk):
    worker = talk()
    floods = [worker.send("talk.progress", 20_000) for _ in range(4)]
    others = [worker.send("talk.sleep", 1) for _ in range(20)]
    assert [worker.result(result) for result in others] == [1] * 20
    assert [worker.result(result) for result in floods] == [20_000] * 4
    assert {result.state for result in floods} == {"SUCCESS"}


def test_progress_that_cannot_be_stored_fails_no_task(start_worker):
    tasks = """
from celery_linepool import ForeignTask

class Strict(ForeignTask):
    abstract = True
    def update_state(self, *args, **kwargs):
        raise OSError("the disk is full")

@app.task(base=Strict, name="talk.progress")
def progress(steps): ...
"""
    worker = start_worker(command=TALKS, tasks=tasks)
    assert worker.call("talk.progress", 2) == 2
    worker.wait_for_log(r"progress of talk.progress\[.*the disk is full")


# --- log ------------------------------------------------------------------------------


def test_what_a_child_logs_is_in_the_log(talk):
    fmt = "%(levelname)s/%(name)s/%(linepool_task_id)s/%(linepool_level)s: %(message)s"
    tasks = ECHO + f"""
import logging
from celery.signals import after_setup_logger

@after_setup_logger.connect
def set_up(logger, **kwargs):
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter({fmt!r}))
    child = logging.getLogger("celery_linepool.child")
    child.addHandler(handler)
    child.propagate = False
"""
    worker = talk(tasks=tasks)
    result = worker.send("talk.log", "warn", "disk \x1b[31malmost full")
    assert worker.result(result) is True
    worker.wait_for_log(
        rf"WARNING/celery_linepool.child.default/{result.id}/warn: "
        r"\[default pid \d+\] disk \\x1b\[31malmost full"
    )
    worker.wait_for_log("INFO/celery_linepool.child.default/None/info: .* of no task")


def test_a_flood_of_log_lines_is_counted_and_starves_nobody(talk):
    worker = talk()
    flood = worker.send("talk.logs", 100_000)
    others = [worker.send("talk.sleep", 1) for _ in range(20)]
    assert [worker.result(result) for result in others] == [1] * 20
    assert worker.result(flood) == 100_000
    worker.call("talk.logs", 1)
    worker.wait_for_log(r"\.\.\. \d+ lines did not reach the log")
    assert worker.log.count("] line ") < 50_000


# --- publish --------------------------------------------------------------------------


@brokers
@pytest.mark.parametrize("when", ["now", "success"])
def test_a_child_sends_a_task(talk, broker, when):
    worker = talk(broker)
    message = {"task": "python.family", "when": when, "options": {"priority": 3}}
    result = worker.send("talk.publish", message)
    answer = worker.result(result)
    assert answer["op"] == "answer" and "error" not in answer
    sent = worker.app.AsyncResult(answer["task_id"])
    assert worker.result(sent) == [result.id, result.id]


def test_a_task_that_is_sent_takes_arguments_and_options(talk):
    worker = talk()
    message = {"task": "python.add", "args": [1], "kwargs": {"b": 2}}
    options = {"task_id": "my-own", "countdown": 0.1, "headers": {"x": "y"}}
    answer = worker.call("talk.publish", {**message, "options": options})
    assert answer["task_id"] == "my-own"
    assert worker.result(worker.app.AsyncResult("my-own")) == 3


def test_a_task_for_success_is_not_sent_after_a_failure(talk, tmp_path):
    worker = talk()
    options = {"task_id": "never", "countdown": 0}
    message = {"task": "python.add", "args": [1], "when": "success", "options": options}
    with pytest.raises(ForeignError, match="too bad"):
        worker.call("talk.publish_and_fail", message)
    sentinel = worker.send("python.add", 1)
    assert worker.result(sentinel) == 1
    assert worker.app.AsyncResult("never").state == "PENDING"
    assert "Task python.add[never] received" not in worker.log


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "name of a task"),
        ({"task": 7}, "name of a task"),
        ({"task": "x", "args": {"a": 1}}, "args must be a list"),
        ({"task": "x", "kwargs": [1]}, "kwargs must be an object"),
        ({"task": "x", "when": "later"}, "now or success"),
        ({"task": "x", "options": [1]}, "options must be an object"),
        ({"task": "x", "options": {"broker": 1, "app": 2}}, "not known: app, broker"),
    ],
)
def test_what_cannot_be_sent(message, words):
    with pytest.raises(ValueError, match=words):
        _check(message)


def test_a_child_hears_why_its_task_was_not_sent(talk):
    worker = talk()
    answer = worker.call("talk.publish", {"task": "x", "options": {"queue": 7.5}})
    assert answer["error"] and "task_id" not in answer
    answer = worker.call("talk.publish", {"task": ""})
    assert answer["error"] == "ValueError: publish needs the name of a task"


def test_a_flood_of_tasks_is_sent_and_starves_nobody(talk):
    worker = talk()
    message = {"task": "python.add", "options": {"queue": "elsewhere"}}
    flood = worker.send("talk.publishes", 2_000, message)
    others = [worker.send("talk.sleep", 1) for _ in range(20)]
    assert [worker.result(result) for result in others] == [1] * 20
    assert worker.result(flood) == ["sent"] * 2_000
    assert worker.queue_size("elsewhere") == 2_000


def test_what_is_kept_for_success_is_bounded(talk):
    worker = talk()
    message = {"task": "python.add", "when": "success"}
    message["options"] = {"queue": "elsewhere"}
    answers = worker.call("talk.publishes", MAX_KEPT + 5, message)
    assert answers[:MAX_KEPT] == ["sent"] * MAX_KEPT
    assert all("may publish 1000 tasks" in answer for answer in answers[MAX_KEPT:])
    assert worker.queue_size("elsewhere") == MAX_KEPT


def test_a_success_whose_tasks_cannot_be_sent_is_a_failure(talk):
    worker = talk()
    message = {"task": "x", "when": "success", "options": {"queue": 7.5}}
    with pytest.raises(LinePoolError, match="the child succeeded, but 'x'"):
        worker.call("talk.publish", message)


def test_what_is_said_after_the_reply_is_ignored(talk):
    worker = talk()
    assert worker.call("talk.late") is None
    assert worker.call("talk.sleep", 1) == 1
    assert "is replaced" not in worker.log


# --- limits, revokes, shutdowns -------------------------------------------------------


@brokers
def test_soft_and_hard_limits_of_one_of_many(talk, broker):
    worker = talk(broker)
    pid = worker.call("talk.pid")
    sibling = worker.send("talk.sleep", 3000)
    soft = worker.send("talk.sleep", 60_000, soft_time_limit=1, time_limit=50)
    hard = worker.send("talk.sleep", 60_000, time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        worker.result(soft)
    with pytest.raises(TimeLimitExceeded):
        worker.result(hard)
    assert worker.result(sibling) == 3000
    assert worker.call("talk.pid") == pid


@brokers
def test_a_revoked_task_of_one_of_many(talk, broker):
    worker = talk(broker)
    pid = worker.call("talk.pid")
    sibling = worker.send("talk.sleep", 3000)
    revoked = worker.send("talk.sleep", 60_000)
    eventually(lambda: len(worker.inspect("active")) == 2)
    worker.app.control.revoke(revoked.id, terminate=True)
    eventually(lambda: revoked.state == "REVOKED")
    assert worker.result(sibling) == 3000
    assert worker.call("talk.pid") == pid
    assert worker.inspect("active") == []


def test_siblings_that_are_lost_are_delivered_again_uncounted(talk, tmp_path):
    conf = {
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "linepool_cancel_grace": 0.5,
        "linepool_max_crashes": 1,
    }
    worker = talk(conf=conf)
    mark = tmp_path / "mark"
    sibling = worker.send("talk.wait", str(mark))
    hung = worker.send("talk.stubborn", time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        worker.result(hung)
    worker.wait_for_log("its child had to end with another task in it")
    mark.touch()
    assert worker.result(sibling) == "seen"


def test_a_cold_shutdown_leaves_time_for_a_last_reply(talk, tmp_path):
    conf = {"task_acks_late": True}
    worker = talk(conf=conf)
    diary = tmp_path / "diary"
    worker.send("talk.finish", str(diary))
    eventually(lambda: len(worker.inspect("active")) == 1)
    worker.stop(signal.SIGQUIT)
    assert diary.read_text() == "shutdown\n"


# --- slots ----------------------------------------------------------------------------


@brokers
def test_a_worker_fetches_for_all_its_slots(talk, broker, tmp_path):
    worker = talk(
        broker, inflight=32, args=("-c", "2"), conf={"worker_prefetch_multiplier": 1}
    )
    assert worker.inspect("stats")["pool"]["max-concurrency"] == 64
    mark = tmp_path / "mark"
    results = [worker.send("talk.wait", str(mark)) for _ in range(64)]
    eventually(lambda: len(worker.inspect("active")) == 64)
    mark.touch()
    assert [worker.result(result) for result in results] == ["seen"] * 64


# --- tracing --------------------------------------------------------------------------

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@brokers
def test_the_messages_own_trace_reaches_the_child(talk, broker):
    worker = talk(broker)
    headers = {"traceparent": PARENT, "tracestate": "a=b", "baggage": "user=7"}
    headers["sentry-trace"] = "771a43a4192642f0b136d5159a501700-1"
    meta = worker.call("talk.meta", headers=headers)
    assert {name: meta[name] for name in headers} == headers
    assert "traceparent" not in worker.call("talk.meta")
    json.dumps(meta)


TRACED = """
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
from celery.signals import worker_process_init

@worker_process_init.connect(weak=False)
def set_up(**kwargs):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()
"""


def test_the_span_of_the_worker_reaches_the_child(talk):
    worker = talk(tasks=TRACED)
    meta = worker.call("talk.meta", headers={"traceparent": PARENT})
    version, trace, span, flags = meta["traceparent"].split("-")
    assert trace == PARENT.split("-")[1], "the trace goes on"
    assert span != PARENT.split("-")[2], "but the parent is the worker's own span"
    worker.wait_for_log(f'"span_id": "0x{span}"')


def test_sentrys_trace_reaches_the_child(talk):
    tasks = """
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration

sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    traces_sample_rate=1.0,
    integrations=[CeleryIntegration()],
)
"""
    worker = talk(tasks=tasks)
    trace = "771a43a4192642f0b136d5159a501700"
    headers = {"sentry-trace": f"{trace}-9d5ae0ee36bdbbc1-1"}
    # Sentry's own producer sends them in both places, and its worker reads this one.
    headers["headers"] = dict(headers)
    meta = worker.call("talk.meta", headers=headers)
    assert meta["sentry-trace"].startswith(f"{trace}-")
    assert meta["sentry-trace"] != headers["sentry-trace"]
    assert "sentry-trace_id" in meta["baggage"]
