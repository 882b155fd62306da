"""Lines up that are no reply: progress, log, publish."""

from __future__ import annotations

from ..company import CHECK, ECHO
from ..play import Play
from ..said import Said
from ..scenario import MUST, Failure, Rows
from ..talk import Talk

rows = Rows()


@rows.add("progress", MUST, "5", "events", tasks=("events",))
def progress(play: Play) -> None:
    """Progress is stored while the task runs, in its order, and under its id."""
    talk = play.shared()
    id = talk.request(CHECK + "events", 3)
    reply = talk.reply(id).expect("ok")
    play.same(3, reply)
    metas = [event.fields.get("meta") for event in talk.events if event.id == id]
    steps = [meta for meta in metas if meta is not None]
    if steps != [{"step": 1}, {"step": 2}, {"step": 3}]:
        last = talk.events[-1].line if talk.events else reply.line
        raise Failure("progress with the steps 1, 2 and 3, before the reply", last)


@rows.add("log", MUST, "5", "events", tasks=("events",))
def log(play: Play) -> None:
    """What a task logs is logged by the worker, with its level."""
    talk = play.shared()
    id = talk.request(CHECK + "events", 1)
    event = talk.event("log", id)
    if (
        event.fields.get("level") != "warning"
        or event.fields.get("message") != "checked"
    ):
        raise Failure('a log with the level "warning" and "checked"', event.line)
    talk.reply(id).expect("ok")


def _published(talk: Talk, when: str) -> Said:
    id = talk.request(CHECK + "publish", ECHO, when)
    event = talk.event("publish", id)
    fields = {"when": "now", "kwargs": {}, **event.fields}
    if (fields.get("task"), fields.get("args")) != (ECHO, [7]):
        raise Failure(f"a publish of the task {ECHO} with the argument 7", event.line)
    if fields["when"] != when:
        raise Failure(f'a publish with "when": "{when}"', event.line)
    seq = fields.get("seq")
    if isinstance(seq, bool) or not isinstance(seq, (int, float)):
        raise Failure("a publish whose seq is a number", event.line)
    return event


def _publish(play: Play, when: str) -> None:
    talk = play.shared()
    event = _published(talk, when)
    assert event.id is not None
    talk.op("answer", id=event.id, seq=event.fields["seq"], task_id="the-new-task")
    play.same("the-new-task", talk.reply(event.id).expect("ok"))


@rows.add("publish", MUST, "5", "publish", tasks=("publish",))
def publish(play: Play) -> None:
    """A task sends another one, and gets its id."""
    _publish(play, "now")


@rows.add("publish-on-success", MUST, "5", "publish", tasks=("publish",))
def publish_on_success(play: Play) -> None:
    """A task sends another one that must not run if this one fails."""
    _publish(play, "success")


@rows.add("publish-refused", MUST, "6", "publish", tasks=("publish",))
def publish_refused(play: Play) -> None:
    """Where a task cannot be sent its publisher has to hear of it."""
    talk = play.shared()
    event = _published(talk, "now")
    assert event.id is not None
    refused = {"id": event.id, "seq": event.fields["seq"], "error": "no broker"}
    talk.op("answer", **refused)
    talk.reply(event.id).expect("error")
    play.ask(talk)


@rows.add("publish-without-an-answer", MUST, "1.5", "publish", tasks=("publish",))
def publish_without_an_answer(play: Play) -> None:
    """The channel ends while a task waits for an answer: none will come, and the child
    must end all the same."""
    talk = play.take_shared()
    event = _published(talk, "now")
    assert event.id is not None
    talk.child.close_input()
    talk.reply(event.id)
    play.end(talk)
