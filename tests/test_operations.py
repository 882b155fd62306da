"""docs/operations.md: its examples run, and it names every cause of a restart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from celery_linepool.job import Cause
from celery_linepool.nursery import ASKED, RESET, SHRUNK

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LIVES = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]
FIELDS = ("pool", "slot", "pid", "task_id", "cause")


def example(word: str) -> str:
    [found] = [text for text in EXAMPLES if word in text]
    return found


@pytest.fixture
def crash(start_worker, tmp_path):
    """Lets a child say something and die in its task; the log, and who it was."""

    def crash(tasks):
        worker = start_worker(command=LIVES, args=("-c", "1"), tasks=tasks)
        file = tmp_path / "crashed"
        task = worker.send("lives.crash", str(file))
        worker.result(task, propagate=False)
        worker.wait_for_log("it is replaced")
        worker.wait_for_log("about to crash")
        worker.wait_for_log("WorkerLostError")
        return worker.log.splitlines(), int(file.read_text()), task.id

    return crash


def test_the_plain_formatter(crash):
    log, pid, task_id = crash(example("logging.Formatter"))
    [replaced] = [line for line in log if "it is replaced" in line]
    assert f" WARNING default 1 {pid} {task_id} died linepool: pool" in replaced
    [said] = [line for line in log if line.endswith("about to crash")][:1]
    assert f" WARNING default 1 {pid} {task_id} - [default pid {pid}]" in said
    [ready] = [line for line in log if line.endswith(" ready.")]
    assert " INFO - - - - - worker" in ready


def test_the_json_formatter(crash):
    log, pid, task_id = crash(example("JsonFormatter"))
    records = [json.loads(line) for line in log if line.startswith("{")]

    def of(words):
        return next(record for record in records if words in record["message"])

    def identity(record):
        return tuple(record[f"linepool_{name}"] for name in FIELDS)

    replaced = of("it is replaced")
    assert identity(replaced) == ("default", 1, pid, task_id, "died")
    assert replaced["levelname"] == "WARNING"
    said = of("about to crash")
    assert identity(said) == ("default", 1, pid, task_id, None)
    assert said["name"] == "celery_linepool.child.default"
    lost = of(f"lives.crash[{task_id}]: child")
    assert identity(lost) == ("default", None, pid, task_id, "WorkerLostError")
    assert "linepool_pool" not in of(" ready.")


def test_causes_of_restarts_are_named():
    # At its soft limit a child gives the task up, and stays; what is unread had none.
    causes = {cause.value for cause in set(Cause) - {Cause.SOFT_LIMIT, Cause.UNREAD}}
    for cause in causes | {RESET, SHRUNK, ASKED}:
        assert f"`{cause}`" in PAGE
