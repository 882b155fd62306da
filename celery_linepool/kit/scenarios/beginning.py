"""The first words, and whether there is any reply at all."""

from __future__ import annotations

from ...messages import Hello
from ..company import unflushed
from ..play import Play
from ..said import Oddity
from ..scenario import MUST, SHOULD, Failure, Rows
from ..talk import Silent

rows = Rows()


@rows.add("hello", MUST, "4.2", "hello")
def hello(play: Play) -> None:
    """The hello tells the worker what the child can do; a wrong one ends the child."""
    talk = play.boot()
    fields = talk.last.fields if talk.last else {}
    for name in ("language", "name"):
        if not isinstance(fields.get(name, ""), str):
            raise Failure(f"a hello whose {name} is a string", talk.hello_line)
    assert isinstance(talk.hello, Hello)
    for names in (talk.hello.tasks, talk.hello.features):
        if len(set(names)) != len(names):
            raise Failure("a hello that names each thing once", talk.hello_line)


@rows.add("replies", MUST, "1.2", "flush", original=True)
def replies(play: Play) -> None:
    """A reply that stays in a buffer is a task that hangs until its time limit."""
    talk = play.shared()
    try:
        play.ask(talk)
    except Silent as silent:
        raise unflushed(talk, silent) from None


@rows.add("request-while-booting", MUST, "4.1", "booting", original=True)
def request_while_booting(play: Play) -> None:
    """The worker may write a request while the child boots; whoever throws away what
    is in the pipe then loses a task."""
    talk = play.start()
    id = talk.request(play.task)
    if not play.is_original:
        talk.greet()
    talk.reply(id)


@rows.add("eof-while-booting", MUST, "1.5", "eof", original=True)
def eof_while_booting(play: Play) -> None:
    """A worker that stops right after its start would leave the child behind."""
    talk = play.start()
    talk.child.close_input()
    talk.hear_if_any()
    play.end(talk)


@rows.add("original-protocol", SHOULD, "4.3", "original")
def original_protocol(play: Play) -> None:
    """A worker of the original protocol takes the hello for a broken line, and kills
    the child."""
    talk = play.start(LINEPOOL_PROTOCOL="1")
    play.ask(talk)
    if talk.hello is not None:
        raise Failure("no hello with LINEPOOL_PROTOCOL=1", talk.hello_line)


@rows.add("original-protocol-unset", SHOULD, "4.3", "original")
def original_protocol_unset(play: Play) -> None:
    """Where LINEPOOL_PROTOCOL is not set, somebody else runs the child: by hand, or an
    older worker."""
    talk = play.start(LINEPOOL_PROTOCOL=None)
    play.ask(talk)
    if talk.hello is not None:
        raise Failure("no hello without LINEPOOL_PROTOCOL", talk.hello_line)


@rows.add("original-protocol-events", SHOULD, "4.3", "original", tasks=("events",))
def original_protocol_events(play: Play) -> None:
    """In the original protocol every line is a reply: an event breaks the child."""
    talk = play.start(LINEPOOL_PROTOCOL="1")
    play.check(talk, "events", 2)
    play.none_now(Oddity.UNASKED, "no events with LINEPOOL_PROTOCOL=1")


@rows.add("channel-fd", SHOULD, "1.1", "fd")
def channel_fd(play: Play) -> None:
    """With `channel = "fd"` the worker speaks over the descriptors 3 and 4, and leaves
    stdin and stdout to the application."""
    talk = play.boot(LINEPOOL_CHANNEL="fd")
    play.ask(talk)
    if play.company.serves("print"):
        play.check(talk, "print", "not over 4")
        play.ask(talk)
        play.none_now(Oddity.NOISE, "what is printed is not on 4", text=b"not over 4")
