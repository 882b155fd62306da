"""The connection to RabbitMQ in large pieces: the same messages, in fewer turns."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import UnexpectedFrame
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub, set_event_loop
from localprocess import Servers
from workers import FAST, eventually

from celery_linepool.buffered import SIZE, Buffered, buffered, split

CHILDREN = Path(__file__).parent / "children"
LIVES = ["ruby", str(CHILDREN / "lives.rb")]

FRAMES = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 65535), st.binary(max_size=300)),
    max_size=8,
)


def wire(frames: list[tuple[int, int, bytes]]) -> bytes:
    return b"".join(
        struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"
        for kind, channel, payload in frames
    )


# --- frames ---------------------------------------------------------------------------


@given(FRAMES, st.lists(st.integers(0, 2000), max_size=6))
def test_frames_are_the_same_however_they_arrive(
    frames: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data, found, rest, last = wire(frames), [], b"", 0
    for cut in [*sorted(cuts), len(data)]:
        more, rest = split(rest + data[last:cut])
        found += more
        last = max(last, cut)
    assert (found, rest) == (frames, b"")


@given(FRAMES, st.binary(max_size=20))
def test_what_is_no_whole_frame_is_left(
    frames: list[tuple[int, int, bytes]], half: bytes
) -> None:
    tail = struct.pack(">BHI", 3, 1, 21) + half
    assert split(wire(frames) + tail) == (frames, tail)


def test_a_frame_that_does_not_end_is_no_frame() -> None:
    with pytest.raises(UnexpectedFrame):
        split(wire([(1, 1, b"x")])[:-1] + b"\xcd")


# --- a connection ---------------------------------------------------------------------


class Link:
    """A consumer as a worker has one: on an event loop, buffered."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)
        self.hub = Hub()
        set_event_loop(self.hub)
        self.queue = Queue(f"q-{uuid.uuid4().hex}", auto_delete=False)
        self.channel = self.connection.channel()
        self.queue(self.channel).declare()
        self.connection.register_with_event_loop(self.hub)
        #: py-amqp's. Asked for it later, kombu would connect again.
        self.wire = self.connection.connection
        found = buffered(self.connection, self.hub, self.channel)
        assert found is not None
        self.buffered: Buffered = found
        self.messages: list[Any] = []
        self.turns = 0
        self._loop = self.hub.create_loop()

    def consume(self) -> None:
        Consumer(
            self.channel, [self.queue], on_message=self.messages.append, accept=["json"]
        ).consume()

    def publish(self, bodies: list[Any]) -> None:
        with Connection(self.connection.as_uri(include_password=True)) as other:
            producer = other.Producer()
            for body in bodies:
                producer.publish(body, routing_key=self.queue.name)

    def turn_until(self, count: int) -> None:
        def turn() -> bool:
            self.turns += 1
            next(self._loop)
            return len(self.messages) >= count

        eventually(turn)

    def waiting(self) -> int:
        """Messages that the broker has, and nobody else."""
        with Connection(self.connection.as_uri(include_password=True)) as other:
            declared = self.queue(other.default_channel).queue_declare(passive=True)
            return int(declared.message_count)

    def lose(self) -> None:
        """The worker is killed: what was not sent is not."""
        if self.wire.transport.sock is not None:
            self.hub.remove(self.wire.sock)
            self.wire.transport.close()

    def close(self) -> None:
        self.lose()
        with Connection(self.connection.as_uri(include_password=True)) as other:
            self.queue(other.default_channel).delete()
        self.connection.collect()
        self.hub.close()
        set_event_loop(None)


@pytest.fixture
def link(servers: Servers) -> Iterator[Link]:
    lease = servers.shared("rabbitmq").lease()
    link = Link(lease.url)
    yield link
    link.close()
    lease.release()


def test_many_messages_come_in_few_turns(link: Link) -> None:
    bodies = [[number, "x" * (number % 100)] for number in range(200)]
    link.publish(bodies)
    link.consume()
    link.turn_until(200)
    assert [message.payload for message in link.messages] == bodies
    # By itself kombu takes one message a turn, and some turns more.
    assert link.turns < 50


def test_messages_that_are_larger_than_a_read(link: Link) -> None:
    bodies = [["x" * size] for size in (SIZE - 1, SIZE, 5 * SIZE, 1, 1_000_000)]
    link.publish(bodies)
    link.consume()
    link.turn_until(len(bodies))
    assert [message.payload for message in link.messages] == bodies


def test_whoever_waits_for_an_answer_gets_it_in_the_midst_of_messages(
    link: Link,
) -> None:
    link.publish(list(range(50)))

    def on_message(message: Any) -> None:
        link.messages.append(message)
        # The broker's answer comes behind messages that have been read already.
        link.channel.basic_qos(0, 100 + len(link.messages), False)

    Consumer(
        link.channel, [link.queue], on_message=on_message, accept=["json"]
    ).consume()
    link.turn_until(50)
    assert [message.payload for message in link.messages] == list(range(50))


