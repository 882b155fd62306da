"""The tools for whoever writes a child, as commands: real processes, real children."""

from __future__ import annotations

import configparser
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, List, NamedTuple

import psutil
import pytest
from workers import eventually

from celery_linepool.cli import linepool
from celery_linepool.kit.init import SDK, STARTS
from celery_linepool.kit.languages import language_of
from celery_linepool.kit.processes import kill
from celery_linepool.kit.scenarios import ALL
from celery_linepool.kit.values import difference

pytestmark = pytest.mark.outer_celerys

CHILDREN = Path(__file__).parent / "children" / "kit"
HOME = Path(__file__).parent.parent
CHECK = "linepool.check."


def child(name: str) -> List[str]:
    return ["--", sys.executable, "-S", str(CHILDREN / f"{name}.py")]


def shell(script: str) -> List[str]:
    return ["--", "sh", "-c", script]


GOOD = child("good")
ORIGINAL = ["--", "ruby", str(CHILDREN / "original.rb")]


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def kit(*args: str) -> Done:
    """Runs ``celery linepool ...`` to its end."""
    out, err = io.StringIO(), Text()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            linepool.main(args, prog_name="celery linepool")
        except SystemExit as exc:
            code = exc.code
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


class Text(io.TextIOWrapper):
    """What a stream got, as text or as bytes."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", write_through=True)

    def getvalue(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


# --- check --------------------------------------------------------------------------


def test_the_command_itself_with_a_child_that_does_all() -> None:
    argv = [sys.executable, "-m", "celery", "linepool", "check", *GOOD]
    ran = subprocess.run(argv, capture_output=True, text=True)
    done = Done(ran.returncode, ran.stdout, ran.stderr)
    lines, _, matrix = done.out.partition("\n\n")
    assert done.code == 0, done.out
    played = [line.split()[:3] for line in lines.splitlines()]
    assert played == [[row.id, row.level.value, "passed"] for row in ALL]
    must = sum(row.level.value == "MUST" for row in ALL)
    assert re.search(rf"^MUST +{must} +0 +0$", matrix, re.M)


def test_the_command_itself_with_a_mistake_as_json() -> None:
    argv = [sys.executable, "-m", "celery", "linepool", "check", "--json", "--only"]
    mistake = child("dies_of_exit")
    ran = subprocess.run([*argv, "exit", *mistake], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "")
    (failed,) = json.loads(ran.stdout)["scenarios"]
    assert (failed["id"], failed["outcome"]) == ("exit", "failed")


def test_check_of_a_child_of_the_original_protocol() -> None:
    done = kit("check", "--json", *ORIGINAL)
    assert done.code == 0, done.out
    assert (done.json["protocol"], done.json["language"]) == (1, "ruby")
    outcomes = {row["id"]: row["outcome"] for row in done.json["scenarios"]}
    assert outcomes == {
        row.id: "passed" if row.original else "not tried" for row in ALL
    }
    hello = done.json["scenarios"][0]
    assert hello["reason"].startswith("it says no hello")


def test_a_failure_says_what_was_read_and_how_to_mend_it() -> None:
    done = kit("check", "--json", "--only", "status-*", *child("wrong_status"))
    document = done.json
    assert (done.code, document["exit_code"]) == (1, 1)
    assert document["hello"]["language"] == document["language"] == "python"
    failed, *others = document["scenarios"]
    assert {row["outcome"] for row in others} == {"passed"}
    assert (failed["id"], failed["level"], failed["rule"]) == (
        "status-retry",
        "MUST",
        "3",
    )
    assert failed["outcome"] == "failed"
    assert failed["expected"] == "a reply with status retry"
    assert '"status": "throttled", "retry_after_secs": 7}' in failed["read"]
    assert '"task": "linepool.check.end"' in failed["written"]
    assert "linepool.Retry" in failed["mend"]
    assert document["summary"]["MUST"] == {"passed": 3, "failed": 1, "not tried": 0}


def test_a_failure_as_people_see_it() -> None:
    done = kit("check", "--only", "id-digits", *child("id_is_a_number"))
    assert done.code == 1
    head, *lines = done.out.partition("\n\n")[0].splitlines()
    assert head.split()[:3] == ["id-digits", "MUST", "FAILED"]
    parts = {line[4:14].strip(): line[14:] for line in lines}
    assert (
        parts["expected"] == "a line that is the protocol, not an id that is no string"
    )
    assert parts["read"].startswith(
        """b'{"id": 12345678901234567890, "status": "ok\""""
    )
    assert {"rule 2.1", "written", "mend"} <= set(parts)


def test_a_child_that_may_do_better_passes() -> None:
    done = kit("check", "--only", "exception-cause", *child("no_cause"))
    assert "FAILED" in done.out
    assert done.code == 0


def test_a_child_that_flushes_nothing_is_told_so() -> None:
    done = kit("check", "--boot-timeout", "2", *child("forgets_to_flush"))
    assert done.code == 1
    assert "it came only when the channel in ended: it was not flushed" in done.out
    assert re.search(r"^\d+ scenarios not tried: replies failed", done.out, re.M)


