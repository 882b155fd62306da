"""The wire: every line that a child may say, or should not, in every piece of it."""

from __future__ import annotations

import base64
import datetime
import decimal
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from celery_linepool.encoding import encode_request
from celery_linepool.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
)
from celery_linepool.messages import (
    MAX_LINE,
    SHOWN,
    Event,
    Hello,
    Noise,
    Op,
    Reply,
    Status,
    Told,
    Violation,
    parse_reply,
    show,
)
from celery_linepool.protocol import MOVES, Connection, Handshake, Move, State, Stray

# --- one table, three ways ------------------------------------------------------------

ASKED = "id-1"

#: (what it is, the bytes after a request with the id `ASKED`, the events as
#: `summary` puts them, the events if `TAIL` follows)
STORIES = [
    ("silence", b"", [], ["ok {'result': 'tail'}"]),
    ("half a line", b'{"status":"ok"', [], ["no JSON"]),
    (
        "a reply",
        b'{"id":"id-1","status":"ok","result":7}\n',
        ["ok {'result': 7}"],
        ["ok {'result': 7}", "unasked"],
    ),
    ("without an id", b'{"status":"ok"}\n', ["ok {}"], ["ok {}", "unasked"]),
    ("white space", b' {"status" : "ok"} \r\n', ["ok {}"], ["ok {}", "unasked"]),
    (
        "line separators of Unicode inside",
        '{"status":"ok","result":"a\u2028b\u2029c\u0085d"}\n'.encode(),
        ["ok {'result': 'a\\u2028b\\u2029c\\x85d'}"],
        ["ok {'result': 'a\\u2028b\\u2029c\\x85d'}", "unasked"],
    ),
    (
        "an escaped newline inside",
        b'{"status":"ok","result":"a\\nb"}\n',
        ["ok {'result': 'a\\nb'}"],
        ["ok {'result': 'a\\nb'}", "unasked"],
    ),
    (
        "a second reply",
        b'{"status":"ok"}\n{"status":"ok"}\n',
        ["ok {}", "unasked"],
        ["ok {}", "unasked"],
    ),
    (
        "a newline too many",
        b'{"status":"ok"}\n\n',
        ["ok {}", "unasked"],
        ["ok {}", "unasked"],
    ),
    (
        "half a line too many",
        b'{"status":"ok"}\nx',
        ["ok {}", "unasked"],
        ["ok {}", "unasked"],
    ),
    ("an empty line", b'\n{"status":"ok"}\n', ["no JSON"], ["no JSON"]),
    ("another id", b'{"id":"id-2","status":"ok"}\n', ["another id"], ["another id"]),
    ("an empty id", b'{"id":"","status":"ok"}\n', ["another id"], ["another id"]),
    ("a print", b'hello\n{"status":"ok"}\n', ["no JSON"], ["no JSON"]),
    ("no status", b"{}\n", ["a status"], ["a status"]),
    ("nothing behind a violation is read", b"x\ny\nz\n", ["no JSON"], ["no JSON"]),
    ("a carriage return for a newline", b'{"status":"ok"}\r', [], ["no JSON"]),
]
TAIL = b'{"status":"ok","result":"tail"}\n'


def summary(events: list[Event]) -> list[str]:
    """What a table can say of events."""
    found = []
    for event in events:
        if isinstance(event, Reply):
            rest = {k: v for k, v in event.fields.items() if k not in ("id", "status")}
            found.append(f"{event.status.value} {ascii(rest)}")
        else:
            reasons = {
                "it spoke without being asked": "unasked",
                "a reply to another id than the one asked": "another id",
            }
            reason = reasons.get(event.reason)
            if reason is None:
                words = ("no JSON", "a status", "a line longer")
                reason = next((w for w in words if w in event.reason), event.reason)
            found.append(reason)
    return found


def asked(max_line: int = MAX_LINE) -> Connection:
    connection = Connection(max_line)
    connection.request(ASKED)
    return connection


def whole(said: bytes) -> Iterator[bytes]:
    yield said


def byte_by_byte(said: bytes) -> Iterator[bytes]:
    for byte in said:
        yield bytes([byte])


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize("story, said, events, _", STORIES)
def test_what_a_child_says_after_a_request(
    story: str,
    said: bytes,
    events: list[str],
    _: list[str],
    feed: Callable[[bytes], Iterator[bytes]],
) -> None:
    connection = asked()
    found = [event for part in feed(said) for event in connection.receive(part)]
    assert summary(found) == events


