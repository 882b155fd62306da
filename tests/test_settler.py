"""Results on their way to the backend: in batches, and as Celery itself stores them."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Optional

import pytest
import redis
from celery import Celery, states
from celery.app.base import Celery as App
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError
from celery.result import AsyncResult
from localprocess import Servers
from workers import close_app

from celery_linepool.engine import Engine
from celery_linepool.errors import ForeignError
from celery_linepool.settler import (
    BatchingAway,
    SettledBackend,
    ThreadedAway,
    is_redis,
)
from celery_linepool.threads import Threads

PATIENCE = 30.0
#: So that a dead server is an error soon.
IMPATIENT = {
    "retry_policy": {
        "max_retries": 2,
        "interval_start": 0,
        "interval_step": 0.01,
        "interval_max": 0.01,
    }
}


@pytest.fixture
def url(servers: Servers) -> Iterator[str]:
    lease = servers.shared("redis").lease()
    yield lease.url
    lease.release()


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celery]]:
    apps: list[Celery] = []

    def make(backend: str, **conf: Any) -> Celery:
        app = App("settler", set_as_current=False, broker="memory://", backend=backend)
        app.conf.update(conf)
        apps.append(app)
        return app

    yield make
    for app in apps:
        close_app(app)


@pytest.fixture
def app(make_app: Callable[..., Celery], url: str) -> Celery:
    return make_app(url)


@pytest.fixture
def client(url: str) -> Iterator["redis.Redis[bytes]"]:
    with closing(redis.Redis.from_url(url)) as client:
        yield client


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def away(app: Celery, engine: Engine) -> Iterator[BatchingAway]:
    """Not started: what is submitted before it starts is one batch."""
    away = BatchingAway(app, engine.wake)
    yield away
    away.stop()


def nobody() -> None:
    """Waits in the engine for what is done."""


def attempt(call: Callable[[], Any]) -> tuple[Any, Optional[BaseException]]:
    try:
        return call(), None
    except Exception as exc:
        return None, exc


def in_greenlet(engine: Engine, call: Callable[[], Any]) -> Any:
    """`call()` as the host of a task runs it; what it returns or raises."""
    done: Any = queue.SimpleQueue()
    engine.post(engine.start_greenlet, lambda: done.put(attempt(call)))
    value, error = done.get(timeout=PATIENCE)
    if error is not None:
        raise error
    return value


def submit(away: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    done: Any = queue.SimpleQueue()
    away.submit(method, args, kwargs, done.put)
    away.wake()
    return done


def outcome(done: Any) -> Any:
    return done.get(timeout=PATIENCE)


def reads(client: "redis.Redis[bytes]") -> int:
    """How often the server has read from any of its clients."""
    return int(client.info("stats")["total_reads_processed"])


def calls(client: "redis.Redis[bytes]", command: str) -> int:
    stats = client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


# --- batches --------------------------------------------------------------------------


def test_what_waits_at_one_moment_goes_out_together(
    away: BatchingAway, client: "redis.Redis[bytes]"
) -> None:
    count = 20
    warm = submit(away, "mark_as_done", "warm", 0)
    batch = [submit(away, "mark_as_done", f"id-{n}", n) for n in range(count)]
    commands = {name: calls(client, name) for name in ("get", "setex", "publish")}
    before = reads(client)
    away.start()
    for done in (warm, *batch):
        assert outcome(done)[1] is None
    # A look and a store are a round trip each, and a connection has its greetings.
    # Not one more than that for each task.
    assert reads(client) - before < count
    for name, number in commands.items():
        assert calls(client, name) - number == count + 1, name
    assert all(client.get(f"celery-task-meta-id-{n}") for n in range(count))


def test_what_comes_while_a_batch_is_out_is_the_next_batch(
    away: BatchingAway, app: Celery
) -> None:
    away.start()
    rounds = [
        [submit(away, "mark_as_done", f"{r}-{n}", n) for n in range(50)]
        for r in range(20)
    ]
    for dones in rounds:
        for done in dones:
            assert outcome(done)[1] is None
    for r in range(20):
        assert AsyncResult(f"{r}-49", app=app).get(timeout=PATIENCE) == 49


def test_the_failure_of_one_is_not_that_of_the_others(
    away: BatchingAway, app: Celery, client: "redis.Redis[bytes]"
) -> None:
    # Where the second task looks for its state is something else.
    client.rpush("celery-task-meta-2", "no state")
    dones = [submit(away, "mark_as_done", str(n), n) for n in range(5)]
    away.start()
    errors = [outcome(done)[1] for done in dones]
    assert [error is None for error in errors] == [True, True, False, True, True]
    assert "WRONGTYPE" in str(errors[2])
    for n in (0, 1, 3, 4):
        assert AsyncResult(str(n), app=app).get(timeout=PATIENCE) == n


def test_what_is_not_plain_goes_out_by_itself(
    make_app: Callable[..., Celery], url: str, client: "redis.Redis[bytes]"
) -> None:
    """A backend made from Celery's may store in a way of its own."""

    class Listed(RedisBackend):  # type: ignore[misc]
        def _set(self, key: Any, value: Any, *args: Any) -> None:
            with self.client.pipeline() as pipe:
                pipe.set(key, value, ex=100).rpush("all", key)
                found = pipe.execute()
                assert found[0] is True and found[1] >= 1

    app = make_app(url)
    app._local.backend = Listed(app=app, url=url)
    app._get_backend = lambda: app._local.backend
    away = BatchingAway(app, nobody)
    try:
        dones = [submit(away, "mark_as_done", str(n), n) for n in range(3)]
        away.start()
        assert [outcome(done)[1] for done in dones] == [None] * 3
        assert client.llen("all") == 3
        assert 0 < client.ttl("celery-task-meta-1") <= 100
        client.set("all", "no list")
        error = outcome(submit(away, "mark_as_done", "3", 3))[1]
        assert "WRONGTYPE" in str(error)
    finally:
        away.stop()


