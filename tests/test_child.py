"""One process and its pipes: real children, each with one way to behave."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from localprocess import eventually

from celery_linepool.child import Child, State
from celery_linepool.encoding import encode_request
from celery_linepool.errors import SpawnError
from celery_linepool.messages import Noise, Reply, Violation
from celery_linepool.protocol import Handshake, Stray
from celery_linepool.settings import PoolSettings
from celery_linepool.syscalls import PIPE, SIZE

pytestmark = pytest.mark.outer_celerys

CHILDREN = Path(__file__).with_name("children")
#: Of fcntl; Python has a name for it from 3.10 on.
GET_PIPE_SIZE = 1032
INTERPRETERS = {
    ".rb": ["ruby"],
    ".js": ["node"],
    ".php": ["php"],
    ".pl": ["perl"],
    ".sh": ["sh"],
    ".py": [sys.executable],
}
#: Only a bug takes this long.
PATIENCE = 30.0

Spawn = Callable[..., Child]


def command(script: str, *args: str) -> tuple[str, ...]:
    path = CHILDREN / script
    return (*INTERPRETERS[path.suffix], str(path), *args)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts children, and ends whatever a test left of them."""
    started: list[Child] = []

    def start(script: str, *args: str, **options: Any) -> Child:
        if script:
            options["command"] = command(script, *args)
        settings = PoolSettings(name="test", **options)
        child = Child(settings, settings.environment())
        started.append(child)
        return child

    yield start
    for child in started:
        if child.state is not State.REAPED:
            child.kill()
            wait_for_exit(child)
            child.reap()
        if child.stderr is not None:
            with suppress(OSError):  # the test may have closed it
                os.close(child.stderr)


def wait_for_exit(child: Child) -> None:
    eventually(child.has_exited, PATIENCE, 0.005, f"exit of {child!r}")


def wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], PATIENCE)[0], f"nothing to read on {fd}"


def freeze(child: Child) -> None:
    """Stop it, and wait until it has: from then on it reads nothing."""
    os.kill(child.pid, signal.SIGSTOP)
    process = psutil.Process(child.pid)
    eventually(lambda: process.status() == psutil.STATUS_STOPPED, PATIENCE, 0.005)


def wait_until_dead(process: psutil.Process) -> None:
    """Dead, if not yet collected: an orphan's zombie is init's affair."""

    def is_dead() -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    eventually(is_dead, PATIENCE, 0.005, f"end of {process}")


def read_stderr(child: Child) -> bytes:
    assert child.stderr is not None
    wait_readable(child.stderr)
    return os.read(child.stderr, 65536)


def talk(child: Child, id_: str = "1", payload: Any = None) -> list[Any]:
    """One request and what came of it: events, and "eof" at the end."""
    line = encode_request(id_, payload or {})
    child.send(id_, line)
    return hear(child)


def hear(child: Child) -> list[Any]:
    found: list[Any] = []
    while not found:
        wanted = [child.stdin] if child._unsent else []
        readable, writable, _ = select.select([child.stdout], wanted, [], PATIENCE)
        assert readable or writable, f"{child!r} neither reads nor speaks"
        if writable:
            child.flush()
        if readable:
            found += child.receive() or []
            if child.eof:
                found.append("eof")
    return found


# --- the conversation -----------------------------------------------------------------


def test_a_child_answers_one_request_after_another(spawn: Spawn) -> None:
    child = spawn("echo.rb")
    for number in range(3):
        assert child.fit
        [reply] = talk(child, f"id-{number}", {"args": [number]})
        assert isinstance(reply, Reply)
        assert reply.id == f"id-{number}"
        assert reply.fields["result"] == {"args": [number], "pid": child.pid}
    assert child.fit
    assert child.receive() is None


def test_a_child_that_is_asked_is_not_fit_for_another_request(spawn: Spawn) -> None:
    child = spawn("ignores_eof.rb")
    child.send("1", b"{}\n")
    assert not child.fit


def test_hearing_never_waits(spawn: Spawn) -> None:
    assert spawn("ignores_eof.rb").receive() is None