@pytest.mark.parametrize("story, said, _, with_tail", STORIES)
def test_what_a_child_says_with_a_tail(
    story: str, said: bytes, _: list[str], with_tail: list[str]
) -> None:
    assert summary(asked().receive(said + TAIL)) == with_tail


#: Lines, and pieces of lines, that hypothesis puts one behind the other.
PIECES = [
    b'{"id":"id-1","status":"ok"}\n',
    b'{"status":"error","message":"\xc3\xa9"}\n',
    b'{"id":"id-2","status":"ok"}\n',
    b'{"status":"late"}\n',
    b'{"status":"ok",',
    b'"result":[1,2]}\n',
    b"print\n",
    b"\n",
    b"\r\n",
    b"\x00",
    b"\xff\n",
    b"a" * 70 + b"\n",
    b"a" * 64,
]


@given(data=st.data(), pieces=st.lists(st.sampled_from(PIECES), max_size=6))
def test_however_it_is_split_the_events_are_the_same(
    data: st.DataObject, pieces: list[bytes]
) -> None:
    said = b"".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(said)), max_size=10).map(sorted))
    parts = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)])]
    at_once, in_parts = asked(max_line=64), asked(max_line=64)
    expected = at_once.receive(said)
    found = [event for part in parts for event in in_parts.receive(part)]
    assert summary(found) == summary(expected)
    assert in_parts.state is at_once.state
    assert in_parts.requests == at_once.requests
    for one, other in zip(found, expected):
        if isinstance(one, Violation) and isinstance(other, Violation):
            # What was read so far when it broke, which may be less, never else.
            assert other.read.startswith(one.read) or one.read == other.read
    assert at_once.receive_eof() == in_parts.receive_eof()


@given(count=st.integers(1, 20), size=st.integers(1, 100))
def test_a_conversation_of_any_length(count: int, size: int) -> None:
    connection = Connection()
    for number in range(count):
        connection.request(f"id-{number}")
        line = f'{{"id":"id-{number}","status":"ok","result":{number}}}\n'.encode()
        events: list[Event] = []
        for start in range(0, len(line), size):
            assert connection.state is State.BUSY
            events += connection.receive(line[start : start + size])
        assert summary(events) == [f"ok {{'result': {number}}}"]
        assert connection.state is State.IDLE


# --- states ---------------------------------------------------------------------------

PAIRS = list(itertools.product(State, Move))


@pytest.mark.parametrize("state, move", PAIRS)
def test_every_move_is_legal_or_raises(state: State, move: Move) -> None:
    connection = Connection()
    connection.state = state
    if move in MOVES[state]:
        connection.move(move)
        assert connection.state is MOVES[state][move]
    else:
        with pytest.raises(LocalProtocolError, match=f"{move.value}.*{state.value}"):
            connection.move(move)
        assert connection.state is state, "an illegal move changes nothing"


def test_the_table_names_every_state() -> None:
    assert set(MOVES) == set(State)
    # Each can be reached, and each but the last can be left.
    reached = {s for moves in MOVES.values() for s in moves.values()}
    assert reached == set(State) - {State.STARTING}
    assert [state for state, moves in MOVES.items() if not moves] == [State.CLOSED]


def test_a_request_goes_only_to_a_child_that_is_idle() -> None:
    connection = asked()
    with pytest.raises(LocalProtocolError):
        connection.request("id-2")
    assert list(connection.requests) == [ASKED]
    connection.receive(b'{"status":"ok"}\n')
    connection.request("id-2")
    assert list(connection.requests) == ["id-2"]


def test_a_child_that_speaks_unasked_is_broken() -> None:
    connection = Connection()
    [event] = connection.receive(b"Listening on port 3000\n")
    assert isinstance(event, Violation)
    assert str(event) == (
        "it spoke without being asked; read b'Listening on port 3000\\n'"
    )
    assert connection.state is State.BROKEN
    assert connection.receive(b'{"status":"ok"}\n') == []


def test_the_end_of_stdout() -> None:
    connection = asked()
    connection.receive(b'{"status":')
    assert connection.receive_eof() == b'{"status":'
    assert connection.state is State.CLOSED
    with pytest.raises(LocalProtocolError):
        connection.receive_eof()


def test_the_end_of_stdout_of_a_child_that_said_nothing() -> None:
    assert Connection().receive_eof() is None


def test_who_says_ids_has_to_say_them_always() -> None:
    connection = asked()
    connection.receive(b'{"id":"%s","status":"ok"}\n' % ASKED.encode())
    connection.request("id-2")
    [event] = connection.receive(b'{"status":"ok","result":"stray"}\n')
    assert isinstance(event, Violation) and "without the id" in event.reason