def test_without_check_tasks_there_is_a_hint(tmp_path: Path) -> None:
    for name in ("linepool.py", "example/worker.py"):
        shutil.copy(SDK / name, tmp_path)
    worker = f"LINEPOOL_CHECK= exec {sys.executable} worker.py"
    only = ("--only", "print", "--only", "id-*")
    done = kit("check", *only, "--cwd", str(tmp_path), *shell(worker))
    assert done.code == 0, done.out
    assert "it does not serve linepool.check.print" in done.out
    assert "see section 10" in done.out


def test_the_harmless_task() -> None:
    # It serves one task, and dies of any other.
    script = """
        while read -r line; do
            case $line in
                *my.task*|*linepool.check.echo*a*2*) echo '{"status":"ok"}' ;;
                *) exit 1 ;;
            esac
        done
    """
    only = ("--only", "replies", "--only", "unknown-field")
    assert kit("check", *only, "--task", "my.task", *shell(script)).code == 0
    assert kit("check", *only, "--task", "other.task", *shell(script)).code == 2


def test_list() -> None:
    done = kit("check", "--list")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == [r.id for r in ALL]


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["check"], 'say the command of the child after "--"'),
        (["check", "ruby", "worker.rb"], "ruby"),
        (["check", "--only", "nonsense", *GOOD], "no scenario 'nonsense'"),
        (["check", "--env", "WORD", *GOOD], "'WORD' is not NAME=VALUE"),
        (["check", "--", "no-such-command"], "No such file or directory"),
        (["check", *shell("echo 'no gem' >&2; exit 4")], "no gem"),
        (["run", "task"], 'say the command of the child after "--"'),
        (["run", "task", "--typo", *GOOD], "--typo"),
        (["run", "task", "--kwargs", "[]", *GOOD], "no JSON object"),
        (["run", "task", "--kwargs", "{", *GOOD], "no JSON"),
        (["run", "task", "--", "no-such-command"], "No such file or directory"),
        (["run", "task", *shell("exit 4")], "it ended, exit status 4"),
        (["run", "task", "--timeout", "0.1", *shell("sleep 9")], "within 0.1 s"),
        (["bench", "--", "no-such-command"], "No such file or directory"),
        (["bench", "--inflight", "65", *GOOD], "takes 64 at once, not 65"),
        (["init", "cobol"], "'cobol' is not one of"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2(args: List[str], sentence: str) -> None:
    done = kit(*args)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err


# --- run ----------------------------------------------------------------------------


def test_run() -> None:
    args = ["1", "-2.5", "[null]", "a text", "\u00e9", '"7"']
    done = kit("run", CHECK + "echo", *args, "--kwargs", '{"a": {}}', *GOOD)
    assert (done.code, done.err) == (0, "")
    assert done.json == {
        "args": [1, -2.5, [None], "a text", "\u00e9", "7"],
        "kwargs": {"a": {}},
    }


def test_run_in_the_original_protocol() -> None:
    done = kit("run", "any.name", "1", *ORIGINAL)
    assert (done.code, done.json) == (0, [1])


def test_where_and_with_what_a_child_runs(tmp_path: Path) -> None:
    script = (
        'read -r line; echo "{\\"status\\":\\"ok\\",\\"result\\":\\"$WORD in $PWD\\"}"'
    )
    options = ["--env", "WORD=a=b", "--cwd", str(tmp_path)]
    done = kit("run", "task", *options, *shell(script))
    assert (done.code, done.json) == (0, f"a=b in {tmp_path}")


def test_run_of_a_task_that_fails() -> None:
    done = kit("run", CHECK + "fail", "no such row", *GOOD)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("LookupError: no such row\n    Traceback")
    assert "ValueError: the cause" in done.err


def test_run_of_a_task_that_ends_otherwise() -> None:
    done = kit("run", CHECK + "end", "retry", "5", *GOOD)
    assert (done.code, done.out) == (3, "")
    assert json.loads(done.err) == {"status": "retry", "retry_after_secs": 5}


def test_events_and_prints_are_on_stderr() -> None:
    done = kit("run", CHECK + "events", "2", *GOOD)
    assert (done.code, done.out) == (0, "2\n")
    assert done.err.splitlines() == [
        'progress: {"step": 1}',
        'progress: {"step": 2}',
        "warning: checked",
    ]
    assert kit("run", CHECK + "print", "hi", *GOOD)[1:] == ("null\n", "hi\nhi\n")
    noisy = kit("run", CHECK + "echo", *child("prints_while_booting"))
    assert "a line that is no protocol, before the hello: Booting ..." in noisy.err


def test_what_is_published_gets_an_id() -> None:
    done = kit("run", CHECK + "publish", "other.task", "success", *GOOD)
    id = done.json
    assert done.err == f"publish (success): other.task [7] {{}} as {id}\n"


def test_a_child_does_not_outlive_the_command() -> None:
    argv = [sys.executable, "-m", "celery", "linepool", "run", CHECK + "sleep", "3600"]
    process = subprocess.Popen([*argv, *child("ignores_term")])

    def begun() -> List[psutil.Process]:
        family = psutil.Process(process.pid).children(recursive=True)
        return [p for p in family if any("ignores_term" in a for a in p.cmdline())]

    family = eventually(begun)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not any(member.is_running() for member in family)


# --- bench --------------------------------------------------------------------------


def test_bench() -> None:
    options = ["--tasks", "200", "--inflight", "3", "--size", "1000"]
    done = kit("bench", "--json", *options, *GOOD)
    found = done.json
    assert (done.code, found["statuses"]) == (0, {"ok": 200})
    assert (found["tasks"], found["inflight"], found["size"]) == (200, 3, 1000)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["per_second"] > 0 and found["boot_seconds"] > 0
    assert min(found["rss_before"], found["rss_after"]) > 1_000_000


def test_bench_as_people_see_it() -> None:
    done = kit("bench", "--tasks", "50", "--task", "no.such.task", *GOOD)
    assert done.code == 0
    rows = {line[:12].strip(): line[13:] for line in done.out.splitlines()}
    assert rows["replies"] == "50 error; 64 at once"
    assert set(rows) == {"round trips", "p50", "p99", "boot", "memory", "replies"}
    assert "tasks" in done.err


# --- init ---------------------------------------------------------------------------

#: The languages whose files are all there.
COMPLETE = ["ruby", "node", "php", "python", "perl"]


@pytest.mark.parametrize("language", COMPLETE)
def test_init_makes_a_worker_that_runs(language: str, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    done = kit("init", language, str(folder))
    assert done.code == 0, done.err
    start = STARTS[language]
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == set(start.files)
    assert f"app.conf.linepool_command = {list(start.command)!r}" in done.out

    commands = re.findall(r"^    (.+)$", done.out.partition("Next:\n")[2], re.M)
    build = [command for command in commands if command.startswith("cd ")]
    (run,) = [command for command in commands if "linepool run" in command]
    assert build == [f"cd '{folder}'"]
    celery = f'"{sys.executable}" -m celery'
    script = "\n".join([*build, run.replace("celery", celery, 1)])
    ran = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == 3


def test_init_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "worker.rb").write_text("mine")
    done = kit("init", "ruby", str(tmp_path))
    assert done.code == 2
    assert "worker.rb" in done.err and "--force" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["worker.rb"]
    assert (tmp_path / "worker.rb").read_text() == "mine"
    assert kit("init", "ruby", str(tmp_path), "--force").code == 0
    assert (tmp_path / "worker.rb").read_text() != "mine"


def test_what_init_copies_is_in_the_wheel() -> None:
    config = configparser.ConfigParser()
    config.read(HOME / "setup.cfg")
    patterns = config["options.package_data"]["celery_linepool"].split("\n")
    for start in STARTS.values():
        for source in start.files.values():
            folder = Path("sdk", source).parent
            assert f"{folder}/*" in patterns
    assert "kit/remedies.ini" in patterns


# --- the parts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, language",
    [
        ("bundle exec ruby worker.rb", "ruby"),
        ("node --max-old-space-size=512 worker.mjs", "node"),
        ("php8.2 artisan linepool", "php"),
        ("go run .", "go"),
        ("/usr/bin/python3.11 -m worker", "python"),
        ("perl -Ilib worker.pl", "perl"),
        ("bash worker.sh", "sh"),
        ("bash start worker.rb", "ruby"),
        ("./worker", "other"),
    ],
)
def test_the_language_of_a_command(command: str, language: str) -> None:
    assert language_of(command.split()) == language
    assert language_of(command.split(), "Perl") == "perl"


@pytest.mark.parametrize(
    "one, other, words",
    [
        ([1, {"a": 2.5}], [1.0, {"a": 2.5}], None),
        ([1], [True], "1 at [0], not True"),
        ({}, [], "{} at the top, not []"),
        ([0, 1], [0], "2 items at the top, not 1"),
        ({"a": 1}, {}, "no key 'a' at the top"),
        ({}, {"a": 1}, "a key 'a' at the top"),
        ({"a": [2**63]}, {"a": [2.0**63 + 2048]}, "9223372036854775808 at ['a'][0]"),
        (["\u2028"], ["\n"], "'\\u2028' at [0], not '\\n'"),
    ],
)
def test_the_difference_of_two_values(one: Any, other: Any, words: Any) -> None:
    found = difference(one, other)
    assert found is None if words is None else str(found).startswith(words)


def test_a_process_that_has_just_ended_is_not_killed() -> None:
    """One of a family may end between the look at the family and the signal."""
    process = subprocess.Popen(["sleep", "100"])
    seen = psutil.Process(process.pid)
    kill(seen)
    assert process.wait() == -signal.SIGKILL
    kill(seen)