def test_a_result_that_cannot_be_encoded_is_one_tasks_failure(
    away: BatchingAway, app: Celery
) -> None:
    bad = submit(away, "mark_as_done", "bad", object())
    good = submit(away, "mark_as_done", "good", 1)
    away.start()
    assert isinstance(outcome(bad)[1], Exception)
    assert outcome(good)[1] is None
    assert AsyncResult("good", app=app).get(timeout=PATIENCE) == 1
    # And it still runs.
    assert outcome(submit(away, "mark_as_done", "later", 2))[1] is None


def test_the_states_of_one_task_keep_their_order(
    away: BatchingAway, app: Celery
) -> None:
    started = submit(away, "store_result", "id", {"pid": 7}, states.STARTED)
    done = submit(away, "mark_as_done", "id", "done")
    away.start()
    assert outcome(started)[1] is None and outcome(done)[1] is None
    assert AsyncResult("id", app=app).state == states.SUCCESS


def test_a_success_is_never_overwritten(away: BatchingAway, app: Celery) -> None:
    away.start()
    for call in (
        ("mark_as_done", "id", "first"),
        ("store_result", "id", None, states.STARTED),
        ("mark_as_failure", "id", ValueError("late")),
    ):
        assert outcome(submit(away, *call))[1] is None
    assert AsyncResult("id", app=app).get(timeout=PATIENCE) == "first"


def test_stopping_finishes_what_was_submitted(away: BatchingAway, app: Celery) -> None:
    dones = [submit(away, "mark_as_done", str(n), n) for n in range(100)]
    away.start()
    away.stop()
    assert [outcome(done)[1] for done in dones] == [None] * 100
    assert AsyncResult("99", app=app).get(timeout=PATIENCE) == 99


# --- the same as Celery itself --------------------------------------------------------

