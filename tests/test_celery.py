"""Celery's behaviours, through real workers: a foreign task is like any other.

What a task of the child does follows from the last part of its name; see
``children/celery_tasks.rb``.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import textwrap
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery, _state, chain, chord, group
from celery.exceptions import ChordError, NotRegistered, TaskRevokedError
from kombu import serialization
from localprocess import FilesystemBroker
from workers import LINEPOOL, close_app, eventually

from celery_linepool.errors import ForeignError, LinePoolError

TESTS = Path(__file__).parent

CHILD = ["ruby", str(TESTS / "children" / "celery_tasks.rb")]
BROKERS = ["redis", "rabbitmq", "filesystem"]

PYTHON = """
    import time
    from pathlib import Path

    from celery_linepool import ForeignTask

    @app.task(name="python.double")
    def double(x):
        return 2 * x

    @app.task(name="python.total")
    def total(numbers):
        return sum(numbers)

    @app.task(name="python.error")
    def error(request, exc, traceback, path):
        with open(path, "a") as file:
            file.write(f"{request.id} {type(exc).__name__} {exc.message}\\n")
"""


class Gate:
    """Tasks named ``*.gate`` run from when they started until this is opened."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    @property
    def pids(self) -> list[int]:
        """The child of every run so far."""
        return [int(line) for line in lines(f"{self.path}.started")]

    def wait(self, runs: int = 1) -> list[int]:
        eventually(lambda: len(self.pids) >= runs, message=f"{runs} runs")
        return self.pids

    def open(self) -> None:
        Path(f"{self.path}.open").touch()


@pytest.fixture
def start_worker(start_worker):
    """Without an event loop a worker takes five seconds to end: these are killed."""
    started = []

    def start(*args, **kwargs):
        started.append(start_worker(*args, **kwargs))
        return started[-1]

    start.project = start_worker.project
    yield start
    for worker in started:
        if worker.running and isinstance(worker.broker, FilesystemBroker):
            worker.kill()


@pytest.fixture
def gates(start_worker, tmp_path):
    """Makes gates, and opens them all before the workers are told to end."""
    made = []

    def make() -> Gate:
        made.append(Gate(tmp_path / f"gate{len(made)}"))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


def source(*parts: str) -> str:
    """One module of parts that are indented differently."""
    return "\n".join(textwrap.dedent(part) for part in parts)


def lines(path) -> list[str]:
    path = Path(path)
    return path.read_text().splitlines() if path.exists() else []


