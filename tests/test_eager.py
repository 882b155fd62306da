"""Foreign tasks in the calling process: ``apply()``, ``task_always_eager``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery, chain, group
from lone_pool import script
from workers import close_app, eventually

from celery_linepool import ForeignError, ForeignTask, LinePoolError, eager
from celery_linepool.errors import BootError

LIVES = list(script("lives.rb"))
SCRIPTED = list(script("scripted.pl"))
STUB = Callable[..., Any]


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("eager", broker="memory://", backend="cache+memory://")
    app.set_current()
    app.conf.update(task_always_eager=True, linepool_command=LIVES)
    yield app
    eager.close()
    close_app(app)


@pytest.fixture
def stub(app: Celery) -> STUB:
    def make(name: str, **options: Any) -> Any:
        def task(*args: Any, **kwargs: Any) -> None: ...

        return app.task(base=ForeignTask, name=name, **options)(task)

    return make


def test_a_warm_child_runs_it(app: Celery, stub: STUB) -> None:
    pid = stub("lives.pid")
    first = pid.delay()
    assert first.get() == pid.apply().get() == pid.s().apply_async().get()
    assert psutil.Process(first.get()).parent() == psutil.Process()
    assert first.state == "SUCCESS"
    # Not by accident: the process of a producer is no place for children.
    with pytest.raises(LinePoolError, match="run it here with apply()"):
        pid()


def test_errors_and_canvas_are_celerys(app: Celery, stub: STUB) -> None:
    failed = stub("lives.unknown").delay()
    assert failed.state == "FAILURE"
    assert "ArgumentError: no task lives.unknown" in failed.traceback
    with pytest.raises(ForeignError, match="no task"):
        failed.get()

    @app.task
    def double(number: int) -> int:
        return 2 * number

    pid = stub("lives.pid")
    own = pid.delay().get()
    assert chain(pid.s(), double.s()).apply_async().get() == 2 * own
    assert group(pid.s(), pid.s()).apply_async().get() == [own, own]


def runs(file: Path) -> list[int]:
    return [json.loads(line)["retries"] for line in file.read_text().splitlines()]


def test_it_is_run_again_as_celery_does(
    app: Celery, stub: STUB, tmp_path: Path
) -> None:
    app.conf.linepool_command = SCRIPTED
    # What waits in a worker does not wait here.
    again = stub("billing.charge", max_retries=2, default_retry_delay=1000)
    throttled = {"status": "throttled", "retry_after_secs": 1000}
    for number, reply in enumerate([{"status": "retry"}, throttled]):
        file = tmp_path / str(number)
        replies = [reply, reply, {"status": "ok", "result": 7}]
        assert again.delay(runs=str(file), replies=replies).get() == 7
        assert runs(file) == [0, 1, 2]
    for_ever = again.delay(runs=str(tmp_path / "e"), replies=[throttled])
    with pytest.raises(ForeignError, match="throttled"):
        for_ever.get()
    assert runs(tmp_path / "e") == [0, 1, 2]

    auto = stub("billing.auto", autoretry_for=(Exception,), max_retries=1)
    with pytest.raises(ForeignError, match="no money"):
        auto.delay(
            runs=str(tmp_path / "auto"),
            replies=[{"status": "error", "message": "no money"}],
        ).get()
    assert runs(tmp_path / "auto") == [0, 1]


def test_who_loses_its_child_fails_and_the_next_has_another(
    app: Celery, stub: STUB, tmp_path: Path
) -> None:
    crash = stub("lives.crash", autoretry_for=(Exception,))
    lost = crash.delay(str(tmp_path / "crashed"))
    with pytest.raises(WorkerLostError, match="about to crash"):
        lost.get()
    [pid] = map(int, (tmp_path / "crashed").read_text().split())
    assert stub("lives.pid").delay().get() != pid

    eager.close()
    app.conf.linepool_timeout = 0.5
    with pytest.raises(TimeLimitExceeded):
        stub("lives.gate").delay(str(tmp_path / "begun"), str(tmp_path / "go")).get()


def test_only_the_pool_of_the_task_is_started(app: Celery, stub: STUB) -> None:
    app.conf.update(
        linepool_command=None,
        linepool_pools={
            "lives": {"command": LIVES, "tasks": ["lives.*"], "size": 3},
            "broken": {"command": ["false"], "queues": ["broken"]},
        },
        task_routes={"render.*": {"queue": "broken"}},
    )
    pid = stub("lives.pid").delay().get()
    assert stub("other.pid", pool="lives").delay().get() == pid
    ruby = [c for c in psutil.Process().children() if "lives.rb" in c.cmdline()[-1]]
    assert [child.pid for child in ruby] == [pid]
    with pytest.raises(BootError, match="broken"):
        stub("render.page").delay().get()
    with pytest.raises(LinePoolError, match="no pool serves page.none: name it"):
        stub("page.none").delay().get()


FORKS = """
import json, os, sys
from celery import Celery
from celery_linepool import ForeignTask

app = Celery("forks", broker="memory://", set_as_current=False)
app.conf.linepool_command = json.loads(sys.argv[1])

@app.task(base=ForeignTask, name="lives.pid")
def pid(): ...

def say(**what):
    os.write(1, (json.dumps(what) + "\\n").encode())

say(parent=pid.apply().get())
fork = os.fork()
if not fork:
    say(fork=pid.apply().get())
    os._exit(0)
os.waitpid(fork, 0)
say(again=pid.apply().get())
"""


def runs_still(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_fork_has_children_of_its_own_and_none_outlives_anyone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, json.dumps(LIVES)],
        stdout=subprocess.PIPE,
        env={**os.environ},
        timeout=100,
        check=True,
    )
    said: dict[str, int] = {}
    for line in done.stdout.splitlines():
        said.update(json.loads(line))
    assert said["parent"] == said["again"] != said["fork"]
    # Whoever collects orphans may take its time.
    eventually(lambda: not any(map(runs_still, said.values())))