#: (method, arguments after the task's id)
STORED: list[tuple[str, tuple[Any, ...]]] = [
    ("mark_as_done", ({"a": [1, 2**70, "\u2028"]},)),
    ("mark_as_done", (None,)),
    ("mark_as_failure", (ForeignError("m", "Type", ["x.rb:1"]), "traceback")),
    ("mark_as_failure", (ValueError("v"),)),
    ("mark_as_retry", (ForeignError("m"), "traceback")),
    ("store_result", ({"pid": 7, "hostname": "h"}, states.STARTED)),
    ("store_result", ({"done": 0.5}, "PROGRESS")),
]


@pytest.mark.parametrize("method, args", STORED)
@pytest.mark.parametrize("conf", [{}, {"result_expires": None}, {"result_extended": 1}])
def test_it_is_stored_as_celery_stores_it(
    make_app: Callable[..., Celery],
    url: str,
    client: "redis.Redis[bytes]",
    method: str,
    args: tuple[Any, ...],
    conf: dict[str, Any],
) -> None:
    app = make_app(url, **conf)
    away = BatchingAway(app, nobody)
    away.start()
    try:
        value, error = outcome(submit(away, method, "ours", *args))
        assert error is None
        assert value == getattr(app.backend, method)("celerys", *args)
        metas = []
        for id_ in ("ours", "celerys"):
            meta = json.loads(client.get(f"celery-task-meta-{id_}") or "")
            assert meta.pop("task_id") == id_
            assert (
                meta.pop("date_done", None) or meta["status"] not in states.READY_STATES
            )
            metas.append(meta)
        assert metas[0] == metas[1]
        lives = [client.ttl(f"celery-task-meta-{id_}") for id_ in ("ours", "celerys")]
        assert abs(lives[0] - lives[1]) <= 60
        assert (lives[0] == -1) == (conf == {"result_expires": None})
    finally:
        away.stop()


def test_who_waits_for_a_result_is_told(
    away: BatchingAway, client: "redis.Redis[bytes]"
) -> None:
    away.start()
    with closing(client.pubsub()) as pubsub:
        pubsub.subscribe("celery-task-meta-id")
        assert pubsub.get_message(timeout=PATIENCE)["type"] == "subscribe"
        assert outcome(submit(away, "mark_as_done", "id", 7))[1] is None
        message = pubsub.get_message(timeout=PATIENCE)
    assert message["data"] == client.get("celery-task-meta-id")
    assert json.loads(message["data"])["result"] == 7


def test_a_result_that_is_waited_for(away: BatchingAway, app: Celery) -> None:
    away.start()
    got: Any = queue.SimpleQueue()
    result = AsyncResult("id", app=app)
    waiting = threading.Thread(
        target=lambda: got.put(attempt(lambda: result.get(timeout=PATIENCE))),
        daemon=True,
    )
    waiting.start()
    assert outcome(submit(away, "mark_as_done", "id", [1]))[1] is None
    assert outcome(got) == ([1], None)
    waiting.join()


def test_a_foreign_error_is_read_as_one(away: BatchingAway, app: Celery) -> None:
    away.start()
    error = ForeignError("boom", "RuntimeError", ["a.rb:1"])
    assert outcome(submit(away, "mark_as_failure", "id", error, "tb"))[1] is None
    result = AsyncResult("id", app=app)
    with pytest.raises(ForeignError, match="boom") as caught:
        result.get(timeout=PATIENCE)
    assert caught.value.foreign_type == "RuntimeError"
    assert caught.value.backtrace == ["a.rb:1"]


# --- what a task sees -----------------------------------------------------------------


def test_a_task_waits_and_the_engine_does_not(
    app: Celery, away: BatchingAway, engine: Engine
) -> None:
    backend = SettledBackend(app.backend, engine, away)
    stored: Any = queue.SimpleQueue()
    engine.post(
        engine.start_greenlet,
        lambda: stored.put(attempt(lambda: backend.mark_as_done("id", 7, None, True))),
    )
    passed: Any = queue.SimpleQueue()
    engine.post(passed.put, "the engine goes on")
    assert passed.get(timeout=PATIENCE)
    assert stored.empty(), "nobody stores anything yet"
    away.start()
    assert outcome(stored)[1] is None
    assert AsyncResult("id", app=app).get(timeout=PATIENCE) == 7