def env_of(project):
    """What a ``celery -A proj`` needs to find the project and its helpers."""
    path = (str(project.folder), str(TESTS), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def pools(**options):
    """Pools whose children know their pool's name."""
    return {
        name: {"command": CHILD, "env": {"POOL": name}, **rest}
        for name, rest in options.items()
    }


def sig(worker, name, *args, **options):
    return worker.app.signature(name, args=args, **options)


def apply(worker, canvas):
    """The result of a canvas."""
    return worker.result(canvas.apply_async())


@contextmanager
def current_app(app):
    """Old Celerys ask the current app, not that of the tasks, how to send a chord."""
    before = getattr(_state._tls, "current_app", None)
    _state._set_current_app(app)
    try:
        yield
    finally:
        _state._set_current_app(before)


def ids(listed):
    return [item.get("request", item)["id"] for item in listed]


# --- results --------------------------------------------------------------------------

VALUES = [
    *(None, True, False, 0, -7, 2**53 + 1, 2**64, 10**30, 0.1, -1.5e300),
    *("", "h\u00e9 \u2028\u2029 \U0001f600 \x00\n\x7f", [], {}),
    *([1, [None, {"a": []}]], {"\u043a": {"n": 1.5, "": None}}),
]


@pytest.mark.parametrize("broker", BROKERS)
def test_values_and_errors_come_back(start_worker, broker):
    worker = start_worker(broker, CHILD, args=("-c", "2"), tasks=PYTHON)
    results = [worker.send("x.echo", value) for value in VALUES]
    doubles = [worker.send("python.double", n) for n in range(3)]
    failed = worker.send("x.boom")

    # The repr, because True == 1 == 1.0.
    assert repr([worker.result(result) for result in results]) == repr(VALUES)
    assert [worker.result(result) for result in doubles] == [0, 2, 4]
    with pytest.raises(ForeignError, match="boom") as caught:
        worker.result(failed)
    assert caught.value.foreign_type == "ArgumentError"
    assert any("celery_tasks.rb" in frame for frame in caught.value.backtrace)
    assert failed.state == "FAILURE"
    assert "ArgumentError: boom" in failed.traceback
    eventually(lambda: worker.queue_size() == 0)
    assert not worker.inspect("active") and not worker.inspect("reserved")
    assert worker.stop() == 0


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_nothing_is_stored_of_ignored_results(start_worker, broker):
    stub = """
        @app.task(base=ForeignTask, name="stub.add", ignore_result=True)
        def add(x, y): ...
    """
    worker = start_worker(broker, CHILD, tasks=source(PYTHON, stub))
    # By the stub, because Celery 5.6 believes the message, and not the task.
    by_stub = worker.module.add.delay(1, 2)
    by_call = worker.send("x.add", 1, 2, ignore_result=True)
    kept = worker.send("x.add", 1, 2)
    for result in (by_stub, by_call, kept):
        worker.wait_for_log(rf"Task \S+\[{result.id}\] succeeded")

    states = [worker.app.AsyncResult(r.id).state for r in (by_stub, by_call, kept)]
    assert states == ["PENDING", "PENDING", "SUCCESS"]


def test_an_app_may_ignore_all_results(start_worker):
    stubs = """
        @app.task(base=ForeignTask, name="x.add")
        def add(x, y): ...

        @app.task(base=ForeignTask, name="x.boom")
        def boom(): ...
    """
    conf = {"task_ignore_result": True}
    worker = start_worker("filesystem", CHILD, conf=conf, tasks=source(PYTHON, stubs))
    results = [worker.module.add.delay(1, 2), worker.module.boom.delay()]
    for result in results:
        # Which comes after the result would have been stored.
        worker.wait_for_log(rf"Task \S+\[{result.id}\] (succeeded|raised)")

    assert list((worker.project.folder / "results").iterdir()) == []


@pytest.mark.parametrize("broker", BROKERS)
def test_a_running_task_can_be_seen(start_worker, gates, run_celery, broker):
    worker = start_worker(
        broker,
        args=("-c", "2"),
        conf={
            "task_track_started": True,
            "linepool_pools": pools(p={"tasks": ["billing.charge", "*"]}),
        },
        tasks=PYTHON,
    )
    gate = gates()
    running = [worker.send("x.gate", gate.path) for _ in range(2)]
    pids = gate.wait(2)
    waiting = worker.send("x.add", 1, 2)
    later = worker.send("x.add", 1, 2, countdown=600)
    eventually(lambda: waiting.id in ids(worker.inspect("reserved")))
    eventually(lambda: ids(worker.inspect("scheduled")) == [later.id])

    for result in running:
        assert result.state == "STARTED"
    assert waiting.state == "PENDING"
    active = {task["id"]: task for task in worker.inspect("active")}
    assert set(active) == {result.id for result in running}
    assert sorted(task["worker_pid"] for task in active.values()) == sorted(pids)
    assert {task["name"] for task in active.values()} == {"x.gate"}

    stats = worker.inspect("stats")
    assert stats["pool"]["max-concurrency"] == 2
    assert sorted(stats["pool"]["processes"]) == sorted(pids)
    assert stats["total"] == {"x.gate": 2}
    registered = worker.inspect("registered")
    assert {"billing.charge", "python.double"} <= set(registered)
    assert "*" not in registered

    command = ("-A", "proj", "inspect", "-d", worker.nodename, "-t", "30")
    code, output = run_celery(*command, "stats", "--json", env=env_of(worker.project))
    assert code == 0, output
    [answer] = json.loads(output[output.index("{") :]).values()
    assert answer["pool"]["processes"] == stats["pool"]["processes"]

    gate.open()
    values = [worker.result(result) for result in running]
    assert sorted(value["pid"] for value in values) == sorted(pids)
    assert worker.result(waiting) == 3
    worker.app.control.revoke(later.id)


# --- acknowledgement ------------------------------------------------------------------


def test_only_late_acknowledged_tasks_survive_the_worker(start_worker, gates):
    annotations = {"late.gate": {"acks_late": True}}
    worker = start_worker(
        "rabbitmq", CHILD, args=("-c", "2"), conf={"task_annotations": annotations}
    )
    early, late = gates(), gates()
    worker.send("early.gate", early.path)
    result = worker.send("late.gate", late.path)
    early.wait()
    late.wait()
    # The worker has acknowledged it once it says that it is active.
    eventually(lambda: len(worker.inspect("active")) == 2)

    assert worker.kill() == -signal.SIGKILL
    worker.start()
    first, second = late.wait(2)
    assert first != second
    late.open()
    assert worker.result(result)["pid"] == second
    assert worker.stop() == 0
    assert worker.queue_size() == 0
    assert len(late.pids) == 2 and len(early.pids) == 1


# --- when a task may run --------------------------------------------------------------


@pytest.mark.parametrize("broker", BROKERS)
def test_eta_and_expiry(start_worker, gates, tmp_path, broker):
    project = start_worker.project(broker, CHILD)
    mark = str(tmp_path / "marks")
    if broker != "rabbitmq":  # which drops what has expired by itself
        in_queue = project.app.send_task("x.mark", (mark, "queue"), expires=0.01)
        after = time.time() + 0.02
        eventually(lambda: time.time() > after)
    worker = start_worker(args=("-c", "1"), project=project)
    before = time.time()
    countdown = worker.send("x.time", countdown=0.5)
    eta = datetime.datetime.now(datetime.timezone.utc)
    eta += datetime.timedelta(seconds=0.3)
    at_eta = worker.send("x.time", eta=eta)
    if broker != "rabbitmq":
        with pytest.raises(TaskRevokedError, match="expired"):
            worker.result(in_queue)
    assert worker.result(at_eta) >= eta.timestamp()
    assert worker.result(countdown) >= before + 0.5

    gate = gates()
    running = worker.send("x.gate", gate.path)
    gate.wait()
    expires = time.time() + 3
    in_line = worker.send("x.mark", mark, "line", expires=expires - time.time())
    last = worker.send("x.mark", mark, "last")
    eventually(lambda: in_line.id in ids(worker.inspect("reserved")))
    assert time.time() < expires, "too slow to test this"
    eventually(lambda: time.time() > expires + 0.1)
    gate.open()
    worker.result(running)
    with pytest.raises(TaskRevokedError, match="expired"):
        worker.result(in_line)
    assert worker.result(last) == 1
    assert lines(mark) == ["last"]


@pytest.mark.parametrize("broker", BROKERS)
def test_a_task_that_waits_for_a_child_can_be_revoked(
    start_worker, gates, tmp_path, broker
):
    worker = start_worker(broker, CHILD, args=("-c", "1"))
    mark, gate = str(tmp_path / "marks"), gates()
    worker.send("x.gate", gate.path)
    gate.wait()
    by_id = worker.send("x.mark", mark, "id")
    stamps = {"stamped_headers": ["tenant"], "tenant": "acme"}
    by_stamp = worker.send("x.mark", mark, "stamp", **stamps)
    other = {**stamps, "tenant": "other"}
    kept = worker.send("x.mark", mark, "kept", **other)
    waiting = {by_id.id, by_stamp.id, kept.id}
    eventually(lambda: waiting <= set(ids(worker.inspect("reserved"))))

    options = {"destination": [worker.nodename], "reply": True, "limit": 1}
    control = worker.app.control
    assert control.revoke(by_id.id, timeout=30, **options)
    assert control.revoke_by_stamped_headers(
        {"tenant": ["acme"]}, timeout=30, **options
    )
    gate.open()
    for result in (by_id, by_stamp):
        with pytest.raises(TaskRevokedError):
            worker.result(result)
        assert result.state == "REVOKED"
    assert worker.result(kept) == 1
    assert lines(mark) == ["kept"]


@pytest.mark.parametrize("broker", BROKERS)
def test_rate_limits(start_worker, tmp_path, broker):
    worker = start_worker(
        broker,
        CHILD,
        args=("-c", "2"),
        conf={"task_annotations": {"slow.time": {"rate_limit": "4/s"}}},
    )
    limited = [worker.send("slow.time") for _ in range(4)]
    others = [worker.send("x.time") for _ in range(4)]
    times = [worker.result(result) for result in limited]

    # 0.25 s between each, less what the first may have been late.
    assert max(times) - min(times) > 0.4
    assert max(worker.result(result) for result in others) < max(times)
    limit = {"task_name": "slow.time", "rate_limit": "0"}
    assert "ok" in worker.control("rate_limit", **limit)
    times = [worker.result(worker.send("slow.time")) for _ in range(2)]
    limit["rate_limit"] = "1/h"
    assert "ok" in worker.control("rate_limit", **limit)
    worker.call("slow.time")
    held = worker.send("slow.time")
    worker.wait_for_log(rf"\[{held.id}\] received")
    assert worker.call("x.echo", 1) == 1
    assert held.state == "PENDING"


@pytest.mark.parametrize(
    "broker, high, low",
    [("redis", 0, 9), ("rabbitmq", 9, 0)],
    ids=["redis", "rabbitmq"],
)
def test_priorities(start_worker, tmp_path, broker, high, low):
    conf = {"worker_prefetch_multiplier": 1}
    if broker == "rabbitmq":
        conf["task_queue_max_priority"] = 9
    project = start_worker.project(broker, CHILD, conf)
    mark = str(tmp_path / "marks")
    order = [("a", low), ("b", high), ("c", low), ("d", high)]
    results = [
        project.app.send_task("x.mark", (mark, name), priority=priority)
        for name, priority in order
    ]
    worker = start_worker(args=("-c", "1"), project=project)
    for result in results:
        worker.result(result)

    assert lines(mark) == ["b", "d", "a", "c"]


# --- canvas ---------------------------------------------------------------------------

#: The fallback for backends without a native join asks each second otherwise.
FAST_CHORDS = {"result_chord_retry_interval": 0.05}


@pytest.mark.parametrize("broker", BROKERS)
def test_canvas(start_worker, broker):
    worker = start_worker(
        broker, CHILD, args=("-c", "3"), conf=FAST_CHORDS, tasks=PYTHON
    )

    def s(name, *args):
        return sig(worker, name, *args)

    echoes = [s("x.echo", n) for n in range(5)]
    nested = [s("x.echo", 1), group(s("x.echo", 2), s("python.double", 2))]
    cases = [
        (chain(s("x.add", 1, 2), s("python.double"), s("x.add", 10)), 16),
        (chain(s("python.double", 1), s("x.add", 1), s("x.echo")), 3),
        (group(s("x.add", n, n) for n in range(6)), [0, 2, 4, 6, 8, 10]),
        (chord(echoes, s("x.sum")), 10),
        (chord(echoes, s("python.total")), 10),
        (chord([s("x.add", 1, 1), s("python.double", 4)], s("x.sum")), 10),
        (chord(nested, s("x.sum")), 7),
        (chain(s("x.echo", 1), group(s("x.add", 1), s("x.add", 2)), s("x.sum")), 5),
        (chain(chord(echoes, s("x.sum")), s("x.add", 1)), 11),
    ]
    with current_app(worker.app):
        results = [canvas.apply_async() for canvas, _ in cases]

    assert [worker.result(r) for r in results] == [value for _, value in cases]
    unlocked = "celery.chord_unlock" in worker.log
    assert unlocked == (broker == "filesystem")


@pytest.mark.parametrize("broker", BROKERS)
def test_callbacks(start_worker, tmp_path, broker):
    worker = start_worker(
        broker, CHILD, args=("-c", "2"), conf=FAST_CHORDS, tasks=PYTHON
    )
    done, failed, python = (str(tmp_path / n) for n in ("done", "failed", "python"))

    link = [sig(worker, "x.note", done), sig(worker, "python.double")]
    errors = [sig(worker, "x.note", failed), sig(worker, "python.error", python)]
    # The second time the names of the callbacks are known to the worker.
    for run in (1, 2):
        good = worker.send("x.echo", f"value{run}", link=link, link_error=errors)
        bad = worker.send("x.boom", link=link, link_error=errors)
        assert worker.result(good) == f"value{run}"
        eventually(lambda: len(lines(done)) == run)
        eventually(lambda: len(lines(failed)) == run)
        assert lines(done)[-1] == f"value{run}"
        assert lines(failed)[-1] == bad.id
        assert lines(python)[-1] == f"{bad.id} ForeignError boom"
        eventually(lambda: worker.log.count("Task python.double[") >= run)

    # A chain that fails in the middle.
    never = str(tmp_path / "never")
    chained = chain(
        sig(worker, "x.echo", 1),
        sig(worker, "x.boom"),
        sig(worker, "x.note", never),
    )
    result = chained.apply_async(link_error=errors)
    with pytest.raises(ForeignError, match="boom"):
        worker.result(result)
    eventually(lambda: len(lines(failed)) == 3)
    assert lines(failed)[-1] == result.parent.id

    # A chord whose header fails.
    body = sig(worker, "x.note", never).on_error(sig(worker, "x.note", failed))
    result = chord([sig(worker, "x.echo", 1), sig(worker, "x.boom")], body)()
    error = worker.result(result, propagate=False)
    assert isinstance(error, ChordError) and "boom" in str(error)
    eventually(lambda: len(lines(failed)) == 4)
    assert lines(failed)[-1] == result.id
    assert worker.call("x.echo", 1) == 1
    # The link of a chain is that of its last task.
    assert (len(lines(done)), len(lines(python))) == (2, 3)
    assert not lines(never)


@pytest.mark.parametrize("broker", ["redis", "filesystem"])
def test_map_over_a_foreign_task_with_one_child(start_worker, broker):
    stub = """
        @app.task(base=ForeignTask, name="x.add")
        def add(x, y): ...
    """
    worker = start_worker(broker, CHILD, args=("-c", "1"), tasks=source(PYTHON, stub))
    add = worker.module.add
    pairs = [(n, n) for n in range(4)]
    results = [
        add.starmap(pairs).delay(),
        add.chunks(pairs, 2).apply_async(),
        add.starmap(pairs).delay(),
    ]

    assert [worker.result(result) for result in results] == [
        [0, 2, 4, 6],
        [[0, 2], [4, 6]],
        [0, 2, 4, 6],
    ]


# --- tasks with options ---------------------------------------------------------------


RETRIES = """
    options = {
        "autoretry_for": (Exception,), "max_retries": 2, "default_retry_delay": 0
    }
    app.conf.task_annotations = {"annotated.flaky": options}

    @app.task(base=ForeignTask, name="stub.flaky", **options)
    def flaky(path, succeeds_at): ...
"""


@pytest.mark.parametrize("broker", BROKERS)
def test_autoretry(start_worker, tmp_path, broker):
    # One slot: Celery sends the next attempt before it stores the RETRY of this one,
    # which would overwrite the SUCCESS of a faster second slot.
    worker = start_worker(
        broker, CHILD, args=("-c", "1"), tasks=source(PYTHON, RETRIES)
    )
    for name in ("annotated.flaky", "stub.flaky"):
        enough, short = (str(tmp_path / f"{name}{n}") for n in (3, 4))
        succeeds = worker.send(name, enough, 3)
        fails = worker.send(name, short, 4)
        assert worker.result(succeeds) == 3
        with pytest.raises(ForeignError, match="run 3 fails") as caught:
            worker.result(fails)
        assert caught.value.foreign_type == "IOError"
        assert (len(lines(enough)), len(lines(short))) == (3, 3)
    untouched = str(tmp_path / "other")
    with pytest.raises(ForeignError, match="run 1 fails"):
        worker.call("other.flaky", untouched, 2)


STUBS = """
    @app.task(base=ForeignTask, name="a.plain")
    def plain(x, y=1): ...

    @app.task(base=ForeignTask, name="a.bound", bind=True)
    def bound(self, x): ...

    @app.task(base=ForeignTask, name="a.moved", pool="b")
    def moved(): ...

    @app.task(base=ForeignTask, name="a.loose", typing=False)
    def loose(x): ...
"""


def test_stubs(start_worker):
    conf = {"linepool_pools": pools(a={"tasks": ["a.*"]}, b={"queues": ["render"]})}
    worker = start_worker(conf=conf, args=("-c", "1"), tasks=source(PYTHON, STUBS))
    proj = worker.module

    for call in (
        lambda: proj.plain.delay(),
        lambda: proj.plain.delay(1, 2, 3),
        lambda: proj.plain.apply_async((1,), {"z": 2}),
        lambda: proj.bound.delay(),
        lambda: proj.moved.delay(1),
    ):
        with pytest.raises(TypeError):
            call()
    seen = worker.result(proj.plain.delay(1, y=2))
    assert (seen["args"], seen["kwargs"], seen["pool"]) == ([1], {"y": 2}, "a")
    seen = worker.result(proj.bound.delay(1))
    assert (seen["args"], seen["kwargs"]) == ([1], {})
    assert worker.result(proj.moved.delay())["pool"] == "b"
    assert worker.result(proj.loose.delay(1, 2))["args"] == [1, 2]
    # Without a worker there is no child to ask.
    for call in (lambda: proj.plain(1), lambda: proj.plain.run(1)):
        with pytest.raises(LinePoolError, match="a.plain.*LinePool worker"):
            call()


def test_a_stub_of_an_unknown_pool_stops_the_worker(start_worker, run_celery):
    stub = """
        @app.task(base=ForeignTask, name="a.lost", pool="nowhere")
        def lost(): ...
    """
    project = start_worker.project(command=CHILD, tasks=source(PYTHON, stub))
    code, output = run_celery(
        *("-A", "proj", "worker", "-P", LINEPOOL),
        env=env_of(project),
        cwd=project.folder,
    )

    assert code != 0
    assert "a.lost.pool" in output and "'nowhere'" in output
    assert "Traceback" not in output


HOOKS = """
    from celery import Task
    from celery.exceptions import Ignore, Reject

    class Hooks:
        folder = {folder!r}

        def note(self, hook, *details):
            text = " ".join([hook, self.name.split(".")[-1], *map(str, details)])
            kind = self.name.split(".")[0]
            with open(f"{{self.folder}}/{{kind}}.{{self.request.id}}", "a") as file:
                file.write(text + "\\n")

        def before_start(self, task_id, args, kwargs):
            self.note("before_start", self.request.retries, args[1:], kwargs)

        def on_success(self, retval, task_id, args, kwargs):
            self.note("on_success", retval, args[1:])

        def on_retry(self, exc, task_id, args, kwargs, einfo):
            self.note("on_retry", type(exc).__name__, args[1:])

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            self.note("on_failure", args[1:])

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            self.note("after_return", status, args[1:], einfo is None)

    class Foreign(Hooks, ForeignTask):
        abstract = True

    class Python(Hooks, Task):
        abstract = True

    @app.task(base=Foreign, name="foreign.reply")
    def foreign(reply, retries=0): ...

    @app.task(base=Python, name="python.reply", bind=True)
    def python(self, reply, retries=0):
        status = reply["status"]
        if status == "retry":
            raise self.retry(countdown=0)
        if status == "error":
            raise ValueError(reply["message"])
        if status == "ignored":
            raise Ignore()
        if status == "rejected":
            raise Reject()
        return reply["result"]

    class Twice(ForeignTask):
        name = "twice.add"

        def run(self, x, y):
            first = super().run(x, y)
            return [first, super().run(first, y)]

    app.register_task(Twice())

    class Wrapped(ForeignTask):
        name = "wrapped.add"

        def __call__(self, *args, **kwargs):
            return ["called", super().__call__(*args, **kwargs)]

    app.register_task(Wrapped())
"""


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_task_classes(start_worker, tmp_path, broker):
    """The hooks are called as those of a Python task, and ``run`` can be overridden."""
    worker = start_worker(
        broker,
        command=CHILD,
        args=("-c", "1"),
        conf={"task_annotations": {"*": {"max_retries": 1, "default_retry_delay": 0}}},
        tasks=source(PYTHON, HOOKS.format(folder=str(tmp_path))),
    )
    replies = [
        {"status": "ok", "result": 7},
        {"status": "error", "message": "boom"},
        {"status": "retry", "retry_after_secs": 0},
        {"status": "ignored"},
        {"status": "rejected"},
    ]
    pairs = []
    for reply in replies:
        for kind in ("foreign", "python"):
            result = worker.send(f"{kind}.reply", reply)
            ends = "succeeded|raised unexpected|ignored|rejected|reject requeue"
            worker.wait_for_log(rf"Task {kind}.reply\[{result.id}\] ({ends})")
            pairs.append(tmp_path / f"{kind}.{result.id}")
    # At -c 1: it does not wait for a second child.
    assert worker.call("twice.add", 1, 2) == [3, 5]
    assert worker.call("wrapped.add", 1, 2) == ["called", 3]

    # after_return comes after what is logged: only now is nothing missing.
    assert worker.stop() == 0
    foreign = [lines(path) for path in pairs[::2]]
    assert foreign == [lines(path) for path in pairs[1::2]]
    called = {line.split()[0] for noted in foreign for line in noted}
    hooks = {"before_start", "on_success", "on_retry", "on_failure", "after_return"}
    assert called == hooks


# --- messages -------------------------------------------------------------------------


def test_serializers_and_the_old_message_protocol(start_worker):
    register = """
        from kombu import serialization
        serialization.register(
            "backwards", None, lambda text: __import__("json").loads(text[::-1]),
            "application/x-backwards", "utf-8",
        )
    """
    worker = start_worker(
        command=CHILD,
        conf={"accept_content": ["json", "pickle", "application/x-backwards"]},
        tasks=register,
    )
    serialization.register(
        "backwards",
        lambda data: json.dumps(data)[::-1],
        None,
        "application/x-backwards",
        "utf-8",
    )
    old = Celery("proj", set_as_current=False)
    old.conf.update(worker.project.conf, task_protocol=1)
    try:
        value = {"a": [1, None, "\u2028"]}
        assert worker.call("x.echo", value, serializer="backwards") == value
        assert worker.call("x.echo", value, serializer="pickle") == value
        assert worker.call("x.echo", value, compression="gzip") == value
        when = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.timezone.utc)
        some = (when, uuid.UUID(int=5), (1, 2), b"\xff")
        assert worker.call("x.echo", some, serializer="pickle") == [
            "2026-01-31T12:00:00+00:00",
            "00000000-0000-0000-0000-000000000005",
            [1, 2],
            "/w==",
        ]
        assert worker.result(old.send_task("x.echo", (value,))) == value
        chained = chain(
            old.signature("x.add", (1, 2)), old.signature("x.add", (3,), countdown=0)
        )
        assert worker.result(chained.apply_async()) == 6
        with pytest.raises(ForeignError, match="boom"):
            worker.result(old.send_task("x.boom", serializer="pickle"))
    finally:
        serialization.unregister("backwards")
        close_app(old)


