"""The page for newcomers: what stands there, in every language, is run as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest
from workers import eventually

from celery_linepool.kit.init import STARTS

pytestmark = pytest.mark.newest_celery

PAGE = (Path(__file__).parent.parent / "docs" / "children.md").read_text()
CELERY = (sys.executable, "-m", "celery")
#: The worker of each language, by the name of its file.
BLOCKS: Dict[str, str] = dict(
    re.findall(r"^\*\*\w+\*\* — `([\w.]+)`.*?```\w+\n(.*?)```", PAGE, re.S | re.M)
)


def run(folder: Path, *command: str, code: int = 0) -> str:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == code, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def child(tmp_path: Path, language: str) -> Path:
    """A folder with the page's worker and the helper library."""
    run(tmp_path, *CELERY, "linepool", "init", language)
    start = STARTS[language]
    [name] = [name for name in BLOCKS if name in start.files]
    (tmp_path / name).write_text(BLOCKS[name])
    if start.build:
        run(tmp_path, *start.build)
    return tmp_path


@pytest.mark.parametrize("language", STARTS)
def test_the_task_of_the_page(child: Path, language: str, start_worker) -> None:
    start = STARTS[language]
    once = ("linepool", "run", "billing.charge", "42", "--", *start.command)
    expected = {"charged": 42, "currency": "EUR", "attempt": 1}
    assert json.loads(run(child, *CELERY, *once)) == expected

    tasks = """
@app.task(name="billing.receipt")
def receipt(invoice):
    return f"receipt of {invoice}"
"""
    worker = start_worker(
        command=list(start.command),
        conf={"linepool_cwd": str(child)},
        args=("-c", "1"),
        tasks=tasks,
    )
    result = worker.send("billing.charge", 7, kwargs={"currency": "CHF"})
    assert worker.result(result) == {"charged": 7, "currency": "CHF", "attempt": 1}
    worker.wait_for_log(r"Task billing.receipt\[.*succeeded.*receipt of 7")
    closed = worker.send("billing.charge", 0)
    eventually(lambda: closed.state == "RETRY")


def test_every_language_is_on_the_page() -> None:
    assert set(BLOCKS) == {
        next(name for name in BLOCKS if name in start.files)
        for start in STARTS.values()
    }
    assert len(BLOCKS) == len(STARTS)


def test_the_steps_of_the_page_in_an_empty_folder(tmp_path: Path, start_worker) -> None:
    """Word for word, but for the broker's address."""
    project = start_worker.project()
    address = project.app.conf.broker_url
    [app] = re.findall(r"```python\n(from celery.*?)```", PAGE, re.S)
    steps = re.findall(r"^    (celery linepool .*|python -c .*)$", PAGE, re.M)
    init, once, send, check = steps
    python = Path(sys.executable)

    def shell(line: str) -> str:
        line = re.sub(r"^celery ", f"{python} -m celery ", line)
        line = re.sub(r"^python ", f"{python} ", line)
        return run(tmp_path, "sh", "-c", line)

    shell(init)
    assert shell(once) == "3\n"
    (tmp_path / "app.py").write_text(app.replace("redis://localhost", address))
    [command] = re.findall(r"^    celery (-A app worker .*)$", PAGE, re.M)
    log = tmp_path / "log"
    with open(log, "wb") as file:
        worker = subprocess.Popen(
            [*CELERY, *command.split()],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        eventually(
            lambda: "ready." in log.read_text(), message="a worker that is ready"
        )
        assert shell(send) == "3\n"
    finally:
        worker.terminate()
        assert worker.wait(60) == 0, log.read_text()
    assert "--only" not in check
    assert "replies" in shell(check.replace("check", "check --only replies"))
