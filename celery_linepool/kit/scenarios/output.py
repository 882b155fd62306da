"""What an application prints is not for the channel."""

from __future__ import annotations

import time

from ..child import Late
from ..play import Play
from ..said import Oddity
from ..scenario import MUST, Failure, Rows

rows = Rows()
TEXT = "printed by the task linepool.check.print"


@rows.add("print", MUST, "1.3", "channel", tasks=("print",))
def print_(play: Play) -> None:
    """What a task or a subprocess of it prints to stdout is in between the replies,
    and may tear one apart."""
    talk = play.shared()
    try:
        play.check(talk, "print", TEXT)
        play.ask(talk)
    except Failure:
        # Torn apart by what was printed, the reply is no line any more.
        _none_printed(play)
        raise
    _none_printed(play)


@rows.add("print-at-exit", MUST, "1.3", "channel", tasks=("print",))
def print_at_exit(play: Play) -> None:
    """What is printed into a buffer comes when the child ends: on the channel, where it
    was not taken away from the application."""
    talk = play.take_shared()
    play.check(talk, "print", TEXT)
    play.ask(talk)
    play.forget_now()
    play.end_or_untried(talk)
    _none_printed(play)


def _none_printed(play: Play) -> None:
    expected = "what is printed is on stderr, and not on the channel"
    play.none_now(Oddity.NOISE, expected, text=TEXT.encode())


@rows.add("stderr", MUST, "1.4", "stderr", tasks=("stderr",))
def stderr(play: Play) -> None:
    """stderr is free text, as much as there is, here 1 MB."""
    talk = play.shared()
    before = talk.child.stderr_bytes
    play.check(talk, "stderr", 1_000_000).expect("ok")
    deadline = time.monotonic() + play.timeout
    while talk.child.stderr_bytes - before < 1_000_000:
        try:
            talk.child.pump(deadline)
        except Late:
            got = talk.child.stderr_bytes - before
            raise Failure(f"1000000 bytes on stderr, not {got}") from None