# --- hello ----------------------------------------------------------------------------

HELLO = (
    b'{"op":"hello","protocol":2,"language":"js","name":"app","tasks":["a","b"],'
    b'"inflight":3,"features":["cancel","later"],"unknown":1}\n'
)


def greeted(inflight: int = 8, stray: Stray = Stray.AUTO) -> Connection:
    """A connection to a child that said hello, and may have three requests."""
    connection = Connection(handshake=Handshake.AUTO, inflight=inflight, stray=stray)
    [hello] = connection.receive(HELLO)
    assert isinstance(hello, Hello)
    return connection


def test_a_hello_says_what_a_child_can_do() -> None:
    hello = greeted().hello
    assert hello is not None
    assert (hello.tasks, hello.inflight) == (("a", "b"), 3)
    assert hello.features == {"cancel", "later"}
    assert (hello.language, hello.name) == ("js", "app")


def test_all_but_the_protocol_may_be_left_out() -> None:
    connection = Connection(handshake=Handshake.REQUIRED)
    [hello] = connection.receive(b'{"op":"hello","protocol":2}\n')
    assert isinstance(hello, Hello)
    assert (hello.tasks, hello.inflight, hello.features) == ((), 1, frozenset())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"op":"hello"}', "protocol None, not 2"),
        (b'{"op":"hello","protocol":3}', "protocol 3, not 2"),
        (b'{"op":"hello","protocol":2,"inflight":0}', "inflight"),
        (b'{"op":"hello","protocol":2,"inflight":true}', "inflight"),
        (b'{"op":"hello","protocol":2,"tasks":"a"}', "tasks"),
        (b'{"op":"hello","protocol":2,"features":[1]}', "features"),
    ],
)
def test_a_hello_that_is_none(line: bytes, reason: str) -> None:
    connection = Connection(handshake=Handshake.AUTO)
    [event] = connection.receive(line + b"\n")
    assert isinstance(event, Violation) and reason in event.reason
    assert connection.state is State.BROKEN


def test_a_hello_that_is_required_comes_before_any_request() -> None:
    connection = Connection(handshake=Handshake.REQUIRED)
    assert not connection.has_room
    with pytest.raises(LocalProtocolError):
        connection.request("1")
    connection.receive(HELLO)
    assert connection.has_room
    connection.request("1")


def test_a_hello_may_come_while_a_request_waits_for_it() -> None:
    connection = Connection(handshake=Handshake.AUTO)
    connection.request("1")
    events = connection.receive(HELLO + b'{"id":"1","status":"ok"}\n')
    assert [type(event) for event in events] == [Hello, Reply]


def test_what_comes_before_a_hello_is_noise_until_something_was_asked() -> None:
    for handshake in (Handshake.AUTO, Handshake.REQUIRED):
        connection = Connection(handshake=handshake)
        events = connection.receive(b"Booting ...\n" + HELLO)
        assert [type(event) for event in events] == [Noise, Hello]
    connection = Connection(handshake=Handshake.AUTO)
    connection.request("1")
    [event] = connection.receive(b"Booting ...\n" + HELLO)
    assert isinstance(event, Violation)


@pytest.mark.parametrize(
    ("stray", "kinds"),
    [(Stray.LOG, [Noise, Hello]), (Stray.STRICT, [Violation])],
)
def test_what_comes_before_a_hello_may_be_set(stray: Stray, kinds: list[type]) -> None:
    connection = Connection(handshake=Handshake.AUTO, stray=stray)
    connection.request("1")
    events = connection.receive(b"Booting ...\n" + HELLO)
    assert [type(event) for event in events] == kinds


def test_after_its_first_reply_nothing_of_the_original_protocol_is_noise() -> None:
    connection = Connection(handshake=Handshake.AUTO, stray=Stray.LOG)
    connection.request("1")
    connection.receive(b'{"id":"1","status":"ok"}\n')
    connection.request("2")
    [event] = connection.receive(b"noise\n")
    assert isinstance(event, Violation)


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":"2","status":"fine"}',
        b'{"id":"2","status":"retry","retry_after_secs":-1}',
    ],
)
def test_a_violation_names_the_request_that_it_was_meant_for(line: bytes) -> None:
    connection = greeted()
    for id_ in ("1", "2"):
        connection.request(id_)
    [event] = connection.receive(line + b"\n")
    assert isinstance(event, Violation) and event.id == "2"


def test_there_is_one_hello_and_no_second() -> None:
    assert greeted().receive(HELLO) == []  # an op that is unknown by now