# --- which pool -----------------------------------------------------------------------


ROUTED = """
    @app.task(base=ForeignTask, name="billing.stub", pool="other")
    def stub(): ...
"""


@pytest.mark.parametrize("broker", BROKERS)
def test_routing(start_worker, broker):
    project = start_worker.project(
        broker,
        conf={
            "linepool_pools": pools(
                named={"tasks": ["billing.*"]},
                queued={"queues": ["render"]},
                other={"tasks": ["o"]},
            )
        },
        tasks=source(PYTHON, ROUTED),
    )
    queues = f"{project.queue},render"
    worker = start_worker(args=("-c", "1", "-Q", queues), project=project)

    def pool(name, **options):
        return worker.call(name, **options)["pool"]

    # The stub's own, then the globs, then the queue.
    assert pool("billing.stub") == "other"
    assert pool("billing.stub", queue="render") == "other"
    assert pool("billing.what") == "named"
    assert pool("billing.what", queue="render") == "named"
    with pytest.raises(NotRegistered, match="any.what"):
        worker.call("any.what")
    assert "no pool serves the task 'any.what'" in worker.log
    assert pool("any.what", queue="render") == "queued"
    for queue in (project.queue, "render"):
        with pytest.raises(NotRegistered, match="celery.what"):
            worker.call("celery.what", queue=queue)
    assert worker.call("python.double", 2, queue="render") == 4


