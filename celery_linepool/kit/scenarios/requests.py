"""Requests: their ids, and how their bytes come in."""

from __future__ import annotations

import json
from typing import Callable

from ..company import ECHO
from ..play import Play
from ..said import encode
from ..scenario import MUST, Failure, Rows

rows = Rows()
#: With MBs a JSON library that is written in its own language takes seconds.
PATIENCE = 6

#: The parts of ids that have been lost on the way.
IDS = {
    "quotes": ('it\'s "quoted"', "Quotes in an id end the text where JSON is pasted."),
    "backslashes": (
        "a\\b\\\\n\\u0041",
        "Backslashes in an id are doubled or eaten where JSON is pasted together.",
    ),
    "line-separators": (
        "a\u2028b\u2029c\u0085d",
        "Many a library ends a line at U+2028, U+2029 or U+0085, and JSON does not.",
    ),
    "control-characters": (
        "".join(map(chr, range(1, 32))) + "\x7f",
        "Control characters in an id are escaped in JSON, each of them.",
    ),
    "nul": ("a\0b", "A string of C ends at U+0000, and one of JSON does not."),
    "emoji": (
        "\U0001f600 e\u0301 \u00e9 \U0010fffd",
        "What is beyond 16 bits, and how letters are composed, must survive.",
    ),
    "digits": (
        "12345678901234567890",
        "An id that looks like a number is a string: keys of arrays and variables "
        "without types make a number of it.",
    ),
    "spaces": ("  a  b\t ", "Spaces in an id are split or trimmed by shells."),
    "percent": ("%s%d%% $HOME `id` ${x} #{y}", "An id is no template and no format."),
    "long": ("i" * 2**20, "An id may be as long as a line, here 1 MB."),
}


def _with_id(id: str, why: str) -> Callable[[Play], None]:
    def play_id(play: Play) -> None:
        play.ask(play.shared(), id=id)

    play_id.__doc__ = f"{why} A reply with another id breaks the child."
    return play_id


for _name, (_id, _why) in IDS.items():
    rows.add(f"id-{_name}", MUST, "2.1", "ids", original=True)(_with_id(_id, _why))


@rows.add("id-escaped", MUST, "2.1", "ids", original=True)
def id_escaped(play: Play) -> None:
    """However an id is escaped in the request, the reply has the same text."""
    talk = play.shared()
    id, line = talk.line(play.task, id="a/\u00e9\U0001f600")
    escaped = json.dumps(id).replace("/", "\\/").encode()
    talk.write(line.replace(json.dumps(id, ensure_ascii=False).encode(), escaped))
    talk.reply(id)


@rows.add("unknown-field", MUST, "2.3", "unknown", original=True)
def unknown_field(play: Play) -> None:
    """A newer worker says more; a child that refuses it could never be used again."""
    talk = play.shared()
    id, line = talk.line(play.task, meta={"from_a_newer_worker": {"a": [1]}})
    request = json.loads(line)
    request["from_a_newer_worker"] = [None]
    request["payload"]["from_a_newer_worker"] = {}
    talk.write(encode(request))
    talk.reply(id)


@rows.add("one-byte-at-a-time", MUST, "1", "framing", original=True)
def one_byte_at_a_time(play: Play) -> None:
    """A read gives what is there: a part of a line, or of a letter."""
    talk = play.shared()
    id, line = talk.line(ECHO if play.company.serves("echo") else play.task, "\u00e9")
    for n in range(len(line)):
        talk.write_apart(line[n : n + 1])
    talk.reply(id)


@rows.add("several-lines-at-once", MUST, "1", "framing", inflight=2)
def several_lines_at_once(play: Play) -> None:
    """A read gives what is there: several lines, and the beginning of the next."""
    talk = play.shared()
    lines = dict(talk.line(play.task) for _ in range(min(play.hello.inflight, 8)))
    data = b"".join(lines.values())
    talk.write_apart(data[:-5])
    *whole, torn = lines
    for id in whole:
        talk.reply(id)
    talk.write(data[-5:])
    talk.reply(torn)


@rows.add("large-argument", MUST, "1.6", "framing", original=True)
def large_argument(play: Play) -> None:
    """A line may have 16 MiB: many times what a pipe or a buffer holds. Here 8 MB."""
    talk = play.shared()
    talk.patience = PATIENCE
    play.echo(talk, "x" * 8_000_000, key=1)


@rows.add("large-result", MUST, "1.2", "framing", tasks=("big",))
def large_result(play: Play) -> None:
    """A write takes what fits into the pipe: the rest has to be written too."""
    talk = play.shared()
    talk.patience = PATIENCE
    reply = play.check(talk, "big", 8_000_000).expect("ok")
    if reply.result != "x" * 8_000_000:
        raise Failure("8 MB of x", reply.line)


@rows.add("line-over-the-limit", MUST, "1.6", "limit", tasks=("big",))
def line_over_the_limit(play: Play) -> None:
    """A reply over LINEPOOL_MAX_LINE ends the child: it has to be an error instead."""
    talk = play.boot(max_line=65536)
    play.check(talk, "big", 60_000).expect("ok")
    error = play.check(talk, "big", 70_000)
    if len(error.line) > 65536 or error.status != "error":
        raise Failure("an error instead of a line over 65536 bytes", error.line)
    play.ask(talk)
