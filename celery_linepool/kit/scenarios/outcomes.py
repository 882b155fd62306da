"""How a task ends: errors, `exit`, and the other statuses."""

from __future__ import annotations

from typing import Any, Callable

from ..company import CHECK
from ..languages import CANNOT_CATCH_EXIT, CANNOT_SURVIVE_EXIT
from ..play import Play
from ..scenario import MAY, MUST, SHOULD, Failure, Rows, Untried

rows = Rows()
MESSAGE = "raised by the task linepool.check.fail"


@rows.add("unknown-task", MUST, "3", "unknown-task")
def unknown_task(play: Play) -> None:
    """A task that the child does not serve fails, and the child lives."""
    if not play.hello.tasks:
        raise Untried("its hello names no tasks: it may serve every one")
    talk = play.shared()
    talk.ask("linepool.check.there-is-no-such-task").expect("error")
    play.ask(talk)


@rows.add("exception", SHOULD, "8.1", "error", tasks=("fail",))
def exception(play: Play) -> None:
    """An exception is the error of its task, with its class and message; the child goes
    on, or it would be booted anew for each."""
    talk = play.shared()
    error = play.check(talk, "fail", MESSAGE).expect("error")
    if MESSAGE not in str(error.fields.get("message")):
        raise Failure(f"an error with the message {MESSAGE!r}", error.line)
    if not error.fields.get("type"):
        raise Failure("an error with the name of its class as type", error.line)
    play.ask(talk)


@rows.add("exception-backtrace", MAY, "3", "error", tasks=("fail",))
def exception_backtrace(play: Play) -> None:
    """Whoever looks at a failed task wants to know where it failed."""
    error = play.check(play.shared(), "fail", MESSAGE).expect("error")
    if not error.fields.get("backtrace"):
        raise Failure("an error with a backtrace, a list of strings", error.line)


@rows.add("exception-cause", MAY, "3", "error", tasks=("fail",))
def exception_cause(play: Play) -> None:
    """The error that a library wraps is often the one that tells something."""
    error = play.check(play.shared(), "fail", MESSAGE).expect("error")
    if (
        "the cause"
        not in f"{error.fields.get('message')} {error.fields.get('backtrace')}"
    ):
        raise Failure("the cause's message, in the backtrace", error.line)


@rows.add("exit", SHOULD, "8.1", "exit", tasks=("exit",))
def exit_(play: Play) -> None:
    """An `exit` somewhere in a library is the error of its task: otherwise it takes the
    child along, and every task in it."""
    if play.language in CANNOT_CATCH_EXIT:
        raise Untried(f"nothing can be done against it in {play.language}")
    talk = play.shared()
    play.check(talk, "exit", 3).expect("error")
    if play.language in CANNOT_SURVIVE_EXIT:
        play.notes.append("the child ends after the reply, as the language has it")
        play.company.replace_shared()
    else:
        play.ask(talk)


STATUSES = {
    "retry": "The task runs again, and that counts.",
    "throttled": "The task runs again later, and that uses up no retry.",
    "rejected": "The task's message is rejected.",
    "ignored": "Nothing is stored.",
}


def _ends(status: str, why: str) -> Callable[[Play], None]:
    def play_status(play: Play) -> None:
        talk = play.shared()
        reply = play.check(talk, "end", status, 7).expect(status)
        after = reply.fields.get("retry_after_secs")
        if status in ("retry", "throttled") and after != 7:
            raise Failure("retry_after_secs 7", reply.line)
        play.ask(talk)

    play_status.__doc__ = f"{why} A task says so by what it raises."
    return play_status


for _status, _why in STATUSES.items():
    rows.add(f"status-{_status}", MUST, "3", "outcomes", tasks=("end",))(
        _ends(_status, _why)
    )


def _context(play: Play, **meta: Any) -> None:
    talk = play.shared()
    id = talk.request(CHECK + "context", meta=meta)
    reply = talk.reply(id).expect("ok")
    deadline, told = meta.get("deadline"), reply.result
    if (
        deadline
        and isinstance(told, dict)
        and _is_about(told.get("deadline"), deadline)
    ):
        deadline = told["deadline"]
    play.same(
        {"id": id, "retries": meta.get("retries", 0), "deadline": deadline}, reply
    )


def _is_about(value: Any, deadline: float) -> bool:
    # A language's own type for times may round.
    return isinstance(value, (int, float)) and abs(value - deadline) < 0.001


@rows.add("context", SHOULD, "2.2", "context", tasks=("context",))
def context(play: Play) -> None:
    """A task wants to know its id, how often it was tried, and how long it has."""
    _context(play, retries=2, deadline=4_000_000_000.5)


@rows.add("context-without-deadline", SHOULD, "2.2", "context", tasks=("context",))
def context_without_deadline(play: Play) -> None:
    """A task without a time limit has no deadline."""
    _context(play)