def test_a_name_is_known_in_the_queues_of_its_pool_only(start_worker):
    conf = {
        "linepool_pools": pools(queued={"queues": ["render"]}, other={"tasks": ["o"]})
    }
    project = start_worker.project(conf=conf)
    queues = f"{project.queue},render"
    worker = start_worker(args=("-c", "1", "-Q", queues), project=project)

    for _ in range(2):
        assert worker.call("any.what", queue="render")["pool"] == "queued"
        with pytest.raises(NotRegistered, match="any.what"):
            worker.call("any.what")


def test_names_of_celery_never_reach_a_child(start_worker):
    worker = start_worker(command=CHILD)

    with pytest.raises(NotRegistered, match="celery.what"):
        worker.call("celery.what")
    worker.wait_for_log("no pool serves the task 'celery.what'")
    assert worker.call("celeryish.what")["task"] == "celeryish.what"


@pytest.mark.parametrize(
    "broker, concurrency", [*((broker, "5") for broker in BROKERS), ("rabbitmq", "1")]
)
def test_a_slow_pool_does_not_hold_up_another(start_worker, gates, broker, concurrency):
    """Whatever -c says, which is the size of a pool that has none of its own."""
    conf = {
        "linepool_pools": pools(
            slow={"tasks": ["slow.*"], "size": 2}, fast={"tasks": ["fast.*"], "size": 3}
        ),
        "worker_prefetch_multiplier": 1,
    }
    worker = start_worker(broker, conf=conf, args=("-c", concurrency), tasks=PYTHON)
    slow, fast = gates(), gates()
    # More than the prefetch count by far: the worker has to look beyond it, and soon.
    count = 60 if broker == "filesystem" else 300
    many = [worker.send("slow.gate", slow.path) for _ in range(count)]
    few = [worker.send("fast.gate", fast.path) for _ in range(3)]
    # Every slot of every pool is busy at once.
    slow.wait(2)
    fast.wait(3)
    assert worker.call("python.double", 2) == 4
    fast.open()
    for result in few:
        worker.result(result)
    assert [worker.call("fast.echo", n) for n in range(5)] == list(range(5))
    assert len(slow.pids) == 2
    slow.open()
    for result in many:
        worker.result(result)
    assert len(slow.pids) == count and len(set(slow.pids)) == 2


