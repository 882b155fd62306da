"""The example: its children over real pipes, and the demo as a user starts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import orjson
import psutil
import pytest

from celery_linepool.errors import ForeignError
from example_app.app import COMMANDS, ROOT
from example_app.invoices import charge, rows

pytestmark = pytest.mark.newest_celery

LANGUAGES = sorted(COMMANDS)
#: The one row that cannot be charged: it is to be paid in no instalments.
BAD = next(row for row in rows() if row["instalments"] == 0)
#: What a division by zero is called where there is a name for it.
ERRORS = {
    "go": "runtime.errorString",
    "node": "RangeError",
    "perl": "die",
    "php": "DivisionByZeroError",
    "ruby": "ZeroDivisionError",
    "sh": "exit status 2",
}
#: The file that a backtrace must name.
FRAMES = {
    "go": "billing.go:",
    "node": "billing.js:",
    "perl": "Billing.pm line",
    "php": "billing.php(",
    "ruby": "billing.rb:",
    # A sourced file has no name of its own in a message of dash.
    "sh": "worker.sh: ",
}


class Child:
    """One child of the example, asked over its pipes as the pool would."""

    def __init__(self, language: str) -> None:
        self.process = subprocess.Popen(
            COMMANDS[language],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # JSON is UTF-8, also where a supervisor sets no locale.
            env={**os.environ, "LC_ALL": "C"},
        )

    def ask(self, task: str, *args: Any, id: str = "an-id") -> Dict[str, Any]:
        payload = {"task": task, "args": args, "kwargs": {}, "meta": {"retries": 0}}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(orjson.dumps({"id": id, "payload": payload}) + b"\n")
        self.process.stdin.flush()
        reply: Dict[str, Any] = json.loads(self.process.stdout.readline())
        assert reply.pop("id") == id
        return reply

    def end(self) -> Tuple[int, bytes, bytes]:
        """Close its stdin: its exit code, and all it said beyond its replies."""
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    program = COMMANDS[request.param][0]
    assert shutil.which(program), f"the tests of the example need {program}"
    return str(request.param)


@pytest.fixture
def child(language: str) -> Iterator[Child]:
    child = Child(language)
    yield child
    child.process.kill()
    child.process.communicate()


# --- children -------------------------------------------------------------------------


def test_every_language_has_the_same_results(child: Child) -> None:
    for row in rows():
        if row != BAD:
            reply = child.ask("billing.charge", row)
            assert isinstance(reply["result"].pop("pid"), int)
            assert reply == {"status": "ok", "result": charge(row)}


def test_an_error_has_class_message_and_backtrace(child: Child, language: str) -> None:
    error = child.ask("billing.charge", BAD)
    assert error["status"] == "error"
    assert error["type"] == ERRORS[language]
    assert re.search("(?i)zero|divided by 0", error["message"])
    assert all(isinstance(frame, str) for frame in error["backtrace"])
    assert any(FRAMES[language] in frame for frame in error["backtrace"])


def test_an_error_ends_the_task_and_not_the_child(child: Child) -> None:
    assert child.ask("billing.charge", BAD)["status"] == "error"
    assert child.ask("billing.charge", rows()[0])["status"] == "ok"


def test_an_unknown_task_is_an_error(child: Child) -> None:
    reply = child.ask("billing.refund")
    assert reply["status"] == "error"
    assert "unknown task billing.refund" in reply["message"]


def test_what_a_task_prints_is_no_reply(child: Child, language: str) -> None:
    for _ in range(3):
        assert child.ask("example.noisy") == {"status": "ok", "result": "quiet"}
    code, out, err = child.end()
    assert (code, out) == (0, b"")
    assert err.count(b"goes to stderr") == 3
    if language != "sh":
        assert err.count(b"and so does a subprocess") == 3


def test_ends_with_its_stdin(child: Child) -> None:
    child.ask("example.noisy")
    code, out, _ = child.end()
    assert (code, out) == (0, b"")


def test_ends_with_its_stdin_before_any_request(child: Child) -> None:
    assert child.end() == (0, b"", b"")


@pytest.mark.parametrize(
    "customer",
    [
        'The "Quoted"',
        'ends with a quote"',
        "ends with a backslash\\",
        '\\"',
        "a tab\t and a\nnewline",
        "line\u2028separator",
        "{not: [json]}, at all",
        "Ünïcödé 😀",
        "",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_text_survives(child: Child, customer: str) -> None:
    row = {**rows()[0], "customer": customer}
    assert child.ask("billing.charge", row)["result"]["customer"] == customer


def test_long_lines_survive(child: Child, language: str) -> None:
    # Plain sh takes seconds for what the others do not notice, and says so.
    customer = "long " * (400 if language == "sh" else 200_000)
    row = {**rows()[0], "customer": customer}
    assert child.ask("billing.charge", row)["result"]["customer"] == customer


def test_sh_computes_with_numbers_only(tmp_path: Path) -> None:
    # Some shells run commands that stand in the index of an arithmetic expression.
    row = {**rows()[0], "quantity": f"a[$(touch {tmp_path}/ran)]"}
    child = Child("sh")
    reply = child.ask("billing.charge", row)
    child.end()
    assert reply["status"] == "error"
    assert "quantity is no number" in reply["message"]
    assert not list(tmp_path.iterdir())


# --- the demo -------------------------------------------------------------------------


class Demo:
    """`python -m example_app`, with a temporary folder of its own to look into."""

    def __init__(self, scratch: Path, *options: str, **env: str) -> None:
        self.scratch = scratch
        self.process = subprocess.Popen(
            [sys.executable, "-m", "example_app", *options],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> Tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            self.process.terminate()  # it stops its worker then
            self.process.communicate()
            raise
        return self.process.returncode, out, err

    def wait_for_children(self) -> None:
        """Until its worker has one: whoever has come so far notes signals."""
        deadline = time.monotonic() + 60
        while len(self._processes()) < 3:  # itself, the worker and a child
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)

    def left_behind(self) -> List[Any]:
        """Files in its temporary folder, and processes that were started by it."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and self._processes():
            time.sleep(0.05)
        return [*self.scratch.iterdir(), *self._processes()]

    def _processes(self) -> List[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TMPDIR", "").startswith(str(self.scratch)):
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found


def test_the_demo_runs_by_itself(language: str, tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--language", language)
    code, out, err = demo.end()
    assert code == 0, out + err
    assert (
        "OK: 450 charged (" in out
    )  # 1 first, 400, 50 one by one; but not the bad one
    assert "1 failed, all as expected." in out
    assert f"{BAD['invoice']}, to pay in 0 instalments" in out
    assert ERRORS[language] in out
    assert FRAMES[language] in out
    assert re.search(r"[\d,.]+ tasks/s", out)
    assert re.search(r"p50 [\d.]+ ms, p99 [\d.]+ ms", out)
    assert len(re.findall(r"^  child \d+ +\d+  #+$", out, re.M)) == 4
    assert "\x1b" not in out + err
    assert demo.left_behind() == []


@pytest.mark.parametrize(
    ("mark", "program"),
    [("ruby", "ruby"), ("js", "node"), ("php", "php"), ("perl", "perl"), ("sh", "sh")],
)
def test_the_children_of_the_readme(start_worker, tmp_path, mark, program):
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"```{mark}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    (tmp_path / "child").write_text(found[1])
    worker = start_worker("filesystem", command=[program, str(tmp_path / "child")])
    assert worker.call("billing.charge", 42) == {"charged": 42}
    with pytest.raises(ForeignError):
        worker.call("no.such.task")


def test_the_demo_does_not_connect_elsewhere(tmp_path: Path) -> None:
    nowhere = "redis://localhost:1/0"
    demo = Demo(
        tmp_path,
        *("--tasks", "8", "--concurrency", "2"),
        CELERY_BROKER_URL=nowhere,
        CELERY_RESULT_BACKEND=nowhere,
    )
    code, out, err = demo.end()
    assert code == 0, out + err
    assert demo.left_behind() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    demo = Demo(tmp_path, "--tasks", "5000")
    demo.wait_for_children()
    demo.process.send_signal(number)
    code, _, err = demo.end()
    assert code == 128 + number, err
    assert "Interrupted" in err
    assert demo.left_behind() == []


def test_a_worker_that_does_not_start_is_shown(tmp_path: Path) -> None:
    scratch, programs = tmp_path / "tmp", tmp_path / "bin"
    scratch.mkdir()
    programs.mkdir()
    ruby = programs / "ruby"
    ruby.write_text("#!/bin/sh\necho 'no ruby today' >&2\nexit 3\n")
    ruby.chmod(0o755)
    demo = Demo(scratch, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    code, _, err = demo.end()
    assert code == 1
    assert "no ruby today" in err
    assert demo.left_behind() == []