def test_without_a_handshake_a_hello_is_no_protocol() -> None:
    connection = Connection(handshake=Handshake.NONE)
    connection.request("1")
    [event] = connection.receive(HELLO)
    assert isinstance(event, Violation)


def test_a_child_of_the_original_protocol_is_not_made_another_by_waiting() -> None:
    connection = Connection(handshake=Handshake.AUTO)
    connection.request("1")
    [reply] = connection.receive(b'{"status":"ok"}\n')
    assert isinstance(reply, Reply) and reply.id == "1"
    [event] = connection.receive(HELLO)
    assert isinstance(event, Violation) and "without being asked" in event.reason


# --- several requests at once ---------------------------------------------------------


@pytest.mark.parametrize(("most", "inflight"), [(8, 3), (2, 2), (1, 1)])
def test_a_child_gets_no_more_than_both_sides_allow(most: int, inflight: int) -> None:
    connection = greeted(most)
    for number in range(inflight):
        assert connection.has_room
        connection.request(str(number))
    assert not connection.has_room
    with pytest.raises(LocalProtocolError, match=f"inflight = {inflight}"):
        connection.request("more")


@given(st.permutations(["1", "2", "3"]))
def test_replies_come_in_any_order(order: list[str]) -> None:
    connection = greeted()
    for id_ in ("1", "2", "3"):
        connection.request(id_)
    for left, id_ in zip((2, 1, 0), order):
        [reply] = connection.receive(b'{"id":"%s","status":"ok"}\n' % id_.encode())
        assert isinstance(reply, Reply) and reply.id == id_
        assert connection.state is (State.BUSY if left else State.IDLE)
        assert len(connection.requests) == left


def test_an_id_is_in_flight_once() -> None:
    connection = greeted()
    connection.request("1")
    with pytest.raises(LocalProtocolError, match="in flight"):
        connection.request("1")


@pytest.mark.parametrize(
    "line",
    [b'{"id":"2","status":"ok"}', b'{"id":"1","status":"fine"}', b'{"id":1,"op":1}x'],
)
def test_a_reply_that_is_none_breaks_a_child_that_said_hello(line: bytes) -> None:
    connection = greeted(stray=Stray.STRICT)
    connection.request("1")
    [event] = connection.receive(line + b"\n")
    assert isinstance(event, Violation)


def test_only_a_child_that_said_hello_can_be_cancelled() -> None:
    line = b'{"id":"1","status":"cancelled"}\n'
    for connection, kind in ((greeted(), Reply), (asked_of_old("1"), Violation)):
        if not connection.requests:
            connection.request("1")
        [event] = connection.receive(line)
        assert isinstance(event, kind)


def asked_of_old(id_: str) -> Connection:
    connection = Connection()
    connection.request(id_)
    return connection


# --- events and noise -----------------------------------------------------------------


@pytest.mark.parametrize("op", list(Op))
def test_an_event_of_a_request(op: Op) -> None:
    connection = greeted()
    connection.request("1")
    [event] = connection.receive(b'{"op":"%s","id":"1","x":2}\n' % op.value.encode())
    assert isinstance(event, Told)
    assert (event.op, event.id, event.fields["x"]) == (op, "1", 2)


@pytest.mark.parametrize(
    "line",
    [
        b'{"op":"from the future"}',
        b'{"op":7}',
        b'{"op":"progress"}',
        b'{"op":"publish","id":7}',
        # Of a request that was replied to, or never made.
        b'{"op":"progress","id":"0"}',
        b'{"op":"log","id":"0"}',
    ],
)
def test_an_event_that_means_nothing_is_ignored(line: bytes) -> None:
    connection = greeted()
    connection.request("1")
    assert connection.receive(line + b"\n") == []
    assert connection.state is State.BUSY


@pytest.mark.parametrize("rest", ['"result":NaN}', '"result":"cut', "x}"])
def test_a_reply_that_is_no_json_is_no_noise(rest: str) -> None:
    connection = greeted()
    for id_ in ("first", "second"):
        connection.request(id_)
    line = f'{{"id":"second","status":"ok",{rest}'
    [event] = connection.receive(line.encode() + b"\n")
    assert isinstance(event, Violation) and event.id == "second"
    assert b"second" in event.read


def test_half_a_character_is_replaced() -> None:
    connection = greeted()
    connection.request("1")
    line = (
        rb'{"id":"1","status":"ok","result":{"\ud83d":["a\uDE00b", "\ud83d\ude00", 1]}}'
    )
    [reply] = connection.receive(line + b"\n")
    assert isinstance(reply, Reply)
    assert reply.fields["result"] == {"\ufffd": ["a\ufffdb", "\U0001f600", 1]}


