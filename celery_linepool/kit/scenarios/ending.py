"""How a child ends: with its channel, when it is told, by a signal."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Tuple

import psutil

from .. import processes
from ..child import Late
from ..company import CHECK, ECHO
from ..languages import CANNOT_CLOSE_ON_EXEC, FORKS_FOR_A_TASK
from ..play import Play
from ..scenario import MUST, SHOULD, Failure, Rows, Untried
from ..talk import Talk

rows = Rows()
#: Seconds that a task takes which is begun before the end and finished after it.
SHORT = 0.3

#: The id of a task that waits for an answer, and the number of what it published.
Begun = Tuple[str, Any]


@rows.add("eof", MUST, "1.5", "eof", original=True)
def eof(play: Play) -> None:
    """The end of the channel is how the worker stops a child, and how a child learns
    that its worker is gone."""
    talk = play.take_shared()
    play.ask(talk)
    play.end(talk)


@rows.add("eof-after-a-request", MUST, "1.5", "eof", original=True)
def eof_after_a_request(play: Play) -> None:
    """What was sent before the end of the channel is still replied to."""
    talk = play.take_shared()
    id = talk.request(play.task)
    talk.child.close_input()
    talk.reply(id)
    play.end(talk)


@rows.add("eof-during-a-task", MUST, "1.5", "eof", tasks=("sleep",))
def eof_during_a_task(play: Play) -> None:
    """A task that was begun is finished: it may have done something already."""
    talk = play.take_shared()
    id = talk.request(CHECK + "sleep", SHORT)
    talk.child.close_input()
    talk.reply(id).expect("ok")
    play.end(talk)


@rows.add("stop", MUST, "6", "stop", features=("stop",))
def stop(play: Play) -> None:
    """A stop says the same as the end of the channel."""
    talk = play.take_shared()
    talk.op("stop")
    play.end(talk, since=time.monotonic())


@rows.add("stop-during-a-task", MUST, "6", "stop", tasks=("sleep",), features=("stop",))
def stop_during_a_task(play: Play) -> None:
    """A task that was begun is finished, then the child ends."""
    talk = play.take_shared()
    id = talk.request(CHECK + "sleep", SHORT)
    talk.op("stop")
    talk.reply(id).expect("ok")
    play.end(talk, since=time.monotonic())


@rows.add("term", SHOULD, "7.1", "term")
def term(play: Play) -> None:
    """SIGTERM ends a child that has nothing to do."""
    talk = play.take_shared()
    play.ask(talk)
    talk.child.signal(signal.SIGTERM)
    play.end(talk, since=time.monotonic())


@rows.add("term-during-a-task", SHOULD, "7.1", "term", tasks=("sleep",))
def term_during_a_task(play: Play) -> None:
    """SIGTERM comes with every deployment; a task that dies of it is lost. What was not
    begun may be given back with `restart`."""
    talk = play.take_shared()
    id = _sleeping(play, talk)
    talk.child.signal(signal.SIGTERM)
    talk.reply(id).expect("ok", "restart")
    play.end(talk, since=time.monotonic())


@rows.add("term-of-what-was-begun", SHOULD, "7.1", "term", tasks=("publish",))
def term_of_what_was_begun(play: Play) -> None:
    """After SIGTERM a task that was begun is finished, and hears its answers."""
    talk = play.take_shared()
    _finish_after_term(talk, _begun(talk))
    play.end(talk, since=time.monotonic())


@rows.add("term-of-what-waits", SHOULD, "7.1", "term", tasks=("publish",), inflight=2)
def term_of_what_waits(play: Play) -> None:
    """What was read and not begun when SIGTERM came goes to another child at once,
    where it is given back with `restart`."""
    talk = play.take_shared()
    begun = _begun(talk)
    talk.child.signal(signal.SIGTERM)
    waiting = talk.request(play.task)
    _answer(talk, begun)
    # Whoever has not noticed the signal yet may as well begin it.
    reply = talk.reply(waiting)
    if reply.status not in ("restart", "ok") and play.task == ECHO:
        raise Failure("a reply with status restart", reply.line)
    talk.reply(begun[0]).expect("ok")
    play.end(talk, since=time.monotonic())


def _sleeping(play: Play, talk: Talk) -> str:
    if play.language in FORKS_FOR_A_TASK:
        # The signal may hit a subshell that has no trap yet.
        raise Untried(f"nobody can tell when a task of {play.language} has begun")
    id = talk.request(CHECK + "sleep", SHORT)
    if "ping" in play.hello.features:
        # What comes before the ping is read then, and most likely begun.
        talk.op("ping")
        talk.event("pong")
    return id


def _begun(talk: Talk) -> Begun:
    """A task that certainly runs: it waits for an answer."""
    id = talk.request(CHECK + "publish", ECHO, "now")
    return id, talk.event("publish", id).fields.get("seq")


def _answer(talk: Talk, begun: Begun) -> None:
    talk.op("answer", id=begun[0], seq=begun[1], task_id="the-new-task")


def _finish_after_term(talk: Talk, begun: Begun) -> None:
    talk.child.signal(signal.SIGTERM)
    _answer(talk, begun)
    talk.reply(begun[0]).expect("ok")


@rows.add("int", SHOULD, "7.2", "int")
def int_(play: Play) -> None:
    """Ctrl-C is meant for whoever sits at the worker's terminal."""
    talk = play.shared()
    play.ask(talk)
    talk.child.signal(signal.SIGINT)
    play.ask(talk)