def test_tasks_of_one_turn_wake_the_settler_when_all_are_there(
    app: Celery,
    away: BatchingAway,
    engine: Engine,
    client: "redis.Redis[bytes]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []
    for name in ("submit", "wake"):

        def noted(*args: Any, name: str = name, own: Any = getattr(away, name)) -> None:
            happened.append(name)
            own(*args)

        monkeypatch.setattr(away, name, noted)
    away.start()
    backend = SettledBackend(app.backend, engine, away)
    stored: Any = queue.SimpleQueue()

    def turn() -> None:
        for number in range(5):
            store = partial(backend.mark_as_done, str(number), number)
            engine.start_greenlet(lambda store=store: stored.put(attempt(store)))

    engine.post(turn)
    assert [outcome(stored)[1] for _ in range(5)] == [None] * 5
    assert happened[:6] == ["submit"] * 5 + ["wake"]
    assert len(client.keys("celery-task-meta-*")) == 5


def test_a_task_gets_the_error_of_its_own_store(
    app: Celery, away: BatchingAway, engine: Engine
) -> None:
    away.start()
    backend = SettledBackend(app.backend, engine, away)
    with pytest.raises(Exception, match="JSON serializable|not serializable"):
        in_greenlet(engine, lambda: backend.mark_as_done("id", object()))


def test_a_thread_may_host_the_task_as_well(
    app: Celery, away: BatchingAway, engine: Engine
) -> None:
    away.start()
    SettledBackend(app.backend, engine, away).mark_as_done("id", 7)
    assert AsyncResult("id", app=app).get(timeout=PATIENCE) == 7


class Forbidden:
    """An `Away` to which nothing may be given."""

    def submit(self, *args: Any) -> None:
        raise AssertionError(f"submitted: {args}")


@pytest.mark.parametrize(
    "method, args, kwargs",
    [
        ("mark_as_done", ("id", 7, None, False), {}),
        ("mark_as_done", ("id", 7), {"store_result": False}),
        # How Celery before 5.7 calls it when the message says so.
        ("mark_as_done", ("id", 7, Context(ignore_result=True), True), {}),
        ("mark_as_failure", ("id", ValueError()), {"store_result": False}),
    ],
)
def test_a_result_that_is_ignored_goes_nowhere(
    app: Celery,
    engine: Engine,
    client: "redis.Redis[bytes]",
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    backend = SettledBackend(app.backend, engine, Forbidden())
    getattr(backend, method)(*args, **kwargs)
    assert client.keys("celery-task-meta-*") == []


def test_without_a_backend_nothing_is_handed_over(
    make_app: Callable[..., Celery], engine: Engine
) -> None:
    app = make_app("disabled://")
    assert isinstance(app.backend, DisabledBackend)
    backend = SettledBackend(app.backend, engine, Forbidden())
    backend.mark_as_done("id", 7)
    backend.store_result("id", 7, states.STARTED)


def test_everything_else_is_the_backends_own(app: Celery, engine: Engine) -> None:
    backend = SettledBackend(app.backend, engine, Forbidden())
    assert backend.as_uri() == app.backend.as_uri()
    assert backend.get_task_meta("unknown")["status"] == states.PENDING
    with pytest.raises(AttributeError):
        backend.no_such_attribute


# --- a backend that is away -----------------------------------------------------------


def test_a_dead_backend_is_an_error_in_time_and_a_live_one_none_again(
    servers: Servers, make_app: Callable[..., Celery], engine: Engine
) -> None:
    server = servers.private("redis")
    try:
        app = make_app(server.url, result_backend_transport_options=IMPATIENT)
        away = BatchingAway(app, engine.wake)
        away.start()
        backend = SettledBackend(app.backend, engine, away)
        try:
            in_greenlet(engine, lambda: backend.mark_as_done("before", 1))
            server.stop()
            dones = [submit(away, "mark_as_done", str(n), n) for n in range(3)]
            for done in dones:
                assert isinstance(outcome(done)[1], BackendStoreError)
            with pytest.raises(BackendStoreError, match="backend failed"):
                in_greenlet(engine, lambda: backend.mark_as_done("x", 1))
            server.start()
            in_greenlet(engine, lambda: backend.mark_as_done("after", 3))
            for id_, value in (("before", 1), ("after", 3)):
                assert AsyncResult(id_, app=app).get(timeout=PATIENCE) == value
        finally:
            away.stop()
            close_app(app)
    finally:
        server.teardown()


def test_a_connection_that_was_closed_meanwhile_is_no_error(
    away: BatchingAway,
    app: Celery,
    client: "redis.Redis[bytes]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server may close those that are idle."""
    away.start()
    for number in range(3):
        assert outcome(submit(away, "mark_as_done", str(number), number))[1] is None
        client.client_kill_filter(_type="normal", skipme=True)
    assert AsyncResult("2", app=app).get(timeout=PATIENCE) == 2
    assert not caplog.messages


def test_a_frozen_backend_holds_up_nobody_but_its_own_tasks(
    servers: Servers, make_app: Callable[..., Celery], engine: Engine
) -> None:
    server = servers.private("redis")
    try:
        app = make_app(server.url)
        away = BatchingAway(app, engine.wake)
        away.start()
        backend = SettledBackend(app.backend, engine, away)
        try:
            in_greenlet(engine, lambda: backend.mark_as_done("before", 1))
            server.pause()
            stored: Any = queue.SimpleQueue()
            engine.post(
                engine.start_greenlet,
                lambda: stored.put(attempt(lambda: backend.mark_as_done("id", 7))),
            )
            assert in_greenlet(engine, lambda: "another task") == "another task"
            assert stored.empty()
            server.resume()
            assert outcome(stored)[1] is None
            assert AsyncResult("id", app=app).get(timeout=PATIENCE) == 7
        finally:
            away.stop()
            close_app(app)
    finally:
        server.teardown()


# --- any other backend ----------------------------------------------------------------


def test_another_backend_gets_threads(
    make_app: Callable[..., Celery], tmp_path: Path, engine: Engine
) -> None:
    app = make_app(f"file://{tmp_path}")
    threads = Threads("test", 4)
    away = ThreadedAway(app, threads, engine.wake)
    backend = SettledBackend(app.backend, engine, away)
    try:
        in_greenlet(engine, lambda: backend.mark_as_done("id", 7))
        assert app.backend.get_task_meta("id")["result"] == 7
        with pytest.raises(Exception, match="JSON serializable|not serializable"):
            in_greenlet(engine, lambda: backend.mark_as_done("bad", object()))
    finally:
        away.stop()
        threads.stop()


def test_slow_stores_of_another_backend_overlap(
    make_app: Callable[..., Celery], tmp_path: Path
) -> None:
    app = make_app(f"file://{tmp_path}")
    together = threading.Barrier(3)
    store = type(app.backend).mark_as_done

    class Slow(type(app.backend)):  # type: ignore[misc]
        def mark_as_done(self, *args: Any, **kwargs: Any) -> Any:
            together.wait(PATIENCE)
            return store(self, *args, **kwargs)

    app._get_backend = lambda: Slow(app=app, url=f"file://{tmp_path}")
    app._local = threading.local()
    app._backend_cache = None
    threads = Threads("test", 3)
    away = ThreadedAway(app, threads, nobody)
    try:
        dones = [submit(away, "mark_as_done", str(n), n) for n in range(3)]
        assert [outcome(done)[1] for done in dones] == [None] * 3
    finally:
        threads.stop()


@pytest.mark.parametrize(
    "backend, expected",
    [
        ("redis://localhost:1/0", True),
        ("rediss://localhost:1/0?ssl_cert_reqs=none", True),
        ("sentinel://localhost:1/0", True),
        ("cache+memory://", False),
        ("disabled://", False),
        ("rpc://", False),
    ],
)
def test_which_backends_are_redis(
    make_app: Callable[..., Celery], backend: str, expected: bool
) -> None:
    # Nothing is connected to before it is used.
    assert is_redis(make_app(backend).backend) is expected
