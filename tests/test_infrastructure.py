"""The tests' own tools: brokers, workers and the look for leaks, on stock pools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from celery import Celery
from leaks import TEST_ID, LeakGuard
from workers import eventually

pytestmark = pytest.mark.newest_celery

TESTS = Path(__file__).parent

TASKS = """
    import os
    import subprocess
    import time

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def boom():
        raise ValueError("boom")

    @app.task(acks_late=True)
    def touch_and_sleep(path, seconds):
        open(path, "a").write("x")
        time.sleep(seconds)
        return os.getpid()

    @app.task
    def orphan(argv, env):
        # The child's parent ends at once: it belongs to init from then on.
        script = "import json, os, subprocess, sys; argv, env = json.loads(" \\
            "sys.argv[1]); subprocess.Popen(argv, env=env, start_new_session=True)"
        import json, sys
        subprocess.run(
            [sys.executable, "-c", script, json.dumps([argv, env])], check=True
        )
"""

BROKERS = ["redis", "rabbitmq", "filesystem"]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.mark.parametrize("broker", BROKERS)
def test_a_worker_answers_on_every_broker(start_worker, broker):
    worker = start_worker(broker, pool="solo", tasks=TASKS)

    assert worker.call("proj.add", 2, 3) == 5
    assert worker.result(worker.module.add.delay(4, 5)) == 9
    with pytest.raises(ValueError, match="boom"):
        worker.call("proj.boom")
    assert worker.inspect("ping") == {"ok": "pong"}
    assert worker.inspect("stats")["pid"] == worker.pid
    assert worker.queue_size() == 0
    assert worker.wait_for_log(r"Task proj\.add\[.*\] succeeded")
    assert worker.stop() == 0


def shares_a_task():
    app = Celery("shares", set_as_current=False)

    @app.task(name="shared")
    def shared():
        pass

    return app


@pytest.mark.parametrize("time", ["first", "second"])
def test_apps_of_other_tests_share_no_tasks(time):
    assert "shared" not in Celery("other", set_as_current=False).tasks
    assert "shared" in shares_a_task().tasks


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_any_pool_can_be_named(start_worker, pool):
    worker = start_worker(pool=pool, args=("-c", "2"), tasks=TASKS)

    assert worker.call("proj.add", 1, 1) == 2
    assert len(worker.children("celery")) == (2 if pool == "prefork" else 0)


def test_the_settings_may_name_the_pool(start_worker):
    worker = start_worker(pool=None, conf={"worker_pool": "solo"}, tasks=TASKS)

    assert "solo" in worker.inspect("stats")["pool"]["implementation"]


def test_conf_must_be_a_literal(start_worker):
    with pytest.raises(TypeError, match="goes into tasks="):
        start_worker(conf={"task_routes": [lambda *args: None]})


def test_a_worker_that_cannot_start_fails_early_with_its_log(start_worker):
    with pytest.raises(pytest.fail.Exception, match="this is why"):
        start_worker(pool="solo", tasks="raise RuntimeError('this is why')")


def test_workers_of_one_test_do_not_share_anything(start_worker):
    first = start_worker(pool="solo", tasks=TASKS, wait=False)
    second = start_worker(pool="solo", tasks=TASKS, wait=False)
    first.wait_until_ready()
    second.wait_until_ready()

    assert first.call("proj.add", 1, 2) == 3
    assert "succeeded" not in second.log


def test_a_killed_workers_task_goes_to_another_one(start_worker, tmp_path):
    mark = tmp_path / "mark"
    project = start_worker.project("rabbitmq", tasks=TASKS)
    first = start_worker(pool="solo", project=project)
    result = first.send("proj.touch_and_sleep", str(mark), 5)
    eventually(mark.exists)
    assert first.kill() == -signal.SIGKILL
    second = start_worker(pool="solo", project=project)

    assert second.result(result) == second.pid
    assert mark.read_text() == "xx"


def test_a_worker_can_be_started_again(start_worker):
    worker = start_worker(pool="solo", tasks=TASKS)
    pid = worker.pid
    assert worker.stop() == 0
    worker.start()

    assert worker.pid != pid
    assert worker.call("proj.add", 1, 2) == 3
    assert worker.log.count("ready.") == 2


def test_a_private_broker_goes_and_comes_back(start_worker):
    # RabbitMQ, because some Celery versions do not survive the loss of a Redis.
    worker = start_worker("rabbitmq", pool="solo", tasks=TASKS, private_broker=True)
    worker.broker.stop()
    worker.wait_for_log("[Cc]onnection to broker lost|Cannot connect to")
    seen = len(worker.log)
    worker.broker.start()
    worker.wait_for_log("Connected to", after=seen)

    assert worker.call("proj.add", 2, 3) == 5


def test_a_private_redis_keeps_messages_over_a_restart(start_worker):
    project = start_worker.project(tasks=TASKS, private_broker=True)
    result = project.app.send_task("proj.add", (2, 3))
    project.broker.stop()
    project.broker.start()
    worker = start_worker(pool="solo", project=project)

    assert worker.result(result) == 5


def test_a_shared_broker_cannot_be_stopped(start_worker):
    project = start_worker.project()
    with pytest.raises(RuntimeError, match="private_broker=True"):
        project.broker.stop()


def test_a_private_backend_can_be_frozen(start_worker):
    worker = start_worker(pool="solo", tasks=TASKS, private_backend=True)
    # Sent before: the client asks the backend too, to be told of the result.
    result = worker.send("proj.add", 2, 3, countdown=1)
    worker.backend.pause()
    worker.wait_for_log("received")
    worker.backend.resume()

    assert worker.result(result) == 5


def test_celery_commands_run_to_their_end(run_celery, tmp_path):
    code, output = run_celery("--version", cwd=tmp_path)
    assert code == 0, output
    code, output = run_celery("no-such-command", cwd=tmp_path)
    assert code != 0 and "no-such-command" in output


def test_the_ruby_child_echoes():
    request = {"id": "1", "payload": {"task": "t", "args": [1], "kwargs": {}}}
    done = subprocess.run(
        ["ruby", str(TESTS / "children" / "echo.rb")],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    reply = json.loads(done.stdout)

    assert reply.pop("result").items() >= request["payload"].items()
    assert reply == {"id": "1", "status": "ok"}


# --- the look for leaks


@pytest.fixture
def guard():
    """A second guard, with an id of its own, for leaks made on purpose."""
    return LeakGuard()


def test_a_tidy_test_has_no_leaks(guard):
    assert guard.leaks() == []


def test_a_leaked_child_is_found(guard):
    with subprocess.Popen(SLEEP) as child:
        [leak] = guard.leaks()
        assert f"pid {child.pid}" in leak
        child.kill()
    assert guard.leaks() == []


def test_a_zombie_is_a_leak(guard):
    child = subprocess.Popen(["true"])
    eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    [leak] = guard.leaks()
    assert "zombie" in leak
    child.wait()


def test_a_leaked_descriptor_is_found(guard):
    ends = os.pipe()
    [leak] = guard.leaks()
    assert leak.startswith("file descriptors: pipe:")
    for fd in ends:
        os.close(fd)


def test_a_leaked_thread_is_found(guard):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="stray")
    thread.start()
    [leak] = guard.leaks()
    assert leak.startswith("threads: stray")
    stop.set()
    thread.join()


def test_an_orphan_is_found_by_its_mark(start_worker, guard):
    worker = start_worker(pool="solo", tasks=TASKS)
    env = {"PATH": os.environ["PATH"], TEST_ID: guard.test_id}
    worker.call("proj.orphan", SLEEP, env)
    worker.kill()
    strays = [leak for leak in guard.leaks() if "mark of the test" in leak]
    assert strays and "time.sleep(600)" in strays[0]
    guard.clean()
    assert guard.processes() == []


def test_an_orphan_without_environment_is_found_by_its_folder(
    start_worker, guard, tmp_path
):
    worker = start_worker(pool="solo", tasks=TASKS)
    guard.folders.append(tmp_path)
    worker.call("proj.orphan", SLEEP, {})
    worker.kill()
    strays = [leak for leak in guard.leaks() if "mark of the test" in leak]
    assert strays and "time.sleep(600)" in strays[0]
    guard.clean()
    assert guard.processes() == []


LEAKY = """
    import subprocess, sys, time

    def test_leaks():
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def test_is_innocent():
        pass