def test_two_megabytes_to_a_child_that_reads_slowly(spawn: Spawn) -> None:
    child = spawn("reads_slowly.pl")
    line = encode_request("1", {"args": ["x" * 2_000_000]})
    # On another processor it might read as fast as we write.
    freeze(child)
    assert child.send("1", line) is False, "a pipe holds less than that"
    assert child.flush() is False
    assert not child.fit
    os.kill(child.pid, signal.SIGCONT)
    [reply] = hear(child)
    assert reply.fields["result"] == len(line)
    assert child.fit


def test_flush_says_when_all_is_written(spawn: Spawn) -> None:
    child = spawn("reads_slowly.pl")
    written = child.send("1", encode_request("1", {"args": ["x" * 2_000_000]}))
    while not written:
        assert select.select([], [child.stdin], [], PATIENCE)[1]
        written = child.flush()
    assert child.flush() is True
    assert hear(child)


def pipe_size(fd: int) -> int:
    return fcntl.fcntl(fd, GET_PIPE_SIZE)


def test_a_pipe_is_as_wide_as_the_longest_line(spawn: Spawn) -> None:
    child = spawn("echo.rb")
    talk(child, "1", {"args": ["x" * 10_000]})
    assert pipe_size(child.stdin) == pipe_size(child.stdout) == PIPE
    freeze(child)
    line = encode_request("2", {"args": ["x" * 200_000]})
    assert child.send("2", line) is True, "a frozen child has read nothing"
    os.kill(child.pid, signal.SIGCONT)
    [reply] = hear(child)
    assert reply.fields["result"]["args"] == ["x" * 200_000]
    assert pipe_size(child.stdin) >= len(line)
    assert PIPE < pipe_size(child.stdout) <= SIZE


def test_a_wrong_id_is_a_violation(spawn: Spawn) -> None:
    [violation] = talk(spawn("wrong_id.js"))
    assert isinstance(violation, Violation)
    assert "somebody-else" in str(violation)


def test_a_print_during_a_task_is_a_violation(spawn: Spawn) -> None:
    child = spawn("prints_mid_task.php")
    [violation] = talk(child, "42")
    assert isinstance(violation, Violation)
    assert "processing 42" in str(violation)
    assert not child.fit


@pytest.mark.parametrize(
    "options", [{"handshake": Handshake.NONE}, {"stdout": Stray.STRICT}]
)
def test_a_banner_is_a_violation_where_it_is_forbidden(
    spawn: Spawn, options: dict[str, Any]
) -> None:
    child = spawn("speaks_unasked.rb", **options)
    [violation] = hear(child)
    assert isinstance(violation, Violation)
    assert not child.fit


def test_a_banner_before_anything_was_asked_is_noise(spawn: Spawn) -> None:
    child = spawn("speaks_unasked.rb")
    [noise] = hear(child)
    assert isinstance(noise, Noise)
    assert child.fit


def test_half_a_reply_is_left_over(spawn: Spawn) -> None:
    child = spawn("half_line.sh")
    assert talk(child) == ["eof"]
    assert child.leftover == b'{"status":"ok","resu'
    assert child.eof and not child.fit
    assert child.receive() is None, "the end was told already"


def test_a_child_that_closed_its_stdout_is_not_fit(spawn: Spawn) -> None:
    child = spawn("closes_stdout_unasked.sh")
    assert hear(child) == ["eof"]
    assert not child.fit and not child.has_exited()


def test_a_child_that_closed_its_stdin_is_no_error(spawn: Spawn) -> None:
    child = spawn("closes_stdin.sh")
    assert b"closed" in read_stderr(child)
    with pytest.raises(BrokenPipeError):
        os.write(child.stdin, b"x")
    assert child.send("1", b"{}\n") is True
    assert child.flush() is True
    assert not child.fit


# --- what a dead child has read -------------------------------------------------------

SMALL = encode_request("1", {"args": ["x"]})
#: Larger than a pipe, so that a part of it was never written.
LARGE = encode_request("1", {"args": ["x" * 2_000_000]})


@pytest.mark.parametrize("line", [SMALL, LARGE], ids=["small", "large"])
def test_a_request_that_nobody_read_is_untouched(spawn: Spawn, line: bytes) -> None:
    child = spawn("ignores_eof.rb")
    assert b"ready" in read_stderr(child)
    freeze(child)
    child.send("1", line)
    child.kill()
    wait_for_exit(child)
    assert child.untouched("1")


