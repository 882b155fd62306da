"""Selecting the pool: every way that Celery has, through the real commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from workers import LINEPOOL, eventually

CHILDREN = Path(__file__).parent / "children"
ECHO = ["ruby", str(CHILDREN / "echo.rb")]


def served_by_children(worker):
    """The pool is ours, and a task without Python code runs in one of its children."""
    assert worker.inspect("stats")["pool"]["implementation"] == LINEPOOL
    pids = {child.pid for child in worker.children("echo.rb")}
    assert worker.call("any.name", 1)["pid"] in pids
    return True


@pytest.mark.parametrize(
    ("pool", "args", "conf", "env"),
    [
        pytest.param(LINEPOOL, (), {}, {}, id="--pool package:Class"),
        pytest.param(None, ("-P", LINEPOOL), {}, {}, id="-P package:Class"),
        pytest.param(None, (f"--pool={LINEPOOL}",), {}, {}, id="--pool=package:Class"),
        pytest.param(None, ("-P", "linepool"), {}, {}, id="-P linepool"),
        pytest.param(
            "custom", (), {}, {"CELERY_CUSTOM_WORKER_POOL": LINEPOOL}, id="-P custom"
        ),
        pytest.param(None, (), {"worker_pool": LINEPOOL}, {}, id="worker_pool"),
        pytest.param(
            None, (), {}, {"CELERY_WORKER_POOL": "linepool"}, id="environment"
        ),
    ],
)
def test_each_way_to_name_the_pool(start_worker, pool, args, conf, env):
    worker = start_worker(
        command=ECHO, pool=pool, args=("-c", "2", *args), conf=conf, env=env
    )

    assert served_by_children(worker)
    assert "concurrency: 2 (celery_linepool)" in worker.log
    assert worker.stop() == 0


def project_env(project):
    path = os.pathsep.join([str(project.folder), str(CHILDREN.parent)])
    return {**os.environ, "PYTHONPATH": path, "C_FORCE_ROOT": "1"}


def test_worker_main(start_worker, tmp_path):
    project = start_worker.project(command=ECHO)
    code = f"import proj; proj.app.worker_main(['worker', '-P', '{LINEPOOL}'])"
    argv = [sys.executable, "-c", code, "--unused"]
    log = tmp_path / "main.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, env=project_env(project), cwd=tmp_path, stdout=out, stderr=out
        )
    try:
        result = project.app.send_task("any.name", args=[7])
        assert result.get(timeout=60)["args"] == [7]
        parent = psutil.Process(result.get()["pid"]).parent()
        assert parent is not None and parent.pid == process.pid
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()


def pid_in(path):
    return int(path.read_text()) if path.exists() and path.read_text().strip() else None


def ended(pid):
    return not psutil.pid_exists(pid)


def test_celery_multi(start_worker, run_celery, tmp_path):
    project = start_worker.project(command=ECHO)
    files = [f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n.log"]
    env = project_env(project)
    options = ["-A", "proj", "-P", LINEPOOL, "-c", "1", *files]
    code, output = run_celery("multi", "start", "one", *options, env=env, cwd=tmp_path)
    assert code == 0, output
    pid = eventually(lambda: pid_in(tmp_path / "one.pid"))
    try:
        result = project.app.send_task("any.name", args=[7])
        assert psutil.Process(result.get(timeout=60)["pid"]).ppid() == pid
    finally:
        code, output = run_celery(
            "multi", "stopwait", "one", *options, env=env, cwd=tmp_path
        )
    assert code == 0, output
    assert eventually(lambda: ended(pid))


def test_detach(start_worker, run_celery, tmp_path):
    project = start_worker.project(command=ECHO)
    pidfile = tmp_path / "w.pid"
    code, output = run_celery(
        *("-A", "proj", "worker", "--detach", "-P", LINEPOOL, "-c", "1"),
        *(f"--pidfile={pidfile}", f"--logfile={tmp_path}/w.log"),
        env=project_env(project),
        cwd=tmp_path,
    )
    assert code == 0, output
    pid = eventually(lambda: pid_in(pidfile))
    try:
        result = project.app.send_task("any.name", args=[7])
        assert psutil.Process(result.get(timeout=60)["pid"]).ppid() == pid
    finally:
        os.kill(pid, signal.SIGTERM)
    assert eventually(lambda: ended(pid))


@pytest.mark.parametrize("broker", ["redis", "filesystem"])
def test_start_worker_in_a_thread_twice(start_worker, broker):
    code = f"""