# --- beside the children --------------------------------------------------------------

DIRECT = """
    from celery import current_task

    @app.task(base=ForeignTask, name="x.add")
    def add(x, y): ...

    @app.task(base=ForeignTask, name="x.boom")
    def boom(): ...

    @app.task(name="python.asks")
    def asks():
        values = [add(1, 2), add.run(3, 4)]
        try:
            boom()
        except Exception as exc:
            values.append([type(exc).__name__, exc.message])
        return values + [current_task.name]

    @app.task(name="python.gate")
    def gate(path):
        Path(path + ".started").open("a").write("1\\n")
        while not Path(path + ".open").exists():
            time.sleep(0.005)
        return add(1, 1)
"""


@pytest.mark.parametrize("broker", ["redis", "filesystem"])
def test_python_tasks_beside_busy_children(start_worker, gates, broker):
    worker = start_worker(
        broker,
        CHILD,
        args=("-c", "2"),
        conf={"result_backend_thread_safe": True},
        tasks=source(PYTHON, DIRECT),
    )
    children, threads = gates(), gates()
    foreign = [worker.send("x.gate", children.path) for _ in range(2)]
    python = [worker.send("python.gate", threads.path) for _ in range(2)]
    children.wait(2)
    threads.wait(2)
    threads.open()
    # They wait for a child now, and hold none.
    children.open()
    assert [worker.result(result) for result in python] == [2, 2]
    assert {worker.result(result)["pid"] for result in foreign} == set(children.pids)
    answer = [3, 7, ["ForeignError", "boom"], "python.asks"]
    assert worker.call("python.asks") == answer
    backend = sig(worker, "celery.backend_cleanup")
    assert apply(worker, backend) is None