def test_a_child_may_log_while_it_is_idle() -> None:
    [event] = greeted().receive(b'{"op":"log","level":"info","message":"bored"}\n')
    assert isinstance(event, Told) and event.op is Op.LOG


@pytest.mark.parametrize(
    "line", [b"debug: 7", b"", b"[1]", b'{"severity":"INFO"}', b"\xff\xfe"]
)
def test_noise_is_let_through_unless_it_is_forbidden(line: bytes) -> None:
    connection = greeted()
    connection.request("1")
    [noise, reply] = connection.receive(line + b'\n{"id":"1","status":"ok"}\n')
    assert isinstance(noise, Noise) and noise.line == line
    assert isinstance(reply, Reply)

    [event] = greeted(stray=Stray.STRICT).receive(line + b"\n")
    assert isinstance(event, Violation)


@given(st.binary(max_size=60), st.lists(st.integers(1, 10), max_size=12))
def test_whatever_a_child_of_protocol_2_says_is_understood_or_a_violation(
    data: bytes, cuts: list[int]
) -> None:
    """And is the same however it comes in pieces."""
    whole, pieces = greeted(), greeted()
    for connection in (whole, pieces):
        connection.request("1")
    expected = [type(event) for event in whole.receive(data)]
    found = []
    for cut in [*cuts, len(data)]:
        part, data = data[:cut], data[cut:]
        found += [type(event) for event in pieces.receive(part)]
    assert found == expected


# --- the length of a line -------------------------------------------------------------


def line_of(length: int) -> bytes:
    head, tail = b'{"status":"ok","result":"', b'"}'
    return head + b"x" * (length - len(head) - len(tail)) + tail


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
def test_the_longest_line_is_read_and_one_byte_more_is_not(
    feed: Callable[[bytes], Iterator[bytes]],
) -> None:
    for length, expected in ((200, [Status.OK]), (201, [])):
        connection = asked(max_line=200)
        said = line_of(length) + b"\n"
        events = [event for part in feed(said) for event in connection.receive(part)]
        replies = [event.status for event in events if isinstance(event, Reply)]
        assert replies == expected
    assert str(events[0]).startswith("a line longer than 200 bytes; read b'")
    assert connection.state is State.BROKEN


def test_a_line_that_never_ends_is_not_kept() -> None:
    connection = asked(max_line=1000)
    for _ in range(100):
        connection.receive(b"x" * 100)
        assert len(connection._buffer) <= 1100
    assert connection.state is State.BROKEN
    assert not connection._buffer


def test_a_long_line_in_small_pieces_is_searched_once() -> None:
    """A megabyte, a kilobyte at a time: the start must not be searched again."""

    class Counting(bytearray):
        searched = 0

        def find(self, sub: Any, start: int = 0, *rest: int) -> int:  # type: ignore
            Counting.searched += len(self) - start
            return super().find(sub, start, *rest)

    connection = asked()
    connection._buffer = Counting()
    line = line_of(1_000_000) + b"\n"
    for start in range(0, len(line), 1000):
        connection.receive(line[start : start + 1000])
    assert connection.state is State.IDLE
    assert Counting.searched == len(line)


def test_a_violation_shows_what_was_read_cut_and_escaped() -> None:
    said = b"\x1b[31m" + b"x" * 500 + b"\n"
    [violation] = asked().receive(said)
    text = str(violation)
    assert "\\x1b[31m" in text and "\x1b" not in text
    assert f"({len(said) - 1} bytes)" in text
    assert len(text) < SHOWN + 200


def test_show_leaves_a_short_line_whole() -> None:
    assert show(b"abc") == "b'abc'"
    assert show(b"x" * SHOWN) == repr(b"x" * SHOWN)


# --- one reply ------------------------------------------------------------------------

GOOD = [
    (b'{"id":"a","status":"ok","result":null}', "a", Status.OK),
    (b'{"id":null,"status":"ok"}', None, Status.OK),
    (b'{"status":"error","message":"m","backtrace":["x"]}', None, Status.ERROR),
    (b'{"status":"throttled","retry_after_secs":0}', None, Status.THROTTLED),
    (b'{"status":"throttled","retry_after_secs":1.5}', None, Status.THROTTLED),
    (b'{"status":"throttled","retry_after_secs":null}', None, Status.THROTTLED),
    (b'{"status":"retry"}', None, Status.RETRY),
    (b'{"status":"rejected","requeue":true}', None, Status.REJECTED),
    (b'{"status":"ignored"}', None, Status.IGNORED),
    (b'{"status":"ok","unknown":{"fields":["are","ignored"]}}', None, Status.OK),
]


