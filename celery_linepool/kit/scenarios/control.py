"""Lines down that are no request: cancel, ping, and what nobody knows."""

from __future__ import annotations

from ..company import CHECK
from ..play import Play
from ..scenario import MUST, SHOULD, Failure, Rows
from ..talk import Talk

rows = Rows()
#: Seconds that a task sleeps which is cancelled, and would be too long to wait for.
LONG = 3600


@rows.add("unknown-op", MUST, "5.1", "unknown")
def unknown_op(play: Play) -> None:
    """A newer worker says more; who does not know it goes on."""
    talk = play.shared()
    talk.op("from_a_newer_worker", id="none", seq=1)
    play.ask(talk)


@rows.add("unknown-field-of-op", MUST, "5.1", "unknown", features=("ping",))
def unknown_field_of_op(play: Play) -> None:
    """A newer worker says more in what is known, too."""
    talk = play.shared()
    talk.op("ping", seq=1, from_a_newer_worker={"a": []})
    _pong(talk, 1)


@rows.add("cancel", SHOULD, "6", "cancel", tasks=("sleep",), features=("cancel",))
def cancel(play: Play) -> None:
    """A task that is cancelled and does not give up holds its slot until it is killed,
    and takes along whatever else its child does."""
    talk = play.shared()
    id = talk.request(CHECK + "sleep", LONG)
    talk.op("cancel", id=id, reason="revoked")
    talk.reply(id).expect("cancelled")
    play.ask(talk)


@rows.add("cancel-of-no-request", MUST, "6", "cancel", features=("cancel",))
def cancel_of_no_request(play: Play) -> None:
    """A cancel and a reply may cross: what it meant has ended already."""
    talk = play.shared()
    id = talk.request(play.task)
    talk.reply(id)
    for unknown in (id, "never-asked"):
        talk.op("cancel", id=unknown, reason="revoked")
    again = talk.request(play.task, id=id)
    if talk.reply(again).status == "cancelled":
        raise Failure("a new request is not cancelled with the old one", _line(talk))


@rows.add("ping", SHOULD, "6", "ping", features=("ping",))
def ping(play: Play) -> None:
    """A ping asks whether a child that says nothing is still of use."""
    talk = play.shared()
    talk.op("ping", seq=17)
    _pong(talk, 17)
    talk.op("ping")
    talk.event("pong")


@rows.add(
    "ping-during-a-task", SHOULD, "6", "ping", tasks=("sleep",), features=("ping",)
)
def ping_during_a_task(play: Play) -> None:
    """Whoever answers only between tasks seems to hang while it works."""
    talk = play.take_shared()
    talk.request(CHECK + "sleep", LONG)
    talk.op("ping", seq=18)
    _pong(talk, 18)


def _pong(talk: Talk, seq: int) -> None:
    pong = talk.event("pong")
    if pong.fields.get("seq") != seq:
        raise Failure(f"a pong with the seq of the ping, {seq}", pong.line)


def _line(talk: Talk) -> bytes:
    return talk.last.line if talk.last else b""