def test_a_request_to_a_child_that_is_dead_already_is_untouched(spawn: Spawn) -> None:
    child = spawn("exits_unread.sh")
    wait_for_exit(child)
    assert child.send("1", SMALL) is True
    assert child.untouched("1")
    child.reap()
    assert child.exit_text() == "exited with status 0"


@pytest.mark.parametrize("line", [SMALL, LARGE], ids=["small", "large"])
def test_a_request_that_was_read_in_part_is_touched(spawn: Spawn, line: bytes) -> None:
    child = spawn("reads_a_part.py")
    child.send("1", line)
    wait_for_exit(child)
    child.flush()
    assert not child.untouched("1")


def test_a_request_that_was_read_whole_is_touched(spawn: Spawn) -> None:
    child = spawn("exits_on_request.rb")
    assert talk(child) == ["eof"]
    wait_for_exit(child)
    assert not child.untouched("1")


def test_a_second_request_that_nobody_read_is_untouched(spawn: Spawn) -> None:
    child = spawn("echo.rb")
    talk(child)
    freeze(child)
    child.send("2", SMALL)
    child.kill()
    wait_for_exit(child)
    assert child.untouched("2")


# --- how it ends ----------------------------------------------------------------------


def ended(child: Child) -> str:
    wait_for_exit(child)
    child.reap()
    return child.exit_text()


def test_a_child_ends_politely_with_its_stdin(spawn: Spawn) -> None:
    child = spawn("echo.rb")
    talk(child)
    child.stop()
    assert ended(child) == "exited with status 0"


def test_the_status_is_told(spawn: Spawn) -> None:
    child = spawn("exits_on_request.rb")
    talk(child)
    assert ended(child) == "exited with status 3"


def test_a_signal_is_told_by_its_name(spawn: Spawn) -> None:
    child = spawn("reads_slowly.pl")
    child.terminate()
    assert ended(child) == "was killed by SIGTERM"


def test_a_signal_without_a_name_is_told_by_its_number(spawn: Spawn) -> None:
    child = spawn("reads_slowly.pl")
    os.kill(child.pid, signal.SIGRTMIN + 5)
    assert ended(child) == f"was killed by signal {signal.SIGRTMIN + 5}"


def test_sigkill_from_elsewhere_hints_at_the_memory(spawn: Spawn) -> None:
    child = spawn("kills_itself.rb")
    talk(child)
    assert ended(child) == "was killed by SIGKILL (out of memory?)"


def test_sigkill_from_us_is_no_lack_of_memory(spawn: Spawn) -> None:
    child = spawn("ignores_eof.rb")
    child.kill()
    assert ended(child) == "was killed by SIGKILL"


def test_a_child_that_ignores_everything_else_is_killed(spawn: Spawn) -> None:
    child = spawn("ignores_eof.rb")
    assert b"ready" in read_stderr(child)
    child.stop()
    child.terminate()
    child.kill()
    assert ended(child) == "was killed by SIGKILL"


def test_an_exited_child_is_no_news_twice(spawn: Spawn) -> None:
    child = spawn("exits_unread.sh")
    wait_for_exit(child)
    assert child.has_exited()
    assert child.state is State.EXITED
    # Still a zombie: its number cannot belong to anybody else.
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    child.reap()
    assert child.state is State.REAPED
    assert not psutil.pid_exists(child.pid)


def test_a_child_that_somebody_else_reaped_has_exited(spawn: Spawn) -> None:
    """A library in the worker that calls ``waitpid(-1)``, say."""
    child = spawn("exits_unread.sh")
    os.waitpid(child.pid, 0)
    assert child.has_exited()
    child.reap()
    assert child.state is State.REAPED


def test_nothing_is_sent_to_the_number_of_a_reaped_child(spawn: Spawn) -> None:
    child = spawn("exits_unread.sh")
    wait_for_exit(child)
    child.reap()
    sent: list[int] = []
    original, os.killpg = os.killpg, lambda pid, sig: sent.append(pid)
    try:
        child.terminate()
        child.kill()
    finally:
        os.killpg = original
    assert sent == []