@pytest.mark.parametrize("line, id_, status", GOOD)
def test_a_good_line(line: bytes, id_: str, status: Status) -> None:
    reply = parse_reply(line)
    assert (reply.id, reply.status) == (id_, status)
    assert reply.fields == json.loads(line)


def test_every_status_has_a_good_line() -> None:
    assert {status for _, _, status in GOOD} == set(Status) - {
        Status.CANCELLED,
        Status.RESTART,
    }


#: (line, a part of the reason)
BAD = [
    (b"", "no JSON"),
    (b" ", "no JSON"),
    (b"\x00", "no JSON"),
    (b'{"status":"ok"}\x00', "no JSON"),
    (b'\x00{"status":"ok"}', "no JSON"),
    (b'{"status":"o\x00k"}', "no JSON"),
    (b'{"status":"ok","result":"\xff"}', "no JSON"),
    (b'{"status":"ok","result":"\xed\xa0\x80"}', "no JSON"),
    (b'{"status":"ok","result":"\xc3"}', "no JSON"),
    (b'\xef\xbb\xbf{"status":"ok"}', "no JSON"),
    ('{"status":"ok"}'.encode("utf-16"), "no JSON"),
    (b"{'status': 'ok'}", "no JSON"),
    (b'{"status":"ok",}', "no JSON"),
    (b'{"status":"ok"}{"status":"ok"}', "no JSON"),
    (b'{"status":"ok"} // done', "no JSON"),
    (b'{"status":"ok","result":NaN}', "no JSON"),
    (b'{"status":"ok","result":Infinity}', "no JSON"),
    (b'{"status":"ok","result":-Infinity}', "no JSON"),
    (b'{"status":"ok","result":1e999}', "no JSON"),
    (b'{"status":"ok","n":11111111111111111111,"result":NaN}', "no JSON"),
    (b'{"status":"ok","n":11111111111111111111,"result":1e999}', "no JSON"),
    (b'{"status":"ok","result":01}', "no JSON"),
    (b"null", "no JSON object"),
    (b"[]", "no JSON object"),
    (b'"ok"', "no JSON object"),
    (b"7", "no JSON object"),
    (b"true", "no JSON object"),
    (b"11111111111111111111", "no JSON object"),
    (b'{"status":"ok","id":7}', "an id"),
    (b'{"status":"ok","id":["a"]}', "an id"),
    (b'{"status":"ok","id":false}', "an id"),
    (b'{"id":"a"}', "None"),
    (b'{"status":null}', "None"),
    (b'{"status":"OK"}', "'OK'"),
    (b'{"status":"ok "}', "'ok '"),
    (b'{"status":1}', "1"),
    (b'{"status":true}', "True"),
    (b'{"status":["ok"]}', "['ok']"),
    (b'{"status":{"ok":1}}', "{'ok': 1}"),
    (b'{"status":"retry","retry_after_secs":"60"}', "retry_after_secs"),
    (b'{"status":"retry","retry_after_secs":true}', "retry_after_secs"),
    (b'{"status":"retry","retry_after_secs":-1}', "retry_after_secs"),
    (b'{"status":"retry","retry_after_secs":-0.5}', "retry_after_secs"),
    (b'{"status":"retry","retry_after_secs":[]}', "retry_after_secs"),
    (b'{"status":"retry","retry_after_secs":1e300}', "retry_after_secs"),
    (b'{"status":"retry","retry_after_secs":99999999999999999999}', "retry_after"),
]


@pytest.mark.parametrize("line, reason", BAD)
def test_a_bad_line_says_what_is_bad(line: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_reply(line)
    assert reason in str(caught.value)


@pytest.mark.parametrize("depth", [1_000, 1_020, 100_000])
@pytest.mark.parametrize(
    "before, after",
    [
        (b'{"status":"ok","result":', b"}"),
        (b'{"status":', b"}"),
        (b'{"id":', b"}"),
        (b'{"status":"retry","retry_after_secs":', b"}"),
        (b'{"status":"ok","n":11111111111111111111,"result":', b"}"),
        (b"", b""),
    ],
)
def test_a_line_of_any_depth_is_a_reply_or_a_bad_line(
    before: bytes, after: bytes, depth: int
) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        line = before + opening * depth + b"1" + closing * depth + after
        try:
            parse_reply(line)
        except RemoteProtocolError as exc:
            assert len(str(exc)) < 1000


@pytest.mark.parametrize(
    "number", [b"1" * 100_000, b"-" + b"1" * 100_000, b"0." + b"1" * 100_000]
)
def test_a_number_of_any_length_is_a_number_or_a_bad_line(number: bytes) -> None:
    for line in (
        b'{"status":"ok","result":%s}' % number,
        b'{"status":"retry","retry_after_secs":%s}' % number,
        b'{"status":%s}' % number,
        number,
    ):
        try:
            parse_reply(line)
        except RemoteProtocolError as exc:
            assert len(str(exc)) < 1000


@pytest.mark.parametrize(
    "number",
    [2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**63) - 1, 10**300],
)
def test_a_long_integer_keeps_every_digit(number: int) -> None:
    # Wherever it begins in a long line, of which not all bytes are looked at.
    for text in (b"", *(b"x" * size for size in range(5000, 5020))):
        line = b'{"text":"%s","status":"ok","result":[%d]}' % (text, number)
        [found] = parse_reply(line).fields["result"]
        assert found == number and isinstance(found, int)