def test_python_and_builtin_tasks_run_while_all_children_are_busy(start_worker, gates):
    worker = start_worker(command=CHILD, args=("-c", "1"), tasks=PYTHON)
    gate = gates()
    worker.send("x.gate", gate.path)
    gate.wait()

    assert worker.call("python.double", 2) == 4
    doubled = {"task": "python.double", "args": []}
    assert worker.call("celery.map", doubled, [1, 2]) == [2, 4]
    assert worker.call("celery.accumulate", 1, 2) == [1, 2]
    assert worker.inspect("ping") == {"ok": "pong"}


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_dead_backend_stalls_only_what_needs_it(
    start_worker, gates, tmp_path, broker
):
    stub = """
        @app.task(base=ForeignTask, name="stub.mark", ignore_result=True)
        def mark(path, text): ...
    """
    worker = start_worker(
        broker,
        CHILD,
        args=("-c", "2"),
        tasks=source(PYTHON, stub),
        private_backend=True,
    )
    mark, gate = str(tmp_path / "marks"), gates()
    kept = worker.send("x.gate", gate.path)
    gate.wait()
    worker.backend.pause()
    try:
        gate.open()
        # Its child is free again, although its result is not stored.
        for n in range(5):
            for name in ("stub.mark", "x.mark"):
                worker.send(name, mark, f"{name}{n}", ignore_result=True)
        eventually(lambda: len(lines(mark)) == 10)
        assert worker.inspect("ping") == {"ok": "pong"}
        assert [task["id"] for task in worker.inspect("active")] == [kept.id]
    finally:
        worker.backend.resume()
    assert worker.result(kept)["pid"] == gate.pids[0]
    assert worker.stop() == 0


