"""Workers from a terminal: real ones, and a real terminal."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from workers import eventually

LIVES = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]


@pytest.fixture
def worker(start_worker):
    conf = {
        "linepool_pools": {
            "one": {"command": LIVES, "tasks": ["one.*"], "dump_signal": "QUIT"},
            "other": {"command": LIVES, "tasks": ["other.*"]},
        }
    }
    return start_worker(args=("-c", "1"), conf=conf)


@pytest.fixture
def linepool(worker, run_celery):
    def run(*args, destination=None):
        command, *rest = args
        where = ("-d", destination or worker.nodename, "-t", "30")
        env = {"PYTHONPATH": os.pathsep.join([str(worker.project.folder), *sys.path])}
        return run_celery("-A", "proj", "linepool", command, *where, *rest, env=env)

    return run


def test_stats(worker, linepool):
    pid = worker.call("one.pid")
    code, output = linepool("stats")
    assert code == 0, output
    assert f"{worker.nodename}, pool one: 0 of 1 busy, 0 waiting, 1 done" in output
    assert "pool other: 0 of 1 busy, 0 waiting, 0 done" in output
    [row] = [line.split() for line in output.splitlines() if f" {pid} " in line]
    assert row[1] == "idle" and row[5] == "1"

    code, output = linepool("stats", "--json")
    found = json.loads(output[output.index("{") :])
    assert found[worker.nodename]["one"]["children"][0]["pid"] == pid
    holds_what_is_promised(found[worker.nodename]["one"])


def holds_what_is_promised(pool):
    """By pool, and by child; and it stays a small message with many children."""
    [child] = pool.pop("children")
    assert pool["command"] == LIVES and pool["outcomes"] == {"ok": 1}
    assert set(pool) >= {
        *("size", "paused", "generation", "reset_error", "failed_boots"),
        *("next_boot_in", "waiting", "waiting_seconds", "restarts", "replaced"),
    }
    for name in ("wait_seconds", "run_seconds", "boot_seconds"):
        assert set(pool[name]) == {"count", "p50", "p99"}
    assert set(child) >= {
        *("pid", "slot", "state", "generation", "tasks", "inflight", "doing"),
        *("age_seconds", "boot_seconds", "memory_kib", "retiring"),
    }
    assert len(json.dumps(child)) < 400 and len(json.dumps(pool)) < 1000


def test_reset_scale_pause_and_resume(worker, linepool):
    pid = worker.call("one.pid")
    code, output = linepool("reset", "one")
    assert (code, "reset started" in output) == (0, True)
    worker.wait_for_log("pool 'one' was reset")
    assert worker.call("one.pid") != pid

    code, output = linepool("scale", "one", "2", "--json")
    answer = json.loads(output[output.index("{") :])
    assert answer == {worker.nodename: {"ok": "one will have 2"}}
    eventually(lambda: len(worker.control("linepool_stats")["one"]["children"]) == 2)

    assert linepool("pause")[0] == 0
    waiting = worker.send("other.pid")
    eventually(lambda: "PAUSED, 1 waiting" in linepool("stats")[1])
    assert not waiting.ready()
    assert linepool("resume", "other")[0] == 0
    assert worker.result(waiting)


def test_a_reset_that_is_waited_for(worker, linepool, tmp_path):
    pid = worker.call("one.pid")
    begun, go = tmp_path / "begun", tmp_path / "go"
    gate = worker.send("other.gate", str(begun), str(go))
    eventually(begun.exists)
    # The old child of the other pool is still in its task.
    code, output = linepool("reset", "--wait", "3")
    assert (code, "pool other is still reset after 3 s" in output) == (75, True)
    assert worker.call("one.pid") != pid
    go.touch()
    worker.result(gate)
    code, output = linepool("reset", "--wait", "90")
    assert (code, f"{worker.nodename}: reset\n" in output) == (0, True)
    stats = worker.control("linepool_stats")
    for pool in (stats["one"], stats["other"]):
        [child] = pool["children"]
        assert (child["generation"], child["state"]) == (pool["generation"], "idle")


def test_a_reset_that_fails_says_why(start_worker, run_celery, tmp_path):
    script = tmp_path / "child.rb"
    script.write_text(Path(LIVES[1]).read_text())
    worker = start_worker(command=["ruby", str(script)], args=("-c", "1"))
    script.write_text("raise 'the new code is broken'")
    command = ("linepool", "reset", "--wait", "90", "-d", worker.nodename, "-t", "30")
    path = os.pathsep.join([str(worker.project.folder), *sys.path])
    code, output = run_celery("-A", "proj", *command, env={"PYTHONPATH": path})
    assert code == 1
    assert "error: pool default was not reset: " in output
    assert "the new code is broken" in output
    assert worker.call("lives.pid")


def test_ready_is_who_has_a_child_in_every_pool(start_worker, run_celery, tmp_path):
    script = tmp_path / "child.rb"
    script.write_text("raise 'not yet'")
    conf = {"linepool_wait_for_boot": True}
    worker = start_worker(command=["ruby", str(script)], args=("-c", "1"), conf=conf)
    path = os.pathsep.join([str(worker.project.folder), *sys.path])

    def code():
        where = ("-d", worker.nodename, "-t", "30")
        command = ("-A", "proj", "linepool", "stats", "--ready", *where)
        return run_celery(*command, env={"PYTHONPATH": path})[0]

    worker.wait_for_log("trying again")
    eventually(lambda: code() == 1)
    script.write_text(Path(LIVES[1]).read_text())
    eventually(lambda: code() == 0)


def test_who_is_refused_ends_with_1(linepool):
    for args in (("reset", "third"), ("scale", "third", "1"), ("pause", "third")):
        code, output = linepool(*args)
        assert code == 1 and "error: no pool 'third'" in output


def test_nobody_answers(linepool):
    code, output = linepool("stats", "-t", "0.2", destination="nobody@nowhere")
    assert code == 69 and "no worker answered" in output


def test_dump(worker, linepool, tmp_path):
    gate = worker.send("one.gate", str(tmp_path / "begun"), str(tmp_path / "go"))
    eventually((tmp_path / "begun").exists)
    pid = int((tmp_path / "begun").read_text())
    code, output = linepool("dump", str(pid))
    assert code == 0 and f"one.gate[{gate.id}] for" in output
    worker.wait_for_log("it hangs here")
    assert "it hangs here" in linepool("dump", str(pid))[1]
    code, output = linepool("dump", "1")
    assert code == 1 and "no worker has a child with the pid 1" in output
    (tmp_path / "go").touch()
    worker.result(gate)


def test_top_in_a_terminal(worker, leak_guard, tmp_path):
    """It is drawn anew as things happen, fits the terminal, and ends at Ctrl-C."""
    pid = worker.call("one.pid")
    socket = ("tmux", "-S", str(tmp_path / "tmux"))
    env = {**os.environ, "C_FORCE_ROOT": "1", "TERM": "screen"}
    env["PYTHONPATH"] = os.pathsep.join([str(worker.project.folder), *sys.path])
    top = (sys.executable, "-m", "celery", "-A", "proj", "linepool", "top")
    line = shlex.join([*top, "--every", "0.2", "-d", worker.nodename, "-t", "30"])
    shell = f"{line}; echo ended with $?; sleep 600"
    size = ("-x", "70", "-y", "12")
    subprocess.run([*socket, "new-session", "-d", *size, shell], env=env, check=True)

    def screen():
        shown = subprocess.run(
            [*socket, "capture-pane", "-p"], env=env, check=True, capture_output=True
        )
        return shown.stdout.decode()

    try:
        eventually(lambda: f"  {pid} " in screen() and "pool other" in screen())
        assert "2 waiting" not in screen()
        gate = worker.send("one.gate", str(tmp_path / "begun"), str(tmp_path / "go"))
        eventually(lambda: "1 of 1 busy" in screen() and "one.gate[" in screen())
        assert max(map(len, screen().splitlines())) < 70
        (tmp_path / "go").touch()
        worker.result(gate)
        eventually(lambda: "1 of 1 busy" not in screen())
        subprocess.run([*socket, "send-keys", "C-c"], env=env, check=True)
        eventually(lambda: "ended with" in screen())
    finally:
        subprocess.run([*socket, "kill-server"], env=env)