def test_digits_in_a_text_stay_text() -> None:
    reply = parse_reply(b'{"status":"ok","id":"12345678901234567890123"}')
    assert reply.id == "12345678901234567890123"


@pytest.mark.parametrize("extra", [b"", b'"n":11111111111111111111,'])
def test_the_last_of_two_fields_with_one_name_counts(extra: bytes) -> None:
    # Both readers of JSON in use here do the same, or a reply would depend on them.
    line = b'{%s"status":"error","status":"ok","result":1,"result":2}' % extra
    reply = parse_reply(line)
    assert (reply.status, reply.fields["result"]) == (Status.OK, 2)


@given(st.binary(max_size=200))
@example(b'{"status":"ok","result":"\xf4\x90\x80\x80"}')
@example(b"-" * 30)
def test_whatever_is_read_is_a_reply_or_a_bad_line(line: bytes) -> None:
    try:
        reply = parse_reply(line)
    except RemoteProtocolError:
        return
    assert isinstance(reply, Reply)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["\u2028", "\u2029", '"', "\\", "\n", "\r\n", "\0", "\x85"]),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5
    ),
    max_leaves=20,
)


@given(
    status=JSON_VALUES | st.sampled_from([s.value for s in Status]),
    id_=JSON_VALUES | st.text(),
    after=JSON_VALUES,
)
def test_fields_of_any_type_are_a_reply_or_a_bad_line(
    status: Any, id_: Any, after: Any
) -> None:
    value = {"status": status, "id": id_, "retry_after_secs": after}
    try:
        line = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assume(False)
    try:
        reply = parse_reply(line)
    except RemoteProtocolError:
        return
    assert reply.fields == value
    assert reply.id is None or isinstance(reply.id, str)


@given(result=JSON_VALUES)
def test_a_result_comes_up_as_it_was_sent(result: Any) -> None:
    line = json.dumps({"status": "ok", "result": result}).encode()
    found = parse_reply(line).fields["result"]
    assert found == result
    # 1 == 1.0, but a task that returned the one did not return the other.
    assert repr(found) == repr(result)


# --- one request ----------------------------------------------------------------------


def decoded(request_id: str, args: Any) -> Any:
    line = encode_request(request_id, {"args": args})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line.decode("utf-8"))