def test_grandchildren_are_killed_with_their_parent(spawn: Spawn) -> None:
    child = spawn("holds_pipe_grandchild.sh")
    grandchild = psutil.Process(int(read_stderr(child)))
    child.kill()
    wait_for_exit(child)
    wait_until_dead(grandchild)


def test_grandchildren_that_outlive_their_parent_are_killed_when_it_is_reaped(
    spawn: Spawn,
) -> None:
    child = spawn("holds_pipe_grandchild.sh")
    grandchild = psutil.Process(int(read_stderr(child)))
    child.send("1", SMALL)
    wait_for_exit(child)
    assert child.receive() is None, "the grandchild holds the pipe: no end"
    assert grandchild.is_running()
    child.reap()
    wait_until_dead(grandchild)


# --- descriptors ----------------------------------------------------------------------


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("script", ["echo.rb", "closes_stdin.sh", "exits_unread.sh"])
def test_nothing_is_left_open_after_reaping(spawn: Spawn, script: str) -> None:
    before = open_fds()
    child = spawn(script)
    child.kill()
    ended(child)
    assert child.stderr is not None
    # Whoever drains stderr closes it; the rest is the child's own.
    os.close(child.stderr)
    assert open_fds() == before


def test_reaping_after_a_polite_stop_closes_nothing_twice(spawn: Spawn) -> None:
    before = open_fds()
    child = spawn("echo.rb")
    child.stop()
    child.stop()
    ended(child)
    assert child.stderr is not None
    os.close(child.stderr)
    assert open_fds() == before


def test_a_child_that_was_told_to_stop_is_not_fit(spawn: Spawn) -> None:
    """Its stdin's number may be another descriptor by now."""
    child = spawn("ignores_eof.rb")
    child.stop()
    assert not child.fit


def test_a_child_gets_only_its_three_streams(spawn: Spawn) -> None:
    spawn("echo.rb")  # whose pipes must not reach the other one
    other = spawn("tells_surroundings.py")
    [reply] = talk(other)
    # The fourth is the folder that it lists.
    assert reply.fields["result"]["fds"] == [0, 1, 2, 3]


def test_the_end_of_one_child_is_not_hidden_by_another(spawn: Spawn) -> None:
    """A later child must not hold the ends of an earlier one's pipes."""
    first = spawn("echo.rb")
    spawn("echo.rb")
    talk(first)
    first.stop()
    assert hear(first) == ["eof"]


def test_stderr_can_be_inherited(spawn: Spawn) -> None:
    with tempfile.TemporaryFile() as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            child = spawn("reads_a_part.py", stderr="inherit")
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        assert child.stderr is None
        child.send("1", SMALL)
        ended(child)
        log.seek(0)
        assert log.read() == b"ten bytes\n"


# --- without the kernel's help --------------------------------------------------------


def test_the_kernel_says_when_it_exits(spawn: Spawn) -> None:
    child = spawn("exits_unread.sh")
    assert child.exit is not None
    wait_readable(child.exit)
    assert child.has_exited()