def test_a_broker_that_goes_and_comes_back(start_worker, gates, tmp_path):
    worker = start_worker(
        "rabbitmq",
        CHILD,
        args=("-c", "2"),
        conf={
            "task_annotations": {"late.gate": {"acks_late": True}},
            # A message that was not confirmed may be lost with the broker.
            "broker_transport_options": {"confirm_publish": True},
        },
        private_broker=True,
    )
    early, late = gates(), gates()
    running = [worker.send("early.gate", early.path)]
    early.wait()
    running.append(worker.send("late.gate", late.path))
    late.wait()
    marks = [str(tmp_path / f"mark{n}") for n in range(5)]
    waiting = [worker.send("x.mark", mark, "run") for mark in marks]
    expected = {result.id for result in waiting}
    eventually(lambda: expected <= set(ids(worker.inspect("reserved"))))

    worker.broker.crash()
    worker.wait_for_log("Cannot connect to amqp")
    early.open()
    late.open()
    # The results are stored while there is no broker.
    assert worker.result(running[0])["pid"] == early.pids[0]
    assert worker.result(running[1])["pid"] == late.pids[0]
    # What waited is flushed: the broker will deliver it again.
    assert not any(lines(mark) for mark in marks)
    seen = len(worker.log)
    worker.broker.start()
    worker.wait_for_log("Connected to amqp", after=seen)

    assert [worker.result(result) for result in waiting] == [1] * 5
    assert worker.call("x.add", 1, 2) == 3
    eventually(lambda: not worker.inspect("active"))
    assert [lines(mark) for mark in marks] == [["run"]] * 5
    # Whether the acknowledgement had reached the broker's disk is its own affair.
    assert len(early.pids) <= 2
    assert len(late.pids) == 2
    assert worker.queue_size() == 0
    assert worker.stop() == 0