@given(
    value=JSON_VALUES,
    request_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
@example(value={"a\nb": "c\nd"}, request_id="x\ny\u2028z")
@example(value={'"': '\\"'}, request_id='"')
@example(value=2**64, request_id="big")
@example(value={"n": -(2**200), "t": "\u2028\n\0"}, request_id="\n")
@example(value=["null", None, {"null": None}], request_id="null")
def test_any_json_value_goes_down_in_one_line(value: Any, request_id: str) -> None:
    found = decoded(request_id, [value])
    assert found == {"id": request_id, "payload": {"args": [value]}}
    assert repr(found["payload"]["args"][0]) == repr(value)


@given(value=JSON_VALUES)
def test_both_writers_of_json_say_the_same(value: Any) -> None:
    """A task does not see whether another argument was too large for the fast one."""
    fast = decoded("i", [value, 1])
    slow = decoded("i", [value, 2**70])
    assert fast["payload"]["args"][0] == slow["payload"]["args"][0]


ZONE = datetime.timezone(datetime.timedelta(hours=2))

FORMS = [
    (datetime.datetime(2024, 2, 29, 12, 30), "2024-02-29T12:30:00"),
    (datetime.datetime(2024, 2, 29, 12, 30, 1, 5), "2024-02-29T12:30:01.000005"),
    (
        datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone.utc),
        "2024-02-29T12:30:00+00:00",
    ),
    (
        datetime.datetime(2024, 2, 29, 12, 30, tzinfo=ZONE),
        "2024-02-29T12:30:00+02:00",
    ),
    (datetime.date(2024, 2, 29), "2024-02-29"),
    (datetime.time(12, 30, 1), "12:30:01"),
    (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (decimal.Decimal("1.10"), "1.10"),
    (b"\x00\xff\n", "AP8K"),
    (bytearray(b"abc"), "YWJj"),
    (memoryview(b"abc"), "YWJj"),
    (memoryview(b"abcdef")[::2], "YWNl"),
    ((1, (2, 3)), [1, [2, 3]]),
]


@pytest.mark.parametrize("beside", [1, 2**70], ids=["fast", "slow"])
@pytest.mark.parametrize("value, form", FORMS)
def test_the_form_of_what_json_does_not_know(
    value: Any, form: Any, beside: int
) -> None:
    # Beside an integer that orjson refuses another writer is used.
    assert decoded("i", [value, beside])["payload"]["args"] == [form, beside]


@given(st.binary())
def test_bytes_can_be_had_again(value: bytes) -> None:
    text = decoded("i", value)["payload"]["args"]
    assert base64.b64decode(text, validate=True) == value


@pytest.mark.parametrize(
    "key, text", [(1, "1"), (2**70, str(2**70)), (None, "null"), (True, "true")]
)
def test_keys_become_text_as_in_kombus_json(key: Any, text: str) -> None:
    assert decoded("i", [{key: 1}])["payload"]["args"] == [{text: 1}]


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def ring() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


REFUSED = [
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    ({"a": [1, float("-inf")]}, r"\['args'\]\[0\]\['a'\]\[1\]"),
    # Which number it is only newer versions of the standard library say.
    ({1: float("nan")}, "nan|Out of range float"),
    ([2**70, float("inf")], "inf|Out of range float"),
    ([None, "null", float("nan")], "nan"),
    ("\ud800", "surrogates"),
    ({"\ud800": 1}, "surrogates"),
    (["\udfff", 2**70], "surrogates"),
    (object(), "object"),
    ({1, 2}, "set"),
    (frozenset(), "frozenset"),
    ((item for item in ()), "generator"),
    (ValueError("x"), "ValueError"),
    (1j, "complex"),
    (print, "builtin"),
    (datetime.timedelta(1), "timedelta"),
    ([object(), 2**70], "object"),
    ({(1, 2): 3}, "key"),
    ({b"a": 1}, "key"),
    (deep(100_000), "depth|too deep|recursion"),
    ([deep(100_000), None], "depth|too deep|recursion"),
    ([deep(100_000), 2**70], "depth|too deep|recursion"),
    (ring(), "Circular|recursion"),
]


@pytest.mark.parametrize("value, reason", REFUSED, ids=range(len(REFUSED)))
def test_what_json_cannot_say_is_refused_with_the_reason(
    value: Any, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        encode_request("i", {"args": [value]})


@pytest.mark.parametrize("depth", [100, 250, 300, 900, 1_000, 1_100, 5_000])
@pytest.mark.parametrize("beside", [1, None, 2**70])
def test_a_request_of_any_depth_is_written_or_refused(depth: int, beside: Any) -> None:
    value = deep(depth)
    try:
        line = encode_request("i", {"args": [value, beside]})
    except RequestError:
        return
    assert b"[" * depth in line


def test_an_id_that_cannot_be_written_is_refused_as_well() -> None:
    with pytest.raises(RequestError, match="surrogates"):
        encode_request("\ud800", {})


def test_a_request_may_be_as_long_as_a_line_and_no_longer() -> None:
    line = encode_request("i", {"args": ["x" * 100]})
    # The newline is no part of the line.
    longest = len(line) - 1
    assert encode_request("i", {"args": ["x" * 100]}, longest) == line
    with pytest.raises(RequestError, match=f"linepool_max_line = {longest - 1}"):
        encode_request("i", {"args": ["x" * 100]}, longest - 1)


def test_no_library_finds_another_line_in_a_line() -> None:
    text = "a\u2028b\u2029c\u0085d\r\x0b\x0c\x1c\x1d\x1ee"
    line = encode_request(text, {"args": [text], text: None})
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == {"id": text, "payload": {"args": [text], text: None}}


def test_a_request_is_as_small_and_readable_as_it_can_be() -> None:
    assert encode_request("1", {"args": ["Zoë"]}) == (
        '{"id":"1","payload":{"args":["Zoë"]}}\n'.encode()
    )
