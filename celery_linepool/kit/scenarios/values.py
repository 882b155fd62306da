"""Arguments and results: what is sent comes back as it was."""

from __future__ import annotations

import json
from typing import Any, List

from ..company import CHECK, ECHO
from ..languages import CANNOT_TELL_EMPTY, LARGEST_INTEGER
from ..play import Play
from ..said import Oddity
from ..scenario import MAY, MUST, SHOULD, Level, Rows, Untried

rows = Rows()


def _row(id: str, level: Level, values: List[Any], why: str) -> None:
    def play_values(play: Play) -> None:
        play.echo(play.shared(), *values, key=values)

    play_values.__doc__ = why
    rows.add(id, level, "2.2", "json", original=True)(play_values)


_row(
    "unicode",
    MUST,
    ["\u00e9 \u4e2d\u6587 \U0001f600", "\u2028\u2029\u0085", "e\u0301", "\ufeff"],
    "Text is UTF-8, and all of it is text.",
)
_row(
    "control-characters",
    MUST,
    ["a\nb\r\nc\td", "".join(map(chr, range(1, 32))) + '\x7f"\\/'],
    "A newline in a text is escaped in JSON, and is none on the channel.",
)
_row("nul", SHOULD, ["a\0b"], "U+0000 is a character like others.")
_row(
    "numbers-as-text",
    MUST,
    ["1", "007", "1e3", "0x10", "true", "null", ""],
    "A text that looks like something else is still a text.",
)
_row(
    "null-and-booleans",
    MUST,
    [None, True, False, [None, True, False]],
    "null, true and false are neither texts nor numbers.",
)
_row(
    "floats",
    SHOULD,
    [0.1, 1.5, -2.5e-8, 1e300, 1.0, 3.14159265358979],
    "A number keeps its digits, at least the first 15.",
)
_row(
    "floats-of-17-digits",
    MAY,
    [3.141592653589793, 0.30000000000000004],
    "It takes 17 digits to say all of a double.",
)


def _nested(depth: int) -> Any:
    return {"list": [_nested(depth - 1)]} if depth else "the inmost"


_row(
    "nested",
    MUST,
    [_nested(20)],
    "Lists and objects are nested, here 40 deep.",
)


@rows.add("escaped-unicode", MUST, "2.2", "json", original=True)
def escaped_unicode(play: Play) -> None:
    """The same text may come escaped, with two escapes for what is beyond 16 bits."""
    talk, text = play.shared(), "\u00e9\U0001f600/"
    task = ECHO if play.company.serves("echo") else play.task
    id, line = talk.line(task, text, kwargs={"key": text})
    raw = json.dumps(text, ensure_ascii=False).encode()
    talk.write(line.replace(raw, json.dumps(text).replace("/", "\\/").encode()))
    reply = talk.reply(id)
    if play.company.serves("echo"):
        play.same({"args": [text], "kwargs": {"key": text}}, reply)


@rows.add("keyword-arguments", MUST, "2.2", "json", tasks=("echo",))
def keyword_arguments(play: Play) -> None:
    """Arguments have names, and these are texts as well."""
    names = ("a", "snake_case", "with-dash", "gr\u00f6\u00dfe", "class")
    play.echo(play.shared(), 1, **{name: n for n, name in enumerate(names)})


@rows.add("no-arguments", MUST, "2.2", "json", original=True)
def no_arguments(play: Play) -> None:
    """A task without arguments has an empty list and an empty object."""
    play.ask(play.shared())


@rows.add("empty-list-and-object", MUST, "8.3", "empty", tasks=("echo",))
def empty_list_and_object(play: Play) -> None:
    """An empty object is no empty list: another program will look for its keys."""
    if play.language in CANNOT_TELL_EMPTY:
        raise Untried("PHP has one type for both, unless a helper is told otherwise")
    talk = play.shared()
    play.echo(talk)
    play.echo(talk, {}, [], [{}], {"a": []}, empty={}, none=[])


def _integers(play: Play, integers: List[int]) -> None:
    largest = LARGEST_INTEGER.get(play.language)
    if largest is not None and max(map(abs, integers)) > largest:
        raise Untried(f"{play.language} has no integers beyond {largest}")
    talk = play.shared()
    reply = talk.ask(ECHO, *integers, kwargs={"key": integers})
    play.same({"args": integers, "kwargs": {"key": integers}}, reply.expect("ok"))


@rows.add("integers", SHOULD, "8.2", "integers", tasks=("echo",))
def integers(play: Play) -> None:
    """Up to 2^53 every language has them."""
    _integers(play, [0, -1, 2**31, -(2**32), 2**53 - 1])


@rows.add("integers-of-64-bits", SHOULD, "8.2", "integers", tasks=("echo",))
def integers_of_64_bits(play: Play) -> None:
    """Ids in databases have 64 bits; as a double the last digits are others."""
    _integers(play, [2**53 + 1, 2**63 - 1, -(2**63 - 1)])


@rows.add("integers-beyond-64-bits", SHOULD, "8.2", "integers", tasks=("echo",))
def integers_beyond_64_bits(play: Play) -> None:
    """Python's integers have no end, so there may be such arguments."""
    _integers(play, [2**64, -(10**30)])


@rows.add("not-a-number", MUST, "1", "nan", original=True)
def not_a_number(play: Play) -> None:
    """NaN and Infinity are no JSON: such a line is skipped, and its task hangs. Here an
    integer is sent that is infinite as a double; an error is a good reply."""
    talk = play.shared()
    talk.ask(ECHO if play.company.serves("echo") else play.task, 10**400)
    play.none_now(Oddity.NUMBER, "an error, or the number, but not Infinity")


@rows.add("long-message", MUST, "1", "utf8", tasks=("fail",))
def long_message(play: Play) -> None:
    """A text that is cut in the middle of a letter is no UTF-8 any more."""
    talk = play.shared()
    for begin in ("", "x"):
        talk.ask(CHECK + "fail", begin + "\u00e9" * 100_000).expect("error")
    play.none_now(Oddity.UTF8, "an error whose message is UTF-8")