def test_a_message_that_fails_holds_up_no_other(link: Link) -> None:
    link.publish(list(range(20)))

    def on_message(message: Any) -> None:
        link.messages.append(message)
        if message.payload % 5 == 0:
            raise ValueError("this one")

    Consumer(
        link.channel, [link.queue], on_message=on_message, accept=["json"]
    ).consume()
    link.hub.propagate_errors = link.connection.connection_errors

    def turn() -> bool:
        try:
            next(link._loop)
        except (ValueError, StopIteration):
            link._loop = link.hub.create_loop()
        return len(link.messages) >= 20

    eventually(turn)
    assert [message.payload for message in link.messages] == list(range(20))


def test_acks_are_gathered_and_sent_before_the_loop_waits(link: Link) -> None:
    link.publish(list(range(30)))
    link.consume()
    link.turn_until(30)
    link.buffered.gather()
    for message in link.messages[:10]:
        link.hub.call_soon(message.ack)
    next(link._loop)
    link.buffered.gather()
    for message in link.messages[10:20]:
        message.ack()
    link.lose()  # before these were sent
    eventually(lambda: link.waiting() == 20)


def test_whoever_waits_for_an_answer_sends_what_was_gathered(link: Link) -> None:
    link.publish(list(range(10)))
    link.consume()
    link.turn_until(10)
    link.buffered.gather()
    for message in link.messages:
        message.ack()
    link.channel.basic_qos(0, 100, False)  # waits for its answer
    link.lose()
    assert link.waiting() == 0


def test_the_end_of_a_connection_is_seen(link: Link, servers: Servers) -> None:
    link.publish([1])
    link.consume()
    link.turn_until(1)
    link.wire.sock.shutdown(2)
    link.hub.propagate_errors = link.connection.connection_errors
    with pytest.raises(link.connection.connection_errors):
        for _ in range(10):
            next(link._loop)


def test_other_transports_are_left_alone(servers: Servers) -> None:
    hub = Hub()
    with Connection("memory://") as connection:
        assert buffered(connection, hub, connection.default_channel) is None
        assert buffered(connection, None, connection.default_channel) is None
    hub.close()


# --- a worker -------------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_a_worker_with_it(start_worker: Any, tmp_path: Path, broker: str) -> None:
    worker = start_worker(broker, LIVES, args=("-c", "2"), conf=FAST)
    results = [
        worker.send("lives.work", str(tmp_path / str(n)), "x" * (n * 997))
        for n in range(100)
    ]
    for number, result in enumerate(results):
        assert worker.result(result) == "x" * (number * 997)
    # Idle, it owes the broker nothing: what it has done is not delivered again.
    eventually(lambda: not worker.inspect("active") and not worker.inspect("reserved"))
    worker.kill()
    assert worker.queue_size() == 0
    worker.start()
    assert worker.call("lives.pid")
    assert worker.stop() == 0
    assert [len(path.read_text().splitlines()) for path in tmp_path.glob("[0-9]*")] == (
        [1] * 100
    )
    assert "has no effect" not in worker.log


#: What a worker sends while its main thread does nothing until tasks are done.
COUNTING = """
import pathlib, time
from celery.worker.control import control_command
from celery_linepool import buffered, fetching

sent = []

class Buffered(buffered.Buffered):
    def __init__(self, *args):
        super().__init__(*args)
        send = self._send
        self._send = lambda data: (sent.append(data), send(data))

class Fetching(fetching.Fetching):
    def _send_acks(self):
        sent.extend([True] if self.owed.acks else [])
        super()._send_acks()

buffered.Buffered, fetching.Fetching = Buffered, Fetching

@control_command()
def doze(state, path, count):
    sent.clear()
    state.consumer.pool.resume()
    path = pathlib.Path(path)
    while not path.exists() or len(path.read_text().splitlines()) < count:
        time.sleep(0.01)
    return {"ok": len(sent)}

@control_command()
def sendings(state):
    return {"ok": len(sent)}
"""


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_a_worker_sends_the_acks_of_a_turn_at_once(
    start_worker: Any, tmp_path: Path, broker: str, late: bool
) -> None:
    """Celery has acks run by the event loop, after whatever asked for them."""
    conf = {**FAST, "task_acks_late": late, "worker_prefetch_multiplier": 20}
    worker = start_worker(
        broker, LIVES, args=("-c", "2"), conf=conf, tasks=COUNTING, backend=None
    )
    worker.control("linepool_pause")
    path = tmp_path / "done"
    for number in range(20):
        worker.send("lives.work", str(path), number)
    eventually(lambda: len(worker.inspect("reserved")) == 20)
    assert worker.control("doze", path=str(path), count=20) == {"ok": 0}
    eventually(lambda: not worker.inspect("reserved"))
    assert not worker.inspect("active")
    assert 1 <= worker.control("sendings")["ok"] <= 3


def test_a_worker_that_cannot_says_so(start_worker: Any) -> None:
    conf = {"linepool_buffered_broker": True}
    worker = start_worker("filesystem", LIVES, args=("-c", "1"), conf=conf)
    assert worker.call("lives.pid")
    assert "linepool_buffered_broker has no effect" in worker.log


def test_a_setting_that_is_no_truth_keeps_a_worker_from_starting(
    start_worker: Any,
) -> None:
    conf = {"linepool_buffered_broker": "yes"}
    worker = start_worker("redis", LIVES, conf=conf, wait=False)
    assert worker.wait() != 0
    assert "linepool_buffered_broker: must be True or False, not 'yes'" in worker.log
