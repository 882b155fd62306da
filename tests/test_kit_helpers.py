"""Every helper library passes every MUST and SHOULD of the kit, and serves a worker.

As a newcomer gets it: ``celery linepool init``, what that says is next, a real worker.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import pytest

from celery_linepool.kit.init import STARTS

pytestmark = pytest.mark.outer_celerys

CELERY = (sys.executable, "-m", "celery")

#: What cannot be done in a language, and why the kit does not try it. All else passes.
UNTRIED: Dict[str, List[str]] = {
    "ruby": ["inflight-64"],  # as many threads as its example has
    "python": ["inflight-64"],
    "node": ["inflight-64", "integers-of-64-bits", "integers-beyond-64-bits"],
    "go": ["exit"],
}
#: Languages that serve one task at a time, and hear nothing while they do.
ONE_AT_A_TIME = [
    *("several-lines-at-once", "unknown-field-of-op", "ping", "ping-during-a-task"),
    *("inflight-order", "inflight-full", "inflight-64", "inflight-refilled"),
]
UNTRIED["php"] = [
    *ONE_AT_A_TIME,
    *("empty-list-and-object", "integers-beyond-64-bits", "subprocess-and-channel"),
    "term-of-what-waits",
]
UNTRIED["perl"] = [
    *ONE_AT_A_TIME,
    *("integers-beyond-64-bits", "term-of-what-waits"),
]
UNTRIED["sh"] = [
    *ONE_AT_A_TIME,
    *("cancel", "cancel-of-no-request", "stop", "stop-during-a-task"),
    *("term-during-a-task", "term-of-what-waits", "int-during-a-task"),
]
LANGUAGES = pytest.mark.parametrize("language", STARTS)


@pytest.fixture
def newcomer(tmp_path: Path, language: str) -> Path:
    """An empty folder after ``celery linepool init``, built where that is needed."""
    folder = tmp_path / language
    folder.mkdir()
    said = run(folder, *CELERY, "linepool", "init", language)
    start = STARTS[language]
    for step in (start.build, start.command):
        assert not step or shlex.join(step) in said
    if start.build:
        run(folder, *start.build)
    return folder


def run(folder: Path, *command: str, code: int = 0) -> str:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == code, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)
@LANGUAGES
def test_a_helper_passes_the_kit(newcomer: Path, language: str) -> None:
    command = STARTS[language].command
    answer = json.loads(
        run(newcomer, *CELERY, "linepool", "check", "--json", "--", *command)
    )
    rows = {row["id"]: row for row in answer["scenarios"]}
    assert len(rows) >= 50
    failed = {id_: row for id_, row in rows.items() if row["outcome"] == "failed"}
    assert {id_ for id_ in failed if failed[id_]["level"] != "MAY"} == set(), failed
    untried = {id_ for id_, row in rows.items() if row["outcome"] == "not tried"}
    assert untried <= set(UNTRIED[language])


@LANGUAGES
def test_a_newcomer_gets_a_result(newcomer: Path, language: str, start_worker) -> None:
    command = list(STARTS[language].command)
    said = run(
        newcomer, *CELERY, "linepool", "run", "example.add", "1", "2", "--", *command
    )
    assert float(json.loads(said)) == 3  # a shell has only texts
    worker = start_worker(
        command=command, conf={"linepool_cwd": str(newcomer)}, args=("-c", "2")
    )
    assert "example.add" in " ".join(worker.inspect("registered"))
    results = [worker.send("example.add", n, 1) for n in range(20)]
    found = [float(worker.result(result)) for result in results]
    assert found == list(range(1, 21))