@rows.add("int-during-a-task", SHOULD, "7.2", "int", tasks=("sleep",))
def int_during_a_task(play: Play) -> None:
    """A task does not end because somebody stops the worker, who waits for it."""
    talk = play.shared()
    id = _sleeping(play, talk)
    talk.child.signal(signal.SIGINT)
    talk.reply(id).expect("ok")
    play.ask(talk)


@rows.add("subprocess-and-eof", MUST, "1.5", "processes", tasks=("spawn",))
def subprocess_and_eof(play: Play) -> None:
    """A subprocess that a task left behind does not keep the child from its end."""
    talk = play.take_shared()
    _spawned(play, talk)
    talk.end()


@rows.add("subprocess-and-channel", SHOULD, "8.4", "processes", tasks=("spawn",))
def subprocess_and_channel(play: Play) -> None:
    """A subprocess that inherits the channel keeps it open when the child dies: the
    worker would not hear of its end, or wait for who reads no more."""
    if play.language in CANNOT_CLOSE_ON_EXEC:
        raise Untried(f"{play.language} cannot keep a file from its subprocesses")
    talk = play.take_shared()
    spawned = _spawned(play, talk)
    family = talk.child.family()
    os.kill(talk.child.pid, signal.SIGKILL)
    for process in family:
        if process.pid != spawned:
            processes.kill(process)
    deadline = time.monotonic() + play.timeout
    talk.child.wait_end(deadline)
    try:
        talk.child.wait_eof(deadline)
    except Late:
        raise Failure("the subprocess has not inherited the channel out") from None
    if talk.child.write(b"\n", deadline):
        raise Failure("the subprocess has not inherited the channel in")


def _spawned(play: Play, talk: Talk) -> int:
    reply = play.check(talk, "spawn").expect("ok")
    if not isinstance(reply.result, int) or not psutil.pid_exists(reply.result):
        raise Failure("the pid of a subprocess that runs", reply.line)
    return reply.result


@rows.add("no-process-left", SHOULD, "8.4", "processes", original=True)
def no_process_left(play: Play) -> None:
    """What a child starts of its own and leaves behind adds up with every restart."""
    talk = play.take_shared()
    play.ask(talk)
    play.end_or_untried(talk)
    if play.company.left:
        raise Failure(f"nothing that outlives it, not {play.company.left[0]}", b"")