def test_without_pidfd_everything_else_works(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    child = spawn("echo.rb")
    assert child.exit is None
    assert isinstance(talk(child)[0], Reply)
    child.stop()
    assert ended(child) == "exited with status 0"


def test_a_sandbox_that_refuses_pidfds(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    assert spawn("echo.rb").exit is None


def test_without_waitid_an_exit_is_noticed(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "waitid")
    child = spawn("exits_on_request.rb")
    talk(child)
    assert ended(child) == "exited with status 3"


# --- its surroundings -----------------------------------------------------------------


def surroundings(child: Child) -> dict[str, Any]:
    [reply] = talk(child)
    result: dict[str, Any] = reply.fields["result"]
    return result


def test_its_arguments_are_never_read_by_a_shell(spawn: Spawn) -> None:
    nasty = ("$HOME", "a b", "*", ";exit", "'", "")
    assert surroundings(spawn("tells_surroundings.py", *nasty))["args"] == list(nasty)


def test_it_leads_a_group_of_its_own(spawn: Spawn) -> None:
    told = surroundings(spawn("tells_surroundings.py"))
    assert told["pgid"] == told["pid"]
    # Without a terminal a session would only be a scheduling group of its own.
    apart = sys.version_info < (3, 11) or has_terminal()
    assert told["sid"] == (told["pid"] if apart else os.getsid(0))


def has_terminal() -> bool:
    opened = subprocess.run(["sh", "-c", ": </dev/tty"], stderr=subprocess.DEVNULL)
    return opened.returncode == 0


SPAWNS = """
import os, sys
from celery_linepool.child import Child
from celery_linepool.settings import read
from celery import Celery
os.open(sys.argv[1], os.O_RDWR)  # who leads a session without a terminal has one now
app = Celery()
app.conf.linepool_command = ["sleep", "60"]
child = Child(read(app.conf, 1)["default"], {"PATH": os.defpath})
print(os.getsid(child.pid) == os.getpgid(child.pid) == child.pid)
child.kill()
while not child.has_exited():
    pass
child.reap()
"""


def test_where_there_is_a_terminal_it_leads_a_session_of_its_own() -> None:
    ends = os.openpty()
    try:
        argv = [sys.executable, "-c", SPAWNS, os.ttyname(ends[1])]
        said = subprocess.check_output(argv, start_new_session=True, timeout=60)
    finally:
        for end in ends:
            os.close(end)
    assert said == b"True\n"


def test_its_folder(spawn: Spawn, tmp_path: Path) -> None:
    folder = os.path.realpath(tmp_path)
    assert surroundings(spawn("tells_surroundings.py", cwd=folder))["cwd"] == folder


def test_its_umask(spawn: Spawn) -> None:
    ours = os.umask(0o022)
    try:
        inherited = spawn("tells_surroundings.py")
        private = spawn("tells_surroundings.py", umask=0o077)
        open_ = spawn("tells_surroundings.py", umask=0)
    finally:
        os.umask(ours)
    found = [surroundings(child)["umask"] for child in (inherited, private, open_)]
    assert found == [0o022, 0o077, 0]


def test_its_environment_is_ours_and_what_the_settings_add(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEPOOL_OURS", "1")
    monkeypatch.setenv("LINEPOOL_BOTH", "ours")
    child = spawn("tells_surroundings.py", env={"LINEPOOL_BOTH": "settings"})
    env = surroundings(child)["env"]
    assert env["LINEPOOL_OURS"] == "1"
    assert env["LINEPOOL_BOTH"] == "settings"


def test_its_environment_may_be_scrubbed(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEPOOL_SECRET", "1")
    monkeypatch.setenv("TZ", "Europe/Paris")
    child = spawn("tells_surroundings.py", inherit_env=False, env={"LINEPOOL_OWN": "2"})
    env = surroundings(child)["env"]
    assert "LINEPOOL_SECRET" not in env
    assert env["LINEPOOL_OWN"] == "2"
    assert env["TZ"] == "Europe/Paris"
    assert env["PATH"] == os.environ["PATH"]
    # LC_CTYPE is what Python sets for itself where there is no locale.
    told = {"PROTOCOL", "POOL", "SLOT", "GENERATION", "MAX_LINE", "CHANNEL"}
    ours = {"LINEPOOL_OWN", *(f"LINEPOOL_{name}" for name in told)}
    assert set(env) <= {"PATH", "HOME", "LANG", "TZ", "LC_CTYPE", *ours}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")


@as_root
def test_its_user_and_group(spawn: Spawn) -> None:
    nobody = pwd.getpwnam("nobody")
    child = spawn(
        "",
        command=("sh", "-c", "id -u; id -g"),
        user="nobody",
        group=nobody.pw_gid,
        cwd="/",
    )
    wait_for_exit(child)
    found = os.read(child.stdout, 100).split()
    assert [int(item) for item in found] == [nobody.pw_uid, nobody.pw_gid]


@as_root
def test_another_user_keeps_nothing_of_roots_groups(spawn: Spawn) -> None:
    saved = os.getgroups()
    os.setgroups([0, 4])
    try:
        child = spawn("", command=("cat", "/proc/self/status"), user="nobody", cwd="/")
    finally:
        os.setgroups(saved)
    wait_for_exit(child)
    status = dict(
        line.split(":", 1)
        for line in os.read(child.stdout, 65536).decode().splitlines()
    )
    assert "0" not in status["Gid"].split()
    assert not {"0", "4"} & set(status["Groups"].split())


# --- not started at all ---------------------------------------------------------------


def refusal(spawn: Spawn, **options: Any) -> str:
    before = open_fds()
    with pytest.raises(SpawnError) as caught:
        spawn("", **options)
    assert open_fds() == before
    return str(caught.value)


def test_its_niceness_and_limits_and_that_it_goes_first(spawn: Spawn) -> None:
    limits = {resource.RLIMIT_NOFILE: (50, 60)}
    child = spawn("echo.rb", nice=7, rlimits=limits)
    process = psutil.Process(child.pid)
    assert process.nice() == 7
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (50, 60)
    # If memory runs out the kernel ends a child, and not the worker.
    score = int(Path(f"/proc/{child.pid}/oom_score_adj").read_text())
    assert score > int(Path("/proc/self/oom_score_adj").read_text())


def test_limits_that_may_not_be_set(spawn: Spawn) -> None:
    before = {p.pid for p in psutil.Process().children()}
    limits = {resource.RLIMIT_NOFILE: (60, 50)}
    with pytest.raises(SpawnError, match="nice or rlimits"):
        spawn("echo.rb", rlimits=limits)
    assert {p.pid for p in psutil.Process().children()} == before


def test_a_command_that_is_not_there(spawn: Spawn) -> None:
    found = refusal(spawn, command=("no-such-program", "x"))
    assert found == "the command 'no-such-program' was not found"


def test_a_command_that_is_no_program(spawn: Spawn, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert refusal(spawn, command=(str(script),)) == (
        f"the command {str(script)!r} may not be executed (Permission denied)"
    )


def test_a_program_in_no_known_format(spawn: Spawn, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"\x7fnonsense")
    script.chmod(0o755)
    found = refusal(spawn, command=(str(script),))
    assert found.startswith(f"the command {str(script)!r} could not be started: ")
    assert "Exec format error" in found


def test_a_folder_that_is_not_there(spawn: Spawn, tmp_path: Path) -> None:
    cwd = str(tmp_path / "gone")
    found = refusal(spawn, command=("true",), cwd=cwd)
    assert found == f"its cwd {cwd!r} is no folder"


def test_a_folder_that_is_a_file(spawn: Spawn, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    found = refusal(spawn, command=("true",), cwd=str(file))
    assert found == f"its cwd {str(file)!r} is no folder"


@pytest.mark.parametrize(
    "options, word",
    [
        ({"user": "no-such-user"}, "no-such-user"),
        ({"group": "no-such-group"}, "no-such-group"),
        ({"user": -1}, "-1"),
        ({"user": 2**40}, "could not be started"),
        ({"cwd": "a\0b"}, "null byte"),
        ({"env": {"A=B": "1"}}, "environment"),
        ({"env": {"A": "1\0"}}, "null byte"),
        ({"command": ("true", "\ud800")}, "could not be started"),
    ],
)
def test_whatever_else_keeps_it_from_starting_is_one_error(
    spawn: Spawn, options: dict[str, Any], word: str
) -> None:
    found = refusal(spawn, **{"command": ("true",), **options})
    assert word in found


def test_its_repr_says_what_it_does(spawn: Spawn) -> None:
    child = spawn("echo.rb")
    assert repr(child) == f"<Child test: pid {child.pid}, idle>"
    child.send("1", SMALL)
    assert repr(child) == f"<Child test: pid {child.pid}, busy>"
    child.kill()
    wait_for_exit(child)
    assert repr(child) == f"<Child test: pid {child.pid}, exited>"
    child.reap()
    assert repr(child) == f"<Child test: pid {child.pid}, was killed by SIGKILL>"


def test_every_interpreter_is_installed() -> None:
    # Not a skip: a suite without them is green and proves nothing.
    missing = [argv[0] for argv in INTERPRETERS.values() if not shutil.which(argv[0])]
    assert missing == []


def test_the_request_that_a_child_gets_is_the_one_that_was_sent(spawn: Spawn) -> None:
    child = spawn("echo.rb")
    payload = {"args": ["\u2028", "\n", '"', 2**70, 0.1, None], "kwargs": {"ä": []}}
    [reply] = talk(child, 'an "id"\nof two lines', payload)
    reply.fields["result"].pop("pid")
    assert json.dumps(reply.fields["result"]) == json.dumps(payload)
    assert reply.id == 'an "id"\nof two lines'