import celery.contrib.testing.tasks  # its ping is what start_worker waits for
from celery.contrib.testing.worker import start_worker
import os, psutil, threading
from proj import app
for _ in range(2):
    with start_worker(app, pool="{LINEPOOL}", concurrency=2):
        answer = app.send_task("any.name", args=[7]).get(timeout=60)
        assert psutil.Process(answer["pid"]).ppid() == os.getpid()
        print("answer", answer["args"])
    print("left", psutil.Process().children(recursive=True))
    print("threads", [t.name for t in threading.enumerate() if "linepool" in t.name])
"""
    project = start_worker.project(broker, command=ECHO)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=project_env(project),
        capture_output=True,
        text=True,
        timeout=110,
    )
    lines = [x for x in done.stdout.splitlines() if re.match("answer|left|thread", x)]
    assert lines == ["answer [7]", "left []", "threads []"] * 2, done.stderr


@pytest.mark.parametrize(
    ("pool", "sentence"),
    [
        (
            "celery_linepool:Nope",
            "cannot import the pool 'celery_linepool:Nope': "
            "module 'celery_linepool' has no attribute 'Nope'",
        ),
        (
            "no_such_package:LinePool",
            "cannot import the pool 'no_such_package:LinePool': "
            "No module named 'no_such_package'",
        ),
        (
            "celery_linepool:ForeignError",
            "'celery_linepool:ForeignError' is no Celery pool",
        ),
        ("bogus", "'bogus' is not one of 'prefork', "),
    ],
)
def test_a_wrong_name_is_a_usage_error(start_worker, run_celery, pool, sentence):
    project = start_worker.project(command=ECHO)
    code, output = run_celery(
        "-A", "proj", "worker", "-P", pool, env=project_env(project)
    )
    assert code == 2
    # click may break the line for the terminal.
    assert sentence in " ".join(output.split())
    assert "Traceback" not in output


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_other_pools_are_untouched(start_worker, pool):
    tasks = "@app.task\ndef add(x, y):\n    return x + y\n"
    worker = start_worker(pool=pool, args=("-c", "1"), tasks=tasks)

    assert worker.call("proj.add", 1, 2) == 3
    assert pool in worker.inspect("stats")["pool"]["implementation"] or (
        pool == "threads"
        and "thread:TaskPool" in worker.inspect("stats")["pool"]["implementation"]
    )


def test_gevent_is_still_gevents(start_worker, run_celery):
    project = start_worker.project(command=ECHO)
    code, output = run_celery(
        "-A", "proj", "worker", "-P", "gevent", env=project_env(project)
    )
    # Not installed here: Celery says so in its own way.
    assert code != 0
    # Where Python lives may have any name, such as that of a clone.
    output = output.replace(sys.prefix, "")
    assert "gevent" in output and "linepool" not in output


VERSION = """
import sys
if {blocked}:
    sys.modules["celery_linepool"] = None
sys.argv = ["celery", "--version"]
from celery.__main__ import main
try:
    main()
except SystemExit:
    pass
print(*sys.modules, sep="\\n")
"""


def modules_of_celery_version(blocked):
    done = subprocess.run(
        [sys.executable, "-c", VERSION.format(blocked=blocked)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_other_commands_are_not_slowed():
    """The entry point imports nothing but its own small modules.

    What is imported is compared, because the time that it takes cannot be asserted.
    """
    more = modules_of_celery_version(False) - modules_of_celery_version(True)
    ours = {"celery_linepool.cli", "celery_linepool.control"}
    assert more - {"celery_linepool"} == ours


def test_the_group_of_tools_is_a_celery_command(run_celery):
    code, output = run_celery("--help")
    assert code == 0
    assert re.search(r"linepool +Tools for pools of foreign children", output)
