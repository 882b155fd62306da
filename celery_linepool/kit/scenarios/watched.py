"""Rules for whatever a child says: all that was read in this run is looked at."""

from __future__ import annotations

from typing import Tuple

from ..play import Play
from ..said import Oddity
from ..scenario import MUST, Rows

rows = Rows()


def _row(
    id: str,
    rule: str,
    mend: str,
    kinds: Tuple[Oddity, ...],
    expected: str,
    why: str,
    original: bool = False,
) -> None:
    def look_back(play: Play) -> None:
        play.ask(play.shared())
        for kind in kinds:
            play.none_of(kind, expected)

    look_back.__doc__ = why
    rows.add(id, MUST, rule, mend, original=original)(look_back)


_row(
    "hello-first",
    "4.1",
    "hello",
    (Oddity.LATE_HELLO,),
    "the hello before every other line",
    "The worker learns from the first line which protocol the child speaks.",
    original=True,
)
_row(
    "hello-once",
    "4.1",
    "hello",
    (Oddity.SECOND_HELLO,),
    "one hello",
    "A second hello means that the child has started anew inside, and lost its tasks.",
)
_row(
    "noise-before-hello",
    "4.1",
    "channel",
    (Oddity.NOISE_BEFORE_HELLO,),
    "the hello, and nothing before it",
    "What a framework prints while it boots comes before the hello, and the worker "
    "takes the child for one of the original protocol.",
)
_row(
    "noise",
    "1.3",
    "channel",
    (Oddity.NOISE,),
    "nothing on the channel but the protocol",
    "Whatever is printed to stdout is between the replies, and may tear one apart.",
    original=True,
)
_row(
    "reply-once",
    "3.1",
    "once",
    (Oddity.SECOND_REPLY, Oddity.UNASKED),
    "one reply to each request, and none without one",
    "A reply too many may be taken for that to the next request.",
    original=True,
)
_row(
    "reply-id",
    "3.2",
    "ids",
    (Oddity.NO_ID,),
    "a reply with the request's id",
    "Without an id nobody knows which task the reply is about.",
)
_row(
    "reply-fields",
    "3",
    "reply",
    (Oddity.FIELDS,),
    "message and type as strings, backtrace as a list of strings",
    "What is of another type is not shown to whoever looks at the failed task.",
    original=True,
)
_row(
    "event-ids",
    "5.3",
    "events",
    (Oddity.STRAY_EVENT,),
    "events of requests in flight only",
    "After the reply the task is settled: nobody hears of its progress any more.",
)
_row(
    "utf-8",
    "1",
    "utf8",
    (Oddity.UTF8,),
    "UTF-8",
    "A line that is no UTF-8 is no JSON; it is skipped, and its task hangs.",
    original=True,
)
_row(
    "no-nan",
    "1",
    "nan",
    (Oddity.NUMBER,),
    "no NaN and no Infinity",
    "They are no JSON: the line is skipped, and its task hangs.",
    original=True,
)
_row(
    "line-limit",
    "1.6",
    "limit",
    (Oddity.TOO_LONG,),
    "no line over LINEPOOL_MAX_LINE",
    "A line over the limit ends the child, and its task fails.",
    original=True,
)