"""


def inner_session(folder: Path, test: str, conftest: str) -> subprocess.Popen[str]:
    """Another pytest with the same fixtures, on tests that are meant to fail."""
    lines = [line.removeprefix("    ") for line in test.splitlines()]
    (folder / "test_inner.py").write_text("\n".join(lines))
    (folder / "conftest.py").write_text(conftest)
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", folder]
        + ["-p", "no:cacheprovider", "--basetemp", folder / "tmp", folder],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


SAME_FIXTURES = f"""
import importlib.util, sys
import leaks
leaks.GRACE = 0.5
leaks.LeakGuard.settle.__defaults__ = (0.5,)
spec = importlib.util.spec_from_file_location("outer", {str(TESTS / "conftest.py")!r})
outer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(outer)
for name in ("leak_guard", "watchdog", "servers", "start_worker", "run_celery"):
    globals()[name] = getattr(outer, name)
pytest_runtest_makereport = outer.pytest_runtest_makereport
"""


def test_the_fixture_fails_the_test_that_leaks_and_only_that(tmp_path):
    inner = inner_session(tmp_path, LEAKY, SAME_FIXTURES)
    output, _ = inner.communicate(timeout=100)

    assert "2 passed, 1 error" in output
    assert "ERROR at teardown of test_leaks" in output
    assert "the test leaked child processes" in output


FAILING = """
    def test_fails(start_worker):
        worker = start_worker("filesystem", pool="solo")
        assert worker is None
"""


def test_a_failed_test_shows_the_log_of_its_worker(tmp_path):
    inner = inner_session(tmp_path, FAILING, SAME_FIXTURES)
    output, _ = inner.communicate(timeout=100)

    assert "1 failed" in output
    assert "log of worker" in output and "ready." in output


HANGING = """
    import pathlib, time

    def test_hangs(start_worker):
        start_worker("redis", pool="solo")
        pathlib.Path(__file__).with_name("started").touch()
        time.sleep(600)
"""


def test_nothing_outlives_a_killed_session(tmp_path, leak_guard):
    inner = inner_session(tmp_path, HANGING, SAME_FIXTURES)
    leak_guard.folders.append(tmp_path)
    eventually((tmp_path / "started").exists)
    # The inner session's redis does not carry our id, but its folder gives it away.
    assert len(leak_guard.processes()) >= 3
    inner.kill()
    inner.communicate(timeout=60)

    eventually(lambda: not leak_guard.processes())
